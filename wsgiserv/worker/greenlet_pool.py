"""The greenlets of a ``gevent`` worker: each serves one request after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from sys import getrefcount
from typing import Final

from gevent import Greenlet
from gevent.hub import get_hub
from greenlet import greenlet as RawGreenlet

from wsgiserv.net.client import Connection
from wsgiserv.worker.event_loop_worker import TurnEnded

# Of a pooled greenlet, in its dictionary.
_OWN_ATTRIBUTES: Final = 2
_switch: Final = RawGreenlet.switch
# More greenlets than these end with their request, after a burst.
_MOST_IDLE: Final = 256


class InChild(TurnEnded):
    """Ends a turn of the loop in a child forked by its request; the hub goes on there."""


class PooledGreenlet(Greenlet):  # type: ignore[type-arg]
    """Serves one request after another, and waits for the next in the pool.

    A switch to it passes the connection of the next request; at anything else it ends.

    Attributes:
        cell: its cell of the scoreboard.
    """

    # A new greenlet costs 11 µs, another switch to this one 0.5. But each request is to find what it would find in a
    # new one: no context variables, thread-locals, attributes, links or pending timeouts of the last. So a greenlet in
    # which a request has left anything ends.

    def __init__(self, pool: GreenletPool, cell: int) -> None:
        super().__init__()
        self._pool = pool
        self.cell = cell

    def _run(self) -> None:
        pool, cell = self._pool, self.cell
        idle = pool.idle
        # Bound once: an attribute of a greenlet costs three times that of another object.
        wait = _switch.__get__(get_hub())  # as its own switch(), which asks each for a `switch_out` first
        has_links, attributes = self.has_links, self.__dict__
        try:
            while True:
                idle.append(self)
                try:
                    connection = wait()
                except BaseException:
                    connection = None  # a timeout of the last request, or other code that has kept this greenlet
                if not isinstance(connection, Connection):
                    if self in idle:
                        idle.remove(self)
                    return
                failure: BaseException | None = None
                try:
                    connection.run(cell)
                except BaseException as error:
                    failure = error
                if failure is not None:
                    pool.lose(connection, failure, True)
                connection = failure = None  # they would live as long as this greenlet waits
                if not pool.in_turn:
                    pool.request_ended()
                if pool.queued:
                    get_hub().loop.run_callback(pool.run_queued)  # not here: greenlets are switched to from the hub
                # Thread-locals are attributes of the greenlet, and links of it.
                if len(idle) >= _MOST_IDLE or len(attributes) > _OWN_ATTRIBUTES or has_links():
                    return
        finally:
            pool.ended(self)


class GreenletPool:
    """The greenlets of one worker.

    Args:
        most: most greenlets at once (``worker_connections``).
        cells: how many cells the worker has in the scoreboard; the last one is shared when they are too few.
        queued: complete requests beyond ``most``: silent clients do not count as connections, and may send one each.
        lose: logs the exception of a request, and closes its connection; see `EventLoopWorker.lose`.
        request_ended: called when a request has ended outside of a turn of the loop.

    Attributes:
        greenlets: all greenlets.
        idle: the greenlets without a request.
        in_turn: whether the worker takes a turn of its loop, and sets this around it.
        is_copy: whether this process is a child of the application, which runs no more requests. Set by the worker.
    """

    def __init__(
        self,
        most: int,
        cells: int,
        queued: deque[Connection],
        lose: Callable[[Connection | None, BaseException, bool], None],
        request_ended: Callable[[], object],
    ) -> None:
        self.greenlets: set[PooledGreenlet] = set()
        self.idle: list[PooledGreenlet] = []
        self.queued = queued
        self.in_turn = False
        self.is_copy = False
        self.lose = lose
        self.request_ended = request_ended
        self._most = most
        self._last_cell = cells - 1
        # How many references there are to a greenlet that has waited in the pool, and that no other code holds.
        self._own_references = 0
        # The last one is not among them: it is shared by all greenlets that find no other.
        self._free_cells = list(reversed(range(self._last_cell)))

    def run(self, connection: Connection) -> None:
        """Run a request in a greenlet without a trace of another request. In the hub.

        Raises InChild in a child forked by the request.
        """
        idle = self.idle
        while True:
            if not idle and not self._add():
                self.queued.append(connection)
                return
            greenlet = idle.pop()
            references = getrefcount(greenlet)
            if references <= self._own_references:
                break
            if not self._own_references:
                self._own_references = references
                break
            greenlet.switch()  # other code holds it, a timeout of the last request say: it ends
        greenlet.gr_context = None
        _switch(greenlet, connection)
        if self.is_copy:
            raise InChild

    def _add(self) -> bool:
        """Add an idle greenlet; False when there are as many as may be."""
        if len(self.greenlets) >= self._most:
            return False
        greenlet = PooledGreenlet(self, self._free_cells.pop() if self._free_cells else self._last_cell)
        self.greenlets.add(greenlet)
        greenlet.switch()
        return True

    def run_queued(self) -> None:
        """Run queued requests in greenlets idle by now. In the hub."""
        with suppress(InChild):
            while self.queued and (self.idle or len(self.greenlets) < self._most):
                self.run(self.queued.popleft())

    def ended(self, greenlet: PooledGreenlet) -> None:
        """Drop a greenlet at its end."""
        self.greenlets.discard(greenlet)
        if greenlet.cell < self._last_cell:
            self._free_cells.append(greenlet.cell)
