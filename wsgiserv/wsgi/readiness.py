"""Answers load balancers that ask over HTTP whether the server wants more clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


class Readiness:
    """A WSGI application around the user's: answers one path itself, 200 while the server serves, 503 once it drains.

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
        """PEP 3333, "The Application/Framework Side"."""
        if environ["PATH_INFO"] != self._path:
            return self._app(environ, start_response)
        leaving = self._is_leaving()
        body = b"draining\n" if leaving else b"ready\n"
        # no-store: a cache between the load balancer and this server would keep a draining server in use.
        start_response(
            "503 Service Unavailable" if leaving else "200 OK",
            [
                ("Content-Type", "text/plain"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [body]
