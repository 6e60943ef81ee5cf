"""The ``threads`` worker: one event_loop, led by one thread at a time, which runs the application itself.

Owns: the threads, who of them leads, when the lead is passed on.
Must not know: HTTP, the master.

The thread that holds the baton leads: it polls, reads, and runs what is ready, so a quick application runs
at the speed of ``sync``: no queue, no hand-over. Two things move the lead to another thread:

- a call that lasts: the main thread, which never runs the application, looks every millisecond and takes the
  lead away from a leader that sits in the same call as before;
- calls that usually last: then the leader passes the baton before the call.

While every thread is busy the main thread leads, as a deputy: it reads, flushes, sweeps, answers signals, and
queues what is ready for the first thread that is free.
"""

from __future__ import annotations

import atexit
import os
import threading
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from contextvars import Context
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Final

from setproctitle import setthreadtitle

from wsgiserv.boot import EXIT_OK, WorkerBoot
from wsgiserv.errors import ConfigError
from wsgiserv.net.client import Connection
from wsgiserv.process import flush_standard_streams
from wsgiserv.unpatched import OSThread, no_real_threads, patched_by, start_thread
from wsgiserv.wording import counted
from wsgiserv.worker.active_requests import progress
from wsgiserv.worker.event_loop_worker import EventLoopWorker, TurnEnded
from wsgiserv.worker.fresh_context import fresh_contexts
from wsgiserv.worker.helper_thread import cannot_start

if TYPE_CHECKING:
    from wsgiserv.worker.request_timeout import Deadlines

__all__ = ["ThreadsWorker"]

# How often the main thread looks whether the leader sits in a call. A call is long after one to two of these.
_LOOK_S: Final = 0.001
_LOOKS_PER_SECOND: Final = 1000
# After so many looks at which nothing had happened it sleeps until it is called.
_LOOKS_BEFORE_SLEEP: Final = 50
_SLEEP_S: Final = 1.0
# With no leader for so many looks, all threads are busy: the deputy leads.
_LOOKS_WITHOUT_LEADER: Final = 3
# The rate of long calls, from 0 to 1, at which the baton is passed before the call, and at which no more.
_PASS_ABOVE: Final = 0.5
_LEAD_BELOW: Final = 0.1
# How much one long call raises that rate, and one short call on a thread that had passed the baton lowers it.
_RAISE: Final = 1 / 8
_LOWER: Final = 1 / 16
_SHORT_S: Final = 0.00025
_LONG_S: Final = 0.001
# So many calls of a leader make a sample. When they have waited for so long on average (for a database, say),
# others could have run meanwhile.
_SAMPLE: Final = 32
_WAITED_S: Final = 0.0001
# How often the deputy looks whether the running requests make progress: often enough for a `timeout` of a second.
_PROGRESS_S: Final = 0.25
# How often it is said that no thread can be started.
_WARN_AGAIN_S: Final = 60.0
# How long a thread may take to come back after its request was interrupted, before another takes its place.
_STUCK_S: Final = 1.0
# How long all threads together may take to end when the worker does, and when that is to be at once.
_FAREWELL_S: Final = 1.0
_FAST_FAREWELL_S: Final = 0.2


class _LeadershipLost(TurnEnded):
    """Ends the turn of a leader that has lost the lead, or has given it up to run ``connection``."""

    def __init__(self, connection: Connection | None) -> None:
        super().__init__()
        self.connection = connection


class _Lane:
    """One thread that runs requests.

    Attributes:
        number: from 1 on.
        cell: its cell of the scoreboard.
        token: holds one item while the thread leads and is in a call. Whoever pops it has the lead: the thread
            itself at the end of the call, or the main thread before that. `list.pop` is atomic.
        calls: calls made since it leads.
        wall_s: seconds spent in them.
        cpu_s: CPU time of the thread when these two were 0.
        lost: it is in a call that is overdue, and another thread has been started in its place.
    """

    __slots__ = ("calls", "cell", "cpu_s", "ident", "lost", "number", "thread", "token", "wall_s")

    def __init__(self, number: int, cell: int) -> None:
        self.number = number
        self.cell = cell
        self.token: list[None] = []
        self.calls = 0
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self.lost = False
        self.ident = 0
        self.thread: threading.Thread | OSThread


class ThreadsWorker(EventLoopWorker):
    """Runs requests in up to ``threads`` threads at once, started as they are needed."""

    multithread = True

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self._lost = 0
        self._lanes: list[_Lane] = []
        self._free_numbers = deque(range(1, 2 * self.cfg.threads + 1))
        self._baton = allocate_lock()
        self._leader: _Lane | None = None
        self._standby: deque[_Lane] = deque()
        self._queue: deque[Connection] = deque()
        self._long_rate = 0.0
        self._passes_first = False
        # The main thread sleeps on the bell while nothing happens.
        self._helper_wakeup = allocate_lock()
        self._asleep = False
        self._deputy_leads = False
        self._deadlines: Deadlines | None = None
        self._progress: dict[str, int] = {}
        self._warned_of_threads = -_WARN_AGAIN_S
        self.run_request = self._lead_through
        self._run_fresh = fresh_contexts(Context())

    @property
    def _most(self) -> int:
        """How many threads there may be."""
        return self.cfg.threads + self._lost

    @property
    def is_done(self) -> bool:
        """As of the base; who has been answered with 504 while a thread does not come back is not waited for."""
        return self.leave_now or (
            self.retiring and (len(self.event_loop.connections) <= self._lost or monotonic() > self.leave_by)
        )

    def _occupancy(self) -> float:
        """As of the base: threads that are in a call."""
        return self.boot.slot.load()[0] / self._most

    def load(self) -> None:
        """As of the base; with ``request_timeout`` the calls are watched. Raises ConfigError without real threads."""
        super().load()
        if reason := no_real_threads("the application"):
            raise ConfigError(f"worker_class = 'threads': {reason}")
        if self.cfg.request_timeout:
            from wsgiserv.worker.request_timeout import Deadlines, interrupt_thread

            self._deadlines = Deadlines(self.cfg.request_timeout, self.log, self.calls, interrupt_thread)
            self.context.call = self._deadlines.call

    def serve(self) -> None:
        """Start the first thread and look after it and its like, until the worker has left."""
        self._helper_wakeup.acquire()
        resume = self.event_loop.resume

        def resume_and_wake(connection: Connection) -> None:
            resume(connection)
            leader = self._leader
            if leader is None or leader.ident != get_ident():
                self._wake()  # the leader's poll does not see what another thread has queued

        self.event_loop.resume = resume_and_wake  # type: ignore[method-assign]
        self._baton.acquire()  # no thread leads before the worker is ready; and it is not without one that can
        try:
            self._start_thread()
        except RuntimeError as error:
            raise cannot_start("wsgiserv-request-1", error) from error
        self.start()
        self._baton.release()
        try:
            while True:
                try:
                    self._look_after()
                    break
                except BaseException as error:
                    failure = error
                self.survive(failure)
            # Who has just answered is to come back from the application, which could not be let go of otherwise.
            # One that is late already has no second more: the master kills it then.
            in_time = not self.leave_now and monotonic() < self.leave_by
            latest = monotonic() + (_FAREWELL_S if in_time else _FAST_FAREWELL_S)
            for lane in list(self._lanes):
                lane.thread.join(0.0 if lane.lost else max(0.0, latest - monotonic()))
            self.end_if_failed()
        finally:
            self._close_connections()

    def _waiting_requests(self) -> Iterator[Connection]:
        """As of the base."""
        while self._queue:
            try:
                yield self._queue.popleft()
            except IndexError:
                return

    def _let_go(self) -> None:
        """As of the base; where a request has patched the threads, this is the end of the process.

        The patch has given the `threading` module another idea of the main thread, for which the interpreter would
        wait without end.
        """
        super()._let_go()
        if patched_by():
            atexit._run_exitfuncs()
            flush_standard_streams(wait=True)
            os._exit(EXIT_OK)

    # ---- the threads of requests -----------------------------------------------------------------------

    def _start_thread(self) -> None:
        """Start one more thread. Raises RuntimeError when the system starts none."""
        number = self._free_numbers.popleft()
        lane = _Lane(number, min(number, self.boot.slot.cells) - 1)
        name = f"wsgiserv-request-{number}"
        self._lanes.append(lane)
        try:
            if patched_by():
                # By a request: a Thread would be a greenlet now, and wait for the thread that starts it.
                lane.thread = start_thread(self._work, (lane,), name=name)
            else:
                # Python's own, since the application runs there: threading.current_thread() is to know it.
                lane.thread = thread = threading.Thread(
                    target=self._work, args=(lane,), name=name, daemon=True
                )
                thread.start()
        except BaseException:
            self._lanes.remove(lane)
            self._free_numbers.appendleft(number)
            raise

    def _start_another(self) -> None:
        """Start one more thread, if the system does: there are others."""
        try:
            self._start_thread()
            return
        except RuntimeError as error:
            failure = error
        now = monotonic()
        if (
            now - self._warned_of_threads > _WARN_AGAIN_S
        ):  # it is tried again for each request that finds all busy
            self._warned_of_threads = now
            self.log.error(
                "cannot start thread %d of %d: %s (see ulimit -u and the memory)",
                len(self._lanes) + 1,
                self._most,
                failure,
            )

    def _work(self, lane: _Lane) -> None:
        """Lead, serve, and queue up for the lead again; the life of one thread."""
        setthreadtitle(f"request-{lane.number}")
        lane.ident = get_ident()
        try:
            while not lane.lost:
                try:
                    if self._serve_next(lane):
                        continue
                    break
                except BaseException as error:
                    failure = error
                self.survive(failure)
        finally:
            self._lanes.remove(lane)
            self._free_numbers.append(lane.number)
            if lane.lost:
                self._lost -= 1

    def _serve_next(self, lane: _Lane) -> bool:
        """Run a request that waits, or lead until the lead is lost; False when the worker has left."""
        try:
            connection = self._queue.popleft()
        except IndexError:
            connection = None
        # Outside of the handler, which the application would find in sys.exc_info().
        if connection is None:
            deposed = self._lead(lane)
            if deposed is None:
                return False
            if deposed.connection is None:
                self._end_call()
                return True
            connection = deposed.connection
        elapsed_s = self._run(connection, lane.cell)
        if elapsed_s < _SHORT_S:
            self._long_rate -= self._long_rate * _LOWER
            if self._long_rate < _LEAD_BELOW:
                self._passes_first = False
        elif elapsed_s > _LONG_S:
            self._long_rate += (1.0 - self._long_rate) * _RAISE
        self._end_call()
        return True

    def _run(self, connection: Connection, cell: int) -> float:
        """Run a request in a context of its own, as in a thread that has just been started; return the seconds."""
        try:
            return self._run_fresh(connection, cell)
        except BaseException as error:  # a fault of ours must not cost the thread
            failure = error
        self.lose(connection, failure, is_mine=True)
        return 0.0

    def stop_accepting(self) -> None:
        """As of the base; requests that come in this moment are queued: the lead must not be lost half-way."""
        before, self.run_request = self.run_request, self._queue.append
        try:
            super().stop_accepting()
        finally:
            self.run_request = before

    def _end_call(self) -> None:
        """What a thread that does not lead owes after a call: the leader may sleep for a second."""
        if self.context.access is not None:
            self.context.access.flush()
        if self.retiring:
            self._wake()

    def _lead(self, lane: _Lane) -> _LeadershipLost | None:
        """Wait for the lead and lead, until it is lost; None when the worker has left."""
        self._standby.append(lane)
        if self._deputy_leads:
            self._wake()
        self._baton.acquire()
        deposed: _LeadershipLost | None = None
        try:
            self._standby.remove(lane)
            self._leader = lane
            lane.calls = 0
            lane.wall_s = 0.0
            lane.cpu_s = thread_time()
            while not self.is_done:
                if self._queue:
                    return self._give_up_lead(_LeadershipLost(self._queue.popleft()))
                try:
                    if self._passes_first or self.context.now > self._tick_due:
                        self._collect()
                    else:
                        self.turn(self._turn_s)
                    continue
                except _LeadershipLost:
                    raise
                except BaseException as error:  # a fault of ours must not cost the thread
                    failure = error
                self.survive(failure)
        except _LeadershipLost as error:
            deposed = error
        except BaseException:
            self._give_up_lead(None)
            raise
        if deposed is None:
            self._leader = None
            self._baton.release()
            self._wake_helper()
            return None
        # Without a connection somebody else has taken the lead.
        return self._give_up_lead(deposed) if deposed.connection is not None else deposed

    def _give_up_lead(self, deposed: _LeadershipLost | None) -> _LeadershipLost | None:
        self._pass_on()
        return deposed

    def _collect(self) -> None:
        """Make a turn to its end and only queue what is ready.

        A turn that a request ends half-way owes its tick. Were all to end so, the heartbeat would stand still, and
        the master would kill a worker that is well.
        """
        self.run_request = self._queue.append
        try:
            self.turn(self._turn_s)
        finally:
            self.run_request = self._lead_through

    def _lead_through(self, connection: Connection) -> None:
        """Run a request as the leader. Raises `_LeadershipLost` when the lead is lost by that."""
        if self._passes_first:
            raise _LeadershipLost(connection)
        lane = self._leader
        assert lane is not None
        lane.token.append(None)
        if self._asleep:
            self._wake_helper()
        failure = None
        try:  # not by `_run`: the interpreter cannot cache a method of a class with so many attributes
            lane.wall_s += self._run_fresh(connection, lane.cell)
        except BaseException as error:
            failure = error
        try:
            lane.token.pop()
        except IndexError:
            is_deposed = True
        else:
            is_deposed = False
            lane.calls += 1
            if not lane.calls % _SAMPLE:
                self._judge(lane)
        if failure is not None:
            self.lose(connection, failure, is_mine=True)
        if is_deposed:
            raise _LeadershipLost(None)

    def _judge(self, lane: _Lane) -> None:
        """Have the last calls, each too short to be noticed, mostly waited? Nobody else has run meanwhile."""
        cpu_s = thread_time()
        waited_s = (lane.wall_s - (cpu_s - lane.cpu_s)) / _SAMPLE
        lane.wall_s = 0.0
        lane.cpu_s = cpu_s
        if waited_s > _WAITED_S and self._most > 1:
            self._long_rate = 1.0
            self._passes_first = True
        else:
            self._long_rate *= 0.25

    def _pass_on(self) -> None:
        """Give the lead to a thread that is free, or to a new one. By the leader, or in its stead."""
        self._leader = None
        nobody = not self._standby  # nobody leaves the standby while the baton is held
        self._baton.release()
        if nobody:
            if len(self._lanes) < self._most:
                self._start_another()
            elif self._asleep:
                self._wake_helper()

    def _wake(self) -> None:
        """Let the leader look again."""
        try:
            self._wakeup_writer.send(b"\0")
        except OSError:
            pass  # it is about to wake already, or the worker has ended

    def _wake_helper(self) -> None:
        self._asleep = False
        try:
            self._helper_wakeup.release()
        except RuntimeError:
            pass  # another thread has just done so

    # ---- the main thread -------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Take the lead from whoever sits in a call, lead while nobody else can, watch the requests' time."""
        seen: tuple[_Lane | None, int] = (None, -1)
        quiet = leaderless = looks = 0
        look_s = self._deadlines.look_s if self._deadlines is not None else _SLEEP_S
        next_look = 0.0
        while not self.is_done:
            leader = self._leader
            now_seen = (leader, leader.calls if leader is not None else -1)
            if leader is not None:
                leaderless = 0
                if leader.token and now_seen == seen:
                    self._take_lead(leader)
                elif now_seen == seen:
                    quiet += 1
                else:
                    quiet = 0
            else:
                quiet = 0
                leaderless += 1
                if leaderless > _LOOKS_WITHOUT_LEADER and self._baton.acquire(blocking=False):
                    self._lead_as_deputy(look_s)
                    leaderless = 0
            seen = now_seen
            looks += 1
            if quiet >= _LOOKS_BEFORE_SLEEP or not looks % _LOOKS_PER_SECOND:
                self._signals.look()  # this is the main thread, which alone can
            if self._deadlines is not None and (now := monotonic()) >= next_look:
                next_look = now + look_s
                self._enforce_deadlines(self._deadlines, now)
            if quiet < _LOOKS_BEFORE_SLEEP:
                self._helper_wakeup.acquire(timeout=_LOOK_S)
            else:
                self._asleep = True
                # A call may have begun just before, or the lead been passed on: nobody has seen that it must ring.
                if leader is self._leader and leader is not None and not leader.token:
                    self._helper_wakeup.acquire(timeout=look_s)
                self._asleep = False
                quiet = 0

    def _take_lead(self, leader: _Lane) -> None:
        try:
            leader.token.pop()
        except IndexError:
            return  # its call has just ended
        # The calls before this one were short: a long one now and then is no reason to pass the lead before each.
        rate = self._long_rate * 0.5 ** (leader.calls / 16)
        self._long_rate = rate = rate + (1.0 - rate) * _RAISE
        if rate > _PASS_ABOVE and self._most > 1:
            self._passes_first = True
        self._pass_on()

    def _lead_as_deputy(self, look_s: float) -> None:
        """Lead while all threads are busy, and run nothing: what is ready waits for the first that is free."""
        self._deputy_leads = True
        self.run_request = self._queue.append
        next_look = 0.0
        try:
            while not (self._standby or self.is_done):
                # Threads that find the queue filled when their call ends do not come for the lead, which would pass on
                # to new ones.
                for _ in range(min(len(self._queue), self._most - len(self._lanes))):
                    self._start_another()
                now = monotonic()
                if now >= next_look:
                    next_look = now + _PROGRESS_S
                    self._stalled_since = self._last_progress(now)
                if self._deadlines is not None:
                    self._enforce_deadlines(self._deadlines, now)
                    if len(self._lanes) < self._most:
                        break
                try:
                    self.turn(min(look_s, _PROGRESS_S, self._turn_s))
                    continue
                except BaseException as error:
                    failure = error
                self.survive(failure)
        finally:
            self._stalled_since = None
            self.run_request = self._lead_through
            self._deputy_leads = False
            self._pass_on()

    def _last_progress(self, now: float) -> float:
        """Return when the last of the running requests began or sent something.

        With all threads in calls that do neither the worker is silent, and ``timeout`` is counted.
        """
        sent = progress()
        before, self._progress = self._progress, sent
        if self._stalled_since is None or sent != before:
            return now
        return self._stalled_since

    def _call_hook_for(self, ident: int) -> None:
        """Have ``post_request`` called for a request that does not come back, in a thread that nobody waits for."""
        deadlines = self._deadlines
        if deadlines is not None and self.context.post_request is not None:
            with suppress(RuntimeError):  # the system starts no thread
                start_thread(deadlines.call_hook_for, (ident,), name="wsgiserv-post-request")

    def _enforce_deadlines(self, deadlines: Deadlines, now: float) -> None:
        """Start a thread in the place of each that does not come back; leave when these are too many."""
        deadlines.look(now)
        for ident in deadlines.stuck(now, _STUCK_S):
            for lane in list(self._lanes):
                if lane.ident == ident and not lane.lost and self._lost < self.cfg.threads:
                    lane.lost = True
                    self._lost += 1
                    self.log.error(
                        "%s does not come back from its overdue request; another thread takes its place",
                        lane.thread.name,
                    )
                    self._call_hook_for(ident)
                    if self._lost == self.cfg.threads:
                        self.leave_for(
                            f"{counted(self._lost, 'thread', 'is', 'are')} stuck in overdue requests (request_timeout)"
                        )
