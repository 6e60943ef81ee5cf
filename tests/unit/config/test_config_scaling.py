"""The rule: `workers` alone is a fixed number; `workers_min` and `workers_max` come together and bound it."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgiserv.config import cgroup as sizing
from wsgiserv.config.loader import load
from wsgiserv.errors import ConfigError


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", (1, None, None)),
        ("-w 3", (3, None, None)),
        ("--workers-min 2 --workers-max 6", (2, 2, 6)),
        ("--workers-min 2 --workers-max 6 -w 4", (4, 2, 6)),
        ("--workers-min 2 --workers-max 2 -w 2", (2, 2, 2)),
        ("--workers-min 2 --workers-max auto", (2, 2, 5)),
        ("--workers-min 9 --workers-max auto", (9, 9, 9)),
        ("--workers-min 1 --workers-max 4 -w auto", (4, 1, 4)),
        ("--workers-min 1 --workers-max 40 -w auto", (5, 1, 40)),
    ],
)
def test_values(argv: str, expected: tuple[int | None, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "available_cpus", lambda quota: 2.0)
    monkeypatch.setattr(sizing, "memory_limit", lambda root, cgroups: None)
    found = load(argv.split(), {}, str(tmp_path)).settings
    assert (found.workers, found.workers_min, found.workers_max) == expected


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        ("--workers-min 2", {}, ["workers_min = 2 (--workers-min on the command line)", "without workers_max"]),
        ("--workers-max 2", {}, ["workers_max = 2", "without workers_min", "--workers-min N"]),
        ("--workers-min 5 --workers-max 2", {}, ["workers_min = 5", "above workers_max = 2"]),
        ("--workers-min 2 --workers-max 4 -w 5", {}, ["workers = 5 (-w", "workers_min = 2", "workers_max = 4"]),
        ("--workers-min 2 --workers-max 4", {"WEB_CONCURRENCY": "1"}, ["workers = 1 (WEB_CONCURRENCY"]),
        ("--workers-min 0 --workers-max 4", {}, ["workers_min = '0'", "at least 1"]),
        ("--scale-window 500ms", {}, ["scale_window = '500ms'", "1 second to 1 hour"]),
    ],
)
def test_errors(argv: str, environ: dict[str, str], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(argv.split(), environ, str(tmp_path))
    for word in words:
        assert word in str(caught.value)
    assert "Accepted: " in str(caught.value)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("files", "cgroups", "room"),
    [
        ({}, "0::/\n", None),
        ({"memory.max": "max", "memory.current": "5"}, "0::/\n", None),
        ({"memory.max": "1000", "memory.current": "700"}, "0::/\n", 200),
        ({"memory.max": "1000", "memory.current": "950"}, "0::/\n", -50),
        ({"memory.max": "1000", "memory.high": "800", "memory.current": "700"}, "0::/\n", 20),
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 5\ninactive_file 100\n"}, "0::/\n", 300),
        (
            {"a/memory.max": "1000", "a/memory.current": "100", "memory.max": "2000", "memory.current": "1500"},
            "0::/a\n",
            300,
        ),
        (
            {
                "memory/x/memory.limit_in_bytes": "1000",
                "memory/x/memory.usage_in_bytes": "500",
                "memory/x/memory.stat": "cache 1\ninactive_file 7\ntotal_inactive_file 100\n",
            },
            "4:memory:/x\n",
            500,
        ),
    ],
)
def test_memory_room(files: dict[str, str], cgroups: str, room: int | None, tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert sizing.memory_room(str(tmp_path), cgroups, 0.1) == room
