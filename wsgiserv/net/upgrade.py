"""Leaves a client's socket to the application: WebSockets, and whatever else follows ``Upgrade`` (RFC 9110 §7.8).

An upgrade request finds a socket in its environ. Its first use takes the connection from the server, for good: it
leaves the event loop, and holds its thread or greenlet for as long as the application's call lasts. Then the server
closes it as it closes others, by FIN; it has kept a descriptor of its own for that.

Where the application cannot read the client's socket itself, since it speaks TLS, or since frames have come along with
the request, it gets one end of a socket pair, and a `Tunnel` moves the bytes.
"""

from __future__ import annotations

import _socket
import os
import sys
import termios
from _socket import AF_INET, AF_INET6, IPPROTO_TCP, MSG_DONTWAIT, SHUT_RD, SHUT_WR, socketpair
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import suppress
from errno import EBADF
from fcntl import F_DUPFD_CLOEXEC, fcntl, ioctl
from struct import unpack
from time import monotonic
from typing import Any, Final, Protocol

from wsgiserv.net.client_socket import ClientSocket, off_standard
from wsgiserv.net.request_reader import RequestReader
from wsgiserv.net.serving_context import Loop, ServingContext
from wsgiserv.net.tunnel import LAST_WAIT_S, Tunnel
from wsgiserv.net.upgrade_socket import class_for_applications, release
from wsgiserv.unpatched import allocate_lock

# The names in the environ: the libraries' (simple-websocket looks for gunicorn's), and ours.
KEYS: Final = ("gunicorn.socket", "wsgiserv.socket")
_DRAINED_BYTES: Final = 65536
# So many pieces at most are read from a client that goes on sending, when the process is about to end.
_MOST_DRAINED: Final = 64
# The state, with which Linux's struct tcp_info begins. Only there the wait is needed: see `_await_delivery`.
_TCP_INFO: Final[int] = getattr(_socket, "TCP_INFO", 0) if sys.platform == "linux" else 0
_TCP_CLOSE: Final = 7
# How long a library's own thread may take to send what the end of the connection needs, after the application's call.
_SHARED_S: Final = 1.0
_CHECK_S: Final = 0.005
# How often it is asked whether the client has got the last bytes.
_LOOK_S: Final = 0.02


class Owner(Protocol):
    """The connection, whose module imports this one; attributes as of `Connection`."""

    context: ServingContext
    loop: Loop
    sock: ClientSocket
    fd: int
    reader: RequestReader

    def prepare_upgrade(self) -> None:
        """Send what is queued for the client. Raises RuntimeError, OSError."""

    def begin_upgrade(self) -> None:
        """Leave the socket to the application; waits for nothing. Raises OSError."""


class Upgrade:
    """One upgrade request, from its environ to the end of its connection.

    Args:
        connection: its connection. Raises OSError when no descriptor is left.

    Attributes:
        socket: what the application finds in its environ.
        is_taken: whether the application has the connection.
    """

    def __init__(self, connection: Owner) -> None:
        self._connection = connection
        # Held while it is taken, and while its call ends: one of the two comes first. Nothing waits with it.
        self._lock = allocate_lock()
        self._has_ended = False  # the application's call
        self._has_ended_reading = False
        self._tunnel: Tunnel | None = None
        # What the end of the worker does in place of ending the data: see `call_at_end`.
        self._leave: Callable[[], None] | None = None
        self._is_closed = False  # the application's socket, by the application
        self._released_fd = -1  # of an application's thread that may still be about to use it
        self.is_taken = False
        if type(connection.sock) is RawSocket and connection.reader.buffer is None:
            fd = fcntl(connection.fd, F_DUPFD_CLOEXEC, 3)
        else:
            fd, self._tunnel = _through_tunnel(connection)
        base: Any = connection.loop.socket_class
        try:
            self.socket = class_for_applications(base)(fd, self)
        except BaseException:
            os.close(fd)
            if self._tunnel is not None:
                self._tunnel.discard()
            raise

    # ---- the application's threads -------------------------------------------------------------------------

    def take(self) -> None:
        """Take the connection from the server, once. Raises RuntimeError in a class that cannot hold it, OSError."""
        connection = self._connection
        if not (self.is_taken or self._has_ended):
            connection.prepare_upgrade()  # it may wait, so without the lock
        with self._lock:
            if self.is_taken:  # by another thread
                return
            if self._has_ended:
                raise OSError(EBADF, "the request of this socket has ended")
            connection.begin_upgrade()
            self.is_taken = True
            connection.context.add_upgrade(self)
            if self._tunnel is not None:
                self._tunnel.start(bytes(connection.reader.take_buffer() or b""))
        if connection.context.ends_upgrades:  # it is asked after `add_upgrade`: see there
            self.end_reading()

    def note_closed(self) -> None:
        """Tell the client that nothing more comes: the application has closed its socket."""
        self._is_closed = True
        # Where its reading has ended, a FIN has to wait: see `_await_delivery`.
        if self.is_taken and self._tunnel is None and not self._has_ended_reading:
            with suppress(OSError):
                self._connection.sock.shutdown(SHUT_WR)

    def wait(self, events: int, timeout_s: float) -> bool:
        """Let the calling thread or greenlet wait for its socket; False when the time is over.

        Args:
            events: POLLIN, POLLOUT.
            timeout_s: in seconds.
        """
        fd = self.socket.fileno()
        return fd >= 0 and self._connection.loop.wait_for_any([(fd, events)], max(timeout_s, 0.0))

    def call_at_end(self, leave: Callable[[], None]) -> None:
        """Have ``leave`` called when the worker leaves, in a thread or greenlet of its own: it calls `end_data`.

        Before the socket is taken.
        """
        self._leave = leave

    def prepare_shutdown(self) -> None:
        """Wait until the end of the sending side cannot cost the client anything."""
        if self._tunnel is None and self._has_ended_reading:
            self._await_delivery()

    def inner_fd(self) -> int:
        """Return the client's own descriptor where the application has another socket, for its address; else -1."""
        return -1 if self._tunnel is None else self._connection.fd

    def end(self, finish: Callable[[], None]) -> bool:
        """End with the call of the application; return whether it has had the connection.

        Args:
            finish: called when the client has all that the application has sent, perhaps by another thread; not
                called for a connection that the application has not used.
        """
        if self.is_taken and self.socket.is_shared:
            self._await_others()
        with self._lock:
            self._has_ended = True
        self._released_fd = release(self.socket)
        tunnel = self._tunnel
        if not self.is_taken:
            if tunnel is not None:
                tunnel.discard()
            self._close_released()
            return False
        if tunnel is not None:
            tunnel.end(finish)
        else:
            self.prepare_shutdown()
            finish()
        return True

    def _await_others(self) -> None:
        """Let another thread of the application's end its work on the socket, which it closes then."""
        # simple-websocket tells the application of the end before it answers the client's close frame, in a thread of
        # its own: without the answer the client would have lost the connection. That thread waits with epoll, which
        # tells of nothing when the socket is closed beneath it, and a worker cannot exit before it has ended: so the
        # data ends first, which it finds.
        for is_over in (False, True):
            if is_over:
                self.end_data()
            deadline = monotonic() + _SHARED_S
            while not self._is_closed and monotonic() < deadline:
                self._connection.loop.wait_for_any((), _CHECK_S)

    def _await_delivery(self) -> None:
        """Wait until the client's system has all bytes. In the thread of the request."""
        # Linux resets a connection whose both ends are shut when more data comes (RFC 1122 §4.2.2.13), and drops what
        # it has not delivered by then. Before the FIN a client may go on talking.
        connection = self._connection
        limit_s = connection.context.settings.send_timeout or LAST_WAIT_S
        before, since = -1, monotonic()
        while (unsent := _count_unsent(connection.sock)) and monotonic() < since + limit_s:
            if unsent != before:
                before, since = unsent, monotonic()
            connection.loop.wait_for_any((), _LOOK_S)

    # ---- the end of the worker, and of the connection: any thread ----------------------------------------------

    def end_reading(self) -> None:
        """Let the application find the end of the client's data: it is to close."""
        with self._lock:
            leave, self._leave = self._leave, None
        if leave is not None and not self._has_ended:
            with suppress(RuntimeError):  # the system starts no thread
                self._connection.loop.spawn(leave)
                return
        self.end_data()

    def end_data(self) -> None:
        """End the client's data for the application, now."""
        with self._lock, suppress(OSError):
            if self._has_ended or self._has_ended_reading:
                return
            self._has_ended_reading = True
            if self._tunnel is not None:
                self._tunnel.end_reading()
            else:
                self._connection.sock.shutdown(SHUT_RD)

    def close(self) -> None:
        """End with the connection, by FIN where the application still has it: no time is left. Raises nothing."""
        if self.is_taken and not self._has_ended:
            self._connection.context.drop_upgrade(self)
        if self._tunnel is not None:
            self._tunnel.stop()
        self._close_released()
        sock = self._connection.sock
        # A socket that is closed with unread bytes sends a reset.
        with suppress(OSError):
            sock.shutdown(SHUT_WR)
            for _ in range(_MOST_DRAINED):
                if not sock.recv(_DRAINED_BYTES, MSG_DONTWAIT):
                    break

    def _close_released(self) -> None:
        fd, self._released_fd = self._released_fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def close_in_child(self) -> None:
        """Close what the server has of it, and nothing else: the parent goes on. Called in a child of it."""
        self._lock = allocate_lock()  # another thread may have held it, which does not exist here
        if self._tunnel is not None:
            self._tunnel.close_in_child()


def offer(connection: Owner, environ: dict[str, Any]) -> Upgrade | None:
    """Put the socket into the environ of an upgrade request; None where no descriptor is left for it."""
    try:
        upgrade = Upgrade(connection)
    except OSError:
        return None
    for key in KEYS:
        environ[key] = upgrade.socket
    return upgrade


def _through_tunnel(connection: Owner) -> tuple[int, Tunnel]:
    """Return the application's descriptor, and the tunnel to it. Raises OSError."""
    theirs, ours = (RawSocket(fileno=_high(each.detach())) for each in socketpair())
    return theirs.detach(), Tunnel(connection.loop, connection.sock, ours, connection.context.settings.send_timeout)


def _high(fd: int) -> int:
    """Return ``fd``, moved off the numbers of the standard streams where the application has closed them."""
    return off_standard(fd) if fd <= 2 else fd


def _count_unsent(sock: ClientSocket) -> int:
    """Return how many bytes the client's system has not acknowledged; 0 where that does not matter or is unknown."""
    if type(sock) is not RawSocket or sock.family not in (AF_INET, AF_INET6) or not _TCP_INFO:
        return 0
    with suppress(OSError):
        # The count stays what it was when the client resets the connection; the state does not.
        if sock.getsockopt(IPPROTO_TCP, _TCP_INFO, 1)[0] != _TCP_CLOSE:
            count: int = unpack("i", ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]  # tcp(7): SIOCOUTQ
            return count
    return 0
