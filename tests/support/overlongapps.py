"""Applications that go on after their whole response has been sent."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

BLOCK = b"x" * 1000
CLOSED: Counter[str] = Counter()


class Endless:
    """An iterable without an end that counts its close()."""

    def __init__(self, key: str, block: bytes = BLOCK) -> None:
        self.key = key
        self.block = block

    def __iter__(self) -> Iterator[bytes]:
        return itertools.repeat(self.block)

    def close(self) -> None:
        """Count."""
        CLOSED[self.key] += 1


def generate(key: str) -> Iterator[bytes]:
    """Yield without an end; count the end all the same."""
    try:
        while True:
            yield BLOCK
    finally:
        CLOSED[key] += 1


def exact(key: str) -> Iterator[bytes]:
    """Yield 2000 bytes, and do something behind the last block."""
    yield BLOCK
    yield BLOCK
    CLOSED[key] += 1


class EndlessFile:
    """A file without an end, and without a descriptor."""

    def __init__(self, key: str) -> None:
        self.key = key

    def read(self, size: int) -> bytes:
        """Return as much as is asked for."""
        return b"x" * size

    def close(self) -> None:
        """Count."""
        CLOSED[self.key] += 1


def write_on(write: Callable[[bytes], object], key: str) -> list[bytes]:
    """Write without an end."""
    try:
        while True:
            write(BLOCK)
    finally:
        CLOSED[key] += 1


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """``/<kind>?<status>,<content-length>``: go on as ``kind`` says."""
    kind = environ["PATH_INFO"][1:]
    if kind == "closed":
        start_response("200 OK", [])
        return [str(CLOSED[environ["QUERY_STRING"]]).encode()]
    status, _, length = environ["QUERY_STRING"].partition(",")
    headers = [("Content-Type", "text/plain"), *([("Content-Length", length)] if length else [])]
    write = start_response(f"{status} Some", headers)
    key = environ["HTTP_X_KEY"]
    if kind == "iterable":
        return Endless(key)
    if kind == "empty":
        return Endless(key, b"")
    if kind == "generator":
        return generate(key)
    if kind == "exact":
        return exact(key)
    if kind == "file":
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](EndlessFile(key))
        return wrapped
    if kind == "device":
        file = os.fdopen(os.open("/dev/zero", os.O_RDONLY), "rb", buffering=0)
        return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]
    if kind == "write":
        return write_on(write, key)
    if kind == "write-once":
        write(BLOCK * 3)
        return []
    raise ValueError(kind)
