"""The queue of a slow reader: order, bounds of memory, the spool file, what is let go of."""

from __future__ import annotations

import os
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsgiserv.net.send_queue import MEMORY_BYTES, WORKER_MEMORY_BYTES, SendQueue
from wsgiserv.wsgi.budget import MemoryBudget

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, client = socket.socketpair()
    ours.setblocking(False)
    client.setblocking(False)
    with ours, client:
        yield ours, client


def drain(outbox: SendQueue, pair: Pair) -> bytes:
    ours, client = pair
    got = bytearray()
    while outbox:
        outbox.flush(ours)
        try:
            while piece := client.recv(1 << 20):
                got += piece
        except BlockingIOError:
            pass
    return bytes(got)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_bytes_files_and_spool_leave_in_order(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    outbox = SendQueue(str(tmp_path), MemoryBudget(WORKER_MEMORY_BYTES))
    before = open_files()
    outbox.add(b"first ")
    with path.open("rb") as file:
        outbox.add_file(file.fileno(), 2, 5)
    large = os.urandom(MEMORY_BYTES)
    assert outbox.add(large)
    assert outbox.add(b" last")
    assert list(tmp_path.iterdir()) == [path]  # the spool file has no name
    assert drain(outbox, pair) == b"first 23456" + large + b" last"
    assert open_files() == before


def test_the_memory_of_one_queue_and_of_all_is_bounded(pair: Pair, tmp_path: Path) -> None:
    shared = MemoryBudget(100)
    one, two = SendQueue(str(tmp_path), shared), SendQueue(str(tmp_path), shared)
    before = open_files()
    one.add(b"a" * 60)
    assert open_files() == before  # in memory
    two.add(b"b" * 60)
    assert open_files() == before + 1  # no room beside the first: spooled
    assert drain(two, pair) == b"b" * 60
    assert drain(one, pair) == b"a" * 60
    assert shared.take(100)  # all has been given back
    shared.give_back(100)
    one.add(b"c" * 60)
    one.clear()
    assert shared.take(100)


def test_a_disk_that_takes_nothing_makes_the_producer_wait(pair: Pair, tmp_path: Path) -> None:
    outbox = SendQueue(str(tmp_path / "missing"), MemoryBudget(100))
    assert outbox.add(b"a" * 90)
    assert not outbox.add(b"b" * 90)
    assert drain(outbox, pair) == b"a" * 90 + b"b" * 90
    assert outbox.add(b"c" * 90)


def test_a_file_that_shrinks_is_an_error_and_not_a_spin(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    outbox = SendQueue(None, MemoryBudget(WORKER_MEMORY_BYTES))
    with path.open("rb") as file:
        outbox.add_file(file.fileno(), 0, 20)
    with pytest.raises(OSError, match="shorter"):
        drain(outbox, pair)
    outbox.clear()


def test_the_tail_of_a_large_response_does_not_keep_the_whole_in_memory() -> None:
    """What is counted must be what is held: 64 tails of 5 MB responses once held 320 MB."""

    class Body(bytearray):
        """Bytes that can be watched."""

    body = Body(5_000_000)
    gone = weakref.ref(body)
    outbox = SendQueue(None, MemoryBudget(WORKER_MEMORY_BYTES))
    assert outbox.add(memoryview(body)[-1000:])
    del body
    assert gone() is None
    outbox.clear()
