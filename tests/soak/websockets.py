"""Open, talk over and close upgraded connections beside ordinary requests, through reloads; nothing may grow.

    python -m tests.soak websockets [--seconds 600] [-k threads,gevent] [--threads 250] [--sockets 200] [--every 20]
                                    [--idle 1000] [--half-open 10000] [--tls]

One worker. First ``--idle`` silent connections (in ``threads`` as many as leave some threads free) go through a reload
while new ones connect: each must end by FIN. Then ``--half-open`` connections ask for an upgrade, half of them with a
head that never ends, half (in ``threads`` at most 200) never sending a byte: the worker must serve on, and nothing may
be left of them. Then ``--sockets`` clients talk for ``--seconds``, end in each of the ways that a client or an
application can, and connect again, while two clients make ordinary requests and the server reloads every ``--every``
seconds. Before each reload all pause, and master and worker are measured: descriptors, threads, greenlets and memory
must be what they were at the first time. Exits 1 when something grows, a connection ends by a reset or without its 101,
or a request fails.
"""

from __future__ import annotations

import json
import os
import random
import signal
import ssl
import statistics
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from server import Server, children, is_worker, wait_until
from upgradeclient import ASKS, FIN, UpgradeClient, certificate_flags, issue

from bench.table import Table, options_of, say
from tests.soak.idle import SPARE_DESCRIPTORS, allow_descriptors

# A worker of the same age may have so much more of each: a connection in its last second, a helper's file, some pages.
FEW = 4
MEMORY_SLACK = 1.10
MEMORY_SLACK_BYTES = 6 << 20
LONGEST_S = 120.0


class Figures(NamedTuple):
    """What a process holds; memory in bytes."""

    fds: int
    threads: int
    greenlets: int
    memory: int


class Run:
    """One server and its clients.

    Args:
        worker_class, options: of the run.
        directory: for the server's files.
    """

    def __init__(self, worker_class: str, options: Any, directory: Path) -> None:
        self.options = options
        self.worker_class = worker_class
        self.context = issue(directory) if options.tls else None
        most = max(options.idle, options.half_open) + 1000
        args = ["--worker-connections", str(most), "--header-timeout", "5", "--threads", str(options.threads)]
        args += [*(certificate_flags(directory) if options.tls else ()), "--log-level", "info"]
        self.server = Server(directory, "upgradeapps:app", args, worker_class=worker_class, expect=("WS1550", "WS1770"))
        self.server.wait_for_log("ready: ")
        self.ends: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.over = threading.Event()
        self.pause = threading.Event()
        self.paused = threading.Semaphore(0)
        self.resumed = threading.Event()

    def client(self) -> UpgradeClient:
        """Connect."""
        return UpgradeClient(self.server.address, self.context, LONGEST_S)

    def reload(self) -> None:
        """Reload; the old worker has left afterwards."""
        self.server.reload()

    def worker(self) -> int:
        """Return the worker's process id."""
        return int(wait_until(lambda: [pid for pid in children(self.server.pid) if is_worker(pid)], "a worker")[-1])

    def measure(self) -> tuple[Figures, Figures]:
        """Return the figures of master and worker, when nothing is open."""
        pid = self.worker()
        with self.client() as client:
            wait_until(lambda: client.get("/figures").json()["upgrades"] == 0, "all calls have ended", LONGEST_S)
            # Connections that linger end within a second, and a thread of the pool after that.
            wait_until(lambda: client.get("/figures").json()["connections"] <= 1, "all have ended", LONGEST_S)
            greenlets = client.get("/figures").json()["greenlets"]
            return _figures(self.server.pid, 0), _figures(pid, greenlets)

    # ---- the clients ---------------------------------------------------------------------------------------

    def talk(self, seed: int) -> None:
        """Open connections, talk and end, one after the other."""
        dice = random.Random(seed)
        while not self.over.is_set():
            self.wait_if_paused()
            try:
                with self.client() as client:
                    self.ends[self.one(client, dice)] += 1
            except Exception as error:
                self.wrong[f"{type(error).__name__}: {str(error)[:80]}"] += 1

    def wait_if_paused(self) -> None:
        """Wait, without a connection, while the figures are taken."""
        if self.pause.is_set():
            self.paused.release()
            self.resumed.wait()
            self.paused.release()

    def one(self, client: UpgradeClient, dice: random.Random) -> str:
        """Talk over one connection; return how it has ended."""
        view = dice.choice(["/echo", "/nothing", "/stop", "/closed", "/polled", "/in_thread", "/generated"])
        client.upgrade(view, early=dice.choice([b"", b"", b"early\n"]))
        until = time.monotonic() + dice.expovariate(0.2)
        while time.monotonic() < until and not self.pause.is_set() and not self.over.is_set():
            try:
                client.send(b"x" * int(dice.expovariate(0.002)) + b"\n")
                client.sock.settimeout(dice.uniform(0.05, 0.5))
                if not client.sock.recv(65536):
                    return "by the server, FIN"
            except TimeoutError:
                pass
            except BrokenPipeError:
                client.sock.settimeout(LONGEST_S)
                return "by the server, FIN" if client.read_end()[0] == FIN else self.note_reset()
            except ConnectionResetError:
                return self.note_reset()
        client.sock.settimeout(LONGEST_S)
        return self.finish(client, dice.choice(["close", "reset", "half-close", "quit"]))

    def finish(self, client: UpgradeClient, how: str) -> str:
        """End a connection from the client's side, or ask the application to."""
        try:
            if how == "reset" and not isinstance(client.sock, ssl.SSLSocket):
                client.reset()
                return "reset by the client"
            if how in ("half-close", "quit"):
                if how == "quit":
                    client.send(b"quit\n")
                else:
                    client.end()
                if client.read_end()[0] != FIN:
                    return self.note_reset()
        except (BrokenPipeError, ssl.SSLError):
            return "by the server, FIN"
        except ConnectionResetError:
            return self.note_reset()
        return how

    def note_reset(self) -> str:
        """Note that the server has reset a connection."""
        self.wrong["reset by the server"] += 1
        return "RESET by the server"

    def ask(self) -> None:
        """Make ordinary requests."""
        while not self.over.is_set():
            self.wait_if_paused()
            try:
                with self.client() as client:
                    for _ in range(20):
                        answer = client.get("/hello")
                        self.ends[f"request: {answer.status}"] += 1
                        if answer.closes or self.pause.is_set():
                            break
                        time.sleep(0.02)
            except Exception as error:
                self.wrong[f"request: {type(error).__name__}: {str(error)[:80]}"] += 1

    # ---- the three parts -----------------------------------------------------------------------------------

    def hold_idle(self) -> None:
        """Send silent connections through a reload while new ones connect."""
        most = self.options.idle
        if self.worker_class == "threads":
            most = min(most, self.options.threads - 10)
        with ExitStack() as stack:
            idle = [stack.enter_context(self.client()) for _ in range(most)]
            for client in idle:
                client.upgrade()
            connector = threading.Thread(target=self.connect)
            connector.start()
            self.reload()
            self.over.set()
            connector.join()
            self.over.clear()
            for client in idle:
                self.ends[f"idle: {client.read_end()[0]}"] += 1
        if self.ends[f"idle: {FIN}"] != most:
            self.wrong["an idle connection has not ended by FIN"] += 1

    def connect(self) -> None:
        """Upgrade one connection after the other."""
        while not self.over.is_set():
            try:
                with self.client() as client:
                    client.upgrade()
                    self.ends[self.finish(client, "quit")] += 1
            except Exception as error:
                self.wrong[f"a new one: {type(error).__name__}: {str(error)[:80]}"] += 1

    def half_open(self) -> None:
        """Open connections that ask for an upgrade and do nothing, and see that nothing is left of them."""
        before = self.measure()[1]
        count = self.options.half_open
        whole = min(count // 2, 200 if self.worker_class == "threads" else count)
        with ExitStack() as stack:
            clients: list[UpgradeClient] = []
            for number in range(count):
                client = stack.enter_context(self.client())
                clients.append(client)
                if number < whole:
                    client.ask()
                else:
                    client.offer(f"GET /echo HTTP/1.1\r\nHost: test\r\n{ASKS}".encode())
            with self.client() as other:
                self.ends[f"request beside half-open ones: {other.get('/hello').status}"] += 1
            for number, client in enumerate(clients):
                with suppress(AssertionError, OSError):
                    if number < whole:
                        client.read_interim()
                        self.ends["half-open: 101"] += 1
                    else:
                        self.ends[f"half-open: {client.read_end()[0]}"] += 1
        after = self.measure()[1]
        if self.ends["half-open: 101"] != whole or self.ends[f"half-open: {FIN}"] != count - whole:
            self.wrong["a half-open connection was not treated as it should be"] += 1
        if after.fds > before.fds + FEW:
            self.wrong[f"half-open connections: {before.fds} descriptors before, {after.fds} after"] += 1

    def talk_through_reloads(self, table: Table) -> list[tuple[Figures, Figures]]:
        """Talk; return what was measured before each reload."""
        talkers = [threading.Thread(target=self.talk, args=(seed,)) for seed in range(self.options.sockets)]
        askers = [threading.Thread(target=self.ask) for _ in range(2)]
        for thread in (*talkers, *askers):
            thread.start()
        end = time.monotonic() + self.options.seconds
        found: list[tuple[Figures, Figures]] = []
        try:
            while time.monotonic() < end:
                time.sleep(self.options.every - 2)
                self.let_pause(len(talkers) + len(askers))
                found.append(self.measure())
                master, worker = found[-1]
                table.row(
                    self.worker_class, len(found), f"{master.fds}/{worker.fds}", worker.threads, worker.greenlets,
                    f"{master.memory >> 10} KiB", f"{worker.memory >> 10} KiB",
                )  # fmt: skip
                self.let_go_on(len(talkers) + len(askers))
                time.sleep(2)
                self.reload()
        finally:
            self.over.set()
            self.resumed.set()
            for thread in (*talkers, *askers):
                thread.join()
        return found

    def let_pause(self, clients: int) -> None:
        """Wait until no client has a connection."""
        self.resumed.clear()
        self.pause.set()
        for _ in range(clients):
            if not self.paused.acquire(timeout=LONGEST_S):
                raise RuntimeError("a connection does not end")

    def let_go_on(self, clients: int) -> None:
        """Let all clients connect again."""
        self.pause.clear()
        self.resumed.set()
        for _ in range(clients):
            self.paused.acquire()

    def judge(self, found: list[tuple[Figures, Figures]]) -> None:
        """Compare what was measured: the last three with the first three."""
        for who, index in (("master", 0), ("worker", 1)):
            first, last = ([pair[index] for pair in part] for part in (found[:3], found[-3:]))
            for name in Figures._fields:
                before, after = (statistics.median(getattr(each, name) for each in part) for part in (first, last))
                allowed = before + FEW
                if name == "memory":
                    allowed = before * MEMORY_SLACK + MEMORY_SLACK_BYTES
                elif name in ("threads", "greenlets"):  # they stay for the next burst
                    allowed = max(allowed, 270)
                if after > allowed:
                    self.wrong[f"{who}: {name} grow from {before:g} to {after:g}"] += 1


def _figures(pid: int, greenlets: int) -> Figures:
    status = Path(f"/proc/{pid}/status").read_text()
    (memory,) = (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))
    return Figures(len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), greenlets, memory)


def measure(table: Table, worker_class: str, options: Any) -> bool:
    """Run one class, and print its rows; return whether all went well."""
    with tempfile.TemporaryDirectory(prefix="soak-websockets-") as name:
        run = Run(worker_class, options, Path(name))
        try:
            if options.idle:
                run.hold_idle()
            if options.half_open:
                run.half_open()
            run.judge(run.talk_through_reloads(table))
            run.server.stop(signal.SIGTERM)
        finally:
            run.server.close()
    say(f"  {json.dumps(dict(run.ends.most_common()))}")
    trouble = run.server.trouble()
    for line in [*map(str, run.wrong.most_common(8)), *trouble[:8]]:
        say(f"  WRONG {line}")
    return not (run.wrong or trouble)


def main() -> int:
    """Run the classes and print the table; return the exit status."""
    options = options_of(
        __doc__, choose=("classes",), seconds=600.0, threads=250, sockets=200, every=20.0, idle=1000, half_open=10_000,
        tls=False,
    )  # fmt: skip
    # The worker has two of each connection that its application has taken, and with TLS three.
    each = 3 if options.tls else 2
    most = max(options.half_open // 2 * (1 + each), each * options.idle)
    allow_descriptors(most + each * options.sockets + SPARE_DESCRIPTORS)
    table = Table("class", "sample", "descriptors", "threads", "greenlets", "master", "worker")
    went_well = True
    for worker_class in options.classes:
        if worker_class != "sync":  # it cannot hold a connection
            went_well &= measure(table, worker_class, options)
    return int(not went_well)
