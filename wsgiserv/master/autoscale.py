"""How many workers are wanted: a pure function over samples of the load.

Owns: `Sample`, `History`, `Bounds`, `decide` and the rules: grow fast, shrink slowly, never to and fro.
Must not know: processes, the scoreboard, files, clocks, logs. Times are numbers that the caller gives.

A worker's worth is the unit: a fleet of 4 sync workers with 3 requests in the application is 3 workers' worth
occupied. How much is occupied does not depend on the size of the fleet (unless it is full), so what a smaller or
larger fleet would look like is a division.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, fsum, inf, sqrt
from typing import Final, NamedTuple

__all__ = ["Bounds", "History", "Load", "Sample", "Verdict", "decide", "interval_of", "short_window_of"]

# Above this share of its workers a fleet grows, to one of which AIM would be busy. One worker is retired when the
# fleet without it would be below QUIET, and never above AIM. That lies between: what has grown is not quiet, what has
# shrunk is not crowded.
CROWDED: Final = 0.75
AIM: Final = 0.6
QUIET: Final = 0.5
# Whom nobody notices waiting does not count as a queue.
QUEUE_S: Final = 0.1
# More workers do not make CPUs faster.
CPU_FULL: Final = 0.9
# Of a fleet this sure: a mean of few samples may be chance. Two standard errors are 98 % on one side.
_ERRORS: Final = 2.0
# A shrink that had to be taken back within so many times its patience was too early: patience doubles, up to so many
# windows. It halves when that has not happened for so many times its length.
_REGRET: Final = 8
_MOST_PATIENCE: Final = 16
_FORGET: Final = 16
# What has piled up and will be gone sooner than this is not worth a worker, who takes as long to boot.
_DRAINED_S: Final = 5.0

_SHORTEST_S: Final = 0.5
_LONGEST_S: Final = 5.0
_SAMPLES: Final = 15


def short_window_of(window_s: float) -> float:
    """Return the seconds that a growth is decided on, for ``scale_window``: a tenth, 0.5 to 5."""
    return min(max(window_s / 10, _SHORTEST_S), _LONGEST_S)


def interval_of(window_s: float) -> float:
    """Return the seconds between samples."""
    return short_window_of(window_s) / _SAMPLES


class Sample(NamedTuple):
    """The load of the serving workers at one moment.

    Attributes:
        at: when, in seconds.
        occupied: requests in the application, in workers' worth: divided by what one worker can have there at once.
        cpu: the CPUs that the workers use, lately.
        queue: connections that wait to be accepted.
        rate: requests answered per second, lately.
    """

    at: float
    occupied: float
    cpu: float
    queue: float
    rate: float


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the number of workers depends on besides the load.

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


class Verdict(NamedTuple):
    """How many workers are wanted.

    Attributes:
        workers: how many.
        why: the figures behind a change, or behind the wish for one; else empty.
        held: what forbids to have more workers, though they would be wanted; else empty.
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
        mean, error = _mean([sample.occupied for sample in samples])
        return cls(
            mean,
            error,
            _average([sample.cpu for sample in samples]),
            _average([sample.queue for sample in samples]),
            _average([sample.rate for sample in samples]),
        )

    @property
    def demand(self) -> float:
        """Workers' worth: of places in the application or of CPU, whichever is more."""
        return max(self.occupied, self.cpu)

    @property
    def queue_s(self) -> float:
        """How long who comes now waits to be accepted (Little's law): what waits, by the rate that it is taken at."""
        if not self.queue:
            return 0.0
        return self.queue / self.rate if self.rate else inf


@dataclass
class History:
    """The load lately, and how shrinking has fared. The caller's state; `decide` reads it.

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
        """Note a sample, and forget those that no rule looks at any more."""
        short_s = short_window_of(window_s)
        samples, part = self.samples, self._part
        samples.append(sample)
        while samples[0].at < sample.at - 1.5 * short_s:
            samples.popleft()
        if part and sample.at - part[0].at >= short_s:
            # Too few samples, since none are taken while a dead worker is replaced, are no part of a window.
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
        """Forget the samples: they tell of another fleet, or of another time."""
        self.samples.clear()
        self.parts.clear()
        self._part.clear()

    def changed(self, before: int, after: int, now: float, window_s: float) -> None:
        """Note that the size has been changed, as `decide` said."""
        if after < before:
            # What was occupied does not depend on the size: the parts still count.
            self.samples.clear()
            self._part.clear()
            self.shrunk_at, self._regretted = now, False
            return
        # But a fleet that was full has not shown what it could not take.
        self.restart()
        if not self._regretted and now - self.shrunk_at <= _REGRET * self.patience * window_s:
            self.patience = min(2 * self.patience, _MOST_PATIENCE)
            self._regretted, self._regretted_at = True, now


def decide(history: History, workers: int, bounds: Bounds) -> Verdict:
    """Return how many workers are wanted. Pure: the same arguments, the same answer.

    Args:
        history: samples of a fleet that had its full size all the time.
        workers: how many there are: all that are wanted serve.
        bounds: see there.

    - It grows when more than `CROWDED` of the workers are busy for a short window, or somebody has to wait while more
      than `QUIET` are; by as many as makes that `AIM`, at most to twice as many.
    - It shrinks by one, once in a window, when for the last one the fleet without it would have been below `QUIET` on
      average, and never above `AIM`, nor anybody waiting, for as many windows as `History.patience` says.
    - Growing clears the history, so that what comes next is decided on what it has led to.
    """
    if not bounds.least <= workers <= bounds.most:
        wanted = min(max(workers, bounds.least), bounds.most)
        return Verdict(wanted, f"workers_min is {bounds.least}, workers_max {bounds.most}")
    samples = history.samples
    if not samples:
        return Verdict(workers)
    grown = _grow(samples, workers, bounds)
    if grown.workers != workers or grown.held:
        return grown
    return _shrink(history, workers, bounds)


def _grow(samples: Sequence[Sample], workers: int, bounds: Bounds) -> Verdict:
    window_s = short_window_of(bounds.window_s)
    interval_s = interval_of(bounds.window_s)
    recent = _covering(samples, window_s, interval_s)
    last = _covering(samples, window_s / 3, interval_s)
    if recent:
        load = Load.of(recent)
        if _drains(recent, workers * bounds.capacity):
            return Verdict(workers)
        if max(load.occupied - _ERRORS * load.error, load.cpu) > CROWDED * workers:
            wanted = _enough(load.occupied, load.cpu, bounds)
            why = f"busy {load.demand / workers:.0%} over {window_s:g} s{_queue_words(load)}"
            return _bounded(wanted, workers, load, bounds, why)
    if last:
        # Always somebody who waits: that is no matter of chance, and needs no long look.
        load = Load.of(last)
        if (
            min(sample.queue for sample in last) > 0
            and load.queue_s > QUEUE_S
            and load.demand >= QUIET * workers
            and not _drains(last, workers * bounds.capacity)
        ):
            # What waits now is a stock and not a stream: it must not make a fleet that shrinks at once.
            waiting = min(load.occupied + load.queue / bounds.capacity, 2 * AIM * load.occupied)
            wanted = max(_enough(waiting, load.cpu, bounds), workers + 1)
            why = f"busy {load.demand / workers:.0%} over {window_s / 3:.2g} s{_queue_words(load)}"
            return _bounded(wanted, workers, load, bounds, why)
    return Verdict(workers)


def _drains(samples: Sequence[Sample], places: int) -> bool:
    """Whether a queue that has piled up is being worked off, by workers who are busy with just that."""
    first, last = samples[0], samples[-1]
    gone = first.queue - last.queue
    return first.queue > places and gone > 0 and last.queue * (last.at - first.at) < gone * _DRAINED_S


def _enough(occupied: float, cpu: float, bounds: Bounds) -> int:
    """Return the size of a fleet that is busy to `AIM`; for the CPU's sake never more than there are CPUs."""
    for_cpu = ceil(cpu / AIM)
    if for_cpu > bounds.cpus:
        for_cpu = ceil(bounds.cpus)
    return max(ceil(occupied / AIM), for_cpu)


def _bounded(wanted: int, workers: int, load: Load, bounds: Bounds, why: str) -> Verdict:
    """Return the verdict on growing to ``wanted``."""
    if load.cpu >= CPU_FULL * bounds.cpus or wanted <= workers:
        return Verdict(workers, why, f"the workers use all they can of {bounds.cpus:g} CPUs")
    wanted = min(wanted, 2 * workers)
    if workers >= bounds.most:
        return Verdict(workers, why, f"workers_max is {bounds.most}")
    if bounds.fits is not None and workers >= bounds.fits:
        return Verdict(workers, why, "the memory limit leaves no room for another worker")
    fits = wanted if bounds.fits is None else bounds.fits
    return Verdict(min(wanted, bounds.most, fits), why)


def _shrink(history: History, workers: int, bounds: Bounds) -> Verdict:
    rest, window_s = workers - 1, bounds.window_s
    parts, wanted = list(history.parts), _parts_of(window_s)
    if rest < bounds.least or len(parts) < wanted * history.patience:
        return Verdict(workers)
    if history.samples[-1].at - history.shrunk_at < window_s:
        return Verdict(workers)
    last = parts[-wanted:]
    # By the means of parts: samples that follow each other closely see the same requests.
    occupied, error = _mean([part.occupied for part in last])
    if max(occupied + _ERRORS * error, _average([part.cpu for part in last])) >= QUIET * rest:
        return Verdict(workers)
    for part in parts:
        waited = part.queue_s > QUEUE_S and part.demand >= QUIET * rest
        if waited or part.demand > AIM * rest:
            return Verdict(workers)
    return Verdict(rest, f"busy {_average([part.demand for part in last]) / workers:.0%} over {window_s:g} s")


def _covering(samples: Sequence[Sample], window_s: float, interval_s: float) -> list[Sample]:
    """Return the samples of the last ``window_s`` seconds; none when they do not go back so far, or have holes."""
    begin = samples[-1].at - window_s - interval_s / 2
    if samples[0].at > begin + interval_s:
        return []
    found = [sample for sample in samples if sample.at >= begin]
    return found if len(found) >= window_s / interval_s / 2 else []


def _parts_of(window_s: float) -> int:
    return round(window_s / short_window_of(window_s))


def _average(values: Sequence[float]) -> float:
    # Not statistics.fmean: to import it would cost each start of the server 3 ms.
    return fsum(values) / len(values)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    mean = _average(values)
    return mean, sqrt(sum((value - mean) ** 2 for value in values)) / len(values)


def _queue_words(load: Load) -> str:
    if not load.queue:
        return ""
    waits = f", a wait of {load.queue_s:.1f} s" if load.queue_s < 60 else ""
    return f", queue {max(round(load.queue), 1)}{waits}"
