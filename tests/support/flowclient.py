"""Reads the streams of `flowapps` block by block."""

from __future__ import annotations

from pathlib import Path

from rawclient import RawClient

# More than a pair of sockets takes, over TCP and, by far, over a Unix socket.
BLOCK = 4 << 20
COUNT = 3


def numbered(number: int, size: int) -> bytes:
    """Return what `flowapps.block` makes."""
    return (b"%08d" % number) * (size // 8)


class Reader:
    """Reads a body by hand, and opens the application's gate at each block that is here whole."""

    def __init__(self, client: RawClient, gate: Path) -> None:
        self._client = client
        self._gate = gate
        self.is_chunked = False
        self._left = 0  # of the current chunk

    def head(self) -> str:
        """Read the head and return it, in lower case."""
        head = self._client._until(b"\r\n\r\n", "a head").decode("latin-1").lower()
        self.is_chunked = "transfer-encoding: chunked" in head
        return head

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes of the body."""
        if not self.is_chunked:
            return self._client._exactly(size, "a body")
        body = bytearray()
        while len(body) < size:
            if not self._left:
                self._left = int(self._client._until(b"\r\n", "a chunk's size"), 16)
                assert self._left, "the last chunk has come too early"
            piece = self._client._exactly(min(self._left, size - len(body)), "a chunk")
            body += piece
            self._left -= len(piece)
            if not self._left:
                assert self._client._exactly(2, "a chunk's end") == b"\r\n"
        return bytes(body)

    def read_blocks(self, count: int = COUNT, size: int = BLOCK) -> None:
        """Take all blocks, each before the next is made."""
        for number in range(count):
            assert self.take(size) == numbered(number, size)
            (self._gate / str(number)).touch()
