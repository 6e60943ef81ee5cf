"""Parses the head of a request: the request line and the header block (RFC 9112 §2-§6, RFC 9110 §5-§7).

The caller has found the empty line that ends the head. Clients repeat themselves, so both parts are kept in bounded
caches under their own bytes, and so is the meaning of each field name. A cached object is immutable.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from wsgiserv.errors import ProtocolError
from wsgiserv.http.grammar import (
    ABSOLUTE_TARGET,
    DIGITS,
    FIELD_LINE,
    FIELD_LINES,
    HOST,
    ORIGIN_LINE,
    REQUEST_LINE,
    parse_content_length,
)

# A full cache is emptied: cheaper per request than to keep an order of use. One of 64 new entries is kept: what comes
# again and again gets in soon enough, and of a flood of requests that all differ most leave their memory to the next
# at once, while the processor has it at hand. Larger entries are not kept, which bounds the memory:
# 1024 * (4 kB + about as much again once parsed) per cache.
_CACHE_ENTRIES: Final = 1024
_KEPT_OF: Final = 64
_LONGEST_BLOCK_KEPT: Final = 4096
_LONGEST_LINE_KEPT: Final = 1024
_LONGEST_FIELD_KEPT: Final = 256
_LONGEST_NAME_KEPT: Final = 64
# So many blocks are read as a whole, without a look for known lines, behind one of which most lines were new.
_STRANGERS: Final = 16

# RFC 9110 §5.3 allows repetition only for list fields. Of a field with a single value, two copies that
# differ mean that two readers may believe different ones: refused.
_SINGLE: Final = frozenset({
    "HTTP_AUTHORIZATION", "CONTENT_TYPE", "HTTP_FROM", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE",
    "HTTP_MAX_FORWARDS", "HTTP_PROXY_AUTHORIZATION", "HTTP_REFERER", "HTTP_USER_AGENT",
})  # fmt: skip

# The headers in which proxies describe their clients, besides the names in secure_scheme_headers.
_CLAIMS: Final = frozenset({
    "HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT",
    "HTTP_X_FORWARDED_PREFIX", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_PROTOCOL", "HTTP_X_FORWARDED_SSL",
    "HTTP_X_REAL_IP", "HTTP_X_REQUEST_ID",
})  # fmt: skip

_CHUNKED: Final = -1

# The CGI key of a field name, and the function that reads the field for the server itself, if any.
_Meaning: TypeAlias = "tuple[str, Callable[[HeaderBlock, str, str], None] | None]"


@dataclass(frozen=True, kw_only=True)
class HeadLimits:
    """Limits of a head, from the settings of the same names.

    Attributes:
        line: longest request line in bytes, without its CRLF (``limit_request_line``).
        fields: most header lines (``limit_request_fields``).
        field_size: longest header line in bytes, without its CRLF (``limit_request_field_size``).
        header_map: ``drop``, ``refuse`` or ``dangerous``: names with an underscore (``header_map``).
        forwarder_headers: names with an underscore, upper case, that a trusted peer may set
            (``forwarder_headers``); ``*`` allows all of them.
        secure_scheme_headers: upper-case field names and the values that mean https
            (``secure_scheme_headers``).
        root_path: the prefix that becomes ``SCRIPT_NAME`` (``root_path``), without a slash at its end.
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


@dataclass(slots=True, eq=False)
class RequestLine:
    """A valid request line.

    Attributes:
        raw: the line's bytes, without its CRLF.
        method: the method, case kept (methods are case-sensitive, RFC 9110 §9.1).
        http11: whether the client speaks HTTP/1.1 or a later 1.x.
        authority: the authority of an absolute-form or authority-form target; it overrides Host
            (RFC 9112 §3.2.2); None for the other forms.
        environ: the CGI keys that depend on the line alone.
        is_head, is_connect: whether the method is HEAD or CONNECT.
    """

    raw: bytes
    method: str
    http11: bool
    authority: str | None
    environ: dict[str, str]
    is_head: bool
    is_connect: bool


@dataclass(slots=True, eq=False)
class HeaderBlock:
    """A valid header block. Immutable once `HeadParser` has returned it.

    Attributes:
        raw: the block's bytes.
        environ: the CGI keys of the fields.
        content_length: the body's length in bytes; -1 when the body is chunked.
        chunked: whether Transfer-Encoding is ``chunked``.
        has_host: whether there is a Host field.
        close: whether Connection lists ``close``.
        keep_alive: whether Connection lists ``keep-alive``.
        upgrades: whether the client wants to go on with another protocol: it names one in Upgrade, and Connection lists
            ``upgrade``.
        expect_continue: whether Expect is ``100-continue``.
        plain: no body, no Expect, no Connection field: the usual GET.
        request_id: the value of X-Request-Id, if it is usable as an id; for trusted peers only.
        secure: True when the secure scheme headers mean https, False when they mean another scheme, None without
            them; for trusted peers only.
        contradictory: whether two secure scheme headers disagree.
        forwarder: the fields of ``forwarder_headers``, names in upper case; for trusted peers only.
        claims: the keys of ``environ`` in which a proxy describes its client; nothing is read from an untrusted
            peer's.
        unusual: whether a field here may change the environ of a request (`wsgiserv.wsgi.environ.adjust`).
        only_claims: such fields are claims alone, which a trusted peer's environ keeps as they are.
    """

    raw: bytes
    environ: dict[str, str] = field(default_factory=dict)
    content_length: int = 0
    chunked: bool = False
    has_host: bool = False
    close: bool = False
    keep_alive: bool = False
    upgrades: bool = False
    expect_continue: bool = False
    plain: bool = False
    request_id: str | None = None
    secure: bool | None = None
    contradictory: bool = False
    forwarder: dict[str, str] = field(default_factory=dict)
    claims: tuple[str, ...] = ()
    unusual: bool = False
    only_claims: bool = False

    def fields(self) -> list[tuple[str, str]]:
        """Return the lines as (name, value), in order, as they came; for hooks."""
        lines = [line.partition(":") for line in self.raw.decode("latin-1").split("\r\n")[:-1]]
        return [(name, value.strip(" \t")) for name, _, value in lines]


class HeadParser:
    """Parses heads under fixed limits. One per worker; all connections share its caches.

    Threads may use one parser at once: the caches are plain dictionaries, and a lost race costs a second parse.
    """

    def __init__(self, limits: HeadLimits) -> None:
        self.limits = limits
        self.lines: dict[bytes, RequestLine] = {}
        self.blocks: dict[bytes, HeaderBlock] = {}
        # Of fields that mean nothing to the server itself: the CGI key and the value, by line.
        self._fields: dict[bytes, tuple[str, str]] = {}
        self._strangers = 0
        self._names: dict[str, _Meaning] = {}
        self._new_lines = itertools.count(1)
        self._new_blocks = itertools.count(1)
        self._scheme_keys = {
            "HTTP_" + name.replace("-", "_"): value.lower() for name, value in limits.secure_scheme_headers
        }
        self._claims = _CLAIMS.union(self._scheme_keys)
        # Read for each new block; `limits.x` would be two look-ups.
        self._safe_size = limits.field_size  # no line of a block up to this size can be too long
        self._most = limits.fields

    def request_line(self, raw: bytes) -> RequestLine:
        """Parse a request line (RFC 9112 §3), or take it from the cache.

        Args:
            raw: the line without its CRLF.

        Raises:
            ProtocolError: 400 malformed, 414 too long, 505 a major version other than 1.
        """
        return self.lines.get(raw) or self.new_line(raw)

    def new_line(self, raw: bytes) -> RequestLine:
        """Parse a request line that is not in the cache; see `request_line`."""
        if len(raw) > self.limits.line:
            raise ProtocolError(414, "request line longer than limit_request_line")
        text = raw.decode("latin-1")
        match = ORIGIN_LINE.fullmatch(text)
        authority = None
        if match is not None:
            method, target, path, query, minor = match.groups("")
        if match is None or method == "CONNECT":  # "CONNECT /" matches, and is malformed
            method, target, path, query, authority, minor = _unusual_line(text)
        # A minor version above ours is answered as ours (RFC 9110 §2.5).
        http11 = minor != "0"
        if "%" in path:
            # Decoded once: a second pass would turn %252e into a dot behind the proxy's path rules. As latin-1,
            # whatever the bytes mean (PEP 3333, "Unicode Issues").
            path = unquote_to_bytes(path).decode("latin-1")
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
        line = RequestLine(raw, method, http11, authority, environ, method == "HEAD", method == "CONNECT")
        if next(self._new_lines) % _KEPT_OF == 0 and len(raw) <= _LONGEST_LINE_KEPT:
            _keep(self.lines, raw, line)
        return line

    def split_root(self, path: str) -> tuple[str, str]:
        """Return SCRIPT_NAME and PATH_INFO: the root path is removed from a path that has it, as whole segments."""
        root = self.limits.root_path
        return root, without_prefix(path, root)

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
        if self._strangers:
            self._strangers -= 1
            block = None
        else:
            block = self._of_known_lines(raw)
        if block is None:
            block = self._of_new_lines(raw)
        if block.unusual:
            self._check_unusual(block)
        block.plain = not (block.content_length or block.expect_continue or block.close or block.keep_alive)
        if next(self._new_blocks) % _KEPT_OF == 0 and len(raw) <= _LONGEST_BLOCK_KEPT:
            _keep(self.blocks, raw, block)
            self._keep_lines(raw)
        return block

    def _of_known_lines(self, raw: bytes) -> HeaderBlock | None:
        """Parse a block most lines of which are known; None for any other. Raises ProtocolError."""
        # Most blocks are new for a line or two (an id, a cookie). Nothing is decided here that `_of_new_lines` would
        # decide otherwise: known lines are valid, mean nothing to the server, and so cause no error of their own.
        lines = raw.split(b"\r\n")
        get = self._fields.get
        environ: dict[str, str] = {}
        new = []
        for line in lines:
            pair = get(line)
            if pair is None:
                new.append(line)
            else:
                environ[pair[0]] = pair[1]
        if 2 * len(new) > len(lines):
            self._strangers = _STRANGERS  # one pass over all costs less
            return None
        text = b"\r\n".join(new)
        fields = FIELD_LINES.findall(text.decode("latin-1"))
        is_malformed = lines[-1] or len(fields) != text.count(b"\n") or len(raw) > self._safe_size
        # The order of repeated fields counts.
        is_repeated = len(environ) + len(new) != len(lines)
        if is_malformed or is_repeated or len(lines) > self._most:
            return None
        block = HeaderBlock(raw, environ)
        for name, value in fields:
            key, read = self._names.get(name) or self._classify_header(name)
            if key in environ:
                return None
            if read is not None:
                read(block, key, value.rstrip(" \t"))
            else:
                environ[key] = value.rstrip(" \t")
        return block

    def _keep_lines(self, raw: bytes) -> None:
        """Keep the lines of a valid block that mean nothing to the server itself."""
        for line in raw.split(b"\r\n")[:-1]:
            name, _, value = line.decode("latin-1").partition(":")
            key, read = self._names.get(name) or self._classify_header(name)
            if read is None and len(line) <= _LONGEST_FIELD_KEPT:
                _keep(self._fields, line, (key, value.strip(" \t")))

    def _of_new_lines(self, raw: bytes) -> HeaderBlock:
        """Parse a block in one pass over all its lines. Raises ProtocolError."""
        fields = FIELD_LINES.findall(raw.decode("latin-1"))
        # Each match ends with its one LF: as many matches as LFs means that no line was skipped.
        if len(raw) > self._safe_size or len(fields) > self._most or len(fields) != raw.count(b"\n"):
            self._check_lines(raw)
        names = self._names
        block = HeaderBlock(raw)
        environ = block.environ
        for name, value in fields:
            key, read = names.get(name) or self._classify_header(name)
            # Optional white space is SP and HTAB only (RFC 9110 §5.6.3), so never a plain rstrip(): it would also
            # take off U+0085 and U+00A0, which are bytes of the value.
            value = value.rstrip(" \t")
            if read is not None:
                read(block, key, value)
            elif key not in environ:
                environ[key] = value
            else:
                environ[key] = _join(key, environ[key], value)
        return block

    def _check_lines(self, raw: bytes) -> None:
        """Check a block line by line: it is malformed, or near a limit. Raises ProtocolError."""
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
        """Return the meaning of a field name, and keep it."""
        upper = name.upper()
        if "_" in upper:
            meaning = self._underscored(upper)
        elif upper == "CONTENT-TYPE":
            meaning = ("CONTENT_TYPE", None)
        else:
            key = "HTTP_" + upper.replace("-", "_")
            meaning = (key, _OBEYED.get(key) or (_read_claim if key in self._claims else None))
        if len(name) <= _LONGEST_NAME_KEPT:
            _keep(self._names, name, meaning)
        return meaning

    def _underscored(self, upper: str) -> _Meaning:
        """Return the meaning of a name with an underscore. Raises ProtocolError where ``header_map`` refuses it."""
        # It would shadow its dashed twin in the environ: X_Forwarded_For passes a proxy that replaces
        # X-Forwarded-For (puma CVE-2024-45614).
        key = "HTTP_" + upper.replace("-", "_")
        allowed = self.limits.forwarder_headers
        if (upper in allowed or "*" in allowed) and key not in _OBEYED:
            return upper, _read_forwarder
        if self.limits.header_map == "refuse":
            raise ProtocolError(400, "header field name with an underscore")
        # Even with "dangerous", "Transfer_Encoding" frames nothing: a proxy reads no framing in it.
        if self.limits.header_map == "dangerous" and key not in _OBEYED:
            return key, _read_claim if key in self._claims else None
        return upper, _drop

    def _check_unusual(self, block: HeaderBlock) -> None:
        """Check framing fields against each other; read the secure scheme headers. Raises ProtocolError."""
        environ = block.environ
        if block.chunked and "CONTENT_LENGTH" in environ:
            # RFC 9112 §6.1: the classic request smuggling. Never a fall-back to either length.
            raise ProtocolError(400, "both Content-Length and Transfer-Encoding")
        for key, expected in self._scheme_keys.items():
            if key in environ:
                secure = environ[key].lower() == expected
                block.contradictory = block.contradictory or block.secure is (not secure)
                block.secure = secure
        block.upgrades = block.upgrades and bool(environ.get("HTTP_UPGRADE"))
        block.only_claims = not (
            block.chunked or block.upgrades or block.contradictory or block.secure or block.forwarder
        )


def _keep(cache: dict[Any, Any], key: object, value: object) -> None:
    if len(cache) >= _CACHE_ENTRIES:
        cache.clear()
    cache[key] = value


def without_prefix(path: str, prefix: str) -> str:
    """Remove ``prefix`` from a path that begins with it, as whole segments: ``/shop`` is not part of ``/shopping``."""
    return path[len(prefix) :] if f"{path}/".startswith(f"{prefix}/") else path


def _header_error(line: bytes) -> ProtocolError:
    """Return the error for a line that is no field line: the most helpful reason that fits."""
    if line[:1] in (b" ", b"\t"):
        # RFC 9112 §5.2: a server must reject obs-fold or replace it; a proxy that does neither sees another field.
        return ProtocolError(400, "obsolete line folding in a header field")
    name, colon, _ = line.partition(b":")
    if colon and name.rstrip(b" \t") != name:
        # RFC 9112 §5.1: must be refused with 400; "Content-Length : 5" has been read and ignored side by side.
        return ProtocolError(400, "white space between a header field's name and its colon")
    return ProtocolError(400, "malformed header field")


def _unusual_line(text: str) -> tuple[str, str, str, str, str | None, str]:
    """Return method, target, path, query, authority and minor version of an unusual request line."""
    match = REQUEST_LINE.fullmatch(text)
    if match is None:
        raise ProtocolError(400, "malformed request line")
    method, target, major, minor = match.groups()
    if major != "1":
        raise ProtocolError(505, "HTTP version not supported; this server speaks HTTP/1.1")
    return method, target, *_split_target(method, target), minor


def _split_target(method: str, target: str) -> tuple[str, str, str | None]:
    """Split a request target into path, query and authority (RFC 9112 §3.2)."""
    if method == "CONNECT":
        # §3.2.3, authority-form = uri-host ":" port. CONNECT takes no other form, and here no port may be missing.
        host, colon, port = target.rpartition(":")
        if not (host and colon and DIGITS.fullmatch(port) and _is_authority(target)):
            raise ProtocolError(400, "CONNECT needs host:port as its target")
        return "", "", target
    if target.startswith("/"):
        # §3.2.1, origin-form. "//host/x" is a path like any other: read as an authority, it would move the request.
        path, _, query = target.partition("?")
        return path, query, None
    if target == "*":
        # §3.2.4, asterisk-form: only for a server-wide OPTIONS.
        if method != "OPTIONS":
            raise ProtocolError(400, "the target * goes with OPTIONS only")
        return "*", "", None
    match = ABSOLUTE_TARGET.fullmatch(target)
    if match is None:
        raise ProtocolError(400, "malformed request target")
    authority, path, query = match.groups("")
    # An http URI with an empty host is invalid (RFC 9110 §4.2.1); HOST refuses userinfo (§4.2.4).
    if not authority or authority.startswith(":") or not _is_authority(authority):
        raise ProtocolError(400, "malformed authority in the request target")
    # §3.2.4: a proxy forwards OPTIONS without a path as "*".
    return path or ("*" if method == "OPTIONS" and not query else "/"), query, authority


@lru_cache(maxsize=256)
def _is_authority(text: str) -> bool:
    """Whether ``text`` is a host with or without a port; the host may be empty (RFC 9110 §7.2)."""
    if HOST.fullmatch(text) is None:
        return False
    # RFC 3986 §3.2.2, IPv6address: the number of groups, with one gap at most, is beyond an expression.
    if text[:1] == "[" and text[1] not in "vV":
        try:
            IPv6Address(text[1 : text.index("]")])
        except AddressValueError:
            return False
    return True


def _join(key: str, first: str | None, second: str) -> str:
    """Combine a repeated field (RFC 9110 §5.3; Cookie with "; ", RFC 6265bis §5.8)."""
    if first is None:
        return second
    if key in _SINGLE:
        if first != second:
            raise ProtocolError(400, "repeated header field with different values")
        return first
    return f"{first}; {second}" if key == "HTTP_COOKIE" else f"{first}, {second}"


def _members(value: str) -> list[str]:
    # Blanks by name: strip() alone would also take off U+0085 and U+00A0, so that "chunked\xa0" became "chunked".
    return [member.strip(" \t").lower() for member in value.split(",")]


def _read_host(block: HeaderBlock, key: str, value: str) -> None:
    # RFC 9112 §3.2: more than one Host, or an invalid one, is answered with 400. Two readers could choose two hosts.
    if block.has_host:
        raise ProtocolError(400, "more than one Host header field")
    if not _is_authority(value):
        raise ProtocolError(400, "malformed Host header field")
    block.has_host = True
    block.environ[key] = value


def _read_content_length(block: HeaderBlock, key: str, value: str) -> None:
    length = parse_content_length(value)
    if length is None:
        raise ProtocolError(400, "malformed Content-Length")
    # RFC 9112 §6.3: the same value twice may be taken as one; different ones are a smuggled body.
    if "CONTENT_LENGTH" in block.environ and block.content_length != length:
        raise ProtocolError(400, "different Content-Length header fields")
    block.content_length = length
    block.environ["CONTENT_LENGTH"] = value


def _read_transfer_encoding(block: HeaderBlock, key: str, value: str) -> None:
    # RFC 9112 §6.1: exactly one "chunked" in all Transfer-Encoding fields together, or refused (gunicorn
    # CVE-2024-1135: "chunked, identity" was read as no body by one side).
    codings = _members(value)
    if block.chunked or not all(codings):
        raise ProtocolError(400, "malformed Transfer-Encoding")
    if codings == ["chunked"]:
        block.chunked = block.unusual = True
        block.content_length = _CHUNKED
        block.environ[key] = value
    elif "chunked" in codings[:-1]:
        raise ProtocolError(400, "chunked is not the last transfer coding, or not the only one")
    else:
        raise ProtocolError(501, "transfer coding not supported; this server decodes chunked")


def _read_connection(block: HeaderBlock, key: str, value: str) -> None:
    # RFC 9110 §7.6.1: Connection = #connection-option, case-insensitive; options of other fields mean nothing here.
    members = _members(value)
    block.close = block.close or "close" in members
    block.keep_alive = block.keep_alive or "keep-alive" in members
    if "upgrade" in members:
        block.upgrades = block.unusual = True
    block.environ[key] = _join(key, block.environ.get(key), value)


def _read_expect(block: HeaderBlock, key: str, value: str) -> None:
    # RFC 9110 §10.1.1: 100-continue is the only expectation, its name is case-insensitive.
    if value.lower() != "100-continue":
        raise ProtocolError(417, "unknown expectation; only 100-continue is known")
    block.expect_continue = True
    block.environ[key] = value


def _read_forwarder(block: HeaderBlock, key: str, value: str) -> None:
    # A proxy sets each once: a second one is the client's.
    if key in block.forwarder:
        raise ProtocolError(400, "repeated forwarder header")
    block.forwarder[key] = value
    block.unusual = True


def _read_claim(block: HeaderBlock, key: str, value: str) -> None:
    if key not in block.environ:
        block.claims += (key,)
        block.unusual = True
    block.environ[key] = value = _join(key, block.environ.get(key), value)
    if key == "HTTP_X_REQUEST_ID":
        # An id goes into logs and headers: printable ASCII without spaces, of sane length, or it is no id.
        usable = 0 < len(value) <= 128 and value.isascii() and value.isprintable() and " " not in value
        block.request_id = value if usable else None


def _drop(block: HeaderBlock, key: str, value: str) -> None:
    """Leave a field out of the environ."""


# The fields that the server itself obeys.
_OBEYED: Final = {
    "HTTP_HOST": _read_host,
    "HTTP_CONTENT_LENGTH": _read_content_length,
    "HTTP_TRANSFER_ENCODING": _read_transfer_encoding,
    "HTTP_CONNECTION": _read_connection,
    "HTTP_EXPECT": _read_expect,
}
