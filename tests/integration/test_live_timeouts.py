"""The timeouts, in every worker class: 408 where a response is owed, silence where none is, one line in the log."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from rawclient import RawClient, Truncated
from server import Connect, Server, Start, wait_until

ONE_SECOND = (
    *("--header-timeout", "1", "--body-timeout", "1", "--send-timeout", "1", "--keep-alive", "1"),
    *("-w", "1"),
)


class Hasty(NamedTuple):
    """A shared server, and where in its log the test began."""

    server: Server
    before: int

    @property
    def address(self) -> tuple[str, int]:
        address: tuple[str, int] = self.server.address
        return address


@pytest.fixture
def hasty(shared_servers: Start) -> Iterator[Hasty]:
    """All timeouts of the shared server are one second."""
    server = shared_servers("limitapps:app", *ONE_SECOND, expect=(r"\[WARNING\].*127\.0\.0\.1",))
    with RawClient(server.address) as client:
        assert client.get("/").status == 200  # it is up: the clients' time is not the start's
    before = len(server.log.lines)
    yield Hasty(server, before)
    server.check(before)


def drip(clients: list[RawClient], byte: bytes, every_s: float, longest_s: float) -> list[RawClient]:
    """Send a byte to all again and again; return those that got an answer, in order, when all have or time is up."""
    answered: list[RawClient] = []
    end = time.monotonic() + longest_s
    while len(answered) < len(clients) and time.monotonic() < end:
        waiting = [client for client in clients if client not in answered]
        ready = select.select([client.sock for client in waiting], [], [], every_s)[0]
        for client in waiting:
            if client.sock in ready:
                answered.append(client)
            else:
                client.offer(byte)
    return answered


def warnings(hasty: Hasty, pattern: str) -> list[str]:
    return [line for line in hasty.server.log.lines[hasty.before :] if "[WARNING]" in line and pattern in line]


def test_slow_senders_get_408_once(hasty: Hasty, connect: Connect) -> None:
    """A drip is no progress: the head has a time in all, the body a rate. The chunked body is no exception."""
    begun = time.monotonic()
    head, body, chunked = (connect(hasty.address) for _ in range(3))
    head.send(b"GET / HTTP/1.1\r\nHost: test\r\nX-A: ")
    body.send(b"POST /where HTTP/1.1\r\nHost: test\r\nContent-Length: 9999\r\n\r\n")
    chunked.send(b"POST /where HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n")
    clients = [head, body, chunked]
    assert len(drip(clients, b"x", 0.2, 5.0)) == 3
    assert 0.8 < time.monotonic() - begun < 4.0
    for client in clients:
        response = client.read_response()
        assert (response.status, response.closes) == (408, True)
        client.expect_close()
    wait_until(lambda: len(warnings(hasty, "refused with 408")) >= 3, "the warnings are in the log")
    assert len(warnings(hasty, "refused with 408")) == 3
    assert len(warnings(hasty, "header_timeout")) == 1


def test_the_idle_are_closed_silently(hasty: Hasty, connect: Connect) -> None:
    begun = time.monotonic()
    silent, kept, blank = (connect(hasty.address) for _ in range(3))
    assert kept.get("/").status == 200
    blank.send(b"\r\n")
    for client in (silent, kept, blank):
        client.expect_close()
    assert 0.8 < time.monotonic() - begun < 4.0
    assert not warnings(hasty, "")


def test_a_second_head_has_header_timeout_not_keepalive(start: Start, connect: Connect) -> None:
    server = start("limitapps:app", "--header-timeout", "1", expect=(r"\[WARNING\].*header_timeout",))
    client = connect(server.address)
    assert client.get("/").status == 200
    client.send(b"GET / HT")
    begun = time.monotonic()
    assert client.read_response().status == 408
    assert time.monotonic() - begun < 4.0


def test_one_who_reads_nothing_is_reset(hasty: Hasty, connect: Connect) -> None:
    client = connect(hasty.address)
    client.request("/big?size=50003968")
    wait_until(lambda: warnings(hasty, "send_timeout"), "the reset", 5.0)
    with pytest.raises((ConnectionResetError, Truncated)):
        client.read_response()
    assert len(warnings(hasty, "send_timeout")) == 1
    assert connect(hasty.address).get("/").status == 200


def test_progress_keeps_a_body_and_a_reader_alive(start: Start, connect: Connect) -> None:
    """Without a least rate, body_timeout and send_timeout are of progress, not of the whole."""
    server = start("limitapps:app", *ONE_SECOND, "--body-min-rate", "0")
    sender, reader = connect(server.address), connect(server.address)
    sender.send(b"POST /where HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n")
    reader.request("/big?size=20971520")
    taken = 0
    for _ in range(9):  # 1.8 s
        assert not select.select([sender.sock], [], [], 0.2)[0]
        sender.send(b"x")
        taken += len(reader.sock.recv(1 << 19))
    assert sender.read_response().status == 200
    while taken < 20971520:
        data = reader.sock.recv(1 << 20)
        assert data
        taken += len(data)


def test_a_request_that_came_in_time_is_not_timed_out_while_it_waits(start: Start, connect: Connect) -> None:
    """Its thread is busy for longer than every timeout: that is not the client's fault."""
    server = start("limitapps:app", *ONE_SECOND, "--threads", "2")
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    clients = [connect(server.address) for _ in range(4)]
    for client in clients:
        client.request("/sleep?s=1.2")
    assert [client.read_response().status for client in clients] == [200] * 4


# The worker's own


def test_a_timeout_below_a_second_kills_no_healthy_worker(start_unclassed: Start) -> None:
    """Neither one that idles, whose loop sleeps, nor one whose thread leads from request to request."""
    servers = [
        start_unclassed("apps:app", "-t", "0.45", *args, worker_class=name)
        for name, args in (("sync", ()), ("threads", ()), ("gevent", ()), ("threads", ()), ("sync", ("--preload",)))
    ]
    for server in servers:
        server.wait_for_log("ready")
    before = [server.workers() for server in servers]
    with RawClient(servers[3].address) as client:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert client.get("/").status == 200
    assert [server.workers() for server in servers] == before
    for server in servers:
        assert "silent" not in server.log.text
