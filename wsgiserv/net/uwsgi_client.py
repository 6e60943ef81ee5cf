"""A connection whose requests are uwsgi packets instead of HTTP heads.

Owns: `UwsgiConnection`, and `BarredConnection` for peers that may not speak it.
Must not know: the packet's grammar, who waits for the socket.

Only the taking of the head differs. The response is HTTP/1.x, and the connection ends with it.
"""

from __future__ import annotations

from typing import Any

from wsgiserv.errors import ProtocolError
from wsgiserv.http.uwsgi import UwsgiReader, read_variables
from wsgiserv.net.client import Connection

__all__ = ["BarredConnection", "UwsgiConnection"]


class UwsgiConnection(Connection):
    """One proxy's request: `Connection` with another head.

    Args:
        reader: reads the packets; one per worker.
        others: as of `Connection`.
    """

    __slots__ = ("_reader",)

    def __init__(self, reader: UwsgiReader, *others: Any) -> None:
        super().__init__(*others)
        self._reader = reader

    def _take_head(self, data: bytes) -> bool:
        buffer = self._buffer
        if buffer is None:
            self.deadline = self.context.now + self.context.header_timeout
        else:
            data = bytes(buffer) + data
            self._buffer = None
        reader = self._reader
        size = reader.size(data)
        if not size or len(data) < size:
            self._buffer = bytearray(data)
            return False
        variables = read_variables(data[4:size])
        self._line = line = reader.line(variables)
        if "REMOTE_ADDR" in line.environ:
            # The port of the proxy's own connection does not go with the client's address.
            self.peer = {name: value for name, value in self.peer.items() if name != "REMOTE_PORT"}
            self.peer_name = line.environ["REMOTE_ADDR"].encode("latin-1", "replace")
        self._block = block = reader.block(variables)
        self._keep_alive = False
        return self._expect_body(line, block, data[size:])

    def _judge_tls(self, data: bytes, error: ProtocolError) -> ProtocolError:
        return error  # it says already what this port speaks


class BarredConnection(Connection):
    """A peer that is not in ``uwsgi_allow_ips``: closed unread. Its word would be taken for everything."""

    __slots__ = ()

    def receive(self) -> bool:
        """Close it, with one warning."""
        self.context.log.warning(
            "%s: closed: it is not in uwsgi_allow_ips. If it is your proxy, add it: --uwsgi-allow-from",
            self.name,
        )
        self.close()
        return False
