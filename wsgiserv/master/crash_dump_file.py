"""The last words of a worker: a file that it inherits, and that the master reads when it is dead.

Owns: `CrashDumpFile`: making the file, telling what the interpreter wrote into it from what the worker wrote itself.
Must not know: when a worker writes there, what a certificate looks like.

What `faulthandler` writes needs neither the GIL nor a main thread that runs Python code; what the worker writes in its
handler of SIGABRT is better (all greenlets, the requests), and comes after it if it comes.
"""

from __future__ import annotations

import os
import re
from os import close, fstat, pread
from signal import SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV
from typing import Final, NamedTuple

from wsgiserv.boot import REPORT_MARK

__all__ = ["CRASHES", "CrashDumpFile", "Stacks"]

# What faulthandler calls the signals that it catches.
CRASHES: Final = {
    SIGSEGV: "Segmentation fault",
    SIGBUS: "Bus error",
    SIGFPE: "Floating-point exception",
    SIGILL: "Illegal instruction",
    SIGABRT: "Aborted",
}
_FATAL: Final = "Fatal Python error: "
# A list of a hundred modules says little, and not where.
_MODULES: Final = re.compile(r"^Extension modules: .*\n?", re.MULTILINE)
# The server's own frames below the application's: the same in every dump.
_SERVERS_FRAMES: Final = re.compile(
    r"^.*wsgi/run\.py\", line \d+ in run_app\n(?:  File .*\n?)*", re.MULTILINE
)
_MOST_BYTES: Final = 256 << 10


class Stacks(NamedTuple):
    """What was running.

    Attributes:
        report: the worker's own report, with all requests, threads and greenlets; or empty.
        dump: what faulthandler wrote last: the stacks of all threads; or empty.
    """

    report: str = ""
    dump: str = ""

    def dump_of(self, signal: int) -> str:
        """Return the dump if it was made at ``signal``, else nothing: a child of the worker may have written it."""
        name = CRASHES.get(signal)  # type: ignore[call-overload]
        return self.dump if name is not None and self.dump.startswith(_FATAL + name) else ""


class CrashDumpFile:
    """An open file without a name, in memory where the system can (memfd_create(2))."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def make(cls) -> CrashDumpFile | None:
        """Make one. None when the system would not: a worker does without."""
        try:
            if hasattr(os, "memfd_create"):
                return cls(os.memfd_create("wsgiserv-last-words", os.MFD_CLOEXEC))
            import tempfile

            with tempfile.TemporaryFile() as file:
                return cls(os.dup(file.fileno()))
        except OSError:
            return None

    def read(self) -> Stacks:
        """Return what has been written. Called by the master, when the worker is dead. Never raises."""
        try:
            size = fstat(self.fd).st_size
            data = pread(self.fd, _MOST_BYTES, max(0, size - _MOST_BYTES))
        except OSError:
            return Stacks()
        text = data.decode("utf-8", "backslashreplace")
        before, mark, report = text.rpartition(REPORT_MARK)
        if not mark:
            before, report = text, ""
        _, fatal, dump = before.rpartition(_FATAL)
        if fatal:
            dump = fatal + _SERVERS_FRAMES.sub("", _MODULES.sub("", dump))
        return Stacks(report.strip(), dump.strip() if fatal else "")

    def close(self) -> None:
        """Close the file, which is gone then."""
        close(self.fd)
