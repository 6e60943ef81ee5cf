"""Passes messages, descriptors and outcomes between the server's processes.

A message is one JSON object: a line on a pipe or a stream socket, a packet on a socket of packets, there with
descriptors. A reader never trusts its peer, never waits, keeps at most one message, and takes at most
`MOST_READ_BYTES` at a time. A writer never tears a message: it keeps the rest for later.
"""

from __future__ import annotations

import _socket
import json
import struct
from _socket import AF_UNIX, CMSG_SPACE, MSG_TRUNC, SCM_RIGHTS, SOL_SOCKET, socketpair
from _socket import socket as RawSocket  # a configuration file may have patched `socket` for gevent
from _thread import allocate_lock
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from os import close, geteuid, read, set_blocking, write
from select import POLLIN, POLLOUT, poll
from time import monotonic
from typing import Any, Final, NamedTuple

LONGEST_MESSAGE_BYTES: Final = 1024 * 1024
# A worker runs the application, which can write anything, without end, into any descriptor: a reader takes so much at
# a time, and closes the pipe at the first byte that is not a message's. The pipe holds 64 KiB on Linux, so a peer that
# has exited is read to its end.
MOST_READ_BYTES: Final = 256 * 1024
# What a writer keeps for a reader that does not read (a stopped master); beyond it messages are dropped.
_MOST_UNSENT_BYTES: Final = 4 * LONGEST_MESSAGE_BYTES
_PIECE_BYTES: Final = 64 * 1024


class MessageError(ValueError):
    """The peer has sent something else than a message; the text says why."""


def encode(message: dict[str, Any]) -> bytes:
    """Return ``message`` as one line. Lone surrogates survive, as `json.loads` of bytes takes them."""
    return json.dumps(message, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the message in ``line``. Raises MessageError for anything but one JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        message = None
    if not isinstance(message, dict):
        raise MessageError(f"not a message: {line[:80]!r}")
    return message


def write_all(fd: int, data: bytes) -> None:
    """Write all of ``data`` to a blocking descriptor: write(2) may stop early at a signal. Raises OSError."""
    while data:
        data = data[write(fd, data) :]


# ---- pipes -----------------------------------------------------------------------------------------------


class MessageWriter:
    """Sends messages into a pipe. May be called from any thread, and from a signal handler during a call.

    Args:
        fd: the descriptor, owned from now on. It becomes non-blocking.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unsent: deque[bytes] = deque()
        self._writing = allocate_lock()
        set_blocking(fd, False)

    def send(self, message: dict[str, Any], wait_s: float = 0.0) -> None:
        """Send ``message`` after all unsent ones. A missing reader is not an error.

        Args:
            message: for `encode`; above `LONGEST_MESSAGE_BYTES` encoded it is dropped.
            wait_s: how many seconds to wait while the pipe is full; the rest stays unsent and goes with the next call.
        """
        data = encode(message)
        if len(data) <= LONGEST_MESSAGE_BYTES and sum(map(len, tuple(self._unsent))) < _MOST_UNSENT_BYTES:
            self._unsent.append(data)
        self.flush(wait_s)

    @property
    def is_behind(self) -> bool:
        """Whether the reader has not taken all messages yet."""
        return bool(self._unsent)

    def flush(self, wait_s: float = 0.0) -> None:
        """Write the unsent messages, as far as the pipe takes them within ``wait_s`` seconds."""
        until = monotonic() + wait_s
        # The holder of the lock also writes what others append: a signal handler cannot wait for the code that it
        # has interrupted.
        while self._unsent and self._writing.acquire(blocking=False):
            try:
                is_full = not self._write(until)
            finally:
                self._writing.release()
            if is_full:
                return

    def _write(self, until: float) -> bool:
        """Write until nothing is left; False when the pipe is full and the time is over. By the lock's holder."""
        unsent = self._unsent
        while unsent:
            try:
                sent = write(self._fd, unsent[0][:_PIECE_BYTES])
            except BlockingIOError:
                left_s = until - monotonic()
                if left_s <= 0:
                    return False
                wait_for(self._fd, left_s, POLLOUT)
                continue
            except OSError:  # the reader has gone
                unsent.clear()
                return True
            if sent == len(unsent[0]):
                unsent.popleft()
            else:
                unsent[0] = unsent[0][sent:]
        return True

    def close(self) -> None:
        """Close the pipe; unsent messages are lost."""
        # -1 first: a call from a signal handler must not write into a file that gets the same number.
        fd, self._fd = self._fd, -1
        self._unsent.clear()
        close(fd)


class MessageReader:
    """Receives messages from a pipe, to be polled through `fileno`.

    Args:
        fd: the descriptor, owned from now on. It becomes non-blocking.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        set_blocking(fd, False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Return the messages in the pipe, oldest first, and whether the other end is closed.

        There may be more: read again while the descriptor is readable. At the end of the pipe a last
        message may lack its newline; an unfinished one is dropped, since its sender has exited.

        Raises:
            MessageError: the peer has sent something else; the messages before it are lost, and the pipe is to be
                closed.
        """
        buffer = self._buffer
        closed = False
        left = MOST_READ_BYTES
        while left > 0:
            try:
                data = read(self._fd, min(left, _PIECE_BYTES))
            except BlockingIOError:
                break
            if not data:
                closed = True
                break
            buffer += data
            left -= len(data)
        *lines, rest = buffer.split(b"\n")
        messages = [decode(bytes(line)) for line in lines]
        # Before its end has come: garbage without a newline is noticed at its first byte.
        if rest and not rest.startswith(b"{"):
            raise MessageError(f"not a message: {bytes(rest[:80])!r}")
        if len(rest) > LONGEST_MESSAGE_BYTES:
            raise MessageError(f"a message of more than {LONGEST_MESSAGE_BYTES} bytes")
        # A writer that was killed within a message: nothing is missing if only the newline is.
        if closed and rest:
            with suppress(MessageError):
                messages.append(decode(bytes(rest)))
            rest.clear()
        self._buffer = rest
        return messages, closed

    def read_first(self) -> dict[str, Any] | None:
        """Wait for a message; return it, or None when the other end is closed. Raises MessageError as `read`."""
        while True:
            messages, closed = self.read()
            if messages or closed:
                return messages[0] if messages else None
            wait_for(self._fd, None)

    def close(self) -> None:
        """Close the pipe."""
        fd, self._fd = self._fd, -1
        close(fd)


def wait_for(fd: int, wait_s: float | None, events: int = POLLIN) -> bool:
    """Return whether a descriptor has become ready for ``events``; ``wait_s`` None waits without limit."""
    poller = poll()
    poller.register(fd, events)
    # poll(2) takes milliseconds as an int, so no more than 24 days.
    return bool(poller.poll(None if wait_s is None else min(wait_s, 2_000_000) * 1000))


class OutcomeWriter:
    """Tells another process, once, the outcome of something; a pipe closed without a message means failure.

    Args:
        fd: the pipe, owned from now on; blocking.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def tell(self, outcome: dict[str, Any]) -> None:
        """Send ``outcome``, the first time. A missing reader is not an error."""
        if self._fd >= 0:
            with suppress(OSError):
                write_all(self._fd, encode(outcome))
            self.close()

    def close(self) -> None:
        """Close the pipe. Also called in each child."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


# ---- sockets of packets ------------------------------------------------------------------------------------

# Absent on some platforms, which have no such sockets, or close descriptors at execve(2) by a second system call.
_SOCK_SEQPACKET: Final = getattr(_socket, "SOCK_SEQPACKET", 5)
_MSG_CMSG_CLOEXEC: Final = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
_FD_BYTES: Final = array("i").itemsize


class Packet(NamedTuple):
    """A packet with its descriptors; the receiver owns these.

    Attributes:
        data: the bytes; empty: the other end is closed.
        fds: the descriptors, close-on-exec.
        is_truncated: whether the packet was longer than the receiver had asked for.
    """

    data: bytes
    fds: list[int]
    is_truncated: bool


def packet_pair() -> tuple[RawSocket, RawSocket]:
    """Return a connected pair of sockets with packet boundaries. Raises OSError."""
    return socketpair(AF_UNIX, _SOCK_SEQPACKET)


def packet_socket(fd: int) -> RawSocket:
    """Return the socket ``fd``, one of a `packet_pair`."""
    return RawSocket(AF_UNIX, _SOCK_SEQPACKET, 0, fd)


# Not `socket.send_fds` and `recv_fds`: up to Python 3.13 both drop the flags that they are given. Without
# MSG_CMSG_CLOEXEC a program that the application starts meanwhile inherits a client's socket.
def send_packet(sock: RawSocket, data: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Send a packet with descriptors; these stay the caller's.

    Raises:
        OSError: BlockingIOError when a non-blocking socket, or one with MSG_DONTWAIT, has no room.
    """
    sock.sendmsg([data], [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))], flags)


def receive_packet(sock: RawSocket, longest_bytes: int, most_fds: int, flags: int = 0) -> Packet:
    """Receive a packet.

    Raises:
        OSError: BlockingIOError when a non-blocking socket, or one with MSG_DONTWAIT, has none.
    """
    room = CMSG_SPACE(most_fds * _FD_BYTES)
    data, ancillary, found, _ = sock.recvmsg(longest_bytes, room, flags | _MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    return Packet(data, fds.tolist(), bool(found & MSG_TRUNC))


# ---- the peer ----------------------------------------------------------------------------------------------

_SO_PEERCRED: Final[int | None] = getattr(_socket, "SO_PEERCRED", None)
_UCRED: Final = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid


def peer_of(sock: RawSocket) -> tuple[int, int]:
    """Return the process id and the user id at the other end of a Unix socket (SO_PEERCRED, unix(7)).

    Where the system does not tell, the socket's mode and directory have kept others out: pid 0, this user.
    """
    if _SO_PEERCRED is None:
        return 0, geteuid()
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(SOL_SOCKET, _SO_PEERCRED, _UCRED.size))
    return pid, uid
