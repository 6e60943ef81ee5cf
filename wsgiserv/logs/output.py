"""A place that log bytes go to: a file opened for appending, or a standard stream.

Owns: the descriptor, its reopening, whole writes that never wait for a reader, what may go wrong in them.
Must not know: what is written, logging.

Nothing here is buffered: a log must not lose lines with a process that is killed.

A write never waits, whatever is at the other end: a pipe whose reader sleeps, a terminal stopped with ^S. What is
opened here gets O_NONBLOCK. A standard stream is shared with the shell and with whoever else has inherited it, and
O_NONBLOCK belongs to the open file description, so it would be set for all of them: a pipe or a terminal is opened
a second time through /proc, which makes a description of our own. Where that is not allowed poll(2) is asked before
each piece; a pipe that polls writable takes PIPE_BUF bytes. A socket (systemd's journal) has MSG_DONTWAIT.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
from _socket import MSG_DONTWAIT, SOCK_STREAM
from _socket import socket as RawSocket
from contextlib import suppress
from io import UnsupportedOperation
from os import close  # gevent's waits for its hub
from os import write as write_fd
from time import monotonic
from weakref import WeakSet

from wsgiserv.logs.files import log_files
from wsgiserv.logs.opening import open_log
from wsgiserv.process import duplicate, is_writable, reopened
from wsgiserv.safe_open import Owner

__all__ = ["Output", "close_duplicates", "renew_standard_streams"]

# POSIX: a write of up to this many bytes to a pipe is not interleaved with another process's.
PIPE_BUF = 4096
_STREAM = SOCK_STREAM | getattr(_socket, "SOCK_NONBLOCK", 0)


class Output:
    """One destination of log bytes.

    Args:
        path: a file, made when it is missing; ``"-"`` takes the standard stream ``standard_fd`` instead.
        standard_fd: 1 or 2.
        owner: who the workers run as: gets the file when root makes it.

    A standard stream is duplicated: an application that closes descriptor 2 must not have the log written to the
    client whose connection gets that number next.

    Raises OSError when the file cannot be opened. A FIFO without a reader can.
    """

    __slots__ = (
        "__weakref__",
        "_absent",
        "_is_socket",
        "_polled",
        "_shared",
        "_standard_fd",
        "fd",
        "is_pipe",
        "owner",
        "path",
    )

    def __init__(self, path: str, standard_fd: int, owner: Owner) -> None:
        # Absolute from now on: the working directory may have changed when the file is reopened.
        self.path = None if path == "-" else os.path.abspath(path)
        self.owner = owner
        self._standard_fd = standard_fd
        # A FIFO that has no reader, and that we may not hold open ourselves: `fd` is the null device meanwhile.
        self._absent = False
        self._shared = False  # whether others share its flags, so that it may block
        self._polled = False  # whether poll(2) must be asked before each write
        self.is_pipe = self._is_socket = False
        self.fd = self._duplicate() if self.path is None else self._open(log_files.take(self.path))
        self._look()
        if self.path is None:
            _standard_streams.add(self)

    def _open(self, handed: int | None) -> int:
        """Return the descriptor ``handed`` on by the master, or open the file. Raises OSError."""
        assert self.path is not None
        fd, is_absent = open_log(self.path, self.owner) if handed is None else (handed, False)
        self._absent = is_absent
        self._shared = os.get_blocking(fd)  # an inherited stream: what is opened here does not block
        return fd

    def _duplicate(self) -> int:
        own = reopened(self._standard_fd)
        self._shared = own is None
        return duplicate(self._standard_fd) if own is None else own

    def _look(self) -> None:
        """Decide how the descriptor is written to. Called when it has changed, so that a write need not ask."""
        try:
            mode = os.fstat(self.fd).st_mode
            self.is_pipe = stat.S_ISFIFO(mode)
            self._is_socket = stat.S_ISSOCK(mode)
            self._polled = self._shared and (self.is_pipe or (stat.S_ISCHR(mode) and os.isatty(self.fd)))
        except OSError:
            self.is_pipe = self._is_socket = self._polled = False  # closed: the first write says so

    def write(self, data: bytes, wait_s: float = 0.0) -> tuple[int, OSError | None]:
        """Write ``data``; return how many bytes went out and, when it is not all of them, why. Never raises.

        Args:
            data: whole lines.
            wait_s: how long to wait, in all, for a pipe or terminal that is full.

        On a pipe the lines go in pieces of at most ``PIPE_BUF`` bytes where they allow it, so that the lines
        of several workers do not mix; on a file it is one write unless the kernel takes less.
        """
        if self._absent and not self._has_come():
            return 0, OSError(errno.ENXIO, "it is a FIFO that nobody reads")
        done, size, until = 0, len(data), 0.0
        while done < size:
            end = size
            if self.is_pipe and size - done > PIPE_BUF:
                end = data.rfind(b"\n", done, done + PIPE_BUF) + 1 or done + PIPE_BUF
            try:
                if self._polled and not is_writable(self.fd):
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                if self._is_socket:
                    done += _send(self.fd, data[done:])
                else:
                    done += write_fd(self.fd, data[done:end] if done or end < size else data)
            except OSError as error:
                if not wait_s or error.errno != errno.EAGAIN:
                    return done, error
                until = until or monotonic() + wait_s
                left_s = until - monotonic()
                if left_s <= 0.0 or not is_writable(self.fd, left_s):
                    return done, error
        return done, None

    def _has_come(self) -> bool:
        """Whether the FIFO that had no reader has one now."""
        try:
            self.reopen()
        except OSError:
            return False
        return not self._absent

    def reopen(self) -> None:
        """Open the file again under its name (after a rotation), or take what the master has opened; a standard stream
        stays.

        The descriptor keeps its number, so a thread that is writing at this moment is not disturbed.
        Raises OSError; the old file stays in use then.
        """
        if self.path is not None:
            before = self._absent, self._shared
            try:
                self._put(self._open(log_files.successor(self.path)))
            except OSError:
                self._absent, self._shared = before
                raise

    def renew(self) -> None:
        """Duplicate the standard stream again: it goes elsewhere now. Never raises."""
        if self.path is None:
            try:
                self._put(self._duplicate())
            except OSError:
                pass  # no descriptor is left: the old one stays in use

    def fileno(self) -> int:
        """Return the descriptor for other programs and for C code; its number stays after `reopen`.

        The standard stream itself, which may block as they expect, while it is still the same file. Raises
        io.UnsupportedOperation when the file is closed.
        """
        if self.fd < 0:
            raise UnsupportedOperation("fileno")
        if self.path is None:
            with suppress(OSError):
                if os.path.sameopenfile(self.fd, self._standard_fd):
                    return self._standard_fd
        return self.fd

    def use_standard_stream(self) -> None:
        """Write to the standard stream itself from now on. In a child of the application, which may send its own
        elsewhere: a duplicate would keep the server's pipe or terminal open."""
        if self.path is None and self.fd > 2:
            fd, self.fd = self.fd, self._standard_fd
            close(fd)
            self._shared = True
            self._look()

    def _put(self, fd: int) -> None:
        if fd <= 2 or self.fd <= 2:  # a stream that could not be duplicated
            self.fd = fd
        else:
            try:
                os.dup2(fd, self.fd, inheritable=False)
            finally:
                os.close(fd)
        self._look()

    def close(self) -> None:
        """Close the file; a standard stream itself stays open."""
        _standard_streams.discard(self)
        if self.fd > 2:
            fd, self.fd = self.fd, -1  # the number may soon be another file's
            close(fd)


def _send(fd: int, data: bytes) -> int:
    """Send what a socket takes now. Raises OSError."""
    # SOCK_NONBLOCK: or the object would obey socket.setdefaulttimeout(), and set O_NONBLOCK for all who share it.
    sock = RawSocket(fileno=fd, type=_STREAM)
    try:
        return sock.send(data, MSG_DONTWAIT)
    finally:
        sock.detach()


_standard_streams: WeakSet[Output] = WeakSet()


def renew_standard_streams() -> None:
    """Have all outputs on standard streams follow these. Called where the server itself sends them elsewhere."""
    for output in list(_standard_streams):
        output.renew()


def close_duplicates() -> None:
    """Close all duplicates of standard streams. Called in a child of the application."""
    for output in list(_standard_streams):
        output.use_standard_stream()
