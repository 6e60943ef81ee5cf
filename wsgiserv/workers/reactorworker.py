"""A worker around a reactor: what sync, threads and gevent have in common.

Owns: one loop turn, accepting, and leaving without dropping what waits in the backlog.
Must not know: on which thread or greenlet a request runs; `run_request` decides.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from wsgiserv.boot import WorkerBoot
from wsgiserv.net.connection import Connection
from wsgiserv.net.reactor import Reactor
from wsgiserv.net.serving import UNWATCHED, WRITE
from wsgiserv.workers.base import Worker

__all__ = ["CROWDED_TURN_S", "ReactorWorker"]

# How many connections one turn takes from a listener, and for how long at most, before the clients that are
# connected already have their turn again.
_ACCEPT_BATCH: Final = 16
_ACCEPT_BATCH_S: Final = 0.002
# While new clients wait for a place, idle ones are looked at so often.
CROWDED_TURN_S: Final = 0.05
# A client that has connected but sent nothing yet may be about to: so long a leaving worker waits for it.
_FRESH_GRACE_S: Final = 1.0


class ReactorWorker(Worker):
    """Connections are event-driven: a slow client costs memory, never the worker.

    Attributes:
        run_request: called with each connection whose request is complete.
    """

    run_request: Callable[[Connection], object]

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        settings = self.cfg
        self.reactor = self.loop = Reactor(
            boot.listeners,
            self.admit,
            settings.worker_connections,
            self.log,
            settings.send_timeout,
            lambda crowded: self.context.crowd(crowded),
        )

    def connections(self) -> list[Connection]:
        """Return the open connections."""
        return list(self.reactor.connections.values())

    def start(self) -> None:
        """Watch the listeners, the signals and the master, and report that the worker is ready."""
        reactor, boot = self.reactor, self.boot
        reactor.add_callback(self.wakeup_fd, self.take_signals)
        reactor.add_callback(boot.lifeline, self._lifeline_ended)
        self.tick(monotonic())
        reactor.start_accepting()
        boot.ready.report("ready")

    def _lifeline_ended(self) -> None:
        self.reactor.remove_callback(self.boot.lifeline)  # its end of file would wake every poll
        self.lifeline_ended()

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do, or no time to do it."""
        return self.leave_now or (
            self.retiring and (not self.reactor.connections or monotonic() > self.leave_by)
        )

    @property
    def wants_place(self) -> bool:
        """Whether clients may wait for descriptors or a place (``worker_connections``) to become free."""
        return not (self.reactor.accepting or self.retiring)

    def turn(self, timeout_s: float) -> None:
        """Wait at most ``timeout_s`` seconds for something to do, and do all that is there to do now."""
        reactor, context, run = self.reactor, self.context, self.run_request
        connections, waiting = reactor.connections, reactor.waiting
        if waiting:
            timeout_s = 0.0
        elif self.wants_place:
            timeout_s = min(timeout_s, CROWDED_TURN_S)
        events = reactor.poll(timeout_s)
        context.now = now = monotonic()
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is None:
                if reactor.is_listener(fd):
                    self._accept(fd)
                else:
                    reactor.call_back(fd)
            elif connection.interest == WRITE:
                connection.flush()
            elif connection.receive():
                run(connection)
        for _ in range(len(waiting)):
            connection = waiting.popleft()
            if connection.advance():
                run(connection)
        # `now` is from before the work: what clients have sent since then has not been read yet.
        if self.tick(now):
            reactor.sweep(now)
        if self.wants_place:
            reactor.consider_accepting(now)

    def _accept(self, listener_fd: int) -> None:
        """Take connections and serve what they have brought: most bring their first request along."""
        reactor = self.reactor
        started = monotonic()
        for _ in range(_ACCEPT_BATCH):
            connection = reactor.accept(listener_fd)
            if connection is None:
                return
            self._first(connection)
            if monotonic() - started > _ACCEPT_BATCH_S:
                return

    def _first(self, connection: Connection) -> None:
        if connection.receive():
            self.run_request(connection)
        elif connection.interest == UNWATCHED:
            self.reactor.begin(connection)

    def stop_accepting(self) -> None:
        """Take what the backlog holds, then no more; let go of the connections that are idle."""
        reactor = self.reactor
        reactor.stop_accepting()
        for connection in self.connections():
            if connection.retire(_FRESH_GRACE_S):
                self.run_request(connection)
        for fd in reactor.listener_fds():
            while (accepted := reactor.accept(fd)) is not None:
                self._first(accepted)
                if accepted.retire(_FRESH_GRACE_S):
                    self.run_request(accepted)
