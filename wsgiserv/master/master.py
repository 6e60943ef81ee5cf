"""The master: binds, forks, supervises, answers signals, cleans up.

Owns: the loop, the carrying out of the plan's actions, the order of starting and stopping.
Must not know: HTTP, WSGI, worker classes; what to do about the workers (that is `supervisor.plan`).

Single thread. Everything that happens comes through one poll(2): signals as numbers in a socket, workers'
reports in their pipes. gevent may have been patched in by a configuration file, so all that touches
processes and descriptors is bound when these modules are imported.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
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
    guard_standard_streams,
    lost_messages,
    reopen_error_log,
    say_lost_messages,
)
from wsgiserv.logs.files import log_files
from wsgiserv.logs.output import renew_standard_streams
from wsgiserv.master.commands import MasterCommands, most_workers
from wsgiserv.master.control import ControlServer, control_server
from wsgiserv.master.daemonize import Foreground, daemonize, silence_standard_streams
from wsgiserv.master.hooks_server import HookServer
from wsgiserv.master.policy import (
    Abandon,
    Fleet,
    GiveUp,
    Promote,
    Send,
    Spawn,
    Stopped,
    Target,
    Wait,
    plan,
)
from wsgiserv.master.recycling import Recycler
from wsgiserv.master.reload import Done, Reload
from wsgiserv.master.resources import Preload, ServerResources
from wsgiserv.master.service_manager import ServiceManager
from wsgiserv.master.signals import SignalQueue
from wsgiserv.master.spawn import ForkedChild
from wsgiserv.master.start_interrupt import StartInterrupt, raise_if_dropped
from wsgiserv.master.status import ServerFacts, ServerState, status_line, status_of
from wsgiserv.master.upgrade import TOLD_TO_STOP, Invocation, OldMaster
from wsgiserv.master.upgrade_attempt import Succession
from wsgiserv.master.workers import Workers
from wsgiserv.process import add_child_cleanup, arm, release_standard_streams
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded
    from wsgiserv.config.settings import Settings
    from wsgiserv.master.load import Scaler

__all__ = ["Master"]

# The longest sleep: heartbeats are looked at, and children reaped, at least so often.
_TURN_S: Final = 1.0
# A sleep that took so much longer than asked: the machine, or this process, was suspended.
_SUSPENDED_S: Final = 2.0


class Master:
    """The master process.

    Args:
        settings: the configuration.
        notices: lines for the log at start.
        warnings: more of these, about how the server was started: a reload does not repeat them.
        reload_settings: reads the configuration again (SIGHUP); raises ConfigError.
        worker_main: runs a worker in the child, returns its exit status.
        log: the error log.
        invocation: how this process was started, for the next master (SIGUSR2); None: it cannot be.
        predecessor: the master that this one follows.
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
        predecessor: OldMaster | None = None,
        preload_application: Preload | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._invocation = invocation
        self._predecessor = predecessor
        self._preload_application = preload_application
        self._notices = [*notices, *warnings]
        self._reload_settings = reload_settings
        self._worker_main = worker_main
        self._log = log
        self._stop: Literal["", "graceful", "fast"] = ""
        self._fatal: WsgiservError | None = None
        self._resumed_at = 0.0
        # While it drains: until when the server goes on accepting.
        self._drain_until: float | None = None
        # SIGTERM has come during an upgrade: this master leaves when that is decided, whichever way.
        self._leaves = False
        # Who has asked for an upgrade that has not begun yet.
        self._upgrades: list[Done] = []
        self._announced = False
        self._foreground: Foreground | None = None
        # Whether this is a daemon whose standard streams are the null device. Before that an error log on the standard
        # error and the process in front share a terminal.
        self._is_silent = False
        self._signals: SignalQueue
        self._workers: Workers
        self._fleet: Fleet
        self._server: HookServer
        self._startup: ServerResources
        self._rollover: Reload
        self._recycler: Recycler
        self._scaler: Scaler | None = None
        self._succession: Succession
        self._manager: ServiceManager
        self._control: ControlServer | None = None

    def run(self) -> int:
        """Serve until told to stop; return the exit status, which is 0.

        Raises ConfigError, BootError or ApplicationError when the server cannot start: the caller prints it and
        exits with its ``exit_status``. In a forked worker (and in the process in front of a daemon) raises
        SystemExit, so that the process leaves as any Python program does.
        """
        arm()  # without the command, in a program of its own, nobody has
        try:
            return self._run()
        except ForkedChild as born:
            main = born.main
        # Outside of the handler: the master's frames are gone, and a worker's exceptions have no context.
        sys.exit(main(self._worker_main))

    def _run(self) -> int:
        self._manager = ServiceManager.from_environ(os.environ)
        startup = self._startup = ServerResources(
            self._settings, self._notices, self._log, self._predecessor, self._preload_application
        )
        interrupt = StartInterrupt()
        add_child_cleanup(self._close_in_child)
        add_child_cleanup(close_logs_in_child)
        try:
            self._start(startup, interrupt)
        except KeyboardInterrupt:  # INT, TERM or QUIT
            interrupt.end()
            startup.clean_up()
            self._log.info("stopped while starting")
            self._tell_foreground(BootError("it was told to stop while it was starting."))
            self._tell_predecessor_of_stop()
            return ExitStatus.OK

        try:
            self._loop()
        except Exception:
            # A bug of ours. The workers learn it from their lifeline; the service manager starts us again.
            self._log.critical("the master ends with an error of its own", exc_info=True)
            self._workers.send_all(SIGQUIT)
            self._workers.zygotes.close()
            self._close_control()
            self._rollover.close()
            startup.clean_up()
            self._signals.end(1)
            return 1
        self._workers.zygotes.close()
        call_hook(self._log, "on_exit", self._server.cfg.on_exit, self._server)
        self._close_control()
        self._rollover.close()
        startup.clean_up()
        self._signals.end(ExitStatus.OK if self._fatal is None else self._fatal.exit_status)
        release_standard_streams()
        if self._fatal is not None:
            self._tell(self._fatal)
            raise self._fatal
        self._log.info("stopped (pid %d)", self._server.pid)
        return ExitStatus.OK

    def _start(self, startup: ServerResources, interrupt: StartInterrupt) -> None:
        """Do everything that comes before the loop. Raises WsgiservError, KeyboardInterrupt; then all is taken back."""
        try:
            if self._settings.daemon and self._predecessor is None:
                self._foreground = daemonize()
            startup.check_descriptors()
            # Before there is a pid file: whoever reads it may send any of the signals.
            self._signals = SignalQueue()
            interrupt.arm()
            generation = startup.start(interrupt)
            self._server = startup.server
            self._rollover = Reload(generation, startup)
            if self._foreground is not None:
                silence_standard_streams(
                    keep_output=self._settings.capture_output and self._settings.errorlog != "-"
                )
                renew_standard_streams()
                self._is_silent = True
            guard_standard_streams()
            self._workers = Workers(self._server, self._signals, self._log)
            self._fleet = self._workers.fleet
            self._recycler = Recycler(self._workers.recycle)
            self._succession = Succession(self._invocation, self._signals, self._log)
            if not self._control_waits:
                with interrupt.held():
                    self._control = self._open_control()
            self._signals.arm()
            raise_if_dropped()
        except WsgiservError as error:
            interrupt.end()
            startup.clean_up()
            self._tell(error)
            raise
        except KeyboardInterrupt:
            self._close_control()
            raise
        except BaseException:
            interrupt.end()
            startup.clean_up()
            raise

    def _tell(self, error: WsgiservError) -> None:
        """Log an error that ends the server, where the caller's line on the terminal is not in the log already."""
        if self._settings.errorlog != "-" or self._is_silent:
            traceback = error.traceback if isinstance(error, ApplicationError) else ""
            self._log.critical("%s%s", error, f"\n{traceback.rstrip()}" if traceback else "")
        self._tell_foreground(error)

    def _tell_foreground(self, error: WsgiservError) -> None:
        if self._foreground is None:
            return
        self._foreground.failed(error)
        if not self._is_silent:
            silence_standard_streams(keep_output=False)  # the process in front says it, on the same terminal

    def _tell_predecessor_of_stop(self) -> None:
        if self._predecessor is not None:
            self._predecessor.failed(TOLD_TO_STOP)

    # ---- the loop --------------------------------------------------------------------------------------

    def _loop(self) -> None:
        """Do what the plan says, sleep until something happens, note it; until the last worker has left."""
        while True:
            if self._stop:
                # The workers hold the sockets until they have answered all that waits in the backlog. Ours go before
                # they are told: who comes later is refused at once, instead of waiting for nobody and being reset.
                self._rollover.close_listeners()
            until = self._act()
            now = monotonic()
            if until is None:
                until = self._succession.ends_by(now)
                if until is None:
                    return
            if self._drain_until is not None and not self._stop:
                until = min(until, self._drain_until)
            if not self._stop:
                until = min(until, self._recycler.look(self._fleet.workers, now), self._follow_load(now))
                until = min(until, self._rollover.renew_ticket_keys(now))
            newest = self._rollover.newest
            until = min(
                until,
                self._workers.tell_waiters(now, newest.number, newest.workers),
                self._manager.look(now, self._status_line),
            )
            self._sleep(until)
            say_lost_messages()
            self._answer_signals()
            self._workers.read_reports()
            self._reap_successors()  # before the workforce waits for orphans of any kind
            self._workers.reap(self._answer_signals)
            self._hear_successor()
            self._announce()
            if self._drain_until is not None and monotonic() >= self._drain_until:
                self._stop_now("graceful", "drained")
            self._begin_upgrade()
            self._begin_reload()

    def _follow_load(self, now: float) -> float:
        """Want more workers or fewer as the load is (``workers_min``, ``workers_max``); return when to look again."""
        rollover = self._rollover
        if rollover.under_way or self._is_upgrading or self._drain_until is not None:
            return inf
        generation = rollover.current
        if self._scaler is None:
            if generation.settings.workers_max is None:
                return inf
            from wsgiserv.master.load import Scaler

            self._scaler = Scaler(lambda: rollover.current.listeners, self._log.info)
        wanted, again = self._scaler.look(self._fleet.workers, generation.workers, generation.settings, now)
        if wanted is not None:
            generation.workers = wanted
            self._log.info("%s", self._scaler.explain())
            self._server.set_num_workers(wanted)
        return again

    def _begin_reload(self) -> None:
        """Begin the reload that was asked for, when none is under way and nobody is about to take over."""
        busy = self._rollover.under_way or self._is_upgrading or self._is_stopping
        if self._rollover.waiting and self._is_up and not busy:
            self._manager.reload_begins()
            self._rollover.begin(self._reload_settings)
            if not self._rollover.under_way:
                self._manager.ready(self._status_line())

    @property
    def _is_up(self) -> bool:
        """Whether the start is over: this master serves, and alone, as far as it is the next one of another."""
        return self._fleet.ever_ready and (self._predecessor is None or self._announced)

    @property
    def _is_stopping(self) -> bool:
        """Whether the stop has begun, if only with draining."""
        return bool(self._stop) or self._drain_until is not None

    @property
    def _is_upgrading(self) -> bool:
        """Whether a next master is starting, or about to be started."""
        return bool(self._upgrades) or self._succession.under_way

    def _act(self) -> float | None:
        """Carry out actions until there is nothing left to do now; return the time to wake, None at the end."""
        while True:
            settings = self._rollover.newest.settings
            target = Target(
                self._rollover.wanted(),
                self._stop,
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
        if self._succession.successor is not None and self._succession.under_way:
            poller.register(self._succession.successor.fileno(), POLLIN)
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
        if self._stop:
            return  # a spawn of the same plan has failed for good
        generation = self._rollover.generation(action.generation)

        def close_others() -> None:
            self._rollover.close_foreign(generation)
            self._close_in_child()

        try:
            self._workers.spawn(generation, close_others)
        except BootError as error:
            self._end(error)

    def _close_in_child(self) -> None:
        """Close the lines to others that are the master's alone: in a worker, or in a child that a hook has forked."""
        if self._foreground is not None:
            self._foreground.close()
        if self._predecessor is not None:
            self._predecessor.close()
        log_files.close_in_child()
        if self._control is not None:
            self._control.close_in_child()
        succession = getattr(self, "_succession", None)  # none while the server starts
        if succession is not None:
            succession.close_in_child()

    def _end(self, error: WsgiservError) -> None:
        """Stop at once, to end with ``error``."""
        self._fatal = error
        self._stop = "fast"
        self._workers.stopping = True
        self._abandon_what_waits(at_once=True)

    def _promote(self) -> None:
        seconds = self._rollover.promote(monotonic())
        self._workers.keep_generation(self._rollover.current.number)
        self._log.info(
            "reloaded: %s in %.2f s; the old ones retire", _workers(self._rollover.current.workers), seconds
        )
        self._manager.ready(self._status_line())

    def _abandon(self, reason: str) -> None:
        self._log.error(
            "the reload has failed, the old workers and settings stay. The new workers cannot boot: %s",
            reason,
        )
        self._rollover.abandon(reason)
        self._workers.keep_generation(self._rollover.current.number, reopen_logs=True)
        self._manager.ready(self._status_line())

    def _give_up(self, action: GiveUp) -> None:
        if action.status == ExitStatus.APPLICATION:
            self._end(ApplicationError(action.reason, action.report.traceback if action.report else ""))
        elif action.status == ExitStatus.CONFIG:
            self._end(ConfigError(action.reason))
        else:
            tried = "" if action.report else " Several were tried; the lines above say how each ended."
            self._end(BootError(f"the workers cannot boot: {action.reason.rstrip('.')}.{tried}"))

    def _announce(self) -> None:
        """Say once that all is up."""
        if self._announced or self._stop or not self._fleet.ever_ready:
            return
        if self._foreground is not None:
            self._foreground.started()
        current = self._rollover.current
        serving = sum(each.serving for each in self._fleet.workers if each.generation == current.number)
        if serving >= current.workers:
            self._announced = True
            self._startup.take_over()
            if self._control_waits:
                self._control = self._open_control()
            self._manager.ready(self._status_line())
            self._log.info("ready: %s in %.2f s", _workers(serving), monotonic() - current.began_at)

    # ---- signals ---------------------------------------------------------------------------------------

    def _answer_signals(self) -> None:
        for signal in self._signals.take():
            self._answer(signal)

    def _answer(self, signal: Signals) -> None:
        if signal == SIGCHLD:
            return  # it has woken the loop, which reaps
        self._log.debug("got %s", signal.name)
        if signal == SIGTERM:
            self._terminate()
        elif signal in (SIGINT, SIGQUIT):
            self._hear_successor()
            self._begin_stop("fast", signal.name)
        elif signal == SIGUSR1:
            self._reopen_logs()
        elif self._stop or (signal in (SIGHUP, SIGUSR2) and self._is_stopping):
            self._log.info("%s is ignored: the server is stopping", signal.name)
        elif signal == SIGHUP:
            if self._rollover.under_way or not self._is_up:
                self._log.info("SIGHUP: a start or a reload is under way; this one comes after it")
            self._manager.reload_asked()
            self._rollover.waiting.append(_nobody_waits)
        elif signal == SIGTTIN:
            self._change_workers(+1)
        elif signal == SIGTTOU:
            self._change_workers(-1)
        elif signal == SIGWINCH:
            self._retire_all()
        elif signal == SIGUSR2:
            self._upgrade(_nobody_waits)

    def _terminate(self) -> None:
        """SIGTERM: a graceful stop; during an upgrade the next master goes on, and this one leaves after it.

        A second one means both masters. That the next one serves may have been said and not been heard yet.
        """
        if self._leaves:
            self._hear_successor()
            self._stop_now("graceful", "SIGTERM, a second time")
        elif self._is_upgrading and not self._is_stopping:
            self._leaves = True
            self._log.info(
                "SIGTERM during an upgrade: this master leaves when the next one serves, and stops if that fails; "
                "a second SIGTERM stops both"
            )
        else:
            self._begin_stop("graceful", "SIGTERM")

    def _begin_stop(self, how: Literal["graceful", "fast"], why: str) -> None:
        delay_s = self._server.cfg.drain_delay
        # A next master that does not serve yet has nobody who would have to be told.
        is_alone = self._predecessor is None or self._announced
        if how == "graceful" and delay_s and is_alone and not self._is_stopping:
            self._abandon_what_waits(at_once=False)
            self._workers.drain()
            self._log.info(
                "%s: draining for %g s: still accepting, responses say Connection: close",
                why,
                delay_s,
            )
            self._drain_until = monotonic() + delay_s
        else:
            self._stop_now(how, why)

    def _stop_now(self, how: Literal["graceful", "fast"], why: str) -> None:
        self._drain_until = None
        if self._stop == "fast" or self._stop == how:
            return
        count = len(self._fleet.workers)
        if how == "graceful":
            limit = max((worker.graceful_timeout for worker in self._fleet.workers), default=0)
            self._log.info(
                "%s: stopping gracefully: up to %g s for %s to finish", why, limit, _workers(count)
            )
        else:
            self._log.info("%s: stopping at once: %s", why, _workers(count))
        self._stop = how
        self._workers.stopping = True
        self._abandon_what_waits(at_once=how == "fast")
        if not self._workers.followed:
            # The sockets of a next master that has not taken over are the old one's, too, which may go on.
            self._workers.hand_over_no_more(for_good=self._predecessor is None or self._announced)
        self._workers.dismiss_zygotes()
        if self._predecessor is None or self._announced:
            self._manager.stopping()
        else:
            self._tell_predecessor_of_stop()

    def _abandon_what_waits(self, *, at_once: bool) -> None:
        """This master stops: end what is starting in its place, and tell who waits for anything else."""
        cfg = self._server.cfg
        self._leaves = False
        self._succession.cancel(at_once=at_once, longest_s=cfg.graceful_timeout + cfg.drain_delay)
        successor = self._succession.successor
        why = (
            f"overtaken: the next master (pid {successor.pid}) serves, ask that"
            if successor is not None and successor.ready
            else "overtaken: the server is stopping"
        )
        upgrades, self._upgrades = self._upgrades, []
        for done in upgrades:
            done(False, why)
        self._rollover.tell_overtaken(why, also_waiting=True)
        self._workers.tell_overtaken(why)

    def _upgrade(self, done: Done) -> None:
        """Start the next master beside this one, or after the start or reload that is under way."""
        self._upgrades.append(done)
        if self._rollover.under_way or not self._is_up:
            self._log.info("upgrade: a start or a reload is under way; this comes after it")

    def _begin_upgrade(self) -> None:
        if self._rollover.under_way or not self._is_up or self._is_stopping:
            return
        upgrades, self._upgrades = self._upgrades, []
        for done in upgrades:
            self._start_successor(done)
        if self._leaves and not self._succession.under_way:  # it could not be started
            self._begin_stop("graceful", "SIGTERM")

    def _start_successor(self, done: Done) -> None:
        server, startup = self._server, self._startup
        self._succession.begin(
            done,
            listeners=self._rollover.current.listeners,
            handoff=startup.handoff.fds() if startup.handoff is not None else None,
            activated=startup.inherited,
            before_exec=lambda: call_hook(self._log, "pre_exec", server.cfg.pre_exec, server),
        )

    def _hear_successor(self) -> None:
        successor = self._succession.hear(stops=self._leaves)
        if successor is None:
            return
        if successor.ready:
            self._manager.followed_by(successor.pid)
            self._startup.leave_to_successor()
            self._workers.followed = True
            self._stop_now("graceful", "upgraded")
        elif self._leaves:
            self._begin_stop("graceful", "SIGTERM")

    def _reap_successors(self) -> None:
        """Wait for next masters that have ended."""
        ended = self._succession.reap()
        successor = self._succession.successor
        if self._workers.followed and successor is not None and successor.pid in ended:
            self._log.error(
                "the next master (pid %d) has ended; nobody goes on with this server", successor.pid
            )
            self._workers.followed = False
            self._workers.hand_over_no_more(for_good=True)

    def _reopen_logs(self) -> None:
        reopen_error_log()
        self._log.info("the logs are reopened")
        self._workers.reopen_logs()

    def _change_workers(self, by: int) -> None:
        generation = self._rollover.newest
        if generation.workers + by < 1:
            self._log.info("SIGTTOU: one worker is the least; SIGWINCH retires it")
            return
        most = self._most_workers()
        if by > 0 and generation.workers >= most:
            self._log.warning("SIGTTIN is ignored: %s are the most that can be asked for", _workers(most))
            return
        generation.workers += by
        self._log.info("%s: %s wanted", "SIGTTIN" if by > 0 else "SIGTTOU", _workers(generation.workers))
        self._server.set_num_workers(generation.workers)

    def _most_workers(self) -> int:
        return most_workers(self._rollover.newest.settings)

    def _scale(self, count: int) -> None:
        generation = self._rollover.newest
        generation.workers = count
        self._log.info("%s wanted", _workers(count))
        self._server.set_num_workers(count)

    # ---- what others are told ------------------------------------------------------------------------

    @property
    def _control_waits(self) -> bool:
        """Whether the control socket is not ours before we serve: the old master has the path until then."""
        return self._predecessor is not None and self._settings.control_socket is not None

    def _open_control(self) -> ControlServer | None:
        commands = MasterCommands(
            self._rollover,
            self._workers,
            status=self._status,
            scale=self._scale,
            most_workers=self._most_workers,
            upgrade=self._upgrade,
            stop=lambda now: (
                self._stop_now("fast", "wsgiservctl stop --now")
                if now
                else self._begin_stop("graceful", "wsgiservctl stop")
            ),
            reopen_logs=self._reopen_logs,
            is_stopping=lambda: bool(self._stop),
            is_draining=lambda: self._drain_until is not None,
        )
        follows = self._predecessor.pid if self._predecessor is not None else 0
        environ = self._invocation.environ if self._invocation is not None else os.environ
        return control_server(self._settings, commands, self._log, environ, follows=follows)

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()

    @property
    def _state(self) -> ServerState:
        if self._stop:
            return "stopping"
        if self._drain_until is not None:
            return "draining"
        if self._is_upgrading:
            return "upgrading"
        if self._rollover.under_way or self._rollover.waiting:
            return "reloading"
        return "running" if self._announced else "starting"

    def _facts(self) -> ServerFacts:
        rollover = self._rollover
        settings = rollover.current.settings
        return ServerFacts(
            pid=self._server.pid,
            started_at=self._startup.began_at,
            state=self._state,
            application=settings.wsgi_app or "",
            bind=[str(listener) for listener in rollover.current.listeners],
            generation=rollover.current.number,
            wanted=rollover.newest.workers,
            last_reload=rollover.last,
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
            self._log.debug("SIGWINCH is ignored: it is a terminal that has changed its size")
            return
        self._log.info("SIGWINCH: the workers retire, the master stays; SIGHUP or SIGTTIN brings them back")
        self._workers.hand_over_no_more()
        self._rollover.tell_overtaken("overtaken: SIGWINCH has retired the workers", also_waiting=False)
        self._rollover.pause()
        self._server.set_num_workers(0)


def _nobody_waits(good: bool, reason: str) -> None:
    """What is called at the end of what a signal has asked for: the log has said it."""


def _workers(count: int) -> str:
    return counted(count, "worker")


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, which sends SIGWINCH when its size changes."""
    try:
        close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
