"""What a connection has to send and its client has not taken yet.

Owns: `Outbox`: an ordered queue of bytes, file ranges and a spool file, flushed without waiting.
Must not know: HTTP, who waits for the socket.

A slow reader costs at most `MEMORY_BYTES` of memory, all of a worker's together `WORKER_MEMORY_BYTES`; what is
more goes to a temporary file and leaves it by ``sendfile``, so the application's thread is free again as soon
as the response is made.
"""

from __future__ import annotations

import os
from _socket import socket as RawSocket
from collections import deque
from typing import IO, TYPE_CHECKING, Final

from wsgiserv.wsgi.memory import MemoryBudget

if TYPE_CHECKING:
    from wsgiserv.net.proxysocket import ProxySocket
    from wsgiserv.net.tls import TLSSocket

__all__ = ["MEMORY_BYTES", "WORKER_MEMORY_BYTES", "FileTruncated", "Outbox"]

# What one connection, and what all of a worker, may keep in memory.
MEMORY_BYTES: Final = 1024 * 1024
WORKER_MEMORY_BYTES: Final = 64 * 1024 * 1024
# A producer that never ends must not fill the disk: above this, `add` says that the queue is full.
_MOST_SPOOLED: Final = 1024 * 1024 * 1024
# One pass of the loop sends at most this much to one client, so that a fast one cannot hold it.
_MOST_PER_FLUSH: Final = 1024 * 1024
# What goes through TLS has to pass through memory, a piece at a time.
_TLS_PIECE_BYTES: Final = 64 * 1024


class FileTruncated(OSError):
    """A file became shorter while it was sent."""

    def __str__(self) -> str:
        return "a file became shorter while it was sent"


class _FileRange:
    __slots__ = ("count", "fd", "offset", "owned")

    def __init__(self, fd: int, offset: int, count: int, owned: bool) -> None:
        self.fd = fd
        self.offset = offset
        self.count = count
        self.owned = owned  # the descriptor is closed with the range


class Outbox:
    """The queue of one connection. False when it is empty.

    Args:
        spool_dir: the directory of the spool file; None is the system's.
        shared: the memory of the worker's outboxes together.
    """

    __slots__ = ("_items", "_memory", "_shared", "_spool", "_spool_dir", "_spool_end", "_taken")

    def __init__(self, spool_dir: str | None, shared: MemoryBudget) -> None:
        self._shared = shared
        self._taken = 0  # of the shared memory; given back when the queue is empty
        self._items: deque[memoryview | _FileRange] = deque()
        self._memory = 0
        self._spool: IO[bytes] | None = None
        self._spool_end = 0
        self._spool_dir = spool_dir

    def __bool__(self) -> bool:
        return bool(self._items)

    def add(self, data: bytes | memoryview) -> bool:
        """Queue ``data`` behind all else; False when the producer should wait before it makes more.

        The data is taken in either case.
        """
        view = memoryview(data)
        size = len(view)
        last = self._items[-1] if self._items else None
        spooling = isinstance(last, _FileRange) and not last.owned
        if not spooling and self._memory + size <= MEMORY_BYTES and self._shared.take(size):
            self._taken += size
            if size < memoryview(view.obj).nbytes:
                view = memoryview(bytes(view))  # a view of the tail would keep the whole response in memory
        elif self._spool_end + size <= _MOST_SPOOLED and self._write_spool(view, last if spooling else None):
            return True
        self._items.append(view)
        self._memory += size
        return self._memory <= self._taken

    def _write_spool(self, view: memoryview, last: memoryview | _FileRange | None) -> bool:
        """Append to the spool file; False when the disk does not take it."""
        try:
            if self._spool is None:
                import tempfile

                self._spool = tempfile.TemporaryFile(  # noqa: SIM115 - lives until the queue is empty
                    prefix="wsgiserv-response-", dir=self._spool_dir, buffering=0
                )
            fd = self._spool.fileno()
            start = self._spool_end
            written = 0
            while written < len(view):
                written += os.pwrite(fd, view[written:], start + written)
        except OSError:
            return False  # the caller keeps it in memory and the producer waits
        self._spool_end += len(view)
        if isinstance(last, _FileRange):
            last.count += len(view)
        else:
            self._items.append(_FileRange(fd, start, len(view), owned=False))
        return True

    def add_file(self, fd: int, offset: int, count: int) -> None:
        """Queue a range of a file; the descriptor is duplicated, the caller keeps its own. Raises OSError."""
        self._items.append(_FileRange(os.dup(fd), offset, count, owned=True))

    def flush(self, sock: RawSocket | TLSSocket | ProxySocket) -> int:
        """Send what the socket takes now and return how many bytes that was.

        Raises:
            OSError: the connection is broken.
            FileTruncated: a file is shorter than its range.
        """
        total = 0
        items = self._items
        while items and total < _MOST_PER_FLUSH:
            item = items[0]
            try:
                if isinstance(item, _FileRange):
                    sent = self._send_range(sock, item)
                else:
                    sent = sock.send(item)
                    self._memory -= sent
                    if sent < len(item):
                        items[0] = item[sent:]
                    else:
                        items.popleft()
            except BlockingIOError:
                break
            total += sent
        if not items:
            self._let_go()
        return total

    def _send_range(self, sock: RawSocket | TLSSocket | ProxySocket, item: _FileRange) -> int:
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
        if item.count == 0:
            self._items.popleft()
            if item.owned:
                os.close(item.fd)
        return sent

    def _let_go(self) -> None:
        """The queue is empty: neither memory nor the spool file is needed any longer."""
        if self._taken:
            self._shared.give_back(self._taken)
            self._taken = 0
        if self._spool is not None:
            self._spool.close()
            self._spool = None
            self._spool_end = 0

    def clear(self) -> None:
        """Drop everything and close what the queue holds open."""
        for item in self._items:
            if isinstance(item, _FileRange) and item.owned:
                os.close(item.fd)
        self._items.clear()
        self._memory = 0
        self._let_go()
