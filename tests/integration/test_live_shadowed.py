"""Modules come from where they belong: not from the application's directory, and also when their files have gone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from rawclient import RawClient
from server import DEADLINE_S, Connect, Server, Start, wait_until

import wsgiserv

pytestmark = pytest.mark.no_coverage

PACKAGE = Path(wsgiserv.__file__).parent

# Whoever imports such a file gets this.
POISON = "raise RuntimeError('a file of the application was imported in the place of another module')\n"
# Named as modules of this package, or of those that it depends on, when each stands for itself.
OTHERS = (
    *("relief", "deadline", "reloader", "warmup", "outbox", "tls", "zygote", "upgrade", "worker", "errors"),
    *("setproctitle", "greenlet", "gevent", "watchfiles"),
)
APP = """\
import os, sys, time
VERSION = {version}
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise ValueError("\\u00e4 fault of the application")  # \u00e4 line that is not ASCII
    if path == "/abort":
        os.abort()
    if path == "/slow":
        time.sleep(0.4)
    size = len(environ["wsgi.input"].read())
    body = b"x" * 6_000_000 if path == "/large" else b"%d %d %d" % (VERSION, os.getpid(), size)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
CONF = """\
def post_worker_init(worker): pass
def pre_request(worker, req): pass
max_requests_jitter = 5
max_requests = 100000
forwarded_allow_ips = "10.0.0.0/8,127.0.0.1"
"""
EXPECT = ("SIGKILL", "SIGABRT", "Traceback", r"\[ERROR\]", r"\[CRITICAL\]", "aborted")


@pytest.fixture(scope="module")
def poisons(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of all modules of the standard library but those that ``python -m`` itself needs to find its module."""
    directory = tmp_path_factory.mktemp("bare")
    (directory / "bare.py").write_text("import sys; print(*sys.modules)")
    command = [sys.executable, "-m", "bare"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True, cwd=directory)
    names = sys.stdlib_module_names - {"this", "antigravity"} - {name.partition(".")[0] for name in done.stdout.split()}
    # Those of another platform (_winapi) are asked for everywhere, and only an application's directory could have one.
    return sorted({name for name in names if importlib.util.find_spec(name) is not None}.union(OTHERS))


@pytest.fixture(params=["alone", "preloaded"])
def options(request: pytest.FixtureRequest) -> list[str]:
    """With the application loaded by each worker, and once for all."""
    return ["--preload"] if request.param == "preloaded" else []


def ask(server: Server, target: str = "/", **rest: object) -> tuple[int, int, int]:
    """Ask as a new client; return the version, the worker's pid, and how large the request's body was."""
    with RawClient(server.address) as client:
        response = client.get(target, **rest)
        assert response.status == 200, (response.status, response.body)
        version, pid, size = map(int, response.body.split())
        return version, pid, size


def exercise(server: Server, connect: Connect, application: Path, options: list[str]) -> None:
    """Do to a server of two workers what makes it do all that is done rarely."""
    count = 2 + len(options)  # --preload has a zygote
    server.wait_for_log("ready: 2 workers")
    assert ask(server)[0] == 1
    # A body, and a response, that go to files.
    assert ask(server, method="POST", body=b"y" * 3_000_000)[2] == 3_000_000
    slow = connect(server.address)
    slow.request("/large")
    other = connect(server.address)
    assert other.get("/slow").status == 200
    assert len(slow.read_response().body) == 6_000_000
    # Behind a proxy, whose address is looked at.
    forwarded = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n"
    assert connect(server.address).get("/", headers=forwarded).status == 200
    # What is logged with a traceback; what is reported.
    assert connect(server.address).get("/raise").status == 500
    server.wait_for_log("ValueError: ä fault of the application")
    for way in ("kill", "abort"):
        wait_until(lambda: len(server.workers()) == count, "two workers")
        before = len(server.log.lines)
        victim = ask(server)[1]
        if way == "kill":
            os.kill(victim, signal.SIGKILL)
        else:
            with RawClient(server.address) as client:
                client.request("/abort")
                client.expect_close()
        server.wait_for_log(r"was killed by SIG(KILL|ABRT)", after=before)
        wait_until(lambda: len(server.workers()) == count, "two workers again")
        assert ask(server)[0] == 1
    # A reload that fails, one that does not.
    for text, outcome in (("def broken(:\n", "reload failed|Reload failed"), (APP.format(version=2), "reloaded")):
        before = len(server.log.lines)
        application.write_text(text)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(outcome, after=before)
    wait_until(lambda: ask(server)[0] == 2, "the new code")
    server.send_signal(signal.SIGUSR1)
    assert server.stop() == 0
    assert "a file of the application was imported" not in server.log.text
    assert "ModuleNotFoundError" not in server.log.text
    assert "No module named" not in server.log.text


def test_files_of_the_application_stand_in_for_nothing(
    start: Start, connect: Connect, tmp_path: Path, poisons: list[str], options: list[str]
) -> None:
    files = {f"{name}.py": POISON for name in poisons}
    server = start(
        "shadowing:app",
        *("-w", "2", "-c", "gun.py", "--handoff-after", "0.1", "--request-timeout", "30", *options),
        files={**files, "shadowing.py": APP.format(version=1), "gun.py": CONF},
        env={"PYTHONHASHSEED": "0"},  # a process of its own: one that is forked has imported what the tests have
        expect=EXPECT,
    )
    exercise(server, connect, tmp_path / "shadowing.py", options)


def test_nor_does_a_directory_of_pythonpath(
    start: Start, connect: Connect, tmp_path: Path, poisons: list[str], worker_class: str
) -> None:
    """As in ``ENV PYTHONPATH=/app``, which is searched before the standard library."""
    site = tmp_path / "site"
    site.mkdir()
    for name in poisons:
        (site / f"{name}.py").write_text(POISON)
    (site / "shadowing.py").write_text(APP.format(version=1))
    path = os.pathsep.join([str(site), str(PACKAGE.parent)])
    server = start(
        "shadowing:app",
        *("-w", "2", "-c", "gun.py", "--handoff-after", "0.1"),
        files={"gun.py": CONF},
        env={"PYTHONPATH": path},
        expect=EXPECT,
    )
    exercise(server, connect, site / "shadowing.py", [])


def test_the_package_is_gone(start: Start, connect: Connect, tmp_path: Path, options: list[str]) -> None:
    """An upgrade of the package: for a moment its files are missing."""
    library = tmp_path / "library"
    shutil.copytree(PACKAGE, library / "wsgiserv", ignore=shutil.ignore_patterns("__pycache__"))
    server = start(
        "shadowing:app",
        *("-w", "2", "-c", "gun.py", "--handoff-after", "0.1", "--request-timeout", "30", *options),
        files={"shadowing.py": APP.format(version=1), "gun.py": CONF},
        env={"PYTHONPATH": str(library)},
        expect=EXPECT,
    )
    server.wait_for_log("ready: 2 workers")
    (library / "wsgiserv").rename(tmp_path / "away")
    exercise(server, connect, tmp_path / "shadowing.py", options)


def test_the_application_gets_its_own_modules(start: Start, tmp_path: Path, options: list[str]) -> None:
    """Though the master has imported those of the library with these names, for applications that want them."""
    own = ("calendar.py", "uuid/__init__.py", "more/platform.py", "more/secrets.py")
    app = (
        "import calendar, decimal, locale, numbers, platform, secrets, uuid, uuid.part\n"
        "assert isinstance(decimal.Decimal(1), numbers.Number) and locale.setlocale\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    names = [module.OWN for module in (calendar, uuid, uuid.part, platform, secrets)]\n"
        "    return [repr([*names, decimal.Decimal(1)]).encode()]\n"
    )
    for name in (*own, "uuid/part.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("OWN = __name__\n")
    for name in ("locale", "numbers"):  # not of code
        (tmp_path / name).mkdir()
    server = start(
        "owner:app", *("--pythonpath", "more", *options), files={"owner.py": app}, env={"PYTHONHASHSEED": "0"}
    )
    with RawClient(server.address) as client:
        expected = ["calendar", "uuid", "uuid.part", "platform", "secrets"]
        assert client.get("/").body == repr([*expected, Decimal(1)]).encode()
