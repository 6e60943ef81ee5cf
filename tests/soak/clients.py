"""Clients which see each answer, and a server with one worker. For the soak runs."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.servers import Server, ours, workers_of

# For `Server(files=VIEWS)`.
VIEWS = {"views.py": Path(__file__).with_name("views.py").read_text()}


class OneWorker(Server):
    """A server with one worker and the views of tests/soak/views.py."""

    def __init__(self, worker_class: str, *options: str) -> None:
        super().__init__(ours(worker_class, 1, *options, app="views:app"), files=VIEWS)

    def memory_kib(self, field: str) -> int:
        """Return the worker's ``VmRSS`` (now) or ``VmHWM`` (its peak)."""
        (pid,) = workers_of(self.master)
        found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        assert found is not None, f"/proc/{pid}/status has no {field}"
        return int(found[1])


class KeptClient:
    """One kept connection, which connects again when the server has closed it.

    Attributes:
        closed: how often the server has closed it.
    """

    def __init__(self, address: Any) -> None:
        self._address = address
        self.closed = 0
        self._sock = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def ask(self, target: str = "/") -> float:
        """Make a request, check that the answer is ``hello``, and return the seconds it took."""
        begun = time.perf_counter()
        answer = self._exchange(target)
        if not answer:  # closed by the server between two requests
            self.closed += 1
            self.close()
            self._sock = self._connect()
            answer = self._exchange(target)
        took = time.perf_counter() - begun
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{target} is answered with {answer[:100]!r}")
        return took

    def _exchange(self, target: str) -> bytes:
        answer = b""
        try:
            self._sock.sendall(b"GET %b HTTP/1.1\r\nHost: bench\r\n\r\n" % target.encode())
            while not answer.endswith(b"hello\n") and (data := self._sock.recv(65536)):
                answer += data
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()


def together(clients: Iterable[Callable[[], object]]) -> None:
    """Run clients in threads until all have ended; raise the first exception of any."""
    every = list(clients)
    with ThreadPoolExecutor(len(every)) as pool:
        for running in [pool.submit(client) for client in every]:
            running.result()


def latencies(address: Any, during_s: float, target: str = "/", pause_s: float = 0.002) -> list[float]:
    """Ask again and again, on a kept connection and on fresh ones by turns; return the seconds of each, sorted."""
    kept = KeptClient(address)
    found = []
    end = time.monotonic() + during_s
    while time.monotonic() < end:
        found.append(kept.ask(target))
        begun = time.perf_counter()
        fresh = KeptClient(address)
        fresh.ask(target)
        found.append(time.perf_counter() - begun)
        fresh.close()
        time.sleep(pause_s)
    kept.close()
    return sorted(found)
