"""Names clients: environ keys, the name in logs, and whether their forwarded headers are trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

_CACHE_ENTRIES: Final = 4096
# The default: `ipaddress` is only imported for more.
_LOOPBACK: Final = frozenset(("127.0.0.1", "::1"))


class PeerNames:
    """Names peers, and remembers trusted addresses.

    Args:
        allowed: trusted addresses and networks (``forwarded_allow_ips``); ``*`` is any. A client on a Unix socket is
            trusted: it is on this host and passed the file's mode.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._any = "*" in allowed
        self._hosts = _LOOPBACK.intersection(allowed)
        self._networks: list[IPv4Network | IPv6Network] = []
        if others := [entry for entry in allowed if entry not in _LOOPBACK and "*" not in entry]:
            from ipaddress import ip_network

            self._networks = [ip_network(entry, strict=False) for entry in others]
        self._trusted: dict[str, bool] = {}

    def of(self, address: Any) -> tuple[dict[str, str], bytes, bool]:
        """Return (environ keys, name for logs, trusted) of an accepted address."""
        # accept(2) names the peer of a Unix socket by a string or bytes, mostly empty.
        if type(address) is not tuple:
            return {"REMOTE_ADDR": ""}, b"unix", True
        host = address[0]
        trusted = self._trusted.get(host)
        if trusted is None:
            trusted = self._judge(host)
        return {"REMOTE_ADDR": host, "REMOTE_PORT": str(address[1])}, host.encode("latin-1"), trusted

    def names(self, host: str) -> bool:
        """Return whether ``host``, an IP address in a forwarded header, is allowed; ``*`` matches none here."""
        # That any peer is trusted does not mean that any address in its header is a proxy's: then the client's own
        # value, at the list's left end, would be taken.
        if not self._any:
            trusted = self._trusted.get(host)
            return self._judge(host) if trusted is None else trusted
        return self._is_listed(host)

    def _judge(self, host: str) -> bool:
        try:
            trusted = self._any or self._is_listed(host)
        except ValueError:
            return False
        # Emptied all at once: to know the least used one would cost something for each connection.
        if len(self._trusted) >= _CACHE_ENTRIES:
            self._trusted.clear()
        self._trusted[host] = trusted
        return trusted

    def _is_listed(self, host: str) -> bool:
        if host.lower().removeprefix("::ffff:") in self._hosts:  # an IPv4 client of an IPv6 socket, too
            return True
        if not self._networks:
            return False
        from ipaddress import ip_address

        # A link-local IPv6 address comes with its zone.
        parsed = ip_address(host.partition("%")[0])
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any(parsed in network or (mapped and mapped in network) for network in self._networks)
