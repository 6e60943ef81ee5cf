"""Resetting a client's connection, also while another process has its descriptor.

Owns: `reset`.
Must not know: when a connection is to be reset, connections.
"""

from __future__ import annotations

import struct
from _socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _socket import socket as RawSocket

    from wsgiserv.net.proxy_socket import ProxySocket
    from wsgiserv.net.tls import TLSSocket

__all__ = ["reset"]

# SO_LINGER with no time: closing resets the connection.
_NO_TIME: Final = struct.pack("ii", 1, 0)
# A struct sockaddr of the family AF_UNSPEC (0).
_UNSPECIFIED: Final = bytes(16)

_libc: Any = None


def reset(sock: RawSocket | TLSSocket | ProxySocket) -> None:
    """Reset the connection now; the caller closes the socket. Never raises.

    SO_LINGER resets when the last descriptor is closed, and a child of the application may have another. connect(2)
    with AF_UNSPEC dissolves the connection itself, which Linux does with a reset. A Unix socket knows neither.
    """
    global _libc
    try:
        sock.setsockopt(SOL_SOCKET, SO_LINGER, _NO_TIME)
        if _libc is None:
            import ctypes  # here: few workers ever need it

            _libc = ctypes.CDLL(None)
        _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))
    except (OSError, ImportError, AttributeError):
        pass
