"""Keeps how and until when a worker leaves."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import inf
from typing import Final

# The level and the reason with which requests are logged that a leaving worker cuts. A fast stop cuts what is under
# way, as it was asked to.
AT_ONCE: Final = (logging.INFO, "the worker was told to leave at once (INT or QUIT)")
ORPHANED: Final = (logging.WARNING, "the master is gone")
ABORTED: Final = (logging.ERROR, "its worker is aborted (SIGABRT)")
# No master is there to bound this leave.
ORPHAN_GRACE_S: Final = 1.0


@dataclass
class Leaving:
    """The state of a worker that leaves.

    Attributes:
        graceful_timeout_s: ``graceful_timeout``.
        begun: the worker leaves gracefully.
        at_once: it leaves now, and cuts its requests.
        deadline: until when it may take, ``time.monotonic()`` seconds.
        told_at: when SIGTERM came, which the loop may not have seen yet; None before.
        hands_over: its connections go to other workers, which serve on as if nothing were.
    """

    graceful_timeout_s: float
    begun: bool = False
    at_once: bool = False
    deadline: float = inf
    told_at: float | None = None
    hands_over: bool = False

    @property
    def out_of_time(self) -> tuple[int, str]:
        """The level and the reason for requests that a graceful leave cuts at its end."""
        seconds = self.graceful_timeout_s
        return logging.WARNING, f"the worker did not retire within graceful_timeout ({seconds:g} s)"

    def note_signal(self, now: float) -> None:
        """Note that SIGTERM has come. In the signal handler."""
        if self.told_at is None:  # the master repeats the signal, and counts from the first
            self.told_at = now

    def begin(self, now: float, hands_over: bool) -> None:
        """Leave gracefully from ``now`` on, or from when SIGTERM came: the master counts from there."""
        self.begun = True
        self.deadline = (self.told_at or now) + self.graceful_timeout_s
        self.hands_over = hands_over

    def leave_at_once(self) -> None:
        """Leave now, and cut the requests."""
        self.at_once = True

    def stop_handing_over(self) -> None:
        """Hand over no connection from now on: no worker is left to take it."""
        self.hands_over = False

    def orphan(self, now: float) -> None:
        """Leave soon: the master is gone."""
        self.begun = True
        self.deadline = now + ORPHAN_GRACE_S

    def is_overdue(self, now: float) -> bool:
        """Return whether the time since SIGTERM is over."""
        # By the signal, not by `deadline`: a call that hangs keeps the loop from beginning to leave.
        return self.told_at is not None and now > self.told_at + self.graceful_timeout_s
