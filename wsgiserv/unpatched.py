"""Threads and locks of the operating system, whatever an application puts in the place of Python's.

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
import time
from _thread import LockType
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final


def _original(module: Any, name: str) -> Any:
    """Return the object that gevent has replaced: this process may be one of ``python -m gevent.monkey``."""
    monkey = sys.modules.get("gevent.monkey")
    return getattr(module, name) if monkey is None else monkey.get_original(module.__name__, name)


allocate_lock: Callable[[], LockType] = _original(_thread, "allocate_lock")
get_ident: Callable[[], int] = _original(_thread, "get_ident")
sleep: Callable[[float], None] = _original(time, "sleep")
_RLock = _original(_thread, "RLock")
_start_new_thread = _original(_thread, "start_new_thread")
_select = _original(select, "select")
_MISSING: Final = object()
# The names of the threads that run now, by their identifiers; this module is imported by the main thread.
_names: Final[dict[int, str]] = {get_ident(): "MainThread"}
# One, or none: the greenlet of the main thread that serves.
_main_greenlet: Final[list[Any]] = []


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
    thread._running.acquire()  # here, not in the thread: it is alive from the start on
    _start_new_thread(thread._run, (function, args))
    return thread


def thread_names() -> dict[int, str]:
    """Return the names of the main thread and of the threads that `start_thread` has started, by identifier."""
    return dict(_names)


class RealRLock:
    """A re-entrant lock that stays one between real threads."""

    # gevent replaces the lock of each logging handler, eventlet each `threading.RLock` that it can reach. Theirs are
    # for greenlets: one that a helper thread holds would stop the main thread. Here the lock is out of their reach.

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
    """Return the call that has replaced threads by greenlets, as an application writes it; empty when none has."""
    if _thread.start_new_thread is _start_new_thread:
        return ""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent.monkey.patch_all()"
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet.monkey_patch()"
    return "monkey patching"


@contextmanager
def originals() -> Iterator[None]:
    """Put back what gevent has replaced, for the imports of the server in a program that has patched itself before.

    Nothing of the program may run meanwhile: an import switches to no greenlet.
    """
    saved = getattr(sys.modules.get("gevent.monkey"), "saved", {})
    modules = [(module, kept) for name, kept in saved.items() if (module := sys.modules.get(name)) is not None]
    replaced = [(module, name, getattr(module, name, _MISSING)) for module, kept in modules for name in kept]
    for module, kept in modules:
        vars(module).update(kept)
    try:
        yield
    finally:
        for module, name, value in replaced:
            if value is _MISSING:
                vars(module).pop(name, None)
            else:
                setattr(module, name, value)


def no_real_threads(culprit: str) -> str:
    """Return why ``worker_class = 'threads'`` cannot serve in this process; empty when it can.

    Args:
        culprit: the subject of the sentence: ``the application``, ``the configuration file``.
    """
    call = patched_by()
    if not call:
        return ""
    fitting = "gevent" if call.startswith("gevent") else "sync"
    return (
        f"{culprit} has had the threads of the standard library replaced by greenlets ({call}). "
        f"Expected worker_class = {fitting!r}, or no such call."
    )


def select_is_patched() -> bool:
    """Return whether `select.select` lets other greenlets run while it waits."""
    return select.select is not _select


def note_main_greenlet() -> None:
    """Note the greenlet in which the main thread runs the worker's loop, where greenlets are in use.

    Called in the main thread, in any greenlet of it.
    """
    if (greenlet := sys.modules.get("greenlet")) is not None:
        found = greenlet.getcurrent()
        while found.parent is not None:
            found = found.parent
        _main_greenlet[:] = [found]


def waiting_main_frame() -> FrameType | None:
    """Return the frame in which the noted greenlet waits for others, None while it runs. In any thread."""
    frame: FrameType | None = _main_greenlet[0].gr_frame if _main_greenlet else None
    return frame


def throw_into_main(error: type[BaseException], is_due: Callable[[], bool]) -> bool:
    """Raise ``error`` in the main thread's first greenlet if that waits for others. Called by a signal handler.

    Args:
        error: what is raised.
        is_due: asked again where it cannot be raised at once.

    Returns:
        False when the handler itself is to raise: it runs in that greenlet, or in eventlet's hub, which ends by that
        and passes the error on. (It may be in time.sleep(3), which would go on when the hub is switched to again.)
    """
    note_main_greenlet()
    if waiting_main_frame() is None:
        return False
    main, current = _main_greenlet[0], sys.modules["greenlet"].getcurrent()
    if current is getattr(eventlet_hub(), "greenlet", None):
        return False
    if current.parent is main:  # the hub, which throws in this way after each of its timers
        main.throw(error)
        return True

    def throw() -> None:
        if is_due():
            main.throw(error)

    # Another greenlet of the application, which the hub would not come back to if it were left here.
    hub = current.parent
    if hasattr(hub, "schedule_call_global"):  # eventlet's
        hub.schedule_call_global(0, throw)
    elif hasattr(hub, "loop"):  # gevent's
        hub.loop.run_callback(throw)
    return True


def reset_hubs() -> None:
    """Give this process event loops of its own where it has inherited gevent's or eventlet's through a fork."""
    # An epoll descriptor that several processes share wakes the wrong one.
    gevent = sys.modules.get("gevent")
    if gevent is not None and hasattr(gevent, "reinit"):
        gevent.reinit()
    hub = eventlet_hub()
    poll = getattr(hub, "poll", None)
    if poll is None or not hasattr(poll, "fileno"):  # no hub was made, or one without a descriptor
        return
    hub.poll = type(poll)()
    for fd in {fd for by_fd in hub.listeners.values() for fd in by_fd}:
        hub.register(fd)


def gevent_hub() -> Any:
    """Return gevent's hub of this thread, None where there is none."""
    local = sys.modules.get("gevent._hub_local")
    return None if local is None else local.get_hub_if_exists()  # get_hub() would make one


def eventlet_hub() -> Any:
    """Return eventlet's hub of this thread, None where there is none."""
    return getattr(getattr(sys.modules.get("eventlet.hubs"), "_threadlocal", None), "hub", None)
