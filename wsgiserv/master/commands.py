"""What ``wsgiservctl`` can have done, as far as it is more than one call.

Owns: `MasterCommands`: the checks of what was asked for, and who is told of the outcome.
Must not know: the socket, the master's loop.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from wsgiserv.config.cgroup import CGROUP_ROOT, available_cpus, cpu_quota, own_cgroups
from wsgiserv.master.reload import Done, Reload
from wsgiserv.master.workers import Workers

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = ["MasterCommands", "most_workers"]

# More workers for each processor than this is a slip of the finger, which must not bring the machine down.
_MOST_PER_CPU: Final = 32
_MOST_ANYWHERE: Final = 128


class MasterCommands:
    """The commands of one master; see `wsgiserv.master.control.Commands`.

    Args:
        rollover, workforce: the master's.
        status: returns the figures.
        scale: wants so many workers.
        most_workers: returns how many can be asked for.
        upgrade: starts the next master.
        stop: stops, at once or gracefully.
        reopen_logs: reopens the logs.
        is_stopping: whether the server has begun to stop.
        is_draining: whether it is about to: it still serves, and does not change any more.
    """

    def __init__(
        self,
        rollover: Reload,
        workforce: Workers,
        *,
        status: Callable[[], dict[str, Any]],
        scale: Callable[[int], None],
        most_workers: Callable[[], int],
        upgrade: Callable[[Done], None],
        stop: Callable[[bool], None],
        reopen_logs: Callable[[], None],
        is_stopping: Callable[[], bool],
        is_draining: Callable[[], bool],
    ) -> None:
        self._rollover = rollover
        self._workers = workforce
        self._scale = scale
        self._most_workers = most_workers
        self._upgrade = upgrade
        self._stop = stop
        self._reopen_logs = reopen_logs
        self._is_stopping = is_stopping
        self._is_draining = is_draining
        self.status = status

    def _refuses(self, done: Done) -> bool:
        if self._is_stopping():
            done(False, "the server is stopping")
            return True
        return False

    def _refuses_to_change(self, done: Done) -> bool:
        if self._is_draining():
            done(False, "the server is draining, and stops then")
            return True
        return self._refuses(done)

    def reload(self, done: Done) -> None:
        """Begin a reload, after the one that is under way, if one is."""
        if not self._refuses_to_change(done):
            self._rollover.waiting.append(done)

    def scale(self, count: int, done: Done) -> None:
        """Want ``count`` workers; done when they serve, or the surplus has been told to leave."""
        if self._refuses(done):
            return
        most = self._most_workers()
        if count > most:
            done(
                False,
                f"{count} workers are too many for this machine; expected 1 to {most}. Where it is meant, set workers "
                "in the configuration, and reload",
            )
            return
        self._scale(count)
        self._workers.when_serving(count, done)

    def retire(self, pid: int, done: Done) -> None:
        """Replace the worker ``pid``; done when it has left."""
        if self._refuses(done):
            return
        worker = self._workers.worker(pid)
        if worker is None:
            done(False, f"{pid} is no worker of this server. wsgiservctl status lists them")
            return
        self._workers.recycle(worker, "asked for by wsgiservctl")
        self._workers.when_gone(worker, done)

    def upgrade(self, done: Done) -> None:
        """Start the next master."""
        if not self._refuses_to_change(done):
            self._upgrade(done)

    def stop(self, now: bool, done: Done) -> None:
        """Stop; the control socket tells who waits when it closes."""
        self._stop(now)

    def trace(self, pid: int, done: Done) -> None:
        """Ask the worker for its stacks."""
        worker = self._workers.worker(pid)
        if worker is None:
            done(False, f"{pid} is no worker of this server. wsgiservctl status lists them")
        elif worker.ready_at is None:
            done(False, f"worker {pid} is still booting")
        else:
            self._workers.trace(worker, done)

    def reopen_logs(self, done: Done) -> None:
        """Reopen the logs."""
        self._reopen_logs()
        done(True, "the logs are reopened")


def most_workers(settings: Settings) -> int:
    """Return how many workers can be asked for by ``scale`` and SIGTTIN; a configuration may have more."""
    cpus = available_cpus(cpu_quota(CGROUP_ROOT, own_cgroups()))
    return max(_MOST_ANYWHERE, _MOST_PER_CPU * ceil(cpus), settings.workers, settings.workers_max or 0)
