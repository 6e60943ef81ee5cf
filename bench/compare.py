"""wsgiserv side by side with its peers: one worker and one core each, in every scenario of bench/scenarios.py.

    python -m bench compare [--scenario browser,flask] [--server 'wsgiserv|granian'] [--rounds 3] [--seconds 3]
                            [--json results.json] [--venv build/bench-venv] [--quick]
    python -m bench compare --from results.json [--from more.json]

Makes a virtual environment for the servers, of this Python, and installs each with pip. wsgiserv is the one of this
tree, with its defaults: all checks, limits and the scoreboard are on. Each server is started afresh for each round,
pinned to the first core; it must give the right answer once before it is loaded; ``wrk -t1``, or bench.download for
large responses, is pinned to the second. The rounds alternate between the servers; the tables have the medians.
Memory is that of all of a server's processes in the midst of the first round's load; to look at it
holds the server up for some 20 ms, which a 99th percentile would show. Threads are 8 where the application does not
wait (uWSGI: 1, granian: its default); gunicorn and uWSGI keep connections 75 s and as usual, access logs are off.
A server that cannot be installed, does not start or answers wrongly is a row that says so.

Needs wrk and taskset; nginx for the scenario ``nginx``. The Markdown goes to the standard output, progress to the
standard error. Exits 1 when wsgiserv falls short of what issue 6 requires, where that was measured.
"""

from __future__ import annotations

import argparse
import http.client
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.peers import SERVERS, Peer, PeerEnvironment, why
from bench.peerserver import ROOT, Load, Memory, PeerServer, busy, read_wrk, wrk
from bench.report import LOGGED, Results, full_report, speed_table
from bench.scenarios import FILE_BYTES, SCENARIOS, Scenario

SERVER_CORE, CLIENT_CORE = 0, 1
QUICK = "wsgiserv|gunicorn gthread|waitress|granian"
_UP_WITHIN_S = 15.0

_NGINX = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log error;
events {{ worker_connections 1024; }}
http {{
{temporary}
    access_log off;
    keepalive_requests 100000000;
    upstream app {{
        server 127.0.0.1:{upstream};
        keepalive 64;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""


def say(text: str) -> None:
    """Tell a person how far it is."""
    print(text, file=sys.stderr, flush=True)


class WrongAnswerError(Exception):
    """A server has answered, but not what the application said."""


def ask(port: int, scenario: Scenario, answer: bytes) -> None:
    """Ask once; raise `WrongAnswerError` unless the answer is right to the byte, `OSError` when there is none."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        client.request(
            "GET" if scenario.body is None else "POST",
            "/",
            scenario.body,
            {} if scenario.body is None else {"Content-Type": "application/json"},
        )
        response = client.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise WrongAnswerError(f"answers with no HTTP: {type(error).__name__}") from error
    finally:
        client.close()
    if response.status != 200:
        raise WrongAnswerError(f"answers with status {response.status}")
    if body != answer:
        raise WrongAnswerError(f"answers wrongly: {len(body)} bytes, {len(answer)} were right")


def until_right(
    scenario: Scenario, answer: bytes, log: Path
) -> Callable[[int, subprocess.Popen[bytes]], None]:
    """Return what waits for the first right answer; it raises `WrongAnswerError` or `RuntimeError`."""

    def wait(port: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _UP_WITHIN_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"does not start: {why(log.read_text(errors='replace'))}")
            try:
                return ask(port, scenario, answer)
            except ConnectionRefusedError:
                time.sleep(0.02)
            except TimeoutError as error:
                raise RuntimeError("does not answer") from error
        raise RuntimeError(f"does not listen after {_UP_WITHIN_S:g} s")

    return wait


class Comparison:
    """A run: where its files are, and what is measured in the same way throughout."""

    def __init__(self, environment: PeerEnvironment, directory: Path, seconds: int) -> None:
        self._environment = environment
        self._directory = directory
        self._seconds = seconds
        self._file = directory / "file"
        self._log = directory / "server.log"

    def measure(self, peer: Peer, scenario: Scenario, logged: bool, weighs: bool) -> dict[str, Any]:
        """Start a server, load it, and return its figures, or its trouble. ``weighs``: look at its memory as well."""
        try:
            load, memory, server_busy = self._measure(peer, scenario, logged, weighs)
        except (RuntimeError, WrongAnswerError) as error:
            return {"trouble": str(error)}
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            said = f"{error} {getattr(error, 'output', '') or ''}"
            return {"trouble": f"breaks under the load: {why(said)}"}
        return {**load._asdict(), **(memory._asdict() if memory else {}), "server_busy": server_busy}

    def _measure(
        self, peer: Peer, scenario: Scenario, logged: bool, weighs: bool
    ) -> tuple[Load, Memory | None, float]:
        answer = scenario.answer or self._file_content()
        access_log = self._directory / "access.log"
        access_log.unlink(missing_ok=True)
        environment = self._environment
        server = PeerServer(
            peer.command(scenario.app, scenario.threads, access_log if logged else None),
            core=SERVER_CORE,
            directory=self._directory,
            env={
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]),
                "PATH": f"{environment.bin}{os.pathsep}{os.environ['PATH']}",
                "VIRTUAL_ENV": str(environment.bin.parent),
                "BENCH_FILE": str(self._file),
            },
            program=environment.bin / peer.program,
            log=self._log,
            until_up=until_right(scenario, answer, self._log),
            rest_s=0.1,
            stop=signal.SIGTERM,
        )
        memories: list[Memory] = []
        spent: list[float] = []

        def watch() -> None:
            began = server.processor_s()
            time.sleep(self._seconds * 0.6)
            if weighs:
                memories.append(server.memory())
            spent.append((server.processor_s() - began) / (self._seconds * 0.6))

        with server:
            if scenario.proxied:
                with nginx_before(server.port, self._directory) as port:
                    ask(port, scenario, answer)
                    load = self._load(port, scenario, watch)
            else:
                load = self._load(server.port, scenario, watch)
        return load, memories[0] if weighs else None, spent[0]

    def _load(self, port: int, scenario: Scenario, watch: Callable[[], None]) -> Load:
        url, seconds = f"http://127.0.0.1:{port}/", self._seconds
        if scenario.download:
            command = [sys.executable, "-m", "bench.download", url]
            command += ["--connections", str(scenario.connections), "--seconds", str(seconds)]
            output, share = busy(command, CLIENT_CORE, seconds + 30, watch)
            return read_wrk(output)._replace(client_busy=share)
        script = self._directory / "wrk.lua"
        script.write_text(scenario.script)
        return wrk(url, scenario.connections, seconds, CLIENT_CORE, script, watch)

    def _file_content(self) -> bytes:
        if not self._file.exists():
            self._file.write_bytes(os.urandom(1000) * (FILE_BYTES // 1000))
        return self._file.read_bytes()


@contextmanager
def nginx_before(upstream: int, directory: Path) -> Iterator[int]:
    """Run an nginx on the client's core in front of a server; yields its port."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    proxy = import_module("nginxproxy")
    program = shutil.which("nginx")
    if program is None:
        raise RuntimeError("nginx is not installed (Debian: apt-get install nginx)")
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CLIENT_CORE})  # is inherited
    try:
        nginx = proxy.Nginx(
            program,
            directory,
            configure=lambda port: _NGINX.format(
                user=proxy.USER,
                directory=directory,
                temporary=proxy.temporary_paths(directory),
                upstream=upstream,
                port=port,
            ),
        )
    finally:
        os.sched_setaffinity(0, mine)
    try:
        yield nginx.address[1]
    finally:
        nginx.stop()


def entries(scenario: Scenario, chosen: list[Peer]) -> list[tuple[str, Peer, bool]]:
    """Return who takes part: the name of the row, the server, whether it writes an access log."""
    if scenario.logged:
        able = [peer for peer in chosen if peer.access_log]
        return [(peer.name + LOGGED * on, peer, on) for peer in able for on in (False, True)]
    return [(peer.name, peer, False) for peer in chosen if not (scenario.waits and peer.serial)]


def about(environment: PeerEnvironment, options: argparse.Namespace) -> dict[str, Any]:
    """Describe the machine, what was compared, and the command."""
    versions = environment.versions()
    products = sorted(
        {re.split(r"[<>=]", name)[0] for peer in SERVERS.values() for name in peer.packages if name[0] != "-"}
        - {"setuptools"}
    )
    names = [*products, "gevent", "werkzeug", "flask", "django"]
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    revision = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return {
        "command": f"python -m bench compare {' '.join(options.arguments)}".strip(),
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "machine": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "Python": platform.python_version(),
        "wsgiserv": revision.stdout.strip() or "not under git",
        "versions": ", ".join(f"{name} {versions[name]}" for name in names if name in versions),
        "measured": f"{options.rounds} rounds of {options.seconds} s",
    }


def run(options: argparse.Namespace) -> Results:
    """Install, measure, and save what was asked for."""
    chosen = [peer for peer in SERVERS.values() if re.search(options.server, peer.name)]
    environment = PeerEnvironment(options.venv, say)
    missing = environment.install(chosen)
    results = Results(about(environment, options), [])
    plan = [
        (name, number, entry)
        for name in options.scenario
        for number in range(1, options.rounds + 1)
        for entry in entries(SCENARIOS[name], chosen)
        if entry[1].name not in missing or number == 1
    ]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-compare-") as directory:
        comparison = Comparison(environment, Path(directory), options.seconds)
        for count, (name, number, (shown, peer, logged)) in enumerate(plan):
            found = (
                {"trouble": missing[peer.name]}
                if peer.name in missing
                else comparison.measure(peer, SCENARIOS[name], logged, number == 1)
            )
            results.rows.append({"scenario": name, "server": shown, "round": number, **found})
            if options.json:
                results.write(options.json)
            left_s = (time.monotonic() - begun) / (count + 1) * (len(plan) - count - 1)
            figure = found.get("trouble") or f"{found['rate']:,.1f}/s, {found['failed']} failed"
            say(f"{name}, round {number} of {options.rounds}: {shown}: {figure} ({left_s / 60:.0f} min left)")
    return results


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", help=f"some of {','.join(SCENARIOS)}")
    parser.add_argument("--server", help="a regular expression for the servers' names")
    parser.add_argument("--rounds", type=int, help="3, unless it is quick")
    parser.add_argument("--seconds", type=int, help="per server and round: 3, unless it is quick")
    parser.add_argument("--quick", action="store_true", help=f"one round of 1 s, and only {QUICK}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all results there")
    parser.add_argument(
        "--from", dest="saved", type=Path, action="append", metavar="FILE", help="measure nothing, print that"
    )
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "bench-venv", metavar="DIRECTORY")
    options = parser.parse_args()
    options.arguments = sys.argv[1:]
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1 if options.quick else 3)
    options.server = options.server or (QUICK if options.quick else "")
    options.scenario = options.scenario.split(",") if options.scenario else list(SCENARIOS)
    unknown = set(options.scenario) - set(SCENARIOS)
    if unknown:
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    return options


def main() -> int:
    """Measure and print; return the exit status."""
    options = arguments()
    if options.saved:
        results = Results.read(options.saved)
    else:
        for program in ("wrk", "taskset"):
            if shutil.which(program) is None:
                say(f"{program} is not installed (Debian: apt-get install wrk util-linux)")
                return 2
        if not {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0):
            say("it needs two cores, 0 and 1: one for the server and one for the client")
            return 2
        results = run(options)
    print(full_report(results))
    return 1 if speed_table(results)[1] else 0


if __name__ == "__main__":
    sys.exit(main())
