"""The commands of ``wsgiservctl`` that take more than one call of the master."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from wsgiserv.config.cgroup import CGROUP_ROOT, available_cpus, cpu_quota, own_cgroups
from wsgiserv.master.control import Done
from wsgiserv.master.reload import Reload
from wsgiserv.master.workers import Workers

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings


# More workers per CPU than this are a typing error, which must not bring the machine down.
_MOST_PER_CPU: Final = 32
_MOST_ANYWHERE: Final = 128


class MasterCommands:
    """The commands of one master, called by its `ControlServer`.

    Args:
        reload: the master's generations.
        workers: the master's workers.
        status: returns the figures.
        scale: sets the number of wanted workers.
        most_workers: returns the largest accepted number.
        upgrade: starts the next master.
        stop: stops the server, at once or gracefully.
        reopen_logs: reopens the logs.
        is_stopping: returns True from the begin of the shutdown on.
        is_draining: returns True while the server drains: it still serves, and accepts no more changes.
    """

    def __init__(
        self,
        reload: Reload,
        workers: Workers,
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
        self._reload = reload
        self._workers = workers
        self._scale = scale
        self._most_workers = most_workers
        self._upgrade = upgrade
        self._stop = stop
        self._reopen_logs = reopen_logs
        self._is_stopping = is_stopping
        self._is_draining = is_draining
        self.status = status

    def _refuse_if_stopping(self, done: Done) -> bool:
        if self._is_stopping():
            done(False, "the server is stopping")
            return True
        return False

    def _refuse_if_ending(self, done: Done) -> bool:
        if self._is_draining():
            done(False, "the server is draining, and then stops")
            return True
        return self._refuse_if_stopping(done)

    def reload(self, done: Done) -> None:
        """Request a reload; it begins after the one in progress."""
        if not self._refuse_if_ending(done):
            self._reload.requests.append(done)

    def scale(self, count: int, done: Done) -> None:
        """Want ``count`` workers; done when they serve, or when the surplus has been told to leave."""
        if self._refuse_if_stopping(done):
            return
        most = self._most_workers()
        if count > most:
            done(
                False,
                f"{count} workers are too many for this machine; accepted: 1 to {most}. For more, set workers in the "
                "configuration, and reload",
            )
            return
        self._scale(count)
        self._workers.waiters.when_serving(count, done)

    def retire(self, pid: int, done: Done) -> None:
        """Replace the worker ``pid``; done when it has exited."""
        if self._refuse_if_stopping(done):
            return
        worker = self._workers.worker(pid)
        if worker is None:
            done(False, _not_a_worker(pid))
            return
        self._workers.recycle(worker, "requested by wsgiservctl")
        self._workers.waiters.when_exited(worker, done)

    def upgrade(self, done: Done) -> None:
        """Start the next master."""
        if not self._refuse_if_ending(done):
            self._upgrade(done)

    def stop(self, now: bool, done: Done) -> None:
        """Stop; the control socket answers the waiting client when it closes."""
        self._stop(now)

    def trace(self, pid: int, done: Done) -> None:
        """Request the stacks of the worker ``pid``."""
        worker = self._workers.worker(pid)
        if worker is None:
            done(False, _not_a_worker(pid))
        elif worker.ready_at is None:
            done(False, f"worker {pid} is still booting")
        else:
            self._workers.trace(worker, done)

    def reopen_logs(self, done: Done) -> None:
        """Reopen the logs."""
        self._reopen_logs()
        done(True, "logs reopened")


def most_workers(settings: Settings) -> int:
    """Return the largest number of workers that ``scale`` and SIGTTIN accept; a configuration may have more."""
    cpus = available_cpus(cpu_quota(CGROUP_ROOT, own_cgroups()))
    return max(_MOST_ANYWHERE, _MOST_PER_CPU * ceil(cpus), settings.workers, settings.workers_max or 0)


def _not_a_worker(pid: int) -> str:
    return f"{pid} is not a worker of this server. wsgiservctl status lists them"
