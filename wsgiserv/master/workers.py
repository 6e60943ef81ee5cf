"""Spawns the workers, signals them, reads their reports, and reaps them, as `policy.plan` decides."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from os import WNOHANG, close, pipe, urandom, wait4
from signal import SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGWINCH
from time import monotonic, sleep
from typing import Final

from wsgiserv.boot import Report
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ExitStatus
from wsgiserv.hooks import call_hook, call_hook_or_stop
from wsgiserv.ipc import MessageError
from wsgiserv.logs.access import KILLED, log_lost_requests
from wsgiserv.logs.error import reopen_error_log, take_over_losses
from wsgiserv.master.crash_report import CrashReporter, describe_exit, is_told_to_end, needs_report, request_lines
from wsgiserv.master.generation import Generation
from wsgiserv.master.hooks_server import HookServer
from wsgiserv.master.policy import BACKOFF_LONGEST_S, CRASH_WINDOW_S, EARLY_S, Fleet, Send
from wsgiserv.master.recycling import too_large_at_boot
from wsgiserv.master.signals import SignalQueue
from wsgiserv.master.spawn import Parent, fork_worker, new_handle
from wsgiserv.master.waiters import Waiters
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.master.zygote_client import Answer, ZygoteClients
from wsgiserv.process import Ended, add_child_cleanup, reap, send_signal
from wsgiserv.scoreboard import DRAINING, FOR_GOOD, HEARTBEAT, LINGERING, LISTENING, STOPPING, SlotFigures
from wsgiserv.wording import counted

# So long after a worker has died of a signal to the process group the master has it, too.
_GROUP_S: Final = 0.002
_MOST_VACANT: Final = 1000


class Workers:
    """The workers of one master.

    Args:
        server: the master as hooks see it; its WORKERS are kept here.
        signals: the master's signals.
        log: the error log.

    Attributes:
        fleet: the workers, and how they have failed.
        gone: the totals of exited workers.
        crashes: writes the crash reports; its `reports` are for the status.
        zygotes: the zygotes, with the workers requested of them.
        waiters: commands to answer later.
        is_stopping: whether the server stops: then the log tells of no more boots and crash loops.
    """

    def __init__(self, server: HookServer, signals: SignalQueue, log: logging.Logger) -> None:
        self.fleet = Fleet()
        self.gone = SlotFigures()
        self.crashes = CrashReporter(log)
        self._server = server
        self._log = log
        self._parent = Parent(signals, log, server, pipe())
        self.zygotes = ZygoteClients(self._parent)
        self.waiters = Waiters(self.fleet)
        self.is_stopping = False
        self._is_draining = False
        self._is_warned_of_headers = False
        # The process ids of the workers that have crashed or were killed, and have no replacement yet. Bounded: where
        # nothing can be forked for long, they are never taken out.
        self._vacant: deque[int] = deque(maxlen=_MOST_VACANT)
        add_child_cleanup(self._leave)
        add_child_cleanup(lambda: close(self._parent.lifeline[0]))

    def close(self) -> None:
        """Close the lifeline, when the server has ended: this process may go on as a program."""
        for fd in self._parent.lifeline:
            close(fd)

    def read_heartbeats(self) -> None:
        """Copy each worker's last sign of life from the scoreboard, and whether it is busy; look at their memory."""
        for worker in self.fleet.workers:
            if worker.slot is not None:
                worker.heartbeat = worker.slot.seconds[HEARTBEAT]
                worker.is_busy = worker.slot.is_busy()
                worker.lingers = bool(worker.slot.words[LINGERING]) and not worker.is_busy
        self.crashes.look(self.fleet.workers, monotonic())

    def others_accept(self, generation: int) -> bool:
        """Return whether workers of other generations accept connections."""
        others = [worker for worker in self.fleet.workers if worker.generation != generation]
        return any(worker.slot is not None and worker.slot.words[LISTENING] for worker in others)

    # ---- spawning ------------------------------------------------------------------------------------

    def spawn(self, generation: Generation, close_others: Callable[[], None]) -> None:
        """Fork a worker of ``generation``; ``close_others`` closes, in the child, the master's other descriptors.

        Raises:
            BootError: pre_fork raises before any worker has been ready.
            ForkedChild: in the child.
        """
        settings, server = generation.settings, self._server
        # Never used again, other than process ids: the waiting commands and the recycler know workers by it.
        server.worker_age += 1
        handle = new_handle(self._parent, settings, server.worker_age, generation.number, monotonic())

        def leave() -> None:
            self._leave()
            close_others()

        changes = self._call_pre_fork(settings, handle)
        slot = generation.pool.take()
        # Before the fork: its first response says so already (Connection: close).
        slot.words[DRAINING] = self._is_draining
        try:
            if generation.preload is not None:
                self.zygotes.request(handle, generation, slot, leave, changes)
            else:
                fork_worker(self._parent, generation, handle, slot, leave)
        except OSError as error:
            # Out of processes, descriptors or memory: that may pass, and the policy backs off.
            generation.pool.give_back(slot)
            self._log.error("WS1204 cannot fork a worker: %s. See ulimit -u and -n, and the memory.", error.strerror)
            reason, now = f"the system cannot start a process: {error.strerror}", monotonic()
            self.fleet.boot_failed(generation.number, now, reason, now, _jitter())
            return
        handle.slot, handle.pool = slot, generation.pool
        if self._vacant:
            handle.replaces = self._vacant.popleft()
        self.fleet.workers.append(handle)
        if handle.pid:
            self._on_spawned(handle)

    def _call_pre_fork(self, settings: Settings, handle: WorkerHandle) -> dict[str, str | None]:
        """Call the hook; return its changes of the environment, where None takes a variable out. Raises BootError."""
        if settings.pre_fork is None:
            return {}
        before = dict(os.environ)
        # Later a raising hook costs no more than its log line: a server that serves is not stopped for it.
        call = call_hook if self.fleet.ever_ready else call_hook_or_stop
        call(self._log, "pre_fork", settings.pre_fork, self._server, handle.view)
        return {
            name: os.environ.get(name)
            for name in before.keys() | os.environ.keys()
            if before.get(name) != os.environ.get(name)
        }

    def _leave(self) -> None:
        """Called in a child: close the master's descriptors."""
        close(self._parent.lifeline[1])
        for sibling in self.fleet.workers:
            sibling.close_pipes()
        self.zygotes.close_in_child()

    def _on_spawned(self, worker: WorkerHandle) -> None:
        self._server.WORKERS[worker.pid] = worker.view
        self._log.debug("worker %d (age %d) forked", worker.pid, worker.age)

    def _on_answers(self, answers: Sequence[Answer]) -> None:
        """Note the outcome of requests to zygotes."""
        for answer in answers:
            worker = answer.worker
            is_wanted = worker in self.fleet.workers
            if answer.state == "spawned":
                self._on_spawned(worker)
                if not is_wanted:  # the request was withdrawn too late
                    self.fleet.workers.append(worker)
                    signal = SIGTERM if worker.quit_at is None else SIGQUIT
                    self.send(Send(worker, signal, "is no longer wanted"))
                continue
            if is_wanted and answer.state == "failed":
                # A zygote that cannot load the application says so in the worker's own pipe.
                self._read_reports_of(worker, is_alive=False)
                self.fleet.died(worker, _with_reason(worker, answer.reason), monotonic(), _jitter())
            worker.close_pipes()
            worker.give_slot_back()
            self.waiters.on_exit(worker, "the worker was not there yet, and will not be")

    # ---- signals -------------------------------------------------------------------------------------

    def send(self, action: Send) -> None:
        """Send the signal, note it in the worker's handle and say so in the log."""
        worker, signal, reason = action
        now = monotonic()
        if not worker.pid:
            self._send_before_spawn(action, now)
            return
        if signal in (SIGTERM, SIGQUIT):  # in the course of things; SIGABRT and SIGKILL are not
            self._log.debug("worker %d %s: sending %s", worker.pid, reason, signal.name)
        else:
            if not worker.sent_because and worker.ready_at is not None and not worker.retires:
                self._vacant.append(worker.pid)  # its replacement does not wait for its exit
            words = (worker.pid, reason, signal.name, worker.life(now))
            if worker.quit_at is not None:  # a fast stop is meant to cut requests
                self._log.info("worker %d %s: sending %s (%s)", *words)
            else:
                self._log.error("WS1203 worker %d %s: sending %s (%s)", *words)
        # Noted first: its exit must be known for an answer to this signal.
        worker.note_sent(signal, reason, now)
        send_signal(worker.pid, signal)

    def _send_before_spawn(self, action: Send, now: float) -> None:
        """Do the like of a signal for a worker without a process: to its request, or to its zygote."""
        worker, signal, reason = action
        worker.note_sent(signal, reason, now)
        if signal in (SIGTERM, SIGQUIT):
            self.fleet.died(worker, "was not there yet", now, 1.0)
            worker.close_pipes()  # the zygote sees that; the slot is kept until it has answered
        elif zygote := self.zygotes.zygote_of(worker):
            zygote.signal(worker, signal, reason)

    def quit_all(self) -> None:
        """Tell every worker to leave at once, whatever state it is in. Called after a bug in the master."""
        for worker in self.fleet.workers:
            send_signal(worker.pid, SIGQUIT)
        self.zygotes.close()

    def reopen_logs(self) -> None:
        """Reopen the logs, and tell the workers to reopen theirs."""
        # The master first: workers that may not open a file (another user's) get its descriptor.
        reopen_error_log()
        self._log.info("logs reopened")
        for worker in self.fleet.workers:
            # Before it is ready a worker may not have its handlers yet, and the signal would kill it.
            if worker.ready_at is None:
                worker.reopen_when_ready = True
            else:
                send_signal(worker.pid, SIGUSR1)
        self.zygotes.reopen_logs()

    def hand_over_no_more(self, *, for_good: bool = False) -> None:
        """Tell all workers, leaving ones too, to hand over no more connections: no process would take them.

        Args:
            for_good: whether the listening sockets are closed, too.
        """
        self._tell(STOPPING, FOR_GOOD if for_good else 1)
        for worker in self.fleet.workers:
            if worker.leaving and worker.ready_at is not None:
                # It would look within a second. This signal says nothing to a worker, but wakes it.
                send_signal(worker.pid, SIGWINCH)

    def drain(self) -> None:
        """Tell all workers, future ones too: the server is about to stop."""
        self._is_draining = True
        self._tell(DRAINING, 1)

    def _tell(self, word: int, value: int) -> None:
        # Through the scoreboard: a signal could not reach a worker that is still booting.
        for worker in self.fleet.workers:
            if worker.slot is not None:
                worker.slot.words[word] = value

    def dismiss_zygotes(self) -> None:
        """End the zygotes. Called before the workers are told to leave."""
        self._on_answers(self.zygotes.dismiss())

    def keep_generation(self, number: int, *, reopen_logs: bool = False) -> None:
        """Forget the failures of all other generations, and end their zygotes. Called when a reload is decided.

        Args:
            number: the generation in force.
            reopen_logs: whether the master has changed its logs meanwhile.
        """
        self.fleet.forget_others(number)
        self.zygotes.keep_generation(number)
        if reopen_logs:  # workers to come would write into the log of the abandoned settings
            self.zygotes.reopen_logs()

    # ---- reports -------------------------------------------------------------------------------------

    def read_reports(self) -> None:
        """Note the answers of the zygotes and the reports of the workers."""
        # First: a worker of a zygote may have reported already, and its process id must be known.
        self._on_answers(self.zygotes.hear())
        # A copy: a corrupt message has its worker killed, and one that was never forked leaves the list.
        for worker in list(self.fleet.workers):
            self._read_reports_of(worker)

    def _read_reports_of(self, worker: WorkerHandle, is_alive: bool = True) -> None:
        if worker.reader is None:
            return
        try:
            reports, closed = worker.reader.read_reports()
        except MessageError as error:
            worker.close_reader()
            if is_alive:
                self._replace_corrupt(worker, error)
            return
        if reports and not worker.pid:
            # A worker says nothing before its zygote has told of it: that can be read now.
            self._on_answers(self.zygotes.hear())
        if closed:
            # An end of file is no exit: the application may have closed the descriptor. wait4(2) tells of exits.
            worker.close_reader()
        for report in reports:
            self._on_report(worker, report, monotonic())

    def _on_report(self, worker: WorkerHandle, report: Report, now: float) -> None:
        if report.state == "ready" and worker.generation not in self.fleet.proven:
            # Of later ones the size is not checked: what serves, if shortly, is better than nothing.
            too_large = too_large_at_boot(worker.pid, worker.settings)
            if too_large:
                report = Report("failed", too_large, "", ExitStatus.CONFIG)
        # Both before `reported` changes them. All workers fail alike: one traceback is enough.
        known = self.fleet.failures.get(worker.generation)
        is_repeated = known is not None and known.reason == report.reason
        is_news = not worker.retires
        self.fleet.reported(worker, report, now, _jitter())
        match report.state:
            case "ready":
                self._log_ready(worker, now)
                if worker.reopen_when_ready:
                    send_signal(worker.pid, SIGUSR1)
            case "retiring" if is_news:
                self._log.info("worker %d retires: %s", worker.pid, report.reason)
            case "recycle":
                self._log_recycling(worker)
            case "passed_headers":
                self._warn_of_passed_headers(report.reason)
            case "trace":
                self.waiters.on_trace(worker, report.reason)
            # Before anything has been ready the end of the start says it, once.
            case "failed" if self.fleet.ever_ready and not self.is_stopping:
                traceback = "" if is_repeated or not report.traceback else f"\n{report.traceback.rstrip()}"
                subject = f"worker {worker.pid}" if worker.pid else "the zygote"
                self._log.error("WS1205 %s cannot boot: %s%s", subject, report.reason, traceback)

    def _warn_of_passed_headers(self, advice: str) -> None:
        # Each worker reports it once, and workers come and go.
        if not self._is_warned_of_headers:
            self._is_warned_of_headers = True
            self._log.warning("WS1077 forwarded_allow_ips is not set: %s (this is said once)", advice)

    def _log_ready(self, worker: WorkerHandle, now: float) -> None:
        age_s = now - worker.spawned_at
        if worker.replaces:  # the log has told of a crash, and now tells that it is mended
            self._log.info("worker %d replaces worker %d: ready after %.2f s", worker.pid, worker.replaces, age_s)
        else:
            self._log.debug("worker %d is ready after %.2f s", worker.pid, age_s)

    def _replace_corrupt(self, worker: WorkerHandle, error: MessageError) -> None:
        """Have a worker replaced after a corrupt message; its pipe is closed."""
        self._log.error(
            "WS1206 worker %d: corrupt message on its readiness pipe (%s): the worker is replaced. The application, "
            "or a library of its own, writes to descriptors that it has not opened.",
            worker.pid,
            error,
        )
        if worker.serving:
            worker.recycle("corrupt message on its readiness pipe", monotonic())
        elif not worker.leaving:
            self.send(Send(worker, SIGKILL, "sent a corrupt message on its readiness pipe while it booted"))

    def recycle(self, worker: WorkerHandle, reason: str) -> None:
        """Have ``worker`` replaced: it serves until its replacement is ready."""
        if worker.recycle_at is None and not worker.leaving:
            worker.recycle(reason, monotonic())
            self._log_recycling(worker)

    def _log_recycling(self, worker: WorkerHandle) -> None:
        self._log.info("worker %d is to be replaced: %s", worker.pid, worker.recycle_reason)

    # ---- exits ---------------------------------------------------------------------------------------

    def reap(self, answer_signals: Callable[[], object]) -> None:
        """Note the exited workers. Waits for our workers only: a hook's own children are the hook's.

        Args:
            answer_signals: has the master answer its pending signals.
        """
        exits = [(worker, end) for worker in self.fleet.workers if worker.pid and (end := reap(worker.pid))]
        if not self.is_stopping and any(is_told_to_end(worker, end.wait_status) for worker, end in exits):
            # A signal to the whole process group reaches the youngest first, and this process last.
            sleep(_GROUP_S)
            answer_signals()
        for worker, end in exits:
            self._on_exit(worker, end)
        self._on_answers(self.zygotes.reap())
        if self._server.pid == 1 or self.zygotes.inherits_orphans:
            self._reap_orphans()

    def _reap_orphans(self) -> None:
        """As process 1 of a container, and with zygotes, we inherit orphans: zombies unless we wait for them."""
        workers = {worker.pid: worker for worker in self.fleet.workers if worker.pid}
        zygotes = {zygote.pid: zygote for zygote in self.zygotes.zygotes}
        while True:
            try:
                pid, status, usage = wait4(-1, WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in workers:
                self._on_exit(workers[pid], Ended(status, usage.ru_maxrss))
            elif pid in zygotes:
                self._on_answers(self.zygotes.on_exit(zygotes[pid], status))

    def _on_exit(self, worker: WorkerHandle, end: Ended) -> None:
        """Note an exit: the last reports, the fleet, the log, the waiting commands, the hook, the slot."""
        # First its last reports, which may be in the pipe still: they may say why it exits.
        self._read_reports_of(worker, is_alive=False)
        now, status = monotonic(), end.wait_status
        how = describe_exit(status)
        from_outside = not worker.sent_because and self.crashes.is_killed_from_outside(status, now)
        unasked = self.fleet.died(worker, _with_reason(worker, how), now, _jitter(), from_outside)
        self._server.WORKERS.pop(worker.pid, None)
        if needs_report(worker, status, unasked and not self.is_stopping):
            self.crashes.report(worker, end, now)
        else:
            self._log.debug("worker %d (age %d) %s (%s)", worker.pid, worker.age, how, worker.life(now))
            self._log_cut_requests(worker, how, now)
        if not self.is_stopping:
            self._note_vacancy(worker, unasked)
            self._log_crash_loop(worker.generation)
        worker.close_pipes()  # after the crash report, which reads the crash dump's file
        self.waiters.on_exit(worker, f"worker {worker.pid} has left: it {how}")
        call_hook(self._log, "child_exit", self._server.settings.child_exit, self._server, worker.view)
        self._sum_up(worker)
        # Last: the log lines above read the slot, and the next worker clears it.
        worker.give_slot_back()

    def _sum_up(self, worker: WorkerHandle) -> None:
        """Keep the figures of an exited worker."""
        if worker.slot is None:
            return
        figures = worker.slot.figures()
        # Its row is cleared and used again, and a total must not go down.
        self.gone = self.gone.plus(figures)
        # Error log lines that it lost, and had not told of: the master tells.
        take_over_losses(figures.untold_lines)
        if figures.waiting_lines:
            self._log.warning(
                "WS1207 worker %d: exited while the access log could not be written: %s lost with it",
                worker.pid,
                counted(figures.waiting_lines, "line", "is", "are"),
            )

    def _log_cut_requests(self, worker: WorkerHandle, how: str, now: float) -> None:
        """Log requests cut by a fast stop, unless the worker has."""
        lost = [each for each in worker.in_flight(now) if not each.logged]
        for line in request_lines(worker.pid, lost, len(lost)):
            self._log.info("cut: %s: it %s", line, worker.sent_because or how)
        if worker.settings is not None:
            log_lost_requests(worker.settings, self._log, worker.pid, lost, KILLED)

    def _note_vacancy(self, worker: WorkerHandle, unasked: bool) -> None:
        """Note a crashed or killed worker for the log line of its replacement."""
        if worker.ready_at is None:
            if worker.replaces and not worker.retires:
                self._vacant.appendleft(worker.replaces)
        elif unasked and not worker.retires:
            self._vacant.append(worker.pid)

    def _log_crash_loop(self, generation: int) -> None:
        loop = self.fleet.untold_loop(generation)
        if loop is not None:
            serving = sum(each.serving for each in self.fleet.workers)
            self._log.error(
                "WS1208 crash loop: %d workers have died within %g s of being ready in the last %g s: no new worker "
                "for %.1f s, and after each further death for longer, up to %g s; %s now",
                len(loop.times),
                EARLY_S,
                CRASH_WINDOW_S,
                loop.pause_s,
                BACKOFF_LONGEST_S,
                counted(serving, "worker", "serves", "serve"),
            )


def _with_reason(worker: WorkerHandle, how: str) -> str:
    return f"{how} (it {worker.sent_because})" if worker.sent_because else how


def _jitter() -> float:
    # Not `random`: the application may seed it, and then all servers would retry in step.
    return 0.75 + urandom(1)[0] / 512
