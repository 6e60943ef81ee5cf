"""Keeps the commands waiting for an event of the workers, and tells them the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from wsgiserv.master.control import Done
from wsgiserv.master.crash_report import request_lines
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import state_of
from wsgiserv.wording import counted

_TRACE_S = 2.0


class Waiters:
    """The commands waiting for a number of serving workers, for an exit, for a trace."""

    def __init__(self) -> None:
        self._serving: list[tuple[int, Done]] = []
        self._exits: dict[int, list[Done]] = {}
        self._traces: dict[int, list[tuple[float, Done]]] = {}

    def when_serving(self, count: int, done: Done) -> None:
        """Tell ``done`` when so many workers serve, no more and no fewer; or when another number is wanted."""
        self._serving.append((count, done))

    def when_exited(self, worker: WorkerHandle, done: Done) -> None:
        """Tell ``done`` when the worker has exited."""
        self._exits.setdefault(worker.age, []).append(done)

    def when_traced(self, worker: WorkerHandle, done: Done, now: float) -> None:
        """Tell ``done`` the worker's report of its stacks; after 2 s, the system's view of the worker."""
        self._traces.setdefault(worker.age, []).append((now + _TRACE_S, done))

    # ---- what happens ------------------------------------------------------------------------------------

    def on_overtaken(self, reason: str) -> None:
        """End the waits for a number of workers: it will not be reached."""
        waiting, self._serving = self._serving, []
        for _, done in waiting:
            done(False, reason)

    def on_exit(self, worker: WorkerHandle, text: str) -> None:
        """End the waits for this worker: it has exited, or will never be spawned."""
        for done in self._exits.pop(worker.age, []):
            done(True, text)
        for _, done in self._traces.pop(worker.age, []):
            done(False, text)

    def on_trace(self, worker: WorkerHandle, text: str) -> None:
        """End the waits for this worker's stacks."""
        for _, done in self._traces.pop(worker.age, []):
            done(True, text or "it runs nothing")

    def look(self, workers: Sequence[WorkerHandle], wanted: int, trouble: str, now: float) -> float:
        """End the waits for events that have come about, will not, or are late.

        Args:
            workers: all workers, until they are reaped.
            wanted: how many workers the newest generation is to have.
            trouble: why its workers cannot boot; or empty.
            now: ``time.monotonic()`` seconds.

        Returns:
            When to look again; ``inf``: never.
        """
        self._look_at_serving(workers, wanted, trouble)
        for worker in workers:
            if trouble and not worker.leaving:
                for done in self._exits.pop(worker.age, []):
                    done(False, f"worker {worker.pid} stays until a new one is ready: {trouble}")
            if any(until <= now for until, _ in self._traces.get(worker.age, ())):
                lines = [
                    _explain_no_trace(worker.pid),
                    *request_lines(worker.pid, worker.in_flight(now)),
                ]
                self.on_trace(worker, "\n".join(lines))
        return min((until for waiting in self._traces.values() for until, _ in waiting), default=inf)

    def _look_at_serving(self, workers: Sequence[WorkerHandle], wanted: int, trouble: str) -> None:
        serving = sum(worker.serving for worker in workers)
        waiting, self._serving = self._serving, []
        for count, done in waiting:
            if wanted != count:
                done(False, f"overtaken: {counted(wanted, 'worker', 'is', 'are')} wanted now")
            elif serving == count:
                done(True, counted(count, "worker", "serves", "serve"))
            elif trouble:
                done(False, f"{serving} of {counted(count, 'worker', 'serves', 'serve')}: {trouble}")
            else:
                self._serving.append((count, done))


def _explain_no_trace(pid: int) -> str:
    """Return why a worker does not report its stacks, as far as its state in proc(5) tells."""
    match state_of(pid):
        case "T":
            return f"worker {pid} is stopped (SIGSTOP or SIGTSTP): kill -CONT {pid} lets it go on."
        case "t":
            return f"worker {pid} is stopped by a debugger or tracer."
        case "D":
            return f"worker {pid} does not respond: it waits in the kernel (D), for a disk or a network file system."
        case _:
            return f"worker {pid} does not respond: its main thread runs no Python code."
