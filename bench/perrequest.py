"""Measure the CPU time per request, user and system, of servers that run side by side.

    python -m bench perrequest [--scenario flask] [--server 'wsgiserv|granian|fastwsgi|gunicorn'] [--slices 15]
                               [--venv build/bench-venv | --here]
    python -m bench perrequest --trees OLD NEW [-k sync,gevent]

All servers are started at once, one worker each, pinned to one core, and stay. Slices of a second go to each in turn,
every other round in reverse, so that whatever else the machine does meets all alike; the others sleep meanwhile. The
CPU time is the kernel's, in nanoseconds (schedstat of all threads), divided into user and system as the clock's ticks
are; medians of the slices. The ratio is that of the first row; with --trees, that of OLD in the same class.

Servers are installed and started as in `bench compare`. Needs wrk and taskset.
"""

from __future__ import annotations

import re
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.compare import Comparison, Entry, entries
from bench.peers import SERVERS, PeerEnvironment
from bench.scenarios import SCENARIOS
from bench.servers import ROOT, CpuTime, Server, ServerError, cpu_time_of, family
from bench.table import Table, need, options_of, say, some_of, turns

DEFAULT = "wsgiserv|granian|fastwsgi|gunicorn g"
_SLICE_S = 1


class Slice(NamedTuple):
    """One second of load: requests per second, and CPU time per request in microseconds."""

    rate: float
    user_us: float
    system_us: float


def run_time_s(pids: list[int]) -> float:
    """Return the time for which the threads of some processes have run, by proc(5) ``schedstat``."""
    total_ns = 0
    for pid in pids:
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # a thread that has just ended
                total_ns += int(path.read_text().split()[0])
    return total_ns / 1e9


def divided(run_s: float, ticks: CpuTime) -> CpuTime:
    """Divide an exact run time into user and system, in the proportion of the ticks."""
    share = ticks.user_s / ((ticks.user_s + ticks.system_s) or 1.0)
    return CpuTime(run_s * share, run_s * (1 - share))


def measure(comparison: Comparison, server: Server, scenario: str) -> Slice:
    """Load a server for a second."""
    pids = family(server.master)
    run_s, ticks = run_time_s(pids), cpu_time_of(pids)
    load = comparison.load(server.port, SCENARIOS[scenario])
    run_s, after = run_time_s(pids) - run_s, cpu_time_of(pids)
    if load.failed:
        raise RuntimeError(f"{load.failed} requests have failed")
    spent = divided(run_s, CpuTime(after.user_s - ticks.user_s, after.system_s - ticks.system_s))
    return Slice(load.rate, spent.user_s / load.requests * 1e6, spent.system_s / load.requests * 1e6)


def show(scenario: str, rows: list[Entry], slices: dict[str, list[Slice]]) -> None:
    """Print the table of a scenario; ``slices`` are by the entries' names."""
    table = Table(SCENARIOS[scenario].title, "requests/s", "ratio", "user µs", "ratio", "system µs", "ratio", "sum µs")
    medians = {name: Slice(*map(median, zip(*found, strict=True))) for name, found in slices.items()}
    for entry in rows:
        if (mine := medians.get(entry.shown)) is None:
            continue
        # The first tree's row of a class comes first.
        same = [other for other in rows if entry.tree is None or other.peer is entry.peer]
        base = medians[next(other.shown for other in same if other.shown in medians)]
        cells: list[Any] = [entry.shown]
        for now, before in zip(mine, base, strict=True):
            cells += [f"{now:,.1f}", now / (before or 1.0)]
        table.row(*cells, f"{mine.user_us + mine.system_us:.1f}")


def run(scenario: str, given: Any, environment: PeerEnvironment) -> None:
    """Measure one scenario and print its table."""
    chosen = [peer for peer in SERVERS.values() if re.search(given.server, peer.name)]
    missing = environment.install(chosen)
    rows = [entry for entry in entries(SCENARIOS[scenario], chosen, given.trees) if entry.peer.name not in missing]
    slices: dict[str, list[Slice]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-perrequest-") as directory, ExitStack() as stack:
        comparison = Comparison(environment, Path(directory), _SLICE_S)
        servers: dict[str, Server] = {}
        for entry in rows:
            try:
                servers[entry.shown] = stack.enter_context(comparison.server(entry, SCENARIOS[scenario]))
            except ServerError as error:
                say(f"{entry.shown}: {error}")
        able = [entry for entry in rows if entry.shown in servers]
        for number, entry in turns(given.slices + 1, able):
            found = measure(comparison, servers[entry.shown], scenario)
            if number > 1:  # the first warms up
                slices.setdefault(entry.shown, []).append(found)
    show(scenario, rows, slices)


def main() -> int:
    """Measure and print one table for each scenario; return the exit status."""
    given = options_of(
        __doc__,
        choose=("classes", "trees"),
        scenario="flask",
        server=DEFAULT,
        slices=15,
        venv=ROOT / "build" / "bench-venv",
        here=False,
    )
    need("wrk", "taskset")
    if given.trees:
        given.server = f"^wsgiserv ({'|'.join(given.classes)})$"
        for tree in given.trees:
            say(tree.describe())
    environment = PeerEnvironment(None if given.here or given.trees else given.venv)
    for scenario in some_of(given.scenario, SCENARIOS):
        run(scenario, given, environment)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
