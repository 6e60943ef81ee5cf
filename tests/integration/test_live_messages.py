"""Pipes and sockets between the processes: a worker's garbage costs that worker (issue 12, section 4)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from server import DEADLINE_S, Connect, Server, Start, children, environment, wait_until

# A view that writes into all pipes, or into all Unix sockets, of its worker, except what is the test's own.
WRITER = """\
import os, sys, _thread

start_thread = _thread.start_new_thread
if "gevent.monkey" in sys.modules:  # a thread, not a greenlet: it never yields
    start_thread = sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")

def descriptors(kind):
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if int(name) > 2 and target.startswith(kind):
            yield int(name)

def throw(kind, data):
    for fd in list(descriptors(kind)):
        try:
            os.set_blocking(fd, False)
            os.write(fd, data)
        except OSError:
            pass

def flood(kind, data):
    for fd in list(descriptors(kind)):
        start_thread(flood_one, (fd, data))

def flood_one(fd, data):
    try:
        os.set_blocking(fd, True)
        while True:
            os.write(fd, data)
    except OSError:
        pass

def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = environ["wsgi.input"].read()
    if path == "/pid":
        pass
    elif path == "/pipes":
        throw("pipe:", body)
    elif path == "/sockets":
        # The wakeup socket and the handoff channel; not the client's own connection, which is TCP here.
        import socket
        for fd in list(descriptors("socket:")):
            try:
                with socket.socket(fileno=os.dup(fd)) as sock:
                    if sock.family == socket.AF_UNIX:
                        sock.send(body, socket.MSG_DONTWAIT)
            except OSError:
                pass
    elif path == "/flood":
        flood("pipe:", body)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
"""

PRELOAD = [(), ("--preload",)]
CORRUPT = r"corrupt message on its readiness pipe"


def ask(connect: Connect, server: Server, path: str, body: bytes = b"") -> int:
    """Return the process id of the worker that has answered."""
    client = connect(server.address)
    client.send(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
        % (path.encode(), len(body), body)
    )
    response = client.read_response()
    assert response.status == 200
    return int(response.body)


def status(server: Server) -> Any:
    """Return what ``wsgiservctl status --json`` says."""
    done = subprocess.run(
        [sys.executable, "-m", "wsgiserv.ctl", "--pid", str(server.pid), "status", "--json"],
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    return json.loads(done.stdout)


# The master reads them, whatever the class: all in the first one, and one in each of the others.
GARBAGE = {
    "text": b"garbage",
    "bytes": b"\xff\x00garbage\n",
    "field": b'{"state": "ready", "more": 1}\n',
    "type": b'{"state": 5}\n{"sta',
}


@pytest.mark.parametrize(
    ("worker_class", "kind", "preload"),
    [
        *(("sync", kind, preload) for kind in GARBAGE for preload in PRELOAD),
        *((each, "text", PRELOAD[0]) for each in ("threads", "gevent")),
    ],
    indirect=["worker_class"],
)
def test_garbage_in_the_readiness_pipe_replaces_the_worker(
    start: Start, connect: Connect, worker_class: str, preload: tuple[str, ...], kind: str
) -> None:
    garbage = GARBAGE[kind]
    server = start(
        "writer:app",
        *("-w", "2"),
        *preload,
        files={"writer.py": WRITER},
        expect=(CORRUPT, "descriptors that it has not opened"),
    )
    server.wait_for_log("ready: 2 workers")
    culprit = ask(connect, server, "/pipes", garbage)
    server.wait_for_log(rf"worker {culprit}: {CORRUPT}")
    wait_until(lambda: not os.path.exists(f"/proc/{culprit}"), "the worker is replaced")
    wait_until(lambda: ask(connect, server, "/pid") != culprit, "others answer")
    wait_until(lambda: len(server.workers()) >= 2, "there are two workers again")
    assert server.process.poll() is None
    found = status(server)
    assert len(found["workers"]) == 2


def test_garbage_in_sockets_between_workers_hurts_nobody(start: Start, connect: Connect) -> None:
    server = start("writer:app", "-w", "2", files={"writer.py": WRITER})
    server.wait_for_log("ready: 2 workers")
    for garbage in (b"\x00" * 20, b"garbage", b"%", b"x" * 9000, b'{"listener": 5}\n'):
        for _ in range(4):
            ask(connect, server, "/sockets", garbage)
    assert {ask(connect, server, "/pid") for _ in range(20)} <= set(server.workers())
    # A signal is still heard, and HUP replaces the workers.
    before = set(server.workers())
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: not before & set(server.workers()), "the workers are replaced")
    assert ask(connect, server, "/pid") not in before


@pytest.mark.parametrize(
    "flood", [b'{"state": "trace", "reason": "x"}\n' * 100, b"{" + b"x" * 4000], ids=["reports", "a line without end"]
)
def test_an_endless_writer_delays_nobody(start: Start, connect: Connect, flood: bytes, worker_class: str) -> None:
    if worker_class != "sync" and not flood.endswith(b"\n"):
        pytest.skip("as in sync: the master reads it")
    server = start(
        "writer:app",
        *("-w", "2", "--graceful-timeout", "2"),
        files={"writer.py": WRITER},
        expect=(CORRUPT, "descriptors that it has not opened", "SIGKILL", "retire"),
    )
    server.wait_for_log("ready: 2 workers")
    ask(connect, server, "/flood", flood)
    for _ in range(3):
        assert len(status(server)["workers"]) >= 2
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reload")
    for _ in range(5):
        ask(connect, server, "/pid")
    assert server.stop() == 0


DEEP = """\
import os, sys, time
import frames

def größe_0(wait):
    if wait:
        open("waiting", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)

frames.größe_0 = größe_0

def app(environ, start_response):
    frames.größe_300(environ["PATH_INFO"] == "/wait")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
"""

# Each frame has a line of its own: the same one, again and again, would be told once.
FRAMES = "".join(
    f"def größe_{n}(wait):\n    größe_{n - 1}(wait)  # ünïcödé {'✓' * 20} ausführlich {'🐍' * 20}\n"
    for n in range(1, 301)
)
FILES = {"deep.py": DEEP, "frames.py": FRAMES}


def test_a_trace_longer_than_the_pipe_arrives(start: Start, connect: Connect, tmp_path: Path) -> None:
    server = start("deep:app", "-w", "1", "--threads", "1", files=FILES)
    server.wait_for_log("ready: 1 worker")
    client = connect(server.address)
    client.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_until((tmp_path / "waiting").exists, "the request runs")
    [pid] = server.workers()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "wsgiserv.ctl", "--pid", str(server.pid), "trace", str(pid)],
            env=environment({}) | {"PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            timeout=DEADLINE_S,
            check=True,
        )
    finally:
        (tmp_path / "go").touch()
    text = done.stdout.decode("utf-8")
    assert all(f"größe_{n}(wait)" in text for n in range(300)), text[-2000:]
    assert len(done.stdout) > 65536
    assert client.read_response().body == b"%d" % pid


def test_signals_to_a_worker_while_the_master_is_stopped(start: Start, connect: Connect, tmp_path: Path) -> None:
    """Eight reports, each longer than half the pipe, that nobody reads for a while: none is torn."""
    server = start("deep:app", "-w", "1", "--threads", "1", files=FILES)
    server.wait_for_log("ready: 1 worker")
    client = connect(server.address)
    client.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_until((tmp_path / "waiting").exists, "the request runs")
    [pid] = server.workers()
    server.send_signal(signal.SIGSTOP)
    try:
        for _ in range(8):
            os.kill(pid, signal.SIGTTOU)
            wait_until(lambda: not _is_pending(pid, signal.SIGTTOU), "the signal is delivered")
    finally:
        (tmp_path / "go").touch()
        server.send_signal(signal.SIGCONT)
    assert client.read_response().body == b"%d" % pid
    assert [each["pid"] for each in status(server)["workers"]] == [pid]
    assert server.stop() == 0


def _is_pending(pid: int, number: int) -> bool:
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":\t", 1) for line in file)
    bits = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return bool(bits >> (number - 1) & 1)


ZYGOTE = """\
import os, socket

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]

if not os.path.exists("done"):
    open("done", "w").close()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if int(name) > 2 and target.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as sock:
                    if sock.family == socket.AF_UNIX and sock.type == socket.SOCK_SEQPACKET:
                        sock.send(GARBAGE, socket.MSG_DONTWAIT)
        except OSError:
            pass
"""


# Only once the master has asked for a worker: before that, the zygote has nothing to do while the master is stopped.
STOPS_THE_MASTER = """\
    import signal, time

    def has_asked():
        for name in os.listdir("/proc/self/fd"):
            try:
                if int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(name))) as sock:
                        if b'"do"' in sock.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                            return True
            except OSError:
                pass
        return False

    end = time.monotonic() + 10
    while not has_asked() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGSTOP)
"""


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b'{"state": "born"}',
        b'{"state": "born", "age": 1, "pid": 1}',
        b'{"state": "born", "age": 1, "pid": -1}',
        b'{"state": "born", "age": 1, "pid": %d}' % os.getpid(),
        b'{"state": "born", "age": [], "pid": 1}',
        b'{"state": "nothing", "age": 1}',
        b"x" * 8000,
    ],
    ids=["text", "fields", "init", "group", "foreign", "age", "state", "long"],
)
def test_garbage_of_a_zygote_replaces_the_zygote(
    start: Start, connect: Connect, garbage: bytes, worker_class: str
) -> None:
    if worker_class != "sync" and garbage != b"garbage":
        pytest.skip("as in sync: the master reads it")
    server = start(
        "site0:app",
        *("-w", "2", "--preload"),
        files={"site0.py": ZYGOTE.replace("GARBAGE", repr(garbage))},
        expect=("corrupt message on its socket", "descriptors that it has not opened", "zygote", "SIGKILL"),
    )
    server.wait_for_log(r"zygote \d+: corrupt message on its socket")
    server.wait_for_log("ready: 2 workers")
    assert ask(connect, server, "/") in children(server.pid)
    assert server.stop() == 0


def test_a_worker_that_is_told_of_behind_garbage_is_known(start: Start, connect: Connect) -> None:
    """The master reads both at once: what the zygote has let go is never left to itself."""
    server = start(
        "site0:app",
        *("-w", "2", "--preload"),
        files={"site0.py": ZYGOTE.replace("GARBAGE", repr(b"garbage")) + STOPS_THE_MASTER},
        expect=(
            *("corrupt message on its socket", "descriptors that it has not opened", "zygote", "SIGKILL"),
            # The zygote may be killed before it has let the worker go that it has told of.
            *("while it was booting", "cause: ", "memory: ", "in flight: nothing"),
        ),
    )
    try:
        wait_until(lambda: len(children(server.pid)) >= 2, "the zygote has let a worker go")
    finally:
        server.send_signal(signal.SIGCONT)
    server.wait_for_log(r"zygote \d+: corrupt message on its socket")
    server.wait_for_log("ready: 2 workers")
    # The next zygote is not there before it is needed.
    wait_until(lambda: len(children(server.pid)) in (2, 3), "there are two workers, and at most a zygote")
    assert {each["pid"] for each in status(server)["workers"]} <= set(children(server.pid))
    assert ask(connect, server, "/") in children(server.pid)
    assert server.stop() == 0
