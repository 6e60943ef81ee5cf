"""wsgiservctl and its socket against real servers: found, obeyed, bounded, done without (issue 5, part 10)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from load import Load
from rawclient import RawClient, Truncated
from server import DEADLINE_S, Connect, Server, Start, environment, wait_until

from wsgiserv.ctl.commands import main

SITE = """
import apps

def app(environ, start_response):
    if environ["PATH_INFO"] == "/version":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"one"]
    return apps.app(environ, start_response)
"""


class Said(NamedTuple):
    """How a command has ended."""

    status: int
    out: str
    err: str


Ctl = Callable[..., Said]


@pytest.fixture
def ctl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ctl:
    """Run wsgiservctl in this process: the client's start is not what is tested here."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", environment({})["XDG_RUNTIME_DIR"])

    def run(server: Server | None, *argv: str) -> Said:
        which = ["--pid", str(server.pid)] if server is not None else []
        capsys.readouterr()
        status = main([*which, *argv])
        return Said(status, *capsys.readouterr())

    return run


def command(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run wsgiservctl as a program."""
    return subprocess.run(
        [sys.executable, "-m", "wsgiserv.ctl", *argv],
        env=environment({}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def figures(ctl: Ctl, server: Server) -> Any:
    """Return what ``status --json`` says."""
    done = ctl(server, "status", "--json")
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out)


def socket_path(server: Server) -> Path:
    """Return where the server's control socket is when nothing else was said."""
    return Path(environment({})["XDG_RUNTIME_DIR"], "wsgiserv", f"{server.pid}.sock")


def text_of(server: Server, target: str) -> str:
    with RawClient(server.address) as client:
        return client.get(target, headers="Connection: close\r\n").text


def told(exchange: socket.socket) -> Any:
    """Return the reply on a connection to the socket, and close it."""
    data = b""
    with exchange:
        exchange.settimeout(DEADLINE_S)
        with contextlib.suppress(ConnectionResetError):  # it had not read all that was sent
            while more := exchange.recv(65536):
                data += more
    return json.loads(data)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two sync workers for the tests of what is the same in all classes. They leave it as it was."""
    directory = tmp_path_factory.mktemp("alone")
    (directory / "site_of_control.py").write_text(SITE)
    server = Server(directory, "site_of_control:app", ("-w", "2", "-p", "server.pid"))
    server.wait_for_log("ready: 2 workers")
    yield server
    try:
        if server.process.poll() is None:
            assert server.stop() == 0
        server.check()
    finally:
        server.close()


# ---- it is found -----------------------------------------------------------------------------------------


def test_the_ways_to_find_it(alone: Server, ctl: Ctl) -> None:
    path = socket_path(alone)
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert path.lstat().st_uid == os.geteuid()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    pidfile = str(alone.directory / "server.pid")
    for which in (["--pid", str(alone.pid)], ["--pidfile", pidfile], ["--socket", str(path)]):
        for words in ([*which, "status", "--json"], ["status", "--json", *which]):
            done = ctl(None, *words)
            assert (done.status, done.err) == (0, ""), words
            assert json.loads(done.out)["server"]["pid"] == alone.pid


def test_as_a_program(alone: Server) -> None:
    done = command("status", "--pid", str(alone.pid))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"pid {alone.pid}: running" in done.stdout
    done = command("relaod")
    assert (done.returncode, done.stdout) == (2, "")
    assert "relaod" in done.stderr
    assert "wsgiservctl --help" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_place_of_its_own_and_the_end(start_unclassed: Start, tmp_path: Path, ctl: Ctl) -> None:
    path, pidfile = tmp_path / "own.sock", tmp_path / "own.pid"
    server = start_unclassed("apps:app", "--control-socket", str(path), "-p", str(pidfile), env={"XDG_RUNTIME_DIR": ""})
    server.wait_for_log("ready")
    pid = server.pid
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert ctl(None, "--socket", str(path), "stop", "--wait") == (0, "stopped\n", "")
    assert server.wait() == 0
    # Nothing is left of it, and that is what is said.
    assert not path.exists()
    for which, words in (
        (("--socket", str(path)), "no such file"),
        (("--pidfile", str(pidfile)), "No such file"),
        (("--pid", str(pid)), f"no process {pid}: the server has ended"),
    ):
        done = ctl(None, *which, "status")
        assert (done.status, done.out) == (2, "")
        assert words in done.err
        assert which[0] in done.err


# ---- what it is doing ------------------------------------------------------------------------------------


def test_status_and_trace_of_a_call_that_lasts(
    shared_servers: Start, connect: Connect, tmp_path: Path, ctl: Ctl, worker_class: str
) -> None:
    server = shared_servers("deathapps:app", "-w", "2")
    server.wait_for_log("ready: 2 workers")
    before = figures(ctl, server)["server"]
    quick, slow = connect(server.address), connect(server.address)
    assert quick.get("/").status == 200
    go = tmp_path / "go"
    target = f"/wait?{go}"
    seen = server.log.text.count("has begun /wait")
    begun = time.monotonic()
    slow.request(target)
    wait_until(lambda: server.log.text.count("has begun /wait") > seen, "it is in the application")
    pid = int(re.findall(r"^(\d+) has begun /wait$", server.log.text, re.MULTILINE)[-1])

    known = figures(ctl, server)
    lasted_s = time.monotonic() - begun
    master, workers = known["server"], known["workers"]
    assert master["pid"] == server.pid
    assert master["state"] == "running"
    assert master["application"] == "deathapps:app"
    assert master["python"] == ".".join(map(str, sys.version_info[:3]))
    assert str(server.address[1]) in " ".join(master["bind"])
    assert master["generation"] == 1
    assert master["last_reload"] is None
    assert master["workers"] == {"wanted": 2, "serving": 2, "booting": 0, "retiring": 0}
    assert master["requests"] == before["requests"] + 1
    assert master["errors"] == before["errors"]
    assert master["in_flight"] == 1
    assert master["uptime_s"] >= before["uptime_s"]
    assert sorted(worker["pid"] for worker in workers) == server.workers()
    assert {worker["state"] for worker in workers} == {"serving"}
    assert {worker["generation"] for worker in workers} == {1}
    assert all(1 << 20 < worker["rss_bytes"] < 1 << 30 for worker in workers)
    (busy,) = [worker for worker in workers if worker["in_flight"]]
    assert busy["pid"] == pid
    (request,) = busy["in_flight"]
    assert request["request_line"] == f"GET {target} HTTP/1.1"[:408]
    assert request["peer"] == "127.0.0.1"
    assert 0 <= request["age_s"] <= lasted_s
    assert len(request["id"]) == 32
    shown = ctl(server, "status")
    assert (shown.status, shown.err) == (0, "")
    assert f"pid {server.pid}: running" in shown.out
    assert "2 of 2 serve" in shown.out
    assert f"GET {target} HTTP/1.1" in shown.out

    # Where it is, without disturbing it.
    done = ctl(server, "trace", str(pid))
    assert (done.status, done.err) == (0, "")
    assert f'"GET {target} HTTP/1.1" from 127.0.0.1, request id {request["id"]}' in done.out
    assert "in wait_for_file" in done.out
    assert "time.sleep(0.02)" in done.out
    assert figures(ctl, server)["server"]["in_flight"] == 1
    (idle,) = set(server.workers()) - {pid}
    done = ctl(server, "trace", str(idle))
    assert (done.status, done.err) == (0, "")
    assert "in flight" not in done.out
    go.touch()
    assert slow.read_response().status == 200
    for unknown in (server.pid, 1):
        done = ctl(server, "trace", str(unknown))
        assert (done.status, done.out) == (1, "")
        assert f"trace: {unknown} is not a worker of this server" in done.err
    wait_until(lambda: figures(ctl, server)["server"]["in_flight"] == 0, "it is over")


def test_errors_are_counted(failing_server: Server, ctl: Ctl) -> None:
    failing_server.wait_for_log("ready")
    before = figures(ctl, failing_server)["server"]
    with RawClient(failing_server.address) as client:
        assert client.get("/").status == 200
        assert client.get("/crash").status == 500
    after = wait_until(
        lambda: (now := figures(ctl, failing_server)["server"])["requests"] > before["requests"] + 1 and now,
        "both are counted",
    )
    assert after["requests"] - before["requests"] == 2
    assert after["errors"] - before["errors"] == 1


# ---- it is obeyed ----------------------------------------------------------------------------------------


def test_scale_and_retire(alone: Server, ctl: Ctl) -> None:
    wait_until(lambda: len(alone.workers()) == 2, "two workers")
    with Load(alone.address, clients=2, keep=True) as load:
        assert ctl(alone, "scale", "4", "--wait") == (0, "4 workers serve\n", "")
        assert len(alone.workers()) == 4
        assert figures(ctl, alone)["server"]["workers"]["serving"] == 4
        load.wait_for_more(20)
        assert ctl(alone, "scale", "1", "--wait") == (0, "1 worker serves\n", "")
        wait_until(lambda: len(alone.workers()) == 1, "the others have left")
        load.wait_for_more(20)
        (first,) = alone.workers()
        done = ctl(alone, "retire", str(first), "--wait")
        assert (done.status, done.err) == (0, "")
        (second,) = alone.workers()
        assert second != first
        load.wait_for_more(20)
        assert ctl(alone, "scale", "2").status == 0
        wait_until(lambda: figures(ctl, alone)["server"]["workers"]["serving"] == 2, "two workers")
        load.wait_for_more(20)
    assert load.lost == []
    workers = alone.workers()
    for unknown in (first, alone.pid):
        done = ctl(alone, "retire", str(unknown), "--wait")
        assert (done.status, done.out) == (1, "")
        assert f"retire: {unknown} is not a worker of this server" in done.err
        assert "wsgiservctl status" in done.err
    assert alone.workers() == workers


def test_reload_waits_for_the_outcome(alone: Server, ctl: Ctl) -> None:
    site = alone.directory / "site_of_control.py"
    alone.expect(r"\[ERROR\]|Traceback")
    assert text_of(alone, "/version") == "one"
    before = figures(ctl, alone)["server"]["generation"]
    with Load(alone.address, clients=2, keep=True) as load:
        load.wait_for_more(10)
        site.write_text(SITE.replace('b"one"', 'b"two"'))
        old = alone.workers()
        done = ctl(alone, "reload", "--wait")
        assert done.status == 0
        assert re.fullmatch(r"reloaded: 2 workers in \d+\.\d\d s\n", done.out)
        after = figures(ctl, alone)["server"]
        assert after["generation"] == before + 1
        assert after["last_reload"]["ok"] is True
        wait_until(lambda: not set(old) & set(alone.workers()), "the old ones have left")
        assert {text_of(alone, "/version") for _ in range(6)} == {"two"}

        # Code that cannot be loaded: the reason, the status, and the old code goes on.
        site.write_text("def app(environ, start_response)\n")
        old = alone.workers()
        done = ctl(alone, "reload", "--wait")
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith("wsgiservctl: reload: ")
        assert "site_of_control.py" in done.err
        assert "line 1" in done.err
        wait_until(lambda: alone.workers() == old, "nobody was replaced")
        assert text_of(alone, "/version") == "two"
        state = figures(ctl, alone)["server"]
        assert state["last_reload"]["ok"] is False
        assert "line 1" in state["last_reload"]["reason"]
        assert re.search(r"last reload +FAILED .*line 1", ctl(alone, "status").out)

        site.write_text(SITE)
        assert ctl(alone, "reload", "--wait").status == 0
        wait_until(lambda: not set(old) & set(alone.workers()), "the old ones have left")
        assert text_of(alone, "/version") == "one"
        load.wait_for_more(10)
    assert load.lost == []


def test_reopen_logs(start_unclassed: Start, tmp_path: Path, ctl: Ctl) -> None:
    error, access = tmp_path / "error.log", tmp_path / "access.log"
    server = start_unclassed("apps:app", "-w", "2", "--error-logfile", str(error), "--access-logfile", str(access))
    wait_until(lambda: error.exists() and "ready: 2 workers" in error.read_text(), "it is ready")
    for log in (error, access):
        log.rename(log.with_suffix(".1"))
    assert text_of(server, "/log?before") == "logged"
    wait_until(lambda: "/log?before" in access.with_suffix(".1").read_text(), "the line")
    assert "before" in error.with_suffix(".1").read_text()
    assert not access.exists()
    assert ctl(server, "reopen-logs") == (0, "logs reopened\n", "")
    wait_until(access.exists, "the new access log")
    # Each worker for itself.
    with contextlib.ExitStack() as clients:
        asked = [clients.enter_context(RawClient(server.address)) for _ in range(8)]
        for client in asked:

            def is_in_the_new_log(client: RawClient = client) -> bool:
                before = access.read_text().count("/log?again")
                assert client.get("/log?again").status == 200
                return access.read_text().count("/log?again") > before

            wait_until(is_in_the_new_log, "the lines of all workers")
    assert "again" in error.read_text()
    old = access.with_suffix(".1").stat().st_size
    assert server.stop() == 0
    assert "stopped" in error.read_text()
    assert access.with_suffix(".1").stat().st_size == old


def test_stop_now_and_stop(start_unclassed: Start, connect: Connect, ctl: Ctl) -> None:
    servers = [start_unclassed("apps:app", expect=(r"/sleep\?30",)) for _ in range(2)]
    clients = []
    for server, seconds in zip(servers, ("0.5", "30"), strict=True):
        server.wait_for_log("ready")
        clients.append(connect(server.address))
        clients[-1].request(f"/sleep?{seconds}")
        server.wait_for_log("sleeping")
    graceful, hasty = servers
    assert ctl(graceful, "stop") == (0, "the server is stopping\n", "")
    begun = time.monotonic()
    assert ctl(hasty, "stop", "--now", "--wait") == (0, "stopped\n", "")
    assert time.monotonic() - begun < 5.0
    assert hasty.process.wait(DEADLINE_S) == 0
    with pytest.raises((Truncated, ConnectionResetError)):
        clients[1].read_response()
    # What is asked of a server that stops is refused, and says why.
    done = ctl(graceful, "reload", "--wait")
    if done.status != 2:  # it has not ended in between
        assert done.status == 1
        assert "stop" in done.err
    response = clients[0].read_response()
    assert (response.status, response.body) == (200, b"slept")
    clients[0].close()  # the server waits for that, a while
    assert graceful.wait() == 0


# ---- it disturbs nobody ----------------------------------------------------------------------------------


def test_whoever_is_at_the_socket_disturbs_nobody(alone: Server, ctl: Ctl) -> None:
    """Garbage, half a message, one too long, and fifty that only sit there."""
    path = str(socket_path(alone))
    before = len(alone.log.lines)

    def at_the_socket(data: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)  # waits for its place in the queue, which one with a timeout does not (unix(7))
        client.settimeout(DEADLINE_S)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused unheard
            client.sendall(data)
        return client

    for garbage in (
        b"\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\xff\xfe" * 100 + b"\n",
        b"[" * 50_000 + b"\n",
        b'{"command": "stop", "now": "yes"}\n',
        b'{"command": "exec", "wait": true}\n',
        b'{"command": "reload"' + b" " * 300_000 + b"}\n",
        b"x" * 1_000_000,
    ):
        reply = told(at_the_socket(garbage))
        assert reply["ok"] is False, garbage[:30]
        assert 10 < len(reply["error"]) < 500
    at_the_socket(b'{"command": "rel').close()
    at_the_socket().close()
    with contextlib.ExitStack() as stack:
        for number in range(50):
            stack.enter_context(at_the_socket(b'{"command": "st' if number % 2 else b""))
        assert text_of(alone, "/version") == "one"
        ticks = cpu_ticks(alone.pid)
        begun = time.monotonic()
        old = alone.workers()
        alone.send_signal(signal.SIGHUP)
        alone.wait_for_log("reloaded: 2 workers", after=before)
        assert time.monotonic() - begun < 5.0
        wait_until(lambda: not set(old) & set(alone.workers()), "the old ones have left")
        # Whoever comes now is told at once, one way or the other.
        done = ctl(alone, "--timeout", "5", "status")
        assert done.status == 0 or "try again" in done.err
        assert cpu_ticks(alone.pid) - ticks < 100, "the master spins"
    wait_until(lambda: ctl(alone, "status").status == 0, "there is room again")
    alone.check(before)


def cpu_ticks(pid: int) -> int:
    """Return the processor time that a process has used, in hundredths of a second on Linux (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# ---- where none can be had -------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["not a directory", "a long path"])
def test_without_a_socket(start_unclassed: Start, tmp_path: Path, ctl: Ctl, why: str) -> None:
    (tmp_path / "file").touch()
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    place = {"not a directory": tmp_path / "file", "a long path": directory}[why]
    server = start_unclassed("apps:app", env={"RUNTIME_DIRECTORY": str(place)})
    server.wait_for_log("ready")
    assert text_of(server, "/") == "hello\n"
    (line,) = [line for line in server.log.lines if "control" in line]
    assert "[INFO] no control socket" in line
    assert str(place) in line
    assert {"not a directory": "Not a directory", "a long path": "too long"}[why] in line
    assert "control_socket" in line
    # The rest is as ever, also over a reload, and is not said again.
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded")
    assert len([line for line in server.log.lines if "control" in line]) == 1
    done = ctl(server, "status")
    assert (done.status, done.out) == (2, "")
    assert f"process {server.pid} has no control socket" in done.err
    assert f"kill -HUP {server.pid}" in done.err
