"""Reports each worker's exit that was not asked for, or had to be forced.

A crash report states how the worker ended, its cause, its memory, the requests it was running, and its stacks. It is
one record of the error log, and an object of ``wsgiservctl status --json``.
"""

from __future__ import annotations

import logging
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import WIFSIGNALED, WTERMSIG, waitstatus_to_exitcode
from signal import SIGABRT, SIGALRM, SIGHUP, SIGINT, SIGKILL, SIGPROF, SIGQUIT, SIGSYS, SIGTERM, SIGVTALRM, Signals
from time import gmtime, strftime, time
from typing import Any, Final, Literal, TypeAlias

from wsgiserv.errors import ExitStatus
from wsgiserv.logs.access import KILLED, NO_RESPONSE, log_lost_requests
from wsgiserv.logs.escape import escape
from wsgiserv.master.crash_dump_file import CRASHES, CrashDump
from wsgiserv.master.oom import OomEvidence, OomWatch
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import Ended, rss_of
from wsgiserv.scoreboard import RequestInFlight
from wsgiserv.wording import counted, mebibytes

# Whose doing the exit was: this server's, the kernel's for want of memory, a fault in C code, the application's, a
# signal's from outside.
Cause: TypeAlias = Literal["server", "out of memory", "crash", "application", "outside", "unknown"]

# How a terminal, a service manager or a container's runtime tells a whole process group to end.
_TOLD: Final = frozenset({SIGTERM, SIGINT, SIGQUIT, SIGHUP})
# What setitimer(2) and alarm(2) send; the server uses neither.
_TIMERS: Final = frozenset({SIGALRM, SIGVTALRM, SIGPROF})
# What abort(3) and our handler of SIGABRT end with.
_ABORTED: Final = 1
# As wait4(2) returns it.
_EXITED_BOOT: Final = ExitStatus.BOOT << 8
_BAD_C_CODE: Final = "a crash in C code: usually of an extension module, or of what it was given"
_CRASH_REASONS: Final[dict[int, str]] = {
    SIGSYS: "a system call that is not allowed here (seccomp)",
    SIGABRT: "abort() in C code after a failed check; or kill -ABRT from outside",
}
# A SIGKILL that the master has not sent, by the source of `OomEvidence`.
_SIGKILLS: Final[dict[str, tuple[Cause, str]]] = {
    "cgroup": ("out of memory", "the kernel's OOM killer: its counter in {path} has grown"),
    "machine": (
        "out of memory",
        "the kernel's OOM killer, probably: its counter for the whole machine ({path}) has grown; see dmesg",
    ),
    "none": (
        "outside",
        "SIGKILL from outside (kill -9?): not sent by wsgiserv, and the OOM counter has not moved ({path})",
    ),
    "unknown": (
        "outside",
        "SIGKILL from outside: not sent by wsgiserv; without a kill -9 the kernel was out of memory: see dmesg",
    ),
}
# getrusage(2): ru_maxrss is in KiB, but in bytes on macOS.
_MAXRSS_UNIT: Final = 1 if sys.platform == "darwin" else 1024

_MOST_REQUESTS: Final = 20
# A page of a log, not a book: the innermost frames of each thread come first.
_MOST_STACK_LINES: Final = 400
_INDENT: Final = "    "
# 10 µs for each worker.
_MEASURE_EVERY_S: Final = 1.0
# With their stacks they are the largest part of a status.
_KEPT: Final = 20


# ---- exits and requests in words -------------------------------------------------------------------------


def describe_exit(wait_status: int | None) -> str:
    """Return ``was killed by SIGSEGV`` or ``exited with status 1`` for what wait4(2) returned; None is unknown."""
    if wait_status is None:
        return "exited with an unknown status"
    name = _signal_name(_signal_of(wait_status))
    return f"was killed by {name}" if name else f"exited with status {waitstatus_to_exitcode(wait_status)}"


def _signal_of(wait_status: int | None) -> int:
    """Return the number of the signal that has killed a process; 0 when none has, or when it is unknown."""
    return WTERMSIG(wait_status) if wait_status is not None and WIFSIGNALED(wait_status) else 0


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal, which Python has no name for
        return f"signal {number}" if number else ""


def in_json(requests: Sequence[RequestInFlight]) -> list[dict[str, Any]]:
    """Return the requests fit for JSON. Text from clients is not escaped."""
    return [
        {
            "request_line": lost.request_line,
            "peer": lost.peer,
            "id": lost.request_id,
            "age_s": round(lost.age_s, 3),
            "detached": lost.detached,
        }
        for lost in requests
    ]


def request_lines(pid: int, requests: Sequence[RequestInFlight], most: int = _MOST_REQUESTS) -> list[str]:
    """Return a line for each request in the application of the worker ``pid``, ``most`` at most."""
    # All three texts come from the client.
    lines = [
        f"in flight in worker {pid} for {lost.age_s:.1f} s: "
        f'"{escape(lost.request_line)}" from {escape(lost.peer) or "a Unix socket"}, '
        f"request id {escape(lost.request_id) or '-'}{', an upgraded connection' if lost.detached else ''}"
        for lost in requests[:most]
    ]
    if len(requests) > most:
        lines.append(f"in flight in worker {pid}: {len(requests) - most} more")
    return lines


# ---- which exits, and why --------------------------------------------------------------------------------


def is_told_to_end(worker: WorkerHandle, wait_status: int | None) -> bool:
    """Whether a worker has ended as if told to leave, though not by the master: by a signal to all processes."""
    if worker.told_to_leave or worker.retiring_at is not None:
        return False
    return wait_status == ExitStatus.OK or _signal_of(wait_status) in _TOLD


def needs_report(worker: WorkerHandle, wait_status: int | None, unasked: bool) -> bool:
    """Whether an exit needs a crash report.

    Args:
        worker: the worker, just reaped.
        wait_status: see `describe_exit`.
        unasked: whether it was neither told to leave nor leaving by itself, and the server goes on.
    """
    if worker.failed is not None:
        return False  # its own report says why it exits
    # Before quit_at: a worker that hung does so also during a fast stop, and its stacks tell where.
    if worker.abort_at is not None:
        return True
    if worker.quit_at is not None:
        return False  # a fast stop is meant to cut requests
    if unasked or worker.kill_at is not None:
        return True
    number = _signal_of(wait_status)
    if number:
        return number not in _TOLD
    # An overdue request that does not come back: the worker has said that it leaves, and then cannot.
    return worker.retiring_at is not None and wait_status == _EXITED_BOOT


def classify_exit(
    worker: WorkerHandle, wait_status: int | None, dump: CrashDump, find_oom: Callable[[], OomEvidence]
) -> tuple[Cause, str]:
    """Return the cause of an exit, and the reason in words.

    Args:
        worker: the worker, just reaped.
        wait_status: see `describe_exit`.
        dump: the worker's stacks.
        find_oom: see `OomWatch.attribute_kill`; called at most once, for a SIGKILL from elsewhere.
    """
    ours = f"sent by wsgiserv: it {worker.sent_because}"
    # os.waitpid(-1) in a hook, or SIGCHLD ignored there, takes the status away.
    if wait_status is None:
        return "unknown", "unknown: something else in this process (a hook?) has waited for it"
    number = _signal_of(wait_status)
    if not number:
        return _classify_status(worker, waitstatus_to_exitcode(wait_status), dump, ours)
    if number == SIGKILL:
        if worker.kill_at is None:
            found = find_oom()
            cause, text = _SIGKILLS[found.source]
            return cause, text.format(path=found.path)
        if worker.abort_at is not None:
            ours += f"; it did not end within {worker.kill_at - worker.abort_at:.1f} s of SIGABRT"
        return "server", ours
    if number in CRASHES or number == SIGSYS:
        if number == SIGABRT and worker.abort_at is not None:
            return "server", ours
        what = _CRASH_REASONS.get(number, _BAD_C_CODE)
        # Where faulthandler was on before the worker began, it writes elsewhere: to the standard error, mostly.
        if not dump.at(number):
            what += "; no stack is left, unless faulthandler was on before"
        return "crash", what
    name = _signal_name(number)
    if number in _TIMERS:
        return "application", f"a timer of the application (alarm, setitimer): {name} had no handler"
    return "outside", f"{name} from outside: not sent by wsgiserv"


def _classify_status(worker: WorkerHandle, status: int, dump: CrashDump, ours: str) -> tuple[Cause, str]:
    if worker.abort_at is not None:
        return "server", f"{ours}; it ended at SIGABRT"
    # The worker's handler of SIGABRT writes the report, and exits with this status.
    if dump.report and status == _ABORTED:
        return "outside", "SIGABRT from outside: not sent by wsgiserv"
    if worker.retiring_at is not None and status == ExitStatus.BOOT:
        return "server", "the worker itself: a request was overdue (request_timeout) and did not come back"
    # Its handlers of both signals end it in order, so the status does not tell them from an exit by the application.
    if status == ExitStatus.OK:
        return "outside", (
            "SIGTERM or SIGQUIT from outside: not sent by wsgiserv; or the application has called os._exit(0)"
        )
    return "application", (f"the application has called os._exit({status}), unless lines above tell of another error")


# ---- the report ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CrashReport:
    """A crash report.

    Attributes:
        pid, age, generation: of the worker.
        died_at: when it was found dead, ``time.time()`` seconds.
        lived_s: how long it had lived, in seconds.
        was_ready: whether it had ever served.
        requests, errors: the number of responses, and of those with 5xx.
        connections: its connected clients at its last count (once a second).
        how: see `describe_exit`.
        exit_status: None when it was killed by a signal, or the status is unknown.
        signal: the signal's name, None when there was none.
        cause, reason: see `classify_exit`.
        rss_bytes, rss_age_s: its resident memory at the last look, and how long before its end; 0 is unknown.
        max_rss_bytes: its maximum, or that of a process it had waited for; 0 is unknown.
        lost: the requests in the application at its end, oldest first.
        stacks: its stacks; or empty.
        stacks_by: the writer of the stacks: the worker itself, or the interpreter's faulthandler; or empty.
    """

    pid: int
    age: int
    generation: int
    died_at: float
    lived_s: float
    was_ready: bool
    requests: int
    errors: int
    connections: int
    how: str
    exit_status: int | None
    signal: str | None
    cause: Cause
    reason: str
    rss_bytes: int = 0
    rss_age_s: float = 0.0
    max_rss_bytes: int = 0
    lost: Sequence[RequestInFlight] = ()
    stacks: str = ""
    stacks_by: Literal["", "worker", "faulthandler"] = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it fit for JSON, for ``wsgiservctl status --json``. Text from clients is not escaped."""
        # With milliseconds: an operator compares it with other logs.
        seconds, fraction = divmod(self.died_at, 1)
        died = f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(seconds))}.{int(fraction * 1000):03d}+00:00"
        # The rest of the fields are keys under their own names, which docs/control.md lists.
        found = asdict(self)
        for name in ("died_at", "how", "lost"):
            del found[name]
        return {
            **found,
            "died": died,
            "lived_s": round(self.lived_s, 1),
            "rss_bytes": self.rss_bytes or None,
            "rss_age_s": round(self.rss_age_s, 1) if self.rss_bytes else None,
            "max_rss_bytes": self.max_rss_bytes or None,
            "in_flight": in_json(self.lost),
        }

    def text(self) -> str:
        """Return it for the error log: one line with the essentials, and the details below it, indented."""
        requests = counted(self.requests, "request")
        errors = f" ({self.errors} with 5xx)" if self.errors else ""
        booting = "" if self.was_ready else ", while it was booting"
        lines = [
            f"worker {self.pid} (age {self.age}) {self.how} after {self.lived_s:.1f} s and {requests}{errors}{booting}",
            f"cause: {self.reason}",
        ]
        memory = []
        if self.rss_bytes:
            memory.append(f"{mebibytes(self.rss_bytes)} resident {self.rss_age_s:.1f} s before its exit")
        if self.max_rss_bytes:
            memory.append(f"{mebibytes(self.max_rss_bytes)} at its most")
        if memory:
            lines.append(f"memory: {', '.join(memory)}")
        if self.connections:
            lines.append(f"connections: {self.connections} when it counted them last")
        lines += request_lines(self.pid, self.lost) or ["in flight: nothing"]
        if self.stacks:
            by = "the worker itself" if self.stacks_by == "worker" else "faulthandler, innermost call first"
            # Log collectors join the lines that are indented to the one before: none is empty.
            stacks = [line for line in self.stacks.splitlines() if line.strip()]
            lines.append(f"stacks, by {by}:")
            lines += [_INDENT + line for line in stacks[:_MOST_STACK_LINES]]
            if len(stacks) > _MOST_STACK_LINES:
                lines.append(f"{_INDENT}{len(stacks) - _MOST_STACK_LINES} more lines")
        return textwrap.indent("\n".join(lines), _INDENT).strip()


def make_report(
    worker: WorkerHandle,
    end: Ended,
    now: float,
    wall: float,
    *,
    dump: CrashDump = CrashDump(),  # noqa: B008 - a tuple
    find_oom: Callable[[], OomEvidence] = lambda: OomEvidence("unknown"),
) -> CrashReport:
    """Return the report of a worker just reaped; its slot is still its own.

    Args:
        worker: the worker.
        end: how it ended.
        now, wall: ``time.monotonic()`` and ``time.time()`` seconds.
        dump, find_oom: see `classify_exit`.
    """
    wait_status = end.wait_status
    figures = worker.figures()
    number = _signal_of(wait_status)
    cause, reason = classify_exit(worker, wait_status, dump, find_oom)
    # The worker's own report has all requests and greenlets. What faulthandler has written is of this exit only where
    # it was made at the same signal, or the master has asked for it: a child of the worker may have written it.
    stacks = dump.report or dump.at(number) or (dump.faulthandler if worker.abort_at is not None else "")
    return CrashReport(
        pid=worker.pid,
        age=worker.age,
        generation=worker.generation,
        died_at=wall,
        lived_s=now - worker.spawned_at,
        was_ready=worker.ready_at is not None,
        requests=figures.requests,
        errors=figures.errors,
        connections=figures.connections,
        how=describe_exit(wait_status),
        exit_status=None if wait_status is None or number else waitstatus_to_exitcode(wait_status),
        signal=_signal_name(number) or None,
        cause=cause,
        reason=reason,
        rss_bytes=worker.rss_bytes,
        rss_age_s=now - worker.measured_at,
        max_rss_bytes=max(end.max_rss * _MAXRSS_UNIT, worker.rss_bytes),  # the kernel counts roughly
        lost=worker.in_flight(now),
        stacks=stacks,
        stacks_by="" if not stacks else "worker" if stacks == dump.report else "faulthandler",
    )


class CrashReporter:
    """Writes the crash reports of one master, and samples the running workers for them.

    Args:
        log: the error log.
        oom: the OOM killer's counters.
        measure: returns the resident memory of a process in bytes, 0 when it is unknown.

    Attributes:
        reports: the last ones, oldest first.
    """

    def __init__(
        self, log: logging.Logger, oom: OomWatch | None = None, measure: Callable[[int], int] = rss_of
    ) -> None:
        self.reports: deque[CrashReport] = deque(maxlen=_KEPT)
        self._log = log
        self._oom = oom or OomWatch()
        self._measure = measure
        self._next_look = 0.0

    def look(self, workers: Iterable[WorkerHandle], now: float) -> None:
        """Note the workers' memory, once a second. Called at every turn of the master's loop."""
        # Beforehand: /proc has nothing any more about a process that has been killed.
        if now < self._next_look:
            return
        self._next_look = now + _MEASURE_EVERY_S
        self._oom.look(now)
        for worker in workers:
            size = self._measure(worker.pid)
            if size:  # a process that is being torn down has none
                worker.rss_bytes, worker.measured_at = size, now

    def is_killed_from_outside(self, wait_status: int | None, now: float) -> bool:
        """Whether a foreign SIGKILL is not the OOM killer's, as far as the system tells."""
        return _signal_of(wait_status) == SIGKILL and not self._oom.suspects(now)

    def report(self, worker: WorkerHandle, end: Ended, now: float) -> None:
        """Write a crash report into the error log, the lost requests into the access log. Never raises.

        Args:
            worker: the worker, just reaped; its slot is still its own.
            end: how it ended.
            now: ``time.monotonic()`` seconds.
        """
        dump = worker.crash_dump.read() if worker.crash_dump is not None else CrashDump()
        # Asked for at a SIGKILL from elsewhere only: the answer uses up a growth of the counter.
        find_oom = partial(self._oom.attribute_kill, now)
        report = make_report(worker, end, now, time(), dump=dump, find_oom=find_oom)
        self.reports.append(report)
        self._log.error("WS1209 crash report: %s", report.text())
        # In the access log a request that the server has cut for its own limits differs from one lost in a crash.
        was_late = worker.abort_at is not None or worker.kill_at is not None
        status = KILLED if was_late and report.cause == "server" else NO_RESPONSE
        if worker.settings is not None:
            log_lost_requests(worker.settings, self._log, worker.pid, report.lost, status)
