"""Logs a line for each request to Django's logger ``django.server``, as runserver does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote

_requests = logging.getLogger("django.server")


def with_request_lines(application: Callable[..., Any]) -> Callable[..., Any]:
    """Return the application with a line for each of its responses.

    The level follows the status. Django's default logging colours the lines and writes them to the standard error.
    """

    def logged(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        response = _Response(environ, start_response)
        found = application(environ, response.start)
        # The server sends a file by the kernel, unless its wrapper is wrapped again: its size is the header's.
        if type(found) is environ.get("wsgi.file_wrapper"):
            response.log(response.content_length)
            return found
        response.body = found
        return response

    return logged


class _Response:
    """A response: counts its bytes, and logs when it ends."""

    def __init__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        self.body: Iterable[bytes] = ()
        self.content_length = "-"
        self._environ = environ
        self._start_response = start_response
        self._status = 500
        self._sent = 0

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        self._status = int(status[:3])
        self.content_length = next((value for name, value in headers if name.lower() == "content-length"), "-")
        return self._start_response(status, headers, *([exc_info] if exc_info else []))

    def __iter__(self) -> Iterator[bytes]:
        for block in self.body:
            self._sent += len(block)
            yield block

    def close(self) -> None:
        try:
            close = getattr(self.body, "close", None)
            if close is not None:
                close()
        finally:
            self.log(self._sent)

    def log(self, size: object) -> None:
        environ, status = self._environ, self._status
        level = logging.ERROR if status >= 500 else logging.WARNING if status >= 400 else logging.INFO
        path = environ.get("RAW_URI") or quote(
            environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"], encoding="latin-1"
        )
        line = f"{environ['REQUEST_METHOD']} {path} {environ['SERVER_PROTOCOL']}"
        extra = {"status_code": status, "server_time": datetime.now().strftime("%d/%b/%Y %H:%M:%S")}
        _requests.log(level, '"%s" %s %s', line, str(status), str(size), extra=extra)
