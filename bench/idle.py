"""Memory of a worker for each connection that is idle: connected and silent, or kept alive after a request.

    python -m bench.idle [--connections 10000] [-k sync -k threads -k gevent]

For each worker class: one worker with the hello application and two runs, each with a fresh server. `silent`
connects and sends nothing, `served` makes one request on each connection first. The resident memory (``VmRSS``) of
the worker before and with the connections is compared; the kernel's memory for the sockets is not in it. The clients
are in a process of their own. Exits 1 when a connection costs more than 8 kB. Linux only.
"""

from __future__ import annotations

import argparse
import resource
import socket
import subprocess
import sys
import time
from typing import Any

from bench.oneworker import ROOT, OneWorker

ALLOWED_BYTES = 8000
LONGEST_S = 120
# So many connections from one address to one port; beyond it the next address of the loopback network is taken.
PER_ADDRESS = 20_000
# What the worker has open besides.
SPARE_DESCRIPTORS = 200

_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: bench\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101\r\n"
    b"Accept: text/html,application/xhtml+xml\r\nCookie: session=0123456789abcdef; theme=dark\r\n\r\n"
)


def allow_descriptors(number: int) -> None:
    """Raise the limit of open files of this process and its children to ``number``; exit where that is too many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (number, max(number, hard)))
        except (ValueError, OSError):
            sys.exit(
                f"{number} descriptors are needed and {hard} allowed: fewer --connections, or ulimit -n {number}"
            )


def connect(port: int, number: int, serve: bool) -> None:
    """Be the clients: open ``number`` connections, say so, and hold them until the standard input ends."""
    deadline = time.monotonic() + LONGEST_S
    clients = []
    for index in range(number):
        source = (f"127.0.0.{2 + index // PER_ADDRESS}", 0)
        client = socket.create_connection(("127.0.0.1", port), timeout=30, source_address=source)
        clients.append(client)
        if serve:
            client.sendall(_REQUEST)
            answer = client.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200") or b"Connection: close" in answer:
                sys.exit(f"connection {index} was answered with {answer[:300]!r}")
        if time.monotonic() > deadline:
            sys.exit(f"only {index} of {number} connections within {LONGEST_S} s")
    print("connected", flush=True)
    sys.stdin.read()
    open_still = sum(1 for client in clients if _is_open(client))
    print(open_still, flush=True)


def _is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def measure(worker_class: str, number: int, serve: bool) -> tuple[int, int]:
    """Return a worker's resident memory in KiB before ``number`` connections and with them."""
    settings = ["--keep-alive", "600", "--header-timeout", "600", "--worker-connections", str(number + 50)]
    with OneWorker(worker_class, *settings) as server:
        time.sleep(0.5)
        before = server.memory_kib("VmRSS")
        command = [sys.executable, "-m", "bench.idle", "--clients", str(server.address[1]), str(number)]
        clients: Any = subprocess.Popen(
            [*command, "served" if serve else "silent"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            if clients.stdout.readline() != "connected\n":
                raise RuntimeError("the clients could not connect")
            time.sleep(
                2.0
            )  # the worker accepts in batches, and its sweep of deadlines has been over all of them
            after = server.memory_kib("VmRSS")
            clients.stdin.close()
            still = int(clients.stdout.readline())
            if still != number:
                raise RuntimeError(f"the server has closed {number - still} of {number} idle connections")
        finally:
            clients.stdin.close()
            clients.wait(timeout=30)
    return before, after


def main() -> int:
    """Measure and print one Markdown table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("-k", dest="classes", action="append", help="a worker class; may be repeated")
    parser.add_argument("--clients", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients:
        port, number, how = options.clients
        connect(int(port), int(number), how == "served")
        return 0
    number = options.connections
    allow_descriptors(number + SPARE_DESCRIPTORS)
    status = 0
    print("| class | connections | before | with them | each |\n|---|---|---:|---:|---:|")
    for worker_class in options.classes or ["sync", "threads", "gevent"]:
        for how in ("silent", "served"):
            before, after = measure(worker_class, number, how == "served")
            each = (after - before) * 1024 // number
            print(
                f"| {worker_class} | {number:,} {how} | {before:,} KiB | {after:,} KiB | {each:,} B |",
                flush=True,
            )
            if each > ALLOWED_BYTES:
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
