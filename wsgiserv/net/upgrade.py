"""Leaves a client's socket to the application: WebSockets, and whatever else follows ``Upgrade`` (RFC 9110 §7.8).

An upgrade request finds a socket in its environ. Its first use takes the connection from the server, for good: it
leaves the event loop, and holds its thread or greenlet for as long as the application's call lasts. Then the server
closes it as it closes others, by FIN; it has kept a descriptor of its own for that.

Where the application cannot read the client's socket itself, since it speaks TLS, or since frames have come along with
the request, it gets one end of a socket pair, and a `Tunnel` moves the bytes.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT, SHUT_RD, SHUT_WR, SOL_SOCKET, socketpair
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import cache
from socket import socket as Socket
from time import monotonic
from typing import Any, Final, Protocol

from wsgiserv.net.client_socket import ClientSocket
from wsgiserv.net.request_reader import RequestReader
from wsgiserv.net.serving_context import Loop, ServingContext
from wsgiserv.net.tunnel import Tunnel
from wsgiserv.unpatched import get_ident

# The names in the environ: the libraries' (simple-websocket looks for gunicorn's), and ours.
KEYS: Final = ("gunicorn.socket", "wsgiserv.socket")
# The methods of a socket that use the connection. What only describes it is not here: a debugger's page shows the whole
# environ.
_USES: Final = (
    *("close", "detach", "dup", "fileno", "makefile", "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg"),
    *("recvmsg_into", "send", "sendall", "sendfile", "sendmsg", "sendto", "setblocking", "settimeout", "shutdown"),
)
_DRAINED_BYTES: Final = 65536
# How long a library's own thread may take to send what the end of the connection needs, after the application's call.
_SHARED_S: Final = 1.0
_CHECK_S: Final = 0.005
# So many pieces at most are read from a client that goes on sending, when the process is about to end.
_MOST_DRAINED: Final = 64


class Owner(Protocol):
    """The connection, whose module imports this one; attributes as of `Connection`."""

    context: ServingContext
    loop: Loop
    sock: ClientSocket
    fd: int
    reader: RequestReader

    def hand_over(self) -> None:
        """Leave the socket to the application. Raises RuntimeError, OSError."""


class Upgrade:
    """One upgrade request, from its environ to the end of its call.

    Args:
        connection: its connection. Raises OSError when no descriptor is left.

    Attributes:
        socket: what the application finds in its environ.
        is_taken: whether the application has the connection.
    """

    def __init__(self, connection: Owner) -> None:
        self._connection = connection
        self._unused = [True]
        self._tunnel: Tunnel | None = None
        self._leave: Callable[[], None] | None = None
        self._owner = 0
        self._is_shared = self._is_closed = False
        self.is_taken = False
        if type(connection.sock) is RawSocket and connection.reader.buffer is None:
            fd = fcntl(connection.fd, F_DUPFD_CLOEXEC, 3)
        else:
            theirs, ours = socketpair()
            self._tunnel = Tunnel(connection.loop, connection.sock, ours, connection.context.settings.send_timeout)
            fd = theirs.detach()
        base: Any = connection.loop.socket_class
        self.socket = _class_for_applications(base)(fd, self)

    # ---- the application's thread ------------------------------------------------------------------------

    def take(self) -> None:
        """Take the connection from the server, once. Raises RuntimeError in a class that cannot hold it, OSError."""
        try:
            self._unused.pop()
        except IndexError:  # it has been taken, or its request has ended
            self._is_shared = self._is_shared or get_ident() != self._owner
            return
        self._owner = get_ident()
        try:
            self._connection.hand_over()
            if self._tunnel is not None:
                self._tunnel.start(bytes(self._connection.reader.take_buffer() or b""))
        except BaseException:
            self._unused.append(True)
            raise
        self.is_taken = True

    def note_closed(self) -> None:
        """Tell the client that nothing more comes: the application has closed its socket."""
        self._is_closed = True
        if self.is_taken and self._tunnel is None:
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

    def socket_of_client(self) -> Any:
        """Return the client's own socket where the application has another one, for its address and options."""
        return None if self._tunnel is None else self._connection.sock

    def end(self, finish: Callable[[], None]) -> bool:
        """End with the call of the application; return whether it has had the connection.

        Args:
            finish: called when the client has all that the application has sent, perhaps by another thread; not
                called for a connection that the application has not used.
        """
        self._unused.clear()
        if self._is_shared:
            self._await_others()
        _close(self.socket)
        tunnel = self._tunnel
        if not self.is_taken:
            if tunnel is not None:
                tunnel.discard()
            return False
        if tunnel is None:
            finish()
        else:
            tunnel.end(finish)
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

    # ---- the end of the worker: any thread -----------------------------------------------------------------

    def end_reading(self) -> None:
        """Let the application find the end of the client's data: it is to close."""
        leave, self._leave = self._leave, None
        if leave is not None:
            with suppress(RuntimeError):  # the system starts no thread
                self._connection.loop.spawn(leave)
                return
        self.end_data()

    def end_data(self) -> None:
        """End the client's data for the application, now."""
        with suppress(OSError):
            if self._tunnel is not None:
                self._tunnel.end_reading()
            else:
                self._connection.sock.shutdown(SHUT_RD)

    def close(self) -> None:
        """End the connection for the client, by FIN: the worker has no time left. Raises nothing."""
        if self._tunnel is not None:
            self._tunnel.stop()
        sock = self._connection.sock
        # A socket that is closed with unread bytes sends a reset.
        with suppress(OSError):
            sock.shutdown(SHUT_WR)
            for _ in range(_MOST_DRAINED):
                if not sock.recv(_DRAINED_BYTES, MSG_DONTWAIT):
                    break

    def close_in_child(self) -> None:
        """Close what the server has of it, and nothing else: the parent goes on. Called in a child of it."""
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


def _close(sock: Any) -> None:
    """Close an application's socket, whatever it has become, and release what holds it."""
    with suppress(Exception):
        sock._real_close()  # not close(): files that the application has made of it would keep it open
    sock.upgrade = None


@cache  # two at most
def _class_for_applications(base: Any) -> Any:
    """Return a subclass of ``base``, which is `socket.socket` or gevent's, whose first use takes the connection."""

    is_plain = base is Socket

    class UpgradeSocket(base):  # type: ignore[misc]
        """The socket of an upgraded connection. The first use of it takes the connection from the server."""

        def __init__(self, fd: int, upgrade: Upgrade) -> None:
            self.upgrade: Upgrade | None = None
            base.__init__(self, fileno=fd)
            base.settimeout(self, None)
            self.upgrade = upgrade

        def _real_close(self, *arguments: Any) -> None:
            if self.upgrade is not None:
                self.upgrade.note_closed()
            base._real_close(self, *arguments)

        def send(self, data: Any, flags: int = 0) -> int:
            # The kernel's send() returns when a blocking socket has taken everything, and simple-websocket counts on
            # that; gevent's returns before.
            sent = int(base.send(self, data, flags))
            if is_plain or flags or base.gettimeout(self) is not None:
                return sent
            view = memoryview(data).cast("B")
            while sent < len(view):
                sent += base.send(self, view[sent:])
            return sent

        def getpeername(self) -> Any:
            inner = None if self.upgrade is None else self.upgrade.socket_of_client()
            return inner.getpeername() if inner is not None else base.getpeername(self)

        def setsockopt(self, level: int, *arguments: Any) -> None:
            inner = None if self.upgrade is None else self.upgrade.socket_of_client()
            if inner is not None and level != SOL_SOCKET:  # the options of TCP: a socket pair has none
                inner.setsockopt(level, *arguments)
            else:
                base.setsockopt(self, level, *arguments)

        def __repr__(self) -> str:
            state = "" if self.upgrade is not None else " closed"
            return f"<wsgiserv.socket{state}>"

    def using(method: Any) -> Any:
        def use(self: Any, *arguments: Any, **options: Any) -> Any:
            if self.upgrade is not None:
                self.upgrade.take()
            return method(self, *arguments, **options)

        use.__name__ = method.__name__
        use.__doc__ = method.__doc__
        return use

    for name in _USES:
        if method := getattr(UpgradeSocket, name, None):
            setattr(UpgradeSocket, name, using(method))
    return UpgradeSocket
