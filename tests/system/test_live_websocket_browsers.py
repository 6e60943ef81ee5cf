"""WebSockets behind a real nginx, and in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nginxproxy import Nginx
from programs import need
from server import Server, Start, wait_until
from wsclient import BINARY, FrameClient, closing

pytest.importorskip("flask_sock")
socketio = pytest.importorskip("socketio")
pytest.importorskip("websocket")

# As docs/websockets.md has it.
PROXY = """
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Host $http_host;
            proxy_read_timeout 1h;
"""
_DEADLINE_S = 30.0
_TRANSPORTS = {"polling": ["polling"], "upgrade": ["polling", "websocket"], "websocket": ["websocket"]}


@pytest.fixture(scope="module", params=["threads", "gevent"])
def worker_class(request: pytest.FixtureRequest) -> str:
    """The classes that can hold a WebSocket."""
    return str(request.param)


@pytest.fixture(params=["direct", "nginx"])
def way(request: pytest.FixtureRequest) -> str:
    """How a client comes to the server."""
    return str(request.param)


def begin(start: Start, worker_class: str, app: str, *args: str) -> Server:
    """Start a server of one worker that can hold many WebSockets."""
    threads = ("--threads", "16") if worker_class == "threads" else ()
    server = start(app, "-w", "1", *threads, *args)
    server.wait_for_log("ready")
    return server


@contextmanager
def proxied(server: Server, directory: Path, way: str) -> Iterator[Any]:
    """Yield the address where clients come: nginx's, or the server's own."""
    if way == "direct":
        yield server.address
        return
    program = need("nginx")
    nginx = Nginx(program, directory, "{}:{}".format(*server.address), PROXY)
    try:
        yield nginx.address
    finally:
        nginx.stop()
    # The client or the server has ended a connection that nginx still read from.
    assert [line for line in nginx.errors if "reset by peer" not in line] == []


# ---- behind nginx ------------------------------------------------------------------------------------------------


def test_the_adapter_behind_nginx(start: Start, worker_class: str, tmp_path: Path) -> None:
    server = begin(start, worker_class, "websocketapps:adapter", "--wsgi-websocket")
    with proxied(server, tmp_path, "nginx") as address:
        with FrameClient(address) as peer:
            peer.echo(b"hello")
            peer.echo(b"x" * (1 << 20), BINARY)
            peer.close()
        with FrameClient(address, "/wait") as old:
            assert old.receive() is not None
            server.send_signal(signal.SIGHUP)
            answer = old.receive()
            assert answer is not None
            assert answer.code == 1001
            with FrameClient(address) as new:
                new.echo(b"beside it")
                old.send(closing(1001))
                assert old.receive() is None
                server.wait_for_log("reloaded")
                new.close()


def test_flask_sock_behind_nginx(start: Start, worker_class: str, tmp_path: Path) -> None:
    server = begin(start, worker_class, "websocketsites:sock_app")
    with proxied(server, tmp_path, "nginx") as address, FrameClient(address, "/echo") as peer:
        peer.echo(b"hello")
        peer.echo(b"x" * (1 << 20), BINARY)
        peer.close()


@pytest.mark.parametrize("transports", _TRANSPORTS.values(), ids=_TRANSPORTS)
def test_socketio_behind_nginx(start: Start, worker_class: str, tmp_path: Path, transports: list[str]) -> None:
    server = begin(start, worker_class, f"websocketsites:{worker_class}_app")
    with proxied(server, tmp_path, "nginx") as address:
        client = socketio.Client(reconnection=False)
        responses: queue.Queue[Any] = queue.Queue()
        client.on("my_response", responses.put)
        client.connect("http://{}:{}".format(*address), transports=transports, wait_timeout=_DEADLINE_S)
        try:
            assert responses.get(timeout=_DEADLINE_S)["data"] == "Connected"
            wait_until(lambda: client.transport() == transports[-1], "the upgrade")
            client.emit("my_event", {"data": "hello"})
            assert responses.get(timeout=_DEADLINE_S) == {"data": "hello", "count": 1}
        finally:
            client.disconnect()


# ---- in a browser ------------------------------------------------------------------------------------------------


@contextmanager
def browsed(url: str, directory: Path) -> Iterator[None]:
    """Let Chromium open a page, until the end of the block."""
    program = need("chromium")
    profile = directory / "profile"
    flags = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    # It is to ask nobody but this server.
    flags += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += ["--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    with open(directory / "chromium.log", "wb") as log:
        process = subprocess.Popen(
            [program, *flags, url],
            env={**os.environ, "HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_DEADLINE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def seen_by_the_page(server: Server, address: Any, directory: Path) -> Any:
    """Open the server's page in Chromium, and return what its script tells of."""
    with browsed("http://{}:{}/page".format(*address), directory):
        return json.loads(server.out.wait_for("seen: (.*)", _DEADLINE_S)[1])


def test_flask_sock_in_chromium(start: Start, worker_class: str, way: str, tmp_path: Path) -> None:
    server = begin(start, worker_class, "websocketsites:sock_app")
    with proxied(server, tmp_path, way) as address:
        assert seen_by_the_page(server, address, tmp_path) == ["grüße", 300000, 4002, True]


def test_flask_socketio_in_chromium(start: Start, worker_class: str, way: str, tmp_path: Path) -> None:
    server = begin(start, worker_class, f"websocketsites:{worker_class}_app")
    with proxied(server, tmp_path, way) as address:
        assert seen_by_the_page(server, address, tmp_path) == [
            "40,42",
            "3probe",
            '42["my_response",{"data":"upgraded","count":1}]',
            '42["my_response",{"data":"direct","count":1}]',
        ]
