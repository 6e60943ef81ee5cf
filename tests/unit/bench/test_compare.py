"""bench.compare: what it reads, what it works out, and what it says of a server that is not there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from programs import need

from bench.__main__ import programs
from bench.chart import bars
from bench.compare import Comparison, entries
from bench.peers import SERVERS, Peer, PeerEnvironment, why
from bench.peerserver import read_wrk
from bench.report import LOGGED, Results, full_report, scenario_table, speed_table
from bench.scenarios import SCENARIOS

WRK = """\
Running 2s test @ http://127.0.0.1:8000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   344.55us  120.10us   4.90ms   91.16%
    Req/Sec    90.69k     2.35k   95.13k    66.67%
  Latency Distribution
     50%  331.00us
     75%  389.00us
     90%  448.00us
     99%    1.25s
  189440 requests in 2.10s, 27.10MB read
{troubles}Requests/sec:  90191.01
Transfer/sec:     12.50MB
"""
TROUBLES = "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 50000\n"


def test_wrk_is_read() -> None:
    load = read_wrk(WRK.format(troubles=""))
    assert (load.rate, load.p50_ms, load.p99_ms, load.failed) == (90191.01, 0.331, 1250.0, 0)
    assert load.bytes_per_s == 12.5 * 1024 * 1024


def test_all_failures_count() -> None:
    assert read_wrk(WRK.format(troubles=TROUBLES)).failed == 54321


def test_output_without_a_result_is_an_error() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        read_wrk("unable to connect to 127.0.0.1:8000 Connection refused")


def row(scenario: str, server: str, number: int, rate: float, **more: Any) -> dict[str, Any]:
    figures = {"p50_ms": 1.0, "p99_ms": 20.0, "failed": 0, "bytes_per_s": 1e6, "client_busy": 0.5}
    memory = {"rss_kib": 40960, "pss_kib": 20480}
    return {"scenario": scenario, "server": server, "round": number, "rate": rate} | figures | memory | more


@pytest.fixture
def results() -> Results:
    rates = {
        "wsgiserv sync": (90_000, 100_000, 10),
        "wsgiserv threads": (60_000, 60_000, 60_000),
        "gunicorn sync": (10_000, 9_000, 11_000),
        "gunicorn gthread": (10_000, 10_000, 10_000),
        "waitress": (18_000, 18_000, 18_000),
        "granian": (80_000, 80_000, 80_000),
        "fastwsgi": (900_000, 900_000, 900_000),
    }
    rows = [
        row("browser", name, number, rate)
        for name, rounds in rates.items()
        for number, rate in enumerate(rounds)
    ]
    rows.append(
        {"scenario": "browser", "server": "bjoern", "round": 1, "trouble": "cannot be installed: ev.h"}
    )
    rows += [
        row("log", f"wsgiserv sync{LOGGED * on}", 1, rate) for on, rate in ((False, 100.0), (True, 80.0))
    ]
    return Results({"Python": "3.11"}, rows)


def test_ratios_are_of_medians(results: Results) -> None:
    table, missed = speed_table(results)
    line = next(line for line in table.splitlines() if line.startswith(f"| {SCENARIOS['browser'].title}"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        "**9.00** ≥ 8 ok",
        "**6.00** ≥ 7 **short**",
        "≥ 6: not measured",
        # fastwsgi is quicker, but not written in Python
        "**5.00** ≥ 6 **short** (waitress)",
        "sync: **1.12** ≥ 1 ok",
    ]
    assert "Access log, sync: costs 20.0% (at most 15%) **short**" in table
    assert missed == 3


def test_table_is_ordered_and_says_why_a_server_is_missing(results: Results) -> None:
    lines = scenario_table(results, "browser").splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:]
    assert names[:2] == ["fastwsgi", "**wsgiserv sync**"]
    assert names[-1] == "bjoern"
    assert "cannot be installed: ev.h" in lines[-1]
    assert next(line for line in lines if "waitress" in line).split("|")[3].strip() == "5.00 ×"


def test_results_outlive_the_run(results: Results, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    results.write(first)
    Results({}, [row("log", "wsgiserv sync", 1, 7.0)]).write(second)
    assert full_report(Results.read([first])) == full_report(results)
    both = Results.read([first, second])
    assert both.median("log", "wsgiserv sync") == 7.0
    assert both.servers("log") == ["wsgiserv sync"]
    assert both.median("browser", "granian") == 80_000
    assert json.loads(second.read_text())["rows"][0]["rate"] == 7.0


def test_chart_has_a_bar_for_each_server_with_figures(results: Results) -> None:
    found = bars(results, "browser")
    assert [name for name, _, _ in found][:3] == ["fastwsgi", "wsgiserv -k sync", "granian"]
    assert "bjoern" not in {name for name, _, _ in found}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "x.c:4:10: fatal error: ev.h: No such file or directory\nerror: command failed",
            "ev.h: No such file or",
        ),
        (
            "Traceback:\nModuleNotFoundError: No module named 'gone'\n",
            "ModuleNotFoundError: No module named 'gone'",
        ),
        ("ERROR: No matching distribution found for nosuch\n", "No matching distribution found for nosuch"),
        ("", "it said nothing"),
    ],
)
def test_reason_is_a_few_words(output: str, reason: str) -> None:
    assert why(output).startswith(reason)
    assert len(why(output * 40)) <= 90


@pytest.mark.system
def test_server_that_does_not_start_is_a_row(tmp_path: Path) -> None:
    need("taskset")
    executables = Path(shutil.which(sys.executable) or sys.executable).parent
    environment = cast(PeerEnvironment, SimpleNamespace(bin=executables))
    peer = Peer("gone", [], ["-c", "import nothing_of_this_name"], program=Path(sys.executable).name)
    found = Comparison(environment, tmp_path, 1).measure(peer, SCENARIOS["browser"], False, True)
    assert found == {"trouble": "does not start: ModuleNotFoundError: No module named 'nothing_of_this_name'"}


def test_who_takes_part() -> None:
    everybody = list(SERVERS.values())
    assert len(entries(SCENARIOS["browser"], everybody)) == len(everybody)
    waiting = {name for name, _, _ in entries(SCENARIOS["io64"], everybody)}
    assert {"wsgiserv threads", "gunicorn gthread", "granian"} <= waiting
    assert not {"wsgiserv sync", "gunicorn sync", "wsgiref"} & waiting
    logged = [name for name, _, _ in entries(SCENARIOS["log"], everybody)]
    assert logged[:2] == ["wsgiserv sync", f"wsgiserv sync{LOGGED}"]
    assert len(logged) == 12


def test_threads_and_application_are_in_the_command() -> None:
    command = SERVERS["gunicorn gthread"].command("m:app", 64, Path("/log"))
    assert command[-5:] == ["--threads", "64", "--access-logfile", "/log", "m:app"]
    assert SERVERS["waitress"].command("m:app") == [
        "-m",
        "bench.standalone",
        "waitress",
        "{port}",
        "8",
        "m:app",
    ]
    uwsgi = SERVERS["uWSGI"].command("m:app")
    assert uwsgi[uwsgi.index("--module") + 1] == "m:app"
    assert uwsgi[-2:] == ["--threads", "1"]


def test_every_benchmark_is_listed_with_what_it_does() -> None:
    found = programs()
    assert {"compare", "chart", "hello"} <= set(found)
    assert "peerserver" not in found
    assert all(found.values())
