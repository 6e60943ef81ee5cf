"""Decides what becomes of the forwarded headers of peers outside of ``forwarded_allow_ips``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from wsgiserv.logs.escape import escape
from wsgiserv.net.client_socket import ClientSocket
from wsgiserv.wording import enumeration

# Clients of all kinds send an id of their own, so this one alone is no sign of a proxy.
_NO_SIGN: Final = ("HTTP_X_REQUEST_ID",)


@dataclass(slots=True, eq=False)
class UntrustedHeaders:
    """Removes these headers, or passes them to the application as any others; the log tells of it once.

    Args:
        log: the error log, for the line about headers that are removed.
        report_passed: passes them: called once, with the text of a warning. None removes them.
    """

    _log: logging.Logger
    _report_passed: Callable[[str], object] | None = None
    _is_told: bool = False

    def handle(self, environ: dict[str, Any], claims: tuple[str, ...], peer: str, sock: ClientSocket) -> None:
        """Handle the headers of one request.

        Args:
            environ: its environ.
            claims: the headers' keys there.
            peer: its client's name in the log.
            sock: its connection's socket.
        """
        if self._report_passed is None:
            # An application may believe these names; from this peer they are only a claim.
            for key in claims:
                environ.pop(key, None)
            if not self._is_told:
                self._tell_removed(peer, claims)
        elif not self._is_told and claims != _NO_SIGN:
            self._is_told = True
            through = environ.get("PROXY_PROTOCOL") is not None
            self._report_passed(_advice(peer, _address(sock) or peer, _names(claims), through))

    def _tell_removed(self, peer: str, claims: Iterable[str]) -> None:
        # For an operator who has moved the proxy to another host.
        self._is_told = True
        self._log.info(
            "%s is not in forwarded_allow_ips: its %s did not reach the application, and so with the like from others. "
            "If it is your proxy, add it: --forwarded-allow-ips (this is said once per worker)",
            peer,
            ", ".join(_names(claims)),
        )


def _names(claims: Iterable[str]) -> list[str]:
    """Return the names of header fields by their keys in the environ."""
    return [escape(key[5:].replace("_", "-").title()) for key in claims]


def _advice(client: str, peer: str, names: list[str], through: bool) -> str:
    """Return the warning about headers that are passed on.

    Args:
        client: the client's address.
        peer: the address of the connection's other end: the client, or a proxy.
        names: the headers.
        through: whether the proxy has named the client by the PROXY protocol.
    """
    listed = enumeration(names)
    verb = "reaches" if len(names) == 1 else "reach"
    what = f"{verb} the application as sent, but REMOTE_ADDR and the scheme are not taken from there"
    if through:
        # It looks into no header, so all that come from there are its clients' own: to trust it would be the worst.
        return (
            f"{listed} of {client} {verb} the application as sent. The proxy {peer} speaks the PROXY protocol "
            'and passes on what its clients send: to remove such headers, set forwarded_allow_ips = ""'
        )
    return (
        f"{listed} of {peer} {what}. If {peer} is your proxy, set forwarded_allow_ips = "
        f'"{peer}"; to remove such headers from everybody else without trusting anybody, set forwarded_allow_ips = ""'
    )


def _address(sock: ClientSocket) -> str:
    """Return the address of a socket's other end as ``forwarded_allow_ips`` takes it, "" when it is not known."""
    # Not the connection's name, which is the client's as soon as a proxy has told it (PROXY protocol, uwsgi).
    name: Any = None
    with suppress(OSError):
        name = sock.getpeername()
    if not isinstance(name, tuple):
        return ""
    host = str(name[0]).partition("%")[0]  # a link-local address has its zone
    # An IPv4 client of an IPv6 socket.
    mapped = host.lower().removeprefix("::ffff:")
    return mapped if "." in mapped else host
