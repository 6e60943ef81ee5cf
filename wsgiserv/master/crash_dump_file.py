"""Keeps the file for a worker's stacks at a crash or SIGABRT: the worker writes it, the master reads it."""

from __future__ import annotations

import re
from os import close, fstat, pread
from signal import SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV
from typing import Final, NamedTuple

from wsgiserv.boot import REPORT_MARK
from wsgiserv.process import unnamed_file

# What faulthandler calls the signals that it catches.
CRASHES: Final[dict[int, str]] = {
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
_SERVERS_FRAMES: Final = re.compile(r"^.*wsgi/run\.py\", line \d+ in run_app\n(?:  File .*\n?)*", re.MULTILINE)
_MOST_BYTES: Final = 256 << 10


class CrashDump(NamedTuple):
    """The contents of the file.

    Attributes:
        report: the worker's own report, with all requests, threads and greenlets; or empty.
        faulthandler: the last dump of faulthandler, the stacks of all threads; or empty.
    """

    # faulthandler needs neither the GIL nor a main thread that runs Python code. The worker's own report, made in its
    # handler of SIGABRT, is better, and comes after the dump if it comes.
    report: str = ""
    faulthandler: str = ""

    def at(self, signal: int) -> str:
        """Return faulthandler's dump if it was made at ``signal``, else an empty text."""
        name = CRASHES.get(signal)
        return self.faulthandler if name and self.faulthandler.startswith(_FATAL + name) else ""


class CrashDumpFile:
    """An open file without a name."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def make(cls) -> CrashDumpFile | None:
        """Make one; None when the system does not."""
        # A server that is short of descriptors or memory must serve all the same: only a report lacks its stacks.
        try:
            return cls(unnamed_file("wsgiserv-crash-dump"))
        except OSError:
            return None

    def read(self) -> CrashDump:
        """Return the contents. Called by the master, after the worker's exit. Never raises."""
        # pread(2): the worker, its children and the master share one file offset.
        try:
            size = fstat(self.fd).st_size
            data = pread(self.fd, _MOST_BYTES, max(0, size - _MOST_BYTES))
        except OSError:
            return CrashDump()
        # The end counts: children of the worker may have written dumps before, and without bound.
        text = data.decode("utf-8", "backslashreplace")
        before, mark, report = text.rpartition(REPORT_MARK)
        if not mark:
            before, report = text, ""
        _, fatal, dump = before.rpartition(_FATAL)
        if fatal:
            dump = fatal + _SERVERS_FRAMES.sub("", _MODULES.sub("", dump))
        return CrashDump(report.strip(), dump.strip() if fatal else "")

    def close(self) -> None:
        """Close the file, and so delete it."""
        close(self.fd)
