"""The plan in a simulated world: workers that boot, fail, crash, hang and dawdle at random, on an invented clock.

Each seed is one history. What must always be true is checked after every step, and at the end, when the world
has become kind, the fleet must be whole.
"""

from __future__ import annotations

import random
from math import inf
from signal import SIGKILL, SIGQUIT, SIGTERM

import pytest

from wsgiserv.boot import Report
from wsgiserv.master.policy import Abandon, Fleet, GiveUp, Promote, Send, Spawn, Stopped, Target, Wait, plan
from wsgiserv.master.worker_handle import WorkerHandle


class World:
    """Workers with a fate, and a master that only does what the plan says."""

    def __init__(self, seed: int, count: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.fleet = Fleet()
        self.count = count
        self.wanted: tuple[tuple[int, int], ...] = ((1, count),)
        self.stop = ""
        self.age = 0
        self.spawned_at: list[float] = []
        self.events: list[tuple[float, int, WorkerHandle, str]] = []  # time, tie breaker, worker, what happens
        self.broken_generations: set[int] = set()
        self.kind = False
        self.gave_up: GiveUp | None = None
        self.over = False

    # -- fate

    def later(self, delay_s: float, worker: WorkerHandle, what: str) -> None:
        self.events.append((self.now + delay_s, self.random.randrange(1 << 30), worker, what))

    def spawn(self, generation: int) -> None:
        self.age += 1
        worker = WorkerHandle(
            age=self.age, generation=generation, spawned_at=self.now, timeout=5.0, graceful_timeout=10.0, pid=self.age
        )
        self.fleet.workers.append(worker)
        self.spawned_at.append(self.now)
        roll = self.random.random()
        boot_s = self.random.uniform(0.05, 2.0)
        if generation in self.broken_generations:
            self.later(boot_s, worker, self.random.choice(["failed", "dies"]))
        elif self.kind or roll < 0.85:
            self.later(boot_s, worker, "ready")
        elif roll < 0.93:
            self.later(boot_s, worker, "dies")
        # else it hangs in its boot

    def happen(self, worker: WorkerHandle, what: str) -> None:
        if worker not in self.fleet.workers:
            return
        jitter = self.random.uniform(0.75, 1.25)
        if what == "ready" and worker.ready_at is None and worker.failed is None:
            self.fleet.reported(worker, Report("ready"), self.now, jitter)
            worker.heartbeat = self.now
            if not self.kind:
                roll = self.random.random()
                fate = "dies" if roll < 0.2 else "retiring" if roll < 0.4 else "hangs" if roll < 0.5 else ""
                if fate:
                    self.later(self.random.uniform(0.1, 60), worker, fate)
        elif what == "failed":
            self.fleet.reported(worker, Report("failed", "broken", "", 4), self.now, jitter)
            self.later(0.01, worker, "dies")
        elif what == "retiring" and not worker.leaving:
            self.fleet.reported(worker, Report("retiring"), self.now, jitter)
            self.later(self.random.uniform(0.1, 20), worker, "dies")
        elif what == "hangs":
            worker.view = "hung"  # the simulation's own mark
        elif what == "dies":
            self.fleet.died(worker, "was killed by SIGSEGV", self.now, jitter)

    def send(self, action: Send) -> None:
        worker, signal, _ = action
        name = {SIGTERM: "term_at", SIGQUIT: "quit_at", SIGKILL: "kill_at"}.get(signal, "abort_at")
        assert getattr(worker, name) is None, f"{signal.name} twice"
        setattr(worker, name, self.now)
        hung = worker.view is not None
        if signal == SIGKILL:
            self.later(0.01, worker, "dies")
        elif not hung and self.random.random() < 0.9:
            # One that is booting leaves at once, one that serves has requests to finish.
            finishing = signal == SIGTERM and worker.ready_at is not None
            self.later(self.random.uniform(0.01, 12 if finishing else 0.5), worker, "dies")

    # -- time

    def step(self) -> None:
        """Act, check, and go on to the next thing that happens."""
        for _ in range(100):
            until = self.act()
            if until is None:
                return
            if until > self.now:
                break
        else:
            raise AssertionError("the plan never comes to rest")
        self.check()
        upcoming = min((event[0] for event in self.events), default=inf)
        self.now = min(until, upcoming, self.now + 1.0)
        for worker in self.fleet.workers:
            if worker.ready_at is not None and worker.view is None:
                worker.heartbeat = self.now
        due = sorted(event for event in self.events if event[0] <= self.now)
        self.events = [event for event in self.events if event[0] > self.now]
        for _, _, worker, what in due:
            self.happen(worker, what)

    def act(self) -> float | None:
        target = Target(self.wanted, self.stop)  # type: ignore[arg-type]
        serving = {w.age for w in self.fleet.workers if w.serving}
        actions = plan(self.fleet, target, self.now)
        assert actions == plan(self.fleet, target, self.now), "the plan is not pure"
        until: float | None = self.now
        for action in actions:
            match action:
                case Spawn(generation):
                    self.spawn(generation)
                case Send():
                    if action.worker.age in serving and action.signal == SIGTERM and not self.stop:
                        self.check_retirement(action.worker)
                    self.send(action)
                case Promote(generation):
                    self.wanted = ((generation, dict(self.wanted)[generation]),)
                case Abandon():
                    assert len(self.wanted) == 2
                    self.wanted = self.wanted[:1]
                case GiveUp():
                    self.gave_up, self.stop = action, "fast"
                case Stopped():
                    self.over, until = True, None
                case Wait(until=moment):
                    until = moment
        return until

    # -- what must always be true

    def check_retirement(self, worker: WorkerHandle) -> None:
        """A worker that serves is retired only when others do its work; none while the new code is unproven."""
        newest, count = self.wanted[-1]
        serving = [w for w in self.fleet.workers if w.serving]
        if len(self.wanted) > 1 and newest not in self.fleet.proven:
            same = [w for w in serving if w.generation != newest]
            assert len(same) > self.wanted[0][1]
        else:
            assert len(serving) > count

    def check(self) -> None:
        most = max(count for _, count in self.wanted)
        active = [w for w in self.fleet.workers if not w.leaving]
        if not self.stop:
            for generation, count in self.wanted:
                assert sum(w.generation == generation for w in active) <= count
        # never more than the old, the new and those that leave, and one that serves in any case
        assert len(self.fleet.workers) <= 3 * max(most, self.count) + 3
        lately = sum(then > self.now - 1.0 for then in self.spawned_at)
        assert lately <= 4 * self.count + 4, "a fork storm"
        for worker in self.fleet.workers:
            # nobody outlives an order by much
            if worker.kill_at is not None:
                assert self.now - worker.kill_at < 2
            if worker.term_at is not None and worker.kill_at is None:
                assert self.now - worker.term_at < 13


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_the_fleet_is_whole_when_the_world_is_kind(seed: int) -> None:
    world = World(seed, count=1 + seed % 5)
    generation = 1
    while world.now < 300 and not world.over:
        if world.fleet.ever_ready and len(world.wanted) == 1 and world.random.random() < 0.02:
            generation += 1
            if world.random.random() < 0.5:
                world.broken_generations.add(generation)
            world.wanted = (*world.wanted, (generation, world.random.randint(1, 5)))
        world.step()
    if world.gave_up:
        # only before anything was ready
        assert not world.fleet.ever_ready
        assert world.over
        return
    world.kind = True
    for worker in world.fleet.workers:
        worker.view = None
    world.events = [event for event in world.events if event[3] in ("ready", "dies") and event[2].leaving]
    while world.now < 500:
        world.step()
    ((newest, count),) = world.wanted
    assert newest not in world.broken_generations
    assert [w.generation for w in world.fleet.workers if w.serving] == [newest] * count
    world.stop = "graceful"
    begun = world.now
    while not world.over:
        world.step()
    assert world.now - begun < 13


@pytest.mark.parametrize("seed", range(5))
def test_a_ready_fleet_never_shrinks_because_new_workers_fail(seed: int) -> None:
    world = World(seed, count=4)
    world.kind = True
    while sum(w.serving for w in world.fleet.workers) < 4:
        world.step()
    survivors = {w.age for w in world.fleet.workers}
    # a bad deploy, and more workers wanted of code that cannot boot any more
    world.broken_generations.update({1, 2})
    world.wanted = ((1, 4), (2, 4))
    spawned = len(world.spawned_at)
    while world.now < 600:
        if world.now > 100:
            world.wanted = ((1, 6),)
        world.step()
        assert survivors <= {w.age for w in world.fleet.workers if w.serving}
    # 500 s of trying: the pauses have grown to 30 s
    assert len(world.spawned_at) - spawned < 40
    assert not world.stop


@pytest.mark.parametrize("seed", range(5))
def test_a_first_start_that_cannot_be_ends_soon(seed: int) -> None:
    world = World(seed, count=4)
    world.broken_generations.add(1)
    while not world.over:
        world.step()
        assert world.now < 30
    assert world.gave_up is not None
    assert world.gave_up.status in (3, 4)
    assert len(world.spawned_at) <= 7
