"""A client's socket on which a proxy first names its client (PROXY protocol)."""

from __future__ import annotations

from _socket import MSG_DONTWAIT, MSG_PEEK
from _socket import socket as RawSocket
from collections.abc import Callable
from dataclasses import dataclass, field

from wsgiserv.errors import ProtocolError
from wsgiserv.http.proxy_protocol import LONGEST_BYTES, read_proxy_line
from wsgiserv.net.client_socket import ClientSocket, WrappedSocket


@dataclass(slots=True, eq=False, repr=False)
class ProxySocket(WrappedSocket):
    """Stands in for a connection's socket until the PROXY header has been read.

    The header is peeked at before it is taken out of the kernel, and no byte behind it is taken: TLS or HTTP finds its
    own first byte there.

    Args:
        raw: the accepted socket.
        inner: the socket that the connection uses afterwards: ``raw``, or TLS over it.
        mode: ``v1``, ``v2`` or ``auto`` (``proxy_protocol``).
        environ: the client's part of the environ; the values of the header are written into it, before any request.
        replace: called with ``inner`` when the header has been read.
    """

    _raw: RawSocket
    _inner: ClientSocket
    _mode: str
    _environ: dict[str, str]
    # Dropped as soon as it is not needed: it refers to the connection, which refers to this.
    _replace: Callable[[ClientSocket], object] | None
    _seen: bytes = field(init=False, default=b"")
    _refused: bool = field(init=False, default=False)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Read on in the header; behind it, return the bytes that come next.

        Raises:
            BlockingIOError: the header is not complete, or nothing is here behind it.
            ProtocolError: 400, the header is malformed or missing.
            OSError: the connection is broken.
        """
        if self._refused or flags & MSG_PEEK:
            return self._raw.recv(size, flags | MSG_DONTWAIT)
        seen = self._seen
        # MSG_PEEK: bytes behind the header stay in the kernel, where TLS or HTTP finds its own first byte.
        peeked = self._raw.recv(LONGEST_BYTES - len(seen), MSG_PEEK | MSG_DONTWAIT)
        if not peeked:
            return b""
        try:
            line = read_proxy_line(seen + peeked, self._mode)
            # Its first bytes have been taken, so TLS would begin in the middle of a record.
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
        replace, self._replace = self._replace, None
        if replace is not None:
            replace(self._inner)
        if seen and not line.size:
            # No header, as `auto` allows; but it began like one, so its first bytes have been taken.
            return seen
        return self._inner.recv(size, flags | MSG_DONTWAIT)

    # ---- the end; what else a socket has goes to the raw one: the refusal of a header is sent in clear ---

    def close(self) -> None:
        """Close the socket."""
        self._replace = None
        self._inner.close()

    def close_in_child(self) -> None:
        """Close the descriptor and send nothing: the parent uses the connection. Called in its child."""
        self._replace = None
        self._raw.close()
