"""The head of a request: request line and header block, from bytes to what the server acts on.

Owns: `HeadParser`, `RequestLine`, `HeaderBlock`, and the rules of RFC 9112 §2-§6 and RFC 9110 §5-§7 on them.
Must not know: sockets, where the bytes end (the caller has found the empty line), trust in the peer.

Clients repeat themselves, so both parts are kept in bounded caches under their own bytes: the request
line and the header block, and of a block that is new what its names mean. What is cached is immutable.
"""

from __future__ import annotations

import itertools
from _socket import AF_INET6, inet_pton
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from wsgiserv.errors import ProtocolError
from wsgiserv.http.grammar import DIGITS, FIELD_LINE, FIELD_LINES, HOST, ORIGIN_LINE, REQUEST_LINE
from wsgiserv.http.percent import decoded

__all__ = ["HeadLimits", "HeadParser", "HeaderBlock", "RequestLine"]

# A cache that is full is emptied: cheaper per request than to keep an order of use. Only one of some new entries is
# kept: what comes again and again gets in soon enough, and of a flood of requests that are all different most leave
# their memory to the next at once, while the processor has it at hand. Entries above these sizes are not kept, which
# bounds the memory: 1024 * (4 kB + about as much again once parsed) per cache.
_CACHE_ENTRIES: Final = 1024
_KEPT_OF: Final = 64
_LONGEST_BLOCK_KEPT: Final = 4096
_LONGEST_LINE_KEPT: Final = 1024
_LONGEST_NAME_KEPT: Final = 64

# RFC 9110 §5.3 allows repetition only for list fields. Of a field with a single value, two copies that
# differ mean that two readers may believe different ones: refused.
_SINGLE: Final = frozenset(
    {
        "HTTP_AUTHORIZATION",
        "CONTENT_TYPE",
        "HTTP_FROM",
        "HTTP_IF_MODIFIED_SINCE",
        "HTTP_IF_UNMODIFIED_SINCE",
        "HTTP_MAX_FORWARDS",
        "HTTP_PROXY_AUTHORIZATION",
        "HTTP_REFERER",
        "HTTP_USER_AGENT",
    }
)

# What proxies say of their clients, besides the names in secure_scheme_headers.
_CLAIMS: Final = frozenset(
    {
        "HTTP_FORWARDED",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_X_FORWARDED_HOST",
        "HTTP_X_FORWARDED_PORT",
        "HTTP_X_FORWARDED_PREFIX",
        "HTTP_X_FORWARDED_PROTO",
        "HTTP_X_FORWARDED_PROTOCOL",
        "HTTP_X_FORWARDED_SSL",
        "HTTP_X_REQUEST_ID",
    }
)

_CHUNKED: Final = -1

# What a field name means: its CGI key, and how the server itself reads it, if it does.
_Meaning: TypeAlias = "tuple[str, Callable[[HeaderBlock, str, str], None] | None]"


@dataclass(frozen=True, kw_only=True)
class HeadLimits:
    """What a head may be, from the settings of the same names.

    Attributes:
        line: longest request line in bytes, without its CRLF (``limit_request_line``).
        fields: most header lines (``limit_request_fields``).
        field_size: longest header line in bytes, without its CRLF (``limit_request_field_size``).
        header_map: ``drop``, ``refuse`` or ``dangerous``: names with an underscore (``header_map``).
        forwarder_headers: names with an underscore, upper case, that a trusted peer may set
            (``forwarder_headers``); ``*`` is all of them.
        secure_scheme_headers: upper-case field names and the values that mean https
            (``secure_scheme_headers``).
        root_path: the prefix that is ``SCRIPT_NAME`` (``root_path``), without a slash at its end.
    """

    line: int = 8190
    fields: int = 100
    field_size: int = 8190
    header_map: str = "drop"
    forwarder_headers: frozenset[str] = frozenset()
    secure_scheme_headers: tuple[tuple[str, str], ...] = ()
    root_path: str = ""

    @property
    def head(self) -> int:
        """The longest head in bytes."""
        return self.line + self.fields * (self.field_size + 2) + 4


class RequestLine:
    """A valid request line.

    Attributes:
        raw: the line's bytes, without its CRLF.
        method: the method, case kept (methods are case-sensitive, RFC 9110 §9.1).
        http11: whether the client speaks HTTP/1.1 or a later 1.x.
        authority: the authority of an absolute-form or authority-form target; it wins over Host
            (RFC 9112 §3.2.2); None for the other forms.
        environ: the CGI keys that the line alone decides.
    """

    __slots__ = ("authority", "environ", "http11", "is_connect", "is_head", "method", "raw")

    def __init__(
        self, raw: bytes, method: str, http11: bool, authority: str | None, environ: dict[str, str]
    ) -> None:
        self.raw = raw
        self.method = method
        self.http11 = http11
        self.authority = authority
        self.environ = environ
        self.is_head = method == "HEAD"
        self.is_connect = method == "CONNECT"


class HeaderBlock:
    """A valid header block and what the server itself reads from it. Immutable once made.

    Attributes:
        environ: the CGI keys of the fields.
        content_length: the body's length in bytes; -1 when the body is chunked.
        chunked: whether Transfer-Encoding is ``chunked``.
        has_host: whether there is a Host field.
        close: whether Connection lists ``close``.
        keep_alive: whether Connection lists ``keep-alive``.
        expect_continue: whether Expect is ``100-continue``.
        plain: no body, no Expect, no Connection field: the usual GET.
        request_id: the value of X-Request-Id where it is usable as an id; of a trusted peer only.
        secure: what the secure scheme headers say: True https, False not https, None absent; of a
            trusted peer only.
        contradictory: whether two secure scheme headers say different things.
        forwarder: the fields of ``forwarder_headers``, names in upper case; of a trusted peer only.
        claims: the keys of ``environ`` in which a proxy speaks for its client; of a trusted peer only.
        unusual: whether anything here changes the environ of a request (`wsgiserv.wsgi.environ.adjust`).
        raw: the block's bytes.
    """

    __slots__ = (
        "chunked",
        "claims",
        "close",
        "content_length",
        "contradictory",
        "environ",
        "expect_continue",
        "forwarder",
        "has_host",
        "keep_alive",
        "plain",
        "raw",
        "request_id",
        "secure",
        "unusual",
    )

    environ: dict[str, str]
    forwarder: dict[str, str]

    def __init__(self, raw: bytes) -> None:
        self.environ = {}
        self.content_length = 0
        self.chunked = False
        self.has_host = False
        self.close = False
        self.keep_alive = False
        self.expect_continue = False
        self.plain = False
        self.request_id: str | None = None
        self.secure: bool | None = None
        self.contradictory = False
        self.forwarder = {}
        self.claims: tuple[str, ...] = ()
        self.unusual = False
        self.raw = raw

    def fields(self) -> list[tuple[str, str]]:
        """Return the lines as (name, value), in order, as they came; for hooks."""
        found = []
        for line in self.raw.decode("latin-1").split("\r\n")[:-1]:
            name, _, value = line.partition(":")
            found.append((name, value.strip(" \t")))
        return found


class HeadParser:
    """Parses heads under fixed limits. One per worker; its caches are shared by all connections.

    Threads may use one parser at once: the caches are plain dictionaries, and to lose a race costs a
    second parse.
    """

    def __init__(self, limits: HeadLimits) -> None:
        self.limits = limits
        self.lines: dict[bytes, RequestLine] = {}
        self.blocks: dict[bytes, HeaderBlock] = {}
        self._names: dict[str, _Meaning] = {}
        self._new_lines = itertools.count(1)
        self._new_blocks = itertools.count(1)
        self._scheme_keys = {
            "HTTP_" + name.replace("-", "_"): value for name, value in limits.secure_scheme_headers
        }
        self._claims = _CLAIMS.union(self._scheme_keys)
        self._safe_size = limits.field_size  # no line of a block up to this size can be too long
        self._most = limits.fields

    def request_line(self, raw: bytes) -> RequestLine:
        """Parse a request line (RFC 9112 §3), or take it from the cache.

        Args:
            raw: the line without its CRLF.

        Raises:
            ProtocolError: 400 malformed, 414 too long, 505 a major version that is not 1.
        """
        return self.lines.get(raw) or self.new_line(raw)

    def new_line(self, raw: bytes) -> RequestLine:
        """Parse a request line that is not in the cache; see `request_line`."""
        if len(raw) > self.limits.line:
            raise ProtocolError(414, "request line longer than limit_request_line")
        match = ORIGIN_LINE.fullmatch(raw.decode("latin-1"))
        authority = None
        if match is not None:
            method, target, path, query, minor = match.groups("")
        if match is None or method == "CONNECT":
            method, target, path, query, authority, minor = _unusual_line(raw)
        # A minor version above ours is answered as ours (RFC 9110 §2.5).
        http11 = minor != "0"
        if "%" in path:
            # Decoded once, and as latin-1, whatever the bytes mean (PEP 3333, "Unicode Issues").
            path = decoded(path)
        script_name = self.limits.root_path
        if script_name:
            script_name, path = self.split_root(path)
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": script_name,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "RAW_URI": target,
            "SERVER_PROTOCOL": "HTTP/1.1" if http11 else "HTTP/1.0",
        }
        line = RequestLine(raw, method, http11, authority, environ)
        if next(self._new_lines) % _KEPT_OF == 0 and len(raw) <= _LONGEST_LINE_KEPT:
            if len(self.lines) >= _CACHE_ENTRIES:
                self.lines.clear()
            self.lines[raw] = line
        return line

    def split_root(self, path: str) -> tuple[str, str]:
        """Return SCRIPT_NAME and PATH_INFO: the root path is taken off a path that has it, as whole segments."""
        root = self.limits.root_path
        if root and path.startswith(root) and (len(path) == len(root) or path[len(root)] == "/"):
            return root, path[len(root) :]
        return root, path

    def header_block(self, raw: bytes) -> HeaderBlock:
        """Parse a header block (RFC 9112 §5), or take it from the cache.

        Args:
            raw: the header lines, each with its CRLF, without the empty line that ends them.

        Raises:
            ProtocolError: 400 malformed or contradictory, 417 an unknown expectation, 431 too many or
                too large, 501 an unknown transfer coding.
        """
        return self.blocks.get(raw) or self.new_block(raw)

    def new_block(self, raw: bytes) -> HeaderBlock:
        """Parse a header block that is not in the cache; see `header_block`."""
        fields = FIELD_LINES.findall(raw.decode("latin-1"))
        # Each match ends with the one LF that it has: as many as there are means that nothing was left out.
        if len(raw) > self._safe_size or len(fields) > self._most or len(fields) != raw.count(b"\n"):
            self._check_lines(raw)
        names = self._names
        block = HeaderBlock(raw)
        environ = block.environ
        for name, value in fields:
            key, read = names.get(name) or self._classify_header(name)
            # Optional white space is SP and HTAB only (RFC 9110 §5.6.3), so never a plain rstrip().
            value = value.rstrip(" \t")
            if read is not None:
                read(block, key, value)
            elif key not in environ:
                environ[key] = value
            else:
                environ[key] = _join(key, environ[key], value)
        if block.chunked:
            if "CONTENT_LENGTH" in environ:
                # RFC 9112 §6.1: the classic request smuggling. Never a fall-back to either length.
                raise ProtocolError(400, "both Content-Length and Transfer-Encoding")
            block.unusual = True
        if block.claims:
            self._read_scheme(block)
            block.unusual = True
        if block.forwarder:
            block.unusual = True
        block.plain = not (block.content_length or block.expect_continue or block.close or block.keep_alive)
        if next(self._new_blocks) % _KEPT_OF == 0 and len(raw) <= _LONGEST_BLOCK_KEPT:
            if len(self.blocks) >= _CACHE_ENTRIES:
                self.blocks.clear()
            self.blocks[raw] = block
        return block

    def _check_lines(self, raw: bytes) -> None:
        """Look at a block line by line: it is malformed, or some limit is near. Raises ProtocolError."""
        limits = self.limits
        lines = raw.split(b"\r\n")
        if lines.pop():
            raise ProtocolError(400, "a header field does not end with CRLF")
        if len(lines) > limits.fields:
            raise ProtocolError(431, "more header fields than limit_request_fields")
        for line in lines:
            if len(line) > limits.field_size:
                raise ProtocolError(431, "header field larger than limit_request_field_size")
            if FIELD_LINE.fullmatch(line) is None:
                raise _header_error(line)

    def _classify_header(self, name: str) -> _Meaning:
        """Say what a field name means."""
        upper = name.upper()
        if "_" in upper:
            meaning = self._underscored(upper)
        elif upper == "CONTENT-TYPE":
            meaning = ("CONTENT_TYPE", None)
        else:
            key = "HTTP_" + upper.replace("-", "_")
            meaning = (key, _OBEYED.get(key) or (_read_claim if key in self._claims else None))
        if len(name) <= _LONGEST_NAME_KEPT:
            if len(self._names) >= _CACHE_ENTRIES:
                self._names.clear()
            self._names[name] = meaning
        return meaning

    def _underscored(self, upper: str) -> _Meaning:
        """A name with an underscore would shadow its dashed twin in the environ (puma CVE-2024-45614)."""
        key = "HTTP_" + upper.replace("-", "_")
        allowed = self.limits.forwarder_headers
        if (upper in allowed or "*" in allowed) and key not in _OBEYED:
            return upper, _read_forwarder
        if self.limits.header_map == "refuse":
            raise ProtocolError(400, "header field name with an underscore")
        # Even where they are let in, "Transfer_Encoding" frames nothing: a proxy reads no framing in it.
        if self.limits.header_map == "dangerous" and key not in _OBEYED:
            return key, _read_claim if key in self._claims else None
        return upper, _drop

    def _read_scheme(self, block: HeaderBlock) -> None:
        for key, expected in self._scheme_keys.items():
            value = block.environ.get(key)
            if value is None:
                continue
            secure = value.lower() == expected.lower()
            if block.secure is not None and block.secure != secure:
                block.contradictory = True
            block.secure = secure


def _header_error(line: bytes) -> ProtocolError:
    """Say what is wrong with a line that is no field line. Off the usual way."""
    if line[:1] in (b" ", b"\t"):
        return ProtocolError(400, "obsolete line folding in a header field")
    name, colon, _ = line.partition(b":")
    if colon and name.rstrip(b" \t") != name:
        return ProtocolError(400, "white space between a header field's name and its colon")
    return ProtocolError(400, "malformed header field")


def _unusual_line(raw: bytes) -> tuple[str, str, str, str, str | None, str]:
    """Return method, target, path, query, authority and minor version of what is no usual request line."""
    match = REQUEST_LINE.fullmatch(raw)
    if match is None:
        raise ProtocolError(400, "malformed request line")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise ProtocolError(505, "HTTP version not supported; this server speaks HTTP/1.1")
    path, query, authority = _split_target(method, target)
    return (
        method.decode("ascii"),
        target.decode("ascii"),
        path.decode("ascii"),
        query.decode("ascii"),
        authority,
        minor.decode("ascii"),
    )


def _split_target(method: bytes, target: bytes) -> tuple[bytes, bytes, str | None]:
    """Split a request target into path, query and authority (RFC 9112 §3.2).

    A target that begins with ``//`` is a path like any other: it is never taken for an authority.
    """
    if method == b"CONNECT":
        # authority-form: uri-host ":" port, and nothing else goes with CONNECT.
        if not _is_authority(target) or not _has_port(target):
            raise ProtocolError(400, "CONNECT needs host:port as its target")
        return b"", b"", target.decode("ascii")
    if target.startswith(b"/"):
        path, _, query = target.partition(b"?")
        return path, query, None
    if target == b"*":
        if method != b"OPTIONS":
            raise ProtocolError(400, "the target * goes with OPTIONS only")
        return b"*", b"", None
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise ProtocolError(400, "malformed request target")
    found = [position for position in (rest.find(b"/"), rest.find(b"?")) if position >= 0]
    cut = min(found, default=len(rest))
    authority, rest = rest[:cut], rest[cut:]
    # An http URI with an empty host is invalid (RFC 9110 §4.2.1); HOST refuses userinfo (§4.2.4).
    if not authority or authority.startswith(b":") or not _is_authority(authority):
        raise ProtocolError(400, "malformed authority in the request target")
    path, _, query = rest.partition(b"?")
    if not path:
        path = b"*" if method == b"OPTIONS" and not query else b"/"
    return path, query, authority.decode("ascii")


@lru_cache(maxsize=256)
def _is_host(value: str) -> bool:
    return _is_authority(value.encode("latin-1"))


def _is_authority(raw: bytes) -> bool:
    """Whether ``raw`` is a host with or without a port; the host may be empty (RFC 9110 §7.2)."""
    if HOST.fullmatch(raw) is None:
        return False
    if raw[:1] != b"[" or raw[1:2] in b"vV":
        return True
    # RFC 3986 §3.2.2, IPv6address: how many groups, and one gap at most, is no matter for an expression.
    try:
        inet_pton(AF_INET6, raw[1 : raw.index(b"]")].decode("ascii"))
    except (OSError, ValueError):
        return False
    return True


def _has_port(authority: bytes) -> bool:
    host, colon, port = authority.rpartition(b":")
    return bool(host and colon and DIGITS.fullmatch(port))


def _join(key: str, first: str, second: str) -> str:
    """Combine a repeated field (RFC 9110 §5.3; Cookie with "; ", RFC 6265bis §5.8)."""
    if key in _SINGLE:
        if first != second:
            raise ProtocolError(400, "repeated header field with different values")
        return first
    return f"{first}; {second}" if key == "HTTP_COOKIE" else f"{first}, {second}"


def _members(value: str) -> list[str]:
    return [member.strip(" \t").lower() for member in value.split(",")]


def _read_host(block: HeaderBlock, key: str, value: str) -> None:
    # RFC 9112 §3.2: more than one Host, or an invalid one, is answered with 400.
    if block.has_host:
        raise ProtocolError(400, "more than one Host header field")
    if not _is_host(value):
        raise ProtocolError(400, "malformed Host header field")
    block.has_host = True
    block.environ["HTTP_HOST"] = value


def _read_content_length(block: HeaderBlock, key: str, value: str) -> None:
    # RFC 9110 §8.6: 1*DIGIT. Checked as ASCII digits before int(), which would take "+1", "1_0" or "²",
    # and for its length: int() refuses 5,000 digits with an error of its own.
    if DIGITS.fullmatch(value.encode("latin-1")) is None or len(value) > 19:
        raise ProtocolError(400, "malformed Content-Length")
    length = int(value)
    environ = block.environ
    if "CONTENT_LENGTH" in environ and block.content_length != length:
        raise ProtocolError(400, "different Content-Length header fields")
    block.content_length = length
    environ["CONTENT_LENGTH"] = value


def _read_transfer_encoding(block: HeaderBlock, key: str, value: str) -> None:
    # Exactly one "chunked" in all Transfer-Encoding fields together, or refused (gunicorn CVE-2024-1135).
    codings = _members(value)
    if block.chunked or not all(codings):
        raise ProtocolError(400, "malformed Transfer-Encoding")
    if codings == ["chunked"]:
        block.chunked = True
        block.content_length = _CHUNKED
        block.environ["HTTP_TRANSFER_ENCODING"] = value
    elif "chunked" in codings[:-1]:
        raise ProtocolError(400, "chunked is not the last transfer coding, or not the only one")
    else:
        raise ProtocolError(501, "transfer coding not supported; this server decodes chunked")


def _read_connection(block: HeaderBlock, key: str, value: str) -> None:
    for member in _members(value):
        if member == "close":
            block.close = True
        elif member == "keep-alive":
            block.keep_alive = True
    environ = block.environ
    seen = environ.get("HTTP_CONNECTION")
    environ["HTTP_CONNECTION"] = value if seen is None else f"{seen}, {value}"


def _read_expect(block: HeaderBlock, key: str, value: str) -> None:
    # RFC 9110 §10.1.1: 100-continue is the only expectation, its name is case-insensitive.
    if value.lower() != "100-continue":
        raise ProtocolError(417, "unknown expectation; only 100-continue is known")
    block.expect_continue = True
    block.environ["HTTP_EXPECT"] = value


def _read_forwarder(block: HeaderBlock, key: str, value: str) -> None:
    if key in block.forwarder:
        raise ProtocolError(400, "repeated forwarder header")
    block.forwarder[key] = value


def _read_claim(block: HeaderBlock, key: str, value: str) -> None:
    environ = block.environ
    if key in environ:
        value = _join(key, environ[key], value)
    else:
        block.claims += (key,)
    environ[key] = value
    if key == "HTTP_X_REQUEST_ID":
        block.request_id = _usable_id(value)


def _drop(block: HeaderBlock, key: str, value: str) -> None:
    """A field that is not mapped into the environ."""


# The fields that the server itself obeys.
_OBEYED: Final = {
    "HTTP_HOST": _read_host,
    "HTTP_CONTENT_LENGTH": _read_content_length,
    "HTTP_TRANSFER_ENCODING": _read_transfer_encoding,
    "HTTP_CONNECTION": _read_connection,
    "HTTP_EXPECT": _read_expect,
}


def _usable_id(value: str) -> str | None:
    """An id goes into logs and headers: printable ASCII without spaces, of sane length, or it is no id."""
    if not 0 < len(value) <= 128:
        return None
    return value if value.isascii() and value.isprintable() and " " not in value else None
