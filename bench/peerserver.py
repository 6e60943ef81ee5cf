"""Any server, ours or another's, on a free port, pinned to a core. For the benchmarks that compare.

Owns: `PeerServer`, its memory, the load of wrk. Must not know: what is measured.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from bench.hello import free_port, wait_until_up

ROOT = Path(__file__).parents[1]


# A server that has used less than a clock tick (10 ms) of processor time for so long has started whole.
_REST_S = 0.4


class Memory(NamedTuple):
    """What all processes of a server have in memory, in KiB: added up, and with what they share counted once."""

    rss_kib: int
    pss_kib: int


def _family(pid: int) -> list[int]:
    """Return a process and its descendants; one that ends meanwhile may be missing."""
    found, unseen = [], [pid]
    while unseen:
        found.append(unseen.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                unseen += map(int, children.read_text().split())
            except OSError:
                continue
    return found


def _ticks(pid: int) -> int:
    """Return the processor time that a process has used; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


class PeerServer:
    """A server while the ``with`` block lasts; the block begins when all its workers are at rest.

    Args:
        arguments: those of the program; ``{port}`` in them stands for the port.
        core: the core it is pinned to; None for none.
        directory: its working directory.
        env: added to its environment.
        program: what is run; this Python usually.
        log: the file that its output goes to; None for nowhere.
        until_up: returns when the server answers on a port, and raises when it does not.
        rest_s: how long it must rest before the block begins.
        stop: the signal that ends it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        core: int | None = 0,
        directory: Path = ROOT,
        env: dict[str, str] | None = None,
        *,
        program: str | Path = sys.executable,
        log: Path | None = None,
        until_up: Callable[[int, subprocess.Popen[bytes]], None] = wait_until_up,
        rest_s: float = _REST_S,
        stop: signal.Signals = signal.SIGINT,
    ) -> None:
        self.port = free_port()
        self._until_up, self._rest_s, self._stop = until_up, rest_s, stop
        pin = [] if core is None else ["taskset", "-c", str(core)]
        with open(log or os.devnull, "wb") as output:
            self._process = subprocess.Popen(
                [*pin, str(program), *(argument.format(port=self.port) for argument in arguments)],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> PeerServer:
        try:
            self._until_up(self.port, self._process)
            self._wait_until_at_rest()
            self._family = _family(self._process.pid)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def memory(self) -> Memory:
        """Add up the memory of its processes, proc(5) ``smaps_rollup``."""
        rss = pss = 0
        for pid in _family(self._process.pid):
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            for name, kib in re.findall(r"^(Rss|Pss):\s+(\d+)", text, re.MULTILINE):
                rss += int(kib) * (name == "Rss")
                pss += int(kib) * (name == "Pss")
        return Memory(rss, pss)

    def processor_s(self) -> float:
        """Return the processor time that its processes have used: those that were there when the block began.

        Quick, since it is asked under load: to look for processes takes 10 ms.
        """
        return sum(map(_ticks, self._family)) / os.sysconf("SC_CLK_TCK")

    def _wait_until_at_rest(self) -> None:
        """One worker that answers is not all: the others may still be importing."""
        deadline = time.monotonic() + 10
        before = -1
        while (now := sum(map(_ticks, _family(self._process.pid)))) != before:
            if time.monotonic() > deadline:
                raise RuntimeError("the server did not come to rest")
            before = now
            time.sleep(self._rest_s)

    def _end(self) -> None:
        self._process.send_signal(self._stop)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            pass
        # Also workers that a master has left behind: they would share the core with the next server.
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


class Load(NamedTuple):
    """What a load has found: requests per second, percentiles of the latency in milliseconds, requests that failed.

    ``client_busy`` is the share of the time in which the client was on its processor: near 1, the client is what was
    measured. It is 0 where nobody has looked.
    """

    rate: float
    p99_ms: float
    failed: int
    p50_ms: float = 0.0
    bytes_per_s: float = 0.0
    client_busy: float = 0.0


_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_UNITS_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_wrk(output: str) -> Load:
    """Read what ``wrk --latency`` has printed; raise `ValueError` when that is no result."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    transfer = re.search(r"Transfer/sec:\s+([\d.]+)([KMG]?)B", output)
    quantiles = {share: re.search(rf"{share}%\s+([\d.]+)(us|ms|s|m)\b", output) for share in (50, 99)}
    p50, p99 = quantiles[50], quantiles[99]
    if rate is None or transfer is None or p50 is None or p99 is None:
        raise ValueError(f"wrk has printed no result: {output[-300:]}")
    # "Socket errors: connect 0, read 0, write 0, timeout 3" and "Non-2xx or 3xx responses: 5"
    troubles = re.findall(r"Socket errors:.*|Non-2xx.*", output)
    return Load(
        rate=float(rate[1]),
        p99_ms=float(p99[1]) * _UNITS_MS[p99[2]],
        failed=sum(int(number) for line in troubles for number in re.findall(r"(?<=[a-z:] )\d+\b", line)),
        p50_ms=float(p50[1]) * _UNITS_MS[p50[2]],
        bytes_per_s=float(transfer[1]) * _UNITS_BYTES[transfer[2]],
    )


def busy(
    command: Sequence[str], core: int, timeout_s: float, during: Callable[[], None]
) -> tuple[str, float]:
    """Run a client pinned to a core, and ``during`` beside it; return what it printed and the share it was busy."""
    begun = time.monotonic()
    with subprocess.Popen(
        ["taskset", "-c", str(core), *command],
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
            # wait4 by hand, for the processor time; subprocess would throw it away.
            _, status, usage = os.wait4(client.pid, 0)
            client.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            client.kill()
            raise
        finally:
            overdue.cancel()
    if client.returncode:
        raise subprocess.CalledProcessError(client.returncode, list(command), output)
    return output, (usage.ru_utime + usage.ru_stime) / (time.monotonic() - begun)


def wrk(
    url: str,
    connections: int,
    seconds: int,
    core: int = 1,
    script: Path | None = None,
    during: Callable[[], None] = lambda: None,
) -> Load:
    """Load a server with wrk, from one thread pinned to a core.

    Args:
        script: in Lua.
        during: is called while the load lasts, and may take as long.
    """
    scripted = [] if script is None else ["-s", str(script)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", *scripted, url]
    output, share = busy(command, core, seconds + 30, during)
    return read_wrk(output)._replace(client_busy=share)
