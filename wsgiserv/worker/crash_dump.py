"""Writes a worker's stacks, and its own report, to the file that the master reads when the worker has crashed."""

from __future__ import annotations

import faulthandler
import os
import sys
from os import write
from signal import SIG_DFL, SIGABRT, getsignal, signal
from typing import Final

from wsgiserv.boot import REPORT_MARK
from wsgiserv.process import add_child_cleanup
from wsgiserv.unpatched import start_thread

_MOST_BYTES: Final = 192 << 10
_STANDARD_ERROR: Final = 2


def catch_crashes(fd: int | None) -> None:
    """Have the stacks of all threads written at SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT.

    Args:
        fd: the file; None: no file could be made.

    Called in the worker, when the handler of SIGABRT is in place. Where faulthandler has been switched on before, with
    PYTHONFAULTHANDLER or in the configuration, it goes on writing where it does; an application may switch it, too.
    """
    # faulthandler's handler goes first, since it needs no GIL, and calls the one before it. (`faulthandler.register`
    # does not take SIGABRT; `enable` passes it on.)
    if faulthandler.is_enabled():
        if os.environ.get("PYTHONFAULTHANDLER") or "faulthandler" in sys._xoptions or sys.flags.dev_mode:
            # Anew: our handler of SIGABRT has replaced faulthandler's, and is to be called by it.
            _enable_before(getsignal(SIGABRT))
    elif fd is not None:
        # From a thread that ends at once: `enable` gives the thread that calls it a stack for signals of some 10 KiB.
        # Python's own handlers run on that, one above the other where several signals are pending, each with the
        # processor's registers (3 KiB with AVX-512): three signals at once run over it, into the heap. Without such a
        # stack the main thread's handlers run on its own.
        try:
            start_thread(faulthandler.enable, (fd,), name="wsgiserv-faulthandler").join()
        except RuntimeError:  # no thread can be had
            faulthandler.enable(fd)
        # What a forked child of the application writes is not this worker's; and the child may close the descriptor,
        # whose number is a client's then. A child has the default handler of SIGABRT.
        add_child_cleanup(lambda: _enable_before(SIG_DFL))


def _enable_before(handler: object) -> None:
    """Have faulthandler write to standard error, and then call ``handler`` at SIGABRT."""
    faulthandler.disable()
    signal(SIGABRT, handler)  # type: ignore[arg-type]
    faulthandler.enable(_STANDARD_ERROR)


def write_report(fd: int | None, report: str) -> bool:
    """Write the worker's own report for the master. Never raises.

    Args:
        fd: the file; None: no file could be made.
        report: the text.

    Returns:
        Whether all of it has been written.
    """
    if fd is None:
        return False
    # A stack's source lines may hold surrogates. One write: the process may be killed at any moment.
    data = (REPORT_MARK + report).encode("utf-8", "backslashreplace")[:_MOST_BYTES]
    try:
        return write(fd, data) == len(data)
    except OSError:
        return False
