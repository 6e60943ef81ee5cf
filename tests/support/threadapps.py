"""Applications that show which thread runs them, and that take their time: for tests of threads and of deadlines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

_BARRIERS: dict[int, threading.Barrier] = {}
_LOCK = threading.Lock()
_LOCAL = threading.local()
_TURNS = [0]


def _barrier(parties: int) -> threading.Barrier:
    with _LOCK:
        return _BARRIERS.setdefault(parties, threading.Barrier(parties))


def _meet(argument: str) -> bytes:
    """Wait until so many requests are here at once."""
    _barrier(int(argument)).wait(8)
    return b"met"


def _who(argument: str) -> bytes:
    """The thread's name, and how often it has been here by its own count."""
    _LOCAL.count = getattr(_LOCAL, "count", 0) + 1
    _LOCAL.name = getattr(_LOCAL, "name", threading.current_thread().name)
    return f"{threading.current_thread().name} {_LOCAL.name} {_LOCAL.count}".encode()


def _sleep(argument: str) -> bytes:
    time.sleep(float(argument))
    return b"slept"


def _spin(argument: str) -> bytes:
    end = time.monotonic() + float(argument)
    while time.monotonic() < end:
        pass
    return b"spun"


def _deaf(argument: str) -> bytes:
    """Take no exception for an answer, whatever it is, for so long."""
    end = time.monotonic() + float(argument)
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException:
            pass
    return b"late"


def _modest(argument: str) -> bytes:
    """Catch what applications catch, and answer by itself."""
    try:
        time.sleep(float(argument))
    except Exception:
        return b"caught"
    return b"slept"


class Odd(BaseException):
    """Not an Exception."""


def _fail(argument: str) -> bytes:
    raise {
        "exception": ValueError,
        "exit": SystemExit,
        "interrupt": KeyboardInterrupt,
        "generator": GeneratorExit,
        "odd": Odd,
    }[argument]("on purpose")


_ROUTES = {
    "/meet": _meet,
    "/who": _who,
    "/sleep": _sleep,
    "/spin": _spin,
    "/deaf": _deaf,
    "/modest": _modest,
    "/fail": _fail,
}


def _stream(argument: str) -> Iterator[bytes]:
    """Blocks of a byte, a tenth of a second apart."""
    for _ in range(int(argument)):
        yield b"x"
        time.sleep(0.1)


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the path; the query is its argument."""
    path, argument = environ["PATH_INFO"], unquote(environ["QUERY_STRING"])
    headers = [("Content-Type", "text/plain")]
    if path == "/stream":
        start_response("200 OK", headers)
        return _stream(argument)
    if path == "/short":
        start_response("200 OK", [*headers, ("Content-Length", "100")])
        return _stream(argument)
    if path == "/big":
        start_response("200 OK", headers)
        return [b"x" * int(argument)]
    body = _ROUTES[path](argument)
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]
