"""What every worker does, whatever waits for its sockets: boot, signals, housekeeping, leaving.

Owns: `worker_main` (the worker process from fork to exit status) and `Worker`, the base of all classes.
Must not know: the master (it knows its pipes and its signals), HTTP.

A worker class decides two things only: who waits for the sockets, and where the application runs. It
implements `serve`, and calls `tick` at least once a second.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from _socket import socket as RawSocket
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from os import getpid, kill
from select import POLLIN, poll
from time import monotonic, time
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from wsgiserv.app.loader import leave_names_free, load_application, prepare_path
from wsgiserv.boot import WorkerBoot
from wsgiserv.config.tls import speaks_tls
from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus
from wsgiserv.hooks import call_hook
from wsgiserv.http.response import date_line
from wsgiserv.logs.access import open_access_log
from wsgiserv.logs.error import (
    ErrorStream,
    close_logs_in_child,
    lost_messages,
    reopen_error_log,
    say_lost_messages,
    untold_messages,
)
from wsgiserv.logs.files import log_files
from wsgiserv.net.client import Connection
from wsgiserv.net.handoff import Transferred
from wsgiserv.net.listener import Listener
from wsgiserv.net.peers import PeerNames
from wsgiserv.net.serving_context import ALL_STREAMED, NEVER_STREAMED, ServingContext, Timeouts
from wsgiserv.privileges import drop_privileges, set_home
from wsgiserv.process import (
    add_child_cleanup,
    fill_standard_streams,
    leave_if_child,
    release_standard_streams,
    unblock_last,
)
from wsgiserv.scoreboard import (
    CONNECTIONS,
    DRAINING,
    FOR_GOOD,
    HEARTBEAT,
    LINGERING,
    LOAD,
    LOST_LINES,
    PID,
    STARTED,
    STOPPING,
    UNTOLD_LINES,
    WAITING_LINES,
)
from wsgiserv.unpatched import reset_hubs
from wsgiserv.wording import counted
from wsgiserv.worker.active_requests import Call, other_threads, report, thread_calls
from wsgiserv.worker.crash_dump import catch_crashes, say
from wsgiserv.worker.helper_thread import cannot_start
from wsgiserv.worker.limits import head_limits
from wsgiserv.worker.registry import resolve_worker_class
from wsgiserv.worker.request_hooks import request_hooks
from wsgiserv.worker.runnable_time import runnable_time_s
from wsgiserv.worker.signals import SignalHandlers
from wsgiserv.wsgi.environ import base_environ
from wsgiserv.wsgi.forwarded import Forwarding
from wsgiserv.wsgi.gateway import GatewayContext
from wsgiserv.wsgi.readiness import Readiness

if TYPE_CHECKING:
    from wsgiserv.net.proxy_socket import ProxySocket
    from wsgiserv.net.tls import TLSSocket
    from wsgiserv.net.uwsgi_client import BarredConnection

__all__ = ["AT_ONCE", "ORPHANED", "ORPHAN_GRACE_S", "Worker", "worker_main"]

_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGABRT,
    signal.SIGTTOU,
    # These mean something to the master; a terminal sends them to the workers as well.
    signal.SIGHUP,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTTIN,
)
_STREAMING: Final = {"on": ALL_STREAMED, "off": NEVER_STREAMED}
# How many frames the server's own calls, reports of failures above all, may need on top of an application's.
_LEAST_RECURSION: Final = 200
# The master is gone: nobody is left to bound our leave.
ORPHAN_GRACE_S: Final = 1.0
_TURN_S: Final = 1.0
_LEAST_TURN_S: Final = 0.05
# How late a heartbeat may be before a turn is made for its sake; less than the master's HEARTBEAT_SLACK_S.
_TICK_LATE_S: Final = 0.25
# Why requests are cut, and how loud that is said: a fast stop breaks off what is under way, which was the wish.
AT_ONCE: Final = (logging.INFO, "the worker was told to leave at once (INT or QUIT)")
ORPHANED: Final = (logging.WARNING, "the master is gone")


class Worker(ABC):
    """One worker process.

    Args:
        boot: what the master gave it.

    Attributes:
        age, pid, ppid, cfg, log, sockets, booted, alive, aborted, nr, timeout: as in gunicorn's workers, for hooks.
        context: what its connections share; made by `load`.
        retiring, leave_now: whether it leaves gracefully, or at once.
        leave_by: until when it may take, ``time.monotonic()`` seconds.

    Public names are the ones that docs/custom-workers.md lists, and a test holds that. A method or an attribute of a
    subclass with any other name, without an underscore, replaces nothing here.
    """

    multithread: ClassVar[bool] = False
    # What stream_request_body = "auto" means here.
    streams: ClassVar[int] = NEVER_STREAMED
    # How many bytes a response of unknown length may run ahead of its client at least, whatever `stream_buffer` says.
    _least_stream_buffer: ClassVar[int] = 0

    def __init__(self, boot: WorkerBoot) -> None:
        settings = boot.settings
        self.boot = boot
        self.cfg = settings
        self.age = boot.age
        self.pid = getpid()
        self.ppid = boot.master_pid
        self.log: logging.Logger = boot.log
        self.sockets = [listener.sock for listener in boot.listeners]
        self.timeout = settings.timeout
        self.booted = False
        self.aborted = False
        self.retiring = False
        # Whether it leaves by handing its connections over; then they go on as if nothing were.
        self._handing_over = False
        # Whether SIGTERM has come, which the loop may not have seen yet.
        self._told_to_leave = False
        self.leave_now = False
        self.leave_by = float("inf")
        # When SIGTERM came, ``time.monotonic()`` seconds: the master counts `graceful_timeout` from there.
        self._told_at: float | None = None
        # When all that could run a request last made progress, while none of it is free; else None.
        self._stalled_since: float | None = None
        self.wsgi: Callable[..., Any] | None = None
        self.context: ServingContext
        self._next_second = 0.0
        # The longest sleep of the loop. It bounds how far apart heartbeats are, which a short `timeout` needs closer.
        timeout_s = boot.settings.timeout
        self._turn_s = min(_TURN_S, max(timeout_s / 4, _LEAST_TURN_S)) if timeout_s else _TURN_S
        # When a turn must be made to its end, in time for the next heartbeat.
        self._tick_due = 0.0
        # When `LOAD` was last measured, and what this process had wanted of the processor by then; seconds.
        self._load_at = monotonic()
        self._load_wanted = runnable_time_s()
        self._seconds = boot.slot.seconds
        self.max_requests = settings.max_requests or sys.maxsize
        if settings.max_requests and settings.max_requests_jitter:
            from random import randint

            self.max_requests += randint(0, settings.max_requests_jitter)
        self._signals = SignalHandlers(
            self.log,
            _SIGNALS,
            {
                signal.SIGTERM: self._term,
                signal.SIGINT: self._interrupt_boot,
                signal.SIGQUIT: self._interrupt_boot,
                signal.SIGTTOU: self._trace,
            },
            {signal.SIGABRT: self._abort},
        )
        self._wakeup, self._wakeup_writer = self._signals.reader, self._signals.writer
        self._reloader: Any = None
        # The files that the master has read.
        self._masters_files: Collection[str] = ()
        # Whether it cannot boot, and is about to exit by itself.
        self._has_failed = False
        # Whether worker_exit has been called, or is being called.
        self._exit_hook_called = False
        self._failed_import: ApplicationError | None = None
        # Puts TLS over a client's socket.
        self._secure: Callable[[RawSocket, dict[str, str]], TLSSocket] | None = None
        # Until when its context is in use, ``time.monotonic()`` seconds.
        self._secure_until = float("inf")
        # Who may, or must, send a PROXY header first.
        self._proxies: PeerNames | None = None
        # Who may speak uwsgi, where that is spoken.
        self._uwsgi_peers: PeerNames | None = None
        # Imported when a setting asks for them.
        self._proxied: type[ProxySocket]
        self._barred: type[BarredConnection]
        self._connection: Callable[..., Connection] = Connection

    # ---- what a class implements ---------------------------------------------------------------------

    @abstractmethod
    def serve(self) -> None:
        """Serve connections until there is nothing left to do: `retiring` and no connection, or `leave_now`."""

    @abstractmethod
    def stop_accepting(self) -> None:
        """Take no new connection, but first all that wait in the backlog. Called once, when retiring begins."""

    def may_hand_over(self) -> bool:
        """Whether connections can go to another worker of this server. From any thread, at any time."""
        return False

    def _stop_handing_over(self) -> None:
        """Nobody is left to take connections: from now on leave as without a channel."""
        self._handing_over = False
        self._keep_idle()
        self.stop_accepting()

    @abstractmethod
    def connections(self) -> list[Connection]:
        """Return the open connections."""

    def calls(self) -> list[Call]:
        """Return the requests in the application now, oldest first; for reports."""
        return thread_calls()

    def other_stacks(self) -> list[str]:
        """Return what runs besides the requests, each with its name and stack; for reports."""
        return other_threads()

    # ---- booting ---------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the worker is to go on (gunicorn's name)."""
        return not (self.retiring or self.leave_now)

    @property
    def nr(self) -> int:
        """Requests answered (gunicorn's name)."""
        return self.context.answered

    @classmethod  # noqa: B027 - most classes have nothing to patch
    def patch(cls, log: logging.Logger, in_master: bool) -> None:
        """Called before the application is imported for all workers at once (``preload_app``): monkey patching.

        Args:
            log: the error log.
            in_master: whether this process goes on as the master; else it is a zygote, which only forks workers.
        """

    def prepare(self) -> None:  # noqa: B027 - most classes have nothing to prepare
        """Called in the new process before anything of the application is imported (monkey patching)."""

    def _load_certificates(self) -> None:
        """Take the master's TLS context, or make one while the key may still be read. Called in the new process.

        Raises ConfigError.
        """
        if not speaks_tls(self.cfg):
            return
        from wsgiserv.net.tls import TLSSocket
        from wsgiserv.net.tls_context import make_context

        if self.boot.tls_contexts is not None:
            self._use_context_of(monotonic())
        else:
            self._secure = partial(TLSSocket, make_context(self.cfg))

    def _use_context_of(self, now: float) -> None:
        """Use the master's context of this day for new connections; those that are open keep theirs."""
        from wsgiserv.net.tls import TLSSocket

        contexts = self.boot.tls_contexts
        assert contexts is not None
        context, self._secure_until = contexts.current(now)
        self._secure = partial(TLSSocket, context)

    def load(self) -> None:
        """Load the application and make what the connections share. Raises ApplicationError, ConfigError."""
        settings, boot = self.cfg, self.boot
        if settings.reload:
            self._make_reloader()
        self.wsgi = self._application()
        self._peers = PeerNames(settings.forwarded_allow_ips)
        if settings.proxy_protocol != "off":
            from wsgiserv.net.proxy_socket import ProxySocket

            self._proxies = PeerNames(settings.proxy_allow_ips)
            self._proxied = ProxySocket
        access = open_access_log(settings, self.log)
        gateway = GatewayContext(self.log, date_line(time()), settings.sendfile)
        words = boot.slot.words
        self.context = context = ServingContext(
            app=(
                Readiness(self.wsgi, settings.readiness_path, lambda: words[DRAINING] or words[STOPPING])
                if settings.readiness_path
                else self.wsgi
            ),
            limits=head_limits(settings),
            timeouts=Timeouts(
                header=settings.header_timeout,
                body=settings.body_timeout,
                body_rate=settings.body_min_rate,
                send=settings.send_timeout,
                keepalive=settings.keepalive,
            ),
            body_limit=settings.limit_request_body,
            body_memory=settings.body_buffer_size,
            spool_dir=settings.spool_dir,
            log=self.log,
            access=access,
            gateway=gateway,
            slot=boot.slot,
            forwarding=(
                Forwarding(settings.forwarded_headers, self._peers.names)
                if settings.forwarded_headers
                else None
            ),
            streaming=_STREAMING.get(settings.stream_request_body, self.streams),
            stream_buffer=max(settings.stream_buffer, self._least_stream_buffer),
        )
        if settings.protocol == "uwsgi":
            from wsgiserv.http.uwsgi import UwsgiReader
            from wsgiserv.net.uwsgi_client import BarredConnection, UwsgiConnection

            self._uwsgi_peers = PeerNames(settings.uwsgi_allow_ips)
            self._barred = BarredConnection
            self._connection = partial(UwsgiConnection, UwsgiReader(context.parser))
        context.pre_request, context.post_request = request_hooks(self, settings, self.log)
        errors = ErrorStream(self.log)
        self._bases = {
            listener: base_environ(
                server_name=listener.server_name,
                server_port=listener.server_port,
                url_scheme="https" if speaks_tls(settings) else "http",
                errors=errors,
                multithread=self.multithread,
                multiprocess=(settings.workers_max or settings.workers) > 1,
            )
            for listener in boot.listeners
        }
        # How a sibling knows a listener: by its address, whatever is spoken there.
        self._bases_by_address = {
            _address_of(listener): self._bases[listener] for listener in reversed(boot.listeners)
        }
        self._addresses = {id(base): address for address, base in self._bases_by_address.items()}

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

            self._failed_import = error
            self.log.error("%s%s", error, f"\n{error.traceback}" if error.traceback else "")
            return broken_application(error)

    def _admit(self, sock: RawSocket, address: Any, listener: Listener) -> Connection:
        """Make a connection of an accepted socket; the class gives its loop in `loop`."""
        peer, name, trusted = self._peers.of(address)
        make, base = self._connection, self._bases[listener]
        if self._uwsgi_peers is not None and not self._uwsgi_peers.of(address)[2]:
            return self._barred(self.context, self.loop, sock, base, peer, name, trusted)
        secure = self._secure
        client = sock if secure is None else secure(sock, peer)
        if self._proxies is None or not self._proxies.of(address)[2]:
            return make(self.context, self.loop, client, base, peer, name, trusted)
        proxied = self._proxied(sock, client, self.cfg.proxy_protocol, peer)
        connection = make(self.context, self.loop, proxied, base, peer, name, trusted)

        def hand_over(inner: RawSocket | TLSSocket) -> None:
            connection.sock = inner
            if "PROXY_PROTOCOL" in peer:  # from now on the client has one name, in all logs and in the status
                connection.peer_name = peer["REMOTE_ADDR"].encode("latin-1")

        proxied.hand_over = hand_over
        return connection

    def _adopt(self, handed: Transferred) -> Connection | None:
        """Make a connection of what a sibling has handed over, to go on where that has left off.

        Returns:
            None, and the socket is closed, when the client has left, or HTTP is not what is spoken here.
        """
        sock, luggage = handed.sock, handed.luggage
        try:
            address = sock.getpeername()
        except OSError:
            sock.close()
            return None
        if self._uwsgi_peers is not None:
            sock.close()
            return None
        base = self._bases_by_address.get(handed.listener)
        if base is None:  # a reload has given that address up
            base = self._bases[self.boot.listeners[0]]
        if self._secure is not None:
            base = {**base, "wsgi.url_scheme": "http"}  # TLS has come with a reload, and this one is older
        # Whether the peer is trusted is this configuration's word, not the sender's.
        trusted = self._peers.of(address)[2]
        connection = Connection(self.context, self.loop, sock, base, luggage.peer, luggage.peer_name, trusted)
        connection.restore(luggage)
        return connection

    loop: Any  # the `Loop` of the connections

    def _make_reloader(self) -> None:
        """Note how the files are, before the application is imported (``reload``). Raises ConfigError."""
        from wsgiserv.config.file import last_read
        from wsgiserv.worker.reloader import Reloader, note_imports

        settings, noted = self.cfg, dict(last_read)
        self._masters_files = noted.keys()
        note_imports()
        self._reloader = Reloader(
            self._changed, [*settings.reload_extra_files, *noted], settings.reload_engine, noted=noted
        )

    def _start_reloader(self) -> None:
        """Watch the code for changes (``reload``). Raises RuntimeError when there is no thread to be had."""
        if self._failed_import is not None:
            self._reloader.watch_broken(self._failed_import)
        self._reloader.start()

    def _changed(self, path: str) -> None:
        """Called by the reloader's thread."""
        self.log.info("%s has changed: reloading", path)
        if path in self._masters_files:
            kill(self.ppid, signal.SIGHUP)
        else:
            self.leave_for(f"{path} has changed")

    def _let_go(self) -> None:
        """Let go of the application, at the end of the process.

        The signals' handlers and the helpers' threads hold this worker until the interpreter is gone. What the
        application has must not: a file in a reference cycle of it would not be flushed.
        """
        self.wsgi = self.boot.application = None
        if self.booted:
            self.context.app = _gone

    def _close_sockets(self) -> None:
        """Close what is still open, at the end of the process: Python would warn of each, in some order of its end."""
        self._wakeup.close()
        self._wakeup_writer.close()
        for listener in self.boot.listeners:
            listener.close()
        if self.boot.handoff is not None:
            self.boot.handoff.close()
        log_files.close()

    def close_in_child(self) -> None:
        """Close what a child of the application must not hold; nothing of it is shut down. Called in that child."""
        self._wakeup.close()
        self._wakeup_writer.close()
        context: ServingContext | None = getattr(self, "context", None)  # none while booting
        if context is not None:
            context.close_in_child()
        self._seconds = self.boot.slot.seconds

    # ---- signals ---------------------------------------------------------------------------------------

    def _install_signals(self) -> None:
        """Queue the signals of the master and of people; the loop reads them from `wakeup_fd`."""
        self._signals.install()
        catch_crashes(self.boot.crash_dump_fd)

    @property
    def wakeup_fd(self) -> int:
        """Readable when a signal has come: then call `take_signals`."""
        return self._wakeup.fileno()

    def take_signals(self) -> None:
        """Act on the signals that have come. What one of them raises does not cost the others."""
        failure: Exception | None = None
        for number in self._signals.take():
            try:
                self._act_on(number)
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    def _act_on(self, number: int) -> None:
        if number == signal.SIGTERM:
            # The master knows, unless somebody else has sent it.
            self.boot.ready.report("retiring", "SIGTERM was sent to it")
            self.retire("told to stop")
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self.context.why_leaving = AT_ONCE
            # The hook first: this may be any thread, and the process can end as soon as the main one is told.
            call_hook(self.log, "worker_int", self.cfg.worker_int, self)
            self.leave_now = True
        elif number == signal.SIGUSR1:
            reopen_error_log()
            if self.context.access is not None:
                self.context.access.reopen()

    def _term(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM is queued like the others; but the response in the making is to say ``Connection: close``, unless
        the connection goes to another worker.

        While the worker boots there is nothing to finish, and an import may take its time: it exits here.
        """
        if self.booted:
            self._told_to_leave = True
            if self._told_at is None:
                self._told_at = monotonic()
            if not self.may_hand_over():
                self.context.gateway.keep_open = False
        else:
            self._exit_while_booting()

    def _interrupt_boot(self, number: int, frame: FrameType | None) -> None:
        """SIGINT and SIGQUIT are queued, and acted on in the loop. While the worker boots there is no loop yet."""
        if not self.booted:
            self._exit_while_booting("worker_int", self.cfg.worker_int)

    def _exit_while_booting(self, name: str = "", hook: Callable[..., Any] | None = None) -> None:
        """Exit in a signal handler, with the hooks that a worker which has booted would call.

        An exception would not do: an application may catch it around an import. Does nothing when the worker has
        failed to boot, and is about to exit anyway.
        """
        if self._exit_hook_called or self._has_failed:
            return
        try:
            call_hook(self.log, name, hook, self)
            self._call_exit_hook()
        finally:
            release_standard_streams()
            os._exit(ExitStatus.OK)

    def _await_exit(self) -> None:  # noqa: B027 - in most classes a signal handler that exits does not return
        """Do not go on when the worker is exiting elsewhere. In the main thread."""

    def _report_failure(self, reason: str, status: int, traceback: str = "") -> None:
        """Tell the master that the worker cannot boot. What the application has registered at `atexit` is still called,
        though the master stops all workers now."""
        self._has_failed = True
        self.boot.ready.report("failed", reason, traceback, status)

    def _call_exit_hook(self) -> None:
        """Call ``worker_exit``, once in this process."""
        if not self._exit_hook_called:
            self._exit_hook_called = True
            call_hook(self.log, "worker_exit", self.cfg.worker_exit, self.boot.server, self)

    def _trace(self, number: int, frame: FrameType | None) -> None:
        """SIGTTOU: tell the master what runs now, and where (``wsgiservctl trace``). Nothing is disturbed by it."""
        self.boot.ready.report("trace", report(self.calls(), self.other_stacks(), monotonic()))

    def _abort(self, number: int, frame: FrameType | None) -> None:
        """SIGABRT: the master has waited for `timeout`. The loop will not read a queue: act here.

        What is said goes to the master's certificate first: logging may wait for a lock that the culprit holds.
        """
        self.aborted = True
        text = report(self.calls(), self.other_stacks(), monotonic())
        if say(self.boot.crash_dump_fd, text):
            self.log.critical("worker %d is aborted; the master tells what it was doing", self.pid)
        else:
            self.log.critical("worker %d is aborted\n%s", self.pid, text)
        call_hook(self.log, "worker_abort", self.cfg.worker_abort, self)
        self._call_exit_hook()
        context: ServingContext | None = getattr(self, "context", None)  # none while booting
        if context is not None:
            # What is in the application stands on the scoreboard, and is the master's to tell; what waits does not.
            context.why_leaving = (logging.ERROR, "its worker is aborted (SIGABRT)")
            with suppress(Exception):
                for connection in self._waiting_requests():
                    connection.cut_unrun()
                for connection in self.connections():
                    connection.cut(running=False)
            if context.access is not None:
                context.access.flush()
            self._note_losses()
        os._exit(1)

    def lifeline_ended(self) -> None:
        """The master is gone: serve what is under way, shortly, and leave."""
        if not self.retiring or self._handing_over or self.context.linger_s:
            self.log.error("the master (pid %d) is gone; worker %d leaves", self.ppid, self.pid)
            self.retiring = True
            self.leave_by = monotonic() + ORPHAN_GRACE_S
            self.context.why_leaving = ORPHANED
            self._stop_handing_over()
            for connection in self.connections():
                if connection.is_idle:
                    connection.close()

    # ---- housekeeping ----------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """The heartbeat and what else each loop turn owes; True once a second, when deadlines are to be swept.

        Args:
            now: ``time.monotonic()``.
        """
        self._seconds[HEARTBEAT] = now if self._stalled_since is None else self._stalled_since
        self._tick_due = now + self._turn_s + _TICK_LATE_S
        context = self.context
        if context.access is not None:
            context.access.flush()
        if context.answered >= self.max_requests and not self.retiring:
            self.max_requests = sys.maxsize  # asked once; it serves until its successor is ready
            self.boot.ready.report(
                "recycle", f"{counted(context.answered, 'request')} answered (max_requests)"
            )
        if now < self._next_second:
            return False
        wall = time()
        gateway = context.gateway
        gateway.date_line = date_line(wall)
        gateway.date_until = wall // 1.0 + 1.0
        self._next_second = now + 1.0 - wall % 1.0
        context.words[CONNECTIONS] = len(self.connections())
        # Half of it is the past: one second tells little.
        context.words[LOAD] = (context.words[LOAD] + round(1000 * self._busy_share(now))) // 2
        if context.words[DRAINING] and not context.draining:
            context.drain()
        self._mend()
        if now >= self._secure_until:
            self._use_context_of(now)
        return True

    def _mend(self) -> None:
        """Once a second: undo what the application has taken from the server, tell what the logs have lost."""
        if sys.getrecursionlimit() < _LEAST_RECURSION:
            sys.setrecursionlimit(_LEAST_RECURSION)
        self.boot.ready.flush()
        self._signals.look()
        fill_standard_streams()
        say_lost_messages()
        self._note_losses()

    def _note_losses(self) -> None:
        context = self.context
        access, words = context.access, context.words
        words[LOST_LINES] = lost_messages() + (access.lost_lines() if access is not None else 0)
        words[UNTOLD_LINES] = untold_messages() + (access.untold_lines() if access is not None else 0)
        words[WAITING_LINES] = access.waiting_lines() if access is not None else 0

    def _busy_share(self, now: float) -> float:
        """Return how much of the time since the last call there was something to do: 0.0 to 1.0."""
        wanted = runnable_time_s()
        share = (wanted - self._load_wanted) / max(now - self._load_at, 0.001)
        self._load_at, self._load_wanted = now, wanted
        return min(1.0, max(share, self._occupancy()))

    def _occupancy(self) -> float:
        """Return how much is taken of what can run requests, 0.0 to 1.0; 0.0 where only the processor counts."""
        return 0.0

    # ---- leaving ---------------------------------------------------------------------------------------

    @property
    def _out_of_time(self) -> tuple[int, str]:
        """What is said of requests that a graceful leave does not wait for any longer; see `ServingContext`."""
        limit_s = self.cfg.graceful_timeout
        return (logging.WARNING, f"the worker did not retire within graceful_timeout ({limit_s:g} s)")

    def _waiting_requests(self) -> Iterator[Connection]:
        """Take out of the queue, one by one, the connections whose requests are complete and wait for their turn."""
        return iter(())

    def _cut_requests(self) -> None:
        """Account for each request that is still under way when the worker ends. Raises nothing."""
        try:
            for connection in self._waiting_requests():
                connection.cut_unrun()
            for connection in self.connections():
                connection.cut()
        except Exception:  # a handler of the log; the worker ends all the same
            self.log.exception("the requests that worker %d cuts are not all in the access log", self.pid)

    def retire(self, reason: str) -> None:
        """Leave gracefully: nothing that has been accepted, or waits to be, is dropped."""
        if self.retiring:
            return
        self.log.debug("worker %d retires: %s", self.pid, reason)
        self.retiring = True
        self.leave_by = (self._told_at or monotonic()) + self.cfg.graceful_timeout
        if not self.leave_now:
            self.context.why_leaving = self._out_of_time
        self._handing_over = self.may_hand_over()
        if not self._handing_over:
            self._keep_idle()
        self.stop_accepting()

    def _keep_idle(self) -> None:
        """Announce the end in each response; keep idle connections for `tls_linger`, unless the whole server stops.

        They cannot be moved, and to close them without a word would lose the requests that are on their way.
        """
        words = self.boot.slot.words
        linger_s = min(self.cfg.tls_linger, self.leave_by - monotonic())
        if words[STOPPING] == FOR_GOOD or linger_s < 0.0:
            linger_s = 0.0
        words[LINGERING] = linger_s > 0.0
        self.context.retire(linger_s)

    def _is_orphan(self) -> bool:
        """Whether the master has gone, perhaps long ago: imports may take their time."""
        poller = poll()
        poller.register(self.boot.lifeline, POLLIN)
        return bool(poller.poll(0))

    def leave_for(self, reason: str) -> None:
        """Leave gracefully by this worker's own decision: the master starts a successor. From any thread."""
        self.boot.ready.report("retiring", reason)
        kill(self.pid, signal.SIGTERM)

    def _main(self) -> int:
        """Boot and serve; return the exit status."""
        boot, log = self.boot, self.log
        boot.ready.report("loading")
        boot.slot.words[PID] = self.pid
        boot.slot.seconds[STARTED] = monotonic()
        refused: BootError | None = None
        try:
            self.load()
            self._signals.look()
            if self.cfg.warmup and self._failed_import is None:
                from wsgiserv.worker.warmup import warm_up

                warm_up(self.context, self.cfg.warmup, next(iter(self._bases.values())))
            if self.cfg.reload:
                try:
                    self._start_reloader()
                except RuntimeError as error:
                    raise cannot_start("wsgiserv-reloader", error) from error
        except ApplicationError as error:
            self._report_failure(str(error), ExitStatus.APPLICATION, error.traceback)
            return ExitStatus.APPLICATION
        except ConfigError as error:
            self._report_failure(str(error), ExitStatus.CONFIG)
            return ExitStatus.BOOT
        except BootError as error:
            self._report_failure(str(error), ExitStatus.BOOT)
            return ExitStatus.BOOT
        except BaseException as error:
            # Else the master knows the exit status only, which would be the application's os._exit().
            leave_if_child(error)
            from wsgiserv.app import diagnostics as appadvice

            log.error("worker %d cannot boot", self.pid, exc_info=error)
            self._report_failure(f"booting raised {appadvice.in_words(error)}", ExitStatus.BOOT)
            return ExitStatus.BOOT
        self._await_exit()
        self.booted = True
        unblock_last()
        call_hook(log, "post_worker_init", self.cfg.post_worker_init, self)
        self._signals.serve()
        if self._is_orphan():
            # Whoever came to us now would soon be sent away, where the old master's workers may serve (an upgrade).
            log.error("the master (pid %d) is gone; worker %d leaves", self.ppid, self.pid)
            return ExitStatus.BOOT
        try:
            self.serve()
        except BootError as error:  # before it was ready
            refused = error
        finally:
            if self.context.access is not None:
                self.context.access.close()
            self._note_losses()
        if refused is not None:
            self._report_failure(str(refused), ExitStatus.BOOT)
            return ExitStatus.BOOT
        return ExitStatus.OK


def _address_of(listener: Listener) -> str:
    return listener.url.partition("://")[2] or listener.url


def _gone(environ: dict[str, Any], start_response: Callable[..., Any]) -> NoReturn:
    raise RuntimeError("the worker has ended")


def worker_main(boot: WorkerBoot) -> int:
    """Be a worker, from just after the fork to the exit status. Called by the master's child.

    Args:
        boot: the values the worker starts with.

    Returns:
        The status to exit with: 0 stopped as told, 3 or 4 could not boot.
    """
    settings, log = boot.settings, boot.log
    add_child_cleanup(boot.close_in_child)
    add_child_cleanup(close_logs_in_child)
    reset_hubs()
    worker: Worker | None = None
    refused: ConfigError | OSError | None = None
    failure: BaseException | None = None
    status: int = ExitStatus.BOOT
    try:
        # A preloaded application has been loaded in the directory that this process has inherited: after a link has
        # been moved to another release, that one's files are not this code's.
        if boot.application is None and not prepare_path(settings.chdir, settings.pythonpath):
            log.info("%s does not exist any more; worker %d stays where it is", settings.chdir, getpid())
        worker_type = resolve_worker_class(settings.worker_class, settings.threads)
        worker = worker_type(boot)
        add_child_cleanup(worker.close_in_child)
        worker._install_signals()
        unblock_last()
        worker.prepare()
        worker._signals.guard()
        worker._load_certificates()
        call_hook(log, "post_fork", settings.post_fork, boot.server, worker)
        set_home(settings, os.environ)
        drop_privileges(settings)
    except (ConfigError, OSError) as error:
        refused = error
    except BaseException as error:
        failure = error
    if refused is not None:
        reason = ExitStatus.CONFIG if isinstance(refused, ConfigError) else ExitStatus.BOOT
        boot.ready.report("failed", str(refused), "", reason)
    elif worker is not None and failure is None:
        try:
            status = worker._main()
        except BaseException as error:
            failure = error
    if worker is not None:
        worker._await_exit()
        # Not in a `finally`: the hook would find what has ended the worker in sys.exc_info().
        worker._call_exit_hook()
        worker._signals.disarm()
        worker._close_sockets()
        worker._let_go()
        release_standard_streams()
    if failure is not None:
        raise failure
    return status
