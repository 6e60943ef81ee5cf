"""Who waits behind a long call in a ``sync`` worker is handed to a sibling that is free.

Owns: `BusyHandover`: noticing the long call, and the right to touch the connections while it lasts.
Must not know: HTTP, the channel, what makes a connection movable.

The right is a token, as in `threads`: the main thread pushes it before a call and pops it after it; the helper
pops it to act, briefly, and puts it back. `list.pop` is atomic, so one of the two has it, never both.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from contextvars import copy_context
from time import monotonic
from typing import Final

from wsgiserv.net.client import Connection
from wsgiserv.scoreboard import CONNECTIONS
from wsgiserv.worker.event_loop_worker import EventLoopWorker
from wsgiserv.worker.fresh_context import fresh_contexts
from wsgiserv.worker.helper_thread import HelperThread

__all__ = ["BusyHandover"]

# For so long at most the helper acts at a time: a call that ends meanwhile waits for that.
_ACT_S: Final = 0.002
# After so many looks at which nothing had happened it sleeps until the next call.
_LOOKS_BEFORE_SLEEP: Final = 8
_ALL: Final = 1 << 30


class BusyHandover:
    """The helper of one worker.

    Args:
        worker: whose loop calls `runner`'s function in place of `Connection.run`.
        after_s: how long a call may last before its neighbours are handed over (``handoff_after``), in seconds.
    """

    def __init__(self, worker: EventLoopWorker, after_s: float) -> None:
        self._worker = worker
        self._after_s = after_s
        self._token: list[None] = []
        self._asleep: list[None] = []
        self._acting = allocate_lock()
        self._wakeup = allocate_lock()
        self._wakeup.acquire()
        self._thread = HelperThread("relief", self._work, self._wake)

    def start(self) -> None:
        """Start the helper's thread; after the fork. Raises BootError."""
        self._thread.start()

    def runner(self) -> Callable[[Connection], object]:
        """Return what runs a request in the main thread. Plain names of a closure: it costs 0.1 µs a request."""
        push, pop = self._token.append, self._token.pop
        asleep, ring, wait, lose = self._asleep, self._wake, self._wait, self._worker.lose
        run_fresh = fresh_contexts(copy_context())
        words, connections = self._worker.context.words, self._worker.event_loop.connections

        def run(connection: Connection) -> None:
            failure: BaseException | None = None
            words[CONNECTIONS] = len(connections)
            push(None)
            if asleep:
                ring()
            try:
                run_fresh(connection)
            except BaseException as error:
                failure = error
            try:
                pop()
            except IndexError:
                wait()
            if failure is not None:
                lose(connection, failure, True)

        return run

    def _wake(self) -> None:
        self._asleep.clear()
        try:
            self._wakeup.release()
        except RuntimeError:
            pass  # it has not heard the last one yet

    def _wait(self) -> None:
        """The call has ended while the helper acts."""
        with self._acting:
            self._token.pop()

    # ---- the helper's thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        worker, token, asleep = self._worker, self._token, self._asleep
        context, look_s = worker.context, self._after_s / 2
        answered, quiet = -1, 0
        since: float | None = None  # when the call that lasts has been seen first
        while not self._thread.stopping:
            now = monotonic()
            if context.answered != answered:
                answered, since, quiet = context.answered, now, 0
                # Each call is short, but there are many for this worker alone: its clients have kept their connections.
                if token and now - worker._turn_began >= self._after_s:
                    self._try(worker.boot.slot.idle_siblings(now))
            elif not token:
                since = None
                quiet += 1
            elif since is None:
                since, quiet = now, 0
            elif now - since >= self._after_s:
                self._try(_ALL)
            if quiet < _LOOKS_BEFORE_SLEEP:
                self._wakeup.acquire(timeout=look_s)
            else:
                asleep.append(None)
                # Else a call has begun, or a fork is about to come, before anybody could see that it must ring.
                if not (token or self._thread.stopping):
                    self._wakeup.acquire()
                asleep.clear()
                quiet = 0

    def _try(self, most: int) -> None:
        try:
            if most:
                self._act(most)
        except Exception:
            self._worker.log.exception("connections cannot be handed over")

    def _act(self, most: int) -> None:
        """Take the right to touch connections, hand ``most`` of them over at most, give it back."""
        worker = self._worker
        if not worker.may_hand_over() or (worker.retiring and not worker._handing_over):
            return
        with self._acting:
            try:
                self._token.pop()
            except IndexError:
                return  # the call has just ended
            try:
                self._hand_over(most)
                worker.context.words[CONNECTIONS] = len(worker.event_loop.connections)
            finally:
                self._token.append(None)

    def _hand_over(self, most: int) -> None:
        """Those with a request waiting; all, when the worker is to leave. The rest goes at the next look."""
        worker = self._worker
        event_loop = worker.event_loop
        if worker._told_to_leave:
            candidates = worker.connections()
        else:
            candidates = list(event_loop.waiting)
            channel = worker.boot.handoff
            for fd, _ in event_loop.poll(0.0):
                connection = event_loop.connections.get(fd)
                if connection is not None:
                    candidates.append(connection)
                elif channel is not None and fd == channel.fileno():
                    worker._pass_on_handed()
        end = monotonic() + _ACT_S
        for connection in candidates:
            if connection.is_movable:
                if not worker._hand_over(connection) or monotonic() > end:
                    return
                most -= 1
                if not most:
                    return
