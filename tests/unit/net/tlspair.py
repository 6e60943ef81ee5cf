"""A TLS client that the test drives byte by byte, and the server's end over a socket pair."""

from __future__ import annotations

import select
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

from wsgiserv.net.tls import TLSSocket
from wsgiserv.net.tls_context import make_context

READ_BYTES = 65536


@dataclass
class Files:
    """What an authority has issued, as files and as trustme's objects."""

    directory: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.ca.cert_pem.write_to_path(self.path("ca.pem"))
        self.issue("server", "localhost", "127.0.0.1")

    def path(self, name: str) -> str:
        return str(self.directory / name)

    def issue(self, name: str, *identities: str) -> trustme.LeafCert:
        """Write ``name.pem`` (the chain), ``name.key`` and ``name-both.pem``."""
        cert = self.ca.issue_cert(*identities)
        chain = b"".join(pem.bytes() for pem in cert.cert_chain_pems)
        key = cert.private_key_pem.bytes()
        (self.directory / f"{name}.pem").write_bytes(chain)
        (self.directory / f"{name}.key").write_bytes(key)
        (self.directory / f"{name}-both.pem").write_bytes(chain + key)
        return cert

    def settings(self, **changes: Any) -> TLSValues:
        values = {"certfile": self.path("server.pem"), "keyfile": self.path("server.key"), **changes}
        return TLSValues(**values)

    def client_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        return context


@dataclass
class TLSValues:
    """The TLS settings."""

    certfile: str | None = None
    keyfile: str | None = None
    sni_certificates: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    ca_certs: str | None = None
    cert_reqs: int = 0
    ciphers: str | None = None
    ssl_context: Any = None


class Pair:
    """A client over memory, whose bytes go through ``peer``, and ``server``, the `TLSSocket`."""

    def __init__(
        self, context: ssl.SSLContext, client_context: ssl.SSLContext, *, name: str = "localhost", buffer_bytes: int = 0
    ) -> None:
        ours, self.peer = socket.socketpair()
        if buffer_bytes:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        self.peer.setblocking(False)
        self.environ: dict[str, str] = {}
        raw = socket.socket.__mro__[1](fileno=ours.detach())
        self.server = TLSSocket(context, raw, self.environ)
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client_context.wrap_bio(self._incoming, self.outgoing, server_hostname=name)

    @classmethod
    def of(cls, files: Files, client_context: ssl.SSLContext | None = None, **changes: Any) -> Pair:
        """Make a pair of settings; shaken hands."""
        pair = cls(make_context(files.settings(**changes)), client_context or files.client_context())
        pair.shake()
        return pair

    def close(self) -> None:
        self.server.close()
        self.peer.close()

    def serve(self) -> bytes | None:
        """Let the server read once; None when it would have to wait."""
        try:
            return self.server.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def push(self) -> None:
        """Hand the server what the client has enciphered."""
        self.peer.sendall(self.outgoing.read())

    def pull(self, most: int = 1 << 20) -> bytes:
        """Take at most ``most`` bytes from the server for the client; return them."""
        try:
            data = self.peer.recv(most)
        except BlockingIOError:
            return b""
        self._incoming.write(data)
        return data

    def client_step(self) -> bool:
        """Go on with the client's handshake; whether it is done."""
        try:
            self.client.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def shake(self) -> None:
        """Shake hands."""
        done = False
        for _ in range(10):
            done = done or self.client_step()
            self.push()
            if "HTTPS" not in self.environ:
                assert self.serve() is None
            self.pull()
            if done and "HTTPS" in self.environ:
                return
        raise AssertionError("no handshake in ten round trips")

    def say(self, data: bytes) -> None:
        """Encipher ``data`` as the client and hand it over."""
        sent = 0
        while sent < len(data):
            sent += self.client.write(data[sent:])
        self.push()

    def hear(self) -> bytes:
        """Return what the client can decipher of what has come."""
        self.pull()
        data = b""
        while True:
            try:
                piece = self.client.read(1 << 20)
            except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                return data
            if not piece:
                return data
            data += piece

    def says_goodbye(self) -> bool:
        """Whether the server has sent close_notify, behind whatever else it has sent."""
        while self.pull():
            pass
        while True:
            try:
                if not self.client.read(1 << 20):
                    return True
            except ssl.SSLZeroReturnError:
                return True
            except (ssl.SSLWantReadError, ssl.SSLError):
                return False

    def wakes(self) -> bool:
        """Whether a level-triggered poller would wake the server now."""
        poll = select.poll()
        poll.register(self.server.fileno(), select.POLLIN)
        return bool(poll.poll(0))
