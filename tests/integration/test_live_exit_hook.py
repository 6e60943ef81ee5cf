"""`worker_exit` is called once in each worker, also in one that is stopped before it serves."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Server, Start, wait_until

CONF = """
import os, time

def note(what):
    with open("notes", "a") as file:
        print(what, os.getpid(), file=file)

def post_fork(server, worker):
    note("forked")

def worker_exit(server, worker):
    assert worker.pid == os.getpid()
    assert server.cfg is not None
    print("a buffered line of the hook")
    if not os.path.exists("abort"):
        time.sleep(0.05)  # under gevent this is a greenlet's
    note("exit")

def worker_int(worker):
    note("int")

def worker_abort(worker):
    note("abort")
"""
# Hangs in the import, or in the warm-up request where the import is another process's, while there is a file `slow`.
# It catches what it can, as many programs do around an import.
APP = """
import os, time

def hang():
    if os.path.exists("slow"):
        with open("notes", "a") as file:
            print("hangs", os.getpid(), file=file)
        while True:
            try:
                time.sleep(0.2)  # short: a signal just before a sleep is heard behind it
            except BaseException:
                pass

if not os.path.exists("preloads"):
    hang()

def app(environ, start_response):
    if environ.get("wsgiserv.warmup"):
        hang()
    start_response("200 OK", [])
    return [b"x"]
"""


def pids(directory: Path, what: str) -> list[int]:
    path = directory / "notes"
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [int(pid) for found, pid in lines if found == what]


def hanging(directory: Path, number: int) -> int:
    """Return the process id of the worker that is the ``number``th to hang at its boot."""
    wait_until(lambda: len(pids(directory, "hangs")) == number, f"{number} have hung")
    return pids(directory, "hangs")[-1]


def begin(start: Start, preload: bool, *args: str) -> Server:
    files = {"conf.py": CONF, "hangs.py": APP, **({"preloads": ""} if preload else {})}
    server = start(
        "hangs:app",
        *("-c", "conf.py", "-w", "1", "--warmup", "/", *args, *(["--preload"] if preload else [])),
        files=files,
        expect=(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback",),
    )
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    return server


def check(server: Server, directory: Path) -> None:
    """Each worker has called the hook once, and what it printed is there."""
    forked, left = Counter(pids(directory, "forked")), Counter(pids(directory, "exit"))
    assert left == forked
    assert set(left.values()) == {1}
    assert server.out.text.count("a buffered line of the hook") == len(left)


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
@pytest.mark.parametrize("end", ["TERM", "INT", "QUIT"])
def test_stopped_while_booting(start: Start, tmp_path: Path, worker_class: str, preload: bool, end: str) -> None:
    """By a reload, by somebody's signal, by the stop of the server."""
    server = begin(start, preload)
    number = getattr(signal, f"SIG{end}")
    (tmp_path / "slow").touch()
    server.send_signal(signal.SIGHUP)
    first = hanging(tmp_path, 1)
    os.kill(first, number)
    wait_until(lambda: first in pids(tmp_path, "exit"), "the hook of one that somebody has told to leave")
    server.send_signal(signal.SIGHUP)  # reload failed by now, or will be in a moment
    second = hanging(tmp_path, 2)
    assert server.stop(number) == 0
    assert second in pids(tmp_path, "exit")
    interrupted = pids(tmp_path, "int")
    # A graceful stop tells nobody with INT.
    assert interrupted.count(first) == (end != "TERM")
    assert interrupted.count(second) == (end != "TERM")
    check(server, tmp_path)


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_reload_withdraws_one_that_boots(start: Start, tmp_path: Path, preload: bool) -> None:
    server = begin(start, preload)
    (server.directory / "conf.py").write_text(f"{CONF}\nworkers = 2\n")
    (tmp_path / "slow").touch()
    server.send_signal(signal.SIGHUP)
    first = hanging(tmp_path, 1)
    (tmp_path / "slow").unlink()
    os.kill(first, signal.SIGTERM)
    wait_until(lambda: first in pids(tmp_path, "exit"), "the hook of the worker that was booting")
    assert server.stop() == 0
    check(server, tmp_path)


def test_aborted_and_failed(start: Start, tmp_path: Path) -> None:
    """One that does not boot in time, and one whose application raises."""
    (tmp_path / "abort").touch()
    server = begin(start, False, "--boot-timeout", "1")
    (tmp_path / "slow").touch()
    server.send_signal(signal.SIGHUP)
    late = hanging(tmp_path, 1)
    wait_until(lambda: late in pids(tmp_path, "exit"), "the hook of one that is aborted")
    assert pids(tmp_path, "abort") == [late]
    server.wait_for_log("reload failed")
    (tmp_path / "slow").unlink()
    (tmp_path / "hangs.py").write_text("raise LookupError")
    mark = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reload failed", after=mark)
    assert server.stop() == 0
    check(server, tmp_path)


BROKEN = """
from wsgiserv.errors import ConfigError
from wsgiserv.worker.sync import SyncWorker

class Broken(SyncWorker):
    def prepare(self):
        raise ConfigError("not here")
"""


def test_one_that_ends_before_it_looks_for_the_application(start_unclassed: Start, tmp_path: Path) -> None:
    server = start_unclassed(
        "hangs:app",
        *("-c", "conf.py", "-w", "1", "-k", "broken:Broken"),
        files={"conf.py": CONF, "hangs.py": APP, "broken.py": BROKEN},
        expect=(r"\[(WARNING|ERROR|CRITICAL)\]",),
    )
    assert server.wait() == 2  # the worker class refuses the configuration
    left = pids(tmp_path, "exit")
    assert len(left) == len(set(left)) >= 1
    assert not pids(tmp_path, "forked")
