"""The pytest plugin, in runs of pytest of its own (issue 17, part 3); the suites of docs/testing-applications.md."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from server import ROOT, environment, plugin_environment, processes, wait_until

from wsgiserv import pytest_plugin

# Runs of pytest within one, beside others: most of their time is the start of interpreters.
LONGEST_S = 150
pytestmark = pytest.mark.timeout(LONGEST_S + 30)

PAGE = ROOT / "docs" / "testing-applications.md"

COMMON = """
import os, sys
from urllib.request import urlopen

def app(environ, start_response):
    print("asked for", environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]

def ask(server, path="/"):
    with open("pids", "a") as file:
        file.write(f"{server.pid}\\n")
    return urlopen(server.url + path, timeout=20).read()
"""


def run_pytest(directory: Path, *args: str, **files: str) -> subprocess.CompletedProcess[str]:
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args],
        cwd=directory,
        env={**environment({}), **plugin_environment()},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )


def pids(directory: Path) -> list[int]:
    return [int(line) for line in (directory / "pids").read_text().split()]


def all_have_ended(directory: Path) -> None:
    found = set(pids(directory))
    wait_until(lambda: not [each for each in processes() if each.session in found], "the servers have ended")


SCOPES = f"""{COMMON}
import pytest

@pytest.fixture(scope="module")
def of_module(module_wsgi_server):
    return module_wsgi_server(app)

@pytest.mark.parametrize("number", range(2))
def test_it(wsgi_server, of_module, of_session, number):
    for server in (wsgi_server(app), of_module, of_session):
        ask(server)
"""


SHARED = """
import pytest

@pytest.fixture(scope="session")
def of_session(session_wsgi_server):
    return session_wsgi_server("test_first:app")
"""


@pytest.mark.parametrize("args", [[], ["-p", "xdist", "-n", "2"]], ids=["", "xdist"])
def test_scopes(tmp_path: Path, args: list[str]) -> None:
    done = run_pytest(tmp_path, "-q", "-W", "error", *args, conftest=SHARED, test_first=SCOPES, test_second=SCOPES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    found = pids(tmp_path)
    assert len(found) == 12
    if not args:
        # One of each test, one of each module, one of the run.
        assert len(set(found)) == 4 + 2 + 1
    all_have_ended(tmp_path)


FAILURES = f"""{COMMON}
import pytest

@pytest.fixture(scope="session")
def shared(session_wsgi_server):
    return session_wsgi_server(app)

def test_good(wsgi_server, shared):
    ask(wsgi_server(app), "/good"), ask(shared, "/shared-good")

def test_bad(wsgi_server, shared):
    ask(wsgi_server(app), "/bad"), ask(shared, "/shared-bad")
    assert 0

def test_other():
    assert 0

@pytest.fixture
def broken(wsgi_server):
    ask(wsgi_server(app), "/fixture")
    assert 0

def test_fixture(broken): ...

def test_value(wsgi_server):
    wsgi_server(app, workers="no")
"""


def test_the_log_is_in_the_report_of_a_failed_test(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "-q", test_it=FAILURES)
    text = done.stdout
    assert "1 passed" in text
    reports = dict(re.findall(r"^_+ (?:ERROR at setup of )?test_(\w+) _+$(.*?)(?=^[_=]+ |\Z)", text, re.M | re.S))
    assert sorted(reports) == ["bad", "fixture", "other", "value"], text
    assert "wsgiserv log of http://127.0.0.1:" in reports["bad"]
    assert "asked for /bad" in reports["bad"]
    assert "since the test began" in reports["bad"]
    assert "asked for /shared-bad" in reports["bad"]
    assert "good" not in reports["bad"]
    assert "wsgiserv log" not in reports["other"]
    assert "asked for /fixture" in reports["fixture"]
    assert "WS1010 workers = 'no'" in reports["value"]
    assert "embedding" not in reports["value"], "the traceback ends where the test has called"
    all_have_ended(tmp_path)


@pytest.mark.parametrize(
    "end",
    ["raise KeyboardInterrupt", "os._exit(3)", "os.kill(os.getpid(), 9)", "pytest.exit('over')", "sys.exit(2)"],
    ids=["interrupt", "exit", "kill", "pytest", "error"],
)
def test_the_end_of_the_run_ends_them(tmp_path: Path, end: str) -> None:
    text = f"{COMMON}\nimport pytest\n\ndef test_it(wsgi_server):\n    ask(wsgi_server(app))\n    {end}\n"
    run_pytest(tmp_path, "-q", test_it=text)
    all_have_ended(tmp_path)


def test_nothing_is_imported_unless_used(tmp_path: Path) -> None:
    text = (
        "import sys\ndef test_it():\n    print(sorted(each for each in sys.modules if each.startswith('wsgiserv')))\n"
    )
    done = run_pytest(tmp_path, "-q", "-s", test_it=text)
    assert "['wsgiserv', 'wsgiserv.pytest_plugin']" in done.stdout, done.stdout + done.stderr


def test_the_fixtures_are_documented(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "-q", "--fixtures")
    for name in ("wsgi_server", "module_wsgi_server [module scope]", "session_wsgi_server [session scope]"):
        assert re.search(rf"^{re.escape(name)}.*\n +Start servers", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize(
    ("module", "directory", "args"),
    [("pytest_flask", "flask_site", []), ("pytest_django", "django_site", ["--ds", "site_settings"])],
)
def test_the_suites_of_the_page(tmp_path: Path, module: str, directory: str, args: list[str]) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        name = re.match(r"# (\S+)", block)
        if name and name[1].startswith(f"{directory}/"):
            path = tmp_path / name[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", f"{module}.plugin", "-p", "no:cacheprovider", *args],
        cwd=tmp_path / directory,
        env={**environment({"PYTHONPATH": f"{ROOT}:."}), **plugin_environment()},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_the_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"wsgiserv": pytest_plugin.__name__}
