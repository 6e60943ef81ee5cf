"""The ``server`` argument of hooks: the master with gunicorn's attributes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from wsgiserv.config.settings import Settings
from wsgiserv.hooks import call_hook
from wsgiserv.logs.error import log_for_users
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.net.handoff import Handoff
from wsgiserv.net.listener import Listener
from wsgiserv.safe_open import working_directory


class HookServer:
    """The ``server`` argument of hooks. Hooks may hang their own attributes on it.

    Attributes:
        cfg: the configuration in force.
        log: the error log.
        pid: the master's process id.
        proc_name: the name in the processes' titles.
        timeout: `timeout`.
        address: the bound addresses, as sockets give them.
        num_workers: how many workers are wanted.
        worker_age: the serial number of the newest worker.
        WORKERS: the workers by process id.
        LISTENERS: the listening sockets.
        handoff: the workers' channel (`ServerResources` makes it; not for hooks).
        START_CTX: how the server was started: ``args``, ``cwd`` and, under 0, the interpreter.
    """

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        self._log = log
        self.pid = os.getpid()
        self.worker_age = 0
        self.WORKERS: dict[int, WorkerHandle] = {}
        self.handoff: Handoff | None = None
        # gunicorn's names, capitals too: hooks written for it read them.
        self.LISTENERS: list[Listener] = []
        self.START_CTX: dict[Any, Any] = {
            "args": [sys.executable, *sys.argv],
            "cwd": working_directory(),
            0: sys.executable,
        }
        # None, not 0: the hook nworkers_changed is called for the first number, too, with None for the old one.
        self._num_workers: int | None = None
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Show another configuration."""
        self.cfg = settings
        self.timeout = settings.timeout
        self.proc_name = settings.proc_name or settings.wsgi_app or settings.default_proc_name

    def listen(self, listeners: Sequence[Listener]) -> None:
        """Show other listeners."""
        # In place: a hook may hold the list.
        self.LISTENERS[:] = listeners

    @property
    def log(self) -> Any:
        """The error log, or the logger of `logger_class`."""
        return log_for_users(self._log)  # a reload may bring another

    @property
    def address(self) -> list[Any]:
        """The bound addresses."""
        # A closed listener is among them while the server stops.
        return [listener.getsockname() for listener in self.LISTENERS if listener.fileno() >= 0]

    @property
    def num_workers(self) -> int:
        """How many workers are wanted."""
        return self._num_workers or 0

    def set_num_workers(self, count: int) -> None:
        """Note the number of workers and call nworkers_changed when it is another one."""
        old, self._num_workers = self._num_workers, count
        if count != old:
            call_hook(self._log, "nworkers_changed", self.cfg.nworkers_changed, self, count, old)
