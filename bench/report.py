"""The tables of bench compare, from its saved results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers import SERVERS
from bench.scenarios import RENAMED, SCENARIOS
from bench.servers import CLASSES
from bench.table import Table, cell

OURS = {kind: f"wsgiserv {kind}" for kind in CLASSES}
SAME_CLASS = {"sync": "gunicorn sync", "threads": "gunicorn gthread", "gevent": "gunicorn gevent"}
LOGGED = ", access log"
TREES = (", before", ", after")


class Required(NamedTuple):
    """Required ratios of wsgiserv's medians to others' in one scenario; None requires nothing.

    ``best`` and ``granian`` are required of the class in ``best_class`` and ``granian_class``, or of the quickest.
    """

    scenario: str
    same_class: Sequence[float | None]
    best: float
    granian: float
    best_class: str = ""
    granian_class: str = ""


REQUIRED = [
    Required("hello", (8, 7, 6), 6, 1.0, granian_class="sync"),
    Required("unique", (6, 5, 5), 5, 0.8),
    Required("close", (2.2, 2.2, 2.2), 2.2, 0.9),
    Required("flask", (2.5, 2.5, 2), 2.2, 1.0),
    Required("post", (6, 5, 4), 5, 0.8),
    Required("large", (2, 1.5, 1.3), 1.5, 1.0),
    Required("stream", (2, 1.5, 1.8), 1.5, 0.8),
    Required("file", (1.5, 1.1, 3), 1.0, 1.0),
    Required("io64", (None, 1.02, 1.05), 1.0, 1.0, granian_class="threads"),
    Required("io500", (None, 1.0, 2.5), 2.5, 4, best_class="gevent", granian_class="gevent"),
]
LOG_COSTS_AT_MOST = 0.15
P99_AT_500_MS = 15.0
# The ideal of io64: 64 threads which wait 10 ms each.
IDEAL_OF_64, LEAST_OF_IDEAL = 6400.0, 0.95
CLIENT_IS_THE_LIMIT = 0.95
# Title and unit of the columns.
FIGURES = {
    "bytes_per_s": ("MB/s", 1e6),
    "p50_ms": ("p50 ms", 1),
    "p99_ms": ("p99 ms", 1),
    "user_us": ("user µs", 1),
    "system_us": ("system µs", 1),
    "rss_kib": ("RSS MiB", 1024),
    "pss_kib": ("PSS MiB", 1024),
}


class Results:
    """All results of a run, by scenario and server.

    Attributes:
        about: the machine, the versions, the options.
        rows: a dictionary for each round, with figures or with ``trouble``.
    """

    def __init__(self, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.about = about
        self.rows = rows

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Results:
        """Read files of `write`; where two have the same scenario, the later one counts."""
        about: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        for path in paths:
            saved = json.loads(path.read_text())
            about = saved["about"]
            for row in saved["rows"]:
                row["scenario"] = RENAMED.get(row["scenario"], row["scenario"])
            newer = {row["scenario"] for row in saved["rows"]}
            rows = [row for row in rows if row["scenario"] not in newer] + saved["rows"]
        return cls(about, rows)

    def write(self, path: Path) -> None:
        """Save everything, by way of another file, so that an interruption loses nothing."""
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1) + "\n")
        partial.replace(path)

    def scenarios(self) -> list[str]:
        """Return the scenarios with rows, in the usual order."""
        present = {row["scenario"] for row in self.rows}
        return [name for name in SCENARIOS if name in present]

    def _rows(self, scenario: str, server: str = "") -> list[dict[str, Any]]:
        return [row for row in self.rows if row["scenario"] == scenario and server in ("", row["server"])]

    def servers(self, scenario: str) -> list[str]:
        """Return the servers of a scenario, in the order of their first round."""
        return list(dict.fromkeys(row["server"] for row in self._rows(scenario)))

    def values(self, scenario: str, server: str, figure: str) -> list[float]:
        """Return one figure of all rounds that have it."""
        return [row[figure] for row in self._rows(scenario, server) if figure in row]

    def median(self, scenario: str, server: str, figure: str = "rate") -> float | None:
        """Return the median over the rounds; None without any."""
        values = self.values(scenario, server, figure)
        return statistics.median(values) if values else None

    def trouble(self, scenario: str, server: str) -> str:
        """Return why a server has fewer figures than rounds, or nothing."""
        return next((str(row["trouble"]) for row in self._rows(scenario, server) if "trouble" in row), "")

    def best(self, scenario: str, servers: Iterable[str]) -> tuple[str, float] | None:
        """Return the quickest of some servers, and its rate."""
        known = [(server, rate) for server in servers if (rate := self.median(scenario, server))]
        return max(known, key=lambda pair: pair[1], default=None)

    def ratio(self, scenario: str, ours: Iterable[str], theirs: Iterable[str]) -> tuple[float, str] | None:
        """Return the best of ``ours`` divided by the best of ``theirs``, and the name of the latter."""
        mine, other = self.best(scenario, ours), self.best(scenario, theirs)
        return (mine[1] / other[1], other[0]) if mine and other else None


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table."""
    lines: list[str] = []
    made = Table(*heads, write=lines.append)
    for row in rows:
        made.row(*row)
    return lines


def scenario_table(results: Results, scenario: str) -> str:
    """Return one scenario's table, the quickest first, servers without figures last."""
    described = SCENARIOS[scenario]
    best = results.best(scenario, OURS.values())
    figures = [name for name in FIGURES if name != "bytes_per_s" or described.download]
    limited = False
    rows: list[list[object]] = []
    for server in sorted(results.servers(scenario), key=lambda name: -(results.median(scenario, name) or 0)):
        rate, trouble = results.median(scenario, server), results.trouble(scenario, server)
        name = f"**{server}**" if server.startswith("wsgiserv") else server
        if rate is None:
            rows.append([name, *["–"] * (2 + len(figures)), trouble])
            continue
        star = "\\*" if (results.median(scenario, server, "client_busy") or 0) > CLIENT_IS_THE_LIMIT else ""
        limited |= bool(star)
        cells: list[object] = [name, (f"{rate:,.0f}" if rate >= 100 else f"{rate:,.1f}") + star]
        cells.append(f"{best[1] / rate:.2f} ×" if best else "")
        for figure in figures:
            value = results.median(scenario, server, figure)
            shown = (value or 0) / FIGURES[figure][1]
            cells.append("–" if value is None else f"{shown:,.0f}" if FIGURES[figure][1] > 1 else shown)
        failed = f"{sum(results.values(scenario, server, 'failed')):,.0f}"
        rows.append([*cells, "; ".join(filter(None, (failed, trouble)))])
    load = f"{described.connections} connection{'s'[: described.connections > 1]}. {described.note}".strip()
    titles = [FIGURES[name][0] for name in figures]
    heads = ["server", "requests/s", "wsgiserv's best is", *titles, "failed"]
    lines = [f"### {described.title}", "", load, "", *table(heads, rows)]
    if limited:
        lines += ["", "\\* The client was busy all the time: the server may be quicker than that."]
    return "\n".join(lines) + "\n"


def tree_table(results: Results, least: float) -> tuple[str, int]:
    """Return the table of two checkouts, and how many of its ratios are below ``least``."""
    rows: list[list[object]] = []
    missed = 0
    for scenario in results.scenarios():
        for server in OURS.values():
            before, after = (server + name for name in TREES)
            if before not in results.servers(scenario):
                continue
            cells: list[object] = [f"{scenario}, {server.split()[1]}"]
            for figure in ("rate", "user_us", "system_us"):
                was, now = results.median(scenario, before, figure), results.median(scenario, after, figure)
                if was and now:
                    cells += [was, now, f"**{now / was:.3f}**"]
                else:
                    cells += ["–"] * 3
                missed += figure == "rate" and (not was or not now or now / was < least)
            cells += [cell(results.median(scenario, after, "p99_ms") or "–")]
            troubles = (results.trouble(scenario, before), results.trouble(scenario, after))
            failed = sum(sum(results.values(scenario, name, "failed")) for name in (before, after))
            rows.append([*cells, "; ".join(filter(None, (f"{failed:,.0f}", *troubles)))])
    heads = ["scenario, class", "req/s before", "after", "ratio", "user µs before", "after", "ratio"]
    heads += ["system µs before", "after", "ratio", "p99 ms after", "failed"]
    return "\n".join(table(heads, rows)) + "\n", missed


def _judge(found: tuple[float, str] | None, required: float | None, named: bool = False) -> tuple[str, bool]:
    """Return a cell, and whether it is short of the requirement."""
    if required is None:
        return "–", False
    if found is None:
        return f"≥ {required:g}: not measured", False
    short = found[0] < required
    verdict = f"**{found[0]:.2f}** ≥ {required:g} {_verdict(not short)}"
    return verdict + (f" ({found[1]})" if named else ""), short


def _verdict(good: bool) -> str:
    return "ok" if good else "**short**"


def speed_table(results: Results) -> tuple[str, int]:
    """Return the table of required and measured ratios, and how many of its cells are short."""
    pure = [peer.name for peer in SERVERS.values() if peer.pure]
    rows = []
    missed = 0
    for required in REQUIRED:
        scenario = required.scenario
        if not results.servers(scenario):
            continue
        cells = [
            _judge(results.ratio(scenario, [OURS[kind]], [SAME_CLASS[kind]]), least)
            for kind, least in zip(OURS, required.same_class, strict=True)
        ]
        for rivals, least, kind in (
            (pure, required.best, required.best_class),
            (["granian"], required.granian, required.granian_class),
        ):
            ours = [OURS[kind]] if kind else list(OURS.values())
            text, short = _judge(results.ratio(scenario, ours, rivals), least, named=rivals is pure)
            cells.append((f"{kind}: {text}" if kind else text, short))
        missed += sum(short for _, short in cells)
        rows.append([SCENARIOS[scenario].title, *(text for text, _ in cells)])
    title = "### The speed: required and measured"
    note = "Ratios of medians; to the best pure-Python peer and granian, of wsgiserv's quickest or the named class."
    heads = ["scenario", *(f"gunicorn, {kind}" for kind in CLASSES), "best pure-Python peer", "granian"]
    lines = [title, "", note, "", *table(heads, rows), ""]
    for kind, server in OURS.items():
        off, on = results.median("log", server), results.median("log", server + LOGGED)
        p99_ms = results.median("many", server, "p99_ms")
        waited = results.median("io64", server) if kind == "threads" else None
        checks = []
        if off and on:
            cost = 1 - on / off
            text = f"Access log, {kind}: costs {cost:.1%} (at most {LOG_COSTS_AT_MOST:.0%})"
            checks.append((text, cost <= LOG_COSTS_AT_MOST))
        if p99_ms is not None:
            text = f"p99 with 500 connections, {kind}: {p99_ms:.1f} ms (under {P99_AT_500_MS:g} ms)"
            checks.append((text, p99_ms < P99_AT_500_MS))
        if waited is not None:
            share = waited / IDEAL_OF_64
            text = f"10 ms of I/O, 64 {kind}: {share:.1%} of the ideal (at least {LEAST_OF_IDEAL:.0%})"
            checks.append((text, share >= LEAST_OF_IDEAL))
        missed += sum(not good for _, good in checks)
        lines += [f"- {text} {_verdict(good)}" for text, good in checks]
    return "\n".join(lines) + "\n", missed


def full_report(results: Results, least: float = 0.0) -> tuple[str, int]:
    """Return everything in Markdown, and how many requirements are missed."""
    head = "\n".join(f"- {name}: {value}" for name, value in results.about.items()) + "\n"
    if any(row["server"].endswith(TREES) for row in results.rows):
        table, missed = tree_table(results, least)
        return f"{head}\n{table}", missed
    speed, missed = speed_table(results)
    tables = [scenario_table(results, scenario) for scenario in results.scenarios()]
    return "\n".join([head, *tables, speed]), missed
