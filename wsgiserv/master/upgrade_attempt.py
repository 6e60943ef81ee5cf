"""The next master, from the wish for it to its success or failure (SIGUSR2, ``wsgiservctl upgrade``).

Owns: `Succession`: whether one is starting, who waits for it, what is said of it.
Must not know: what this master does when the next one serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf
from signal import SIGKILL, SIGQUIT, SIGTERM
from time import monotonic
from typing import Final

from wsgiserv.master.reload import Done
from wsgiserv.master.signals import SignalQueue
from wsgiserv.master.upgrade import TOLD_TO_STOP, Invocation, NewMaster, start_successor
from wsgiserv.net.listener import Listener

__all__ = ["Succession"]

# A next master that neither serves nor gives up (a configuration file that hangs) is ended after so long.
_PATIENCE_S: Final = 180.0
# One that was told to end at once has this long for it, and one that was killed.
_QUIT_S: Final = 3.0
_KILLED_S: Final = 1.0


class Succession:
    """The upgrades of one master.

    Args:
        invocation: how this process was started; None: the next one cannot be.
        signals: this master's.
        log: the error log.

    Attributes:
        successor: the next master; None while there is none.
        cancelled: whether it was told to stop, because this master stops: nothing it says counts any more.
    """

    def __init__(self, invocation: Invocation | None, signals: SignalQueue, log: logging.Logger) -> None:
        self.successor: NewMaster | None = None
        self.cancelled = False
        self._invocation = invocation
        self._signals = signals
        self._log = log
        self._watching: list[Done] = []
        self._until = inf
        # Those whose processes have not ended, or have not been waited for.
        self._processes: list[NewMaster] = []
        self._cancelled_at_once = False
        # When a cancelled one is killed; when it has been, until when it is waited for.
        self._ends_by = inf
        self._is_killed = False

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
        self._processes.append(self.successor)
        self._watching.append(done)
        self._until = monotonic() + _PATIENCE_S
        self._log.info("upgrade: the next master is starting (pid %d)", self.successor.pid)

    def hear(self, *, stops: bool) -> NewMaster | None:
        """Hear what the next master has to say; return it when it serves now, or has failed: once.

        Args:
            stops: whether this master leaves in either case, which the log says.
        """
        successor = self.successor
        if successor is None:
            return None
        if not successor.listen():
            if self.under_way and monotonic() > self._until:
                self._log.error("the next master (pid %d) does not come up, and is ended", successor.pid)
                successor.stop(SIGKILL)
                self._until = inf
            return None
        if self.cancelled:
            return None
        if successor.ready:
            self._log.info("the next master (pid %d) serves; this one leaves", successor.pid)
            self._settle(True, f"the next master serves (pid {successor.pid})")
            return successor
        if successor.reason == TOLD_TO_STOP:
            self._log.info(
                "upgrade: the next master (pid %d) was told to stop; %s",
                successor.pid,
                "this one stops, too" if stops else "this one and its workers go on",
            )
        else:
            self._log.error(
                "the upgrade has failed, %s. The next master (pid %d): %s",
                "and this master stops, as it was told" if stops else "this master and its workers stay",
                successor.pid,
                successor.reason,
            )
        successor.stop()
        self.successor = None
        self._settle(False, successor.reason)
        return successor

    def _settle(self, good: bool, reason: str) -> None:
        self._until = inf
        watching, self._watching = self._watching, []
        for done in watching:
            done(good, reason)

    def cancel(self, *, at_once: bool, longest_s: float) -> None:
        """This master stops: what is starting in its place is not to serve on. May be called again, to hurry.

        Args:
            at_once: whether it is to break off what its workers are doing.
            longest_s: how long it may take to finish that; then it is killed.
        """
        successor = self.successor
        if successor is None or not (self.under_way or self.cancelled):
            return
        if self.cancelled and (self._cancelled_at_once or not at_once):
            return
        if not self.cancelled:
            self._log.info("upgrade: the next master (pid %d) is stopped, too", successor.pid)
        self.cancelled, self._cancelled_at_once = True, at_once
        self._ends_by = monotonic() + (_QUIT_S if at_once else longest_s + _QUIT_S)
        successor.stop(SIGQUIT if at_once else SIGTERM)
        self._settle(False, "the server is stopping")

    def reap(self) -> list[int]:
        """Wait for the processes that have ended; return their process ids."""
        ended = [each for each in self._processes if each.reap()]
        if ended:
            self._processes = [each for each in self._processes if not each.ended]
        return [each.pid for each in ended]

    def ends_by(self, now: float) -> float | None:
        """Return until when this master waits for the end of a next one that was cancelled; None: it does not.

        Whoever waits for this process takes its end for the end of the server; in a container it is.
        """
        successor = self.successor
        if successor is None or not self.cancelled or successor.ended:
            return None
        if now < self._ends_by:
            return self._ends_by
        if self._is_killed:
            return None
        self._log.error("the next master (pid %d) does not stop, and is killed", successor.pid)
        self._is_killed = True
        successor.stop(SIGKILL)
        self._ends_by = now + _KILLED_S
        return self._ends_by

    def close_in_child(self) -> None:
        """Close what a worker must not hold."""
        if self.successor is not None:
            self.successor.close()
