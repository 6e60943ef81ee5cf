"""The socket that reads a PROXY header: what it takes from the kernel, and what it leaves there."""

from __future__ import annotations

import os
import select
import socket
from _socket import socket as RawSocket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wsgiserv.errors import ProtocolError
from wsgiserv.net.proxy_socket import ProxySocket

HEADER = b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n"


class Pair:
    """A proxy's end, and the server's with the header's reader on it."""

    def __init__(self, mode: str, secured: bool = False) -> None:
        ours, self.proxy = socket.socketpair()
        self.raw = RawSocket(fileno=ours.detach())
        self.environ = {"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "7"}
        self.handed: list[Any] = []
        self.inner: Any = Inner(self.raw) if secured else self.raw
        self.sock = ProxySocket(self.raw, self.inner, mode, self.environ, self.handed.append)

    def recv(self) -> bytes | None:
        """Return what a connection would get; None: nothing yet."""
        try:
            return self.sock.recv(65536)
        except BlockingIOError:
            return None

    def is_readable(self) -> bool:
        return bool(select.select([self.raw.fileno()], [], [], 0)[0])


class Inner:
    """Stands for TLS: another object than the raw socket."""

    def __init__(self, raw: RawSocket) -> None:
        self._raw = raw

    def recv(self, size: int, flags: int = 0) -> bytes:
        return self._raw.recv(size, flags | socket.MSG_DONTWAIT)

    def close(self) -> None:
        self._raw.close()


@pytest.fixture
def pairs() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(*args: Any) -> Pair:
        made.append(Pair(*args))
        return made[-1]

    yield make
    for pair in made:
        pair.proxy.close()
        pair.sock.close()


@pytest.mark.parametrize("secured", [False, True])
def test_not_a_byte_behind_the_header_is_taken(pairs: Callable[..., Pair], secured: bool) -> None:
    for split in range(1, len(HEADER)):
        pair = pairs("v1", secured)
        pair.proxy.sendall(HEADER[:split])
        assert pair.recv() is None
        assert not pair.is_readable(), "a level-triggered poller would spin"
        assert pair.handed == []
        pair.proxy.sendall(HEADER[split:] + b"GET /")
        assert pair.recv() == b"GET /"
        assert pair.handed == [pair.inner]  # from now on the connection has the socket itself
        assert pair.environ["REMOTE_ADDR"] == "203.0.113.9"


def test_nothing_behind_the_header_yet(pairs: Callable[..., Pair]) -> None:
    pair = pairs("v1")
    pair.proxy.sendall(HEADER)
    assert pair.recv() is None
    assert pair.handed == [pair.raw]
    assert not pair.is_readable()


def test_what_only_began_like_a_header_is_given_back(pairs: Callable[..., Pair]) -> None:
    pair = pairs("auto")
    for byte in b"PRO":
        pair.proxy.sendall(bytes([byte]))
        assert pair.recv() is None
    pair.proxy.sendall(b"PFIND /")
    data = pair.recv() or b""
    if pair.is_readable():
        data += pair.raw.recv(100)
    assert data == b"PROPFIND /"
    assert pair.handed == [pair.raw]
    assert pair.environ == {"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "7"}


def test_behind_a_refusal_everything_is_discarded(pairs: Callable[..., Pair]) -> None:
    pair = pairs("v2")
    pair.proxy.sendall(HEADER)
    with pytest.raises(ProtocolError):
        pair.recv()
    pair.proxy.sendall(HEADER)
    assert pair.recv() == HEADER * 2  # a connection that lingers asks for it, and drops it
    assert pair.handed == []


def test_a_look_takes_nothing(pairs: Callable[..., Pair]) -> None:
    pair = pairs("v1")
    pair.proxy.sendall(HEADER)
    assert pair.sock.recv(1, socket.MSG_PEEK) == b"P"
    assert pair.recv() is None
    assert pair.handed == [pair.raw]


def test_the_end_of_input(pairs: Callable[..., Pair]) -> None:
    pair = pairs("v1")
    pair.proxy.sendall(HEADER[:9])
    assert pair.recv() is None
    pair.proxy.close()
    assert pair.recv() == b""


def test_close_closes_the_descriptor(pairs: Callable[..., Pair]) -> None:
    pair = pairs("v1", True)
    fd = pair.sock.fileno()
    pair.sock.close()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(fd)
