"""An application that plants faults in its server: what a bug of ours, or of a plug-in of its log, would do."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from wsgiserv.net.client import Connection
from wsgiserv.net.event_loop import EventLoop


class Planted(RuntimeError):
    """The fault."""


class Exits(BaseException):
    """One that is no Exception."""


class RaisingFilter(logging.Filter):
    """A filter that fails at warnings, as one that expects attributes of its own records does."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Fail for what the server says of clients."""
        if "refused with" in record.getMessage():
            raise KeyError("user")
        return True


def plant(kind: type, name: str, fault: Callable[[Any], BaseException | None]) -> None:
    """Have a method raise where ``fault`` says so."""
    real = getattr(kind, name)

    def faulty(self: Any, *arguments: Any, **keywords: Any) -> Any:
        error = fault(self)
        if error is not None:
            raise error
        return real(self, *arguments, **keywords)

    setattr(kind, name, faulty)


def marked(mark: bytes, error: type[BaseException] = Planted) -> Callable[[Any], BaseException | None]:
    """Return what raises for a connection whose request line has this mark."""

    def fault(connection: Any) -> BaseException | None:
        line = connection.reader.line
        return error("planted") if line is not None and mark in line.raw else None

    return fault


class HandlerFilter(logging.Filter):
    """A filter that tells when it runs inside an exception handler: it must not, whatever the server logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Look at the server's reports of its own faults."""
        if record.exc_info and sys.exc_info()[1] is not None:
            os.write(2, b"[ERROR] the filter runs inside a handler of the server\n")
        return True


for _name in ("gunicorn.error", "wsgiserv.error"):
    logging.getLogger(_name).addFilter(HandlerFilter())
FAULTS = os.environ.get("FAULTS", "").split(",")
if "filter" in FAULTS:
    logging.getLogger("gunicorn.error").addFilter(RaisingFilter())
    logging.getLogger("wsgiserv.error").addFilter(RaisingFilter())
if "settle" in FAULTS:
    plant(Connection, "_settle", marked(b"settle"))
    plant(Connection, "_settle", marked(b"leave", Exits))
if "flush" in FAULTS:
    plant(Connection, "flush", marked(b"big"))
if "drain" in FAULTS:
    plant(Connection, "drain", marked(b"big"))
if "expire" in FAULTS:
    plant(Connection, "expire", marked(b"kept"))
if "receive" in FAULTS:
    plant(Connection, "receive", marked(b"kept"))
if "retire" in FAULTS:
    plant(Connection, "retire", marked(b"kept"))
if "accept" in FAULTS:
    times = iter([True, False, True] + [False] * 100_000)
    plant(EventLoop, "accept", lambda event_loop: Planted("planted") if next(times) else None)
if "tick" in FAULTS:
    ticks = iter([False, True] * 3 + [False] * 100_000)
    plant(EventLoop, "sweep", lambda event_loop: Planted("planted") if next(ticks) else None)


def slow_body(size: int) -> Iterable[bytes]:
    """Yield all but the last byte at once, and that a second later."""
    yield b"x" * size
    time.sleep(1)
    yield b"x"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer; ``/big`` with more than a socket takes; ``/sleep`` after a while."""
    if environ["PATH_INFO"] == "/sleep":
        print("sleeping", file=environ["wsgi.errors"])
        time.sleep(0.3)
    if environ["PATH_INFO"] == "/big/slow":
        start_response("200 OK", [("Content-Length", "20000001")])
        return slow_body(20_000_000)
    body = b"x" * 20_000_000 if environ["PATH_INFO"] == "/big" else b"done"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
