"""Binds TCP sockets: names and families, shared ports, and the process in the way."""

from __future__ import annotations

import _socket
import errno
from _socket import socket
from collections.abc import Sequence
from typing import Any, Final

from wsgiserv.config.address import Address, parse_address
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError, UnavailableError
from wsgiserv.net.port_owner import AddressInUse, TcpAddress, owner_of_port

_SO_REUSEPORT: Final = getattr(_socket, "SO_REUSEPORT", None)


def address_of(spec: str) -> Address:
    """Return the parsed `bind`. Raises ConfigError."""
    try:
        return parse_address(spec)
    except ValueError as error:
        raise ConfigError(f"bind = {spec!r}: {error}.") from None


def bind_tcp(spec: str, family: int, sockaddr: Any, settings: Settings, *, listen: bool = True) -> socket:
    """Return a bound socket.

    Args:
        spec: its `bind`.
        family, sockaddr: as `resolve` returns them.
        settings: the configuration.
        listen: whether it is to listen.

    Raises:
        ConfigError: it cannot be bound; `AddressInUse` when the address is taken.
    """
    try:
        sock = socket(family, _socket.SOCK_STREAM)
    except OSError as error:  # EAFNOSUPPORT: a kernel without IPv6
        raise ConfigError(f"bind = {spec!r}: this host cannot do it: {error.strerror}.") from error
    try:
        # A restart must not wait for the connections of the last run to leave TIME_WAIT.
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if settings.reuse_port:
            if _SO_REUSEPORT is None:
                raise ConfigError(
                    f"reuse_port = True: this system has no SO_REUSEPORT (bind = {spec!r}). Leave it out."
                )
            sock.setsockopt(_socket.SOL_SOCKET, _SO_REUSEPORT, 1)
        if family == _socket.AF_INET6 and _shares_with_ipv4(sockaddr, settings.bind):
            # Else [::] is all IPv4 addresses, too, and one of the two could not be bound.
            sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        # Otherwise it stays as the host has it (net.ipv6.bindv6only), as with gunicorn.
        sock.bind(sockaddr)
        if listen:
            # Linux hands it on to every accepted socket, which saves a system call for each connection.
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
            # EADDRINUSE may also come from here, when two share SO_REUSEADDR.
            sock.listen(settings.backlog)
            sock.setblocking(False)
        return sock
    # KeyboardInterrupt, too: a start that is given up leaves no port taken.
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise _tcp_error(spec, family, sockaddr, error) from error
        raise


def resolve(spec: str, address: Address) -> tuple[int, Any]:
    """Return the family and the address to bind. A name with several addresses gives its first IPv4 one."""
    try:
        # No host is all IPv4 addresses, as for gunicorn.
        host = address.host or "0.0.0.0"
        # As bytes it is not encoded by the codec for international names, which would be imported for it.
        name = host.encode() if host.isascii() else host
        found = _socket.getaddrinfo(name, address.port, 0, _socket.SOCK_STREAM, 0, _socket.AI_PASSIVE)
    except (_socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, _socket.gaierror) else "not a host's name"
        # A resolver that is not up yet answers like one that does not know the name: EAI_AGAIN or EAI_NONAME.
        kind = UnavailableError if isinstance(error, _socket.gaierror) else ConfigError
        raise kind(
            f"bind = {spec!r}: the host {address.host!r} cannot be resolved: {reason}. "
            "Expected an address of this host; for example 127.0.0.1, or 0.0.0.0 for all interfaces."
        ) from error
    # `localhost` is ::1 first on many hosts, while the proxy in front is mostly told 127.0.0.1.
    for family, _, _, _, sockaddr in sorted(found, key=lambda each: each[0] != _socket.AF_INET):
        if family in (_socket.AF_INET, _socket.AF_INET6):
            return family, sockaddr
    raise ConfigError(f"bind = {spec!r}: the host {address.host!r} has no IPv4 or IPv6 address.")


def check_kept(spec: str, sock: socket, specs: Sequence[str]) -> None:
    """Raise ConfigError when an open socket has IPv4 addresses against `bind`, or the reverse."""
    if sock.family != _socket.AF_INET6 or sock.getsockname()[0] != "::":
        return
    # The option can be set before bind(2) only (ipv6(7)), so an open socket keeps the value that it has.
    is_alone = bool(sock.getsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY))
    # A new socket tells the default of this host (net.ipv6.bindv6only).
    fresh = socket(_socket.AF_INET6, _socket.SOCK_STREAM)
    is_usual = bool(fresh.getsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY))
    fresh.close()
    if is_alone != (is_usual or _shares_with_ipv4(sock.getsockname(), specs)):
        raise ConfigError(
            f"bind = {spec!r}: its socket is open {'without' if is_alone else 'with'} the IPv4 addresses, "
            "and that cannot be changed while it is open. Stop the server and start it anew to add or remove "
            f"0.0.0.0:{sock.getsockname()[1]}."
        )


def _shares_with_ipv4(sockaddr: Any, specs: Sequence[str]) -> bool:
    """Return whether `bind` names all IPv4 addresses beside all IPv6 ones, on the same port."""
    return sockaddr[0] == "::" and sockaddr[1] != 0 and sockaddr[1] in map(_ipv4_wildcard_port, specs)


def _ipv4_wildcard_port(spec: str) -> int:
    """Return the port of a bind for all IPv4 addresses (``0.0.0.0``, ``0``, or no host); else -1."""
    address = address_of(spec)
    if address.kind != "tcp":
        return -1
    try:
        # inet_aton(3) reads the short forms as bind(2) does: 0 is 0.0.0.0.
        is_wildcard = not address.host or _socket.inet_aton(address.host) == bytes(4)
    except (OSError, UnicodeError):
        return -1
    return address.port if is_wildcard else -1


def _tcp_error(spec: str, family: int, sockaddr: Any, error: OSError) -> ConfigError:
    host, port = sockaddr[0], sockaddr[1]
    where = f"[{host}]:{port}" if family == _socket.AF_INET6 else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        owner = owner_of_port(family, host, port)
        by = f"{owner} listens there" if owner else "another process listens there"
        # Port 65535 is followed by 1, so the advice is always a port.
        advice = f"Stop it, or choose another port (-b {spec.rpartition(':')[0]}:{port % 65535 + 1})."
        if owner is None:
            advice += f" 'ss -ltnp sport = :{port}', as root, shows the process."
        return AddressInUse(
            f"bind = {spec!r}: the address {where} is in use: {by}. {advice}",
            TcpAddress(family, host, port, is_v6only=False),
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        # Also before the interface is up, and while an IPv6 address is tentative (RFC 4862 5.4).
        return UnavailableError(
            f"bind = {spec!r}: {host} is not an address of this host. 'ip address' lists those that are; "
            "0.0.0.0 means all of them."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"bind = {spec!r}: no permission to listen on {where}: ports below 1024 are for root "
            "(or CAP_NET_BIND_SERVICE). Use a port from 1024 on behind a proxy, or start it as root with "
            "user and group set."
        )
    return ConfigError(f"bind = {spec!r}: cannot listen on {where}: {error.strerror}.")


def own_conflict(spec: str, other: str) -> ConfigError:
    """Return the error for a `bind` overlapping ``other``, another one of the same server."""
    return ConfigError(
        f"bind = {spec!r}: bind = {other!r} has that address already: one of them includes the other. Leave one out."
    )
