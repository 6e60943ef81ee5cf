"""What passes between the master and a worker at its birth, and the statuses that processes end with.

Owns: `WorkerBoot` (the values a worker starts with), the readiness pipe, the exit statuses.
Must not know: how the master supervises, how a worker serves.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from os import read, write
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from wsgiserv.record import record

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings
    from wsgiserv.net.handoff import Handoff
    from wsgiserv.net.listener import Listener
    from wsgiserv.scoreboard import Slot

__all__ = [
    "EXIT_APPLICATION",
    "EXIT_BOOT",
    "EXIT_CONFIG",
    "EXIT_OK",
    "REPORT_MARK",
    "ReadinessReader",
    "ReadinessWriter",
    "Report",
    "WorkerBoot",
]

EXIT_OK = 0  # stopped as told
EXIT_CONFIG = 2  # bad usage or configuration
EXIT_BOOT = 3  # workers cannot boot
EXIT_APPLICATION = 4  # the application cannot be loaded

# In the file of a worker's last words: what follows is from the worker's own code, and complete.
REPORT_MARK = "\n\x1dthe worker's own report\x1d\n"

State = Literal["loading", "ready", "failed", "retiring", "recycle", "trace"]

# A report must fit the pipe (64 KiB on Linux) whole, so that a worker never blocks on a busy master.
_LONGEST_TEXT = 24_000


class Report(NamedTuple):
    """One message of a worker over its readiness pipe.

    Attributes:
        state: ``loading`` (boot has begun), ``ready`` (it accepts connections), ``failed`` (it cannot
            boot and is about to exit with ``exit_status``) or ``retiring`` (it has decided by itself to
            leave, for ``reason``: a successor may start now) or ``recycle`` (it asks to be replaced, for
            ``reason``, and serves until it is told to leave) or ``trace`` (``reason`` has the requests in flight and
            all stacks, as it was asked for by SIGTTOU).
        reason: for ``failed``, ``retiring`` and ``recycle``, one paragraph for a person.
        traceback: for ``failed``, the user's own traceback, or empty.
        exit_status: for ``failed``, the status the worker exits with.
    """

    state: State
    reason: str = ""
    traceback: str = ""
    exit_status: int = 0


class ReadinessWriter:
    """The worker's end. Owns the descriptor ``fd`` (close-on-exec)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def report(self, state: State, reason: str = "", traceback: str = "", exit_status: int = 0) -> None:
        """Tell the master. A master that is gone is not an error: the worker learns it from its lifeline."""
        message = {
            "state": state,
            "reason": reason[:_LONGEST_TEXT],
            "traceback": traceback[-_LONGEST_TEXT:],
            "exit_status": exit_status,
        }
        try:
            write(self._fd, json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._fd)


class ReadinessReader:
    """The master's end: non-blocking, to be polled through `fileno`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._fd

    def read(self) -> tuple[list[Report], bool]:
        """Return the reports that have arrived, oldest first, and whether the worker's end is closed."""
        closed = False
        while True:
            try:
                data = read(self._fd, 65536)
            except BlockingIOError:
                break
            if not data:
                closed = True
                break
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        return [Report(**json.loads(line)) for line in lines], closed

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._fd)


@record(kw_only=True)
class WorkerBoot:
    """The values a worker starts with, made by the master just before the fork.

    Attributes:
        settings: the configuration of the worker's generation.
        listeners: the bound listening sockets, non-blocking, shared by all workers.
        slot: the worker's row in the scoreboard; the master has cleared it.
        ready: the readiness pipe; the worker reports ``loading`` first, then ``ready`` or ``failed``.
        lifeline: a read end that becomes readable (end of file) when the master is gone.
        age: the worker's serial number, from 1 (gunicorn's ``worker.age``).
        generation: the serial number of the configuration it was started with, from 1.
        master_pid: the master's process id.
        log: the error log.
        server: the master as hooks see it (gunicorn's ``server`` argument).
        handle: the worker as the master's hooks saw it (gunicorn's ``worker`` argument of ``pre_fork``).
        application: the application when the master has preloaded it, else None.
        handoff: the channel to the other workers, None where the platform has none.
        last_words: the descriptor of a file that the master reads when the worker is dead, None without one.
    """

    settings: Settings
    listeners: Sequence[Listener]
    slot: Slot
    ready: ReadinessWriter
    lifeline: int
    age: int
    generation: int
    master_pid: int
    log: logging.Logger
    server: Any
    handle: Any
    application: Callable[..., Any] | None = None
    handoff: Handoff | None = None
    last_words: int | None = None
