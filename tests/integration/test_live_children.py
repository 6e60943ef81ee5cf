"""Children of an application are not workers: forked in a view, by multiprocessing, by subprocess, by C code."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from errno import ECONNREFUSED, ENOENT
from pathlib import Path
from typing import Any

import pytest
import trustme
from server import DEADLINE_S, HERE, Connect, Server, Start, is_alive, wait_until

PRELOAD = ["", "--preload"]
# What children say on the standard error.
CHILDRENS = (r"Traceback",)

COME_BACK = [
    ("return", 0),
    ("raise", 1),
    ("exit", 3),
    ("exit-none", 0),
    ("exit-text", 1),
    ("finally", 4),
    ("print", 0),
    ("interrupt", -signal.SIGINT),
    ("terminate", -signal.SIGTERM),
    ("write", 1),
]


@pytest.fixture(params=PRELOAD, ids=["loaded", "preloaded"])
def forking(request: pytest.FixtureRequest, shared_servers: Start) -> Iterator[Server]:
    """A shared server whose application forks: its log has no trouble but the tracebacks of the children."""
    preload = (request.param,) if request.param else ()
    found = shared_servers("childapps:app", *preload, "--threads", "1", expect=CHILDRENS)
    before = len(found.log.lines)
    yield found
    found.check(before)


def stop_beside_a_child(server: Server) -> int:
    """Stop a server, and do not wait for the end of its output, which its surviving child has, too."""
    server.send_signal(signal.SIGTERM)
    return server.process.wait(DEADLINE_S)


def end_child(pid: int) -> None:
    """Kill a child that has stayed, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), f"child {pid} is gone")


@pytest.mark.parametrize(("how", "status"), COME_BACK, ids=[how for how, _ in COME_BACK])
def test_a_child_that_comes_back_ends(forking: Server, connect: Connect, how: str, status: int) -> None:
    with connect(forking.address) as client:
        for _ in range(2):
            assert client.get(f"/back?how={how}").json() == status
        assert client.get("/mine").json() == "/mine"
        client.expect_nothing_more()


QUICK = """\
import os, time

def slow_parent():
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass

os.register_at_fork(after_in_parent=slow_parent)

def app(environ, start_response):
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % status]
"""


def test_a_first_child_that_exits_at_once_is_waited_for(start: Start, connect: Connect) -> None:
    """It exits before its parent is back from os.fork()."""
    server = start("quick:app", "-w", "1", files={"quick.py": QUICK})
    client = connect(server.address)
    assert [client.get("/").text for _ in range(2)] == ["7", "7"]


def test_what_a_child_says_is_written_once(forking: Server, connect: Connect) -> None:
    client = connect(forking.address)
    before = len(forking.log.lines)
    client.get("/back?how=raise")
    forking.wait_for_log("^ValueError: the child raises", after=before)
    client.get("/back?how=exit-text")
    forking.wait_for_log("^the child says why$", after=before)
    lines = forking.log.lines[before:]
    assert lines.count("the child says why") == 1
    assert lines.count("ValueError: the child raises") == 1
    assert not [line for line in lines if "/wsgi/run.py" in line or "/wsgi/response.py" in line]


def test_a_child_of_the_iterable_ends(start: Start, connect: Connect, tmp_path: Path) -> None:
    server = start("childapps:app", expect=CHILDRENS)
    pid = connect(server.address).get("/pid").json()
    for where in ("next", "close"):
        for how, status in (("return", 0), ("raise", 1), ("exit", 3)):
            client = connect(server.address)
            assert client.get(f"/body?where={where}&how={how}").body == b"ab", (where, how)
            assert client.get("/mine").json() == "/mine"
            client.expect_nothing_more()
            assert (tmp_path / "status").read_text() == str(status), (where, how)
            # Once, by the parent: it is not called again in a child of its own, nor in one of the iteration.
            assert (tmp_path / "closes").read_text().split() == [str(pid)], (where, how)
            (tmp_path / "status").unlink()
            (tmp_path / "closes").unlink()


def test_multiprocessing(forking: Server, connect: Connect, worker_class: str) -> None:
    client = connect(forking.address)
    pid = client.get("/pid").json()
    assert client.get("/terminated").json() == -signal.SIGTERM
    assert client.get("/executor").json() == 7
    if worker_class != "gevent":  # there a Pool waits in a blocking read for ever, in any program
        assert client.get("/pool").json() == [1, 2, 3]
    assert client.get("/pid").json() == pid


def test_handlers_of_a_child(forking: Server, connect: Connect) -> None:
    numbers, wakeup, blocked = connect(forking.address).get("/handlers").json()
    assert numbers in ([signal.SIGINT], [])  # Python's own; none in gevent
    assert (wakeup, blocked) == (-1, 0)


def test_a_signal_to_a_child_is_its_own(start: Start, connect: Connect, tmp_path: Path) -> None:
    server = start("childapps:app", "--threads", "2", "-w", "2", expect=CHILDRENS)
    server.wait_for_log("ready: 2")
    before = server.workers()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        name = number.name
        with connect(server.address) as other:
            child = other.get("/stay").json()
        worker = connect(server.address)
        worker.send(f"GET /wait?name={name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wait_until((tmp_path / f"{name}.began").exists, "the request is in the application")
        os.kill(child, number)
        wait_until(lambda child=child: not is_alive(child), f"{name} has ended the child")
        (tmp_path / name).touch()
        assert worker.read_response().json() == "whole"
        with connect(server.address) as other:
            assert other.get("/mine").json() == "/mine"
        assert server.workers() == before, name


HOWS = ["fork", "double", "forkpty", "preexec", "popen", "posix_spawn", "system"]
STARTS = ["mp-fork", "mp-spawn", "mp-forkserver"]


@pytest.mark.parametrize("preload", PRELOAD, ids=["loaded", "preloaded"])
def test_a_child_has_none_of_the_servers_descriptors(start: Start, connect: Connect, preload: str) -> None:
    server = start("childapps:app", "-w", "2", "--access-logfile", "access", *([preload] if preload else []))
    server.wait_for_log("ready: 2")
    client, idle = connect(server.address), connect(server.address)
    assert idle.get("/mine").json() == "/mine"
    for how in [*HOWS, *(() if preload else STARTS)]:  # what starts interpreters takes its time
        assert client.get(f"/descriptors?how={how}").json() == [], how
    assert idle.get("/mine").json() == "/mine"


@pytest.fixture
def start_held(start: Start, connect: Connect) -> Iterator[Any]:
    """Start a server, connect some clients, and fork a child from C, which has the descriptors of all."""
    held: list[int] = []

    def begin(clients: int, *args: str, **rest: Any) -> tuple[Server, list[Any]]:
        server = start("childapps:app", *args, **rest)
        found = [connect(server.address) for _ in range(clients)]
        for client in found:
            assert client.get("/mine").json() == "/mine"
        with connect(server.address) as last:
            held.append(last.get("/stay-from-c").json())
            assert is_alive(held[-1])
        return server, found

    yield begin
    for pid in held:
        end_child(pid)


def test_clients_see_the_end_while_a_child_holds_their_descriptors(start_held: Any) -> None:
    _, [closing, old, refused, half] = start_held(4, "--threads", "2", expect=(r"WARNING.*refused",))
    closing.send(b"GET /mine HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert closing.read_response().json() == "/mine"
    closing.expect_close()
    old.send(b"GET /mine HTTP/1.0\r\n\r\n")
    assert old.read_response(http10=True).json() == "/mine"
    old.expect_close()
    refused.send(b"GET /mine HTTP/1.1\r\n\r\n")
    assert refused.read_response().status == 400
    refused.expect_close()
    half.half_close()
    half.expect_close()


def test_an_idle_client_sees_the_end_while_a_child_holds_its_descriptor(start_held: Any) -> None:
    _, [idle] = start_held(1, "--keep-alive", "1")
    idle.expect_close()


def test_a_cut_response_is_reset_while_a_child_holds_the_descriptor(start_held: Any) -> None:
    _, [client] = start_held(1, expect=(r"Error handling request", "Traceback"))
    client.send(b"GET /cut HTTP/1.0\r\n\r\n")
    assert client.sock.recv(4096)
    with pytest.raises(ConnectionResetError):
        client.sock.recv(4096)


def test_a_tls_client_sees_the_end_while_a_child_holds_its_descriptor(start: Start, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "all.pem")
    server = start("childapps:app", "--certfile", "all.pem", "--keyfile", "all.pem", "--threads", "2")
    context = ssl.create_default_context()
    ca.configure_trust(context)
    child = 0
    try:
        with context.wrap_socket(
            socket.create_connection(server.address, DEADLINE_S), server_hostname="127.0.0.1"
        ) as client:
            client.sendall(b"GET /stay-from-c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b""
            while data := client.recv(4096):
                answer += data
            child = int(answer.rpartition(b"\r\n\r\n")[2])
            assert is_alive(child)
            # close_notify, and the end of TCP behind it
            client.setblocking(True)
            client.settimeout(DEADLINE_S)
            raw = socket.socket(fileno=client.detach())
            with raw:
                raw.settimeout(DEADLINE_S)
                assert raw.recv(100) == b""
    finally:
        if child:
            end_child(child)


@pytest.mark.parametrize("preload", PRELOAD, ids=["loaded", "preloaded"])
@pytest.mark.parametrize("how", ["stay", "stay-in-gevent"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_surviving_child_holds_nothing(
    start: Start, connect: Connect, tmp_path: Path, kind: str, how: str, preload: str, worker_class: str
) -> None:
    if worker_class != "sync" and (kind == "unix" or preload) and (kind, how, preload) != ("tcp", "stay", "--preload"):
        pytest.skip("as in sync: listeners and the zygote do not depend on the class")
    path = "s.sock"
    binds = ["-b", f"unix:{path}"] if kind == "unix" else []
    args = ["--graceful-timeout", "5", "--pid", "pid", *([preload] if preload else [])]
    server = start("childapps:app", *binds, *args, bind="none" if binds else "tcp")
    server.wait_for_log("ready: 1")
    address = str(tmp_path / path) if binds else server.address
    client, idle = connect(address), connect(address)
    assert idle.get("/mine").json() == "/mine"
    child = client.get(f"/{how}").json()
    try:
        # The child does not answer, nor take what comes.
        for _ in range(20):
            with connect(address) as other:
                assert other.get("/mine").json() == "/mine"
        assert idle.get("/mine").json() == "/mine"
        assert stop_beside_a_child(server) == 0
        client.expect_close()
        idle.expect_close()
        assert is_alive(child)
        with socket.socket(socket.AF_UNIX if binds else socket.AF_INET) as probe:
            assert probe.connect_ex(address) in (ECONNREFUSED, ENOENT)
        if not binds:
            args = ["-b", "{}:{}".format(*address), *args]
        again = start("childapps:app", *binds, *args, bind="none")
        again.wait_for_log("ready: 1")
        assert connect(address).get("/mine").json() == "/mine"
        assert is_alive(child)
        assert again.stop() == 0
    finally:
        end_child(child)


def test_a_child_outlives_its_worker_and_a_reload(start: Start, connect: Connect) -> None:
    server = start("childapps:app", "-w", "1", expect=("SIGKILL", "in flight", "cause", "memory", "connections"))
    server.wait_for_log("ready: 1")
    client = connect(server.address)
    child, worker = client.get("/stay").json(), client.get("/pid").json()
    try:
        os.kill(worker, signal.SIGKILL)
        client.expect_close()
        wait_until(lambda: server.workers() and worker not in server.workers(), "a worker in its place")
        second = connect(server.address)
        assert second.get("/pid").json() not in (worker, child)
        before = len(server.log.lines)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded: 1 worker", after=before)
        assert connect(server.address).get("/mine").json() == "/mine"
        assert is_alive(child)
    finally:
        end_child(child)


def test_a_request_beside_a_fork_runs_once(start: Start, connect: Connect, worker_class: str, tmp_path: Path) -> None:
    """A child has copies of the other requests' greenlets; they never run there."""
    if worker_class == "sync":
        pytest.skip("one request at a time")
    files = {
        "beside.py": """
import os, sys, time
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/beside":
        open("began", "w").close()
        try:
            while not os.path.exists("go"):
                time.sleep(0.01)
            with open("ran", "a") as file:
                print(os.getpid(), file=file)
        finally:
            with open("ended", "a") as file:
                print(os.getpid(), file=file)
        return [b"beside"]
    pid = os.fork()
    if pid == 0:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            time.sleep(0.01)
        sys.exit(5)
    open("go", "w").close()
    return [b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
"""
    }
    server = start("beside:app", "--threads", "4", files=files)
    beside, forking = connect(server.address), connect(server.address)
    beside.send(b"GET /beside HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until((tmp_path / "began").exists, "the other request has begun")
    assert forking.get("/").body == b"5"
    assert beside.read_response().body == b"beside"
    worker = str(server.workers()[0])
    assert (tmp_path / "ran").read_text().split() == [worker]
    assert (tmp_path / "ended").read_text().split() == [worker]


def test_a_child_is_not_counted(start: Start, connect: Connect, tmp_path: Path) -> None:
    server = start("childapps:app", "--access-logfile", "access", expect=CHILDRENS)
    client = connect(server.address)
    for _ in range(5):
        client.get("/back?how=raise")
    client.get("/mine")
    lines = wait_until(lambda: len(found := (tmp_path / "access").read_text().splitlines()) >= 6 and found, "six lines")
    assert len(lines) == 6
    assert server.stop() == 0
    assert (tmp_path / "access").read_text().splitlines() == lines


# ---- helper threads of sync ----------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 begins to warn of a fork with threads")
@pytest.mark.parametrize("more", [(), ("-w", "2"), ("-w", "2", "--request-timeout", "20")], ids=["1", "2", "timed"])
def test_no_warning_of_threads_of_ours(start_unclassed: Start, connect: Connect, more: tuple[str, ...]) -> None:
    server = start_unclassed(
        "childapps:app", *more, worker_class="sync", env={"PYTHONWARNINGS": "error::DeprecationWarning"}
    )
    client = connect(server.address)
    for _ in range(20):
        assert client.get("/back?how=exit").json() == 3
    assert client.get("/terminated").json() == -signal.SIGTERM
    assert client.get("/descriptors?how=preexec").json() == []
    assert client.get("/descriptors?how=forkpty").json() == []


def test_helpers_go_on_after_a_fork(start_unclassed: Start, connect: Connect, tmp_path: Path) -> None:
    """Who waits behind a long call that has forked is handed to a sibling; the master's end is seen."""
    app = (
        (HERE / "childapps.py").read_text()
        + """
def forks_first(environ, start_response):
    if environ["PATH_INFO"] == "/wait":
        _come_back("exit", lambda *_: None)
        _terminated()
    return app(environ, start_response)
"""
    )
    server = start_unclassed(
        "forksfirst:forks_first",
        *("-w", "2", "--handoff-after", "0.1"),
        worker_class="sync",
        files={"forksfirst.py": app},
        expect=("is gone",),
    )
    server.wait_for_log("ready: 2")
    # Clients of one worker, then a long call in it.
    by_worker: dict[int, list[Any]] = {}
    while not (pair := next((each for each in by_worker.values() if len(each) == 2), None)):
        client = connect(server.address)
        by_worker.setdefault(client.get("/pid").json(), []).append(client)
    first, second = pair
    first.send(b"GET /wait?name=go HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until((tmp_path / "go.began").exists, "the long call")
    assert second.get("/mine").json() == "/mine"
    (tmp_path / "go").touch()
    assert first.read_response().json() == "whole"
    (tmp_path / "go").unlink()
    (tmp_path / "go.began").unlink()
    first.send(b"GET /wait?name=go HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until((tmp_path / "go.began").exists, "another long call")
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.leftovers(), "the worker in its call ends, too", 5.0)
