"""In what order, and how often, the signals that have come are answered."""

from __future__ import annotations

from signal import SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGRTMIN, SIGTERM, SIGTTIN, SIGUSR1, SIGUSR2

import pytest

from wsgiserv.master.signalqueue import in_order


@pytest.mark.parametrize(
    ("come", "answered"),
    [
        ([], []),
        ([SIGHUP, SIGTERM], [SIGHUP, SIGTERM]),
        # The kernel runs the handler of the higher number first.
        ([SIGTERM, SIGUSR2], [SIGUSR2, SIGTERM]),
        ([SIGHUP, SIGTERM, SIGTERM, SIGUSR2], [SIGHUP, SIGUSR2, SIGTERM, SIGTERM]),
        ([SIGINT, SIGUSR2], [SIGINT, SIGUSR2]),
        # Each counts, or one is as good as many.
        ([SIGTTIN, SIGTTIN, SIGTERM, SIGTERM], [SIGTTIN, SIGTTIN, SIGTERM, SIGTERM]),
        ([SIGUSR1, SIGHUP, SIGUSR1, SIGCHLD, SIGCHLD, SIGHUP], [SIGCHLD, SIGUSR1, SIGHUP]),
        # Not the master's.
        ([SIGRTMIN, SIGRTMIN + 3, SIGALRM, 1000, 0, SIGHUP], [SIGHUP]),
    ],
)
def test_order(come: list[int], answered: list[int]) -> None:
    assert in_order([int(number) for number in come]) == answered
