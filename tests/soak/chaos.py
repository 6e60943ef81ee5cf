"""Kill, reload, scale and rotate under clients of an application which forks, streams and uses pools of processes.

    python -m tests.soak chaos [-k sync,threads,gevent] [--minutes 10] [--preload] [--seed 1]

Each answer carries the id of its request. In the last fifth of the time nothing is done to the server, and the workers'
descriptors, threads and memory are compared from its begin to its end; those of the master from the end of the first
fifth on.

Exits 1 when an answer has another request's id or is short though its worker was not killed, when descriptors, threads,
memory or zombies grow, or when something is left at the end. Loopback only; needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from bench.servers import READY, Server, memory_of, ours, stat_fields, workers_of
from bench.table import options_of

WORKERS = 3
CLIENTS = 12
SLOW_READERS = 2
# The views, and how often each is asked for.
WEIGHTS = {
    "/hello": 400,
    "/body": 40,
    "/stream": 15,
    "/large": 15,
    "/file": 15,
    "/fork_raise": 6,
    "/fork_exit": 6,
    "/fork_return": 6,
    "/terminate": 6,
    "/command": 10,
    "/pool": 2,
    "/executor": 2,
}
# Forking views fail with gevent's threads; see soakapp.
NOT_GEVENT = ("/pool", "/executor")
# A worker's memory after its first requests is not yet what it comes to.
MEMORY_MARGIN_KIB = 4096
MEMORY_SHARE = 1.10
# How old a worker must be before its figures are compared.
SETTLED_S = 15.0


class Sample(NamedTuple):
    """What a process has at one moment."""

    fds: int
    threads: int
    rss_kib: int


def sample(pid: int) -> Sample | None:
    """Return the sample of a process; None when it has gone."""
    with contextlib.suppress(OSError):
        counts = (len(os.listdir(f"/proc/{pid}/{each}")) for each in ("fd", "task"))
        return Sample(*counts, memory_of([pid]).rss_kib)
    return None


def age_s(pid: int) -> float:
    """Return the age of a process; 0 when it has gone."""
    fields = stat_fields(pid)
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else math.inf
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def descendants(root: int) -> dict[int, str]:
    """Return the states of all processes below ``root`` by process id."""
    parents: dict[int, tuple[int, str]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := stat_fields(int(name))):
            parents[int(name)] = int(fields[1]), fields[0]
    found: dict[int, str] = {}
    grew = True
    while grew:
        more = {p: s for p, (pp, s) in parents.items() if (pp == root or pp in found) and p not in found}
        found |= more
        grew = bool(more)
    return found


class Chaos:
    """One run against a server."""

    def __init__(self, server: Server, arguments: argparse.Namespace, worker_class: str) -> None:
        self.server, self.arguments, self.worker_class = server, arguments, worker_class
        self.process, self.address = server.process, server.address
        # Not the standard error, since SIGUSR1 reopens this file.
        self.log = server.log = server.directory / "error.log"
        self.chance = random.Random(arguments.seed)
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.did: Counter[str] = Counter()
        self.last_kill = 0.0
        self.serial = 0

    # ---- clients -----------------------------------------------------------------------------------------

    def name(self) -> str:
        with self.lock:
            self.serial += 1
            return f"request-{self.serial:08d}"

    def note(self, view: str, failed: str = "", wrong: str = "", used: float = 0.0) -> None:
        """Count a request. A failure is expected when a worker was killed since its connection was last used."""
        with self.lock:
            self.asked[view] += 1
            if wrong:
                self.wrong.append(wrong)
            elif failed:
                expected = self.last_kill >= used - 0.5
                self.failed[f"{'killed' if expected else 'UNEXPECTED'}: {failed}"] += 1

    def client(self, seed: int) -> None:
        """Ask one request after the other over kept connections."""
        chance = random.Random(seed)
        views = [view for view in WEIGHTS if self.worker_class != "gevent" or view not in NOT_GEVENT]
        weights = [WEIGHTS[view] for view in views]
        connection: http.client.HTTPConnection | None = None
        used = 0.0
        while not self.stop.is_set():
            view = chance.choices(views, weights)[0]
            if connection is None:
                connection = http.client.HTTPConnection(*self.address, timeout=60)
            fresh = connection.sock is None
            if fresh:
                used = time.monotonic()
            try:
                closes = self.ask(connection, view, self.name())
                used = time.monotonic()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                connection = None
                # A kept connection that a killed worker had: HTTP clients ask again. A new one is another matter.
                kind = "" if fresh else " (kept connection)"
                self.note(view, failed=f"{view} {type(error).__name__}{kind}", used=used)
                continue
            if closes or chance.random() < 0.02:
                connection.close()
                connection = None
            if chance.random() < 0.05:
                self.stop.wait(chance.random() * 0.2)

    def ask(self, connection: http.client.HTTPConnection, view: str, name: str) -> bool:
        """Ask, check the answer, count; return whether the connection closes."""
        data = name.encode() * 8000 if view == "/body" else None
        connection.request("POST" if data else "GET", view, body=data, headers={"X-Soak-Id": name})
        response = connection.getresponse()
        got = response.read()
        lines = got.split(b"\n")
        told = response.getheader("X-Soak-Id")
        mark = name.encode()
        # The last line of a body may be cut where its worker was killed, but read() raises then.
        foreign = [line for line in lines if line and not line.startswith(mark)]
        leaked = [line for line in lines if b"leaked" in line]
        if response.status != 200 or told != name or foreign or leaked:
            said = (foreign or leaked or lines)[0][:100]
            self.note(view, wrong=f"{view} {name}: {response.status}, id {told}, {said!r}")
        else:
            self.note(view)
        return bool(response.will_close)

    def slow_reader(self) -> None:
        """Read large answers slowly, and leave in their middle."""
        while not self.stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(self.address, timeout=30) as sock:
                name = self.name()
                sock.sendall(f"GET /large HTTP/1.1\r\nHost: x\r\nX-Soak-Id: {name}\r\n\r\n".encode())
                for _ in range(40):
                    if not sock.recv(4096) or self.stop.wait(0.05):
                        break

    # ---- what is done to the server ----------------------------------------------------------------------------

    def disturb(self, until: float) -> None:
        """Kill, reload, scale and rotate at random moments."""
        pid = self.process.pid
        while time.monotonic() < until and not self.stop.is_set():
            self.stop.wait(self.chance.uniform(0.5, 4.0))
            what = self.chance.choices(["kill", "reload", "add", "remove", "logs"], [4, 3, 1, 1, 2])[0]
            self.did[what] += 1
            if what == "kill" and (workers := workers_of(pid)):
                with self.lock:
                    self.last_kill = time.monotonic()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.chance.choice(workers), signal.SIGKILL)
                with self.lock:
                    self.last_kill = time.monotonic()
            elif what == "reload":
                os.kill(pid, signal.SIGHUP)
            elif what == "add":
                os.kill(pid, signal.SIGTTIN)
            elif what == "remove":
                os.kill(pid, signal.SIGTTOU)
            elif what == "logs":
                os.kill(pid, signal.SIGUSR1)

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Run it; return the problems."""
        self.server.wait_for_log(READY)
        seconds = self.arguments.minutes * 60
        begin = time.monotonic()
        threads = [threading.Thread(target=self.client, args=(n,)) for n in range(CLIENTS)]
        threads += [threading.Thread(target=self.slow_reader) for _ in range(SLOW_READERS)]
        threads.append(threading.Thread(target=self.disturb, args=(begin + seconds * 0.8,)))
        for thread in threads:
            thread.start()
        try:
            masters, quiet = self.watch(begin, seconds)
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(90)
        problems = self.growth("master", masters)
        for pid, samples in quiet.items():
            if len(samples) >= 4:
                problems += self.growth(f"worker {pid}", samples)
        problems += self.end()
        return problems

    def watch(self, begin: float, seconds: float) -> tuple[list[Sample], dict[int, list[Sample]]]:
        """Take samples until the time is over: of the master, and of the workers in the last fifth."""
        masters: list[Sample] = []
        quiet: dict[int, list[Sample]] = {}
        step = max(1.0, seconds / 60)
        while (now := time.monotonic() - begin) < seconds:
            time.sleep(step)
            if self.process.poll() is not None:
                raise RuntimeError(f"the server has ended\n{self.log.read_text()[-4000:]}")
            if now > seconds * 0.2 and (found := sample(self.process.pid)):
                masters.append(found)
            if now > seconds * 0.85:
                for pid in workers_of(self.process.pid):
                    # A new one has not got its own memory yet.
                    if age_s(pid) > SETTLED_S and (found := sample(pid)):
                        quiet.setdefault(pid, []).append(found)
        return masters, quiet

    def growth(self, who: str, samples: list[Sample]) -> list[str]:
        """Compare the first third of the samples with the last; return what has grown."""
        third = max(1, len(samples) // 3)
        found = []
        for name in Sample._fields:
            before = statistics.median(getattr(each, name) for each in samples[:third])
            after = statistics.median(getattr(each, name) for each in samples[-third:])
            print(f"  {who:14} {name:8} {before:10,.0f} -> {after:10,.0f}")
            most = before * MEMORY_SHARE + MEMORY_MARGIN_KIB if name == "rss_kib" else before + CLIENTS
            if after > most:
                found.append(f"{who}: {name} has grown from {before:g} to {after:g}")
        return found

    def end(self) -> list[str]:
        """Look for zombies, stop the server, look for what is left."""
        problems = []
        zombies: list[int] = []
        for _ in range(100):
            zombies = [pid for pid, state in descendants(self.process.pid).items() if state == "Z"]
            if not zombies:
                break
            time.sleep(0.1)
        if zombies:
            problems.append(f"zombies: {zombies}")
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if status:
            problems.append(f"the server has ended with status {status}")
        session = self.process.pid
        for _ in range(200):  # children of the application that a killed worker could not end last 15 s
            left = [int(p) for p in os.listdir("/proc") if p.isdigit() and _session(p) == session]
            if not left:
                break
            time.sleep(0.1)
        if left:
            problems.append(f"processes are left: {left}")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        problems += self.wrong[:10]
        if len(self.wrong) > 10:
            problems.append(f"{len(self.wrong)} wrong answers in all")
        problems += [f"{what}: {n}" for what, n in self.failed.items() if what.startswith("UNEXPECTED")]
        log = self.log.read_text()
        # The server's own errors: no kill, stall or garbage may cause one (tests/unit/log_codes.txt has the lines).
        for code in ("WS1200", "WS1202", "WS1330", "WS1709", "WS1710", "WS1951"):
            if count := log.count(code):
                problems.append(f"the log says {count} times: {code}")
        return problems


def _session(pid: str) -> int:
    fields = stat_fields(int(pid))
    return int(fields[3]) if fields else 0


def main() -> int:
    """Run from the command line; return the exit status."""
    options = options_of(__doc__, choose=("classes",), minutes=10.0, preload=False, seed=1)
    files = {"chaosapp.py": Path(__file__).with_name("chaosapp.py").read_text()}
    failed = False
    for worker_class in options.classes:
        logs = ["--error-logfile", "{dir}/error.log", "--access-logfile", "{dir}/access.log"]
        more = ["--threads", "4"] * (worker_class == "threads") + ["--preload"] * options.preload
        arguments = ours(worker_class, WORKERS, *logs, *more, app="chaosapp:app")
        with Server(arguments, files=files, until_up=lambda server: None) as server:
            chaos = Chaos(server, options, worker_class)
            problems = chaos.run()
            print(f"  {sum(chaos.asked.values()):,} requests: {dict(chaos.asked)}")
            print(f"  done to the server: {dict(chaos.did)}")
            print(f"  failed: {dict(chaos.failed)}")
            for problem in problems:
                print(f"PROBLEM {problem}")
            if problems:
                failed = True
                kept = shutil.copy(chaos.log, tempfile.mkdtemp(prefix="wsgiserv-chaos-"))
                print(f"{worker_class}: the log is {kept}")
            else:
                print(f"{worker_class}: all is well")
    return int(failed)
