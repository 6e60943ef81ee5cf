"""The ``sync`` worker: one thread, one application call at a time, any number of connections.

Owns: its loop, and the thread that watches the requests' time where that is asked for (`relief` has the other one).
Must not know: HTTP, the master.
"""

from __future__ import annotations

import os
import signal
from _socket import MSG_PEEK
from _thread import allocate_lock, get_ident
from select import POLLIN, poll
from threading import Event, Thread
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Final

from wsgiserv.boot import EXIT_BOOT, WorkerBoot
from wsgiserv.net.connection import Connection
from wsgiserv.scoreboard import HEARTBEAT
from wsgiserv.workers.base import ORPHAN_GRACE_S
from wsgiserv.workers.reactorworker import ReactorWorker
from wsgiserv.workers.stream_drain import StreamDrain
from wsgiserv.wsgi.gateway import ClientGone

if TYPE_CHECKING:
    from wsgiserv.net.sending import ClientSink
    from wsgiserv.workers.deadline import Deadlines

__all__ = ["SyncWorker"]

# How long an overdue call may take to come back after it was interrupted, before the worker ends itself.
_STUCK_S: Final = 5.0
# How much later than the others a worker that sits in a call ends when the master is gone.
_LATE_S: Final = 0.5
# How often an application that waits for its client gives a sign of life.
_BEAT_S: Final = 0.25
_LEAVE_AT_ONCE: Final = frozenset({signal.SIGINT, signal.SIGQUIT})


class SyncWorker(ReactorWorker):
    """Runs the application in the loop's own thread."""

    # A producer that waits would stop all others.
    least_stream_buffer = 64 * 1024 * 1024

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self.run_request = Connection.run
        self._stream_drain = StreamDrain(self)
        self._told_at: float | None = None

    def load(self) -> None:
        """As of the base; with ``request_timeout`` a thread watches the calls."""
        super().load()
        if self.cfg.request_timeout:
            from wsgiserv.workers.deadline import Deadlines, RequestTimeout, interrupt_main_thread

            ident = get_ident()
            deadlines = Deadlines(self.cfg.request_timeout, self.log, self.calls, interrupt_main_thread)
            self.context.call = deadlines.call

            def interrupt(number: int, frame: FrameType | None) -> None:
                # Whoever sends this signal besides: only an overdue call is ended by it.
                if deadlines.is_interrupted(ident):
                    raise RequestTimeout

            signal.signal(signal.SIGUSR2, interrupt)
            Thread(target=self._watch, args=(deadlines,), name="wsgiserv-deadlines", daemon=True).start()

    def _watch(self, deadlines: Deadlines) -> None:
        """Look at the request's time. An overdue call leaves the application in a state that nobody knows:
        the worker is replaced, but first serves what else it has."""
        clock = Event()
        replaced = False
        while not clock.wait(deadlines.look_s):
            now = monotonic()
            if deadlines.look(now) and not replaced:
                replaced = True
                self.leave_for("a request was overdue (request_timeout)")
            if deadlines.stuck(now, _STUCK_S):
                self.log.critical(
                    "worker %d does not come back from its overdue request, and ends itself", self.pid
                )
                if self.context.access is not None:
                    self.context.access.flush()
                os._exit(EXIT_BOOT)

    def _end_with_master(self) -> None:
        """A call that does not end must not hold the port when the master is gone; the loop sees to all else."""
        poller = poll()
        poller.register(self.boot.lifeline, POLLIN)
        poller.poll()
        Event().wait(ORPHAN_GRACE_S + _LATE_S)
        os._exit(EXIT_BOOT)

    def serve(self) -> None:
        """Run the loop until the worker has left."""
        siblings = max(self.cfg.workers, self.cfg.workers_max or 0) - 1
        if self.cfg.handoff_after and siblings and self.may_hand_over():
            from wsgiserv.workers.relief import Relief

            relief = Relief(self, self.cfg.handoff_after)
            self.run_request = relief.runner()
            relief.start()
        Thread(target=self._end_with_master, name="wsgiserv-lifeline", daemon=True).start()
        self.reactor.watch = self._stream_drain.watcher()  # type: ignore[assignment, method-assign]
        self.reactor.wait_writable = self._wait_writable  # type: ignore[method-assign]
        self.start()
        try:
            while not self.is_done:
                self.turn(1.0)
        finally:
            self.reactor.close()

    # ---- waiting in a request --------------------------------------------------------------------------

    def _wait_writable(self, connection: ClientSink) -> bool:
        """Let the application wait for its client while the helper sends what is queued; the worker is alive."""
        bell = allocate_lock()
        bell.acquire()
        self._seconds[HEARTBEAT] = now = monotonic()
        if self._has_no_time(now):
            raise ClientGone("the worker leaves")
        if not connection.call_when_sent(bell.release) or bell.acquire(timeout=_BEAT_S):
            return True
        return not connection.has_stopped(monotonic(), self.cfg.send_timeout)

    def _has_no_time(self, now: float) -> bool:
        """Whether the worker is to leave at once: the loop, which takes the signals, does not turn now."""
        try:
            pending = self._wakeup.recv(256, MSG_PEEK)
        except BlockingIOError:
            pending = b""
        if self.told_to_leave and self._told_at is None:
            self._told_at = now
        is_late = self._told_at is not None and now > self._told_at + self.cfg.graceful_timeout
        return is_late or not _LEAVE_AT_ONCE.isdisjoint(pending)
