"""Calls gunicorn's ``pre_request`` and ``post_request`` with objects like gunicorn's.

Nothing here runs unless a hook is set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from wsgiserv.config.settings import Settings
from wsgiserv.hooks import call_hook
from wsgiserv.http.head import HeaderBlock, RequestLine
from wsgiserv.net.client import Connection
from wsgiserv.wsgi.response import ANSWERED, TIMEOUT_BODY, TIMEOUT_HEADERS, TIMEOUT_STATUS, Response

PreRequest = Callable[[Connection, dict[str, Any]], object]
PostRequest = Callable[[Connection, dict[str, Any], Response], object]


class HookRequest:
    """A request with the attributes of gunicorn's: method, uri, path, query, fragment, version, headers, scheme."""

    # A copy: the hook may keep it, and the connection goes on to its next request.

    def __init__(self, line: RequestLine, block: HeaderBlock, environ: dict[str, Any], peer: dict[str, str]) -> None:
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
        self.request_id = environ["wsgiserv.request_id"]


class HookResponse:
    """A response with the attributes of gunicorn's: status, status_code, headers, sent, headers_sent."""

    def __init__(self, request: HookRequest, response: Response) -> None:
        self.req = request
        # With 504 in the application's stead, which may be changing its own response at this moment.
        answered = response.overdue == ANSWERED
        self.status = TIMEOUT_STATUS if answered else response.status
        self.status_code = response.code
        self.headers = list(TIMEOUT_HEADERS if answered else response.headers)
        self.headers_sent = answered or response.begun
        body = b"" if response.is_head else TIMEOUT_BODY
        self.sent = len(body) if answered else response.sent
        self.response_length = len(TIMEOUT_BODY) if answered else response.length
        self._close = not response.keep_alive

    def should_close(self) -> bool:
        """Return whether the connection closes after this response."""
        return self._close


def request_hooks(
    worker: object, settings: Settings, log: logging.Logger
) -> tuple[PreRequest | None, PostRequest | None]:
    """Return the functions to call before and after each request; None without the hook.

    Args:
        worker: the hooks' first argument.
        settings: has the hooks.
        log: the error log, for exceptions of the hooks.
    """
    pre, post = settings.pre_request, settings.post_request

    # Each makes a request of its own: to keep one between the calls would cost every connection a slot.
    def before(connection: Connection, environ: dict[str, Any]) -> None:
        call_hook(log, "pre_request", pre, worker, HookRequest(*connection.request, environ, connection.peer))

    def after(connection: Connection, environ: dict[str, Any], response: Response) -> None:
        request = HookRequest(*connection.request, environ, connection.peer)
        call_hook(log, "post_request", post, worker, request, environ, HookResponse(request, response))

    return (before if pre is not None else None), (after if post is not None else None)
