"""Defines the master's view of one worker: its process, its reports, the signals it has been sent, and when."""

from __future__ import annotations

from dataclasses import dataclass
from os import pipe
from signal import SIGABRT, SIGKILL, SIGQUIT, SIGTERM
from typing import Any

from wsgiserv.boot import ReadinessReader, Report
from wsgiserv.master.crash_dump_file import CrashDumpFile
from wsgiserv.master.slots import SlotPool
from wsgiserv.scoreboard import DETACHED, RequestInFlight, Slot, SlotFigures
from wsgiserv.wording import counted

# Attributes, not a dict, hold these times: the policy and the status ask for each by its name.
_SENT_AT: dict[int, str] = {SIGTERM: "term_at", SIGQUIT: "quit_at", SIGABRT: "abort_at", SIGKILL: "kill_at"}


@dataclass(kw_only=True, eq=False)
class WorkerHandle:
    """One worker, from just before its fork until it has been reaped. All times are ``time.monotonic()`` seconds.

    Attributes:
        age: the serial number, from 1.
        generation: the serial number of the configuration it was started with.
        spawned_at: when it was forked.
        timeout: how many seconds it may take to respond; 0 means no limit.
        graceful_timeout: how many seconds it may take to retire.
        boot_timeout: how many seconds it may take to become ready; 0 means no limit.
        pid: the process id; 0 before the fork.
        ready_at: when it reported ``ready``.
        retiring_at: when it reported ``retiring``.
        recycle_at, recycle_reason: since when, and why, it is to be replaced; it serves until its replacement is ready.
        is_busy: whether a request is in its application; copied from the scoreboard.
        lingers: whether it leaves, and only waits for idle connections it cannot hand over.
        failed, failed_at: its report ``failed``, and when it came.
        heartbeat: its last sign of life, copied from the scoreboard; 0.0 before its loop runs.
        term_at, quit_at, abort_at, kill_at: when the master has sent it this signal.
        sent_because: why it was sent SIGABRT, or SIGKILL: a verb and more, for the log.
        rss_bytes, measured_at: its memory at the last look, and the time of that; 0 before.
        reopen_when_ready: a log rotation happened while it was booting.
        replaces: the process id of its crashed or killed worker in whose place it came; 0: none.
        slot, pool: its row of the scoreboard, and the row's pool; None in tests of the policy.
        reader, crash_dump: see `open_pipes`.
        settings: its configuration; None in tests of the policy.
        view: the worker as hooks see it (`HookWorker`).
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
    reopen_when_ready: bool = False
    replaces: int = 0
    slot: Slot | None = None
    pool: SlotPool | None = None
    reader: ReadinessReader | None = None
    crash_dump: CrashDumpFile | None = None
    settings: Any = None
    view: Any = None

    @property
    def booted(self) -> bool:
        """Whether it has become ready (gunicorn's name)."""
        return self.ready_at is not None

    @property
    def aborted(self) -> bool:
        """Whether it was sent SIGABRT because it did not respond (gunicorn's name)."""
        return self.abort_at is not None

    @property
    def hung(self) -> bool:
        """Whether it was aborted because it did not become ready: its exit will be a boot that failed."""
        # SIGABRT comes first, for the stacks: the exit follows up to a second later.
        return self.abort_at is not None and self.ready_at is None

    @property
    def told_to_leave(self) -> bool:
        """Whether the master has sent it a signal to end it."""
        return not (self.term_at is self.quit_at is self.abort_at is self.kill_at is None)

    @property
    def retires(self) -> bool:
        """Whether it was told to leave, or leaves by itself, and was to be replaced anyway."""
        # Without SIGABRT and SIGKILL: the replacement of a killed worker is news for the log.
        return not (self.term_at is self.quit_at is self.retiring_at is None)

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
        """Have it replaced, for ``reason``."""
        # The first reason stays: the worker (max_requests) and the master (its age, its memory) may both ask.
        if self.recycle_at is None:
            self.recycle_at, self.recycle_reason = now, reason

    def note_sent(self, signal: int, reason: str, now: float) -> None:
        """Note a signal: TERM, QUIT, ABRT or KILL."""
        setattr(self, _SENT_AT[signal], now)
        # Of these two the first reason stays: SIGKILL after SIGABRT says only that it did not end.
        if signal in (SIGABRT, SIGKILL):
            self.sent_because = self.sent_because or reason

    def life(self, now: float) -> str:
        """Return its age and work: ``up 12.3 s, 345 requests``."""
        # From the scoreboard, which the worker cannot take along when it is killed.
        return f"up {now - self.spawned_at:.1f} s, {counted(self.figures().requests, 'request')}"

    def figures(self) -> SlotFigures:
        """Return its figures in the scoreboard; zeros without a row there."""
        return self.slot.figures() if self.slot is not None else SlotFigures()

    @property
    def detached(self) -> int:
        """How many of its connections the application has taken (WebSockets)."""
        return self.slot.words[DETACHED] if self.slot is not None else 0

    def in_flight(self, now: float) -> list[RequestInFlight]:
        """Return the requests in its application, oldest first."""
        return self.slot.in_flight(now) if self.slot is not None else []

    def open_pipes(self) -> int:
        """Make its readiness pipe and its crash dump's file; return the worker's end of the pipe. Raises OSError."""
        reader, writer = pipe()
        self.reader, self.crash_dump = ReadinessReader(reader), CrashDumpFile.make()
        return writer

    def close_reader(self) -> None:
        """Close its readiness pipe."""
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    def close_pipes(self) -> None:
        """Undo `open_pipes`. Called when it has been reaped or will not be spawned, and in siblings."""
        # A sibling's copy of the reading end would keep this worker from seeing that its master has ended.
        self.close_reader()
        if self.crash_dump is not None:
            self.crash_dump.close()
            self.crash_dump = None

    def give_slot_back(self) -> None:
        """Free its row of the scoreboard."""
        if self.pool is not None and self.slot is not None:
            self.pool.give_back(self.slot)
            self.slot = None  # a slot that is given back twice would be two workers'

    def __str__(self) -> str:
        return f"<Worker {self.pid}>"
