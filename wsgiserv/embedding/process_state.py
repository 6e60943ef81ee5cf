"""Keeps what a server changes in the process of a program, and gives it back when the server has ended."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from wsgiserv.config.process_environment import ProcessEnvironment, State
from wsgiserv.logs.files import log_files
from wsgiserv.logs.streams import unguard_standard_streams
from wsgiserv.master.signals import ignore_all
from wsgiserv.process import disarm, exit_as_interpreter
from wsgiserv.safe_open import O_PATH
from wsgiserv.titles import getproctitle, setproctitle


@contextmanager
def kept_process_state(environment: ProcessEnvironment) -> Iterator[None]:
    """Give back the signal handlers, working directory, umask, environment, title, path and streams at the end.

    Args:
        environment: where the server puts variables.
    """
    undo = [_signals(), _directory(), _names()]
    try:
        yield
    finally:
        environment.restore(State({}, ()))
        unguard_standard_streams()
        log_files.close()
        for each in undo:
            each()
        atexit.unregister(ignore_all)
        disarm()


def _signals() -> Callable[[], None]:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def restore() -> None:
        for number, handler in handlers.items():
            # None: it was not set by Python, and cannot be.
            if handler is not None and signal.getsignal(number) != handler:
                with suppress(OSError, ValueError):
                    signal.signal(number, handler)
        with suppress(OSError, ValueError):  # it has been closed
            signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    return restore


def _directory() -> Callable[[], None]:
    # By a descriptor: the directory may be renamed meanwhile.
    before = os.open(".", O_PATH)
    mask = os.umask(0o077)
    os.umask(mask)

    def restore() -> None:
        os.umask(mask)
        with suppress(OSError):
            os.chdir(before)
        os.close(before)

    return restore


def _names() -> Callable[[], None]:
    path, argv, title = list(sys.path), list(sys.argv), getproctitle()

    def restore() -> None:
        sys.path[:], sys.argv[:] = path, argv
        if title:
            setproctitle(title)

    return restore


def end_child(error: BaseException | None) -> NoReturn:
    """End a process that the server has forked, as the interpreter would: nothing of the program runs in it.

    Args:
        error: what has come out of the server: SystemExit with the exit status.
    """
    status = 1
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        status = error.code
    elif error is not None:
        with suppress(Exception):
            sys.excepthook(type(error), error, error.__traceback__)
    exit_as_interpreter(status)


def leave_program() -> None:
    """Leave what is the program's alone, in a process that the server has forked: its exit handlers do not run there.

    What the application registers from now on does.
    """
    atexit._clear()
    atexit.register(ignore_all)
