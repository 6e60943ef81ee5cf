"""Stand-ins for gunicorn's modules: who finds them, and who does not."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wsgiserv import stand_ins


class _Hides(PathFinder):
    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] == "gunicorn" else super().find_spec(name, path, target)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Look for gunicorn anew."""
    stand_ins.begin_configuration()
    yield
    stand_ins.begin_configuration()


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the installed gunicorn."""
    finders = [_Hides if finder is PathFinder else finder for finder in sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", finders)
    for name in [name for name in sys.modules if name.partition(".")[0] == "gunicorn"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path; its modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if not name.startswith(("wsgiserv", "gunicorn")):
            del sys.modules[name]


def executed(text: str) -> ModuleType:
    module = ModuleType("supplied")
    stand_ins.supply(module)
    exec(text, vars(module))
    return module


IMPORTS = """
import gunicorn
import gunicorn.util
import gunicorn.glogging as logs
from gunicorn import errors, SERVER
from gunicorn.config import Config

def later():
    from gunicorn.instrument import statsd
    import gunicorn.app.wsgiapp
    return [statsd, gunicorn.app.wsgiapp]

found = [gunicorn, gunicorn.util, logs, errors]
"""


def test_each_form_of_import(missing: None) -> None:
    module = executed(IMPORTS)
    names = [each.__name__ for each in [*module.found, *module.later()]]
    assert names == [
        f"wsgiserv.{name}"
        for name in ("gunicorn", "gunicorn.util", "gunicorn.glogging", "gunicorn.errors", "gunicorn.instrument.statsd",
                     "gunicorn.app.wsgiapp")
    ]  # fmt: skip
    assert module.Config.__module__ == "wsgiserv.gunicorn.config"
    assert "gunicorn" not in sys.modules
    assert importlib.util.find_spec("gunicorn") is None


def test_the_real_one_goes_first() -> None:
    module = executed(IMPORTS)
    assert [each.__name__.startswith("gunicorn") for each in [*module.found, *module.later()]] == [True] * 6
    workers = executed("from gunicorn.workers.sync import SyncWorker\nfrom gunicorn.workers import SUPPORTED_WORKERS")
    assert workers.SyncWorker.__module__ == "wsgiserv.gunicorn.workers.sync"


@pytest.mark.parametrize("name", ["gunicorn.nonsense", "gunicorn.http2", "gunicorn.workers.geventlet"])
def test_a_module_without_a_stand_in(missing: None, name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{name}': wsgiserv has no stand-in") as caught:
        executed(f"import {name}")
    assert caught.value.name == name
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        executed("from gunicorn import nonsense")


def test_all_else_is_imported_as_ever(path: Path) -> None:
    (path / "other.py").write_text("import absent_for_sure\n")
    module = executed("import os.path, json as j\nfrom collections import abc")
    assert module.j.__name__ == "json"
    assert module.os is sys.modules["os"]
    with pytest.raises(ModuleNotFoundError, match="No module named 'absent_for_sure'"):
        executed("import other")


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_directory_or_file_of_that_name_is_not_gunicorn(missing: None, path: Path, kind: str) -> None:
    if kind == "file":
        (path / "gunicorn.py").write_text("")
    else:
        (path / "gunicorn").mkdir()
    assert not stand_ins.is_installed()


HIDDEN = "Imported by somebody else: nothing for it."
CASES = {
    "at_top": ("from gunicorn import util\n", True, True),
    "in_if": ("if True:\n    import gunicorn.util as util\n", True, True),
    "in_try": ("try:\n    from gunicorn import util\nexcept ImportError:\n    util = None\n", True, False),
    "in_function": ("def later():\n    from gunicorn import util\n", False, False),
    "in_text": ("util = 'import gunicorn'\n", False, False),
    "relative": ("try:\n    from .gunicorn import util\nexcept ImportError:\n    util = None\n", False, False),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_near", [True, False])
def test_which_imported_modules_get_them(missing: None, path: Path, name: str, is_near: bool) -> None:
    text, near, far = CASES[name]
    (path / f"{name}.py").write_text(text)
    wanted = near if is_near else far
    with stand_ins.supplied_imports(str(path) if is_near else None):
        try:
            module: Any = importlib.import_module(name)
        except ImportError:
            module = None
    has = isinstance(vars(module or ModuleType("x")).get("__builtins__"), dict) and (
        vars(module)["__builtins__"]["__import__"] is stand_ins._import
    )
    assert has is wanted
    if wanted and name != "in_function":
        assert module.util.__name__ == "wsgiserv.gunicorn.util"
    assert not any(isinstance(finder, stand_ins._Finder) for finder in sys.meta_path)


def test_a_server_without_use_for_it_imports_none_of_it() -> None:
    code = "import sys, wsgiserv.cli as cli; cli.import_server(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    names = done.stdout.split()
    assert "wsgiserv.stand_ins" in names
    assert not [name for name in names if name.startswith(("wsgiserv.gunicorn", "wsgiserv.logs.logger_class"))]


def test_the_code_of_a_file_is_looked_at() -> None:
    def has(text: str) -> bool:
        return stand_ins.imports_gunicorn(compile(text, "x", "exec"))

    assert has("import gunicorn")
    assert has("def f():\n  class C:\n    import gunicorn.app.base as b")
    assert not has("workers = 5")
    assert not has("import gunicorn_base")


@pytest.mark.parametrize("name", ["SERVER", "SERVER_SOFTWARE"])
def test_the_name_of_the_server(missing: None, name: str) -> None:
    stand_ins.begin_configuration()
    assert stand_ins.server_name() is None
    executed(f"import gunicorn\ngunicorn.{name} = 'x'")
    assert stand_ins.server_name() == "x"
    stand_ins.begin_configuration()
    assert stand_ins.server_name() is None
