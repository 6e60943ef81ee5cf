"""A helper thread sleeps while there is nothing to do, and stops while the application forks."""

from __future__ import annotations

from _thread import allocate_lock

from wsgiserv.worker.helper_thread import HelperThread

DEADLINE_S = 10.0


class Work:
    """Counts what it has been given; each item is signalled by `done`."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self.looks = 0
        self.done = allocate_lock()
        self.done.acquire()
        self.thread = HelperThread("test", self.work)

    def work(self) -> None:
        while not self.thread.stopping:
            self.looks += 1
            is_quiet = not self.pending
            while self.pending:
                self.pending.pop()
                self.done.release()
            self.thread.rest(0.001, is_quiet, self.pending)

    def give(self) -> None:
        self.pending.append(1)
        if self.thread.asleep:
            self.thread.wake()


def wait_until_asleep(work: Work) -> None:
    pause = allocate_lock()
    pause.acquire()
    for _ in range(int(DEADLINE_S * 1000)):
        if work.thread.asleep:
            return
        pause.acquire(timeout=0.001)
    raise AssertionError("it does not sleep")


def test_it_sleeps_and_is_woken() -> None:
    work = Work()
    work.thread.start()
    for _ in range(3):
        wait_until_asleep(work)
        work.give()
        assert work.done.acquire(timeout=DEADLINE_S)
    work.thread.pause()


def test_it_stops_for_a_fork_and_goes_on() -> None:
    work = Work()
    work.thread.start()
    wait_until_asleep(work)
    work.thread.pause()
    work.thread.pause()  # two threads of the application fork at once
    looks = work.looks
    work.thread.resume()
    assert work.thread.stopping
    assert work.looks == looks
    work.thread.resume()
    assert not work.thread.stopping
    work.give()
    assert work.done.acquire(timeout=DEADLINE_S)
    work.thread.pause()
