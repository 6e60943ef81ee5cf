"""One connection's fault costs that connection: it is logged once, and the loop goes on (issue 12, 4)."""

from __future__ import annotations

import signal
import time

import pytest
from rawclient import RawClient
from server import Server, Start, wait_until

_FAULT = (r"\[ERROR\]|Traceback|\[WARNING\]",)
_ARGS = ("-w", "1", "--threads", "2", "--timeout", "20", "--keep-alive", "30")


def begin(start: Start, faults: str, *more: str) -> Server:
    """Start a server with planted faults."""
    return start("faultyapps:app", *_ARGS, *more, env={"FAULTS": faults}, expect=_FAULT)


def ended(client: RawClient) -> None:
    """Wait for the end of a connection, in order or by a reset."""
    try:
        while client.sock.recv(1 << 20):
            pass
    except ConnectionError:
        pass


def faults_said(server: Server) -> int:
    """Return how many tracebacks end with a planted fault."""
    return sum(1 for line in server.log.lines if line.startswith(("faultyapps.Planted", "faultyapps.Exits")))


def assert_unhurt(server: Server, workers: list[int], *others: RawClient) -> None:
    """The same worker goes on, with its connections, at once, and retires in good order."""
    began = time.monotonic()
    for client in others:
        assert client.get("/").text == "done"
    with RawClient(server.address) as client:
        assert client.get("/").text == "done"
    assert time.monotonic() - began < 10, "nobody waits for a timeout"
    assert server.workers() == workers
    assert "inside a handler" not in server.log.text


@pytest.fixture
def bad_request() -> bytes:
    """A refusal of 40 bytes."""
    return b"GET / HTTP/1.1\r\nHost : a\r\nX: 12345678\r\n\r\n"


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_log_filter_that_raises_costs_no_more_than_the_bad_request(
    start: Start, bad_request: bytes, preload: bool
) -> None:
    server = begin(start, "filter", *(["--preload"] if preload else []))
    with RawClient(server.address) as other:
        assert other.get("/").text == "done"
        workers = server.workers()
        for _ in range(15):
            with RawClient(server.address) as client:
                client.offer(bad_request)
                ended(client)
        assert_unhurt(server, workers, other)


@pytest.mark.parametrize("target", ["/settle", "/leave"])
def test_a_fault_behind_the_application_costs_its_connection(start: Start, target: str) -> None:
    server = begin(start, "settle")
    with RawClient(server.address) as other:
        assert other.get("/").text == "done"
        workers = server.workers()
        for number in range(1, 4):
            with RawClient(server.address) as client:
                client.request(target, headers="Connection: close\r\n")  # else the end of a request is in place
                ended(client)
            wait_until(lambda number=number: faults_said(server) == number, "it is said, once each")
        assert_unhurt(server, workers, other)


@pytest.mark.parametrize(("fault", "target"), [("flush", "/big"), ("receive", "/kept"), ("expire", "/kept")])
def test_a_fault_at_an_event_costs_its_connection(start: Start, fault: str, target: str) -> None:
    server = begin(start, fault, *(["--keep-alive", "1"] if fault == "expire" else []))
    with RawClient(server.address) as other, RawClient(server.address) as client:
        assert other.get("/").text == "done"
        workers = server.workers()
        client.request(target)
        if fault == "flush":
            # Read on when the call has ended: the helper of sync sends meanwhile, and could send everything.
            client.sock.recv(1)
            assert other.get("/").text == "done"
        else:
            assert client.read_response().text == "done"
        if fault == "receive":
            client.request("/")
        ended(client)
        wait_until(lambda: faults_said(server) == 1, "it is said once")
        assert_unhurt(server, workers, *([] if fault == "expire" else [other]))


def test_a_fault_while_the_queue_drains_costs_its_connection(start: Start) -> None:
    """In sync a helper thread sends while the application sleeps; in the others the loop does."""
    server = begin(start, "drain")
    with RawClient(server.address) as client:
        with RawClient(server.address) as other:
            assert other.get("/").text == "done"
        workers = server.workers()
        client.request("/big/slow")
        ended(client)
        wait_until(lambda: faults_said(server) == 1, "it is said once")
        assert_unhurt(server, workers)
    assert faults_said(server) == 1


@pytest.mark.parametrize("fault", ["accept", "tick"])
def test_a_fault_of_nobody_costs_nobody(start: Start, fault: str) -> None:
    server = begin(start, fault)
    said = {"accept": 2, "tick": 3}[fault]
    with RawClient(server.address) as client:
        assert client.get("/").text == "done"
        workers = server.workers()
        with RawClient(server.address) as another:
            assert another.get("/").text == "done"
        wait_until(lambda: faults_said(server) == said, "it is said each time")
        assert_unhurt(server, workers, client)


def test_a_fault_while_leaving_loses_no_request_of_others(start: Start) -> None:
    server = begin(start, "retire", "--threads", "4")
    with RawClient(server.address) as kept, RawClient(server.address) as busy:
        assert kept.get("/kept").text == "done"
        busy.request("/sleep")
        server.wait_for_log("^sleeping")
        assert server.stop(signal.SIGTERM) == 0
        assert busy.read_response().text == "done"
