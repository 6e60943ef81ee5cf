"""Compare wsgiserv with its peers, or two checkouts of it: one worker and one core each, in every scenario.

    python -m bench compare [--scenario hello,flask] [--server 'wsgiserv|granian'] [--rounds 3] [--seconds 3]
                            [--json results.json] [--venv build/bench-venv | --here] [--quick]
    python -m bench compare --trees OLD NEW [--rounds 7] [-k sync,gevent] [--least 0.97]
    python -m bench compare --from results.json more.json

Makes a virtual environment for the servers, of this Python, and installs each with pip; --here uses this Python's own
packages. wsgiserv is the one of this tree with its defaults: all checks, limits and the scoreboard are on. With
--trees, both checkouts run from their .venv where they have one, else with this Python; scenarios are then hello,
unique, flask, post, close and stream.

Each server is started afresh for each round, pinned to the first core; it must give the right answer once before its
load; wrk -t1, or bench download for large responses, is pinned to the second. The rounds alternate between the
servers, every other one in reverse; the tables have the medians. User and system are the server's CPU time per request,
which other programs disturb less than the rate. Memory is that of all of a server's processes in the midst of the first
round's load: the look at it stops the server for some 20 ms. Threads are 8 where the application does not wait (uWSGI:
1, granian: its default); gunicorn keeps connections 75 s, access logs are off. A server that cannot be installed, does
not start or answers wrongly is a row that says why.

Needs wrk and taskset; nginx for the scenario nginx. The Markdown goes to the standard output, progress to the standard
error. Exits 1 when wsgiserv falls short of the required ratios (bench/report.py), or NEW is below --least of OLD.
"""

from __future__ import annotations

import argparse
import http.client
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from bench.load import Load, download, wrk
from bench.peers import SERVERS, Peer, PeerEnvironment
from bench.report import LOGGED, TREES, Results, full_report
from bench.scenarios import FILE_BYTES, RENAMED, SCENARIOS, Scenario
from bench.servers import CLIENT_CORE, ROOT, SERVER_CORE, Server, ServerError, Tree, wait_until_up, why
from bench.table import need, options_of, say, some_of, turns

QUICK = "wsgiserv|gunicorn gthread|waitress|granian"
OF_TREES = "hello,unique,flask,post,close,stream"

# Behind PROXY of tests/support: its log would be measured, and a connection per 1,000 requests made.
_QUICK_NGINX = "            access_log off;\n            keepalive_requests 100000000;\n"


class Entry(NamedTuple):
    """A row: a server, with or without an access log, from this checkout or another."""

    shown: str
    peer: Peer
    logged: bool = False
    tree: Tree | None = None


def check_answer(port: int, scenario: Scenario, answer: bytes) -> None:
    """Make the scenario's request once; raise `ServerError` unless the answer is right."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    fields = {} if scenario.body is None else {"Content-Type": "application/json"}
    try:
        client.request("GET" if scenario.body is None else "POST", "/", scenario.body, fields)
        response = client.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise ServerError(f"answers with no HTTP: {type(error).__name__}") from error
    finally:
        client.close()
    if response.status != 200:
        raise ServerError(f"answers with status {response.status}")
    if body != answer:
        raise ServerError(f"answers wrongly: {len(body)} bytes, {len(answer)} were right")


class Comparison:
    """Measures each entry of a run in the same way."""

    def __init__(self, environment: PeerEnvironment, directory: Path, seconds: int) -> None:
        self._environment = environment
        self._directory = directory
        self._seconds = seconds
        self._file = directory / "file"
        self._script = directory / "wrk.lua"

    def measure(self, entry: Entry, scenario: Scenario, weigh: bool) -> dict[str, Any]:
        """Start a server, load it, and return its figures, or its trouble; ``weigh`` adds its memory."""
        try:
            return self._measure(entry, scenario, weigh)
        except ServerError as error:
            return {"trouble": str(error)}
        except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
            said = f"{error} {getattr(error, 'output', '') or ''}"
            return {"trouble": f"breaks under the load: {why(said)}"}

    def server(self, entry: Entry, scenario: Scenario) -> Server:
        """Return an entry's server for a scenario; it is up at its first right answer."""
        answer, bin = scenario.answer or self._file_content(), self._environment.bin

        def until_right(server: Server) -> None:
            wait_until_up(server, lambda: check_answer(server.port, scenario, answer))

        path = f"{bin}{os.pathsep}{os.environ['PATH']}"
        return Server(
            entry.peer.command(scenario.app, scenario.threads, "{dir}/access.log" if entry.logged else ""),
            core=SERVER_CORE,
            env={"PATH": path, "VIRTUAL_ENV": str(bin.parent), "BENCH_FILE": str(self._file)},
            tree=entry.tree,
            program=None if entry.tree else bin / entry.peer.program,
            until_up=until_right,
            idle_s=0.1,
        )

    def _measure(self, entry: Entry, scenario: Scenario, weigh: bool) -> dict[str, Any]:
        memory: dict[str, int] = {}

        def look() -> None:
            if weigh:
                time.sleep(self._seconds * 0.6)
                memory.update(server.memory()._asdict())

        with (
            self.server(entry, scenario) as server,
            _nginx(server) if scenario.proxied else nullcontext(server.port) as port,
        ):
            check_answer(port, scenario, scenario.answer or self._file_content())
            before = server.cpu_time()
            load = self.load(port, scenario, look)
            after = server.cpu_time()
        spent_us = [(now - then) / (load.requests or 1) * 1e6 for then, now in zip(before, after, strict=True)]
        return {**load._asdict(), "user_us": spent_us[0], "system_us": spent_us[1], **memory}

    def load(self, port: int, scenario: Scenario, look: Callable[[], None] = lambda: None) -> Load:
        """Load the server on a port for the seconds of a round, with ``look`` beside it."""
        url = f"http://127.0.0.1:{port}/"
        if scenario.download:
            return download(url, scenario.connections, self._seconds, during=look)
        self._script.write_text(scenario.script)
        return wrk(url, scenario.connections, self._seconds, self._script, during=look)

    def _file_content(self) -> bytes:
        if not self._file.exists():
            self._file.write_bytes(os.urandom(1000) * (FILE_BYTES // 1000))
        return self._file.read_bytes()


@contextmanager
def _nginx(server: Server) -> Iterator[int]:
    """Run an nginx on the client's core in front of a server; yield its port."""
    need("nginx")
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    proxy = import_module("nginxproxy")
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CLIENT_CORE})  # is inherited
    try:
        upstream, location = f"127.0.0.1:{server.port}", proxy.PROXY + _QUICK_NGINX
        nginx = proxy.Nginx(shutil.which("nginx"), server.directory, upstream, location)
    finally:
        os.sched_setaffinity(0, mine)
    try:
        yield nginx.address[1]
    finally:
        nginx.stop()


def entries(scenario: Scenario, chosen: list[Peer], trees: list[Tree] | None = None) -> list[Entry]:
    """Return the rows of a scenario."""
    if trees:
        named = list(zip(TREES, trees, strict=True))
        return [Entry(peer.name + name, peer, tree=tree) for peer in chosen for name, tree in named]
    if scenario.logged:
        able = [peer for peer in chosen if peer.access_log]
        return [Entry(peer.name + LOGGED * on, peer, on) for peer in able for on in (False, True)]
    return [Entry(peer.name, peer) for peer in chosen if not (scenario.waits and peer.serial)]


def about(environment: PeerEnvironment, options: argparse.Namespace) -> dict[str, Any]:
    """Describe the machine, the servers, and the command."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    found = {
        "command": f"python -m bench compare {' '.join(sys.argv[1:])}".strip(),
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "Python": platform.python_version(),
        "measured": f"{options.rounds} rounds of {options.seconds} s",
    }
    if options.trees:
        before, after = options.trees
        return found | {"before": before.describe(), "after": after.describe()}
    versions = environment.versions()
    packages = {name for peer in SERVERS.values() for name in peer.packages}
    names = [*sorted(packages), "gevent", "werkzeug", "flask", "django"]
    shown = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    return found | {"wsgiserv": Tree().describe(), "versions": shown}


def run(options: argparse.Namespace) -> Results:
    """Install, measure, and save the results."""
    chosen = [peer for peer in SERVERS.values() if re.search(options.server, peer.name)]
    environment = PeerEnvironment(None if options.here or options.trees else options.venv)
    missing = environment.install(chosen)
    results = Results(about(environment, options), [])
    plan = [
        (name, number, entry)
        for name in options.scenario
        for number, entry in turns(options.rounds, entries(SCENARIOS[name], chosen, options.trees))
        if entry.peer.name not in missing or number == 1
    ]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as directory:
        comparison = Comparison(environment, Path(directory), options.seconds)
        for count, (name, number, entry) in enumerate(plan):
            if entry.peer.name in missing:
                found = {"trouble": missing[entry.peer.name]}
            else:
                found = comparison.measure(entry, SCENARIOS[name], weigh=number == 1)
            results.rows.append({"scenario": name, "server": entry.shown, "round": number, **found})
            if options.json:
                results.write(options.json)
            left_s = (time.monotonic() - begun) / (count + 1) * (len(plan) - count - 1)
            figure = found.get("trouble") or f"{found['rate']:,.1f}/s, {found['user_us']:.2f} µs user"
            turn = f"{name}, round {number} of {options.rounds}"
            say(f"{turn}: {entry.shown}: {figure} ({left_s / 60:.0f} min left)")
    return results


def options() -> argparse.Namespace:
    """Read the command line."""
    found = options_of(
        __doc__,
        choose=("classes", "trees"),
        scenario="",
        server="",
        rounds=0,
        seconds=0,
        least=0.97,
        json=Path,
        venv=ROOT / "build" / "bench-venv",
        here=False,
        quick=False,
    )
    names = found.scenario or (OF_TREES if found.trees else ",".join(SCENARIOS))
    found.scenario = [RENAMED.get(name, name) for name in some_of(names, [*SCENARIOS, *RENAMED])]
    found.server = found.server or (QUICK if found.quick else "")
    if found.trees:
        found.server = f"^wsgiserv ({'|'.join(found.classes)})$"
    found.rounds = found.rounds or (1 if found.quick else 7 if found.trees else 3)
    found.seconds = found.seconds or (1 if found.quick else 3)
    return found


def main() -> int:
    """Measure and print; return the exit status."""
    least = 0.0
    if sys.argv[1:2] == ["--from"]:
        results = Results.read(map(Path, sys.argv[2:]))
    else:
        given = options()
        need("wrk", "taskset")
        if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
            sys.exit("it needs two cores, 0 and 1: one for the server and one for the client")
        results, least = run(given), given.least
    text, missed = full_report(results, least)
    print(text)
    return 1 if missed else 0
