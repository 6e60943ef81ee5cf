"""WSGI applications that speak WebSocket: over ``wsgi.websocket``, and with simple-websocket over the socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

_Environ = dict[str, Any]


def adapter(environ: _Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve each path by the function of that name below, with the object of gevent-websocket."""
    websocket = environ.get("wsgi.websocket")
    if websocket is None:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"no WebSocket\n"]
    _PATHS[environ["PATH_INFO"].strip("/") or "echo"](websocket, environ)
    return [b"this is not sent"]


def echo(websocket: Any, environ: _Environ) -> None:
    """Send each message back. As the example of Flask-Sockets: also after the last one, None."""
    while not websocket.closed:
        websocket.send(websocket.receive())


def describe(websocket: Any, environ: _Environ) -> None:
    """Send what the object says of its request."""
    names = ("origin", "path", "version", "protocol", "closed")
    found = {name: getattr(websocket, name) for name in names}
    found["keys"] = sorted(key for key in environ if "socket" in key.lower())
    found["websocket_version"] = environ["wsgi.websocket_version"]
    found["clients"] = len(websocket.handler.server.clients)
    found["is_listed"] = websocket.handler.server.clients[websocket.handler.client_address].ws is websocket
    websocket.send(json.dumps(found))


def types(websocket: Any, environ: _Environ) -> None:
    """Send the type of each message, and what each kind of message becomes."""
    for _ in range(2):
        websocket.send(type(websocket.receive()).__name__)
    websocket.send("text")
    websocket.send(b"binary")
    websocket.send("text as binary", binary=True)
    websocket.send(b"bytes as text", binary=False)
    websocket.send(bytearray(b"bytearray"))
    websocket.send(17)
    websocket.send_frame("ping", websocket.OPCODE_PING)
    websocket.send_frame(b"pong", websocket.OPCODE_PONG)


def close(websocket: Any, environ: _Environ) -> None:
    """Close with a code, twice, and use it after that."""
    websocket.close(4000, "enough")
    websocket.close(4001)
    outcomes = [websocket.closed]
    for use in (websocket.receive, lambda: websocket.send("more")):
        try:
            use()
        except OSError as error:
            outcomes.append(f"{type(error).__module__}.{type(error).__qualname__}: {error}")
    print("outcomes:", json.dumps(outcomes), flush=True)


def wait(websocket: Any, environ: _Environ) -> None:
    """Wait for the end, and tell how receive() has told it."""
    websocket.send("waiting")
    message = websocket.receive()
    print("the end:", repr(message), websocket.closed, flush=True)


def say(websocket: Any, environ: _Environ) -> None:
    """Send without ever receiving, until the connection is closed."""
    import time

    while not websocket.closed:
        websocket.send("tick")
        time.sleep(0.01)


def chat(websocket: Any, environ: _Environ) -> None:
    """Send each message to all clients, as the chat example of gevent-websocket does."""
    while (message := websocket.receive()) is not None:
        for client in list(websocket.handler.server.clients.values()):
            with suppress(OSError):  # it is about to leave
                client.ws.send(message)


def fail(websocket: Any, environ: _Environ) -> None:
    """Raise."""
    raise LookupError("on purpose")


_PATHS: dict[str, Callable[[Any, _Environ], None]] = {
    each.__name__: each for each in (echo, describe, types, close, wait, say, chat, fail)
}


class WithProtocol:
    """An application that chooses a sub-protocol, as gevent-websocket's ``Resource`` does."""

    def app_protocol(self, path: str) -> str:
        """Return the protocol of a path."""
        return "wamp" if path == "/describe" else ""

    def __call__(self, environ: _Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        return adapter(environ, start_response)


with_protocol = WithProtocol()


def simple(environ: _Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Send each message back, with simple-websocket."""
    from simple_websocket import ConnectionClosed, Server

    if "HTTP_UPGRADE" not in environ:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"no WebSocket\n"]
    websocket = Server.accept(environ)
    try:
        while True:
            websocket.send(websocket.receive())
    except ConnectionClosed:
        return []
