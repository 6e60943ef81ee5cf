"""The ``server`` argument of hooks: the master with gunicorn's attributes."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

from wsgiserv.app.hook_app import HookApp
from wsgiserv.config.hook_config import view_of
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ExitStatus
from wsgiserv.hooks import HaltServer, call_hook
from wsgiserv.logs.error import log_for_users
from wsgiserv.master.hook_worker import HookWorker
from wsgiserv.net.handoff import Handoff
from wsgiserv.net.listener import Listener
from wsgiserv.safe_open import working_directory

# gunicorn's methods that do here what a signal to the master does.
_BY_SIGNAL: Final = {
    "reload": signal.SIGHUP,
    "reexec": signal.SIGUSR2,
    "handle_hup": signal.SIGHUP,
    "handle_term": signal.SIGTERM,
    "handle_int": signal.SIGINT,
    "handle_quit": signal.SIGQUIT,
    "handle_ttin": signal.SIGTTIN,
    "handle_ttou": signal.SIGTTOU,
    "handle_usr1": signal.SIGUSR1,
    "handle_usr2": signal.SIGUSR2,
    "handle_winch": signal.SIGWINCH,
}
# Names of gunicorn's Arbiter without a meaning here, and what to use.
ELSEWHERE: Final = {
    "run": "the server runs already",
    "start": "the server runs already",
    "setup": "call server.reload(), which sends SIGHUP to the master",
    "init_signals": "the master has its signal handlers",
    "signal": "send the signal with os.kill(server.pid, number)",
    "signal_chld": "the master waits for its workers itself",
    "handle_chld": "the master waits for its workers itself",
    "handle_cld": "the master waits for its workers itself",
    "reap_workers": "the master waits for its workers itself; see the hook child_exit",
    "murder_workers": "the master does so itself, by the setting timeout",
    "maybe_promote_master": "an upgrade (SIGUSR2) ends by itself",
    "wait_for_signals": "the master's loop takes its signals itself",
    "spawn_worker": "set server.num_workers to the number that you want",
    "spawn_workers": "set server.num_workers to the number that you want",
    "SIG_QUEUE": "send a signal with os.kill(server.pid, number)",
    "WAKEUP_REQUEST": "send a signal with os.kill(server.pid, number)",
    "dirty_arbiter": "there are no dirty workers",
    "dirty_arbiter_pid": "there are no dirty workers",
    "spawn_dirty_arbiter": "there are no dirty workers",
    "manage_dirty_arbiter": "there are no dirty workers",
}


class HookPidFile(NamedTuple):
    """``server.pidfile``: the pid file's name and contents.

    Attributes:
        fname: its path.
        pid: the master's process id.
    """

    fname: str
    pid: int


class HaltRequest(NamedTuple):
    """What a hook has asked `halt` or `stop` for.

    Attributes:
        reason: why, for the log; may be None.
        exit_status: the status that the server exits with.
    """

    reason: str | None
    exit_status: int


class HookServer:
    """The ``server`` argument of hooks. Hooks may hang their own attributes on it.

    Attributes:
        settings: the configuration in force.
        cfg: the same, as hooks see it.
        app: the application: see `HookApp`.
        log: the error log.
        pid: the master's process id.
        master_pid: that of the old master during an upgrade, else 0.
        pidfile: the pid file, or None.
        proc_name: the name in the processes' titles.
        timeout: `timeout`.
        worker_age: the serial number of the newest worker.
        WORKERS: the workers by process id.
        LISTENERS: the listening sockets.
        handoff: the workers' channel (`ServerResources` makes it; not for hooks).
        systemd: whether the service manager has passed the sockets.
        reexec_pid: the process id of the next master during an upgrade; always 0 here.
        START_CTX: how the server was started: ``args``, ``cwd`` and, under 0, the interpreter.
    """

    # gunicorn's names, capitals too: hooks written for it read them.
    WORKER_BOOT_ERROR: ClassVar[int] = int(ExitStatus.BOOT)
    APP_LOAD_ERROR: ClassVar[int] = int(ExitStatus.APPLICATION)
    SIGNALS: ClassVar[list[signal.Signals]] = [
        getattr(signal, f"SIG{name}")
        for name in ["HUP", "QUIT", "INT", "TERM", "TTIN", "TTOU", "USR1", "USR2", "WINCH"]
    ]
    SIG_NAMES: ClassVar[dict[signal.Signals, str]] = {each: each.name[3:].lower() for each in signal.Signals}

    def __init__(self, settings: Settings, log: logging.Logger, old_master: int = 0) -> None:
        self._log = log
        self.pid = os.getpid()
        self.master_pid = old_master
        self.master_name = "Master.2" if old_master else "Master"
        self.reexec_pid = 0
        self.systemd = False
        self.pidfile: HookPidFile | None = None
        self.worker_age = 0
        self.WORKERS: dict[int, HookWorker] = {}
        self.handoff: Handoff | None = None
        self.LISTENERS: list[Listener] = []
        self.START_CTX: dict[Any, Any] = {
            "args": [sys.executable, *sys.argv],
            "cwd": working_directory(),
            0: sys.executable,
        }
        # None, not 0: the hook nworkers_changed is called for the first number, too, with None for the old one.
        self._num_workers: int | None = None
        self._wanted: int | None = None
        self._halt: HaltRequest | None = None
        self.app = HookApp(view_of(settings))
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Show another configuration."""
        self.settings = settings
        self.cfg = self.app.cfg = view_of(settings)
        self.cfg.on_late_change = self._warn_of_late_change
        self.timeout = self.cfg.timeout
        self.proc_name = settings.proc_name or settings.wsgi_app or settings.default_proc_name

    def listen(self, listeners: Sequence[Listener]) -> None:
        """Show other listeners."""
        # In place: a hook may hold the list.
        self.LISTENERS[:] = listeners

    @property
    def log(self) -> Any:
        """The error log, or the logger of `logger_class`."""
        return log_for_users(self._log)  # a reload may bring another

    def show_pidfile(self, path: str | None) -> None:
        """Show the pid file; None without one."""
        self.pidfile = HookPidFile(path, self.pid) if path is not None else None

    def _warn_of_late_change(self, name: str) -> None:
        self.log.warning(
            "WS1102 a hook has called cfg.set(%r, ...): the server goes on with the value it was started with, only "
            "hooks see the new one. Set it in the configuration file, or in on_starting.",
            name,
        )

    def set_num_workers(self, count: int) -> None:
        """Note the number of workers and call nworkers_changed; as in gunicorn, at each reload, too."""
        old, self._num_workers = self._num_workers, count
        call_hook(self._log, "nworkers_changed", self.settings.nworkers_changed, self, count, old)

    # ---- wishes of hooks, which the master's loop carries out ------------------------------------------

    def take_wanted(self) -> int | None:
        """Return the number of workers that a hook has asked for since the last call; None: it has not."""
        wanted, self._wanted = self._wanted, None
        return wanted

    @property
    def halt_request(self) -> HaltRequest | None:
        """The request of a hook to stop the server; None without one."""
        return self._halt

    # ---- gunicorn's names ------------------------------------------------------------------------------

    @property
    def address(self) -> list[Any]:
        """The addresses of `bind`; a port that the kernel has chosen, and an inherited socket, as sockets give them."""
        # A closed listener is among them while the server stops.
        bound = [listener.getsockname() for listener in self.LISTENERS if listener.fileno() >= 0]
        given: list[Any] = self.cfg.address
        if len(bound) != len(given):
            return bound or given
        is_open = [isinstance(each, int) or (isinstance(each, tuple) and each[1] == 0) for each in given]
        return [real if chosen else each for real, each, chosen in zip(bound, given, is_open, strict=True)]

    @property
    def worker_class(self) -> type[Any]:
        """The worker class."""
        return self.cfg.worker_class

    @property
    def num_workers(self) -> int:
        """How many workers are wanted. A hook of the master may set it."""
        if self._wanted is not None:
            return self._wanted
        return self.settings.workers if self._num_workers is None else self._num_workers

    @num_workers.setter
    def num_workers(self, count: int) -> None:
        self._check_is_master("num_workers")
        if type(count) is not int or count < 1:
            raise ValueError(
                f"server.num_workers = {count!r}: expected a whole number from 1; SIGWINCH retires all workers"
            )
        self._wanted = count

    def halt(self, reason: str | None = None, exit_status: int = 0) -> NoReturn:
        """Stop the server gracefully, and exit with ``exit_status``. The hook ends here."""
        self._check_is_master("halt()")
        self._halt = self._halt or HaltRequest(reason, int(exit_status) & 0xFF)
        raise HaltServer(reason, int(exit_status) & 0xFF)

    def stop(self, graceful: bool = True) -> None:
        """Stop the server, as SIGTERM or SIGQUIT does."""
        os.kill(self.pid, signal.SIGTERM if graceful else signal.SIGQUIT)

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a signal to a worker; nothing happens when it has exited."""
        self._check_is_master("kill_worker()")
        # Other process ids, and so 0 and -1, which are groups, are none of the server's business.
        if (worker := self.WORKERS.get(pid)) is not None:
            worker.send_signal(sig)

    def kill_workers(self, sig: int) -> None:
        """Send a signal to all workers."""
        for pid in list(self.WORKERS):
            self.kill_worker(pid, sig)

    def manage_workers(self) -> None:
        """Do nothing: the master's loop starts and ends workers when the hook has returned."""

    def wakeup(self) -> None:
        """Do nothing: the master's loop goes on when the hook has returned."""

    def _check_is_master(self, name: str) -> None:
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"server.{name} in a worker: only the master's hooks have it. To stop the server from here: "
                "os.kill(server.pid, signal.SIGTERM); to leave: worker.alive = False"
            )

    def __getattr__(self, name: str) -> Any:
        if name in _BY_SIGNAL:
            return lambda: os.kill(self.pid, _BY_SIGNAL[name])
        if name in ELSEWHERE:
            raise AttributeError(f"server.{name} is not here: {ELSEWHERE[name]}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
