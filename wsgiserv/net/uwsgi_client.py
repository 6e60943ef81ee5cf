"""Connections whose requests are uwsgi packets instead of HTTP heads.

Only the reading of the head differs. The response is HTTP/1.x, and the connection ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wsgiserv.errors import ProtocolError
from wsgiserv.http.uwsgi import UwsgiReader, read_variables
from wsgiserv.net.client import Connection
from wsgiserv.net.request_reader import HEAD, RequestReader


@dataclass(slots=True, eq=False, repr=False)
class UwsgiRequestReader(RequestReader):
    """A `RequestReader` for packets.

    Args:
        context: as of `RequestReader`.
        packets: reads the packets; one per worker.
        name_client: called once, with the client's address, where the packet has one.
    """

    _packets: UwsgiReader
    _name_client: Callable[[str], object]

    def feed_head(self, data: bytes) -> int:
        """Take a packet or part of it, and bytes behind it; return the next state. Raises ProtocolError."""
        if self.buffer is None:
            self.head_since = self._context.now
        else:
            data = bytes(self.buffer) + data
            self.buffer = None
        packets = self._packets
        # Four bytes tell the size (uwsgi_spec): nothing is parsed before all of it is here.
        size = packets.size(data)
        if not size or len(data) < size:
            self.buffer = bytearray(data)
            return HEAD
        variables = read_variables(data[4:size])
        self.line = line = packets.line(variables)
        # The peer is the proxy. Its variables name the client, and it is trusted in them (`uwsgi_allow_ips`).
        if "REMOTE_ADDR" in line.environ:
            self._name_client(line.environ["REMOTE_ADDR"])
        self.block = block = packets.block(variables)
        # The protocol has one request per connection: the end of the response is the end of the connection.
        self.keep_alive = False
        return self._begin_body(line, block, data[size:])

    def explain(self, error: ProtocolError, data: bytes) -> ProtocolError:
        """Return ``error``: it names the protocol of this port."""
        return error


class UwsgiConnection(Connection):
    """One proxy's request.

    Args:
        packets: reads the packets; one per worker.
        others: as of `Connection`.
    """

    __slots__ = ()

    def __init__(self, packets: UwsgiReader, *others: Any) -> None:
        super().__init__(*others)
        self.reader = UwsgiRequestReader(self.context, packets, self._name_client)

    def _name_client(self, address: str) -> None:
        # The port of the proxy's own connection does not belong to the client's address.
        self.peer = {name: value for name, value in self.peer.items() if name != "REMOTE_PORT"}
        self.peer_name = address.encode("latin-1", "replace")


class BarredConnection(Connection):
    """A peer outside of ``uwsgi_allow_ips``: closed unread, since a uwsgi peer is trusted in everything."""

    __slots__ = ()

    def receive(self) -> bool:
        """Close it, with one warning."""
        # No answer: any peer could make itself anyone, since the variables of a packet are believed.
        self.context.log.warning(
            "WS1553 %s: closed: it is not in uwsgi_allow_ips. If it is your proxy, add it: --uwsgi-allow-from",
            self.name,
        )
        self.close()
        return False
