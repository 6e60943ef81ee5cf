"""What trusted proxies say of their client: X-Forwarded-* and Forwarded (RFC 7239), into the environ.

Owns: `Forwarding`, `ACCEPTED`, and the reading of these fields.
Must not know: sockets; which addresses are proxies' (it asks).

Every proxy appends what it has seen at the right end of a list, so only the right end is known to be true: the
lists are read from there, and as far as each address is a proxy's itself. What cannot be read ends the reading, and
is left in the environ for the application to see; only `mount` raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any, Final

from wsgiserv.errors import ProtocolError
from wsgiserv.http.grammar import HOST
from wsgiserv.http.percent import decoded

__all__ = ["Forwarding", "mount", "read_for", "read_forwarded", "read_node"]

# A client can send a list as long as a head may be; proxies in a row are few.
_MOST_HOPS: Final = 64

# RFC 7239 §6: node = nodename [ ":" node-port ]; an IPv6 address is in brackets. Bare IPv6 is X-Forwarded-For's.
_NODE: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]++)\]|([0-9.]++))(?::([0-9]{1,5}))?|([0-9A-Fa-f:.]++)")
_PREFIX: Final = re.compile(r"(?:/[\x21\x24-\x2e\x30-\x3e\x40-\x5b\x5d-\x7e\x80-\xff]++)*/?")
_PORT: Final = re.compile(r"[0-9]{1,5}")

# RFC 7239 §4: forwarded-element = [ forwarded-pair ] *( ";" [ forwarded-pair ] ).
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
# Values in use break the grammar by bare colons and brackets (for=1.2.3.4:5, for=[::1]); these confuse nobody.
_PAIR: Final = re.compile(rf"({_TOKEN})=({_QUOTED}|[!#$%&'*+\-.^_`|~0-9A-Za-z:\[\]]++)")
_ESCAPED: Final = re.compile(r"\\(.)")

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


class Forwarding:
    """Changes environs by what trusted peers say in the headers that are asked for.

    Args:
        headers: any of ``for``, ``proto``, ``host``, ``port``, ``prefix`` (X-Forwarded-...) and ``forwarded``
            (``forwarded_headers``).
        is_proxy: whether an IP address is a proxy's whose word counts as well; never raises for an address.
    """

    __slots__ = ("_for", "_forwarded", "_host", "_is_proxy", "_port", "_prefix", "_proto")

    def __init__(self, headers: Collection[str], is_proxy: Callable[[str], bool]) -> None:
        self._is_proxy = is_proxy
        self._for = "for" in headers
        self._proto = "proto" in headers
        self._host = "host" in headers
        self._port = "port" in headers
        self._prefix = "prefix" in headers
        self._forwarded = "forwarded" in headers

    def apply(self, environ: dict[str, Any]) -> None:
        """Change the environ of a request that came from a trusted peer, in place; never raises."""
        client: tuple[str, str] | None = None
        proto = host = port = prefix = ""
        if self._for and (value := environ.get("HTTP_X_FORWARDED_FOR")):
            client = read_for(value, self._is_proxy)
        if self._proto:
            proto = _last(environ.get("HTTP_X_FORWARDED_PROTO"))
        if self._host:
            host = _last(environ.get("HTTP_X_FORWARDED_HOST"))
        if self._port:
            port = _last(environ.get("HTTP_X_FORWARDED_PORT"))
        if self._prefix:
            prefix = _last(environ.get("HTTP_X_FORWARDED_PREFIX"))
        if self._forwarded and (value := environ.get("HTTP_FORWARDED")):
            client, proto, host = read_forwarded(value, self._is_proxy)
        if client is not None:
            environ["REMOTE_ADDR"], remote_port = client
            # The port of the proxy's own connection does not go with the client's address.
            environ.pop("REMOTE_PORT", None)
            if remote_port:
                environ["REMOTE_PORT"] = remote_port
        proto = proto.lower()
        if proto in _DEFAULT_PORTS:
            environ["wsgi.url_scheme"] = proto
        if host and not host.startswith(":") and HOST.fullmatch(host.encode("latin-1")):
            environ["HTTP_HOST"] = host
        if _PORT.fullmatch(port) and 0 < int(port) <= 65535:
            _set_port(environ, str(int(port)))
        # A path with "//" or a backslash at its start would be taken for another host in links made of it.
        if prefix and _PREFIX.fullmatch(prefix):
            _set_prefix(environ, prefix.rstrip("/"))


def _last(value: str | None) -> str:
    """Return the right-most member of a list, without the white space and quotes around it."""
    return value.rpartition(",")[2].strip(" \t").strip('"') if value else ""


def _set_port(environ: dict[str, Any], port: str) -> None:
    environ["SERVER_PORT"] = port
    host: str = environ.get("HTTP_HOST", "")
    # An IPv6 address has colons of its own, in brackets.
    if host and ":" not in host.rpartition("]")[2] and port != _DEFAULT_PORTS[environ["wsgi.url_scheme"]]:
        environ["HTTP_HOST"] = f"{host}:{port}"


def _set_prefix(environ: dict[str, Any], prefix: str) -> None:
    """As `root_path`: taken off a path that has it, as whole segments; the proxy may have done so itself."""
    environ["SCRIPT_NAME"] = prefix
    path: str = environ["PATH_INFO"]
    if prefix and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
        environ["PATH_INFO"] = path[len(prefix) :]


def mount(environ: dict[str, Any], prefix: str) -> None:
    """Make ``prefix``, the value of a trusted peer's SCRIPT_NAME header, the SCRIPT_NAME of a request, in place.

    As gunicorn does, but for whole segments only: links of ``/shop`` are never those of ``/shopping``.

    Raises:
        ProtocolError: 400, it is no path, could be taken for another host, or is no prefix of the request's path.
    """
    if not prefix:
        return
    # A proxy may write it as it stands in the request's target.
    for name in dict.fromkeys((prefix, decoded(prefix))):
        if _PREFIX.fullmatch(name.replace(" ", "")) is None:
            raise ProtocolError(400, "SCRIPT_NAME is not a path")
        name = name.rstrip("/")
        path: str = environ["PATH_INFO"]
        # `root_path` has been taken off already, where the path had it.
        for whole in (environ["SCRIPT_NAME"] + path, path):
            if f"{whole}/".startswith(f"{name}/"):
                environ["SCRIPT_NAME"], environ["PATH_INFO"] = name, whole[len(name) :]
                return
    raise ProtocolError(
        400, "SCRIPT_NAME is not a prefix of the path; a proxy that takes it off sends X-Forwarded-Prefix"
    )


def read_node(text: str) -> tuple[str, str] | None:
    """Return (IP address, port or "") of one node; None for ``unknown``, ``_names`` and anything malformed."""
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    from ipaddress import ip_address  # only behind a proxy: see docs/architecture.md, "Memory"

    bracketed, plain, port, bare = match.groups()
    try:
        address = ip_address(bracketed or plain or bare)
    except ValueError:
        return None
    if (bracketed is not None and address.version != 6) or (port is not None and int(port) > 65535):
        return None
    # One client has one name, however its proxy came to see it.
    return str(getattr(address, "ipv4_mapped", None) or address), port or ""


def read_for(value: str, is_proxy: Callable[[str], bool]) -> tuple[str, str] | None:
    """Return (address, port or "") of the client by the value of X-Forwarded-For; None when it says nothing.

    The client is the right-most address that is not a proxy's; where the list ends before one is found, or
    cannot be read on, it is the last proxy that was.
    """
    client = None
    for member in reversed(value.rsplit(",", _MOST_HOPS)[-_MOST_HOPS:]):
        text = member.strip(" \t")
        if not text:  # RFC 9110 §5.6.1: empty members of a list mean nothing
            continue
        if len(text) > 1 and text[0] == text[-1] == '"':
            text = text[1:-1]
        node = read_node(text)
        if node is None:
            break
        client = node
        if not is_proxy(node[0]):
            break
    return client


def read_forwarded(value: str, is_proxy: Callable[[str], bool]) -> tuple[tuple[str, str] | None, str, str]:
    """Return (client as in `read_for`, proto, host) by the value of Forwarded; "" where it does not say.

    Proto and host are those of the element that names the client: each was written by a proxy to its right,
    which is trusted. Where that element lacks them, the next one to its right counts.
    """
    client, proto, host = None, "", ""
    for _ in range(_MOST_HOPS):
        value, element = _split_last(value)
        if value and not element.strip(" \t"):
            continue
        pairs = _read_element(element)
        if pairs is None:
            break
        proto = pairs.get("proto", proto)
        host = pairs.get("host", host)
        node = read_node(pairs.get("for", ""))
        if node is None:
            break
        client = node
        if not value or not is_proxy(node[0]):
            break
    return client, proto, host


def _split_last(value: str) -> tuple[str, str]:
    """Split the last element off, at a comma that is in no quoted string.

    From the right end, since the left end is the client's, who may leave a quote open there. An element has an
    even number of quotes, so that one cut within a quoted string has an odd one, and goes on to the left.
    """
    cut = len(value)
    quotes = 0
    while True:
        end, cut = cut, value.rfind(",", 0, cut)
        quotes += value.count('"', cut + 1, end) - value.count('\\"', cut + 1, end)
        if cut < 0 or quotes % 2 == 0:
            return value[: max(cut, 0)], value[cut + 1 :]


def _read_element(element: str) -> dict[str, str] | None:
    """Return the pairs of an element, names in lower case; None when it is malformed (RFC 7239 §4)."""
    text = element.strip(" \t")
    pairs: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None:
            return None
        name, found = match[1].lower(), match[2]
        if name in pairs:  # §4: each parameter once per element
            return None
        pairs[name] = _ESCAPED.sub(r"\1", found[1:-1]) if found.startswith('"') else found
        position = match.end()
        rest = text[position:].lstrip(" \t")
        if rest and not rest.startswith(";"):
            return None
        position = len(text) - len(rest[1:].lstrip(" \t")) if rest else len(text)
    return pairs or None
