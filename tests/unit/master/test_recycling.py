"""Who has had their time: age, memory and requests, and how they are replaced without anybody noticing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from signal import SIGTERM
from types import SimpleNamespace
from typing import Any

import pytest

from wsgiserv.boot import ReadinessReader, ReadinessWriter, Report, WorkerBoot
from wsgiserv.config.loader import load
from wsgiserv.master.policy import Fleet, Send, Spawn, Target, plan
from wsgiserv.master.recycling import Recycler
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import memory_of
from wsgiserv.scoreboard import Scoreboard
from wsgiserv.worker.sync import SyncWorker

MIB = 1 << 20
# How often memory is sampled, and how many samples in a row count (docs/settings.md, max_worker_memory).
SAMPLE_S = 5.0
SAMPLES = 3


def worker(age: int = 1, *, lifetime: float = 0.0, memory: int = 0, **known: Any) -> WorkerHandle:
    """One that serves since time 0, under these limits."""
    values: dict[str, Any] = {
        "generation": 1,
        "spawned_at": 0.0,
        "ready_at": 0.5,
        "timeout": 0.0,
        "graceful_timeout": 30.0,
        "pid": 100 + age,
        "settings": SimpleNamespace(max_worker_lifetime=lifetime, max_worker_memory=memory),
    }
    return WorkerHandle(age=age, **{**values, **known})


class Ward:
    """A recycler and its clock: who is to be replaced, when, and why; who is measured, and when."""

    def __init__(self) -> None:
        self.workers: list[WorkerHandle] = []
        self.sizes: dict[int, int] = {}
        self.recycled: dict[int, float] = {}
        self.reasons: list[str] = []
        self.measured: list[tuple[float, int]] = []
        self.now = 0.0
        self.recycler = Recycler(self._recycle, self._measure)

    def _recycle(self, worker: WorkerHandle, reason: str) -> None:
        assert worker.age not in self.recycled, "twice"
        worker.recycle(reason, self.now)
        self.recycled[worker.age] = self.now
        self.reasons.append(reason)

    def _measure(self, pid: int) -> int:
        self.measured.append((self.now, pid))
        return self.sizes.get(pid, 0)

    def look(self, at: float) -> float:
        self.now = at
        return self.recycler.look(self.workers, at)

    def run(self, until: float, step: float = inf) -> None:
        """Look as the master's loop does: when it was told to, and at least every ``step`` seconds."""
        again = self.look(self.now)
        while self.now < until:
            assert again > self.now, "the master spins"
            again = self.look(min(again, self.now + step, until))


@pytest.fixture
def ward() -> Ward:
    return Ward()


# ---- age -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [inf, 0.25], ids=["asleep", "awake"])
def test_an_age_up_to_a_tenth_earlier(ward: Ward, step: float) -> None:
    """However often the master looks: chance is asked once for each worker, or all would go at 90."""
    ward.workers = [worker(age, lifetime=100.0) for age in range(1, 201)]
    ward.run(120.0, step)
    assert sorted(ward.recycled) == list(range(1, 201))
    times = sorted(ward.recycled.values())
    late = step if step < 1 else 0.0
    assert times[0] >= 90.0
    assert times[-1] <= 100.0 + late
    assert 94.0 < sum(times) / len(times) < 96.0 + late
    assert len({round(time) for time in times}) > 5, "all of them at once"
    assert "max_worker_lifetime" in ward.reasons[0]
    assert ward.look(130.0) == inf


def test_age_is_from_the_fork_of_each(ward: Ward) -> None:
    ward.workers = [worker(1, lifetime=100.0), worker(2, lifetime=100.0, spawned_at=500.0, ready_at=501.0)]
    ward.run(590.0)
    assert list(ward.recycled) == [1]
    ward.run(600.0)
    assert list(ward.recycled) == [1, 2]


def test_without_limits_nobody_is_looked_at(ward: Ward) -> None:
    ward.workers = [worker(1), worker(2)]
    assert ward.look(1e9) == inf
    assert ward.measured == []
    ward.workers = []
    assert ward.look(2e9) == inf


@pytest.mark.parametrize(
    "known",
    [{"ready_at": None}, {"term_at": 1.0}, {"retiring_at": 1.0}, {"recycle_at": 1.0}, {"abort_at": 1.0}],
    ids=lambda known: next(iter(known)),
)
def test_who_boots_or_leaves_anyway_is_left_alone(ward: Ward, known: dict[str, Any]) -> None:
    ward.workers = [worker(1, lifetime=10.0, memory=1, **known)]
    ward.sizes = {101: 2}
    for at in range(100, 200):
        ward.look(float(at))
    assert ward.recycled == {}


def test_each_generation_has_its_own_limits(ward: Ward) -> None:
    """During a reload: the old configuration had none."""
    ward.workers = [worker(1), worker(2, lifetime=10.0), worker(3, memory=MIB)]
    ward.sizes = {101: 9 * MIB, 102: 9 * MIB, 103: 9 * MIB}
    ward.run(60.0)
    assert sorted(ward.recycled) == [2, 3]


# ---- memory ----------------------------------------------------------------------------------------------


def test_memory_above_the_limit_three_times_in_a_row(ward: Ward) -> None:
    ward.workers = [worker(1, memory=100 * MIB), worker(2, memory=100 * MIB)]
    ward.sizes = {101: 100 * MIB + 1, 102: 100 * MIB}  # above, and at it
    ward.run(60.0)
    assert list(ward.recycled) == [1]
    assert ward.recycled[1] == (SAMPLES - 1) * SAMPLE_S
    assert "max_worker_memory" in ward.reasons[0]
    assert "100 MiB" in ward.reasons[0]


@pytest.mark.parametrize("peak", [1, 2])
def test_a_peak_is_no_leak(ward: Ward, peak: int) -> None:
    """One or two samples above and one below, again and again: it is not added up."""
    ward.workers = [worker(1, memory=100 * MIB)]
    for sample in range(40):
        ward.sizes[101] = (200 if sample % (peak + 1) < peak else 50) * MIB
        ward.look(sample * SAMPLE_S)
    assert len(ward.measured) == 40
    assert ward.recycled == {}
    ward.sizes[101] = 200 * MIB
    for sample in range(40, 43):
        ward.look(sample * SAMPLE_S)
    assert list(ward.recycled) == [1]


def test_samples_are_so_far_apart_however_often_the_master_wakes(ward: Ward) -> None:
    """Under load it wakes hundreds of times a second: that must not make a peak of 10 ms three samples."""
    ward.workers = [worker(1, memory=100 * MIB), worker(2, memory=100 * MIB, lifetime=1000.0)]
    ward.sizes = {101: 200 * MIB}
    ward.run(9.9, step=0.01)
    assert ward.recycled == {}
    assert [at for at, pid in ward.measured if pid == 101] == pytest.approx([0.0, 5.0], abs=0.02)
    ward.run(10.1, step=0.01)
    assert list(ward.recycled) == [1]


def test_a_successor_begins_anew(ward: Ward) -> None:
    """Also when the system gives it the process id of the one before."""
    ward.workers = [worker(1, memory=100 * MIB)]
    ward.sizes = {101: 200 * MIB}
    ward.look(0.0)
    ward.look(5.0)
    ward.workers = [worker(2, memory=100 * MIB, pid=101)]
    ward.look(10.0)
    ward.look(15.0)
    assert ward.recycled == {}
    ward.look(20.0)
    assert list(ward.recycled) == [2]


def test_what_cannot_be_measured_stays(ward: Ward) -> None:
    ward.workers = [worker(1, memory=1)]
    ward.sizes = {101: 0}  # as of a process that is gone
    ward.run(60.0)
    assert ward.recycled == {}


LARGE = """
import os, sys
held = b"x" * (96 << 20)
print("alone", flush=True)
sys.stdin.readline()
if (pid := os.fork()) == 0:
    sys.stdin.readline()
    os._exit(0)
print(pid, flush=True)
os.waitpid(pid, 0)
"""


def test_the_memory_of_a_process() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LARGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"alone\n"
        assert 96 * MIB < memory_of(process.pid) < 160 * MIB
        process.stdin.write(b"\n")
        child = int(process.stdout.readline())
        # What is shared after a fork counts in part: it is no leak of each worker.
        assert 40 * MIB < memory_of(process.pid) < 90 * MIB
        assert 40 * MIB < memory_of(child) < 90 * MIB
        process.stdin.close()
    assert memory_of(process.pid) == 0


# ---- how they are replaced -------------------------------------------------------------------------------

BOOT_S = 2.0
LEAVING_S = 7.0


@pytest.mark.parametrize(("count", "unavailable"), [(1, 1), (4, 1), (4, 2), (5, 3), (2, 9)])
def test_all_are_too_large_at_once_and_somebody_always_serves(count: int, unavailable: int) -> None:
    """A leak grows in all workers alike. Never are more of them on their way out, or fewer serve, than promised."""
    ward = Ward()
    fleet = Fleet(workers=[worker(age, memory=MIB) for age in range(1, count + 1)], ever_ready=True, proven={1})
    ward.workers = fleet.workers
    ward.sizes = {each.pid: 2 * MIB for each in fleet.workers}
    target = Target(((1, count),), unavailable=unavailable)
    most_leaving, next_age, now = 0, count + 1, 0.0
    while now < 60.0 + count * (BOOT_S + LEAVING_S):
        for each in list(fleet.workers):
            if each.ready_at is None and now >= each.spawned_at + BOOT_S:
                fleet.reported(each, Report("ready"), now, 1.0)
            elif each.term_at is not None and now >= each.term_at + LEAVING_S:
                assert not fleet.died(each, "exited with status 0", now, 1.0)
        ward.look(now)
        for action in plan(fleet, target, now):
            if isinstance(action, Spawn):
                fleet.workers.append(worker(next_age, memory=MIB, spawned_at=now, ready_at=None))
                next_age += 1
            elif isinstance(action, Send):
                assert action.signal == SIGTERM
                action.worker.term_at = now
        leaving = sum(each.leaving for each in fleet.workers)
        most_leaving = max(most_leaving, leaving)
        assert leaving <= unavailable
        assert sum(each.serving for each in fleet.workers) >= count
        assert sum(not each.leaving for each in fleet.workers) <= count + 1  # reload_surge
        now += 0.5
    assert most_leaving == min(count, unavailable)
    assert [each.age for each in fleet.workers] == list(range(count + 1, 2 * count + 1))


# ---- requests --------------------------------------------------------------------------------------------


class Employed:
    """A sync worker that serves nobody, and what it has reported."""

    def __init__(self, directory: Path, *flags: str) -> None:
        fds = os.pipe()
        self.reader = ReadinessReader(fds[0])
        self._writer = fds[1]
        self.worker = SyncWorker(
            WorkerBoot(
                settings=load([*flags, "hello:app"], {}, str(directory)).settings,
                listeners=[],
                slot=Scoreboard(1, 1).slots[0],
                ready=ReadinessWriter(fds[1]),
                lifeline=-1,
                age=1,
                generation=1,
                master_pid=os.getpid(),
                log=logging.getLogger("test.recycling"),
                server=SimpleNamespace(app=None),
                handle=None,
            )
        )
        self.worker.context = SimpleNamespace(  # type: ignore[assignment]
            answered=0,
            access=None,
            slot=self.worker.boot.slot,
            draining=False,
            gateway=SimpleNamespace(renew_date=lambda now: None),
            upgrades=(),
        )

    def after(self, answered: int) -> list[Report]:
        """Return what it reports when it has answered so many requests."""
        self.worker.context.answered = answered
        self.worker.tick(1.0 + answered)
        return self.reader.read_reports()[0]

    def lasts(self) -> int:
        """Return how many requests it takes before it asks to be replaced."""
        return next(count for count in range(1, 10_000) if self.after(count))

    def close(self) -> None:
        self.reader.close()
        os.close(self._writer)
        self.worker.event_loop.close()
        self.worker._signals.close()


@pytest.fixture
def employ(tmp_path: Path) -> Iterator[Callable[..., Employed]]:
    made: list[Employed] = []

    def employ(*flags: str) -> Employed:
        made.append(Employed(tmp_path, *flags))
        return made[-1]

    yield employ
    for each in made:
        each.close()


def test_max_requests_asks_once_and_serves_on(employ: Callable[..., Employed]) -> None:
    employed = employ("--max-requests", "50")
    for answered in range(50):
        assert employed.after(answered) == []
    (report,) = employed.after(50)
    assert report.state == "recycle"
    assert "max_requests" in report.reason
    assert employed.worker.alive
    # Its successor may take long to boot.
    assert [employed.after(answered) for answered in range(51, 500)] == [[]] * 449
    # Several may be answered between two looks.
    (report,) = employ("--max-requests", "50").after(64)
    assert report.state == "recycle"


def test_the_jitter_spreads_them(employ: Callable[..., Employed]) -> None:
    counts = [employ("--max-requests", "20", "--max-requests-jitter", "10").lasts() for _ in range(40)]
    assert set(counts) <= set(range(20, 31))
    assert len(set(counts)) > 4
    assert {employ("--max-requests", "20").lasts() for _ in range(5)} == {20}


def test_jitter_without_a_limit_is_no_limit(employ: Callable[..., Employed]) -> None:
    for flags in ((), ("--max-requests", "0", "--max-requests-jitter", "5")):
        employed = employ(*flags)
        assert [employed.after(answered) for answered in range(1, 300)] == [[]] * 299
