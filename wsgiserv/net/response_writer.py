"""Sends response data without blocking: `ResponseWriter`, the `Sink` of the gateway."""

from __future__ import annotations

from _socket import MSG_DONTWAIT
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from os import pread
from typing import Any, Final

from wsgiserv.net.client_socket import ClientSocket, reset
from wsgiserv.net.cork import Cork
from wsgiserv.net.send_queue import FileTruncated, SendQueue
from wsgiserv.net.serving_context import Loop, ServingContext
from wsgiserv.wsgi.response import ClientGone

_READ_BYTES: Final = 65536
# A waiting producer continues when its client has taken this much, not at each byte: each wake-up switches threads.
_LEEWAY_BYTES: Final = 512 * 1024


class NoTimeLeft(TimeoutError):
    """The worker ends, and cannot wait for its client any more."""


@dataclass(slots=True, eq=False, repr=False)
class ResponseWriter(ABC):
    """The sending half of a connection.

    Args:
        context: values shared by the worker's connections.
        loop: waits for the socket.
        sock: the client's socket. Reads and sends here never wait, whatever its mode is.
        base: the base environ of the listener.
        peer: the keys of the client in the environ (``REMOTE_ADDR``, ``REMOTE_PORT``).
        peer_name: the client's address for logs.
        trusted: whether the peer is in ``forwarded_allow_ips``.

    Attributes:
        fd: the descriptor of ``sock``; it stays known after the socket is closed.
        streams: whether the data sent now are blocks of a body of unknown length: their producer may run ahead of its
            client by ``stream_buffer`` only. Set by the response.
    """

    # Data that the socket does not take is queued. From then on two threads may send: the application's, with each
    # block that it makes, and the loop's, whatever the application does meanwhile. Both hold the queue's lock. While
    # the queue is empty only the application's thread sends, without the lock: most responses never need it.

    context: ServingContext
    loop: Loop
    sock: ClientSocket
    base: dict[str, Any]
    peer: dict[str, str]
    peer_name: bytes
    trusted: bool
    fd: int = field(init=False)
    streams: bool = field(init=False, default=False)
    _queue: SendQueue | None = field(init=False, default=None)
    _lost: bool = field(init=False, default=False)

    def set_streaming(self, streaming: bool) -> None:
        """Tell whether blocks of a body of unknown length follow."""
        self.streams = streaming

    def give_up(self, take: Callable[[], None]) -> None:
        """Call ``take`` at a moment at which nobody else answers the client: nothing is sent here any more."""
        take()

    @property
    def name(self) -> str:
        """The client's address for a log line."""
        return self.peer_name.decode("latin-1") or "a client"

    @property
    def has_output(self) -> bool:
        """Whether queued data waits for the client to take it."""
        return self._queue is not None and self._queue.has_items

    def send_last(self, data: bytes) -> None:
        """Send a whole response, behind which the connection stays open: it may wait for others. Raises ClientGone."""
        cork = self.context.cork
        if cork.is_on and not self._queue:
            self.send(data, held_by=cork)
        else:
            self.send(data)

    def send(self, data: bytes | memoryview, wait: bool = True, held_by: Cork | None = None) -> None:
        """Send ``data`` or queue what the socket does not take.

        Args:
            data: the bytes.
            wait: whether to wait while the client is too far behind; else call `wait_for_client` later.
            held_by: what holds the data until the end of the loop's turn.

        Raises:
            ClientGone: the connection is broken, or the client takes nothing within ``send_timeout``.
        """
        if not self._queue or self._empties_queue(self._queue):
            try:
                if held_by is not None:
                    sent = held_by.send(self.sock, data)
                else:
                    # The flag, since the socket is as accept(2) made it: to set its mode is a system call per
                    # connection.
                    sent = self.sock.send(data, MSG_DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._lost = True
                raise ClientGone from error
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._enqueue(data)
        if wait:
            self.wait_for_client()

    def send_pair(self, head: bytes, body: bytes) -> None:
        """Send two pieces in one system call. Raises ClientGone."""
        sent = 0
        if not self._queue or self._empties_queue(self._queue):
            try:
                # One packet for both where they fit, and the body is not copied behind its head.
                sent = self.sock.sendmsg((head, body), (), MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                self._lost = True
                raise ClientGone from error
        size = len(head)
        if sent < size:
            self._enqueue(memoryview(head)[sent:])
            sent = size
        if sent < size + len(body):
            self._enqueue(memoryview(body)[sent - size :])
            self.wait_for_client()

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Queue a range of a file and send as much as the socket takes now.

        Args:
            fd: the file; it may be closed after the call.
            offset: where the range begins.
            count: its bytes.

        Raises:
            ClientGone: the connection is broken.
        """
        queue = self._own_queue()
        try:
            with queue.lock:
                queue.add_file(fd, offset, count)
                self._send_queued(queue)
                if queue.has_items:
                    self._start_draining()
        except OSError:  # out of descriptors: it goes through memory
            self._send_read(fd, offset, count)

    def _send_read(self, fd: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            data = pread(fd, min(end - offset, _READ_BYTES), offset)
            # Its Content-Length has been promised: the response cannot end as if it were whole.
            if not data:
                raise FileTruncated
            self.send(data)
            offset += len(data)

    def _own_queue(self) -> SendQueue:
        queue = self._queue
        if queue is None:
            # sendfile(2) knows no MSG_DONTWAIT.
            self.sock.setblocking(False)
            queue = self._queue = self.context.new_queue()
        return queue

    # ---- the queue ---------------------------------------------------------------------------------------

    @abstractmethod
    def _start_draining(self) -> None:
        """Have the loop send the queue, while the application runs too. With the queue's lock held."""

    def _empties_queue(self, queue: SendQueue) -> bool:
        """Send from the queue; return whether data may go to the socket directly, behind it. Raises ClientGone."""
        with queue.lock:
            self._send_queued(queue)
            return not queue.has_items

    def _send_queued(self, queue: SendQueue) -> int:
        """Send from the queue, as much as the socket takes; return how many bytes. With the lock. Raises ClientGone."""
        try:
            return queue.flush(self.sock)
        except OSError as error:
            self._lost = True
            raise ClientGone from error

    def _drop_queue(self, queue: SendQueue) -> None:
        if isinstance(queue.error, FileTruncated):
            self.context.log.error("WS1693 %s: %s; the connection is closed", self.name, queue.error)
        queue.clear()

    def _enqueue(self, data: bytes | memoryview) -> None:
        """Queue ``data``, which the socket does not take now. Raises ClientGone."""
        queue = self._own_queue()
        with queue.lock:
            if queue.error is not None:  # another thread has cut the response off
                self._send_queued(queue)
            was_empty = not queue.has_items
            queue.add(data, self.streams)
            # Once per queue: the loop sends until it is empty.
            if was_empty:
                self._start_draining()

    def wait_until_sent(self) -> None:
        """Wait until the client has taken all that is queued. Raises ConnectionResetError."""
        queue = self._queue
        while queue is not None and queue.has_items:
            queue.low = 0
            try:
                if not self.loop.wait_writable(self):
                    self._give_up(queue)
                if self._lost or queue.error is not None or self._empties_queue(queue):
                    break
            except ClientGone:
                break
        if self._lost or (queue is not None and queue.error is not None):
            raise ConnectionResetError("the client has gone")

    def wait_for_client(self) -> None:
        """Wait while the client is too far behind; in the application's thread. Raises ClientGone."""
        queue = self._queue
        if queue is None:
            return
        most = self.context.settings.stream_buffer
        if queue.is_full:
            # Neither memory nor disk takes more: what has been sent meanwhile makes room.
            queue.low = 0
        elif self.streams and queue.size > most:
            queue.low = most - min(most // 2, _LEEWAY_BYTES)
        else:
            return
        while queue.size > queue.low:
            # Without the lock: the loop, or a helper, sends from the queue meanwhile.
            try:
                goes_on = self.loop.wait_writable(self)
            except ClientGone:
                with queue.lock:
                    self._cut_off(queue, NoTimeLeft("the worker has no time left"))
                raise
            if not goes_on:
                self._give_up(queue)
                raise ClientGone("the client takes no data (send_timeout)")
            with queue.lock:
                self._send_queued(queue)
        if queue.error is not None:
            raise ClientGone from queue.error

    def _give_up(self, queue: SendQueue) -> None:
        with queue.lock:
            is_known = queue.error is not None
            if not is_known:
                self._cut_off(queue, TimeoutError("the client takes no data (send_timeout)"))
        if not is_known:  # without the lock: in gevent a log handler may let others run
            self.context.log.warning("WS1552 %s: takes no data within send_timeout; reset", self.name)

    def cut_off(self, error: OSError) -> None:
        """Drop queued data, reset the connection, wake a producer that waits for its client. From any thread."""
        queue = self._queue
        if queue is not None:
            with queue.lock:
                self._cut_off(queue, error)

    def _cut_off(self, queue: SendQueue, error: OSError) -> None:
        # With the lock held. Reset: what the client has must not look like the whole response.
        self._lost = True
        queue.fail(error)
        reset(self.sock)

    def call_when_sent(self, wake: Callable[[], object]) -> bool:
        """Call ``wake`` when the client has taken enough; False when it has. See `SendQueue.call_when_sent`."""
        return self._queue is not None and self._queue.call_when_sent(wake)

    def has_stopped(self, now: float, limit_s: float) -> bool:
        """Return whether the client has taken nothing for ``limit_s`` seconds; 0 means no limit.

        A waiting producer asks; see `waits`.
        """
        queue = self._queue
        if queue is None:
            return False
        queue.waits += 1
        return 0 < limit_s < now - queue.moved_at

    @property
    def waits(self) -> int:
        """How often a waiting producer has checked its client: progress, so the request is not stuck."""
        return 0 if self._queue is None else self._queue.waits
