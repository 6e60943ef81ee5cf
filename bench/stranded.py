"""What trivial requests on kept connections wait for while ``sync`` workers sit in long calls.

    python -m bench.stranded [--seconds 10] [--after 0.05]

Four sync workers, 32 keep-alive clients that pause 0 to 0.4 s between requests. One request in 20 takes 1 s, but never
more than three at once, so that one worker is always free. Prints p50, p99 and the slowest of the trivial requests
without and with handing over (``handoff_after``). Exits 1 when p99 with it is 150 ms or more. The measurement takes
twice ``--seconds``.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time

from bench.mixed import Client
from bench.oneworker import percentile
from bench.peerserver import PeerServer

WORKERS = 4
CLIENTS = 32
SLOW_MS = 1000
ONE_IN = 20
MOST_PAUSE_S = 0.4
ALLOWED_P99_S = 0.150


def load(port: int, seconds: float) -> tuple[list[float], int]:
    """Be all the clients for so long; return the times of the trivial requests, in seconds, and how many were slow."""
    quick: list[float] = []
    slow: list[float] = []
    failures: list[BaseException] = []
    may_be_slow = threading.Semaphore(WORKERS - 1)
    end = time.monotonic() + seconds

    def be(number: int) -> None:
        dice = random.Random(number)
        closed: list[int] = []
        try:
            client = Client(port, "/", closed)
            plain, waiting = client.request, f"GET /wait?{SLOW_MS} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
            while time.monotonic() < end:
                time.sleep(dice.uniform(0, MOST_PAUSE_S))
                if dice.randrange(ONE_IN) == 0 and may_be_slow.acquire(blocking=False):
                    client.request = waiting
                    slow.append(client.ask())
                    may_be_slow.release()
                    client.request = plain
                else:
                    quick.append(client.ask())
            client.close()
            if closed:
                raise RuntimeError(f"the server has closed {len(closed)} kept connections")
        except BaseException as error:
            failures.append(error)

    clients = [threading.Thread(target=be, args=(number,)) for number in range(CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    if failures:
        raise failures[0]
    return sorted(quick), len(slow)


def main() -> int:
    """Measure and print one Markdown table; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="per line of the table")
    parser.add_argument("--after", type=float, default=0.05, help="handoff_after of the second line")
    options = parser.parse_args()
    print("| handoff_after | slow ones | trivial ones | p50 | p99 | slowest |")
    print("|---:|---:|---:|---:|---:|---:|")
    p99 = 0.0
    for after in (0.0, options.after):
        arguments = [
            "-k",
            "sync",
            "-w",
            str(WORKERS),
            "--handoff-after",
            str(after),
            "-b",
            "127.0.0.1:{port}",
        ]
        with PeerServer(["-m", "wsgiserv", *arguments, "bench.waitingapp:app"], core=None) as server:
            quick, slow = load(server.port, options.seconds)
        p99 = percentile(quick, 0.99)
        figures = (percentile(quick, 0.5), p99, quick[-1])
        print(
            f"| {f'{after:g} s' if after else 'off'} | {slow} | {len(quick)} | "
            + " | ".join(f"{value * 1000:.2f} ms" for value in figures)
            + " |"
        )
    return 0 if p99 < ALLOWED_P99_S else 1


if __name__ == "__main__":
    sys.exit(main())
