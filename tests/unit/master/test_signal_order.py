"""In what order, and how often, the signals that have come are answered."""

from __future__ import annotations

import subprocess
import sys
from signal import SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGRTMIN, SIGTERM, SIGTTIN, SIGUSR1, SIGUSR2

import pytest

from wsgiserv.master.signals import in_order


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


COUNTING = """
import os, signal
from wsgiserv.master.signals import SignalQueue

queue, count = SignalQueue(), 0
os.write(1, b".")
while True:
    for number in queue.take():
        if number == signal.SIGTERM:
            os.write(1, b".")
        elif number == signal.SIGINT:
            raise SystemExit
"""


def test_each_sigterm_is_counted_once_whenever_it_comes() -> None:
    """A second one means something else. The queue is looked at all the time, so some come amid that."""
    number = 5000
    with subprocess.Popen([sys.executable, "-c", COUNTING], stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
        for _ in range(number):
            process.send_signal(SIGTERM)
            assert process.stdout.read(1) == b"."
        process.send_signal(SIGINT)
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_a_signal_whose_number_is_lost_is_answered() -> None:
    """The wakeup descriptor has been taken, as asyncio does."""
    code = """
import os, signal
from wsgiserv.master.signals import SignalQueue

queue = SignalQueue()
signal.set_wakeup_fd(-1)
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGHUP)
found = [*queue.take(), *queue.take(), *queue.take()]
assert sorted(found) == [signal.SIGHUP, signal.SIGTERM], found
os.kill(os.getpid(), signal.SIGTERM)
assert queue.take() == [signal.SIGTERM]
assert queue.take() == queue.take() == []
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
