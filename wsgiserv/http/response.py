"""Turns an application's status and headers into the bytes of a response head (RFC 9110, RFC 9112 §4-§6).

`HeadTemplates` checks and serialises each status and header list once. `refusal` makes the server's own responses.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from wsgiserv.http.grammar import RESPONSE_NAME, RESPONSE_VALUE, STATUS, parse_content_length

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
CLOSE: Final = b"Connection: close\r\n"
KEEP_ALIVE: Final = b"Connection: keep-alive\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"

# RFC 9110 §7.6.1 and PEP 3333 "Other HTTP Features": these are about this connection, which is not
# the application's. wsgiref and RFC 2616 §13.5.1 list the same names.
_HOP_BY_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "trailers", "transfer-encoding", "upgrade",
})  # fmt: skip

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# A full cache is emptied, as in `head.py`; what an application makes up anew each time cannot fill the memory.
_CACHE_ENTRIES: Final = 512
_LONGEST_HEAD_KEPT: Final = 4096
_LONGEST_LINE_KEPT: Final = 256

# The Server line of this process.
_server_line = b"Server: wsgiserv\r\n"


def name_server(name: str) -> None:
    """Set the Server header of this process's responses; an empty name means none. Called before the first response.

    Args:
        name: printable ASCII.
    """
    global _server_line
    _server_line = f"Server: {name}\r\n".encode("ascii") if name else b""


def date_line(now: float) -> bytes:
    """Return the Date line for ``now`` (seconds since the epoch), an IMF-fixdate (RFC 9110 §5.6.7)."""
    try:
        at = time.gmtime(now)
    except (OverflowError, ValueError, OSError):  # a clock far beyond all calendars
        at = time.gmtime(0)
    # The names of days and months by strftime depend on the locale; email.utils takes 5 ms of each start.
    day, month = _DAYS[at.tm_wday], _MONTHS[at.tm_mon - 1]
    return time.strftime(f"Date: {day}, %d {month} %Y %H:%M:%S GMT\r\n", at).encode("ascii")


@dataclass(slots=True, eq=False)
class HeadTemplate:
    """A checked status and header list, as bytes.

    Attributes:
        prefix: status line, Server and the application's header lines, without Date.
        code: the status code.
        length: the declared Content-Length in bytes, or -1.
        bodiless: whether the status allows no body (RFC 9110 §6.4.1: 1xx, 204, 304).
        has_date: whether the application set Date itself.
        status: the status as sent.
        fields: the application's headers as sent.
        hop_by_hop: the names of headers that are not sent, because they are about the connection.
        closes: whether one of them was ``Connection: close``.
    """

    prefix: bytes
    code: int
    length: int
    bodiless: bool
    has_date: bool
    status: str
    fields: tuple[tuple[str, str], ...]
    hop_by_hop: tuple[str, ...]
    closes: bool


class HeadTemplates:
    """Makes templates, and keeps them: applications repeat themselves too. One per worker."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], HeadTemplate] = {}
        self._lines: dict[tuple[str, str], bytes] = {}

    def get(self, status: str, headers: Iterable[tuple[str, str]]) -> HeadTemplate:
        """Return the template for the arguments that an application passed to ``start_response``.

        Raises:
            TypeError, ValueError: the status or a header must not reach the wire; says which and why.
        """
        # A subclass of str may compare and hash as it likes, and would find another list's template: only the
        # built-in type is looked up as it is. Lists of tuples are the usual case.
        if type(headers) is list and type(status) is str:
            try:
                for header in headers:
                    if type(header) is not tuple:
                        break
                    name, value = header
                    if type(name) is not str or type(value) is not str:
                        break
                else:
                    template = self._kept.get((status, *headers))
                    if template is not None:
                        return template
            except ValueError:  # not pairs: `_pairs` says so
                pass
        status = _own_text(status, "the status must be a str, for example '200 OK'")
        return self._find(status, _pairs(headers))

    def early_hints(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> HeadTemplate:
        """Return the template of an interim response 103 (RFC 8297 §2).

        Raises:
            TypeError, ValueError: a header must not reach the wire; says which and why.
        """
        template = self._find("103 Early Hints", _pairs(headers, accepts_bytes=True))
        if template.length >= 0:
            raise ValueError("an interim response has no body, and no Content-Length")
        return template

    def _find(self, status: str, headers: list[tuple[str, str]]) -> HeadTemplate:
        return self._kept.get((status, *headers)) or self._make(status, headers)

    def _make(self, status: str, headers: list[tuple[str, str]]) -> HeadTemplate:
        """Check and serialise ``headers``, built-in tuples of built-in strings, and keep the result."""
        match = STATUS.fullmatch(status)
        if match is None:
            raise ValueError(f"malformed status {status!r}; expected a code and a phrase, for example '200 OK'")
        code = int(match[1])
        bodiless = code < 200 or code in (204, 304)
        length = -1
        has_date, has_server = False, code < 200  # an interim response does without Server
        names, closes = _connection_options(headers)
        # Kept lines have been checked against these names alone: Connection may name more.
        known = self._lines if names is _HOP_BY_HOP else {}
        parts: list[bytes] = []
        fields: list[tuple[str, str]] = []
        dropped: dict[str, str] = {}
        for header in headers:
            line = known.get(header)
            if line is None:
                name, value = header
                sent = (name, _checked(name, value))
                line = f"{name}: {sent[1]}\r\n".encode("latin-1")
                lower = name.lower()
                if lower in names:
                    dropped.setdefault(lower, name)
                    continue
                # Below: a line that says something about the response is not kept, since it must be read each time.
                if lower == "content-length":
                    declared = int(sent[1])
                    if length >= 0 and length != declared:
                        raise ValueError("the application set two different Content-Length headers")
                    # RFC 9110 §8.6: never in a 1xx or 204; and never twice.
                    is_sent = length < 0 and code >= 200 and code != 204
                    length = declared
                    if not is_sent:
                        continue
                elif lower == "date":
                    has_date = True
                elif lower == "server":
                    has_server = True
                elif len(line) <= _LONGEST_LINE_KEPT and sent == header:
                    if len(known) >= _CACHE_ENTRIES:
                        known.clear()
                    known[header] = line
                header = sent
            parts.append(line)
            fields.append(header)
        reason = "" if len(status) > 3 else " "  # RFC 9112 §4: the space stays where the phrase is empty
        head = f"HTTP/1.1 {status}{reason}\r\n".encode("latin-1")
        prefix = b"".join((head, b"" if has_server else _server_line, *parts))
        hop_by_hop = tuple(dropped.values())
        template = HeadTemplate(prefix, code, length, bodiless, has_date, status, tuple(fields), hop_by_hop, closes)
        if len(prefix) <= _LONGEST_HEAD_KEPT:
            if len(self._kept) >= _CACHE_ENTRIES:
                self._kept.clear()
            self._kept[status, *headers] = template
        return template


def _own_text(text: object, rule: str) -> str:
    """Return a string's own characters, as a built-in `str`. Raises TypeError with the ``rule``."""
    # `__str__` and `__format__` of a subclass may say something else (``class Mime(str, Enum)``), and `__class__` of
    # a proxy pretends to be a string: none of them is asked.
    if type(text) is str:
        return text
    if issubclass(type(text), str):
        return str.__str__(text)
    raise TypeError(f"{rule}, not {type(text).__name__}")


def _pairs(headers: object, accepts_bytes: bool = False) -> list[tuple[str, str]]:
    """Return an iterable of pairs as built-in tuples of built-in strings.

    Raises:
        TypeError: it is no iterable of pairs of strings.
    """
    if isinstance(headers, (str, bytes, dict)) or not hasattr(type(headers), "__iter__"):
        hint = " (headers.items() is accepted)" if isinstance(headers, dict) else ""
        raise TypeError(f"the headers must be a list of (name, value) tuples, not {type(headers).__name__}{hint}")
    pairs = []
    for header in headers:  # type: ignore[attr-defined]
        try:
            # "ab" and {"a", "b"} unpack, too.
            if isinstance(header, (str, bytes, bytearray, dict, set, frozenset)):
                raise TypeError
            name, value = header
        except (TypeError, ValueError):
            raise TypeError(f"a response header must be a tuple (name, value), not {header!r}") from None
        if accepts_bytes:
            name, value = _decoded(name), _decoded(value)
        try:
            rule = "a response header's name and value must be str"
            pairs.append((_own_text(name, rule), _own_text(value, rule)))
        except TypeError as error:
            raise TypeError(f"{error}: {header!r}") from None
    return pairs


def _decoded(text: object) -> object:
    return bytes.decode(text, "latin-1") if isinstance(text, bytes) else text


def _connection_options(headers: list[tuple[str, str]]) -> tuple[frozenset[str], bool]:
    """Return the lower-case names of headers about the connection, and whether the application closes it.

    RFC 9110 §7.6.1: a field that Connection names is one of them.
    """
    names, closes = _HOP_BY_HOP, False
    for name, value in headers:
        if name.lower() == "connection":
            options = {option.strip(" \t").lower() for option in value.split(",")}
            closes = closes or "close" in options
            names = names | options
    return names, closes


def _checked(name: str, value: str) -> str:
    """Return the value as sent, without the blanks around it (RFC 9110 §5.5). Raises ValueError."""
    if RESPONSE_NAME.fullmatch(name) is None:
        raise ValueError(f"malformed response header name {name!r}")
    if RESPONSE_VALUE.fullmatch(value) is None:
        # A CR or LF here would let the value write headers of its own (gunicorn CVE-2018-1000164).
        raise ValueError(f"response header {name} has a control character or is not latin-1: {value!r}")
    value = value.strip(" \t")
    if name.lower() == "content-length" and parse_content_length(value) is None:
        raise ValueError(f"malformed Content-Length {value!r}")
    return value


def content_length(length: int) -> bytes:
    """Return the Content-Length line."""
    return b"Content-Length: %d\r\n" % length


def refusal(status: int, reason: str, head: bool = False) -> bytes:
    """Return a complete response that refuses a request and announces the close.

    Args:
        status: the status code.
        reason: one sentence for the client's developer; ASCII, made by this server, never client bytes.
        head: whether the method is known to be HEAD, whose responses have no body (RFC 9110 §9.3.2).
    """
    phrase = HTTPStatus(status).phrase
    body = f"{status} {phrase}: {reason}\n".encode("ascii", "replace")
    start = f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii") + _server_line + date_line(time.time())
    # Close: behind a request that has not been understood nothing tells where the next one begins.
    framing = b"Content-Type: text/plain; charset=utf-8\r\n" + content_length(len(body)) + CLOSE + b"\r\n"
    return start + framing + (b"" if head else body)
