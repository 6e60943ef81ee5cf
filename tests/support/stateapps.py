"""What an application sees of the server's state, and of the requests before: handlers, contexts, locals."""

from __future__ import annotations

import contextvars
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

SEEN: dict[str, list[str]] = {}
SECRET: contextvars.ContextVar[str] = contextvars.ContextVar("secret")
IMPORTED: contextvars.ContextVar[str] = contextvars.ContextVar("imported", default="unset")
LOCAL = threading.local()
IMPORTED.set("by the import")


def probe(place: str) -> None:
    """Note what this place sees of exceptions that are not its own."""
    found = []
    if sys.exc_info() != (None, None, None):
        found.append(f"exc_info is {sys.exc_info()[1]!r}")
    try:
        raise LookupError(place)
    except LookupError as error:
        if error.__context__ is not None:
            found.append(f"context is {error.__context__!r}")
    SEEN.setdefault(place, []).extend(found)


probe("import")


class Body:
    """An iterable that probes wherever the server calls it."""

    def __init__(self, fails: str) -> None:
        self.fails = fails

    def __iter__(self) -> Iterator[bytes]:
        probe("iteration")
        yield b"one"
        probe("iteration")
        if self.fails == "iteration":
            raise ValueError("on purpose")
        yield b"two"

    def close(self) -> None:
        """Probe."""
        probe("close")
        if self.fails == "close":
            raise ValueError("on purpose")


def secrets(what: str) -> list[str]:
    """Return what is left of other requests' secrets, and leave one in each place."""
    import decimal

    found = [SECRET.get("")]
    SECRET.set(what)
    found.append(getattr(LOCAL, "secret", ""))
    LOCAL.secret = what
    thread: Any = threading.current_thread()
    found.append(getattr(thread, "secret", ""))
    thread.secret = what
    found.append("" if decimal.getcontext().prec == 28 else "decimal")
    decimal.getcontext().prec = 3
    if "greenlet" in sys.modules and "gevent" in sys.modules:
        import gevent

        found.append(getattr(gevent.getcurrent(), "secret", ""))
        gevent.getcurrent().secret = what  # type: ignore[attr-defined]
    return found


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """``/probe?<what fails>``, ``/seen``, ``/secrets?<mine>``, ``/only-context?<mine>``, ``/timeout``."""
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    probe("call")
    if path == "/seen":
        start_response("200 OK", [])
        return [json.dumps(SEEN).encode()]
    if path == "/secrets":
        start_response("200 OK", [])
        return [json.dumps(secrets(query)).encode()]
    if path == "/only-context":
        start_response("200 OK", [])
        found = [SECRET.get("")]
        SECRET.set(query)
        return [json.dumps(found).encode()]
    if path == "/imported":
        start_response("200 OK", [])
        return [IMPORTED.get().encode()]
    if path == "/greenlet":
        import gevent

        start_response("200 OK", [])
        return [str(id(gevent.getcurrent())).encode()]
    if path == "/timeout":
        import gevent

        gevent.Timeout(0.1).start()
        start_response("200 OK", [])
        return [b"armed"]
    if path == "/sleep":
        import time

        time.sleep(0.3)
        start_response("200 OK", [])
        return [b"slept"]
    if query == "call":
        raise ValueError("on purpose")
    write = start_response("200 OK", [])
    if query == "write":
        write(b"zero")
        probe("after write")
    if query == "again":
        try:
            raise KeyError("mine")
        except KeyError:
            start_response("500 Internal Server Error", [], sys.exc_info())  # type: ignore[arg-type]
    return Body(query)
