"""Reads requests of the uwsgi protocol into the request line and header block of HTTP.

A packet is modifier1 (0: WSGI), the size of the block of variables (16 bits, little-endian), modifier2, and the
block: each key and each value behind its own size of 16 bits (uwsgi-docs, "The uwsgi (lowercase!) Protocol"). A body
of CONTENT_LENGTH bytes follows. The rules of HTTP check the proxy's variables again: a request is the same by either
protocol.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final, NamedTuple
from urllib.parse import quote_from_bytes

from wsgiserv.errors import ProtocolError
from wsgiserv.http.grammar import FIELD_VALUE
from wsgiserv.http.head import HeaderBlock, HeadParser, RequestLine, without_prefix

_PREFIX_BYTES: Final = 4
_KEY: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*+")
_VALUE: Final = re.compile(FIELD_VALUE.encode("latin-1"))
_PROTOCOL: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")
# Read here, or set by the server itself; UWSGI_* tell uWSGI what to load.
_CONSUMED: Final = re.compile(
    rb"CONTENT_(?:LENGTH|TYPE)|PATH_INFO|QUERY_STRING|REQUEST_(?:METHOD|URI)|SCRIPT_NAME"
    rb"|SERVER_(?:PROTOCOL|SOFTWARE)|UWSGI_.*"
)
# Empty, these would break PEP 3333; the listener knows them as well.
_NEVER_EMPTY: Final = frozenset({b"REMOTE_ADDR", b"SERVER_NAME", b"SERVER_PORT"})
# The framing of the proxy's own client: the body comes decoded, and CONTENT_LENGTH alone tells its size.
_FRAMING: Final = frozenset({b"HTTP_CONTENT_LENGTH", b"HTTP_TRANSFER_ENCODING"})
_TRUE: Final = frozenset({b"on", b"1", b"true", b"yes"})


class Variables(NamedTuple):
    """The variables of one packet.

    Attributes:
        plain: those that are not header fields, by key.
        fields: the header fields, as lines of HTTP without CRLF.
        framed: whether the proxy's client announced a body itself.
    """

    plain: dict[bytes, bytes]
    fields: list[bytes]
    framed: bool


class UwsgiReader:
    """Reads requests with a parser of HTTP heads, under its limits. One per worker; threads may share it."""

    def __init__(self, parser: HeadParser) -> None:
        self._parser = parser

    def size(self, data: bytes) -> int:
        """Return the size of the packet that ``data`` begins, in bytes; 0 until it is known.

        Raises:
            ProtocolError: 400 no packet of a WSGI request, 431 larger than a head may be.
        """
        if data[:1] not in (b"", b"\0"):
            raise ProtocolError(
                400, "not a uwsgi request with modifier1 0; this port speaks uwsgi, for nginx's uwsgi_pass"
            )
        if len(data) < _PREFIX_BYTES:
            return 0
        size = int.from_bytes(data[1:3], "little")
        if not size:
            raise ProtocolError(400, "a uwsgi request without variables")
        if size > self._parser.limits.head:
            raise ProtocolError(431, "uwsgi variables larger than limit_request_fields times the field size")
        return _PREFIX_BYTES + size

    def line(self, variables: Variables) -> RequestLine:
        """Return the request line, never of HTTP/1.1; its ``environ`` has all variables that are not header fields.

        Raises:
            ProtocolError: 400 malformed, missing or contradictory variables, 414 too long.
        """
        plain = variables.plain
        method = plain.get(b"REQUEST_METHOD", b"")
        query, path, script = map(plain.get, (b"QUERY_STRING", b"PATH_INFO", b"SCRIPT_NAME"))
        target = plain.get(b"REQUEST_URI")
        if not target:
            if path is None:
                raise ProtocolError(400, "a uwsgi request with neither REQUEST_URI nor PATH_INFO")
            target = quote_from_bytes((script or b"") + path).encode("ascii") or b"/"
            if query:
                target += b"?" + query
        protocol = plain.get(b"SERVER_PROTOCOL") or b"HTTP/1.1"
        if _PROTOCOL.fullmatch(protocol) is None:
            raise ProtocolError(400, "malformed SERVER_PROTOCOL")
        # By HTTP's rules again: the proxy may be lenient, and its variables reach the application as one request.
        parsed = self._parser.request_line(b"%b %b HTTP/1.1" % (method, target))
        environ = {**parsed.environ, "SERVER_PROTOCOL": protocol.decode("ascii")}
        if query is not None:
            environ["QUERY_STRING"] = query.decode("latin-1")
        if path is not None:
            # Decoded by the proxy already, and after its own rewriting.
            if path and not path.startswith(b"/") and target != b"*":
                raise ProtocolError(400, "PATH_INFO does not begin with a slash")
            environ["SCRIPT_NAME"], environ["PATH_INFO"] = self._parser.split_root(path.decode("latin-1"))
        if script is not None:
            _mount(environ, script, path)
        for key, value in plain.items():
            if _CONSUMED.fullmatch(key) is None and (value or key not in _NEVER_EMPTY):
                environ[key.decode("ascii")] = value.decode("latin-1")
        if scheme := _scheme(plain):
            environ["wsgi.url_scheme"] = scheme
        # The protocol has no chunked coding, no interim responses and no second request, whatever the proxy's client
        # speaks: all that HTTP/1.1 adds.
        raw = b"%b %b %b" % (method, target, protocol)
        return replace(parsed, raw=raw, http11=False, environ=environ)

    def block(self, variables: Variables) -> HeaderBlock:
        """Return the header block.

        Raises:
            ProtocolError: as of `HeadParser.header_block`; 411 there may be a body of unknown length.
        """
        lines = list(variables.fields)
        if content_type := variables.plain.get(b"CONTENT_TYPE"):
            lines.append(b"Content-Type: " + content_type)
        if length := variables.plain.get(b"CONTENT_LENGTH"):
            lines.append(b"Content-Length: " + length)
        elif variables.framed:
            # A guess would read a body as nothing, or nothing as a body.
            raise ProtocolError(
                411, "a body without CONTENT_LENGTH; in nginx: uwsgi_param CONTENT_LENGTH $content_length;"
            )
        return self._parser.header_block(b"".join([line + b"\r\n" for line in lines]))


def read_variables(block: bytes) -> Variables:
    """Read a complete block of variables.

    Raises:
        ProtocolError: 400, a size beyond the block's end, a malformed key, a control character in a value, or a
            variable that is there twice with different values.
    """
    plain: dict[bytes, bytes] = {}
    fields: list[bytes] = []
    framed = False
    position, end = 0, len(block)
    while position < end:
        key, position = _read_string(block, position)
        value, position = _read_string(block, position)
        # No dot: a proxy must not set "wsgi.input".
        if _KEY.fullmatch(key) is None:
            raise ProtocolError(400, "malformed key of a uwsgi variable")
        if key == b"PATH_INFO":
            # Decoded: where the client sent %0A, this is a line feed, as it is in HTTP.
            if b"\0" in value:
                raise ProtocolError(400, "NUL in PATH_INFO")
        elif _VALUE.fullmatch(value) is None:
            # The value becomes a header line below: a CRLF in it would become a header of its own.
            name = key[:64].decode("ascii")
            raise ProtocolError(400, f"a control character in the uwsgi variable {name}")
        if key in _FRAMING:
            framed = framed or value not in (b"", b"0")
        elif key.startswith(b"HTTP_"):
            if key != b"HTTP_CONTENT_TYPE":  # CONTENT_TYPE's copy
                fields.append(b"%b: %b" % (key[5:].replace(b"_", b"-").title(), value))
        elif plain.setdefault(key, value) != value:
            raise ProtocolError(400, "a uwsgi variable is there twice, with different values")
    return Variables(plain, fields, framed)


def _read_string(block: bytes, position: int) -> tuple[bytes, int]:
    start = position + 2
    if start > len(block):
        raise ProtocolError(400, "the uwsgi variables end within a size")
    position = start + int.from_bytes(block[start - 2 : start], "little")
    if position > len(block):
        raise ProtocolError(400, "a uwsgi variable is longer than its packet")
    return block[start:position], position


def _mount(environ: dict[str, str], script: bytes, path: bytes | None) -> None:
    """Remove SCRIPT_NAME from a path that still has it, as whole segments; nginx leaves it on."""
    name = script.decode("latin-1").rstrip("/")
    if name and not name.startswith("/"):
        raise ProtocolError(400, "SCRIPT_NAME does not begin with a slash")
    # The proxy's own path, not the one that `root_path` has been removed from: SCRIPT_NAME replaces the root path.
    whole = environ["PATH_INFO"] if path is None else path.decode("latin-1")
    environ.update(SCRIPT_NAME=name, PATH_INFO=without_prefix(whole, name))


def _scheme(plain: dict[bytes, bytes]) -> str:
    """Return http or https by the proxy's variables, "" without them."""
    # nginx's uwsgi_params sends HTTPS only when it is on, and REQUEST_SCHEME always.
    if https := plain.get(b"HTTPS", b"").lower():
        return "https" if https in _TRUE else "http"
    scheme = plain.get(b"REQUEST_SCHEME", b"").lower()
    return scheme.decode("ascii") if scheme in (b"http", b"https") else ""
