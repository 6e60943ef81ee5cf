"""The tables of bench.compare, from what it has saved.

Owns: `Results`, the ratios, `REQUIRED`, Markdown. Must not know: how anything was measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers import SERVERS
from bench.scenarios import SCENARIOS

OURS = {"sync": "wsgiserv sync", "threads": "wsgiserv threads", "gevent": "wsgiserv gevent"}
SAME_CLASS = {"sync": "gunicorn sync", "threads": "gunicorn gthread", "gevent": "gunicorn gevent"}
LOGGED = ", access log"


class Required(NamedTuple):
    """What one row of "The speed" asks for: ratios of wsgiserv's medians to others'; None for nothing.

    ``best`` and ``granian`` are asked of the class that ``best_class`` and ``granian_class`` name, or of the quickest.
    """

    scenario: str
    same_class: Sequence[float | None]
    best: float | None
    granian: float | None
    best_class: str = ""
    granian_class: str = ""


REQUIRED = [
    Required("browser", (8, 7, 6), 6, 1.0, granian_class="sync"),
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
CLIENT_IS_THE_LIMIT = 0.95


class Results:
    """All that was measured, by scenario and server.

    Attributes:
        about: the machine, the versions, the options.
        rows: as they were saved: a dictionary for each round, with figures or with ``trouble``.
    """

    def __init__(self, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.about = about
        self.rows = rows

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Results:
        """Read files that `write` has made; where two have the same scenario, the later one counts."""
        about: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        for path in paths:
            saved = json.loads(path.read_text())
            about = saved["about"]
            newer = {row["scenario"] for row in saved["rows"]}
            rows = [row for row in rows if row["scenario"] not in newer] + saved["rows"]
        return cls(about, rows)

    def write(self, path: Path) -> None:
        """Save everything, by way of another file, so that an interruption loses nothing."""
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1) + "\n")
        partial.replace(path)

    def scenarios(self) -> list[str]:
        """Those of which there is anything, in the usual order."""
        present = {row["scenario"] for row in self.rows}
        return [name for name in SCENARIOS if name in present]

    def servers(self, scenario: str) -> list[str]:
        """Those that were to take part, in the order of their first round."""
        return list(dict.fromkeys(row["server"] for row in self.rows if row["scenario"] == scenario))

    def values(self, scenario: str, server: str, figure: str) -> list[float]:
        """One figure of all rounds that went well, and in which it was looked at."""
        return [
            row[figure]
            for row in self.rows
            if row["scenario"] == scenario
            and row["server"] == server
            and "trouble" not in row
            and (figure in row or figure not in ("rss_kib", "pss_kib"))
        ]

    def median(self, scenario: str, server: str, figure: str = "rate") -> float | None:
        """The median over the rounds, None when none went well."""
        values = self.values(scenario, server, figure)
        return statistics.median(values) if values else None

    def trouble(self, scenario: str, server: str) -> str:
        """Why a server has no figures, or fewer than it should; empty when all is well."""
        said = [
            row["trouble"]
            for row in self.rows
            if row["scenario"] == scenario and row["server"] == server and "trouble" in row
        ]
        return str(said[0]) if said else ""

    def best(self, scenario: str, servers: Iterable[str]) -> tuple[str, float] | None:
        """The quickest of some servers, and its rate."""
        rates = [(server, self.median(scenario, server)) for server in servers]
        known = [(server, rate) for server, rate in rates if rate]
        return max(known, key=lambda pair: pair[1], default=None)

    def ratio(self, scenario: str, ours: Iterable[str], theirs: Iterable[str]) -> tuple[float, str] | None:
        """How many times the best of ``theirs`` the best of ``ours`` is, and which of theirs it is."""
        mine, other = self.best(scenario, ours), self.best(scenario, theirs)
        return (mine[1] / other[1], other[0]) if mine and other else None


def scenario_table(results: Results, scenario: str) -> str:
    """Return one scenario's table, the quickest first, those without figures last."""
    what = SCENARIOS[scenario]
    best = results.best(scenario, OURS.values())
    last = "MB/s | " if what.download else ""
    lines = [
        f"### {what.title}",
        "",
        f"{what.connections} connection{'s'[: what.connections > 1]}. {what.note}".strip(),
        "",
        f"| server | requests/s | {last}wsgiserv's best is | p50 ms | p99 ms | RSS MiB | PSS MiB | failed |",
        f"|---|---:|{'---:|' if what.download else ''}---:|---:|---:|---:|---:|---|",
    ]
    limited = False
    servers = results.servers(scenario)
    for server in sorted(servers, key=lambda name: -(results.median(scenario, name) or 0)):
        rate = results.median(scenario, server)
        trouble = results.trouble(scenario, server)
        name = f"**{server}**" if server.startswith("wsgiserv") else server
        if rate is None:
            lines.append(f"| {name} | – |{' – |' if what.download else ''} – | – | – | – | – | {trouble} |")
            continue
        busy = results.median(scenario, server, "client_busy") or 0
        limited |= busy > CLIENT_IS_THE_LIMIT
        cells = [name, _count(rate) + ("\\*" if busy > CLIENT_IS_THE_LIMIT else "")]
        if what.download:
            cells.append(f"{(results.median(scenario, server, 'bytes_per_s') or 0) / 1e6:,.0f}")
        cells.append(f"{best[1] / rate:.2f} ×" if best else "")
        cells += [f"{results.median(scenario, server, figure):.2f}" for figure in ("p50_ms", "p99_ms")]
        cells += [
            f"{(results.median(scenario, server, figure) or 0) / 1024:,.0f}"
            for figure in ("rss_kib", "pss_kib")
        ]
        failed = sum(results.values(scenario, server, "failed"))
        cells.append(f"{failed:,.0f}" + (f"; {trouble}" if trouble else ""))
        lines.append(f"| {' | '.join(cells)} |")
    if limited:
        lines += ["", "\\* The client was busy all the time: the server may be quicker than that."]
    return "\n".join(lines) + "\n"


def _count(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:,.1f}"


def _cell(found: tuple[float, str] | None, required: float | None, named: bool = False) -> tuple[str, bool]:
    """Return a cell and whether it is short of what is required."""
    if required is None:
        return "–", False
    if found is None:
        return f"≥ {required:g}: not measured", False
    ratio, rival = found
    short = ratio < required
    verdict = f"**{ratio:.2f}** ≥ {required:g} {'**short**' if short else 'ok'}"
    return verdict + (f" ({rival})" if named else ""), short


def speed_table(results: Results) -> tuple[str, int]:
    """Return the table of what is required and what was measured, and how many of its cells are short."""
    pure = [peer.name for peer in SERVERS.values() if peer.pure]
    lines = [
        "### The speed: required and measured",
        "",
        "Ratios of medians; against the best pure-Python peer and granian, of wsgiserv's quickest or the named class.",
        "",
        "| scenario | gunicorn, sync | gunicorn, threads | gunicorn, gevent | best pure-Python peer | granian |",
        "|---|---|---|---|---|---|",
    ]
    missed = 0
    for required in REQUIRED:
        scenario = required.scenario
        cells = [
            _cell(results.ratio(scenario, [OURS[kind]], [SAME_CLASS[kind]]), least)
            for kind, least in zip(OURS, required.same_class, strict=True)
        ]
        for rivals, least, kind in (
            (pure, required.best, required.best_class),
            (["granian"], required.granian, required.granian_class),
        ):
            ours = [OURS[kind]] if kind else list(OURS.values())
            text, short = _cell(results.ratio(scenario, ours, rivals), least, named=rivals is pure)
            cells.append((f"{kind}: {text}" if kind else text, short))
        missed += sum(short for _, short in cells)
        lines.append(f"| {SCENARIOS[scenario].title} | {' | '.join(text for text, _ in cells)} |")
    lines.append("")
    for kind, server in OURS.items():
        off, on = results.median("log", server), results.median("log", server + LOGGED)
        if off and on:
            cost = 1 - on / off
            missed += cost > LOG_COSTS_AT_MOST
            verdict = "ok" if cost <= LOG_COSTS_AT_MOST else "**short**"
            lines.append(
                f"- Access log, {kind}: costs {cost:.1%} (at most {LOG_COSTS_AT_MOST:.0%}) {verdict}"
            )
    for kind, server in OURS.items():
        p99_ms = results.median("many", server, "p99_ms")
        if p99_ms is not None:
            missed += p99_ms >= P99_AT_500_MS
            verdict = "ok" if p99_ms < P99_AT_500_MS else "**short**"
            lines.append(
                f"- p99 with 500 connections, {kind}: {p99_ms:.1f} ms (under {P99_AT_500_MS:g} ms) {verdict}"
            )
    return "\n".join(lines) + "\n", missed


def full_report(results: Results) -> str:
    """Return everything, in Markdown."""
    about = results.about
    head = [f"- {name}: {value}" for name, value in about.items()]
    tables = [scenario_table(results, scenario) for scenario in results.scenarios()]
    return "\n".join(["\n".join(head) + "\n", *tables, speed_table(results)[0]])
