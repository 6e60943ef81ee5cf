"""``wsgi.input``: keeps a request's body until the application reads it.

The application usually gets an `io.BytesIO` or an `io.BufferedRandom`: both read in C. Nothing is built
on ``RawIOBase.read`` over a Python ``readinto`` (a 5,000-digit size crashed CPython there).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from wsgiserv.errors import ProtocolError
from wsgiserv.wsgi.budget import MemoryBudget

# The input of a request without a body: a new one each time, since an application may close or write it.
empty_input = io.BytesIO


@dataclass(slots=True, eq=False)
class BodyBuffer:
    """Collects one body: in memory first, above ``body_buffer_size`` in a spool file.

    Attributes:
        memory_bytes: bytes kept in memory (``body_buffer_size``).
        spool_dir: directory of a larger body (``spool_dir``); None is the system's.
        shared: the memory of all bodies of the worker; when it is used up, the body is spooled at once.
        length: bytes so far.
    """

    memory_bytes: int
    spool_dir: str | None
    shared: MemoryBudget
    length: int = 0
    _taken: int = 0  # of the shared memory; -1 once the body is in a file
    _file: IO[bytes] = field(default_factory=io.BytesIO)

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            ProtocolError: 507 when the spool's disk is full or cannot be written.
        """
        length = self.length + len(data)
        try:
            if self._taken >= 0:
                # Many small bodies at once fill the memory as well as a large one does.
                if length <= self.memory_bytes and self.shared.take(len(data)):
                    self._taken = length
                else:
                    self._spool()
            self._file.write(data)
        except OSError as error:
            raise self._cannot_store(error) from error
        self.length = length

    def _spool(self) -> None:
        """Move the body to a file without a name."""
        import tempfile  # few servers spool, and the others save 0.7 MB and 4 ms of CPU time

        # Without a name the file ends with the process, even after SIGKILL, and no other user can open it.
        spool = tempfile.TemporaryFile(prefix="wsgiserv-body-", dir=self.spool_dir)  # noqa: SIM115
        try:
            spool.write(self._file.getvalue())  # type: ignore[attr-defined]
        except BaseException:
            spool.close()
            raise
        self._file = spool
        self._release(-1)

    def _release(self, taken: int) -> None:
        if self._taken > 0:
            self.shared.give_back(self._taken)
        self._taken = taken

    def _cannot_store(self, error: OSError) -> ProtocolError:
        self.discard()
        return ProtocolError(507, "the request body cannot be stored", str(error.strerror))

    def rewind(self) -> IO[bytes]:
        """Return the body as a file at its beginning: the application's ``wsgi.input``.

        Raises:
            ProtocolError: 507 when buffered bytes do not fit the disk.
        """
        try:
            self._file.seek(0)
        except OSError as error:
            raise self._cannot_store(error) from error
        return self._file

    def read(self, size: int) -> bytes:
        """Return the next bytes after `rewind`, at most ``size``; ``b""`` at the end."""
        return self._file.read(size)

    def discard(self) -> None:
        """Free the body and its spool file."""
        self._release(0)
        with suppress(OSError):  # close() writes what is buffered; on a full disk that fails again
            self._file.close()


class BodyError(OSError):
    """The rest of a streamed body cannot be read. An `OSError`, as applications expect of a file.

    Attributes:
        status: the HTTP status for the client: 400 broken or ended early, 408 too slow, 413 too large.
        reason: one sentence.
        gone: whether the connection was reset: logged at level debug only.
    """

    def __init__(self, status: int, reason: str, gone: bool = False) -> None:
        super().__init__(reason)  # alone: OSError takes two arguments for errno and strerror
        self.status, self.reason, self.gone = status, reason, gone


class StreamedInput(io.BufferedIOBase):
    """``wsgi.input`` of a body that is still arriving: PEP 3333's file; a read waits for the bytes that it asks for.

    Args:
        begun: the part of the body that has arrived, at its beginning.
        more: returns the next bytes, ``b""`` at the end; raises `BodyError`, again at each further call.
    """

    def __init__(self, begun: IO[bytes], more: Callable[[], bytes]) -> None:
        self._begun: IO[bytes] | None = begun
        self._more = more
        self._data = b""
        self._at = 0
        self._error: BodyError | None = None

    def readable(self) -> bool:
        """True: it is a file to read."""
        return True

    def _fill(self) -> bool:
        """Have at least one byte at hand; False at the body's end."""
        if self._at < len(self._data):
            return True
        data = self._begun.read(65536) if self._begun is not None else b""
        if not data:
            self._begun = None  # `BodyBuffer.discard` closes it with the request; the input may outlive that
            # A new object at each read: a second raise of the same one would grow its traceback and context.
            if self._error is not None:
                raise BodyError(self._error.status, self._error.reason, self._error.gone)
            try:
                data = self._more()
            except BodyError as error:
                self._error = error
                raise
        self._data, self._at = data, 0
        return bool(data)

    def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes, fewer only at the body's end; all of it when ``size`` is negative or None."""
        wanted = -1 if size is None else size
        parts = []
        while piece := self.read1(wanted):
            parts.append(piece)
            if wanted > 0:
                wanted -= len(piece)
        return b"".join(parts)

    def read1(self, size: int | None = -1) -> bytes:
        """Return the bytes at hand, at most ``size``; waits only for the first."""
        if size == 0 or not self._fill():
            return b""
        at, data = self._at, self._data
        self._at = len(data) if size is None or size < 0 else min(at + size, len(data))
        return data[at : self._at]

    def readline(self, size: int | None = -1) -> bytes:
        """Return one line with its end, or ``size`` bytes of it."""
        wanted = -1 if size is None else size
        parts = []
        while wanted and self._fill():
            # Searched no further than asked: small sizes would search the same bytes again and again.
            end = len(self._data) if wanted < 0 else min(len(self._data), self._at + wanted)
            piece = self.read1((self._data.find(b"\n", self._at, end) + 1 or end) - self._at)
            parts.append(piece)
            if piece.endswith(b"\n"):
                break
            if wanted > 0:
                wanted -= len(piece)
        return b"".join(parts)
