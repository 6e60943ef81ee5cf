"""Loads a server with wrk, or a client which prints as wrk does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.servers import CLIENT_CORE, ROOT

_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_UNITS_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Load(NamedTuple):
    """Results of a load: requests per second, percentiles of the latency in milliseconds, failed requests.

    ``client_busy`` is the share of the time during which the client used its core: near 1, the client is the limit.
    ``late_ms`` is the p99 of how far an open loop's client was behind its schedule.
    """

    rate: float
    p99_ms: float
    failed: int
    requests: float = 0.0
    p50_ms: float = 0.0
    bytes_per_s: float = 0.0
    client_busy: float = 0.0
    p999_ms: float = 0.0
    late_ms: float = 0.0


def _time_ms(output: str, name: str) -> float | None:
    # The last one: a script prints them more exactly than wrk, and behind it.
    found = re.findall(rf"(?m)^ *{re.escape(name)}\s+([\d.]+)(us|ms|s|m)\b", output)
    return float(found[-1][0]) * _UNITS_MS[found[-1][1]] if found else None


def read_wrk(output: str) -> Load:
    """Read the output of ``wrk --latency``; raise `ValueError` when it has no result."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    transfer = re.search(r"Transfer/sec:\s+([\d.]+)([KMG]?)B", output)
    requests = re.search(r"([\d.]+) requests in", output)
    p50_ms, p99_ms = _time_ms(output, "50%"), _time_ms(output, "99%")
    if rate is None or requests is None or transfer is None or p50_ms is None or p99_ms is None:
        raise ValueError(f"wrk has printed no result: {output[-300:]}")
    # "Socket errors: connect 0, read 0, write 0, timeout 3" and "Non-2xx or 3xx responses: 5"
    troubles = re.findall(r"Socket errors:.*|Non-2xx.*", output)
    return Load(
        rate=float(rate[1]),
        p99_ms=p99_ms,
        failed=sum(int(number) for line in troubles for number in re.findall(r"(?<=[a-z:] )\d+\b", line)),
        requests=float(requests[1]),
        p50_ms=p50_ms,
        bytes_per_s=float(transfer[1]) * _UNITS_BYTES[transfer[2]],
        p999_ms=_time_ms(output, "99.9%") or 0.0,
        late_ms=_time_ms(output, "Client late:") or 0.0,
    )


def run_client(
    command: Sequence[str], timeout_s: float, core: int | None = CLIENT_CORE, during: Callable[[], None] = lambda: None
) -> Load:
    """Run wrk, or a program that prints as wrk does, pinned to a core, and ``during`` beside it."""
    begun = time.monotonic()
    with subprocess.Popen(
        [*([] if core is None else ["taskset", "-c", str(core)]), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as client:
        overdue = threading.Timer(timeout_s, client.kill)
        overdue.start()
        try:
            during()
            assert client.stdout is not None
            output = client.stdout.read()
            # wait4 by hand, for the CPU time: subprocess would discard it.
            _, status, usage = os.wait4(client.pid, 0)
            client.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            client.kill()
            raise
        finally:
            overdue.cancel()
    if client.returncode:
        raise subprocess.CalledProcessError(client.returncode, list(command), output)
    busy = (usage.ru_utime + usage.ru_stime) / (time.monotonic() - begun)
    return read_wrk(output)._replace(client_busy=busy)


def wrk(url: str, connections: int, seconds: int, script: Path | None = None, **how: Any) -> Load:
    """Load a server with one thread of wrk; ``script`` is in Lua, ``how`` goes to `run_client`."""
    scripted = [] if script is None else ["-s", str(script)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", *scripted, url]
    return run_client(command, seconds + 30, **how)


def download(url: str, connections: int, seconds: int, **how: Any) -> Load:
    """Load a server with bench/download.py, for responses so large that wrk would be the limit."""
    command = [sys.executable, "-m", "bench", "download", url, "--connections", str(connections)]
    return run_client([*command, "--seconds", str(seconds)], seconds + 30, **how)


def open_loop(url: str, scenario: str, rate: float, connections: int, seconds: int, seed: int, **how: Any) -> Load:
    """Load a server with bench/open_loop.py, which sends at a rate whatever the answers do."""
    command = [sys.executable, "-m", "bench", "open_loop", url, "--scenario", scenario, "--rate", str(rate)]
    command += ["--connections", str(connections), "--seconds", str(seconds), "--seed", str(seed)]
    return run_client(command, seconds + 30, **how)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
