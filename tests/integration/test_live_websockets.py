"""WebSocket libraries run as they are published: simple-websocket and flask-sock, with a real client."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from server import ROOT, Server, Start
from upgradeclient import certificate_flags, issue

simple_websocket = pytest.importorskip("simple_websocket")
pytest.importorskip("flask_sock")

# The examples of the documentation, as a reader copies them.
PAGE = (ROOT / "docs" / "websockets.md").read_text()


def example(name: str) -> str:
    """Return the page's file of this name."""
    [found] = [block.partition("```")[0] for block in PAGE.split("```python\n") if block.startswith(f"# {name}\n")]
    return found


@pytest.fixture(scope="session", params=["threads", "gevent"])
def worker_class(request: pytest.FixtureRequest) -> str:
    """The classes that can hold a connection."""
    return str(request.param)


@pytest.fixture(params=["http", "https"])
def transport(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[tuple[str, ...], ssl.SSLContext | None]:
    """The flags of a server, and the client's context."""
    if request.param == "http":
        return (), None
    context = issue(tmp_path)
    return certificate_flags(tmp_path), context


@pytest.fixture(params=["chat.py", "bare.py"])
def served(request: pytest.FixtureRequest, start: Start, transport: Any) -> Server:
    """A server of one of the page's examples."""
    name = request.param
    server = start(f"{name.removesuffix('.py')}:app", "--threads", "20", *transport[0], files={name: example(name)})
    server.wait_for_log("ready")
    return server


def connect(server: Server, context: ssl.SSLContext | None) -> Any:
    """Return a client of simple-websocket."""
    scheme = "ws" if context is None else "wss"
    return simple_websocket.Client.connect(f"{scheme}://localhost:{server.address[1]}/echo", ssl_context=context)


def test_the_pages_examples_echo(served: Server, transport: Any) -> None:
    clients = [connect(served, transport[1]) for _ in range(3)]
    for text in ("hello", "", "x" * 100_000, b"bytes\0"):
        for client in clients:
            client.send(text)
        assert [client.receive(timeout=15) for client in clients] == [text] * 3
    for client in clients:
        client.close()
    assert served.stop() == 0


def test_a_reload_closes_them_and_a_client_comes_back(served: Server, transport: Any) -> None:
    client = connect(served, transport[1])
    client.send("before")
    assert client.receive(timeout=15) == "before"
    served.reload()
    with pytest.raises(simple_websocket.ConnectionClosed):
        client.receive(timeout=15)
    client = connect(served, transport[1])
    client.send("after")
    assert client.receive(timeout=15) == "after"
    client.close()
