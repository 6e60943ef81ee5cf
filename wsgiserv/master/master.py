"""The master: binds, forks, supervises, answers signals, cleans up.

Single thread. Every event comes through one poll(2): signals as numbers in a socket, workers' reports in their pipes.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil, inf
from os import close  # a configuration file may patch gevent in: functions are bound at import
from select import POLLIN, poll
from signal import Signals
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, assert_never

from wsgiserv.boot import WorkerBoot
from wsgiserv.config.masking import mask_text
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ApplicationError, BootError, ConfigError, ExitStatus, WsgiservError
from wsgiserv.hooks import StoppedByHook, call_hook
from wsgiserv.logs.error import close_logs_in_child, log_for_users, lost_messages, tell_lost_messages
from wsgiserv.logs.files import log_files
from wsgiserv.logs.output import renew_standard_streams
from wsgiserv.logs.streams import guard_standard_streams
from wsgiserv.master.commands import MasterCommands, most_workers
from wsgiserv.master.control import ControlServer, Done, control_server
from wsgiserv.master.daemonize import Foreground, daemonize
from wsgiserv.master.generation import Generation
from wsgiserv.master.load import Gauge, Scaler
from wsgiserv.master.metrics import FleetMetrics
from wsgiserv.master.policy import Abandon, GiveUp, Promote, Send, Spawn, Stopped, Target, Wait, plan
from wsgiserv.master.program import Program
from wsgiserv.master.recycling import Recycler
from wsgiserv.master.reload import Reload
from wsgiserv.master.resources import Preload, ServerResources
from wsgiserv.master.shutdown import Shutdown
from wsgiserv.master.signals import SignalQueue, StartInterrupt, raise_if_dropped
from wsgiserv.master.spawn import ForkedChild
from wsgiserv.master.status import ServerFacts, ServerState, status_line, status_of
from wsgiserv.master.systemd import ServiceManager
from wsgiserv.master.upgrade import Inherited, Invocation, OldMaster, Upgrade
from wsgiserv.master.workers import Workers
from wsgiserv.process import add_child_cleanup, arm, release_standard_streams
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded
    from wsgiserv.config.process_environment import ProcessEnvironment

# The longest sleep: the master reads heartbeats, and reaps children, at least this often.
_TURN_S: Final = 1.0
# A sleep that took so much longer than asked: the machine, or this process, was suspended.
_SUSPENDED_S: Final = 2.0


class Master:
    """The master process.

    Args:
        settings: the configuration.
        notices: warnings about it, and about the start, for the log.
        reload_settings: reads the configuration again (SIGHUP); raises ConfigError.
        worker_main: runs a worker in the child, and returns its exit status.
        log: the error log.
        invocation: how this process was started, for the next master (SIGUSR2); None makes an upgrade impossible.
        old_master: the master whose sockets this one takes over, or None.
        preload_application: loads the application for `preload_app`; None: each worker loads it.
        environment: this process's environment, with the variables of environment files; None without these.
        advise: returns advice about the application, for the log; called once, when all workers are ready.
        program: the program that the server is part of; None for the command.
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
        environment: ProcessEnvironment | None = None,
        advise: Callable[[], str] | None = None,
        program: Program | None = None,
    ) -> None:
        self._notices = notices
        self._reload_settings = reload_settings
        self._worker_main = worker_main
        self._log = log
        self._advise = advise
        self._program = program
        self._resources = ServerResources(settings, log, old_master, preload_application, environment)
        # Also before the application's code runs: its programs must not inherit the variables.
        self._manager = ServiceManager.from_environ(os.environ)
        self._upgrade = Upgrade(invocation, log)
        # Without a daemon there is no foreground process, and nothing to tell it.
        self._foreground = Foreground(-1)
        self._resumed_at = 0.0
        self._announced = False
        self._metrics = FleetMetrics(lambda: log_for_users(log))
        self._scaler = Scaler(Gauge(lambda: self._reload.current.listeners), log.info)
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
        if self._program is not None:
            self._program.in_child()
        sys.exit(main(self._worker_main))

    def _run(self) -> int:
        interrupt = StartInterrupt()
        add_child_cleanup(self._close_in_child)
        add_child_cleanup(close_logs_in_child)
        # The next master of a daemon is in the background already, and its parent must stay the old master.
        if self._resources.settings.daemon and self._resources.old_master is None:
            # Outside of the try: an error raised in the foreground process is the daemon's, which has logged it.
            self._foreground = daemonize()
        try:
            self._start(interrupt)
        except BaseException as failure:
            interrupt.end()
            self._close_control()
            self._resources.clean_up()
            if self._program is not None:
                self._close_begun()
            if isinstance(failure, WsgiservError):
                self._report(failure)
            by_hook = isinstance(failure, StoppedByHook) and failure.exit_status == ExitStatus.OK
            if not (isinstance(failure, KeyboardInterrupt) or by_hook):  # INT, TERM or QUIT; sys.exit(0) of a hook
                raise
            self._log.info("stopped while starting")
            self._foreground.failed(BootError("it was told to stop while it was starting."))
            self._resources.report_stop()
            return ExitStatus.OK
        try:
            self._loop()
        except Exception:
            # A bug. The workers' lifelines end with this process; the service manager starts the server again.
            self._log.critical("WS1200 master: unexpected error: shutting down", exc_info=True)
            self._workers.quit_all()
            self._close(1)
            return 1
        # Before the hook: a zygote holds the application, which the hook may clean up after.
        self._workers.zygotes.close()
        call_hook(self._log, "on_exit", self._resources.server.settings.on_exit, self._resources.server)
        error = self._shutdown.error
        self._close(ExitStatus.OK if error is None else error.exit_status)
        if self._program is None:  # a program goes on to print
            # The interpreter would wait for a reader that sleeps, and the supervisor for this process.
            release_standard_streams()
        if error is not None:
            self._report(error)
            raise error
        self._log.info("stopped (pid %d)", self._resources.server.pid)
        return ExitStatus.OK

    def _close(self, status: int) -> None:
        self._close_control()
        self._reload.close()
        self._resources.clean_up()
        self._signals.end(status)
        self._workers.close()

    def _close_begun(self) -> None:
        """Close what a start that has failed has opened: this process goes on as a program."""
        signals, workers = getattr(self, "_signals", None), getattr(self, "_workers", None)
        if signals is not None:
            signals.end(ExitStatus.FAILURE)
        if workers is not None:
            workers.close()

    def _start(self, interrupt: StartInterrupt) -> None:
        """Do everything that precedes the loop. Raises WsgiservError or KeyboardInterrupt; the caller cleans up."""
        resources, settings = self._resources, self._resources.settings
        resources.check_inherited()
        # Before there is a pid file: a reader of it may send any of the signals.
        self._signals = SignalQueue()
        interrupt.arm()
        generation = resources.acquire(self._notices, interrupt)
        self._reload = Reload(generation, resources)
        # Not before: what a configuration file or a hook prints belongs on the terminal.
        if self._foreground.is_awaited:
            self._foreground.silence(keep_output=settings.capture_output and settings.errorlog != "-")
            renew_standard_streams()
        guard_standard_streams()
        self._workers = Workers(self._resources.server, self._signals, self._log)
        self._recycler = Recycler(self._workers.recycle)
        self._shutdown = Shutdown(resources, self._workers, self._reload, self._upgrade, self._manager)
        if not self._control_comes_later:
            with interrupt.held():
                self._control = self._open_control()
        self._signals.arm()
        # After the handlers are the loop's: from here on nothing raises for a signal, nor drops it.
        raise_if_dropped()

    def _report(self, error: WsgiservError) -> None:
        """Log an error that ends the server, unless the caller prints it on the terminal that shows the log."""
        if self._resources.settings.errorlog != "-" or self._foreground.is_silent:
            traceback = error.traceback if isinstance(error, ApplicationError) else ""
            self._log.critical("WS1201 %s%s", error, f"\n{traceback.rstrip()}" if traceback else "")
        self._foreground.failed(error)

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
            # All of these look at the fleet as it is after the actions.
            newest, workers = self._reload.newest, self._workers.fleet.workers
            deadlines = [until, shutdown.drain_until]
            if not shutdown.how:
                deadlines += (self._recycler.look(workers, now), self._autoscale(now))
                deadlines.append(self._reload.renew_ticket_keys(now))
                self._metrics.look(self._reload.current, workers, now)
            deadlines.append(self._workers.waiters.look(newest.number, newest.workers, now))
            deadlines.append(self._manager.update(now, self._status_line))
            self._sleep(min(deadlines))
            tell_lost_messages()  # a log whose disk was full may take lines again
            self._handle_signals()
            self._workers.read_reports()
            shutdown.reap_new_masters()  # before the workers' reaper waits for orphans of any kind
            self._workers.reap(self._handle_signals)
            # After the signals: SIGTERM and the report of a next master may come in one turn.
            shutdown.follow_upgrade()
            self._announce()
            shutdown.end_drain(monotonic())
            self._obey_hooks()
            self._obey_program()
            self._begin_requested()

    def _obey_hooks(self) -> None:
        """Carry out what hooks have asked for through ``server``."""
        server = self._resources.server
        if (request := server.halt_request) is not None:
            self._shutdown.halt(request.reason, request.exit_status)
        wanted = server.take_wanted()
        if wanted is not None and not self._shutdown.has_begun:
            most = most_workers(self._reload.newest.settings)
            if wanted > most:
                self._log.warning(
                    "WS1107 a hook has set server.num_workers to %d: this machine accepts at most %s", wanted, most
                )
            self._reload.scale(min(wanted, most), f"a hook has set server.num_workers to {wanted}")

    def _obey_program(self) -> None:
        """Carry out the requests of the program which has started this server in the background, and end with it."""
        if self._program is None:
            return
        current = self._reload.current.number
        if self._program.obey(lambda done: self._commands().reload(done), lambda: self._workers.others_accept(current)):
            self._shutdown.stop("fast", "the program that has started this server has ended")

    def _autoscale(self, now: float) -> float:
        """Follow the load between `workers_min` and `workers_max`; return when to look again."""
        # Two fleets on the same CPUs, or one that leaves, say nothing about the load of one that stays.
        if self._reload.in_progress or self._upgrade.is_pending or self._shutdown.is_draining:
            return inf
        generation = self._reload.current
        wanted, again = self._scaler.look(self._workers.fleet.workers, generation.workers, generation.settings, now)
        if wanted is not None:
            self._reload.scale(wanted, self._scaler.explanation)
        return again

    def _begin_requested(self) -> None:
        """Begin requested upgrades, or else a reload, unless another one or a shutdown is in progress."""
        if self._reload.in_progress or not self._is_up or self._shutdown.has_begun:
            return
        self._begin_upgrades()
        if self._reload.requests and not (self._upgrade.is_pending or self._shutdown.has_begun):
            self._manager.reload_begins()
            self._reload.begin(self._reload_settings)
            if not self._reload.in_progress:  # it has failed; systemd waits for READY=1 in any case
                self._manager.ready(self._status_line())

    def _begin_upgrades(self) -> None:
        resources, server = self._resources, self._resources.server
        while self._upgrade.requests:
            handoff = resources.handoff.fds() if resources.handoff is not None else None
            self._upgrade.begin(
                self._upgrade.requests.pop(0),
                Inherited(self._reload.current.listeners, handoff, resources.activated),
                self._signals,
                before_exec=lambda: call_hook(self._log, "pre_exec", server.settings.pre_exec, server),
            )
        self._shutdown.follow_upgrade()  # SIGTERM may wait for one that could not be started

    @property
    def _is_up(self) -> bool:
        """True when the start is over: this master serves, and no old master does."""
        return self._workers.fleet.ever_ready and self._resources.has_taken_over

    def _act(self) -> float | None:
        """Carry out the plan's actions until none is due; return when to wake up, None at the end."""
        while True:
            settings, wanted, how = self._reload.newest.settings, self._reload.targets(), self._shutdown.how
            target = Target(wanted, how, self._resumed_at, settings.reload_surge, settings.max_unavailable)
            self._workers.read_heartbeats()
            for action in plan(self._workers.fleet, target, monotonic()):
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
        # A new one each time: the descriptors change with every worker, and closed ones would report POLLNVAL.
        poller = poll()
        readers = [worker.reader.fileno() for worker in self._workers.fleet.workers if worker.reader is not None]
        for fd in (self._signals.fileno(), *readers, *self._workers.zygotes.fds()):
            poller.register(fd, POLLIN)
        if self._upgrade.new_master is not None and self._upgrade.in_progress:
            poller.register(self._upgrade.new_master, POLLIN)
        for fd in self._program.fds() if self._program is not None else ():
            poller.register(fd, POLLIN)
        control = self._control
        if control is not None:
            duration_s = min(duration_s, max(0.0, control.deadline() - before))
            for fd, events in control.fds():
                poller.register(fd, events)
        # Rounded up: poll(2) counts milliseconds, and would return early again and again in the last one.
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
        try:
            self._workers.spawn(generation, partial(self._close_in_worker, generation))
        except WsgiservError as error:  # pre_fork has forbidden the start
            self._shutdown.fail(error)

    def _close_in_worker(self, generation: Generation) -> None:
        self._resources.close_listeners(generation.listeners)
        self._close_in_child()

    def _close_in_child(self) -> None:
        """Close the master's own lines to other processes. Called in a worker, and in a child that a hook forks."""
        # A copy in a child would keep the reader at the other end from seeing the end of this process.
        self._foreground.close()
        if self._resources.old_master is not None:
            self._resources.old_master.close()
        log_files.close_in_child()
        if self._control is not None:
            self._control.close_in_child()
        if self._program is not None:
            self._program.close_in_child()
        self._upgrade.close_in_child()

    def _promote(self) -> None:
        seconds = self._reload.promote(monotonic())
        current = self._reload.current
        self._workers.keep_generation(current.number)
        self._log.info("reloaded: %s in %.2f s; the old ones retire", counted(current.workers, "worker"), seconds)
        self._manager.ready(self._status_line())

    def _abandon(self, reason: str) -> None:
        self._log.error(
            "WS1313 reload failed; still running the old code and settings: the new workers cannot boot: %s", reason
        )
        self._reload.abandon(reason)
        self._workers.keep_generation(self._reload.current.number, reopen_logs=True)
        self._manager.ready(self._status_line())

    def _give_up(self, action: GiveUp) -> None:
        fail = self._shutdown.fail
        if action.status == ExitStatus.APPLICATION:
            fail(ApplicationError(action.reason, action.report.traceback if action.report else ""))
        elif action.status == ExitStatus.CONFIG:
            fail(ConfigError(action.reason))
        else:
            tried = "" if action.report else " Several were tried; the lines above say how each ended."
            fail(BootError(f"the workers cannot boot: {action.reason.rstrip('.')}.{tried}"))

    def _announce(self) -> None:
        """Report once that all workers are ready."""
        if self._announced or self._shutdown.how or not self._workers.fleet.ever_ready:
            return
        # With the first worker: the server serves, and the terminal is free again.
        self._foreground.started()
        current = self._reload.current
        serving = sum(each.serving for each in self._workers.fleet.workers if each.generation == current.number)
        # With all of them: an old master that goes now leaves no lack of workers.
        if serving >= current.workers:
            self._announced = True
            self._resources.take_over()
            if self._control_comes_later:
                self._control = self._open_control()
            self._manager.ready(self._status_line())
            self._log.info("ready: %s in %.2f s", counted(serving, "worker"), monotonic() - current.began_at)
            if self._program is not None:
                self._program.is_ready([(each.url, each.getsockname()) for each in current.listeners])
            if self._advise is not None and (advice := self._advise()):
                self._log.warning("%s", advice)

    # ---- signals ---------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        for signal in self._signals.take():
            if signal != Signals.SIGCHLD:  # that has woken the loop, which reaps
                self._handle(signal)

    def _handle(self, signal: Signals) -> None:
        self._log.debug("received %s", signal.name)
        shutdown = self._shutdown
        match signal:
            case Signals.SIGTERM:
                shutdown.terminate()
            case Signals.SIGINT | Signals.SIGQUIT:
                shutdown.follow_upgrade()  # a next master that serves by now is not stopped
                shutdown.stop("fast", signal.name)
            case Signals.SIGUSR1:
                self._workers.reopen_logs()
            # A server that drains still changes its workers.
            case _ if shutdown.how or (shutdown.has_begun and signal in (Signals.SIGHUP, Signals.SIGUSR2)):
                self._log.info("%s ignored: the server is stopping", signal.name)
            case Signals.SIGTTIN:
                self._change_workers("SIGTTIN", +1)
            case Signals.SIGTTOU:
                self._change_workers("SIGTTOU", -1)
            case Signals.SIGWINCH:
                self._retire_all()
            case Signals.SIGHUP:
                if self._reload.in_progress or not self._is_up:
                    self._log.info("SIGHUP: reload queued behind the start or reload in progress")
                self._manager.reload_requested()
                self._reload.requests.append(_ignore_outcome)
            case Signals.SIGUSR2:
                self._request_upgrade(_ignore_outcome)

    def _request_upgrade(self, done: Done) -> None:
        self._upgrade.requests.append(done)
        if self._reload.in_progress or not self._is_up:
            self._log.info("upgrade: queued behind the start or reload in progress")

    def _change_workers(self, name: str, by: int) -> None:
        newest = self._reload.newest
        count = newest.workers + by
        most = most_workers(newest.settings)
        if count < 1:
            self._log.info("SIGTTOU ignored: one worker is left; SIGWINCH retires it")
        elif by > 0 and count > most:
            self._log.warning("WS1210 SIGTTIN ignored: this machine accepts at most %s", counted(most, "worker"))
        else:
            self._reload.scale(count, f"{name}: {counted(count, 'worker')} wanted")

    def _retire_all(self) -> None:
        if _has_terminal():
            self._log.debug("SIGWINCH ignored: a terminal has changed its size")
            return
        self._log.info("SIGWINCH: the workers retire, the master stays; SIGHUP or SIGTTIN starts workers again")
        # No worker takes a connection from another any more, but the master keeps the sockets open.
        self._workers.hand_over_no_more()
        self._reload.overtake("overtaken: SIGWINCH has retired the workers", requests_too=False)
        self._reload.pause()

    # ---- control socket and status -------------------------------------------------------------------

    @property
    def _control_comes_later(self) -> bool:
        """True when the old master keeps the path of the control socket until this one serves."""
        # Without the setting the path has the process id in it.
        return self._resources.old_master is not None and self._resources.settings.control_socket is not None

    def _commands(self) -> MasterCommands:
        return MasterCommands(self._reload, self._workers, self._shutdown, self._status, self._request_upgrade)

    def _open_control(self) -> ControlServer | None:
        commands = self._commands()
        old_master, invocation = self._resources.old_master, self._upgrade.invocation
        # Not the environment of now: `raw_env` must not move the runtime directory, where wsgiservctl looks.
        environ = invocation.environ if invocation is not None else os.environ
        follows = old_master.pid if old_master is not None else 0
        return control_server(self._resources.settings, commands, self._log, environ, follows=follows)

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()

    @property
    def _state(self) -> ServerState:
        if self._shutdown.how:
            return "stopping"
        if self._shutdown.is_draining:
            return "draining"
        if self._upgrade.is_pending:
            return "upgrading"
        if self._reload.in_progress or self._reload.requests:
            return "reloading"
        return "running" if self._announced else "starting"

    def _figures(self) -> dict[str, Any]:
        current = self._reload.current
        facts = ServerFacts(
            pid=self._resources.server.pid,
            started_at=self._resources.began_at,
            state=self._state,
            application=mask_text(current.settings.wsgi_app or ""),
            bind=[str(listener) for listener in current.listeners],
            generation=current.number,
            wanted=self._reload.newest.workers,
            last_reload=self._reload.last,
            gone=self._workers.gone,
            lost_lines=lost_messages(),
        )
        return status_of(facts, self._workers.fleet.workers, monotonic(), time())

    def _status(self) -> dict[str, Any]:
        return {**self._figures(), "deaths": [each.to_dict() for each in self._workers.crashes.reports]}

    def _status_line(self) -> str:
        return status_line(self._figures()["server"])


def _ignore_outcome(ok: bool, reason: str) -> None:
    """Do nothing: a signal waits for no outcome, and the log tells it."""


def _has_terminal() -> bool:
    """Return True when this process has a controlling terminal, which sends SIGWINCH when its size changes."""
    try:
        close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))  # ENXIO without one, tty(4)
    except OSError:
        return False
    return True
