"""``environ["wsgi.websocket"]``: the interface of gevent-websocket, by its worker class and by ``wsgi_websocket``."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from rawclient import RawClient
from server import HERE, ROOT, Server, Start, run
from wsclient import BINARY, PING, PONG, TEXT, Frame, FrameClient, closing, frame, handshake

pytest.importorskip("wsproto")

WORKER = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"
ADAPTER = ("--wsgi-websocket", "-w", "1")
# What an application imports of gevent-websocket, as that package has it.
PACKAGE = {
    "geventwebsocket/__init__.py": "from .exceptions import WebSocketError\n",
    "geventwebsocket/exceptions.py": "class WebSocketError(OSError):\n    pass\n",
    "geventwebsocket/gunicorn/__init__.py": "",
    "geventwebsocket/gunicorn/workers.py": (
        "from gunicorn.workers.ggevent import GeventPyWSGIWorker\n"
        "class GeventWebSocketWorker(GeventPyWSGIWorker):\n"
        "    wsgi_handler = object\n"
    ),
}
# The beginning of a class that is built on its worker.
MINE = "from geventwebsocket.gunicorn.workers import GeventWebSocketWorker\nclass Mine(GeventWebSocketWorker):\n"


@pytest.fixture(scope="module", params=["threads", "gevent"])
def worker_class(request: pytest.FixtureRequest) -> str:
    """The classes that can hold a WebSocket."""
    return str(request.param)


def threads_of(worker_class: str) -> tuple[str, ...]:
    """Return the flags that let a worker of the class hold several connections."""
    return ("--threads", "8") if worker_class == "threads" else ()


@pytest.fixture
def site(shared_servers: Start, worker_class: str) -> Iterator[Server]:
    """A shared server of the test application."""
    server = shared_servers("websocketapps:adapter", *ADAPTER, *threads_of(worker_class))
    before = len(server.log.lines)
    yield server
    server.check(before)


@pytest.fixture
def own(start: Start, worker_class: str) -> Server:
    """A server of the test's own."""
    server = start("websocketapps:adapter", *ADAPTER, *threads_of(worker_class))
    server.wait_for_log("ready")
    return server


# ---- the names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [WORKER, "geventwebsocket.gunicorn.workers:GeventWebSocketWorker", "flask_sockets.worker"]
)
def test_the_classes_of_gunicorn_are_gevent_with_websockets(start_unclassed: Start, name: str) -> None:
    server = start_unclassed("websocketapps:adapter", worker_class=name)
    server.wait_for_log("1 gevent worker")
    with FrameClient(server.address) as peer:
        peer.echo(b"hello")
        peer.close()
    with RawClient(server.address) as client:
        assert client.get("/").text == "no WebSocket\n"


def test_what_is_printed_says_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(f"worker_class = {WORKER!r}\n")
    printed = run(["--print-config", "hello:app"], tmp_path).stdout
    assert re.search(rf"worker_class\s*= 'gevent' .*{re.escape(WORKER)}.*gunicorn\.conf\.py", printed)
    assert re.search(rf"wsgi_websocket\s*= True .*worker_class = '{re.escape(WORKER)}'", printed)
    off = run(["--print-config", "--no-wsgi-websocket", "hello:app"], tmp_path).stdout
    assert re.search(r"wsgi_websocket\s*= False", off)


@pytest.mark.parametrize(
    "chosen",
    [
        "from geventwebsocket.gunicorn.workers import GeventWebSocketWorker as worker_class\n",
        f"{MINE}    def init_process(self):\n        super().init_process()\nworker_class = Mine\n",
        "worker_class = 'mine.Mine'\n",
    ],
    ids=["the class", "a class built on it", "the path of such a class"],
)
def test_the_class_itself(start_unclassed: Start, chosen: str) -> None:
    files = {**PACKAGE, "wsgiserv.conf.py": chosen, "mine.py": f"{MINE}    pass\n"}
    server = start_unclassed("websocketapps:adapter", files=files)
    with FrameClient(server.address) as peer:
        peer.echo(b"hello")
        peer.close()


def test_a_hook_may_choose_it(start_unclassed: Start) -> None:
    config = f"def on_starting(server):\n    server.cfg.set('worker_class', {WORKER!r})\n"
    server = start_unclassed("websocketapps:adapter", files={"wsgiserv.conf.py": config})
    with FrameClient(server.address) as peer:
        peer.echo(b"hello")
        peer.close()


def test_sync_cannot_hold_one(tmp_path: Path) -> None:
    done = run(["-b", "127.0.0.1:0", "--wsgi-websocket", "websocketapps:adapter"], tmp_path)
    assert done.returncode == 2
    assert "WS1088 wsgi_websocket = True (--wsgi-websocket on the command line)" in done.stderr
    assert "worker_class = 'gevent' or 'threads'" in done.stderr


@pytest.mark.parametrize("asked", [("-k", WORKER), ("-k", "threads", "--wsgi-websocket")])
def test_without_wsproto_it_says_what_to_install(tmp_path: Path, asked: tuple[str, ...]) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'wsproto':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(HERE)])
    done = run(["-b", "127.0.0.1:0", *asked, "websocketapps:adapter"], tmp_path, {"PYTHONPATH": path})
    assert done.returncode == 2
    assert "WS1089 wsgi_websocket = True" in done.stderr
    assert "pip install 'wsgiserv[websocket]'" in done.stderr


# ---- the object ------------------------------------------------------------------------------------------------


def test_what_it_says_of_the_request(site: Server) -> None:
    with FrameClient(site.address, "/describe", Origin="http://shop.example", Sec_WebSocket_Protocol="a, b") as peer:
        assert json.loads(peer.message().payload) == {
            "origin": "http://shop.example",
            "path": "/describe",
            "version": "13",
            "protocol": "a, b",
            "closed": False,
            "keys": [
                *("HTTP_SEC_WEBSOCKET_KEY", "HTTP_SEC_WEBSOCKET_PROTOCOL", "HTTP_SEC_WEBSOCKET_VERSION"),
                *("wsgi.websocket", "wsgi.websocket_version"),
            ],
            "websocket_version": "13",
            "clients": 1,
            "is_listed": True,
        }
        assert "Sec-WebSocket-Protocol" not in peer.head


def test_types_of_messages(site: Server) -> None:
    with FrameClient(site.address, "/types") as peer:
        peer.send(frame(TEXT, b"text") + frame(BINARY, b"data"))
        received = [peer.receive() for _ in range(10)]
        assert received == [
            Frame(TEXT, b"str"),
            Frame(TEXT, b"bytearray"),
            Frame(TEXT, b"text"),
            Frame(BINARY, b"binary"),
            Frame(BINARY, b"text as binary"),
            Frame(TEXT, b"bytes as text"),
            Frame(BINARY, b"bytearray"),
            Frame(BINARY, b"17"),
            Frame(PING, b"ping"),
            Frame(PONG, b"pong"),
        ]
        answer = peer.receive()
        assert answer is not None
        assert answer.code == 1000


def test_after_its_close_it_raises(own: Server) -> None:
    with FrameClient(own.address, "/close") as peer:
        answer = peer.receive()
        assert answer is not None
        assert (answer.code, answer.payload[2:]) == (4000, b"enough")
        peer.send(closing(4000))
        assert peer.receive() is None
    outcomes = json.loads(own.out.wait_for("outcomes: (.*)")[1])
    name = "wsgiserv.net.websocket.WebSocketError"
    assert outcomes == [True, f"{name}: Connection is already closed", f"{name}: Socket is dead"]


def test_the_error_is_gevent_websockets_where_an_application_has_that(start: Start, worker_class: str) -> None:
    app = "import geventwebsocket\nfrom websocketapps import adapter as app\n"
    server = start("shop:app", *ADAPTER, *threads_of(worker_class), files={**PACKAGE, "shop.py": app})
    with FrameClient(server.address, "/close") as peer:
        assert peer.receive() is not None
    outcomes = json.loads(server.out.wait_for("outcomes: (.*)")[1])
    assert [each.partition(":")[0] for each in outcomes[1:]] == ["geventwebsocket.exceptions.WebSocketError"] * 2


def test_an_application_sends_to_all_its_clients(site: Server) -> None:
    with FrameClient(site.address, "/chat") as first, FrameClient(site.address, "/chat") as second:
        # Each is in the list when its first message has come back.
        first.send(frame(TEXT, b"one"))
        assert first.message().payload == b"one"
        second.send(frame(TEXT, b"two"))
        assert {first.message().payload, second.message().payload} <= {b"one", b"two"}
        first.send(frame(TEXT, b"three"))
        for peer in (first, second):
            while peer.message().payload != b"three":
                pass
        first.close()
        second.close()


def test_an_application_that_raises_closes_with_1011(own: Server) -> None:
    own.expect(r"WS1691 .* GET /fail", "Traceback")
    with FrameClient(own.address, "/fail") as peer:
        answer = peer.receive()
        assert answer is not None
        assert answer.code == 1011
        peer.send(closing(1011))
        assert peer.receive() is None
    own.wait_for_log("LookupError: on purpose")
    with FrameClient(own.address) as peer:
        peer.echo(b"served on")
        peer.close()


def test_early_frames_count(site: Server) -> None:
    with FrameClient(site.address, early=frame(TEXT, b"early") + frame(PING, b"too")) as peer:
        assert peer.message().payload == b"early"
        assert peer.receive() == Frame(PONG, b"too")
        peer.close()


# ---- the handshake ---------------------------------------------------------------------------------------------


def test_the_accept_header(site: Server) -> None:
    # The example of RFC 6455 §1.3.
    with FrameClient(site.address, Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==") as peer:
        assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in peer.head
        assert "Content-Length" not in peer.head
        peer.close()


@pytest.mark.parametrize(
    ("status", "changed"),
    [
        (426, {"Sec_WebSocket_Version": None}),
        (400, {"Sec_WebSocket_Version": "12"}),
        (400, {"Sec_WebSocket_Version": "thirteen"}),
        (400, {"Sec_WebSocket_Key": None}),
        (400, {"Sec_WebSocket_Key": "short"}),
        (400, {"Sec_WebSocket_Key": "not base64 at all, it is"}),
    ],
)
def test_a_broken_handshake_is_refused(own: Server, status: int, changed: dict[str, str | None]) -> None:
    own.expect("WS1560 127.0.0.1: WebSocket refused with")
    with FrameClient(own.address, **changed) as peer:
        assert peer.status == status
        if "Sec_WebSocket_Version" in changed:
            assert "Sec-WebSocket-Version: 13, 8, 7" in peer.head
    own.wait_for_log(f"WS1560 127.0.0.1: WebSocket refused with {status}: ")
    with FrameClient(own.address) as peer:
        peer.echo(b"served on")
        peer.close()


@pytest.mark.parametrize("changed", [{"Connection": "keep-alive"}, {"Upgrade": "h2c"}, {"Upgrade": None}])
def test_another_request_is_the_applications(site: Server, changed: dict[str, str | None]) -> None:
    with FrameClient(site.address, **changed) as peer:
        assert peer.status == 200


def test_a_subprotocol_of_the_applications_choice(start: Start, worker_class: str) -> None:
    server = start("websocketapps:with_protocol", *ADAPTER, *threads_of(worker_class))
    for asked, chosen in (("mqtt, wamp", True), ("wampum", False), (None, False)):
        with FrameClient(server.address, "/describe", Sec_WebSocket_Protocol=asked) as peer:
            assert ("Sec-WebSocket-Protocol: wamp" in peer.head) is chosen
            peer.message()


# ---- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/wait", "/say"])
def test_a_stop_closes_with_1001(own: Server, path: str) -> None:
    with FrameClient(own.address, path) as peer:
        assert peer.receive() is not None
        own.send_signal(signal.SIGTERM)
        while (answer := peer.receive()) is not None and answer.opcode == TEXT:
            pass
        assert answer is not None
        assert answer.code == 1001
        peer.send(closing(1001))
        assert peer.receive() is None
    assert own.wait() == 0
    if path == "/wait":
        assert "the end: None True" in own.out.text


def test_a_client_that_does_not_answer_the_close_is_closed_by_fin(own: Server) -> None:
    with FrameClient(own.address, "/wait") as peer:
        assert peer.receive() is not None
        own.send_signal(signal.SIGTERM)
        answer = peer.receive()
        assert answer is not None
        assert answer.code == 1001
        assert peer.receive() is None  # a reset would raise
    assert own.wait() == 0


def test_a_client_that_reads_nothing_keeps_a_worker_for_graceful_timeout(start: Start, worker_class: str) -> None:
    more = (*threads_of(worker_class), "--graceful-timeout", "4")
    own = start("websocketapps:adapter", *ADAPTER, *more, expect=("WS1771 .* graceful_timeout",))
    with FrameClient(own.address, "/wait") as quiet, FrameClient(own.address) as peer:
        assert quiet.receive() is not None
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sender = threading.Thread(target=_send_until_the_end, args=(peer,))
        sender.start()
        own.send_signal(signal.SIGTERM)
        answer = quiet.receive()
        assert answer is not None
        assert answer.code == 1001
        quiet.send(closing(1001))
        assert own.wait() == 0
        sender.join()


def _send_until_the_end(peer: FrameClient) -> None:
    data = frame(BINARY, b"x" * 65536)
    try:
        while True:
            peer.send(data)
    except OSError:
        pass


def test_a_reload_closes_the_old_ones_while_new_ones_connect(own: Server) -> None:
    with FrameClient(own.address, "/wait") as old:
        assert old.receive() is not None
        after = len(own.log.lines)
        own.send_signal(signal.SIGHUP)
        answer = old.receive()
        assert answer is not None
        assert answer.code == 1001
        with FrameClient(own.address) as new:
            new.echo(b"beside it")
            old.send(closing(1001))
            assert old.receive() is None
            own.wait_for_log("reloaded", after=after)
            new.echo(b"after it")
            new.close()


@pytest.mark.parametrize("worker_class", ["gevent"], indirect=True)
def test_many_idle_ones_through_a_reload(start: Start, worker_class: str) -> None:
    server = start("websocketapps:adapter", *ADAPTER, "--worker-connections", "1000")
    server.wait_for_log("ready")
    with ExitStack() as stack:
        peers = [stack.enter_context(FrameClient(server.address, "/wait")) for _ in range(200)]
        assert all(peer.receive() for peer in peers)
        after = len(server.log.lines)
        server.send_signal(signal.SIGHUP)
        for number, peer in enumerate(peers):
            answer = peer.receive()
            assert answer is not None
            assert answer.code == 1001
            if number % 2:  # the others leave it at that
                peer.send(closing(1001))
            if number % 10 == 0:
                with FrameClient(server.address) as new:
                    new.echo(b"meanwhile")
        assert [peer.receive() for peer in peers] == [None] * len(peers)
        server.wait_for_log("reloaded", after=after)


def test_a_client_that_floods_does_not_keep_others_waiting(own: Server) -> None:
    data = b"".join(frame(TEXT, b"%d" % number) for number in range(2000))
    with FrameClient(own.address) as peer:
        sender = threading.Thread(target=lambda: [peer.send(data) for _ in range(5)])
        sender.start()
        for number in range(10000):
            if number % 1000 == 0:
                with RawClient(own.address) as client:
                    assert client.get("/").text == "no WebSocket\n"
            peer.message()
        sender.join()
        peer.close()


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_client_may_go_without_a_close_frame(own: Server, how: str) -> None:
    peer = FrameClient(own.address, "/wait")
    assert peer.receive() is not None
    if how == "reset":
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.end()
    own.out.wait_for("the end: None True")
    with FrameClient(own.address) as another:
        another.echo(b"served on")
        another.close()


def test_over_tls(start: Start, worker_class: str, tmp_path: Path) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("localhost")
    (tmp_path / "server.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    certificate = ("--certfile", "server.pem", "--keyfile", "server.key")
    server = start("websocketapps:adapter", *ADAPTER, *threads_of(worker_class), *certificate)
    with FrameClient(server.address, context=context) as peer:
        peer.echo(b"x" * 300000, BINARY)
        peer.close()
    with FrameClient(server.address, "/wait", context=context) as peer:
        assert peer.receive() is not None
        server.send_signal(signal.SIGTERM)
        answer = peer.receive()
        assert answer is not None
        assert answer.code == 1001
        peer.send(closing(1001))
        assert peer.receive() is None
    assert server.wait() == 0


def test_the_access_log_has_a_line_for_each(start: Start, worker_class: str) -> None:
    args = ("--access-logfile", "-", "--access-logformat", "seen %(r)s %(s)s")
    server = start("websocketapps:adapter", *ADAPTER, *threads_of(worker_class), *args)
    with FrameClient(server.address, "/chat") as peer:
        peer.echo(b"hello")
        peer.close()
    server.out.wait_for("seen GET /chat HTTP/1.1 101")


def test_no_socket_is_left_for_an_application_beside_it(site: Server) -> None:
    # A handshake that a library does over the socket would break the frames.
    request: dict[str, Any] = {"Sec_WebSocket_Protocol": None}
    with FrameClient(site.address, "/describe", **request) as peer:
        keys = json.loads(peer.message().payload)["keys"]
    assert not {"gunicorn.socket", "wsgiserv.socket"} & set(keys)


def test_requests_on_one_connection_before_it(site: Server) -> None:
    with RawClient(site.address) as client:
        assert client.get("/").text == "no WebSocket\n"
        client.sock.sendall(handshake("/describe"))
        assert client.sock.recv(12) == b"HTTP/1.1 101"
