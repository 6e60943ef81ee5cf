"""Reads the counters of the kernel's out-of-memory killer, and tells whether they have grown lately."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Literal, NamedTuple

from wsgiserv.config.cgroup import CGROUP_ROOT, cgroup_directories, own_cgroups

_VMSTAT: Final = "/proc/vmstat"
# A process with much memory takes a while to die; a growth longer ago has another cause.
_LATELY_S: Final = 5.0


class OomEvidence(NamedTuple):
    """Evidence for the OOM killer.

    Attributes:
        source: ``cgroup`` (a process of our cgroup was killed), ``machine`` (some process of this machine was),
            ``none`` (none was), ``unknown`` (the system does not tell).
        path: the file of the counter; or empty.
    """

    source: Literal["cgroup", "machine", "none", "unknown"]
    path: str = ""


class _Counter:
    """One counter: a line ``oom_kill N`` in a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.value = _count_in(path)
        self.grown: list[float] = []

    def look(self, now: float) -> None:
        # The kernel counts before it sends SIGKILL (mm/oom_kill.c, `__oom_kill_process`), so when a dead child can be
        # waited for, the counter has grown already.
        value = _count_in(self.path)
        if value is not None and self.value is not None:
            # Bounded: a counter must not cost memory without end.
            self.grown += [now] * min(value - self.value, 1000)
        self.value = value
        self.grown = [then for then in self.grown if then > now - _LATELY_S]

    def take(self) -> bool:
        """Return whether it has grown lately; each growth explains one death."""
        return bool(self.grown and self.grown.pop(0))


class OomWatch:
    """The counters since this was made.

    Args:
        root: where the cgroup file systems are mounted.
        cgroups: the text of ``/proc/self/cgroup``; None reads it.
        vmstat: the machine's figures (proc(5)).
    """

    def __init__(self, root: str = CGROUP_ROOT, cgroups: str | None = None, vmstat: str = _VMSTAT) -> None:
        text = own_cgroups() if cgroups is None else cgroups
        # The nearest counter: memory.events of version 2 counts the kills in all groups below.
        self._cgroup = next(_counters(root, text), None)
        self._machine = _Counter(vmstat)
        self._counters = [self._machine] if self._cgroup is None else [self._cgroup, self._machine]

    def look(self, now: float) -> None:
        """Read the counters. Called by the master once a second and at each death.

        Args:
            now: ``time.monotonic()`` seconds.
        """
        for counter in self._counters:
            counter.look(now)

    def suspects(self, now: float) -> bool:
        """Return whether the killer may have been at work lately; True, too, where the system does not tell."""
        self.look(now)
        # Where nothing tells, a kill by the OOM killer cannot be excluded.
        known = [each for each in self._counters if each.value is not None]
        return not known or any(each.grown for each in self._counters)

    def attribute_kill(self, now: float) -> OomEvidence:
        """Return the evidence about a process just found dead by SIGKILL."""
        self.look(now)
        # A kill in our cgroup has moved both counters.
        machine = self._machine.take()
        if self._cgroup is not None and self._cgroup.take():
            return OomEvidence("cgroup", self._cgroup.path)
        # A hint only: in a container the visible cgroup may be another than the one that has reached its limit.
        if machine:
            return OomEvidence("machine", self._machine.path)
        counter = self._cgroup or self._machine
        return OomEvidence("none", counter.path) if counter.value is not None else OomEvidence("unknown")


def _counters(root: str, cgroups: str) -> Iterator[_Counter]:
    """Yield the counter of our cgroup, then those above it. Version 1 has it in memory.oom_control."""
    for controller, name in (("", "memory.events"), ("memory", "memory.oom_control")):
        for directory in cgroup_directories(root, cgroups, controller):
            counter = _Counter(os.path.join(directory, name))
            if counter.value is not None:
                yield counter


def _count_in(path: str) -> int | None:
    with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        for line in file:
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None
