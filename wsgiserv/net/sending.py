"""How what a response is made of leaves: the gateway's `Sink`.

Owns: `ClientSink`: sending without waiting, the queue of what the socket does not take, files.
Must not know: requests, the states of a connection.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT
from _socket import socket as RawSocket
from os import pread
from typing import TYPE_CHECKING, Final

from wsgiserv.net.outbox import FileTruncated, Outbox
from wsgiserv.net.reset import reset
from wsgiserv.net.serving import Loop, ServingContext
from wsgiserv.wsgi.gateway import ClientGone

if TYPE_CHECKING:
    from wsgiserv.net.proxysocket import ProxySocket
    from wsgiserv.net.tls import TLSSocket

__all__ = ["ClientSink"]

_READ_BYTES: Final = 65536


class ClientSink:
    """The sending half of a connection.

    Args:
        context: what the worker's connections share.
        loop: who waits for the socket.
        sock: the client's socket.
        peer_name: the client's address.
    """

    __slots__ = ("_lost", "_outbox", "context", "fd", "loop", "peer_name", "sock")

    def __init__(
        self,
        context: ServingContext,
        loop: Loop,
        sock: RawSocket | TLSSocket | ProxySocket,
        peer_name: bytes,
    ) -> None:
        self.context = context
        self.loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        self.peer_name = peer_name
        self._outbox: Outbox | None = None
        self._lost = False

    @property
    def name(self) -> str:
        """The client's address for a log line."""
        return self.peer_name.decode("latin-1") or "a client"

    @property
    def has_output(self) -> bool:
        """Whether something waits for the client to take it."""
        return bool(self._outbox)

    def send(self, data: bytes | memoryview) -> None:
        """Send ``data`` or queue what the socket does not take. Raises ClientGone."""
        if not self._outbox:
            try:
                sent = self.sock.send(data, MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lost = True
                raise ClientGone from error
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._queue(data)

    def send_pair(self, head: bytes, body: bytes) -> None:
        """Send two pieces in one system call. Raises ClientGone."""
        sent = 0
        if not self._outbox:
            try:
                sent = self.sock.sendmsg((head, body), (), MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost = True
                raise ClientGone from error
        size = len(head)
        if sent < size:
            self._queue(memoryview(head)[sent:])
            sent = size
        if sent < size + len(body):
            self._queue(memoryview(body)[sent - size :])

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Queue a range of a file and send what the socket takes now. Raises ClientGone."""
        outbox = self._own_outbox()
        try:
            outbox.add_file(fd, offset, count)
        except OSError:  # out of descriptors: it goes through memory
            self._send_read(fd, offset, count)
            return
        try:
            outbox.flush(self.sock)
        except OSError as error:
            self._fail_sending(error)
            raise ClientGone from error

    def _send_read(self, fd: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            data = pread(fd, min(end - offset, _READ_BYTES), offset)
            if not data:
                raise FileTruncated
            self.send(data)
            offset += len(data)

    def _fail_sending(self, error: OSError) -> None:
        """The connection is broken, or what it was to get: the latter is our side's fault and is said."""
        self._lost = True
        if isinstance(error, FileTruncated):
            self.context.log.error("%s: %s; the connection is closed", self.name, error)

    def _own_outbox(self) -> Outbox:
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox(self.context.spool_dir, self.context.response_memory)
            # sendfile(2) knows no MSG_DONTWAIT.
            self.sock.setblocking(False)
        return outbox

    def _queue(self, data: bytes | memoryview) -> None:
        outbox = self._own_outbox()
        if outbox.add(data):
            return
        # Neither memory nor disk takes more: only now does the producer wait for its client.
        while outbox:
            if not self.loop.wait_writable(self):
                self._tell_unread()
                self._lost = True
                reset(self.sock)  # what it has must not look like the whole
                raise ClientGone("the client takes no data (send_timeout)")
            try:
                outbox.flush(self.sock)
            except OSError as error:
                self._fail_sending(error)
                raise ClientGone from error

    def _tell_unread(self) -> None:
        self.context.log.warning("%s: takes no data within send_timeout; reset", self.name)
