"""``wsgi.input``: where a request's body is kept until the application reads it.

Owns: `BodyBuffer`: memory first, a spool file above ``body_buffer_size``.
Must not know: sockets, framing.

What the application gets is an `io.BytesIO` or an `io.BufferedRandom`: both read in C. It is not built on
``RawIOBase.read`` over a Python ``readinto`` (a 5,000-digit size crashed CPython there).
"""

from __future__ import annotations

import io
import tempfile
from typing import IO

from wsgiserv.errors import ProtocolError
from wsgiserv.wsgi.memory import MemoryBudget

__all__ = ["BodyBuffer", "empty_input"]

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
            raise ProtocolError(507, f"the request body cannot be stored: {error.strerror}") from error
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
            raise ProtocolError(507, f"the request body cannot be stored: {error.strerror}") from error
        return self._file

    def discard(self) -> None:
        """Let go of the body; its spool file has no name and vanishes."""
        self._let_go(0)
        try:
            self._file.close()
        except OSError:  # close() writes what is buffered; on a full disk that fails again
            pass
