"""`plan` as a pure function: a table of situations, each with an invented clock and no process."""

from __future__ import annotations

from math import inf
from signal import SIGABRT, SIGKILL, SIGQUIT, SIGTERM, Signals
from typing import Any

import pytest

from wsgiserv.boot import Report
from wsgiserv.master.policy import Abandon, Action, Fleet, GiveUp, Promote, Send, Spawn, Stopped, Target, Wait, plan
from wsgiserv.master.worker_handle import WorkerHandle

NOW = 1000.0


def worker(age: int = 1, generation: int = 1, **known: Any) -> WorkerHandle:
    """A worker that is ready and lively unless ``known`` says otherwise."""
    values: dict[str, Any] = {
        "spawned_at": NOW - 100,
        "ready_at": NOW - 99,
        "heartbeat": NOW - 0.5,
        "timeout": 30.0,
        "graceful_timeout": 20.0,
        "pid": 100 + age,
    }
    return WorkerHandle(age=age, generation=generation, **{**values, **known})


def booting(age: int = 1, generation: int = 1, **known: Any) -> WorkerHandle:
    return worker(age, generation, **{"spawned_at": NOW - 1, "ready_at": None, "heartbeat": 0.0, **known})


def fleet(*workers: WorkerHandle, ever_ready: bool = True, proven: set[int] | None = None) -> Fleet:
    known = proven if proven is not None else {1} if ever_ready else set()
    return Fleet(workers=list(workers), ever_ready=ever_ready, proven=known)


def acts(of: Fleet, target: Target, now: float = NOW) -> list[Action]:
    """The actions but the final Wait."""
    return [action for action in plan(of, target, now) if not isinstance(action, Wait)]


def wake(of: Fleet, target: Target, now: float = NOW) -> float:
    last = plan(of, target, now)[-1]
    assert isinstance(last, Wait)
    return last.until


def signals(of: Fleet, target: Target, now: float = NOW) -> list[tuple[int, Signals]]:
    return [(action.worker.age, action.signal) for action in acts(of, target, now) if isinstance(action, Send)]


def want(*counts: int, stop: Any = "", **more: Any) -> Target:
    """Generations 1, 2 and so on with so many workers each."""
    return Target(tuple(enumerate(counts, 1)), stop, **more)


# ---- numbers -------------------------------------------------------------------------------------------


def test_an_empty_fleet_is_filled_at_once() -> None:
    assert acts(fleet(ever_ready=False), want(3)) == [Spawn(1)] * 3


def test_a_full_fleet_is_left_alone_until_a_heartbeat_could_be_overdue() -> None:
    full = fleet(worker(1), worker(2, heartbeat=NOW - 10))
    assert acts(full, want(2)) == []
    assert wake(full, want(2)) == NOW + 20.5


def test_a_fleet_without_timeouts_waits_for_events_only() -> None:
    assert wake(fleet(worker(timeout=0.0)), want(1)) == inf


def test_a_missing_worker_is_replaced_at_once() -> None:
    assert acts(fleet(worker(1)), want(2)) == [Spawn(1)]


def test_of_too_many_the_oldest_retires_but_those_that_boot_leave_first() -> None:
    assert signals(fleet(worker(1), worker(2), worker(3)), want(2)) == [(1, SIGTERM)]
    assert signals(fleet(worker(1), worker(2), booting(3)), want(2)) == [(3, SIGTERM)]


def test_one_that_retires_by_itself_gets_its_successor_at_once() -> None:
    assert acts(fleet(worker(1, retiring_at=NOW - 1), worker(2)), want(2)) == [Spawn(1)]


def test_one_that_is_being_aborted_gets_its_successor_at_once() -> None:
    assert acts(fleet(worker(1, abort_at=NOW - 0.5)), want(1)) == [Spawn(1)]


def test_workers_that_retire_slowly_do_not_pile_up() -> None:
    slow = [worker(age, retiring_at=NOW - 1) for age in range(1, 8)]
    assert acts(fleet(*slow, worker(8)), want(2)) == []
    # but somebody has to serve
    assert acts(fleet(*slow, worker(8, retiring_at=NOW)), want(2)) == [Spawn(1)]


def test_nothing_wanted_retires_all() -> None:
    assert signals(fleet(worker(1), booting(2)), want(0)) == [(1, SIGTERM), (2, SIGTERM)]


def test_one_that_is_told_to_leave_while_it_boots_has_a_second_unless_it_has_become_ready_meanwhile() -> None:
    told = booting(1, term_at=NOW - 1)
    assert signals(fleet(told), want(0)) == [(1, SIGKILL)]
    told.ready_at = NOW - 0.9  # its word was on the way: it may have requests to finish
    assert signals(fleet(told), want(0)) == []


# ---- time limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("silent", "expected"),
    [
        # timeout and half a second, since heartbeats come once a second
        (worker(heartbeat=NOW - 30.4), []),
        (worker(heartbeat=NOW - 30.5), [(1, SIGABRT)]),
        (worker(heartbeat=NOW - 1.4, timeout=1.0), []),
        (worker(heartbeat=NOW - 1.5, timeout=1.0), [(1, SIGABRT)]),
        (worker(heartbeat=NOW - 3000, timeout=0.0), []),
        # before its loop runs, readiness counts as the first sign of life
        (worker(heartbeat=0.0, ready_at=NOW - 29), []),
        (worker(heartbeat=0.0, ready_at=NOW - 31), [(1, SIGABRT)]),
        # a boot may last boot_timeout, however short the timeout is
        (booting(spawned_at=NOW - 29, timeout=2.0), []),
        (booting(spawned_at=NOW - 31, timeout=2.0), [(1, SIGABRT)]),
        (booting(spawned_at=NOW - 59, boot_timeout=60.0), []),
        (booting(spawned_at=NOW - 61, boot_timeout=60.0), [(1, SIGABRT)]),
        (booting(spawned_at=NOW - 6100, boot_timeout=0.0), []),
        # told once
        (worker(heartbeat=NOW - 40, abort_at=NOW - 0.9), []),
        (worker(heartbeat=NOW - 40, abort_at=NOW - 1), [(1, SIGKILL)]),
        (worker(heartbeat=NOW - 40, abort_at=NOW - 2, kill_at=NOW - 1), []),
        # one that retires is bounded by graceful_timeout and a second, and by nothing else
        (worker(term_at=NOW - 20.9, heartbeat=NOW - 40), []),
        (worker(term_at=NOW - 21), [(1, SIGKILL)]),
        (worker(retiring_at=NOW - 20.9), []),
        (worker(retiring_at=NOW - 21), [(1, SIGKILL)]),
        (worker(term_at=NOW - 1, graceful_timeout=0.0), [(1, SIGKILL)]),
        # one that has said that it cannot boot, and stays
        (booting(failed=Report("failed"), failed_at=NOW - 0.5), []),
        (booting(failed=Report("failed"), failed_at=NOW - 1), [(1, SIGKILL)]),
        (worker(quit_at=NOW - 0.9), []),
        (worker(quit_at=NOW - 1), [(1, SIGKILL)]),
    ],
)
def test_time_limits(silent: WorkerHandle, expected: list[tuple[int, Signals]]) -> None:
    assert signals(fleet(silent), want(1)) == expected


def test_the_time_in_which_the_master_was_stopped_is_no_silence() -> None:
    full = fleet(worker(heartbeat=NOW - 500))
    target = want(1, resumed_at=NOW - 1)
    assert acts(full, target) == []
    assert wake(full, target) == NOW + 29.5


# ---- boots that fail -----------------------------------------------------------------------------------

BROKEN = Report("failed", "no module named nope", "Traceback ...", 4)


def test_at_the_first_start_a_report_of_failure_ends_everything_with_its_status() -> None:
    young = fleet(booting(1), booting(2), ever_ready=False)
    young.reported(young.workers[0], BROKEN, NOW, 1.0)
    assert plan(young, want(2), NOW) == [GiveUp(4, "no module named nope", BROKEN)]


def test_a_report_without_a_status_means_that_the_workers_cannot_boot() -> None:
    young = fleet(booting(1), ever_ready=False)
    young.reported(young.workers[0], Report("failed", "why"), NOW, 1.0)
    (verdict,) = plan(young, want(1), NOW)
    assert isinstance(verdict, GiveUp)
    assert verdict.status == 3


def test_at_the_first_start_silent_deaths_are_tried_three_times() -> None:
    young = fleet(ever_ready=False)
    now, tries = NOW, 0
    while True:
        actions = plan(young, want(4), now)
        if isinstance(actions[0], GiveUp):
            break
        for action in actions:
            if isinstance(action, Spawn):
                young.workers.append(booting(tries, spawned_at=now))
                tries += 1
        now += 0.01
        for each in list(young.workers):
            assert young.died(each, "was killed by SIGSEGV", now, 1.0)
        now = max(now + 0.01, wake(young, want(4), now) if young.failures[1].rounds < 3 else now)
    assert actions == [GiveUp(3, f"worker {100 + tries - 1} was killed by SIGSEGV while it was booting", None)]
    # four at once, then one at a time
    assert tries == 6
    assert 1.5 <= now - NOW < 2


def test_a_fleet_that_was_ready_keeps_its_survivors_and_tries_one_less_and_less_often() -> None:
    old = fleet(worker(1, timeout=0.0))
    now, pauses = NOW, []
    for age in range(2, 14):
        assert acts(old, want(3), now) == ([Spawn(1)] if age > 2 else [Spawn(1)] * 2)
        old.workers.append(booting(age, spawned_at=now, timeout=0.0))
        if age > 2:
            assert acts(old, want(3), now) == []
        now += 0.5
        old.reported(old.workers[-1], BROKEN, now, 1.0)
        old.died(old.workers[-1], "exited with status 4", now, 1.0)
        until = wake(old, want(3), now)
        pauses.append(until - now)
        assert acts(old, want(3), until - 0.01) == []
        now = until
    assert pauses[:6] == [0.5, 1, 2, 4, 8, 16]
    assert set(pauses[6:]) == {30}
    assert [each.age for each in old.workers] == [1]


def test_a_boot_that_succeeds_ends_the_back_off() -> None:
    old = fleet(worker(1), booting(2))
    old.died(old.workers[1], "exited with status 1", NOW, 1.0)
    assert acts(old, want(4)) == []
    old.workers.append(booting(3))
    old.reported(old.workers[1], Report("ready"), NOW, 1.0)
    assert acts(old, want(4)) == [Spawn(1)] * 2


def test_a_fork_that_the_system_refuses_counts_as_a_boot_that_failed() -> None:
    old = fleet(worker(1))
    old.boot_failed(1, NOW, "no memory", NOW, 1.0)
    assert acts(old, want(2)) == []
    assert wake(old, want(2)) == NOW + 0.5
    assert acts(old, want(2), NOW + 0.5) == [Spawn(1)]


def test_a_boot_that_hangs_is_a_boot_that_failed() -> None:
    old = fleet(worker(1), booting(2, spawned_at=NOW - 31, abort_at=NOW - 1))
    assert old.died(old.workers[1], "was killed by SIGABRT", NOW, 1.0)
    assert old.failures[1].rounds == 1


def test_nobody_takes_the_place_of_a_canary_that_hangs_before_its_death_is_the_verdict() -> None:
    """However long that takes: a second one would only hang, too."""
    rolling = fleet(worker(1), booting(2, generation=2, spawned_at=NOW - 31, abort_at=NOW - 0.5))
    target = want(1, 1)
    assert acts(rolling, target) == []
    assert signals(rolling, target, NOW + 0.5) == [(2, SIGKILL)]
    assert rolling.died(rolling.workers[1], "was killed by SIGKILL", NOW + 0.6, 1.0)
    assert isinstance(acts(rolling, target, NOW + 0.6)[0], Abandon)


def test_a_worker_that_was_told_to_leave_while_booting_has_not_failed() -> None:
    old = fleet(worker(1), booting(2, quit_at=NOW - 1))
    assert not old.died(old.workers[1], "was killed by SIGQUIT", NOW, 1.0)
    assert old.failures == {}


def test_jitter_scales_the_pause() -> None:
    old = fleet(booting(1))
    old.died(old.workers[0], "exited with status 1", NOW, 0.75)
    assert wake(old, want(1)) == NOW + 0.375


def test_a_crash_loop_after_readiness_is_slowed_down_and_a_single_kill_is_not() -> None:
    old = fleet(worker(1, timeout=0.0))
    now, deaths = NOW, 0
    while acts(old, want(2), now) == [Spawn(1)]:
        old.workers.append(worker(2, ready_at=now, timeout=0.0))
        now += 0.05
        assert old.died(old.workers[-1], "was killed by SIGSEGV", now, 1.0)
        deaths += 1
        assert deaths < 20
    assert deaths > 3
    assert wake(old, want(2), now) == now + 0.5
    # much later it is forgotten
    old.workers.append(worker(3, ready_at=now + 60))
    old.died(old.workers[-1], "was killed by SIGKILL", now + 61, 1.0)
    assert acts(old, want(2), now + 61) == [Spawn(1)]


# ---- reload --------------------------------------------------------------------------------------------


def test_a_reload_boots_one_worker_first_and_retires_nobody() -> None:
    assert acts(fleet(worker(1), worker(2)), want(2, 3)) == [Spawn(2)]
    assert acts(fleet(worker(1), worker(2), booting(3, 2)), want(2, 3)) == []


def test_then_the_old_ones_are_replaced_one_after_another() -> None:
    proven: dict[str, Any] = {"proven": {1, 2}}
    first = fleet(worker(1), worker(2), worker(3, 2), **proven)
    assert signals(first, want(2, 2)) == [(1, SIGTERM)]
    leaving = worker(1, term_at=NOW)
    assert acts(fleet(leaving, worker(2), worker(3, 2), **proven), want(2, 2)) == [Spawn(2)]
    assert acts(fleet(leaving, worker(2), worker(3, 2), booting(4, 2), **proven), want(2, 2)) == []
    last = fleet(leaving, worker(2), worker(3, 2), worker(4, 2), **proven)
    assert signals(last, want(2, 2)) == [(2, SIGTERM)]
    last.workers[1].term_at = NOW
    assert plan(last, want(2, 2), NOW) == [Promote(2)]


def test_the_surge_is_how_many_more_there_may_be() -> None:
    old = [worker(age) for age in range(1, 5)]
    proven: dict[str, Any] = {"proven": {1, 2}}
    assert acts(fleet(*old, worker(5, 2), **proven), want(4, 4, surge=3)).count(Spawn(2)) == 2
    wave = fleet(*old, worker(5, 2), worker(6, 2), worker(7, 2), **proven)
    assert signals(wave, want(4, 4, surge=3)) == [(1, SIGTERM), (2, SIGTERM), (3, SIGTERM)]


def test_a_reload_to_fewer_workers_retires_down_to_them_when_the_first_is_ready() -> None:
    proven = fleet(worker(1), worker(2), worker(3), worker(4, 2), proven={1, 2})
    assert signals(proven, want(3, 1)) == [(1, SIGTERM), (2, SIGTERM), (3, SIGTERM)]


def test_one_that_is_to_be_recycled_serves_until_its_successor_is_ready() -> None:
    tired = worker(1, recycle_at=NOW - 1)
    assert acts(fleet(tired, worker(2)), want(2)) == [Spawn(1)]
    assert acts(fleet(tired, worker(2), booting(3)), want(2)) == []
    assert signals(fleet(tired, worker(2), worker(3)), want(2)) == [(1, SIGTERM)]


def test_no_more_than_max_unavailable_are_recycled_at_once() -> None:
    tired = [worker(age, recycle_at=NOW - 1) for age in (1, 2, 3)]
    tired[0].term_at = NOW - 0.5
    fresh = [worker(4), worker(5)]
    assert signals(fleet(*tired, *fresh), want(3)) == []
    assert signals(fleet(*tired, *fresh), want(3, unavailable=2)) == [(2, SIGTERM)]


def test_of_too_many_one_that_is_idle_retires() -> None:
    assert signals(fleet(worker(1, is_busy=True), worker(2), worker(3)), want(2)) == [(2, SIGTERM)]


def test_an_old_one_that_dies_during_a_reload_is_replaced() -> None:
    assert acts(fleet(worker(1), booting(3, 2)), want(2, 1)) == [Spawn(1)]


def test_new_ones_that_cannot_boot_are_given_up_and_the_old_ones_stay() -> None:
    rolling = fleet(worker(1), booting(2, 2), booting(3, 2))
    rolling.reported(rolling.workers[1], BROKEN, NOW, 1.0)
    assert plan(rolling, want(1, 2), NOW) == [Abandon(2, "no module named nope")]
    assert signals(rolling, Target(((1, 1),))) == [(3, SIGTERM)]


def test_new_ones_that_die_silently_are_tried_three_times() -> None:
    rolling = fleet(worker(1, timeout=0.0))
    now = NOW
    for attempt in range(3):
        assert acts(rolling, want(1, 1), now) == [Spawn(2)]
        rolling.workers.append(booting(2 + attempt, 2, spawned_at=now))
        now += 0.1
        rolling.died(rolling.workers[-1], "exited with status 1", now, 1.0)
        if attempt < 2:
            now = wake(rolling, want(1, 1), now)
    (verdict,) = plan(rolling, want(1, 1), now)
    assert verdict == Abandon(2, "worker 104 exited with status 1 while it was booting")


# ---- stopping ------------------------------------------------------------------------------------------


def test_a_graceful_stop_retires_all_and_spawns_none() -> None:
    full = fleet(worker(1), booting(2), worker(3, term_at=NOW - 1), worker(4, retiring_at=NOW - 1))
    assert acts(full, want(9, stop="graceful")) == [
        Send(full.workers[0], SIGTERM, "is to retire"),
        Send(full.workers[1], SIGTERM, "is to retire"),
    ]


def test_a_graceful_stop_is_bounded() -> None:
    full = fleet(worker(1, term_at=NOW))
    assert wake(full, want(1, stop="graceful")) == NOW + 21
    assert signals(full, want(1, stop="graceful"), NOW + 21) == [(1, SIGKILL)]


def test_a_fast_stop_overtakes_a_graceful_one() -> None:
    full = fleet(worker(1, term_at=NOW - 1), worker(2), booting(3))
    assert signals(full, want(3, stop="fast")) == [(1, SIGQUIT), (2, SIGQUIT), (3, SIGQUIT)]
    for each in full.workers:
        each.quit_at = NOW
    assert signals(full, want(3, stop="fast"), NOW + 1) == [(1, SIGKILL), (2, SIGKILL), (3, SIGKILL)]


@pytest.mark.parametrize("stop", ["graceful", "fast"])
def test_it_is_over_when_the_last_has_left(stop: str) -> None:
    assert plan(fleet(), want(3, stop=stop), NOW) == [Stopped()]


def test_a_stop_is_not_held_up_by_failures() -> None:
    young = fleet(ever_ready=False)
    young.boot_failed(1, NOW, "no memory", NOW, 1.0)
    assert plan(young, want(3, stop="graceful"), NOW) == [Stopped()]
