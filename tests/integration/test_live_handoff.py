"""A worker that leaves, or is busy, passes its connections to another (issue 5, parts 2 and 3)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from load import Load
from rawclient import RawClient, Response
from server import Connect, Server, Start, wait_until
from test_live_tls import TLSClient, client_context, issue

APP = """
import os
import time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        with open(environ["QUERY_STRING"], "w"):
            pass
        while os.path.exists(environ["QUERY_STRING"]):
            time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0"), ("X-Pid", str(os.getpid()))])
    return [b""]
"""
FILES = {"pidapp.py": APP}
# The master takes a worker that leaves without having been asked to by it for a fault.
UNASKED = r"\[ERROR\] (?:WS\d+ )?worker \d+ \(age \d+\) exited with status 0"
BUSY = """
import os
import time

def app(environ, start_response):
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
        pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0"), ("X-Pid", str(os.getpid()))])
    return [b""]
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def pid_of(response: Response) -> int:
    """Who has answered, and the connection stays."""
    assert response.status == 200
    assert not response.closes
    return int(response.one("X-Pid") or 0)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def both_workers(server: Server) -> set[int]:
    server.wait_for_log(r"ready: 2 workers")
    return set(server.workers())


def begin_slow(client: RawClient, gate: Path, behind: bytes = b"") -> None:
    """Send a request that lasts until `gate` is removed; return when it is with the application."""
    client.send(f"GET /slow?{gate} HTTP/1.1\r\nHost: test\r\n\r\n".encode() + behind)
    wait_until(gate.exists, "the slow request has begun")


def test_a_leaving_worker_hands_its_connections_over(
    start: Start, connect: Connect, tmp_path: Path, worker_class: str
) -> None:
    server = start("pidapp:app", "-w", "2", files=FILES, expect=(UNASKED,))
    both = both_workers(server)
    at_first = {pid: descriptors(pid) for pid in both}
    pipelined = connect(server.address)
    leaving = pid_of(pipelined.get())
    (staying,) = both - {leaving}
    clients = [connect(server.address) for _ in range(500)]
    for client in clients:
        pid_of(client.get())
    silent = [connect(server.address) for _ in range(20)]
    halves = clients[:50]
    for client in halves:
        client.send(REQUEST[:20])
    gate = tmp_path / "gate"
    begin_slow(pipelined, gate, behind=REQUEST)
    os.kill(leaving, signal.SIGTERM)
    if worker_class != "sync":  # whose signal waits for the end of the call
        wait_until(lambda: descriptors(leaving) < at_first[leaving] + 5, "all that can go has gone")
    gate.unlink()
    assert pid_of(pipelined.read_response()) == leaving
    next_by = pid_of(pipelined.read_response())
    assert next_by != leaving or worker_class == "sync", "sync sees the signal after its turn"
    wait_until(lambda: leaving not in server.workers(), "the worker leaves")
    for client in halves:
        client.send(REQUEST[20:])
        assert pid_of(client.read_response()) != leaving
    for client in [*silent, *clients, pipelined]:
        assert pid_of(client.get()) != leaving
    for client in [*silent, *clients, pipelined]:
        client.close()
    wait_until(
        lambda: descriptors(staying) <= at_first[staying] + 1, "the taker has closed what its clients have closed"
    )
    _stop(server, connect, tmp_path)


def _stop(server: Server, connect: Connect, tmp_path: Path) -> None:
    """When the whole server stops nobody is left to take a connection: idle ones are closed, others told."""
    idle, busy = connect(server.address), connect(server.address)
    pid_of(idle.get())
    gate = tmp_path / "last"
    begin_slow(busy, gate)
    server.send_signal(signal.SIGTERM)
    wait_until(lambda: len(server.workers()) == 1, "the worker that has nothing to do leaves")
    gate.unlink()
    last = busy.read_response()
    assert last.status == 200
    assert last.closes
    busy.expect_close()
    idle.expect_close()
    assert server.wait() == 0


def test_tls_connections_are_told_to_close(start: Start, tmp_path: Path, worker_class: str) -> None:
    ca = trustme.CA()
    issue(ca, tmp_path)
    tls = ("--certfile", "server.pem", "--keyfile", "server.key")
    server = start("pidapp:app", "-w", "2", *tls, files=FILES, expect=(UNASKED,))
    both_workers(server)
    gate = tmp_path / "gate"
    with TLSClient(server, client_context(ca)) as client:
        leaving = pid_of(client.get())
        begin_slow(client, gate)
        os.kill(leaving, signal.SIGTERM)
        if worker_class == "sync":
            gate.unlink()  # a signal that is pending is seen before the response's head is made
        else:
            wait_until(lambda: len(set(server.workers()) - {leaving}) == 2, "it is being replaced: it leaves")
            gate.unlink()
        response = client.read_response()
        assert response.status == 200
        assert response.closes
        client.expect_close()


def _asleep(pid: int) -> bool:
    """Whether the process has taken the signals that were sent to it."""
    with open(f"/proc/{pid}/status") as file:
        pending = [line.split()[1] for line in file if line.startswith(("SigPnd", "ShdPnd"))]
    return not any(int(mask, 16) for mask in pending)


# ---- a busy sync worker ------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["0.05", "0"])
def test_who_waits_behind_a_long_call_is_served_by_a_sibling(
    start_unclassed: Start, connect: Connect, tmp_path: Path, after: str
) -> None:
    args = ("-k", "sync", "-w", "2", "--handoff-after", after)
    server = start_unclassed("pidapp:app", *args, files=FILES)
    both = both_workers(server)
    at_first = {pid: descriptors(pid) for pid in both}
    clients = [connect(server.address) for _ in range(20)]
    answered_by = [pid_of(client.get()) for client in clients]
    busy = answered_by[0]
    (free,) = both - {busy}
    stranded = [client for client, pid in zip(clients, answered_by, strict=True) if pid == busy][1:]
    while len(stranded) < 3:
        stranded.append(connect(server.address))
        if pid_of(stranded[-1].get()) != busy:
            clients.append(stranded.pop())
    gate = tmp_path / "gate"
    begin_slow(clients[0], gate, behind=REQUEST)
    idle = stranded.pop()
    half = stranded.pop()
    half.send(REQUEST[:20])
    for client in stranded:
        client.send(REQUEST)
    began = time.monotonic()
    if after == "0":
        stranded[0].sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            stranded[0].sock.recv(1)
        stranded[0].sock.settimeout(stranded[0].deadline_s)
        gate.unlink()
    answers = [pid_of(client.read_response()) for client in stranded]
    if after != "0":
        assert answers == [free] * len(stranded)
        half.send(REQUEST[20:])
        assert pid_of(half.read_response()) == free
        assert time.monotonic() - began < 0.5
        gate.unlink()
    assert pid_of(clients[0].read_response()) == busy
    pid_of(clients[0].read_response())
    assert pid_of(idle.get()) == busy
    for client in [*clients, *stranded, half, idle]:
        client.close()
    for pid in both:
        wait_until(lambda pid=pid: descriptors(pid) <= at_first[pid], f"no descriptor is left in {pid}")


def test_a_sync_worker_told_to_leave_within_a_long_call_hands_over_at_once(
    start_unclassed: Start, connect: Connect, tmp_path: Path
) -> None:
    server = start_unclassed("pidapp:app", "-k", "sync", "-w", "2", files=FILES, expect=(UNASKED,))
    both_workers(server)
    busy, idle = connect(server.address), connect(server.address)
    leaving = pid_of(busy.get())
    while pid_of(idle.get()) != leaving:
        idle = connect(server.address)
    gate = tmp_path / "gate"
    begin_slow(busy, gate)
    os.kill(leaving, signal.SIGTERM)
    wait_until(lambda: _asleep(leaving), "it has the signal")
    assert pid_of(idle.get()) != leaving
    gate.unlink()
    assert pid_of(busy.read_response()) == leaving
    pid_of(busy.get())


# ---- a worker that has all the work ----------------------------------------------------------------------


# In gevent as in sync: one thread that never waits.
@pytest.mark.parametrize("worker_class", ["sync", "threads"], indirect=True)
def test_a_busy_worker_shares_its_connections_with_one_that_has_come_later(start: Start) -> None:
    """Clients keep their connections: without this the first worker would have them for ever."""
    with all_with_the_first(start) as (server, load, counts):
        wait_until(lambda: min(counts()) >= 3, "both have about as many clients", 20)
        until = {pid: runnable_time_s(pid) + 1 for pid in server.workers()}
        wait_until(lambda: all(runnable_time_s(pid) > at for pid, at in until.items()), "a busy second in each", 20)
        load.wait_for_more(8)
        assert min(counts()) >= 3
    assert load.lost == []
    assert [client.connections for client in load.clients] == [1] * 8
    assert server.stop() == 0


def runnable_time_s(pid: int) -> float:
    """For how long the process has run, or waited for a processor (proc(5))."""
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(running) + int(waiting) for running, waiting, _ in found) / 1e9


@pytest.mark.parametrize("worker_class", ["gevent"], indirect=True)
def test_where_nothing_is_handed_over_connections_stay(start: Start) -> None:
    with all_with_the_first(start, "--handoff-after", "0") as (server, load, counts):
        (busy,) = {client.served_by for client in load.clients}
        until = runnable_time_s(busy) + 5
        wait_until(lambda: runnable_time_s(busy) > until, "it has had no pause for 5 s", 20)
        load.wait_for_more(8)
        assert counts() == [8, 0]
    assert load.lost == []
    assert server.stop() == 0


@contextmanager
def all_with_the_first(start: Start, *args: str) -> Iterator[tuple[Server, Load, Callable[[], list[int]]]]:
    """Have eight clients keep one of two workers busy; return how many of them each serves, too."""
    server = start("busy:app", "-w", "1", *args, files={"busy.py": BUSY})
    server.wait_for_log(r"ready: 1 worker")
    (first,) = server.workers()
    with Load(server.address, clients=8, keep=True, pause_s=0.0) as load:
        load.wait_for_more(16)
        server.send_signal(signal.SIGTTIN)
        wait_until(lambda: len(server.workers()) == 2, "the second worker")
        (second,) = set(server.workers()) - {first}

        def counts() -> list[int]:
            served = [client.served_by for client in load.clients]
            return [served.count(first), served.count(second)]

        yield server, load, counts
