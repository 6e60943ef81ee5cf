"""``preload_in = "master"``: the master's children are its workers and nothing else, whatever happens to them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from server import Connect, Server, Start, children, is_alive, run, wait_until

APP = """\
import json, os, subprocess, sys
LOADED_IN = os.getpid()
with open("imports", "a") as file:
    print(LOADED_IN, file=file)

def app(environ, start_response):
    facts = dict(loaded_in=LOADED_IN, pid=os.getpid(), parent=os.getppid())
    if environ["PATH_INFO"] == "/orphan":
        # Its parent ends at once.
        command = "import os, sys, time; os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE)
        facts["orphan"] = int(child.stdout.readline())
        child.stdout.close()
        child.wait()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(facts).encode()]
"""
NOT_RELOADED = "WS1291 reload: the preloaded application stays as it is"


def begin(start: Start, *arguments: str, expect: tuple[str, ...] = ()) -> Server:
    options = ("-w", "2", "--preload", "--preload-in", "master", *arguments)
    return start("preloaded:app", *options, files={"preloaded.py": APP}, expect=(NOT_RELOADED, *expect))


def ask(connect: Connect, server: Server, path: str = "/") -> Any:
    return connect(server.address).get(path).json()


def counted(server: Server, count: int) -> list[int]:
    """Wait as Airflow's monitor does: until the master has so many children."""
    return wait_until(lambda: len(found := children(server.pid)) == count and found, f"{count} children")  # type: ignore[no-any-return]


def test_the_children_are_the_workers(start: Start, connect: Connect, tmp_path: Path, worker_class: str) -> None:
    server = begin(start, "--log-level", "debug", expect=("WS1209", "killed by SIGKILL", "SIGKILL from outside"))
    server.wait_for_log("preload_in = 'master': the master itself loads the application.*SIGHUP will not reload it")
    server.wait_for_log("ready: 2 workers")
    seen = counted(server, 2)
    facts = ask(connect, server)
    assert (facts["loaded_in"], facts["parent"]) == (server.pid, server.pid)
    assert facts["pid"] in seen
    # Airflow's rolling refresh: one more, then the oldest goes, for each of them.
    for _ in range(2):
        oldest = children(server.pid)[0]
        before = len(server.log.lines)
        server.send_signal(signal.SIGTTIN)
        counted(server, 3)
        server.wait_for_log("is ready after", after=before)  # Airflow waits for a mark in the process's title
        server.send_signal(signal.SIGTTOU)
        left = counted(server, 2)
        assert oldest not in left
    assert not set(seen) & set(children(server.pid))
    before = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(NOT_RELOADED, after=before)
    server.wait_for_log("reloaded: 2 workers", after=before)
    victim = counted(server, 2)[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in children(server.pid) and len(children(server.pid)) == 2, "it is replaced")
    assert ask(connect, server)["loaded_in"] == server.pid
    assert (tmp_path / "imports").read_text() == f"{server.pid}\n"


@pytest.mark.parametrize("place", ["master", "zygote"])
def test_orphans_of_the_application(start_unclassed: Start, connect: Connect, place: str) -> None:
    """With the zygote, and only then, they become the master's children."""
    server = begin(start_unclassed, "--preload-in", place)
    server.wait_for_log("ready: 2 workers")
    orphan = ask(connect, server, "/orphan")["orphan"]
    try:
        wait_until(lambda: parent_of(orphan) not in server.workers(), "it is an orphan")
        assert is_alive(orphan)
        assert (orphan in children(server.pid)) == (place == "zygote")
        assert len(children(server.pid)) == (4 if place == "zygote" else 2)
    finally:
        os.kill(orphan, signal.SIGKILL)


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_an_upgrade_loads_it_again(start_unclassed: Start, connect: Connect, tmp_path: Path) -> None:
    server = begin(start_unclassed)
    server.wait_for_log("ready: 2 workers")
    first = ask(connect, server)
    server.send_signal(signal.SIGUSR2)
    server.wait()
    second = ask(connect, server)
    try:
        assert second["loaded_in"] == second["parent"] not in (first["loaded_in"], 0)
        assert len(children(second["parent"])) == 2
    finally:
        os.kill(second["parent"], signal.SIGTERM)
        wait_until(lambda: not is_alive(second["parent"]), "the next master has stopped")


def test_a_reload_does_not_move_it(start_unclassed: Start, connect: Connect, tmp_path: Path) -> None:
    files = {"preloaded.py": APP, "conf.py": "preload_app = True\npreload_in = 'master'"}
    server = start_unclassed("preloaded:app", "-c", "conf.py", files=files, expect=(NOT_RELOADED, "WS1290"))
    server.wait_for_log("ready: 1 worker")
    (tmp_path / "conf.py").write_text("preload_app = True\npreload_in = 'zygote'")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("WS1290 reload: preload_in = 'zygote' takes effect at a restart or an upgrade")
    server.wait_for_log("reloaded")
    assert ask(connect, server)["loaded_in"] == server.pid


def test_what_cannot_be_loaded_ends_the_start(start_unclassed: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no database')")
    outcome = run(["--preload", "--preload-in", "master", "broken:app"], tmp_path)
    assert outcome.returncode == 4
    assert "no database" in outcome.stderr


def test_threads_stay_in_the_master(start_unclassed: Start, connect: Connect) -> None:
    text = (
        f"import threading\nthreading.Thread(target=threading.Event().wait, name='poller', daemon=True).start()\n{APP}"
    )
    options = ("--preload", "--preload-in", "master")
    server = start_unclassed("preloaded:app", *options, files={"preloaded.py": text}, expect=("WS1292",))
    server.wait_for_log(r"WS1292 preload_app: the application has started a thread .*\(poller\)")
    assert ask(connect, server)["loaded_in"] == server.pid
