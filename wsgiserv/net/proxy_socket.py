"""A client's socket on which a proxy first says whom it speaks for (PROXY protocol).

Owns: `ProxySocket`.
Must not know: HTTP, TLS, which peers may speak it.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT, MSG_PEEK
from _socket import socket as RawSocket
from collections.abc import Callable
from typing import TYPE_CHECKING

from wsgiserv.errors import ProtocolError
from wsgiserv.http.proxy_protocol import LONGEST_BYTES, read_proxy_line

if TYPE_CHECKING:
    from wsgiserv.net.tls import TLSSocket

__all__ = ["ProxySocket"]


class ProxySocket:
    """Stands in for a connection's socket until the PROXY header has been read.

    The header is looked at before it is taken out of the kernel, and not one byte behind it is taken: TLS or
    HTTP finds its own first byte there.

    Args:
        raw: the accepted socket.
        inner: what the connection is to use afterwards: ``raw``, or TLS over it.
        mode: ``v1``, ``v2`` or ``auto`` (``proxy_protocol``).
        environ: the client's part of the environ; what the proxy says is written into it, before any request.

    Attributes:
        hand_over: called with ``inner`` when the header has been read; set by whoever makes the connection.
    """

    __slots__ = ("_environ", "_inner", "_mode", "_raw", "_refused", "_seen", "hand_over")

    def __init__(
        self, raw: RawSocket, inner: RawSocket | TLSSocket, mode: str, environ: dict[str, str]
    ) -> None:
        self._raw = raw
        self._inner = inner
        self._mode = mode
        self._environ = environ
        self._seen = b""
        self._refused = False
        self.hand_over: Callable[[RawSocket | TLSSocket], object] | None = None

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Go on with the header; behind it, return what comes next.

        Raises:
            BlockingIOError: the header is not complete, or nothing is here behind it.
            ProtocolError: 400, the header is malformed or missing.
            OSError: the connection is broken.
        """
        if self._refused or flags & MSG_PEEK:
            return self._raw.recv(size, flags | MSG_DONTWAIT)
        seen = self._seen
        peeked = self._raw.recv(LONGEST_BYTES - len(seen), MSG_PEEK | MSG_DONTWAIT)
        if not peeked:
            return b""
        try:
            line = read_proxy_line(seen + peeked, self._mode)
            if line is not None and seen and not line.size and self._inner is not self._raw:
                raise ProtocolError(400, "neither a PROXY protocol header nor TLS")
        except ProtocolError:
            self._refused = True  # what comes from now on is read to be discarded
            raise
        if line is None:
            # All of it belongs to the header. Taken, or a level-triggered poller would spin on it.
            self._seen = seen + self._raw.recv(len(peeked), MSG_DONTWAIT)
            raise BlockingIOError("the PROXY header is not complete yet")
        if line.size:
            self._raw.recv(line.size - len(seen), MSG_DONTWAIT)
        if line.protocol:
            self._environ.update(
                REMOTE_ADDR=line.source[0],
                REMOTE_PORT=str(line.source[1]),
                # gunicorn's names
                PROXY_PROTOCOL=line.protocol,
                PROXY_ADDR=line.destination[0],
                PROXY_PORT=str(line.destination[1]),
            )
        self._open()
        if seen and not line.size:
            # No header, as `auto` allows; but it began like one, so its first bytes have been taken.
            return seen
        return self._inner.recv(size, flags | MSG_DONTWAIT)

    def _open(self) -> None:
        hand_over, self.hand_over = self.hand_over, None
        if hand_over is not None:
            hand_over(self._inner)

    # ---- the rest of a socket, for the refusal of a header: it goes out in clear ----------------------

    def send(self, data: bytes | memoryview, flags: int = 0) -> int:
        """Send on the raw socket. Raises OSError."""
        return self._raw.send(data, flags)

    def sendmsg(
        self, buffers: tuple[bytes | memoryview, ...], ancillary: tuple[()] = (), flags: int = 0
    ) -> int:
        """Send on the raw socket. Raises OSError."""
        return self._raw.sendmsg(buffers, ancillary, flags)

    def shutdown(self, how: int) -> None:
        """End a direction of the raw socket: what comes from now on is discarded unread. Raises OSError."""
        self._raw.shutdown(how)

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Set an option of the raw socket."""
        self._raw.setsockopt(level, name, value)

    def setblocking(self, blocking: bool) -> None:
        """Set the raw socket's mode."""
        self._raw.setblocking(blocking)

    def fileno(self) -> int:
        """Return the raw socket's descriptor; -1 when closed."""
        return self._raw.fileno()

    def close(self) -> None:
        """Close the socket."""
        self.hand_over = None
        self._inner.close()

    def close_in_child(self) -> None:
        """Close the descriptor without a word: the parent goes on with the connection. Called in its child."""
        self.hand_over = None
        self._raw.close()
