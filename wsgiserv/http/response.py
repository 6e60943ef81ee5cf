"""The response's side of HTTP/1.1: from what an application said to the bytes of a head.

Owns: `HeadTemplate` (a checked status and header list, serialised once), framing constants, refusals.
Must not know: sockets, WSGI, when to send.
"""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Final

from wsgiserv.http.grammar import DIGITS, RESPONSE_NAME, RESPONSE_VALUE, STATUS

__all__ = [
    "CHUNKED",
    "CHUNKED_CLOSE",
    "CLOSE",
    "CONTINUE",
    "LAST_CHUNK",
    "HeadTemplate",
    "HeadTemplates",
    "content_length",
    "date_line",
    "early_hints",
    "refusal",
]

SERVER: Final = b"Server: wsgiserv\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"

# The ends of a head. The template ends behind the application's last header line.
CLOSE: Final = b"Connection: close\r\n"
KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKED_CLOSE: Final = CLOSE + CHUNKED

# RFC 9110 §7.6.1 and PEP 3333 "Other HTTP Features": these speak about this connection, which is not
# the application's. wsgiref and RFC 2616 §13.5.1 list the same names.
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_CACHE_ENTRIES: Final = 512
_LONGEST_HEAD_KEPT: Final = 4096


def date_line(now: float) -> bytes:
    """Return the Date line for ``now`` (seconds since the epoch), an IMF-fixdate (RFC 9110 §5.6.7)."""
    # email.utils could tell, and takes 5 ms of each start.
    try:
        at = time.gmtime(now)
    except (OverflowError, ValueError, OSError):  # a clock far beyond all calendars
        at = time.gmtime(0)
    return (
        f"Date: {_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year} "
        f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT\r\n"
    ).encode("ascii")


class HeadTemplate:
    """A status and header list that have been checked, as bytes.

    Attributes:
        prefix: status line, Server and the application's header lines, without Date.
        code: the status code.
        length: the declared Content-Length in bytes, or -1.
        bodiless: whether the status allows no body (RFC 9110 §6.4.1: 1xx, 204, 304).
        has_date: whether the application set Date itself.
    """

    __slots__ = ("bodiless", "code", "has_date", "length", "prefix")

    def __init__(self, prefix: bytes, code: int, length: int, bodiless: bool, has_date: bool) -> None:
        self.prefix = prefix
        self.code = code
        self.length = length
        self.bodiless = bodiless
        self.has_date = has_date


class HeadTemplates:
    """Makes templates, and keeps them: applications repeat themselves too. One per worker."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], HeadTemplate] = {}
        self._lines: dict[tuple[str, str], bytes] = {}

    def get(self, status: str, headers: list[tuple[str, str]]) -> HeadTemplate:
        """Return the template for what an application passed to ``start_response``.

        Raises:
            TypeError, ValueError: the status or a header must not reach the wire; says which and why.
        """
        try:
            key = (status, *headers)
            template = self._kept.get(key)
        except TypeError:  # something unhashable or not iterable: make() names it
            return self._make(status, headers)
        if template is None:
            template = self._make(status, headers)
            if len(template.prefix) <= _LONGEST_HEAD_KEPT:
                if len(self._kept) >= _CACHE_ENTRIES:
                    self._kept.clear()
                self._kept[key] = template
        return template

    def _make(self, status: str, headers: list[tuple[str, str]]) -> HeadTemplate:
        code = _status_code(status)
        if not isinstance(headers, (list, tuple)):
            raise TypeError(
                f"the headers must be a list of (name, value) tuples, not {type(headers).__name__}"
            )
        bodiless = code < 200 or code == 204 or code == 304
        length = -1
        has_date = has_server = False
        known = self._lines
        parts = []
        for header in headers:
            try:
                line = known.get(header)
            except TypeError:
                line = None
            if line is None:
                name, value = _checked(header)
                line = f"{name}: {value}\r\n".encode("latin-1")
                lower = name.lower()
                if lower == "content-length":
                    if length >= 0 and length != int(value):
                        raise ValueError("the application set two different Content-Length headers")
                    first, length = length < 0, int(value)
                    # RFC 9110 §8.6: never in a 1xx or 204; and never twice.
                    if first and not (code < 200 or code == 204):
                        parts.append(line)
                    continue
                if lower == "date":
                    has_date = True
                elif lower == "server":
                    has_server = True
                elif len(line) <= 256:
                    if len(known) >= _CACHE_ENTRIES:
                        known.clear()
                    known[name, value] = line
            parts.append(line)
        reason = "" if len(status) > 3 else " "  # RFC 9112 §4: the space stays where the phrase is empty
        head = f"HTTP/1.1 {status}{reason}\r\n".encode("latin-1")
        prefix = b"".join((head, b"" if has_server else SERVER, *parts))
        return HeadTemplate(prefix, code, length, bodiless, has_date)


def _status_code(status: object) -> int:
    if not isinstance(status, str):
        raise TypeError(f"the status must be a str such as '200 OK', not {type(status).__name__}")
    match = STATUS.fullmatch(status)
    if match is None:
        raise ValueError(f"malformed status {status!r}; expected such as '200 OK'")
    return int(match.group(1))


def _checked(header: object) -> tuple[str, str]:
    if not isinstance(header, tuple) or len(header) != 2:
        raise TypeError(f"a response header must be a tuple (name, value), not {header!r}")
    name, value = header
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"a response header's name and value must be str, not {header!r}")
    if RESPONSE_NAME.fullmatch(name) is None:
        raise ValueError(f"malformed response header name {name!r}")
    if RESPONSE_VALUE.fullmatch(value) is None:
        # A CR or LF here would let the value write headers of its own (gunicorn CVE-2018-1000164).
        raise ValueError(f"response header {name} has a control character or is not latin-1: {value!r}")
    lower = name.lower()
    if lower in _HOP_BY_HOP:
        raise ValueError(f"the application set {name}, a hop-by-hop header, which is the server's (PEP 3333)")
    if lower == "content-length":
        value = value.strip(" \t")
        if DIGITS.fullmatch(value.encode("latin-1")) is None or len(value) > 19:
            raise ValueError(f"malformed Content-Length {value!r}")
    return name, value


def early_hints(headers: list[tuple[str, str]]) -> bytes:
    """Return an interim response 103 with ``headers`` (RFC 8297 §2).

    Raises:
        TypeError, ValueError: a header must not reach the wire.
    """
    lines = []
    for header in headers:
        name, value = _checked(header)
        if name.lower() == "content-length":
            raise ValueError("an interim response has no body, and no Content-Length")
        lines.append(f"{name}: {value}\r\n".encode("latin-1"))
    return b"".join((b"HTTP/1.1 103 Early Hints\r\n", *lines, b"\r\n"))


def content_length(length: int) -> bytes:
    """Return the Content-Length line."""
    return b"Content-Length: %d\r\n" % length


def refusal(status: int, reason: str, head: bool = False) -> bytes:
    """Return a whole response that refuses a request and announces the close.

    Args:
        status: the status code.
        reason: one sentence for the client's developer; ASCII, made by this server, never client bytes.
        head: whether the method is known to be HEAD, whose responses have no body (RFC 9110 §9.3.2).
    """
    phrase = HTTPStatus(status).phrase
    body = f"{status} {phrase}: {reason}\n".encode("ascii", "replace")
    return b"".join(
        (
            f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii"),
            SERVER,
            date_line(time.time()),
            b"Content-Type: text/plain; charset=utf-8\r\n",
            content_length(len(body)),
            CLOSE,
            b"\r\n",
            b"" if head else body,
        )
    )
