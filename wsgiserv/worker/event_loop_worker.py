"""A worker around a event_loop: what sync, threads and gevent have in common.

Owns: one loop turn, accepting, and leaving without dropping what waits in the backlog.
Must not know: on which thread or greenlet a request runs; `run_request` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Final

from wsgiserv.boot import WorkerBoot
from wsgiserv.net.client import Connection
from wsgiserv.net.event_loop import EventLoop
from wsgiserv.net.handoff import Transferred
from wsgiserv.net.serving_context import UNWATCHED, WRITE
from wsgiserv.scoreboard import DRAINING, FOR_GOOD, LISTENING, LOAD, STOPPING
from wsgiserv.worker.base import Worker

__all__ = ["CHANNEL_FULL_S", "CROWDED_TURN_S", "EventLoopWorker", "TurnEnded"]

# How many connections one turn takes from a listener, and for how long at most, before the clients that are
# connected already have their turn again.
_ACCEPT_BATCH: Final = 16
_ACCEPT_BATCH_S: Final = 0.002
# While new clients wait for a place, idle ones are looked at so often.
CROWDED_TURN_S: Final = 0.05
# A client that has connected but sent nothing yet may be about to: so long a leaving worker waits for it.
_FRESH_GRACE_S: Final = 1.0
# So busy a worker gives connections to siblings that have little to do; thousandths of its time.
_SATURATED: Final = 800
# What it has given it does not take back for so long: on a crowded machine a sibling may need a while to wake up.
_GIVEN_S: Final = 0.5
# After so long the siblings' figures tell what has become of it.
_SETTLED_S: Final = 3.0
# The channel to the siblings holds some hundred connections; when it is full, the rest goes so much later.
CHANNEL_FULL_S: Final = 0.005

# A loop that fails so often within so many seconds will not do better: its worker is to be replaced.
_MOST_FAILURES: Final = 10
_FAILURES_S: Final = 1.0


class TurnEnded(BaseException):
    """Ends a turn half-way, since the thread has lost the lead or gives it up.

    Not an error, and not an `Exception`: nothing between the call and the leader may catch it.
    """


class EventLoopWorker(Worker):
    """Connections are event-driven: a slow client costs memory, never the worker.

    Attributes:
        run_request: called with each connection whose request is complete.
    """

    run_request: Callable[[Connection], object]

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        settings = self.cfg
        # How many connections go to siblings when their clients next ask something (see `_share_out`).
        self._surplus = 0
        # What has made the loop fail for good.
        self._fatal: BaseException | None = None
        self._failures: list[float] = []
        self._given_at = -_SETTLED_S
        self._turn_began = 0.0  # when what is handled now was found; ``time.monotonic()`` seconds
        self.event_loop = self.loop = EventLoop(
            boot.listeners,
            self._admit,
            settings.worker_connections,
            self.log,
            settings.send_timeout,
            lambda crowded: self.context.crowd(crowded),
        )

    def each_second(self) -> None:
        """Called once a second, at the end of a turn; for classes that have something to look at."""

    def connections(self) -> list[Connection]:
        """Return the open connections."""
        return list(self.event_loop.connections.values())

    def close_in_child(self) -> None:
        """As of the base, and the clients."""
        self.event_loop.close_in_child()
        super().close_in_child()

    def start(self) -> None:
        """Watch the listeners, the signals and the master, and report that the worker is ready."""
        event_loop, boot = self.event_loop, self.boot
        event_loop.add_callback(self.wakeup_fd, self.take_signals)
        event_loop.add_callback(boot.lifeline, self._lifeline_ended)
        if boot.handoff is not None:
            event_loop.add_source(boot.handoff.fileno(), self._take_handed)
        self.tick(monotonic())
        event_loop.start_accepting()
        boot.slot.words[LISTENING] = 1
        boot.ready.report("ready")

    def _lifeline_ended(self) -> None:
        self.event_loop.remove_callback(self.boot.lifeline)  # its end of file would wake every poll
        self.lifeline_ended()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, or no time to do it."""
        return self.leave_now or (
            self.retiring and (not self.event_loop.connections or monotonic() > self.leave_by)
        )

    @property
    def _wants_place(self) -> bool:
        """Whether clients may wait for descriptors or a place (``worker_connections``) to become free."""
        return not (self.event_loop.accepting or self.retiring)

    def turn(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` seconds for something to do, and do all that is there to do now."""
        if self.retiring:
            timeout_s = self._leave_further(timeout_s)
        event_loop, context, run = self.event_loop, self.context, self.run_request
        connections, waiting = event_loop.connections, event_loop.waiting
        if waiting:
            timeout_s = 0.0
        elif self._wants_place:
            timeout_s = min(timeout_s, CROWDED_TURN_S)
        events = event_loop.poll(timeout_s)
        context.now = self._turn_began = now = monotonic()
        if context.words[DRAINING]:
            context.drain()
        # Each event is on its own: what one raises is logged and costs its connection, and the loop goes on.
        for fd, _ in events:
            connection = connections.get(fd)
            try:
                if connection is None:
                    if event_loop.is_listener(fd):
                        self._accept(fd)
                    else:
                        event_loop.call_back(fd)
                elif connection.interest == WRITE:
                    connection.flush()
                elif self._surplus and self._give(connection):
                    pass
                elif connection.receive():
                    run(connection)
                continue
            except TurnEnded:
                raise
            except BaseException as error:
                failure = error
            self.lose(connection, failure)
        if self._handing_over and waiting:
            self._leave_further(0.0)  # a client that pipelines would never go otherwise
        for _ in range(len(waiting)):
            connection = waiting.popleft()
            try:
                if connection.advance():
                    run(connection)
                continue
            except TurnEnded:
                raise
            except BaseException as error:
                failure = error
            self.lose(connection, failure)
        try:
            # `now` is from before the work: what clients have sent since then has not been read yet.
            if self.tick(now):
                if self.retiring and not self._handing_over:
                    for (
                        connection
                    ) in self.connections():  # threads: one may have become idle as the leave began
                        connection.bound_idle_time(_FRESH_GRACE_S)
                event_loop.sweep(now, self._expire)
                if event_loop.accepting:
                    # Whoever was woken for it may have been killed, or be busy since: the kernel wakes one only.
                    self._take_handed()
                self._surplus = self._share_out(now)
                self.each_second()
            if self._wants_place:
                event_loop.consider_accepting(now)
            return
        except TurnEnded:
            raise
        except BaseException as error:
            failure = error
        self.lose(None, failure)

    # ---- faults ----------------------------------------------------------------------------------------

    def lose(self, connection: Connection | None, failure: BaseException, is_mine: bool = False) -> None:
        """Log what an event has raised, and close its connection. Raises nothing; outside of any handler.

        Args:
            connection: the event's; None: something else than a connection has failed.
            failure: what has been raised.
            is_mine: see `Connection.abandon`.
        """
        if connection is None:
            self.survive(failure)
            return
        self._tell_fault(connection, failure)
        connection.abandon(is_mine or not self.multithread)

    def _tell_fault(self, connection: Connection, failure: BaseException) -> None:
        """Log a fault of the server that ends a connection. Raises nothing."""
        self._tell("a fault of the server has cost the connection of %s", connection.name, failure)

    def survive(self, failure: BaseException) -> None:
        """Log what the loop itself has raised, and end the worker when that comes again and again."""
        self._tell("the loop of worker %d has failed, and goes on", self.pid, failure)
        now = monotonic()
        self._failures = [when for when in self._failures if now - when < _FAILURES_S] + [now]
        if len(self._failures) >= _MOST_FAILURES:
            self._fatal = failure
            self.leave_now = True

    def _tell(self, text: str, of: object, failure: BaseException) -> None:
        with suppress(BaseException):  # a filter or a handler of the application's log
            self.log.error(text, of, exc_info=failure)

    def _close_connections(self) -> None:
        """Close what is still open when the worker ends, and account for it."""
        self._cut_requests()
        self.event_loop.close()

    def end_if_failed(self) -> None:
        """Raise what has made the loop fail for good, if anything has. At the end of `serve`."""
        if self._fatal is not None:
            raise self._fatal

    def _expire(self, connection: Connection) -> None:
        try:
            connection.expire()
            return
        except BaseException as error:
            failure = error
        self.lose(connection, failure)

    def _retire(self, connection: Connection) -> None:
        """Have a connection end, for the worker leaves, and run the request that has come at this very moment."""
        try:
            if connection.retire(_FRESH_GRACE_S):
                self.run_request(connection)
            return
        except TurnEnded:
            raise
        except BaseException as error:
            failure = error
        self.lose(connection, failure)

    def _leave_further(self, timeout_s: float) -> float:
        try:
            return self._go_on_leaving(timeout_s)
        except TurnEnded:
            raise
        except BaseException as error:
            failure = error
        self.survive(failure)
        return min(timeout_s, CHANNEL_FULL_S)

    # ---- accepting -------------------------------------------------------------------------------------

    def _accept(self, listener_fd: int) -> None:
        """Take connections and serve what they have brought: most bring their first request along."""
        event_loop = self.event_loop
        started = monotonic()
        for _ in range(_ACCEPT_BATCH):
            try:
                connection = event_loop.accept(listener_fd)
            except Exception as error:
                failure = error
                break
            if connection is None:
                return
            if not self._first(connection) and self.boot.slot.others_listen():
                # Nothing to do for it yet, so this is quick, and who is quick would take them all. The kernel has woken
                # a sibling for the next one.
                return
            if monotonic() - started > _ACCEPT_BATCH_S:
                return
        else:
            return
        self._tell("accepting has failed in worker %d, and rests for a moment", self.pid, failure)
        event_loop.rest()

    def _first(self, connection: Connection) -> bool:
        """Serve what a new connection has brought; False when that was no request yet."""
        try:
            if connection.receive():
                self.run_request(connection)
                return True
            if connection.interest == UNWATCHED:
                self.event_loop.begin(connection)
            return False
        except TurnEnded:
            raise
        except BaseException as error:
            failure = error
        self.lose(connection, failure)
        return False

    # ---- from and to the siblings --------------------------------------------------------------------

    def may_hand_over(self) -> bool:
        """Whether connections can go to another worker: not TLS, whose state cannot; not uwsgi, which ends with
        each response anyway; and not while the whole server stops."""
        boot = self.boot
        return (
            boot.handoff is not None
            and self._secure is None
            and self._uwsgi_peers is None
            and not boot.slot.words[STOPPING]
        )

    def _hand_over(self, connection: Connection) -> bool:
        """Give a movable connection to whichever sibling is free; False when the channel takes nothing now."""
        handoff = self.boot.handoff
        assert handoff is not None
        address = self._addresses.get(id(connection.base), "")
        try:
            if not handoff.send(connection.fd, connection.transfer_state(), address):
                return False
        except OSError as error:
            self.log.error("%s cannot be handed over and is closed: %s", connection.name, error)
            connection.close()
        else:
            connection.detach()
        return True

    def _share_out(self, now: float) -> int:
        """Return how many connections are to go to siblings that have little to do. Called once a second.

        A client keeps its connection, and with it the worker that was quickest when it came: when the others have
        been replaced since, or were busy then, that worker has them all, however long they stay.
        """
        if self.retiring or not self.cfg.handoff_after or not self.may_hand_over():
            return 0
        if now < self._given_at + _SETTLED_S:
            return self._surplus  # a moment with less to do is no reason to keep what was to go
        if self.context.words[LOAD] < _SATURATED:
            return 0
        theirs = self.boot.slot.with_room(now)
        mine = len(self.event_loop.connections)
        surplus = max(0, mine - -(-(mine + sum(theirs)) // (1 + len(theirs))))
        if surplus:
            self._given_at = now
        return surplus

    def _give(self, connection: Connection) -> bool:
        """Let a sibling answer the request that has just come: nothing of it has been read. False: it cannot go."""
        if self.retiring or not connection.is_movable or not self._hand_over(connection):
            return False
        self._surplus -= 1
        self._given_at = self._turn_began
        return True

    def _go_on_leaving(self, timeout_s: float) -> float:
        """Hand over what has become movable; return for how long the loop may sleep, ``timeout_s`` at most."""
        if not self._handing_over:
            if self.context.linger_s and self.boot.slot.words[STOPPING] == FOR_GOOD:
                self._stop_handing_over()
            if not self.event_loop.connections:
                self._take_all_handed()  # the last to leave must not leave somebody there
            return min(timeout_s, max(0.0, self.leave_by - monotonic()))
        if self.boot.slot.words[STOPPING]:
            self._stop_handing_over()
            return 0.0
        for connection in self.connections():
            if connection.is_movable and not self._hand_over(connection):
                return min(timeout_s, CHANNEL_FULL_S)
        return timeout_s if self.event_loop.connections else 0.0

    def _pass_on_handed(self) -> None:
        """Send a connection that waits in the channel once more, so that another sibling is woken.

        By a worker that has been woken for it, and will not take it.
        """
        handoff, event_loop = self.boot.handoff, self.event_loop
        assert handoff is not None
        try:
            handed = handoff.receive(self.log)
            if handed is None:
                return
            if handoff.send(handed.sock.fileno(), handed.state, handed.listener):
                handed.sock.close()
                return
        except OSError:
            return
        connection = self._adopt(handed)  # others have filled the channel in this moment
        if connection is not None:
            event_loop.adopt(connection)
            if connection.is_waiting:
                event_loop.resume(connection)
            else:
                event_loop.begin(connection)

    def _take_handed(self) -> None:
        """Take connections off the channel, each when the one before has been served: the rest is for who is free."""
        handoff, event_loop = self.boot.handoff, self.event_loop
        if handoff is None:
            return
        started = monotonic()
        if started < self._given_at + _GIVEN_S:
            return
        for _ in range(_ACCEPT_BATCH):
            if self.retiring or not event_loop.has_room():
                return
            try:
                handed = handoff.receive(self.log)
            except OSError as error:
                event_loop.refused(error)
                return
            if handed is None:
                return
            self._go_on_with(handed)
            if monotonic() - started > _ACCEPT_BATCH_S:
                return

    def _go_on_with(self, handed: Transferred) -> Connection | None:
        connection = self._adopt(handed)
        if connection is None:
            return None
        event_loop = self.event_loop
        event_loop.adopt(connection)
        if connection.is_waiting:
            if connection.advance():
                self.run_request(connection)
        else:
            self._first(connection)
        return connection

    def _take_all_handed(self) -> None:
        """Serve what waits in the channel like what waits in the backlog: the server stops, or its master is gone."""
        handoff = self.boot.handoff
        while handoff is not None and self.event_loop.has_room():
            try:
                handed = handoff.receive(self.log)
            except OSError:
                return
            if handed is None:
                return
            connection = self._go_on_with(handed)
            if connection is not None:
                self._retire(connection)

    # ---- leaving -------------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Take what the backlog holds, then no more; let go of the connections that are idle.

        A worker that hands its connections over takes what the backlog holds, too: a reload with another bind may
        have left the listener to it alone. The siblings get all that.
        """
        event_loop, slot = self.event_loop, self.boot.slot
        event_loop.stop_accepting()
        event_loop.lift_limit()
        if self._handing_over:
            slot.words[LISTENING] = 0
            for accepted in self._backlog():
                event_loop.begin(accepted)
                if accepted.is_movable:
                    self._hand_over(accepted)
            self._pass_on_handed()
            return
        for connection in self.connections():
            self._retire(connection)
        late: list[Connection] = []
        for accepted in self._backlog():
            self._last(accepted)
        slot.words[LISTENING] = 0
        # Its own word has gone: of two that come here at once, at least one sees that it is the last.
        if slot.words[STOPPING] == FOR_GOOD and not slot.others_listen():
            event_loop.reject_new_connections()
            late += self._backlog()  # who has come between the last accept(2) and that
        # Closed at once, not when the last request has ended: who connected meanwhile would wait for nobody, and be
        # reset in the end. The last worker to come here closes the socket itself.
        event_loop.close_listeners()
        for accepted in late:
            self._last(accepted)
        self._take_all_handed()

    def _backlog(self) -> Iterator[Connection]:
        """Take what waits in the backlog, until it is empty."""
        event_loop = self.event_loop
        for fd in event_loop.listener_fds():
            while (accepted := event_loop.accept(fd)) is not None:
                yield accepted

    def _last(self, accepted: Connection) -> None:
        """Serve a connection that has come at the end."""
        self._first(accepted)
        self._retire(accepted)
