"""Defines the data exchanged between the master and a new worker: its starting values, its reports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import close  # gevent's waits for its hub
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from wsgiserv.ipc import MessageError, MessageReader, MessageWriter

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings
    from wsgiserv.net.handoff import Handoff
    from wsgiserv.net.listener import Listener
    from wsgiserv.net.tls_context import ContextSeries
    from wsgiserv.scoreboard import Slot


# In a worker's crash dump: behind it stands the report of the worker's own code, complete.
REPORT_MARK = "\n\x1dthe worker's own report\x1d\n"

State = Literal["loading", "ready", "failed", "retiring", "recycle", "trace", "passed_headers"]

_STATES = frozenset(get_args(State))

# In characters of up to four bytes, or six as a JSON escape: two such texts stay within `LONGEST_MESSAGE_BYTES`.
_LONGEST_TEXT = 80_000
# How long a report waits for a master that does not read (it is stopped). A failure waits longer: the process is
# about to exit, and nothing else says why.
_WAIT_S = 1.0
_FAILURE_WAIT_S = 5.0


class Report(NamedTuple):
    """One message of a worker over its readiness pipe.

    Attributes:
        state: ``loading`` (boot has begun), ``ready`` (it accepts connections), ``failed`` (it cannot
            boot and is about to exit with ``exit_status``), ``retiring`` (it leaves by itself, for ``reason``: a
            replacement may start now), ``recycle`` (it asks to be replaced, for ``reason``, and serves until it is told
            to leave), ``trace`` (the answer to SIGTTOU: ``reason`` has the requests in flight and all stacks) or
            ``passed_headers`` (forwarded headers of an untrusted peer have reached the application: ``reason`` says
            whose, and what to set).
        reason: for ``failed``, ``retiring``, ``recycle`` and ``passed_headers``, one paragraph for a person.
        traceback: for ``failed``, the user's own traceback, or empty.
        exit_status: for ``failed``, the status the worker exits with.
    """

    state: State
    reason: str = ""
    traceback: str = ""
    exit_status: int = 0


class ReadinessWriter(MessageWriter):
    """The worker's end."""

    def report(self, state: State, reason: str = "", traceback: str = "", exit_status: int = 0) -> None:
        """Send a `Report` of these fields to the master, from any thread or signal handler.

        While the master does not read ``failed`` waits 5 s for it. Other reports wait 1 s, once; the rest goes with a
        later `flush`.
        """
        # The end of a traceback says what happened; of a reason it is the beginning.
        message = {
            "state": state,
            "reason": reason[:_LONGEST_TEXT],
            "traceback": traceback[-_LONGEST_TEXT:],
            "exit_status": exit_status,
        }
        self.send(message, _FAILURE_WAIT_S if state == "failed" else 0.0 if self.is_behind else _WAIT_S)


class ReadinessReader(MessageReader):
    """The master's end: non-blocking, to be polled through `fileno`."""

    def read_reports(self) -> tuple[list[Report], bool]:
        """Return the reports in the pipe, oldest first, and whether the worker's end is closed.

        Raises:
            MessageError: the worker has sent something else than a report.
        """
        messages, closed = self.read()
        return [_report(message) for message in messages], closed


def _report(message: dict[str, Any]) -> Report:
    """Return the report in ``message``. Raises MessageError."""
    with suppress(TypeError):  # a field that a report does not have
        report = Report(**message)
        texts = (report.state, report.reason, report.traceback)
        # The worker's process runs the application's code, which can write anything into this pipe.
        if (
            all(isinstance(text, str) for text in texts)
            and report.state in _STATES
            and type(report.exit_status) is int
            and 0 <= report.exit_status <= 255
        ):
            return report
    raise MessageError(f"not a report: {str(message)[:80]}")


@dataclass(kw_only=True)
class WorkerBoot:
    """The values that a worker starts with, made by the master just before the fork.

    Attributes:
        settings: the configuration of the worker's generation.
        listeners: the bound listening sockets, non-blocking, shared by all workers.
        slot: the worker's row in the scoreboard; the master has cleared it.
        ready: the readiness pipe; the worker reports ``loading`` first, then ``ready`` or ``failed``.
        lifeline: a pipe, readable (end of file) when the master has ended.
        age: the worker's serial number, from 1 (gunicorn's ``worker.age``).
        generation: the serial number of the configuration it was started with, from 1.
        master_pid: the master's process id.
        log: the error log.
        server: the master as hooks see it (gunicorn's ``server`` argument).
        handle: the worker as the master's hooks saw it (gunicorn's ``worker`` argument of ``pre_fork``).
        application: the application when the master has preloaded it, else None.
        handoff: the channel to the other workers, None where the platform has none.
        crash_dump_fd: a file for the worker's stacks, read by the master after its exit; None without one.
        tls_contexts: the TLS contexts of all workers; None without TLS, and where each
            worker makes its own (the hook `ssl_context`).
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
    crash_dump_fd: int | None = None
    tls_contexts: ContextSeries | None = None

    def report_passed_headers(self, advice: str) -> None:
        """Have the master warn, once per server, of forwarded headers that untrusted peers send."""
        self.ready.report("passed_headers", advice)

    def close_in_child(self) -> None:
        """Close the worker's descriptors and leave the scoreboard. Called in a child of the application."""
        self.slot.detach()
        for listener in self.listeners:
            listener.close()
        if self.handoff is not None:
            self.handoff.close()
        self.ready.close()
        close(self.lifeline)
        # Once: a second close would hit a descriptor that the application has opened since.
        if self.crash_dump_fd is not None:
            fd, self.crash_dump_fd = self.crash_dump_fd, None
            close(fd)
