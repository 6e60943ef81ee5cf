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

__all__ = ["BodyBuffer", "empty_input"]

# The input of a request without a body: a new one each time, since an application may close or write it.
empty_input = io.BytesIO


class BodyBuffer:
    """Collects one body.

    Args:
        memory_bytes: how much is kept in memory (``body_buffer_size``).
        spool_dir: where a larger body goes (``spool_dir``); None is the system's directory.

    Attributes:
        length: bytes so far.
    """

    __slots__ = ("_file", "_memory_bytes", "_spool_dir", "length")

    def __init__(self, memory_bytes: int, spool_dir: str | None) -> None:
        self._memory_bytes = memory_bytes
        self._spool_dir = spool_dir
        self._file: IO[bytes] = io.BytesIO()
        self.length = 0

    def write(self, data: bytes) -> None:
        """Append ``data``.

        Raises:
            ProtocolError: 507 when the spool's disk is full or cannot be written.
        """
        length = self.length + len(data)
        try:
            if length > self._memory_bytes >= self.length:
                spool: IO[bytes] = tempfile.TemporaryFile(prefix="wsgiserv-body-", dir=self._spool_dir)  # noqa: SIM115
                try:
                    spool.write(self._file.getvalue())  # type: ignore[attr-defined]
                except BaseException:
                    spool.close()
                    raise
                self._file = spool
            self._file.write(data)
        except OSError as error:
            self.discard()
            raise ProtocolError(507, f"the request body cannot be stored: {error.strerror}") from error
        self.length = length

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
        try:
            self._file.close()
        except OSError:  # close() writes what is buffered; on a full disk that fails again
            pass
