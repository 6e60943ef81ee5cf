"""Writes bytes to a log: a file opened for appending, or a standard stream. No write waits, none raises.

`Output` writes at once: a log must not lose lines with a process that is killed. `LossyWriter` drops the lines that an
output does not take, and tells how many.
"""

# A pipe whose reader sleeps and a terminal stopped with ^S would block a write, so files are opened with O_NONBLOCK. A
# standard stream is shared with the shell and its other children, and O_NONBLOCK belongs to the open file description,
# so it would be set for all of them: a pipe or a terminal is opened a second time through /proc, which makes a
# description of our own. Where that is not allowed poll(2) is asked before each piece; a pipe that polls writable takes
# PIPE_BUF bytes. A socket (systemd's journal) has MSG_DONTWAIT.

from __future__ import annotations

import _socket
import errno
import os
import stat
from _socket import MSG_DONTWAIT, SOCK_STREAM
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import suppress
from io import UnsupportedOperation
from os import close  # gevent's close() waits for its hub
from os import write as write_fd
from time import monotonic
from weakref import WeakSet

from wsgiserv.logs.files import log_files, open_log
from wsgiserv.process import duplicate, is_writable, reopened
from wsgiserv.safe_open import Owner

# POSIX: a write of up to this many bytes to a pipe is not interleaved with another process's.
PIPE_BUF = 4096
_STREAM = SOCK_STREAM | getattr(_socket, "SOCK_NONBLOCK", 0)

# How long a line waits for a full pipe or terminal before it is lost; and how much later the next may wait. A reader
# that is alive but behind gets its lines; one that sleeps delays the process by 50 ms a second at most.
PATIENCE_S = 0.05
IMPATIENT_S = 1.0
# After an error other than a full pipe (a full disk, say) the next attempt is made this much later.
RETRY_S = 1.0


class Output:
    """One destination of log bytes.

    Args:
        path: a file, created if it is missing; ``"-"`` takes the standard stream ``standard_fd`` instead.
        standard_fd: 1 or 2.
        owner: the workers' user, the owner of a file that root creates.

    Raises OSError if the file cannot be opened. A FIFO without a reader can.
    """

    def __init__(self, path: str, standard_fd: int, owner: Owner) -> None:
        # Absolute from now on: the working directory may have changed when the file is reopened.
        self.path = None if path == "-" else os.path.abspath(path)
        self.owner = owner
        self._standard_fd = standard_fd
        # The FIFO has no reader, and may not be held open here: `fd` is the null device meanwhile.
        self._is_absent = False
        self._is_shared = False  # other processes use its flags, so it may block
        self._is_polled = False  # poll(2) is asked before each write
        self.is_pipe = self._is_socket = False
        self.fd = self._duplicate() if self.path is None else self._open(log_files.take(self.path))
        self._classify()
        if self.path is None:
            _standard_streams.add(self)

    def _open(self, inherited: int | None) -> int:
        """Return the descriptor ``inherited`` from the master, or open the file. Raises OSError."""
        assert self.path is not None
        fd, is_absent = open_log(self.path, self.owner) if inherited is None else (inherited, False)
        self._is_absent = is_absent
        self._is_shared = os.get_blocking(fd)  # an inherited stream: all others were opened non-blocking
        return fd

    def _duplicate(self) -> int:
        # An application that closes descriptor 2 must not have the log written to the client whose connection gets that
        # number next.
        own = reopened(self._standard_fd)
        self._is_shared = own is None
        return duplicate(self._standard_fd) if own is None else own

    def _classify(self) -> None:
        """Decide how to write to the descriptor. Called when it has changed, so that a write need not ask."""
        try:
            mode = os.fstat(self.fd).st_mode
            self.is_pipe = stat.S_ISFIFO(mode)
            self._is_socket = stat.S_ISSOCK(mode)
            self._is_polled = self._is_shared and (self.is_pipe or (stat.S_ISCHR(mode) and os.isatty(self.fd)))
        except OSError:
            self.is_pipe = self._is_socket = self._is_polled = False  # closed: the first write says so

    def write(self, data: bytes, wait_s: float = 0.0) -> tuple[int, OSError | None]:
        """Write ``data``; return the number of bytes written and, if some are left, the reason. Never raises.

        Args:
            data: whole lines.
            wait_s: how long to wait, in all, for a pipe or terminal that is full.
        """
        if self._is_absent and not self._has_reader():
            return 0, OSError(errno.ENXIO, "it is a FIFO without a reader")
        done, size, until = 0, len(data), 0.0
        while done < size:
            end = size
            # Whole lines in pieces that the kernel does not split, so that the lines of several workers do not mix.
            if self.is_pipe and size - done > PIPE_BUF:
                end = data.rfind(b"\n", done, done + PIPE_BUF) + 1 or done + PIPE_BUF
            try:
                if self._is_polled and not is_writable(self.fd):
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

    def _has_reader(self) -> bool:
        """Open the FIFO again; return True if it has a reader now."""
        try:
            self.reopen()
        except OSError:
            return False
        return not self._is_absent

    def reopen(self) -> None:
        """Open the file again (after a rotation), or take the master's new descriptor; a standard stream stays.

        Raises OSError; the old file stays in use then.
        """
        if self.path is not None:
            before = self._is_absent, self._is_shared
            try:
                self._set_fd(self._open(log_files.latest(self.path)))
            except OSError:
                self._is_absent, self._is_shared = before
                raise

    def renew(self) -> None:
        """Duplicate the standard stream again: it goes elsewhere now. Never raises."""
        if self.path is None:
            with suppress(OSError):  # no descriptor is left: the old one stays in use
                self._set_fd(self._duplicate())

    def fileno(self) -> int:
        """Return the descriptor for other programs and for C code; its number stays after `reopen`.

        Raises io.UnsupportedOperation if the file is closed.
        """
        if self.fd < 0:
            raise UnsupportedOperation("fileno")
        if self.path is None:
            # The stream itself, which may block as they expect, while it is still the same file.
            with suppress(OSError):
                if os.path.sameopenfile(self.fd, self._standard_fd):
                    return self._standard_fd
        return self.fd

    def use_standard_stream(self) -> None:
        """Write to the standard stream itself from now on."""
        # For a child of the application, which may send its own elsewhere: a duplicate would keep the server's pipe or
        # terminal open.
        if self.path is None and self.fd > 2:
            fd, self.fd = self.fd, self._standard_fd
            close(fd)
            self._is_shared = True
            self._classify()

    def _set_fd(self, fd: int) -> None:
        # dup2(2) keeps the number, so a thread that is writing at this moment is not disturbed.
        if fd <= 2 or self.fd <= 2:  # a stream that could not be duplicated
            self.fd = fd
        else:
            try:
                os.dup2(fd, self.fd, inheritable=False)
            finally:
                close(fd)
        self._classify()

    def close(self) -> None:
        """Close the file; a standard stream itself stays open."""
        _standard_streams.discard(self)
        if self.fd > 2:
            fd, self.fd = self.fd, -1  # the number may soon be another file's
            close(fd)


def _send(fd: int, data: bytes) -> int:
    """Send as much as a socket takes now. Raises OSError."""
    # SOCK_NONBLOCK: or the object would obey socket.setdefaulttimeout(), and set O_NONBLOCK for all who share it.
    sock = RawSocket(fileno=fd, type=_STREAM)
    try:
        return sock.send(data, MSG_DONTWAIT)
    finally:
        sock.detach()


_standard_streams: WeakSet[Output] = WeakSet()


def renew_standard_streams() -> None:
    """Let all outputs on standard streams follow these. Called when the server itself has redirected them."""
    for output in list(_standard_streams):
        output.renew()


def close_duplicates() -> None:
    """Close all duplicates of standard streams. Called in a child of the application."""
    for output in list(_standard_streams):
        output.use_standard_stream()


class LossyWriter:
    """Writes lines to an `Output`, or drops and counts them.

    Args:
        output: the destination.
        loss_line: returns the line that tells how many are lost; written before the next line.

    Attributes:
        lost: the number of lines lost in this process.
        untold: how many of them `loss_line` has not told yet.

    Calls in several threads must be kept apart by the caller. Only `reopen` raises.
    """

    def __init__(self, output: Output, loss_line: Callable[[int], bytes]) -> None:
        self.output = output
        self._loss_line = loss_line
        self._patient_at = self._retry_at = 0.0  # time.monotonic()
        self.forget()
        _writers.add(self)

    def forget(self) -> None:
        """Begin at zero. Called in a forked process: the parent tells its losses itself."""
        self.lost = self.untold = 0
        self._tail = b""  # the rest of a line written in part: the next line must not start in its middle

    def write(self, data: bytes) -> None:
        """Write ``data``, a whole line or several that belong together; or lose it."""
        if self.is_behind and not self.recover():
            self.lose()
            return
        now = monotonic()
        patient = now >= self._patient_at
        done, error = self.output.write(data, PATIENCE_S if patient else 0.0)
        if patient and monotonic() - now > PATIENCE_S / 10:
            self._patient_at = now + IMPATIENT_S
        if error is None:
            return
        self._retry_later(error)
        if done:
            self._tail = data[done:]
        else:
            self.lose()

    @property
    def is_behind(self) -> bool:
        """True if there is something to write as soon as lines are taken again."""
        return bool(self.untold or self._tail)

    def lose(self) -> None:
        """Count a line as lost."""
        self.lost += 1
        self.untold += 1

    def recover(self) -> bool:
        """Write the rest of a line and the number of lost ones; return True if new lines can be written."""
        if monotonic() < self._retry_at:
            return False
        self._retry_at = 0.0
        while self.is_behind:
            line = self._tail or self._loss_line(self.untold)
            done, error = self.output.write(line)
            if done:
                # The loss line is told as soon as a part of it is out: the rest is a tail, too.
                if not self._tail:
                    self.untold = 0
                self._tail = line[done:]
            if error is not None:
                self._retry_later(error)
                return False
        return True

    def reopen(self) -> None:
        """Open the file again under its name. Raises OSError; the old file stays in use then."""
        if self._tail:
            self.recover()
        self.output.reopen()
        self._retry_at = 0.0
        if self._tail:  # the old file has the line's beginning; the new one must not begin with its end
            self._tail = b""
            self.lose()

    def _retry_later(self, error: OSError) -> None:
        if error.errno != errno.EAGAIN:
            self._retry_at = monotonic() + RETRY_S


_writers: WeakSet[LossyWriter] = WeakSet()


def _forget_parents_losses() -> None:
    for writer in list(_writers):
        writer.forget()


os.register_at_fork(after_in_child=_forget_parents_losses)
