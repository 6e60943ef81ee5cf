"""Moves waiting connections away from a ``sync`` worker in a long call."""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable
from itertools import islice
from time import monotonic
from typing import Final

from wsgiserv.net.client import Connection
from wsgiserv.scoreboard import CONNECTIONS
from wsgiserv.worker.event_loop_worker import EventLoopWorker
from wsgiserv.worker.helper_thread import HelperThread

# The helper acts for this long at a time at most: a call that ends meanwhile waits for it.
_ACT_S: Final = 0.002
_ALL: Final = 1 << 30


class BusyHandover:
    """The helper of one worker.

    Args:
        worker: the worker, whose loop calls `run` for each request.
        after_s: how long a call may last before its neighbours are handed over (``handoff_after``), in seconds.
        run_fresh: runs a request.

    Attributes:
        start: starts the helper's thread, after the fork. Raises BootError.
        run: runs a request in the main thread.
    """

    # The right to touch the connections is a token: the main thread pushes it before a call and pops it after it; the
    # helper pops it to act, briefly, and puts it back. `list.pop` is atomic, so one of the two has it, never both.

    def __init__(self, worker: EventLoopWorker, after_s: float, run_fresh: Callable[[Connection], object]) -> None:
        self._worker = worker
        self._after_s = after_s
        self._token: list[None] = []
        self._acting = allocate_lock()
        self._thread = HelperThread("busy-handover", self._work)
        self.start = self._thread.start
        # Plain names of a closure: it costs 0.1 µs a request.
        push, pop = self._token.append, self._token.pop
        asleep, wake, wait = self._thread.asleep, self._thread.wake, self._wait
        words, connections = worker.context.slot.words, worker.event_loop.connections

        def run(connection: Connection) -> None:
            words[CONNECTIONS] = len(connections)
            push(None)
            if asleep:
                wake()
            try:
                run_fresh(connection)
            finally:
                try:
                    pop()
                except IndexError:
                    wait()

        self.run = run

    def _wait(self) -> None:
        """Take the token back from the helper, still at work after the call."""
        with self._acting:
            self._token.pop()

    # ---- the helper's thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        worker, token, thread = self._worker, self._token, self._thread
        context, look_s = worker.context, self._after_s / 2
        answered = -1
        since: float | None = None  # when the call that lasts has been seen first
        while not thread.stopping:
            now = monotonic()
            most, is_quiet = 0, False
            # Calls are told apart by the count of answers: a timestamp for each would cost each request.
            if context.answered != answered:
                answered, since = context.answered, now
                # Each call is short, but there are many for this worker alone: its clients have kept their connections.
                if token and now - worker._turn_began >= self._after_s:
                    most = worker.boot.slot.idle_siblings(now)
            elif not token:
                since, is_quiet = None, True
            elif since is None:
                since = now
            elif now - since >= self._after_s:
                most = _ALL
            failure: Exception | None = None
            try:
                if most:
                    self._act(most)
            except Exception as error:  # the next look is due all the same
                failure = error
            if failure is not None:
                worker.log.error(
                    "WS1712 worker %d: connections cannot be handed over: please report it",
                    worker.pid,
                    exc_info=failure,
                )
            thread.rest(look_s, is_quiet, token)

    def _act(self, most: int) -> None:
        """Take the right to touch connections, hand ``most`` of them over at most, give it back."""
        worker = self._worker
        # A worker that leaves without handing over, as when its master is gone, has no sibling left to take them.
        if not worker.may_hand_over() or (worker.retiring and not worker._leaving.hands_over):
            return
        with self._acting:
            try:
                self._token.pop()
            except IndexError:
                return  # the call has just ended
            try:
                self._hand_over(most)
                worker.context.slot.words[CONNECTIONS] = len(worker.event_loop.connections)
            finally:
                self._token.append(None)

    def _hand_over(self, most: int) -> None:
        """Hand over connections with a request waiting; all, when the worker is to leave."""
        worker = self._worker
        worker.context.cork.push()  # not even close(2) pushes what a socket holds that another process has, too
        event_loop = worker.event_loop
        if worker._leaving.told_at is not None:
            candidates = worker.connections()
        else:
            candidates = list(event_loop.waiting)
            channel = worker.boot.handoff
            # The loop's own poll, which the call keeps it from: idle clients stay, those with a request go.
            for fd, _ in event_loop.poll(0.0):
                connection = event_loop.connections.get(fd)
                if connection is not None:
                    candidates.append(connection)
                elif channel is not None and fd == channel.fileno():
                    worker._pass_on_handed()  # the kernel has woken this worker, and no other, for it
        end = monotonic() + _ACT_S  # the rest goes at the next look
        # Lazily: whether one can move is asked just before it does.
        for connection in islice((each for each in candidates if each.is_movable), most):
            if not worker._hand_over(connection) or monotonic() > end:
                return
