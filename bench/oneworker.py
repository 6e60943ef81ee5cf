"""A server with one worker, its memory, and what a well-behaved client sees of it. For the benchmarks.

Owns: `OneWorker`, `latencies`. Must not know: what is measured.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]


class OneWorker:
    """``bench.clientapp`` behind one worker of a class, while the ``with`` block lasts."""

    def __init__(self, worker_class: str, *args: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        fd = self._listener.fileno()
        command = [sys.executable, "-m", "wsgiserv", "-k", worker_class, "-w", "1", "-b", f"fd://{fd}", *args]
        self._master = subprocess.Popen(
            [*command, "bench.clientapp:app"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=[fd],
            stderr=subprocess.DEVNULL,
        )
        self.address: Any = self._listener.getsockname()

    def __enter__(self) -> OneWorker:
        latencies(self.address, 0.3)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._master.send_signal(signal.SIGQUIT)
        self._master.wait(timeout=40)
        self._listener.close()

    def memory_kib(self, what: str) -> int:
        """The worker's ``VmRSS`` (now) or ``VmHWM`` (its peak)."""
        master = self._master.pid
        worker = Path(f"/proc/{master}/task/{master}/children").read_text().split()[0]
        found = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{worker}/status").read_text())
        assert found is not None
        return int(found[1])


def latencies(address: Any, during_s: float, target: str = "/", pause_s: float = 0.002) -> list[float]:
    """Ask again and again, on a kept connection and on fresh ones by turns; return the seconds each took, sorted."""
    kept = socket.create_connection(address, timeout=30)
    found = []
    end = time.monotonic() + during_s
    number = 0
    while time.monotonic() < end:
        number += 1
        begun = time.perf_counter()
        client = kept if number % 2 else socket.create_connection(address, timeout=30)
        close = b"" if number % 2 else b"Connection: close\r\n"
        client.sendall(b"GET %b HTTP/1.1\r\nHost: bench\r\n%b\r\n" % (target.encode(), close))
        answer = client.recv(65536)
        found.append(time.perf_counter() - begun)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answered with {answer[:100]!r}")
        if client is not kept:
            client.close()
        elif b"Connection: close" in answer:
            kept.close()
            kept = socket.create_connection(address, timeout=30)
        time.sleep(pause_s)
    kept.close()
    return sorted(found)


def percentile(ordered: list[float], share: float) -> float:
    """Return the value below which ``share`` of them lie."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
