"""``wsgi.input``: where a request's body is kept until the application reads it.

Owns: `BodyBuffer`: memory first, a spool file above ``body_buffer_size``; `StreamedInput`, the file that the
application reads while the body arrives; `BodyError`.
Must not know: sockets, framing.

What the application usually gets is an `io.BytesIO` or an `io.BufferedRandom`: both read in C. Nothing is built
on ``RawIOBase.read`` over a Python ``readinto`` (a 5,000-digit size crashed CPython there).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO

from wsgiserv.errors import ProtocolError
from wsgiserv.wsgi.budget import MemoryBudget

__all__ = ["BodyBuffer", "BodyError", "StreamedInput", "empty_input"]

# The input of a request without a body: a new one each time, since an application may close or write it.
empty_input = io.BytesIO


class BodyBuffer:
    """Collects one body.

    Args:
        memory_bytes: how much is kept in memory (``body_buffer_size``).
        spool_dir: where a larger body goes (``spool_dir``); None is the system's directory.
        shared: the memory of the worker's bodies together; when it is used up, the body is spooled at once.

    Attributes:
        length: bytes so far.
    """

    __slots__ = ("_file", "_memory_bytes", "_shared", "_spool_dir", "_taken", "length")

    def __init__(self, memory_bytes: int, spool_dir: str | None, shared: MemoryBudget) -> None:
        self._memory_bytes = memory_bytes
        self._spool_dir = spool_dir
        self._shared = shared
        self._taken = 0  # of the shared memory; -1 once the body is in a file
        self._file: IO[bytes] = io.BytesIO()
        self.length = 0

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            ProtocolError: 507 when the spool's disk is full or cannot be written.
        """
        length = self.length + len(data)
        try:
            if self._taken >= 0 and not self._fits(length, len(data)):
                import tempfile

                spool: IO[bytes] = tempfile.TemporaryFile(prefix="wsgiserv-body-", dir=self._spool_dir)  # noqa: SIM115
                try:
                    spool.write(self._file.getvalue())  # type: ignore[attr-defined]
                except BaseException:
                    spool.close()
                    raise
                self._file = spool
                self._let_go(-1)
            self._file.write(data)
        except OSError as error:
            self.discard()
            raise ProtocolError(507, "the request body cannot be stored", str(error.strerror)) from error
        self.length = length

    def _fits(self, length: int, more: int) -> bool:
        if length > self._memory_bytes or not self._shared.take(more):
            return False
        self._taken = length
        return True

    def _let_go(self, taken: int) -> None:
        if self._taken > 0:
            self._shared.give_back(self._taken)
        self._taken = taken

    def rewind(self) -> IO[bytes]:
        """Return the body as a file at its beginning: the application's ``wsgi.input``.

        Raises:
            ProtocolError: 507 when what was still buffered does not fit the disk.
        """
        try:
            self._file.seek(0)
        except OSError as error:
            self.discard()
            raise ProtocolError(507, "the request body cannot be stored", str(error.strerror)) from error
        return self._file

    def read(self, size: int) -> bytes:
        """Return the next bytes after `rewind`, at most ``size``; ``b""`` at the end."""
        return self._file.read(size)

    def discard(self) -> None:
        """Let go of the body; its spool file has no name and vanishes."""
        self._let_go(0)
        try:
            self._file.close()
        except OSError:  # close() writes what is buffered; on a full disk that fails again
            pass


class BodyError(OSError):
    """What is left of a streamed body cannot be read. An `OSError`, as applications expect of a file.

    Attributes:
        status: the HTTP status for the client: 400 broken or ended early, 408 too slow, 413 too large.
        reason: one sentence.
        gone: whether the connection was reset: a client that has left is no news.
    """

    def __init__(self, status: int, reason: str, gone: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.gone = gone


class StreamedInput(io.BufferedIOBase):
    """``wsgi.input`` of a body that is still arriving: PEP 3333's file, each read waits for what it asks for.

    Args:
        begun: what has come already, at its beginning.
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
        if self._begun is not None:
            data = self._begun.read(65536)
            if not data:
                self._begun = None
        if self._begun is None:
            if self._error is not None:
                raise BodyError(self._error.status, self._error.reason, self._error.gone)
            try:
                data = self._more()
            except BodyError as error:
                self._error = error
                raise
        self._data, self._at = data, 0
        return bool(data)

    def _take(self, size: int) -> bytes:
        """Return at most ``size`` of the bytes at hand."""
        at, data = self._at, self._data
        piece = data[at : at + size]
        self._at = at + len(piece)
        return piece

    def read(self, size: int | None = -1) -> bytes:
        """Return ``size`` bytes, fewer only at the body's end; all of it when ``size`` is negative or None."""
        wanted = -1 if size is None else size
        parts = []
        while wanted and self._fill():
            piece = self._take(wanted if wanted > 0 else len(self._data))
            parts.append(piece)
            if wanted > 0:
                wanted -= len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read1(self, size: int | None = -1) -> bytes:
        """Return what is here, waiting only for the first byte: at most ``size`` bytes."""
        wanted = -1 if size is None else size
        if not wanted or not self._fill():
            return b""
        return self._take(wanted if wanted > 0 else len(self._data))

    def readline(self, size: int | None = -1) -> bytes:
        """Return one line with its end, or ``size`` bytes of it."""
        wanted = -1 if size is None else size
        parts = []
        while wanted and self._fill():
            # Looked for no further than asked: small sizes would search the same bytes again and again.
            end = len(self._data) if wanted < 0 else min(len(self._data), self._at + wanted)
            end = self._data.find(b"\n", self._at, end) + 1 or end
            piece = self._take(end - self._at)
            parts.append(piece)
            if piece.endswith(b"\n"):
                break
            if wanted > 0:
                wanted -= len(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)
