"""Text streams into a log, also as `sys.stdout` and `sys.stderr`: `print` neither waits nor raises."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from os import dup2
from typing import Any, TextIO, cast

from wsgiserv.logs.output import LossyWriter, Output
from wsgiserv.logs.plain import loss_line
from wsgiserv.process import flush_standard_streams
from wsgiserv.safe_open import Owner


class LogText(io.TextIOBase):
    """A text stream into a log, with the interface that libraries expect of one.

    A subclass has `write`. `close` leaves the log open, so ``closed`` is always False.
    """

    # `isatty` stays False: libraries ask before they colour their lines, and this is a log.
    encoding = "utf-8"
    errors = "backslashreplace"
    name = "<log>"
    mode = "w"

    def writable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Do nothing: the server uses the log to its end."""

    def __del__(self) -> None:
        """Do nothing, where `io.IOBase` calls `close`."""


class LossyText(LogText):
    """A `LossyWriter` as a text stream, for a `logging.StreamHandler`."""

    def __init__(self, writer: LossyWriter) -> None:
        super().__init__()
        self.writer = writer

    def write(self, text: str) -> int:
        """Write ``text``, or lose it."""
        self.writer.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def close(self) -> None:
        """Close a file; the standard streams stay open, for others."""
        if self.writer.output.path is not None:
            self.writer.output.close()

    def fileno(self) -> int:
        """Return the descriptor. Raises io.UnsupportedOperation if the file is closed."""
        return self.writer.output.fileno()


class _LossyRaw(io.RawIOBase):
    """Descriptor 1 or 2 under `sys.stdout` or `sys.stderr`."""

    def __init__(self, write: Callable[[bytes], None], fd: int) -> None:
        self._write = write
        self._number = fd
        self.name = "<stdout>" if fd == 1 else "<stderr>"
        self.mode = "wb"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        whole = bytes(data)
        self._write(whole)
        return len(whole)


def _lossy_stream(write: Callable[[bytes], None], fd: int) -> TextIO:
    """Return a replacement for `sys.stdout` or `sys.stderr`."""
    # Line by line: stdout would hold text until 8 KiB are full, and it is a log now. And where Python does not buffer
    # (PYTHONUNBUFFERED) `print` would write word by word, and other processes in between.
    encoding = getattr(sys.stdout if fd == 1 else sys.stderr, "encoding", None) or "utf-8"
    raw = io.BufferedWriter(_LossyRaw(write, fd))
    stream: Any = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)
    stream.mode = "w"  # as the interpreter does it
    return cast("TextIO", stream)


class Capture:
    """Sends descriptors 1 and 2 to the error log's file (capture_output), and back.

    Args:
        output: the error log's.
        write: writes bytes to it.
    """

    def __init__(self, output: Output, write: Callable[[bytes], None]) -> None:
        self._output = output
        self._saved = [_duplicated(1), _duplicated(2)]
        self._streams = sys.stdout, sys.stderr
        # Text printed before belongs to the streams as they were.
        flush_standard_streams(wait=True)
        self.attach()
        sys.stdout, sys.stderr = self._captured = _lossy_stream(write, 1), _lossy_stream(write, 2)

    def attach(self) -> None:
        """Send the descriptors to the file that is open now."""
        # Children and C code write to the descriptors; Python code writes to `_lossy_stream`, which never waits.
        for fd in (1, 2):
            dup2(self._output.fd, fd)

    def detach(self) -> None:
        """Send the descriptors back."""
        flush_standard_streams(wait=True)
        for at, name in enumerate(("stdout", "stderr")):
            if getattr(sys, name) is self._captured[at]:  # an application may have replaced it since
                setattr(sys, name, self._streams[at])
            saved = self._saved[at]
            if saved is not None:
                dup2(saved, at + 1)
                os.close(saved)


def _duplicated(fd: int) -> int | None:
    try:
        return os.dup(fd)
    except OSError:
        return None  # it was closed


def guard_standard_streams() -> None:
    """Let `print` neither wait nor raise in this process. Called by the master, for its configuration file and hooks.

    The descriptors stay as they are, and so do the streams of regular files.
    """
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        with suppress(AttributeError, OSError, ValueError):  # None, closed; in memory
            if stream.fileno() != fd or stat.S_ISREG(os.fstat(fd).st_mode):
                continue
            if not isinstance(getattr(stream.buffer, "raw", None), _LossyRaw):
                flush_standard_streams()
                guard = _lossy_stream(console(fd).write, fd)
                setattr(sys, name, guard)
                _guards[name] = guard, stream


def unguard_standard_streams() -> None:
    """Give a child of the master its own streams."""
    # It prints the application's text, which may wait and must not get lost.
    for name, (guard, stream) in _guards.items():
        if getattr(sys, name) is guard:
            setattr(sys, name, stream)
    _guards.clear()


_guards: dict[str, tuple[TextIO, TextIO]] = {}


def console(fd: int) -> LossyWriter:
    """Return the one writer to a standard stream, for all handlers, also after a reload."""
    if fd not in consoles:
        consoles[fd] = LossyWriter(Output("-", fd, Owner(0, 0)), loss_line)
    return consoles[fd]


consoles: dict[int, LossyWriter] = {}
