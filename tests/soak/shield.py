"""Measure the price of slow clients for a well-behaved one: the slow-client shield.

    python -m tests.soak shield [-k sync] [--senders 2000] [--readers 200] [--seconds 10] [--work-ms 0]

One worker. First a well-behaved client alone; then with slow senders (a byte a second each, half of them heads, half
bodies) and slow readers of a 5 MB response (16 kB each 0.1 s). Prints p50 and p99 of both, their ratio, and the
worker's memory at its peak; --work-ms is CPU time of the application. Exits 1 when p99 with them is more than 3 times
that without. Linux only.
"""

from __future__ import annotations

import multiprocessing
import resource
import select
import socket
import time
from multiprocessing.synchronize import Event
from typing import Any

from bench.load import percentile
from bench.table import Table, ms, options_of
from tests.soak.clients import OneWorker, latencies

ALLOWED_RATIO = 3.0
RESPONSE_BYTES = 5_000_000
PIECE_BYTES = 16_384
_STEPS = 200  # a second: slow clients come from everywhere, not in step


def _connect(address: Any) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    client.settimeout(10)
    client.connect(address)
    return client


def _sender(address: Any, number: int) -> socket.socket:
    client = _connect(address)
    client.sendall(
        b"GET / HTTP/1.1\r\nHost: bench\r\nX-Slow: "
        if number % 2
        else b"POST /upload HTTP/1.1\r\nHost: bench\r\nContent-Length: 100000\r\n\r\n"
    )
    client.setblocking(False)
    return client


def _reader(address: Any) -> socket.socket:
    client = _connect(address)
    client.sendall(b"GET /big?%d HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n" % RESPONSE_BYTES)
    client.setblocking(False)
    return client


def be_slow(address: Any, senders: int, readers: int, ready: Event, stop: Event) -> None:
    """Run all the slow clients; one that is cut off connects again."""
    sending = [_sender(address, number) for number in range(senders)]
    reading = [_reader(address) for _ in range(readers)]
    step, next_step = 0, time.monotonic()
    while not stop.is_set():
        step += 1
        for number in range(step % _STEPS, senders, _STEPS):
            try:
                sending[number].send(b"x")
            except OSError:
                sending[number].close()
                sending[number] = _sender(address, number)
        for number in range(step % (_STEPS // 10), readers, _STEPS // 10):
            try:
                data = reading[number].recv(PIECE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                reading[number].close()
                reading[number] = _reader(address)
        if step == 2 * _STEPS:
            ready.set()
        next_step += 1 / _STEPS
        select.select([], [], [], max(0.0, next_step - time.monotonic()))


def main() -> int:
    """Measure and print; return the exit status."""
    options = options_of(__doc__, choose=("classes",), senders=2000, readers=200, seconds=10.0, work_ms=0.0)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    target = f"/work?{options.work_ms}" if options.work_ms else "/"
    connections = str(options.senders + options.readers + 100)
    failed = False
    table = Table("class", "clients", "requests", "p50", "p99", "slowest", "worker's memory")
    for worker_class in options.classes:
        with OneWorker(worker_class, "--worker-connections", connections) as server:
            alone = latencies(server.address, options.seconds, target)
            before = server.memory_kib("VmRSS")
            ready, stop = multiprocessing.Event(), multiprocessing.Event()
            clients = (server.address, options.senders, options.readers, ready, stop)
            slow = multiprocessing.Process(target=be_slow, args=clients, daemon=True)
            slow.start()
            if not ready.wait(60):
                raise RuntimeError("the slow clients were not connected within a minute")
            shielded = latencies(server.address, options.seconds, target)
            stop.set()
            peak = server.memory_kib("VmHWM")
            slow.join(10)
        for label, found, memory in (("alone", alone, before), ("with slow ones", shielded, peak)):
            times = ms(percentile(found, 0.5), percentile(found, 0.99), found[-1])
            table.row(worker_class, label, len(found), *times, f"{memory:,} KiB")
        ratio = percentile(shielded, 0.99) / percentile(alone, 0.99)
        table.row(worker_class, "ratio", "", "", f"{ratio:.2f} (at most {ALLOWED_RATIO:g})", "", "")
        failed |= ratio > ALLOWED_RATIO
    return int(failed)
