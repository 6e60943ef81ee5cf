"""Applications whose responses come in blocks: gated by their client, endless, or faster than it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

TEXT = [("Content-Type", "application/octet-stream")]
_GATE_S = 20.0


def say(environ: Environ, text: str) -> None:
    """Write a line to the error log, at once."""
    environ["wsgi.errors"].write(text + "\n")
    environ["wsgi.errors"].flush()


def asked(environ: Environ) -> dict[str, str]:
    """Return the query."""
    return {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}


def block(number: int, size: int) -> bytes:
    """Return a block that cannot be mistaken for another."""
    return (b"%08d" % number) * (size // 8)


def pass_gate(directory: str, number: int) -> None:
    """Wait until the client has made the file ``number``: it has the block of this number whole."""
    end = time.monotonic() + _GATE_S
    while not os.path.exists(os.path.join(directory, str(number))):
        if time.monotonic() > end:
            raise RuntimeError(f"the client has not got block {number}")
        time.sleep(0.01)


def gated(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Make each block only when the client says that it has the one before, to its last byte."""
    query = asked(environ)
    size, count, directory = int(query["size"]), int(query["count"]), query["gate"]
    headers = [*TEXT, ("Content-Length", str(size * count))] if "length" in query else TEXT
    write = start_response("200 OK", headers)

    def blocks() -> Iterator[bytes]:
        for number in range(count):
            yield block(number, size)
            pass_gate(directory, number)

    if "write" not in query:
        return blocks()
    for each in blocks():
        write(each)
    return []


class Watched:
    """An endless iterable that says how far it has come, and when it is closed."""

    def __init__(self, environ: Environ, size: int, pause_s: float, count: int) -> None:
        self._environ = environ
        self._size = size
        self._pause_s = pause_s
        self._count = count

    def __iter__(self) -> Iterator[bytes]:
        step = 1 << 20
        made, told = 0, 0
        for number in range(self._count):
            yield block(number, self._size)
            made += self._size
            if made >= told + step:
                told = made - made % step
                say(self._environ, f"made {told >> 20} MiB")
            if self._pause_s:
                time.sleep(self._pause_s)
        say(self._environ, "made all")

    def close(self) -> None:
        say(self._environ, "closed")


def flood(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Make blocks as fast as the server takes them."""
    query = asked(environ)
    size, count = int(query.get("size", "65536")), int(query.get("count", str(1 << 40)))
    headers = [*TEXT, ("Content-Length", str(size * count))] if "length" in query else TEXT
    start_response("200 OK", headers)
    return Watched(environ, size, float(query.get("pause", "0")), count)


def frames(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """An endless multipart stream, as a camera makes it: each part has the time at which it was made."""
    start_response("200 OK", [("Content-Type", "multipart/x-mixed-replace; boundary=frame")])
    while True:
        yield b"--frame\r\n\r\n%020.9f" % time.monotonic() + b"x" * 65536 + b"\r\n"
        time.sleep(0.02)


def silent(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Make one block, then nothing for as long as the query says; say when the iterable is closed."""
    query = asked(environ)
    start_response("200 OK", TEXT)
    try:
        yield block(0, int(query["size"]))
        say(environ, "silent")
        time.sleep(float(query["seconds"]))
        yield b"end"
    finally:
        say(environ, "closed")


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer at once."""
    start_response("200 OK", TEXT)
    return [str(os.getpid()).encode()]


def whole(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """One block of the size in the query."""
    start_response("200 OK", TEXT)
    return [block(7, int(asked(environ)["size"]))]


def sleep(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer late; say when the call begins."""
    say(environ, "sleeping")
    time.sleep(float(asked(environ)["seconds"]))
    return hello(environ, start_response)


ROUTES = {"/gated": gated, "/flood": flood, "/frames": frames, "/silent": silent, "/whole": whole, "/sleep": sleep}


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the path: one of the above, or `hello`."""
    return ROUTES.get(environ["PATH_INFO"], hello)(environ, start_response)
