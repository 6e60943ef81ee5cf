"""Keeps an application's child process from acting as a process of the server.

Owns: the handlers of `os.register_at_fork`, `fork` (for the server's own processes), what a child leaves with.
Must not know: which descriptors a process of the server has; each owner adds its own cleanup.

An application may fork anywhere: in a view, a hook, at import. Its child is not a worker. It gets the default
signal handlers and loses the listeners, clients, epoll, pipes and the scoreboard before it runs any code. When
it returns to the server's code, it ends there, as an interpreter would: by return, exception or `sys.exit`.
"""

from __future__ import annotations

import mmap
import os
import sys
from _signal import (  # type: ignore[import-not-found] # `signal` makes an enum member of each number
    SIG_BLOCK,
    SIG_DFL,
    SIG_SETMASK,
    SIGINT,
    default_int_handler,
    getsignal,
    pthread_sigmask,
    set_wakeup_fd,
    signal,
    valid_signals,
)
from _thread import get_ident
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from os import _exit, getpid, kill
from os import fork as _os_fork
from typing import Final, NoReturn, Protocol

__all__ = [
    "SERVER_PROCESS",
    "Helper",
    "add_child_cleanup",
    "add_helper",
    "arm",
    "forget_cleanups",
    "fork",
    "leave",
    "leave_if_child",
    "unblock_last",
]

# linux/mman.h; since Linux 4.14.
_MADV_WIPEONFORK: Final = 18
_PACKAGE: Final = f"{__package__}."


class Helper(Protocol):
    """A thread of the server that must not run while the application forks."""

    def pause(self) -> None:
        """Stop the thread and wait until it has ended. Called in the thread that forks, before the fork."""

    def resume(self) -> None:
        """Start the thread again. Called in the parent, after the fork."""


def _make_mark() -> mmap.mmap | bytearray:
    """Return a byte that is 1 here, and 0 in any child, one forked by C code too (madvise(2), MADV_WIPEONFORK)."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError, AttributeError):
        return bytearray(b"\1")  # `_after_in_child` clears it
    page[0] = 1
    return page


# The first byte is 1 in each process of the server, 0 in a child of the application. 15 ns to read; getpid(2) is
# a system call, and costs ten times that.
SERVER_PROCESS: Final = _make_mark()


class _State:
    """What the handlers know. The handlers cannot be removed, so they do nothing until `arm`.

    Attributes:
        armed: whether this process is one of the server's.
        last: the number of the handler that unblocks the signals in a child, see `unblock_last`.
        mask_of_child: in a child, the mask that this handler is to set.
        own: the thread in which the server itself is forking.
        masks: the signal masks of the threads that are forking.
        cleanups: what a child runs, oldest first.
        helpers: the threads that stop while the application forks.
    """

    armed = False
    last = 0
    mask_of_child: set[int] | None = None
    own: int | None = None
    masks: Final[dict[int, set[int]]] = {}
    cleanups: Final[list[Callable[[], object]]] = []
    helpers: Final[list[Helper]] = []


def arm() -> None:
    """Make this process one of the server's. Called before a master runs any code of a user; may be called again."""
    _State.armed = True
    SERVER_PROCESS[0] = 1
    unblock_last()


def unblock_last() -> None:
    """Unblock the signals of a child after all handlers that are registered now. Called when imports have been made.

    An exception that a signal raises, such as KeyboardInterrupt, is dropped in an at-fork handler of anybody. Handlers
    cannot be taken out; of ours only the newest acts.
    """
    _State.last += 1
    os.register_at_fork(after_in_child=partial(_unblock_in_child, _State.last))


def add_child_cleanup(cleanup: Callable[[], object]) -> None:
    """Have ``cleanup`` called in each child of the application: it closes what the child must not hold.

    It closes descriptors only: no shutdown(2), no epoll_ctl(2), both of which would act on what the parent uses.
    It takes care that the objects do not close the same numbers again. It may raise.
    """
    _State.cleanups.append(cleanup)


def forget_cleanups() -> None:
    """Drop the parent's cleanups and helpers. Called in a new process of the server, which adds its own."""
    _State.cleanups.clear()
    _State.helpers.clear()


def add_helper(helper: Helper) -> None:
    """Pause a thread of the server while the application forks.

    Python 3.12 and later warn of a fork with threads. In `sync` an application has no threads of its own making.
    """
    _State.helpers.append(helper)


def fork() -> int:
    """fork(2) for a process of the server: the handlers leave it alone. Raises OSError."""
    _State.own = get_ident()
    try:
        pid = _os_fork()
    finally:
        _State.own = None
    if pid == 0:
        SERVER_PROCESS[0] = 1
    return pid


def leave_if_child(error: BaseException | None = None) -> None:
    """End this process if it is a child of the application. Called wherever code of a user returns to the server."""
    if not SERVER_PROCESS[0]:
        leave(error)


def leave(error: BaseException | None = None) -> NoReturn:
    """End a child of the application with the status that an interpreter would give.

    Args:
        error: what has been raised; None for a return.

    No atexit handler runs: the handlers that the child has inherited are the parent's.
    """
    status = 1
    try:
        status = _report(error)
    finally:
        _flush_standard_streams()
        _exit(status)


def _report(error: BaseException | None) -> int:
    """Say what ended this process, and return its exit status."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        print(code, file=sys.stderr)
        return 1
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except Exception:
        sys.__excepthook__(type(error), error, error.__traceback__)
    if isinstance(error, KeyboardInterrupt):  # the parent is to see that a signal has ended it
        _flush_standard_streams()
        signal(SIGINT, SIG_DFL)
        kill(getpid(), SIGINT)
    return 1


def _flush_standard_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # None, broken, closed, or somebody's own
            pass


# ---- the handlers --------------------------------------------------------------------------------------


def _before() -> None:
    if not _State.armed or not SERVER_PROCESS[0]:
        return
    ident = get_ident()
    if _State.own == ident:
        return
    # A signal that hits the child before it has its own handlers would be written into our wakeup socket.
    _State.masks[ident] = pthread_sigmask(SIG_BLOCK, valid_signals())
    _flush_standard_streams()  # text that waits in a buffer would be written twice
    for helper in _State.helpers:
        with suppress(Exception):
            helper.pause()


def _after_in_parent() -> None:
    mask = _State.masks.pop(get_ident(), None)
    if mask is None:
        return
    for helper in _State.helpers:
        with suppress(Exception):
            helper.resume()
    pthread_sigmask(SIG_SETMASK, mask)


def _after_in_child() -> None:
    mask = _State.masks.pop(get_ident(), None)
    if mask is None:
        return
    _State.masks.clear()
    _State.armed = False
    SERVER_PROCESS[0] = 0
    try:
        with suppress(ValueError):
            set_wakeup_fd(-1)
        _reset_handlers()
        for cleanup in _State.cleanups:
            with suppress(Exception):
                cleanup()
        forget_cleanups()
    finally:
        _State.mask_of_child = mask


def _unblock_in_child(number: int) -> None:
    mask = _State.mask_of_child
    if mask is None or number != _State.last:
        return
    _State.mask_of_child = None
    try:
        pthread_sigmask(SIG_SETMASK, mask)
    except BaseException as error:
        # What has come since the fork, such as INT, is raised here, and Python drops what an at-fork handler raises.
        leave(error)


def _reset_handlers() -> None:
    """Give the signals that the server handles their default; the application's own handlers stay."""
    for number in valid_signals():
        handler = getsignal(number)
        module = getattr(handler, "__module__", None)
        if isinstance(module, str) and module.startswith(_PACKAGE):
            # In a worker the application's handler is called by the server's.
            behind = getattr(getattr(handler, "__self__", None), "application_handler", None)
            theirs = behind(number) if behind is not None else SIG_DFL
            if not callable(theirs):
                theirs = int(theirs)  # `_signal` knows no members of `signal.Handlers`
                if theirs == SIG_DFL and number == SIGINT:
                    theirs = default_int_handler
            with suppress(OSError, ValueError):
                signal(number, theirs)


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
