"""Measures the load of the fleet, and asks `autoscale` for the number of workers.

Nothing here waits, and nothing is read while scaling is off.
"""

from __future__ import annotations

import struct
import sys
from _socket import AF_UNIX, IPPROTO_TCP, MSG_DONTWAIT, SOCK_DGRAM
from _socket import socket as RawSocket
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from math import inf
from os import fstat
from typing import Final

from wsgiserv.config import cgroup as sizing
from wsgiserv.config.settings import Settings
from wsgiserv.master.autoscale import Bounds, Decision, History, Sample, decide, interval_of, short_window_of
from wsgiserv.master.slots import capacity_of
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.net.listener import Listener
from wsgiserv.process import cpu_time_of, memory_of
from wsgiserv.scoreboard import REQUESTS
from wsgiserv.wording import counted

# linux/tcp.h, linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
_TCP_INFO: Final = 11
_TCP_LISTEN: Final = 10
_NETLINK: Final = 16
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_UDIAG_SHOW_RQLEN: Final = 0x10
_UNIX_DIAG_RQLEN: Final = 4
_ANY: Final = 0xFFFFFFFF

# proc(5) has CPU time in hundredths of a second: over less than this its error is more than 1 %.
_CPU_EVERY_S: Final = 1.0
# The memory of a fleet costs milliseconds to measure.
_MEMORY_EVERY_S: Final = 5.0
# Requests in flight for less than this end long before `graceful_timeout`.
_YOUNG_S: Final = 1.0
# This part of the memory limit is left to all that is not a worker's.
_RESERVE: Final = 0.1


def scaled(settings: Settings, running: int) -> int:
    """Return how many workers a new configuration begins with, where ``running`` are wanted now."""
    # While the fleet scales, a reload does not throw it back to `workers`.
    if settings.workers_min is None or settings.workers_max is None or not running:
        return settings.workers
    return min(max(running, settings.workers_min), settings.workers_max)


# ---- measuring -----------------------------------------------------------------------------------------


def backlog_of(sock: RawSocket) -> int | None:
    """Return how many connections wait to be accepted at a listening socket; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    try:
        if sock.family != AF_UNIX:
            # tcp(7): for a listening socket tcpi_unacked is the length of the accept queue.
            info = sock.getsockopt(IPPROTO_TCP, _TCP_INFO, 32)
            return int(struct.unpack_from("=I", info, 24)[0]) if info[0] == _TCP_LISTEN else None
        return _unix_backlog(fstat(sock.fileno()).st_ino)
    except (OSError, IndexError, struct.error):
        return None


def _unix_backlog(inode: int) -> int | None:
    # sock_diag(7), UNIX_DIAG_RQLEN. In struct unix_diag_req: all states, any cookie.
    request = struct.pack("=BBHIIIII", AF_UNIX, 0, 0, _ANY, inode & _ANY, _UDIAG_SHOW_RQLEN, _ANY, _ANY)
    header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    # Opened for each question (20 µs): a descriptor that stays open would be in every worker.
    with closing(RawSocket(_NETLINK, SOCK_DGRAM, _NETLINK_SOCK_DIAG)) as line:
        line.send(header + request)
        answer = line.recv(4096, MSG_DONTWAIT)  # the kernel answers within send
    length, kind = struct.unpack_from("=IH", answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None
    at = 16 + 16  # struct nlmsghdr, struct unix_diag_msg; attributes follow, each padded to 4 bytes
    while at + 4 <= min(length, len(answer)):
        size, attribute = struct.unpack_from("=HH", answer, at)
        if attribute == _UNIX_DIAG_RQLEN:
            return int(struct.unpack_from("=I", answer, at + 4)[0])
        at += max((size + 3) & ~3, 4)  # a size of 0 must not end in a loop without end
    return None


class Gauge:
    """Takes samples of the load.

    Args:
        listeners: returns the listening sockets in force.
        cpu_time: see `cpu_time_of`.
        backlog: see `backlog_of`.
    """

    def __init__(
        self,
        listeners: Callable[[], Iterable[Listener]],
        cpu_time: Callable[[int], float | None] = cpu_time_of,
        backlog: Callable[[RawSocket], int | None] = backlog_of,
    ) -> None:
        self._listeners = listeners
        self._cpu_time = cpu_time
        self._backlog = backlog
        self._answered: dict[int, int] = {}
        self._answered_at = 0.0
        self._cpu_seconds: dict[int, float] = {}
        self._cpu_at = 0.0
        self._cpu = 0.0

    def sample(self, workers: Sequence[WorkerHandle], capacity: int, now: float) -> Sample:
        """Return the load now.

        Args:
            workers: the fleet; of workers not serving only the answers count, not the requests in flight.
            capacity: see `capacity_of`.
            now: ``time.monotonic()`` seconds.
        """
        # A worker may have more requests than it can run, handed over by a leaving sibling.
        in_flight = sum(min(w.slot.load()[0], capacity) for w in workers if w.serving and w.slot is not None)
        waiting = sum(self._backlog(listener.sock) or 0 for listener in self._listeners())
        if now - self._cpu_at >= _CPU_EVERY_S:
            self._read_cpu(workers, now)
        return Sample(now, in_flight / capacity, self._cpu, waiting, self._read_rate(workers, now))

    def _read_rate(self, workers: Sequence[WorkerHandle], now: float) -> float:
        answered = {w.age: w.slot.words[REQUESTS] for w in workers if w.slot is not None}
        fresh = sum(count - self._answered.get(age, 0) for age, count in answered.items())
        passed_s = now - self._answered_at
        rate = fresh / passed_s if self._answered and passed_s > 0 else 0.0
        self._answered, self._answered_at = answered, now
        return rate

    def _read_cpu(self, workers: Sequence[WorkerHandle], now: float) -> None:
        times = {worker.age: self._cpu_time(worker.pid) for worker in workers if worker.serving}
        seconds = {age: used for age, used in times.items() if used is not None}
        passed_s, before = now - self._cpu_at, self._cpu_seconds
        # The time that a worker has used to boot is not the load's.
        spent = sum(max(0.0, seconds[age] - before[age]) for age in seconds if age in before)
        self._cpu = spent / passed_s if before else 0.0
        self._cpu_seconds, self._cpu_at = seconds, now


# ---- deciding ------------------------------------------------------------------------------------------


def own_cpus() -> float:
    """Return the CPUs that this server may use, which may be a fraction."""
    return sizing.available_cpus(sizing.cpu_quota(sizing.CGROUP_ROOT, sizing.own_cgroups()))


def _memory_room() -> int | None:
    return sizing.memory_room(sizing.CGROUP_ROOT, sizing.own_cgroups(), _RESERVE)


class Scaler:
    """Decides from time to time how many workers are wanted. The master's; one for its life.

    Args:
        gauge: measures the load.
        tell: called with a line for the log, when more workers are needed and not possible.
        cpus: returns the number of CPUs for this server.
        memory_room: returns how many bytes may still be used; None without a limit.
        measure: returns the memory of a process in bytes.

    Attributes:
        explanation: the last change in words, ``6 workers wanted, were 4: busy 92 % over 3 s``; empty before the first.
    """

    def __init__(
        self,
        gauge: Gauge,
        tell: Callable[[str], None],
        cpus: Callable[[], float] = own_cpus,
        memory_room: Callable[[], int | None] = _memory_room,
        measure: Callable[[int], int] = memory_of,
    ) -> None:
        self._gauge = gauge
        self._tell = tell
        # Once, and only for a fleet that scales: it reads a file of each cgroup above.
        self._cpus = cache(cpus)
        self._memory_room = memory_room
        self._measure = measure
        self._history = History()
        # The fleet and the settings of the history: others begin another one.
        self._of: tuple[object, ...] = ()
        self._next_sample = 0.0
        self._fits: int | None = None
        self._fits_at = -_MEMORY_EVERY_S
        self._told = ""
        self._held_at = 0.0
        self.explanation = ""

    def look(
        self, workers: Sequence[WorkerHandle], wanted: int, settings: Settings, now: float
    ) -> tuple[int | None, float]:
        """Look at the load, when it is time.

        Called by the master in every turn, but not while a reload or an upgrade is under way, or the server stops.

        Args:
            workers: the fleet.
            wanted: how many workers are wanted now; 0: none, because an operator has retired them all.
            settings: the configuration in force.
            now: ``time.monotonic()`` seconds.

        Returns:
            How many are wanted from now on, None: no change; and when to look again, ``inf``: never.
        """
        least, most = settings.workers_min, settings.workers_max
        if least is None or most is None or not wanted:
            self._of = ()
            self._history.restart()
            return None, inf
        if now < self._next_sample:
            return None, self._next_sample
        window_s, capacity = settings.scale_window, capacity_of(settings)
        interval_s = interval_of(window_s)
        serving = [worker for worker in workers if worker.serving]
        generations = {worker.generation for worker in workers if not worker.leaving}
        of = (wanted, window_s, capacity, *generations)
        # The load during a pause (a reload, a suspended machine) is unknown.
        if of != self._of or now - self._next_sample > short_window_of(window_s):
            self._history.restart()
            self._of = of
        self._next_sample = now + interval_s
        if least <= wanted <= most and (len(serving) < wanted or len(generations) > 1):
            # The last decision's worker, or a dead worker's replacement, is still booting; if it cannot boot, more of
            # them could not either.
            return None, self._next_sample
        self._history.add(self._gauge.sample(workers, capacity, now), window_s)
        bounds = Bounds(least=least, most=most, window_s=window_s, capacity=capacity, cpus=self._cpus())
        decision = decide(self._history, wanted, bounds)
        within = least <= wanted <= most
        if within and decision.workers > wanted:
            # Only now: to measure the memory of a fleet costs milliseconds.
            bounds = replace(bounds, fits=self._fitting(serving, now))
            decision = decide(self._history, wanted, bounds)
        self._note_held(decision, window_s, now)
        if decision.workers == wanted or (
            within and decision.workers < wanted and not _may_retire(workers, serving, capacity, now)
        ):
            return None, self._next_sample
        self.explanation = f"{counted(decision.workers, 'worker')} wanted, were {wanted}: {decision.why}"
        if within:
            self._history.changed(wanted, decision.workers, now, window_s)
            self._of = (decision.workers, *of[1:])
        return decision.workers, now

    def _note_held(self, decision: Decision, window_s: float, now: float) -> None:
        """Log why the fleet cannot grow; once in a window."""
        if now - self._held_at > window_s:
            self._told = ""
        if decision.held:
            self._held_at = now
            # The figures change with each sample; the limit tells whether it is news.
            if decision.held != self._told:
                self._told = decision.held
                self._tell(f"more workers are needed, but not possible: {decision.why}; {decision.held}")

    def _fitting(self, serving: Sequence[WorkerHandle], now: float) -> int | None:
        """Return how many workers the memory allows; None without a limit."""
        if now - self._fits_at >= _MEMORY_EVERY_S:
            self._fits_at, self._fits = now, None
            room = self._memory_room()
            if room is not None:
                # The largest: with a smaller one the limit would be met after all, and workers killed.
                size = max((self._measure(worker.pid) for worker in serving), default=0)
                self._fits = len(serving) + max(0, room // size) if size else None
        return self._fits


def _may_retire(workers: Sequence[WorkerHandle], serving: Sequence[WorkerHandle], capacity: int, now: float) -> bool:
    """Whether one of the serving workers can be retired now without cutting any request."""
    # One is idle; or, since workers with many places always have some requests, all have only short ones. And none
    # is leaving already, but those that have a replacement.
    if any(worker.leaving and worker.recycle_at is None for worker in workers):
        return False
    oldest = [worker.slot.load()[1] for worker in serving if worker.slot is not None]
    return not all(oldest) or (capacity > 1 and now - min(oldest, default=now) < _YOUNG_S)
