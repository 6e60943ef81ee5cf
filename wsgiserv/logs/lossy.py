"""Lines that are written at once or lost, and counted then.

Owns: what becomes of a line that a file, pipe or terminal does not take, and when it is tried again.
Must not know: what a line looks like, logging.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from io import TextIOBase
from os import getpid
from time import monotonic

from wsgiserv.logs.output import Output

__all__ = ["LogText", "LossyText", "LossyWriter"]

# How long a line waits for a full pipe or terminal before it is lost; and how much later the next may wait. A reader
# that is alive but behind gets what it has no room for; one that sleeps holds nobody up.
_PATIENCE_S = 0.05
_IMPATIENT_S = 1.0
# After an error other than a full pipe (a full disk, say) the next attempt is made this much later.
_RETRY_S = 1.0


class LossyWriter:
    """Writes lines to an `Output`.

    Args:
        output: where they go.
        tell: returns the line that says how many have been lost; written before the next one that is not.

    Attributes:
        lost: how many lines this process has lost so far.
        unsaid: how many of them have not been told yet.

    Calls in several threads must be kept apart by the caller. No method raises.
    """

    __slots__ = ("_patient_at", "_pid", "_retry_at", "_tail", "_tell", "lost", "output", "unsaid")

    def __init__(self, output: Output, tell: Callable[[int], bytes]) -> None:
        self.output = output
        self.lost = 0
        self._tell = tell
        self.unsaid = 0
        self._tail = b""  # the end of what was taken in part: the next line must not start in its middle
        self._pid = getpid()
        self._patient_at = self._retry_at = 0.0  # time.monotonic()

    def write(self, data: bytes) -> None:
        """Write ``data``, a whole line or several that belong together; or lose it."""
        if (self._tail or self.unsaid) and not self.recover():
            self.lose()
            return
        now = monotonic()
        patient = now >= self._patient_at
        done, error = self.output.write(data, _PATIENCE_S if patient else 0.0)
        if patient and monotonic() - now > _PATIENCE_S / 10:
            self._patient_at = now + _IMPATIENT_S
        if error is None:
            return
        self._forget_the_parents()
        self._failed(error)
        if done:
            self._tail = data[done:]
        else:
            self.lose()

    @property
    def is_behind(self) -> bool:
        """Whether there is something to write as soon as lines are taken again."""
        return bool(self.unsaid or self._tail)

    def lose(self) -> None:
        """Count a line as lost: it is told when others are written."""
        self._forget_the_parents()
        self.lost += 1
        self.unsaid += 1

    def recover(self) -> bool:
        """Write what is left of a line, and how many are lost; return whether new lines can be written."""
        self._forget_the_parents()
        now = monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = 0.0
        if self._tail:
            done, error = self.output.write(self._tail)
            self._tail = self._tail[done:]
            if error is not None:
                self._failed(error)
                return False
        if self.unsaid:
            line = self._tell(self.unsaid)
            done, error = self.output.write(line)
            if done:
                self.unsaid = 0
                self._tail = line[done:]
            if error is not None:
                self._failed(error)
                return False
        return True

    def _forget_the_parents(self) -> None:
        """In a process that has been forked: what the parent has lost is the parent's to tell."""
        pid = getpid()
        if pid != self._pid:
            self._pid = pid
            self._tail = b""
            self.lost = self.unsaid = 0

    def lost_here(self) -> int:
        """Return how many lines this process, not its parent, has lost."""
        self._forget_the_parents()
        return self.lost

    def reopen(self) -> None:
        """Open the file again under its name. Raises OSError; the old file stays in use then."""
        if self._tail:
            self.recover()
        self.output.reopen()
        self._retry_at = 0.0
        if self._tail:  # the old file has the line's beginning; the new one is not to begin with its end
            self._tail = b""
            self.lose()

    def _failed(self, error: OSError) -> None:
        if error.errno != errno.EAGAIN:
            self._retry_at = monotonic() + _RETRY_S


class LogText(TextIOBase):
    """A text stream into a log, with what libraries expect of one: `isinstance`, ``with``, ``closed``, ``writable``.

    A subclass has `write`. `close` leaves the log open, so ``closed`` is always False.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    name = "<log>"
    mode = "w"

    def writable(self) -> bool:
        """Return True."""
        return True

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        """Write each of ``lines``, which have their own line ends."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

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
        """Return the descriptor. Raises io.UnsupportedOperation when the file is closed."""
        return self.writer.output.fileno()

    def isatty(self) -> bool:
        """Return False: whoever asks is about to colour a log."""
        return False
