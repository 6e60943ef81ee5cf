"""What the service manager is told, and when (sd_notify(3)).

Owns: `ServiceManager`: the order of READY, RELOADING, STOPPING and MAINPID, the rhythm of STATUS and WATCHDOG.
Must not know: the datagrams (`notify`), the master's loop.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from math import inf
from typing import Final

from wsgiserv.master.notify import Notifier

__all__ = ["ServiceManager"]

_STATUS_EVERY_S: Final = 5.0


class ServiceManager:
    """The manager of this service, or nobody.

    Args:
        notifier: speaks to it.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._followed = False
        self._reloading = False
        self._next_status = 0.0
        self._next_watchdog = 0.0

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> ServiceManager:
        """Return the manager that the environment tells of; its variables are removed."""
        return cls(Notifier.from_environ(environ))

    def ready(self, status: str) -> None:
        """All workers are ready, or a reload is over, well or not."""
        self._reloading = False
        if not self._followed:
            self._notifier.ready(status)

    def reload_asked(self) -> None:
        """A reload has been asked for by SIGHUP: systemd waits for the answer, also when it has to queue."""
        self._reloading = True
        if not self._followed:
            self._notifier.reloading()

    def reload_begins(self) -> None:
        """A reload begins, whoever has asked for it."""
        if not self._reloading:
            self.reload_asked()

    def stopping(self) -> None:
        """The server stops; not said when another master goes on with the service."""
        if not self._followed:
            self._notifier.stopping()

    def followed_by(self, pid: int) -> None:
        """Another master is the service's main process from now on; this one has nothing more to say."""
        self._notifier.mainpid(pid)
        self._followed = True

    def look(self, now: float, status: Callable[[], str]) -> float:
        """Say what is due; return when to look again. Called by the loop, so that a hung one gives no sign of life.

        Args:
            now: ``time.monotonic()`` seconds.
            status: makes the line of live figures.
        """
        if not self._notifier or self._followed:
            return inf
        interval_s = self._notifier.watchdog_interval_s
        if interval_s and now >= self._next_watchdog:
            self._next_watchdog = now + interval_s
            self._notifier.watchdog()
        if now >= self._next_status:
            self._next_status = now + _STATUS_EVERY_S
            self._notifier.status(status())
        return min(self._next_status, self._next_watchdog if interval_s else inf)
