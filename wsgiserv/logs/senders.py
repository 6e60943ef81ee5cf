"""Sends messages to other daemons (syslog, statsd) without waiting for them: what a socket does not take is lost.

A datagram socket may be shared with forked children: each datagram is whole. A stream belongs to one process, which
keeps what its daemon does not take at once, up to a limit.
"""

from __future__ import annotations

import _socket
import errno
import os
from _socket import AF_INET, AF_INET6, AF_UNIX, MSG_PEEK, SOCK_DGRAM, SOCK_STREAM, getaddrinfo
from _socket import socket as RawSocket
from collections import deque
from os import getpid
from time import monotonic
from typing import Any, Protocol
from weakref import WeakSet

from wsgiserv.logs.output import IMPATIENT_S, PATIENCE_S, RETRY_S
from wsgiserv.process import is_writable

# An application may have given SIGPIPE its default, which ends the process.
_NO_SIGNAL = getattr(_socket, "MSG_NOSIGNAL", 0)
# A full queue or a connection in progress is normal; it passes.
_FULL = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.EINPROGRESS, errno.EALREADY})
# Kept for a stream whose daemon does not read.
_MOST_WAITING_BYTES = 256 << 10
# UDP takes 65,507 bytes (IPv4).
_LONGEST_DATAGRAM = 65_000


class Target:
    """The address of a daemon.

    Args:
        kind: SOCK_DGRAM or SOCK_STREAM.
        path: a Unix socket; empty for ``host`` and ``port``.
        prefer_ipv4: for a host with addresses of both kinds; otherwise the resolver's first one counts.

    Attributes:
        fault: why the host has no address; None if it has one.

    A host's name is resolved here, once: that may take seconds, which no request may wait for.
    """

    def __init__(self, kind: int, path: str, host: str = "", port: int = 0, prefer_ipv4: bool = False) -> None:
        self.kind = kind
        self.family: int = AF_UNIX
        self.address: Any = path
        self.fault: OSError | None = None
        if path:
            return
        self.family, self.address = AF_INET, (host, port)
        try:
            found = getaddrinfo(host, port, 0, kind)
        except (OSError, UnicodeError) as error:  # a name that cannot be one is a UnicodeError
            self.fault = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
            return
        if prefer_ipv4:
            found.sort(key=lambda each: each[0] != AF_INET)
        usable = [each for each in found if each[0] in (AF_INET, AF_INET6)]
        if usable:
            self.family, self.address = usable[0][0], usable[0][4]
        else:
            self.fault = OSError(errno.EADDRNOTAVAIL, "it has no address")

    def open(self) -> RawSocket:
        """Return a socket that does not wait. Raises OSError."""
        sock = RawSocket(self.family, self.kind)
        sock.setblocking(False)  # or it would obey socket.setdefaulttimeout()
        return sock


class Sender(Protocol):
    """Sends messages. Nothing here raises.

    Attributes:
        lost: the number of messages that are known to be lost.
        knows_arrival: whether a message that is sent has arrived.
    """

    lost: int
    knows_arrival: bool

    @property
    def is_behind(self) -> bool:
        """Whether messages are kept."""

    def send(self, message: bytes) -> OSError | None:
        """Send a message, or keep it; return what is wrong if any is lost, or may be."""

    def flush(self, wait_s: float = 0.0) -> OSError | None:
        """Send what is kept, within so many seconds; return as `send` does."""

    def close(self) -> None:
        """Close the socket."""


class Datagrams:
    """Sends each message as a datagram. Any thread may call, at any time, a signal handler and a child as well.

    Args:
        target: its kind is SOCK_DGRAM.
        patience_s: how long a message waits, once a second at most, for a Unix socket whose queue is full.

    Attributes:
        lost, knows_arrival: see `Sender`.
    """

    is_behind = False

    def __init__(self, target: Target, patience_s: float = 0.0) -> None:
        _senders.add(self)
        self._sock: RawSocket | None = None
        self.lost = 0
        self.knows_arrival = target.family == AF_UNIX
        self._target = target
        self._patience_s = patience_s
        self._patient_at = self._retry_at = 0.0  # time.monotonic()
        self._fault = target.fault
        self._sock = self._open()

    @property
    def sock(self) -> RawSocket | None:
        """The socket; None if the host has no address."""
        return self._sock

    def _open(self) -> RawSocket | None:
        if self._target.fault is not None:
            return None
        try:
            sock = self._target.open()
        except OSError as error:
            self._fault = error
            return None
        self._connect(sock)
        return sock

    def send(self, message: bytes) -> OSError | None:
        """Send a message; see `Sender`."""
        sock = self._sock
        if sock is None:  # closed: `logging.config` and `logging.shutdown` close handlers that are still used
            sock = self._sock = self._open()
        if sock is None or (self._retry_at and monotonic() < self._retry_at):
            self.lost += 1
            return self._fault
        message = message[:_LONGEST_DATAGRAM]
        try:
            sock.send(message, _NO_SIGNAL)
            return None
        except OSError as error:
            fault = self._send_again(sock, message, error)
            self.lost += fault is not None
            return fault

    def _send_again(self, sock: RawSocket, message: bytes, error: OSError) -> OSError | None:
        if error.errno in _FULL:
            if not self._may_wait(sock):
                return error
        elif not self._connect(sock):  # the daemon was restarted, or is away
            return self._fault
        try:
            sock.send(message, _NO_SIGNAL)
        except OSError as again:
            return again
        # Over a network the error was the answer to the datagram before this one.
        return error if self._target.family != AF_UNIX and error.errno == errno.ECONNREFUSED else None

    def _may_wait(self, sock: RawSocket) -> bool:
        now = monotonic()
        if not self._patience_s or now < self._patient_at:
            return False
        self._patient_at = now + IMPATIENT_S
        return is_writable(sock.fileno(), self._patience_s)

    def _connect(self, sock: RawSocket) -> bool:
        """Connect a new socket under the number of ``sock``."""
        # By dup2(2) a thread that is sending at this moment is not disturbed, and no lock is needed. Connected, so that
        # the kernel tells when nobody receives.
        try:
            fresh = self._target.open()
            try:
                fresh.connect(self._target.address)
                if sock.fileno() >= 0:  # another thread may have closed it
                    os.dup2(fresh.fileno(), sock.fileno(), inheritable=False)
            finally:
                fresh.close()
        except OSError as error:
            self._fault, self._retry_at = error, monotonic() + RETRY_S
            return False
        self._fault, self._retry_at = None, 0.0
        return True

    def flush(self, wait_s: float = 0.0) -> OSError | None:
        """Do nothing: nothing is kept."""
        return None

    def close(self) -> None:
        """Close the socket; the next message opens another one."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def __del__(self) -> None:
        self.close()  # without a ResourceWarning at the end of the interpreter


class Stream:
    """Sends messages over a connection of this process. The caller keeps threads apart.

    Args:
        target: its kind is SOCK_STREAM.

    Attributes:
        lost, knows_arrival: see `Sender`.
    """

    knows_arrival = True

    def __init__(self, target: Target) -> None:
        _senders.add(self)
        self._sock: RawSocket | None = None
        self._target = target
        self._begin()

    @property
    def is_behind(self) -> bool:
        """Whether messages are kept."""
        return bool(self._waiting)

    def _begin(self) -> None:
        """Begin without messages and a connection: in a forked child both are its parent's."""
        self.close()
        self.lost = 0
        self._pid = getpid()
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._is_torn = False  # the first one is sent in part
        self._retry_at = 0.0

    def send(self, message: bytes) -> OSError | None:
        """Send a message, or keep it; see `Sender`."""
        if self._pid != getpid():
            self._begin()
        fault = self._target.fault
        if fault is None:
            fault = self.flush()
            if self._size + len(message) <= _MOST_WAITING_BYTES:
                self._waiting.append(message)
                self._size += len(message)
                return self.flush() or fault
        self.lost += 1
        return fault or OSError(errno.EAGAIN, "nothing is read there")

    def flush(self, wait_s: float = 0.0) -> OSError | None:
        """Send what is kept, within so many seconds; see `Sender`."""
        if self._pid != getpid():
            return None
        until = monotonic() + wait_s
        try:
            while self._waiting and (self._sock is not None or self._connect()):
                if not self._send_first():
                    left_s = until - monotonic()
                    assert self._sock is not None
                    if left_s <= 0 or not is_writable(self._sock.fileno(), left_s):
                        break
        except OSError as error:
            self._disconnect()
            return error
        return None

    def _connect(self) -> bool:
        """Connect, waiting a moment for a daemon that is near; return False while it is too early. Raises OSError."""
        now = monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY_S
        self._sock = sock = self._target.open()
        try:
            sock.connect(self._target.address)
        except BlockingIOError:
            is_writable(sock.fileno(), PATIENCE_S)
        return True

    def _send_first(self) -> bool:
        """Send of the first message what the socket takes; return False when it takes nothing. Raises OSError."""
        sock, first = self._sock, self._waiting[0]
        assert sock is not None
        try:
            if self._has_ended(sock):
                raise OSError(errno.EPIPE, "it has closed the connection")
            sent = sock.send(first, _NO_SIGNAL)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise
        self._size -= sent
        self._is_torn = sent < len(first)
        if self._is_torn:
            self._waiting[0] = first[sent:]
        else:
            self._waiting.popleft()
        return True

    def _has_ended(self, sock: RawSocket) -> bool:
        # The kernel would take one more message for a daemon that has closed.
        try:
            return not sock.recv(1, MSG_PEEK)
        except OSError as error:
            if error.errno in (*_FULL, errno.ENOTCONN):
                return False
            raise

    def _disconnect(self) -> None:
        self.close()
        if self._is_torn:  # the next connection must not begin in the middle of a message
            self._is_torn = False
            self._size -= len(self._waiting.popleft())
            self.lost += 1

    def close(self) -> None:
        """Close the connection; the next message opens another one."""
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def __del__(self) -> None:
        self.close()  # without a ResourceWarning at the end of the interpreter


def connect_any(path: str, patience_s: float) -> Sender:
    """Return a sender to a Unix socket of the type that it has now; to one that is not there, of datagrams."""
    datagrams = Target(SOCK_DGRAM, path)
    try:
        sock = datagrams.open()
        try:
            sock.connect(path)
        finally:
            sock.close()
    except OSError as error:
        if error.errno == errno.EPROTOTYPE:
            return Stream(Target(SOCK_STREAM, path))
    return Datagrams(datagrams, patience_s)


_senders: WeakSet[Datagrams | Stream] = WeakSet()


def _forget_parents_losses() -> None:
    for each in list(_senders):
        each.lost = 0


os.register_at_fork(after_in_child=_forget_parents_losses)
