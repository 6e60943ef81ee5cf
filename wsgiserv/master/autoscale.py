"""Decides how many workers are wanted: a pure function of samples of the load. Grows fast, shrinks slowly.

The unit is one worker's worth: a fleet of 4 sync workers with 3 requests in the application is 3 workers' worth
occupied. The occupied part does not depend on the size of the fleet (unless it is full), so the load of a smaller or
larger fleet is a division. The caller gives the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, fsum, inf, sqrt
from typing import Final, NamedTuple

# Above this share of busy workers a fleet grows, to a size of which AIM would be busy. One worker is retired when the
# fleet without it would be below QUIET, and never above AIM. AIM lies between: a fleet that has grown is not quiet,
# one that has shrunk is not crowded.
CROWDED: Final = 0.75
AIM: Final = 0.6
QUIET: Final = 0.5
# A shorter wait is not noticed, and does not count as a queue.
QUEUE_S: Final = 0.1
# More workers do not make CPUs faster.
CPU_FULL: Final = 0.9
# A mean of few samples may be chance. Two standard errors are 98 % on one side.
_ERRORS: Final = 2.0
# A shrink that is taken back within this many times its patience was too early: patience doubles, up to so many
# windows, and halves when that has not happened for so many times its length.
_REGRET: Final = 8
_MOST_PATIENCE: Final = 16
_FORGET: Final = 16
# A queue that will be gone sooner than this is not worth a worker, which takes as long to boot.
_DRAINED_S: Final = 5.0

_SHORTEST_S: Final = 0.5
_LONGEST_S: Final = 5.0
_SAMPLES: Final = 15


def short_window_of(window_s: float) -> float:
    """Return the length of the window for growing, a tenth of ``scale_window``: 0.5 to 5 seconds."""
    return min(max(window_s / 10, _SHORTEST_S), _LONGEST_S)


def interval_of(window_s: float) -> float:
    """Return the seconds between samples."""
    return short_window_of(window_s) / _SAMPLES


class Sample(NamedTuple):
    """The load of the serving workers at one moment.

    Attributes:
        at: when, in seconds.
        occupied: requests in the application, divided by the capacity of one worker.
        cpu: the CPUs in use by the workers, lately.
        queue: connections waiting to be accepted.
        rate: requests answered per second, lately.
    """

    at: float
    occupied: float
    cpu: float
    queue: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The limits on the number of workers, besides the load.

    Attributes:
        least, most: ``workers_min``, ``workers_max``.
        window_s: ``scale_window``.
        capacity: how many requests one worker can have in the application at once.
        cpus: how many CPUs there are for the workers.
        fits: how many workers the memory allows; None: not measured.
    """

    least: int
    most: int
    window_s: float
    capacity: int = 1
    cpus: float = inf
    fits: int | None = None


class Decision(NamedTuple):
    """How many workers are wanted.

    Attributes:
        workers: how many.
        why: the figures behind a change, also an impossible one; else empty.
        held: the limit against more workers, though they would be wanted; else empty.
    """

    workers: int
    why: str = ""
    held: str = ""


class Load(NamedTuple):
    """The means of some samples, ``error`` being the standard error of ``occupied``."""

    occupied: float
    error: float
    cpu: float
    queue: float
    rate: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Load:
        """Return the means; there is at least one sample."""
        _, occupied, *others = zip(*samples, strict=True)
        return cls(*_mean(occupied), *map(_average, others))

    @property
    def busy(self) -> float:
        """Workers' worth of places in the application, or of CPU if more."""
        return max(self.occupied, self.cpu)

    @property
    def queue_s(self) -> float:
        """How long a new connection waits to be accepted (Little's law): the queue by the rate."""
        if not self.queue:
            return 0.0
        return self.queue / self.rate if self.rate else inf


@dataclass
class History:
    """The recent load, and the outcome of past shrinks. The caller's state; `decide` reads it.

    Attributes:
        samples: those of the last short window since the fleet has its size, oldest first.
        parts: the short windows since it was smaller, oldest first.
        patience: for how many windows the load must have been low enough for a smaller fleet.
        shrunk_at: when it last shrank; -inf: never.
    """

    samples: deque[Sample] = field(default_factory=deque)
    parts: deque[Load] = field(default_factory=deque)
    patience: int = 1
    shrunk_at: float = -inf
    _part: list[Sample] = field(default_factory=list)
    # Whether the last shrink has been taken back, and when one last was.
    _regretted: bool = False
    _regretted_at: float = -inf

    def add(self, sample: Sample, window_s: float) -> None:
        """Note a sample, and forget those too old for any rule."""
        short_s = short_window_of(window_s)
        samples, part = self.samples, self._part
        samples.append(sample)
        # Half a window more than needed: samples come late, and the window must still be covered.
        while samples[0].at < sample.at - 1.5 * short_s:
            samples.popleft()
        if part and sample.at - part[0].at >= short_s:
            # No samples are taken while a dead worker is replaced: a part with too few of them tells nothing.
            if len(part) >= _SAMPLES / 2:
                self.parts.append(Load.of(part))
            part.clear()
        part.append(sample)
        while len(self.parts) > _parts_of(window_s) * self.patience:
            self.parts.popleft()
        if self.patience > 1 and sample.at - self._regretted_at > _FORGET * self.patience * window_s:
            self.patience //= 2
            self._regretted_at = sample.at

    def restart(self) -> None:
        """Forget the samples: they are of another fleet, or of another time."""
        self.samples.clear()
        self.parts.clear()
        self._part.clear()

    def changed(self, before: int, after: int, now: float, window_s: float) -> None:
        """Note a change of size, as `decide` said."""
        if after < before:
            # The occupied part does not depend on the size: the parts still count.
            self.samples.clear()
            self._part.clear()
            self.shrunk_at, self._regretted = now, False
            return
        # But a full fleet has not shown the requests that it had no place for.
        self.restart()
        if not self._regretted and now - self.shrunk_at <= _REGRET * self.patience * window_s:
            self.patience = min(2 * self.patience, _MOST_PATIENCE)
            self._regretted, self._regretted_at = True, now


def decide(history: History, workers: int, bounds: Bounds) -> Decision:
    """Return how many workers are wanted. Pure: the same arguments, the same answer.

    Args:
        history: samples of a fleet with its full size all the time.
        workers: the size of the fleet: all wanted workers serve.
        bounds: the limits.

    - It grows when more than `CROWDED` of the workers are busy for a short window, or connections wait while more
      than `QUIET` are; to a size with `AIM` of it busy, at most to twice as many.
    - It shrinks by one, once in a window, when during the last window the smaller fleet would have been
      below `QUIET` on average, and during `History.patience` windows never above `AIM`, without a queue.
    - Growing clears the history: the next decision is made on its outcome.
    """
    if not bounds.least <= workers <= bounds.most:
        wanted = min(max(workers, bounds.least), bounds.most)
        return Decision(wanted, f"workers_min is {bounds.least}, workers_max {bounds.most}")
    samples = history.samples
    if not samples:
        return Decision(workers)
    grown = _grow(samples, workers, bounds)
    if grown.workers != workers or grown.held:
        return grown
    return _shrink(history, workers, bounds)


def _grow(samples: Sequence[Sample], workers: int, bounds: Bounds) -> Decision:
    window_s, interval_s = short_window_of(bounds.window_s), interval_of(bounds.window_s)
    recent = _covering(samples, window_s, interval_s)
    last = _covering(samples, window_s / 3, interval_s)
    places = workers * bounds.capacity
    if recent:
        load = Load.of(recent)
        if _drains(recent, places):
            return Decision(workers)
        if max(load.occupied - _ERRORS * load.error, load.cpu) > CROWDED * workers:
            wanted = _enough(load.occupied, load.cpu, bounds)
            return _bounded(wanted, workers, load, bounds, f"{window_s:g} s")
    # A queue in each sample is no matter of chance, and needs no long window.
    if last and all(sample.queue for sample in last) and not _drains(last, places):
        load = Load.of(last)
        if load.queue_s > QUEUE_S and load.busy >= QUIET * workers:
            # The queue is a stock and not a stream: it must not make a fleet that shrinks at once.
            waiting = min(load.occupied + load.queue / bounds.capacity, 2 * AIM * load.occupied)
            wanted = max(_enough(waiting, load.cpu, bounds), workers + 1)
            return _bounded(wanted, workers, load, bounds, f"{window_s / 3:.2g} s")
    return Decision(workers)


def _drains(samples: Sequence[Sample], places: int) -> bool:
    """Whether a large queue is shrinking fast enough."""
    first, last = samples[0], samples[-1]
    gone = first.queue - last.queue
    return first.queue > places and gone > 0 and last.queue * (last.at - first.at) < gone * _DRAINED_S


def _enough(occupied: float, cpu: float, bounds: Bounds) -> int:
    """Return the size of a fleet that is busy to `AIM`; of CPU-bound workers never more than there are CPUs."""
    return max(ceil(occupied / AIM), ceil(min(ceil(cpu / AIM), bounds.cpus)))


def _bounded(wanted: int, workers: int, load: Load, bounds: Bounds, span: str) -> Decision:
    """Return the decision on growing to ``wanted``, within the bounds, for the load over ``span``."""
    why = f"busy {load.busy / workers:.0%} over {span}"
    if load.queue:
        # Little's law is of no use for a queue that does not move: minutes, or without end.
        waits = f", a wait of {load.queue_s:.1f} s" if load.queue_s < 60 else ""
        why += f", queue {max(round(load.queue), 1)}{waits}"
    if load.cpu >= CPU_FULL * bounds.cpus or wanted <= workers:
        return Decision(workers, why, f"the workers use all of {bounds.cpus:g} CPUs")
    # A step at a time: the next sample tells whether the new workers help.
    wanted = min(wanted, 2 * workers)
    if workers >= bounds.most:
        return Decision(workers, why, f"workers_max is {bounds.most}")
    if bounds.fits is not None and workers >= bounds.fits:
        return Decision(workers, why, "the memory limit leaves no room for another worker")
    fits = wanted if bounds.fits is None else bounds.fits
    return Decision(min(wanted, bounds.most, fits), why)


def _shrink(history: History, workers: int, bounds: Bounds) -> Decision:
    rest, window_s = workers - 1, bounds.window_s
    parts, wanted = list(history.parts), _parts_of(window_s)
    if rest < bounds.least or len(parts) < wanted * history.patience:
        return Decision(workers)
    if history.samples[-1].at - history.shrunk_at < window_s:
        return Decision(workers)
    last = parts[-wanted:]
    # By the means of parts: samples that follow each other closely see the same requests.
    occupied, error = _mean([part.occupied for part in last])
    if max(occupied + _ERRORS * error, _average([part.cpu for part in last])) >= QUIET * rest:
        return Decision(workers)
    # No mean here: a rush hour within the patience needs the worker again.
    for part in parts:
        waited = part.queue_s > QUEUE_S and part.busy >= QUIET * rest
        if waited or part.busy > AIM * rest:
            return Decision(workers)
    return Decision(rest, f"busy {_average([part.busy for part in last]) / workers:.0%} over {window_s:g} s")


def _covering(samples: Sequence[Sample], window_s: float, interval_s: float) -> list[Sample]:
    """Return the samples of the last ``window_s`` seconds; none when they do not go back so far, or have holes."""
    # Half an interval of tolerance: the master's loop never wakes up exactly.
    begin = samples[-1].at - window_s - interval_s / 2
    if samples[0].at > begin + interval_s:
        return []
    found = [sample for sample in samples if sample.at >= begin]
    return found if len(found) >= window_s / interval_s / 2 else []


def _parts_of(window_s: float) -> int:
    return round(window_s / short_window_of(window_s))


def _average(values: Sequence[float]) -> float:
    # Not statistics.fmean: its import costs 3 ms.
    return fsum(values) / len(values)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    mean = _average(values)
    return mean, sqrt(sum((value - mean) ** 2 for value in values)) / len(values)
