"""Opening a log's file so that no write to it waits.

Owns: `open_log`: the flags, FIFOs, the names of standard streams.
Must not know: what is written, which process opens.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from wsgiserv.process import reopened
from wsgiserv.safe_open import Owner, check_directory, open_file, place_of

__all__ = ["Opened", "check_log", "open_log"]


class Opened(NamedTuple):
    """A descriptor to write a log to.

    Attributes:
        fd: the descriptor.
        is_absent: whether it is the null device, in place of a FIFO that nobody reads and that we may not hold open.
    """

    fd: int
    is_absent: bool = False


def open_log(path: str, owner: Owner) -> Opened:
    """Open a file for appending, and make it if it is missing; non-blocking, but for an inherited standard stream.

    Args:
        path: absolute.
        owner: see `open_file`.

    Raises OSError when it cannot be opened. A FIFO without a reader can.
    """
    # O_NONBLOCK: without it open(2) of a FIFO waits for a reader, and write(2) for a reader that is behind.
    try:
        fd = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK, owner)
    except PermissionError:
        if not (_is_fifo(path) and os.access(path, os.W_OK, effective_ids=True)):
            raise
        # Without a reader it can only be opened for reading, too, which is not allowed here: wait for a reader.
        return Opened(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), is_absent=True)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return Opened(fd)
    # Read as well as written: while we hold its reading end, a reader may leave and come back, and up to 64 KiB
    # wait for it in the pipe.
    both = reopened(fd, os.O_RDWR)
    if both is None:
        return Opened(fd)
    os.close(fd)
    return Opened(both)


def check_log(path: str, owner: Owner) -> None:
    """Raise OSError when `open_log` could not open the file. Makes none."""
    if os.path.exists(path):
        os.close(open_log(path, owner).fd)
        return
    target = os.path.realpath(path)  # a link to nothing: its file would be made
    try:
        with place_of(target) as place:
            check_directory(place.directory, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False
