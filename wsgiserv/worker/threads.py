"""The ``threads`` worker: one event loop, led by one thread at a time. The leader runs the application itself.

`Leadership` chooses the leader. The main thread never runs the application: it looks after the other threads, and leads
while all of them are busy. It reads, flushes, sweeps and answers signals then.
"""

from __future__ import annotations

import atexit
import os
import threading
from _thread import get_ident
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Final

from wsgiserv.boot import WorkerBoot
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError, ExitStatus
from wsgiserv.net.client import Connection
from wsgiserv.process import flush_standard_streams
from wsgiserv.titles import setthreadtitle
from wsgiserv.unpatched import no_real_threads, patched_by, start_thread
from wsgiserv.wording import counted
from wsgiserv.worker.active_requests import progress
from wsgiserv.worker.event_loop_worker import EventLoopWorker, WorkerEventLoop
from wsgiserv.worker.fresh_context import fresh_contexts
from wsgiserv.worker.helper_thread import needs_thread
from wsgiserv.worker.leadership import Leadership, PoolThread

# How long the main thread sleeps while nothing happens.
_SLEEP_S: Final = 1.0
# How often it asks for signals that the application has blocked.
_SIGNALS_S: Final = 1.0
# How often the fallback leader checks that the running requests make progress: often enough for a `timeout` of 1 s.
_PROGRESS_S: Final = 0.25
# How often the log says that no thread can be started, or that none is free.
_WARN_AGAIN_S: Final = 60.0
# How long a thread may take to come back after its request was interrupted, before another takes its place.
_STUCK_S: Final = 1.0
# How long all threads together may take to end with the worker, and when that is to end at once.
_END_S: Final = 1.0
_FAST_END_S: Final = 0.2


class _ThreadsEventLoop(WorkerEventLoop):
    """A loop for requests in several threads."""

    _worker: ThreadsWorker

    def resume(self, connection: Connection) -> None:
        """As of the base; wake the leader, unless this is its thread: its poll does not see the queue."""
        self.waiting.append(connection)
        leader = self._worker._lead.leader
        if leader is None or leader.ident != get_ident():
            self._worker._signals.wake()


class ThreadsWorker(EventLoopWorker):
    """Runs requests in up to ``threads`` threads at once, started as they are needed."""

    multithread = True
    _event_loop_class = _ThreadsEventLoop
    _caller = EventLoopWorker._limited_caller

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self._run_fresh = fresh_contexts(Context())
        self._lead = Leadership(self.settings.threads, self._queue, self._run_fresh, partial(self.lose, is_mine=True))
        self._progress: dict[str, int] = {}
        self._next_look = 0.0
        self._warned_of_threads = self._warned_of_upgrades = -_WARN_AGAIN_S

    @classmethod
    def capacity(cls, settings: Settings) -> int:
        """As of the base: as many as it has threads."""
        return settings.threads

    @classmethod
    def cells(cls, settings: Settings) -> int:
        """As of the base; twice as many where threads stuck in overdue requests are replaced."""
        return settings.threads * (2 if settings.request_timeout else 1)

    @classmethod
    def check_patched(cls, culprit: str) -> None:
        """As of the base: it needs threads of the system."""
        if reason := no_real_threads(culprit):
            raise ConfigError(f"WS1151 worker_class = 'threads': {reason}")

    @property
    def is_done(self) -> bool:
        """As of the base, without the connections of stuck threads."""
        leaving = self._leaving
        return leaving.at_once or (
            leaving.begun and (len(self.event_loop.connections) <= self._lead.lost or monotonic() > leaving.deadline)
        )

    def _watch_cork(self) -> None:
        """As of the base; here the main thread looks after the leader, and pushes what that holds: `_look_after`."""

    def _occupancy(self) -> float:
        """As of the base: the share of the threads in calls."""
        return self.boot.slot.load()[0] / self._lead.most

    def serve(self) -> None:
        """Start the first thread and look after the threads, until the worker has left."""
        lead = self._lead
        # Held until the worker is ready, so that no thread leads before; and it is not ready without a thread.
        lead.lock.acquire()
        with needs_thread("wsgiserv-request-1"):
            self._start_thread()
        self.start()
        lead.lock.release()
        try:
            self._repeat(self._look_after)
            # A thread that has just answered must come back from the application, which is held by it otherwise. One
            # that is late already gets no second more: the master kills the worker then.
            in_time = not self.leave_now and monotonic() < self.leave_by
            latest = monotonic() + (_END_S if in_time else _FAST_END_S)
            for thread in list(lead.threads):
                thread.thread.join(0.0 if thread.lost else max(0.0, latest - monotonic()))
            self.end_if_failed()
        finally:
            self._close_connections()

    def _let_go(self) -> None:
        super()._let_go()
        if patched_by():
            # A request has patched the threads: the `threading` module has another idea of the main thread by now, for
            # which the interpreter would wait without end. So the process ends here.
            atexit._run_exitfuncs()
            flush_standard_streams()
            os._exit(ExitStatus.OK)

    # ---- the threads of requests -----------------------------------------------------------------------

    def _start_thread(self) -> None:
        """Start one more thread. Raises RuntimeError when the system starts none."""
        thread = self._lead.add(self.boot.slot.cells)
        name = f"wsgiserv-request-{thread.number}"
        try:
            if patched_by():
                # By a request: a Thread would be a greenlet now, and wait for the thread that starts it.
                thread.thread = start_thread(self._work, (thread,), name=name)
            else:
                # Python's own, since the application runs there: threading.current_thread() is to know it.
                thread.thread = started = threading.Thread(target=self._work, args=(thread,), name=name, daemon=True)
                started.start()
        except BaseException:
            self._lead.remove(thread)  # its number and its cell are free again
            raise

    def _start_another(self) -> None:
        """Start one more thread, if the system does."""
        try:
            self._start_thread()
        except RuntimeError as error:
            # It is tried again for each request that finds all threads busy.
            if monotonic() - self._warned_of_threads > _WARN_AGAIN_S:
                self._warned_of_threads = monotonic()
                self.log.error(
                    "WS1750 worker %d: cannot start thread %d of %d: %s: raise the limits (ulimit -u, memory)",
                    self.pid,
                    len(self._lead.threads) + 1,
                    self._lead.most,
                    error,
                )

    def _work(self, thread: PoolThread) -> None:
        """Lead, serve, and stand by for the lead again, until the worker has left."""
        setthreadtitle(f"request-{thread.number}")
        thread.ident = get_ident()
        try:
            self._repeat(partial(self._serve_next, thread))
        finally:
            self._lead.remove(thread)

    def _serve_next(self, thread: PoolThread) -> bool:
        """Run a waiting request, or lead until the lead is lost; True when another thread has taken its place."""
        if thread.lost:
            return True
        connection = self._next_queued()
        if connection is None:
            connection = self._lead_loop(thread)
        if connection is not None:
            failure: BaseException | None = None
            try:
                # A request finds its context, and sys.exc_info(), as in a thread that has just been started.
                self._lead.note(self._run_fresh(connection, thread.cell))
            except BaseException as error:  # a fault of the server must not cost the thread
                failure = error
            if failure is not None:
                self.lose(connection, failure, is_mine=True)
        # The leader, which does this otherwise, may sleep for a second.
        if self.context.access is not None:
            self.context.access.flush()
        if self.retiring:
            self._signals.wake()
        return False

    def _lead_loop(self, thread: PoolThread) -> Connection | None:
        """Wait for the lead, and take turns of the event loop until the lead is lost or given up.

        Returns:
            The request to run, if the thread has given up the lead for one.
        """
        lead = self._lead
        lead.enlist(thread)
        if lead.is_fallback:  # the main thread sits in its poll, and gives the lead up only between two
            self._signals.wake()
        lead.lock.acquire()
        try:
            lead.take(thread)
            while thread.leads and not self.is_done:
                if (connection := self._next_queued()) is not None:
                    return connection
                # A turn that ends when the lead is lost owes its tick. Were all to end so, there would be no heartbeat,
                # and the master would kill a healthy worker. So one that only queues is due at times.
                queues = lead.passes_first or self.context.now > self._heartbeat.due
                self.turn(self._heartbeat.turn_s, None if queues else lead.call)
        finally:
            self.context.cork.push()  # the turn may have had no end: a lost lead, an exception
            if thread.leads:
                self._pass_on()
        return None

    def run_request(self, connection: Connection) -> None:
        """Queue a request for the next free thread; only the leader, in its turn, runs one at once."""
        self._queue.append(connection)

    def _pass_on(self) -> None:
        """Give the lead to a thread standing by, or to a new one."""
        lead = self._lead
        if lead.pass_on():
            return
        if self.is_done or not lead.missing:
            if lead.helper_sleeps:
                lead.wake_helper()  # it becomes the fallback leader, or sees that the worker is done
        else:
            self._start_another()

    # ---- the main thread -------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Take the lead from a leader in a long call, lead while no thread can, watch the requests' time."""
        lead = self._lead
        longest_s = _SLEEP_S if self._deadlines is None else self._deadlines.look_s
        looked_s = 0.0
        while not self.is_done:
            event = lead.look()
            if event == "taken":
                self.context.cork.stop()
                self._pass_on()
            elif event == "fallback":
                self._lead_as_fallback(min(longest_s, _PROGRESS_S, self._heartbeat.turn_s))
            looked_s += lead.look_s
            if lead.is_quiet or looked_s >= _SIGNALS_S:
                looked_s = 0.0
                self._signals.look()  # the main thread alone can
            self._enforce_deadlines()
            lead.rest(longest_s)

    def _lead_as_fallback(self, turn_s: float) -> None:
        """Lead while all threads are busy, and run nothing: ready requests wait for the first free thread."""
        lead, heartbeat = self._lead, self._heartbeat
        next_check = 0.0
        # An exception of a turn ends this lead, and the next one begins with a clean state: see `_repeat`.
        try:
            while not (lead.is_wanted or self.is_done):
                # Threads that find the queue filled when their call ends do not come for the lead, so nothing but this
                # starts new ones.
                for _ in range(min(len(self._queue), lead.missing)):
                    self._start_another()
                now = monotonic()
                if now >= next_check:
                    next_check = now + _PROGRESS_S
                    heartbeat.stalled_since = self._last_progress(now)
                self._enforce_deadlines()
                self.turn(turn_s)
        finally:
            heartbeat.stalled_since = None
            self._pass_on()

    def _last_progress(self, now: float) -> float:
        """Return when one of the running requests last began or sent something.

        While all threads are in calls without either, this is not now: the heartbeat stops, and ``timeout`` counts.
        """
        before, self._progress = self._progress, progress()
        if not self._progress:  # no thread is stuck: all are with upgraded connections, however quiet those are
            self._warn_of_upgrades(now)
            return now
        since = self._heartbeat.stalled_since
        return now if since is None or self._progress != before else since

    def _warn_of_upgrades(self, now: float) -> None:
        """Log that upgraded connections hold all threads, if they do."""
        if len(self.context.upgrades) < self._lead.most or now - self._warned_of_upgrades < _WARN_AGAIN_S:
            return
        self._warned_of_upgrades = now
        self.log.warning(
            "WS1770 worker %d: %s held by upgraded connections (WebSockets), and there is no other: requests wait: "
            "raise threads, or use worker_class = 'gevent'",
            self.pid,
            counted(self._lead.most, "thread", "is", "are"),
        )

    def _enforce_deadlines(self) -> None:
        """End overdue requests, and let a thread take the place of each stuck one; leave when all are stuck."""
        now, deadlines = monotonic(), self._deadlines
        if deadlines is None or now < self._next_look:
            return
        # The main thread comes here each millisecond while calls last.
        self._next_look = now + deadlines.look_s
        deadlines.look(now)
        for call in deadlines.stuck(now, _STUCK_S):
            if (thread := self._lead.give_up_on(call.ident)) is None:
                continue
            self.log.error(
                "WS1751 worker %d: %s does not come back from its overdue request: another thread takes its place",
                self.pid,
                thread.thread.name,
            )
            call.call_hook_apart()
            if self._lead.lost == self.settings.threads:
                stuck = counted(self._lead.lost, "thread", "is", "are")
                self.leave_for(f"{stuck} stuck in overdue requests (request_timeout)")
