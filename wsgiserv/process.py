"""Forks and ends processes of the server, and keeps an application's children from acting as one of them.

An application may fork anywhere: in a view, a hook, at import. Its child is not a worker. It gets the default
signal handlers and loses the listeners, clients, epoll, pipes and the scoreboard before it runs any code. When
it returns to the server's code, it ends there, as an interpreter would: by return, exception or `sys.exit`.

Below that: the standard streams without waiting for their readers, signals to processes, and readers of proc(5).
"""

from __future__ import annotations

import mmap
import os
import stat
import sys
import warnings
from _thread import get_ident
from collections.abc import Callable, Sequence
from contextlib import suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import partial
from os import WNOHANG, _exit, close, dup2, fstat, getpid, kill, wait4
from os import fork as _os_fork
from select import POLLOUT
from signal import (
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
from typing import Final, NamedTuple, NoReturn

from wsgiserv.ipc import wait_for

# linux/mman.h; since Linux 4.14.
_MADV_WIPEONFORK: Final = 18
_PACKAGE: Final = f"{__package__}."


def _make_mark() -> mmap.mmap | bytearray:
    """Return a byte, 1 here, and 0 in any child, one forked by C code too (madvise(2), MADV_WIPEONFORK)."""
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
    """The state of the at-fork handlers. They cannot be removed, and do nothing until `arm`.

    Attributes:
        armed: whether this process is one of the server's.
        last: the number of the newest `unblock_last`.
        mask_of_child: in a child, the mask for that handler.
        own: the thread in `fork`.
        masks: the signal masks of forking threads.
        cleanups: functions for a child, oldest first.
        helpers: threads to stop while the application forks: the pairs of `add_helper`.
    """

    armed = False
    last = 0
    mask_of_child: set[int] | None = None
    own: int | None = None
    masks: Final[dict[int, set[int]]] = {}
    cleanups: Final[list[Callable[[], object]]] = []
    helpers: Final[list[tuple[Callable[[], object], Callable[[], object]]]] = []


def arm() -> None:
    """Make this process one of the server's. Called before a master runs any code of a user; may be called again."""
    _State.armed = True
    SERVER_PROCESS[0] = 1
    unblock_last()


def disarm() -> None:
    """Undo `arm`: the server has ended, and this process goes on as the program that it was."""
    _State.armed = False
    forget_cleanups()


def is_armed() -> bool:
    """Return whether this process is one of the server's: a master, a zygote or a worker."""
    return _State.armed


def unblock_last() -> None:
    """Unblock the signals of a child after all handlers registered so far. Called when imports have been made."""
    # Python drops an exception that a signal raises (KeyboardInterrupt) while any at-fork handler runs. A handler
    # cannot be taken out; of ours only the newest acts.
    _State.last += 1
    os.register_at_fork(after_in_child=partial(_unblock_in_child, _State.last))


def add_child_cleanup(cleanup: Callable[[], object]) -> None:
    """Have ``cleanup`` called in each child of the application, to close the descriptors a child must not hold.

    It closes descriptors only. Its objects must not close the same numbers again. It may raise.
    """
    # No shutdown(2), no epoll_ctl(2): both act on objects that the child shares with its parent.
    _State.cleanups.append(cleanup)


def forget_cleanups() -> None:
    """Drop the parent's cleanups and helpers. Called in a new process of the server."""
    _State.cleanups.clear()
    _State.helpers.clear()


def add_helper(pause: Callable[[], object], resume: Callable[[], object]) -> None:
    """Pause a thread of the server while the application forks.

    Args:
        pause: stops the thread and waits for its end. Called in the forking thread, before the fork.
        resume: starts the thread again. Called in the parent, after the fork.
    """
    # Python 3.12 and later warn of a fork with threads. In `sync` an application has no threads of its own making.
    _State.helpers.append((pause, resume))


def fork() -> int:
    """Fork a process of the server: the at-fork handlers leave it alone. Raises OSError."""
    flush_standard_streams()  # the child would write the buffers a second time
    _State.own = get_ident()
    try:
        # From 3.12 on Python warns of other threads. Where they matter (preload_app), our own line says more; and
        # a blank in the process title makes Python count the entries of `threading`, where gevent notes greenlets.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = _os_fork()
    finally:
        _State.own = None
    if pid == 0:
        SERVER_PROCESS[0] = 1
    return pid


def run_in_child(run: Callable[[], int]) -> int:
    """Fork a child to call ``run``, and exit with the status it returns; return the child's process id.

    An exception is printed, and the status is 1. Raises OSError.
    """
    pid = fork()
    if pid:
        return pid
    status = 1
    try:
        status = run()
    except BaseException as error:  # the process ends here, and must say why
        if not isinstance(error, KeyboardInterrupt):
            sys.excepthook(*sys.exc_info())
    finally:
        flush_standard_streams(wait=True)
        _exit(status)


def exit_as_interpreter(status: int) -> NoReturn:
    """End this process as the interpreter would at its end, without unwinding the code that has called the server."""
    import atexit
    import threading

    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        flush_standard_streams(wait=True)
        _exit(status)


def leave_if_child(error: BaseException | None = None) -> None:
    """End this process if it is a child of the application. Called wherever code of a user returns to the server."""
    if not SERVER_PROCESS[0]:
        leave(error)


def leave(error: BaseException | None = None) -> NoReturn:
    """End a child of the application with the status of an interpreter's end.

    Args:
        error: its last exception; None for a return.
    """
    status = 1
    try:
        status = _report(error)
    finally:
        flush_standard_streams(wait=True)
        # Not sys.exit: the child has inherited the parent's atexit handlers.
        _exit(status)


def _report(error: BaseException | None) -> int:
    """Print the error, and return the exit status."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF  # as the kernel keeps it
        print(error.code, file=sys.stderr)
        return 1
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except Exception:
        sys.__excepthook__(type(error), error, error.__traceback__)
    if isinstance(error, KeyboardInterrupt):  # the parent is to see that a signal has ended it
        flush_standard_streams(wait=True)
        signal(SIGINT, SIG_DFL)
        kill(getpid(), SIGINT)
    return 1


# ---- the at-fork handlers --------------------------------------------------------------------------------


def _before() -> None:
    if not _State.armed or not SERVER_PROCESS[0]:
        return
    ident = get_ident()
    if _State.own == ident:
        return
    # A signal that hits the child before it has its own handlers would be written into our wakeup socket.
    _State.masks[ident] = pthread_sigmask(SIG_BLOCK, valid_signals())
    flush_standard_streams(wait=True)  # the child would write the buffers a second time
    for pause, _ in _State.helpers:
        with suppress(Exception):
            pause()


def _after_in_parent() -> None:
    mask = _State.masks.pop(get_ident(), None)
    if mask is None:
        return
    for _, resume in _State.helpers:
        with suppress(Exception):
            resume()
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
    """Give the server's signals their default; the application's own handlers stay."""
    for number in valid_signals():
        handler = getsignal(number)
        module = getattr(handler, "__module__", None)
        if isinstance(module, str) and module.startswith(_PACKAGE):
            # In a worker the application's handler is called by the server's.
            behind = getattr(getattr(handler, "__self__", None), "application_handler", None)
            theirs = behind(number) if behind is not None else SIG_DFL
            if theirs == SIG_DFL and number == SIGINT:
                theirs = default_int_handler
            with suppress(OSError, ValueError):
                signal(number, theirs)


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


# ---- the standard streams --------------------------------------------------------------------------------

# Above what a program closes that makes itself a daemon by hand, and below every usual limit.
_HIGH: Final = 64


def is_writable(fd: int, wait_s: float = 0.0) -> bool:
    """Whether a write would not wait, or would fail at once; polls up to ``wait_s`` seconds."""
    return wait_for(fd, wait_s, POLLOUT)


def duplicate(fd: int) -> int:
    """Return a duplicate of ``fd`` with a high number; ``fd`` itself when there is no room for one."""
    for least in (_HIGH, 3):
        try:
            return fcntl(fd, F_DUPFD_CLOEXEC, least)
        except OSError:  # EMFILE; EINVAL where the limit is that low
            continue
    return fd


def reopened(fd: int, access: int = os.O_WRONLY) -> int | None:
    """Return a non-blocking descriptor of the same pipe or terminal, with flags of its own.

    Args:
        fd: an open descriptor.
        access: ``O_WRONLY`` or ``O_RDWR``.

    Returns:
        None for other kinds of files, and where the system does not allow it.
    """
    try:
        found = fstat(fd)
        if not (stat.S_ISFIFO(found.st_mode) or (stat.S_ISCHR(found.st_mode) and os.isatty(fd))):
            return None
        flags = access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        own = os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:  # no /proc; another user's pipe; a pipe whose reader has gone
        return None
    if not os.path.samestat(found, fstat(own)) or os.get_blocking(own):
        close(own)
        return None
    high = duplicate(own)
    if high != own:
        close(own)
    return high


def unnamed_file(name: str) -> int:
    """Return the descriptor of a new file without a path; ``name`` is for /proc. Raises OSError."""
    # In memory where the system can (memfd_create(2)), and so also on a full or read-only disk.
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def fill_standard_streams() -> None:
    """Open the null device in place of closed standard streams. Never raises."""
    try:
        # Else the next socket would be descriptor 1 or 2, and whatever is printed would go to a client.
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(fd, True)
    except OSError:
        return  # no descriptor is left, so none of these either
    close(fd)


def flush_standard_streams(*, wait: bool = False) -> None:
    """Write the buffers of `sys.stdout` and `sys.stderr`. Never raises.

    Args:
        wait: whether to wait for a slow reader; else the rest stays in the buffer.
    """
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        with suppress(Exception):  # None, broken, closed, or an object of the application's own
            own = None if wait else reopened(fd)
            if own is None:
                if wait or is_writable(fd):
                    stream.flush()
                continue
            saved = fcntl(fd, F_DUPFD_CLOEXEC, 3)
            try:
                dup2(own, fd)
                stream.flush()
            finally:
                dup2(saved, fd)
                close(saved)
                close(own)


def release_standard_streams() -> None:
    """Flush the standard streams for the last time in this process. Never waits, never raises."""
    # The interpreter flushes them at its end, and would wait there for a reader that sleeps, whatever signals come.
    # From now on they do not block; what does not go out now is given up.
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            own = reopened(fd)
            if own is not None:
                dup2(own, fd)
                close(own)
            elif not is_writable(fd):
                raise BlockingIOError
            stream.flush()
        except (AttributeError, ValueError):  # None, closed
            continue
        except Exception:
            with suppress(Exception):
                null = os.open(os.devnull, os.O_WRONLY)
                dup2(null, fd)
                close(null)
                stream.flush()


# ---- other processes ---------------------------------------------------------------------------------------

_PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")  # 64 KiB on some kernels of arm64 and ppc64
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Ended(NamedTuple):
    """The end of a child.

    Attributes:
        wait_status: as wait4(2) returned it; None: something else in this process has waited for it.
        max_rss: ``ru_maxrss`` of wait4(2), in the system's unit; 0: unknown.
    """

    wait_status: int | None = None
    max_rss: int = 0


def reap(pid: int) -> Ended | None:
    """Wait for the child ``pid`` if it has ended; None while it runs. Never blocks."""
    try:
        found, status, usage = wait4(pid, WNOHANG)
    except ChildProcessError:
        return Ended()
    return Ended(status, usage.ru_maxrss) if found else None


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process, unless it has ended, or not begun (0). Raises PermissionError."""
    if pid > 0:  # kill(2) takes 0 for the caller's own process group
        with suppress(ProcessLookupError):
            kill(pid, number)


def rss_of(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 where the system does not tell (proc(5))."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES
    return 0


def memory_of(pid: int) -> int:
    """Return the memory of a process in bytes: PSS, its private pages and its share of common ones (proc(5)).

    0 where the system does not tell, or the process has ended.
    """
    # RSS counts pages that all workers share in each of them. It is the answer where the kernel tells no PSS.
    return _rollup(pid).get(b"Pss") or rss_of(pid)


def least_memory_of(pid: int, workers: int) -> int:
    """Return the least `memory_of` a process when all workers share its shared pages.

    Args:
        pid: a worker after its boot.
        workers: how many workers there will be.
    """
    found = _rollup(pid)
    if b"Pss" not in found:
        return rss_of(pid)
    private = found.get(b"Private_Clean", 0) + found.get(b"Private_Dirty", 0)
    # Two processes at least share it now: the worker and its master.
    return private + max(0, found[b"Pss"] - private) * 2 // (max(workers, 1) + 1)


def _rollup(pid: int) -> dict[bytes, int]:
    """Return the figures of ``smaps_rollup`` in bytes; none where the system does not tell."""
    found: dict[bytes, int] = {}
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        for line in file:
            name, _, rest = line.partition(b":")
            if rest.endswith(b" kB\n"):
                found[name] = int(rest.split()[0]) * 1024
    return found


def cpu_time_of(pid: int) -> float | None:
    """Return the CPU seconds of a process, all threads; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        fields = _stat(pid)  # utime and stime, fields 14 and 15 of proc(5)
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return None


def state_of(pid: int) -> str:
    """Return the state of a process, a letter as in ps(1); empty where the system does not tell."""
    with suppress(OSError, IndexError):
        return _stat(pid)[0].decode()
    return ""


def _stat(pid: int) -> Sequence[bytes]:
    """Return the fields of ``/proc/<pid>/stat`` from the state on. Raises OSError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The command's name stands before them in parentheses, and may hold blanks and parentheses itself.
        return file.read().rpartition(b")")[2].split()
