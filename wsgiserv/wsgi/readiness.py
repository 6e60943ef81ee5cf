"""The answer to load balancers that ask over HTTP whether this server wants more clients.

Owns: `Readiness`, a WSGI application around the user's. Must not know: who asks, why the server drains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Readiness"]


class Readiness:
    """Answers requests for one path itself: 200 while the server serves, 503 as soon as it drains or stops.

    Args:
        app: gets all other requests.
        path: the path, as ``PATH_INFO`` has it.
        is_leaving: whether the server is about to stop.
    """

    def __init__(
        self, app: Callable[..., Iterable[bytes]], path: str, is_leaving: Callable[[], object]
    ) -> None:
        self._app = app
        self._path = path
        self._is_leaving = is_leaving

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """As of PEP 3333."""
        if environ["PATH_INFO"] != self._path:
            return self._app(environ, start_response)
        status, body = (
            ("503 Service Unavailable", b"draining\n") if self._is_leaving() else ("200 OK", b"ready\n")
        )
        headers = [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(status, headers)
        return [body]
