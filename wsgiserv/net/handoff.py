"""The channel on which workers pass connections to one another.

All workers of all generations share one pair of sockets, for the life of the server; an upgrade passes it on to the
next master, perhaps of another version. The kernel keeps a client's socket open while its message waits for a worker.
"""

from __future__ import annotations

import logging
from _socket import MSG_DONTWAIT, SO_SNDBUF, SOL_SOCKET, getdefaulttimeout
from _socket import socket as RawSocket
from contextlib import suppress
from errno import EAGAIN, EMSGSIZE, ENOBUFS, ETOOMANYREFS
from fcntl import F_DUPFD_CLOEXEC, fcntl
from os import close, dup, set_inheritable
from typing import Final, NamedTuple

from wsgiserv.ipc import decode, encode, packet_pair, packet_socket, receive_packet, send_packet
from wsgiserv.net.serving_context import NEVER

# Of the messages. One of another version is refused: during an upgrade, both versions read the same channel.
_VERSION: Final = 1
# A connection with more unread bytes than this is not moved.
MOST_MOVED_BYTES: Final = 64 * 1024
_HEADER_BYTES: Final = 16 * 1024
# The kernel gives what net.core.wmem_max allows.
_SEND_BUFFER_BYTES: Final = 1024 * 1024
# Corrupt messages that are dropped at a time: a process that writes them without end must not delay others.
_MOST_CORRUPT: Final = 64
_FULL: Final = frozenset({EAGAIN, ENOBUFS, ETOOMANYREFS, EMSGSIZE})


class ConnectionState(NamedTuple):
    """The values sent with a connection's socket.

    Attributes:
        peer: the client's keys of the environ; behind a proxy, as its PROXY header has said.
        peer_name: the client's address for logs.
        data: bytes read and not yet given to the application.
        waiting: whether ``data`` is unexamined; otherwise it is the beginning of a head.
        blank: whether an empty line before the head has been skipped.
        used: whether a request has been answered on the connection.
        deadline: when its client must have sent the next head; ``time.monotonic()`` is one clock for all processes.
    """

    peer: dict[str, str]
    peer_name: bytes
    data: bytes
    waiting: bool
    blank: bool
    used: bool
    deadline: float


class Transferred(NamedTuple):
    """A connection from the channel. The receiver owns ``sock``.

    Attributes:
        sock: the client's socket.
        listener: the address of its listener; empty when the sender did not know it.
        state: all else.
    """

    sock: RawSocket
    listener: str
    state: ConnectionState


class Handoff:
    """Both ends of the channel, non-blocking, close-on-exec, never one of the standard streams' descriptors.

    Any number of processes and threads may send and receive at once: a message is one connection.

    Args:
        receiver, sender: the two ends, owned from now on.
    """

    def __init__(self, receiver: RawSocket, sender: RawSocket) -> None:
        self._receiver = receiver
        self._sender = sender
        self._warned = False
        for sock in (receiver, sender):
            sock.setblocking(False)
        # One message may hold 64 KiB, and a full channel makes a leaving worker wait.
        with suppress(OSError):
            sender.setsockopt(SOL_SOCKET, SO_SNDBUF, _SEND_BUFFER_BYTES)

    @classmethod
    def open(cls) -> Handoff | None:
        """Return a channel; None where the platform has none, or descriptors have run out. Called by the master."""
        pair: tuple[RawSocket, ...] = ()
        try:
            pair = packet_pair()
            receiver, sender = map(_above_standard_streams, pair)
        except OSError:
            for sock in pair:
                sock.close()
            return None
        return cls(receiver, sender)

    @classmethod
    def from_fds(cls, receive_fd: int, send_fd: int) -> Handoff:
        """Return the channel of these descriptors, as `fds` has given them (to the next master of an upgrade)."""
        receiver, sender = map(packet_socket, (receive_fd, send_fd))
        # They had to be inheritable for the exec of the upgrade; programs of the application must not get them.
        for fd in (receive_fd, send_fd):
            set_inheritable(fd, False)
        return cls(receiver, sender)

    def fds(self) -> tuple[int, int]:
        """Return the descriptors of the receiving and of the sending end."""
        return self._receiver.fileno(), self._sender.fileno()

    def fileno(self) -> int:
        """Return the descriptor to poll: readable while a connection waits."""
        return self._receiver.fileno()

    def send(self, fd: int, state: ConnectionState, listener: str) -> bool:
        """Send a connection. The caller closes its own descriptor after that.

        Args:
            fd: the client's socket.
            state: the values of the connection.
            listener: the address of its listener.

        Returns:
            False when the channel is full, which is usual: try again some milliseconds later.

        Raises:
            OSError: the channel is broken.
        """
        deadline = state.deadline
        header = {
            "version": _VERSION,
            "listener": listener,
            "peer": state.peer,
            "name": state.peer_name.decode("latin-1"),
            "waiting": state.waiting,
            "blank": state.blank,
            "used": state.used,
            # JSON has no infinity.
            "deadline": None if deadline == NEVER else deadline,
        }
        try:
            send_packet(self._sender, encode(header) + state.data, [fd], MSG_DONTWAIT)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise
        return True

    def receive(self, log: logging.Logger) -> Transferred | None:
        """Take a connection; None when none waits.

        Args:
            log: gets a line, once, for connections of another version.

        Raises:
            OSError: EMFILE or ENFILE, there is no descriptor left for it; it stays in the channel.
        """
        for _ in range(_MOST_CORRUPT):
            # The kernel drops a descriptor that the receiver has no room for, and the client with it.
            close(dup(self._receiver.fileno()))
            try:
                message, fds, is_truncated = receive_packet(
                    self._receiver, MOST_MOVED_BYTES + _HEADER_BYTES, 1, MSG_DONTWAIT
                )
            except BlockingIOError:
                return None
            if not message:
                return None
            if not fds:
                continue  # another thread has taken the last descriptor in between
            try:
                sock = RawSocket(fileno=fds[0])
            except OSError:  # not a socket
                close(fds[0])
                continue
            if getdefaulttimeout() is not None:
                sock.settimeout(None)  # the application has called socket.setdefaulttimeout()
            try:
                # Checked as a client's bytes are: during an upgrade another version writes here, too.
                if is_truncated:
                    raise ValueError("longer than any message")
                transferred = _read(sock, message)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                sock.close()
                continue
            if transferred is not None:
                return transferred
            sock.close()
            if not self._warned:
                self._warned = True
                log.warning(
                    "WS1401 handoff: connections of another version of wsgiserv are closed; their clients connect again"
                )
        return None

    def close(self) -> None:
        """Close both ends of this process."""
        self._receiver.close()
        self._sender.close()


def _above_standard_streams(sock: RawSocket) -> RawSocket:
    """Return ``sock`` under a descriptor above 2: closed standard streams are opened again later."""
    if sock.fileno() > 2:
        return sock
    fd = fcntl(sock.fileno(), F_DUPFD_CLOEXEC, 3)
    sock.close()
    return packet_socket(fd)


def _read(sock: RawSocket, message: bytes) -> Transferred | None:
    """Return the connection of a message; None for another version. Raises ValueError, KeyError, TypeError."""
    text, separator, data = message.partition(b"\n")
    if not separator:
        raise ValueError("a message without a header")
    header = decode(text)
    # Before any other key is read: another version may have others.
    if header.get("version") != _VERSION:
        return None
    deadline, listener, peer = header["deadline"], header["listener"], dict(header["peer"])
    if len(data) > MOST_MOVED_BYTES or not all(type(each) is str for each in (listener, *peer.values())):
        raise ValueError("not a message of a worker")
    return Transferred(
        sock,
        listener,
        ConnectionState(
            peer=peer,
            peer_name=header["name"].encode("latin-1"),
            data=data,
            waiting=bool(header["waiting"]),
            blank=bool(header["blank"]),
            used=bool(header["used"]),
            deadline=NEVER if deadline is None else float(deadline),
        ),
    )
