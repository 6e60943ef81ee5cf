"""``wsgi.file_wrapper`` (PEP 3333, "Optional Platform-Specific File Handling").

Owns: `FileWrapper` and the question whether the kernel can send its file.
Must not know: how a file is sent.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from io import BufferedRandom, BufferedReader, FileIO
from typing import Any

__all__ = ["FileWrapper"]


class FileWrapper:
    """Iterates a file-like object in blocks, unless the server sends the file itself.

    It is its own iterator, and has `close`, `seek`, `tell` and `seekable` of its file, where the file has them:
    Werkzeug takes an iterator of it for a range, and seeks there instead of reading up to it.

    Args:
        filelike: an object with ``read(size)``; it is closed with the response when it has ``close``.
        block_size: bytes per block when the file is read here.
    """

    close: Callable[[], object]
    seek: Callable[..., Any]
    tell: Callable[[], Any]

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size
        for name in ("close", "seek", "tell", "seekable"):
            try:
                found = getattr(filelike, name)
            except Exception:  # none, or an object whose attributes raise: `read` is all that it must have
                continue
            setattr(self, name, found)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block: bytes = self.filelike.read(self.block_size)
        if not block:
            raise StopIteration
        return block

    def seekable(self) -> bool:
        """Whether a file that does not say so itself can seek."""
        return {"seek", "tell"} <= vars(self).keys()

    def extent(self) -> tuple[int, int, int] | None:
        """Return (descriptor, offset, bytes left) where the kernel can send the file; None where it cannot.

        Only a regular file qualifies, from where its reader stands: the offset is asked of the object, not
        of the descriptor, since a buffered reader has read ahead. And only an object whose `read` gives the
        file's own bytes: those of gzip, bz2 and lzma have a `fileno`, too, and it is that of the compressed file.
        And only one whose size is true: files of /proc have content and the size 0, those of /sys less than their size.
        """
        try:
            if not _reads_its_file(self.filelike):
                return None
            fd = self.filelike.fileno()
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return None
            offset = self.filelike.tell()
            if type(fd) is not int or type(offset) is not int:
                return None
            # Without blocks on a disk the size may be made up. That of an empty file, a sparse one or one that is kept
            # in its inode is right.
            if not status.st_blocks and not _ends_at(fd, status.st_size):
                return None
        except Exception:  # an object whose attributes raise: `read` is all that it must have
            return None
        return fd, offset, max(0, status.st_size - offset)


def _ends_at(fd: int, size: int) -> bool:
    """Whether a file has a byte before ``size``, and none behind. Raises OSError."""
    return (size == 0 or len(os.pread(fd, 1, size - 1)) == 1) and not os.pread(fd, 1, size)


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
