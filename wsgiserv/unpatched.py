"""Threads and locks of the operating system, whatever an application puts in the place of Python's.

Owns: real threads, a re-entrant lock for them, their names, the question whether somebody has patched `threading`.
Must not know: who needs a thread, gevent and eventlet but by name.

``gevent.monkey.patch_all()`` and ``eventlet.monkey_patch()`` replace parts of the standard library in place. A
`threading.Thread` is a greenlet from then on, also for code that imported the class before, since its methods look up
the patched names when they run: a helper that sits in poll(2) stops the only thread there is. This module is imported
before a configuration file or an application is, and takes the originals.

All other modules bind what they need (``from os import read``) when they are imported, which is early enough, too.
`tests/test_unpatched.py` holds that they do not look it up later (``os.read(...)``).
"""

from __future__ import annotations

import _thread
import select
import sys
from _thread import RLock as _RLock
from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = [
    "OSThread",
    "RealRLock",
    "patched_by",
    "reset_hubs",
    "select_is_patched",
    "start_thread",
    "thread_names",
]

_select = select.select
# The names of the threads that run now, by their identifiers; this module is imported by the main thread.
_names: Final[dict[int, str]] = {get_ident(): "MainThread"}


class OSThread:
    """A thread that was started by `start_thread`.

    Attributes:
        name: as given.
        ident: its identifier, as `_thread.get_ident` gives it; 0 until it runs.
    """

    __slots__ = ("_running", "ident", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.ident = 0
        self._running = allocate_lock()

    def is_alive(self) -> bool:
        """Return whether it still runs."""
        return self._running.locked()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait for its end, at most ``timeout_s`` seconds. Blocks the calling thread with all its greenlets."""
        if self._running.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s)):
            self._running.release()

    def _run(self, function: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.ident = ident = get_ident()
        _names[ident] = self.name
        try:
            function(*args)
        finally:
            _names.pop(ident, None)
            self._running.release()


def start_thread(function: Callable[..., object], args: tuple[Any, ...] = (), *, name: str) -> OSThread:
    """Run ``function(*args)`` in a new thread of the operating system. Nothing waits for it when the process ends.

    The `threading` module does not know the thread: it is not in `threading.enumerate`, and what it raises goes to
    `sys.unraisablehook`.

    Raises RuntimeError when the system starts no more threads (RLIMIT_NPROC, memory).
    """
    thread = OSThread(name)
    thread._running.acquire()
    start_new_thread(thread._run, (function, args))
    return thread


def thread_names() -> Mapping[int, str]:
    """Return the names of the main thread and of the threads that `start_thread` has started, by identifier."""
    return dict(_names)


class RealRLock:
    """A re-entrant lock that stays one between real threads.

    gevent replaces the lock of each logging handler, eventlet each `threading.RLock` that it can reach. Theirs are
    for greenlets: one that a helper thread holds would stop the main thread. Here the lock is out of their reach.
    """

    __slots__ = ("acquire", "release")

    def __init__(self) -> None:
        lock = _RLock()
        self.acquire = lock.acquire
        self.release = lock.release

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _at_fork_reinit(self) -> None:
        """Be free again, in a child whose parent held it. Called by `logging`."""
        RealRLock.__init__(self)


def patched_by() -> str:
    """Return the call that has replaced threads by greenlets, as an application writes it; empty: none has."""
    if _thread.start_new_thread is start_new_thread:
        return ""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent.monkey.patch_all()"
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet.monkey_patch()"
    return "monkey patching"


def select_is_patched() -> bool:
    """Return whether `select.select` lets other greenlets run while it waits."""
    return select.select is not _select


def reset_hubs() -> None:
    """Give this process event loops of its own where it has inherited gevent's or eventlet's through a fork.

    An epoll descriptor that several processes share wakes the wrong one.
    """
    gevent = sys.modules.get("gevent")
    if gevent is not None and hasattr(gevent, "reinit"):
        gevent.reinit()
    hubs = sys.modules.get("eventlet.hubs")
    hub = getattr(getattr(hubs, "_threadlocal", None), "hub", None)
    poll = getattr(hub, "poll", None)
    if poll is None or not hasattr(poll, "fileno"):  # no hub was made, or one without a descriptor
        return
    hub.poll = type(poll)()
    for fd in {fd for by_fd in hub.listeners.values() for fd in by_fd}:
        hub.register(fd)
