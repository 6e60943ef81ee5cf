"""What is imported inside of a function has been imported before, by the master (see `wsgiserv.preimport`)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import wsgiserv
from wsgiserv.library_first import LibraryFirst
from wsgiserv.preimport import OPTIONAL

PACKAGE = Path(wsgiserv.__file__).parent
# The other program; and what only answers on the terminal, before anything of a user has been run, or in a child.
ANSWERS = ("wsgiserv.config.present", "wsgiserv.config_check", "wsgiserv.migrate.command")
# `import_for` imports the worker class's module, which imports the other.
GEVENT = ("wsgiserv.worker.gevent_worker", "wsgiserv.worker.gevent_patching")

# Not of a server, but of the program that starts one in the background, or of a framework.
PROGRAMS = ("background.py", "pytest_plugin.py")
FRAMEWORKS = "integrations"


def late_imports(path: Path) -> list[tuple[str, int]]:
    """Return the modules that functions of a file import, each with its line."""
    found = []
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                found += [(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                inner = [f"{module}.{alias.name}" for alias in node.names]
                is_package = (PACKAGE.parent / module.replace(".", "/")).is_dir()
                found += [(name, node.lineno) for name in (inner if is_package else [module])]
    return found


@pytest.mark.no_coverage
def test_what_functions_import_is_there_already() -> None:
    code = "import sys, wsgiserv.cli; wsgiserv.preimport.import_server(); print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    known = {*done.stdout.split(), *(name for names in OPTIONAL for name in names), *ANSWERS, *GEVENT}
    missing = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name not in PROGRAMS and FRAMEWORKS not in path.parts
        for name, line in late_imports(path)
        if name not in known
    ]
    assert missing == [], "not in wsgiserv.preimport"


@pytest.mark.no_coverage
def test_a_start_does_not_import_what_only_commands_need() -> None:
    code = "import sys, wsgiserv.cli; wsgiserv.preimport.import_server(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    commands = ("wsgiserv.migrate", "wsgiserv.master.differences", "wsgiserv.config.gunicorn_differences")
    assert [name for name in commands if name in done.stdout.split()] == []


def test_every_name_can_be_imported() -> None:
    names = [name for names in OPTIONAL for name in names if not name.startswith("watchfiles")]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_the_library_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    before = [str(tmp_path), "", str(site), os.path.dirname(os.__file__)]
    monkeypatch.setattr(sys, "path", list(before))
    with LibraryFirst():
        assert sys.path == [os.path.dirname(os.__file__), str(site), str(tmp_path), ""]
    assert sys.path == before
