"""The applications of bench.compare, beside the Flask and the Django one of examples/.

Owns: the applications. Must not know: the server, what is measured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

HELLO = b"Hello, world!"
LARGE = bytes(range(256)) * 4096
PIECE = b"wsgi" * 255 + b"end\n"
PIECES = 64

# About 1 ms on the machine that docs/performance.md describes. A number of turns, not a time: whoever shares the
# core must not make the work less.
TURNS = int(os.environ.get("BENCH_TURNS", "80000"))


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The trivial application, with the headers that any framework sends."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    return [HELLO]


def post(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read a body and answer with a small one that tells its length."""
    size = len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    answer = b'{"bytes": %d}' % size
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


def parse(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Parse a JSON body and answer with a small one."""
    received = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    answer = json.dumps({"items": len(received["items"]), "total": received["total"]}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


def large(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """1 MiB in one piece."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(LARGE)))])
    return [LARGE]


def stream(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """64 times 1 KiB, without a length."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(PIECES):
        yield PIECE


def _pieces(content: BinaryIO) -> Iterator[bytes]:
    with content:
        while piece := content.read(65536):
            yield piece


def file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The file that the environment variable BENCH_FILE names, by the server's means where it has any."""
    path = os.environ["BENCH_FILE"]
    content = open(path, "rb")  # noqa: SIM115 - whoever takes the pieces closes it
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(os.path.getsize(path)))])
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is None:
        return _pieces(content)
    wrapped: Iterable[bytes] = wrapper(content, 65536)
    return wrapped


def wait(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Wait 10 ms, as for a database."""
    time.sleep(0.01)
    return hello(environ, start_response)


def compute(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Be on the processor for about 1 ms."""
    for _ in range(TURNS):
        pass
    return hello(environ, start_response)
