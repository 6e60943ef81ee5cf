"""`preload_app` with the real workers: the application is loaded once for all, and again at a reload."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from server import Connect, Server, Start, children, wait_until

APP = """\
import gc, json, os, sys, time
VERSION = {version}
monkey = sys.modules.get("gevent.monkey")
PATCHED = monkey is not None and monkey.is_module_patched("socket") and monkey.is_module_patched("subprocess")
LOADED_IN = os.getpid()
with open("imports", "a") as file:
    print(LOADED_IN, file=file)

def app(environ, start_response):
    time.sleep(0.001)  # gevent's, in its worker
    start_response("200 OK", [("Content-Type", "application/json")])
    facts = dict(
        version=VERSION, patched=PATCHED, loaded_in=LOADED_IN, pid=os.getpid(), parent=os.getppid(),
        frozen=gc.get_freeze_count(),
    )
    return [json.dumps(facts).encode()]
"""


def test_loaded_once_for_all_workers(start: Start, connect: Connect, worker_class: str, tmp_path: Path) -> None:
    server = start(
        "preloaded:app",
        *("-w", "2", "--preload"),
        files={"preloaded.py": APP.format(version=1)},
        expect=("SIGKILL", "SyntaxError", "cannot boot", "reload failed", "is gone"),
    )
    server.wait_for_log("ready: 2 workers")

    def ask() -> dict[str, Any]:
        facts: dict[str, Any] = connect(server.address).get("/").json()
        return facts

    def imports() -> list[int]:
        return list(map(int, (tmp_path / "imports").read_text().split()))

    def reload_with(text: str, outcome: str) -> None:
        (tmp_path / "preloaded.py").write_text(text)
        before = len(server.log.lines)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(outcome, after=before)

    first = ask()
    [zygote] = imports()
    assert (first["version"], first["loaded_in"], first["parent"]) == (1, zygote, server.pid)
    assert first["pid"] not in (zygote, server.pid)
    assert first["frozen"] > 1000
    assert first["patched"] == (worker_class == "gevent")
    wait_until(lambda: len(server.workers()) == 3, "two workers and the zygote")

    # A worker that was killed comes again, without another import.
    kill(server, first["pid"])
    assert (ask()["loaded_in"], imports()) == (zygote, [zygote])

    # Broken code does no harm; what has been mended is served.
    reload_with("def broken(:\n", "reload failed")
    again = ask()
    assert (again["version"], again["loaded_in"]) == (1, zygote)
    reload_with(APP.format(version=2), "reloaded: 2 workers")
    wait_until(lambda: len(server.workers()) == 3 and zygote not in server.workers(), "the old ones have left")
    second = ask()
    assert (second["version"], imports()) == (2, [zygote, second["loaded_in"]])

    # Without the zygote all serve on, and who is needed comes of another one.
    kill(server, second["loaded_in"], "zygote")
    assert (ask()["version"], len(imports())) == (2, 2)
    for pid in wait_until(lambda: len(found := server.workers()) == 2 and found, "two workers"):
        kill(server, pid)
    third = ask()
    assert third["loaded_in"] == imports()[2]
    assert third["loaded_in"] not in imports()[:2]
    assert not zombies(server.pid)

    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.leftovers(), "all leave without the master", 2.0)


def kill(server: Server, pid: int, who: str = "worker") -> None:
    """Kill one process of the server and wait until that has been noticed, and made good if it was a worker."""
    wait_until(lambda: len(server.workers()) <= 3, "those that were replaced have left")
    before = len(server.log.lines)
    os.kill(pid, signal.SIGKILL)
    server.wait_for_log(rf"{who} {pid} .*was killed by SIGKILL", after=before)
    if who == "worker":
        wait_until(lambda: len(server.workers()) == 3, "two workers and a zygote")


def zombies(parent: int) -> list[int]:
    """Return the dead children that nobody has waited for."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sorted(set(map(int, listed)) - set(children(parent)))
