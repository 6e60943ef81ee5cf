"""The commands of ``wsgiservctl`` that take more than one call of the master."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from signal import SIGTTOU
from typing import Any, Final

from wsgiserv.config.settings import Settings
from wsgiserv.master.control import Done
from wsgiserv.master.load import own_cpus
from wsgiserv.master.reload import Reload
from wsgiserv.master.shutdown import Shutdown
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.master.workers import Workers
from wsgiserv.process import send_signal
from wsgiserv.wording import counted

# More workers per CPU than this are a typing error, which must not bring the machine down.
_MOST_PER_CPU: Final = 32
# On a small machine more than that may make sense: workers that wait (for a database) need no CPU.
_MOST_ANYWHERE: Final = 128


@dataclass(frozen=True)
class MasterCommands:
    """The commands of one master, called by its `ControlServer`.

    Args:
        reload: the master's generations.
        workers: the master's workers.
        shutdown: stops the server.
        status: returns the figures.
        upgrade: requests the next master.
    """

    _reload: Reload
    _workers: Workers
    _shutdown: Shutdown
    status: Callable[[], dict[str, Any]]
    _upgrade: Callable[[Done], None]

    def _is_refused(self, done: Done, *, while_draining: bool = False) -> bool:
        """Refuse a command to a server that stops, or drains."""
        # One that drains still serves, and so replaces workers; new code would be there for seconds.
        if self._shutdown.how:
            done(False, "the server is stopping")
        elif while_draining and self._shutdown.is_draining:
            done(False, "the server is draining, and then stops")
        else:
            return False
        return True

    def _worker(self, pid: int, done: Done) -> WorkerHandle | None:
        found = next((worker for worker in self._workers.fleet.workers if worker.pid == pid), None)
        if found is None:
            done(False, f"{pid} is not a worker of this server. wsgiservctl status lists them")
        return found

    def reload(self, done: Done) -> None:
        """Request a reload; it begins after the one in progress."""
        if not self._is_refused(done, while_draining=True):
            self._reload.requests.append(done)

    def scale(self, count: int, done: Done) -> None:
        """Want ``count`` workers; done when they serve, or when the surplus has been told to leave."""
        if self._is_refused(done):
            return
        most = most_workers(self._reload.newest.settings)
        if count > most:
            done(
                False,
                f"{count} workers are too many for this machine; accepted: 1 to {most}. For more, set workers in the "
                "configuration, and reload",
            )
            return
        self._reload.scale(count, f"{counted(count, 'worker')} wanted")
        self._workers.waiters.when_serving(count, done)

    def retire(self, pid: int, done: Done) -> None:
        """Replace the worker ``pid``; done when it has exited."""
        if not self._is_refused(done) and (worker := self._worker(pid, done)):
            # Not a signal: that would leave one worker too few until the next is ready.
            self._workers.recycle(worker, "requested by wsgiservctl")
            self._workers.waiters.when_exited(worker, done)

    def upgrade(self, done: Done) -> None:
        """Start the next master."""
        if not self._is_refused(done, while_draining=True):
            self._upgrade(done)

    def stop(self, now: bool, done: Done) -> None:
        """Stop."""
        # Without ``done``: the control socket answers the waiting client when it closes, at the very end.
        if now:
            self._shutdown.stop("fast", "wsgiservctl stop --now")
        else:
            self._shutdown.begin("wsgiservctl stop")

    def trace(self, pid: int, done: Done) -> None:
        """Request the stacks of the worker ``pid``."""
        worker = self._worker(pid, done)
        if worker is None:
            return
        if worker.ready_at is None:
            # It may have no handler yet, and SIGTTOU would stop it.
            done(False, f"worker {pid} is still booting")
        else:
            self._workers.waiters.when_traced(worker, done)
            send_signal(pid, SIGTTOU)

    def reopen_logs(self, done: Done) -> None:
        """Reopen the logs."""
        # Done for the master; a worker reopens its own when its loop sees the signal.
        self._workers.reopen_logs()
        done(True, "logs reopened")


def most_workers(settings: Settings) -> int:
    """Return the largest number of workers that ``scale`` and SIGTTIN accept; a configuration may have more."""
    # A container may have a part of the machine's CPUs only.
    return max(_MOST_ANYWHERE, _MOST_PER_CPU * ceil(own_cpus()), settings.workers, settings.workers_max or 0)
