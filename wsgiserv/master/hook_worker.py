"""The ``worker`` argument of hooks in the master: a worker with gunicorn's names."""

from __future__ import annotations

import io
import logging
import pickle
import sys
from collections.abc import Mapping, MutableMapping
from functools import cached_property
from signal import SIGABRT, SIGKILL, SIGQUIT, SIGTERM, Signals
from time import monotonic
from typing import Any, Final, NoReturn

from wsgiserv.app.hook_app import HookApp
from wsgiserv.config.hook_config import HookConfig, view_of
from wsgiserv.config.settings import Settings
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.net.listener import Listener
from wsgiserv.process import send_signal

# The view's own; everything else in its dictionary is a hook's.
_OWN: Final = frozenset({"_handle", "_server", "cfg", "app", "log", "ppid", "tmp"})


class MasterTmp:
    """``worker.tmp`` in the master: the worker's heartbeat, to be looked at.

    Args:
        handle: the worker.
    """

    def __init__(self, handle: WorkerHandle) -> None:
        self._handle = handle

    def notify(self) -> None:
        """Do nothing: only the worker tells that it is alive."""

    def last_update(self) -> float:
        """Return the time of the last heartbeat, ``time.monotonic()`` seconds; 0.0 before the first."""
        return self._handle.heartbeat

    def close(self) -> None:
        """Do nothing: there is no file."""

    def fileno(self) -> NoReturn:
        """Raise: there is no file."""
        raise io.UnsupportedOperation("worker.tmp has no file: the heartbeat is in shared memory")


class HookWorker:
    """One worker as the master's hooks see it. What they hang on it in `pre_fork` is on the worker's own object, too.

    Args:
        handle: the worker.
        settings: its configuration.
        server: the master as hooks see it.

    Attributes:
        cfg: the worker's configuration.
        app: the application, see `HookApp`.
        log: the error log.
        ppid: the master's process id.
        tmp: see `MasterTmp`.
    """

    # Not the handle itself: the names that hooks give their attributes (pool, slot) would replace the master's own.

    def __init__(self, handle: WorkerHandle, settings: Settings, server: Any) -> None:
        self._handle = handle
        self._server = server
        self.cfg: HookConfig = view_of(settings)
        self.app: HookApp = server.app
        self.log: logging.Logger = server.log
        self.ppid: int = server.pid
        self.tmp = MasterTmp(handle)

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that hooks have hung on it."""
        return {name: value for name, value in vars(self).items() if name not in _OWN}

    @property
    def age(self) -> int:
        """The serial number, from 1; 0 stands for a zygote."""
        return self._handle.age

    @property
    def generation(self) -> int:
        """The serial number of the configuration that it was started with."""
        return self._handle.generation

    @property
    def pid(self) -> int | str:
        """The process id; ``[booting]`` before the fork, as with gunicorn."""
        return self._handle.pid or "[booting]"

    @property
    def booted(self) -> bool:
        """Whether it has become ready."""
        return self._handle.booted

    @property
    def aborted(self) -> bool:
        """Whether it was sent SIGABRT because it did not respond."""
        return self._handle.aborted

    @property
    def alive(self) -> bool:
        """Whether it is to go on. A hook sets it to False: then it is replaced, and leaves gracefully."""
        return not self._handle.leaving and self._handle.recycle_at is None

    @alive.setter
    def alive(self, value: object) -> None:
        handle = self._handle
        if value or not self.alive:
            return
        handle.recycle("a hook has set worker.alive to False", monotonic())
        self.log.info("worker %d is to be replaced: %s", handle.pid, handle.recycle_reason)

    @property
    def nr(self) -> int:
        """Requests answered so far."""
        return self._handle.figures().requests

    @property
    def timeout(self) -> float:
        """After how many seconds without a sign of life the master aborts it."""
        return self._handle.timeout

    @timeout.setter
    def timeout(self, value: float) -> None:
        self._handle.timeout = float(value)

    # Kept in the dictionary, and so taken along by the worker: it leaves after the number that the hook has seen.
    @cached_property
    def max_requests(self) -> int:
        """After how many requests it is replaced, with its jitter; `sys.maxsize` without `max_requests`."""
        from random import randint  # few hooks ask

        most: int = self.cfg.max_requests
        return most + randint(0, self.cfg.max_requests_jitter) if most else sys.maxsize

    @property
    def sockets(self) -> list[Listener]:
        """The listening sockets."""
        found: list[Listener] = self._server.LISTENERS
        return found

    @property
    def reloader(self) -> None:
        """None: a worker has one (`reload`)."""

    @property
    def wsgi(self) -> None:
        """None: the worker has the application."""

    def notify(self) -> None:
        """Do nothing: only the worker tells that it is alive."""

    def send_signal(self, number: int) -> None:
        """Send it a signal, for a hook."""
        handle = self._handle
        # Noted: the exit is an answer to it, no crash. The others ask the worker for something, and it goes on.
        if number in (SIGTERM, SIGQUIT, SIGABRT, SIGKILL):
            handle.note_sent(Signals(number), "was sent it by a hook (server.kill_worker)", monotonic())
        send_signal(handle.pid, number)

    def __str__(self) -> str:
        return f"<Worker {self.pid}>"


# ---- with preload_app: the zygote forks the worker, and knows the master as it was at its own fork ---------------


def pack(attributes: Mapping[str, Any], environ: Mapping[str, str | None]) -> tuple[bytes, list[str]]:
    """Return what `pre_fork` has changed, for the worker, and the names of attributes that cannot be pickled.

    Args:
        attributes: the worker's.
        environ: changes of the environment; None takes a variable out.
    """
    packed, lost = {}, []
    for name, value in attributes.items():
        # Each by itself: one that cannot be pickled takes no other along.
        try:
            packed[name] = pickle.dumps(value)
        except Exception:  # the object's own code may raise anything
            lost.append(name)
    return pickle.dumps((packed, dict(environ))), lost


def unpack(data: bytes, environ: MutableMapping[str, str]) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Change ``environ`` as `pack` was told; return the attributes, and the failures by name."""
    packed, changes = pickle.loads(data)
    for name, value in changes.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    attributes: dict[str, Any] = {}
    failures: dict[str, Exception] = {}
    for name, each in packed.items():
        try:
            attributes[name] = pickle.loads(each)
        except Exception as error:
            failures[name] = error
    return attributes, failures
