"""What slow requests cost the trivial ones, in a worker with more threads than there are slow ones at once.

    python -m bench.mixed [--seconds 10] [--rounds 3]

Sixteen threads. Twelve clients ask for a page that takes 500 ms, again and again; for each such request one is made
for a page that takes no time: half of the requests are slow, and four threads are always free. Prints p50, p99 and the
slowest of the trivial ones, beside gunicorn's gthread. All connections are kept. One worker pinned to the first
core, the clients to the second. Exits 1 when wsgiserv's p99 is 20 ms or more. Needs gunicorn (extra ``test``).
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import threading
import time
from typing import NamedTuple

from bench.oneworker import percentile
from bench.peerserver import PeerServer

THREADS = 16
SLOW_CLIENTS = 12
QUICK_CLIENTS = 6
SLOW_MS = 500
ALLOWED_P99_S = 0.020

SERVERS = {
    "wsgiserv threads": ["wsgiserv", "-k", "threads"],
    "gunicorn gthread": ["gunicorn", "-k", "gthread"],
}


class Mixed(NamedTuple):
    """The seconds that each request took, and how many found their connection closed and made another."""

    slow: list[float]
    quick: list[float]
    closed: list[int]


class Client:
    """One kept connection. ``request`` is what it asks, in bytes."""

    def __init__(self, port: int, target: str, closed: list[int]) -> None:
        self._address = ("127.0.0.1", port)
        self.request = f"GET {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        self._closed = closed
        self._sock = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def ask(self) -> float:
        """Make a request and return how long it took, in seconds."""
        begun = time.perf_counter()
        answer = self._exchange()
        if not answer:  # closed by the server between two requests
            self._closed.append(1)
            self._sock.close()
            self._sock = self._connect()
            answer = self._exchange()
        took = time.perf_counter() - begun
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answered with {answer[:100]!r}")
        return took

    def _exchange(self) -> bytes:
        answer = b""
        try:
            self._sock.sendall(self.request)
            while not answer.endswith(b"hello\n") and (data := self._sock.recv(65536)):
                answer += data
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


def load(port: int, seconds: float) -> Mixed:
    """Be all the clients for so long."""
    found = Mixed([], [], [])
    failures: list[BaseException] = []
    turns = threading.Semaphore(0)  # one for each slow request that begins
    end = time.monotonic() + seconds
    dice = random.Random(12)

    def be(target: str, ask_often: bool, pauses: list[float]) -> None:
        try:
            client = Client(port, target, found.closed)
            number = 0
            while time.monotonic() < end:
                if ask_often:
                    time.sleep(pauses[number % len(pauses)])
                    number += 1
                    turns.release()
                    found.slow.append(client.ask())
                elif turns.acquire(timeout=0.1):
                    found.quick.append(client.ask())
            client.close()
        except BaseException as error:
            failures.append(error)

    # The first pause spreads the slow clients over the time of one request; the others keep them from falling in step.
    clients = [
        threading.Thread(
            target=be,
            args=(
                f"/wait?{SLOW_MS}",
                True,
                [SLOW_MS / 1000 * number / SLOW_CLIENTS, *(dice.uniform(0, 0.02) for _ in range(999))],
            ),
        )
        for number in range(SLOW_CLIENTS)
    ]
    clients += [threading.Thread(target=be, args=("/", False, [])) for _ in range(QUICK_CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    if failures:
        raise failures[0]
    return found


def main() -> int:
    """Measure and print one Markdown table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="per server and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = {name: Mixed([], [], []) for name in SERVERS}
    for _ in range(options.rounds):
        for name, arguments in SERVERS.items():
            rest = ["--threads", str(THREADS), "--keep-alive", "75", "-w", "1", "-b", "127.0.0.1:{port}"]
            with PeerServer(["-m", *arguments, *rest, "bench.waitingapp:app"]) as server:
                part = load(server.port, options.seconds)
            found[name].slow.extend(part.slow)
            found[name].quick.extend(part.quick)
            found[name].closed.extend(part.closed)
    print(f"{THREADS} threads, up to {SLOW_CLIENTS} requests of {SLOW_MS} ms at once; the trivial requests:")
    print("| server | slow ones | trivial ones | p50 | p99 | slowest | connections closed |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, mixed in found.items():
        quick = sorted(mixed.quick)
        figures = (percentile(quick, 0.5), percentile(quick, 0.99), quick[-1])
        print(
            f"| {name} | {len(mixed.slow)} | {len(quick)} | "
            + " | ".join(f"{value * 1000:.2f} ms" for value in figures)
            + f" | {len(mixed.closed)} |"
        )
    return 0 if percentile(sorted(found["wsgiserv threads"].quick), 0.99) < ALLOWED_P99_S else 1


if __name__ == "__main__":
    sys.exit(main())
