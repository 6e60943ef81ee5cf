"""Puts gevent-websocket's object into the environ of WebSocket requests (``wsgi_websocket``)."""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from hashlib import sha1
from itertools import count
from types import SimpleNamespace
from typing import Any, Final

from wsgiserv.logs.escape import escape
from wsgiserv.net.upgrade import KEYS, Upgrade
from wsgiserv.net.websocket import INTERNAL_ERROR, NORMAL, WebSocket, WebSocketError, websocket_error

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# 13 is RFC 6455. 7 and 8 are drafts with the same frames, which gevent-websocket accepts, too.
VERSIONS: Final = ("13", "8", "7")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16


class _Refusal(Exception):
    """A handshake that is not accepted."""

    def __init__(self, status: str, reason: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class WebSocketGateway:
    """A WSGI application: does the handshake of WebSocket requests, and calls the real one for each request.

    As with gevent-websocket the client is answered before the application is called: it may wait for the first message
    without another use of the object, and what it returns as a response is not sent.

    Args:
        app: the application. Its method ``app_protocol(path)``, if it has one, names the sub-protocol of a path.
        largest: the largest message that a client may send, in bytes; 0 means no limit.
        log: the error log.
    """

    def __init__(self, app: App, largest: int, log: logging.Logger) -> None:
        self._app = app
        self._largest = largest
        self._log = log
        # By their addresses, for applications that send to all: ``ws.handler.server.clients`` in gevent-websocket.
        self._server = SimpleNamespace(clients={}, application=app)
        self._numbers = count()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not _is_websocket(environ):
            return self._app(environ, start_response)
        try:
            head = self._answer(environ)
        except _Refusal as refusal:
            return self._refuse(environ, start_response, refusal)
        sock = environ["wsgiserv.socket"]
        upgrade: Upgrade = sock.upgrade
        for key in KEYS:  # whoever did a second handshake there would break the frames
            del environ[key]
        handler = self._handler_of(environ, sock)
        websocket = WebSocket(environ, sock, upgrade, self._largest, handler)
        handler.websocket = websocket
        try:
            websocket.open(head)
        except OSError:  # the client has gone
            return []
        environ["wsgi.websocket"] = websocket
        environ["wsgi.websocket_version"] = websocket.version
        self._run(environ, handler)
        return []

    # ---- the handshake -----------------------------------------------------------------------------------

    def _answer(self, environ: dict[str, Any]) -> bytes:
        """Return the response to a valid handshake (RFC 6455 §4.2). Raises _Refusal."""
        if environ["REQUEST_METHOD"] != "GET" or environ["SERVER_PROTOCOL"] != "HTTP/1.1":
            raise _Refusal("400 Bad Request", "a handshake is a GET request of HTTP/1.1")
        version = environ.get("HTTP_SEC_WEBSOCKET_VERSION", "")
        if version not in VERSIONS:
            status = "400 Bad Request" if version else "426 Upgrade Required"
            accepted = (("Sec-WebSocket-Version", ", ".join(VERSIONS)),)
            raise _Refusal(status, f"Sec-WebSocket-Version {version or 'is missing'}: accepted is 13", accepted)
        key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()
        if not _is_key(key):
            raise _Refusal("400 Bad Request", "Sec-WebSocket-Key is not the base64 code of 16 bytes")
        if "wsgiserv.socket" not in environ:
            raise _Refusal("503 Service Unavailable", "there is no descriptor left for it, or it has a body")
        accept = b64encode(sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        lines.append(f"Sec-WebSocket-Accept: {accept}")
        if protocol := self._protocol_for(environ):
            lines.append(f"Sec-WebSocket-Protocol: {protocol}")
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")

    def _protocol_for(self, environ: dict[str, Any]) -> str:
        """Return the application's sub-protocol for a path, if the client has asked for it; else nothing."""
        choose = getattr(self._app, "app_protocol", None)
        asked = environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", "")
        wanted = str(choose(environ["PATH_INFO"]) or "") if choose is not None and asked else ""
        return wanted if wanted in [each.strip() for each in asked.split(",")] else ""

    def _refuse(
        self, environ: dict[str, Any], start_response: Callable[..., Any], refusal: _Refusal
    ) -> Iterable[bytes]:
        client = environ.get("REMOTE_ADDR") or "a client"
        status = refusal.status.partition(" ")[0]
        self._log.warning("WS1560 %s: WebSocket refused with %s: %s", client, status, escape(str(refusal)))
        body = f"{refusal.status}: {refusal}.\n".encode("latin-1", "replace")
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        start_response(refusal.status, [*headers, *refusal.headers])
        return [body]

    # ---- the call ----------------------------------------------------------------------------------------

    def _handler_of(self, environ: dict[str, Any], sock: Any) -> SimpleNamespace:
        # The number besides: behind a proxy several clients may have one address.
        address = (environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT", ""), next(self._numbers))
        return SimpleNamespace(
            server=self._server,
            application=self._app,
            environ=environ,
            socket=sock,
            client_address=address,
            active_client=SimpleNamespace(address=address, ws=None),
        )

    def _run(self, environ: dict[str, Any], handler: SimpleNamespace) -> None:
        """Call the application, and close the connection after it. Raises what the application has raised."""
        websocket, clients = handler.websocket, self._server.clients
        handler.active_client.ws = websocket
        clients[handler.client_address] = handler.active_client
        code = INTERNAL_ERROR
        try:
            code = self._call(environ, websocket)
        finally:
            del clients[handler.client_address]
            websocket.finish(code)
            environ["wsgi.websocket"] = None  # or the two would hold each other

    def _call(self, environ: dict[str, Any], websocket: WebSocket) -> int:
        """Call the application; return the code to close with. Raises what the application has raised."""
        try:
            result = self._app(environ, _ignore_response)
            try:
                for _ in result or ():
                    pass  # as for any application, its code runs on between the blocks
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        except StopIteration:  # libraries end so that have taken gunicorn's socket
            pass
        except (WebSocketError, websocket_error()):
            # A client may leave at any moment, and the example of Flask-Sockets sends once more then.
            if not websocket.closed:
                raise
            self._log.debug("the application has used a WebSocket after its end", exc_info=True)
        return NORMAL


def _is_websocket(environ: dict[str, Any]) -> bool:
    asked = environ.get("HTTP_UPGRADE")
    if not asked or "websocket" not in [each.strip().lower() for each in asked.split(",")]:
        return False
    return "upgrade" in [each.strip().lower() for each in environ.get("HTTP_CONNECTION", "").split(",")]


def _is_key(key: str) -> bool:
    try:
        return len(b64decode(key, validate=True)) == _KEY_BYTES
    except ValueError:
        return False


def _ignore_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
    """Stand for ``start_response``: the response has been sent."""
    return lambda data: None
