"""The ``gevent`` worker: one watcher for all connections, a pooled greenlet per request in flight.

Owns: monkey patching, the hub, the pool of greenlets. The only module that imports gevent.
Must not know: HTTP, the master.

The reactor keeps its own epoll, and the hub watches that one descriptor: an idle connection costs neither
a greenlet nor a watcher, and accepting, deadlines and leaving are the same code as in the other classes.
"""

from __future__ import annotations

from typing import Any

import gevent
import gevent.event
import gevent.monkey
from gevent import Greenlet
from gevent.hub import get_hub

from wsgiserv.boot import WorkerBoot
from wsgiserv.net.connection import Connection
from wsgiserv.workers.reactorworker import CHANNEL_FULL_S, CROWDED_TURN_S, ReactorWorker

__all__ = ["GeventWorker"]

_READABLE = 1  # libev's EV_READ
_WRITABLE = 2


class _Pooled(Greenlet):  # type: ignore[type-arg]
    """A greenlet that serves one request after another, and waits for the next in the pool."""

    def __init__(self, worker: GeventWorker, connection: Connection, cell: int) -> None:
        super().__init__()
        self._worker = worker
        self._cell = cell
        self.connection = connection

    def _run(self) -> None:
        hub, worker = get_hub(), self._worker
        idle = worker.idle
        while True:
            self.connection.run(self._cell)
            worker.turn_soon()
            idle.append(self)
            hub.switch()


class GeventWorker(ReactorWorker):
    """Runs each request in a greenlet; the application yields where it waits."""

    multithread = True

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self.idle: list[_Pooled] = []
        self._started = 0
        self._is_turning = False
        self._will_turn = False
        self._hub_loop: Any = None
        self._crowded_timer: Any = None
        self._full_timer: Any = None
        self.run_request = self._run_in_greenlet
        self._done: Any = None

    def prepare(self) -> None:
        """Patch the standard library before anything of the application is imported."""
        gevent.reinit()  # a hub that the master's configuration file made does not survive the fork
        gevent.monkey.patch_all()

    def _run_in_greenlet(self, connection: Connection) -> None:
        if self.idle:
            greenlet = self.idle.pop()
            greenlet.connection = connection
            greenlet.switch()
        else:
            # There are never more than worker_connections of them: one per connection at most.
            cell = min(self._started, self.boot.slot.cells - 1)
            self._started += 1
            _Pooled(self, connection, cell).start()

    def serve(self) -> None:
        """Let the hub run until the worker has left."""
        self.loop.wait_writable = self._wait_writable
        hub = get_hub()
        self._hub_loop = hub.loop
        self._done = gevent.event.Event()
        self.start()
        watcher = hub.loop.io(self.reactor.poller.fileno(), _READABLE)
        watcher.start(self._turn)
        timer = hub.loop.timer(1.0, repeat=1.0)
        timer.start(self._turn)
        # Repeating: libev's one-shot timer, started again, fires at once and would spin.
        self._crowded_timer = hub.loop.timer(CROWDED_TURN_S, repeat=CROWDED_TURN_S)
        self._full_timer = hub.loop.timer(CHANNEL_FULL_S, repeat=CHANNEL_FULL_S)
        try:
            self._turn()
            self._done.wait()
        finally:
            watcher.stop()
            timer.stop()
            self._crowded_timer.stop()
            self._full_timer.stop()
            self.reactor.close()

    def _turn(self) -> None:
        """One turn of the reactor, in the hub: nothing here waits."""
        self._is_turning = True
        try:
            self.turn(0.0)
            if self.retiring:
                self._hand_over_after_turn()
        except Exception:  # in the hub nobody else would log it, and the server must go on
            self.log.exception("the gevent worker's loop failed")
        self._is_turning = False
        if self.is_done:
            self._done.set()
        elif self.reactor.waiting:
            self.turn_soon()
        elif self.wants_place:
            self._crowded_timer.again(self._turn)
        elif self._crowded_timer.active:
            self._crowded_timer.stop()

    def _hand_over_after_turn(self) -> None:
        """What the turn has made movable leaves now: nothing may wake the hub for the next one."""
        if 0.0 < self.go_on_leaving(1.0) < 1.0:
            self._full_timer.again(self._turn)
        elif self._full_timer.active:
            self._full_timer.stop()

    def turn_soon(self) -> None:
        """Take a turn in this iteration of the hub: a request has ended, there are lines to log and more to do.

        A request that ends within a turn, as quick ones do, needs none: that turn ends with all this.
        """
        if not (self._is_turning or self._will_turn):
            self._will_turn = True
            self._hub_loop.run_callback(self._turn_now)

    def _turn_now(self) -> None:
        self._will_turn = False
        self._turn()

    def _wait_writable(self, connection: Connection) -> bool:
        """Let the greenlet that produces a response wait for its client."""
        hub = get_hub()
        timeout = gevent.Timeout(self.cfg.send_timeout or None)
        timeout.start()
        try:
            hub.wait(hub.loop.io(connection.fd, _WRITABLE))
        except gevent.Timeout as error:
            if error is not timeout:
                raise
            return False
        finally:
            timeout.close()
        return True
