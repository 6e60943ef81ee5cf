"""The names that gunicorn's workers have, for hooks and applications that were written for them."""

from __future__ import annotations

import io
import signal
from abc import abstractmethod
from collections.abc import Callable, Mapping
from os import kill
from time import monotonic
from types import FrameType
from typing import Any, ClassVar, Final, NoReturn

from wsgiserv import scoreboard
from wsgiserv.app.hook_app import HookApp
from wsgiserv.boot import WorkerBoot
from wsgiserv.worker.heartbeat import Heartbeat
from wsgiserv.worker.process import WorkerProcess

# What a hook may set before the fork though the worker has it: the attributes of gunicorn's that mean something.
_SETTABLE: Final = frozenset({"max_requests", "timeout"})


class HeartbeatFile:
    """``worker.tmp``: gunicorn's heartbeat file; here the heartbeat is in shared memory.

    Args:
        heartbeat: the worker's.
    """

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat

    def notify(self) -> None:
        """Tell the master that the worker is alive: `timeout` counts from now. From any thread."""
        heartbeat, now = self._heartbeat, monotonic()
        if heartbeat.stalled_since is not None:  # or the loop would take it back
            heartbeat.stalled_since = now
        heartbeat.seconds[scoreboard.HEARTBEAT] = now

    def last_update(self) -> float:
        """Return the time of the last heartbeat, ``time.monotonic()`` seconds; 0.0 before the first."""
        return float(self._heartbeat.seconds[scoreboard.HEARTBEAT])

    def close(self) -> None:
        """Do nothing: there is no file."""

    def fileno(self) -> NoReturn:
        """Raise: there is no file."""
        raise io.UnsupportedOperation("worker.tmp has no file: the heartbeat is in shared memory")


class HookWorker(WorkerProcess):
    """A worker with gunicorn's names.

    Attributes:
        app: the application as gunicorn's `Application`: ``callable``, ``wsgi()``, ``app_uri``, ``cfg``.
        tmp: see `HeartbeatFile`.
    """

    SIGNALS: ClassVar[list[signal.Signals]] = [
        getattr(signal, f"SIG{name}")
        for name in ["ABRT", "HUP", "QUIT", "INT", "TERM", "USR1", "USR2", "WINCH", "CHLD"]
    ]

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self.app = HookApp(self.cfg, self._import_application)
        self.app.callable = boot.application
        # One object, as with gunicorn.
        boot.server.app = self.app
        self._heartbeat = Heartbeat(boot.slot, boot.settings.timeout)
        self.tmp = HeartbeatFile(self._heartbeat)
        self._wants_to_leave = False
        self._is_serving = False

    @abstractmethod
    def leave_for(self, reason: str) -> None:
        """Leave gracefully by this worker's own decision: the master starts a replacement. From any thread.

        Args:
            reason: why, for the log.
        """

    @abstractmethod
    def _import_application(self) -> Callable[..., Any]:
        """Import the application. Raises ApplicationError."""

    @property
    @abstractmethod
    def _is_leaving(self) -> bool:
        """Whether the worker leaves."""

    def take_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Take over the attributes that `pre_fork` has hung on the worker in the master."""
        for name, value in attributes.items():
            if name in _SETTABLE or not hasattr(self, name):
                setattr(self, name, value)
            else:
                self.log.warning(
                    "WS1104 pre_fork: worker.%s is an attribute of the server's own workers: the hook's value is not "
                    "taken over; give it another name",
                    name,
                )

    # ---- gunicorn's names ------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the worker is to go on. A hook, or any thread, sets it to False: then the worker is replaced."""
        return not (self._wants_to_leave or self._is_leaving)

    @alive.setter
    def alive(self, value: object) -> None:
        if value or not self.alive:
            return  # a worker that leaves is not called back
        self._wants_to_leave = True
        if self._is_serving:
            self.leave_for("worker.alive was set to False")

    def _begin_to_serve(self) -> None:
        """Leave, if a hook has asked for it before; called when `alive` can be acted on."""
        self._is_serving = True
        if self._wants_to_leave:
            # Its loop acts on it after the report that it is ready, so the boot counts as a good one.
            kill(self.pid, signal.SIGTERM)

    def notify(self) -> None:
        """Tell the master that the worker is alive; the server does so itself, once a second. From any thread."""
        self.tmp.notify()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leave gracefully, as gunicorn's handler of SIGTERM does."""
        self.alive = False

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Leave at once, as gunicorn's handler of SIGQUIT does."""
        kill(self.pid, signal.SIGQUIT)

    def handle_abort(self, sig: int, frame: FrameType | None) -> None:
        """Abort, as gunicorn's handler of SIGABRT does."""
        kill(self.pid, signal.SIGABRT)

    def handle_usr1(self, sig: int, frame: FrameType | None) -> None:
        """Reopen the logs, as gunicorn's handler of SIGUSR1 does."""
        kill(self.pid, signal.SIGUSR1)

    def handle_winch(self, sig: int, frame: FrameType | None) -> None:
        """Do nothing, as gunicorn's handler of SIGWINCH does."""

    def __str__(self) -> str:
        return f"<Worker {self.pid}>"
