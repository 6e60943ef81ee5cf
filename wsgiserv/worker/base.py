"""The base of all worker classes: loading, the heartbeat, and leaving.

A worker class decides two things: how to wait for the sockets, and where to run the application. It implements `serve`,
and calls `tick` at least once a second. docs/custom-workers.md lists the public names for classes of users.
"""

from __future__ import annotations

import signal
import sys
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from os import kill
from time import monotonic, time
from typing import Any, ClassVar, Final

from wsgiserv import scoreboard
from wsgiserv.app.loader import prepare_path
from wsgiserv.boot import WorkerBoot
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ApplicationError
from wsgiserv.hooks import call_hook
from wsgiserv.library_first import leave_names_free
from wsgiserv.logs.access import open_access_log
from wsgiserv.logs.error import lost_messages, reopen_error_log, tell_lost_messages, untold_messages
from wsgiserv.logs.files import log_files
from wsgiserv.net.client import Connection
from wsgiserv.net.peers import PeerNames
from wsgiserv.net.serving_context import NEVER_STREAMED, Loop
from wsgiserv.process import fill_standard_streams
from wsgiserv.wording import counted
from wsgiserv.worker.helper_thread import needs_thread
from wsgiserv.worker.hook_worker import HookWorker
from wsgiserv.worker.leaving import ABORTED, AT_ONCE, ORPHANED, Leaving
from wsgiserv.worker.mount import mounted_as
from wsgiserv.worker.paste import application_of, paste_files
from wsgiserv.worker.request_hooks import request_hooks
from wsgiserv.worker.serving import Admission, serving_context
from wsgiserv.wsgi.readiness import answer_readiness
from wsgiserv.wsgi.run import run_app

# How many frames the server's own calls, reports of failures above all, may need on top of an application's.
_LEAST_RECURSION: Final = 200


class Worker(HookWorker):
    """One worker process.

    Args:
        boot: its starting values, from the master.

    Attributes:
        wsgi: the application, once it is loaded.
        context: the values shared by its connections.
        max_requests: after how many requests it asks to be replaced, with its jitter.

    Public names are the ones listed in docs/custom-workers.md, and a test checks it. A method or an attribute of a
    subclass with any other name, without an underscore, replaces nothing here.
    """

    multithread: ClassVar[bool] = False
    # How many workers of the class fit a processor (``workers = "auto"``); where that is several, one more of all.
    workers_per_cpu: ClassVar[int] = 1
    # The meaning of stream_request_body = "auto".
    streams: ClassVar[int] = NEVER_STREAMED
    # How many bytes a response of unknown length may run ahead of its client at least, whatever `stream_buffer` says.
    _least_stream_buffer: ClassVar[int] = 0
    loop: Loop

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        settings = self.settings
        self._wsgi: Callable[..., Any] | None = None
        # The access log and the functions around each request, once the application is loaded.
        self._around: tuple[Any, ...] | None = None
        self._preparing: set[Connection] = set()
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
        self._leaving = Leaving(settings.graceful_timeout)
        self._next_second = 0.0
        self._reloader: Any = None
        # A page says why the application could not be imported (``reload``).
        self._is_broken = False

    # ---- what a class implements ---------------------------------------------------------------------

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

    @classmethod
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

    # ---- loading -----------------------------------------------------------------------------------------

    @property
    def wsgi(self) -> Callable[..., Any] | None:
        """The application, once it is loaded (gunicorn's name). What a hook puts here is served from then on."""
        return self._wsgi

    @wsgi.setter
    def wsgi(self, app: Callable[..., Any] | None) -> None:
        self._wsgi = app
        if self._around is not None:
            self._begin_application()

    @property
    def nr(self) -> int:
        """Requests that the application has been called for (gunicorn's name)."""
        return self.context.answered + len(self.context.running) - len(self._preparing)

    @property
    def reloader(self) -> Any:
        """What looks for changed files (`reload`), or None (gunicorn's name)."""
        return self._reloader

    @property
    def _is_leaving(self) -> bool:
        return self.retiring or self.leave_now

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
        settings = self.settings
        self._load_wsgi()
        self._around = (open_access_log(settings, self.log), *request_hooks(self, settings, self.log, self._preparing))
        self._begin_application()
        self.check_patched("the application")  # its import may have replaced the threads

    def _load_wsgi(self) -> None:
        """Load the application into `wsgi`. Raises ApplicationError, BootError, ConfigError."""
        # The hook post_fork may have loaded it, or put another one there.
        self._wsgi = self.app.wsgi()

    def _begin_application(self) -> None:
        """Serve the application from now on."""
        app, words = self._wsgi, self.boot.slot.words
        assert app is not None
        assert self._around is not None
        if self._serves_wsgi_websocket():
            from wsgiserv.net.websocket_gateway import WebSocketGateway

            app = WebSocketGateway(app, self.settings.limit_request_body, self.log)
        if self.settings.readiness_path:
            app = answer_readiness(
                app, self.settings.readiness_path, lambda: words[scoreboard.DRAINING] or words[scoreboard.STOPPING]
            )
        self.context.begin(mounted_as(self.settings, app, self.log), *self._around)

    def _serves_wsgi_websocket(self) -> bool:
        return self.settings.wsgi_websocket

    def _import_application(self) -> Callable[..., Any]:
        settings = self.settings
        if settings.reload and self._reloader is None:
            self._make_reloader()
        prepare_path(settings.chdir, settings.pythonpath)
        leave_names_free()
        try:
            return application_of(settings)
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
        if self.settings.warmup and not self._is_broken:
            from wsgiserv.worker.warmup import warm_up

            warm_up(self.context, self.settings.warmup, self._admission.first_base)
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
        files = [*self.settings.reload_extra_files, *read_by_master, *paste_files(self.settings)]
        self._reloader = Reloader(changed, files, self.settings.reload_engine, noted=read_by_master)

    def _let_go(self) -> None:
        """Drop the application, at the end of the process."""
        # The signals' handlers and the helper threads hold this worker until the interpreter ends. Were the application
        # held with it, a file in a reference cycle of it would not be flushed.
        self._wsgi = self.boot.application = self.app.callable = self._around = None
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
        """As of the base; detach from the scoreboard and the access log, too."""
        super().close_in_child()
        self.context.close_in_child()
        self._heartbeat.close_in_child(self.boot.slot)

    # ---- signals ---------------------------------------------------------------------------------------

    def _act_on(self, number: int) -> None:
        if number == signal.SIGTERM:
            # The master knows it, unless another process has sent the signal.
            wish = "worker.alive was set to False" if self._wants_to_leave else "SIGTERM was sent to it"
            self.boot.ready.report("retiring", wish)
            self.retire("told to stop")
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self.context.cut_because(AT_ONCE)
            # The hook first: this may be any thread, and the process can end as soon as the main one sees the flag.
            call_hook(self.log, "worker_int", self.settings.worker_int, self)
            self._leaving.leave_at_once()
        elif number == signal.SIGUSR1:
            reopen_error_log()
            if self.context.access is not None:
                self.context.access.reopen()

    def _leave_soon(self) -> None:
        self._leaving.note_signal(monotonic())
        # The response in the making is to say ``Connection: close``, unless its connection goes to another worker.
        if not self.may_hand_over():
            self.context.gateway.allow_keep_alive(False)

    def _account_for_waiting(self) -> None:
        # The requests in the application stand on the scoreboard, and the master logs those.
        self.context.cut_because(ABORTED)
        with suppress(Exception):
            self._cut(running=False)
        self._flush_logs()

    def lifeline_ended(self) -> None:
        """Answer the requests under way within a second, and leave: the master is gone."""
        leaving = self._leaving
        # A worker that only finishes its requests has a deadline already; else it may wait for what no longer comes.
        if not leaving.begun or leaving.hands_over or self.context.linger_s:
            self._warn_of_lost_master()
            leaving.orphan(monotonic())
            self.context.cut_because(ORPHANED)
            self._stop_handing_over()
            self.context.end_upgrades()
            for connection in self.connections():
                if connection.is_idle:
                    connection.close()

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
        words[scoreboard.DETACHED] = len(context.upgrades)
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
        if self.context.access is not None:
            self.context.access.look()
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
            self.context.cut_because(leaving.out_of_time)
        if not leaving.hands_over:
            self._keep_idle()
        self.stop_accepting()
        self.context.end_upgrades()

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
        linger_s = min(self.settings.tls_linger, self._leaving.deadline - monotonic())
        if words[scoreboard.STOPPING] == scoreboard.FOR_GOOD or linger_s < 0.0:
            linger_s = 0.0
        words[scoreboard.LINGERING] = linger_s > 0.0
        self.context.retire(linger_s)

    def _stop_handing_over(self) -> None:
        """Leave as without a channel from now on: no worker is left to take connections."""
        self._leaving.stop_handing_over()
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
