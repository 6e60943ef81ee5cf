"""Threads of a ``sync`` worker that stop while the application forks."""

from __future__ import annotations

from _thread import get_native_id
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from os import stat
from time import monotonic, sleep
from typing import Final

from wsgiserv.errors import BootError
from wsgiserv.process import add_helper
from wsgiserv.titles import setthreadtitle
from wsgiserv.unpatched import OSThread, allocate_lock, start_thread

# A thread that is in the middle of something may take this long to stop. After that the fork goes on with it.
_LONGEST_PAUSE_S: Final = 0.5
# The kernel's thread ends a moment after the interpreter's.
_CHECK_S: Final = 0.0001
# After this many looks at which there was nothing to do, the thread sleeps until it is woken.
_LOOKS_BEFORE_SLEEP: Final = 8


class HelperThread:
    """One thread, started again after each fork.

    Args:
        title: its name in top(1).
        work: its function, which returns soon after `wake` when `stopping` is set, and not before.
        wake: wakes a function that waits for something else than `rest`. From any thread.

    Attributes:
        stopping: whether the thread is to end: a fork is about to come.
        asleep: holds one item while the thread sleeps until `wake`.
    """

    # An application in a `sync` worker has one thread, as far as it knows. From Python 3.12 on os.fork() warns when the
    # process has more, and a lock that a helper holds at that moment would be held in the child for good.

    def __init__(self, title: str, work: Callable[[], None], wake: Callable[[], object] | None = None) -> None:
        self.stopping = False
        self.asleep: list[None] = []
        self.wake = wake or self._ring
        self._title = title
        self._work = work
        # A lock and no event: those of `threading` look up what gevent has replaced.
        self._wakeup = allocate_lock()
        self._wakeup.acquire()
        self._quiet_looks = 0
        self._native_id = 0
        self._lock = allocate_lock()  # threads of the application may fork at once
        self._forks = 0
        self._thread = OSThread(title)  # not started: it is not alive

    def start(self) -> None:
        """Start the thread for the first time. Raises BootError: a worker without it must not become ready."""
        with needs_thread(f"wsgiserv-{self._title}"):
            self._start()
        add_helper(self.pause, self.resume)

    def _start(self) -> None:
        self._thread = start_thread(self._run, name=f"wsgiserv-{self._title}")

    def _run(self) -> None:
        self._native_id = get_native_id()
        setthreadtitle(self._title)
        self._work()

    def _ring(self) -> None:
        self.asleep.clear()
        with suppress(RuntimeError):  # the thread has not seen the last call yet
            self._wakeup.release()

    def rest(self, look_s: float, is_quiet: bool = False, pending: Sized = ()) -> None:
        """Sleep until the next look, or, when nothing has happened for some looks, until `wake`. In the thread.

        Args:
            look_s: how long to sleep.
            is_quiet: whether there was nothing to do at this look.
            pending: not empty when there is something to do; whoever fills it calls `wake` if `asleep` is set then.
        """
        self._quiet_looks = self._quiet_looks + 1 if is_quiet else 0
        if self._quiet_looks < _LOOKS_BEFORE_SLEEP:
            self._wakeup.acquire(timeout=look_s)
            return
        self.asleep.append(None)
        # Checked again: something may have come, or a fork be about to, before `asleep` could be seen.
        if not (pending or self.stopping):
            self._wakeup.acquire()
        self.asleep.clear()
        self._quiet_looks = 0

    def pause(self) -> None:
        """Stop the thread, and wait until the kernel's is gone, too: Python counts those."""
        with self._lock:
            self._forks += 1
            self.stopping = True
            if not self._thread.is_alive():
                return
            self.wake()
            self._thread.join(_LONGEST_PAUSE_S)
            if self._thread.is_alive():
                return
            end = monotonic() + _LONGEST_PAUSE_S
            with suppress(OSError):
                while monotonic() < end:
                    stat(f"/proc/self/task/{self._native_id}")
                    sleep(_CHECK_S)

    def resume(self) -> None:
        """Start the thread again when no fork is under way. Raises RuntimeError; the next fork tries again."""
        with self._lock:
            self._forks -= 1
            if self._forks:
                return
            # A thread that did not stop in time sees this, or has ended since.
            self.stopping = False
            if not self._thread.is_alive():
                self._start()


@contextmanager
def needs_thread(name: str) -> Iterator[None]:
    """Raise BootError when a thread cannot be started: the worker cannot do without it.

    Args:
        name: the thread's.
    """
    try:
        yield
    except RuntimeError as error:
        raise BootError(
            f"cannot start the thread {name}: {error}. Raise the limit of processes and threads (ulimit -u, "
            "LimitNPROC=, TasksMax=, pids.max of a container) or of memory (ulimit -v)"
        ) from error
