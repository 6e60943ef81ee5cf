"""What is found out about a worker that is dead or about to be killed.

Owns: who gets a certificate, the words for how a process ended, who or what has ended it.
Must not know: what is done about it, how a certificate is written down.
"""

from __future__ import annotations

from collections.abc import Callable
from os import WIFSIGNALED, WTERMSIG, waitstatus_to_exitcode
from signal import (
    SIGALRM,
    SIGHUP,
    SIGINT,
    SIGKILL,
    SIGPROF,
    SIGQUIT,
    SIGSYS,
    SIGTERM,
    SIGVTALRM,
    Signals,
)
from typing import Final

from wsgiserv.errors import ExitStatus
from wsgiserv.logs.access import LostRequest
from wsgiserv.master.crash_dump_file import CRASHES, Stacks
from wsgiserv.master.crash_report import Cause, Certificate, requests_in_words
from wsgiserv.master.oom import Verdict
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.wording import counted

__all__ = [
    "calls_for_certificate",
    "certify",
    "died_how",
    "in_flight_lines",
    "is_told_to_end",
    "life",
    "lost_requests",
]

# How a terminal, a service manager or a container's runtime tells a whole process group to end.
_TOLD: Final = frozenset({SIGTERM, SIGINT, SIGQUIT, SIGHUP})
# What setitimer(2) and alarm(2) send; the server uses neither.
_TIMERS: Final = frozenset({SIGALRM, SIGVTALRM, SIGPROF})
# What abort(3) and our handler of SIGABRT end with.
_ABORTED: Final = 1


def died_how(wait_status: int | None) -> str:
    """Return ``was killed by SIGSEGV`` or ``exited with status 1`` for what wait4(2) returned; None is unknown."""
    if wait_status is None:
        return "has ended, nobody knows how"
    name = signal_name(wait_status)
    return f"was killed by {name}" if name else f"exited with status {waitstatus_to_exitcode(wait_status)}"


def signal_name(wait_status: int) -> str:
    """Return the name of the signal that has killed a process; empty when none has."""
    if not WIFSIGNALED(wait_status):
        return ""
    number = WTERMSIG(wait_status)
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def is_told_to_end(worker: WorkerHandle, wait_status: int | None) -> bool:
    """Whether a worker that the master has not told to leave has ended as if it had been: a signal to all of them."""
    if wait_status is None or worker.told_to_leave or worker.retiring_at is not None:
        return False
    return wait_status == ExitStatus.OK or (WIFSIGNALED(wait_status) and WTERMSIG(wait_status) in _TOLD)


def calls_for_certificate(worker: WorkerHandle, wait_status: int | None, unasked: bool) -> bool:
    """Whether a death is to be accounted for: nobody wanted it, or it was the punishment for being late.

    Args:
        worker: who is dead.
        wait_status: see `died_how`.
        unasked: whether it was neither told to leave nor leaving by itself, and the server goes on.
    """
    if worker.failed is not None:
        return False  # it has said itself why it ends
    if worker.abort_at is not None:
        return True
    if worker.quit_at is not None:
        return False  # what a fast stop breaks off was to be broken off
    if unasked or worker.kill_at is not None:
        return True
    if wait_status is None:
        return False
    if WIFSIGNALED(wait_status):
        return WTERMSIG(wait_status) not in _TOLD
    # An overdue request that does not come back: the worker has said that it leaves, and then cannot.
    return worker.retiring_at is not None and waitstatus_to_exitcode(wait_status) == ExitStatus.BOOT


def certify(
    worker: WorkerHandle,
    wait_status: int | None,
    now: float,
    wall: float,
    *,
    max_rss_bytes: int = 0,
    stacks: Stacks = Stacks(),  # noqa: B008 - a tuple
    blame: Callable[[], Verdict] = lambda: Verdict("unknown"),
) -> Certificate:
    """Return the certificate of a worker that has just been reaped; its slot is still its own.

    Args:
        worker: who.
        wait_status: see `died_how`.
        now, wall: ``time.monotonic()`` and ``time.time()`` seconds.
        max_rss_bytes: see `Certificate`.
        stacks: its last words.
        blame: asks whether the kernel's OOM killer was it; called at most once, for a SIGKILL that is not ours.
    """
    figures = worker.slot.figures() if worker.slot is not None else None
    signal = signal_name(wait_status) if wait_status is not None else ""
    cause, reason = _cause(worker, wait_status, now, stacks, blame)
    text = stacks.report
    if not text and wait_status is not None:
        text = stacks.dump_of(WTERMSIG(wait_status)) if signal else ""
    if not text and worker.abort_at is not None:
        text = stacks.dump
    return Certificate(
        pid=worker.pid,
        age=worker.age,
        generation=worker.generation,
        died_at=wall,
        lived_s=now - worker.spawned_at,
        was_ready=worker.ready_at is not None,
        requests=figures.requests if figures else 0,
        errors=figures.errors if figures else 0,
        connections=figures.connections if figures else 0,
        how=died_how(wait_status),
        exit_status=None if wait_status is None or signal else waitstatus_to_exitcode(wait_status),
        signal=signal or None,
        cause=cause,
        reason=reason,
        rss_bytes=worker.rss_bytes,
        rss_age_s=now - worker.measured_at,
        max_rss_bytes=max(max_rss_bytes, worker.rss_bytes),  # the kernel counts roughly
        lost=lost_requests(worker, now),
        stacks=text,
        stacks_by=("worker" if text == stacks.report else "faulthandler") if text else "",
    )


def _cause(
    worker: WorkerHandle, wait_status: int | None, now: float, stacks: Stacks, blame: Callable[[], Verdict]
) -> tuple[Cause, str]:
    """Return who has ended the worker, and why."""
    if wait_status is None:
        return "unknown", "something else in this process has waited for it (a hook?), and knows how it ended"
    if not WIFSIGNALED(wait_status):
        return _cause_of_exit(worker, waitstatus_to_exitcode(wait_status), stacks)
    number = WTERMSIG(wait_status)
    if number == SIGKILL:
        if worker.kill_at is not None:
            slow = ""
            if worker.abort_at is not None:
                slow = f"; it did not end within {worker.kill_at - worker.abort_at:.1f} s of SIGABRT"
            return "server", f"this server: {worker.sent_because}{slow}"
        return _cause_of_sigkill(blame())
    if number in CRASHES or number == SIGSYS:
        if worker.abort_at is not None and CRASHES.get(Signals(number)) == "Aborted":
            return "server", f"this server: {worker.sent_because}"
        what = "a crash in C code: an extension module, as a rule, or what it was given"
        if number == SIGSYS:
            what = "a system call that is not allowed here (seccomp)"
        elif CRASHES[Signals(number)] == "Aborted":
            what = "abort() in C code, where a check has failed; or somebody has typed kill -ABRT"
        where = "" if stacks.dump_of(number) else "; no stack is left, unless faulthandler was on already"
        return "crash", what + where
    if number in _TIMERS:
        return "application", (
            f"a timer of the application (alarm, setitimer) has sent it {signal_name(wait_status)}, which had no "
            "handler"
        )
    return "somebody", f"somebody has sent it {signal_name(wait_status)}, not this server"


def _cause_of_exit(worker: WorkerHandle, status: int, stacks: Stacks) -> tuple[Cause, str]:
    if worker.abort_at is not None:
        return "server", f"this server: {worker.sent_because}; it ended at SIGABRT"
    if stacks.report and status == _ABORTED:
        return "somebody", "somebody has sent it SIGABRT, not this server"
    if worker.retiring_at is not None and status == ExitStatus.BOOT:
        return "server", "itself: a request was overdue (request_timeout) and did not come back"
    if status == ExitStatus.OK:
        return "somebody", (
            "somebody has told it to leave, with SIGTERM or SIGQUIT, not this server; or the application has "
            "called os._exit(0)"
        )
    return "application", (
        f"the application has called os._exit({status}), unless lines above tell of another error"
    )


def _cause_of_sigkill(verdict: Verdict) -> tuple[Cause, str]:
    match verdict.who:
        case "cgroup":
            return "out of memory", f"the kernel's OOM killer: its count in {verdict.path} has grown"
        case "machine":
            return "out of memory", (
                f"the kernel's OOM killer, probably: its count for the whole machine ({verdict.path}) has grown; "
                "see dmesg"
            )
        case "none":
            return "somebody", (
                f"somebody else (kill -9?): not this server, and the kernel's OOM killer has killed nobody here "
                f"lately ({verdict.path})"
            )
        case _:
            return "somebody", (
                "not this server; if nobody typed kill -9, the kernel was out of memory: see dmesg"
            )


def life(worker: WorkerHandle, now: float) -> str:
    """Return how long the worker has lived and what it has done: ``after 12.3 s and 345 requests``."""
    age_s = now - worker.spawned_at
    requests = worker.slot.figures().requests if worker.slot is not None else 0
    return f"after {age_s:.1f} s and {counted(requests, 'request')}"


def lost_requests(worker: WorkerHandle, now: float) -> tuple[LostRequest, ...]:
    """Return the requests in the application, oldest first, as the scoreboard knows them."""
    if worker.slot is None:
        return ()
    return tuple(
        LostRequest(cell.request_line, cell.peer, cell.request_id, max(0.0, now - cell.started), cell.logged)
        for cell in worker.slot.in_flight()
    )


def in_flight_lines(worker: WorkerHandle, now: float) -> list[str]:
    """Return one line for each request in the application, oldest first; long lists are cut."""
    return requests_in_words(worker.pid, lost_requests(worker, now))
