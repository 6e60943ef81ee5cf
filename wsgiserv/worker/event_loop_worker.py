"""The base of the worker classes around an event loop: sync, threads and gevent.

`EventLoopWorker` takes turns of the loop, accepts, hands connections over to other workers, and leaves without dropping
a connection of the backlog. `run_request` of the class decides where a request runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

from wsgiserv.boot import WorkerBoot
from wsgiserv.net.client import Connection
from wsgiserv.net.cork import LEAST_EVENTS
from wsgiserv.net.event_loop import EventLoop
from wsgiserv.net.handoff import Transferred
from wsgiserv.net.serving_context import READ, UNWATCHED, WRITE
from wsgiserv.scoreboard import DRAINING, FOR_GOOD, LISTENING, LOAD, STOPPING
from wsgiserv.wording import counted
from wsgiserv.worker.base import Worker
from wsgiserv.worker.cork_watch import CorkWatch
from wsgiserv.wsgi.run import run_app

if TYPE_CHECKING:
    from wsgiserv.worker.request_timeout import Deadlines

# How many connections one turn takes from a listener, and for how long at most, before the clients that are
# connected already have their turn again.
_ACCEPT_BATCH: Final = 16
_ACCEPT_BATCH_S: Final = 0.002
# While new clients wait for room, idle ones are looked at so often.
CROWDED_TURN_S: Final = 0.05
# A client that has connected but sent nothing yet may be about to: a leaving worker waits for it this long.
_FRESH_GRACE_S: Final = 1.0
# A worker this busy gives connections to siblings that have little to do; thousandths of its time.
_SATURATED: Final = 800
# It does not take back for this long what it has given: on a busy machine a sibling may need a while to wake up.
_GIVEN_S: Final = 0.5
# After this long the siblings' figures show the effect.
_SETTLED_S: Final = 3.0
# The channel to the siblings holds some hundred connections; when it is full, the rest goes this much later.
CHANNEL_FULL_S: Final = 0.005

# A loop that fails this often within this many seconds will not do better: its worker is to be replaced.
_MOST_FAILURES: Final = 10
_FAILURES_S: Final = 1.0


# Returned by what runs a request in a turn: the thread has lost the lead, and must leave the loop alone.
TURN_OVER: Final = object()


class TurnEnded(BaseException):
    """Ends a turn half-way, in a child of the application.

    Not an `Exception`: nothing between the call and the loop may catch it.
    """


class WorkerEventLoop(EventLoop):
    """The event loop of one worker.

    Args:
        worker: the worker.
    """

    def __init__(self, worker: EventLoopWorker) -> None:
        boot, settings = worker.boot, worker.settings
        super().__init__(
            boot.listeners,
            worker._admission.admit,
            settings.worker_connections,
            worker.log,
            settings.send_timeout,
            worker.context.set_at_capacity,
        )
        self._worker = worker


class EventLoopWorker(Worker):
    """Serves connections by events: a slow client costs memory, never the worker.

    Attributes:
        run_request: called with each connection whose request is complete. A method, or a function that the
            constructor binds.
        event_loop: the event loop.
    """

    run_request: Callable[[Connection], object]
    _event_loop_class: ClassVar[type[WorkerEventLoop]] = WorkerEventLoop
    _deadlines: Deadlines | None = None

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        # How many connections go to siblings when their clients next ask something (see `_share_out`).
        self._surplus = 0
        self._given_at = -_SETTLED_S
        # The exception that has made the loop fail for good.
        self._fatal: BaseException | None = None
        self._failures: list[float] = []
        self._turn_began = 0.0  # when what is handled now was found; ``time.monotonic()`` seconds
        self.event_loop = self.loop = self._event_loop_class(self)

    def _limited_caller(self) -> Callable[..., BaseException | None]:
        """Return the function that calls the application within ``request_timeout``, by interrupting its thread."""
        if not self.settings.request_timeout:
            return run_app
        from wsgiserv.worker.request_timeout import Deadlines, interrupt_main_thread, interrupt_thread

        interrupt = interrupt_thread if self.multithread else interrupt_main_thread
        self._deadlines = Deadlines(self.settings.request_timeout, self.log, self.calls, interrupt)
        return self._deadlines.call

    def each_second(self) -> None:
        """Run the checks of a class. Called once a second, at the end of a turn."""

    def connections(self) -> list[Connection]:
        """Return the open connections."""
        return list(self.event_loop.connections.values())

    def close_in_child(self) -> None:
        """As of the base; close the clients' descriptors, too."""
        self.event_loop.close_in_child()
        super().close_in_child()

    def start(self) -> None:
        """Watch the listeners, the signals and the master, and report that the worker is ready."""
        event_loop, boot = self.event_loop, self.boot
        self._watch_cork()
        event_loop.add_callback(self.wakeup_fd, self.take_signals)
        event_loop.add_callback(boot.lifeline, self._lifeline_ended)
        if boot.handoff is not None:
            event_loop.add_source(boot.handoff.fileno(), self._take_handed)
        self.tick(monotonic())
        event_loop.start_accepting()
        boot.slot.words[LISTENING] = 1
        # Last: the master may take this as leave to stop the worker that served until now.
        boot.ready.report("ready")

    def _lifeline_ended(self) -> None:
        self.event_loop.remove_callback(self.boot.lifeline)  # its end of file would wake every poll
        self.lifeline_ended()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, or no time to do it."""
        leaving = self._leaving
        return leaving.at_once or (
            leaving.begun and (not self.event_loop.connections or monotonic() > leaving.deadline)
        )

    def _watch_cork(self) -> None:
        """Have held answers pushed when a call lasts all of a sudden. Raises BootError."""
        if self.context.cork.enabled:
            CorkWatch(self.context.cork).start()

    def turn(self, timeout_s: float, run: Callable[[Connection], object] | None = None) -> None:
        """Wait for events, and handle all there are now.

        Args:
            timeout_s: how many seconds to wait at most.
            run: called with the connections of this turn whose requests are complete, in place of `run_request`. When
                it returns `TURN_OVER`, the turn ends at once.
        """
        leaving = self._leaving
        if leaving.begun:
            timeout_s = self._leave_further(timeout_s)
        event_loop, context = self.event_loop, self.context
        run = run or self.run_request
        connections, waiting = event_loop.connections, event_loop.waiting
        if waiting:
            timeout_s = 0.0
        elif not (event_loop.accepting or leaving.begun):
            timeout_s = min(timeout_s, CROWDED_TURN_S)
        events = event_loop.poll(timeout_s)
        context.now = self._turn_began = now = monotonic()
        if context.slot.words[DRAINING]:
            context.drain()
        cork = context.cork
        is_corked = len(events) >= LEAST_EVENTS and cork.begin(len(events), now)
        # An exception costs the connection of its event, once logged, and the loop goes on. It is logged behind the
        # `except`: the application's filters and handlers of the log must not find it in sys.exc_info().
        for fd, _ in events:
            # Looked up for each: what came before it may have closed the connection, or taken the descriptor again.
            connection = connections.get(fd)
            try:
                if connection is None:
                    if not event_loop.is_listener(fd):
                        event_loop.call_back(fd)
                    elif self._accept(fd, run) is TURN_OVER:
                        return
                elif connection.interest == WRITE:
                    connection.flush()
                elif self._surplus and self._give(connection):
                    pass  # before anything is read: the sibling finds the whole request in the socket
                elif connection.receive() and run(connection) is TURN_OVER:
                    return
                continue
            except BaseException as error:
                failure = error
            self.lose(connection, failure)
        if leaving.hands_over and waiting:
            self._leave_further(0.0)  # a client that pipelines would never go otherwise
        # No more than there are now: a client that pipelines without end comes back here, and must not keep the loop.
        for _ in range(len(waiting)):
            connection = waiting.popleft()
            # Not by `_attempt`: the calls would cost a client that pipelines one percent.
            try:
                if connection.advance() and run(connection) is TURN_OVER:
                    return
                continue
            except BaseException as error:
                failure = error
            self.lose(connection, failure)
        if is_corked:
            cork.end(monotonic())
        try:
            # `now` is from before the work: what clients have sent since then has not been read yet.
            if self.tick(now):
                self._turn_second(now)
            if not (event_loop.accepting or leaving.begun):
                event_loop.consider_accepting(now)
            return
        except BaseException as error:
            failure = error
        self.survive(failure)

    def _turn_second(self, now: float) -> None:
        """Do what is due once a second."""
        event_loop = self.event_loop
        if self._leaving.begun and not self._leaving.hands_over:
            for connection in self.connections():  # threads: one may have become idle as the leave began
                connection.bound_idle_time(_FRESH_GRACE_S)
        event_loop.sweep(now, lambda connection: self._attempt(connection, connection.expire))
        if event_loop.accepting:
            # The kernel wakes one sibling only, which may be held, have been killed, or be busy since. Its client would
            # wait until the next one wakes another.
            self._take_handed()
            for fd in event_loop.listener_fds():
                self._accept(fd, self.run_request)
        self._surplus = self._share_out(now)
        self.each_second()

    # ---- faults ----------------------------------------------------------------------------------------

    def _attempt(self, connection: Connection | None, action: Callable[..., Any], *arguments: object) -> Any:
        """Return the result of ``action``; None when it raises, which costs the connection: see `lose`."""
        try:
            return action(*arguments)
        except BaseException as error:
            failure = error
        self.lose(connection, failure)
        return None

    def _repeat(self, step: Callable[[], object]) -> None:
        """Call ``step`` until it returns something true or the worker is done, and survive its exceptions."""
        is_over: object = False
        while not is_over:
            try:
                is_over = self.is_done or step()
                continue
            except BaseException as error:
                failure = error
            self.survive(failure)

    def lose(self, connection: Connection | None, failure: BaseException, is_mine: bool = False) -> None:
        """Log the exception of an event, and close its connection. Raises nothing but a `TurnEnded` again.

        Args:
            connection: the event's; None: something else than a connection has failed.
            failure: the exception.
            is_mine: see `Connection.abandon`.
        """
        if connection is None or isinstance(failure, TurnEnded):
            self.survive(failure)
            return
        self._tell_fault(connection, failure)
        connection.abandon(is_mine or not self.multithread)

    def _tell_fault(self, connection: Connection, failure: BaseException) -> None:
        """Log a fault of the server at the cost of a connection. Raises nothing."""
        self._tell(
            "WS1708 %s: a fault of the server has cost this connection: please report it", connection.name, failure
        )

    def survive(self, failure: BaseException) -> None:
        """Log an exception of the loop itself, and end the worker if they come again and again.

        Args:
            failure: the exception; a `TurnEnded` is none of the loop's, and raised again.
        """
        if isinstance(failure, TurnEnded):
            raise failure
        self._tell("WS1709 worker %d: the loop has failed, and goes on: please report it", self.pid, failure)
        now = monotonic()
        self._failures = [when for when in self._failures if now - when < _FAILURES_S] + [now]
        if len(self._failures) >= _MOST_FAILURES:
            # Raised at the end of `serve`, not here: this may be any thread, or a greenlet.
            self._fatal = failure
            self._leaving.leave_at_once()

    def _tell(self, text: str, of: object, failure: BaseException) -> None:
        with suppress(BaseException):  # a filter or a handler of the application's log
            self.log.error(text, of, exc_info=failure)

    def end_if_failed(self) -> None:
        """Raise the exception of a loop given up for good. At the end of `serve`."""
        if self._fatal is not None:
            raise self._fatal

    # ---- accepting -------------------------------------------------------------------------------------

    def _accept(self, listener_fd: int, run: Callable[[Connection], object]) -> object:
        """Take connections and serve them: most bring their first request along.

        Returns `TURN_OVER` when ``run`` has.
        """
        event_loop = self.event_loop
        started = monotonic()
        for _ in range(_ACCEPT_BATCH):
            try:
                connection = event_loop.accept(listener_fd)
            except Exception as error:
                failure = error
                break
            if connection is None:
                return None
            served = self._attempt(connection, self._first, connection, run)
            # Without a request this was quick, and a quick worker would take all connections. The kernel has woken a
            # sibling for the next one.
            if served is TURN_OVER or (not served and self.boot.slot.others_listen()):
                return served
            if monotonic() - started > _ACCEPT_BATCH_S:
                return None
        else:
            return None
        self._tell("WS1710 worker %d: accepting has failed: pausing for a moment", self.pid, failure)
        event_loop.rest()
        return None

    def _first(self, connection: Connection, run: Callable[[Connection], object]) -> object:
        """Serve the first bytes of a new connection, if they are here.

        Returns:
            False without a complete request; `TURN_OVER` when ``run`` returns it; else something true.
        """
        if connection.receive():
            return run(connection) or True
        if connection.interest == UNWATCHED:
            self.event_loop.watch(connection, READ)
        return False

    def _backlog(self) -> Iterator[Connection]:
        """Accept connections until the backlog is empty."""
        event_loop = self.event_loop
        for fd in event_loop.listener_fds():
            while (accepted := event_loop.accept(fd)) is not None:
                yield accepted

    # ---- to and from the siblings ----------------------------------------------------------------------

    def may_hand_over(self) -> bool:
        """Return whether connections can go to another worker: not while the whole server stops."""
        return self._admission.can_hand_over and not self.boot.slot.words[STOPPING]

    def _hand_over(self, connection: Connection) -> bool:
        """Send a movable connection to the next free sibling; False when the channel takes nothing now."""
        handoff = self.boot.handoff
        assert handoff is not None
        try:
            if not handoff.send(connection.fd, connection.transfer_state(), self._admission.address_of(connection)):
                return False
        except OSError as error:
            self.log.error("WS1711 %s: cannot be handed over: %s: closing it", connection.name, error)
            connection.close()
        else:
            connection.detach()
        return True

    def _share_out(self, now: float) -> int:
        """Return how many connections are to go to siblings with little to do. Called once a second."""
        # A client keeps its connection, and with it the worker that was quickest when it came: when the others have
        # been replaced since, or were busy then, that worker has them all, however long they stay.
        if self._leaving.begun or not self.settings.handoff_after or not self.may_hand_over():
            return 0
        if now < self._given_at + _SETTLED_S:
            return self._surplus  # a moment with less to do is no reason to keep what was to go
        if self.context.slot.words[LOAD] < _SATURATED:
            return 0
        theirs = self.boot.slot.with_room(now)
        mine = len(self.event_loop.connections)
        # Above an equal share, rounded up: the last connection would go to and fro otherwise.
        surplus = max(0, mine - -(-(mine + sum(theirs)) // (1 + len(theirs))))
        if surplus:
            self._given_at = now
        return surplus

    def _give(self, connection: Connection) -> bool:
        """Let a sibling answer the request just arrived and not read yet; False: it cannot go."""
        if self._leaving.begun or not connection.is_movable or not self._hand_over(connection):
            return False
        self._surplus -= 1
        self._given_at = self._turn_began
        return True

    def _pass_on_handed(self) -> None:
        """Send a connection from the channel once more, to wake another sibling."""
        # The kernel has woken this worker for it, and no other, and this one does not take it.
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
            # Not served here: this may be the helper thread of a worker whose application runs.
            if connection.is_waiting:
                event_loop.resume(connection)
            else:
                event_loop.watch(connection, READ)

    def _take_handed(self) -> None:
        """Take connections off the channel, each when the one before has been served: the rest is for free siblings."""
        started = monotonic()
        if started < self._given_at + _GIVEN_S:
            return
        for _ in range(_ACCEPT_BATCH):
            # At least one a turn: where all siblings are busy as well, the connections must not wait for a free one.
            if self._leaving.begun or not self._take_one():
                return
            if self._queue or monotonic() - started > _ACCEPT_BATCH_S:
                return

    def _take_all_handed(self) -> None:
        """Serve the channel like the backlog, to its end: the server stops, or its master is gone."""
        while self._take_one(is_last=True):
            pass

    def _take_one(self, is_last: bool = False) -> bool:
        """Serve one connection of the channel; False when none is there, or none can be taken."""
        handoff, event_loop = self.boot.handoff, self.event_loop
        if handoff is None or not event_loop.has_room():
            return False
        try:
            handed = handoff.receive(self.log)
        except OSError as error:
            if not is_last:
                event_loop.refused(error)
            return False
        if handed is None:
            return False
        connection = self._adopt(handed)
        if connection is not None:
            if not connection.is_waiting:
                self._attempt(connection, self._first, connection, self.run_request)
            elif self._attempt(connection, connection.advance):
                self._attempt(connection, self.run_request, connection)
            if is_last:
                self._attempt(connection, self._retire, connection)
        return True

    def _adopt(self, handed: Transferred) -> Connection | None:
        connection = self._admission.adopt(self.event_loop, handed)
        if connection is not None:
            self.event_loop.adopt(connection)
        return connection

    # ---- leaving -------------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Take all of the backlog, then no more; close idle connections. Or hand all of them over to the siblings."""
        event_loop, slot = self.event_loop, self.boot.slot
        event_loop.stop_accepting()
        event_loop.lift_limit()
        if self._leaving.hands_over:
            slot.words[LISTENING] = 0
            # The backlog, too: a reload with another bind may have left the listener to this worker alone.
            for accepted in self._backlog():
                event_loop.watch(accepted, READ)
                if accepted.is_movable:
                    self._hand_over(accepted)
            self._pass_on_handed()
            return
        for connection in self.connections():
            self._attempt(connection, self._retire, connection)
        late: list[Connection] = []
        for accepted in self._backlog():
            self._serve_last(accepted)
        slot.words[LISTENING] = 0
        # After its own word is gone: of two workers that come here at once, at least one sees that it is the last.
        if slot.words[STOPPING] == FOR_GOOD and not slot.others_listen():
            event_loop.reject_new_connections()
            late += self._backlog()  # what has come between the last accept(2) and that
        # Closed at once, not when the last request has ended: a client that connected meanwhile would wait for nothing,
        # and be reset in the end. The last worker to come here closes the socket itself.
        event_loop.close_listeners()
        for accepted in late:
            self._serve_last(accepted)
        self._take_all_handed()

    def _serve_last(self, accepted: Connection) -> None:
        self._attempt(accepted, self._first, accepted, self.run_request)
        self._attempt(accepted, self._retire, accepted)

    def _retire(self, connection: Connection) -> None:
        """Have a connection end, and run a request just arrived."""
        if connection.retire(_FRESH_GRACE_S):
            self.run_request(connection)

    def _leave_further(self, timeout_s: float) -> float:
        sleep_s: float | None = self._attempt(None, self._go_on_leaving, timeout_s)
        return min(timeout_s, CHANNEL_FULL_S) if sleep_s is None else sleep_s

    def _go_on_leaving(self, timeout_s: float) -> float:
        """Hand movable connections over; return for how long the loop may sleep, ``timeout_s`` at most."""
        leaving, stopping = self._leaving, self.boot.slot.words[STOPPING]
        # No longer than it has: the master kills a worker that is a second late.
        timeout_s = min(timeout_s, max(0.0, leaving.deadline - monotonic()))
        if not leaving.hands_over:
            if self.context.linger_s and stopping == FOR_GOOD:
                self._stop_handing_over()
            if not self.event_loop.connections:
                self._take_all_handed()  # no worker may be left to take what is there
            return timeout_s
        if stopping:
            self._stop_handing_over()
            return 0.0
        for connection in self.connections():
            if connection.is_movable and not self._hand_over(connection):
                # Full: the siblings take from it, and nothing wakes this worker when they have.
                return min(timeout_s, CHANNEL_FULL_S)
        return timeout_s if self.event_loop.connections else 0.0

    def _close_connections(self) -> None:
        """Close the open connections when the worker ends, and account for them."""
        if upgrades := len(self.context.upgrades):
            level, why = self.context.why_leaving
            what = counted(upgrades, "upgraded connection", "is", "are")
            self.log.log(level, "WS1771 worker %d: %s closed: %s", self.pid, what, why)
        self._cut_requests()
        self.event_loop.close()
