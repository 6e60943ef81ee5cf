"""What ``wsgiservctl`` can have done, as far as it is more than one call.

Owns: `MasterCommands`: the checks of what was asked for, and who is told of the outcome.
Must not know: the socket, the master's loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wsgiserv.master.rollover import Done, Rollover
from wsgiserv.master.workforce import Workforce

__all__ = ["MasterCommands"]


class MasterCommands:
    """The commands of one master; see `wsgiserv.master.control.Commands`.

    Args:
        rollover, workforce: the master's.
        status: returns the figures.
        scale: wants so many workers.
        upgrade: starts the next master.
        stop: stops, at once or gracefully.
        reopen_logs: reopens the logs.
        is_stopping: whether the server has begun to stop.
    """

    def __init__(
        self,
        rollover: Rollover,
        workforce: Workforce,
        *,
        status: Callable[[], dict[str, Any]],
        scale: Callable[[int], None],
        upgrade: Callable[[Done], None],
        stop: Callable[[bool], None],
        reopen_logs: Callable[[], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._rollover = rollover
        self._workforce = workforce
        self._scale = scale
        self._upgrade = upgrade
        self._stop = stop
        self._reopen_logs = reopen_logs
        self._is_stopping = is_stopping
        self.status = status

    def _refuses(self, done: Done) -> bool:
        if self._is_stopping():
            done(False, "the server is stopping")
            return True
        return False

    def reload(self, done: Done) -> None:
        """Begin a reload, after the one that is under way, if one is."""
        if not self._refuses(done):
            self._rollover.waiting.append(done)

    def scale(self, count: int, done: Done) -> None:
        """Want ``count`` workers; done when they serve, or the surplus has been told to leave."""
        if self._refuses(done):
            return
        self._scale(count)
        self._workforce.when_serving(count, self._rollover.newest.number, done)

    def retire(self, pid: int, done: Done) -> None:
        """Replace the worker ``pid``; done when it has left."""
        if self._refuses(done):
            return
        worker = self._workforce.worker(pid)
        if worker is None:
            done(False, f"{pid} is no worker of this server. wsgiservctl status lists them")
            return
        self._workforce.recycle(worker, "asked for by wsgiservctl")
        self._workforce.when_gone(worker, done)

    def upgrade(self, done: Done) -> None:
        """Start the next master."""
        if not self._refuses(done):
            self._upgrade(done)

    def stop(self, now: bool, done: Done) -> None:
        """Stop; the control socket tells who waits when it closes."""
        self._stop(now)

    def trace(self, pid: int, done: Done) -> None:
        """Ask the worker for its stacks."""
        worker = self._workforce.worker(pid)
        if worker is None:
            done(False, f"{pid} is no worker of this server. wsgiservctl status lists them")
        elif worker.ready_at is None:
            done(False, f"worker {pid} is still booting")
        else:
            self._workforce.trace(worker, done)

    def reopen_logs(self, done: Done) -> None:
        """Reopen the logs."""
        self._reopen_logs()
        done(True, "the logs are reopened")
