"""Requests that a worker makes to its own application before it says that it is ready (``warmup``).

Owns: the environ of such a request, and the judgement on its answer.
Must not know: sockets, what becomes of a worker that fails.
"""

from __future__ import annotations

import io
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from wsgiserv.atfork import leave_if_child
from wsgiserv.errors import ApplicationError
from wsgiserv.http.percent import decoded

__all__ = ["warm_up"]


def warm_up(app: Callable[..., Any], paths: Sequence[str], base: dict[str, Any]) -> None:
    """Call the application with a GET of each path, in order.

    Args:
        app: the WSGI application.
        paths: paths with or without a query, such as ``/search?q=a``.
        base: the base environ of a listener.

    Raises:
        ApplicationError: one of them raised, or answered with a status of 500 and above.
    """
    for path in paths:
        try:
            status = _call(app, _environ(path, base))
        except BaseException as error:
            leave_if_child(error)  # the application has forked
            if not isinstance(error, Exception):
                raise
            own = sys._getframe().f_code.co_filename
            frames = error.__traceback__
            while frames is not None and frames.tb_frame.f_code.co_filename == own:
                frames = frames.tb_next
            text = "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))
            raise ApplicationError(
                f"the warm-up request of {path} (warmup) raised {type(error).__name__}: {error}", text
            ) from None
        if not status[:3].isdigit() or int(status[:3]) >= 500:
            raise ApplicationError(f"the warm-up request of {path} (warmup) was answered with {status}", "")


def _environ(path: str, base: dict[str, Any]) -> dict[str, Any]:
    name, _, query = path.partition("?")
    host = base["SERVER_NAME"]
    return {
        **base,
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": decoded(name),
        "QUERY_STRING": query,
        "RAW_URI": path,
        "REQUEST_URI": path,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": host or "localhost",
        "HTTP_USER_AGENT": "wsgiserv-warmup",
        "wsgi.input": io.BytesIO(),
        "wsgiserv.warmup": True,
    }


def _call(app: Callable[..., Any], environ: dict[str, Any]) -> str:
    """Return the status of the answer, whose body is read to its end as a client would."""
    statuses: list[str] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[..., None]:
        statuses.append(status)
        return lambda data: None

    result = app(environ, start_response)
    try:
        for _ in result:
            leave_if_child()
    except BaseException as error:
        leave_if_child(error)
        raise
    finally:
        leave_if_child()
        close = getattr(result, "close", None)
        if close is not None:
            close()
    leave_if_child()
    return statuses[-1] if statuses else "no status at all"
