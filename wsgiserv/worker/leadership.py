"""Chooses the thread of a ``threads`` worker to run the event loop.

One thread leads at a time: it polls, reads, and runs ready requests itself, so a quick application runs at the speed of
``sync``, without a queue and a thread switch for each request. The lead moves to another thread in three ways:

- A call lasts: the main thread never runs the application. It looks every millisecond (every four while all calls are
  short), and takes the lead from a leader in the same call as at the last look.
- Calls usually last: the leader queues ready requests, takes the first request itself, and gives the lead up before it.
- All threads are busy: the main thread is the fallback leader. It queues ready requests for the first free thread.

Nothing here knows sockets, clocks other than the thread's CPU time, or how a thread is started.
"""

# The plain shape (one thread polls, a queue, a pool) was measured against this one: 4 threads, 32 connections, CPU time
# per request. Pinned to one core it is 9 % cheaper, for hello as for Flask. On two cores, as workers run, it costs
# 61-99 % more for hello and 29-37 % more for Flask (27-47 % and 25-32 % fewer requests per second): each system call
# of the reactor lets go of the GIL, and a pool thread on the other core takes it. With one connection it costs
# 49 % (hello) and 12 % (Flask) more on one core, and 254 % and 94 % on two.

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import thread_time
from typing import Final, Literal, NamedTuple

from wsgiserv.net.client import Connection
from wsgiserv.unpatched import OSThread
from wsgiserv.worker.event_loop_worker import TURN_OVER

# How often the main thread looks whether the leader is in a call. A call is long after one to two of these.
_LOOK_S: Final = 0.001
# A look costs the leader two switches of threads, 4 % of its time. So after so many looks at each of which it had made
# a few calls, with none of them long, the main thread looks less often, until a call is long.
_SELDOM_LOOK_S: Final = 0.004
_LOOKS_BEFORE_SELDOM: Final = 250
_CALLS_PER_LOOK: Final = 4
# After this many looks at which nothing had happened the main thread sleeps until it is woken.
_LOOKS_BEFORE_SLEEP: Final = 50
# After this many looks without a leader all threads are busy: the main thread leads.
_LOOKS_WITHOUT_LEADER: Final = 3
# The rate of long calls, from 0 to 1, above which the lead is passed on before each call, and below which no more.
_PASS_ABOVE: Final = 0.5
_LEAD_BELOW: Final = 0.1
# How much one long call raises that rate, and one short call outside of the lead lowers it.
_RAISE: Final = 1 / 8
_LOWER: Final = 1 / 16
_SHORT_S: Final = 0.00025
_LONG_S: Final = 0.001
# This many calls of a leader make a sample. When they have waited for so long on average (for a database, say), other
# requests could have run meanwhile.
_SAMPLE: Final = 32
_WAITED_S: Final = 0.0001


@dataclass(slots=True, eq=False)
class PoolThread:
    """One thread for requests.

    Attributes:
        number: from 1 on.
        cell: its cell of the scoreboard.
        ident: its identifier, once it runs.
        thread: the thread itself, to be joined.
        lost: it is stuck in an overdue call, and another thread has been started in its place.
        leads: it has the lead. Only the thread itself reads and writes this: see `Leadership.call`.
        token: holds one item while the thread leads and is in a call; see `Leadership`.
        calls: calls made since it leads.
        wall_s: seconds spent in them since the last sample.
        cpu_s: CPU time of the thread at the last sample.
    """

    number: int
    cell: int
    ident: int = 0
    thread: threading.Thread | OSThread = field(init=False)
    lost: bool = False
    leads: bool = False
    token: list[None] = field(default_factory=list)
    calls: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


class _Look(NamedTuple):
    """What the main thread has seen: the leader, its number of calls, and for how many looks all were short."""

    leader: PoolThread | None = None
    calls: int = 0
    calm: int = 0


class Leadership:
    """The pool of threads, and the lead among them.

    Args:
        threads: how many requests may run at once.
        queue: connections with complete requests, waiting for a thread.
        run: runs a connection's request with a cell, and returns for how many seconds.
        lose: called with a connection and the exception of its `run`.

    Attributes:
        lock: the leader lock.
        leader: the leading thread; None while the lead is on its way, or the main thread's.
        is_fallback: the main thread leads.
        passes_first: calls usually last, so the lead is passed on before each.
        threads: the running threads.
        lost: how many threads do not come back from an overdue call; each has been replaced.
        helper_sleeps: the main thread sleeps until `wake_helper`.
    """

    # The invariant, at every moment and in every schedule:
    # - `lock` is held from `take` (or `look`, for the main thread) to `pass_on`, so at most one thread polls.
    # - While the leader is in a call, its token holds one item. Either the leader pops it, when the call ends, and
    #   still leads; or the main thread pops it before that, and then the main thread passes the lead on, once.
    #   `list.pop` is atomic, so exactly one of them succeeds, without a lock for each request.
    # - Once a thread has lost the lead in a call, it touches no connection but its own, and ends its turn.

    def __init__(
        self,
        threads: int,
        queue: deque[Connection],
        run: Callable[[Connection, int], float],
        lose: Callable[[Connection, BaseException], None],
    ) -> None:
        self._threads = threads
        self._queue = queue
        self._run = run
        self._lose = lose
        # A thread that does not come back keeps its number.
        self._free_numbers = deque(range(1, 2 * threads + 1))
        self.threads: list[PoolThread] = []
        self.lost = 0
        self.lock = allocate_lock()
        self.leader: PoolThread | None = None
        self._standby: deque[PoolThread] = deque()
        self.is_fallback = False
        self._long_rate = 0.0
        self.passes_first = False
        self._wakeup = allocate_lock()
        self._wakeup.acquire()
        self.helper_sleeps = False
        self._last_look = _Look()
        self._quiet = self._leaderless = 0

    # ---- the pool ----------------------------------------------------------------------------------------

    @property
    def most(self) -> int:
        """How many threads there may be."""
        return self._threads + self.lost

    @property
    def missing(self) -> int:
        """How many more threads there may be."""
        return self._threads + self.lost - len(self.threads)

    def add(self, cells: int) -> PoolThread:
        """Return a new thread. The caller starts it, and calls `remove` when it cannot.

        Args:
            cells: how many cells the worker's row of the scoreboard has.
        """
        number = self._free_numbers.popleft()
        thread = PoolThread(number, min(number, cells) - 1)
        self.threads.append(thread)
        return thread

    def remove(self, thread: PoolThread) -> None:
        """Forget an ended thread."""
        self.threads.remove(thread)
        self._free_numbers.append(thread.number)
        if thread.lost:
            self.lost -= 1

    def give_up_on(self, ident: int) -> PoolThread | None:
        """Let another thread take the place of one stuck in its call.

        Args:
            ident: the thread's identifier.

        Returns:
            The thread; None when it is given up already, or all are.
        """
        for thread in list(self.threads):
            if thread.ident == ident and not thread.lost and self.lost < self._threads:
                thread.lost = True
                self.lost += 1
                return thread
        return None

    @property
    def is_wanted(self) -> bool:
        """Whether a thread stands by for the lead."""
        return bool(self._standby)

    # ---- in the threads of the pool ------------------------------------------------------------------------

    def enlist(self, thread: PoolThread) -> None:
        """Stand by for the lead. The thread then acquires `lock`, and calls `take`."""
        thread.leads = False
        self._standby.append(thread)

    def take(self, thread: PoolThread) -> None:
        """Take the lead, with `lock` held."""
        self._standby.remove(thread)
        thread.calls = 0
        thread.wall_s = 0.0
        thread.cpu_s = thread_time()
        thread.leads = True
        self.leader = thread

    def call(self, connection: Connection) -> object:
        """Run a request as the leader, or queue it where calls usually last.

        Returns:
            `TURN_OVER` when the lead has been lost meanwhile: the thread must leave the event loop alone.
        """
        if self.passes_first:
            self._queue.append(connection)
            return None
        thread = self.leader
        assert thread is not None
        thread.token.append(None)
        # After the token: the main thread looks for it once more before it sleeps (see `rest`), so one of the two sees.
        if self.helper_sleeps:
            self.wake_helper()
        outcome: object = None
        failure: BaseException | None = None
        try:
            thread.wall_s += self._run(connection, thread.cell)
        except BaseException as error:
            failure = error
        try:
            thread.token.pop()
        except IndexError:
            # `leader` does not tell: the main thread has the token, but may not have passed the lead on yet.
            thread.leads = False
            outcome = TURN_OVER
        else:
            thread.calls += 1
            if not thread.calls % _SAMPLE:
                self._judge(thread)
        if failure is not None:
            self._lose(connection, failure)
        return outcome

    def _judge(self, thread: PoolThread) -> None:
        """Pass on the lead before each call from now on, if the last calls, each short, have mostly waited."""
        cpu_s = thread_time()
        waited_s = (thread.wall_s - (cpu_s - thread.cpu_s)) / _SAMPLE
        thread.wall_s = 0.0
        thread.cpu_s = cpu_s
        if waited_s > _WAITED_S and self.most > 1:  # a single thread has no other to pass it to
            self._long_rate = 1.0
            self.passes_first = True
        else:
            self._long_rate *= 0.25

    def note(self, elapsed_s: float) -> None:
        """Learn from a call outside of the lead whether calls still last.

        Args:
            elapsed_s: how many seconds it took.
        """
        if elapsed_s < _SHORT_S:
            self._long_rate -= self._long_rate * _LOWER
            if self._long_rate < _LEAD_BELOW:
                self.passes_first = False
        elif elapsed_s > _LONG_S:
            self._long_rate += (1.0 - self._long_rate) * _RAISE

    def pass_on(self) -> bool:
        """Release the lead, in its thread; return whether another thread stands by for it."""
        self.leader = None
        self.is_fallback = False
        # Before the release: no thread leaves the standby while the lock is held. One that comes now finds it free.
        is_wanted = self.is_wanted
        self.lock.release()
        return is_wanted

    def wake_helper(self) -> None:
        """Wake the main thread."""
        self.helper_sleeps = False
        try:
            self._wakeup.release()
        except RuntimeError:
            pass  # another thread has just done so

    # ---- in the main thread ----------------------------------------------------------------------------------

    def look(self) -> Literal["taken", "fallback", ""]:
        """Look after the leader; called after each `rest`.

        Returns:
            ``taken`` when the lead has been taken from a leader in a long call, and is to be passed on; ``fallback``
            when the main thread leads now, until it passes the lead on.
        """
        leader = self.leader
        if leader is None:
            self._last_look = _Look()
            self._quiet = 0
            self._leaderless += 1
            if self._leaderless > _LOOKS_WITHOUT_LEADER and self.lock.acquire(blocking=False):
                self._leaderless = 0
                self.is_fallback = True
                return "fallback"
            return ""
        self._leaderless = 0
        last, calls = self._last_look, leader.calls
        if leader is not last.leader or calls != last.calls:
            is_calm = leader is last.leader and calls - last.calls >= _CALLS_PER_LOOK
            self._last_look = _Look(leader, calls, last.calm + 1 if is_calm else 0)
            self._quiet = 0
        elif not leader.token:
            self._quiet += 1
        elif self._take_lead(leader):
            return "taken"
        return ""

    def _take_lead(self, leader: PoolThread) -> bool:
        """Take the lead from a leader in a call; False when the call has just ended."""
        self._last_look = self._last_look._replace(calm=0)
        try:
            leader.token.pop()
        except IndexError:
            return False
        # The calls before this one were short: a long one now and then is no reason to pass the lead before each.
        rate = self._long_rate * 0.5 ** (leader.calls / 16)
        self._long_rate = rate = rate + (1.0 - rate) * _RAISE
        if rate > _PASS_ABOVE and self.most > 1:
            self.passes_first = True
        return True

    @property
    def look_s(self) -> float:
        """The time until the next look, in seconds, while something happens."""
        return _LOOK_S if self._last_look.calm < _LOOKS_BEFORE_SELDOM else _SELDOM_LOOK_S

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has happened for so long: the main thread sleeps until it is woken."""
        return self._quiet >= _LOOKS_BEFORE_SLEEP

    def rest(self, longest_s: float) -> None:
        """Sleep until the next look.

        Args:
            longest_s: how many seconds at most while nothing happens.
        """
        if not self.is_quiet:
            self._wakeup.acquire(timeout=self.look_s)
            return
        self.helper_sleeps = True
        # A call may have begun just before, or the lead been passed on, when nothing said yet that it must be woken.
        leader = self.leader
        if leader is not None and leader is self._last_look.leader and not leader.token:
            self._wakeup.acquire(timeout=longest_s)
        self.helper_sleeps = False
        self._quiet = 0
