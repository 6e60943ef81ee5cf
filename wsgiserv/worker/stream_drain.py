"""Sends queued responses on while the application runs in a ``sync`` worker's only thread.

Owns: `StreamDrain`: its thread, and which connections it looks after.
Must not know: HTTP, the states of a connection, what is in a queue.

The thread is started when something has been queued for the first time: where clients take their responses at once
there is none. It sends, and changes nothing else: what comes after a response is the loop's. While the loop turns, the
thread looks only now and then whether an application has begun to hold it up.
"""

from __future__ import annotations

from collections.abc import Callable
from select import POLLOUT, poll
from time import monotonic
from typing import Final

from wsgiserv.errors import BootError
from wsgiserv.net.client import Connection
from wsgiserv.net.serving_context import WRITE
from wsgiserv.unpatched import allocate_lock
from wsgiserv.worker.event_loop_worker import EventLoopWorker
from wsgiserv.worker.helper_thread import HelperThread
from wsgiserv.wsgi.response import ClientGone

__all__ = ["StreamDrain"]

# How often it looks whether the application has begun to hold the loop up, and whether more has been queued.
_LOOK_S: Final = 0.02
_POLL_MS: Final = 50
# After so many looks with nothing queued the thread sleeps until it is woken.
_LOOKS_BEFORE_SLEEP: Final = 10
# While the loop turns, how often it drops those that need it no longer.
_TIDY_S: Final = 1.0
# With more clients than these it rests between two rounds: each of them costs a look at all, and the application runs.
_FEW: Final = 64


class StreamDrain:
    """The helper of one worker.

    Args:
        worker: whose connections are looked after.
    """

    def __init__(self, worker: EventLoopWorker) -> None:
        self._worker = worker
        self._queued: dict[Connection, None] = {}
        self._is_started = False
        self._asleep: list[None] = []
        self._wakeup = allocate_lock()
        self._wakeup.acquire()
        self._thread = HelperThread("drain", self._work, self._wake)

    def watcher(self) -> Callable[[Connection, int], None]:
        """Return what is to be called instead of the loop's `watch`: it tells of each connection with a queue."""
        watch, add = self._worker.event_loop.watch, self._add

        def watch_and_tell(connection: Connection, interest: int) -> None:
            watch(connection, interest)
            if interest == WRITE:
                add(connection)

        return watch_and_tell

    def _add(self, connection: Connection) -> None:
        self._queued[connection] = None
        if not self._is_started:
            try:
                self._thread.start()
            except BootError as error:
                self._worker.log.error("%s", error)
                return
            self._is_started = True
        elif self._asleep:
            self._wake()

    def _wake(self) -> None:
        self._asleep.clear()
        try:
            self._wakeup.release()
        except RuntimeError:
            pass  # it has not heard the last one yet

    # ---- the helper's thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        queued, asleep, bell = self._queued, self._asleep, self._wakeup
        slot, quiet, next_tidy = self._worker.boot.slot, 0, 0.0
        while not self._thread.stopping:
            now = monotonic()
            begun = slot.load()[1] if queued else 0.0
            if begun and now - begun >= _LOOK_S:  # else the loop turns, and sends by itself
                try:
                    if self._drain():
                        continue
                except Exception:
                    self._worker.log.exception("queued responses cannot be sent on")
            elif now >= next_tidy:
                next_tidy = now + _TIDY_S
                self._drop_done()
            quiet = 0 if queued else quiet + 1
            if quiet < _LOOKS_BEFORE_SLEEP:
                bell.acquire(timeout=_LOOK_S)
                continue
            asleep.append(None)
            # Else something has come, or a fork is about to, before anybody could see that it must ring.
            if not (queued or self._thread.stopping):
                bell.acquire()
            asleep.clear()
            quiet = 0

    def _drop_done(self) -> None:
        """Look no longer after those of which everything has been sent."""
        queued = self._queued
        for connection in list(queued):
            del queued[connection]  # first: what is queued at this moment is told of before or behind that
            if connection.has_output:
                queued[connection] = None

    def _drain(self) -> bool:
        """Send what the sockets take, once; wait a moment for the first that does. True: go on at once."""
        self._drop_done()
        by_fd = {connection.fd: connection for connection in list(self._queued)}
        if not by_fd:
            return False
        poller = poll()
        for fd in by_fd:
            poller.register(fd, POLLOUT)
        for fd, _ in poller.poll(_POLL_MS):
            connection = by_fd[fd]
            failure = None
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
        for connection in by_fd.values():
            if connection.deadline < now:
                connection.expire_output(now)
        return len(by_fd) <= _FEW
