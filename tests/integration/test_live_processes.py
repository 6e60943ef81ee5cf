"""Workers that die, stops of every kind, many connections: what clients see, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from load import Load
from rawclient import RawClient, timed_get
from server import Connect, Server, Start, is_alive, wait_until

KILLED = r"\[(WARNING|ERROR|CRITICAL)\].*(kill|KILL|signal 9|died|exited|in flight)"


def wait_ready(server: Server, workers: int) -> list[int]:
    """Wait until so many workers are ready; return their process ids."""
    server.wait_for_log(rf"ready: {workers} workers?")
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    found: list[int] = wait_until(
        lambda: len(server.workers()) == workers and server.workers(), f"{workers} workers, not {server.workers()}"
    )
    return found


def test_a_killed_worker_is_back_within_a_second_and_loses_only_its_own(start: Start) -> None:
    server = start("apps:app", "-w", "2", expect=(KILLED,))
    before = set(wait_ready(server, 2))
    with Load(server.address, "/", clients=8, keep=True) as load:
        load.wait_for_more(200)
        wait_until(lambda: all(client.served_by in before for client in load.clients), "all clients are served")
        victim = load.clients[0].served_by
        theirs = [client for client in load.clients if client.served_by == victim]
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        fresh = wait_until(lambda: set(server.workers()) - before, "a new worker", 1.0)
        wait_until(lambda: victim not in server.workers(), "the old worker is reaped", 1.0)
        assert time.monotonic() - killed < 1.0
        load.wait_for_more(200)
    assert len(fresh) == 1
    for client in load.clients:
        assert len(client.lost) <= (1 if client in theirs else 0), client.lost
        assert client.statuses == {200}


def test_the_new_worker_serves_within_a_second(start: Start) -> None:
    server = start("apps:app", "-w", "1", expect=(KILLED,))
    (victim,) = wait_ready(server, 1)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    assert time.monotonic() - killed < 1.0


def test_every_killed_worker_is_replaced(start: Start) -> None:
    server = start("apps:app", "-w", "3", expect=(KILLED,))
    before = wait_ready(server, 3)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(server.workers()) == 3 and not set(server.workers()) & set(before), "three new workers")
    with RawClient(server.address) as client:
        assert client.get("/").status == 200


@pytest.mark.parametrize("talked", [False, True], ids=["silent", "after a request"])
def test_a_thousand_idle_connections_and_a_new_client_is_answered_at_once(
    start: Start, connect: Connect, talked: bool
) -> None:
    server = start("apps:app", "-w", "1")
    idle = [connect(server.address) for _ in range(1000)]
    if talked:
        for client in idle:
            client.request("/")
        for client in idle:
            assert client.read_response().status == 200
    timed_get(server.address)  # everything before it is accepted now
    times = sorted(timed_get(server.address) for _ in range(20))
    assert times[10] < 0.1, times


SHUTDOWN = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "QUIT": signal.SIGQUIT}


@pytest.mark.parametrize("name", SHUTDOWN)
def test_a_stop_leaves_nothing_behind(start: Start, tmp_path: Path, name: str) -> None:
    path, pidfile = tmp_path / "s.sock", tmp_path / "pid"
    server = start("apps:app", "-w", "2", "-b", f"unix:{path}", "-p", str(pidfile), bind="none")
    server.wait_for_log("unix:")
    with RawClient(str(path)) as client:
        assert client.get("/").status == 200
        assert int(pidfile.read_text()) == server.pid
        assert server.stop(SHUTDOWN[name], 10) == 0
    assert not path.exists()
    assert not pidfile.exists()
    server.check()


def test_a_stop_frees_the_port(start: Start) -> None:
    server = start(bind="tcp")
    address = server.address
    with RawClient(address) as client:
        assert client.get("/").status == 200
    assert server.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)


def test_term_lets_requests_in_flight_finish(start: Start, connect: Connect) -> None:
    server = start("apps:app", "-w", "2")
    clients = [connect(server.address) for _ in range(2)]
    for client in clients:
        client.request("/sleep?0.5")
    wait_until(lambda: server.log.text.count("sleeping 0.5") >= 1, "a request is in the application")
    server.send_signal(signal.SIGTERM)
    for client in clients:
        response = client.read_response()
        assert (response.status, response.body) == (200, b"slept")
        assert response.closes
        client.expect_close()
    assert server.wait() == 0


def test_term_answers_queued_requests_and_resets_none(start: Start, connect: Connect) -> None:
    """One worker is busy; eight more clients have connected and sent their requests (hardening.md, TERM)."""
    server = start("apps:app", "-w", "1")
    clients = [connect(server.address) for _ in range(9)]
    clients[0].request("/sleep?0.8")
    server.wait_for_log("sleeping 0.8")
    for client in clients[1:]:
        client.request("/")
    server.send_signal(signal.SIGTERM)
    for client in clients:
        response = client.read_response()
        assert response.status == 200
        client.expect_close()
    assert server.wait() == 0


def test_term_under_load_loses_nothing_that_was_connected(start: Start, connect: Connect) -> None:
    """Every connection that the listener had taken gets an answer; later ones stay in the test's own listener."""
    server = start("apps:app", "-w", "2")
    wait_ready(server, 2)
    clients = [connect(server.address) for _ in range(50)]
    for client in clients:
        client.request("/")
    server.send_signal(signal.SIGTERM)
    for client in clients:
        assert client.read_response().status == 200
    assert server.wait() == 0


def test_term_with_idle_connections_is_quick(start: Start, connect: Connect) -> None:
    server = start("apps:app", "-w", "2")
    clients = [connect(server.address) for _ in range(20)]
    for client in clients:
        assert client.get("/").status == 200
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 3.0
    for client in clients:
        client.expect_close()


@pytest.mark.parametrize("name", ["INT", "QUIT"])
def test_int_and_quit_do_not_wait_for_requests(start: Start, name: str) -> None:
    # What was cut off may be told of.
    server = start("apps:app", "-w", "2", expect=(r"/sleep\?30|did not leave at once",))
    with RawClient(server.address) as client:
        client.request("/sleep?30")
        server.wait_for_log("sleeping 30")
        begun = time.monotonic()
        assert server.stop(SHUTDOWN[name], 10) == 0
        assert time.monotonic() - begun < 4.0


def test_a_graceful_stop_is_bounded(start: Start) -> None:
    server = start("apps:app", "--graceful-timeout", "1", expect=(r"\[(WARNING|ERROR|CRITICAL)\]",))
    with RawClient(server.address) as client:
        client.request("/sleep?30")
        server.wait_for_log("sleeping 30")
        begun = time.monotonic()
        assert server.stop(deadline_s=10) == 0
        assert 0.8 < time.monotonic() - begun < 5.0


def test_a_second_signal_hastens_a_stop(start: Start) -> None:
    server = start("apps:app", expect=(r"\[(WARNING|ERROR|CRITICAL)\]",))
    with RawClient(server.address) as client:
        client.request("/sleep?30")
        server.wait_for_log("sleeping 30")
        server.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        wait_until(lambda: "TERM" in server.log.text or "stop" in server.log.text.lower(), "the stop is logged")
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
        assert time.monotonic() - begun < 5.0


def test_workers_leave_when_the_master_is_killed(start: Start) -> None:
    server = start("apps:app", "-w", "2", bind="tcp", expect=(r"\[(WARNING|ERROR|CRITICAL)\]",))
    workers = wait_ready(server, 2)
    address = server.address
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in workers), "the workers leave", 2.0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)


def test_a_silent_worker_is_killed_and_the_others_serve(start: Start) -> None:
    server = start("apps:app", "-w", "2", "-t", "1.5", expect=(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback",))
    victim, other = wait_ready(server, 2)
    os.kill(victim, signal.SIGSTOP)  # whatever the class: not a line of it runs any more
    begun = time.monotonic()
    wait_until(lambda: victim not in server.workers() and len(server.workers()) == 2, "the worker is replaced", 8.0)
    assert 1.0 < time.monotonic() - begun < 6.0
    assert other in server.workers()
    with RawClient(server.address) as client:
        assert client.get("/").status == 200


def sockets_of(pid: int) -> set[str]:
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            found.add(os.readlink(fd))
    return {each for each in found if each.startswith("socket:")}


def test_a_worker_that_is_woken_and_does_not_come_strands_no_client(start: Start) -> None:
    """The kernel wakes one of the idle workers for a new client: held or killed at that moment, it does not accept."""
    server = start("apps:app", "-w", "2", "-t", "60")
    workers = wait_ready(server, 2)
    for worker in workers * 3:
        with socket.socket() as client:
            client.settimeout(5)
            had = sockets_of(worker)
            os.kill(worker, signal.SIGSTOP)
            try:
                client.connect(server.address)  # while it still waits in epoll_wait(2)
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                try:
                    assert client.recv(12) == b"HTTP/1.1 200"
                except TimeoutError:
                    # It stops a moment after the signal: its thread in epoll_wait(2) may have been quicker.
                    assert sockets_of(worker) - had, "no worker has accepted the client"
            finally:
                os.kill(worker, signal.SIGCONT)


def test_idle_workers_are_not_taken_for_silent_ones(start: Start) -> None:
    """Not even with the shortest timeout: the connection's end after 2.5 s is the clock."""
    server = start("apps:app", "-w", "2", "-t", "1", "--keep-alive", "2.5")
    before = wait_ready(server, 2)
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
        client.expect_close()
    assert server.workers() == before


def test_max_requests_replaces_workers_and_loses_nothing(start: Start) -> None:
    server = start("apps:app", "-w", "2", "--max-requests", "100")
    before = set(wait_ready(server, 2))
    with Load(server.address, "/", clients=4) as load:
        wait_until(lambda: not set(server.workers()) & before, "both workers are replaced")
        load.wait_for_more(100)
    assert not load.lost
    wait_until(lambda: len(server.workers()) == 2, "two workers")


def test_slow_clients_do_not_hold_the_worker(start: Start, connect: Connect) -> None:
    """Slow heads, slow bodies and slow readers: a fresh request is answered while all of them wait."""
    server = start("apps:app", "-w", "1", expect=(r"\[WARNING\].*127\.0\.0\.1",))
    slow = [connect(server.address) for _ in range(150)]
    for number, client in enumerate(slow):
        if number % 3 == 0:
            client.send(b"GET / HTTP/1.1\r\nHos")
        elif number % 3 == 1:
            client.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\nsome")
        else:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.request("/big?5000000")
    timed_get(server.address)
    times = sorted(timed_get(server.address) for _ in range(10))
    assert times[5] < 0.1, times
    # and the slow ones are served when they go on
    slow[0].send(b"t: t\r\n\r\n")
    assert slow[0].read_response().status == 200
    slow[1].send(b"x" * 96)
    assert slow[1].read_response().body == b"some" + b"x" * 96
    assert len(slow[2].read_response().body) == 5_000_000


def test_idle_connections_end_after_keepalive(start: Start) -> None:
    server = start("apps:app", "--keep-alive", "1")
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
        begun = time.monotonic()
        client.expect_close()
        assert 0.5 < time.monotonic() - begun < 4.0


def test_a_silent_sender_gets_408(start: Start, connect: Connect) -> None:
    server = start("apps:app", "--header-timeout", "1", "--body-timeout", "1", expect=(r"\[WARNING\].*127\.0\.0\.1",))
    timed_get(server.address)  # it is up: the clients' time is not the start's
    begun = time.monotonic()
    head, body = connect(server.address), connect(server.address)
    head.send(b"GET / HTTP/1.1\r\nHo")
    body.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nx")
    for client in (head, body):
        response = client.read_response()
        assert response.status == 408
        assert response.closes
        client.expect_close()
        assert 0.5 < time.monotonic() - begun < 4.0


def rss_kib(pid: int) -> int:
    """The resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError(f"no VmRSS of {pid}")


def ask_many(address: tuple[str, int], total: int, at_once: int = 100) -> None:
    """Make ``total`` pipelined requests, a tenth of them with a header block never seen before."""
    with RawClient(address) as client:
        plain = b"GET / HTTP/1.1\r\nHost: test\r\nUser-Agent: memory\r\n\r\n"
        for batch in range(total // at_once):
            unique = [
                b"GET /?%d HTTP/1.1\r\nHost: test\r\nX-Unique: %d\r\n\r\n" % (number, number)
                for number in range(batch * at_once // 10, (batch + 1) * at_once // 10)
            ]
            client.send(b"".join(unique) + plain * (at_once - len(unique)))
            seen, tail = 0, b""
            while seen < at_once:
                data = client.sock.recv(1 << 20)
                assert data, "the server closed the connection"
                seen += (tail + data).count(b"hello\n")
                tail = data[-5:]


@pytest.mark.no_coverage
def test_memory_stays_where_it_was(start: Start) -> None:
    """The short form of tests/soak/memory.py: 30,000 requests, after the first 10,000 within 1 MB."""
    server = start("apps:app", "-w", "1")
    (worker,) = wait_ready(server, 1)
    ask_many(server.address, 10_000)
    first = rss_kib(worker)
    ask_many(server.address, 20_000)
    assert rss_kib(worker) - first < 1024


def test_clients_that_abort_leak_no_descriptors(start: Start) -> None:
    server = start("apps:app", "-w", "1")
    (worker,) = wait_ready(server, 1)

    def open_descriptors() -> int:
        return len(os.listdir(f"/proc/{worker}/fd"))

    first = open_descriptors()
    for number in range(120):
        client = RawClient(server.address)
        client.send(b"POST /big?500000 HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello"[: 10 + number])
        if number % 2:
            client.reset()
        else:
            client.close()
    wait_until(lambda: open_descriptors() <= first + 5, "the descriptors are closed")


def test_a_burst_beyond_the_backlog_is_served(start: Start) -> None:
    server = start("apps:app", "--backlog", "8", bind="tcp")
    wait_ready(server, 1)
    done: list[int] = []

    def ask() -> None:
        with RawClient(server.address) as client:
            done.append(client.get("/").status)

    threads = [threading.Thread(target=ask) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [200] * 60


ENDING = """
import atexit, os

class Application:
    def __init__(self):
        self.me = self
        self.journal = open(f"journal.{os.getpid()}", "w")

    def __call__(self, environ, start_response):
        self.journal.write("served ")
        start_response("200 OK", [])
        return [b"served"]

app = Application()
atexit.register(lambda: print("atexit", file=open(f"atexit.{os.getpid()}", "w")))
"""


@pytest.mark.parametrize("more", [(), ("--request-timeout", "20")], ids=["", "request_timeout"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_like_any_python_program(
    start: Start, tmp_path: Path, number: int, more: tuple[str, ...]
) -> None:
    """atexit runs, and a file is flushed that only a reference cycle of the application holds."""
    server = start("ending:app", *more, files={"ending.py": ENDING})
    with RawClient(server.address) as client:
        assert client.get("/").body == b"served"
    (worker,) = server.workers()
    assert server.stop(number) == 0
    assert (tmp_path / f"journal.{worker}").read_text() == "served "
    assert (tmp_path / f"atexit.{worker}").read_text() == "atexit\n"
