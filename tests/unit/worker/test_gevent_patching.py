"""What was imported before gevent could patch: found by what it has kept, and told with its name."""

from __future__ import annotations

import select
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from cases import check_each

from wsgiserv.config.file import plain_value
from wsgiserv.config.loader import collect
from wsgiserv.worker.gevent_patching import find_early_imports, later_modules


class Context(ssl.SSLContext):
    """A subclass of what gevent replaces."""


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> object:
    def find(modules: Mapping[str, Mapping[str, object]], patched: tuple[str, ...] = ()) -> list[str]:
        for name, names in modules.items():
            module = ModuleType(name)
            vars(module).update(names)
            monkeypatch.setitem(sys.modules, name, module)

        def original(module: str, name: str) -> object:
            return getattr(sys.modules[module], name, None) if not patched or module in patched else None

        return find_early_imports(modules, original)

    return find


def test_what_keeps_an_original_is_told(found: object) -> None:
    (line,) = found({"mysettings": {"sleep": time.sleep, "nap": time.sleep, "x": 1}})  # type: ignore[operator]
    assert line.startswith("the module 'mysettings' was imported before gevent could patch the standard library")
    assert "keeps its own time.sleep: " in line
    assert "Import it in the application, or give -k gevent on the command line" in line
    (line,) = found({"__config__": {"__file__": "/srv/gun.py", "poll": select.poll}})  # type: ignore[operator]
    assert line.startswith("the configuration file /srv/gun.py was run before gevent")
    (line,) = found({"lib": {}, "lib.a": {"C": Context}, "lib.b": {"Popen": subprocess.Popen}})  # type: ignore[operator]
    assert "'lib'" in line
    assert "a subclass of ssl.SSLContext, subprocess.Popen" in line
    assert "RecursionError" in line
    assert "RecursionError" not in found({"one": {"sleep": time.sleep}})[0]  # type: ignore[operator]
    both = found({"one": {"sleep": time.sleep}, "other": {"Lock": threading.Lock}})  # type: ignore[operator]
    assert len(both) == 2


def test_what_finds_the_patched_parts_by_itself_is_not(found: object) -> None:
    fine = {
        "plain": {"time": time, "threading": threading, "run": subprocess.run, "Thread": threading.Thread},
        "selectors": {"select": select.select},  # of the standard library
        "gevent.time": {"_sleep": time.sleep},
        "wsgiserv.net.event_loop": {"sleep": time.sleep},
    }
    assert found(fine) == []  # type: ignore[operator]
    assert found({"mine": {"sleep": time.sleep}}, ("os",)) == []  # type: ignore[operator] # time is not patched
    assert "wsgiserv" in later_modules()


def test_a_plain_assignment_is_read_without_running_the_file(tmp_path: Path) -> None:
    def check(case: tuple[str, str | None]) -> None:
        text, expected = case
        (tmp_path / "gun.py").write_text("raise SystemExit\n" + text)
        assert plain_value("gun.py", str(tmp_path), ("worker_class", "k")) == expected

    check_each(
        {
            "plain": ("worker_class = 'gevent'", "gevent"),
            "annotated": ("worker_class: str = 'gevent'", "gevent"),
            "alias": ("k = 'gevent'", "gevent"),
            "last wins": ("worker_class = 'sync'\nworker_class = 'gevent'", "gevent"),
            "computed": ("worker_class = 'gev' + 'ent'", None),
            "not text": ("worker_class = None", None),
            "in a condition": ("worker_class = 'gevent'\nif x:\n    worker_class = 'sync'", None),
            "imported": ("worker_class = 'gevent'\nfrom x import worker_class", None),
            "a function": ("worker_class = 'gevent'\ndef worker_class(): pass", None),
            "absent": ("workers = 2", None),
            "broken": ("worker_class = 'gevent'\n(", None),
        },
        check,
    )
    assert plain_value("python:some.module", str(tmp_path), ("worker_class",)) is None
    assert plain_value("missing.py", str(tmp_path), ("worker_class",)) is None


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    def check(case: tuple[list[str], str, dict[str, str], bool]) -> None:
        argv, worker_class, environ, expected = case
        (tmp_path / "gun.py").write_text(f"worker_class = {worker_class!r}\n")
        called: list[bool] = []
        collect(["-c", "gun.py", *argv], environ, str(tmp_path), lambda: called.append(True))
        assert bool(called) == expected

    check_each(
        {
            "file": ([], "gevent", {}, True),
            "gunicorn's name": ([], "gunicorn.workers.ggevent.GeventWorker", {}, True),
            "another in the file": ([], "sync", {}, False),
            "flag": (["-k", "gevent"], "sync", {}, True),
            "another flag": (["-k", "sync"], "gevent", {}, False),
            "variable": ([], "sync", {"WSGISERV_CMD_ARGS": "-k gevent"}, True),
            "flag before variable": (["-k", "sync"], "gevent", {"GUNICORN_CMD_ARGS": "-k gevent"}, False),
        },
        check,
    )
    called: list[bool] = []
    collect(["-k", "gevent"], {}, str(tmp_path), lambda: called.append(True))
    assert not called  # no file, no code that would need it
