"""The master's view of one worker.

Owns: `WorkerHandle`: who the worker is, what it has reported, which signals it has been sent and when.
Must not know: what is decided about it, how signals are sent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsgiserv.boot import ReadinessReader, Report

if TYPE_CHECKING:
    from wsgiserv.master.crash_dump_file import CrashDumpFile
    from wsgiserv.master.generation import SlotPool
    from wsgiserv.scoreboard import Slot

__all__ = ["WorkerHandle"]


# Without slots: hooks hang their own attributes on a worker.
@dataclass(kw_only=True, eq=False)
class WorkerHandle:
    """One worker, from just before its fork until it has been reaped. All times are ``time.monotonic()`` seconds.

    Attributes:
        age: the serial number, from 1.
        generation: the serial number of the configuration it was started with.
        spawned_at: when it was forked.
        timeout: how long it may be silent; 0: for ever.
        graceful_timeout: how long it may take to retire.
        boot_timeout: how long it may take to become ready; 0: for ever.
        pid: the process id; 0 before the fork.
        ready_at: when it reported ``ready``.
        retiring_at: when it reported that it leaves by itself.
        recycle_at, recycle_reason: since when, and why, it is to be replaced; it serves until its successor is ready.
        is_busy: whether a request is in its application; copied from the scoreboard.
        lingers: whether it leaves, and only waits for idle connections that no other worker can take over.
        failed, failed_at: its report that it cannot boot, and when it came.
        heartbeat: its last sign of life, copied from the scoreboard; 0.0 before its loop runs.
        term_at, quit_at, abort_at, kill_at: when the master has sent it this signal.
        sent_because: why it was sent SIGABRT, or SIGKILL; a phrase for the log.
        rss_bytes, measured_at: its memory when it was looked at last, and when that was; 0 before.
        last_words: the file for what it says at its end; closed when it is buried.
        reopen_when_ready: a log rotation happened while it was booting.
        replaces: the process id of the worker that was killed, or has died, and in whose place it is; 0: none.
        slot, pool, reader: its row of the scoreboard, where that goes back to, its readiness pipe; None in tests
            of the plan.
        cfg, log, ppid, aborted, tmp: what gunicorn's hooks find at a worker.
    """

    age: int
    generation: int
    spawned_at: float
    timeout: float
    graceful_timeout: float
    boot_timeout: float = 30.0
    pid: int = 0
    ready_at: float | None = None
    retiring_at: float | None = None
    recycle_at: float | None = None
    recycle_reason: str = ""
    is_busy: bool = False
    lingers: bool = False
    failed: Report | None = None
    failed_at: float = 0.0
    heartbeat: float = 0.0
    term_at: float | None = None
    quit_at: float | None = None
    abort_at: float | None = None
    kill_at: float | None = None
    sent_because: str = ""
    rss_bytes: int = 0
    measured_at: float = 0.0
    last_words: CrashDumpFile | None = None
    reopen_when_ready: bool = False
    replaces: int = 0
    slot: Slot | None = None
    pool: SlotPool | None = None
    reader: ReadinessReader | None = None
    cfg: Any = None
    log: logging.Logger | None = None
    ppid: int = 0
    tmp: None = None

    @property
    def booted(self) -> bool:
        """Whether it has become ready (gunicorn's name)."""
        return self.ready_at is not None

    @property
    def aborted(self) -> bool:
        """Whether it was killed for its silence (gunicorn's name)."""
        return self.abort_at is not None

    @property
    def hung(self) -> bool:
        """Whether it was aborted because it did not become ready: its death will be a boot that failed."""
        return self.abort_at is not None and self.ready_at is None

    @property
    def told_to_leave(self) -> bool:
        """Whether its death is the master's wish."""
        return not (self.term_at is self.quit_at is self.abort_at is self.kill_at is None)

    @property
    def leaving(self) -> bool:
        """Whether it no longer counts as a worker of its generation: told to leave, or leaving by itself."""
        return self.told_to_leave or self.retiring_at is not None or self.failed is not None

    @property
    def booting(self) -> bool:
        """Whether it may still become ready."""
        return self.ready_at is None and not self.leaving

    @property
    def serving(self) -> bool:
        """Whether it is ready and stays."""
        return self.ready_at is not None and not self.leaving

    def recycle(self, reason: str, now: float) -> None:
        """Note that it is to be replaced, for ``reason``."""
        if self.recycle_at is None:
            self.recycle_at, self.recycle_reason = now, reason

    def __str__(self) -> str:
        return f"<Worker {self.pid}>"
