"""The rules of growing and shrinking, on invented samples: no clock, no process."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from itertools import pairwise
from math import inf
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsgiserv.master.autoscale import CROWDED, QUIET, Bounds, History, Sample, decide, interval_of, short_window_of

WINDOW_S = 10.0
BOUNDS = Bounds(least=1, most=16, window_s=WINDOW_S)


def history_of(
    seconds: float, occupied: float = 0.0, *, cpu: float = 0.0, queue: float = 0.0, rate: float = 10.0
) -> History:
    """A history of the same load for so many seconds."""
    history = History()
    add(history, seconds, occupied, cpu=cpu, queue=queue, rate=rate)
    return history


def add(
    history: History, seconds: float, occupied: float, *, cpu: float = 0.0, queue: float = 0.0, rate: float = 10.0
) -> None:
    step = interval_of(WINDOW_S)
    begin = history.samples[-1].at + step if history.samples else 100.0
    for number in range(round(seconds / step) + 1):
        history.add(Sample(begin + number * step, occupied, cpu, queue, rate), WINDOW_S)


class Case(NamedTuple):
    """A load of some seconds on so many workers, and the number that is wanted."""

    seconds: float
    occupied: float
    workers: int
    wanted: int
    cpu: float = 0.0
    queue: float = 0.0
    rate: float = 10.0


@pytest.mark.parametrize(
    "case",
    [
        # Crowded: above three quarters for a tenth of the window; the fleet is to be busy to 60 %.
        Case(1.1, 3.1, 4, 6),
        Case(1.1, 2.9, 4, 4),
        Case(0.5, 4.0, 4, 4),
        Case(1.1, 4.0, 4, 7),
        # By CPU as well as by places.
        Case(1.1, 0.1, 4, 6, cpu=3.1),
        # A queue: sooner, and already above half. To twice as many at most.
        Case(0.4, 4.0, 4, 8, queue=20),
        Case(0.4, 2.1, 4, 5, queue=20),
        # Who waits for hardly any time, or while hardly anybody works, is no reason.
        Case(1.1, 2.1, 4, 4, queue=5, rate=100),
        Case(1.1, 1.9, 4, 4, queue=20),
        # Nothing is answered: who waits, waits for ever.
        Case(0.4, 4.0, 4, 8, queue=1, rate=0),
        # Quiet: one fewer, after a whole window.
        Case(10.2, 1.0, 4, 3),
        Case(8.0, 1.0, 4, 4),
        Case(10.2, 1.6, 4, 4),
        Case(10.2, 0.0, 4, 3),
        Case(10.2, 0.0, 4, 4, cpu=1.6),
        Case(10.2, 0.0, 2, 1),
        Case(10.2, 0.0, 1, 1),
        Case(10.2, 1.0, 16, 15),
        # No more than allowed.
        Case(1.1, 15.5, 16, 16),
        Case(1.1, 12.0, 12, 16),
    ],
)
def test_decisions(case: Case) -> None:
    history = history_of(case.seconds, case.occupied, cpu=case.cpu, queue=case.queue, rate=case.rate)
    assert decide(history, case.workers, BOUNDS).workers == case.wanted


def test_without_samples_nothing_changes() -> None:
    assert decide(History(), 4, BOUNDS) == (4, "", "")


@pytest.mark.parametrize(("workers", "wanted"), [(1, 2), (2, 2), (5, 5), (9, 5)])
def test_bounds_hold_at_once(workers: int, wanted: int) -> None:
    bounds = Bounds(least=2, most=5, window_s=WINDOW_S)
    decision = decide(History(), workers, bounds)
    assert decision.workers == wanted
    assert decision.why == ("" if workers == wanted else "workers_min is 2, workers_max 5")


def test_growing_says_why() -> None:
    assert decide(history_of(1.1, 4.0, queue=12, rate=60), 4, BOUNDS).why == (
        "busy 100% over 1 s, queue 12, a wait of 0.2 s"
    )


@pytest.mark.parametrize(
    ("bounds", "cpu", "held"),
    [
        (Bounds(least=1, most=4, window_s=WINDOW_S), 0.0, "workers_max is 4"),
        (Bounds(least=1, most=8, window_s=WINDOW_S, cpus=2), 1.9, "the workers use all of 2 CPUs"),
        (Bounds(least=1, most=8, window_s=WINDOW_S, fits=4), 0.0, "the memory limit leaves no room"),
        (Bounds(least=1, most=8, window_s=WINDOW_S, fits=2), 0.0, "the memory limit leaves no room"),
    ],
)
def test_what_holds_a_fleet_back_is_said(bounds: Bounds, cpu: float, held: str) -> None:
    decision = decide(history_of(1.1, 4.0, cpu=cpu), 4, bounds)
    assert decision.workers == 4
    assert held in decision.held
    assert decision.why == "busy 100% over 1 s"


def test_memory_allows_some() -> None:
    bounds = Bounds(least=1, most=16, window_s=WINDOW_S, fits=5)
    assert decide(history_of(1.1, 4.0), 4, bounds).workers == 5


def test_processors_are_not_multiplied() -> None:
    """A load of CPU alone gets no more workers than there are CPUs."""
    bounds = Bounds(least=1, most=16, window_s=WINDOW_S, capacity=1000, cpus=4)
    assert decide(history_of(1.1, 0.1, cpu=3.0), 3, bounds).workers == 4
    assert decide(history_of(1.1, 0.1, cpu=3.5), 4, bounds).workers == 4


def test_a_queue_counts_by_the_places_of_a_worker() -> None:
    threads = Bounds(least=1, most=16, window_s=WINDOW_S, capacity=8)
    assert decide(history_of(0.4, 1.9, queue=4), 2, threads).workers == 4
    assert decide(history_of(0.4, 1.2, queue=4), 2, threads).workers == 3


def test_a_queue_that_is_worked_off_needs_nobody() -> None:
    history = History()
    for number in range(20):
        history.add(Sample(number * 0.07, 8.0, 0.0, 100 - 4 * number, 80.0), WINDOW_S)
    assert decide(history, 8, BOUNDS).workers == 8


def test_chance_is_not_a_crowd() -> None:
    """Six of eight samples busy is 75 % and may be half."""
    history = History()
    for number in range(20):
        history.add(Sample(number * interval_of(WINDOW_S), float(number % 5 != 0), 0.0, 0.0, 10.0), WINDOW_S)
    assert decide(history, 1, BOUNDS).workers == 1


def test_a_moment_in_the_window_keeps_the_fleet() -> None:
    """The whole window must have been quiet enough for one fewer, not only its mean."""
    history = history_of(5.0, 0.5)
    add(history, 1.1, 2.5)
    add(history, 5.0, 0.5)
    assert decide(history, 4, BOUNDS).workers == 4
    add(history, 8.0, 0.5)
    assert decide(history, 4, BOUNDS).workers == 3


def test_between_two_retirements_there_is_a_window() -> None:
    history = history_of(30.0, 0.0)
    now = history.samples[-1].at
    history.changed(4, 3, now, WINDOW_S)
    add_from(history, now, 9.5)
    assert decide(history, 3, BOUNDS).workers == 3
    add(history, 1.0, 0.0)
    assert decide(history, 3, BOUNDS).workers == 2


def add_from(history: History, at: float, seconds: float) -> None:
    step = interval_of(WINDOW_S)
    for number in range(1, round(seconds / step)):
        history.add(Sample(at + number * step, 0.0, 0.0, 0.0, 0.0), WINDOW_S)


def test_a_retirement_that_was_too_early_makes_patient() -> None:
    history = history_of(10.5, 0.0)
    now = history.samples[-1].at
    history.changed(4, 3, now, WINDOW_S)
    history.changed(3, 5, now + 5, WINDOW_S)
    assert history.patience == 2
    history.changed(5, 7, now + 7, WINDOW_S)
    assert history.patience == 2, "one mistake counts once"
    add_from(history, now + 7, 11)
    assert decide(history, 7, BOUNDS).workers == 7
    add(history, 10.5, 0.0)
    assert decide(history, 7, BOUNDS).workers == 6


def test_patience_wears_off() -> None:
    history = history_of(1.0, 0.0)
    history.changed(4, 3, 100.0, WINDOW_S)
    history.changed(3, 4, 105.0, WINDOW_S)
    assert history.patience == 2
    history.add(Sample(105.0 + 31 * WINDOW_S, 0.0, 0.0, 0.0, 0.0), WINDOW_S)
    assert history.patience == 2
    history.add(Sample(105.0 + 33 * WINDOW_S, 0.0, 0.0, 0.0, 0.0), WINDOW_S)
    assert history.patience == 1


def test_the_history_is_bounded() -> None:
    history = history_of(200.0, 1.0)
    assert len(history.samples) <= 24
    assert len(history.parts) <= 10


@pytest.mark.parametrize(("window_s", "short_s"), [(1.0, 0.5), (5.0, 0.5), (30.0, 3.0), (60.0, 5.0), (3600.0, 5.0)])
def test_windows(window_s: float, short_s: float) -> None:
    assert short_window_of(window_s) == short_s
    assert 0.03 < interval_of(window_s) < 0.34


# ---- what is true of any load ------------------------------------------------------------------------------

FAST_S = 1.0  # the shortest window: fewest samples for the same rules


def run(
    load: Callable[[float], float], seconds: float, workers: int, bounds: Bounds, service_s: float = 0.1
) -> list[tuple[float, int]]:
    """Play a fluid load, in workers' worth, against `decide`; return when the fleet got which size."""
    history = History()
    step = interval_of(bounds.window_s)
    queue = 0.0
    sizes = [(0.0, workers)]
    for number in range(int(seconds / step)):
        now = number * step
        wanted = load(now)
        queue = max(0.0, queue + (wanted - workers) * step / service_s)
        occupied = float(workers) if queue else min(wanted, workers)
        history.add(Sample(now, occupied, 0.0, float(round(queue)), occupied / service_s), bounds.window_s)
        decision = decide(history, workers, bounds)
        if decision.workers != workers:
            history.changed(workers, decision.workers, now, bounds.window_s)
            workers = decision.workers
            sizes.append((now, workers))
    return sizes


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(0.0, 20.0), st.integers(1, 12), st.integers(1, 4), st.integers(0, 12))
def test_a_constant_load_settles(demand: float, begin: int, least: int, more: int) -> None:
    bounds = Bounds(least=least, most=least + more, window_s=FAST_S)
    begin = min(max(begin, least), bounds.most)
    sizes = run(lambda at: demand, 40 * FAST_S, begin, bounds)
    counts = [count for _, count in sizes]
    steps = [after - before for before, after in pairwise(counts)]
    turns = sum((one > 0) != (two > 0) for one, two in pairwise(steps))
    # What has piled up while the fleet was too small may cost a worker too many, who leaves again; never to and fro.
    assert turns <= 1, counts
    assert not steps or sizes[-1][0] < 30 * FAST_S, "it has not settled"
    last = counts[-1]
    assert last == bounds.most or demand <= CROWDED * last
    assert last == bounds.least or demand >= QUIET * (last - 1) * 0.99


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 10))
def test_whatever_the_load(seed: int, least: int, more: int) -> None:
    chance = random.Random(seed)
    bounds = Bounds(least=least, most=least + more, window_s=FAST_S)
    levels = [chance.uniform(0, 1.5 * bounds.most) for _ in range(10)]
    sizes = run(lambda at: levels[int(at / FAST_S / 2)], 20 * FAST_S, least, bounds)
    shrunk_at = -inf
    for (before_at, before), (at, after) in pairwise(sizes):
        assert least <= after <= bounds.most
        if after > before:
            assert after <= 2 * before
        else:
            assert after == before - 1, "one at a time"
            assert at - shrunk_at >= FAST_S * 0.999
            assert at - before_at >= FAST_S * 0.9, "not before the last change has been seen for a window"
            shrunk_at = at


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_deciding_changes_nothing_and_keeps_the_bounds(data: st.DataObject) -> None:
    figures = st.floats(0, 50, allow_nan=False)
    samples = data.draw(st.lists(st.tuples(figures, figures, figures, figures), min_size=1, max_size=60))
    history = History()
    for number, (occupied, cpu, queue, rate) in enumerate(samples):
        history.add(Sample(number * interval_of(FAST_S), occupied, cpu, queue, rate), FAST_S)
    bounds = Bounds(
        least=2,
        most=data.draw(st.integers(2, 20)),
        window_s=FAST_S,
        capacity=data.draw(st.sampled_from([1, 8, 1000])),
        cpus=data.draw(st.floats(0.5, 64)),
        fits=data.draw(st.none() | st.integers(0, 20)),
    )
    workers = data.draw(st.integers(2, bounds.most))
    before = copy.deepcopy(history)
    decision = decide(history, workers, bounds)
    assert history == before
    assert decide(history, workers, bounds) == decision
    assert bounds.least <= decision.workers <= bounds.most
    assert decision.workers <= 2 * workers
    if bounds.fits is not None:
        assert decision.workers <= max(workers, bounds.fits)
    assert not (decision.held and decision.workers != workers)
    assert bool(decision.why) == (decision.workers != workers or bool(decision.held))
