"""Any server, ours or another's, on a free port, pinned to a core. For the benchmarks that compare.

Owns: `PeerServer`, the load of wrk. Must not know: what is measured.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from bench.hello import free_port, wait_until_up

ROOT = Path(__file__).parents[1]


# A server that has used less than a clock tick (10 ms) of processor time for so long has started whole.
_REST_S = 0.4


def _family(pid: int) -> list[int]:
    """Return a process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def _ticks(pid: int) -> int:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


class PeerServer:
    """A server while the ``with`` block lasts; the block begins when all its workers are at rest.

    Args:
        arguments: those of Python; ``{port}`` in them stands for the port.
        core: the core it is pinned to; None for none.
        directory: its working directory.
        env: added to its environment.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        core: int | None = 0,
        directory: Path = ROOT,
        env: dict[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        pin = [] if core is None else ["taskset", "-c", str(core)]
        self._process = subprocess.Popen(
            [*pin, sys.executable, *(argument.format(port=self.port) for argument in arguments)],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> PeerServer:
        try:
            wait_until_up(self.port, self._process)
            self._wait_until_at_rest()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _wait_until_at_rest(self) -> None:
        """One worker that answers is not all: the others may still be importing."""
        deadline = time.monotonic() + 10
        before = -1
        while (now := sum(map(_ticks, _family(self._process.pid)))) != before:
            if time.monotonic() > deadline:
                raise RuntimeError("the server did not come to rest")
            before = now
            time.sleep(_REST_S)

    def _end(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Load(NamedTuple):
    """What wrk has found: requests per second, the 99th percentile in milliseconds, requests that failed."""

    rate: float
    p99_ms: float
    failed: int


_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


def wrk(url: str, connections: int, seconds: int, core: int = 1) -> Load:
    """Load a server with wrk, from one thread pinned to a core."""
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", url]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    p99 = re.search(r"99%\s+([\d.]+)(\w+)", output)
    assert rate is not None, output
    assert p99 is not None, output
    # "Socket errors: connect 0, read 0, write 0, timeout 3" and "Non-2xx or 3xx responses: 5"
    troubles = re.findall(r"Socket errors:.*|Non-2xx.*", output)
    failed = sum(int(number) for line in troubles for number in re.findall(r"(?<=[a-z:] )\d+\b", line))
    return Load(float(rate[1]), float(p99[1]) * _UNITS_MS[p99[2]], failed)
