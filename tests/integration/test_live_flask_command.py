"""``flask serve`` (issue 17, part 4)."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from projects import FLASK, address_of, ask, python_path, run_command, wait_for_text, write
from server import Server, Start, wait_until


def serve(start: Start, directory: Path, *args: str, env: Any = None) -> Server:
    command = ["-m", "flask", *args]
    return run_command(start, directory, *command, files=FLASK, env={"PYTHONUNBUFFERED": "1", **(env or {})})


@pytest.mark.parametrize(
    ("args", "env", "expected"),
    [
        (["--app", "shop"], {}, "False red"),
        (["-A", "shop:create_app('blue')"], {}, "False blue"),
        ([], {"FLASK_APP": "shop", "FLASK_DEBUG": "1"}, "True red"),
        (["--app", "shop", "--debug"], {}, "True red"),
    ],
    ids=["", "factory", "variables", "debug"],
)
def test_it_looks_like_flask_run(
    start_unclassed: Start, tmp_path: Path, args: list[str], env: Any, expected: str
) -> None:
    server = serve(start_unclassed, tmp_path, *args, "serve", "--port", "0", env=env)
    pid, rest = ask(server).text.removeprefix("one ").split(" ", 1)
    assert [int(pid)] == server.workers()
    assert rest == expected
    is_debug = "True" in expected
    server.out.wait_for("Press CTRL")
    assert re.search(rf" \* Serving Flask app '\S+'\n \* Debug mode: {'on' if is_debug else 'off'}", server.out.text)
    assert re.search(r" \* Running on http://127.0.0.1:\d+\nPress CTRL\+C to quit", server.out.text)
    server.out.wait_for(r'^127\.0\.0\.1 - - \[.*\] "GET / HTTP/1.1" 200 \d+$')
    assert ("Debugger PIN: " in server.log.text) is is_debug
    server.expect("Traceback", r"\[ERROR\]")
    failed = ask(server, "/boom")
    assert failed.status == 500
    assert ("Werkzeug Debugger" in failed.text) is is_debug
    server.wait_for_log("fails on purpose")
    assert server.stop(signal.SIGINT) == 0


def test_debug_reloads(start_unclassed: Start, tmp_path: Path) -> None:
    server = serve(start_unclassed, tmp_path, "--app", "shop", "--debug", "serve", "-p", "0", "--no-debugger")
    server.expect("WS1704", "Traceback", r"\[ERROR\]")
    wait_for_text(server, "one")
    shop = tmp_path / "shop.py"
    shop.write_text(FLASK["shop.py"].replace('f"one', 'f"two'))
    wait_for_text(server, "two")
    assert "Werkzeug" not in ask(server, "/boom").text
    shop.write_text("1 / 0\n")
    wait_until(lambda: "ZeroDivisionError" in ask(server).text, "a page that tells of the error")
    shop.write_text(FLASK["shop.py"])
    wait_for_text(server, "one")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["-k", "gevent"], "1 gevent worker"),
        (["-w", "2", "--threads=3"], "2 threads worker"),
        (["--without-threads", "--proxy-protocol"], "1 sync worker"),
        (["-h", "localhost", "-k", "sync", "--reload", "--env", "A=b"], "1 sync worker"),
    ],
    ids=["gevent", "threads", "sync", "host"],
)
def test_flags(start_unclassed: Start, tmp_path: Path, args: list[str], kind: str) -> None:
    server = serve(start_unclassed, tmp_path, "--app", "shop", "serve", "-p", "0", *args, "--log-level=info")
    assert address_of(server)[0] == "127.0.0.1"
    if "--proxy-protocol" not in args:
        wait_for_text(server, "one")
    assert kind in server.log.text
    server.stop()


def run(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    write(directory, FLASK)
    return subprocess.run(
        [sys.executable, "-m", "flask", *args],
        cwd=directory, env=python_path(directory), capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["--app", "shop", "serve", "-w", "many"], 2, "WS1010 workers = 'many'"),
        (["--app", "shop", "serve", "--wrkers", "2"], 2, "--wrkers"),
        (["--app", "nowhere", "serve", "-p", "0"], 4, "Could not import 'nowhere'"),
        (["serve", "-p", "0"], 4, "Could not locate a Flask application"),
        (["--app", "shop", "serve", "--help"], 0, "--worker-class"),
    ],
    ids=["value", "flag", "module", "none", "help"],
)
def test_answers_on_the_terminal(tmp_path: Path, args: list[str], status: int, text: str) -> None:
    done = run(tmp_path, *args)
    assert done.returncode == status, done.stderr
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


LOOK = """
import atexit, sys
from shop import create_app

atexit.register(lambda: print([name for name in sys.modules if name.startswith("wsgiserv")]))
"""


def test_nothing_is_imported_unless_used(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    done = run(tmp_path, "--app", "look:create_app", "routes")
    assert done.returncode == 0, done.stderr
    assert "['wsgiserv', 'wsgiserv.integrations', 'wsgiserv.integrations.flask']" in done.stdout
