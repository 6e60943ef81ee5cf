"""The next master, from the wish for it to its success or failure (SIGUSR2, ``wsgiservctl upgrade``).

Owns: `Succession`: whether one is starting, who waits for it, what is said of it.
Must not know: what this master does when the next one serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import Final

from wsgiserv.master.rollover import Done
from wsgiserv.master.signalqueue import SignalQueue
from wsgiserv.master.upgrade import Invocation, Successor, start_successor
from wsgiserv.net.listener import Listener

__all__ = ["Succession"]

# A next master that neither serves nor gives up (a configuration file that hangs) is ended after so long.
_PATIENCE_S: Final = 180.0


class Succession:
    """The upgrades of one master.

    Args:
        invocation: how this process was started; None: the next one cannot be.
        signals: this master's.
        log: the error log.

    Attributes:
        successor: the next master; None while there is none.
    """

    def __init__(self, invocation: Invocation | None, signals: SignalQueue, log: logging.Logger) -> None:
        self.successor: Successor | None = None
        self._invocation = invocation
        self._signals = signals
        self._log = log
        self._watching: list[Done] = []
        self._until = inf

    @property
    def under_way(self) -> bool:
        """Whether a next master is starting."""
        return self.successor is not None and not self.successor.over

    def begin(
        self,
        done: Done,
        *,
        listeners: Sequence[Listener],
        handoff: tuple[int, int] | None,
        activated: bool,
        before_exec: Callable[[], object],
    ) -> None:
        """Start the next master, unless one is starting already; ``done`` is told how it went.

        The other arguments as of `start_successor`. Never raises.
        """
        if self.successor is not None:
            self._log.info("upgrade: the next master (pid %d) is starting already", self.successor.pid)
            self._watching.append(done)
            return
        if self._invocation is None:
            self._log.error("upgrade: it is not known how this server was started")
            done(False, "it is not known how this server was started")
            return
        try:
            self.successor = start_successor(
                self._invocation,
                listeners,
                handoff,
                activated=activated,
                signals=self._signals,
                before_exec=before_exec,
            )
        except OSError as error:
            self._log.error("upgrade: the next master cannot be started: %s", error.strerror)
            done(False, f"the next master cannot be started: {error.strerror}")
            return
        self._watching.append(done)
        self._until = monotonic() + _PATIENCE_S
        self._log.info("upgrade: the next master is starting (pid %d)", self.successor.pid)

    def hear(self) -> int:
        """Hear what the next master has to say; return its pid when it serves now, once, else 0."""
        successor = self.successor
        if successor is None:
            return 0
        if not successor.listen():
            if self.under_way and monotonic() > self._until:
                self._log.error("the next master (pid %d) does not come up, and is ended", successor.pid)
                successor.stop(at_once=True)
                self._until = inf
            return 0
        if successor.ready:
            self._log.info("the next master (pid %d) serves; this one leaves", successor.pid)
            self._settle(True, f"the next master serves (pid {successor.pid})")
            return successor.pid
        self._log.error(
            "the upgrade has failed, this master and its workers stay. The next master (pid %d): %s",
            successor.pid,
            successor.reason,
        )
        successor.stop()
        self.successor = None
        self._settle(False, successor.reason)
        return 0

    def _settle(self, good: bool, reason: str) -> None:
        self._until = inf
        watching, self._watching = self._watching, []
        for done in watching:
            done(good, reason)

    def cancel(self) -> None:
        """This master stops: what is starting in its place is not to serve on."""
        if self.successor is not None and self.under_way:
            self.successor.stop()

    def close_in_child(self) -> None:
        """Close what a worker must not hold."""
        if self.successor is not None:
            self.successor.close()
