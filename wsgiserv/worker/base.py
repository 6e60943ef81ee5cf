"""The base of all worker classes: a worker's process, from its first signal handler to its exit status.

It loads the application, acts on signals, sends the heartbeat, and leaves; it reports failures to the master, and calls
the hooks around all that. A worker class decides two things: how to wait for the sockets, and where to run the
application. It implements `serve`, and calls `tick` at least once a second. docs/custom-workers.md lists the public
names for classes of users.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from os import getpid, kill
from time import monotonic, time
from types import FrameType
from typing import Any, ClassVar, Final

from wsgiserv import scoreboard
from wsgiserv.app.loader import leave_names_free, load_application, prepare_path
from wsgiserv.boot import WorkerBoot
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus
from wsgiserv.hooks import call_hook
from wsgiserv.ipc import wait_for
from wsgiserv.logs.access import open_access_log
from wsgiserv.logs.error import lost_messages, reopen_error_log, tell_lost_messages, untold_messages
from wsgiserv.logs.files import log_files
from wsgiserv.net.client import Connection
from wsgiserv.net.peers import PeerNames
from wsgiserv.net.serving_context import NEVER_STREAMED, Loop
from wsgiserv.process import fill_standard_streams, leave_if_child, release_standard_streams, unblock_last
from wsgiserv.tracebacks import describe_error
from wsgiserv.wording import counted
from wsgiserv.worker.active_requests import Call, other_threads, report, thread_calls
from wsgiserv.worker.crash_dump import write_report
from wsgiserv.worker.heartbeat import Heartbeat
from wsgiserv.worker.helper_thread import needs_thread
from wsgiserv.worker.leaving import ABORTED, AT_ONCE, ORPHANED, Leaving
from wsgiserv.worker.request_hooks import request_hooks
from wsgiserv.worker.serving import Admission, serving_context
from wsgiserv.worker.signals import SignalHandlers
from wsgiserv.wsgi.readiness import answer_readiness
from wsgiserv.wsgi.run import run_app

_OURS: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGABRT, signal.SIGTTOU)
# A terminal sends these to its whole process group, and their default would end or stop the worker.
_MASTERS: Final = (signal.SIGHUP, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN)
# How many frames the server's own calls, reports of failures above all, may need on top of an application's.
_LEAST_RECURSION: Final = 200


class Worker(ABC):
    """One worker process.

    Args:
        boot: its starting values, from the master.

    Attributes:
        age, pid, ppid, cfg, log, sockets, booted, aborted, timeout: as in gunicorn's workers, for hooks.
        wsgi: the application, once it is loaded.
        context: the values shared by its connections.
        max_requests: after how many requests it asks to be replaced, with its jitter.

    Public names are the ones listed in docs/custom-workers.md, and a test checks it. A method or an attribute of a
    subclass with any other name, without an underscore, replaces nothing here.
    """

    # Whether `patch` and `prepare` put greenlets in the place of the standard library's threads.
    patches_library: ClassVar[bool] = False
    multithread: ClassVar[bool] = False
    # How many workers of the class fit a processor (``workers = "auto"``); where that is several, one more of all.
    workers_per_cpu: ClassVar[int] = 1
    # The meaning of stream_request_body = "auto".
    streams: ClassVar[int] = NEVER_STREAMED
    # How many bytes a response of unknown length may run ahead of its client at least, whatever `stream_buffer` says.
    _least_stream_buffer: ClassVar[int] = 0
    loop: Loop

    def __init__(self, boot: WorkerBoot) -> None:
        self.boot = boot
        self.cfg = settings = boot.settings
        self.age = boot.age
        self.pid = getpid()
        self.ppid = boot.master_pid
        self.log: logging.Logger = boot.log
        self.sockets = [listener.sock for listener in boot.listeners]
        self.timeout = settings.timeout
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
        self.wsgi: Callable[..., Any] | None = None
        self.max_requests = settings.max_requests or sys.maxsize
        if settings.max_requests and settings.max_requests_jitter:
            # Workers that have started together would all be replaced together otherwise.
            from random import randint

            self.max_requests += randint(0, settings.max_requests_jitter)
        peers = PeerNames(settings.forwarded_allow_ips)
        self.context = serving_context(boot, peers, self._caller(), self.streams, self._least_stream_buffer)
        self._admission = Admission(boot, self.context, peers, self.multithread)
        # Complete requests that wait for a thread or a greenlet. `sync` runs each at once.
        self._queue: deque[Connection] = deque()
        self._heartbeat = Heartbeat(boot.slot, settings.timeout)
        self._leaving = Leaving(settings.graceful_timeout)
        self._next_second = 0.0
        self._reloader: Any = None
        # A page says why the application could not be imported (``reload``).
        self._is_broken = False

    # ---- what a class implements ---------------------------------------------------------------------

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
    def serve(self) -> None:
        """Serve connections until there is nothing left to do: `retiring` and no connection, or `leave_now`."""

    def calls(self) -> list[Call]:
        """Return the requests in the application now, oldest first; for reports."""
        return thread_calls()

    def other_stacks(self) -> list[str]:
        """Return what runs besides the requests, each with its name and stack; for reports."""
        return other_threads()

    @classmethod
    def capacity(cls, settings: Settings) -> int:
        """Return how many requests one worker serves at once.

        Args:
            settings: its configuration.
        """
        return settings.worker_connections

    @classmethod
    def cells(cls, settings: Settings) -> int:
        """Return how many requests of one worker the scoreboard has room for.

        Args:
            settings: its configuration.
        """
        return cls.capacity(settings)

    @classmethod  # noqa: B027 - most classes can serve in any process
    def check_patched(cls, culprit: str) -> None:
        """Check that the class can serve in this process, where greenlets may have replaced the threads.

        Args:
            culprit: the possible cause, as the subject of the message: ``the application``.

        Raises:
            ConfigError: it cannot.
        """

    @abstractmethod
    def stop_accepting(self) -> None:
        """Take all connections of the backlog, then no more.

        Called when the worker begins to leave, and again when no worker is left to take its connections.
        """

    @abstractmethod
    def connections(self) -> list[Connection]:
        """Return the open connections."""

    def may_hand_over(self) -> bool:
        """Return whether connections can go to another worker of this server. From any thread, at any time."""
        return False

    def _caller(self) -> Callable[..., BaseException | None]:
        """Return the function to call the application: `run_app`, or one with a time limit around it."""
        return run_app

    def _next_queued(self) -> Connection | None:
        """Take a request out of the queue; None when it is empty. From any thread."""
        try:
            return self._queue.popleft()
        except IndexError:
            return None

    def _occupancy(self) -> float:
        """Return the share of busy threads, 0.0 to 1.0; 0.0 where only the processor counts."""
        return 0.0

    def _await_exit(self) -> None:  # noqa: B027 - in most classes a signal handler that exits does not return
        """Wait if the worker is exiting elsewhere. In the main thread."""

    # ---- loading -----------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the worker is to go on (gunicorn's name)."""
        return not (self.retiring or self.leave_now)

    @property
    def nr(self) -> int:
        """Requests answered (gunicorn's name)."""
        return self.context.answered

    @property
    def retiring(self) -> bool:
        """Whether the worker leaves gracefully."""
        return self._leaving.begun

    @property
    def leave_now(self) -> bool:
        """Whether the worker leaves at once."""
        return self._leaving.at_once

    @property
    def leave_by(self) -> float:
        """Until when the worker may take to leave, ``time.monotonic()`` seconds."""
        return self._leaving.deadline

    def load(self) -> None:
        """Load the application, and open the access log. Raises ApplicationError, ConfigError."""
        settings, words = self.cfg, self.boot.slot.words
        if settings.reload:
            self._make_reloader()
        self.wsgi = app = self._application()
        if settings.readiness_path:
            app = answer_readiness(
                app, settings.readiness_path, lambda: words[scoreboard.DRAINING] or words[scoreboard.STOPPING]
            )
        access = open_access_log(settings, self.log)
        self.context.begin(app, access, *request_hooks(self, settings, self.log))
        self.check_patched("the application")  # its import may have replaced the threads

    def _application(self) -> Callable[..., Any]:
        settings = self.cfg
        if self.boot.application is not None:
            return self.boot.application
        prepare_path(settings.chdir, settings.pythonpath)
        leave_names_free()
        assert settings.wsgi_app is not None
        try:
            return load_application(settings.wsgi_app)
        except ApplicationError as error:
            if not settings.reload:
                raise
            # The developer is at work on it: show what is wrong until it is mended.
            from wsgiserv.worker.debug_page import broken_application

            self._is_broken = True
            self._reloader.watch_broken(error)
            self.log.error(
                "WS1704 %s%s: serving a page that says so", error, f"\n{error.traceback}" if error.traceback else ""
            )
            return broken_application(error)

    def _make_ready(self) -> None:
        if self.cfg.warmup and not self._is_broken:
            from wsgiserv.worker.warmup import warm_up

            warm_up(self.context, self.cfg.warmup, self._admission.first_base)
        if self._reloader is not None:
            with needs_thread("wsgiserv-reloader"):
                self._reloader.start()

    def _make_reloader(self) -> None:
        """Note how the files are, before the application is imported (``reload``). Raises ConfigError."""
        from wsgiserv.config.file import last_read
        from wsgiserv.worker.reloader import Reloader, note_imports

        read_by_master = dict(last_read)

        def changed(path: str) -> None:  # in the reloader's thread
            self.log.info("%s has changed: reloading", path)
            if path in read_by_master:
                kill(self.ppid, signal.SIGHUP)  # a new worker would get the old settings
            else:
                self.leave_for(f"{path} has changed")

        note_imports()
        self._reloader = Reloader(
            changed, [*self.cfg.reload_extra_files, *read_by_master], self.cfg.reload_engine, noted=read_by_master
        )

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
        call_hook(self.log, "post_worker_init", self.cfg.post_worker_init, self)
        self._signals.serve()
        # Imports may take long, and meanwhile nothing watches the lifeline.
        if wait_for(self.boot.lifeline, 0.0):
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
            call_hook(self.log, "worker_exit", self.cfg.worker_exit, self.boot.server, self)

    def _let_go(self) -> None:
        """Drop the application, at the end of the process."""
        # The signals' handlers and the helper threads hold this worker until the interpreter ends. Were the application
        # held with it, a file in a reference cycle of it would not be flushed.
        self.wsgi = self.boot.application = None
        self.context.end()

    def _close_sockets(self) -> None:
        """Close the open sockets, at the end of the process: the interpreter would warn of each."""
        self._signals.close()
        for listener in self.boot.listeners:
            listener.close()
        if self.boot.handoff is not None:
            self.boot.handoff.close()
        log_files.close()

    def close_in_child(self) -> None:
        """Close the descriptors that a child of the application must not hold. Called in that child.

        It shuts nothing down: the parent goes on using the sockets.
        """
        self._signals.close()
        self.context.close_in_child()
        self._heartbeat.seconds = self.boot.slot.seconds  # of the detached row, by now

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

    def _act_on(self, number: int) -> None:
        if number == signal.SIGTERM:
            # The master knows it, unless another process has sent the signal.
            self.boot.ready.report("retiring", "SIGTERM was sent to it")
            self.retire("told to stop")
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self.context.why_leaving = AT_ONCE
            # The hook first: this may be any thread, and the process can end as soon as the main one sees the flag.
            call_hook(self.log, "worker_int", self.cfg.worker_int, self)
            self._leaving.at_once = True
        elif number == signal.SIGUSR1:
            reopen_error_log()
            if self.context.access is not None:
                self.context.access.reopen()

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        # Queued for the loop like the others. While the worker boots there is nothing to finish, and an import may
        # take long: it exits here.
        if not self.booted:
            self._exit_while_booting()
            return
        self._leaving.note_signal(monotonic())
        # The response in the making is to say ``Connection: close``, unless its connection goes to another worker.
        if not self.may_hand_over():
            self.context.gateway.allow_keep_alive(False)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        # Once booted the loop acts on it: the hook's code is not meant to run in the middle of a request's.
        if not self.booted:
            self._exit_while_booting("worker_int", self.cfg.worker_int)

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
        call_hook(self.log, "worker_abort", self.cfg.worker_abort, self)
        self._call_exit_hook()
        # The requests in the application stand on the scoreboard, and the master logs those.
        self.context.why_leaving = ABORTED
        with suppress(Exception):
            self._cut(running=False)
        self._flush_logs()
        # Not by an exception: the call that hangs may catch it.
        os._exit(ExitStatus.FAILURE)

    def lifeline_ended(self) -> None:
        """Answer the requests under way within a second, and leave: the master is gone."""
        leaving = self._leaving
        # A worker that only finishes its requests has a deadline already; else it may wait for what no longer comes.
        if not leaving.begun or leaving.hands_over or self.context.linger_s:
            self._warn_of_lost_master()
            leaving.orphan(monotonic())
            self.context.why_leaving = ORPHANED
            self._stop_handing_over()
            for connection in self.connections():
                if connection.is_idle:
                    connection.close()

    def _warn_of_lost_master(self) -> None:
        self.log.error("WS1703 worker %d: the master (pid %d) is gone: leaving", self.pid, self.ppid)

    # ---- housekeeping ----------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Send the heartbeat, and do the other duties of each turn of the loop.

        Args:
            now: ``time.monotonic()``.

        Returns:
            True once a second, when deadlines are to be swept.
        """
        heartbeat = self._heartbeat
        # While all threads are stuck, the beat stays where the last of them made progress: `timeout` counts from there.
        heartbeat.seconds[scoreboard.HEARTBEAT] = heartbeat.stalled_since or now
        heartbeat.due = now + heartbeat.turn_due_s
        context = self.context
        if context.access is not None:
            context.access.flush()
        if context.answered >= self.max_requests and not self._leaving.begun:
            self.max_requests = sys.maxsize  # asked once; it serves until its replacement is ready
            self.boot.ready.report("recycle", f"{counted(context.answered, 'request')} answered (max_requests)")
        if now < self._next_second:
            return False
        wall = time()
        context.gateway.renew_date(wall)
        # When the wall clock's second changes: the Date header has seconds (RFC 9110, 6.6.1).
        self._next_second = now + 1.0 - wall % 1.0
        words = context.slot.words
        words[scoreboard.CONNECTIONS] = len(self.connections())
        # Half of it is the past: one second tells little.
        busy_share = max(heartbeat.busy_share(now), self._occupancy())
        words[scoreboard.LOAD] = (words[scoreboard.LOAD] + round(1000 * min(1.0, busy_share))) // 2
        if words[scoreboard.DRAINING]:
            context.drain()
        self._mend()
        self._admission.renew(now)
        return True

    def _mend(self) -> None:
        """Repair changes of the application to the process; log the losses of the logs. Once a second."""
        # An application may set a limit just above its own depth, for the call of a deep recursion, and leave it.
        if sys.getrecursionlimit() < _LEAST_RECURSION:
            sys.setrecursionlimit(_LEAST_RECURSION)
        self.boot.ready.flush()
        self._signals.look()
        fill_standard_streams()
        tell_lost_messages()
        self._note_losses()

    def _note_losses(self) -> None:
        access, words = self.context.access, self.context.slot.words
        words[scoreboard.LOST_LINES] = lost_messages() + (access.lost if access is not None else 0)
        words[scoreboard.UNTOLD_LINES] = untold_messages() + (access.untold if access is not None else 0)
        words[scoreboard.WAITING_LINES] = access.waiting_lines() if access is not None else 0

    def _flush_logs(self) -> None:
        """Write the access log's buffer. The process is about to end, by os._exit()."""
        # Not close(): another thread may write to it at this moment.
        if self.context.access is not None:
            self.context.access.flush()
        self._note_losses()

    def _close_logs(self) -> None:
        if self.context.access is not None:
            self.context.access.close()
        self._note_losses()

    # ---- leaving ---------------------------------------------------------------------------------------

    def retire(self, reason: str) -> None:
        """Leave gracefully: drop nothing that has been accepted, or waits to be.

        Args:
            reason: why, for the log.
        """
        leaving = self._leaving
        if leaving.begun:
            return
        self.log.debug("worker %d retires: %s", self.pid, reason)
        leaving.begin(monotonic(), self.may_hand_over())
        if not leaving.at_once:  # INT or QUIT has come first, and that reason stays
            self.context.why_leaving = leaving.out_of_time
        if not leaving.hands_over:
            self._keep_idle()
        self.stop_accepting()

    def leave_for(self, reason: str) -> None:
        """Leave gracefully by this worker's own decision: the master starts a replacement. From any thread.

        Args:
            reason: why, for the log.
        """
        # The report first: the master takes this SIGTERM for its own worker's wish then, and starts the replacement.
        self.boot.ready.report("retiring", reason)
        # By a signal: it wakes the loop, which alone may touch the connections.
        kill(self.pid, signal.SIGTERM)

    def _keep_idle(self) -> None:
        """Announce the end in each response; keep idle connections for ``tls_linger``, unless the server stops."""
        # They cannot be moved, and to close them without a word would lose the requests that are on their way.
        words = self.boot.slot.words
        linger_s = min(self.cfg.tls_linger, self._leaving.deadline - monotonic())
        if words[scoreboard.STOPPING] == scoreboard.FOR_GOOD or linger_s < 0.0:
            linger_s = 0.0
        words[scoreboard.LINGERING] = linger_s > 0.0
        self.context.retire(linger_s)

    def _stop_handing_over(self) -> None:
        """Leave as without a channel from now on: no worker is left to take connections."""
        self._leaving.hands_over = False
        self._keep_idle()
        self.stop_accepting()

    def _cut_requests(self) -> None:
        """Account for each request under way when the worker ends. Raises nothing."""
        try:
            self._cut(running=True)
        except Exception:  # a handler of the log; the worker ends all the same
            self.log.exception("WS1705 worker %d: not all cut requests are in the access log: an exception:", self.pid)

    def _cut(self, running: bool) -> None:
        for connection in iter(self._next_queued, None):
            connection.cut_unrun()
        for connection in self.connections():
            connection.cut(running=running)
