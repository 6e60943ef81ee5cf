"""Shows the master that a worker is alive, and how busy it is."""

from __future__ import annotations

import os
from time import monotonic, process_time
from typing import Final

from wsgiserv.scoreboard import Slot

_TURN_S: Final = 1.0
_SHORTEST_TURN_S: Final = 0.05
# How late a heartbeat may be before a turn is made for its sake; less than the master's HEARTBEAT_SLACK_S.
_LATE_S: Final = 0.25
_TASKS: Final = "/proc/self/task"


class Heartbeat:
    """The heartbeat of one worker, and the measure of its load.

    Args:
        slot: the worker's row of the scoreboard.
        timeout_s: ``timeout``: after so many seconds without heartbeat the master kills the worker; 0 means never.

    Attributes:
        seconds: the row's times.
        turn_s: the longest sleep of the loop; it bounds how far apart heartbeats are.
        turn_due_s: how long after a heartbeat a turn must be made to its end, in time for the next one.
        due: when that is.
        stalled_since: when all that could run a request last made progress, while none of it is free; else None.
    """

    def __init__(self, slot: Slot, timeout_s: float) -> None:
        self.seconds = slot.seconds
        self.turn_s = min(_TURN_S, max(timeout_s / 4, _SHORTEST_TURN_S)) if timeout_s else _TURN_S
        self.turn_due_s = self.turn_s + _LATE_S
        self.due = 0.0
        self.stalled_since: float | None = None
        self._measured_at = monotonic()
        self._runnable_s = runnable_time_s()

    def close_in_child(self, slot: Slot) -> None:
        """Write to the detached row from now on. Called in a child of the application."""
        self.seconds = slot.seconds

    def busy_share(self, now: float) -> float:
        """Return how much of the time since the last call this process was runnable: 0.0 to 1.0."""
        runnable_s = runnable_time_s()
        # A thread that has ended takes its time with it: the share of that second may be negative. Two calls at one
        # time must not divide by zero.
        share = (runnable_s - self._runnable_s) / max(now - self._measured_at, 0.001)
        self._measured_at, self._runnable_s = now, runnable_s
        return max(0.0, min(1.0, share))


def runnable_time_s() -> float:
    """Return for how many seconds the threads that live now have run, or have waited for a processor.

    Without ``/proc`` it returns the time that the process has run. Never raises.
    """
    # A thread that waits for a processor has work to do: with more processes than processors, a worker that never
    # pauses gets less than the whole time of one. proc(5), /proc/[pid]/task/[tid]/schedstat; 20 µs for one thread.
    runnable_ns = 0
    try:
        tasks = os.listdir(_TASKS)
    except OSError:
        tasks = []
    for task in tasks:
        try:
            with open(f"{_TASKS}/{task}/schedstat", "rb", 0) as file:
                running, waiting, _ = file.read().split()
        except (OSError, ValueError):
            continue  # the thread has just ended
        runnable_ns += int(running) + int(waiting)
    return runnable_ns / 1e9 if runnable_ns else process_time()
