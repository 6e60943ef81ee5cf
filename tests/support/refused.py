"""Requests that must be refused, as data: a name, the bytes, the statuses that are right.

More than one status stands where the RFCs leave the choice. The rules: RFC 9112 2.2, 3, 5, 6, 7; RFC 9110
5, 7.2, 8.6, 10.1.1; and the advisories named in the comments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Case(NamedTuple):
    """One request and the statuses that refuse it."""

    name: str
    data: bytes
    statuses: tuple[int, ...]


def _line(line: bytes) -> bytes:
    return line + b"\r\nHost: test\r\n\r\n"


def _field(field: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: test\r\n" + field + b"\r\n\r\n"


def _post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST /echo HTTP/1.1\r\nHost: test\r\n" + fields + b"\r\n\r\n" + body


def _chunks(body: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked", body)


# Name, request line, statuses (400 unless given).
_LINES: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("no method", b" / HTTP/1.1", (400,)),
    ("leading space", b" GET / HTTP/1.1", (400,)),
    ("two spaces", b"GET  / HTTP/1.1", (400,)),
    ("two spaces before the version", b"GET /  HTTP/1.1", (400,)),
    ("tab after the method", b"GET\t/ HTTP/1.1", (400,)),
    ("tab before the version", b"GET /\tHTTP/1.1", (400,)),
    ("trailing space", b"GET / HTTP/1.1 ", (400,)),
    ("vertical tab", b"GET /\x0bHTTP/1.1", (400,)),
    ("no version", b"GET /", (400,)),
    ("no target", b"GET HTTP/1.1", (400,)),
    ("four parts", b"GET / x HTTP/1.1", (400,)),
    ("version without minor", b"GET / HTTP/1", (400,)),
    ("version with two digits", b"GET / HTTP/1.10", (400,)),
    ("version with leading zero", b"GET / HTTP/01.1", (400,)),
    ("version in lower case", b"GET / http/1.1", (400,)),
    ("version with comma", b"GET / HTTP/1,1", (400,)),
    ("version with space", b"GET / HTTP 1.1", (400,)),
    ("version of another protocol", b"GET / ICAP/1.0", (400,)),
    ("version with superscript", b"GET / HTTP/1.\xb9", (400,)),
    ("version 2", b"GET / HTTP/2.0", (505,)),
    ("version 3", b"GET / HTTP/3.0", (505,)),
    ("version 0.9", b"GET / HTTP/0.9", (505,)),
    ("HTTP/2 preface", b"PRI * HTTP/2.0", (400, 505)),
    ("method with at sign", b"G@T / HTTP/1.1", (400,)),
    ("method with parenthesis", b"GE(T / HTTP/1.1", (400,)),
    ("method in quotes", b'"GET" / HTTP/1.1', (400,)),
    ("method with colon", b"GET: / HTTP/1.1", (400,)),
    ("method with NUL", b"G\x00T / HTTP/1.1", (400,)),
    ("method not ASCII", b"G\xc9T / HTTP/1.1", (400,)),
    ("target with NUL", b"GET /a\x00b HTTP/1.1", (400,)),
    ("target with control", b"GET /a\x01b HTTP/1.1", (400,)),
    ("target with escape", b"GET /\x1b[31m HTTP/1.1", (400,)),
    ("target with DEL", b"GET /a\x7f HTTP/1.1", (400,)),
    ("target not ASCII", b"GET /caf\xe9 HTTP/1.1", (400,)),
    ("target with UTF-8", b"GET /caf\xc3\xa9 HTTP/1.1", (400,)),
    ("target with fragment", b"GET /a#b HTTP/1.1", (400,)),
    ("target without slash", b"GET index.html HTTP/1.1", (400,)),
    ("target is a query", b"GET ?a=b HTTP/1.1", (400,)),
    ("asterisk with GET", b"GET * HTTP/1.1", (400,)),
    ("asterisk with POST", b"POST * HTTP/1.1", (400,)),
    ("authority with GET", b"GET example.com:80 HTTP/1.1", (400,)),
    ("CONNECT with a path", b"CONNECT / HTTP/1.1", (400,)),
    ("CONNECT without a port", b"CONNECT example.com HTTP/1.1", (400,)),
    ("absolute with user", b"GET http://user@example.com/ HTTP/1.1", (400,)),
    ("absolute without host", b"GET http:///x HTTP/1.1", (400,)),
    ("absolute with port only", b"GET http://:80/ HTTP/1.1", (400,)),
    ("absolute with one slash", b"GET http:/x HTTP/1.1", (400,)),
    ("line too long", b"GET /" + b"x" * 9000 + b" HTTP/1.1", (414,)),
    ("line far too long", b"GET /" + b"x" * 300_000 + b" HTTP/1.1", (414,)),
    ("TLS on a plain port", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400,)),
]

_RAW: list[tuple[str, bytes, tuple[int, ...]]] = [
    # waitress CVE-2019-16785, RFC 9112 2.2: a recipient that takes bare LF disagrees with its proxy
    ("bare LF everywhere", b"GET / HTTP/1.1\nHost: test\n\n", (400,)),
    ("bare LF after the line", b"GET / HTTP/1.1\nHost: test\r\n\r\n", (400,)),
    ("bare LF between fields", b"GET / HTTP/1.1\r\nHost: test\nX-A: b\r\n\r\n", (400,)),
    ("bare LF ends the head", b"GET / HTTP/1.1\r\nHost: test\r\n\nX-A: b\r\n\r\n", (400,)),
    ("bare CR in the line", b"GET /\r HTTP/1.1\r\nHost: test\r\n\r\n", (400,)),
    ("two CR after the line", b"GET / HTTP/1.1\r\r\nHost: test\r\n\r\n", (400,)),
    ("bare CR between fields", b"GET / HTTP/1.1\r\nHost: test\rX-A: b\r\n\r\n", (400,)),
    ("two empty lines before", b"\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", (400,)),
    ("bare LF before", b"\nGET / HTTP/1.1\r\nHost: test\r\n\r\n", (400,)),
    ("space before the first field", b"GET / HTTP/1.1\r\n Host: test\r\n\r\n", (400,)),
    ("no Host", b"GET / HTTP/1.1\r\n\r\n", (400,)),
    ("no Host but others", b"GET / HTTP/1.1\r\nX-Host: test\r\n\r\n", (400,)),
]

_FIELDS: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("space before the colon", b"X-A : b", (400,)),
    ("tab before the colon", b"X-A\t: b", (400,)),
    ("folded", b"X-A: b\r\n c", (400,)),
    ("folded with tab", b"X-A: b\r\n\tc", (400,)),
    ("empty name", b": b", (400,)),
    ("no colon", b"X-A", (400,)),
    ("space in a name", b"X A: b", (400,)),
    ("parenthesis in a name", b"X(A): b", (400,)),
    ("at sign in a name", b"X@A: b", (400,)),
    ("slash in a name", b"X/A: b", (400,)),
    ("NUL in a name", b"X\x00A: b", (400,)),
    ("name not ASCII", b"X\xe9: b", (400,)),
    ("control in a name", b"X\x01: b", (400,)),
    ("NUL in a value", b"X-A: b\x00c", (400,)),
    ("CR in a value", b"X-A: b\rc", (400,)),
    ("CR ends a value", b"X-A: b\r", (400,)),
    ("LF in a value", b"X-A: b\nc", (400,)),
    ("too many fields", b"\r\n".join(b"X-%d: b" % number for number in range(101)), (431,)),
    ("field too large", b"X-A: " + b"x" * 9000, (431,)),
    ("field far too large", b"X-A: " + b"x" * 300_000, (431,)),
    ("two Hosts", b"Host: other", (400,)),
    ("two equal Hosts", b"Host: test", (400,)),
    ("Content-Type repeated", b"Content-Type: a/b\r\nContent-Type: c/d", (400,)),
    ("Authorization repeated", b"Authorization: Basic YTpi\r\nAuthorization: Basic Yzpk", (400,)),
    ("unknown expectation", b"Expect: nonsense", (417,)),
    ("unknown expectation besides", b"Expect: 100-continue, nonsense", (417,)),
]

_HOSTS = [b"a b", b"a/b", b"user@a", b"a:b", b"a:80:80", b"[::1", b"::1", b"a,b", b"a?b", b"a#b", b"<a>", b"a\\b"]

# RFC 9110 8.6: 1*DIGIT. What int() takes and the rule does not: waitress CVE-2022-24761, aiohttp CVE-2023-47627
_LENGTHS: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("with plus", b"+5", (400,)),
    ("with minus", b"-5", (400,)),
    ("minus zero", b"-0", (400,)),
    ("with underscore", b"1_0", (400,)),
    ("in hex", b"0x5", (400,)),
    ("with space", b"1 1", (400,)),
    ("empty", b"", (400,)),
    ("superscript", b"\xb2", (400,)),
    ("with point", b"5.0", (400,)),
    ("with exponent", b"5e0", (400,)),
    ("a list", b"5, 6", (400,)),
    ("a list with comma only", b"5,", (400,)),
    ("with vertical tab", b"\x0b5", (400,)),
    ("with no-break space", b"\xa05", (400,)),
    ("a word", b"five", (400,)),
    ("5,000 digits", b"9" * 5000, (400, 413)),
    ("20 digits", b"9" * 20, (400, 413)),
    ("above the limit", b"5000000000", (413,)),
]

# One "chunked", or nothing: gunicorn CVE-2024-1135, CVE-2024-6827
_CODINGS: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("gzip", b"gzip", (400, 501)),
    ("identity", b"identity", (400, 501)),
    ("unknown", b"xchunked", (400, 501)),
    ("with parameter", b"chunked;q=1", (400, 501)),
    ("chunked twice", b"chunked, chunked", (400,)),
    ("chunked not last", b"chunked, gzip", (400, 501)),
    ("chunked after gzip", b"gzip, chunked", (400, 501)),
    ("chunked and identity", b"chunked, identity", (400, 501)),
    ("empty", b"", (400, 501)),
    ("empty member", b", chunked", (400, 501)),
    ("with vertical tab", b"\x0bchunked", (400, 501)),
    ("with no-break space", b"\xa0chunked", (400, 501)),
    ("in quotes", b'"chunked"', (400, 501)),
]

_CHUNKED: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("chunk size with sign", b"+5\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size negative", b"-5\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size with underscore", b"0_5\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size with leading space", b" 5\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size with trailing space", b"5 \r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size with trailing tab", b"5\t\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size empty", b"\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size no hex", b"g\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk size superscript", b"\xb2\r\nhe\r\n0\r\n\r\n", (400,)),
    ("chunk size of 17 digits", b"F" * 17 + b"\r\nhello\r\n0\r\n\r\n", (400, 413)),
    ("chunk size of 300 digits", b"F" * 300 + b"\r\nhello\r\n0\r\n\r\n", (400, 413)),
    # Werkzeug's server on CPython 3.11 crashed here: int() refuses 5,000 decimal digits, zeros or not
    ("chunk size of 5,000 zeros", b"0" * 5000 + b"5\r\nhello\r\n0\r\n\r\n", (400, 413)),
    # Go CVE-2025-22871, h11 CVE-2025-43859: the ends are CRLF, not two bytes of anything
    ("chunk head ends in LF", b"5\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk head ends in CR", b"5\rhello\r\n0\r\n\r\n", (400,)),
    ("chunk data ends in LF", b"5\r\nhello\n0\r\n\r\n", (400,)),
    ("chunk data ends in XX", b"5\r\nhelloXX0\r\n\r\n", (400,)),
    ("chunk data too long", b"5\r\nhello!\r\n0\r\n\r\n", (400,)),
    ("chunk data too short", b"6\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk extension without name", b"5;\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk extension with CR", b"5;a\rb\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk extension with LF", b"5;a\nb\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk extension with NUL", b"5;a=\x00\r\nhello\r\n0\r\n\r\n", (400,)),
    ("chunk extension with open quote", b'5;a="b\r\nhello\r\n0\r\n\r\n', (400,)),
    ("chunk extension too long", b"5;a=" + b"b" * 20_000 + b"\r\nhello\r\n0\r\n\r\n", (400, 413, 431)),
    # Go CVE-2023-39326, puma CVE-2024-21647: little data, much extension
    ("chunk extensions too long in sum", (b"1;a=" + b"b" * 200 + b"\r\nx\r\n") * 500 + b"0\r\n\r\n", (400, 413, 431)),
    ("last chunk ends in LF", b"5\r\nhello\r\n0\n\r\n", (400,)),
    ("trailers end in LF", b"5\r\nhello\r\n0\r\n\n", (400,)),
    # gevent CVE-2023-41419, eventlet CVE-2025-58068: trailers are fields
    ("trailer with space before the colon", b"0\r\nX-A : b\r\n\r\n", (400,)),
    ("trailer folded", b"0\r\nX-A: b\r\n c\r\n\r\n", (400,)),
    ("trailer without colon", b"0\r\nX-A\r\n\r\n", (400,)),
    ("trailer with NUL", b"0\r\nX-A: \x00\r\n\r\n", (400,)),
    ("trailer line ends in LF", b"0\r\nX-A: b\nX-B: c\r\n\r\n", (400,)),
    ("trailers too many", b"0\r\n" + b"X-A: b\r\n" * 300 + b"\r\n", (400, 431)),
    ("trailer too large", b"0\r\nX-A: " + b"b" * 100_000 + b"\r\n\r\n", (400, 431)),
]

_FRAMINGS: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("both lengths", _post(b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"), (400,)),
    ("both lengths, chunked first", _post(b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"), (400,)),
    ("both lengths, zero", _post(b"Content-Length: 0\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"), (400,)),
    ("two lengths", _post(b"Content-Length: 5\r\nContent-Length: 6", b"hello"), (400,)),
    (
        "two lengths, one with zeros",
        _post(b"Content-Length: 5\r\nContent-Length: 6\r\nContent-Length: 5", b"hello"),
        (400,),
    ),
    ("two codings", _post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"), (400,)),
    (
        "two codings, one unknown",
        _post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x", b"0\r\n\r\n"),
        (400, 501),
    ),
    ("coding with space before the colon", _post(b"Transfer-Encoding : chunked", b"0\r\n\r\n"), (400,)),
    ("length with space before the colon", _post(b"Content-Length : 5", b"hello"), (400,)),
    (
        "chunked in HTTP/1.0",
        b"POST /echo HTTP/1.0\r\nHost: test\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
        (400,),
    ),
]


def _all() -> Iterator[Case]:
    for name, line, statuses in _LINES:
        yield Case(name, _line(line), statuses)
    yield from (Case(*case) for case in _RAW)
    for name, field, statuses in _FIELDS:
        yield Case(name, _field(field), statuses)
    for host in _HOSTS:
        yield Case(f"Host {host.decode()}", b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", (400,))
    for name, value, statuses in _LENGTHS:
        yield Case(f"Content-Length {name}", _post(b"Content-Length: " + value, b"hello"), statuses)
    for name, value, statuses in _CODINGS:
        yield Case(f"Transfer-Encoding {name}", _post(b"Transfer-Encoding: " + value, b"0\r\n\r\n"), statuses)
    for name, body, statuses in _CHUNKED:
        yield Case(name, _chunks(body), statuses)
    yield from (Case(*case) for case in _FRAMINGS)


REFUSED = list(_all())
