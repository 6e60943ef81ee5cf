"""``wsgi.file_wrapper`` (PEP 3333, "Optional Platform-Specific File Handling").

Owns: `FileWrapper` and the question whether the kernel can send its file.
Must not know: how a file is sent.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from io import BufferedRandom, BufferedReader, FileIO
from typing import Any

__all__ = ["FileWrapper"]


class FileWrapper:
    """Iterates a file-like object in blocks, unless the server sends the file itself.

    Args:
        filelike: an object with ``read(size)``; it is closed with the response when it has ``close``.
        block_size: bytes per block when the file is read here.
    """

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        while block := self.filelike.read(self.block_size):
            yield block

    def extent(self) -> tuple[int, int, int] | None:
        """Return (descriptor, offset, bytes left) where the kernel can send the file; None where it cannot.

        Only a regular file qualifies, from where its reader stands: the offset is asked of the object, not
        of the descriptor, since a buffered reader has read ahead. And only an object whose `read` gives the
        file's own bytes: those of gzip, bz2 and lzma have a `fileno`, too, and it is that of the compressed file.
        """
        try:
            if not _reads_its_file(self.filelike):
                return None
            fd = self.filelike.fileno()
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            offset = self.filelike.tell()
        except (
            Exception
        ):  # none of these, or an object whose attributes raise: `read` is all that it must have
            return None
        if type(fd) is not int or type(offset) is not int:
            return None
        return fd, offset, max(0, status.st_size - offset)


def _reads_its_file(filelike: Any) -> bool:
    if _is_plain(filelike):
        return True
    inner: Any = getattr(filelike, "file", None)  # a named temporary file's, a Django File's
    if not _is_plain(inner):
        return False
    # What tempfile.NamedTemporaryFile() returns: a class without a public name, and of a module that may not be in use.
    temporary: Any = getattr(sys.modules.get("tempfile"), "_TemporaryFileWrapper", ())
    return isinstance(filelike, temporary) or getattr(filelike, "read", None) == inner.read


def _is_plain(filelike: Any) -> bool:
    kind = type(filelike)
    return kind is FileIO or (kind in (BufferedReader, BufferedRandom) and type(filelike.raw) is FileIO)
