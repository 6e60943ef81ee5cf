"""Measuring the load of a fleet, and when the fleet is left alone."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsgiserv.boot import Report
from wsgiserv.config.settings import Settings
from wsgiserv.master.autoscale import Sample, interval_of
from wsgiserv.master.load import Gauge, Scaler, backlog_of, scaled
from wsgiserv.master.slots import capacity_of
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.process import cpu_time_of
from wsgiserv.scoreboard import CELL_BYTES, REQUESTS, Scoreboard, Slot

SCALING = Settings(workers=1, workers_min=1, workers_max=8, scale_window=10.0)


def worker(age: int, slot: Slot | None = None, generation: int = 1) -> WorkerHandle:
    """One that serves."""
    found = WorkerHandle(
        age=age, generation=generation, spawned_at=0.0, timeout=30, graceful_timeout=30, pid=1000 + age
    )
    found.ready_at = 1.0
    found.slot = slot
    return found


def begin(slot: Slot, cell: int, at: float = 5.0) -> None:
    slot.begin(cell, at, b"127.0.0.1", b"id", b"GET / HTTP/1.1")


# ---- the scoreboard ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 7, 1000])
def test_a_slot_counts_its_requests(cells: int) -> None:
    board = Scoreboard(3, cells)
    slot = board.slots[1]
    assert slot.load() == (0, 0.0)
    used = sorted({0, cells // 2, cells - 1})
    for number, cell in enumerate(used):
        begin(slot, cell, 10.0 - number)
    assert slot.load() == (len(used), 10.0 - len(used) + 1)
    assert board.slots[0].load() == board.slots[2].load() == (0, 0.0)
    slot.end(used[-1])
    assert slot.load()[0] == len(used) - 1
    slot.clear()
    assert slot.load() == (0, 0.0)


def test_cells_are_whole_words() -> None:
    """`Slot.load` strides over them as float64."""
    assert CELL_BYTES % 8 == 0


# ---- what the system tells -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tcp", "tcp6", "unix", "abstract"])
def test_backlog_of_a_real_listener(family: str, tmp_path: Path) -> None:
    kind = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6}.get(family, socket.AF_UNIX)
    address: Any = {
        "tcp": ("127.0.0.1", 0),
        "tcp6": ("::1", 0),
        "unix": str(tmp_path / "s"),
        "abstract": f"\0wsgiserv-test-{os.getpid()}",
    }[family]
    with socket.socket(kind) as listener:
        try:
            listener.bind(address)
        except OSError:
            pytest.skip("there is no such family here")
        listener.listen(8)
        assert backlog_of(listener) == 0
        clients = [socket.socket(kind) for _ in range(3)]
        for client in clients:
            client.connect(listener.getsockname())
        assert backlog_of(listener) == 3
        listener.accept()[0].close()
        assert backlog_of(listener) == 2
        for client in clients:
            client.close()


def test_backlog_of_what_does_not_listen() -> None:
    with socket.socket() as sock:
        assert backlog_of(sock) is None
    assert backlog_of(sock) is None
    one, two = socket.socketpair()
    with one, two:
        assert not backlog_of(one)


def test_cpu_time_of_a_process() -> None:
    before = cpu_time_of(os.getpid())
    assert before is not None
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    after = cpu_time_of(os.getpid())
    assert after is not None
    assert 0.02 <= after - before < 1.0
    assert cpu_time_of(2**22 + 1) is None


# ---- the gauge -----------------------------------------------------------------------------------------


def test_a_sample() -> None:
    board = Scoreboard(3, 4)
    fleet = [worker(age, board.slots[age]) for age in range(3)]
    fleet[2].term_at = 2.0
    seconds = {1000: 10.0, 1001: 20.0, 1002: 5.0}
    waiting = [3, None]
    listeners: Any = [SimpleNamespace(sock=0), SimpleNamespace(sock=1)]
    gauge = Gauge(lambda: listeners, seconds.get, lambda sock: waiting[sock])  # type: ignore[index]
    begin(board.slots[0], 1)
    begin(board.slots[1], 0)
    begin(board.slots[2], 0)
    assert gauge.sample(fleet, 4, 100.0) == Sample(100.0, 0.5, 0.0, 3, 0.0)
    board.slots[0].words[REQUESTS] += 4
    board.slots[2].words[REQUESTS] += 2
    seconds.update({1000: 10.5, 1001: 21.0, 1002: 9.0})
    # The rate counts every answer, the CPU those that serve.
    assert gauge.sample(fleet, 4, 102.0) == Sample(102.0, 0.5, 0.75, 3, 3.0)
    # CPU is read once a second, the rest each time.
    seconds[1000] = 11.5
    assert gauge.sample(fleet, 4, 102.5) == Sample(102.5, 0.5, 0.75, 3, 0.0)
    # A new worker's boot is not load; one that has gone is forgotten.
    board.slots[2].clear()
    fleet[2] = worker(7, board.slots[2])
    seconds[1007] = 50.0
    board.slots[2].words[REQUESTS] = 1
    assert gauge.sample(fleet, 4, 104.0) == Sample(104.0, 0.5, 0.75 - 0.25, 3, 1 / 1.5)


def test_more_than_a_worker_can_run_is_not_more_than_one_worker() -> None:
    board = Scoreboard(1, 8)
    for cell in range(6):
        begin(board.slots[0], cell)
    assert Gauge(list).sample([worker(1, board.slots[0])], 4, 1.0).occupied == 1.0


@pytest.mark.parametrize(
    ("settings", "capacity"),
    [
        (Settings(), 1),
        (Settings(worker_class="threads", threads=8), 8),
        (Settings(worker_class="gevent"), 1000),
        (Settings(worker_class="package.module:Class", worker_connections=50), 50),
    ],
)
def test_capacity(settings: Settings, capacity: int) -> None:
    assert capacity_of(settings) == capacity


def test_a_reload_keeps_the_size() -> None:
    assert scaled(Settings(workers=3), 5) == 3
    assert [scaled(SCALING, running) for running in (0, 1, 5, 20)] == [1, 1, 5, 8]


# ---- the scaler ----------------------------------------------------------------------------------------


class Bench:
    """A scaler with an invented clock, load and fleet."""

    def __init__(self, workers: int = 2, settings: Settings = SCALING) -> None:
        self.settings = settings
        self.board = Scoreboard(16, 4)
        self.fleet = [worker(age, self.board.slots[age]) for age in range(workers)]
        self.wanted = workers
        self.now = 1000.0
        self.load = Sample(0.0, 0.0, 0.0, 0.0, 10.0)
        self.samples = 0
        self.said: list[str] = []
        self.room: int | None = None
        self.measured = 0
        self.scaler = Scaler(
            self,  # type: ignore[arg-type]
            self.said.append,
            cpus=lambda: math.inf,
            memory_room=lambda: self.room,
            measure=self.measure,
        )

    def sample(self, workers: object, capacity: int, now: float) -> Sample:
        self.samples += 1
        return self.load._replace(at=now)

    def measure(self, pid: int) -> int:
        self.measured += 1
        return 100

    def run(self, seconds: float) -> list[int]:
        """Look as the master does; return the changes, which are obeyed at once but for the workers."""
        changes = []
        end = self.now + seconds
        while self.now < end:
            wanted, again = self.scaler.look(self.fleet, self.wanted, self.settings, self.now)
            if wanted is not None:
                changes.append(wanted)
                self.wanted = wanted
            self.now = max(again, self.now + 0.001) if again < end else end
        return changes

    def serve(self, count: int) -> None:
        self.fleet = [worker(age, self.board.slots[age]) for age in range(count)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    return Bench()


def crowd(bench: Bench) -> None:
    bench.load = Sample(0.0, 2.0, 0.0, 5.0, 10.0)


def test_without_bounds_nothing_is_read() -> None:
    bench = Bench(settings=Settings(workers=2))
    assert bench.scaler.look(bench.fleet, 2, bench.settings, 1.0) == (None, math.inf)
    assert bench.samples == 0


def test_it_looks_at_its_interval_only(bench: Bench) -> None:
    assert bench.scaler.look(bench.fleet, 2, bench.settings, 5.0) == (None, 5.0 + interval_of(10.0))
    assert bench.scaler.look(bench.fleet, 2, bench.settings, 5.01) == (None, 5.0 + interval_of(10.0))
    assert bench.samples == 1


def test_it_grows_and_says_why(bench: Bench) -> None:
    crowd(bench)
    assert bench.run(1.2) == [4]
    assert bench.scaler.explanation == "4 workers wanted, were 2: busy 100% over 0.33 s, queue 5, a wait of 0.5 s"


def test_it_waits_for_those_that_boot(bench: Bench) -> None:
    """Also when they fail: more of them would fail, too."""
    crowd(bench)
    assert bench.run(1.2) == [4]
    bench.fleet += [worker(2), worker(3)]
    bench.fleet[2].ready_at = bench.fleet[3].ready_at = None
    bench.fleet[3].failed = Report("failed")
    assert bench.run(60) == []
    bench.serve(4)
    bench.load = Sample(0.0, 4.0, 0.0, 5.0, 10.0)
    assert bench.run(0.1) == [], "a new history begins"
    assert bench.run(1.2) == [8]


def test_it_waits_for_one_generation(bench: Bench) -> None:
    crowd(bench)
    bench.fleet.append(worker(3, generation=2))
    assert bench.run(60) == []
    bench.fleet[0].term_at = bench.fleet[1].term_at = 1.0
    bench.fleet.append(worker(4, generation=2))
    assert bench.run(1.2) == [4]


def test_recycling_is_no_obstacle(bench: Bench) -> None:
    """With `max_requests` under load somebody is always being replaced."""
    bench.fleet[0].recycle("its time has come", 1.0)
    booting = worker(5)
    booting.ready_at = None
    bench.fleet.append(booting)
    crowd(bench)
    assert bench.run(1.2) == [4]


def test_it_shrinks_by_an_idle_one(bench: Bench) -> None:
    begin(bench.board.slots[0], 0, at=1.0)
    begin(bench.board.slots[1], 0, at=1.0)
    assert bench.run(30) == []
    bench.board.slots[1].end(0)
    assert bench.run(0.2) == [1]
    assert bench.scaler.explanation == "1 worker wanted, were 2: busy 0% over 10 s"


def test_workers_with_many_places_may_have_short_requests() -> None:
    bench = Bench(settings=replace(SCALING, worker_class="threads", threads=4))
    begin(bench.board.slots[0], 0, at=1.0)
    begin(bench.board.slots[1], 0, at=1.0)
    assert bench.run(30) == []
    for slot in bench.board.slots[:2]:
        slot.end(0)
        begin(slot, 1, at=bench.now)
    assert bench.run(0.2) == [1]


def test_it_retires_nobody_while_somebody_retires(bench: Bench) -> None:
    leaving = worker(6)
    leaving.term_at = 1.0
    bench.fleet.append(leaving)
    assert bench.run(30) == []
    leaving.recycle_at = 1.0
    assert bench.run(0.2) == [1]


def test_nobody_is_wanted_by_a_persons_wish(bench: Bench) -> None:
    bench.wanted = 0
    crowd(bench)
    assert bench.run(10) == []
    assert bench.samples == 0


@pytest.mark.parametrize(("wanted", "becomes"), [(1, 2), (9, 8)])
def test_bounds_hold_for_people_too(wanted: int, becomes: int) -> None:
    bench = Bench(wanted, settings=replace(SCALING, workers_min=2, workers=2))
    assert bench.run(0.1) == [becomes]


def test_memory_is_measured_only_to_grow(bench: Bench) -> None:
    bench.room = 150
    assert bench.run(5) == []
    assert bench.measured == 0
    crowd(bench)
    assert bench.run(1.2) == [3]
    bench.serve(3)
    bench.load = Sample(0.0, 3.0, 0.0, 5.0, 10.0)
    bench.room = 99
    assert bench.run(20) == []
    assert bench.measured <= 2 + 3 * 5
    assert len(bench.said) == 1, "it is said once"
    assert bench.said[0].startswith("more workers are needed, but not possible: busy 100% over")
    assert bench.said[0].endswith("the memory limit leaves no room for another worker")


def test_a_pause_begins_a_new_history(bench: Bench) -> None:
    """The master does not ask while a reload is under way."""
    assert bench.run(9.9) == []
    bench.now += 5
    assert bench.run(9.9) == []
    assert bench.run(0.5) == [1]
