"""Keeps the commands waiting for an event of the workers, and tells them the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from time import monotonic

from wsgiserv.master.control import Done
from wsgiserv.master.crash_report import request_lines
from wsgiserv.master.policy import Fleet
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import state_of
from wsgiserv.wording import counted

# A worker answers SIGTTOU within milliseconds, unless its main thread runs no Python code.
_TRACE_S = 2.0


def settle(waiting: list[Done], ok: bool, reason: str) -> None:
    """Tell all of ``waiting`` the outcome, and forget them."""
    while waiting:
        waiting.pop(0)(ok, reason)


class Waiters:
    """The commands waiting for a number of serving workers, for an exit, for a trace.

    Args:
        fleet: the workers.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._serving: list[tuple[int, Done]] = []
        # By age, not by process id: a worker that a zygote has not forked yet has none.
        self._exits: dict[int, list[Done]] = {}
        self._traces: dict[int, list[tuple[float, Done]]] = {}

    def when_serving(self, count: int, done: Done) -> None:
        """Tell ``done`` when so many workers serve, no more and no fewer; or when another number is wanted."""
        self._serving.append((count, done))

    def when_exited(self, worker: WorkerHandle, done: Done) -> None:
        """Tell ``done`` when the worker has exited."""
        self._exits.setdefault(worker.age, []).append(done)

    def when_traced(self, worker: WorkerHandle, done: Done) -> None:
        """Tell ``done`` the worker's report of its stacks; after 2 s, the system's view of the worker."""
        self._traces.setdefault(worker.age, []).append((monotonic() + _TRACE_S, done))

    # ---- what happens ------------------------------------------------------------------------------------

    def on_overtaken(self, reason: str) -> None:
        """End the waits for a number of workers: it will not be reached."""
        settle([done for _, done in self._serving], False, reason)
        self._serving.clear()

    def on_exit(self, worker: WorkerHandle, text: str) -> None:
        """End the waits for this worker: it has exited, or will never be spawned."""
        settle(self._exits.pop(worker.age, []), True, text)
        self.on_trace(worker, text, ok=False)

    def on_trace(self, worker: WorkerHandle, text: str, *, ok: bool = True) -> None:
        """End the waits for this worker's stacks."""
        settle([done for _, done in self._traces.pop(worker.age, [])], ok, text or "it runs nothing")

    def look(self, newest: int, wanted: int, now: float) -> float:
        """End the waits for events that have come about, will not, or are late.

        Args:
            newest: the serial number of the newest generation.
            wanted: how many workers it is to have.
            now: ``time.monotonic()`` seconds.

        Returns:
            When to look again; ``inf``: never.
        """
        workers, failures = self._fleet.workers, self._fleet.failures.get(newest)
        trouble = failures.reason if failures is not None else ""
        self._look_at_serving(workers, wanted, trouble)
        for worker in workers:
            # Nothing is retired before its replacement is ready, and none becomes ready: the wait would not end.
            if trouble and not worker.leaving:
                reason = f"worker {worker.pid} stays until a new one is ready: {trouble}"
                settle(self._exits.pop(worker.age, []), False, reason)
            # No answer: a signal handler of Python runs between two of its instructions only.
            if any(until <= now for until, _ in self._traces.get(worker.age, ())):
                requests = request_lines(worker.pid, worker.in_flight(now))
                self.on_trace(worker, "\n".join([_explain_no_trace(worker.pid), *requests]))
        return min((until for waiting in self._traces.values() for until, _ in waiting), default=inf)

    def _look_at_serving(self, workers: Sequence[WorkerHandle], wanted: int, trouble: str) -> None:
        serving = sum(worker.serving for worker in workers)
        waiting, self._serving = self._serving, []
        for count, done in waiting:
            # Another command, a signal or the load has changed the number: this one may never be reached.
            if wanted != count:
                done(False, f"overtaken: {counted(wanted, 'worker', 'is', 'are')} wanted now")
            elif serving == count:
                done(True, counted(count, "worker", "serves", "serve"))
            elif trouble:  # it is tried on, but less and less often: the client need not wait for that
                done(False, f"{serving} of {counted(count, 'worker', 'serves', 'serve')}: {trouble}")
            else:
                self._serving.append((count, done))


def _explain_no_trace(pid: int) -> str:
    """Return why a worker does not report its stacks, as far as its state in proc(5) tells."""
    # Each with what helps: a stopped process takes SIGCONT, one in the kernel takes no signal at all.
    causes = {
        "T": f"is stopped (SIGSTOP or SIGTSTP): kill -CONT {pid} lets it go on.",
        "t": "is stopped by a debugger or tracer.",
        "D": "does not respond: it waits in the kernel (D), for a disk or a network file system.",
    }
    return f"worker {pid} {causes.get(state_of(pid), 'does not respond: its main thread runs no Python code.')}"
