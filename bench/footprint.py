"""What a server costs before it does anything: memory, the start; and what a second worker brings.

    python -m bench.footprint [--rounds 5] [--seconds 3] [-k sync -k threads -k gevent]

Memory: VmRSS (proc(5)) of one idle worker that has answered once, beside a Python that has imported the same
application (examples/hello.py) and nothing else. Start: from the command to the first answer with four workers, beside
the same Python from its start to its end. Workers: requests per second of an application that is on the processor for
about 5 ms, with two workers and with one, on two cores that neither is pinned to. The client, wrk, shares these cores:
with 5 ms for each request its part, which is shown, is small for one worker and for two. Medians of the rounds.

Exits 1 when a worker (gevent aside) has more than 5 MB above the import, when a start takes over 150 ms longer than
the import (gevent aside), or two workers make less than 1.9 times the requests of one. Linux only; needs wrk.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.peerserver import ROOT, PeerServer, read_wrk

EXAMPLES = ROOT / "examples"
MOST_MB, MOST_MS, LEAST_TIMES = 5.0, 150.0, 1.9
_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def resident_mb(pid: int) -> float:
    """Return what a process has in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def imported_mb() -> float:
    """Return the same of a Python that has imported the application."""
    code = "import hello, sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=EXAMPLES, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        found = resident_mb(process.pid)
        process.stdin.close()
    return found


def import_ms() -> float:
    """Return how long a Python takes that imports the application and ends."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import hello"], cwd=EXAMPLES, check=True)
    return (time.perf_counter() - begun) * 1000


def start(kind: str, workers: int) -> tuple[float, float]:
    """Return the milliseconds until a server has answered, and the memory of one of its workers after that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        begun = time.perf_counter()
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "wsgiserv",
                "-k",
                kind,
                "-w",
                str(workers),
                "-b",
                f"fd://{fd}",
                "hello:app",
            ],
            cwd=EXAMPLES,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            pass_fds=[fd],
        ) as server:
            try:
                with socket.create_connection(listener.getsockname(), timeout=10) as client:
                    client.sendall(_REQUEST)
                    client.recv(4096)
                took_ms = (time.perf_counter() - begun) * 1000
                assert server.stderr is not None
                for line in server.stderr:
                    if b"ready:" in line:
                        break
                children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
                memory = resident_mb(int(children[0]))
            finally:
                server.terminate()
                server.stderr.read()
    return took_ms, memory


def rate(kind: str, workers: int, seconds: int) -> tuple[float, float]:
    """Return requests per second of the application of 5 ms, and the client's share of a processor."""
    arguments = ["-m", "wsgiserv", "-k", kind, "-w", str(workers), "-b", "127.0.0.1:{port}"]
    with PeerServer([*arguments, "bench.compareapp:compute"], None, env={"BENCH_TURNS": "400000"}) as server:
        url = f"http://127.0.0.1:{server.port}/"
        before = time.monotonic()
        with subprocess.Popen(
            ["wrk", "-t1", "-c32", f"-d{seconds}", "--latency", url], stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout is not None
            output = client.stdout.read()
            usage = os.wait4(client.pid, 0)[2]
            client.returncode = 0
        return read_wrk(output).rate, (usage.ru_utime + usage.ru_stime) / (time.monotonic() - before)


def main() -> int:
    """Run from the command line; return the exit status."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bench footprint", description=summary)
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    parser.add_argument("--seconds", type=int, default=3, help="of load for each round: %(default)s")
    parser.add_argument("-k", "--worker-class", action="append", choices=["sync", "threads", "gevent"])
    options = parser.parse_args()
    rounds = range(options.rounds)
    alone_mb = statistics.median(imported_mb() for _ in rounds)
    alone_ms = statistics.median(import_ms() for _ in rounds)
    print(f"python -c 'import hello': {alone_mb:.1f} MB, {alone_ms:.0f} ms\n")
    heads = ["an idle worker", "above the import", "start, 4 workers", "above the import"]
    print(f"| class | {' | '.join(heads)} | two workers / one | client |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    is_short = False
    for kind in options.worker_class or ["sync", "threads", "gevent"]:
        memory = statistics.median(start(kind, 1)[1] for _ in rounds)
        took_ms = statistics.median(start(kind, 4)[0] for _ in rounds)
        one, two = ([rate(kind, workers, options.seconds) for _ in rounds] for workers in (1, 2))
        rates = [statistics.median(each for each, _ in found) for found in (one, two)]
        client = statistics.median(share for _, share in two)
        times = rates[1] / rates[0]
        above_mb, above_ms = memory - alone_mb, took_ms - alone_ms
        print(
            f"| {kind} | {memory:.1f} MB | {above_mb:.1f} MB | {took_ms:.0f} ms | {above_ms:.0f} ms "
            f"| {rates[1]:,.0f}/s / {rates[0]:,.0f}/s = {times:.2f} | {client:.1%} |",
            flush=True,
        )
        costs_too_much = kind != "gevent" and (above_mb > MOST_MB or above_ms > MOST_MS)
        is_short = is_short or costs_too_much or times < LEAST_TIMES
    return 1 if is_short else 0


if __name__ == "__main__":
    sys.exit(main())
