"""The rule: ``workers = "auto"`` follows the container's limits (cgroup v1, v2), not the host's cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgiserv.config import cgroup as sizing
from wsgiserv.config.loader import load

MIB = 1024 * 1024


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


@pytest.mark.parametrize(
    ("files", "cgroups", "cpus", "memory"),
    [
        pytest.param({}, "", None, None, id="no cgroups"),
        pytest.param({}, "0::/\n", None, None, id="nothing mounted"),
        pytest.param(
            {"cpu.max": "150000 100000", "memory.max": str(512 * MIB)}, "0::/\n", 1.5, 512 * MIB, id="v2 namespaced"
        ),
        pytest.param({"cpu.max": "max 100000", "memory.max": "max"}, "0::/\n", None, None, id="v2 unlimited"),
        pytest.param(
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "a/b/memory.max": "1048576"},
            "0::/a/b\n",
            2.0,
            MIB,
            id="v2 a limit above",
        ),
        pytest.param({"memory.max": "max", "memory.high": "1048576"}, "0::/\n", None, MIB, id="v2 high"),
        pytest.param({"cpu.max": "50000 100000"}, "0::/docker/0123\n", 0.5, None, id="v2 the host's path, not mounted"),
        pytest.param({"cpu.max": "100000 100000"}, "0::/../other\n", 1.0, None, id="v2 outside the namespace"),
        pytest.param({"cpu.max": "rubbish", "memory.max": ""}, "0::/\n", None, None, id="v2 unreadable"),
        pytest.param(
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
                "memory/x/memory.limit_in_bytes": str(256 * MIB),
            },
            "4:memory:/x\n3:cpu,cpuacct:/x\n1:name=systemd:/x\n",
            3.0,
            256 * MIB,
            id="v1",
        ),
        pytest.param(
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            "4:memory:/gone\n3:cpu,cpuacct:/gone\n0::/\n",
            None,
            None,
            id="v1 unlimited",
        ),
        pytest.param(
            {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000", "unified/memory.max": "1048576"},
            "3:cpu:/\n0::/\n",
            2.0,
            MIB,
            id="both mounted",
        ),
    ],
)
def test_limits_are_read(
    tmp_path: Path, files: dict[str, str], cgroups: str, cpus: float | None, memory: int | None
) -> None:
    root = tree(tmp_path, files)
    assert sizing.cpu_quota(root, cgroups) == cpus
    assert sizing.memory_limit(root, cgroups) == memory


@pytest.mark.parametrize(
    ("per_cpu", "cpus", "memory", "workers"),
    [
        (2, 1.0, None, 3),
        (2, 4.0, None, 9),
        (2, 1.5, None, 5),
        (1, 4.0, None, 4),
        (1, 0.5, None, 1),
        (1, 2.0, None, 2),
        (2, 8.0, 512 * MIB, 4),
        (1, 8.0, 64 * MIB, 1),
        (1, 2.0, 64 * 1024 * MIB, 2),
    ],
)
def test_workers_fit(per_cpu: int, cpus: float, memory: int | None, workers: int) -> None:
    assert sizing.fitting_workers(per_cpu, cpus, memory) == workers


def test_the_quota_cuts_the_affinity_and_never_raises_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert sizing.available_cpus(None) == 4.0
    assert sizing.available_cpus(1.5) == 1.5
    assert sizing.available_cpus(64.0) == 4.0


def test_this_process_has_an_answer() -> None:
    cgroups = sizing.own_cgroups()
    cpus = sizing.available_cpus(sizing.cpu_quota(sizing.CGROUP_ROOT, cgroups))
    assert sizing.fitting_workers(2, cpus, sizing.memory_limit(sizing.CGROUP_ROOT, cgroups)) >= 1


@pytest.mark.parametrize(
    ("worker_class", "workers"), [("sync", 5), ("threads", 2), ("gevent", 2), ("my.pkg:Worker", 2)]
)
def test_the_class_says_how_many_workers_fit_a_processor(
    worker_class: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizing, "available_cpus", lambda quota: 2.0)
    monkeypatch.setattr(sizing, "memory_limit", lambda root, cgroups: None)
    settings = load(["-k", worker_class, "-w", "auto"], {}, str(tmp_path)).settings
    assert settings.workers == workers
