"""The plan and workers that only keep idle connections: they hold nobody up, and are bounded (issue 12, part 7)."""

from __future__ import annotations

from signal import SIGKILL, SIGTERM

from test_policy import NOW, acts, fleet, signals, want, worker

from wsgiserv.master.policy import Promote, Spawn
from wsgiserv.master.worker_handle import WorkerHandle


def lingering(age: int, generation: int = 1, since_s: float = 1.0, recycled: bool = False) -> WorkerHandle:
    recycle_at = NOW - 50 if recycled else None
    return worker(age, generation, term_at=NOW - since_s, lingers=True, recycle_at=recycle_at)


def test_a_reload_goes_on() -> None:
    both = fleet(lingering(1), lingering(2), worker(3), worker(4, 2), worker(5, 2), proven={1, 2})
    assert signals(both, want(3, 3)) == []
    assert Spawn(2) in acts(both, want(3, 3))


def test_a_reload_ends_while_the_old_ones_linger() -> None:
    both = fleet(lingering(1), lingering(2), worker(3, 2), worker(4, 2), proven={1, 2})
    assert acts(both, want(2, 2)) == [Promote(2)]


def test_recycling_goes_on() -> None:
    waiting = worker(2, recycle_at=NOW - 1)
    successors = [worker(3), worker(4)]
    assert signals(fleet(lingering(1, recycled=True), waiting, *successors), want(2)) == [(2, SIGTERM)]
    busy = lingering(1, recycled=True)
    busy.lingers = False  # a request is in its application: it is on its way out
    assert signals(fleet(busy, waiting, *successors), want(2)) == []


def test_one_that_lingers_for_too_long_is_killed() -> None:
    """`graceful_timeout` is 20 s here, and a second is added."""
    assert signals(fleet(lingering(1, since_s=20.9), worker(2)), want(1)) == []
    assert signals(fleet(lingering(1, since_s=21.0), worker(2)), want(1)) == [(1, SIGKILL)]


def test_reloads_in_a_row_are_bounded() -> None:
    """Three times as many, and two: the next reload waits for one to go."""
    many = [lingering(age) for age in range(1, 8)]
    assert acts(fleet(*many, worker(8)), want(2)) == []
    assert acts(fleet(*many[:-1], worker(8)), want(2)) == [Spawn(1)]
