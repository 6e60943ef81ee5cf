"""Workers that always die: how often they are tried again, and what does not suffer from it (issue 5, part 8)."""

from __future__ import annotations

from signal import SIGABRT
from typing import Any

import pytest

from wsgiserv.boot import Report
from wsgiserv.master.policy import Fleet, GiveUp, Send, Spawn, Target, Wait, plan
from wsgiserv.master.worker_handle import WorkerHandle

NOW = 1000.0


def worker(age: int, generation: int = 1, **known: Any) -> WorkerHandle:
    values = {"spawned_at": NOW, "ready_at": NOW, "heartbeat": NOW, "timeout": 0.0, "boot_timeout": 30.0}
    return WorkerHandle(age=age, generation=generation, graceful_timeout=20.0, pid=100 + age, **{**values, **known})


def spawns(fleet: Fleet, target: Target, now: float) -> list[int]:
    return [action.generation for action in plan(fleet, target, now) if isinstance(action, Spawn)]


def wake(fleet: Fleet, target: Target, now: float) -> float:
    last = plan(fleet, target, now)[-1]
    assert isinstance(last, Wait)
    return last.until


def deaths_in_ten_minutes(fleet: Fleet, wanted: int, jitter: float) -> list[float]:
    """Let every worker be ready at once and die 0.1 s later; return when they died."""
    target, now, age, deaths = Target(((1, wanted),)), NOW, 100, []
    while now < NOW + 600:
        for _ in spawns(fleet, target, now):
            fleet.workers.append(worker(age, spawned_at=now, ready_at=now))
            age += 1
        young = [each for each in fleet.workers if each.age >= 100]
        now = now + 0.1 if young else wake(fleet, target, now)
        for each in young:
            fleet.died(each, "was killed by SIGSEGV", now, jitter)
            deaths.append(now)
    return deaths


@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_a_crash_loop_costs_little_for_ever_and_the_survivor_stays(wanted: int) -> None:
    """At once at first, then every two seconds at most."""
    survivor = worker(1)
    fleet = Fleet([survivor], ever_ready=True, proven={1})
    deaths = deaths_in_ten_minutes(fleet, wanted + 1, 1.0)
    assert sum(death < NOW + 1 for death in deaths) >= wanted
    minutes = [sum(NOW + 60 * n <= death < NOW + 60 * n + 60 for death in deaths) for n in range(1, 10)]
    assert max(minutes) <= 30
    assert min(minutes) >= 1  # it goes on trying
    assert fleet.workers[0] is survivor


def test_workers_that_are_killed_from_outside_are_replaced_at_once() -> None:
    """However often: that is not their code's fault."""
    fleet, target, now = Fleet([worker(1)], ever_ready=True, proven={1}), Target(((1, 4),)), NOW
    for age in range(2, 200):
        for _ in spawns(fleet, target, now):
            fleet.workers.append(worker(age, spawned_at=now, ready_at=now))
        now += 0.7
        assert fleet.died(fleet.workers[-1], "was killed by SIGKILL", now, 1.0, from_outside=True)
        assert spawns(fleet, target, now)


def test_workers_that_are_killed_from_outside_as_soon_as_they_are_there_cost_little() -> None:
    fleet, target, now = Fleet([worker(1)], ever_ready=True, proven={1}), Target(((1, 2),)), NOW
    deaths = 0
    while now < NOW + 600:
        if spawns(fleet, target, now):
            fleet.workers.append(worker(2, spawned_at=now, ready_at=now))
            now += 0.1
            fleet.died(fleet.workers[-1], "was killed by SIGKILL", now, 1.0, from_outside=True)
            deaths += 1
        else:
            now = wake(fleet, target, now)
    assert deaths < 300


def test_jitter_scales_the_pause_of_a_crash_loop_too() -> None:
    fleets = []
    for jitter in (0.75, 1.25):
        fleet = Fleet([worker(1)], ever_ready=True, proven={1})
        while 1 not in fleet.crashes or fleet.crashes[1].not_before < NOW:
            fleet.workers.append(worker(2, ready_at=NOW))
            fleet.died(fleet.workers[-1], "was killed by SIGSEGV", NOW + 0.1, jitter)
        fleets.append(fleet.crashes[1].not_before - NOW - 0.1)
    assert fleets == pytest.approx([0.375, 0.625])


def test_a_new_generation_that_does_not_boot_slows_the_old_one_down_in_nothing() -> None:
    old = Fleet([worker(1), worker(2)], ever_ready=True, proven={1})
    old.workers.append(worker(3, 2, ready_at=None))
    old.died(old.workers[-1], "was killed by SIGSEGV", NOW + 1, 1.0)  # the first of its tries
    old.died(old.workers[1], "was killed by SIGKILL", NOW + 1, 1.0)
    assert spawns(old, Target(((1, 2), (2, 2))), NOW + 1) == [1]


def test_a_worker_that_has_served_for_long_is_no_crash_loop() -> None:
    old = Fleet([worker(age, ready_at=NOW - 100) for age in range(20)], ever_ready=True, proven={1})
    for each in list(old.workers):
        assert old.died(each, "was killed by SIGKILL", NOW + 1, 1.0)
    assert spawns(old, Target(((1, 20),)), NOW + 1) == [1] * 20


def test_a_first_start_in_which_every_boot_hangs_ends_with_status_3() -> None:
    """boot_timeout, three times over."""
    fleet, target, now = Fleet(), Target(((1, 2),)), NOW
    age = 0
    for _ in range(100):
        actions = plan(fleet, target, now)
        if isinstance(actions[0], GiveUp):
            break
        for action in actions:
            if isinstance(action, Spawn):
                age += 1
                fleet.workers.append(worker(age, spawned_at=now, ready_at=None))
                fleet.reported(fleet.workers[-1], Report("loading"), now, 1.0)
            elif isinstance(action, Send):
                assert "boot_timeout" in action.reason
                action.worker.abort_at = now
                fleet.died(action.worker, "was killed by SIGABRT", now, 1.0)
        last = plan(fleet, target, now)[-1]
        now = max(now, last.until) if isinstance(last, Wait) else now
    assert isinstance(actions[0], GiveUp)
    assert actions[0].status == 3
    assert 90 <= now - NOW <= 95


def test_a_worker_that_hangs_at_the_first_start_is_not_replaced_before_its_end() -> None:
    """Rounds, not tries times workers: all of the first, then one at a time, however long SIGABRT takes to end them."""
    fleet, target, now = Fleet(), Target(((1, 4),)), NOW
    rounds: list[int] = []
    for _ in range(200):
        actions = plan(fleet, target, now)
        if isinstance(actions[0], GiveUp):
            break
        if born := [action for action in actions if isinstance(action, Spawn)]:
            rounds.append(len(born))
            fleet.workers += [worker(len(rounds), spawned_at=now, ready_at=None) for _ in born]
        for action in actions:
            if isinstance(action, Send) and action.signal == SIGABRT:
                action.worker.abort_at = now
            elif isinstance(action, Send):  # a second later
                fleet.died(action.worker, "was killed by SIGKILL", now, 1.0)
        last = plan(fleet, target, now)[-1]
        now = max(now, last.until) if isinstance(last, Wait) else now
    assert isinstance(actions[0], GiveUp)
    assert rounds == [4, 1, 1]


def test_a_crash_loop_is_news_once() -> None:
    fleet = Fleet()
    news = []
    for number in range(30):
        dead = worker(number, ready_at=NOW + number / 10, spawned_at=NOW + number / 10)
        fleet.workers.append(dead)
        fleet.died(dead, "exited with status 7", NOW + number / 10 + 0.05, 1.0)
        if (loop := fleet.untold_loop(1)) is not None:
            news.append((number, loop.pause_s))
    assert len(news) == 1
    assert news[0][1] == 0.5
    # And again, after it had been calm.
    for number in range(30):
        dead = worker(number, ready_at=NOW + 200 + number / 10, spawned_at=NOW + 200)
        fleet.workers.append(dead)
        fleet.died(dead, "exited with status 7", NOW + 200 + number / 10 + 0.05, 1.0)
    assert fleet.untold_loop(1) is not None
    assert fleet.untold_loop(1) is None
