"""What a request costs, stage by stage, in one process and without a network.

    python -m bench.hotpath [--rounds 25] [--only parse,whole] [--headers cached,unique,strange]
                            [--instructions] [--allocations] [--json FILE] [--against FILE]

Each stage of a request's way in a ``sync`` worker (docs/architecture.md) runs alone, with the server's own objects and
a socket that costs nothing:

    parse        Connection.receive: from the bytes to a request line and a header block
    environ      the merge that Connection.run makes
    scoreboard   the request's cell, and the counters
    gateway      run_app with a trivial application, which includes serialise
    serialise    the response's head, and joining it with the body
    access log   a line in the format `combined`; written to /dev/null, 32 at a time
    whole        receive and run, without an access log
    connection   what is left of `whole` when parse, environ, scoreboard and gateway are taken off
    logged       whole, with an access log
    socket       send and recv at both ends of a Unix socket pair: twice the system calls that `whole` does without
    yardstick    a loop that has nothing to do with the server: when it differs, so does the machine

The headers are a browser's: ``cached`` are the same each time; ``unique`` differ in target, Referer, Cookie and
X-Trace; in ``strange`` each line differs.

µs is the CPU time of the fastest round; rounds alternate between the stages, so that another load on the machine meets
all alike. Peak is the most memory that one pass holds at once, by tracemalloc. ``--instructions`` counts those in user
space by ``perf stat``, or valgrind's callgrind where the machine has no counters: the difference between two
run lengths, so that the start cancels. They hardly depend on what else the machine does: compare by them on a noisy
one. ``--allocations`` counts calls to malloc with PYTHONMALLOC=malloc, by valgrind's memcheck, in the same way.
``--json`` keeps the result, ``--against`` compares with a kept one.
"""

from __future__ import annotations

import argparse
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.stages import HEADERS, Run, Stages

ROOT = Path(__file__).parents[1]
# The header-dependent stages run with each kind of headers, the others once.
BY_HEADERS = ("parse", "environ", "whole", "connection", "logged")
ONCE = ("scoreboard", "gateway", "serialise", "access log", "socket", "yardstick")
DERIVED = "connection"
PARTS = ("parse", "environ", "scoreboard", "gateway")
# The parser's caches are emptied every 1,024 entries: a run over more finds nothing of the run before there, and one
# over a multiple has its share of the emptying.
ROUND = 2048
WARM_UP, SHORT, LONG = 1024, 1024, 3072
PEAKS = 9


class Key(NamedTuple):
    """A row: a stage, and the headers; ``-`` where they make no difference."""

    stage: str
    headers: str


# By name (µs, spread, peak, instructions, allocations): what one pass costs.
Figures = dict[str, float]
Table = dict[Key, Figures]


def keys_of(stages: list[str], headers: list[str]) -> list[Key]:
    """Return the rows that are measured, in order; `connection` is not measured but derived."""
    found = [Key(stage, kind) for kind in headers for stage in BY_HEADERS if stage in stages]
    found += [Key(stage, "-") for stage in ONCE if stage in stages]
    return [key for key in found if key.stage != DERIVED]


def _run_of(key: Key, count: int) -> Run:
    return Stages("cached" if key.headers == "-" else key.headers, count).make(key.stage)


def measure_times(keys: list[Key], rounds: int) -> Table:
    """Return µs of the fastest round, and how much slower the median is (``spread``, a ratio)."""
    runs = {key: _run_of(key, ROUND) for key in keys}
    taken: dict[Key, list[float]] = {key: [] for key in keys}
    for number in range(rounds + 1):
        for key, run in runs.items():
            begun = time.process_time()
            run(0, ROUND)
            if number:  # the first warms up
                taken[key].append((time.process_time() - begun) / ROUND * 1e6)
    return {
        key: {"us": min(times), "spread": statistics.median(times) / min(times)}
        for key, times in taken.items()
    }


def measure_peak(key: Key) -> float:
    """Return the most bytes that one pass holds at once, by tracemalloc; what it leaves in the caches included."""
    run = _run_of(key, WARM_UP + PEAKS)
    run(0, WARM_UP)

    def peak(first: int, end: int) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        run(first, end)
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        # A run over nothing has the loop's own objects only.
        return statistics.median(
            peak(number, number + 1) - peak(number, number) for number in range(WARM_UP, WARM_UP + PEAKS)
        )
    finally:
        tracemalloc.stop()


class Counter(NamedTuple):
    """A program that counts what another does: its command, and where its output says how many."""

    command: tuple[str, ...]
    pattern: str
    environ: dict[str, str]


CALLGRIND = Counter(
    ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"), r"Collected : ([\d,]+)", {}
)
PERF = Counter(("perf", "stat", "-x;", "-e", "instructions:u"), r"(?m)^(\d+);", {})
MEMCHECK = Counter(
    ("valgrind", "--tool=memcheck", "--leak-check=no", "--undef-value-errors=no"),
    r"total heap usage: ([\d,]+) allocs",
    {"PYTHONMALLOC": "malloc"},
)


def instruction_counter() -> Counter:
    """Return perf where this machine lets it count, else callgrind. Ends the program when there is neither."""
    if shutil.which("perf"):
        done = subprocess.run([*PERF.command, "true"], capture_output=True, text=True, check=False)
        if re.search(PERF.pattern, done.stderr):
            return PERF
    return need_valgrind(CALLGRIND)


def need_valgrind(counter: Counter) -> Counter:
    """Return ``counter``, or end the program where there is no valgrind."""
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (Debian: apt-get install valgrind)")
    return counter


def count(counter: Counter, key: Key) -> float:
    """Return what one pass costs: the difference of two processes' counts that differ in the number of passes."""
    counts = []
    for passes in (SHORT, LONG):
        done = subprocess.run(
            [
                *counter.command,
                sys.executable,
                "-m",
                "bench.hotpath",
                "--run",
                key.stage,
                key.headers,
                str(passes),
            ],
            capture_output=True,
            text=True,
            check=False,
            # Where strings lie in a dictionary must not depend on chance.
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", **counter.environ},
        )
        found = re.search(counter.pattern, done.stderr)
        if done.returncode or found is None:
            raise RuntimeError(f"{' '.join(counter.command)} has failed:\n{done.stderr}")
        counts.append(int(found[1].replace(",", "")))
    return (counts[1] - counts[0]) / (LONG - SHORT)


def count_all(counter: Counter, table: Table, name: str) -> None:
    """Add what ``counter`` says to the table, under ``name``; as many rows at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for key, number in zip(table, pool.map(lambda key: count(counter, key), table), strict=True):
            table[key][name] = number
            print(f"{name}: {key.stage}, {key.headers}: {number:,.0f}", file=sys.stderr)


def derive(table: Table) -> Table:
    """Return the table with the rows of `connection`: what of `whole` none of its parts accounts for."""
    made: Table = {}
    for key, figures in table.items():
        made[key] = figures
        parts = [table.get(Key(part, key.headers), table.get(Key(part, "-"))) for part in PARTS]
        if key.stage == "whole" and None not in parts:
            made[Key(DERIVED, key.headers)] = {
                name: figures[name] - sum(part[name] for part in parts if part is not None)
                for name in ("us", "instructions", "allocations")
                if name in figures
            }
    return made


# ---- telling -------------------------------------------------------------------------------------------

_COLUMNS = {"us": "µs", "spread": "median", "peak": "peak, bytes", "instructions": "instructions"}
_COLUMNS["allocations"] = "allocations"
_COMPARED = ("us", "instructions", "allocations")


def markdown(table: Table, before: Table | None) -> Iterator[str]:
    """Yield the lines of the table; with ``before``, also how many per cent more or less it is now."""
    shown = [name for name in _COLUMNS if any(name in figures for figures in table.values())]
    compared = [
        name for name in _COMPARED if before and name in shown and any(name in was for was in before.values())
    ]
    titles = [
        "stage",
        "headers",
        *(_COLUMNS[name] for name in shown),
        *(f"{_COLUMNS[name]} against" for name in compared),
    ]
    yield f"| {' | '.join(titles)} |"
    yield "|---|---|" + "---:|" * (len(titles) - 2)
    for key, figures in table.items():
        cells = [key.stage, key.headers, *(_cell(name, figures) for name in shown)]
        cells += [_change(name, figures, (before or {}).get(key, {})) for name in compared]
        yield f"| {' | '.join(cells)} |"


def _cell(name: str, figures: Figures) -> str:
    number = figures.get(name)
    if number is None:
        return "-"
    if name == "us":
        return f"{number:.2f}"
    if name == "spread":
        return f"+{(number - 1) * 100:.0f} %"
    return f"{number:,.1f}" if name == "allocations" else f"{number:,.0f}"


def _change(name: str, now: Figures, before: Figures) -> str:
    if not before.get(name) or name not in now:
        return "-"
    return f"{(now[name] / before[name] - 1) * 100:+.1f} %"


def save(path: Path, table: Table) -> None:
    """Keep the table, and what made it, as JSON."""
    rows = [{"stage": key.stage, "headers": key.headers, **figures} for key, figures in table.items()]
    about = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.release()}
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def load(path: Path) -> Table:
    """Return what `save` has kept; tells when it comes from another Python."""
    kept = json.loads(path.read_text())
    if kept["python"] != platform.python_version():
        print(f"{path} is of Python {kept['python']}: only its proportions compare", file=sys.stderr)
    return {Key(row.pop("stage"), row.pop("headers")): row for row in kept["rows"]}


def main() -> int:
    """Measure and print one Markdown table; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.hotpath",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=25, help="for the times")
    parser.add_argument("--only", default=",".join((*BY_HEADERS, *ONCE)), help="stages")
    parser.add_argument("--headers", default="cached,unique")
    parser.add_argument("--instructions", action="store_true", help="count them (a minute or two)")
    parser.add_argument("--allocations", action="store_true", help="count them (a few minutes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the result")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with a kept one")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # what the counting programs look at
    given = parser.parse_args()
    if given.run:
        stage, headers, passes = given.run
        run = _run_of(Key(stage, headers), WARM_UP + LONG)
        run(0, WARM_UP)
        run(WARM_UP, WARM_UP + int(passes))
        return 0
    stages, headers = given.only.split(","), given.headers.split(",")
    if unknown := {*stages} - {*BY_HEADERS, *ONCE} | {*headers} - {*HEADERS}:
        parser.error(
            f"unknown: {', '.join(unknown)}; stages: {', '.join((*BY_HEADERS, *ONCE))}; headers: {', '.join(HEADERS)}"
        )
    before = load(given.against) if given.against else None
    table = measure_times(keys_of(stages, headers), max(1, given.rounds))
    for key, figures in table.items():
        figures["peak"] = measure_peak(key)
    if given.instructions:
        count_all(instruction_counter(), table, "instructions")
    if given.allocations:
        count_all(need_valgrind(MEMCHECK), table, "allocations")
    table = derive(table)
    if given.json:
        save(given.json, table)
    print("\n".join(markdown(table, before)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
