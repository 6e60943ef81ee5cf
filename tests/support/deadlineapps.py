"""Applications that take too long, each in its way. For the tests of ``request_timeout``."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

PLAIN = [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))]
EXECUTED: list[str] = []


def culprit_sleep(argument: str) -> None:
    time.sleep(float(argument))


def culprit_spin(argument: str) -> None:
    end = time.monotonic() + float(argument)
    while time.monotonic() < end:
        pass


def culprit_hash(argument: str) -> None:
    """In C, without the GIL, and no signal or exception ends it."""
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", int(argument))


def culprit_modest(argument: str) -> None:
    """Catch what applications catch, for ever."""
    while True:
        try:
            time.sleep(float(argument))
        except Exception:
            pass


def culprit_late(argument: str) -> None:
    """Swallow whatever comes, once, and go on."""
    try:
        time.sleep(float(argument))
    except BaseException:
        pass


class Closing:
    """An iterable that takes its time over close()."""

    def __init__(self, seconds: float, block: bytes) -> None:
        self.seconds = seconds
        self.block = block

    def __iter__(self) -> Iterator[bytes]:
        yield self.block

    def close(self) -> None:
        """Take long."""
        time.sleep(self.seconds)


def blocks(seconds: float) -> Iterator[bytes]:
    """Two blocks with too long a time between them."""
    yield b"first"
    time.sleep(seconds)
    yield b"last"


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the path; the query is its argument."""
    path, argument = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path != "/executed":
        EXECUTED.append(f"{path}?{argument}")
    if path == "/whole":
        start_response("200 OK", [*PLAIN, ("Content-Length", "300000")])
        return Closing(float(argument), b"w" * 300_000)
    if path in ("/stream", "/short", "/close"):
        start_response("200 OK", PLAIN if path != "/short" else [*PLAIN, ("Content-Length", "100")])
        return Closing(float(argument), b"first") if path == "/close" else blocks(float(argument))
    if path == "/started":
        start_response("200 OK", PLAIN)
        culprit_sleep(argument)
    elif path == "/iterable":
        start_response("200 OK", PLAIN)
        return (culprit_sleep(argument) or b"late" for _ in range(1))  # type: ignore[func-returns-value]
    elif path == "/hints":
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
        culprit_sleep(argument)
    elif path == "/upload":
        read = len(environ["wsgi.input"].read())
        culprit_sleep(argument)
        start_response("200 OK", PLAIN)
        return [b"%d" % read]
    elif path == "/executed":
        start_response("200 OK", PLAIN)
        return ["\n".join(EXECUTED).encode()]
    elif path != "/":
        globals()["culprit_" + path[1:]](argument)
    if path != "/started":
        start_response("200 OK", PLAIN)
    return [b"done"]
