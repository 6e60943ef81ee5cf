"""A thread of a ``sync`` worker that stops while the application forks.

Owns: `HelperThread`: starting it, stopping it around a fork, starting it again; what is said when that fails.
Must not know: what the thread does.

An application in a `sync` worker has one thread, as far as it knows. From Python 3.12 on ``os.fork()`` warns when
the process has more, and what a helper holds at that moment would be held in the child for good.
"""

from __future__ import annotations

from _thread import get_native_id
from collections.abc import Callable
from contextlib import suppress
from os import stat
from time import monotonic, sleep
from typing import Final

from setproctitle import setthreadtitle

from wsgiserv.errors import BootError
from wsgiserv.process import add_helper
from wsgiserv.unpatched import allocate_lock, start_thread

__all__ = ["HelperThread", "cannot_start"]

# A helper that is in the middle of something may take this long to stop. After that the fork goes on with it.
_LONGEST_PAUSE_S: Final = 0.5
# The kernel's thread ends a moment after the interpreter's.
_LOOK_S: Final = 0.0001


class HelperThread:
    """One thread, started again after each fork.

    Args:
        title: its name in top(1).
        work: what it does; it returns soon after `wake` when `stopping` is set, and not before.
        wake: wakes it, so that it sees `stopping`. From any thread.

    Attributes:
        stopping: whether it is to end: a fork is about to come.
    """

    def __init__(self, title: str, work: Callable[[], None], wake: Callable[[], object]) -> None:
        self.stopping = False
        self._title = title
        self._work = work
        self._wake = wake
        self._native_id = 0
        self._lock = allocate_lock()  # threads of the application may fork at once
        self._forks = 0
        self._running = allocate_lock()

    def start(self) -> None:
        """Start it for the first time. Raises BootError: a worker without it must not become ready."""
        try:
            self._start()
        except RuntimeError as error:
            raise cannot_start(f"wsgiserv-{self._title}", error) from error
        add_helper(self)

    def _start(self) -> None:
        self._running.acquire()
        try:
            start_thread(self._run, name=f"wsgiserv-{self._title}")
        except RuntimeError:
            self._running.release()
            raise

    def _run(self) -> None:
        self._native_id = get_native_id()
        try:
            setthreadtitle(self._title)
            self._work()
        finally:
            self._running.release()

    def pause(self) -> None:
        """Stop it, and wait until the kernel's thread is gone, too: that is what Python counts."""
        with self._lock:
            self._forks += 1
            self.stopping = True
            if not self._running.locked():
                return
            self._wake()
            if not self._running.acquire(timeout=_LONGEST_PAUSE_S):
                return
            self._running.release()
            end = monotonic() + _LONGEST_PAUSE_S
            with suppress(OSError):
                while monotonic() < end:
                    stat(f"/proc/self/task/{self._native_id}")
                    sleep(_LOOK_S)

    def resume(self) -> None:
        """Start it again when nobody forks. Raises RuntimeError without a thread for it; the next fork tries again."""
        with self._lock:
            self._forks -= 1
            if self._forks:
                return
            # One that did not stop in time sees this, or has ended since.
            self.stopping = False
            if not self._running.locked():
                self._start()


def cannot_start(name: str, error: RuntimeError) -> BootError:
    """Return the error for a thread that a worker cannot do without."""
    return BootError(
        f"cannot start the thread {name}: {error}. Raise the limit of processes and threads (ulimit -u, LimitNPROC=, "
        "TasksMax=, pids.max of a container) or of memory (ulimit -v)"
    )
