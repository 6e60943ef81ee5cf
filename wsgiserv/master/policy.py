"""Decides what to do about the workers: `plan` is a pure function of the fleet and the target.

`plan` changes nothing. The master's loop carries the actions out, notes events in the fleet (`Fleet.died`,
`Fleet.reported`), and asks again. The caller gives the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from signal import SIGABRT, SIGKILL, SIGQUIT, SIGTERM, Signals
from typing import Final, Literal, NamedTuple, TypeAlias

from wsgiserv.boot import Report
from wsgiserv.errors import ExitStatus
from wsgiserv.master.worker_handle import WorkerHandle

# A worker writes a heartbeat once a second, or four times in a shorter `timeout`, but not more often than every 50 ms,
# and up to 250 ms late: that is not silence.
HEARTBEAT_SLACK_S: Final = 0.5
# After ABRT a worker may take so long to report where it was, after QUIT to leave, before it is killed.
ABORT_KILL_S: Final = 1.0
QUIT_KILL_S: Final = 1.0
# A worker bounds its own retirement by graceful_timeout; it is killed when it is so much later than that.
RETIRE_MARGIN_S: Final = 1.0
# After so many rounds of failing boots, with nothing ever ready, the start (or the new generation) is given up.
BOOT_ROUNDS: Final = 3
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_LONGEST_S: Final = 30.0
# The exit of a worker so soon after it was ready is a crash of a possible crash loop.
EARLY_S: Final = 5.0
# The same where it was killed from outside: that is no fault of its code, unless it is killed as soon as it is there.
EARLY_KILLED_S: Final = 0.2
CRASH_WINDOW_S: Final = 30.0
# After so long without a crash a crash loop is over: longer than the longest pause.
CALM_S: Final = 60.0


class Spawn(NamedTuple):
    """Fork a worker of ``generation``."""

    generation: int


class Send(NamedTuple):
    """Send ``signal`` to ``worker``; ``reason`` continues a sentence about it: ``has not responded for 30 s``."""

    worker: WorkerHandle
    signal: Signals
    reason: str


class Promote(NamedTuple):
    """Put the newest generation in force: it is ready in full, and no older worker is left to replace."""

    generation: int


class Abandon(NamedTuple):
    """Roll back to the generation before: the newest one cannot boot, for ``reason``."""

    generation: int
    reason: str


class GiveUp(NamedTuple):
    """End with ``status``: nothing has ever been ready and nothing will be.

    ``report`` is a worker's report about it, or None when the workers exited without one.
    """

    status: int
    reason: str
    report: Report | None


class Stopped(NamedTuple):
    """End: the last worker has left, after ``Target.stop``."""


class Wait(NamedTuple):
    """Wait for an event, at most until ``until`` (``inf``: without limit). Always the last action."""

    until: float


Action: TypeAlias = Spawn | Send | Promote | Abandon | GiveUp | Stopped | Wait


@dataclass(frozen=True)
class Target:
    """The goal of `plan`.

    Attributes:
        wanted: for each generation the number of workers, oldest first. Two while a reload is under way.
        stop: ``graceful`` retires all workers, ``fast`` makes them leave at once.
        resumed_at: time-outs count from here at the earliest: when the master itself was stopped for a
            while (a suspended machine, SIGSTOP), the workers were, too.
        surge: how many workers more than wanted there may be while some are replaced (``reload_surge``).
        unavailable: how many may be leaving at once to be recycled (``max_unavailable``).
    """

    wanted: tuple[tuple[int, int], ...]
    stop: Literal["", "graceful", "fast"] = ""
    resumed_at: float = 0.0
    surge: int = 1
    unavailable: int = 1


@dataclass
class Failures:
    """The failed boots of one generation since one of its workers became ready.

    ``rounds`` counts tries, not workers.
    ``hung``: the last has taken longer than ``boot_timeout``.
    """

    rounds: int = 0
    not_before: float = -inf
    reason: str = ""
    report: Report | None = None
    hung: bool = False


@dataclass
class Crashes:
    """The exits of one generation's workers soon after they were ready, without being told to leave.

    ``level`` counts the pauses of the current crash loop; 0: there is none. ``pause_s`` is the last pause.
    ``told``: whether it has been logged.
    """

    times: list[float] = field(default_factory=list)
    level: int = 0
    not_before: float = -inf
    pause_s: float = 0.0
    told: bool = False


@dataclass
class Fleet:
    """The workers and the history of their failures.

    Attributes:
        workers: all workers from their fork until they are reaped.
        ever_ready: whether any worker has ever been ready.
        proven: the generations with a worker that has been ready: their code boots.
        failures, crashes: by generation.
    """

    workers: list[WorkerHandle] = field(default_factory=list)
    ever_ready: bool = False
    proven: set[int] = field(default_factory=set)
    failures: dict[int, Failures] = field(default_factory=dict)
    crashes: dict[int, Crashes] = field(default_factory=dict)

    def reported(self, worker: WorkerHandle, report: Report, now: float, jitter: float) -> None:
        """Note a report. ``jitter`` (0.75 to 1.25) scales the back-off."""
        # Jitter: servers that wait for the same database must not retry in step.
        if report.state == "ready":
            worker.ready_at = now
            self.ever_ready = True
            self.proven.add(worker.generation)
            # Rounds count in a row only: a boot that works ends the back-off.
            self.failures.pop(worker.generation, None)
        elif report.state == "retiring":
            worker.retiring_at = worker.retiring_at or now
        elif report.state == "recycle":
            worker.recycle(report.reason, now)
        elif report.state == "failed" and worker.failed is None:
            worker.failed, worker.failed_at = report, now
            # A worker that is told to leave while it boots may fail of that: its code is not to blame.
            if not worker.told_to_leave:
                failures = self.boot_failed(worker.generation, worker.spawned_at, report.reason, now, jitter)
                failures.report = report

    def died(self, worker: WorkerHandle, how: str, now: float, jitter: float, from_outside: bool = False) -> bool:
        """Note a reaped worker; return whether it was neither told to leave nor leaving by itself.

        Args:
            worker: the worker.
            how: ``was killed by SIGSEGV``, ``exited with status 1``.
            now: the time.
            jitter: see `reported`.
            from_outside: whether it was killed neither by the master, nor by the OOM killer.
        """
        self.workers.remove(worker)
        # An abort while booting is the master's, but the boot has failed.
        asked = worker.told_to_leave and not worker.hung
        if asked or worker.failed is not None or worker.retiring_at is not None:
            return False
        if worker.ready_at is None:
            # Without a pid its zygote has exited under it.
            subject = f"worker {worker.pid}" if worker.pid else "the zygote"
            reason = f"{subject} {how} while it was booting"
            failures = self.boot_failed(worker.generation, worker.spawned_at, reason, now, jitter)
            failures.hung = worker.hung
        elif now - worker.ready_at < (EARLY_KILLED_S if from_outside else EARLY_S):
            self._crashed(worker.generation, now, jitter)
        return True

    def boot_failed(self, generation: int, spawned_at: float, reason: str, now: float, jitter: float) -> Failures:
        """Note a failed boot, or a failed fork; return the generation's failures."""
        failures = self.failures.setdefault(generation, Failures())
        failures.reason = reason
        # All workers forked before the pause have failed of one cause, and count as one try.
        if spawned_at >= failures.not_before:
            failures.rounds += 1
            failures.not_before = now + _pause(failures.rounds, jitter)
        return failures

    def _crashed(self, generation: int, now: float, jitter: float) -> None:
        # A worker that was killed once is replaced at once; code that always crashes early must not cost a CPU.
        crashes = self.crashes.setdefault(generation, Crashes())
        if crashes.times and now - crashes.times[-1] > CALM_S:
            crashes.level = 0
            crashes.told = False
        crashes.times = [then for then in crashes.times if then > now - CRASH_WINDOW_S]
        crashes.times.append(now)
        # The more workers, the more crashes are chance: each of them may crash twice in the window.
        if crashes.level or len(crashes.times) > 2 * (len(self.workers) + 1) + 2:
            crashes.level += 1
            crashes.pause_s = _pause(crashes.level, jitter)
            crashes.not_before = now + crashes.pause_s

    def untold_loop(self, generation: int) -> Crashes | None:
        """Return the new crash loop of a generation, once; None when there is none."""
        crashes = self.crashes.get(generation)
        if crashes is None or not crashes.level or crashes.told:
            return None
        crashes.told = True
        return crashes

    def forget_others(self, generation: int) -> None:
        """Forget how workers of other generations have failed: ``generation`` is the one in force."""
        self.failures = {number: each for number, each in self.failures.items() if number == generation}
        self.crashes = {number: each for number, each in self.crashes.items() if number == generation}


def _pause(number: int, jitter: float) -> float:
    """Return the length of the pause ``number``, from 1, of a back-off."""
    # 16: a float overflows at some 2 ** 1024, and failures may go on for months.
    return min(BACKOFF_FIRST_S * 2.0 ** min(number - 1, 16), BACKOFF_LONGEST_S) * jitter


def plan(fleet: Fleet, target: Target, now: float) -> list[Action]:
    """Return the actions to take now, the last of them a `Wait`. Pure: the same arguments, the same answer.

    Called by the master's loop after each event. Its guarantees:

    - it replaces a dead worker at once, unless boots fail: then one worker at a time tries, less and less often;
    - at a reload it first boots one worker of the new generation, and retires nothing before it is ready;
    - it retires a serving worker only when there is one too many, so one to be replaced only after its replacement is
      ready;
    - it sends a worker no signal twice, and kills one for not obeying in time.
    """
    actions: list[Action] = []
    wake = inf
    if target.stop:
        if not fleet.workers:
            return [Stopped()]
        unwanted = set(fleet.workers)
    else:
        outcome = _reload_outcome(fleet, target)
        if outcome is not None:
            return [outcome]  # it changes the target, on which all else depends
        unwanted = set(_surplus(fleet, target))

    for worker in fleet.workers:
        signal, reason, due = _next_signal(worker, worker in unwanted, target, now)
        if signal is not None and due <= now:
            actions.append(Send(worker, signal, reason))
            due = now  # the next signal has its own time, which the next plan gives
        wake = min(wake, due)

    if not target.stop:
        spawns, at = _spawns(fleet, target, now)
        actions += spawns
        wake = min(wake, at)
    actions.append(Wait(wake))
    return actions


def _reload_outcome(fleet: Fleet, target: Target) -> Promote | Abandon | GiveUp | None:
    """Return whether the newest generation is in place, or has failed; None while undecided."""
    newest, count = target.wanted[-1]
    rolling = len(target.wanted) > 1
    if rolling and newest in fleet.proven:
        serving = sum(w.serving for w in fleet.workers if w.generation == newest)
        # Those that leave do not count: a long request would hold up the end of the reload.
        if serving >= count and not any(w.generation != newest and not w.leaving for w in fleet.workers):
            return Promote(newest)
    elif rolling and not count:
        return Promote(newest)
    failures = fleet.failures.get(newest)
    if failures is None or (fleet.ever_ready and not rolling):
        return None
    # A reload is not to take boot_timeout three times over.
    is_clear = failures.report is not None or (failures.hung and fleet.ever_ready)
    # Once a worker of it has been ready its code is good: what fails now may be chance, and is tried again.
    if (not is_clear or newest in fleet.proven) and failures.rounds < BOOT_ROUNDS:
        return None
    if fleet.ever_ready:
        return Abandon(newest, failures.reason)
    status = failures.report.exit_status if failures.report is not None else 0
    return GiveUp(status or ExitStatus.BOOT, failures.reason, failures.report)


def _active_generations(fleet: Fleet, target: Target) -> Iterator[tuple[int, int, list[WorkerHandle]]]:
    """Yield each active generation, the number of workers it may have, and those it has.

    While a reload is under way the older generation is active until the newer one is proven; from then on its
    workers are to be replaced, as are those of an abandoned generation.
    """
    active = [worker for worker in fleet.workers if not worker.leaving]
    newest, count = target.wanted[-1]
    if len(target.wanted) > 1 and newest not in fleet.proven:
        current, wanted = target.wanted[-2]
        yield current, wanted, [w for w in active if w.generation != newest]
        # One that hangs has not exited yet, but no other is tried in its place: its exit decides.
        canaries = [w for w in fleet.workers if w.generation == newest and (w.hung or not w.leaving)]
        yield newest, min(count, 1), canaries
    else:
        yield newest, count, active


def _is_stale(worker: WorkerHandle, newest: int) -> bool:
    """Whether a worker is to be replaced."""
    return worker.generation != newest or worker.recycle_at is not None


def _surplus(fleet: Fleet, target: Target) -> Iterator[WorkerHandle]:
    """Yield each unwanted worker: first those still booting, then the oldest."""
    for generation, count, active in _active_generations(fleet, target):
        fresh = [w for w in active if not _is_stale(w, generation)]
        booting = sorted((w for w in fresh if w.ready_at is None), key=lambda w: w.age)
        yield from booting[: max(0, len(fresh) - count)]
        # Those that boot with old code, or only to be replaced, at once: no request depends on them.
        yield from (w for w in active if w.ready_at is None and _is_stale(w, generation))
        ready = [w for w in active if w.ready_at is not None]
        # Those to be replaced first, and of these those of another configuration.
        ready.sort(key=lambda w: (w.generation == generation, w.recycle_at is None, w.is_busy, w.age))
        # One that only lingers has its replacement already, and must not hold up the next one.
        leaving = sum(w.leaving and w.recycle_at is not None and not w.lingers for w in fleet.workers)
        # Without wanted workers (SIGWINCH) no capacity is to be kept.
        room = max(0, target.unavailable - leaving) if count else len(ready)
        for worker in ready[: max(0, len(ready) - count)]:
            if worker.recycle_at is not None and worker.generation == generation:
                if not room:
                    continue
                room -= 1
            yield worker


def _next_signal(worker: WorkerHandle, unwanted: bool, target: Target, now: float) -> tuple[Signals | None, str, float]:
    """Return the next signal for ``worker`` if nothing happens, the reason, and when it is due."""
    if worker.kill_at is not None:
        return None, "", inf
    if worker.abort_at is not None:
        return SIGKILL, "did not end after SIGABRT", worker.abort_at + ABORT_KILL_S
    if worker.quit_at is not None:
        return SIGKILL, "did not leave at once when told to", worker.quit_at + QUIT_KILL_S
    if target.stop == "fast":
        return SIGQUIT, "is to leave at once", now
    if worker.term_at is not None and worker.ready_at is None:
        # A booting worker has nothing to finish, and leaves at once. It gets TERM all the same: it may have begun to
        # accept, and its report may be on the way.
        return SIGKILL, "did not leave when told to while it was booting", worker.term_at + QUIT_KILL_S
    left_at = worker.term_at if worker.term_at is not None else worker.retiring_at
    if left_at is not None:
        late = left_at + worker.graceful_timeout + RETIRE_MARGIN_S
        return SIGKILL, f"did not retire within graceful_timeout ({worker.graceful_timeout:g} s)", late
    # After the pending signals: a worker is told to leave once.
    if unwanted:
        return SIGTERM, "is to retire", now
    if worker.failed is not None:
        return SIGKILL, "could not boot, and did not exit", worker.failed_at + QUIT_KILL_S
    if worker.ready_at is None:
        # Not `timeout`: an import sends no heartbeat, and takes as long as it takes.
        limit = worker.boot_timeout
        since = max(worker.spawned_at, target.resumed_at)
        return SIGABRT, f"was not ready after {limit:g} s (boot_timeout)", since + (limit or inf)
    if not worker.timeout:
        return None, "", inf
    # From ready_at: the first heartbeat comes with the first turn of the worker's loop.
    since = max(worker.heartbeat, worker.ready_at, target.resumed_at)
    late = since + worker.timeout + HEARTBEAT_SLACK_S
    return SIGABRT, f"has not responded for {worker.timeout:g} s (timeout)", late


def _spawns(fleet: Fleet, target: Target, now: float) -> tuple[list[Spawn], float]:
    """Return the workers to fork now, and when to look again."""
    spawns: list[Spawn] = []
    wake = inf
    # Workers that retire slowly (long requests, max_requests) must not pile up without bound.
    most = 3 * max((count for _, count in target.wanted), default=0) + 2
    for generation, count, active in _active_generations(fleet, target):
        stale = [w for w in active if _is_stale(w, generation)]
        missing = min(count - len(active) + len(stale), count + target.surge - len(active))
        if missing <= 0:
            continue
        if any(w.hung and w.generation == generation for w in fleet.workers):
            continue  # its exit will be a boot that failed, and decides how to go on
        failures = fleet.failures.get(generation)
        crashes = fleet.crashes.get(generation)
        not_before = crashes.not_before if crashes is not None else -inf
        if failures is not None:
            not_before = max(not_before, failures.not_before)
            # One boots for all, until it is ready.
            missing = 0 if any(w.booting for w in active) else 1
        if not_before > now:
            wake = min(wake, not_before)
            continue
        for _ in range(missing):
            alive = len(fleet.workers) + len(spawns)
            # But one is always spawned where none serves, however many old ones have not left.
            if alive >= most and (active or spawns):
                break
            spawns.append(Spawn(generation))
            wake = now
    return spawns, wake
