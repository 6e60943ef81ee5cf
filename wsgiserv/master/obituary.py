"""What is said about a worker that is dead or about to be killed.

Owns: the words for how a process ended, what it was doing, how long.
Must not know: what is done about it.
"""

from __future__ import annotations

from os import WIFSIGNALED, WTERMSIG, waitstatus_to_exitcode
from signal import SIGKILL, SIGSEGV, Signals

from wsgiserv.boot import EXIT_APPLICATION, EXIT_BOOT, EXIT_CONFIG
from wsgiserv.logs.escape import escape
from wsgiserv.master.handle import Handle

__all__ = ["died_how", "hint", "in_flight_lines", "life"]

_MOST_LINES = 20


def died_how(wait_status: int) -> str:
    """Return ``was killed by SIGSEGV`` or ``exited with status 1`` for what waitpid(2) returned."""
    if WIFSIGNALED(wait_status):
        number = WTERMSIG(wait_status)
        try:
            return f"was killed by {Signals(number).name}"
        except ValueError:
            return f"was killed by signal {number}"
    return f"exited with status {waitstatus_to_exitcode(wait_status)}"


def hint(worker: Handle, wait_status: int) -> str:
    """Return a guess at the cause, beginning with a space, or nothing."""
    if not WIFSIGNALED(wait_status):
        status = waitstatus_to_exitcode(wait_status)
        if status in (EXIT_CONFIG, EXIT_BOOT, EXIT_APPLICATION) or worker.told_to_leave:
            return ""
        return "" if status == 0 else " (has the application called os._exit?)"
    number = WTERMSIG(wait_status)
    if number == SIGKILL and worker.kill_at is None:
        return " (not by this server; if nobody typed kill -9, it was out of memory: see dmesg)"
    if number == SIGSEGV:
        return " (a crash in a C extension: PYTHONFAULTHANDLER=1 shows where)"
    return ""


def life(worker: Handle, now: float) -> str:
    """Return how long the worker has lived and what it has done: ``after 12.3 s and 345 requests``."""
    age_s = now - worker.spawned_at
    requests = worker.slot.figures().requests if worker.slot is not None else 0
    return f"after {age_s:.1f} s and {requests} request{'' if requests == 1 else 's'}"


def in_flight_lines(worker: Handle, now: float) -> list[str]:
    """Return one line for each request in the application, oldest first; long lists are cut."""
    if worker.slot is None:
        return []
    cells = worker.slot.in_flight()
    lines = [
        f"in flight in worker {worker.pid} for {now - cell.started:.1f} s: "
        f'"{escape(cell.request_line)}" from {escape(cell.peer) or "a Unix socket"}, '
        f"request id {escape(cell.request_id) or '-'}"
        for cell in cells[:_MOST_LINES]
    ]
    if len(cells) > _MOST_LINES:
        lines.append(f"in flight in worker {worker.pid}: {len(cells) - _MOST_LINES} more")
    return lines
