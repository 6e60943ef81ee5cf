"""The lead among the threads of a worker, alone: every schedule here is invented, no thread runs.

The actors are greenlets. They switch wherever a thread could be preempted to some effect: at each use of the leader
lock, of a token, of the standby and of `leader`, and in the application's calls. A seed picks which one goes on.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from greenlet import getcurrent, greenlet

from wsgiserv.worker import leadership
from wsgiserv.worker.event_loop_worker import TURN_OVER
from wsgiserv.worker.leadership import Leadership, PoolThread

MOST_STEPS = 100_000


class Schedule:
    """Runs actors a step at a time, in an order that a seed decides."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.hub = getcurrent()
        self.actors: list[greenlet] = []

    def start(self, actor: Callable[..., object], *arguments: object) -> None:
        self.actors.append(greenlet(lambda: actor(*arguments), self.hub))

    def switch(self) -> None:
        """Let any actor go on, this one included."""
        if getcurrent() is not self.hub:
            self.hub.switch()

    def run(self) -> None:
        """Run all actors to their ends."""
        for _ in range(MOST_STEPS):
            self.actors = [each for each in self.actors if not each.dead]
            if not self.actors:
                return
            self.random.choice(self.actors).switch()
        pytest.fail("the actors have not come to an end: they wait for one another")


class Lock:
    """A lock as of `_thread`, whose `acquire` lets the others go on while it waits."""

    def __init__(self, switch: Callable[[], None]) -> None:
        self.switch = switch
        self.is_locked = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self.switch()
        while self.is_locked:
            if not blocking or timeout >= 0:  # a timeout may be over at any time
                return False
            self.switch()
        self.is_locked = True
        return True

    def release(self) -> None:
        self.switch()
        if not self.is_locked:
            raise RuntimeError("release unlocked lock")
        self.is_locked = False


class SwitchingDeque(deque[Any]):
    switch: Callable[[], None]

    def append(self, item: object) -> None:
        self.switch()
        super().append(item)

    def __bool__(self) -> bool:
        self.switch()
        return len(self) > 0


class SwitchingList(list[Any]):
    switch: Callable[[], None]

    def append(self, item: object) -> None:
        self.switch()
        super().append(item)

    def pop(self, *index: Any) -> object:
        self.switch()
        return super().pop(*index)

    def __bool__(self) -> bool:
        self.switch()
        return len(self) > 0


class ScheduledLeadership(Leadership):
    """The object under test, with a switch at each use of what several threads use."""

    def __init__(self, schedule: Schedule, *arguments: Any) -> None:
        self.schedule = schedule
        self.now_leads: PoolThread | None = None
        super().__init__(*arguments)
        self.lock = Lock(schedule.switch)  # type: ignore[assignment]
        self._wakeup = Lock(schedule.switch)  # type: ignore[assignment]
        self._standby = SwitchingDeque()
        self._standby.switch = schedule.switch

    @property  # type: ignore[override]
    def leader(self) -> PoolThread | None:
        self.schedule.switch()
        return self.now_leads

    @leader.setter
    def leader(self, thread: PoolThread | None) -> None:
        self.schedule.switch()
        self.now_leads = thread

    def add(self, cells: int) -> PoolThread:
        thread = super().add(cells)
        thread.token = SwitchingList()
        thread.token.switch = self.schedule.switch  # type: ignore[attr-defined]
        return thread


class World:
    """A worker as far as the lead goes: requests come, threads run them, the main thread looks after the threads."""

    def __init__(self, seed: int, threads: int, requests: int) -> None:
        self.schedule = Schedule(seed)
        self.random = self.schedule.random
        self.queue: deque[Any] = deque()
        self.lead = ScheduledLeadership(self.schedule, threads, self.queue, self.run, self.lose)
        self.to_come = requests
        self.ready: deque[int] = deque()  # a level-triggered poller reports these until they are read
        self.ran: list[int] = []
        self.requests = requests
        self.running = 0
        self.polls: object = None  # the actor that has the event loop
        self.lasting = self.random.choice((0, 1, 5, 40))
        self.taken = 0

    @property
    def is_done(self) -> bool:
        return len(self.ran) == self.requests

    def run(self, connection: Any, cell: int) -> float:
        self.running += 1
        assert self.running <= self.lead.most
        for _ in range(self.random.randint(0, self.lasting)):
            self.schedule.switch()
        self.ran.append(connection)
        self.running -= 1
        if self.random.random() < 0.05:
            raise ValueError("a fault of the server")
        return self.random.choice((0.0001, 0.01))

    def lose(self, connection: Any, failure: BaseException) -> None:
        assert isinstance(failure, ValueError)

    def touch(self, actor: object) -> None:
        """The event loop is used, which one thread at a time may do."""
        assert self.polls is actor, "two threads have the event loop"

    def poll(self, actor: object) -> list[int]:
        self.touch(actor)
        if self.to_come and self.random.random() < 0.7:
            self.ready.append(self.to_come)
            self.to_come -= 1
        self.schedule.switch()
        return list(self.ready)

    def turn(self, actor: object, run: Callable[[Any], object]) -> None:
        for connection in self.poll(actor):
            self.touch(actor)
            self.ready.remove(connection)
            self.polls = None if run == self.lead.call else actor  # it may be lost in the call
            if run(connection) is TURN_OVER:
                return
            if run == self.lead.call:
                assert self.polls is None
                self.polls = actor
            self.touch(actor)

    def pass_on(self) -> None:
        self.polls = None
        if not self.lead.pass_on() and not self.is_done and self.lead.missing:
            self.start()

    def start(self) -> None:
        thread = self.lead.add(2)
        thread.ident = thread.number
        self.schedule.start(self.pool_thread, thread)

    def pool_thread(self, thread: PoolThread) -> None:
        """The loop of `ThreadsWorker._work`."""
        lead = self.lead
        while not self.is_done:
            connection = self.next_queued() or self.lead_loop(thread)
            if connection is not None:
                with suppress(ValueError):
                    lead.note(self.run(connection, thread.cell))
        lead.remove(thread)

    def next_queued(self) -> object:
        self.schedule.switch()
        return self.queue.popleft() if self.queue else None

    def lead_loop(self, thread: PoolThread) -> object:
        """The loop of `ThreadsWorker._lead_loop`."""
        lead = self.lead
        lead.enlist(thread)
        lead.lock.acquire()
        assert self.polls is None
        self.polls = thread
        lead.take(thread)
        try:
            while not self.is_done:
                if (connection := self.next_queued()) is not None:
                    return connection
                self.turn(thread, self.queue.append if lead.passes_first else lead.call)
                if not thread.leads:
                    return None
            return None
        finally:
            if thread.leads:
                self.pass_on()

    def main_thread(self) -> None:
        """The loop of `ThreadsWorker._look_after`."""
        lead = self.lead
        while not self.is_done:
            event = lead.look()
            if event == "taken":
                self.taken += 1
                self.pass_on()
            elif event == "fallback":
                assert self.polls is None
                self.polls = self
                while not (lead.is_wanted or self.is_done):
                    for _ in range(min(len(self.queue), lead.missing)):
                        self.start()
                    self.turn(self, self.queue.append)
                self.pass_on()
            lead.rest(1.0)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_each_request_runs_once_and_one_thread_polls_in_every_schedule(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "_LOOKS_BEFORE_SLEEP", 3)  # so that the main thread sleeps and is woken, too
    taken = 0
    for seed in range(150):
        world = World(seed, threads, requests=25)
        world.start()
        world.schedule.start(world.main_thread)
        world.schedule.run()
        assert sorted(world.ran) == list(range(1, 26))
        assert len(world.lead.threads) == 0
        taken += world.taken
    assert taken > 50, "no schedule has taken the lead from a thread in a call"


# ---- one step after the other ------------------------------------------------------------------------------


def lead_of(threads: int = 2, run: Callable[[Any, int], float] = lambda *_: 0.0) -> tuple[Leadership, PoolThread]:
    """Return a pool with one thread, which leads."""
    lead = Leadership(threads, deque(), run, lambda *_: None)
    thread = lead.add(2)
    lead.enlist(thread)
    lead.lock.acquire()
    lead.take(thread)
    return lead, thread


CONNECTION: Any = object()


def test_a_leader_in_short_calls_keeps_the_lead() -> None:
    lead, thread = lead_of()
    for _ in range(5):
        assert lead.call(CONNECTION) is None
        assert lead.look() == ""
    assert lead.leader is thread
    assert lead.lock.locked()


def test_the_second_look_at_the_same_call_takes_the_lead() -> None:
    looks: list[str] = []

    def run(connection: Any, cell: int) -> float:
        looks.extend(lead.look() for _ in range(3))
        return 1.0

    lead, _ = lead_of(run=run)
    assert lead.call(CONNECTION) is TURN_OVER
    assert looks == ["", "taken", ""]
    assert lead.lock.locked(), "the main thread has still to pass the lead on"
    assert not lead.pass_on(), "no thread stands by"
    assert not lead.lock.locked()
    assert lead.leader is None


def test_a_fault_in_a_call_costs_its_connection_and_not_the_lead() -> None:
    lost: list[tuple[Any, BaseException]] = []
    fault = ValueError()

    def run(connection: Any, cell: int) -> float:
        raise fault

    lead = Leadership(1, deque(), run, lambda *what: lost.append(what))
    thread = lead.add(2)
    lead.enlist(thread)
    lead.lock.acquire()
    lead.take(thread)
    assert lead.call(CONNECTION) is None
    assert lost == [(CONNECTION, fault)]
    assert lead.leader is thread
    assert not thread.token


def test_calls_that_usually_last_are_queued_until_they_are_short_again() -> None:
    def run(connection: Any, cell: int) -> float:
        lead.look()
        lead.look()
        return 0.1

    lead, thread = lead_of(run=run)
    for _ in range(5):
        assert lead.call(CONNECTION) is TURN_OVER
        lead.pass_on()
        lead.enlist(thread)
        lead.lock.acquire()
        lead.take(thread)
    assert not lead.passes_first, "five long calls are no rule yet"
    lead.call(CONNECTION)
    lead.pass_on()
    assert lead.passes_first
    queue: deque[Any] = lead._queue
    lead.call(CONNECTION)
    assert list(queue) == [CONNECTION]
    lead.note(0.1)
    for _ in range(40):
        lead.note(0.0001)
    assert not lead.passes_first


def test_a_long_call_now_and_then_is_no_reason_to_queue() -> None:
    lasts = False

    def run(connection: Any, cell: int) -> float:
        if lasts:
            lead.look()
            lead.look()
        return 0.0

    lead, thread = lead_of(run=run)
    for _ in range(50):
        lasts = False
        for _ in range(20):
            assert lead.call(CONNECTION) is None
        lasts = True
        assert lead.call(CONNECTION) is TURN_OVER
        lead.pass_on()
        lead.enlist(thread)
        lead.lock.acquire()
        lead.take(thread)
    assert not lead.passes_first


@pytest.mark.parametrize(("threads", "passes"), [(2, True), (1, False)])
def test_short_calls_that_mostly_wait_are_queued_where_others_could_run_them(threads: int, passes: bool) -> None:
    """The CPU time of the thread does not grow with the 0.5 ms of each call, so it has waited."""
    lead, _ = lead_of(threads, lambda *_: 0.0005)
    for _ in range(32):
        lead.call(CONNECTION)
    assert lead.passes_first is passes


def test_the_main_thread_leads_once_there_has_been_no_leader_for_a_while() -> None:
    lead, _ = lead_of()
    lead.pass_on()
    events = [lead.look() for _ in range(4)]
    assert events == ["", "", "", "fallback"]
    assert lead.is_fallback
    assert lead.lock.locked()
    assert not lead.pass_on()
    assert not lead.is_fallback


def test_the_main_thread_does_not_lead_while_a_thread_is_about_to() -> None:
    lead, thread = lead_of()
    lead.pass_on()
    lead.enlist(thread)
    lead.lock.acquire()
    assert [lead.look() for _ in range(6)] == [""] * 6
    assert lead.is_wanted
    lead.take(thread)
    assert not lead.is_wanted


class Wakeup:
    """The lock that the main thread sleeps on: something happens meanwhile."""

    def __init__(self, meanwhile: Callable[[], object]) -> None:
        self.meanwhile = meanwhile
        self.slept: list[float] = []
        self.woken = 0

    def acquire(self, timeout: float) -> bool:
        self.slept.append(timeout)
        self.meanwhile()
        return True

    def release(self) -> None:
        self.woken += 1


def test_the_main_thread_sleeps_while_nothing_happens_and_a_call_wakes_it() -> None:
    lead, _ = lead_of()
    wakeup = Wakeup(lambda: None)
    lead._wakeup = wakeup  # type: ignore[assignment]
    lead.rest(7.0)
    assert wakeup.slept == [leadership._LOOK_S], "it looks each millisecond"
    while not lead.is_quiet:
        lead.look()
    wakeup.meanwhile = lambda: lead.call(CONNECTION)
    lead.rest(7.0)
    assert wakeup.slept[1:] == [7.0]
    assert wakeup.woken == 1
    assert not lead.is_quiet, "it looks again"


def test_while_all_calls_are_short_it_looks_less_often() -> None:
    lead, thread = lead_of()

    def look_after(calls: int) -> float:
        for _ in range(calls):
            lead.call(CONNECTION)
        assert lead.look() == ""
        return lead.look_s

    often, seldom = leadership._LOOK_S, leadership._SELDOM_LOOK_S
    for _ in range(leadership._LOOKS_BEFORE_SELDOM):
        assert look_after(6) == often
    assert look_after(6) == seldom
    assert look_after(1) == often, "fewer calls: each may be longer"
    for _ in range(leadership._LOOKS_BEFORE_SELDOM):
        look_after(6)
    assert look_after(6) == seldom
    thread.token.append(None)  # the next call
    assert lead.look() == "taken"
    assert lead.look_s == often


def test_the_main_thread_does_not_sleep_over_a_call_that_has_just_begun() -> None:
    lead, thread = lead_of()
    wakeup = Wakeup(lambda: None)
    lead._wakeup = wakeup  # type: ignore[assignment]
    while not lead.is_quiet:
        lead.look()
    thread.token.append(None)  # before `helper_sleeps` was set: this call does not wake it
    lead.rest(7.0)
    assert wakeup.slept == []
    while not lead.is_quiet:
        lead._quiet += 1
    lead.pass_on()
    lead.rest(7.0)
    assert wakeup.slept == [], "the lead has been passed on: perhaps no thread comes for it"


def test_a_thread_that_does_not_come_back_is_replaced_until_all_are_stuck() -> None:
    lead, first = lead_of(2)
    first.ident = 11
    second = lead.add(2)
    second.ident = 12
    assert (lead.most, lead.missing) == (2, 0)
    assert lead.give_up_on(11) is first
    assert lead.give_up_on(11) is None, "it has been replaced"
    assert (lead.most, lead.missing, lead.lost) == (3, 1, 1)
    third = lead.add(2)
    assert third.number == 3
    assert third.cell == 1, "the row has no more cells"
    assert lead.give_up_on(12) is second
    third.ident = 13
    assert lead.give_up_on(13) is None, "as many as `threads` are stuck: the worker is to leave"
    lead.remove(first)
    assert (lead.most, lead.lost) == (3, 1)
