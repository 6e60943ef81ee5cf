"""How what a response is made of leaves: the gateway's `Sink`.

Owns: `ResponseWriter`: sending without waiting, the queue of what the socket does not take, files.
Must not know: requests, the states of a connection.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT
from _socket import socket as RawSocket
from collections.abc import Callable
from os import pread
from typing import TYPE_CHECKING, Final

from wsgiserv.net.reset import reset
from wsgiserv.net.send_queue import FileTruncated, SendQueue
from wsgiserv.net.serving_context import Loop, ServingContext
from wsgiserv.wsgi.response import ClientGone

if TYPE_CHECKING:
    from wsgiserv.net.proxy_socket import ProxySocket
    from wsgiserv.net.tls import TLSSocket

__all__ = ["NoTimeLeft", "ResponseWriter"]

_READ_BYTES: Final = 65536
# A producer that waits goes on when its client has taken so much of what was too much, and not at each byte.
_LEEWAY_BYTES: Final = 512 * 1024


class NoTimeLeft(TimeoutError):
    """The worker ends, and cannot wait for its client any more."""


class ResponseWriter:
    """The sending half of a connection.

    What the socket does not take is queued. From then on two threads may send: the one that runs the application, with
    each block that it makes, and the one that waits for the socket (`Loop`), whatever the application does meanwhile.
    Both hold the queue's lock. While the queue is empty only the application's thread sends, without it.

    Args:
        context: what the worker's connections share.
        loop: who waits for the socket.
        sock: the client's socket.
        peer_name: the client's address.

    Attributes:
        streams: whether what is sent now are blocks of a body of unknown length: their producer may run ahead of its
            client by ``stream_buffer`` only. Set by the response.
    """

    __slots__ = ("_lost", "_outbox", "context", "fd", "loop", "peer_name", "sock", "streams")

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
        self._outbox: SendQueue | None = None
        self._lost = False
        self.streams = False

    def set_streaming(self, streaming: bool) -> None:
        """Tell whether blocks of a body of unknown length follow."""
        self.streams = streaming

    @property
    def name(self) -> str:
        """The client's address for a log line."""
        return self.peer_name.decode("latin-1") or "a client"

    @property
    def has_output(self) -> bool:
        """Whether something waits for the client to take it."""
        return self._outbox is not None and self._outbox.has_items

    def send(self, data: bytes | memoryview, wait: bool = True) -> None:
        """Send ``data`` or queue what the socket does not take. Raises ClientGone.

        Args:
            data: the bytes.
            wait: whether to wait while the client is too far behind; else `wait_for_client` is to be called.
        """
        if self._outbox:
            self._queue(data, is_full=False)
        else:
            try:
                sent = self.sock.send(data, MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lost = True
                raise ClientGone from error
            if sent == len(data):
                return
            self._queue(memoryview(data)[sent:])
        if wait:
            self.wait_for_client()

    def send_pair(self, head: bytes, body: bytes) -> None:
        """Send two pieces in one system call. Raises ClientGone."""
        sent = 0
        is_full = not self._outbox
        if is_full:
            try:
                sent = self.sock.sendmsg((head, body), (), MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost = True
                raise ClientGone from error
        size = len(head)
        if sent < size:
            self._queue(memoryview(head)[sent:], is_full)
            sent = size
        if sent < size + len(body):
            self._queue(memoryview(body)[sent - size :], is_full)
            self.wait_for_client()

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Queue a range of a file and send what the socket takes now. Raises ClientGone."""
        outbox = self._own_outbox()
        try:
            with outbox.lock:
                outbox.add_file(fd, offset, count)
                self._send_queued(outbox)
                if outbox.has_items:
                    self._start_draining()
        except ClientGone:
            raise
        except OSError:  # out of descriptors: it goes through memory
            self._send_read(fd, offset, count)

    def _send_read(self, fd: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            data = pread(fd, min(end - offset, _READ_BYTES), offset)
            if not data:
                raise FileTruncated
            self.send(data)
            offset += len(data)

    def _own_outbox(self) -> SendQueue:
        outbox = self._outbox
        if outbox is None:
            # sendfile(2) knows no MSG_DONTWAIT.
            self.sock.setblocking(False)
            outbox = self._outbox = SendQueue(self.context.spool_dir, self.context.response_memory)
        return outbox

    # ---- the queue ---------------------------------------------------------------------------------------

    def _start_draining(self) -> None:
        """Have the loop send what is queued, while the application runs too. With the queue's lock held."""
        raise NotImplementedError

    def _send_queued(self, outbox: SendQueue) -> int:
        """Send what the socket takes of the queue; return how many bytes. With the lock held. Raises ClientGone."""
        try:
            return outbox.flush(self.sock)
        except OSError as error:
            self._lost = True
            raise ClientGone from error

    def _drop_queue(self, outbox: SendQueue) -> None:
        """The connection closes. What it was to get may have been at fault, and that is our side's: it is said."""
        if isinstance(outbox.error, FileTruncated):
            self.context.log.error("%s: %s; the connection is closed", self.name, outbox.error)
        outbox.clear()

    def _queue(self, data: bytes | memoryview, is_full: bool = True) -> None:
        """Queue ``data`` behind what waits already, after sending what the socket takes now. Raises ClientGone.

        Args:
            data: the bytes.
            is_full: whether the socket has just not taken all it was given.
        """
        outbox = self._own_outbox()
        with outbox.lock:
            if not is_full or outbox.error is not None:
                self._send_queued(outbox)
            was_empty = not outbox.has_items
            if was_empty and not is_full:
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
            outbox.add(data, self.streams)
            if was_empty:
                self._start_draining()

    def wait_for_client(self) -> None:
        """Wait while the client is too far behind: where neither memory nor disk takes more of an ordinary response,
        or a stream is ``stream_buffer`` ahead. In the application's thread. Raises ClientGone."""
        outbox = self._outbox
        if outbox is None:
            return
        most = self.context.stream_buffer
        if outbox.is_full:
            outbox.low = 0
        elif self.streams and outbox.size > most:
            outbox.low = most - min(most // 2, _LEEWAY_BYTES)
        else:
            return
        while outbox.size > outbox.low:
            try:
                goes_on = self.loop.wait_writable(self)
            except ClientGone:
                with outbox.lock:
                    self._cut_off(outbox, NoTimeLeft("the worker has no time left"))
                raise
            if not goes_on:
                self._give_up(outbox)
                raise ClientGone("the client takes no data (send_timeout)")
            with outbox.lock:
                self._send_queued(outbox)
        if outbox.error is not None:
            raise ClientGone from outbox.error

    def _give_up(self, outbox: SendQueue) -> None:
        """The client has taken nothing for ``send_timeout``."""
        with outbox.lock:
            is_known = outbox.error is not None
            if not is_known:
                self._cut_off(outbox, TimeoutError("the client takes no data (send_timeout)"))
        if not is_known:  # without the lock: in gevent a log handler may let others run
            self.context.log.warning("%s: takes no data within send_timeout; reset", self.name)

    def cut_off(self, error: OSError) -> None:
        """Send nothing more of what is queued, and wake a producer that waits for its client. From any thread."""
        outbox = self._outbox
        if outbox is not None:
            with outbox.lock:
                self._cut_off(outbox, error)

    def _cut_off(self, outbox: SendQueue, error: OSError) -> None:
        """Send nothing more, and reset the client's connection. With the lock held."""
        self._lost = True
        outbox.fail(error)
        reset(self.sock)  # what it has must not look like the whole

    def call_when_sent(self, wake: Callable[[], object]) -> bool:
        """Call ``wake`` when the client has taken enough; False when it has. See `SendQueue`."""
        return self._outbox is not None and self._outbox.call_when_sent(wake)

    def has_stopped(self, now: float, limit_s: float) -> bool:
        """Whether the client has taken nothing for ``limit_s`` seconds; 0 is for ever. Asked by a waiting producer."""
        outbox = self._outbox
        if outbox is None:
            return False
        outbox.waits += 1
        return 0 < limit_s < now - outbox.moved_at

    @property
    def waits(self) -> int:
        """How often its producer has looked whether the client has taken enough: a sign of life."""
        return 0 if self._outbox is None else self._outbox.waits
