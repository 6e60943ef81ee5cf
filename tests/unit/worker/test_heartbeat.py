"""How often a worker beats, and how busy it says it is."""

from __future__ import annotations

from time import monotonic

import pytest

from wsgiserv.scoreboard import Scoreboard
from wsgiserv.worker.heartbeat import Heartbeat, runnable_time_s


@pytest.mark.parametrize(("timeout_s", "turn_s"), [(0.0, 1.0), (30.0, 1.0), (2.0, 0.5), (0.1, 0.05)], ids=str)
def test_a_short_timeout_needs_shorter_turns(timeout_s: float, turn_s: float) -> None:
    heartbeat = Heartbeat(Scoreboard(1, 1).slots[0], timeout_s)
    assert heartbeat.turn_s == turn_s
    assert heartbeat.turn_due_s > turn_s


def test_a_busy_process_and_an_idle_one() -> None:
    heartbeat = Heartbeat(Scoreboard(1, 1).slots[0], 30.0)
    began = monotonic()
    until = runnable_time_s() + 0.2
    while runnable_time_s() < until:
        pass
    assert heartbeat.busy_share(monotonic()) >= min(1.0, 0.19 / (monotonic() - began))
    assert heartbeat.busy_share(monotonic() + 1e6) < 0.01
