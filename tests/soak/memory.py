"""Measure the memory of a worker over many requests: nothing may grow with their number.

    python -m tests.soak memory [--requests 500000] [--settle 20000] [-k sync,threads,gevent]

For each worker class: one worker, `settle` requests, its resident memory, then the rest, and
its resident memory again. Four connections with pipelined requests: most repeat themselves, as browsers do; one in
ten has a target and a header never seen before, and one in twenty a body, so that caches turn over. Exits 1
when a worker has grown by more than 2 MB. Linux (/proc) only.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from typing import Any

from bench.servers import workers_of
from bench.table import Table, options_of
from tests.soak.clients import OneWorker

CONNECTIONS = 4
BATCH = 100
ALLOWED_KIB = 2048
LONGEST_S = 300

_PLAIN = (
    b"GET / HTTP/1.1\r\nHost: bench\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101\r\n"
    b"Accept: text/html,application/xhtml+xml\r\nCookie: session=0123456789abcdef; theme=dark\r\n\r\n"
)
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def batches(number: int) -> Iterator[bytes]:
    """Yield ``number`` batches of `BATCH` requests."""
    for batch in range(number):
        requests = [_PLAIN] * BATCH
        for place in range(0, BATCH, 10):
            unique = batch * BATCH + place
            requests[place] = b"GET /item/%d HTTP/1.1\r\nHost: bench\r\nX-Unique: %d\r\n\r\n" % (unique, unique)
        for place in range(5, BATCH, 20):
            requests[place] = b"POST /form HTTP/1.1\r\nHost: bench\r\nContent-Length: 10\r\n\r\na=1234&b=5"
        yield b"".join(requests)


def ask(address: Any, total: int) -> None:
    """Make ``total`` requests over `CONNECTIONS` connections; raise at the first that is not answered with 200."""
    clients = [socket.create_connection(address, timeout=30) for _ in range(CONNECTIONS)]
    deadline = time.monotonic() + LONGEST_S
    try:
        for number, data in enumerate(batches(total // BATCH)):
            client = clients[number % CONNECTIONS]
            client.sendall(data)
            answered, tail = 0, b""
            while answered < BATCH:
                received = client.recv(1 << 18)
                if not received or time.monotonic() > deadline:
                    raise RuntimeError(f"{answered} of {BATCH} requests were answered")
                # Whole status lines only: what may be the beginning of one waits for the next piece.
                text = tail + received
                statuses = list(_STATUS.finditer(text))
                if any(found[1] != b"200" for found in statuses):
                    raise RuntimeError(f"a request failed: {text[:200]!r}")
                answered += len(statuses)
                tail = text[statuses[-1].end() if statuses else 0 :][-12:]
            while not tail.endswith(b"hello\n"):  # the last body
                tail = (tail + client.recv(1 << 16))[-12:]
    finally:
        for client in clients:
            client.close()


def main() -> int:
    """Measure and print one table; return the exit status."""
    options = options_of(__doc__, choose=("classes",), requests=500_000, settle=20_000)
    failed = False
    table = Table("class", f"after {options.settle:,}", f"after {options.requests:,}", "growth")
    for worker_class in options.classes:
        with OneWorker(worker_class) as server:
            ask(server.address, options.settle)
            worker, first = workers_of(server.master), server.memory_kib("VmRSS")
            ask(server.address, options.requests - options.settle)
            last = server.memory_kib("VmRSS")
            if workers_of(server.master) != worker:
                raise RuntimeError("the worker was replaced on the way")
        table.row(worker_class, f"{first:,} KiB", f"{last:,} KiB", f"{last - first:+,} KiB")
        failed |= last - first > ALLOWED_KIB
    return int(failed)
