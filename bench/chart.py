"""Draw the chart of README.md from results of bench compare. Needs matplotlib (extra ``bench``).

    python -m bench chart results.json [more.json ...] [--to docs/images/speed] [--scenario hello,unique,close,flask]

Writes an SVG and a PNG: requests per second (medians), a panel for each scenario, wsgiserv's classes in colour.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.peers import SERVERS
from bench.report import Results
from bench.scenarios import RENAMED, SCENARIOS
from bench.servers import ROOT

_OURS, _PURE, _NATIVE = "#2563a8", "#9aa5b1", "#d9c7a3"
_LEGEND = {"wsgiserv": _OURS, "other servers in Python": _PURE, "servers in C and Rust": _NATIVE}


def bars(results: Results, scenario: str) -> list[tuple[str, float, str]]:
    """Return the bars of one panel, the quickest first: name, requests per second, colour."""
    found = []
    for server in results.servers(scenario):
        if rate := results.median(scenario, server):
            product, _, kind = server.partition(" ")
            pure = server in SERVERS and SERVERS[server].pure
            colour = _OURS if product == "wsgiserv" else _PURE if pure else _NATIVE
            found.append((f"{product} -k {kind}" if kind else product, rate, colour))
    return sorted(found, key=lambda bar: -bar[1])


def draw(results: Results, scenarios: list[str], pyplot: Any) -> Any:
    """Return the figure, two panels in a row."""
    panels = {name: bars(results, name) for name in scenarios}
    rows = (len(panels) + 1) // 2
    most = max(map(len, panels.values()))
    figure, grid = pyplot.subplots(rows, 2, figsize=(11, rows * (0.9 + 0.27 * most)), squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, found) in zip(grid.flat, panels.items(), strict=False):
        labels, rates, colours = zip(*found, strict=True)
        drawn = axes.barh(labels, rates, color=colours, height=0.72)
        axes.bar_label(drawn, [f"{rate:,.0f}" for rate in rates], padding=3, fontsize=8, color="#333333")
        axes.invert_yaxis()
        axes.set_title(SCENARIOS[name].title, fontsize=10, loc="left", fontweight="bold")
        axes.set_xlim(0, max(rates) * 1.15)
        axes.xaxis.set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=8.5)
        for label, colour in zip(axes.get_yticklabels(), colours, strict=True):
            label.set_fontweight("bold" if colour == _OURS else "normal")
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in _LEGEND.values()]
    figure.legend(handles, list(_LEGEND), loc="lower center", ncols=3, frameon=False, fontsize=9)
    python = results.about.get("Python", "?")
    figure.suptitle(f"Requests per second, one worker on one core (Python {python})", fontsize=12)
    figure.tight_layout(rect=(0, 0.03, 1, 0.99))
    return figure


def main() -> int:
    """Draw; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="files of bench compare --json")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "images" / "speed", metavar="PATH")
    parser.add_argument("--scenario", default="hello,unique,close,flask")
    options = parser.parse_args()
    try:
        matplotlib = import_module("matplotlib")
    except ModuleNotFoundError:
        sys.exit("the chart needs matplotlib: pip install 'wsgiserv[bench]'")
    results = Results.read(options.results)
    chosen = [RENAMED.get(name, name) for name in options.scenario.split(",")]
    if missing := [name for name in chosen if name not in results.scenarios()]:
        sys.exit(f"no results of {', '.join(missing)}; there are {', '.join(results.scenarios())}")
    matplotlib.use("Agg")
    # The same input gives the same bytes: no date, no random ids.
    matplotlib.rcParams["svg.hashsalt"] = "wsgiserv"
    figure = draw(results, chosen, import_module("matplotlib.pyplot"))
    options.to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{options.to}.svg", metadata={"Date": None}, facecolor="white")
    figure.savefig(f"{options.to}.png", dpi=130, facecolor="white")
    print(f"wrote {options.to}.svg and {options.to}.png")
    return 0
