"""Signals that the parent has blocked or ignored, which execve(2) keeps (issue 13)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from server import DEADLINE_S, Connect, Server, Start, environment, is_alive, is_worker, wait_until

# A supervisor that blocks all signals, and ignores those that a parent may ignore.
PARENT = """
import os, signal, sys
for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""
WRAP = (sys.executable, "-c", PARENT)

APP = """
import os, signal, subprocess

if os.environ.get("BLOCKS"):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})

def masks(text):
    lines = dict(line.split(":\\t") for line in text.splitlines())
    return lines["SigBlk"] + " " + lines["SigIgn"]

def app(environ, start_response):
    with open("/proc/thread-self/status") as file:
        found = [masks(file.read())]
    found.append(masks(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout))
    child = os.fork()
    if not child:
        with open("/proc/thread-self/status") as file:
            os._exit(any(int(each, 16) & 0x4103 for each in masks(file.read()).split()))
    found.append(str(os.waitpid(child, 0)[1]))
    body = "\\n".join(found).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
# HUP, INT, USR1, TERM, CHLD
HEARD = [1 << number - 1 for number in (1, 2, 10, 15, 17)]


def is_ready(server: Server, workers: list[int]) -> bool:
    now = server.workers()
    return len(now) == len(workers) and not set(now) & set(workers)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="proc(5) tells the masks")
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_all_are_heard(start: Start, connect: Connect, preload: tuple[str, ...]) -> None:
    """By master and workers, the application's children and the programs that it starts."""
    server = start("masked:app", *preload, wrap=WRAP, files={"masked.py": APP})
    server.wait_for_log("ready:")
    client = connect(server.address)
    own, program, child = client.get("/", headers="Connection: close\r\n").body.decode().split("\n")
    assert own.split()[0] == "0" * 16
    assert program.split()[0] == "0" * 16
    assert not any(int(program.split()[1], 16) & each for each in HEARD)
    assert child == "0"
    (worker,) = [pid for pid in server.workers() if is_worker(pid)]
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: not is_alive(worker), "the worker leaves")
    seen = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded:", after=seen)
    assert server.stop() == 0


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_an_application_that_blocks_them(start: Start, connect: Connect, preload: tuple[str, ...]) -> None:
    """At its import, for a thread of its own that waits for them, say: the server hears its own all the same."""
    server = start("masked:app", *preload, files={"masked.py": APP}, env={"BLOCKS": "1"})
    server.wait_for_log("ready:")
    own = connect(server.address).get("/", headers="Connection: close\r\n").body.decode().split()[0]
    assert not int(own, 16) & (1 << 14 | 1 << 0 | 1 << 1 | 1 << 9)
    assert server.stop() == 0
    assert "SIGKILL" not in server.log.text


@pytest.mark.parametrize("worker_class", ["-"])
def test_a_stop_that_has_waited_ends_the_start(tmp_path: Path, worker_class: str) -> None:
    """It was sent before the server could hear it: no files are left, and the status is that of a stop."""
    code = PARENT.replace("os.execv", "os.kill(os.getpid(), signal.SIGTERM); os.execv").replace(
        "signal.SIGTERM, signal.SIGUSR1", "signal.SIGUSR1"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-m", "wsgiserv", "-b", "127.0.0.1:0", "-p", "pid", "apps:app"],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("worker_class", ["-"])
@pytest.mark.parametrize("args", [("--check-config", "apps:app"), ("--check-config", "-k", "own:Mine", "apps:app")])
def test_a_check_waits_for_its_children(tmp_path: Path, args: tuple[str, ...], worker_class: str) -> None:
    (tmp_path / "own.py").write_text("from wsgiserv.worker.sync import SyncWorker as Mine\n")
    done = subprocess.run(
        [*WRAP, sys.executable, "-m", "wsgiserv", *args],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is good" in done.stdout


def test_a_daemon_starts(start: Start, tmp_path: Path) -> None:
    """The process in front waits for its child."""
    server = start("apps:app", "-D", "-p", "pid", "--error-logfile", "log", wrap=WRAP)
    assert server.wait() == 0, server.log.text
    pid = int((tmp_path / "pid").read_text())
    server.watch_session(os.getsid(pid))
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), "the daemon stops")
    assert "stopped (pid" in (tmp_path / "log").read_text()
