"""A client that upgrades its connection, over TCP, a Unix socket or TLS, and tells an end from a reset."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import trustme
from rawclient import DEADLINE_S, RawClient

ASKS = "Connection: Upgrade\r\nUpgrade: echo\r\n"
FIN = "fin"
RESET = "reset"


def issue(directory: Path) -> ssl.SSLContext:
    """Write ``server.pem`` and ``server.key``; return the context of a client that trusts them."""
    ca = trustme.CA()
    cert = ca.issue_cert("localhost", "127.0.0.1")
    (directory / "server.pem").write_bytes(b"".join(pem.bytes() for pem in cert.cert_chain_pems))
    cert.private_key_pem.write_to_path(str(directory / "server.key"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    return context


def certificate_flags(directory: Path) -> tuple[str, ...]:
    """Return the flags of a server with the files of `issue`."""
    return ("--certfile", str(directory / "server.pem"), "--keyfile", str(directory / "server.key"))


class UpgradeClient(RawClient):
    """One connection.

    Args:
        address: the server's.
        context: of TLS, where the server speaks it.
        deadline_s: on every wait.
    """

    def __init__(self, address: Any, context: ssl.SSLContext | None = None, deadline_s: float = DEADLINE_S) -> None:
        super().__init__(address, deadline_s)
        if context is not None:
            try:
                self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
            except BaseException:
                self.sock.close()
                raise

    def ask(self, target: str = "/echo", *, early: bytes = b"", headers: str = ASKS, method: str = "GET") -> None:
        """Ask for the upgrade, and send ``early`` along with it."""
        self.send(f"{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode() + early)

    def upgrade(self, target: str = "/echo", *, early: bytes = b"", headers: str = ASKS, method: str = "GET") -> None:
        """Ask for it, and read the 101."""
        self.ask(target, early=early, headers=headers, method=method)
        while (status := self.read_interim()) == 103:
            pass
        assert status == 101

    def read(self, size: int) -> bytes:
        """Return so many bytes of the new protocol."""
        return self._exactly(size, "the new protocol")

    def talk(self, data: bytes) -> None:
        """Send ``data``, and read its echo."""
        self.send(data)
        assert self.read(len(data)) == data

    def read_end(self) -> tuple[str, bytes]:
        """Return how the connection ends, and what comes before."""
        try:
            while self._receive():
                pass
        except ConnectionResetError:
            return RESET, self._buffer
        except ssl.SSLEOFError:
            pass  # an end without TLS's goodbye
        return FIN, self._buffer

    def end(self) -> None:
        """Say that nothing more comes, as far as the transport can; the server's last words can be read."""
        if isinstance(self.sock, ssl.SSLSocket):
            # Python's client cannot half-close TLS: the socket's end is the end of the data.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        else:
            self.half_close()
