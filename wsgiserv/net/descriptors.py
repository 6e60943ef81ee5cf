"""Sending descriptors to another process: unix(7), SCM_RIGHTS; keeping sockets off the standard streams' numbers.

Owns: `send_fds`, `recv_fds`, `fds_in`, `off_standard`.
Must not know: who sends what to whom.

`socket` has the first two, too. Nothing else of it is used here, and it is 0.4 MB in every worker, enumerations mostly.
"""

from __future__ import annotations

from _socket import CMSG_SPACE, SCM_RIGHTS, SOL_SOCKET, socket
from array import array
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["FD_BYTES", "fds_in", "recv_fds", "send_fds"]

FD_BYTES: Final = array("i").itemsize


def send_fds(sock: socket, data: bytes, fds: Sequence[int], flags: int = 0) -> None:
    """Send ``data`` with descriptors. Raises OSError, BlockingIOError with MSG_DONTWAIT."""
    sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))], flags)


def recv_fds(sock: socket, most_bytes: int, most_fds: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive data, and the descriptors that came with it. Raises OSError, BlockingIOError with MSG_DONTWAIT."""
    data, ancillary, _, _ = sock.recvmsg(most_bytes, CMSG_SPACE(most_fds * FD_BYTES), flags)
    return data, fds_in(ancillary)


def fds_in(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Return the descriptors in what recvmsg(2) gave beside the data."""
    fds = array("i")
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % FD_BYTES])
    return fds.tolist()
