"""Runs a worker's process: from its first signal handler to its exit status.

`WorkerProcess` installs the signal handlers, loads and serves, reports failures to the master and calls the hooks
around all that. It leaves to `wsgiserv.worker.base.Worker` how connections are made and how the worker leaves, and to
the worker classes how the sockets are waited for.
"""

from __future__ import annotations

import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from os import getpid
from types import FrameType
from typing import Any, ClassVar, Final, Self

from wsgiserv.boot import WorkerBoot
from wsgiserv.config.hook_config import view_of
from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus, WsgiservError
from wsgiserv.hooks import call_hook, call_hook_or_fail
from wsgiserv.ipc import wait_for
from wsgiserv.logs.error import log_for_users
from wsgiserv.process import leave_if_child, release_standard_streams, unblock_last
from wsgiserv.tracebacks import describe_error
from wsgiserv.worker.active_requests import Call, other_threads, report, thread_calls
from wsgiserv.worker.crash_dump import write_report
from wsgiserv.worker.signals import SignalHandlers

_OURS: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGABRT, signal.SIGTTOU)
# A terminal sends these to its whole process group, and their default would end or stop the worker.
_MASTERS: Final = (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN)


class WorkerProcess(ABC):
    """The process of one worker.

    Args:
        boot: the values that the master starts it with.

    Attributes:
        settings: its configuration.
        cfg: the same, as hooks see it.
        age, pid, ppid, log, sockets, booted, aborted, timeout: as in gunicorn's workers, for hooks.
    """

    # Whether `patch` and `prepare` put greenlets in the place of the standard library's threads.
    patches_library: ClassVar[bool] = False

    def __init__(self, boot: WorkerBoot) -> None:
        self.boot = boot
        self.settings = boot.settings
        self.cfg = view_of(boot.settings)
        self.age = boot.age
        self.pid = getpid()
        self.ppid = boot.master_pid
        self.log: logging.Logger = log_for_users(boot.log)
        self.sockets = [listener.sock for listener in boot.listeners]
        self.timeout = boot.settings.timeout / 2  # gunicorn gives its workers the half
        self.booted = False
        self.aborted = False
        self._has_failed = False  # it cannot boot, and is about to exit by itself
        self._exit_hook_called = False
        self._signals = SignalHandlers(
            self.log,
            _OURS + _MASTERS,
            {
                signal.SIGTERM: self._on_term,
                signal.SIGINT: self._on_interrupt,
                signal.SIGQUIT: self._on_interrupt,
                signal.SIGTTOU: self._on_trace,
            },
            # An abort comes last: it ends the process, and the application's handler runs before.
            {signal.SIGABRT: self._on_abort},
        )

    @classmethod
    def _make(cls, boot: WorkerBoot) -> Self:
        """Return a worker. A base with gunicorn's constructor makes it in another way."""
        return cls(boot)

    @classmethod
    def _patch_before_load(cls, log: logging.Logger, in_master: bool) -> None:
        """Call `patch`. A base has this name free where gunicorn's `patch` is another method."""
        cls.patch(log, in_master)

    @classmethod
    def _why_not(cls) -> str:
        """Return why the class cannot be used; empty if it can."""
        # Else the TypeError would come from each new worker, without a word about the setting.
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        return f"it is abstract: it does not implement {', '.join(missing)}." if missing else ""

    # ---- what a worker class implements ----------------------------------------------------------------

    @classmethod  # noqa: B027 - most classes have nothing to patch
    def patch(cls, log: logging.Logger, in_master: bool) -> None:
        """Patch the standard library before the application is imported for all workers (``preload_app``).

        Args:
            log: the error log.
            in_master: whether this process goes on as the master; else it is a zygote, which only forks workers.
        """

    def prepare(self) -> None:  # noqa: B027 - most classes have nothing to prepare
        """Patch the standard library in the new process, before anything of the application is imported."""

    @abstractmethod
    def load(self) -> None:
        """Load the application. Raises ApplicationError, ConfigError."""

    @abstractmethod
    def serve(self) -> None:
        """Serve connections until there is nothing left to do: `retiring` and no connection, or `leave_now`."""

    def calls(self) -> list[Call]:
        """Return the requests in the application now, oldest first; for reports."""
        return thread_calls()

    def other_stacks(self) -> list[str]:
        """Return what runs besides the requests, each with its name and stack; for reports."""
        return other_threads()

    def close_in_child(self) -> None:
        """Close the descriptors that a child of the application must not hold. Called in that child.

        It shuts nothing down: the parent goes on using the sockets.
        """
        self._signals.close()

    @abstractmethod
    def _make_ready(self) -> None:
        """Do what comes between loading the application and serving. Raises ApplicationError, BootError."""

    @abstractmethod
    def _act_on(self, number: int) -> None:
        """Act on a signal that the loop has taken from the queue."""

    @abstractmethod
    def _leave_soon(self) -> None:
        """Note in the signal handler that the worker is to leave: the response in the making can say so."""

    @abstractmethod
    def _account_for_waiting(self) -> None:
        """Log the requests that have not reached the application, for an aborted worker; flush the access log."""

    @abstractmethod
    def _close_logs(self) -> None:
        """Write what the access log has buffered, and note what the logs have lost. Called once, after `serve`."""

    def _begin_to_serve(self) -> None:  # noqa: B027 - most classes have nothing to do
        """Do what comes last before `serve`, when signals are queued for the loop."""

    def _await_exit(self) -> None:  # noqa: B027 - in most classes a signal handler that exits does not return
        """Wait if the worker is exiting elsewhere. In the main thread."""

    # ---- signals ---------------------------------------------------------------------------------------

    @property
    def wakeup_fd(self) -> int:
        """A descriptor that is readable when signals have arrived: then call `take_signals`."""
        return self._signals.reader.fileno()

    def take_signals(self) -> None:
        """Act on all signals that have arrived; then raise what the last failure among them raised."""
        failure: Exception | None = None
        for number in self._signals.take():
            # One failure must not lose the others: a TERM may be among them.
            try:
                self._act_on(number)
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        # Queued for the loop like the others. While the worker boots there is nothing to finish, and an import may
        # take long: it exits here.
        if self.booted:
            self._leave_soon()
        else:
            self._exit_while_booting()

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        # Once booted the loop acts on it: the hook's code is not meant to run in the middle of a request's.
        if not self.booted:
            self._exit_while_booting("worker_int", self.settings.worker_int)

    def _exit_while_booting(self, name: str = "", hook: Callable[..., Any] | None = None) -> None:
        """Exit in a signal handler, after the hooks that a booted worker would call."""
        if self._exit_hook_called or self._has_failed:
            return
        try:
            call_hook(self.log, name, hook, self)
            self._call_exit_hook()
        finally:
            release_standard_streams()
            # Not by an exception: an application may catch it around an import.
            os._exit(ExitStatus.OK)

    def _on_trace(self, number: int, frame: FrameType | None) -> None:
        """Report the running requests and all stacks to the master (``wsgiservctl trace``)."""
        self.boot.ready.report("trace", report(self.calls(), self.other_stacks()))

    def _on_abort(self, number: int, frame: FrameType | None) -> None:
        """Report the stacks and exit: the master has waited for `timeout`, and no loop will read a queue."""
        self.aborted = True
        text = report(self.calls(), self.other_stacks())
        # The master's file first: logging may wait for a lock that the hanging call holds.
        if write_report(self.boot.crash_dump_fd, text):
            self.log.critical("WS1700 worker %d: is aborted (SIGABRT): the master logs its crash report", self.pid)
        else:
            self.log.critical("WS1701 worker %d: is aborted (SIGABRT):\n%s", self.pid, text)
        call_hook(self.log, "worker_abort", self.settings.worker_abort, self)
        self._call_exit_hook()
        self._account_for_waiting()
        # What the hooks have printed. Last: the call that hangs may hold a stream's lock, and the master kills then.
        release_standard_streams()
        # Not by an exception: the call that hangs may catch it.
        os._exit(ExitStatus.FAILURE)

    # ---- from the fork to the exit -----------------------------------------------------------------------

    def _boot_and_serve(self) -> int:
        """Boot and serve; return the exit status."""
        boot = self.boot
        boot.ready.report("loading")
        failure: BaseException | None = None
        try:
            self.load()
            self._signals.look()
            self._make_ready()
        except BaseException as error:
            failure = error
        if failure is not None:
            return self._fail(failure)
        self._await_exit()
        self.booted = True
        unblock_last()  # behind the at-fork handlers that the imports have registered
        try:
            # It may forbid the boot. Not in the `try` above: from here on a signal is queued, as `booted` says.
            call_hook_or_fail(self.log, "post_worker_init", self.settings.post_worker_init, self)
        except WsgiservError as error:
            failure = error
        if failure is not None:
            return self._fail(failure)
        self._signals.serve()
        self._begin_to_serve()
        if self._is_orphan():
            # A client that came now would soon be sent away, where the old master's workers may serve (an upgrade).
            self._warn_of_lost_master()
            return ExitStatus.BOOT
        try:
            self.serve()
        except BootError as error:  # before it was ready
            failure = error
        finally:
            self._close_logs()
        return ExitStatus.OK if failure is None else self._fail(failure)

    def _fail(self, failure: BaseException) -> int:
        """Report to the master why the worker cannot boot; return the exit status."""
        if not isinstance(failure, (ApplicationError, BootError, ConfigError)):
            # Without a report the master would take the exit for the application's os._exit().
            leave_if_child(failure)
            self.log.error("WS1702 worker %d: cannot boot:", self.pid, exc_info=failure)
            failure = BootError(f"booting raised {describe_error(failure)}")
        # The functions that the application has registered at `atexit` still run, though the master stops all workers.
        self._has_failed = True
        traceback = failure.traceback if isinstance(failure, ApplicationError) else ""
        self.boot.ready.report("failed", str(failure), traceback, failure.exit_status)
        return ExitStatus.APPLICATION if isinstance(failure, ApplicationError) else ExitStatus.BOOT

    def _call_exit_hook(self) -> None:
        """Call ``worker_exit``, once in this process."""
        if not self._exit_hook_called:
            self._exit_hook_called = True
            call_hook(self.log, "worker_exit", self.settings.worker_exit, self.boot.server, self)

    def _is_orphan(self) -> bool:
        """Return whether the master has exited."""
        # Imports may take long, and meanwhile nothing watches the lifeline.
        return wait_for(self.boot.lifeline, 0.0)

    def _warn_of_lost_master(self) -> None:
        self.log.error("WS1703 worker %d: the master (pid %d) is gone: leaving", self.pid, self.ppid)
