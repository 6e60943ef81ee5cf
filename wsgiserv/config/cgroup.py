"""Reads CPU quotas and memory limits of cgroups (version 1, version 2, and both mounted together).

Every function takes the root of the cgroup file systems, for tests.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

CGROUP_ROOT = "/sys/fs/cgroup"

# The memory of one worker of a middling Django or Flask application; above its limit a container is killed.
BYTES_PER_WORKER = 128 * 1024 * 1024

# cgroup v1 writes "no limit" as the largest multiple of a page below 2**63.
_NO_LIMIT_BYTES = 2**60


def fitting_workers(per_cpu: int, cpus: float, memory: int | None) -> int:
    """Return how many workers fit, at least 1.

    Args:
        per_cpu: the worker class's `workers_per_cpu`: above 1 the workers wait during calls, and one more fits.
        cpus: the CPUs this process may use; may be a fraction.
        memory: the memory it may use in bytes; None is no limit.
    """
    count = per_cpu * math.ceil(cpus) + (per_cpu > 1)
    if memory is not None:
        count = min(count, memory // BYTES_PER_WORKER)
    return max(1, count)


def available_cpus(quota: float | None) -> float:
    """Return the CPUs this process may use: its affinity, cut by the quota."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:  # macOS, the BSDs
        cpus = os.cpu_count() or 1
    return float(cpus) if quota is None else min(float(cpus), quota)


def own_cgroups(path: str = "/proc/self/cgroup") -> str:
    """Return this process's cgroups as the kernel writes them, see cgroups(7); empty without cgroups."""
    return _read(path) or ""


def cpu_quota(root: str, cgroups: str) -> float | None:
    """Return the smallest CPU quota of the process's cgroup and those above it, in CPUs; None without one.

    Args:
        root: where the cgroup file systems are mounted.
        cgroups: the text of ``/proc/self/cgroup``.
    """
    found = []
    for directory in cgroup_directories(root, cgroups, ""):
        quota, _, period = (_read(os.path.join(directory, "cpu.max")) or "").partition(" ")
        found.append(_ratio(quota, period))
    for directory in cgroup_directories(root, cgroups, "cpu"):
        quota = _read(os.path.join(directory, "cpu.cfs_quota_us")) or ""
        period = _read(os.path.join(directory, "cpu.cfs_period_us")) or ""
        found.append(_ratio(quota, period))
    return min((quota for quota in found if quota is not None), default=None)


def memory_limit(root: str, cgroups: str) -> int | None:
    """Return the smallest memory limit of the process's cgroup and those above it, in bytes; or None.

    Arguments as for `cpu_quota`.
    """
    return min((limit for _, limit, _ in _memory_limits(root, cgroups)), default=None)


def memory_room(root: str, cgroups: str, reserve: float = 0.0) -> int | None:
    """Return how many bytes may still be used before a limit, or the reserve below it, is reached; or None.

    May be negative. Arguments as for `cpu_quota`.

    Args:
        reserve: the share of each limit to keep free.
    """
    rooms = []
    for directory, limit, usage_file in _memory_limits(root, cgroups):
        current = _number(os.path.join(directory, usage_file))
        if current is not None:
            # The kernel can drop pages of files that have not been used lately at once: they count as free.
            rooms.append(int(limit * (1 - reserve)) - current + _inactive_file(directory))
    return min(rooms, default=None)


def _memory_limits(root: str, cgroups: str) -> Iterator[tuple[str, int, str]]:
    """Yield each cgroup with a limit: its directory, the limit in bytes, and its file with the memory in use."""
    for controller, limits, usage_file in (
        # The kernel slows a group above memory.high down, so that it is a limit as well.
        ("", ("memory.max", "memory.high"), "memory.current"),
        ("memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes"),
    ):
        for directory in cgroup_directories(root, cgroups, controller):
            found = [_number(os.path.join(directory, name)) for name in limits]
            below = [limit for limit in found if limit is not None and limit < _NO_LIMIT_BYTES]
            if below:
                yield directory, min(below), usage_file


def _inactive_file(directory: str) -> int:
    found = dict.fromkeys(("total_inactive_file", "inactive_file"), 0)
    for line in (_read(os.path.join(directory, "memory.stat")) or "").splitlines():
        name, _, number = line.partition(" ")
        if name in found and number.isdigit():
            found[name] = int(number)
    # Version 1 has the figure of the group alone under the short name, with the groups below it under the other.
    return found["total_inactive_file"] or found["inactive_file"]


def cgroup_directories(root: str, cgroups: str, controller: str) -> Iterator[str]:
    """Yield the process's directory in a hierarchy and those above it, up to the hierarchy's root.

    Args:
        root, cgroups: as for `cpu_quota`.
        controller: a v1 controller's name, or empty for the v2 hierarchy.
    """
    for line in cgroups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        names = (controllers, controller) if controller else ("", "unified")
        for mount in dict.fromkeys(os.path.join(root, name) for name in names):
            # A process that has left its cgroup namespace sees "/../other".
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for length in range(len(parts), -1, -1):
                directory = os.path.join(mount, *parts[:length])
                # Inside a container the path may be the host's, while only the container's part is mounted.
                if os.path.isdir(directory):
                    yield directory


def _ratio(quota: str, period: str) -> float | None:
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None  # "max" in v2, "-1" in v1, or no such file
    return int(quota) / int(period) or None


def _number(path: str) -> int | None:
    found = _read(path)
    return int(found) if found and found.isdigit() else None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return None
