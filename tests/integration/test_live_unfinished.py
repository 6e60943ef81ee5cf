"""A flood of requests that never become whole shuts nobody out: they give way, the oldest first."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Connect, Server, Start

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "
BODY = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\na"
PLACES = 20


def start_small(start: Start) -> Server:
    """A worker with few places; nothing here times out within the test."""
    return start(
        "apps:app",
        *("--worker-connections", str(PLACES)),
        *("--header-timeout", "60", "--body-timeout", "60"),
        expect=("",),
    )


def is_closed(client: RawClient) -> bool:
    """Whether the server has closed a connection of which nothing was asked."""
    client.sock.setblocking(False)
    try:
        return client.sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        client.sock.settimeout(client.deadline_s)


@pytest.mark.parametrize("beginning", [HEAD, b"", BODY], ids=["head", "nothing", "body"])
def test_a_new_client_is_answered_among_slow_senders(start: Start, connect: Connect, beginning: bytes) -> None:
    """Five times as many as there are places."""
    server = start_small(start)
    slow = [connect(server.address) for _ in range(5 * PLACES)]
    for client in slow:
        client.offer(beginning)
    began = time.monotonic()
    assert connect(server.address).get("/").status == 200
    assert time.monotonic() - began < 10


def test_the_oldest_unfinished_head_gives_way(start: Start, connect: Connect) -> None:
    """One that came late, and gets on, is not cut off."""
    server = start_small(start)
    slow = [connect(server.address) for _ in range(PLACES - 1)]
    for client in slow:
        client.send(HEAD)
    time.sleep(1.0)  # they are old now
    late = connect(server.address)
    late.send(HEAD)
    fresh = [connect(server.address) for _ in range(3)]
    for client in fresh:
        assert client.get("/").status == 200
    assert 1 <= sum(map(is_closed, slow)) <= 3
    late.send(b"x\r\n\r\n")
    assert late.read_response().status == 200


def test_an_upload_that_gets_on_is_not_cut_off(start: Start, connect: Connect) -> None:
    """It is the oldest of all."""
    server = start_small(start)
    upload = connect(server.address)
    upload.send(BODY)
    slow = [connect(server.address) for _ in range(3 * PLACES)]
    for client in slow:
        client.offer(HEAD)
    sent = 1
    for _ in range(10):  # for longer than an unfinished head may take when others wait
        upload.send(b"a" * 2000)
        sent += 2000
        time.sleep(0.2)
    assert connect(server.address).get("/").status == 200
    upload.send(b"a" * (100000 - sent))
    assert upload.read_response().status == 200


def test_descriptors_of_unfinished_heads_are_given_up(start: Start, connect: Connect, tmp_path: Path) -> None:
    server = start(
        "apps:app",
        *("--header-timeout", "60"),
        wrap=("sh", "-c", 'ulimit -n 60; exec "$@"', "sh"),
        expect=("out of descriptors",),
    )
    slow = [connect(server.address) for _ in range(80)]
    for client in slow:
        client.offer(HEAD)
    assert connect(server.address).get("/").status == 200
