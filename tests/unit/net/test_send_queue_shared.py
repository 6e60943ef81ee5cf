"""The queue while it is filled and emptied at once: order, bounds that hold though it is never empty, its end."""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from wsgiserv.net import send_queue as module
from wsgiserv.net.send_queue import MEMORY_BYTES, WORKER_MEMORY_BYTES, SendQueue
from wsgiserv.wsgi.budget import MemoryBudget

Pair = tuple[socket.socket, socket.socket]
DEADLINE_S = 20.0


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, client = socket.socketpair()
    ours.setblocking(False)
    client.settimeout(DEADLINE_S)
    with ours, client:
        yield ours, client


def spooled_bytes(directory: Path) -> int:
    """Return the size of the deleted files in a directory that this process has open."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(str(directory)):
                total += os.stat(f"/proc/self/fd/{name}").st_size
        except OSError:
            continue
    return total


def test_memory_is_given_back_as_it_is_sent(pair: Pair, tmp_path: Path) -> None:
    """A stream that is always a little ahead would take the memory of the whole worker in the end."""
    ours, client = pair
    shared = MemoryBudget(WORKER_MEMORY_BYTES)
    queue = SendQueue(str(tmp_path), shared)
    piece = b"x" * 65536
    with queue.lock:
        queue.add(piece * 8)
    for _ in range(4 * WORKER_MEMORY_BYTES // len(piece) // 4):
        with queue.lock:
            queue.add(piece)
            queue.flush(ours)
        client.recv(len(piece))
        while queue.size > MEMORY_BYTES // 2:
            with queue.lock:
                queue.flush(ours)
            client.recv(len(piece))
        assert queue
    assert spooled_bytes(tmp_path) == 0
    queue.clear()
    assert shared.take(WORKER_MEMORY_BYTES)


def test_the_file_of_a_stream_that_never_ends_stays_small(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been sent does not stay on the disk, though the file is never empty."""
    monkeypatch.setattr(module, "_MOST_SENT_OF_SPOOL", 1 << 20)
    ours, client = pair
    queue = SendQueue(str(tmp_path), MemoryBudget(0))  # no memory: all goes to the disk
    sent, got, largest = sha256(), sha256(), 0
    for number in range(400):
        piece = b"%07d\n" % number * 8192
        sent.update(piece)
        with queue.lock:
            assert queue.add(piece)
            queue.flush(ours)
        largest = max(largest, spooled_bytes(tmp_path))
        while queue.size > 1 << 20:
            got.update(client.recv(65536))
            with queue.lock:
                queue.flush(ours)
    client.setblocking(False)
    while True:
        with queue.lock:
            queue.flush(ours)
        try:
            got.update(client.recv(65536))
        except BlockingIOError:
            if not queue:
                break
    assert got.digest() == sent.digest()
    assert largest < 5 << 20
    assert spooled_bytes(tmp_path) == 0


def test_small_pieces_are_joined_and_stay_in_order(pair: Pair, tmp_path: Path) -> None:
    ours, client = pair
    queue = SendQueue(str(tmp_path), MemoryBudget(WORKER_MEMORY_BYTES))
    expected = bytearray()
    with queue.lock:
        for number in range(50_000):
            piece = b"%x\r\n" % number
            expected += piece
            queue.add(piece)
            if number % 1000 == 0:
                queue.flush(ours)  # the first is half sent while more is joined to the last
    assert len(queue._items) < 20
    got = bytearray()
    while len(got) < len(expected):
        with queue.lock:
            queue.flush(ours)
        got += client.recv(1 << 20)
    assert got == expected
    assert not queue


def test_one_thread_fills_while_another_empties(pair: Pair, tmp_path: Path) -> None:
    """No byte is lost, doubled or overtaken, in memory and on disk."""
    ours, client = pair
    queue = SendQueue(str(tmp_path), MemoryBudget(3 << 20))
    chance = random.Random(12)
    pieces = [chance.randbytes(chance.choice((1, 50, 5000, 70_000, 400_000))) for _ in range(300)]
    expected = sha256(b"".join(pieces))
    size = sum(map(len, pieces))
    done = threading.Event()

    def empty() -> None:
        while not (done.is_set() and not queue):
            with queue.lock:
                queue.flush(ours)

    def read(found: list[str]) -> None:
        got, left = sha256(), size
        while left:
            data = client.recv(1 << 18)
            left -= len(data)
            got.update(data)
        found.append(got.hexdigest())

    found: list[str] = []
    threads = [threading.Thread(target=empty) for _ in range(2)]
    threads.append(threading.Thread(target=read, args=(found,)))
    for thread in threads:
        thread.start()
    for piece in pieces:
        with queue.lock:
            queue.flush(ours)
            queue.add(piece, overshoot=True)
        if queue.size > MEMORY_BYTES:
            queue.low = MEMORY_BYTES // 2
            woken = threading.Event()
            if queue.call_when_sent(woken.set):
                assert woken.wait(DEADLINE_S)
    done.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found == [expected.hexdigest()]


def test_a_broken_connection_drops_what_is_queued_and_is_told_to_each(pair: Pair, tmp_path: Path) -> None:
    ours, client = pair
    shared = MemoryBudget(WORKER_MEMORY_BYTES)
    queue = SendQueue(str(tmp_path), shared)
    woken = threading.Event()
    with queue.lock:
        queue.add(b"x" * MEMORY_BYTES)
        queue.add(b"y" * MEMORY_BYTES)  # on disk
        queue.flush(ours)
    assert queue.call_when_sent(woken.set)
    client.close()
    for _ in range(2):
        with queue.lock, pytest.raises(BrokenPipeError):
            queue.flush(ours)
    assert woken.is_set()
    assert queue  # nothing may be sent past it
    assert not queue.has_items
    assert spooled_bytes(tmp_path) == 0
    assert shared.take(WORKER_MEMORY_BYTES)
    assert not queue.call_when_sent(woken.set)
