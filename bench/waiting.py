"""Requests per second of an application that waits 10 ms, as for a database, side by side with gunicorn's.

    python -m bench.waiting [--seconds 5] [--rounds 3]

First 64 connections, on 64 threads: the ideal is 6,400 requests/s. Then 500 connections, on greenlets. One worker
pinned to the first core; ``wrk -t1`` is pinned to the second. The rounds alternate, the medians are compared. Exits
1 when wsgiserv's threads reach less than 95 % of the ideal, or its gevent less than twice gunicorn's. Needs wrk,
taskset and gunicorn (extra ``test``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import NamedTuple

from bench.peerserver import Load, PeerServer, wrk

WAIT_MS = 10
ALLOWED_OF_IDEAL = 0.95
ALLOWED_TIMES_GUNICORN = 2.0


class Contest(NamedTuple):
    """One load and the two servers under it, ours first."""

    connections: int
    servers: dict[str, list[str]]


CONTESTS = [
    Contest(
        64,
        {
            "wsgiserv threads": ["wsgiserv", "-k", "threads", "--threads", "64"],
            "gunicorn gthread": ["gunicorn", "-k", "gthread", "--threads", "64"],
        },
    ),
    Contest(
        500,
        {
            "wsgiserv gevent": ["wsgiserv", "-k", "gevent"],
            "gunicorn gevent": ["gunicorn", "-k", "gevent"],
        },
    ),
]


def measure(arguments: list[str], connections: int, seconds: int) -> Load:
    """Start a server, load it, and return what wrk has found."""
    rest = ["--keep-alive", "75", "-w", "1", "-b", "127.0.0.1:{port}", "bench.waitingapp:app"]
    with PeerServer(["-m", *arguments, *rest]) as server:
        return wrk(f"http://127.0.0.1:{server.port}/wait?{WAIT_MS}", connections, seconds)


def main() -> int:
    """Measure and print one Markdown table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=5, help="per server and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[Load]] = {name: [] for contest in CONTESTS for name in contest.servers}
    for number in range(options.rounds):
        for contest in CONTESTS:
            for name, arguments in contest.servers.items():
                load = measure(arguments, contest.connections, options.seconds)
                found[name].append(load)
                print(f"round {number + 1}: {name}: {load.rate:,.0f}/s", file=sys.stderr)
    rates = {name: statistics.median(load.rate for load in loads) for name, loads in found.items()}
    print("| server | connections | requests/s (median) | of the ideal | against gunicorn | p99 | failed |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for contest in CONTESTS:
        ours, peer = contest.servers
        for name in contest.servers:
            of_ideal = rates[name] / (contest.connections * 1000 / WAIT_MS)
            times = f"{rates[ours] / rates[peer]:.2f} times" if name == ours else ""
            p99_ms = statistics.median(load.p99_ms for load in found[name])
            failed = sum(load.failed for load in found[name])
            print(
                f"| {name} | {contest.connections} | {rates[name]:,.0f} | {of_ideal:.1%} | {times} | "
                f"{p99_ms:.1f} ms | {failed} |"
            )
    of_ideal = rates["wsgiserv threads"] / (CONTESTS[0].connections * 1000 / WAIT_MS)
    times_gunicorn = rates["wsgiserv gevent"] / rates["gunicorn gevent"]
    return 0 if of_ideal >= ALLOWED_OF_IDEAL and times_gunicorn >= ALLOWED_TIMES_GUNICORN else 1


if __name__ == "__main__":
    sys.exit(main())
