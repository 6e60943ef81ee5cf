"""Measure how long trivial requests on kept connections wait while ``sync`` workers sit in long calls.

    python -m tests.soak stranded [--seconds 10] [--after 0.05]

Four sync workers, 32 keep-alive clients with pauses of 0 to 0.4 s between requests. One request in 20 takes 1 s, but
never more than three at once, so that one worker is always free. Prints p50, p99 and the slowest of the trivial
requests without and with handing over (``handoff_after``). Exits 1 when p99 with it is 150 ms or more. Takes twice
``--seconds``.
"""

from __future__ import annotations

import random
import threading
import time
from functools import partial

from bench.load import percentile
from bench.servers import Server, ours
from bench.table import Table, ms, options_of
from tests.soak.clients import VIEWS, KeptClient, together

WORKERS = 4
CLIENTS = 32
ONE_IN = 20
MOST_PAUSE_S = 0.4
ALLOWED_P99_S = 0.150


def load(port: int, seconds: float) -> tuple[list[float], int]:
    """Run all the clients; return the seconds of the trivial requests, sorted, and the number of slow ones."""
    quick: list[float] = []
    slow: list[float] = []
    may_be_slow = threading.Semaphore(WORKERS - 1)
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        dice = random.Random(number)
        client = KeptClient(("127.0.0.1", port))
        while time.monotonic() < end:
            time.sleep(dice.uniform(0, MOST_PAUSE_S))
            if dice.randrange(ONE_IN) == 0 and may_be_slow.acquire(blocking=False):
                slow.append(client.ask("/wait?1000"))
                may_be_slow.release()
            else:
                quick.append(client.ask())
        client.close()
        if client.closed:
            raise RuntimeError(f"the server has closed a kept connection {client.closed} times")

    together(partial(run, number) for number in range(CLIENTS))
    return sorted(quick), len(slow)


def main() -> int:
    """Measure and print one table; return the exit status."""
    options = options_of(__doc__, seconds=10.0, after=0.05)
    table = Table("handoff_after", "slow ones", "trivial ones", "p50", "p99", "slowest")
    p99 = 0.0
    for after in (0.0, options.after):
        with Server(ours("sync", WORKERS, "--handoff-after", str(after), app="views:app"), files=VIEWS) as server:
            quick, slow = load(server.port, options.seconds)
        p99 = percentile(quick, 0.99)
        times = ms(percentile(quick, 0.5), p99, quick[-1])
        table.row(f"{after:g} s" if after else "off", slow, len(quick), *times)
    return int(p99 >= ALLOWED_P99_S)
