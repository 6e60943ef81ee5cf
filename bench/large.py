"""Large bodies and files through one worker: its memory stays flat, and it goes on answering others.

    python -m bench.large [-k sync -k threads -k gevent] [--upload-mib 1024] [--file-mib 2048] [--clients 10]

For each class: one upload, with the time, the worker's memory before and its peak; then a (sparse) file to all
clients at once by ``wsgi.file_wrapper``, with the rate and p99 of a well-behaved client meanwhile. Exits 1 when the
worker's memory has grown by more than 16 MiB, a body is wrong, or p99 is above 100 ms. Linux only.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import tempfile
import time
from multiprocessing.queues import Queue
from typing import Any

from bench.oneworker import OneWorker, latencies, percentile

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
    """Be all the clients of the file, in a process of its own; put the seconds until the last has got all of it."""
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


def measure(worker_class: str, upload_bytes: int, file_bytes: int, clients: int, path: str) -> bool:
    """Measure one class and print its row; return whether all is well."""
    with OneWorker(worker_class) as server:
        before = server.memory_kib("VmRSS")
        uploaded_s = upload(server.address, upload_bytes)
        after_upload = server.memory_kib("VmHWM")
        result: Queue[float] = multiprocessing.Queue()
        readers = multiprocessing.Process(
            target=download, args=(server.address, clients, path, file_bytes, result), daemon=True
        )
        readers.start()
        found: list[float] = []
        while readers.is_alive():
            found += latencies(server.address, 0.5)
        downloaded_s = result.get(timeout=5)
        peak = server.memory_kib("VmHWM")
    found.sort()
    p99 = percentile(found, 0.99)
    print(
        f"| {worker_class} | {uploaded_s:.1f} s | {after_upload - before:+,} KiB | {downloaded_s:.1f} s "
        f"| {clients * file_bytes / MIB / downloaded_s:,.0f} MiB/s | {p99 * 1000:.1f} ms | {found[-1] * 1000:.1f} ms "
        f"| {peak:,} KiB |",
        flush=True,
    )
    return downloaded_s > 0 and peak - before <= ALLOWED_KIB and p99 <= ALLOWED_P99_S


def main() -> int:
    """Measure and print one Markdown table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-k", dest="classes", action="append", help="a worker class; may be repeated")
    parser.add_argument("--upload-mib", type=int, default=1024)
    parser.add_argument("--file-mib", type=int, default=2048)
    parser.add_argument("--clients", type=int, default=10)
    options = parser.parse_args()
    good = True
    print("| class | upload | memory | files | rate | p99 of others | slowest | peak |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(options.file_mib * MIB)
        for worker_class in options.classes or ["sync", "threads", "gevent"]:
            good &= measure(
                worker_class,
                options.upload_mib * MIB,
                options.file_mib * MIB,
                options.clients,
                file.name,
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
