"""Measure how long trivial requests wait beside slow ones, in a worker with more threads than slow requests at once.

    python -m tests.soak mixed [--seconds 10] [--rounds 3]

Sixteen threads. Twelve clients ask for a page of 500 ms, again and again; for each such request one is made for a page
of no time: half of the requests are slow, and four threads are always free. Prints p50, p99 and the slowest of the
trivial ones, beside gunicorn's gthread. All connections are kept. One worker is pinned to the first core, the clients
to the second. Exits 1 when wsgiserv's p99 is 20 ms or more. Needs gunicorn (extra ``test``).
"""

from __future__ import annotations

import os
import random
import threading
import time
from functools import partial
from typing import NamedTuple

from bench.load import percentile
from bench.servers import CLIENT_CORE, SERVER_CORE, Server
from bench.table import Table, ms, options_of, turns
from tests.soak.clients import VIEWS, KeptClient, together

SLOW_CLIENTS = 12
QUICK_CLIENTS = 6
SLOW_MS = 500
ALLOWED_P99_S = 0.020
OPTIONS = ["--threads", "16", "--keep-alive", "75", "-w", "1", "-b", "127.0.0.1:{port}", "views:app"]
SERVERS = {
    "wsgiserv threads": ["-m", "wsgiserv", "-k", "threads", *OPTIONS],
    "gunicorn gthread": ["-m", "gunicorn", "-k", "gthread", *OPTIONS],
}


class Mixed(NamedTuple):
    """The seconds of each request, and for each client how often the server has closed its connection."""

    slow: list[float]
    quick: list[float]
    closed: list[int]


def load(port: int, seconds: float, found: Mixed) -> None:
    """Run all the clients for some seconds, and add their figures."""
    permits = threading.Semaphore(0)  # one for each slow request that begins
    end = time.monotonic() + seconds
    dice = random.Random(12)

    def slow(first_pause: float) -> None:
        client = KeptClient(("127.0.0.1", port))
        time.sleep(first_pause)
        while time.monotonic() < end:
            permits.release()
            found.slow.append(client.ask(f"/wait?{SLOW_MS}"))
            time.sleep(dice.uniform(0, 0.02))  # keeps the clients from falling in step
        found.closed.append(client.closed)
        client.close()

    def quick() -> None:
        client = KeptClient(("127.0.0.1", port))
        while time.monotonic() < end:
            if permits.acquire(timeout=0.1):
                found.quick.append(client.ask())
        found.closed.append(client.closed)
        client.close()

    # The first pause spreads the slow clients over the time of one request.
    pauses = [SLOW_MS / 1000 * number / SLOW_CLIENTS for number in range(SLOW_CLIENTS)]
    together([*(partial(slow, pause) for pause in pauses), *[quick] * QUICK_CLIENTS])


def main() -> int:
    """Measure and print one table; return the exit status."""
    options = options_of(__doc__, seconds=10.0, rounds=3)
    os.sched_setaffinity(0, {CLIENT_CORE})
    found = {name: Mixed([], [], []) for name in SERVERS}
    for _, name in turns(options.rounds, list(SERVERS)):
        with Server(SERVERS[name], core=SERVER_CORE, files=VIEWS) as server:
            load(server.port, options.seconds, found[name])
    table = Table("server", "slow ones", "trivial ones", "p50", "p99", "slowest", "connections closed")
    for name, mixed in found.items():
        quick = sorted(mixed.quick)
        times = ms(percentile(quick, 0.5), percentile(quick, 0.99), quick[-1])
        table.row(name, len(mixed.slow), len(quick), *times, sum(mixed.closed))
    return int(percentile(sorted(found["wsgiserv threads"].quick), 0.99) >= ALLOWED_P99_S)
