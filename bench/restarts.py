"""Does any client notice? Reloads, upgrades, recycling, scaling, bad deploys, restarts and kill -9 under clients.

    python -m bench.restarts [--class sync,threads,gevent] [--scenario hup,upgrade,...] [--quick]

Four workers. The clients, all at once: wrk (keep-alive), ab (a connection per request), `requests` sessions and
plain sockets that pause for 0 to 2 s between two requests, so that their connections are mostly idle. Counted are the
requests, those that failed, and the connections that were closed without ``Connection: close`` before. Ends with
status 1 when a client noticed anything that it should not have.

``reuse_port`` and ``unix_pair`` are `bench.pair`, which needs nginx; ``kill9`` is `bench.kill9`, which has a table of
its own: what its clients may notice is what the killed workers took along.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable

from bench.kill9 import Killer
from bench.pair import Pair
from bench.underload import APPLICATION, Clients, Server


def hup(server: Server, quick: bool) -> None:
    """20 reloads."""
    for _ in range(4 if quick else 20):
        mark = server.mark()
        os.kill(server.master, signal.SIGHUP)
        server.wait_for(r"reloaded: 4 workers", mark)
        time.sleep(0.3)


def upgrade(server: Server, quick: bool) -> None:
    """10 upgrades."""
    for _ in range(2 if quick else 10):
        old = server.master
        mark = server.mark()
        os.kill(old, signal.SIGUSR2)
        server.wait_for(rf"\[{old}\] \[INFO\] stopped", mark)
        time.sleep(0.3)


def recycle(server: Server, quick: bool) -> None:
    """max_requests = 500, until enough have been replaced."""
    end = time.monotonic() + (3 if quick else 15)
    while time.monotonic() < end:
        time.sleep(0.1)


def scale(server: Server, quick: bool) -> None:
    """10 times two workers more, and back."""
    for _ in range(2 if quick else 10):
        for number, wanted in (
            (signal.SIGTTIN, 5),
            (signal.SIGTTIN, 6),
            (signal.SIGTTOU, 5),
            (signal.SIGTTOU, 4),
        ):
            os.kill(server.master, number)
            end = time.monotonic() + 20
            while len(server.workers()) != wanted:
                if time.monotonic() > end:
                    raise TimeoutError(f"{len(server.workers())} workers instead of {wanted}")
                time.sleep(0.02)
        time.sleep(0.1)


def deploy(server: Server, quick: bool) -> None:
    """Deploys that are broken in four ways, then the mend."""
    for broken, pattern in (
        ("def app(:\n", r"SyntaxError"),
        ("raise RuntimeError('on purpose')\n", r"RuntimeError: on purpose"),
        ("import time\ntime.sleep(600)\n", r"boot_timeout"),
    ):
        server.site.write_text(broken)
        mark = server.mark()
        os.kill(server.master, signal.SIGHUP)
        server.wait_for(r"the reload has failed", mark)
        server.wait_for(pattern, mark)
    server.site.write_text(APPLICATION)
    server.configure("workers = 'lots'\n")
    mark = server.mark()
    os.kill(server.master, signal.SIGHUP)
    server.wait_for(r"nothing is reloaded", mark)
    server.configure("")
    mark = server.mark()
    os.kill(server.master, signal.SIGHUP)
    server.wait_for(r"reloaded: 4 workers", mark)


SCENARIOS: dict[str, tuple[Callable[[Server, bool], None], tuple[str, ...]]] = {
    "hup": (hup, ()),
    "upgrade": (upgrade, ()),
    "max_requests": (recycle, ("--max-requests", "500")),
    "scale": (scale, ()),
    "deploy": (deploy, ("--boot-timeout", "2")),
}
# What asks for more than one server, or for other accounts.
PAIRS = ("reuse_port", "unix_pair")
KILL9 = "kill9"


def _under_load(worker_class: str, name: str, quick: bool) -> Clients:
    """Run a scenario; return the clients, with what they have noticed."""
    if name in PAIRS:
        with Pair(worker_class, unix=name == "unix_pair") as pair, Clients(pair.port) as clients:
            time.sleep(0.5)
            pair.restart_each(2 if quick else 5)
            time.sleep(0.5)
        return clients
    scenario, args = SCENARIOS[name]
    with Server(worker_class, *args) as server, Clients(server.port) as clients:
        time.sleep(0.5)
        scenario(server, quick)
        time.sleep(0.5)
    return clients


def main() -> int:
    """Run the scenarios and print the tables; return the exit status."""
    known = [*SCENARIOS, *PAIRS, KILL9]
    parser = argparse.ArgumentParser(prog="python -m bench.restarts", description=__doc__.partition("\n")[0])
    parser.add_argument("--class", dest="classes", default="sync,threads,gevent")
    parser.add_argument("--scenario", dest="scenarios", default=",".join(known))
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    given = parser.parse_args()
    scenarios = given.scenarios.split(",")
    if unknown := set(scenarios).difference(known):
        parser.error(f"no such scenario: {', '.join(unknown)}; there are {', '.join(known)}")
    noticed = False
    if set(scenarios) != {KILL9}:
        print("| class | scenario | requests | failed | closed unannounced | slowest | took |")
        print("|---|---|---:|---:|---:|---:|---:|")
    for worker_class in given.classes.split(","):
        for name in scenarios:
            if name == KILL9:
                continue
            begun = time.monotonic()
            clients = _under_load(worker_class, name, given.quick)
            print(
                f"| {worker_class} | {name} | {clients.asked:,} | {clients.failures} | {clients.unannounced} | "
                f"{clients.slowest_s * 1000:.0f} ms | {time.monotonic() - begun:.0f} s |",
                flush=True,
            )
            if clients.failures or clients.unannounced:
                noticed = True
                print(f"  {clients.failed}", file=sys.stderr)
    if KILL9 in scenarios:
        print(f"\n{Killer.HEADING}")
        for worker_class in given.classes.split(","):
            killer = Killer(worker_class, 10 if given.quick else 60)
            killer.run()
            print(killer.row(), flush=True)
            for complaint in killer.complaints():
                noticed = True
                print(f"  {complaint}", file=sys.stderr)
    return 1 if noticed else 0


if __name__ == "__main__":
    sys.exit(main())
