"""A stop that nobody notices: draining, the backlog emptied, nginx in front of two (issue 5, parts 2 and 9)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rawclient import RawClient
from server import Connect, Server, Start, environment, wait_until

from wsgiserv.ctl.commands import main
from wsgiserv.net.listener import open_listeners


def state_of(server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what ``wsgiservctl status`` says that the server is doing."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", environment({})["XDG_RUNTIME_DIR"])
    capsys.readouterr()
    assert main(["--pid", str(server.pid), "status", "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)["server"]["state"])


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has come to the process (proc(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def has_waiting(pid: int, number: int) -> bool:
    """Whether this signal waits for the process to go on (proc(5))."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["ShdPnd"], 16) >> (number - 1) & 1)


@contextlib.contextmanager
def held(pids: list[int]) -> Iterator[None]:
    """Hold these workers meanwhile: whoever connects waits in the backlog, in every class."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: all(map(is_stopped, pids)), "the workers are held")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def ready(server: Server, workers: int) -> list[int]:
    server.wait_for_log(f"ready: {workers} workers?")
    return server.workers()


def test_it_goes_on_accepting_while_readiness_says_no(
    start: Start, connect: Connect, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    delay_s = 1.5
    server = start(
        *("apps:app", "-w", "2", "--drain-delay", f"{delay_s:g}", "--readiness-path", "/-/ready"), bind="tcp"
    )
    workers = ready(server, 2)
    probe = connect(server.address).get("/-/ready")
    assert (probe.status, probe.text, probe.closes) == (200, "ready\n", False)
    kept = [connect(server.address) for _ in range(4)]
    for client in kept:
        assert not client.get("/").closes
    assert state_of(server, capsys, monkeypatch) == "running"
    begun = time.monotonic()
    server.send_signal(signal.SIGTERM)
    server.wait_for_log(r"draining for 1.5 s")
    assert state_of(server, capsys, monkeypatch) == "draining"
    probe = connect(server.address).get("/-/ready")
    assert (probe.status, probe.text, probe.closes) == (503, "draining\n", True)

    # New clients are accepted all the while, and told not to come back on this connection.
    answered = 0
    while time.monotonic() < begun + delay_s / 3:
        with RawClient(server.address) as client:
            response = client.get("/")
            assert (response.status, response.closes) == (200, True)
            client.expect_close()
            answered += 1
    assert answered > 10
    # So are those that have been there before.
    for client in kept[:3]:
        response = client.get("/")
        assert (response.status, response.closes) == (200, True)
        client.expect_close()
        client.close()
    assert server.workers() == workers
    assert state_of(server, capsys, monkeypatch) == "draining"

    # At its end, those in the backlog are answered, and the idle one is let go.
    with held(workers):
        waiting = [connect(server.address) for _ in range(12)]
        for client in waiting:
            client.request("/")
        server.wait_for_log("drained: stopping gracefully")
        assert time.monotonic() - begun >= delay_s
        wait_until(lambda: all(has_waiting(pid, signal.SIGTERM) for pid in workers), "they are told to stop")
    for client in waiting:
        response = client.read_response()
        assert (response.status, response.closes) == (200, True)
        client.expect_close()
        client.close()
    kept[3].expect_close()
    kept[3].close()
    assert server.wait() == 0
    with pytest.raises(ConnectionRefusedError):
        RawClient(server.address)


# What a second TERM does is the master's.
@pytest.mark.parametrize(
    ("worker_class", "delay"),
    [("sync", "0"), ("threads", "0"), ("gevent", "0"), ("sync", "30")],
    indirect=["worker_class"],
)
def test_who_waits_in_the_backlog_at_the_stop_is_answered(
    start: Start, connect: Connect, delay: str, worker_class: str
) -> None:
    """Also who has connected and speaks only later; and more of them than a worker may have at once."""
    server = start("apps:app", "-w", "2", "--worker-connections", "10", "--drain-delay", delay, bind="tcp")
    workers = ready(server, 2)
    with held(workers):
        waiting = [connect(server.address) for _ in range(40)]
        for client in waiting[::2]:
            client.request("/")
        server.send_signal(signal.SIGTERM)
        if delay != "0":
            server.wait_for_log("SIGTERM: draining for 30 s")
            server.send_signal(signal.SIGTERM)
        wait_until(lambda: all(has_waiting(pid, signal.SIGTERM) for pid in workers), "they are told to stop")
    for client in waiting[1::2]:
        client.request("/")
    for client in waiting:
        response = client.read_response()
        assert response.status == 200
        # The thread that leads may take some before the main one has the signal.
        assert response.closes or worker_class == "threads"
        client.expect_close()
        client.close()
    assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["INT", "QUIT"])
@pytest.mark.parametrize("worker_class", ["sync"], indirect=True)
def test_int_and_quit_end_a_drain_at_once(start: Start, number: int) -> None:
    """And until then a worker that dies is replaced, by one that drains, too."""
    server = start("apps:app", "-w", "2", "--drain-delay", "30", expect=(r"was killed by SIGKILL", r"sleeping|/sleep"))
    victims = ready(server, 2)
    server.send_signal(signal.SIGTERM)
    server.wait_for_log("draining for 30 s")
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not set(victims) & set(server.workers()) and len(server.workers()) == 2, "successors")
    with RawClient(server.address) as client:
        response = client.get("/")
        assert (response.status, response.closes) == (200, True)
        assert int(response.one("X-Pid") or 0) in server.workers()
    begun = time.monotonic()
    assert server.stop(number, 10) == 0
    assert time.monotonic() - begun < 3.0


HOLDING = """
import os, signal
def on_starting(server):
    def hold():
        if os.path.exists("hold"):
            os.kill(server.pid, signal.SIGSTOP)
    os.register_at_fork(after_in_parent=hold)
"""


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_successor_drains_from_its_first_response(
    start: Start, connect: Connect, preload: tuple[str, ...], tmp_path: Path
) -> None:
    """It is told before it lives: here the master is held from then on."""
    options = ("-w", "1", "--drain-delay", "30", "-c", "conf.py", *preload)
    server = start("apps:app", *options, files={"conf.py": HOLDING}, expect=(r"was killed by SIGKILL",))
    victim = int(connect(server.address).get("/").one("X-Pid") or 0)
    server.send_signal(signal.SIGTERM)
    server.wait_for_log("draining for 30 s")
    (tmp_path / "hold").touch()
    os.kill(victim, signal.SIGKILL)
    try:
        response = connect(server.address).get("/")
        assert (response.status, response.closes) == (200, True)
        wait_until(lambda: is_stopped(server.pid), "the master is held")
        assert response.one("X-Pid") != str(victim)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert server.stop(signal.SIGINT, 10) == 0


@pytest.mark.parametrize("worker_class", ["threads"], indirect=True)
def test_who_comes_during_the_stop_is_refused_also_with_preload(start: Start, connect: Connect) -> None:
    """The zygote has the sockets, too: nobody is to wait for it, and be reset when it ends.

    Who comes in the last moment is told so a second later: its SYN has been dropped, and is sent again.
    """
    server = start("apps:app", "-w", "2", "--preload", bind="tcp")
    ready(server, 2)
    client = connect(server.address)
    client.request("/sleep?2.5")
    server.wait_for_log("sleeping 2.5")
    server.send_signal(signal.SIGTERM)

    def is_refused() -> bool:
        try:
            with RawClient(server.address) as late:
                assert late.get("/").status == 200  # it was in time
        except ConnectionRefusedError:
            return True
        return False

    wait_until(is_refused, "new clients are refused")
    assert server.process.poll() is None
    assert client.read_response().status == 200
    client.close()
    assert server.wait() == 0


# ---- behind nginx, a second instance ---------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot")
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("may_filter", [True, False])
def test_a_listener_that_is_about_to_close_leaves_newcomers_to_the_other_on_its_port(
    host: str, may_filter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has connected is still there to be accepted; who comes now is neither taken nor refused."""
    if not may_filter:  # as for a normal user on a current kernel
        monkeypatch.setattr("wsgiserv.net.syn_filter._SO_ATTACH_FILTER", 0x7FFF)
    shared = SimpleNamespace(bind=(f"{host}:0",), backlog=64, reuse_port=True, umask=0, user=0, group=0, certfile=None)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        (leaving,) = open_listeners(shared)
        closing = stack.enter_context(socket.socket(fileno=os.dup(leaving.fileno())))
        address = leaving.getsockname()[:2]
        early = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
        leaving.reject_new_connections()
        shared.bind = (f"{host}:{address[1]}",)
        (other,) = open_listeners(shared)
        staying = stack.enter_context(socket.socket(fileno=os.dup(other.fileno())))
        other.close()
        late = [stack.enter_context(socket.socket(family)) for _ in range(8)]
        for client in late:
            client.setblocking(False)
            assert client.connect_ex(address) in (0, errno.EINPROGRESS)
        accepted = [stack.enter_context(closing.accept()[0]) for _ in early]
        assert [each.getpeername() for each in accepted] == [each.getsockname() for each in early]
        with pytest.raises(BlockingIOError):
            closing.accept()
        accepted[0].sendall(b"answered")  # what is open goes on
        assert early[0].recv(100) == b"answered"
        leaving.close()
        closing.close()
        for client in late:
            client.settimeout(15)
            client.sendall(b"taken")  # waits until it is connected
        names = {client.getsockname() for client in late}
        staying.settimeout(15)
        while names:
            one, name = staying.accept()
            with one:
                assert one.recv(100) == b"taken"
            names.discard(name)


HOOK = """
def post_worker_init(worker):
    import deaf
    deaf.listeners = worker.boot.listeners
"""
DEAF = """
import os

def app(environ, start_response):
    for listener in listeners:
        listener.reject_new_connections()
    body = str(os.geteuid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot")
@pytest.mark.skipif(os.geteuid() != 0, reason="a normal user's servers are normal users' anyway")
def test_the_last_worker_of_a_normal_user_keeps_newcomers_out(start: Start, connect: Connect) -> None:
    """Current kernels refuse it the filter (EPERM). Clients that have connected are answered."""
    # Preloaded: the user may not read this directory.
    args = ("-c", "gun.py", "--preload", "-u", "65534", "-g", "65534")
    server = start("deaf:app", *args, bind="tcp", files={"deaf.py": DEAF, "gun.py": HOOK})
    first, early = connect(server.address), connect(server.address)
    assert first.get("/").body == b"65534"
    with socket.socket() as late:
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(server.address)
    assert early.get("/").body == b"65534"
    assert server.stop() == 0
