"""Queues response data for a slow client: bytes, file ranges and a spool file, flushed without waiting.

A slow reader costs at most `MEMORY_BYTES` of memory, all of a worker's together `WORKER_MEMORY_BYTES`; the rest goes
to a temporary file and is sent by ``sendfile``, so the application's thread is free as soon as the response is made.
"""

from __future__ import annotations

import os
from _socket import socket as RawSocket
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import IO, Final

from wsgiserv.net.client_socket import ClientSocket
from wsgiserv.wsgi.budget import MemoryBudget

# What one connection, and what all of a worker, may keep in memory.
MEMORY_BYTES: Final = 1024 * 1024
WORKER_MEMORY_BYTES: Final = 64 * 1024 * 1024
# A producer that never ends must not fill the disk: above this, `add` says that the queue is full.
_MOST_SPOOLED: Final = 1024 * 1024 * 1024
# A spool file of which so much has been sent gets no more: a stream that never ends would keep all it has sent on disk.
_MOST_SENT_OF_SPOOL: Final = 32 * 1024 * 1024
# One pass of the loop sends at most this much to one client, so that a fast one cannot hold it.
_MOST_PER_FLUSH: Final = 1024 * 1024
# What goes through TLS has to pass through memory, a piece at a time.
_TLS_PIECE_BYTES: Final = 64 * 1024
# Smaller pieces are joined, up to so many bytes: each of its own costs a system call, and 200 bytes beside its data.
_SMALL_BYTES: Final = 4096
_JOINED_BYTES: Final = 64 * 1024


class FileTruncated(OSError):
    """A file became shorter while it was sent."""

    def __str__(self) -> str:
        return "a file became shorter while it was sent"


@dataclass(slots=True)
class _FileRange:
    fd: int
    offset: int
    count: int
    spool: IO[bytes] | None = None  # the file that this is the last part of; else the descriptor is the range's own

    def close(self) -> None:
        if self.spool is not None:
            self.spool.close()
        else:
            os.close(self.fd)


@dataclass(slots=True, eq=False, repr=False)
class SendQueue:
    """The queue of one connection. False when it is empty and its client can be sent to.

    The application's thread fills it while the worker's loop, or a helper, empties it: `add`, `add_file`, `flush` and
    `fail` are called with `lock` held. Reading needs no lock.

    Args:
        spool_dir: the directory of the spool file; None is the system's.
        shared: the memory of all queues of the worker.

    Attributes:
        lock: held to fill, send or drop; never while waiting.
        low: a waiting producer continues when no more bytes than these are queued.
        size: queued bytes, without those of files.
        error: why nothing can be sent any more; the queue is dropped then.
        dropped: how many bytes have been dropped.
        moved_at: when the client last took something, or began to be waited for; ``time.monotonic()`` seconds.
        waits: how often a producer has looked whether its client has taken enough: a waiting producer's progress.
    """

    _spool_dir: str | None
    _shared: MemoryBudget
    lock: LockType = field(init=False, default_factory=allocate_lock)
    low: int = field(init=False, default=0)
    size: int = field(init=False, default=0)
    error: OSError | None = field(init=False, default=None)
    dropped: int = field(init=False, default=0)
    moved_at: float = field(init=False, default=0.0)
    waits: int = field(init=False, default=0)
    _items: deque[memoryview | bytearray | _FileRange] = field(init=False, default_factory=deque)
    _sent_of_first: int = field(init=False, default=0)  # bytes of the first item, when it is in memory
    _memory: int = field(init=False, default=0)
    _taken: int = field(init=False, default=0)  # of the shared memory
    _wake: Callable[[], object] | None = field(init=False, default=None)

    def __bool__(self) -> bool:
        return bool(self._items) or self.error is not None

    @property
    def has_items(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._items)

    @property
    def is_full(self) -> bool:
        """Whether neither memory nor disk takes more: the producer should wait."""
        return self._memory > self._taken

    def add(self, data: bytes | memoryview, overshoot: bool = False) -> bool:
        """Queue ``data`` behind all else; False when the producer should wait before it makes more.

        The data is taken in either case.

        Args:
            data: the bytes.
            overshoot: whether a last block may exceed the connection's memory: its producer waits then, and a file for
                the one block would be made each time.
        """
        view = memoryview(data)
        size = len(view)
        items = self._items
        last = items[-1] if items else None
        # An empty queue has nothing that the client could take: its time begins now.
        if last is None:
            self.moved_at = monotonic()
        self.size += size
        spooled = last if type(last) is _FileRange and last.spool is not None else None
        memory = self._memory if overshoot and size <= MEMORY_BYTES else self._memory + size
        if spooled is None and memory <= MEMORY_BYTES and self._shared.take(size):
            self._taken += size
        elif self.size <= _MOST_SPOOLED and self._write_spool(view, spooled):
            return True
        self._memory += size
        if size >= _SMALL_BYTES:
            # A view of the tail would keep the whole response in memory.
            items.append(view if size == memoryview(view.obj).nbytes else memoryview(bytes(view)))
        elif type(last) is bytearray and len(last) < _JOINED_BYTES:
            last += view
        else:
            items.append(bytearray(view))
        return not self.is_full

    def _write_spool(self, view: memoryview, last: _FileRange | None) -> bool:
        """Append to the spool file; False when the disk does not take it."""
        target = None
        try:
            if last is not None and last.spool is not None and last.offset <= _MOST_SENT_OF_SPOOL:
                target = last
                start = last.offset + last.count
            else:
                import tempfile

                spool = tempfile.TemporaryFile(  # noqa: SIM115 - lives until it has been sent
                    prefix="wsgiserv-response-", dir=self._spool_dir, buffering=0
                )
                target = _FileRange(spool.fileno(), 0, 0, spool)
                start = 0
            written = 0
            # pwrite(2) may write less when the disk fills up.
            while written < len(view):
                written += os.pwrite(target.fd, view[written:], start + written)
        except OSError:
            if target is not None and target is not last:
                target.close()
            return False  # the caller keeps it in memory and the producer waits
        target.count += len(view)
        if target is not last:
            self._items.append(target)
        return True

    def add_file(self, fd: int, offset: int, count: int) -> None:
        """Queue a range of a file; the descriptor is duplicated, the caller keeps its own. Raises OSError."""
        if not self._items:
            self.moved_at = monotonic()
        # The application closes its file when the response is made, perhaps long before the client has it.
        self._items.append(_FileRange(os.dup(fd), offset, count))

    def flush(self, sock: ClientSocket) -> int:
        """Send as much as the socket takes now; return how many bytes.

        Raises:
            OSError: the connection is broken, now or since an earlier call; the queue is dropped.
            FileTruncated: a file is shorter than its range.
        """
        if self.error is not None:
            raise self.error
        total = 0
        items = self._items
        try:
            while items and total < _MOST_PER_FLUSH:
                item = items[0]
                total += self._send_range(sock, item) if isinstance(item, _FileRange) else self._send(sock, item)
        except BlockingIOError:
            pass
        except OSError as error:
            self.fail(error)
            raise
        if total:
            self.moved_at = monotonic()
            self._give_back()
        return total

    def _send(self, sock: ClientSocket, item: memoryview | bytearray) -> int:
        # Released at once: a bytearray cannot grow while a view of it exists, and more may be joined to it.
        with memoryview(item)[self._sent_of_first :] as rest:
            sent = sock.send(rest)
            whole = sent == len(rest)
        self._memory -= sent
        self.size -= sent
        if whole:
            self._items.popleft()
            self._sent_of_first = 0
        else:
            self._sent_of_first += sent
        return sent

    def _send_range(self, sock: ClientSocket, item: _FileRange) -> int:
        if isinstance(sock, RawSocket):
            sent = os.sendfile(sock.fileno(), item.fd, item.offset, min(item.count, _MOST_PER_FLUSH))
        else:
            # What is read and not sent is read again next time, at the same offset: TLS wants the same bytes.
            data = os.pread(item.fd, min(item.count, _TLS_PIECE_BYTES), item.offset)
            sent = sock.send(data) if data else 0
        if sent == 0:
            raise FileTruncated
        item.offset += sent
        item.count -= sent
        if item.spool is not None:
            self.size -= sent
        if item.count == 0:
            self._items.popleft()
            item.close()
        return sent

    def _give_back(self) -> None:
        """Return the memory of sent data, and wake a producer when its client has taken enough."""
        unused = self._taken - self._memory
        if unused > 0:
            self._taken -= unused
            self._shared.give_back(unused)
        # `low` is below the limit: a producer is not woken for each piece that has been sent.
        wake = self._wake
        if wake is not None and self.size <= self.low:
            self._wake = None
            wake()

    def call_when_sent(self, wake: Callable[[], object]) -> bool:
        """Call ``wake`` once, in any thread, when no more than `low` bytes wait, or all has been dropped.

        Call it without the lock.

        Returns:
            False when it is so already: ``wake`` is not called then.
        """
        with self.lock:
            if self.size <= self.low or self.error is not None:
                return False
            self._wake = wake
            return True

    def count_unsent(self) -> int:
        """Return how many bytes have not been sent: queued and dropped ones."""
        with self.lock:
            files = sum(each.count for each in self._items if type(each) is _FileRange and each.spool is None)
            return self.dropped + self.size + files

    def fail(self, error: OSError) -> None:
        """Send nothing any more: drop the queue, and remember why."""
        # Its frames would keep the response in memory for as long as the queue.
        self.error = error.with_traceback(None)
        self._drop()

    def clear(self) -> None:
        """Drop everything and close all files. Call it without the lock."""
        with self.lock:
            self._drop()
            self.error = None  # it has a traceback, and that has this queue

    def drop_in_child(self) -> None:
        """Drop everything in a child of the application, where no other thread is left to give the lock back."""
        # The lock may have been held by another thread at the moment of the fork, and here that one does not exist.
        self._wake = None
        self.lock = allocate_lock()
        self.clear()

    def _drop(self) -> None:
        self.dropped += self.size
        for item in self._items:
            if type(item) is _FileRange:
                if item.spool is None:
                    self.dropped += item.count
                item.close()
        self._items.clear()
        self._sent_of_first = 0
        self._memory = self.size = 0
        self._give_back()
