"""The class of the socket that an application finds in the environ of an upgrade request."""

from __future__ import annotations

from _socket import SHUT_RD, SOL_SOCKET
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import cache
from socket import socket as _Socket
from typing import Any, Final, Protocol

from wsgiserv.unpatched import get_ident

# The methods of a socket that use the connection. What only describes it is not here: a debugger's page shows the whole
# environ.
_USES: Final = (
    *("detach", "fileno", "makefile", "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg"),
    *("recvmsg_into", "sendall", "sendfile", "sendmsg", "sendto", "setblocking", "settimeout"),
)


class Taker(Protocol):
    """An `Upgrade`."""

    def take(self) -> None:
        """Take the connection from the server. Raises RuntimeError, OSError."""

    def note_closed(self) -> None:
        """Tell the client that nothing more comes."""

    def prepare_shutdown(self) -> None:
        """Wait until the end of the sending side cannot cost the client anything."""

    def inner_fd(self) -> int:
        """Return the client's own descriptor where the application has another socket; else -1."""


@cache  # two at most
def class_for_applications(base: Any) -> Any:
    """Return a subclass of ``base``, which is `socket.socket` or gevent's, whose first use takes the connection."""

    is_plain = base is _Socket

    class UpgradeSocket(base):  # type: ignore[misc]
        """The socket of an upgraded connection. The first use of it takes the connection from the server."""

        def __init__(self, fd: int, upgrade: Taker) -> None:
            self.is_unused = False  # the base class may use it while it is made
            self.is_shared = False  # several threads use it
            self._user = get_ident()
            self.upgrade: Taker | None = None
            base.__init__(self, fileno=fd)
            self.upgrade = upgrade
            self.is_unused = True

        def _take(self) -> None:
            upgrade = self.upgrade
            if upgrade is not None:
                upgrade.take()
                if self.is_unused:
                    # Only now: it is a mode of the connection, not of the descriptor, and the server has used both.
                    base.settimeout(self, None)
            self.is_unused, self._user = False, get_ident()

        def close(self) -> None:
            if self.is_unused:
                with suppress(OSError):  # the client has gone, or this is a child of the server's process
                    self._take()
            base.close(self)

        def send(self, data: Any, flags: int = 0) -> int:
            if self.is_unused:
                self._take()
            elif self._user != get_ident():
                self.is_shared = True
            # The kernel's send() returns when a blocking socket has taken everything, and simple-websocket counts on
            # that; gevent's returns before.
            sent = int(base.send(self, data, flags))
            if is_plain or flags or base.gettimeout(self) is not None:
                return sent
            view = memoryview(data).cast("B")
            while sent < len(view):
                sent += base.send(self, view[sent:])
            return sent

        def shutdown(self, how: int) -> None:
            if self.is_unused:
                self._take()
            if self.upgrade is not None and how != SHUT_RD:
                self.upgrade.prepare_shutdown()
            base.shutdown(self, how)

        def _real_close(self, *arguments: Any) -> None:
            if self.upgrade is not None:
                self.upgrade.note_closed()
            base._real_close(self, *arguments)

        def _of_client(self, method: Callable[..., Any], *arguments: Any) -> Any:
            """Call a method of `socket.socket`, on the client's own socket where this is another one."""
            fd = -1 if self.upgrade is None else self.upgrade.inner_fd()
            if fd < 0:
                return method(self, *arguments)
            sock = RawSocket(fileno=fd)
            try:
                return getattr(sock, method.__name__)(*arguments)
            finally:
                sock.detach()

        def dup(self) -> Any:
            if self.is_unused:
                self._take()
            # A plain one: the class of this one is made otherwise.
            fd = fcntl(base.fileno(self), F_DUPFD_CLOEXEC, 3)
            copy = base(self.family, self.type, self.proto, fileno=fd)
            copy.settimeout(base.gettimeout(self))
            return copy

        def getpeername(self) -> Any:
            return self._of_client(base.getpeername)

        def getsockname(self) -> Any:
            return self._of_client(base.getsockname)

        def getsockopt(self, level: int, *arguments: Any) -> Any:
            if level == SOL_SOCKET:
                return base.getsockopt(self, level, *arguments)
            return self._of_client(base.getsockopt, level, *arguments)  # TCP's: a socket pair has none

        def setsockopt(self, level: int, *arguments: Any) -> None:
            if level == SOL_SOCKET:
                base.setsockopt(self, level, *arguments)
            else:
                self._of_client(base.setsockopt, level, *arguments)

        def __repr__(self) -> str:
            state = " closed" if self.upgrade is None else "" if self.is_unused else " in use"
            return f"<wsgiserv.socket{state}>"

    for name in _USES:
        if method := getattr(base, name, None):
            setattr(UpgradeSocket, name, _using(method))
    return UpgradeSocket


def _using(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``method`` with the taking before it."""

    def use(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.is_unused:
            self._take()
        elif self._user != get_ident():
            self.is_shared = True
        return method(self, *arguments, **options)

    use.__name__ = method.__name__
    use.__doc__ = method.__doc__
    return use


def release(sock: Any) -> int:
    """Close an application's socket, whatever it has become; return a descriptor to be closed later, or -1."""
    sock.upgrade, sock.is_unused = None, False
    with suppress(Exception):
        if isinstance(sock, _Socket):
            # Another thread may be on its way into recv(2) with this number, which is not to be a new client's yet.
            fd: int = _Socket.detach(sock)
            return fd
        # gevent's ends the waits of other greenlets. Not close(): files made of it would keep it open.
        sock._real_close()
    return -1
