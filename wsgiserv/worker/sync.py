"""The ``sync`` worker: one thread, one application call at a time, any number of connections.

Owns: its loop, and the thread that watches the requests' time where that is asked for (`relief` has the other one).
Must not know: HTTP, the master.
"""

from __future__ import annotations

import os
import select
import signal
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from os import close, pipe, read, write
from select import POLLIN, poll
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from wsgiserv.boot import EXIT_BOOT, WorkerBoot
from wsgiserv.net.client import Connection
from wsgiserv.scoreboard import CONNECTIONS, HEARTBEAT
from wsgiserv.unpatched import note_main_greenlet, select_is_patched, start_thread, throw_into_main
from wsgiserv.worker.base import AT_ONCE, ORPHAN_GRACE_S, ORPHANED
from wsgiserv.worker.event_loop_worker import EventLoopWorker
from wsgiserv.worker.fresh_context import fresh_contexts
from wsgiserv.worker.helper_thread import HelperThread
from wsgiserv.worker.stream_drain import StreamDrain
from wsgiserv.wsgi.response import ClientGone

if TYPE_CHECKING:
    from wsgiserv.net.response_writer import ResponseWriter
    from wsgiserv.worker.request_timeout import Deadlines

__all__ = ["SyncWorker"]

# How long an overdue call may take to come back after it was interrupted, before the worker ends itself.
_STUCK_S: Final = 5.0
# How long `post_request` of such a call may take then.
_HOOK_S: Final = 1.0
# How much later than the others a worker that sits in a call ends when the master is gone.
_LATE_S: Final = 0.5
# How often an application that waits for its client gives a sign of life.
_BEAT_S: Final = 0.25
_LEAVE_AT_ONCE: Final = frozenset({signal.SIGINT, signal.SIGQUIT})


class SyncWorker(EventLoopWorker):
    """Runs the application in the loop's own thread."""

    # A producer that waits would stop all others.
    _least_stream_buffer = 64 * 1024 * 1024

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self.run_request = Connection.run
        self._shares_thread = False
        self._stream_drain = StreamDrain(self)
        # A byte in this pipe stops the thread that watches the master.
        self._pause_reader, self._pause_writer = pipe()
        self._lifeline_thread = HelperThread(
            "lifeline", self._end_with_master, lambda: write(self._pause_writer, b"!")
        )

    def close_in_child(self) -> None:
        """As of the base."""
        super().close_in_child()
        close(self._pause_reader)
        close(self._pause_writer)

    def load(self) -> None:
        """As of the base; with ``request_timeout`` a thread watches the calls."""
        super().load()
        if self.cfg.request_timeout:
            from wsgiserv.worker.request_timeout import Deadlines, RequestTimeout, interrupt_main_thread

            ident = get_ident()
            deadlines = Deadlines(self.cfg.request_timeout, self.log, self.calls, interrupt_main_thread)
            self.context.call = deadlines.call

            def interrupt(number: int, frame: FrameType | None) -> None:
                # Whoever sends this signal besides: only an overdue call is ended by it.
                def is_due() -> bool:
                    return deadlines.is_interrupted(ident)

                if is_due() and not throw_into_main(RequestTimeout, is_due):
                    raise RequestTimeout

            self._signals.raise_at(signal.SIGUSR2, interrupt)
            self._watch_calls(deadlines, ident)

    def _watch_calls(self, deadlines: Deadlines, ident: int) -> None:
        """Look at the request's time. An overdue call leaves the application in a state that nobody knows:
        the worker is replaced, but first serves what else it has."""
        bell = allocate_lock()
        bell.acquire()
        replaced = False

        def watch() -> None:
            nonlocal replaced
            while not thread.stopping:
                bell.acquire(timeout=deadlines.look_s)
                now = monotonic()
                if deadlines.look(now) and not replaced:
                    replaced = True
                    self.leave_for("a request was overdue (request_timeout)")
                if deadlines.stuck(now, _STUCK_S):
                    self.log.critical(
                        "worker %d does not come back from its overdue request, and ends itself", self.pid
                    )
                    if self.context.post_request is not None:
                        # In a thread of its own: it may wait for what the culprit holds.
                        with suppress(RuntimeError):
                            hook = start_thread(
                                deadlines.call_hook_for, (ident,), name="wsgiserv-post-request"
                            )
                            hook.join(_HOOK_S)
                    self._end_process()

        def ring() -> None:
            with suppress(RuntimeError):  # it has not heard the last one yet
                bell.release()

        thread = HelperThread("deadlines", watch, ring)
        thread.start()

    def _end_with_master(self) -> None:
        """A call that does not end must not hold the port when the master is gone; the loop sees to all else."""
        lifeline, pause = self.boot.lifeline, self._pause_reader
        poller = poll()
        poller.register(pause, POLLIN)
        while not self._lifeline_thread.stopping:
            poller.register(lifeline, POLLIN)
            if any(fd == lifeline for fd, _ in poller.poll()):
                poller.unregister(lifeline)
                if not poller.poll((ORPHAN_GRACE_S + _LATE_S) * 1000):
                    self.context.why_leaving = ORPHANED
                    self._cut_requests()
                    self._end_process()
            read(pause, 1)

    def serve(self) -> None:
        """Run the loop until the worker has left."""
        siblings = max(self.cfg.workers, self.cfg.workers_max or 0) - 1
        if self.cfg.handoff_after and siblings and self.may_hand_over():
            from wsgiserv.worker.busy_handover import BusyHandover

            relief = BusyHandover(self, self.cfg.handoff_after)
            self.run_request = relief.runner()
            relief.start()
        else:
            self.run_request = self._runner()
        self._lifeline_thread.start()
        self.each_second()
        self.event_loop.watch = self._stream_drain.watcher()  # type: ignore[assignment, method-assign]
        self.event_loop.wait_writable = self._wait_writable  # type: ignore[method-assign]
        self.start()
        try:
            while not self.is_done:
                try:
                    self.turn(self._turn_s)
                    continue
                except BaseException as error:
                    failure = error
                self.survive(failure)
            self.end_if_failed()
        finally:
            self._close_connections()

    def _end_process(self) -> NoReturn:
        """End this process from another thread: the main one does not come back."""
        if self.context.access is not None:
            self.context.access.flush()
        self._note_losses()
        os._exit(EXIT_BOOT)

    def _runner(self) -> Callable[[Connection], object]:
        """Return what runs a request."""
        run_fresh = fresh_contexts(copy_context())
        words, connections = self.context.words, self.event_loop.connections

        def run(connection: Connection) -> None:
            words[CONNECTIONS] = len(connections)  # the call may last, and nothing counts them then
            run_fresh(connection)

        return run

    # ---- an application that has patched the standard library ------------------------------------------

    def each_second(self) -> None:
        """Share the thread with the application's greenlets, once gevent or eventlet has put them in place of threads.

        Looked at each second: a request may do that, too.
        """
        if not self._shares_thread and select_is_patched():
            self._shares_thread = True
            note_main_greenlet()
            self.event_loop.poll = self._poll_among_greenlets

    def _poll_among_greenlets(self, timeout_s: float) -> list[tuple[int, int]]:
        """Poll as the event_loop does, but wait in the application's event loop, where its background jobs run."""
        poller = self.event_loop.poller
        events = poller.poll(0.0)
        if events or not timeout_s:
            return events
        try:
            select.select([poller.fileno()], (), (), timeout_s)  # patched, so looked up now
        except BaseException:  # what a greenlet raises into this one (sys.exit, a timeout) ends no worker
            self.log.exception("a greenlet of the application has raised in the worker's loop")
            return poller.poll(timeout_s)
        return poller.poll(0.0)

    # ---- waiting in a request --------------------------------------------------------------------------

    def _wait_writable(self, connection: ResponseWriter) -> bool:
        """Let the application wait for its client while the helper sends what is queued; the worker is alive."""
        bell = allocate_lock()
        bell.acquire()
        self._seconds[HEARTBEAT] = now = monotonic()
        if self._has_no_time(now):
            at_once = self._signals.has_noted(_LEAVE_AT_ONCE)
            self.context.why_leaving = AT_ONCE if at_once else self._out_of_time
            raise ClientGone("the worker leaves")
        if not connection.call_when_sent(bell.release) or bell.acquire(timeout=min(_BEAT_S, self._turn_s)):
            return True
        return not connection.has_stopped(monotonic(), self.cfg.send_timeout)

    def _has_no_time(self, now: float) -> bool:
        """Whether the worker is to leave at once: the loop, which takes the signals, does not turn now."""
        is_late = self._told_at is not None and now > self._told_at + self.cfg.graceful_timeout
        return is_late or self._signals.has_noted(_LEAVE_AT_ONCE)
