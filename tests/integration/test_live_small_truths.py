"""What a person reads of a server is true: status, trace, the terminal, hooks (issue 13, part 3)."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Connect, Server, Start, children, run, wait_until
from test_live_rolling import ctl, figures

APP = """
import os, time

def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    if name:
        open(name + ".begun", "w").close()
        while not os.path.exists(name):
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\\n"]
"""


def zombies(pid: int) -> list[int]:
    """Return the children of a process that nobody has waited for (proc(5))."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("handoff", ["0", "60"])
def test_status_of_a_busy_worker_counts_its_connections(
    start: Start, connect: Connect, tmp_path: Path, handoff: str
) -> None:
    """Those that it has accepted, also when a call began at once and lasts; and the request that it runs."""
    args = ("-w", "2", "--handoff-after", handoff) if handoff != "0" else ()
    server = start("waits:app", *args, files={"waits.py": APP})
    server.wait_for_log("ready:")
    clients = [connect(server.address) for _ in range(3)]
    for client in clients:
        assert client.get("/").status == 200
    busy = connect(server.address)
    busy.request("/go")
    wait_until((tmp_path / "go.begun").exists, "the call has begun")
    known = wait_until(lambda: (now := figures(server.pid))["server"]["connections"] == 4 and now, "all are counted")
    assert known["server"]["in_flight"] == 1
    (worker,) = [each for each in known["workers"] if each["in_flight"]]
    assert worker["connections"] >= 1
    (tmp_path / "go").touch()
    assert busy.read_response().status == 200


def test_trace_of_a_stopped_worker(start: Start, connect: Connect, tmp_path: Path) -> None:
    server = start("waits:app", "-t", "60", files={"waits.py": APP})
    server.wait_for_log("ready: 1 ")
    client = connect(server.address)
    client.request("/go")
    wait_until((tmp_path / "go.begun").exists, "the call has begun")
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    done = ctl(server.pid, "trace", str(worker))
    os.kill(worker, signal.SIGCONT)
    assert done.status == 0
    assert f"worker {worker} is stopped" in done.out
    assert f"kill -CONT {worker}" in done.out
    assert "GET /go HTTP/1.1" in done.out
    (tmp_path / "go").touch()
    assert client.read_response().status == 200


@pytest.mark.parametrize("worker_class", ["-"])
@pytest.mark.parametrize("log", [(), ("--error-logfile", "log")], ids=["", "file"])
def test_a_daemon_tells_the_terminal_once(worker_class: str, log: tuple[str, ...], tmp_path: Path) -> None:
    """A busy port, a pid directory that is not there, an application that cannot be loaded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(["-D", *log, "-b", f"127.0.0.1:{port}", "apps:app"], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count(f"the address 127.0.0.1:{port} is in use") == 1, done.stderr
    done = run(["-D", *log, "-b", "127.0.0.1:0", "-p", "nowhere/pid", "apps:app"], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("nowhere/pid") == 1, done.stderr
    (tmp_path / "broken.py").write_text("1 / 0\n")
    done = run(["-D", *log, "-b", "127.0.0.1:0", "broken:app"], tmp_path)
    assert done.returncode == 4
    assert done.stderr.count("ZeroDivisionError: division by zero") <= 2, done.stderr
    assert done.stderr.count("Traceback") == 1, done.stderr
    if log:
        assert "ZeroDivisionError" in (tmp_path / "log").read_text()


GAUGES = """
import os
print("live", os.getpid(), flush=True)
from apps import app
"""
CONF = """
def child_exit(server, worker):
    server.log.info("child_exit of %d, age %d, %s", worker.pid, worker.age, worker.cfg is not None)
"""


def test_child_exit_of_zygotes(start: Start) -> None:
    """What the import has noted under its process id is told of: a killed one, a reload's old one, the last."""
    server = start(
        "gauges:app", *("-c", "conf.py", "--preload"), files={"gauges.py": GAUGES, "conf.py": CONF}, expect=("SIGKILL",)
    )
    server.wait_for_log("ready:")
    first = int(server.out.wait_for(r"live (\d+)")[1])
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(f"child_exit of {first}, age 0, True")
    second = int(server.out.wait_for(r"live (\d+)", after=1)[1])
    os.kill(second, signal.SIGKILL)
    server.wait_for_log(f"child_exit of {second}, age 0, True")
    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("2 workers wanted")
    third = int(server.out.wait_for(r"live (\d+)", after=2)[1])
    wait_until(lambda: len(server.workers()) == 3, "the second worker")
    assert server.stop() == 0
    assert f"child_exit of {third}, age 0, True" in server.log.text
    told = re.findall(r"child_exit of (\d+)", server.log.text)
    assert len(told) == len(set(told))


@pytest.mark.parametrize("worker_class", ["sync"])
def test_no_zombie_of_failed_upgrades(start: Start, tmp_path: Path) -> None:
    """A next master that cannot load, one that is killed, and one that is told to stop."""
    server = start(
        "waits:app", "-c", "conf.py", files={"waits.py": APP, "conf.py": ""}, expect=(r"\[ERROR\]", "error:")
    )
    server.wait_for_log("ready:")
    (tmp_path / "conf.py").write_text("workers = 'many'\n")
    for _ in range(2):
        assert ctl(server.pid, "upgrade", "--wait").status == 1
    (tmp_path / "conf.py").write_text("import time\nopen('hangs', 'w').close()\nfor _ in range(300): time.sleep(0.2)\n")
    for number in (signal.SIGKILL, signal.SIGTERM):
        (tmp_path / "hangs").unlink(missing_ok=True)
        seen = len(server.log.lines)
        server.send_signal(signal.SIGUSR2)
        wait_until((tmp_path / "hangs").exists, "the next master starts")
        pid = int(server.wait_for_log(r"is starting \(pid (\d+)\)", after=seen)[1])
        os.kill(pid, number)
        server.wait_for_log("upgrade failed|was told to stop", after=seen)
    wait_until(lambda: not zombies(server.pid), "all have been waited for", 3.0)
    wait_until(lambda: len(children(server.pid)) == 1, "only the worker is left")
    assert answers(server)


def answers(server: Server) -> bool:
    with RawClient(server.address) as client:
        return client.get("/").status == 200


@pytest.mark.parametrize("worker_class", ["sync"])
def test_one_is_not_many(start: Start) -> None:
    server = start("apps:app", "--max-requests", "1")
    server.wait_for_log("ready: 1 worker in")
    assert answers(server)
    server.wait_for_log(r"to be replaced: 1 request answered")
    assert "1 worker is wanted" in ctl(server.pid, "scale", "1").out
    assert ctl(server.pid, "scale", "1", "--wait").out.strip() == "1 worker serves"
    ctl(server.pid, "reload", "--wait")
    assert not re.search(r"\b1 (?:workers|requests|connections|lines|threads)\b", server.log.text)
    assert not re.search(r"\b1 (?:workers|requests|connections|lines|threads)\b", ctl(server.pid, "status").out)
