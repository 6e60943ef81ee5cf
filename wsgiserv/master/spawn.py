"""Forks processes of the server: the child leaves everything of the master's, and becomes a worker."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import close, getpid
from typing import Any, Final

from wsgiserv.boot import ReadinessWriter, WorkerBoot
from wsgiserv.config.settings import Settings
from wsgiserv.logs.streams import unguard_standard_streams
from wsgiserv.master.generation import Generation
from wsgiserv.master.hook_worker import HookWorker
from wsgiserv.master.signals import SignalQueue, ignore_requests
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import forget_cleanups, fork
from wsgiserv.scoreboard import Slot
from wsgiserv.titles import setproctitle

# gunicorn's default `timeout`, which bounds the boot there, too.
_BOOT_S: Final = 30.0


# A BaseException: no handler of the master's must take it for an error.
class ForkedChild(BaseException):
    """Raised in a child, to leave the master's loop behind: `Master.run` catches it and becomes the child.

    Attributes:
        main: runs the child; it is given ``worker_main`` and returns the status to exit with.
    """

    def __init__(self, main: Callable[[Callable[[WorkerBoot], int]], int]) -> None:
        super().__init__()
        self.main = main


@dataclass(frozen=True)
class Parent:
    """The master's values for every child.

    Attributes:
        signals: the master's signals.
        log: the error log.
        server: the master as hooks see it.
        lifeline: a pipe, readable (end of file) in a child when the master has ended.
    """

    signals: SignalQueue
    log: logging.Logger
    server: Any
    # Nothing is ever written. Each child closes the writing end, so the kernel closes it with the master, however that
    # ends; a signal at a parent's exit (PR_SET_PDEATHSIG) follows the forking thread, and is Linux's alone.
    lifeline: tuple[int, int]


def new_handle(
    parent: Parent, settings: Settings, age: int, generation: int, spawned_at: float, pid: int = 0
) -> WorkerHandle:
    """Return the handle of a worker, with the view of hooks."""
    handle = WorkerHandle(
        age=age,
        generation=generation,
        spawned_at=spawned_at,
        timeout=settings.timeout,
        graceful_timeout=settings.graceful_timeout,
        boot_timeout=boot_timeout_of(settings),
        pid=pid,
        settings=settings,
    )
    handle.view = HookWorker(handle, settings, parent.server)
    return handle


def boot_timeout_of(settings: Settings) -> float:
    """Return how many seconds a worker may take to boot; 0.0 means no limit."""
    if settings.boot_timeout is not None:
        return settings.boot_timeout
    # gunicorn's users give slow applications a longer `timeout`; a short one is no reason to call an import slow.
    return max(settings.timeout, _BOOT_S) if settings.timeout else 0.0


def fork_child(signals: SignalQueue, *undo: Callable[[], object]) -> int:
    """Fork, and leave the master's signals and streams in the child; return 0 there.

    Raises OSError when the system makes no process; ``undo`` has been called then.
    """
    with signals.held():
        try:
            pid = fork()
        except OSError:
            for each in undo:
                each()
            raise
        if pid == 0:
            # While they are blocked: a signal for the child is delivered when it has its own handlers.
            signals.leave()
            unguard_standard_streams()
            forget_cleanups()  # the caller closes what is the master's; the child adds its own
    return pid


def fork_worker(
    parent: Parent, generation: Generation, handle: WorkerHandle, slot: Slot, leave: Callable[[], None]
) -> None:
    """Fork ``handle``'s process; give the handle its pid and pipes.

    Args:
        parent: the master's values.
        generation: the worker's.
        handle: the worker, without a process.
        slot: its row of the scoreboard.
        leave: closes, in the child, the master's descriptors.

    Raises:
        OSError: the system does not make a process.
        ForkedChild: in the child.
    """
    # A pipe of its own for each: a worker that writes garbage spoils no report of another.
    writer = handle.open_pipes()
    handle.pid = fork_child(parent.signals, partial(close, writer), handle.close_pipes)
    if handle.pid:
        close(writer)
        return
    handle.pid = getpid()
    # The reading ends are the master's alone: a worker must see that the master has ended, as EPIPE.
    handle.close_reader()
    leave()
    crash_dump = handle.crash_dump.fd if handle.crash_dump is not None else None
    boot = worker_boot(parent, generation, handle, slot, writer, crash_dump)
    raise ForkedChild(partial(be_worker, boot))


def worker_boot(
    parent: Parent, generation: Generation, handle: WorkerHandle, slot: Slot, ready_fd: int, crash_dump_fd: int | None
) -> WorkerBoot:
    """Return a worker's starting values. Called in its process."""
    return WorkerBoot(
        settings=generation.settings,
        listeners=generation.listeners,
        slot=slot,
        ready=ReadinessWriter(ready_fd),
        lifeline=parent.lifeline[0],
        age=handle.age,
        generation=handle.generation,
        master_pid=parent.server.pid,
        log=parent.log,
        server=parent.server,
        handle=handle.view,
        application=generation.application,
        handoff=parent.server.handoff,
        crash_dump_fd=crash_dump_fd,
        tls_contexts=generation.tls_contexts,
    )


def be_worker(boot: WorkerBoot, worker_main: Callable[[WorkerBoot], int]) -> int:
    """Run ``worker_main`` in the child and return its status. Never raises an Exception."""
    # What it inherits is not searched for garbage: that would read, and so copy, the memory that it shares with its
    # master. What the application makes is, also at the end: a file in a cycle is flushed.
    gc.freeze()
    set_title("worker", boot.server.proc_name)
    try:
        return worker_main(boot)
    except Exception:
        boot.log.critical("WS1202 worker %d: exits: an error of the server itself", getpid(), exc_info=True)
        return 1
    finally:
        # The exit may take long (atexit, threads), and a rotation of logs (SIGUSR1) must not kill it.
        ignore_requests()


def set_title(role: str, name: str) -> None:
    """Show ``wsgiserv: role [name]`` in ps and top."""
    setproctitle(f"wsgiserv: {role} [{name}]")
