"""The application of bench.shield and bench.large.

Owns: `app`. Must not know: the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

PLAIN = [("Content-Type", "text/plain")]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """``/big?bytes``, ``/file?path``, ``/upload`` (counts it), ``/work?ms`` (of processor time), or a greeting."""
    path, query = environ["PATH_INFO"], unquote(environ["QUERY_STRING"])
    if path == "/big":
        start_response("200 OK", PLAIN)
        return [b"x" * int(query)]
    if path == "/file":
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](open(query, "rb"))
    if path == "/upload":
        total = 0
        while data := environ["wsgi.input"].read(1 << 16):
            total += len(data)
        start_response("200 OK", PLAIN)
        return [b"%d" % total]
    if path == "/work":
        end = time.perf_counter() + float(query) / 1000
        while time.perf_counter() < end:
            pass
    start_response("200 OK", PLAIN)
    return [b"hello\n"]
