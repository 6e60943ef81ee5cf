"""flask-sock and Flask-SocketIO, driven by websocket-client and python-socketio."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rawclient import RawClient
from server import Server, Start, wait_until
from wsclient import FrameClient

pytest.importorskip("flask_sock")
pytest.importorskip("flask_socketio")
socketio = pytest.importorskip("socketio")
websocket = pytest.importorskip("websocket")

_TIMEOUT_S = 15.0
TRANSPORTS = {"polling": ["polling"], "upgrade": ["polling", "websocket"], "websocket": ["websocket"]}


@pytest.fixture(scope="module", params=["threads", "gevent"])
def worker_class(request: pytest.FixtureRequest) -> str:
    """The classes that can hold a WebSocket."""
    return str(request.param)


def _flags(worker_class: str) -> tuple[str, ...]:
    return ("-w", "1", *(("--threads", "16") if worker_class == "threads" else ()))


@pytest.fixture
def flask_sock(start: Start, worker_class: str) -> Server:
    """A server of the application with flask-sock."""
    server = start("websocketsites:sock_app", *_flags(worker_class))
    server.wait_for_log("ready")
    return server


@pytest.fixture
def flask_socketio(shared_servers: Start, worker_class: str) -> Server:
    """A server of the application with Flask-SocketIO."""
    return shared_servers(f"websocketsites:{worker_class}_app", *_flags(worker_class))


@contextmanager
def connected(server: Server, path: str = "/echo", **options: Any) -> Iterator[Any]:
    """Connect websocket-client."""
    client = websocket.create_connection(
        "ws://{}:{}{}".format(*server.address, path), timeout=_TIMEOUT_S, http_no_proxy=["*"], **options
    )
    try:
        yield client
    finally:
        client.shutdown()


# ---- flask-sock ------------------------------------------------------------------------------------------------


def test_the_echo_example(flask_sock: Server) -> None:
    with connected(flask_sock) as first, connected(flask_sock) as second:
        for client in (first, second, first):
            client.send("grüße")
            assert client.recv() == "grüße"
        first.send_binary(b"\0" * (4 << 20))
        assert first.recv() == b"\0" * (4 << 20)
        first.ping("are you there?")
        assert first.recv_data(control_frame=True) == (websocket.ABNF.OPCODE_PONG, b"are you there?")
        with RawClient(flask_sock.address) as plain:
            assert plain.get("/").text == "hello\n"
        second.send("close")
        opcode, data = second.recv_data(control_frame=True)
        assert (opcode, data[:2]) == (websocket.ABNF.OPCODE_CLOSE, b"\x03\xe8")
        first.close(timeout=_TIMEOUT_S)


def test_arguments_headers_and_a_close_code(flask_sock: Server) -> None:
    with connected(flask_sock, "/reverse/ada?a=1", origin="http://shop.example") as client:
        assert client.recv() == "ada 1 http://shop.example"
        opcode, data = client.recv_data(control_frame=True)
        assert (opcode, data) == (websocket.ABNF.OPCODE_CLOSE, b"\x0f\xa1enough")


def test_the_end_of_the_client_ends_the_application(flask_sock: Server) -> None:
    with connected(flask_sock) as client:
        client.send("a")
        assert client.recv() == "a"
    # A thread or greenlet that went on would keep the worker.
    assert flask_sock.stop() == 0
    assert "graceful_timeout" not in flask_sock.log.text.partition("SIGTERM")[2]


def test_a_client_that_does_not_answer_the_close_leaves_no_thread(flask_sock: Server) -> None:
    with FrameClient(flask_sock.address, "/reverse/ada?a=1", Origin="x") as peer:
        assert peer.message().payload == b"ada 1 x"
        answer = peer.receive()
        assert answer is not None
        assert answer.code == 4001
        assert peer.receive() is None
        # The library's thread would be there until its next ping, after 25 s.
        assert flask_sock.stop() == 0


def test_a_stop_ends_it_by_fin(flask_sock: Server) -> None:
    with connected(flask_sock) as client:
        client.send("a")
        assert client.recv() == "a"
        flask_sock.send_signal(signal.SIGTERM)
        with pytest.raises(websocket.WebSocketConnectionClosedException):
            client.recv()
        assert flask_sock.wait() == 0


# ---- Flask-SocketIO --------------------------------------------------------------------------------------------


class Client:
    """A client of python-socketio, and what it has received."""

    def __init__(self, server: Server, transports: list[str]) -> None:
        self.socket = socketio.Client(reconnection=False)
        self.socket.eio.http = None
        self._responses: queue.Queue[Any] = queue.Queue()
        self.socket.on("my_response", self._responses.put)
        self.socket.connect(server.url, transports=transports, wait_timeout=_TIMEOUT_S)
        assert self.response() == "Connected"

    def response(self) -> Any:
        """Return the data of the next event."""
        return self._responses.get(timeout=_TIMEOUT_S)["data"]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.disconnect()


@pytest.mark.parametrize("transports", TRANSPORTS.values(), ids=TRANSPORTS)
def test_the_example_of_flask_socketio(flask_socketio: Server, transports: list[str]) -> None:
    with Client(flask_socketio, transports) as first, Client(flask_socketio, transports) as second:
        for client in (first, second):
            wait_until(lambda client=client: client.socket.transport() == transports[-1], "the upgrade")
        for data in ("hello", "x" * 200000, {"a": [1, None]}, b"\0\xff binary"):
            first.socket.emit("my_event", {"data": data})
            assert first.response() == data
        first.socket.emit("join", {"room": "shop"})
        assert first.response() == ["shop"]
        second.socket.emit("my_room_event", {"room": "shop", "data": "to the room"})
        assert first.response() == "to the room"
        second.socket.emit("my_broadcast_event", {"data": "to all"})
        assert (first.response(), second.response()) == ("to all", "to all")
        second.socket.emit("in_background", {})
        assert (first.response(), second.response()) == ("from the background", "from the background")
        assert first.socket.call("my_ping", timeout=_TIMEOUT_S) == "my_pong"
        with RawClient(flask_socketio.address) as plain:
            assert plain.get("/").text == "hello\n"
        second.socket.emit("disconnect_request")
        wait_until(lambda: not second.socket.connected, "the server has disconnected it")


def test_a_stop_with_clients_of_socketio(start: Start, worker_class: str) -> None:
    server = start(f"websocketsites:{worker_class}_app", *_flags(worker_class))
    with Client(server, ["websocket"]) as client:
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        wait_until(lambda: not client.socket.connected, "its connection has ended")
        server.out.wait_for("disconnected: transport close")
