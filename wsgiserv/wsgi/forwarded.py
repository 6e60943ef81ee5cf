"""Reads the headers in which trusted proxies describe their client: X-Forwarded-* and Forwarded (RFC 7239).

Every proxy appends its own view at the right end of a list, so only the right end is known to be true: the lists are
read from there, as long as each address belongs to a proxy itself. A malformed member ends the reading, and stays in
the environ for the application to see; only `mount` raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from wsgiserv.errors import ProtocolError
from wsgiserv.http.grammar import HOST, QUOTED, TOKEN
from wsgiserv.http.head import without_prefix

# A client can send a list as long as a head may be; proxies in a row are few.
_MOST_HOPS: Final = 64

# RFC 7239 §6: node = nodename [ ":" node-port ]; an IPv6 address is in brackets. X-Forwarded-For has it bare.
_NODE: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]++)\]|([0-9.]++))(?::([0-9]{1,5}))?|([0-9A-Fa-f:.]++)")
# A path with "//" or a backslash at its start would be taken for another host in links made of it.
_PREFIX: Final = re.compile(r"(?:/[\x21\x24-\x2e\x30-\x3e\x40-\x5b\x5d-\x7e\x80-\xff]++)*/?")
_PORT: Final = re.compile(r"[0-9]{1,5}")

# RFC 7239 §4: forwarded-element = [ forwarded-pair ] *( ";" [ forwarded-pair ] ); forwarded-pair = token "=" value;
# value = token / quoted-string. Values in use break this by bare colons and brackets (for=1.2.3.4:5, for=[::1]);
# these have one reading, and are accepted.
_PAIR: Final = re.compile(rf"({TOKEN})=({QUOTED}|[!#$%&'*+\-.^_`|~0-9A-Za-z:\[\]]++)")
_ELEMENT: Final = re.compile(rf"{_PAIR.pattern}(?:[ \t]*+;[ \t]*+{_PAIR.pattern})*[ \t]*+;?+")
_ESCAPED: Final = re.compile(r"\\(.)")

_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


class Forwarding:
    """Changes environs by the headers of trusted peers.

    Args:
        headers: any of ``for``, ``proto``, ``host``, ``port``, ``prefix`` (X-Forwarded-...) and ``forwarded``
            (``forwarded_headers``).
        is_proxy: whether an IP address belongs to a trusted proxy; never raises for an address.
    """

    def __init__(self, headers: Collection[str], is_proxy: Callable[[str], bool]) -> None:
        self._is_proxy = is_proxy
        self._for = "for" in headers
        self._forwarded = "forwarded" in headers
        single = [name for name in ("proto", "host", "port", "prefix") if name in headers]
        self._keys = [(name, f"HTTP_X_FORWARDED_{name.upper()}") for name in single]

    def apply(self, environ: dict[str, Any]) -> None:
        """Change the environ of a request from a trusted peer, in place; never raises."""
        client: tuple[str, str] | None = None
        said = {name: _last(environ.get(key)) for name, key in self._keys}
        if self._for and (value := environ.get("HTTP_X_FORWARDED_FOR")):
            client = read_for(value, self._is_proxy)
        if self._forwarded and (value := environ.get("HTTP_FORWARDED")):
            client, said["proto"], said["host"] = read_forwarded(value, self._is_proxy)
        if client is not None:
            environ["REMOTE_ADDR"], remote_port = client
            # The port of the proxy's own connection does not go with the client's address.
            environ.pop("REMOTE_PORT", None)
            if remote_port:
                environ["REMOTE_PORT"] = remote_port
        if (proto := said.get("proto", "").lower()) in _DEFAULT_PORTS:
            environ["wsgi.url_scheme"] = proto
        # A host with userinfo, a path or a control character would end up in links and redirects of the application.
        host = said.get("host")
        if host and not host.startswith(":") and HOST.fullmatch(host):
            environ["HTTP_HOST"] = host
        port = said.get("port", "")
        if _PORT.fullmatch(port) and 0 < int(port) <= 65535:
            _set_port(environ, str(int(port)))
        prefix = said.get("prefix")
        if prefix and _PREFIX.fullmatch(prefix):
            prefix = prefix.rstrip("/")
            # As with `root_path`; the proxy may have removed it itself.
            environ.update(SCRIPT_NAME=prefix, PATH_INFO=without_prefix(environ["PATH_INFO"], prefix))


def _last(value: str | None) -> str:
    """Return the right-most member of a list, without the white space and quotes around it."""
    return value.rpartition(",")[2].strip(" \t").strip('"') if value else ""


def _set_port(environ: dict[str, Any], port: str) -> None:
    environ["SERVER_PORT"] = port
    host: str = environ.get("HTTP_HOST", "")
    # An IPv6 address has colons of its own, in brackets.
    if host and ":" not in host.rpartition("]")[2] and port != _DEFAULT_PORTS[environ["wsgi.url_scheme"]]:
        environ["HTTP_HOST"] = f"{host}:{port}"


def mount(environ: dict[str, Any], prefix: str) -> None:
    """Make ``prefix``, the value of a trusted peer's SCRIPT_NAME header, the SCRIPT_NAME of a request, in place.

    As gunicorn does, but for whole segments only: links of ``/shop`` are never those of ``/shopping``.

    Raises:
        ProtocolError: 400, it is no path, could be taken for another host, or is no prefix of the request's path.
    """
    if not prefix:
        return
    # A proxy may write it as it stands in the request's target.
    for name in dict.fromkeys((prefix, unquote_to_bytes(prefix.encode("latin-1")).decode("latin-1"))):
        if _PREFIX.fullmatch(name.replace(" ", "")) is None:
            raise ProtocolError(400, "SCRIPT_NAME is not a path")
        name = name.rstrip("/")
        path: str = environ["PATH_INFO"]
        # `root_path` has been removed already, where the path had it.
        for whole in (environ["SCRIPT_NAME"] + path, path):
            if f"{whole}/".startswith(f"{name}/"):
                environ["SCRIPT_NAME"], environ["PATH_INFO"] = name, whole[len(name) :]
                return
    raise ProtocolError(
        400, "SCRIPT_NAME is not a prefix of the path; a proxy that removes it sends X-Forwarded-Prefix"
    )


def read_node(text: str) -> tuple[str, str] | None:
    """Return (IP address, port or "") of one node; None for ``unknown``, ``_names`` and anything malformed."""
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    bracketed, plain, port, bare = match.groups()
    try:
        address = ip_address(bracketed or plain or bare)
    except ValueError:
        return None
    if (bracketed is not None and address.version != 6) or (port is not None and int(port) > 65535):
        return None
    # ::ffff:192.0.2.1 is 192.0.2.1: one client has one name, by whichever family its proxy saw it.
    return str(getattr(address, "ipv4_mapped", None) or address), port or ""


def read_for(value: str, is_proxy: Callable[[str], bool]) -> tuple[str, str] | None:
    """Read X-Forwarded-For.

    Args:
        value: the header's value.
        is_proxy: whether an IP address belongs to a trusted proxy.

    Returns:
        (address, port or "") of the client: the right-most address that is not a proxy's. Where the list ends before
        one is found, or is malformed there, the last proxy. None when no member can be read.
    """
    client = None
    # From the right: each proxy has appended the address that it saw, and the client wrote what is left of them.
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
        # To the left of the first address that is no proxy's, every member may be the client's own invention.
        if not is_proxy(node[0]):
            break
    return client


def read_forwarded(value: str, is_proxy: Callable[[str], bool]) -> tuple[tuple[str, str] | None, str, str]:
    """Read Forwarded.

    Args:
        value: the header's value.
        is_proxy: whether an IP address belongs to a trusted proxy.

    Returns:
        (client as in `read_for`, proto, host); "" without one. Proto and host are those of the element with the client:
        a trusted proxy to its right wrote each. Where that element lacks them, the next one to its right counts.
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
    """Split off the last element, at a comma outside quoted strings."""
    # From the right end: the left end is the client's, which may leave a quote open there. An element has an even
    # number of quotes; one cut within a quoted string has an odd one, and goes on to the left.
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
    if _ELEMENT.fullmatch(text) is None:
        return None
    found = _PAIR.findall(text)
    pairs = {
        name.lower(): _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value for name, value in found
    }
    return pairs if len(pairs) == len(found) else None  # §4: each parameter once per element
