"""The hooks: gunicorn's names and arguments, in the right process and order (issue 2, part 9)."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Server, Start, run, wait_until

CONFIG = """
import os

def note(name, *shown):
    with open("hooks.txt", "a") as file:
        file.write(" ".join([str(os.getpid()), name, *map(str, shown)]) + "\\n")

def on_starting(server):
    note("on_starting", server.pid == os.getpid() or server.pid is None)

def on_reload(server):
    note("on_reload")

def when_ready(server):
    note("when_ready")
    server.log.info("from when_ready")

def pre_fork(server, worker):
    note("pre_fork", worker.age)

def post_fork(server, worker):
    note("post_fork", worker.pid, worker.age)

def post_worker_init(worker):
    note("post_worker_init", worker.pid, callable(worker.wsgi))

def worker_int(worker):
    note("worker_int", worker.pid)

def worker_abort(worker):
    note("worker_abort", worker.pid)

def pre_request(worker, req):
    note("pre_request", req.method, req.path, req.query)
    worker.log.debug("%s %s", req.method, req.path)

def post_request(worker, req, environ, resp):
    note("post_request", req.method, req.path, environ["REQUEST_METHOD"], str(resp.status).split()[0])

def child_exit(server, worker):
    note("child_exit", worker.pid)

def worker_exit(server, worker):
    note("worker_exit", worker.pid)

def nworkers_changed(server, new_value, old_value):
    note("nworkers_changed", new_value, old_value)

def on_exit(server):
    note("on_exit")
"""


def notes(directory: Path) -> list[list[str]]:
    """Return the hooks called so far: pid, name, what was shown."""
    path = directory / "hooks.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def called(directory: Path, name: str) -> list[list[str]]:
    return [note for note in notes(directory) if note[1] == name]


def begin(start: Start, *args: str, config: str = CONFIG, expect: tuple[str, ...] = ()) -> Server:
    server = start("apps:app", "-c", "conf.py", *args, files={"conf.py": config}, expect=expect)
    with RawClient(server.address) as client:
        assert client.get("/first?q=1").status == 200
    return server


def test_every_hook_in_its_process_and_order(start: Start, tmp_path: Path) -> None:
    server = begin(start)
    (worker,) = server.workers()
    master = server.pid
    server.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(called(tmp_path, "post_worker_init")) == 2, "a second worker")
    server.send_signal(signal.SIGTTOU)
    wait_until(lambda: len(called(tmp_path, "child_exit")) == 1, "a worker's end")
    assert server.stop() == 0
    server.wait_for_log("from when_ready")

    names = [note[1] for note in notes(tmp_path)]
    for name in ("on_starting", "when_ready", "on_exit"):
        assert called(tmp_path, name)[0][0] == str(master)
        assert names.count(name) == 1
    for name in ("pre_fork", "child_exit", "nworkers_changed"):
        assert {note[0] for note in called(tmp_path, name)} == {str(master)}
    for name in ("post_fork", "post_worker_init", "worker_exit"):
        found = called(tmp_path, name)
        assert len(found) == 2
        assert all(note[0] == note[2] for note in found), "worker.pid is the process's own"
    assert called(tmp_path, "pre_fork")[0][2] == "1"
    assert called(tmp_path, "post_fork")[0][2:] == [str(worker), "1"]
    assert called(tmp_path, "post_worker_init")[0][3] == "True"
    assert {note[2] for note in called(tmp_path, "child_exit")} == {note[2] for note in called(tmp_path, "worker_exit")}
    assert called(tmp_path, "pre_request")[0][1:] == ["pre_request", "GET", "/first", "q=1"]
    assert called(tmp_path, "post_request")[0][1:] == ["post_request", "GET", "/first", "GET", "200"]
    changes = [note[2:] for note in called(tmp_path, "nworkers_changed")]
    assert changes[-2:] == [["2", "1"], ["1", "2"]]

    order = ["on_starting", "pre_fork", "post_fork", "post_worker_init", "pre_request", "post_request", "worker_exit"]
    positions = [names.index(name) for name in [*order, "on_exit"]]
    assert positions == sorted(positions)
    assert names[-1] == "on_exit"
    assert names.index("when_ready") < names.index("pre_request")


def test_on_reload(start: Start, tmp_path: Path) -> None:
    server = begin(start)
    before = set(server.workers())
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: not set(server.workers()) & before, "the old worker's end")
    assert [note[0] for note in called(tmp_path, "on_reload")] == [str(server.pid)]


def test_worker_int(start: Start, tmp_path: Path) -> None:
    server = begin(start)
    (worker,) = server.workers()
    assert server.stop(signal.SIGINT) == 0
    assert called(tmp_path, "worker_int") == [[str(worker), "worker_int", str(worker)]]


def test_worker_abort(start: Start, tmp_path: Path, worker_class: str) -> None:
    threads = ["--threads", "1"] if worker_class == "threads" else []  # all of them hang
    server = begin(start, "-t", "1", *threads, expect=(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback",))
    (worker,) = server.workers()
    with RawClient(server.address) as client:
        client.request("/hang")
        wait_until(lambda: called(tmp_path, "worker_abort"), "the worker's abort")
    assert called(tmp_path, "worker_abort") == [[str(worker), "worker_abort", str(worker)]]


HARMLESS = [*("post_request", "child_exit", "worker_exit", "nworkers_changed", "on_exit"), *("on_reload", "worker_int")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_hooks_that_raise_are_logged_by_name_and_do_no_harm(start: Start, number: int) -> None:
    """All that are harmless at once: each is called although others raised, and has its line and its traceback."""
    called = [name for name in HARMLESS if name != "worker_int" or number == signal.SIGINT]
    config = CONFIG + "\ndef broken(name):\n    raise RuntimeError('from the hook ' + name)\n\n"
    config += "".join(f"{name} = lambda {ARGUMENTS[name]}: broken('{name}')\n" for name in HARMLESS)
    server = begin(start, config=config, expect=(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback",))
    # One worker more or less, for nworkers_changed after the start.
    server.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(server.workers()) == 2, "a second worker")
    server.send_signal(signal.SIGTTOU)
    wait_until(lambda: len(server.workers()) == 1, "one worker")
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    before = set(server.workers())
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.workers() and not set(server.workers()) & before, "the reload")
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    assert server.stop(number) == 0
    logged = server.log.text
    for name in called:
        assert f"RuntimeError: from the hook {name}\n" in logged + "\n", name
        assert re.search(rf"\[ERROR\].*\b{name}\b", logged), name


ARGUMENTS = {
    **dict.fromkeys(["on_starting", "on_reload", "when_ready", "on_exit"], "server"),
    **dict.fromkeys(["pre_fork", "post_fork", "child_exit", "worker_exit"], "server, worker"),
    **dict.fromkeys(["post_worker_init", "worker_int", "worker_abort"], "worker"),
    "pre_request": "worker, req",
    "post_request": "worker, req, environ, resp",
    "nworkers_changed": "server, new_value, old_value",
}


@pytest.mark.parametrize("name", ["on_starting", "pre_fork"])
def test_a_hook_may_forbid_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "conf.py").write_text(f"def {name}({ARGUMENTS[name]}):\n    raise RuntimeError('not today')\n")
    done = run(["-c", "conf.py", "-b", "127.0.0.1:0", "apps:app"], tmp_path)
    assert done.returncode not in (0, -signal.SIGKILL)
    assert name in done.stderr
    assert "not today" in done.stderr


@pytest.mark.parametrize("arguments", ["worker, req", "worker, req, environ", "worker, req, environ, resp"])
def test_post_request_with_fewer_arguments(start: Start, tmp_path: Path, arguments: str) -> None:
    config = f"def post_request({arguments}):\n    open('done.txt', 'a').write(req.path)\n"
    server = start("apps:app", "-c", "conf.py", files={"conf.py": config})
    with RawClient(server.address) as client:
        assert client.get("/path").status == 200
    done = tmp_path / "done.txt"
    wait_until(lambda: done.exists() and done.stat().st_size >= len("/path"), "the hook's call")
    assert server.stop() == 0
    assert done.read_text() == "/path"  # called once
