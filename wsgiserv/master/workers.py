"""The workers' processes: forked, signalled, listened to, reaped.

Owns: what is done to and heard of a worker, the `Fleet` that it is noted in, what the log says of it.
Must not know: what ought to be done about the workers, generations but by number, the master's signals.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from os import WNOHANG, close, pipe, urandom, wait4
from signal import SIGABRT, SIGKILL, SIGQUIT, SIGTERM, SIGTTOU, SIGUSR1, SIGWINCH, Signals
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from wsgiserv.boot import Report
from wsgiserv.errors import ExitStatus
from wsgiserv.hooks import call_hook, call_hook_or_stop
from wsgiserv.ipc import MessageError
from wsgiserv.logs.access import KILLED, log_lost_requests
from wsgiserv.logs.error import take_over_losses
from wsgiserv.master.classify_exit import (
    calls_for_certificate,
    died_how,
    in_flight_lines,
    is_told_to_end,
    life,
    lost_requests,
)
from wsgiserv.master.control import Done
from wsgiserv.master.crash_report import requests_in_words
from wsgiserv.master.exit_records import Coroner
from wsgiserv.master.generation import Generation
from wsgiserv.master.hooks_server import HookServer
from wsgiserv.master.policy import BACKOFF_LONGEST_S, CRASH_WINDOW_S, EARLY_S, Fleet, Send
from wsgiserv.master.recycling import too_large_at_boot
from wsgiserv.master.signals import SignalQueue
from wsgiserv.master.spawn import fork_worker
from wsgiserv.master.status import Totals
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.master.zygote_client import Cancelled, Failed, Nursery, Spawned
from wsgiserv.process import Ended, add_child_cleanup, reap, send_signal, state_of
from wsgiserv.scoreboard import DRAINING, FOR_GOOD, HEARTBEAT, LINGERING, STOPPING
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

_BOOT_S: Final = 30.0
# A worker whose main thread does not answer within this time is in C code.
_TRACE_S: Final = 2.0
# So long after a worker has died of a signal to the process group the master has it, too.
_GROUP_S: Final = 0.002
_MOST_VACANT: Final = 1000


class Workers:
    """The workers of one master.

    Args:
        server: the master as hooks see it; its WORKERS are kept here.
        signals: the master's signals, which a child leaves.
        log: the error log.

    Attributes:
        fleet: the workers, and how they have failed.
        stopping: set by the master when it stops: deaths are no news any more.
        gone: what the workers that have left have done.
        coroner: accounts for the dead; its `certificates` are for the status.
        nursery: the zygotes, and the workers that they have been asked for.
        followed: set when the next master's workers take over what these hand on.
    """

    def __init__(self, server: HookServer, signals: SignalQueue, log: logging.Logger) -> None:
        self.fleet = Fleet()
        self.stopping = False
        self.followed = False
        self._draining = False
        self.gone = Totals()
        self.coroner = Coroner(log)
        self._server = server
        self._signals = signals
        self._log = log
        self._lifeline = pipe()
        self.nursery = Nursery(signals, log, self._lifeline, server)
        self._scale_waiters: list[tuple[int, Done]] = []
        self._exit_waiters: dict[int, list[Done]] = {}
        self._traced: dict[int, list[tuple[float, Done]]] = {}
        # The workers that were killed, or have died, and in whose place another is to come.
        self._vacant: deque[int] = deque(maxlen=_MOST_VACANT)
        add_child_cleanup(self._leave)
        add_child_cleanup(lambda: close(self._lifeline[0]))

    def read_heartbeats(self) -> None:
        """Copy each worker's last sign of life from the scoreboard, and whether it is busy; look at their memory."""
        for worker in self.fleet.workers:
            if worker.slot is not None:
                worker.heartbeat = worker.slot.seconds[HEARTBEAT]
                worker.is_busy = worker.slot.is_busy()
                worker.lingers = bool(worker.slot.words[LINGERING]) and not worker.is_busy
        self.coroner.look(self.fleet.workers, monotonic())

    def spawn(self, generation: Generation, close_others: Callable[[], None]) -> None:
        """Fork a worker of ``generation``; ``close_others`` closes, in the child, what else is the master's.

        Raises BootError when pre_fork raises before any worker has been ready; in the child ForkedChild.
        """
        settings, server = generation.settings, self._server
        server.worker_age += 1
        handle = WorkerHandle(
            age=server.worker_age,
            generation=generation.number,
            spawned_at=monotonic(),
            timeout=settings.timeout,
            graceful_timeout=settings.graceful_timeout,
            boot_timeout=boot_timeout_of(settings),
            cfg=settings,
            log=self._log,
            ppid=server.pid,
        )

        def leave() -> None:
            self._leave()
            close_others()

        if self.fleet.ever_ready:
            call_hook(self._log, "pre_fork", settings.pre_fork, server, handle)
        else:
            call_hook_or_stop(self._log, "pre_fork", settings.pre_fork, server, handle)
        slot = generation.pool.take()
        # Before it lives: its first response says so already.
        slot.words[DRAINING] = self._draining
        try:
            if generation.preload is not None:
                self.nursery.request(handle, generation, slot, leave)
            else:
                fork_worker(
                    handle,
                    generation,
                    slot,
                    signals=self._signals,
                    lifeline=self._lifeline[0],
                    leave=leave,
                    master_pid=server.pid,
                    log=self._log,
                    server=server,
                )
        except OSError as error:
            generation.pool.give_back(slot)
            reason = f"the system cannot start a process: {error.strerror}"
            self._log.error("cannot fork a worker: %s (see ulimit -u and -n, and the memory)", error.strerror)
            self.fleet.spawn_failed(generation.number, reason, monotonic(), self._jitter())
            return
        handle.slot, handle.pool = slot, generation.pool
        if self._vacant:
            handle.replaces = self._vacant.popleft()
        self.fleet.workers.append(handle)
        if handle.pid:
            self._born(handle)

    def _leave(self) -> None:
        """Called in a child: close what is the master's, as far as it is here."""
        close(self._lifeline[1])
        for sibling in self.fleet.workers:
            if sibling.reader is not None:
                sibling.reader.close()
            if sibling.last_words is not None:
                sibling.last_words.close()
        self.nursery.close_in_child()

    def _born(self, worker: WorkerHandle) -> None:
        self._server.WORKERS[worker.pid] = worker
        self._log.debug("worker %d (age %d) forked", worker.pid, worker.age)

    def _hear_nursery(self, news: Sequence[Spawned | Cancelled | Failed]) -> None:
        """Note what has become of workers that zygotes were asked for."""
        for each in news:
            worker = each.worker
            is_expected = worker in self.fleet.workers
            if isinstance(each, Spawned):
                self._born(worker)
                if not is_expected:
                    # It was told to leave before it was there; too late for the zygote.
                    self.fleet.workers.append(worker)
                    signal = SIGTERM if worker.quit_at is None else SIGQUIT
                    self.send(Send(worker, signal, "it is not wanted any more"))
            elif is_expected and isinstance(each, Failed):
                self._lose(worker, each.because)
            else:
                self._forget(worker)

    def _lose(self, worker: WorkerHandle, how: str) -> None:
        """Note that ``worker`` will not be, though it was wanted."""
        self._read_reports_of(worker, is_alive=False)
        if worker.sent_because:
            how = f"{how} ({worker.sent_because})"
        self.fleet.died(worker, how, monotonic(), self._jitter())
        self._forget(worker)

    def _forget(self, worker: WorkerHandle) -> None:
        """Let go of what was kept for a worker that will not be."""
        self._hang_up(worker)
        for done in self._exit_waiters.pop(worker.age, []):
            done(True, "the worker was not there yet, and will not be")
        if worker.pool is not None and worker.slot is not None:
            worker.pool.give_back(worker.slot)
            worker.slot = None

    def _hang_up(self, worker: WorkerHandle) -> None:
        if worker.last_words is not None:
            worker.last_words.close()
            worker.last_words = None
        if worker.reader is not None:
            worker.reader.close()
            worker.reader = None

    def _send_unborn(self, action: Send) -> None:
        """Do what the plan wants done to a worker that has no process yet."""
        worker, signal, reason = action
        now = monotonic()
        if signal in (SIGTERM, SIGQUIT):
            worker.term_at = now if signal == SIGTERM else worker.term_at
            worker.quit_at = now if signal == SIGQUIT else worker.quit_at
            self.fleet.died(worker, "was not there yet", now, 1.0)
            self._hang_up(worker)  # which the zygote sees; the slot is kept until that has answered
            return
        if signal == SIGABRT:
            worker.abort_at = now
        else:
            worker.kill_at = now
        worker.sent_because = worker.sent_because or reason
        zygote = self.nursery.zygote_of(worker)
        if zygote is not None:
            zygote.signal(worker, signal, reason)

    def send(self, action: Send) -> None:
        """Send the signal, note it in the worker's handle and say so in the log."""
        worker, signal, reason = action
        if not worker.pid:
            self._send_unborn(action)
            return
        now = monotonic()
        if signal == SIGTERM:
            worker.term_at = now
            self._log.debug("worker %d is told to retire", worker.pid)
        elif signal == SIGQUIT:
            worker.quit_at = now
            self._log.debug("worker %d is told to leave at once", worker.pid)
        else:
            if signal == SIGABRT:
                worker.abort_at = now
            else:
                worker.kill_at = now
            if not worker.sent_because and worker.ready_at is not None and not _has_successor(worker):
                self._vacant.append(worker.pid)  # its successor does not wait for its end
            worker.sent_because = worker.sent_because or reason
            # A fast stop breaks off what is under way: that was the wish, and is no error.
            level = logging.INFO if worker.quit_at is not None else logging.ERROR
            self._log.log(
                level, "worker %d gets %s %s: %s", worker.pid, signal.name, life(worker, now), reason
            )
        send_signal(worker.pid, signal)

    def send_all(self, signal: Signals) -> None:
        """Send ``signal`` to every worker, whatever it does."""
        for worker in self.fleet.workers:
            send_signal(worker.pid, signal)

    def reopen_logs(self) -> None:
        """Tell the workers that the logs have been rotated."""
        for worker in self.fleet.workers:
            # Before it is ready a worker may not have its handlers yet, and the signal would kill it.
            if worker.ready_at is None:
                worker.reopen_when_ready = True
            else:
                send_signal(worker.pid, SIGUSR1)
        self.nursery.reopen_logs()

    def _jitter(self) -> float:
        return 0.75 + urandom(1)[0] / 512

    def read_reports(self) -> None:
        """Note what the zygotes and the workers have reported."""
        self._hear_nursery(self.nursery.hear())
        for worker in list(self.fleet.workers):
            self._read_reports_of(worker)

    def _read_reports_of(self, worker: WorkerHandle, is_alive: bool = True) -> None:
        if worker.reader is None:
            return
        try:
            reports, closed = worker.reader.read_reports()
        except MessageError as error:
            worker.reader.close()
            worker.reader = None
            if is_alive:
                self._replace_corrupt(worker, error)
            return
        if reports and not worker.pid:
            # A worker says nothing before its zygote has told of it: that can be read now.
            self._hear_nursery(self.nursery.hear())
        if closed and worker.reader is not None:
            worker.reader.close()
            worker.reader = None
        for report in reports:
            now = monotonic()
            if report.state == "ready" and worker.generation not in self.fleet.proven:
                # Later ones are let be: what serves, if shortly, is better than nothing.
                too_large = too_large_at_boot(worker.pid, worker.cfg)
                if too_large:
                    report = Report("failed", too_large, "", ExitStatus.CONFIG)
            known = self.fleet.failures.get(worker.generation)
            repeated = known is not None and known.reason == report.reason
            known_to_leave = worker.term_at or worker.quit_at or worker.retiring_at
            self.fleet.reported(worker, report, now, self._jitter())
            if report.state == "ready":
                self._tell_ready(worker, now)
                if worker.reopen_when_ready:
                    worker.reopen_when_ready = False
                    send_signal(worker.pid, SIGUSR1)
            elif report.state == "retiring" and known_to_leave is None:
                self._log.info("worker %d retires: %s", worker.pid, report.reason)
            elif report.state == "recycle":
                self._tell_recycling(worker)
            elif report.state == "trace":
                self._answer_trace(worker, report.reason)
            elif report.state == "failed":
                self._report_failure(worker, report, repeated)

    def _tell_ready(self, worker: WorkerHandle, now: float) -> None:
        age_s = now - worker.spawned_at
        if worker.replaces:
            self._log.info(
                "worker %d replaces worker %d: ready after %.2f s", worker.pid, worker.replaces, age_s
            )
        else:
            self._log.debug("worker %d is ready after %.2f s", worker.pid, age_s)

    def _replace_corrupt(self, worker: WorkerHandle, error: MessageError) -> None:
        """Have a worker replaced that has sent something else than reports: it is not heard any more."""
        self._log.error(
            "worker %d: corrupt message on its readiness pipe (%s): the worker is replaced. The application, or a "
            "library of its own, writes to descriptors that it has not opened.",
            worker.pid,
            error,
        )
        if worker.serving:
            worker.recycle("corrupt message on its readiness pipe", monotonic())
        elif not worker.leaving:
            self.send(Send(worker, SIGKILL, "corrupt message on its readiness pipe while it booted"))

    def recycle(self, worker: WorkerHandle, reason: str) -> None:
        """Have ``worker`` replaced: it serves until its successor is ready."""
        if worker.recycle_at is None and not worker.leaving:
            worker.recycle(reason, monotonic())
            self._tell_recycling(worker)

    def _tell_recycling(self, worker: WorkerHandle) -> None:
        self._log.info("worker %d is to be replaced: %s", worker.pid, worker.recycle_reason)

    # ---- what somebody waits for ---------------------------------------------------------------------

    def worker(self, pid: int) -> WorkerHandle | None:
        """Return the worker with this process id."""
        return next((worker for worker in self.fleet.workers if worker.pid == pid), None)

    def when_serving(self, count: int, done: Done) -> None:
        """Tell ``done`` when so many workers serve, no more and no fewer; or when another number is wanted."""
        self._scale_waiters.append((count, done))

    def when_gone(self, worker: WorkerHandle, done: Done) -> None:
        """Tell ``done`` when the worker has left."""
        self._exit_waiters.setdefault(worker.age, []).append(done)

    def trace(self, worker: WorkerHandle, done: Done) -> None:
        """Ask a worker what it does, and tell ``done``; or, if it cannot say, what the scoreboard knows."""
        self._traced.setdefault(worker.age, []).append((monotonic() + _TRACE_S, done))
        send_signal(worker.pid, SIGTTOU)

    def _answer_trace(self, worker: WorkerHandle, text: str) -> None:
        for _, done in self._traced.pop(worker.age, []):
            done(True, text or "it runs nothing")

    def tell_overtaken(self, why: str) -> None:
        """Tell those who wait for a number of workers that it will not be reached."""
        expected, self._scale_waiters = self._scale_waiters, []
        for _, done in expected:
            done(False, why)

    def tell_who_waits(self, now: float, newest: int, wanted: int) -> float:
        """Tell who has waited long enough, or for what has come about, or will not; return when to look again.

        Args:
            now: the time.
            newest: the serial number of the newest generation.
            wanted: how many workers that is to have.
        """
        failures = self.fleet.failures.get(newest)
        trouble = failures.reason if failures is not None else ""
        if self._scale_waiters:
            self._tell_who_expects(wanted, trouble)
        if trouble and self._exit_waiters:
            for worker in self.fleet.workers:
                if not worker.leaving:
                    for done in self._exit_waiters.pop(worker.age, []):
                        done(False, f"worker {worker.pid} stays until a new one is ready: {trouble}")
        for worker in self.fleet.workers:
            waiting = self._traced.get(worker.age, [])
            if waiting and waiting[0][0] <= now:
                del self._traced[worker.age]
                lines = "\n".join([_why_silent(worker.pid), *in_flight_lines(worker, now)])
                for _, done in waiting:
                    done(True, lines)
        return min((waiting[0][0] for waiting in self._traced.values()), default=inf)

    def _tell_who_expects(self, wanted: int, trouble: str) -> None:
        serving = sum(worker.serving for worker in self.fleet.workers)
        expected, self._scale_waiters = self._scale_waiters, []
        for each in expected:
            count, done = each
            if wanted != count:
                done(False, f"overtaken: {counted(wanted, 'worker', 'is', 'are')} wanted now")
            elif serving == count:
                done(True, counted(count, "worker", "serves", "serve"))
            elif trouble:
                done(False, f"{serving} of {counted(count, 'worker', 'serves', 'serve')}: {trouble}")
            else:
                self._scale_waiters.append(each)

    def hand_over_no_more(self, *, for_good: bool = False) -> None:
        """Tell all workers, also those that leave already, that nobody is left to take their connections.

        Args:
            for_good: whether the sockets are nobody's any more, either.
        """
        for worker in self.fleet.workers:
            if worker.slot is not None:
                worker.slot.words[STOPPING] = FOR_GOOD if for_good else 1
                if worker.leaving and worker.ready_at is not None:
                    # It would look within a second. This signal says nothing to a worker, but wakes it.
                    send_signal(worker.pid, SIGWINCH)

    def dismiss_zygotes(self) -> None:
        """End the zygotes, before the workers are told to leave: they hold the sockets, too."""
        self._hear_nursery(self.nursery.dismiss())

    def drain(self) -> None:
        """Tell all workers, also those still to come, that the server is about to stop."""
        self._draining = True
        for worker in self.fleet.workers:
            if worker.slot is not None:
                worker.slot.words[DRAINING] = 1

    def _report_failure(self, worker: WorkerHandle, report: Report, repeated: bool) -> None:
        if self.stopping or not self.fleet.ever_ready:
            return  # the end of the start says it, once
        traceback = "" if repeated or not report.traceback else f"\n{report.traceback.rstrip()}"
        who = f"worker {worker.pid}" if worker.pid else "the zygote"
        self._log.error("%s cannot boot: %s%s", who, report.reason, traceback)

    def reap(self, answer_signals: Callable[[], object]) -> None:
        """Note the workers that are dead. Waits for our workers only: a hook's own children are the hook's.

        Args:
            answer_signals: has the master answer the signals that have come.
        """
        dead = [(worker, end) for worker in self.fleet.workers if worker.pid and (end := reap(worker.pid))]
        if not self.stopping and any(is_told_to_end(each, end.wait_status) for each, end in dead):
            # A signal to the whole process group reaches the youngest first, and this process last.
            sleep(_GROUP_S)
            answer_signals()
        for each, end in dead:
            self._on_exit(each, end)
        self._hear_nursery(self.nursery.reap())
        if self._server.pid == 1 or self.nursery.adopts:
            self._reap_orphans()

    def _reap_orphans(self) -> None:
        """As process 1 of a container, and with zygotes, we inherit orphans: zombies unless we wait for them."""
        workers = {worker.pid: worker for worker in self.fleet.workers if worker.pid}
        zygotes = {zygote.pid: zygote for zygote in self.nursery.zygotes}
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
                self._hear_nursery(self.nursery.died(zygotes[pid], status))

    def _note_vacancy(self, worker: WorkerHandle, unasked: bool) -> None:
        """Another worker comes in the place of one that was killed; tell when that pauses."""
        if worker.ready_at is None:
            if worker.replaces and not _has_successor(worker):
                self._vacant.appendleft(worker.replaces)
        elif unasked and not _has_successor(worker):
            self._vacant.append(worker.pid)
        loop = self.fleet.untold_loop(worker.generation)
        if loop is not None:
            serving = sum(each.serving for each in self.fleet.workers)
            self._log.error(
                "crash loop: %d workers have died within %g s of being ready in the last %g s: no new worker for "
                "%.1f s, and after each further death for longer, up to %g s; %s now",
                len(loop.times),
                EARLY_S,
                CRASH_WINDOW_S,
                loop.pause_s,
                BACKOFF_LONGEST_S,
                counted(serving, "worker", "serves", "serve"),
            )

    def _on_exit(self, worker: WorkerHandle, end: Ended) -> None:
        """Note a dead worker: its last reports, the log, the fleet, the hook, its slot."""
        self._read_reports_of(worker, is_alive=False)
        now, (wait_status, max_rss) = monotonic(), end
        how = died_how(wait_status)
        why = f"{how} ({worker.sent_because})" if worker.sent_because else how
        by_others = not worker.sent_because and self.coroner.is_killed_by_others(wait_status, now)
        unasked = self.fleet.died(worker, why, now, self._jitter(), by_others)
        self._server.WORKERS.pop(worker.pid, None)
        if calls_for_certificate(worker, wait_status, unasked and not self.stopping):
            self.coroner.examine(worker, wait_status, max_rss, now)
        else:
            self._log.debug("worker %d (age %d) %s %s", worker.pid, worker.age, how, life(worker, now))
            if lost := [each for each in lost_requests(worker, now) if not each.logged]:
                # What a fast stop has broken off, and the worker could not tell any more.
                for line in requests_in_words(worker.pid, tuple(lost), len(lost)):
                    self._log.info("cut: %s: %s", line, worker.sent_because or how)
                if worker.cfg is not None:
                    log_lost_requests(worker.cfg, self._log, worker.pid, lost, KILLED)
        if not self.stopping:
            self._note_vacancy(worker, unasked)
        self._hang_up(worker)
        for done in self._exit_waiters.pop(worker.age, []):
            done(True, f"worker {worker.pid} has left, {how}")
        for _, done in self._traced.pop(worker.age, []):
            done(False, f"worker {worker.pid} {how}")
        call_hook(self._log, "child_exit", self._server.cfg.child_exit, self._server, worker)
        if worker.pool is not None and worker.slot is not None:
            figures = worker.slot.figures()
            self.gone.add(figures)
            take_over_losses(figures.untold_lines)
            if figures.waiting_lines:
                self._log.warning(
                    "worker %d has ended while the access log could not be written: %s lost with it",
                    worker.pid,
                    counted(figures.waiting_lines, "line", "is", "are"),
                )
            worker.pool.give_back(worker.slot)
            worker.slot = None


def _has_successor(worker: WorkerHandle) -> bool:
    """Whether it was to leave anyway: what comes in its place is no news."""
    return not (worker.term_at is worker.quit_at is worker.retiring_at is None)


def boot_timeout_of(settings: Settings) -> float:
    """Return how long a worker may boot, in seconds; 0.0 is for ever."""
    if settings.boot_timeout is not None:
        return settings.boot_timeout
    # gunicorn's users give slow applications a longer `timeout`; a short one is no reason to call an import slow.
    return max(settings.timeout, _BOOT_S) if settings.timeout else 0.0


def _why_silent(pid: int) -> str:
    """Return why a worker does not answer, as far as its state in proc(5) tells."""
    state = state_of(pid)
    if state == "T":
        return f"worker {pid} is stopped (SIGSTOP or SIGTSTP): kill -CONT {pid} lets it go on."
    if state == "t":
        return f"worker {pid} is stopped by a debugger or tracer."
    if state == "D":
        return f"worker {pid} does not answer: it waits in the kernel (state D), for a disk or a network file system."
    return f"worker {pid} does not answer: its main thread runs no Python code."
