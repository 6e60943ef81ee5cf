"""Selects workers to recycle by age or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from os import urandom
from typing import Final
from weakref import WeakKeyDictionary

from wsgiserv.config.settings import Settings
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import least_memory_of, memory_of
from wsgiserv.wording import mebibytes

# To read smaps_rollup, the kernel walks all page tables of the process.
_SAMPLE_EVERY_S: Final = 5.0
# A peak is no leak: so many samples in a row must be above the limit.
_SAMPLES: Final = 3
# The part of its lifetime by which a worker may go earlier.
_JITTER: Final = 0.1


def too_large_at_boot(pid: int, settings: Settings) -> str:
    """Return an error for a worker above `max_worker_memory` before its first request; or empty."""
    # The least, as if all workers were there already to share its pages: the first one must not fail for their absence.
    most = settings.max_worker_memory
    size = least_memory_of(pid, max(settings.workers, settings.workers_max or 0)) if most else 0
    if size <= most:
        return ""
    return (
        f"max_worker_memory = {mebibytes(most)}: a worker has {mebibytes(size)} before its first request, so each "
        "would be replaced without end. Expected more than a worker has at its start, for example twice as much; 0 "
        "means no limit."
    )


class Recycler:
    """Selects the workers to replace for their age (``max_worker_lifetime``) or size (``max_worker_memory``).

    Args:
        recycle: called with a worker and the reason.
        measure: returns the memory of a process in bytes.
    """

    def __init__(self, recycle: Callable[[WorkerHandle, str], None], measure: Callable[[int], int] = memory_of) -> None:
        self._recycle = recycle
        self._measure = measure
        self._next_sample = 0.0
        # How many samples in a row were above the limit; how long each worker may live.
        self._above: WeakKeyDictionary[WorkerHandle, int] = WeakKeyDictionary()
        self._lifetimes: WeakKeyDictionary[WorkerHandle, float] = WeakKeyDictionary()

    def look(self, workers: Iterable[WorkerHandle], now: float) -> float:
        """Look at the workers, when it is time.

        Args:
            workers: the fleet.
            now: ``time.monotonic()`` seconds.

        Returns:
            When to look again; ``inf``: never.
        """
        # Each worker has its own limits: after a reload the workers of the old settings keep theirs.
        serving = [worker for worker in workers if worker.serving and worker.recycle_at is None]
        limited = [w for w in serving if w.settings.max_worker_lifetime or w.settings.max_worker_memory]
        if not limited:
            return inf
        if now >= self._next_sample:
            self._next_sample = now + _SAMPLE_EVERY_S
            for worker in limited:
                self._check_size(worker)
        return min(self._next_sample, *(self._check_age(worker, now) for worker in limited))

    def _check_age(self, worker: WorkerHandle, now: float) -> float:
        longest = worker.settings.max_worker_lifetime
        if not longest:
            return inf
        # Jitter: they were all started together, and must not be replaced at once.
        jittered = longest * (1 - urandom(1)[0] / 256 * _JITTER)
        due = worker.spawned_at + self._lifetimes.setdefault(worker, jittered)
        if now >= due:
            self._recycle(worker, f"it is {now - worker.spawned_at:.0f} s old (max_worker_lifetime)")
            return inf
        return due

    def _check_size(self, worker: WorkerHandle) -> None:
        most = worker.settings.max_worker_memory
        if not most:
            return
        size = self._measure(worker.pid)
        count = self._above[worker] = self._above.get(worker, 0) + 1 if size > most else 0
        if count >= _SAMPLES:
            self._recycle(worker, f"its memory is {size >> 20} MiB, above {most >> 20} MiB (max_worker_memory)")
