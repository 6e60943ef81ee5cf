"""Whether the kernel's out-of-memory killer has been at work.

Owns: reading its counters (cgroup version 1 and 2, and the machine's), and which of them have grown lately.
Must not know: workers, what is said about them.

The kernel counts before it sends SIGKILL (mm/oom_kill.c, `__oom_kill_process`), so when a dead child can be waited for,
the counter has grown already.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from wsgiserv.config.cgroup import CGROUP_ROOT, cgroup_directories, own_cgroups

__all__ = ["OomWatch", "Verdict"]

_VMSTAT: Final = "/proc/vmstat"
# A process with much memory takes a while to die; a growth longer ago was somebody else's.
_LATELY_S: Final = 5.0


class Verdict(NamedTuple):
    """Whether the killer may be blamed.

    Attributes:
        who: ``cgroup`` (a process of our cgroup was killed), ``machine`` (some process of this machine was: a hint
            only, since in a container the cgroup that can be seen may not be the one that counts), ``none`` (none
            was), ``unknown`` (the system does not tell).
        path: the file that counts them; or empty.
    """

    who: Literal["cgroup", "machine", "none", "unknown"]
    path: str = ""


class _Counter:
    """One counter: a line ``oom_kill N`` in a file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.value = _count_in(path)
        self._grown: list[float] = []

    def look(self, now: float) -> None:
        value = _count_in(self.path)
        if value is not None and self.value is not None:
            self._grown += [now] * min(value - self.value, 1000)
        self.value = value
        self._grown = [then for then in self._grown if then > now - _LATELY_S]

    @property
    def has_grown(self) -> bool:
        """Whether it has grown lately, and nobody has been told to be dead by that yet."""
        return bool(self._grown)

    def take(self) -> bool:
        """Return whether it has grown lately; each growth can be blamed for one death."""
        return bool(self._grown and self._grown.pop(0))


class OomWatch:
    """The counters since this was made.

    Args:
        root: where the cgroup file systems are mounted.
        cgroups: the text of ``/proc/self/cgroup``; None reads it.
        vmstat: the machine's figures (proc(5)).
    """

    def __init__(self, root: str = CGROUP_ROOT, cgroups: str | None = None, vmstat: str = _VMSTAT) -> None:
        text = own_cgroups() if cgroups is None else cgroups
        self._cgroup = next(_counters(root, text), None)
        self._machine = _Counter(vmstat)

    def look(self, now: float) -> None:
        """Read the counters. Called by the master once a second and at each death.

        Args:
            now: ``time.monotonic()`` seconds.
        """
        if self._cgroup is not None:
            self._cgroup.look(now)
        self._machine.look(now)

    def suspects(self, now: float) -> bool:
        """Return whether the killer may have been at work lately, which is also so where the system does not tell."""
        self.look(now)
        counters = [self._machine] if self._cgroup is None else [self._cgroup, self._machine]
        return any(counter.has_grown for counter in counters) or all(
            counter.value is None for counter in counters
        )

    def blame(self, now: float) -> Verdict:
        """Return who may have killed a process that was found dead by SIGKILL just now."""
        self.look(now)
        machine = self._machine.take()
        if self._cgroup is not None and self._cgroup.take():
            return Verdict("cgroup", self._cgroup.path)
        if machine:
            return Verdict("machine", self._machine.path)
        if self._cgroup is not None:
            return Verdict("none", self._cgroup.path)
        return Verdict("none", self._machine.path) if self._machine.value is not None else Verdict("unknown")


def _counters(root: str, cgroups: str) -> Iterator[_Counter]:
    """Yield the counter of our cgroup, then those above it. Version 1 has it in memory.oom_control."""
    for controller, name in (("", "memory.events"), ("memory", "memory.oom_control")):
        for directory in cgroup_directories(root, cgroups, controller):
            counter = _Counter(os.path.join(directory, name))
            if counter.value is not None:
                yield counter


def _count_in(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
    except (OSError, ValueError):
        pass
    return None
