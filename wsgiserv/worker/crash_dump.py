"""What a worker can still say when it crashes, or does not answer any more.

Owns: `faulthandler` in a worker, and writing to the file that the master gave it.
Must not know: signals other than those that faulthandler catches; what the master does with the words.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from _thread import allocate_lock, start_new_thread  # bound before anything may replace them by greenlets
from os import write
from signal import SIG_DFL, SIGABRT, getsignal, signal
from typing import Final

from wsgiserv.boot import REPORT_MARK
from wsgiserv.process import add_child_cleanup

__all__ = ["catch_crashes", "say"]

_MOST_BYTES: Final = 192 << 10
_STANDARD_ERROR: Final = 2


def catch_crashes(fd: int | None) -> None:
    """Have the stacks of all threads written to ``fd`` at SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT.

    Called in the worker, when the handler of SIGABRT is in place: it runs after faulthandler's, which goes first
    since it needs no GIL. (`faulthandler.register` does not take SIGABRT; `enable` passes it on.)

    Whoever has switched faulthandler on before, with PYTHONFAULTHANDLER or in the configuration, keeps it where it
    writes; an application that does so later, too.
    """
    if faulthandler.is_enabled():
        if os.environ.get("PYTHONFAULTHANDLER") or "faulthandler" in sys._xoptions or sys.flags.dev_mode:
            # Anew: our handler of SIGABRT has put its own out of place, and is to be called by it.
            handler = getsignal(SIGABRT)
            faulthandler.disable()
            signal(SIGABRT, handler)
            faulthandler.enable(_STANDARD_ERROR)
        return
    if fd is None:
        return
    _enable(fd)
    # What a forked child of the application writes is not this worker's; and the child may close the descriptor,
    # whose number is a client's then.
    add_child_cleanup(_dump_to_standard_error)


def _dump_to_standard_error() -> None:
    # Anew: a child has the default handler of SIGABRT, and it is to be called after faulthandler's.
    faulthandler.disable()
    signal(SIGABRT, SIG_DFL)
    faulthandler.enable(_STANDARD_ERROR)


def _enable(fd: int) -> None:
    """Switch faulthandler on from a thread that ends at once.

    It gives the thread that calls it a stack for signals of some 10 KiB. Python's own handlers run on that, one above
    the other where several signals are pending, each with the processor's registers (3 KiB with AVX-512): three
    signals at once run over it, into the heap. Without such a stack the main thread's handlers run on its own.
    """
    is_done = allocate_lock()
    is_done.acquire()

    def enable() -> None:
        try:
            faulthandler.enable(fd)
        finally:
            is_done.release()

    try:
        start_new_thread(enable, ())
    except RuntimeError:  # no thread can be had
        enable()
    is_done.acquire()


def say(fd: int | None, report: str) -> bool:
    """Write the worker's own report for the master; return whether that was possible. Never raises."""
    if fd is None:
        return False
    data = (REPORT_MARK + report).encode("utf-8", "backslashreplace")[:_MOST_BYTES]
    try:
        return write(fd, data) == len(data)
    except OSError:
        return False
