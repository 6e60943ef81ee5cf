"""The harness of bench: its readers and ratios, its tables, its options and its list."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import PRESETS, SOAK, programs
from bench.chart import bars
from bench.compare import Entry, entries
from bench.hotpath import BY_HEADERS, DERIVED, ONCE, Key
from bench.latency import DONE, MEASURABLE
from bench.latency import row as latency_row
from bench.load import Load, percentile, read_wrk
from bench.open_loop import OpenLoop, is_whole, schedule
from bench.peers import SERVERS
from bench.perrequest import Slice, divided, run_time_s, show
from bench.report import LOGGED, TREES, Results, full_report, scenario_table, speed_table
from bench.scenarios import SCENARIOS
from bench.servers import ROOT, CpuTime, Tree, why
from bench.table import Table, options_of, turns

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
    assert load.requests == 189440


def test_exact_percentiles_of_a_script_count() -> None:
    load = read_wrk(WRK.format(troubles="") + "50% 331us\n99% 1251034us\n99.9% 1300001us\nClient late: 20.5us\n")
    assert (load.p50_ms, load.p99_ms, load.p999_ms) == (0.331, 1251.034, 1300.001)
    assert load.late_ms == pytest.approx(0.0205)
    assert (read_wrk(WRK.format(troubles="")).p999_ms, "%g%% %dus" in DONE) == (0.0, True)


def test_all_failures_count() -> None:
    assert read_wrk(WRK.format(troubles=TROUBLES)).failed == 54321


def test_output_without_a_result_is_an_error() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        read_wrk("unable to connect to 127.0.0.1:8000 Connection refused")


def row(scenario: str, server: str, number: int, rate: float, **more: Any) -> dict[str, Any]:
    figures = {"p50_ms": 1.0, "p99_ms": 20.0, "failed": 0, "bytes_per_s": 1e6, "client_busy": 0.5, "user_us": 9.0}
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
    rows = [row("hello", name, number, rate) for name, rounds in rates.items() for number, rate in enumerate(rounds)]
    rows.append({"scenario": "hello", "server": "bjoern", "round": 1, "trouble": "cannot be installed: ev.h"})
    rows += [row("log", f"wsgiserv sync{LOGGED * on}", 1, rate) for on, rate in ((False, 100.0), (True, 80.0))]
    return Results({"Python": "3.11"}, rows)


def test_ratios_are_of_medians(results: Results) -> None:
    table, missed = speed_table(results)
    line = next(line for line in table.splitlines() if line.startswith(f"| {SCENARIOS['hello'].title}"))
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
    lines = scenario_table(results, "hello").splitlines()
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
    assert both.median("hello", "granian") == 80_000
    assert json.loads(second.read_text())["rows"][0]["rate"] == 7.0


def test_chart_has_a_bar_for_each_server_with_figures(results: Results) -> None:
    found = bars(results, "hello")
    assert [name for name, _, _ in found][:3] == ["fastwsgi", "wsgiserv -k sync", "granian"]
    assert "bjoern" not in {name for name, _, _ in found}


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("x.c:4:10: fatal error: ev.h: No such file or directory\nerror: command failed", "ev.h: No such file or"),
        ("Traceback:\nModuleNotFoundError: No module named 'gone'\n", "ModuleNotFoundError: No module named 'gone'"),
        ("ERROR: No matching distribution found for nosuch\n", "No matching distribution found for nosuch"),
        ("", "it said nothing"),
    ],
)
def test_reason_is_a_few_words(output: str, reason: str) -> None:
    assert why(output).startswith(reason)
    assert len(why(output * 40)) <= 90


def test_who_takes_part() -> None:
    everybody = list(SERVERS.values())
    assert len(entries(SCENARIOS["hello"], everybody)) == len(everybody)
    waiting = {entry.shown for entry in entries(SCENARIOS["io64"], everybody)}
    assert {"wsgiserv threads", "gunicorn gthread", "granian"} <= waiting
    assert not {"wsgiserv sync", "gunicorn sync", "wsgiref"} & waiting
    logged = [entry.shown for entry in entries(SCENARIOS["log"], everybody)]
    assert logged[:2] == ["wsgiserv sync", f"wsgiserv sync{LOGGED}"]
    assert len(logged) == 12


def test_threads_and_application_are_in_the_command() -> None:
    command = SERVERS["gunicorn gthread"].command("m:app", 64, "/log")
    assert command[-5:] == ["--threads", "64", "--access-logfile", "/log", "m:app"]
    assert SERVERS["waitress"].command("m:app") == ["-m", "bench.standalone", "waitress", "{port}", "8", "m:app"]
    uwsgi = SERVERS["uWSGI"].command("m:app")
    assert uwsgi[uwsgi.index("--module") + 1] == "m:app"
    assert uwsgi[-2:] == ["--threads", "1"]


def test_results_of_before_the_renaming_are_read(tmp_path: Path) -> None:
    saved = tmp_path / "old.json"
    Results({}, [row("browser", "wsgiserv sync", 1, 7.0)]).write(saved)
    assert Results.read([saved]).scenarios() == ["hello"]


def test_two_trees_alternate_and_their_ratios_are_judged() -> None:
    peers = [SERVERS["wsgiserv sync"], SERVERS["wsgiserv gevent"]]
    trees = [Tree(Path("/old")), Tree(Path("/new"))]
    of_trees = entries(SCENARIOS["hello"], peers, trees)
    assert [(entry.shown, entry.tree) for entry in of_trees[:2]] == [
        ("wsgiserv sync, before", trees[0]),
        ("wsgiserv sync, after", trees[1]),
    ]
    first, second = (number for number, entry in turns(2, of_trees) if entry == of_trees[0])
    assert (first, second) == (1, 2)
    assert [entry for number, entry in turns(2, of_trees) if number == 2] == of_trees[::-1]
    rows = [
        row("hello", f"wsgiserv {kind}{tree}", 1, rate)
        for kind, rates in {"sync": (1000.0, 980.0), "gevent": (1000.0, 960.0)}.items()
        for tree, rate in zip(TREES, rates, strict=True)
    ]
    text, missed = full_report(Results({}, rows), 0.97)
    assert missed == 1
    line = next(line for line in text.splitlines() if line.startswith("| hello, sync"))
    assert [cell.strip() for cell in line.split("|")[2:6]] == ["1,000", "980.00", "**0.980**", "9.00"]
    rows.append({"scenario": "post", "server": "wsgiserv sync, before", "round": 1, "trouble": "gone"})
    assert full_report(Results({}, rows), 0.9)[1] == 1, "a server without figures is a miss"


def test_the_exact_run_time_is_divided_as_the_ticks_are() -> None:
    assert divided(2.0, CpuTime(0.3, 0.1)) == pytest.approx((1.5, 0.5))
    assert divided(0.0, CpuTime(0.0, 0.0)) == (0.0, 0.0)  # an idle slice


def test_run_time_is_that_of_all_threads() -> None:
    done = threading.Event()
    spun = threading.Event()

    def spin() -> None:
        while time.thread_time() < 0.05:
            pass
        spun.set()
        done.wait(30)  # what a thread has used is lost when it ends

    before = run_time_s([os.getpid()])
    thread = threading.Thread(target=spin)
    thread.start()
    assert spun.wait(30)
    assert run_time_s([os.getpid(), 2**22 + 1]) - before >= 0.049
    done.set()
    thread.join()


def test_cpu_time_per_request_is_beside_the_first_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Entry(name, SERVERS[name]) for name in ("wsgiserv sync", "granian", "fastwsgi")]
    slices = {"wsgiserv sync": [Slice(9, 1, 1), Slice(10, 40, 10), Slice(11, 90, 20)], "granian": [Slice(5, 20, 20)]}
    show("flask", rows, slices)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| wsgiserv sync | 10.0 | 1.00 | 40.0 | 1.00 | 10.0 | 1.00 | 50.0 |",
        "| granian | 5.0 | 0.50 | 20.0 | 0.50 | 20.0 | 2.00 | 40.0 |",
    ]


def test_with_two_trees_it_is_beside_the_old_one_in_the_same_class(capsys: pytest.CaptureFixture[str]) -> None:
    rows = entries(SCENARIOS["flask"], [SERVERS["wsgiserv sync"], SERVERS["wsgiserv gevent"]], [Tree(), Tree()])
    show("flask", rows, {row.shown: [Slice(10 + n, 10, 10)] for n, row in enumerate(rows)})
    assert [line.split(" | ")[2] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "1.00",
        "1.10",
        "1.00",
        "1.08",
    ]


def test_options_come_from_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(*given: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["python -m bench some", *given])
        return options_of("Says.", choose=("classes", "trees"), seconds=2.5, most_rows=7, quick=False, json=Path)

    found = options()
    assert (found.classes, found.trees) == (["sync", "threads", "gevent"], None)
    assert (found.seconds, found.most_rows, found.quick, found.json) == (2.5, 7, False, None)
    found = options("-k", "gevent,sync", "--most-rows", "8", "--quick", "--json", "x", "--trees", str(ROOT), str(ROOT))
    assert (found.classes, found.most_rows, found.quick, found.json) == (["gevent", "sync"], 8, True, Path("x"))
    assert found.trees[1].path == ROOT
    with pytest.raises(SystemExit, match="2"):
        options("-k", "gevnt")


def test_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    Table("name", "count", "time").row("a", 12345, 1.5)
    assert capsys.readouterr().out == "| name | count | time |\n|---|---:|---:|\n| a | 12,345 | 1.50 |\n"


def test_every_measurement_is_listed_with_its_purpose() -> None:
    found = programs()
    names = {"chart", "compare", "download", "flask", "footprint", "hotpath", "latency", "open_loop", "perrequest"}
    assert names == set(found)
    of_soak = {"chaos", "kill9", "restarts", "memory", "mixed", "stranded", "shield", "large", "idle", "nginx"}
    assert of_soak | {"tls_reload", "fuzz", "autoscale", "programs", "websockets"} == set(programs(SOAK))
    assert {options.split()[0] for options in PRESETS.values()} <= set(found)
    assert all({**found, **programs(SOAK)}.values())


def test_schedule_is_a_poisson_process_and_the_same_for_both_trees() -> None:
    times = schedule(2000, 5.0, seed=3)
    assert times == schedule(2000, 5.0, seed=3) != schedule(2000, 5.0, seed=4)
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 5.0
    gaps = sorted(after - before for before, after in pairwise(times))
    assert len(times) == pytest.approx(10_000, rel=0.05)
    # Of an exponential distribution with this mean.
    assert percentile(gaps, 0.5) == pytest.approx(0.000347, rel=0.1)
    assert percentile(gaps, 0.99) == pytest.approx(0.0023, rel=0.2)


def test_request_of_a_client_in_python_is_that_of_the_script() -> None:
    assert SCENARIOS["bare"].request() == b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    hello, unique = SCENARIOS["hello"].request(), SCENARIOS["unique"].request()
    assert b"\r\nAccept-Language: en-GB,en;q=0.5\r\n" in hello
    assert (hello.count(b"%"), unique.count(b"%"), unique.count(b"%d")) == (0, 4, 4)
    assert {"hello", "flask", "unique"} <= set(MEASURABLE)
    assert not {"post", "large", "stream", "close", "nginx", "log"} & set(MEASURABLE)


ANSWER = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: 6\r\n\r\nhello\n"


def test_answer_is_whole_with_its_last_byte() -> None:
    assert [is_whole(ANSWER[:end]) for end in (0, 20, len(ANSWER) - 7, len(ANSWER) - 1)] == [False] * 4
    assert is_whole(ANSWER)
    for wrong in (ANSWER.replace(b"200 OK", b"503 Busy"), ANSWER.replace(b"content-length", b"x")):
        with pytest.raises(ValueError, match=r"the server has answered b'HTTP/1\.1"):
            is_whole(wrong)


def test_latency_counts_from_the_due_time_though_no_connection_is_idle() -> None:
    times = [number / 1000 for number in range(20)]
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        loop = OpenLoop(listener.getsockname(), b"GET /%d HTTP/1.1\r\n\r\n", times, 1)
        latencies = pool.submit(loop.run)
        seen = []
        with listener.accept()[0] as server:
            for _ in times:
                seen.append(server.recv(4096))
                deadline = time.monotonic() + 10
                while len(loop.late_s) < len(times) and time.monotonic() < deadline:
                    time.sleep(0.001)
                server.sendall(ANSWER)
            assert latencies.result(10) >= times[-1]
    assert len(set(seen)) == len(loop.late_s) == len(times)
    assert loop.received == len(times) * len(ANSWER)
    # The first answer came when the last request was due: none before it was in time.
    assert all(took >= times[-1] - due for took, due in zip(loop.latencies_s, times, strict=True))
    assert min(loop.late_s) >= 0


def test_closed_connection_ends_an_open_loop() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        ended = pool.submit(OpenLoop(listener.getsockname(), b"GET / HTTP/1.1\r\n\r\n", [0.0, 0.001], 1).run)
        with listener.accept()[0] as server:
            server.recv(4096)
        with pytest.raises(OSError, match="closed a kept connection"):
            ended.result(10)


def test_row_of_latencies_has_medians_and_their_ratio() -> None:
    before = [Load(1000, p99, 0, p50_ms=0.1, p999_ms=9.0) for p99 in (1.0, 2.0, 30.0)]
    after = [each._replace(p99_ms=each.p99_ms / 2, late_ms=0.02) for each in before]
    assert latency_row("sync", [before]) == ["sync", "100", "2,000", "9,000", "–"]
    both = ["sync", "100", "100", "**1.00**", "2,000", "1,000", "**0.50**", "9,000", "9,000", "**1.00**", "20"]
    assert latency_row("sync", [before, after]) == both


# Without the stage "socket": nothing of the server is in it, and its sockets stay open.
STAGES = [
    Key(stage, headers) for stage in BY_HEADERS if stage != DERIVED for headers in ("cached", "unique", "strange")
]


@pytest.mark.parametrize("key", [*STAGES, *(Key(stage, "-") for stage in ONCE if stage != "socket")], ids=" ".join)
def test_each_stage_of_the_hot_path_runs(key: Key) -> None:
    run = key.prepare(4)
    run(0, 2)
    run(2, 4)
