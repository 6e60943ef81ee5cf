"""Simulate autoscaling against fixed fleets: a step, a spike and a day, with the server's own rules.

    python -m bench autoscale [--seed 1] [--chart | --constant]

Requests come by chance (Poisson) at the rate of the trace, take an exponentially distributed time of 0.1 s on average,
and wait in one queue for a sync worker. A new worker takes 1 to 3 s to boot, a retired one finishes first. The master's
own object decides (`wsgiserv.master.load.Scaler`), on an invented clock. The same requests go through fixed fleets of
``workers_min``, of the autoscaled fleet's mean, and of the size for the peak (busy to 75 %). --chart also draws load
and workers over time; --constant counts the changes at constant rates instead.

Takes some 3 s. Exits 1 when the autoscaled fleet costs more than the one for the peak, or its median wait (p50) is
longer than that of the least. Not modelled: full CPUs, the price of a boot for the others, kept connections.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from bench.load import percentile
from bench.table import Table, options_of
from wsgiserv.config.settings import Settings
from wsgiserv.master.autoscale import Sample
from wsgiserv.master.load import Scaler
from wsgiserv.master.worker_handle import WorkerHandle

SERVICE_S = 0.1
BOOT_S = (1.0, 3.0)
CPU_SHARE = 0.3
LEAST, MOST = 1, 16
BLOCKS = " ▁▂▃▄▅▆▇█"


class Trace(NamedTuple):
    """A load: requests per second at each moment, ``peak`` at most, for some seconds."""

    name: str
    seconds: float
    rate: Callable[[float], float]
    peak: float
    service_s: float = SERVICE_S


TRACES = [
    Trace("step: 10/s, for 10 of 30 min 60/s", 1800, lambda at: 60 if 300 <= at < 900 else 10, 60),
    Trace("spike: 10/s, for 30 s of 20 min 90/s", 1200, lambda at: 90 if 300 <= at < 330 else 10, 90),
    Trace("day in an hour: 3/s to 70/s", 3600, lambda at: 36.5 - 33.5 * math.cos(at / 3600 * math.tau), 70),
]


class Request(NamedTuple):
    """A request: the moment it comes, and the seconds it takes."""

    at: float
    takes_s: float


def requests_of(trace: Trace, seed: int) -> list[Request]:
    """Return the requests of a trace, by thinning a Poisson process of its peak's rate."""
    chance = random.Random(f"{seed} {trace.name}")
    found = []
    at = chance.expovariate(trace.peak)
    while at < trace.seconds:
        if chance.random() * trace.peak < trace.rate(at):
            found.append(Request(at, chance.expovariate(1 / trace.service_s)))
        at += chance.expovariate(trace.peak)
    return found


class Row:
    """A worker's row of the scoreboard, as far as the scaler reads it."""

    def __init__(self) -> None:
        self.began_at = 0.0

    def load(self) -> tuple[int, float]:
        return int(self.began_at > 0), self.began_at


class Result(NamedTuple):
    """The history of a fleet: the workers at each second, the wait of each request (sorted), the cost, the changes."""

    workers: list[int]
    waits: list[float]
    worker_s: float
    changes: int


class Fleet:
    """Sync workers and their queue on an invented clock; it is its own gauge. ``settings`` without bounds: fixed."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self._settings = settings
        self._chance = random.Random(seed)
        self._scaler = Scaler(
            self,  # type: ignore[arg-type]
            lambda line: None,
            cpus=lambda: math.inf,
            memory_room=lambda: None,
        )
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._workers: list[WorkerHandle] = []
        self._idle: list[WorkerHandle] = []
        self._queue: deque[Request] = deque()
        self._now = 0.0
        self._answered = 0
        self._answered_before = (0.0, 0)
        self.wanted = 0
        self.waits: list[float] = []
        self.worker_s = 0.0
        self.changes = 0
        self._want(settings.workers)
        for worker in self._workers:
            self._ready(worker)
        self._events.clear()

    def _at(self, when: float, what: Callable[..., None], *about: Any) -> None:
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, what, about))

    def run(self, requests: list[Request], seconds: float) -> Result:
        """Serve the requests; return what came of it."""
        arrivals: Iterator[Request] = iter(requests)
        following = next(arrivals, None)
        history: list[int] = []
        self._at(0.0, self._look)
        for second in range(int(seconds)):
            self._at(float(second), lambda: history.append(sum(w.serving for w in self._workers)))
        while self._events or following:
            if following and (not self._events or following.at <= self._events[0][0]):
                self._now = following.at
                self._queue.append(following)
                self._serve()
                following = next(arrivals, None)
                continue
            when, _, what, about = heapq.heappop(self._events)
            if when > seconds and not self._queue and what == self._look:
                break
            self._now = when
            what(*about)
        for worker in self._workers:
            self.worker_s += seconds - worker.spawned_at
        return Result(history, sorted(self.waits), self.worker_s, self.changes)

    def _serve(self) -> None:
        while self._queue and self._idle:
            worker, request = self._idle.pop(), self._queue.popleft()
            self.waits.append(self._now - request.at)
            worker.slot.began_at = self._now or 1e-9  # type: ignore[union-attr]
            self._at(self._now + request.takes_s, self._done, worker)

    def _done(self, worker: WorkerHandle) -> None:
        self._answered += 1
        worker.slot.began_at = 0.0  # type: ignore[union-attr]
        if worker.leaving:
            self._gone(worker)
        else:
            self._idle.append(worker)
            self._serve()

    def _ready(self, worker: WorkerHandle) -> None:
        worker.ready_at = self._now
        self._idle.append(worker)
        self._serve()

    def _gone(self, worker: WorkerHandle) -> None:
        self._workers.remove(worker)
        self.worker_s += self._now - worker.spawned_at

    def _want(self, wanted: int) -> None:
        for _ in range(wanted - self.wanted):
            self._serial += 1
            worker = WorkerHandle(age=self._serial, generation=1, spawned_at=self._now, timeout=30, graceful_timeout=30)
            worker.slot = Row()  # type: ignore[assignment]
            self._workers.append(worker)
            self._at(self._now + self._chance.uniform(*BOOT_S), self._ready, worker)
        for _ in range(self.wanted - wanted):
            worker = self._idle.pop(0) if self._idle else next(w for w in self._workers if w.serving)
            worker.term_at = self._now
            if not worker.slot.began_at:  # type: ignore[union-attr]
                self._gone(worker)
        self.wanted = wanted

    def _look(self) -> None:
        wanted, again = self._scaler.look(self._workers, self.wanted, self._settings, self._now)
        if wanted is not None:
            self.changes += 1
            self._want(wanted)
        if again < math.inf:
            self._at(max(again, self._now + 0.001), self._look)

    def sample(self, workers: list[WorkerHandle], capacity: int, now: float) -> Sample:
        """Return the load, as `wsgiserv.master.load.Gauge` does."""
        busy = sum(worker.slot.began_at > 0 for worker in workers if worker.serving)  # type: ignore[union-attr]
        then, answered = self._answered_before
        rate = (self._answered - answered) / (now - then) if now > then else 0.0
        self._answered_before = (now, self._answered)
        return Sample(now, busy, busy * CPU_SHARE, len(self._queue), rate)


def chart(values: list[float], columns: int = 90) -> str:
    """Return the values as one line of blocks, the highest full."""
    step = max(1, len(values) // columns)
    means = [sum(values[at : at + step]) / step for at in range(0, len(values) - step + 1, step)]
    most = max(means) or 1
    return "".join(BLOCKS[max(1, round(mean / most * 8))] for mean in means)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _range(counts: list[int]) -> str:
    return f"{min(counts)} / {sum(counts) / len(counts):.1f} / {max(counts)}"


def count_changes(scaling: Settings, seed: int) -> None:
    """Print how often the fleet changes in an hour though the rate never does: chance alone."""
    table = Table("requests of", "busy workers", "changes in an hour", "workers min / mean / max")
    for service_s in (0.1, 1.0):
        for busy in (0.3, 1.0, 3.0, 6.0):
            rate = busy / service_s
            trace = Trace(f"{rate}", 4200, lambda at, rate=rate: rate, rate, service_s)
            counts = Fleet(scaling, seed).run(requests_of(trace, seed), trace.seconds).workers[600:]
            changes = sum(one != two for one, two in pairwise(counts))
            table.row(_time(service_s), f"{busy}", changes, _range(counts))


def main() -> int:
    """Simulate; return 1 when the autoscaled fleet breaks a promise of the rules."""
    options = options_of(__doc__, seed=1, chart=False, constant=False)
    scaling = Settings(workers=LEAST, workers_min=LEAST, workers_max=MOST)
    if options.constant:
        count_changes(scaling, options.seed)
        return 0
    failed = False
    charts = []
    table = Table(
        *("load, fleet", "workers min / mean / max", "changes", "queue p50", "p99", "longest", "worker-seconds")
    )
    for trace in TRACES:
        requests = requests_of(trace, options.seed)
        auto = Fleet(scaling, options.seed).run(requests, trace.seconds)
        fleets = {f"{LEAST} to {MOST}": auto}
        mean, peak = (math.ceil(sum(auto.workers) / len(auto.workers)), math.ceil(trace.peak * SERVICE_S / 0.75))
        for count, label in ((LEAST, "the least"), (mean, "the mean"), (peak, "for the peak")):
            fixed = Fleet(Settings(workers=count), options.seed).run(requests, trace.seconds)
            fleets[f"fixed, {label}: {count}"] = fixed
            failed |= count == peak and auto.worker_s > fixed.worker_s
            failed |= count == LEAST and percentile(auto.waits, 0.5) > percentile(fixed.waits, 0.5)
        for name, fleet in fleets.items():
            waits = (percentile(fleet.waits, 0.5), percentile(fleet.waits, 0.99), fleet.waits[-1])
            costs = f"{fleet.worker_s:,.0f}"
            table.row(f"{trace.name}, {name}", _range(fleet.workers), fleet.changes or "-", *map(_time, waits), costs)
        charts.append(f"{trace.name}\n    load    {chart([trace.rate(at) for at in range(int(trace.seconds))])}")
        charts.append(f"    workers {chart([float(count) for count in auto.workers])}")
    if options.chart:
        print("", *charts, sep="\n")
    return int(failed)
