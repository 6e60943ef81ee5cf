"""`wsgiserv.run`: a program serves an application in its own process (issue 17, part 2)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient
from server import Server, Start, environment, wait_until

# Called with the application, "object" or a name, and further arguments of `run` in JSON.
PROGRAM = """
import atexit, json, os, sys
import wsgiserv

atexit.register(lambda: print("exit handler", os.getpid(), flush=True))

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {__name__}".encode()]

if __name__ == "__main__":
    try:
        wsgiserv.run(app if sys.argv[1] == "object" else sys.argv[1], **json.loads(sys.argv[2]))
    finally:
        print("behind", os.getpid(), flush=True)
"""
SHOP = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} 1".encode()]
"""


def program(start: Start, app: str = "object", *, text: str = PROGRAM, env: Any = None, **settings: Any) -> Server:
    command = [sys.executable, "prog.py", app, json.dumps({"bind": "127.0.0.1:0", **settings})]
    files = {"prog.py": text, "shop.py": SHOP}
    return start(None, command=command, bind="none", env=env or {}, files=files)


def ask(server: Server) -> list[str]:
    with RawClient(server.address) as client:
        return client.get("/", headers="Connection: close\r\n").text.split()


def test_an_object(start_unclassed: Start, worker_class: str) -> None:
    server = program(start_unclassed, workers=2, worker_class=worker_class, threads=2)
    server.wait_for_log("ready: 2 workers")
    workers = server.workers()
    pid, module = ask(server)
    assert int(pid) in workers
    assert module == "__main__"
    # It cannot be loaded again: one line, and the workers stay.
    server.expect("WS1310")
    seen = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"WS1310 reload failed.*WS1917 the application is an object.*wsgiserv\.run\(\"module:app\"\)")
    assert ask(server)[1] == "__main__"
    assert server.workers() == workers
    assert len(server.log.lines) == seen + 1
    assert server.stop() == 0
    # The workers have run nothing of the program.
    assert server.out.text.splitlines() == [f"behind {server.pid}", f"exit handler {server.pid}"]


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_name_is_loaded_again(start_unclassed: Start, tmp_path: Path, preload: bool) -> None:
    server = program(start_unclassed, "shop:app", workers=2, preload_app=preload)
    server.wait_for_log("ready: 2 workers")
    assert ask(server)[1] == "1"
    (tmp_path / "shop.py").write_text(SHOP.replace(" 1", " 2"))
    server.reload()
    assert ask(server)[1] == "2"
    assert server.stop(signal.SIGINT) == 0
    assert server.out.text.splitlines() == [f"behind {server.pid}", f"exit handler {server.pid}"]


def test_reload_has_no_effect_on_an_object(start_unclassed: Start) -> None:
    server = program(start_unclassed, reload=True)
    server.expect("WS1918")
    server.wait_for_log(r"WS1918 reload \(an argument of wsgiserv\.run\) has no effect: the application is an object")
    assert ask(server)[1] == "__main__"
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("env", "settings", "expected"),
    [
        ({"WEB_CONCURRENCY": "2"}, {}, 2),
        ({"WEB_CONCURRENCY": "2", "WSGISERV_WORKERS": "3"}, {"workers": None}, 3),
        ({"WSGISERV_CMD_ARGS": "--workers 2"}, {}, 2),
        ({"WSGISERV_WORKERS": "3"}, {"config": "given.py"}, 2),
        ({"WSGISERV_WORKERS": "3"}, {"config": "given.py", "workers": 1}, 1),
        ({"WSGISERV_CMD_ARGS": "--workers 3"}, {"workers": 1}, 1),
    ],
    ids=["platform", "variable", "arguments", "file", "keyword", "all"],
)
def test_precedence(
    start_unclassed: Start, tmp_path: Path, env: dict[str, str], settings: dict[str, Any], expected: int
) -> None:
    (tmp_path / "given.py").write_text("workers = 2\n")
    (tmp_path / "wsgiserv.conf.py").write_text("workers = 7\n")  # only the command reads it
    server = program(start_unclassed, env=env, **settings)
    assert int(server.wait_for_log(r"pid \d+: (\d+) sync worker")[1]) == expected
    assert server.stop() == 0


def test_an_upgrade_runs_the_program_anew(start_unclassed: Start) -> None:
    server = program(start_unclassed)
    server.wait_for_log("ready: 1 worker")
    seen = len(server.log.lines)
    server.send_signal(signal.SIGUSR2)
    successor = int(server.wait_for_log(r"wsgiserv \S+ .*, pid (\d+): 1 sync worker", after=seen)[1])
    assert server.wait_for_log("ready: 1 worker", after=seen)
    wait_until(lambda: f"behind {server.pid}" in server.out.text, "the old master has left run()")
    assert ask(server)[1] == "__main__"
    os.kill(successor, signal.SIGTERM)
    wait_until(lambda: not server.leftovers(), "the next master has left")
    assert server.wait() == 0


# ---- errors ------------------------------------------------------------------------------------------------


def run_code(code: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=directory,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


ERRORS = """
import asyncio, json, sys, threading
import wsgiserv

def app(environ, start_response): ...
async def asgi(scope, receive, send): ...
def create_app(): return app

CASES = {
    "unknown": (app, dict(wrkers=2, host="::")),
    "value": (app, dict(workers="no", worker_class="gevnt", bind=3.4)),
    "together": (app, dict(workers="no", nonsense=1)),
    "application": (app, dict(wsgi_app="shop:app")),
    "file": (app, dict(config="missing.py")),
    "number": (42, {}),
    "asgi": (asgi, {}),
    "factory": (create_app, {}),
    "module": ("nothere:app", {}),
    "import": ("broken:app", {}),
    "address": (app, dict(bind="192.0.2.1:1")),
}
found = {}
for name, (application, settings) in CASES.items():
    try:
        wsgiserv.run(application, **{"bind": "127.0.0.1:0", "errorlog": "/dev/null", **settings})
    except Exception as error:
        kinds = [each.__name__ for each in type(error).__mro__]
        found[name] = [kinds, str(error), getattr(error, "__notes__", [])]
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `run` raises for each of the cases above, in one process."""
    directory = tmp_path_factory.mktemp("errors")
    (directory / "broken.py").write_text("import json\nraise LookupError('no table')\n")
    done = run_code(ERRORS, directory)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("name", "kind", "texts"),
    [
        (
            "unknown",
            "ValueError",
            ["WS1920 wrkers = 2 (an argument of wsgiserv.run) is not a setting. Did you mean wo"],
        ),
        ("unknown", "ConfigError", ["WS1920 host = '::'", "Did you mean bind?", 'for example bind="127.0.0.1:8000".']),
        (
            "value",
            "ConfigError",
            ["WS1010 workers = 'no' (an argument of wsgiserv.run) is not accepted. Accepted: a w"],
        ),
        ("value", "ValueError", ["worker_class = 'gevnt'", "Did you mean 'gevent'?", "bind = 3.4"]),
        ("together", "ValueError", ["WS1010 workers = 'no'", "WS1920 nonsense = 1"]),
        ("application", "ValueError", ["WS1919 wsgi_app = 'shop:app'", "the application is the first argument"]),
        ("file", "ConfigError", ["WS1020 cannot read the configuration file", "missing.py"]),
        ("number", "ApplicationError", ["is an int, which cannot be called"]),
        ("asgi", "ApplicationError", ["an ASGI application (async)"]),
        ("factory", "ApplicationError", ["does not take the two arguments of a WSGI application"]),
        ("module", "ApplicationError", ["There is no module 'nothere'"]),
        ("import", "ApplicationError", ["LookupError: no table"]),
        ("address", "ConfigError", ["192.0.2.1:1"]),
    ],
)
def test_what_it_raises(errors: dict[str, Any], name: str, kind: str, texts: list[str]) -> None:
    kinds, message, _ = errors[name]
    assert kind in kinds
    assert [text for text in texts if text not in message] == [], message


def test_the_traceback_of_the_application_is_in_the_error(errors: dict[str, Any]) -> None:
    _, _, notes = errors["import"]
    assert any("broken.py" in note and "line 2" in note for note in notes), notes


IN_A_THREAD = """
import threading, wsgiserv

def go():
    try:
        wsgiserv.run(print)
    except RuntimeError as error:
        print(error)

thread = threading.Thread(target=go, name="reader")
thread.start(), thread.join()
"""
IN_A_WORKER = """
import wsgiserv

try:
    wsgiserv.run("unguarded:app", bind="127.0.0.1:0")
except wsgiserv.ApplicationError as error:
    print(error)
"""
IN_ANOTHER = """
import os, signal, wsgiserv

def again(server):
    try:
        wsgiserv.run(print)
    except RuntimeError as error:
        print(error)
    os.kill(os.getpid(), signal.SIGTERM)

wsgiserv.run(print, bind="127.0.0.1:0", when_ready=again)
"""


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (IN_A_THREAD, "wsgiserv.run was called in the thread 'reader': only the main thread gets the signals"),
        (IN_A_WORKER, 'Put the call under: if __name__ == "__main__": ('),
        (IN_ANOTHER, "wsgiserv.run: another server runs in this process already."),
    ],
    ids=["thread", "worker", "twice"],
)
def test_where_it_cannot_run(tmp_path: Path, code: str, expected: str) -> None:
    (tmp_path / "unguarded.py").write_text("import wsgiserv\ndef app(e, s): ...\nwsgiserv.run(app)\n")
    done = run_code(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout, done.stdout + done.stderr


def test_the_command_refuses_it_in_its_workers(tmp_path: Path) -> None:
    (tmp_path / "unguarded.py").write_text("import wsgiserv\ndef app(e, s): ...\nwsgiserv.run(app)\n")
    done = subprocess.run(
        [sys.executable, "-m", "wsgiserv", "-b", "127.0.0.1:0", "unguarded:app"],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "wsgiserv.run was called in a process of a wsgiserv server" in done.stderr
    assert "unguarded.py, line 3" in done.stderr


# ---- the program goes on -----------------------------------------------------------------------------------

AGAIN = """
import os, signal, sys, tempfile, threading
import wsgiserv

def app(environ, start_response): ...

def handler(number, frame): ...

signal.signal(signal.SIGTERM, handler)
signal.signal(signal.SIGUSR1, handler)
os.umask(0o027)

def state():
    fds = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the descriptor of the listing
            pass
    umask = os.umask(0)
    os.umask(umask)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with open("/proc/self/cmdline") as file:
        title = file.read()
    return handlers, mask, umask, os.getcwd(), dict(os.environ), list(sys.path), list(sys.argv), title, len(fds)

def stop(server):
    os.kill(os.getpid(), signal.SIGTERM)

settings = dict(bind="127.0.0.1:0", umask=0o77, chdir="below", raw_env=["GREETING=hi"], when_ready=stop, workers=2,
                appear_as="gunicorn")
states = []
for _ in range(4):
    wsgiserv.run(app, **settings)
    states.append(state())
    try:
        wsgiserv.run(app, **{**settings, "bind": "192.0.2.1:1"})
    except ValueError:
        pass
    states.append(state())
for at, (first, last) in enumerate(zip(states[0], states[-1])):
    assert first == last, (at, first, last)
assert states[0][0][signal.SIGTERM] is handler and states[0][2] == 0o027
assert "GREETING" not in os.environ and "SERVER_SOFTWARE" not in os.environ and not os.getcwd().endswith("below")
pid = os.fork()  # it is none of the server's children
if pid == 0:
    os._exit(signal.getsignal(signal.SIGTERM) is not handler)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print("good")
"""


def test_what_the_server_has_changed_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    done = run_code(AGAIN, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "good\n"
    assert "ResourceWarning" not in done.stderr


PATCHED = (
    """
from gevent import monkey
monkey.patch_all()
"""
    + PROGRAM
)


@pytest.mark.parametrize("kind", ["sync", "gevent"])
def test_a_program_that_gevent_has_patched(start_unclassed: Start, kind: str) -> None:
    server = program(start_unclassed, text=PATCHED, worker_class=kind)
    server.wait_for_log("ready: 1 worker")
    assert ask(server)[1] == "__main__"
    assert server.stop() == 0
    assert server.out.text.splitlines() == [f"behind {server.pid}", f"exit handler {server.pid}"]
