"""The client's socket as a connection uses it: a plain one, or an object around it that speaks TLS or PROXY first."""

from __future__ import annotations

import os
import struct
from _socket import SO_LINGER, SOL_SOCKET
from _socket import socket as RawSocket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fcntl import F_DUPFD_CLOEXEC, fcntl
from typing import Any, Final, TypeAlias

# SO_LINGER with no time: closing resets the connection.
_NO_TIME: Final = struct.pack("ii", 1, 0)
# A struct sockaddr of the family AF_UNSPEC (0).
_UNSPECIFIED: Final = bytes(16)

_libc: Any = None


class WrappedSocket(ABC):
    """An object around a socket: the same calls, and none of them waits. All but `fileno` raise OSError.

    Args:
        raw: the socket inside; these calls go to it unless a subclass has its own.
    """

    # The connection calls these for every socket, so an object that changes only some of them need not name the rest.
    __slots__ = ("_raw",)
    _raw: RawSocket

    @abstractmethod
    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return the next bytes; may raise ProtocolError, too."""

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Send the beginning of ``data``; return how many bytes."""
        return self._raw.send(data, flags)

    def sendmsg(self, buffers: Sequence[bytes | memoryview], ancillary: tuple[()] = (), flags: int = 0) -> int:
        """Send the beginning of ``buffers`` as if they were one; return how many bytes."""
        return self._raw.sendmsg(buffers, ancillary, flags)

    def shutdown(self, how: int) -> None:
        """End a direction."""
        self._raw.shutdown(how)

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Set an option of the socket inside."""
        self._raw.setsockopt(level, name, value)

    def getpeername(self) -> Any:
        """Return the address of the other end."""
        return self._raw.getpeername()

    def setblocking(self, blocking: bool) -> None:
        """Set the mode of the socket inside; reads and sends here never wait in either."""
        self._raw.setblocking(blocking)

    def fileno(self) -> int:
        """Return the descriptor, for a poller; -1 when closed."""
        return self._raw.fileno()

    @abstractmethod
    def close(self) -> None:
        """Close the socket."""

    def close_in_child(self) -> None:
        """Close the descriptor and send nothing: the parent uses the connection. Called in a child process of it."""
        self._raw.close()


ClientSocket: TypeAlias = RawSocket | WrappedSocket


def reset(sock: ClientSocket) -> None:
    """Reset the connection now; the caller closes the socket. Never raises."""
    global _libc
    try:
        sock.setsockopt(SOL_SOCKET, SO_LINGER, _NO_TIME)
        # SO_LINGER resets when the last descriptor is closed, and a child of the application may have another. Linux
        # resets at once when connect(2) with AF_UNSPEC dissolves the connection. A Unix socket supports neither.
        if _libc is None:
            import ctypes  # here: few workers ever need it

            _libc = ctypes.CDLL(None)
        _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))
    except (OSError, ImportError, AttributeError):
        pass


def off_standard(fd: int) -> int:
    """Move an accepted socket off the number of a standard stream.

    Args:
        fd: the socket: 0, 1 or 2, since the application has closed that stream. Text that is printed, or logged to the
            stream, would reach the client. The null device takes the number.

    Returns:
        The socket's new descriptor.

    Raises:
        OSError: no descriptor is left; ``fd`` is closed then.
    """
    try:
        high = fcntl(fd, F_DUPFD_CLOEXEC, 3)
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:
        os.close(fd)
        raise
    # The number is taken at once: the next file that is opened would get it.
    os.dup2(null, fd)
    os.close(null)
    return high
