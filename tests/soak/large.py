"""Send large bodies and files through one worker: its memory stays flat, and it goes on answering others.

    python -m tests.soak large [-k sync,threads,gevent] [--upload-mib 1024] [--file-mib 2048] [--clients 10]

For each class: one upload, with the time, the worker's memory before and its peak; then a (sparse) file to all
clients at once by ``wsgi.file_wrapper``, with the rate and p99 of a well-behaved client meanwhile. Exits 1 when the
worker's memory has grown by more than 16 MiB, a body is wrong, or p99 is above 100 ms. Linux only.
"""

from __future__ import annotations

import multiprocessing
import socket
import tempfile
import time
from multiprocessing.queues import Queue
from typing import Any

from bench.load import percentile
from bench.table import Table, ms, options_of
from tests.soak.clients import OneWorker, latencies

ALLOWED_KIB = 16 * 1024
ALLOWED_P99_S = 0.1
MIB = 1 << 20


def upload(address: Any, size: int) -> float:
    """Send a body of ``size`` bytes; return the seconds until the application's answer, which is checked."""
    begun = time.perf_counter()
    with socket.create_connection(address, timeout=120) as client:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n" % size)
        piece = bytes(MIB)
        for _ in range(size // MIB):
            client.sendall(piece)
        answer = client.recv(65536)
        if not answer.endswith(b"\r\n\r\n%d" % size):
            raise RuntimeError(f"the application has not seen the whole body: {answer[-300:]!r}")
    return time.perf_counter() - begun


def download(address: Any, clients: int, path: str, size: int, result: Queue[float]) -> None:
    """Run all the clients of the file; put the seconds until the last has all of it."""
    begun = time.perf_counter()
    waiting = [socket.create_connection(address, timeout=120) for _ in range(clients)]
    left = {}
    for client in waiting:
        client.sendall(b"GET /file?%b HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n" % path.encode())
    for client in waiting:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1000)
        left[client] = size - len(head.partition(b"\r\n\r\n")[2])
    buffer = bytearray(4 * MIB)
    while left:
        for client in list(left):
            # MSG_TRUNC: the kernel drops what has come instead of copying it; the clients are not what is measured.
            received = client.recv_into(buffer, min(len(buffer), left[client]), socket.MSG_TRUNC)
            left[client] -= received
            if not left[client] or not received:
                if left.pop(client):
                    result.put(-1.0)
                    return
                client.close()
    result.put(time.perf_counter() - begun)


def main() -> int:
    """Measure and print one table; return the exit status."""
    options = options_of(__doc__, choose=("classes",), upload_mib=1024, file_mib=2048, clients=10)
    size, clients = options.file_mib * MIB, options.clients
    failed = False
    table = Table("class", "upload", "memory", "files", "rate", "p99 of others", "slowest", "peak")
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(size)
        for worker_class in options.classes:
            with OneWorker(worker_class) as server:
                before = server.memory_kib("VmRSS")
                uploaded_s = upload(server.address, options.upload_mib * MIB)
                growth = server.memory_kib("VmHWM") - before
                result: Queue[float] = multiprocessing.Queue()
                of_file = (server.address, clients, file.name, size, result)
                readers = multiprocessing.Process(target=download, args=of_file, daemon=True)
                readers.start()
                found: list[float] = []
                while readers.is_alive():
                    found += latencies(server.address, 0.5)
                took_s = result.get(timeout=5)
                peak = server.memory_kib("VmHWM")
            p99 = percentile(sorted(found), 0.99)
            rate = f"{clients * options.file_mib / took_s:,.0f} MiB/s"
            times = ms(p99, max(found))
            table.row(worker_class, uploaded_s, f"{growth:+,} KiB", took_s, rate, *times, f"{peak:,} KiB")
            failed |= took_s < 0 or peak - before > ALLOWED_KIB or p99 > ALLOWED_P99_S
    return int(failed)
