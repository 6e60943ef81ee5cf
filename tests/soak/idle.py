"""Measure the memory of an idle connection: connected and silent, or kept alive after a request.

    python -m tests.soak idle [--connections 10000] [-k sync,threads,gevent]

For each class: one worker and two runs, each with a fresh server. ``silent`` connects and
sends nothing, ``served`` makes one request on each connection first. Compares the resident memory (VmRSS) of the worker
before and with the connections; the kernel's memory for the sockets is not in it. The clients have a process of their
own. Exits 1 when a connection costs more than 8 kB. Linux only.
"""

from __future__ import annotations

import multiprocessing
import resource
import socket
import sys
import time
from multiprocessing.connection import Connection

from bench.table import Table, options_of
from tests.soak.clients import OneWorker

ALLOWED_BYTES = 8000
LONGEST_S = 120
# From one address to one port; beyond it the next address of the loopback network is the source.
PER_ADDRESS = 20_000
# The worker's other descriptors.
SPARE_DESCRIPTORS = 200

_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: bench\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101\r\n"
    b"Accept: text/html,application/xhtml+xml\r\nCookie: session=0123456789abcdef; theme=dark\r\n\r\n"
)


def allow_descriptors(number: int) -> None:
    """Raise the limit of open files of this process and its children; exit where that is forbidden."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), max(number, hard)))
    except (ValueError, OSError):
        sys.exit(f"{number} descriptors are needed, {hard} allowed: fewer --connections, or ulimit -n {number}")


def connect(port: int, number: int, serve: bool, pipe: Connection) -> None:
    """Open the connections, say so, and hold them until the other end has spoken; then send how many are open."""
    clients = []
    deadline = time.monotonic() + LONGEST_S
    for index in range(number):
        source = (f"127.0.0.{2 + index // PER_ADDRESS}", 0)
        client = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=source)
        clients.append(client)
        if serve:
            client.sendall(_REQUEST)
            answer = client.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200") or b"Connection: close" in answer:
                sys.exit(f"connection {index} is answered with {answer[:300]!r}")
        if time.monotonic() > deadline:
            sys.exit(f"only {index} of {number} connections within {LONGEST_S} s")
    pipe.send(number)
    pipe.recv()
    pipe.send(sum(map(_is_open, clients)))


def _is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except OSError as error:
        return isinstance(error, BlockingIOError)


def measure(worker_class: str, number: int, serve: bool) -> tuple[int, int]:
    """Return a worker's resident memory in KiB before the connections and with them."""
    settings = ["--keep-alive", "600", "--header-timeout", "600", "--worker-connections", str(number + 50)]
    with OneWorker(worker_class, *settings) as server:
        before = server.memory_kib("VmRSS")
        pipe, theirs = multiprocessing.Pipe()
        clients = multiprocessing.Process(target=connect, args=(server.port, number, serve, theirs), daemon=True)
        clients.start()
        theirs.close()
        pipe.recv()  # EOFError when the clients have exited
        time.sleep(2.0)  # the worker accepts in batches, and its sweep of deadlines has been over all of them
        after = server.memory_kib("VmRSS")
        pipe.send("count")
        if (still := pipe.recv()) != number:
            raise RuntimeError(f"the server has closed {number - still} of {number} idle connections")
        clients.join(30)
    return before, after


def main() -> int:
    """Measure and print one table; return the exit status."""
    options = options_of(__doc__, choose=("classes",), connections=10_000)
    number = options.connections
    allow_descriptors(number + SPARE_DESCRIPTORS)
    failed = False
    table = Table("class", "connections", "before", "with them", "each")
    for worker_class in options.classes:
        for how in ("silent", "served"):
            before, after = measure(worker_class, number, how == "served")
            each = (after - before) * 1024 // number
            table.row(worker_class, f"{number:,} {how}", f"{before:,} KiB", f"{after:,} KiB", f"{each:,} B")
            failed |= each > ALLOWED_BYTES
    return int(failed)
