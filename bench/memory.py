"""Memory of a worker over many requests: nothing may grow with their number.

    python -m bench.memory [--requests 500000] [--settle 20000] [-k sync -k threads -k gevent]

For each worker class: one worker with the hello application, `settle` requests, its resident memory, then the rest, and
its resident memory again. Four connections with pipelined requests: most repeat themselves, as browsers do; one in
ten has a target and a header never seen before, and one in twenty a body, so that caches turn over. Exits 1
when a worker has grown by more than 2 MB. Linux (/proc) only.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
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
            requests[place] = b"GET /item/%d HTTP/1.1\r\nHost: bench\r\nX-Unique: %d\r\n\r\n" % (
                unique,
                unique,
            )
        for place in range(5, BATCH, 20):
            requests[place] = b"POST /form HTTP/1.1\r\nHost: bench\r\nContent-Length: 10\r\n\r\na=1234&b=5"
        yield b"".join(requests)


def ask(address: tuple[str, int], total: int) -> None:
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
            while not tail.endswith(b"wsgiserv\n"):  # the last body
                tail = (tail + client.recv(1 << 16))[-12:]
    finally:
        for client in clients:
            client.close()


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def worker_of(master: int) -> int:
    """Return the process id of the only worker."""
    return int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])


def measure(worker_class: str, settle: int, requests: int) -> tuple[int, int]:
    """Return a worker's resident memory in KiB after ``settle`` requests and after ``requests``."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        fd = listener.fileno()
        command = [
            sys.executable,
            "-m",
            "wsgiserv",
            "-k",
            worker_class,
            "-w",
            "1",
            "-b",
            f"fd://{fd}",
            "hello:app",
        ]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        master = subprocess.Popen(
            command, cwd=ROOT / "examples", env=environ, pass_fds=[fd], stderr=subprocess.DEVNULL
        )
        try:
            address = listener.getsockname()
            ask(address, settle)
            worker = worker_of(master.pid)
            first = resident_kib(worker)
            ask(address, requests - settle)
            last = resident_kib(worker)
            if worker_of(master.pid) != worker:
                raise RuntimeError("the worker was replaced on the way")
        finally:
            master.send_signal(signal.SIGTERM)
            master.wait(timeout=40)
    return first, last


def main() -> int:
    """Measure and print one Markdown table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500_000, help="in all")
    parser.add_argument("--settle", type=int, default=20_000, help="before the first look")
    parser.add_argument("-k", dest="classes", action="append", help="a worker class; may be repeated")
    options = parser.parse_args()
    status = 0
    print(f"| class | after {options.settle:,} | after {options.requests:,} | growth |\n|---|---:|---:|---:|")
    for worker_class in options.classes or ["sync", "threads", "gevent"]:
        first, last = measure(worker_class, options.settle, options.requests)
        print(f"| {worker_class} | {first:,} KiB | {last:,} KiB | {last - first:+,} KiB |", flush=True)
        if last - first > ALLOWED_KIB:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
