"""Answers as applications mean them: a WSGI callable with a route for each way to give headers, files and hints."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.utils import send_file
from werkzeug.wrappers import Request

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

TYPE = ("Content-Type", "text/plain")


class Mime(str, enum.Enum):  # noqa: UP042 - StrEnum is the harmless one
    """What web applications have: a string that formats as its name."""

    CSV = "text/csv"
    STATUS = "299 Own Words"


class Evil(str):
    """A string that says one thing and is another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "evil\r\nX-Evil: 1"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("text/plain")


def hop(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """With the query as headers, in pieces."""
    start_response("200 OK", [TYPE, *parse_qsl(environ["QUERY_STRING"], keep_blank_values=True)])
    return iter([b"data: 1\n\n", b"data: 2\n\n"])


def whole(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """With the query as headers, in one piece."""
    start_response("200 OK", [TYPE, *parse_qsl(environ["QUERY_STRING"], keep_blank_values=True)])
    return [b"whole\n"]


def switch(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """As a WebSocket library answers."""
    start_response("101 Switching Protocols", [("Connection", "Upgrade"), ("Upgrade", "websocket")])
    return []


def replaced(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """An error page, of a framework that starts its response with one of these headers."""
    start_response("200 OK", [TYPE, ("Connection", "keep-alive")])
    try:
        raise ValueError("on purpose")
    except ValueError:
        start_response("503 Service Unavailable", [TYPE, ("Keep-Alive", "timeout=5")], sys.exc_info())
    return [b"replaced"]


def shape(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """With a list of headers that is none."""
    pairs = [TYPE, ("X-A", "1")]
    given: Any = {
        "tuple": tuple(pairs),
        "lists": [list(pair) for pair in pairs],
        "generator": (pair for pair in pairs),
        "items": dict(pairs).items(),
        "zip": zip(("Content-Type", "X-A"), ("text/plain", "1"), strict=True),
    }[environ["QUERY_STRING"]]
    start_response("200 OK", given)
    return [b"x"]


def text(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """With strings that are no plain ones, in name, value and status."""
    which = environ["QUERY_STRING"]
    if which == "enum":
        start_response(Mime.STATUS, [("Content-Type", Mime.CSV)])
    elif which == "evil":
        start_response(Evil("299 Own Words"), [(Evil("Content-Type"), Evil("text/csv"))])
    else:
        start_response("299 Own Words", [("Content-Type", "text/plain")])
    return [b"x"]


def blanks(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [TYPE, ("X-A", "  a  "), ("X-B", "\tb b\t "), ("X-C", "   "), ("Content-Length", " 1 ")])
    return [b"x"]


def slow(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Blocks the whole thread, in gevent too, until a second after the one in which it was called has begun."""
    signal.sigtimedwait([], 1.2)
    start_response("200 OK", [TYPE, ("X-Now", str(int(time.time())))])
    return [b"x"] if environ["QUERY_STRING"] == "whole" else iter([b"x"])


def hints(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    send = environ["wsgi.early_hints"]
    send([(b"Link", b" </a.css>; rel=preload "), ("X-Text", b"b")])
    send({"Link": "</b.css>"}.items())
    start_response("200 OK", [TYPE])
    return [b"x"]


def wrapped(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The file of the query, whose size nobody has told."""
    start_response("200 OK", [TYPE])
    return environ["wsgi.file_wrapper"](open(environ["QUERY_STRING"], "rb"), 4096)


def ranged(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The file of the query as Flask sends it, with ranges."""
    response = send_file(environ["QUERY_STRING"], environ, mimetype="text/plain", conditional=True)
    return response(environ, start_response)


def bytes_read(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """How many bytes this process has read from files; 0 where the kernel does not count."""
    count = b"0"
    with contextlib.suppress(OSError), open("/proc/self/io", "rb") as file:
        count = file.readline().split()[1]
    start_response("200 OK", [TYPE, ("X-Pid", str(os.getpid()))])
    return [count]


def answer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Any path: what a client may put in an access log."""
    start_response("200 OK", [TYPE, ("X-Out", Request(environ).headers.get("X-Own", "none"))])
    return [b"x"]


ROUTES = {
    "/" + view.__name__: view
    for view in (hop, whole, switch, replaced, shape, text, blanks, slow, hints, wrapped, ranged, bytes_read)
}


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return ROUTES.get(environ["PATH_INFO"], answer)(environ, start_response)
