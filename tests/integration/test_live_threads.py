"""The threads worker: who runs what, and that nobody waits while a thread is free (issue 4, part 1)."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Connect, Server, Start, wait_until

N = 4
FAILS = (r"\[ERROR\]|Traceback",)


@pytest.fixture(scope="module")
def worker_class() -> str:
    """The one class that these tests are about."""
    return "threads"


def threads_of(server: Server) -> list[str]:
    """Return the names that the system knows the worker's threads by."""
    (worker,) = server.workers()
    names = []
    for task in Path(f"/proc/{worker}/task").iterdir():
        with contextlib.suppress(OSError):
            names.append((task / "comm").read_text().strip())
    return sorted(name for name in names if name.startswith("request-"))


def together(count: int, call: Callable[[int], object]) -> list[object]:
    """Call so many times at once; return the results in order, or raise the first failure."""
    results: list[object] = [None] * count

    def run(number: int) -> None:
        try:
            results[number] = call(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def meet(server: Server, count: int) -> None:
    """Let ``count`` requests wait for one another in the application: they can only meet if all run at once."""

    def ask(number: int) -> None:
        with RawClient(server.address) as client:
            assert client.get(f"/meet?{count}").text == "met"

    together(count, ask)


@pytest.fixture
def pool(start: Start) -> Server:
    """A worker of `N` threads."""
    return start("threadapps:app", "-w", "1", "--threads", str(N), expect=FAILS)


def test_so_many_requests_run_at_once_and_threads_start_as_needed(pool: Server) -> None:
    with RawClient(pool.address) as client:
        client.get("/who")
    assert len(threads_of(pool)) < N, "no more than are needed"
    meet(pool, N)
    assert threads_of(pool) == [f"request-{number}" for number in range(1, N + 1)]
    meet(pool, N)
    assert len(threads_of(pool)) == N


def test_threads_are_added_while_a_steady_load_keeps_the_first_ones_busy(start: Start) -> None:
    """Each thread that ends a call finds the next request waiting: none of them comes to fetch more threads."""
    server = start("threadapps:app", "-w", "1", "--threads", "24")

    def load(number: int) -> None:
        with RawClient(server.address) as client:
            for _ in range(60):
                assert client.get("/sleep?0.01").text == "slept"

    together(32, load)
    assert len(threads_of(server)) == 24


def test_no_thread_is_lost_to_what_an_application_raises(pool: Server) -> None:
    kinds = ["exception", "exit", "interrupt", "generator", "odd"]

    def fail(number: int) -> None:
        with RawClient(pool.address) as client:
            for kind in kinds:
                assert client.get(f"/fail?{kind}").status == 500

    together(N + 1, fail)
    meet(pool, N)


def test_a_thread_keeps_its_name_and_its_local_state(pool: Server) -> None:
    meet(pool, N)
    seen: dict[str, list[int]] = {}
    lock = threading.Lock()

    def ask(number: int) -> None:
        with RawClient(pool.address) as client:
            for _ in range(30):
                now, first, count = client.get("/who").text.split()
                assert now == first
                assert now.startswith("wsgiserv-request-")
                with lock:
                    seen.setdefault(now, []).append(int(count))

    together(N, ask)
    for counts in seen.values():
        assert sorted(counts) == list(range(1, len(counts) + 1))


def test_quick_requests_do_not_wait_for_slow_ones(pool: Server, connect: Connect) -> None:
    slow = [connect(pool.address) for _ in range(N - 1)]
    for client in slow:
        client.request("/sleep?2")
    quick = connect(pool.address)
    for _ in range(10):
        begun = time.monotonic()
        assert quick.get("/who").status == 200
        assert time.monotonic() - begun < 1.0, "a thread was free"
    for client in slow:
        assert client.read_response().text == "slept"


def test_with_all_threads_busy_clients_are_still_looked_after(start: Start, connect: Connect) -> None:
    """Heads are read, and time limits kept; who has asked is served when a thread is free; TERM is heard."""
    server = start(
        "threadapps:app",
        *("-w", "1", "-k", "threads", "--threads", "1", "--header-timeout", "1"),
        expect=(r"\[WARNING\].*header_timeout",),
    )
    busy = connect(server.address)
    busy.request("/sleep?3")
    half = connect(server.address)
    half.send(b"GET /who HTTP/1.1\r\n")
    waiting = connect(server.address)
    waiting.request("/who")
    begun = time.monotonic()
    assert half.read_response().status == 408
    assert time.monotonic() - begun < 2.9, "nobody looked while the only thread was busy"
    half.close()
    server.send_signal(15)
    assert busy.read_response().text == "slept"
    assert waiting.read_response().status == 200
    assert server.wait() == 0


def test_a_stream_that_nobody_reads_holds_no_thread(pool: Server, connect: Connect) -> None:
    readers = [connect(pool.address) for _ in range(2 * N)]
    for client in readers:
        client.request("/big?20000000")
    meet(pool, N)
    for client in readers:
        assert len(client.read_response().body) == 20_000_000


def test_pipelined_requests_are_answered_in_their_order(pool: Server) -> None:
    with RawClient(pool.address) as client:
        client.send(b"".join(b"GET /sleep?0.0%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in (5, 0, 3, 1)))
        client.send(b"GET /who HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [client.read_response().text for _ in range(4)] == ["slept"] * 4
        assert client.read_response().text.startswith("wsgiserv-request-")


def test_connections_survive_moving_between_threads(start: Start) -> None:
    """A race that had left connections unwatched: a request in some ten thousand was never answered."""
    server = start("threadapps:app", "-w", "1", "--threads", "3", expect=FAILS)

    def ask(number: int) -> None:
        chance = random.Random(number)
        client = socket.create_connection(server.address, timeout=5)
        for _ in range(900):
            path, body = chance.choice([("/who", b"wsgiserv"), ("/sleep?0.0003", b"slept"), ("/sleep?0.002", b"slept")])
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert body in answer
            if chance.random() < 0.01:
                client.close()
                client = socket.create_connection(server.address, timeout=5)
        client.close()

    together(6, ask)


def test_threads_with_sync_selects_the_class(start: Start) -> None:
    server = start("threadapps:app", "-w", "1", "--threads", "2", worker_class="sync")
    meet(server, 2)


def test_a_worker_whose_threads_all_hang_is_silent(start: Start, connect: Connect) -> None:
    """It serves nobody: `timeout` counts. Its report has all requests, each with where it is."""
    server = start(
        *("threadapps:app", "-w", "1", "--threads", "2", "-t", "1"),
        expect=(r"\[(?:ERROR|CRITICAL)\]|Traceback|in flight|File \"",),
    )
    meet(server, 2)
    old = server.workers()
    hung = [connect(server.address) for _ in range(2)]
    for client in hung:
        client.request("/sleep?30")
    server.wait_for_log(r"has not responded for 1 s \(timeout\)")
    found = server.wait_for_log(r"in flight: \"GET /sleep\?30 HTTP/1\.1\".*in wsgiserv-request-\d:")
    assert found
    server.wait_for_log(r"threadapps\.py\", line \d+, in _sleep")
    wait_until(lambda: server.workers() and server.workers() != old, "a successor")
    with RawClient(server.address) as client:
        assert client.get("/who").status == 200


def test_one_thread_that_makes_progress_is_a_sign_of_life(start: Start, connect: Connect) -> None:
    server = start("threadapps:app", "-w", "1", "--threads", "2", "-t", "1")
    streams = [connect(server.address) for _ in range(2)]
    for client in streams:
        client.request("/stream?25")
    for client in streams:
        assert client.read_response().body == b"x" * 25


def test_a_thread_that_does_not_come_back_is_replaced(start: Start) -> None:
    server = start(
        *("threadapps:app", "-w", "1", "--threads", "2", "--request-timeout", "0.3"), expect=(*FAILS, r"File \"")
    )
    with RawClient(server.address) as client:
        assert client.get("/who").status == 200
        before = server.workers()
        assert client.get("/deaf?4").status == 504
    server.wait_for_log("does not come back from its overdue request: another thread takes its place")
    ready = [RawClient(server.address) for _ in range(2)]
    for client in ready:
        client.request("/meet?2")
    for client in ready:
        with client:
            assert client.read_response().text == "met", "two threads are free again"
    assert server.workers() == before
