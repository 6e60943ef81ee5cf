"""The state of a worker that leaves, without a worker."""

from __future__ import annotations

from math import inf

from wsgiserv.worker.leaving import ORPHAN_GRACE_S, Leaving


def test_a_worker_that_stays() -> None:
    leaving = Leaving(30.0)
    assert [leaving.begun, leaving.at_once, leaving.hands_over] == [False] * 3
    assert leaving.deadline == inf
    assert not leaving.is_overdue(1e9)


def test_the_time_counts_from_the_signal_not_from_the_loop_that_sees_it_later() -> None:
    leaving = Leaving(30.0)
    leaving.note_signal(100.0)
    leaving.note_signal(120.0)
    assert not leaving.is_overdue(130.0)
    assert leaving.is_overdue(130.1), "also before the loop has begun to leave"
    leaving.begin(125.0, hands_over=True)
    assert leaving.begun
    assert leaving.hands_over
    assert leaving.deadline == 130.0


def test_without_a_signal_it_counts_from_the_beginning() -> None:
    leaving = Leaving(30.0)
    leaving.begin(125.0, hands_over=False)
    assert leaving.deadline == 155.0
    assert not leaving.is_overdue(1e9), "that is for a loop that does not turn"


def test_an_orphan_has_a_second_whatever_time_it_had() -> None:
    leaving = Leaving(30.0)
    leaving.begin(100.0, hands_over=False)
    leaving.orphan(110.0)
    assert leaving.deadline == 110.0 + ORPHAN_GRACE_S


def test_the_reason_names_the_setting() -> None:
    assert "graceful_timeout (2.5 s)" in Leaving(2.5).out_of_time[1]
