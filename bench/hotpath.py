"""Measure the cost of a request stage by stage, in one process and without a network.

    python -m bench hotpath [--rounds 25] [--only parse,whole] [--headers cached,unique,strange]
                            [--instructions] [--allocations] [--json FILE] [--against FILE]

Each stage of a request's way in a ``sync`` worker (docs/architecture.md) runs alone, with the server's own objects and
a socket that costs nothing:

    parse        Connection.receive: from the bytes to a request line and a header block
    environ      the merge in Connection.run
    scoreboard   the request's cell, and the counters
    gateway      run_app with a trivial application, which includes serialise
    serialise    the response's head, and joining it with the body
    access log   a line in the format `combined`; written to /dev/null, 32 at a time
    whole        receive and run, without an access log
    connection   the rest of `whole` without parse, environ, scoreboard and gateway
    logged       whole, with an access log
    socket       send and recv at both ends of a Unix socket pair: twice the system calls missing in `whole`
    yardstick    a loop without the server: when it differs, so does the machine

The headers are a browser's: ``cached`` are the same each time; ``unique`` differ in target, Referer, Cookie and
X-Trace; in ``strange`` each line differs.

µs is the CPU time of the fastest round; rounds alternate between the stages, so that another load on the machine meets
all alike. Peak is the most memory that one pass holds at once, by tracemalloc. --instructions counts those in user
space by perf stat, or valgrind's callgrind where the machine has no counters: the difference between two run lengths,
so that the start cancels. They hardly depend on other programs: compare by them on a noisy machine. --allocations
counts calls to malloc with PYTHONMALLOC=malloc, by valgrind's memcheck, in the same way. --json keeps the result,
--against compares with a kept one.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.servers import ROOT
from bench.stages import DIFFERING, Run, Stages
from bench.table import Table, options_of, say, some_of

# The header-dependent stages run with each kind of headers, the others once.
BY_HEADERS = ["parse", "environ", "whole", "connection", "logged"]
ONCE = ["scoreboard", "gateway", "serialise", "access log", "socket", "yardstick"]
DERIVED = "connection"
PARTS = ("parse", "environ", "scoreboard", "gateway")
# The parser's caches are emptied every 1,024 entries: a run over more finds nothing of the run before there, and one
# over a multiple has its share of the emptying.
ROUND = 2048
WARM_UP, SHORT, LONG = 1024, 1024, 3072
PEAKS = 9
COLUMNS = {
    "us": ("µs", "{:.2f}"),
    "spread": ("median", "{:+.0%}"),
    "peak": ("peak, bytes", "{:,.0f}"),
    "instructions": ("instructions", "{:,.0f}"),
    "allocations": ("allocations", "{:,.1f}"),
}
ADDED = ("us", "instructions", "allocations")


class Key(NamedTuple):
    """A row: a stage, and the headers; ``-`` where they make no difference."""

    stage: str
    headers: str

    def prepare(self, count: int) -> Run:
        """Return the stage's run over this many requests."""
        return Stages("cached" if self.headers == "-" else self.headers, count).make(self.stage)


# The cost of one pass by column.
Figures = dict[str, float]
Results = dict[Key, Figures]


class Counter(NamedTuple):
    """A program that counts another's work: its command, the figure in its output, variables of the other."""

    command: str
    pattern: str
    environ: dict[str, str]


CALLGRIND = Counter("valgrind --tool=callgrind --callgrind-out-file=/dev/null", r"Collected : ([\d,]+)", {})
PERF = Counter("perf stat -x; -e instructions:u", r"(?m)^(\d+);", {})
_MEMCHECK = "valgrind --tool=memcheck --leak-check=no --undef-value-errors=no"
MEMCHECK = Counter(_MEMCHECK, r"total heap usage: ([\d,]+) allocs", {"PYTHONMALLOC": "malloc"})


def measure_times(keys: list[Key], rounds: int) -> Results:
    """Return µs of the fastest round, and by what share the median is above it (``spread``)."""
    runs = {key: key.prepare(ROUND) for key in keys}
    taken: dict[Key, list[float]] = {key: [] for key in keys}
    for number in range(rounds + 1):
        for key, run in runs.items():
            begun = time.process_time()
            run(0, ROUND)
            if number:  # the first warms up
                taken[key].append((time.process_time() - begun) / ROUND * 1e6)
    fastest = {key: min(times) for key, times in taken.items()}
    return {key: {"us": us, "spread": statistics.median(taken[key]) / us - 1} for key, us in fastest.items()}


def measure_peak(key: Key) -> float:
    """Return the most bytes that one pass holds at once, by tracemalloc; those left in the caches included."""
    run = key.prepare(WARM_UP + PEAKS)
    run(0, WARM_UP)

    def peak(first: int, end: int) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        run(first, end)
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        # A run over nothing has the loop's own objects only.
        numbers = range(WARM_UP, WARM_UP + PEAKS)
        return statistics.median(peak(number, number + 1) - peak(number, number) for number in numbers)
    finally:
        tracemalloc.stop()


def instruction_counter() -> Counter:
    """Return perf where this machine lets it count, else callgrind."""
    if shutil.which("perf"):
        done = subprocess.run([*PERF.command.split(), "true"], capture_output=True, text=True, check=False)
        if re.search(PERF.pattern, done.stderr):
            return PERF
    return CALLGRIND


def count(counter: Counter, key: Key) -> float:
    """Return the cost of one pass: the difference of two processes' counts, by their difference in passes."""
    counts = []
    for passes in (SHORT, LONG):
        command = [*counter.command.split(), sys.executable, "-m", "bench.hotpath", "--run"]
        # Where strings lie in a dictionary must not depend on chance.
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", **counter.environ}
        done = subprocess.run([*command, *key, str(passes)], capture_output=True, text=True, env=environ)
        found = re.search(counter.pattern, done.stderr)
        if done.returncode or found is None:
            raise RuntimeError(f"{counter.command} has failed:\n{done.stderr}")
        counts.append(int(found[1].replace(",", "")))
    return (counts[1] - counts[0]) / (LONG - SHORT)


def count_all(counter: Counter, results: Results, name: str) -> None:
    """Add the counts to the results, under ``name``; as many rows at once as there are processors."""
    if shutil.which(counter.command.split()[0]) is None:
        sys.exit("valgrind is not installed (Debian: apt-get install valgrind)")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for key, number in zip(results, pool.map(lambda key: count(counter, key), results), strict=True):
            results[key][name] = number
            say(f"{name}: {key.stage}, {key.headers}: {number:,.0f}")


def derive(results: Results) -> Results:
    """Return the results with the rows of `connection`: the share of `whole` in none of its parts."""
    made: Results = {}
    for key, figures in results.items():
        made[key] = figures
        parts = [results.get(Key(part, key.headers)) or results.get(Key(part, "-")) or {} for part in PARTS]
        if key.stage == "whole" and all(parts):
            made[Key(DERIVED, key.headers)] = {
                name: figures[name] - sum(part[name] for part in parts) for name in ADDED if name in figures
            }
    return made


def show(results: Results, before: Results) -> None:
    """Print the table; with results from before, also by how much they have changed."""
    shown = [name for name in COLUMNS if any(name in figures for figures in results.values())]
    compared = [name for name in ADDED if name in shown and any(name in was for was in before.values())]
    heads = [COLUMNS[name][0] for name in shown] + [f"{COLUMNS[name][0]} against" for name in compared]
    table = Table("stage", "headers", *heads)
    for key, now in results.items():
        was = before.get(key, {})
        cells = [COLUMNS[name][1].format(now[name]) if name in now else "-" for name in shown]
        changes = [now[name] / was[name] - 1 if was.get(name) and name in now else None for name in compared]
        cells += ["-" if change is None else f"{change:+.1%}" for change in changes]
        table.row(*key, *cells)


def main() -> int:
    """Measure and print one table; return the exit status."""
    if sys.argv[1:2] == ["--run"]:  # under a counting program
        stage, kind, passes = sys.argv[2:]
        run = Key(stage, kind).prepare(WARM_UP + LONG)
        run(0, WARM_UP)
        run(WARM_UP, WARM_UP + int(passes))
        return 0
    given = options_of(
        __doc__,
        rounds=25,
        only=",".join((*BY_HEADERS, *ONCE)),
        headers="cached,unique",
        instructions=False,
        allocations=False,
        json=Path,
        against=Path,
    )
    before: Results = {}
    if given.against:
        saved = json.loads(given.against.read_text())
        if saved["python"] != platform.python_version():
            say(f"{given.against} is of Python {saved['python']}: only its proportions compare")
        before = {Key(row.pop("stage"), row.pop("headers")): row for row in saved["rows"]}
    only, headers = some_of(given.only, BY_HEADERS + ONCE), some_of(given.headers, DIFFERING)
    keys = [Key(stage, kind) for kind in headers for stage in BY_HEADERS if stage in only]
    keys += [Key(stage, "-") for stage in ONCE if stage in only]
    results = measure_times([key for key in keys if key.stage != DERIVED], max(1, given.rounds))
    for key, figures in results.items():
        figures["peak"] = measure_peak(key)
    if given.instructions:
        count_all(instruction_counter(), results, "instructions")
    if given.allocations:
        count_all(MEMCHECK, results, "allocations")
    results = derive(results)
    if given.json:
        rows = [{"stage": key.stage, "headers": key.headers, **figures} for key, figures in results.items()]
        kept = {"python": platform.python_version(), "machine": platform.platform(), "rows": rows}
        given.json.write_text(json.dumps(kept, indent=1) + "\n")
    show(results, before)
    return 0


if __name__ == "__main__":  # for the counting programs, and by habit
    sys.exit(main())
