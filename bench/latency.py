"""Measure the latency (p50, p99, p99.9) at few and many connections, and at fixed rates; alone or of two checkouts.

    python -m bench latency [-k sync,threads,gevent] [--scenario flask] [--rounds 5] [--seconds 2] [--trees OLD NEW]

Closed loop: wrk at 1, 8 and 64 connections, each of which asks when it has its answer. Open loop: bench open_loop asks
over 64 connections at random times, whatever the answers do, at 25 and 75 % of the capacity: the rate of a closed loop
at 64 connections, measured once for each class, of OLD with --trees. Both checkouts get the same rate, and in the same
round the same times.

One worker, pinned to the first core; the client is pinned to the second. With --trees both servers of a class are up
side by side; the rounds alternate between them and the loads, every other one in reverse. The table has medians in µs.
"Client late" is the p99 of how far the open loop's client was behind its own schedule: near the p99, the client is the
limit. A p99.9 needs thousands of requests: raise --seconds for a slow application. wrk counts a long wait once more for
each request that it would have sent meanwhile at its mean rate, so another program that stops the server for a moment
shows more in the closed loops' tails.

Scenarios are those of bench compare whose request has no body and whose answer has a length. Needs wrk and taskset.
Exits 1 when a server does not start, exits, or fails a request.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from statistics import median

from bench.compare import check_answer
from bench.load import Load, open_loop, wrk
from bench.peers import SERVERS
from bench.scenarios import SCENARIOS
from bench.servers import CLIENT_CORE, SERVER_CORE, Server, ServerError, Tree, wait_until_up, why
from bench.table import Table, need, options_of, say, turns

# wrk by itself prints three digits, and no p99.9.
DONE = """
done = function(summary, latency)
  for _, share in ipairs({50, 99, 99.9}) do
    io.write(string.format("%g%% %dus\\n", share, latency:percentile(share)))
  end
end
"""
FIGURES = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms"}
MEASURABLE = [
    name
    for name, each in SCENARIOS.items()
    if each.body is None and not (each.download or each.proxied or each.logged) and name not in ("close", "stream")
]


# Connections, and in an open loop the share of the capacity.
LOADS = {
    "1 connection": (1, 0.0),
    "8 connections": (8, 0.0),
    "64 connections": (64, 0.0),
    "open, 25 %": (64, 0.25),
    "open, 75 %": (64, 0.75),
}


def start(kind: str, scenario: str, tree: Tree) -> Server:
    """Return a server to enter; it is started as bench compare starts it."""
    described = SCENARIOS[scenario]
    return Server(
        SERVERS[f"wsgiserv {kind}"].command(described.app, described.threads),
        core=SERVER_CORE,
        tree=tree,
        until_up=lambda server: wait_until_up(server, lambda: check_answer(server.port, described, described.answer)),
        idle_s=0.1,
    )


def measure(server: Server, connections: int, rate: float, number: int, options: argparse.Namespace) -> Load:
    """Load a server, in an open loop if there is a rate; raise `ServerError` when it fails a request."""
    url = f"http://127.0.0.1:{server.port}/"
    if rate:
        found = open_loop(url, options.scenario, rate, connections, options.seconds, seed=number)
    else:
        script = server.directory / "wrk.lua"
        script.write_text(SCENARIOS[options.scenario].script + DONE)
        found = wrk(url, connections, options.seconds, script)
    if server.process.poll() is not None:
        raise ServerError(f"exits under the load: {why(server.log.read_text(errors='replace'))}")
    if found.failed or not found.requests:
        raise ServerError(f"fails {found.failed:,} requests of {found.requests:,.0f}")
    return found


def row(label: str, rounds: Sequence[Sequence[Load]]) -> list[object]:
    """Return the cells of one load: each figure's median for each checkout, and their ratio."""
    cells: list[object] = [label]
    for figure in FIGURES.values():
        values = [median(getattr(each, figure) for each in found) for found in rounds]
        cells += [f"{value * 1000:,.0f}" for value in values]
        cells += [f"**{value / (values[0] or 1):.2f}**" for value in values[1:]]
    late = max(median(each.late_ms for each in found) for found in rounds)
    return [*cells, f"{late * 1000:,.0f}" if late else "–"]


def compare(kind: str, trees: Sequence[Tree], options: argparse.Namespace, table: Table) -> None:
    """Measure a class of workers, and write its rows."""
    with ExitStack() as stack:
        servers = [stack.enter_context(start(kind, options.scenario, tree)) for tree in trees]
        # Both, so that both are warm.
        capacity, *_ = [measure(server, 64, 0.0, 0, options).rate for server in servers]
        found: dict[tuple[str, int], list[Load]] = {each: [] for each in product(LOADS, range(len(servers)))}
        for number, (name, at) in turns(options.rounds, list(found)):
            connections, share = LOADS[name]
            load = measure(servers[at], connections, capacity * share, number, options)
            found[name, at].append(load)
            say(f"round {number}: {kind}, {name}, {trees[at].path.name}: p99 {load.p99_ms:.2f} ms, {load.rate:,.0f}/s")
    for name, (_, share) in LOADS.items():
        rate = f" ({capacity * share:,.0f}/s)" if share else ""
        table.row(*row(f"{kind}, {name}{rate}", [found[name, at] for at in range(len(servers))]))


def main() -> int:
    """Measure and print one table; return the exit status."""
    options = options_of(__doc__, choose=("classes", "trees"), scenario="flask", rounds=5, seconds=2)
    if options.scenario not in MEASURABLE:
        sys.exit(f"{options.scenario!r} is not a scenario of this measurement. Accepted: {', '.join(MEASURABLE)}")
    options.rounds, options.seconds = max(1, options.rounds), max(1, options.seconds)
    need("wrk", "taskset")
    if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
        sys.exit("it needs two cores, 0 and 1: one for the server and one for the client")
    trees: list[Tree] = options.trees or [Tree()]
    names = ["before", "after", "ratio"] if options.trees else [""]
    print("; ".join(f"{name} {tree.describe()}".strip() for name, tree in zip(names, trees, strict=False)), end="\n\n")
    heads = [f"{figure} µs {name}".strip() for figure in FIGURES for name in names]
    table = Table("class, load", *heads, "client late µs")
    status = 0
    for kind in options.classes:
        try:
            compare(kind, trees, options, table)
        except (ServerError, RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
            say(f"{kind}: {why(getattr(error, 'output', '') or str(error))}")
            status = 1
    return status
