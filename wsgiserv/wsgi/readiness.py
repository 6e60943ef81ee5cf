"""Answers load balancers that ask over HTTP whether the server wants more clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def answer_readiness(app: App, path: str, is_leaving: Callable[[], object]) -> App:
    """Wrap a WSGI application: one path is answered here, 200 while the server serves, 503 once it drains.

    Args:
        app: gets all other requests.
        path: the path, as ``PATH_INFO`` has it.
        is_leaving: whether the server is about to stop.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != path:
            return app(environ, start_response)
        status, body = ("503 Service Unavailable", b"draining\n") if is_leaving() else ("200 OK", b"ready\n")
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        # A cache between the load balancer and this server would keep a draining server in use.
        start_response(status, [*headers, ("Cache-Control", "no-store")])
        return [body]

    return answer
