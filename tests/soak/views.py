"""The application of the soak runs with one worker: a view for each kind of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
PLAIN = ("Content-Type", "text/plain")


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer at once."""
    start_response("200 OK", [PLAIN, ("Content-Length", "6")])
    return [b"hello\n"]


def wait(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Wait for the milliseconds of the query, as for a database."""
    time.sleep(float(environ["QUERY_STRING"]) / 1000)
    return hello(environ, start_response)


def file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the file of the query."""
    start_response("200 OK", [PLAIN])
    content = open(unquote(environ["QUERY_STRING"]), "rb")  # noqa: SIM115 - the server closes it
    found: Iterable[bytes] = environ["wsgi.file_wrapper"](content)
    return found


def work(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Use the CPU for the milliseconds of the query."""
    end = time.perf_counter() + float(environ["QUERY_STRING"]) / 1000
    while time.perf_counter() < end:
        pass
    return hello(environ, start_response)


def big(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the number of bytes of the query, without a length."""
    start_response("200 OK", [PLAIN])
    return [b"x" * int(environ["QUERY_STRING"])]


def upload(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read the body piece by piece, and answer with its length."""
    total = 0
    while data := environ["wsgi.input"].read(1 << 16):
        total += len(data)
    start_response("200 OK", [PLAIN])
    return [b"%d" % total]


_VIEWS = {"/wait": wait, "/work": work, "/big": big, "/file": file, "/upload": upload}


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the path; a path of no view is `hello`."""
    return _VIEWS.get(environ["PATH_INFO"], hello)(environ, start_response)
