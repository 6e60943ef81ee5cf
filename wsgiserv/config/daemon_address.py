"""Reads the addresses of syslog and of statsd, without touching the network or the file system."""

from __future__ import annotations

import sys
from typing import Any, Final

from wsgiserv.config.values import text

STATSD_ACCEPTED: Final = "'HOST:PORT', 'HOST' (port 8125), '[IPV6]:PORT' or 'unix://PATH'; for example 'localhost:8125'"
SYSLOG_ACCEPTED: Final = (
    "'udp://HOST:PORT', 'tcp://HOST:PORT' (port 514 without one), 'unix://PATH', or 'unix://PATH#dgram'; "
    "for example 'unix:///dev/log'"
)
# gunicorn's.
_BY_PLATFORM: Final = {
    "darwin": "unix:///var/run/syslog",
    "freebsd": "unix:///var/run/log",
    "dragonfly": "unix:///var/run/log",
    "openbsd": "unix:///dev/log",
}
SYSLOG_DEFAULT: Final = _BY_PLATFORM.get(sys.platform.rstrip("0123456789"), "udp://localhost:514")

# syslog(3), by gunicorn's names.
FACILITIES: Final = {
    "kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "security": 4, "syslog": 5, "lpr": 6, "news": 7,
    "uucp": 8, "cron": 9, "authpriv": 10, "ftp": 11, **{f"local{number}": 16 + number for number in range(8)},
}  # fmt: skip


def statsd_host(raw: object) -> str | None:
    """Read the address of statsd; an empty one means not set."""
    found = None if raw is None else text(raw) or None
    if found is not None:
        parse_statsd_host(found)
    return found


def parse_statsd_host(address: str) -> str | tuple[str, int]:
    """Return a Unix socket's path, or host and port. Raises ValueError."""
    # gunicorn's exception: a host may be named "unix".
    if address.startswith("unix:") and not address.removeprefix("unix:").isdigit():
        path = address.removeprefix("unix:").removeprefix("//")
        if not path or "\0" in path:
            raise ValueError("a path is missing after 'unix://'")
        return path
    return _host_and_port(address.removeprefix("tcp://"), 8125)


def parse_syslog_address(address: str) -> tuple[str, str, tuple[str, int]]:
    """Return the kind of the socket (``udp``, ``tcp``, ``unix``, ``dgram``), its path, or host and port.

    ``unix`` is a socket of either type, as in gunicorn, where ``#stream`` means that as well. Raises ValueError.
    """
    scheme, mark, rest = address.partition("://")
    if scheme == "unix" and mark:
        path, _, kind = rest.partition("#")
        if not path or "\0" in path:
            raise ValueError("a path is missing after 'unix://'")
        return "dgram" if kind == "dgram" else "unix", path, ("", 0)
    if not mark or scheme not in ("udp", "tcp"):
        raise ValueError("it begins with none of udp://, tcp:// and unix://")
    host, port = _host_and_port(rest, 514)
    return scheme, "", (host or "localhost", port)


def _host_and_port(address: str, default_port: int) -> tuple[str, int]:
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or not host or (rest and not rest.startswith(":")):
            raise ValueError("the brackets of an IPv6 address are not closed properly")
        port = rest[1:] if rest else str(default_port)
    elif address.count(":") > 1:
        raise ValueError("an IPv6 address goes in brackets: '[::1]:514'")
    else:
        host, colon, port = address.partition(":")
        port = port if colon else str(default_port)
    # isdigit() alone is true of other scripts' digits.
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"the port {port!r} is not a number from 0 to 65535")
    if any(character.isspace() or character == "\0" for character in host):
        raise ValueError("there is a space in the host's name")
    return host.lower(), int(port)


def check_syslog(values: dict[str, Any]) -> tuple[str, str, str] | None:
    """Return what is wrong with the settings of syslog: the setting, the problem and what is accepted; or None.

    Called when ``syslog`` is on: like gunicorn's, the other settings of an unused syslog may have any text.
    """
    try:
        parse_syslog_address(values.get("syslog_addr", SYSLOG_DEFAULT))
    except ValueError as error:
        return "syslog_addr", f"is not accepted: {error}.", SYSLOG_ACCEPTED
    if values.get("syslog_facility", "user").lower() not in FACILITIES:
        return "syslog_facility", "is not a facility of syslog.", ", ".join(FACILITIES)
    return None
