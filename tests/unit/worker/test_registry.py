"""The rule: a worker class is found by its path, and what is wrong with one is said in words for whoever named it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsgiserv.config import worker_class
from wsgiserv.config.cgroup import fitting_workers
from wsgiserv.config.settings import SETTINGS, Settings
from wsgiserv.errors import ConfigError
from wsgiserv.master.slots import slot_pool
from wsgiserv.worker.base import Worker
from wsgiserv.worker.registry import resolve_worker_class
from wsgiserv.worker.sync import SyncWorker
from wsgiserv.worker.threads import ThreadsWorker

GOOD = """
from wsgiserv.worker.sync import SyncWorker

class Mine(SyncWorker):
    pass

class Outer:
    class Inner(Mine):
        pass
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that is importable, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    (tmp_path / "sitepkg" / "deep").mkdir(parents=True)
    (tmp_path / "sitepkg" / "__init__.py").write_text("")
    (tmp_path / "sitepkg" / "deep" / "__init__.py").write_text(GOOD)
    (tmp_path / "siteworkers.py").write_text(GOOD)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("site"):
            del sys.modules[name]
    importlib.invalidate_caches()


def resolve(text: object, source: str | None = None) -> type[Worker]:
    """As a setting's value comes to a worker: through the parser."""
    return resolve_worker_class(SETTINGS["worker_class"].parse(text), 1, source)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("siteworkers:Mine", "Mine"),
        ("siteworkers.Mine", "Mine"),
        ("sitepkg.deep:Mine", "Mine"),
        ("sitepkg.deep.Mine", "Mine"),
        ("siteworkers:Outer.Inner", "Outer.Inner"),
        ("sitepkg.deep.Outer.Inner", "Outer.Inner"),
    ],
)
def test_paths(site: Path, path: str, name: str) -> None:
    found = resolve(path)
    assert issubclass(found, SyncWorker)
    assert found.__qualname__ == name


def test_our_own() -> None:
    assert resolve("sync") is SyncWorker
    assert resolve_worker_class("sync", 4) is ThreadsWorker
    for text in ("wsgiserv.worker.sync:SyncWorker", "wsgiserv.worker.sync.SyncWorker", SyncWorker):
        assert SETTINGS["worker_class"].parse(text) == "sync"


def test_a_class_and_a_function_that_returns_one() -> None:
    class Mine(SyncWorker):
        pass

    assert resolve(Mine) is Mine
    assert resolve(lambda: Mine) is Mine
    with pytest.raises(ValueError, match=r"calling it .* ZeroDivisionError"):
        SETTINGS["worker_class"].parse(lambda: 1 / 0)


def message(value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(value, "-k on the command line")
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("site_nowhere:Mine", "", ["no module 'site_nowhere'", "--pythonpath"]),
        ("sitepkg.nowhere:Mine", "", ["'sitepkg'", "has no 'nowhere'"]),
        ("siteworkers:Mien", "", ["siteworkers.py", "has no 'Mien'", "Did you mean siteworkers:Mine?"]),
        ("siteworkers:Outer.Other", "", ["'siteworkers.Outer'", "has no 'Other'"]),
        ("sitebad:Mine", "value = 5\nMine = 5\n", ["not a class, but an int"]),
        ("sitebad:Mine", "class Mine: pass\n", ["not a worker class of wsgiserv", "builtins.object"]),
        (
            "sitebad:Mine",
            "from wsgiserv.worker.event_loop_worker import EventLoopWorker as Mine\n",
            ["abstract", "does not implement serve."],
        ),
        ("sitebad:Mine", "from wsgiserv.worker.base import Worker as Mine\n", ["connections, serve, stop_accepting."]),
        (
            "sitebad:Mine",
            "import no_such_package_here\n",
            ["ModuleNotFoundError", "'no_such_package_here'", 'sitebad.py", line 1'],
        ),
        (
            "sitebad:Mine",
            "def deep():\n    1 / 0\ndeep()\n",
            ["ZeroDivisionError: division by zero", 'sitebad.py", line 2, in deep', "Traceback"],
        ),
        ("sitebad:Mine", "Mine = = 5\n", ["syntax error in", "sitebad.py, line 1"]),
        ("sitebad:Mine", "import sys; sys.exit('gone')\n", ["SystemExit: gone", "line 1"]),
        ("sitebad:Mine", "def __getattr__(name):\n    raise RuntimeError('lazy')\n", ["RuntimeError: lazy", "line 2"]),
    ],
)
def test_what_is_wrong_is_said(site: Path, path: str, source: str, words: list[str]) -> None:
    (site / "sitebad.py").write_text(source)
    said = message(path)
    first = said.splitlines()[0]
    assert first.startswith(f"WS1150 worker_class = '{path.replace(':', '.')}' (-k on the command line): ")
    assert "Accepted: sync, threads, gevent, or a subclass of wsgiserv.worker.base.Worker" in first
    for word in words:
        assert word in said
    assert "registry.py" not in said, "only the user's own frames are shown"
    assert "importlib" not in said


def test_class_objects_that_cannot_be_used(site: Path) -> None:
    class Other:
        pass

    class Half(Worker):
        def connections(self) -> list[Any]:
            return []

    assert "Other" in message(Other)
    assert "does not implement serve, stop_accepting." in message(Half)


class Bulk(SyncWorker):
    """A class object of a configuration file."""

    workers_per_cpu = 3

    @classmethod
    def capacity(cls, settings: Settings) -> int:
        return 7


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (Settings(), SyncWorker),
        (Settings(threads=4), ThreadsWorker),
        (Settings(worker_class="threads"), ThreadsWorker),
        (Settings(worker_class=Bulk), Bulk),
        (Settings(worker_class="no_such_module.Worker"), None),
    ],
)
def test_the_master_knows_classes_without_importing_users_modules(
    settings: Settings, kind: type[Worker] | None
) -> None:
    assert worker_class.known(worker_class.resolve(settings.worker_class, settings.threads)) is kind


@pytest.mark.parametrize(
    ("settings", "cells"),
    [
        (Settings(), 1),
        (Settings(threads=4), 4),
        (Settings(threads=4, request_timeout=1.0), 8),  # a thread that does not come back is replaced
        (Settings(worker_class="gevent", worker_connections=50), 50),
        (Settings(worker_class=Bulk), 7),
        (Settings(worker_class="no_such_module.Worker", worker_connections=50), 50),
    ],
)
def test_the_scoreboard_has_a_cell_for_each_request_that_a_worker_serves_at_once(
    settings: Settings, cells: int
) -> None:
    assert slot_pool(settings).cells == cells


def test_a_class_says_how_many_workers_of_it_fit() -> None:
    kinds = (SyncWorker, ThreadsWorker, Bulk)
    assert [fitting_workers(kind.workers_per_cpu, 4.0, None) for kind in kinds] == [9, 4, 13]
