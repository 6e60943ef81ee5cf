"""A place that log bytes go to: a file opened for appending, or a standard stream.

Owns: the descriptor, its reopening, whole writes and what may go wrong in them.
Must not know: what is written, logging.

Nothing here is buffered: a log must not lose lines with a process that is killed.
"""

from __future__ import annotations

import errno
import os
import stat
from os import write as write_fd
from select import poll

from wsgiserv.logs.files import LOG_FLAGS, log_files
from wsgiserv.safe_open import Owner, open_file

__all__ = ["Output"]

# POSIX: a write of up to this many bytes to a pipe is not interleaved with another process's.
PIPE_BUF = 4096
_POLLOUT = 4


class Output:
    """One destination of log bytes.

    Args:
        path: a file, made when it is missing; ``"-"`` takes the standard stream ``standard_fd`` instead.
        standard_fd: 1 or 2.
        owner: who the workers run as: gets the file when root makes it.

    Raises OSError when the file cannot be opened.
    """

    __slots__ = ("fd", "is_pipe", "owner", "path")

    def __init__(self, path: str, standard_fd: int, owner: Owner) -> None:
        # Absolute from now on: the working directory may have changed when the file is reopened.
        self.path = None if path == "-" else os.path.abspath(path)
        self.owner = owner
        if self.path is None:
            self.fd = standard_fd
        else:
            handed = log_files.take(self.path)
            self.fd = self._open() if handed is None else handed
        self.is_pipe = self._is_pipe()

    def _open(self) -> int:
        assert self.path is not None
        return open_file(self.path, LOG_FLAGS, self.owner)

    def _is_pipe(self) -> bool:
        try:
            return stat.S_ISFIFO(os.fstat(self.fd).st_mode)
        except OSError:
            return False  # closed: the first write says so

    def write(self, data: bytes, wait_s: float = 0.0) -> tuple[int, OSError | None]:
        """Write ``data``; return how many bytes went out and, when it is not all of them, why. Never raises.

        Args:
            data: whole lines.
            wait_s: how long to wait, each time, for a non-blocking pipe or terminal that is full.

        On a pipe the lines go in pieces of at most ``PIPE_BUF`` bytes where they allow it, so that the lines
        of several workers do not mix; on a file it is one write unless the kernel takes less.
        """
        done, size = 0, len(data)
        while done < size:
            end = size
            if self.is_pipe and size - done > PIPE_BUF:
                end = data.rfind(b"\n", done, done + PIPE_BUF) + 1 or done + PIPE_BUF
            try:
                done += write_fd(self.fd, data[done:end] if done or end < size else data)
            except OSError as error:
                if not (wait_s and error.errno == errno.EAGAIN and self._wait(wait_s)):
                    return done, error
        return done, None

    def _wait(self, wait_s: float) -> bool:
        poller = poll()
        poller.register(self.fd, _POLLOUT)
        return bool(poller.poll(wait_s * 1000))

    def reopen(self) -> None:
        """Open the file again under its name (after a rotation), or take what the master has opened; a standard stream
        stays.

        The descriptor keeps its number, so a thread that is writing at this moment is not disturbed.
        Raises OSError; the old file stays in use then.
        """
        if self.path is None:
            return
        handed = log_files.successor(self.path)
        fd = self._open() if handed is None else handed
        try:
            os.dup2(fd, self.fd, inheritable=False)
        finally:
            os.close(fd)
        self.is_pipe = self._is_pipe()

    def close(self) -> None:
        """Close the file; a standard stream stays open."""
        if self.path is not None:
            os.close(self.fd)
