"""The ``sync`` worker: one thread, one application call at a time, any number of connections."""

from __future__ import annotations

import os
import select
import signal
from _thread import get_ident
from functools import partial
from os import close, pipe, read, write
from select import POLLIN, POLLOUT, poll
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from wsgiserv.boot import WorkerBoot
from wsgiserv.config.settings import Settings
from wsgiserv.errors import BootError, ExitStatus
from wsgiserv.net.client import Connection
from wsgiserv.net.response_writer import ResponseWriter
from wsgiserv.net.serving_context import WRITE
from wsgiserv.scoreboard import CONNECTIONS, HEARTBEAT
from wsgiserv.unpatched import note_main_greenlet, select_is_patched, throw_into_main
from wsgiserv.worker.busy_handover import BusyHandover
from wsgiserv.worker.event_loop_worker import EventLoopWorker, WorkerEventLoop
from wsgiserv.worker.fresh_context import fresh_contexts
from wsgiserv.worker.helper_thread import HelperThread
from wsgiserv.worker.leaving import AT_ONCE, ORPHAN_GRACE_S, ORPHANED
from wsgiserv.wsgi.response import ClientGone

if TYPE_CHECKING:
    from wsgiserv.worker.request_timeout import Deadlines, TimedSink

# How long an overdue call may take to come back after it was interrupted, before the worker ends itself.
_STUCK_S: Final = 5.0
# How long `post_request` of such a call may take then.
_HOOK_S: Final = 1.0
# How much later than the others a worker that sits in a call ends when the master is gone.
_LATE_S: Final = 0.5
# How often an application that waits for its client gives a sign of life.
_BEAT_S: Final = 0.25
_LEAVE_AT_ONCE: Final = frozenset({signal.SIGINT, signal.SIGQUIT})
# How often the draining thread looks whether the application has begun to hold the loop up, and whether more has been
# queued.
_DRAIN_LOOK_S: Final = 0.02
_DRAIN_POLL_MS: Final = 50
# While the loop turns, how often it drops the connections that need it no longer.
_TIDY_S: Final = 1.0
# With more clients than these it rests between two rounds: each of them costs a look at all, and the application runs.
_FEW: Final = 64


class StreamDrain:
    """Sends queued responses on while the application runs in a worker's only thread.

    It sends, and changes nothing else: the loop handles the end of a response. While the loop turns, the helper only
    looks now and then for an application holding it up.

    Args:
        worker: the worker, whose loop calls `add`.
    """

    def __init__(self, worker: SyncWorker) -> None:
        self._worker = worker
        self._queued: dict[Connection, None] = {}
        self._is_started = False
        self._thread = HelperThread("drain", self._work)

    def add(self, connection: Connection) -> None:
        """Look after a connection with a queue. The first call starts the thread: many workers never need it."""
        self._queued[connection] = None
        if not self._is_started:
            try:
                self._thread.start()
            except BootError as error:
                self._worker.log.error("WS1713 worker %d: %s", self._worker.pid, error)
                return
            self._is_started = True
        elif self._thread.asleep:
            self._thread.wake()

    # ---- the helper's thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        queued, thread, slot = self._queued, self._thread, self._worker.boot.slot
        next_tidy = 0.0
        while not thread.stopping:
            now = monotonic()
            begun = slot.load()[1] if queued else 0.0
            if begun and now - begun >= _DRAIN_LOOK_S:  # else the loop turns, and sends by itself
                try:
                    if self._drain():
                        continue
                except Exception:
                    self._worker.log.exception(
                        "WS1714 worker %d: queued responses cannot be sent on: please report it", self._worker.pid
                    )
            elif now >= next_tidy:
                next_tidy = now + _TIDY_S
                self._drop_done()
            thread.rest(_DRAIN_LOOK_S, not queued, queued)

    def _drop_done(self) -> None:
        """Look no longer after connections without output."""
        # The loop adds to them meanwhile. Each step on the dict is atomic, and list() copies in one.
        queued = self._queued
        for connection in list(queued):
            del queued[connection]  # first: `add` is called before or after what is queued at this moment
            if connection.has_output:
                queued[connection] = None

    def _drain(self) -> bool:
        """Send as much as the sockets take, once, after a short wait for the first. True: go on at once."""
        self._drop_done()
        by_fd = {connection.fd: connection for connection in list(self._queued)}
        if not by_fd:
            return False
        poller = poll()
        for fd in by_fd:
            poller.register(fd, POLLOUT)
        for fd, _ in poller.poll(_DRAIN_POLL_MS):
            connection = by_fd[fd]
            failure: Exception | None = None
            try:
                connection.drain()
            except ClientGone:
                pass  # the loop finds the same error
            except Exception as error:
                failure = error
            if failure is not None:
                self._queued.pop(connection, None)
                self._worker._tell_fault(connection, failure)
                connection.abandon_sending()
        now = monotonic()
        # `send_timeout` counts while the application holds the loop up, too, which sweeps no deadlines then.
        for connection in by_fd.values():
            if connection.deadline < now:
                connection.expire_output(now)
        return len(by_fd) <= _FEW


class _SyncEventLoop(WorkerEventLoop):
    """Stands still while the application runs: a helper thread sends on meanwhile."""

    _worker: SyncWorker

    def __init__(self, worker: SyncWorker) -> None:
        super().__init__(worker)
        self._drain = StreamDrain(worker)

    def watch(self, connection: Connection, interest: int) -> None:
        """As of the base; the helper looks after connections with a queue."""
        super().watch(connection, interest)
        if interest == WRITE:
            self._drain.add(connection)

    def wait_writable(self, connection: ResponseWriter, longest_s: float = _BEAT_S) -> bool:
        """Let the application wait for its client while the helper sends queued data; the worker is alive."""
        return super().wait_writable(connection, min(longest_s, self._worker._wait_in_call(monotonic())))

    def wait_among_greenlets(self) -> None:
        """Wait in the application's event loop from now on, where its background jobs run."""
        self.poll = self._poll_among_greenlets

    def _poll_among_greenlets(self, timeout_s: float) -> list[tuple[int, int]]:
        poller = self.poller
        events = poller.poll(0.0)
        if events or not timeout_s:
            return events
        try:
            select.select([poller.fileno()], (), (), timeout_s)  # patched, so looked up now
        except BaseException:  # what a greenlet raises into this one (sys.exit, a timeout) ends no worker
            self._log.exception(
                "WS1715 worker %d: a greenlet of the application has raised in the worker's loop: the loop goes on",
                self._worker.pid,
            )
            return poller.poll(timeout_s)
        return poller.poll(0.0)


class SyncWorker(EventLoopWorker):
    """Runs the application in the loop's own thread."""

    # A worker that waits in its application's call leaves its processor to others.
    workers_per_cpu = 2
    # A producer that waits would stop all others.
    _least_stream_buffer = 64 * 1024 * 1024
    event_loop: _SyncEventLoop
    _event_loop_class = _SyncEventLoop
    _caller = EventLoopWorker._limited_caller

    @classmethod
    def capacity(cls, settings: Settings) -> int:
        """As of the base: one."""
        return 1

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self._shares_thread = False
        settings = self.settings
        siblings = max(settings.workers, settings.workers_max or 0) - 1
        self._handover: BusyHandover | None = None
        if settings.handoff_after and siblings and self._admission.can_hand_over:
            self._handover = BusyHandover(self, settings.handoff_after, fresh_contexts())
            self.run_request = self._handover.run
        else:
            run_fresh = fresh_contexts()
            words, connections = self.context.slot.words, self.event_loop.connections

            def run(connection: Connection) -> None:
                words[CONNECTIONS] = len(connections)  # the call may last, and nothing counts them then
                run_fresh(connection)

            self.run_request = run
        # A byte in this pipe stops the thread that watches the master.
        self._pause_reader, self._pause_writer = pipe()
        self._lifeline_thread = HelperThread("lifeline", self._end_with_master, lambda: write(self._pause_writer, b"!"))

    def close_in_child(self) -> None:
        """As of the base; close the lifeline thread's pipe, too."""
        super().close_in_child()
        close(self._pause_reader)
        close(self._pause_writer)

    def serve(self) -> None:
        """Run the loop until the worker has left."""
        # Before the worker is ready: it must not become ready without them.
        if self._handover is not None:
            self._handover.start()
        self._lifeline_thread.start()
        self.each_second()  # the import may have patched select: the first wait is among greenlets then
        self.start()
        try:
            self._repeat(partial(self.turn, self._heartbeat.turn_s))
            self.end_if_failed()
        finally:
            self._close_connections()

    def each_second(self) -> None:
        """Share the thread with the application's greenlets, once they have replaced the threads."""
        # Each second: a request may do that, too.
        if not self._shares_thread and select_is_patched():
            self._shares_thread = True
            note_main_greenlet()
            self.event_loop.wait_among_greenlets()

    def _wait_in_call(self, now: float) -> float:
        """Give a sign of life for an application that waits; return for how many seconds it may wait.

        Raises ClientGone when the worker is to leave at once.
        """
        # By itself the call would look hung. It is not: `send_timeout` bounds how long a client may take.
        self._heartbeat.seconds[HEARTBEAT] = now
        # The loop, which takes the signals, does not turn now.
        is_told = self._signals.has_noted(_LEAVE_AT_ONCE)
        if is_told or self._leaving.is_overdue(now):
            self.context.cut_because(AT_ONCE if is_told else self._leaving.out_of_time)
            raise ClientGone("the worker leaves")
        return self._heartbeat.turn_s

    # ---- request_timeout ---------------------------------------------------------------------------------

    def load(self) -> None:
        """As of the base; with ``request_timeout`` a thread watches the calls."""
        super().load()
        if self._deadlines is not None:
            self._watch_calls(self._deadlines)

    def _watch_calls(self, deadlines: Deadlines) -> None:
        """Interrupt overdue calls, from a thread of its own."""
        from wsgiserv.worker.request_timeout import RequestTimeout

        is_due = partial(deadlines.is_interrupted, get_ident())

        def interrupt(number: int, frame: FrameType | None) -> None:
            # Another process may send this signal, too: only an overdue call is ended by it.
            if is_due() and not throw_into_main(RequestTimeout, is_due):
                raise RequestTimeout

        # Not the loop: the call that is overdue holds it up.
        def watch() -> None:
            is_replaced = False
            while not thread.stopping:
                thread.rest(deadlines.look_s)
                now = monotonic()
                if deadlines.look(now) and not is_replaced:
                    is_replaced = True
                    # An overdue call leaves the application in an unknown state: the worker is replaced, but first
                    # serves what else it has.
                    self.leave_for("a request was overdue (request_timeout)")
                for call in deadlines.stuck(now, _STUCK_S):
                    self._end_stuck(call)

        self._signals.raise_at(signal.SIGUSR2, interrupt)
        thread = HelperThread("deadlines", watch)
        thread.start()

    def _end_stuck(self, call: TimedSink) -> NoReturn:
        self.log.critical(
            "WS1716 worker %d: does not come back from its overdue request within %g s: exiting", self.pid, _STUCK_S
        )
        # It may wait for a lock that the hanging call holds.
        if (hook := call.call_hook_apart()) is not None:
            hook.join(_HOOK_S)
        self._end_process()

    # ---- the end -----------------------------------------------------------------------------------------

    def _end_with_master(self) -> None:
        """End the process some time after the master's end."""
        # A call without end would hold the port, and no master is there to kill this worker.
        lifeline, pause = self.boot.lifeline, self._pause_reader
        poller = poll()
        poller.register(pause, POLLIN)
        while not self._lifeline_thread.stopping:
            poller.register(lifeline, POLLIN)
            if any(fd == lifeline for fd, _ in poller.poll()):
                poller.unregister(lifeline)
                # The loop sees to all else, if it turns.
                if not poller.poll((ORPHAN_GRACE_S + _LATE_S) * 1000):
                    self.context.cut_because(ORPHANED)
                    self._cut_requests()
                    self._end_process()
            read(pause, 1)

    def _end_process(self) -> NoReturn:
        """End this process from another thread: the main one does not come back."""
        self._flush_logs()
        os._exit(ExitStatus.BOOT)
