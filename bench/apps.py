"""The applications of the measurements, beside those of examples/. A server imports a copy as ``benchapps``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

HELLO = b"hello\n"
LARGE = bytes(range(256)) * 4096
PIECE = b"wsgi" * 255 + b"end\n"
PIECES = 64

# About 1 ms on the machine of docs/performance.md. A number of turns, not a time: another load on the core must not
# make the work less.
TURNS = int(os.environ.get("BENCH_TURNS", "80000"))


def _answer(start_response: StartResponse, body: bytes, kind: str = "text/plain") -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer at once, with the headers of any framework."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [HELLO]


def post(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read the body, and answer with its length."""
    size = len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    return _answer(start_response, b'{"bytes": %d}' % size, "application/json")


def parse(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Parse a JSON body, and answer with a small one."""
    received = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    answer = {"items": len(received["items"]), "total": received["total"]}
    return _answer(start_response, json.dumps(answer).encode(), "application/json")


def large(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with 1 MiB in one block."""
    return _answer(start_response, LARGE)


def stream(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Answer with 64 blocks of 1 KiB, without a length."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for _ in range(PIECES):
        yield PIECE


def _pieces(content: BinaryIO) -> Iterator[bytes]:
    with content:
        while piece := content.read(65536):
            yield piece


def file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the file of the variable BENCH_FILE, by ``wsgi.file_wrapper`` where there is one."""
    content = open(os.environ["BENCH_FILE"], "rb")  # noqa: SIM115 - closed behind the last piece
    length = str(os.path.getsize(content.name))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", length)])
    wrapper = environ.get("wsgi.file_wrapper")
    wrapped: Iterable[bytes] = wrapper(content, 65536) if wrapper else _pieces(content)
    return wrapped


def wait(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Wait 10 ms, as for a database."""
    time.sleep(0.01)
    return hello(environ, start_response)


def compute(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Use the CPU for about 1 ms."""
    for _ in range(TURNS):
        pass
    return hello(environ, start_response)
