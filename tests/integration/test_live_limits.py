"""The limits at their borders: spooled bodies, places for connections. (Heads and sizes: test_live_refusals.)"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from limitapps import open_descriptors
from rawclient import RawClient, Truncated, timed_get
from server import Connect, Server, Start, wait_until


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


@pytest.fixture
def spooling(shared_servers: Start, spool: Path) -> Iterator[Server]:
    """The shared server that spools bodies early."""
    found = shared_servers(
        "limitapps:app",
        *("-w", "1", "--body-buffer-size", "1000", "--spool-dir", str(spool)),
        *("--limit-request-body", "100000"),
        expect=(r"\[WARNING\].*refused with 413",),
    )
    before = len(found.log.lines)
    yield found
    found.check(before)


def framed(body: bytes, framing: str) -> bytes:
    head = b"POST /where HTTP/1.1\r\nHost: test\r\n"
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def test_a_body_is_spooled_above_the_buffers_size(spooling: Server, spool: Path, connect: Connect) -> None:
    client = connect(spooling.address)
    for size, spooled in ((999, False), (1000, False), (1001, True), (100_000, True)):
        for framing in ("length", "chunked"):
            body = bytes(number % 251 for number in range(size))
            client.send(framed(body, framing))
            digest, *files = client.read_response().text.split("\n")
            assert digest == hashlib.sha256(body).hexdigest()
            assert [name.startswith(str(spool)) for name in files] == [True] * spooled, size
    assert not list(spool.iterdir()), "a spool file has a name"


def test_the_spool_file_goes_with_its_client(spooling: Server, spool: Path) -> None:
    def spool_files() -> list[str]:
        names = (name for pid in spooling.workers() for name in open_descriptors(pid))
        return [name for name in names if name.startswith(str(spool))]

    client = RawClient(spooling.address)
    client.send(framed(b"x" * 50_000, "length")[:-1])
    wait_until(spool_files, "a spool file")
    client.reset()
    wait_until(lambda: not spool_files(), "no spool file")
    with RawClient(spooling.address) as client:
        client.send(framed(b"x" * 50_000, "length"))
        assert client.read_response().status == 200
    wait_until(lambda: not spool_files(), "no spool file")


def test_a_body_above_the_limit_is_413_at_once(spooling: Server, connect: Connect) -> None:
    """By its length before a byte and without a 100; chunked, as soon as the sum is above it."""
    for framing in ("length", "chunked"):
        client = connect(spooling.address)
        head, _, rest = framed(b"x" * 100_001, framing).partition(b"\r\n\r\n")
        client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        if framing == "chunked":
            assert client.read_interim() == 100
            client.offer(rest[: rest.index(b"\r\n") + 2])
        response = client.read_response()
        assert (response.status, response.closes, response.interim) == (413, True, [])
        client.expect_close()


def test_clients_beyond_worker_connections_wait_in_the_backlog(start: Start, connect: Connect) -> None:
    server = start("limitapps:app", "-w", "1", "--worker-connections", "5")
    holders = [connect(server.address) for _ in range(5)]
    for holder in holders:
        holder.send(b"GET / HTTP/1.1\r\n")
    (worker,) = wait_until(server.workers, "the worker")
    wait_until(lambda: sum(name.startswith("socket:") for name in open_descriptors(worker)) >= 5, "five connections")
    sixth = connect(server.address)
    sixth.request("/")
    holders[0].send(b"Host: test\r\n\r\n")
    assert holders[0].read_response().status == 200
    assert sixth.read_response().status == 200


def test_a_flood_beyond_worker_connections_is_served_in_the_end(start: Start) -> None:
    server = start("limitapps:app", "-w", "1", "--worker-connections", "8")
    timed_get(server.address)
    statuses: list[int] = []

    def ask() -> None:
        """Three times, as any client does it: who is told so, or is cut off while he is idle, connects again."""
        answered = 0
        while answered < 3:
            with RawClient(server.address) as client:
                for number in itertools.count():
                    try:
                        response = client.get("/")
                    except (Truncated, ConnectionError):
                        if number == 0:
                            raise
                        break
                    statuses.append(response.status)
                    answered += 1
                    if response.closes or answered == 3:
                        break

    threads = [threading.Thread(target=ask) for _ in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert statuses == [200] * 360
