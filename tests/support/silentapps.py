"""Applications whose requests end early, each in its way. For the tests of the access log."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

PLAIN = [("Content-Type", "text/plain")]


def blocks(count: int, pause_s: float, size: int = 10) -> Iterator[bytes]:
    """Yield blocks with pauses between them."""
    for _ in range(count):
        yield b"b" * size
        time.sleep(pause_s)


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the first part of the path; the query is its argument."""
    path, argument = "/" + environ["PATH_INFO"].split("/")[1], environ["QUERY_STRING"]
    if path == "/sleep":
        time.sleep(float(argument))
    elif path == "/stubborn":  # nothing ends it before its time, as a call into a C library
        end = time.monotonic() + float(argument)
        while time.monotonic() < end:
            try:
                time.sleep(max(0.0, end - time.monotonic()))
            except BaseException:
                pass
    elif path == "/hash":
        hashlib.pbkdf2_hmac("sha256", b"password", b"salt", int(argument))
    elif path == "/stream":
        start_response("200 OK", PLAIN)
        return blocks(1000, float(argument))
    elif path == "/declared":
        start_response("200 OK", [*PLAIN, ("Content-Length", "10000")])
        return blocks(1000, float(argument))
    elif path == "/big":
        start_response("200 OK", PLAIN)
        return [b"x" * int(argument)]
    elif path == "/torrent":
        start_response("200 OK", PLAIN)
        return blocks(int(argument), 0.0, 100_000)
    elif path == "/short":
        start_response("200 OK", [*PLAIN, ("Content-Length", "10")])
        return [b"x" * int(argument)]
    elif path == "/broken":
        start_response("200 OK", PLAIN)
        return broken()
    elif path == "/upload":
        environ["wsgi.input"].read()
    start_response("200 OK", PLAIN)
    return [b"done"]


def broken() -> Iterator[bytes]:
    """Raise after the first block."""
    yield b"first"
    raise RuntimeError("broken")
