"""Reads the addresses of ``bind``, without touching the network or the file system."""

from __future__ import annotations

from typing import Literal, NamedTuple

DEFAULT_PORT = 8000

ACCEPTED = (
    "'HOST:PORT', ':PORT' (all interfaces), '[IPV6]:PORT', 'HOST' (port 8000), 'unix:PATH' or 'fd://N'; "
    "for example '127.0.0.1:8000'"
)


class Address(NamedTuple):
    """One place to listen.

    Attributes:
        kind: ``tcp``, ``unix`` or ``fd``.
        host: for ``tcp``: a name or an IP address without brackets, lower case; empty: all interfaces.
        port: for ``tcp``: 0 to 65535; 0: the kernel chooses.
        path: for ``unix``: as written, so it may be relative to the working directory.
        fd: for ``fd``: the number of an inherited descriptor.
    """

    kind: Literal["tcp", "unix", "fd"]
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1


def parse_address(text: str) -> Address:
    """Read one bind; ValueError with the reason when it is none.

    The forms are gunicorn's (``tcp://`` before a host and ``unix://`` before a path are accepted too).
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError("a path is missing after 'unix:'")
        if "\0" in path:
            raise ValueError("the path holds a NUL character")
        return Address("unix", path=path)
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not (number.isascii() and number.isdigit()):
            raise ValueError("a descriptor's number is missing after 'fd://'")
        # Nine digits: a longer number is no descriptor either, and int() has its own message for thousands of digits.
        return Address("fd", fd=int(number[:9]))
    # gunicorn takes a text without a scheme for a host as well.
    text = text.removeprefix("tcp://")
    if not text:
        raise ValueError("the address is empty")
    if "," in text:
        raise ValueError("several addresses in one: give each its own -b, or a list in a configuration file")
    if "/" in text:
        raise ValueError("an address is not a URL or a path; a Unix socket is written 'unix:PATH'")
    # As a host, "8000" would be the address 0.0.31.64 to the resolver (inet_aton(3)).
    if text.isascii() and text.isdigit():
        raise ValueError(f"a port alone: write ':{text}' for all interfaces or '127.0.0.1:{text}' for this host")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise ValueError("the brackets of an IPv6 address are not closed properly")
        port = rest[1:] if rest else str(DEFAULT_PORT)
    # Without brackets the last group may be a port as well: "::1:8000" is a whole address.
    elif text.count(":") > 1:
        raise ValueError("an IPv6 address goes in brackets: '[::1]:8000'")
    else:
        host, colon, port = text.partition(":")
        if not colon:
            port = str(DEFAULT_PORT)
    if any(character.isspace() for character in host):
        raise ValueError("there is a space in the host's name")
    # isdigit() alone is true of "²" and of other scripts' digits.
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"the port {port!r} is not a number from 0 to 65535")
    # Lower case, so that the same host twice is seen.
    return Address("tcp", host=host.lower(), port=int(port))


def is_local(text: str) -> bool:
    """Tell whether nobody on a network can connect to an address, as far as its text says; True for a descriptor."""
    address = parse_address(text)
    if address.kind != "tcp" or address.host == "localhost":
        return True
    import ipaddress  # 5 ms

    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:  # a name, or nothing
        return False
