"""Calls gunicorn's ``pre_request`` and ``post_request`` with objects like gunicorn's.

Nothing here runs unless a hook is set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from wsgiserv import __version__
from wsgiserv.config.hook_config import HookConfig, view_of
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ProtocolError
from wsgiserv.hooks import call_hook, failure_of
from wsgiserv.http.head import HeaderBlock, RequestLine, without_prefix
from wsgiserv.net.client import Connection
from wsgiserv.wsgi.forwarded import mount
from wsgiserv.wsgi.response import ANSWERED, TIMEOUT_BODY, TIMEOUT_HEADERS, TIMEOUT_STATUS, Response

# Returns the function to call in place of the application, or None.
PreRequest = Callable[[Connection, dict[str, Any]], Callable[..., Any] | None]
PostRequest = Callable[[Connection, dict[str, Any], Response], object]


class HookRequest:
    """A request with the attributes of gunicorn's. Hooks may hang their own attributes on it.

    Attributes:
        cfg: the configuration.
        method, uri, path, query, version, headers, scheme, body: what `pre_request` changes here, the application
            finds in its environ.
        fragment, trailers: always empty.
        peer_addr, remote_addr: the client's address and port.
        proxy_protocol_info: what the PROXY protocol has told; None without it.
        must_close: whether a hook has called `force_close`.
        request_id: the id in the logs.
    """

    # A copy: the hook may keep it, and the connection goes on to its next request.

    def __init__(
        self, cfg: HookConfig, line: RequestLine, block: HeaderBlock, environ: dict[str, Any], peer: dict[str, str]
    ) -> None:
        self.cfg = cfg
        self.method = line.method
        self.uri = line.environ["RAW_URI"]
        self.path = self.uri.partition("?")[0]
        self.query = line.environ["QUERY_STRING"]
        self.fragment = ""  # no client sends one (RFC 9112, section 3.2)
        self.version = (1, 1 if line.http11 else 0)
        self.headers = [(name.upper(), value) for name, value in block.fields()]
        self.trailers: list[tuple[str, str]] = []  # read and dropped (RFC 9112, section 7.1.2)
        self.scheme = environ["wsgi.url_scheme"]
        self.body = environ["wsgi.input"]
        self.peer_addr = self.remote_addr = (peer["REMOTE_ADDR"], int(peer.get("REMOTE_PORT", "0")))
        self.proxy_protocol_info = _proxy_info(peer)
        self.must_close = False
        self.request_id = environ["wsgiserv.request_id"]

    def force_close(self) -> None:
        """Close the connection after the response."""
        self.must_close = True

    def should_close(self) -> bool:
        """Return whether the client, or a hook, wants the connection closed after the response."""
        if self.must_close:
            return True
        for name, value in self.headers:
            if name.upper() == "CONNECTION":
                wish = value.lower().strip(" \t")
                if wish in ("close", "keep-alive"):
                    return wish == "close"
        return self.version <= (1, 0)


class HookResponse:
    """A response with the attributes of gunicorn's.

    Attributes:
        req: the request.
        cfg: the configuration.
        version: the name of the server.
        status, status_code, headers: as sent.
        headers_sent: whether its head has been sent.
        sent: body bytes sent.
        response_length: its Content-Length, or None.
        chunked: whether it was sent in chunks.
        must_close: whether the connection closes after it.
        upgrade: always False.
    """

    version = f"wsgiserv/{__version__}"
    upgrade = False

    def __init__(self, request: HookRequest, response: Response) -> None:
        self.req = request
        self.cfg = request.cfg
        # With 504 in the application's stead, which may be changing its own response at this moment.
        answered = response.overdue == ANSWERED
        self.status = TIMEOUT_STATUS if answered else response.status
        self.status_code = response.code
        self.headers = list(TIMEOUT_HEADERS if answered else response.headers)
        self.headers_sent = answered or response.begun
        body = b"" if response.is_head else TIMEOUT_BODY
        self.sent = len(body) if answered else response.sent
        self.response_length = len(TIMEOUT_BODY) if answered else response.length
        self.chunked = not answered and response.is_chunked
        self.must_close = not response.keep_alive

    def should_close(self) -> bool:
        """Return whether the connection closes after this response."""
        return self.must_close

    def is_chunked(self) -> bool:
        """Return whether it was sent in chunks."""
        return self.chunked

    def force_close(self) -> None:
        """Do nothing: the response has been sent. `req.force_close` in `pre_request` closes the connection."""


def request_hooks(
    worker: object, settings: Settings, log: logging.Logger, preparing: set[Connection]
) -> tuple[PreRequest | None, PostRequest | None]:
    """Return the functions to call before and after each request; None without the hook.

    Args:
        worker: the hooks' first argument.
        settings: has the hooks.
        log: the error log, for exceptions of the hooks.
        preparing: has, while `pre_request` runs, the connection of its request, which gunicorn does not count yet.
    """
    pre, post = settings.pre_request, settings.post_request
    cfg = view_of(settings)
    # From one hook to the other. By connection: it runs one request at a time.
    kept: dict[Connection, HookRequest] = {}

    def before(connection: Connection, environ: dict[str, Any]) -> Callable[..., Any] | None:
        line, block = connection.request
        request = HookRequest(cfg, line, block, environ, connection.peer)
        if post is not None:
            kept[connection] = request
        preparing.add(connection)
        try:
            failure = failure_of(pre, worker, request)
        finally:
            preparing.discard(connection)
        if failure is not None:
            return _failing(failure)
        try:
            _apply(request, line, block, environ)
        except (ProtocolError, TypeError, ValueError, AttributeError) as error:
            failure = error
        if failure is not None:
            log.error("WS1108 pre_request: its changes of the request cannot be used", exc_info=failure)
            return _failing(failure)
        if request.must_close:
            connection.context.running[connection][1].close_connection()
        return None

    def after(connection: Connection, environ: dict[str, Any], response: Response) -> None:
        request = kept.pop(connection, None) or HookRequest(cfg, *connection.request, environ, connection.peer)
        call_hook(log, "post_request", post, worker, request, environ, HookResponse(request, response))

    return (before if pre is not None else None), (after if post is not None else None)


def _failing(failure: BaseException) -> Callable[..., Any]:
    """Return an application that raises: it stands for the one that a failed `pre_request` keeps from running."""

    # As with gunicorn: the hook may be a check, and what it has not let pass must not reach the application.
    def fail(environ: dict[str, Any], start_response: object) -> Any:
        raise failure

    return fail


def _apply(request: HookRequest, line: RequestLine, block: HeaderBlock, environ: dict[str, Any]) -> None:
    """Bring the changes of a hook into the environ, by gunicorn's rules. Raises ProtocolError for a SCRIPT_NAME."""
    # Only what differs: what the server has taken out of the environ (a client's claims), or made itself, stays so.
    if request.method != line.method:
        environ["REQUEST_METHOD"] = request.method
    if request.uri != line.environ["RAW_URI"]:
        environ["RAW_URI"] = request.uri
    if request.query != line.environ["QUERY_STRING"]:
        environ["QUERY_STRING"] = request.query
    if request.version != (1, 1 if line.http11 else 0):
        environ["SERVER_PROTOCOL"] = "HTTP/" + ".".join(map(str, request.version))
    if request.path != line.environ["RAW_URI"].partition("?")[0]:
        path = unquote_to_bytes(request.path.encode("latin-1")).decode("latin-1")
        environ["PATH_INFO"] = without_prefix(path, environ["SCRIPT_NAME"])
    environ["wsgi.url_scheme"] = request.scheme
    environ["wsgi.input"] = request.body
    before = [(name.upper(), value) for name, value in block.fields()]
    if request.headers != before:
        _apply_headers(before, [(str(name).upper(), str(value)) for name, value in request.headers], environ)


def _apply_headers(before: list[tuple[str, str]], now: list[tuple[str, str]], environ: dict[str, Any]) -> None:
    old, new = _by_key(before), _by_key(now)
    for key in old.keys() | new.keys():
        values = new.get(key)
        if values == old.get(key):
            continue
        if values is None:
            environ.pop(key, None)
            continue
        if key == "HTTP_SCRIPT_NAME":
            mount(environ, values[-1])
        environ[key] = ("; " if key == "HTTP_COOKIE" else ",").join(values)


def _by_key(headers: list[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in headers:
        key = name.replace("-", "_")
        found.setdefault(key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}", []).append(value)
    return found


def _proxy_info(peer: dict[str, str]) -> dict[str, Any] | None:
    if "PROXY_PROTOCOL" not in peer:
        return None
    return {
        "proxy_protocol": peer["PROXY_PROTOCOL"],
        "client_addr": peer["REMOTE_ADDR"],
        "client_port": int(peer.get("REMOTE_PORT", "0")),
        "proxy_addr": peer.get("PROXY_ADDR", ""),
        "proxy_port": int(peer.get("PROXY_PORT", "0")),
    }
