"""Sends queued responses on while the application runs in a ``sync`` worker's only thread."""

from __future__ import annotations

from select import POLLOUT, poll
from time import monotonic
from typing import TYPE_CHECKING, Final

from wsgiserv.errors import BootError
from wsgiserv.net.client import Connection
from wsgiserv.worker.helper_thread import HelperThread
from wsgiserv.wsgi.response import ClientGone

if TYPE_CHECKING:
    from wsgiserv.worker.event_loop_worker import EventLoopWorker

# How often the thread looks whether the application has begun to hold the loop up, and whether more has been queued.
_LOOK_S: Final = 0.02
_POLL_MS: Final = 50
# While the loop turns, how often it drops the connections that need it no longer.
_TIDY_S: Final = 1.0
# With more clients than these it rests between two rounds: each of them costs a look at all, and the application runs.
_FEW: Final = 64


class StreamDrain:
    """The helper of one worker.

    It sends, and changes nothing else: the loop handles the end of a response. While the loop turns, the helper only
    looks now and then for an application holding it up.

    Args:
        worker: the worker, whose loop calls `add`.
    """

    def __init__(self, worker: EventLoopWorker) -> None:
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
            if begun and now - begun >= _LOOK_S:  # else the loop turns, and sends by itself
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
            thread.rest(_LOOK_S, not queued, queued)

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
        for fd, _ in poller.poll(_POLL_MS):
            connection = by_fd[fd]
            try:
                connection.drain()
            except ClientGone:
                pass  # the loop finds the same error
            except Exception as error:
                self._queued.pop(connection, None)
                self._worker._tell_fault(connection, error)
                connection.abandon_sending()
        now = monotonic()
        # `send_timeout` counts while the application holds the loop up, too, which sweeps no deadlines then.
        for connection in by_fd.values():
            if connection.deadline < now:
                connection.expire_output(now)
        return len(by_fd) <= _FEW
