"""The fork: from a generation's values to a worker's process.

Owns: the pipes of a worker, the fork itself, what the child does before `worker_main`.
Must not know: when and why a worker is made.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from functools import partial
from os import close, getpid, pipe
from typing import Any

from setproctitle import setproctitle

from wsgiserv.boot import ReadinessReader, ReadinessWriter, WorkerBoot
from wsgiserv.logs.streams import unguard_standard_streams
from wsgiserv.master.crash_dump_file import CrashDumpFile
from wsgiserv.master.generation import Generation
from wsgiserv.master.signals import SignalQueue, ignore_requests
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import forget_cleanups, fork
from wsgiserv.scoreboard import Slot


class ForkedChild(BaseException):
    """Raised in a child, to leave the master's loop behind: `Master.run` catches it and becomes the child.

    A BaseException, so that no handler of the master's takes it for an error.

    Attributes:
        main: runs the child; it is given ``worker_main`` and returns the status to exit with.
    """

    def __init__(self, main: Callable[[Callable[[WorkerBoot], int]], int]) -> None:
        super().__init__()
        self.main = main


def fork_child(signals: SignalQueue) -> int:
    """fork(2): return 0 in the child, which has left the master's signals. Raises OSError when the system won't."""
    with signals.held():
        pid = fork()
        if pid == 0:
            signals.leave()
            unguard_standard_streams()
            forget_cleanups()  # the caller closes what is the master's; the child adds its own
    return pid


def fork_worker(
    handle: WorkerHandle,
    generation: Generation,
    slot: Slot,
    *,
    signals: SignalQueue,
    lifeline: int,
    leave: Callable[[], None],
    master_pid: int,
    log: logging.Logger,
    server: Any,
) -> None:
    """Fork ``handle``'s process and give it its pid, pipe and last words. Raises OSError when the system won't.

    Args:
        handle: the worker to be; without a process.
        generation: what it serves with.
        slot: its row of the scoreboard.
        signals: the master's; the child leaves them.
        leave: closes, in the child, what belongs to the master.
        lifeline, master_pid, log, server: see `WorkerBoot`.

    In the child raises ForkedChild.
    """
    reader, writer = pipe()
    handle.last_words = last_words = CrashDumpFile.make()
    try:
        pid = fork_child(signals)
    except OSError:
        close(reader)
        close(writer)
        if last_words is not None:
            last_words.close()
        raise
    if pid:
        close(writer)
        handle.pid = pid
        handle.reader = ReadinessReader(reader)
        return
    close(reader)
    leave()
    handle.pid = getpid()
    boot = WorkerBoot(
        settings=generation.settings,
        listeners=generation.listeners,
        slot=slot,
        ready=ReadinessWriter(writer),
        lifeline=lifeline,
        age=handle.age,
        generation=handle.generation,
        master_pid=master_pid,
        log=log,
        server=server,
        handle=handle,
        application=generation.application,
        handoff=server.handoff,
        last_words=last_words.fd if last_words is not None else None,
        tls_contexts=generation.tls_contexts,
    )
    raise ForkedChild(partial(be_worker, boot))


def be_worker(boot: WorkerBoot, worker_main: Callable[[WorkerBoot], int]) -> int:
    """Run ``worker_main`` in the child and return its status. Never raises an Exception."""
    # What it inherits is not searched for garbage: that would read, and so copy, the memory that it shares with its
    # master. What the application makes is, also at the end: a file in a cycle is flushed.
    gc.freeze()
    set_title("worker", boot.server.proc_name)
    try:
        return worker_main(boot)
    except Exception:
        boot.log.critical("worker %d ends with an error of the server itself", getpid(), exc_info=True)
        return 1
    finally:
        ignore_requests()


def set_title(role: str, name: str) -> None:
    """Show ``wsgiserv: role [name]`` in ps and top."""
    setproctitle(f"wsgiserv: {role} [{name}]")
