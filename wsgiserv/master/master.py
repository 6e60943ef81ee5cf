"""The master: binds, forks, supervises, answers signals, cleans up.

Single thread. Every event comes through one poll(2): signals as numbers in a socket, workers' reports in their pipes. A
configuration file may have patched gevent in, so the functions for processes and descriptors are bound at import.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from os import close
from select import POLLIN, poll
from signal import (
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    SIGTTIN,
    SIGTTOU,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
    Signals,
)
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, Literal, assert_never

from wsgiserv.boot import WorkerBoot
from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus, WsgiservError
from wsgiserv.hooks import call_hook
from wsgiserv.logs.error import (
    close_logs_in_child,
    lost_messages,
    reopen_error_log,
    tell_lost_messages,
)
from wsgiserv.logs.files import log_files
from wsgiserv.logs.output import renew_standard_streams
from wsgiserv.logs.streams import guard_standard_streams
from wsgiserv.master.commands import MasterCommands, most_workers
from wsgiserv.master.control import ControlServer, Done, control_server
from wsgiserv.master.daemonize import Foreground, daemonize
from wsgiserv.master.policy import Abandon, GiveUp, Promote, Send, Spawn, Stopped, Target, Wait, plan
from wsgiserv.master.recycling import Recycler
from wsgiserv.master.reload import Reload
from wsgiserv.master.resources import Preload, ServerResources
from wsgiserv.master.signals import SignalQueue, StartInterrupt, raise_if_dropped
from wsgiserv.master.spawn import ForkedChild
from wsgiserv.master.starting import start_server
from wsgiserv.master.status import ServerFacts, ServerState, status_line, status_of
from wsgiserv.master.systemd import ServiceManager
from wsgiserv.master.upgrade import TOLD_TO_STOP, Invocation, OldMaster, Upgrade
from wsgiserv.master.workers import Workers
from wsgiserv.process import add_child_cleanup, arm, release_standard_streams
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded
    from wsgiserv.config.settings import Settings
    from wsgiserv.master.hooks_server import HookServer
    from wsgiserv.master.load import Scaler
    from wsgiserv.master.policy import Fleet

# The longest sleep: the master reads heartbeats, and reaps children, at least this often.
_TURN_S: Final = 1.0
# A sleep that took so much longer than asked: the machine, or this process, was suspended.
_SUSPENDED_S: Final = 2.0


@dataclass
class _Shutdown:
    """The state of the shutdown.

    Attributes:
        how: empty while the server runs.
        error: the error that the process ends with, or None.
        drain_until: the end of the drain, ``time.monotonic()`` seconds; None while the server does not drain.
        after_upgrade: True when SIGTERM came during an upgrade: this master stops when that is decided.
    """

    how: Literal["", "graceful", "fast"] = ""
    error: WsgiservError | None = None
    drain_until: float | None = None
    after_upgrade: bool = False

    @property
    def has_begun(self) -> bool:
        """True from the begin of the drain on."""
        return bool(self.how) or self.drain_until is not None


class Master:
    """The master process.

    Args:
        settings: the configuration.
        notices: warnings about it, for the log.
        warnings: warnings about the start; a reload does not repeat them.
        reload_settings: reads the configuration again (SIGHUP); raises ConfigError.
        worker_main: runs a worker in the child, and returns its exit status.
        log: the error log.
        invocation: how this process was started, for the next master (SIGUSR2); None makes an upgrade impossible.
        old_master: the master whose sockets this one takes over, or None.
        preload_application: loads the application for `preload_app`; None: each worker loads it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        notices: Sequence[str],
        reload_settings: Callable[[], Loaded],
        worker_main: Callable[[WorkerBoot], int],
        log: logging.Logger,
        invocation: Invocation | None = None,
        old_master: OldMaster | None = None,
        preload_application: Preload | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._notices = [*notices, *warnings]
        self._reload_settings = reload_settings
        self._worker_main = worker_main
        self._log = log
        self._invocation = invocation
        self._old_master = old_master
        self._resources = ServerResources(settings, log, old_master, preload_application)
        self._manager = ServiceManager.from_environ(os.environ)
        self._foreground: Foreground | None = None
        self._shutdown = _Shutdown()
        self._resumed_at = 0.0
        self._announced = False
        # Made by the start:
        self._signals: SignalQueue
        self._workers: Workers
        self._reload: Reload
        self._recycler: Recycler
        self._upgrade: Upgrade
        self._scaler: Scaler | None = None
        self._control: ControlServer | None = None

    def run(self) -> int:
        """Serve until told to stop; return the exit status, which is 0.

        Raises ConfigError, BootError or ApplicationError when the server cannot start: the caller prints it and exits
        with its ``exit_status``. In a forked worker, and in the foreground process of a daemon, raises SystemExit, so
        that the process exits as any Python program does.
        """
        arm()  # a program that embeds the master has not
        try:
            return self._run()
        except ForkedChild as child:
            main = child.main
        # Outside of the handler: the master's frames are gone, and a worker's exceptions have no context.
        sys.exit(main(self._worker_main))

    def _run(self) -> int:
        interrupt = StartInterrupt()
        add_child_cleanup(self._close_in_child)
        add_child_cleanup(close_logs_in_child)
        try:
            self._start(interrupt)
        except KeyboardInterrupt:  # INT, TERM or QUIT
            interrupt.end()
            self._resources.clean_up()
            self._log.info("stopped while starting")
            self._fail_foreground(BootError("it was told to stop while it was starting."))
            self._fail_to_old_master()
            return ExitStatus.OK
        try:
            self._loop()
        except Exception:
            # A bug. The workers' lifelines end with this process; the service manager starts the server again.
            self._log.critical("WS1200 master: unexpected error: shutting down", exc_info=True)
            self._workers.send_all(SIGQUIT)
            self._close(1)
            return 1
        self._workers.zygotes.close()
        call_hook(self._log, "on_exit", self._server.cfg.on_exit, self._server)
        error = self._shutdown.error
        self._close(ExitStatus.OK if error is None else error.exit_status)
        release_standard_streams()
        if error is not None:
            self._report(error)
            raise error
        self._log.info("stopped (pid %d)", self._server.pid)
        return ExitStatus.OK

    def _close(self, status: int) -> None:
        self._workers.zygotes.close()
        self._close_control()
        self._reload.close()
        self._resources.clean_up()
        self._signals.end(status)

    def _start(self, interrupt: StartInterrupt) -> None:
        """Do everything that precedes the loop. Raises WsgiservError or KeyboardInterrupt, with all of it undone."""
        settings, resources = self._settings, self._resources
        try:
            if settings.daemon and self._old_master is None:
                self._foreground = daemonize()
            resources.check_inherited()
            # Before there is a pid file: a reader of it may send any of the signals.
            self._signals = SignalQueue()
            interrupt.arm()
            generation = start_server(settings, self._notices, resources, interrupt)
            self._reload = Reload(generation, resources)
            if self._foreground is not None:
                self._foreground.silence(keep_output=settings.capture_output and settings.errorlog != "-")
                renew_standard_streams()
            guard_standard_streams()
            self._workers = Workers(self._server, self._signals, self._log)
            self._recycler = Recycler(self._workers.recycle)
            self._upgrade = Upgrade(self._invocation, self._signals, self._log)
            if not self._control_comes_later:
                with interrupt.held():
                    self._control = self._open_control()
            self._signals.arm()
            raise_if_dropped()
        except WsgiservError as error:
            interrupt.end()
            resources.clean_up()
            self._report(error)
            raise
        except KeyboardInterrupt:
            self._close_control()
            raise
        except BaseException:
            interrupt.end()
            resources.clean_up()
            raise

    def _report(self, error: WsgiservError) -> None:
        """Log an error that ends the server, unless the caller prints it on the terminal that shows the log."""
        if self._settings.errorlog != "-" or (self._foreground is not None and self._foreground.is_silent):
            traceback = error.traceback if isinstance(error, ApplicationError) else ""
            self._log.critical("WS1201 %s%s", error, f"\n{traceback.rstrip()}" if traceback else "")
        self._fail_foreground(error)

    def _fail_foreground(self, error: WsgiservError) -> None:
        if self._foreground is not None:
            self._foreground.failed(error)

    def _fail_to_old_master(self) -> None:
        if self._old_master is not None:
            self._old_master.failed(TOLD_TO_STOP)

    @property
    def _server(self) -> HookServer:
        return self._resources.server

    @property
    def _fleet(self) -> Fleet:
        return self._workers.fleet

    # ---- the loop --------------------------------------------------------------------------------------

    def _loop(self) -> None:
        """Carry out the plan, sleep until an event, note it; until the last worker has exited."""
        shutdown = self._shutdown
        while True:
            if shutdown.how:
                # The workers keep their copies of the sockets until they have served the backlog. The master's are
                # closed before the workers hear of the stop: a client that comes later is refused at once, instead of
                # waiting in a backlog that ends with a reset.
                self._resources.close_listeners()
            until = self._act()
            now = monotonic()
            if until is None:
                until = self._upgrade.ends_by(now)
                if until is None:
                    return
            if shutdown.drain_until is not None and not shutdown.how:
                until = min(until, shutdown.drain_until)
            if not shutdown.how:
                until = min(until, self._recycler.look(self._fleet.workers, now), self._autoscale(now))
                until = min(until, self._reload.renew_ticket_keys(now))
            newest = self._reload.newest
            until = min(
                until,
                self._workers.tell_waiters(now, newest.number, newest.workers),
                self._manager.update(now, self._status_line),
            )
            self._sleep(until)
            tell_lost_messages()
            self._handle_signals()
            self._workers.read_reports()
            self._reap_new_masters()  # before the workers' reaper waits for orphans of any kind
            self._workers.reap(self._handle_signals)
            self._read_upgrade_report()
            self._announce()
            if shutdown.drain_until is not None and monotonic() >= shutdown.drain_until:
                self._stop("graceful", "drained")
            self._begin_upgrade()
            self._begin_reload()

    def _autoscale(self, now: float) -> float:
        """Follow the load between `workers_min` and `workers_max`; return when to look again."""
        reload = self._reload
        if reload.in_progress or self._is_upgrading or self._shutdown.drain_until is not None:
            return inf
        generation = reload.current
        if self._scaler is None:
            if generation.settings.workers_max is None:
                return inf
            from wsgiserv.master.load import Scaler

            self._scaler = Scaler(lambda: reload.current.listeners, self._log.info)
        wanted, again = self._scaler.look(self._fleet.workers, generation.workers, generation.settings, now)
        if wanted is not None:
            generation.workers = wanted
            self._log.info("%s", self._scaler.explanation)
            self._server.set_num_workers(wanted)
        return again

    def _begin_reload(self) -> None:
        """Begin a requested reload, unless a reload, an upgrade or a shutdown is in progress."""
        busy = self._reload.in_progress or self._is_upgrading or self._shutdown.has_begun
        if self._reload.requests and self._is_up and not busy:
            self._manager.reload_begins()
            self._reload.begin(self._reload_settings)
            if not self._reload.in_progress:
                self._manager.ready(self._status_line())

    @property
    def _is_up(self) -> bool:
        """True when the start is over: this master serves, and no old master does."""
        return self._fleet.ever_ready and self._has_taken_over

    @property
    def _has_taken_over(self) -> bool:
        """True when no old master may still go on with the service in place of this one."""
        return self._old_master is None or self._announced

    @property
    def _is_upgrading(self) -> bool:
        return bool(self._upgrade.requests) or self._upgrade.in_progress

    def _act(self) -> float | None:
        """Carry out the plan's actions until none is due; return when to wake up, None at the end."""
        while True:
            settings = self._reload.newest.settings
            target = Target(
                self._reload.targets(),
                self._shutdown.how,
                self._resumed_at,
                settings.reload_surge,
                settings.max_unavailable,
            )
            self._workers.read_heartbeats()
            for action in plan(self._fleet, target, monotonic()):
                match action:
                    case Spawn():
                        self._spawn(action)
                    case Send():
                        self._workers.send(action)
                    case Promote():
                        self._promote()
                    case Abandon():
                        self._abandon(action.reason)
                    case GiveUp():
                        self._give_up(action)
                    case Stopped():
                        return None
                    case Wait(until):
                        if until > monotonic():
                            return until
                    case _:
                        assert_never(action)

    def _sleep(self, until: float) -> None:
        before = monotonic()
        duration_s = min(max(until - before, 0.0), _TURN_S)
        poller = poll()
        poller.register(self._signals.fileno(), POLLIN)
        for worker in self._fleet.workers:
            if worker.reader is not None:
                poller.register(worker.reader.fileno(), POLLIN)
        for fd in self._workers.zygotes.fds():
            poller.register(fd, POLLIN)
        if self._upgrade.new_master is not None and self._upgrade.in_progress:
            poller.register(self._upgrade.new_master.fileno(), POLLIN)
        control = self._control
        if control is not None:
            duration_s = min(duration_s, max(0.0, control.deadline() - before))
            for fd, events in control.fds():
                poller.register(fd, events)
        found = poller.poll(ceil(duration_s * 1000))
        if control is not None:
            for fd, events in found:
                control.handle(fd, events)
            control.expire(monotonic())
        now = monotonic()
        if now - before > duration_s + _SUSPENDED_S:
            self._resumed_at = now

    # ---- actions ---------------------------------------------------------------------------------------

    def _spawn(self, action: Spawn) -> None:
        if self._shutdown.how:
            return  # an earlier spawn of this plan has failed for good
        generation = self._reload.generation(action.generation)

        def close_others() -> None:
            self._resources.close_listeners_of_others(generation)
            self._close_in_child()

        try:
            self._workers.spawn(generation, close_others)
        except BootError as error:
            self._fail(error)

    def _close_in_child(self) -> None:
        """Close the master's own lines to other processes. Called in a worker, and in a child that a hook forks."""
        if self._foreground is not None:
            self._foreground.close()
        if self._old_master is not None:
            self._old_master.close()
        log_files.close_in_child()
        if self._control is not None:
            self._control.close_in_child()
        upgrade = getattr(self, "_upgrade", None)  # unset while the server starts
        if upgrade is not None:
            upgrade.close_in_child()

    def _fail(self, error: WsgiservError) -> None:
        """Stop at once, and end with ``error``."""
        self._shutdown.error = error
        self._shutdown.how = "fast"
        self._workers.stopping = True
        self._cancel_requests(at_once=True)

    def _promote(self) -> None:
        seconds = self._reload.promote(monotonic())
        self._workers.keep_generation(self._reload.current.number)
        self._log.info(
            "reloaded: %s in %.2f s; the old ones retire", _workers(self._reload.current.workers), seconds
        )
        self._manager.ready(self._status_line())

    def _abandon(self, reason: str) -> None:
        self._log.error(
            "WS1313 reload failed; still running the old code and settings: the new workers cannot boot: %s",
            reason,
        )
        self._reload.abandon(reason)
        self._workers.keep_generation(self._reload.current.number, reopen_logs=True)
        self._manager.ready(self._status_line())

    def _give_up(self, action: GiveUp) -> None:
        if action.status == ExitStatus.APPLICATION:
            self._fail(ApplicationError(action.reason, action.report.traceback if action.report else ""))
        elif action.status == ExitStatus.CONFIG:
            self._fail(ConfigError(action.reason))
        else:
            tried = "" if action.report else " Several were tried; the lines above say how each ended."
            self._fail(BootError(f"the workers cannot boot: {action.reason.rstrip('.')}.{tried}"))

    def _announce(self) -> None:
        """Report once that all workers are ready."""
        if self._announced or self._shutdown.how or not self._fleet.ever_ready:
            return
        if self._foreground is not None:
            self._foreground.started()
        current = self._reload.current
        serving = sum(each.serving for each in self._fleet.workers if each.generation == current.number)
        if serving >= current.workers:
            self._announced = True
            self._resources.take_over()
            if self._control_comes_later:
                self._control = self._open_control()
            self._manager.ready(self._status_line())
            self._log.info("ready: %s in %.2f s", _workers(serving), monotonic() - current.began_at)

    # ---- signals ---------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        for signal in self._signals.take():
            self._handle(signal)

    def _handle(self, signal: Signals) -> None:
        if signal == SIGCHLD:
            return  # it has woken the loop, which reaps
        self._log.debug("received %s", signal.name)
        if signal == SIGTERM:
            self._terminate()
        elif signal in (SIGINT, SIGQUIT):
            self._read_upgrade_report()
            self._begin_stop("fast", signal.name)
        elif signal == SIGUSR1:
            self._reopen_logs()
        elif self._shutdown.how or (signal in (SIGHUP, SIGUSR2) and self._shutdown.has_begun):
            self._log.info("%s ignored: the server is stopping", signal.name)
        elif signal == SIGHUP:
            if self._reload.in_progress or not self._is_up:
                self._log.info("SIGHUP: reload queued behind the start or reload in progress")
            self._manager.reload_requested()
            self._reload.requests.append(_ignore_outcome)
        elif signal == SIGTTIN:
            self._change_workers(+1)
        elif signal == SIGTTOU:
            self._change_workers(-1)
        elif signal == SIGWINCH:
            self._retire_all()
        elif signal == SIGUSR2:
            self._request_upgrade(_ignore_outcome)

    def _terminate(self) -> None:
        """SIGTERM: shut down gracefully. During an upgrade the next master goes on, and this one stops after it.

        A second SIGTERM stops both masters. The next master may have reported by now, in a message not read yet.
        """
        if self._shutdown.after_upgrade:
            self._read_upgrade_report()
            self._stop("graceful", "SIGTERM, a second time")
        elif self._is_upgrading and not self._shutdown.has_begun:
            self._shutdown.after_upgrade = True
            self._log.info(
                "SIGTERM during an upgrade: this master stops when the next one serves, or when the upgrade fails; "
                "a second SIGTERM stops both"
            )
        else:
            self._begin_stop("graceful", "SIGTERM")

    def _begin_stop(self, how: Literal["graceful", "fast"], why: str) -> None:
        delay_s = self._server.cfg.drain_delay
        # A next master that does not serve yet has no clients to drain.
        if how == "graceful" and delay_s and self._has_taken_over and not self._shutdown.has_begun:
            self._cancel_requests(at_once=False)
            self._workers.drain()
            self._log.info(
                "%s: draining for %g s: still accepting, responses say Connection: close", why, delay_s
            )
            self._shutdown.drain_until = monotonic() + delay_s
        else:
            self._stop(how, why)

    def _stop(self, how: Literal["graceful", "fast"], why: str) -> None:
        shutdown = self._shutdown
        shutdown.drain_until = None
        if shutdown.how in ("fast", how):
            return
        workers = _workers(len(self._fleet.workers))
        if how == "graceful":
            limit = max((worker.graceful_timeout for worker in self._fleet.workers), default=0)
            self._log.info("%s: stopping gracefully: up to %g s for %s to finish", why, limit, workers)
        else:
            self._log.info("%s: stopping at once: %s", why, workers)
        shutdown.how = how
        self._workers.stopping = True
        self._cancel_requests(at_once=how == "fast")
        if not self._workers.followed:
            # An old master that goes on has the same sockets: its workers take the connections.
            self._workers.hand_over_no_more(for_good=self._has_taken_over)
        self._workers.dismiss_zygotes()
        if self._has_taken_over:
            self._manager.stopping()
        else:
            self._fail_to_old_master()

    def _cancel_requests(self, *, at_once: bool) -> None:
        """Stop a next master that starts, and report a failure to every command that waits for an outcome."""
        cfg = self._server.cfg
        self._shutdown.after_upgrade = False
        self._upgrade.cancel(at_once=at_once, timeout_s=cfg.graceful_timeout + cfg.drain_delay)
        new = self._upgrade.new_master
        reason = (
            f"overtaken: the next master (pid {new.pid}) serves, ask that"
            if new is not None and new.ready
            else "overtaken: the server is stopping"
        )
        requests, self._upgrade.requests = self._upgrade.requests, []
        for done in requests:
            done(False, reason)
        self._reload.overtake(reason, requests_too=True)
        self._workers.waiters.on_overtaken(reason)

    def _request_upgrade(self, done: Done) -> None:
        self._upgrade.requests.append(done)
        if self._reload.in_progress or not self._is_up:
            self._log.info("upgrade: queued behind the start or reload in progress")

    def _begin_upgrade(self) -> None:
        if self._reload.in_progress or not self._is_up or self._shutdown.has_begun:
            return
        resources, server = self._resources, self._server
        requests, self._upgrade.requests = self._upgrade.requests, []
        for done in requests:
            self._upgrade.begin(
                done,
                listeners=self._reload.current.listeners,
                handoff=resources.handoff.fds() if resources.handoff is not None else None,
                activated=resources.activated,
                before_exec=lambda: call_hook(self._log, "pre_exec", server.cfg.pre_exec, server),
            )
        if self._shutdown.after_upgrade and not self._upgrade.in_progress:  # it could not be started
            self._begin_stop("graceful", "SIGTERM")

    def _read_upgrade_report(self) -> None:
        new = self._upgrade.read_report(stops=self._shutdown.after_upgrade)
        if new is None:
            return
        if new.ready:
            self._manager.replaced_by(new.pid)
            self._resources.leave_files()
            self._workers.followed = True
            self._stop("graceful", "upgraded")
        elif self._shutdown.after_upgrade:
            self._begin_stop("graceful", "SIGTERM")

    def _reap_new_masters(self) -> None:
        exited = self._upgrade.reap()
        new = self._upgrade.new_master
        if self._workers.followed and new is not None and new.pid in exited:
            self._log.error(
                "WS1326 upgrade: the next master (pid %d) exited: no process goes on with this server",
                new.pid,
            )
            self._workers.followed = False
            self._workers.hand_over_no_more(for_good=True)

    def _reopen_logs(self) -> None:
        reopen_error_log()
        self._log.info("logs reopened")
        self._workers.reopen_logs()

    def _change_workers(self, by: int) -> None:
        count = self._reload.newest.workers + by
        if count < 1:
            self._log.info("SIGTTOU ignored: one worker is left; SIGWINCH retires it")
            return
        most = self._most_workers()
        if by > 0 and count > most:
            self._log.warning("WS1210 SIGTTIN ignored: this machine accepts at most %s", _workers(most))
            return
        self._scale(count, "SIGTTIN: " if by > 0 else "SIGTTOU: ")

    def _most_workers(self) -> int:
        return most_workers(self._reload.newest.settings)

    def _scale(self, count: int, why: str = "") -> None:
        self._reload.newest.workers = count
        self._log.info("%s%s wanted", why, _workers(count))
        self._server.set_num_workers(count)

    # ---- control socket and status -------------------------------------------------------------------

    @property
    def _control_comes_later(self) -> bool:
        """True when the old master keeps the path of the control socket until this one serves."""
        return self._old_master is not None and self._settings.control_socket is not None

    def _open_control(self) -> ControlServer | None:
        commands = MasterCommands(
            self._reload,
            self._workers,
            status=self._status,
            scale=self._scale,
            most_workers=self._most_workers,
            upgrade=self._request_upgrade,
            stop=lambda now: (
                self._stop("fast", "wsgiservctl stop --now")
                if now
                else self._begin_stop("graceful", "wsgiservctl stop")
            ),
            reopen_logs=self._reopen_logs,
            is_stopping=lambda: bool(self._shutdown.how),
            is_draining=lambda: self._shutdown.drain_until is not None,
        )
        follows = self._old_master.pid if self._old_master is not None else 0
        environ = self._invocation.environ if self._invocation is not None else os.environ
        return control_server(self._settings, commands, self._log, environ, follows=follows)

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()

    @property
    def _state(self) -> ServerState:
        if self._shutdown.how:
            return "stopping"
        if self._shutdown.drain_until is not None:
            return "draining"
        if self._is_upgrading:
            return "upgrading"
        if self._reload.in_progress or self._reload.requests:
            return "reloading"
        return "running" if self._announced else "starting"

    def _facts(self) -> ServerFacts:
        current = self._reload.current
        return ServerFacts(
            pid=self._server.pid,
            started_at=self._resources.began_at,
            state=self._state,
            application=current.settings.wsgi_app or "",
            bind=[str(listener) for listener in current.listeners],
            generation=current.number,
            wanted=self._reload.newest.workers,
            last_reload=self._reload.last,
            gone=self._workers.gone,
            lost_lines=lost_messages(),
        )

    def _status(self) -> dict[str, Any]:
        figures = status_of(self._facts(), self._fleet.workers, monotonic(), time())
        figures["deaths"] = [each.to_dict() for each in self._workers.crashes.reports]
        return figures

    def _status_line(self) -> str:
        return status_line(self._facts(), self._fleet.workers)

    def _retire_all(self) -> None:
        if _has_terminal():
            self._log.debug("SIGWINCH ignored: a terminal has changed its size")
            return
        self._log.info(
            "SIGWINCH: the workers retire, the master stays; SIGHUP or SIGTTIN starts workers again"
        )
        self._workers.hand_over_no_more()
        self._reload.overtake("overtaken: SIGWINCH has retired the workers", requests_too=False)
        self._reload.pause()
        self._server.set_num_workers(0)


def _ignore_outcome(ok: bool, reason: str) -> None:
    """Do nothing: a signal waits for no outcome, and the log tells it."""


def _workers(count: int) -> str:
    return counted(count, "worker")


def _has_terminal() -> bool:
    """Return True when this process has a controlling terminal, which sends SIGWINCH when its size changes."""
    try:
        close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
