"""``wsgi.file_wrapper`` (PEP 3333, "Optional Platform-Specific File Handling")."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from io import BufferedRandom, BufferedReader, FileIO
from typing import Any


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
            except Exception:  # none, or an object whose attributes raise: only `read` is required
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
        """Whether a file without a `seekable` of its own can seek."""
        return {"seek", "tell"} <= vars(self).keys()

    def extent(self) -> tuple[int, int, int] | None:
        """Return (descriptor, offset, bytes left) of a file that the kernel can send; None for any other object.

        Only a regular file qualifies, whose `read` returns the file's own bytes and whose size is true.
        """
        filelike = self.filelike
        try:
            # gzip, bz2 and lzma have a `fileno`, too, and it is that of the compressed file.
            if not _reads_its_file(filelike):
                return None
            fd = filelike.fileno()
            status = os.fstat(fd)
            # The object's offset, not the descriptor's: a buffered reader has read ahead.
            offset = filelike.tell()
            if not stat.S_ISREG(status.st_mode) or type(fd) is not int or type(offset) is not int:
                return None
            # Without blocks on a disk the size may be made up: files of /proc have content and the size 0, those of
            # /sys less than their size. That of an empty file, a sparse one or one kept in its inode is right.
            if not status.st_blocks and not _ends_at(fd, status.st_size):
                return None
        except Exception:  # an object whose attributes raise: only `read` is required
            return None
        return fd, offset, max(0, status.st_size - offset)


def _ends_at(fd: int, size: int) -> bool:
    """Whether a file has a byte before ``size``, and none behind. Raises OSError."""
    return (size == 0 or len(os.pread(fd, 1, size - 1)) == 1) and not os.pread(fd, 1, size)


def _reads_its_file(filelike: Any) -> bool:
    if _is_plain(filelike):
        return True
    inner: Any = getattr(filelike, "file", None)  # a named temporary file's, a Django File's
    # tempfile.NamedTemporaryFile() returns a class without a public name, whose `read` is a wrapper of its own. Only a
    # program that has imported the module has one.
    temporary: Any = getattr(sys.modules.get("tempfile"), "_TemporaryFileWrapper", ())
    return _is_plain(inner) and (isinstance(filelike, temporary) or getattr(filelike, "read", None) == inner.read)


def _is_plain(filelike: Any) -> bool:
    kind = type(filelike)
    return kind is FileIO or (kind in (BufferedReader, BufferedRandom) and type(filelike.raw) is FileIO)
