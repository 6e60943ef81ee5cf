"""Logs the master's metrics as gunicorn's master does: the number of workers, and of connections that wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from wsgiserv.config.settings import Settings
from wsgiserv.master.generation import Generation
from wsgiserv.master.load import backlog_of
from wsgiserv.master.worker_handle import WorkerHandle

# gunicorn's turn.
_BACKLOG_EVERY_S: Final = 1.0


class FleetMetrics:
    """Logs metrics for statsd, by the ``extra`` of log lines.

    Args:
        log: returns the logger of hooks: a user's class may send its lines elsewhere.
        backlog: see `backlog_of`.
    """

    def __init__(self, log: Callable[[], Any], backlog: Callable[[Any], int | None] = backlog_of) -> None:
        self._log = log
        self._backlog = backlog
        self._settings: Settings | None = None
        self._workers = 0
        self._backlog_at = 0.0

    def look(self, current: Generation, workers: Sequence[WorkerHandle], now: float) -> None:
        """Log what has changed. Called in each turn of the loop.

        Args:
            current: the configuration in force.
            workers: the fleet.
            now: ``time.monotonic()`` seconds.
        """
        settings = current.settings
        if settings.statsd_host is None and settings.logger_class is None:
            return
        if settings is not self._settings:  # another statsd, perhaps
            self._settings, self._workers = settings, 0
        # The surge of a reload is no growth of the server.
        count = min(sum(1 for worker in workers if not worker.leaving), current.workers)
        if count != self._workers:
            self._workers = count
            self._send(f"{count} workers", "gunicorn.workers", count, "gauge")
        if settings.enable_backlog_metric and now >= self._backlog_at:
            self._backlog_at = now + _BACKLOG_EVERY_S
            waiting = [found for each in current.listeners if (found := self._backlog(each.sock)) is not None]
            if waiting:
                self._send(f"socket backlog: {sum(waiting)}", "gunicorn.backlog", sum(waiting), "histogram")

    def _send(self, text: str, name: str, value: int, kind: str) -> None:
        self._log().debug(text, extra={"metric": name, "value": value, "mtype": kind})
