"""Kill random workers by SIGKILL under load, and account for each failed request.

    python -m tests.soak kill9 [-k sync,threads,gevent] [--seconds 60]

A worker is stopped (SIGSTOP) for a moment before it is killed, for a look at its connections:

- *in flight* are the requests in its crash report: those in the application. The response of such a request may have
  left already, so this can be one too many for each kill; and a request that was read but not begun is in no report, so
  it can be one too few.
- *unread* are connections with a request in the socket that the worker has not read (the kernel says so).
- *held* are all its connections. Those without a request are closed without announcement, which an idle client notices
  (*idle lost*); the next request over a new connection then is no failure.

A connection carries one request at a time here, so more than ``held`` can never be lost. Exits 1 when more was lost.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from bench.servers import ROOT
from bench.table import Table, need, options_of, say
from tests.soak.underload import Clients, SiteServer

_EVERY_S = 0.7
# Clients that wait for a response send nothing more: after so long a stopped worker's sockets are as they stay.
_SETTLE_S = 0.01
_ESTABLISHED = 1
# netlink(7) and sock_diag(7): a header, NLM_F_REQUEST | NLM_F_DUMP, and the kinds of messages.
_HEADER = struct.Struct("=IHHII")
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_ERROR = 2
_DONE = 3


class Held(NamedTuple):
    """The number of a worker's connections, and of those with an unread request."""

    connections: int
    unread: int


class Killer:
    """One run of the scenario.

    Args:
        worker_class: of the server.
        seconds: how long the run lasts.
    """

    def __init__(self, worker_class: str, seconds: float) -> None:
        self._worker_class = worker_class
        self._seconds = seconds
        self._clients: Clients | None = None
        self._killed: dict[int, Held] = {}
        self._certified: dict[int, int] = {}  # requests in flight, by pid
        self._logged_lost = 0
        self._deaths: list[dict[str, object]] = []
        self._without_workers = 0

    def run(self) -> None:
        """Kill workers under load, and take down what the certificates say."""
        chance = random.Random(9)
        # `%(s)s` alone: the whole log is read afterwards, for its lost requests.
        logged = ("--access-logfile", "access.log", "--access-logformat", "%(s)s")
        with SiteServer(self._worker_class, *logged) as server:
            with Clients(server.port) as clients:
                time.sleep(0.5)
                end = time.monotonic() + self._seconds
                while time.monotonic() < end:
                    self._kill_one(server, chance)
                    time.sleep(_EVERY_S * chance.uniform(0.8, 1.2))
                time.sleep(0.5)
            self._clients = clients
            self._deaths = _deaths(server)
            self._certified = _certificates(server.log.read_text())
            with (server.directory / "access.log").open() as lines:
                self._logged_lost = sum(line == "000\n" for line in lines)

    def _kill_one(self, server: SiteServer, chance: random.Random) -> None:
        workers = server.workers()
        if not workers:
            self._without_workers += 1
            return
        pid = chance.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(_SETTLE_S)
            held = _held_by(pid, server.port)
            os.kill(pid, signal.SIGKILL)
            self._killed[pid] = held

    @property
    def _in_flight(self) -> int:
        return sum(self._certified.get(pid, 0) for pid in self._killed)

    @property
    def _unread(self) -> int:
        return sum(held.unread for held in self._killed.values())

    @property
    def _held(self) -> int:
        return sum(held.connections for held in self._killed.values())

    @property
    def _failed(self) -> int:
        return self._clients.failures if self._clients else 0

    def cells(self) -> list[object]:
        """Return the cells of its row."""
        clients = self._clients
        assert clients is not None
        difference = self._failed - self._in_flight - self._unread
        counts = (len(self._killed), clients.asked, self._failed, self._in_flight, self._unread, f"{difference:+d}")
        return [*counts, clients.unannounced, self._held, f"{clients.slowest_s * 1000:.0f} ms"]

    def complaints(self) -> list[str]:
        """Return what should not have been, in words; nothing when only the killed workers' requests are lost."""
        clients = self._clients
        assert clients is not None
        found = []
        missing = self._killed.keys() - self._certified.keys()
        if missing:
            found.append(f"no crash report for the workers {sorted(missing)}")
        others = self._certified.keys() - self._killed.keys()
        if others:
            found.append(f"workers have died that nobody killed: {sorted(others)}")
        certified = sum(self._certified.values())
        if self._logged_lost != certified:
            found.append(f"the access log has {self._logged_lost} lost requests, the certificates {certified}")
        listed = {str(death["pid"]): len(_list(death["in_flight"])) for death in self._deaths}
        told = {str(pid): count for pid, count in self._certified.items() if str(pid) in listed}
        if listed != told:
            found.append(f"wsgiservctl status has other requests in flight than the log: {listed}, {told}")
        if self._failed > self._in_flight + self._unread + len(self._killed):
            found.append("more requests have failed than the killed workers had, one for each kill allowed for")
        if self._failed + clients.unannounced > self._held:
            found.append(f"{self._failed + clients.unannounced} connections are lost, {self._held} were held")
        if any("timeout" in what.lower() for what in clients.failed):
            found.append("clients have waited in vain")
        if self._without_workers:
            found.append(f"{self._without_workers} times there was no worker left to kill")
        if found:
            found.append(f"failed: {clients.failed}")
        return found


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def _held_by(pid: int, port: int) -> Held:
    """Return what a stopped worker holds of the clients of ``port``."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                inodes.add(int(target[8:-1]))
    connections = unread = 0
    for local_port, queued, inode in _established():
        if local_port == port and inode in inodes:
            connections += 1
            unread += queued > 0
    return Held(connections, unread)


def _established() -> Iterator[tuple[int, int, int]]:
    """Yield port, bytes that wait to be read, and inode of the machine's established IPv4 sockets (sock_diag(7)).

    /proc/net/tcp has the same, but with the 10,000 sockets in TIME_WAIT that ab leaves it takes a second to read.
    """
    wish = struct.pack("=BBBxI48x", socket.AF_INET, socket.IPPROTO_TCP, 0, 1 << _ESTABLISHED)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(wish), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + wish)
        while True:
            data = kernel.recv(1 << 18)
            while data:
                size, kind, _, _, _ = _HEADER.unpack_from(data)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError("sock_diag(7) is refused")
                (port,) = struct.unpack_from("!H", data, _HEADER.size + 4)
                queued, _, _, inode = struct.unpack_from("=4I", data, _HEADER.size + 56)
                yield port, queued, inode
                data = data[(size + 3) & ~3 :]


def _certificates(log: str) -> dict[int, int]:
    """Return for each worker that has a crash report in the error log how many requests it had in flight."""
    # A worker that was booting dies like the others; the long lists of requests are cut, and end with their rest.
    found = {int(pid): 0 for pid in re.findall(r"crash report: worker (\d+) \(age \d+\) was killed by", log)}
    for pid in re.findall(r"^ +in flight in worker (\d+) for ", log, re.MULTILINE):
        found[int(pid)] += 1
    for pid, count in re.findall(r"^ +in flight in worker (\d+): (\d+) more", log, re.MULTILINE):
        found[int(pid)] += int(count)
    return found


def _deaths(server: SiteServer) -> list[dict[str, object]]:
    """Return the last deaths, as ``wsgiservctl status`` has them: it keeps 20."""
    done = subprocess.run(
        [sys.executable, "-m", "wsgiserv.ctl", "--pidfile", str(server.pidfile), "status", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deaths: list[dict[str, object]] = json.loads(done.stdout)["deaths"]
    return deaths


def run(classes: list[str], seconds: float) -> bool:
    """Run each class and print the table; return whether there were complaints."""
    heads = ["kills", "requests", "failed", "in flight (reports)", "unread in their sockets", "difference"]
    table = Table("class", *heads, "idle connections lost", "connections held", "slowest")
    complained = False
    for worker_class in classes:
        killer = Killer(worker_class, seconds)
        killer.run()
        table.row(worker_class, *killer.cells())
        for complaint in killer.complaints():
            complained = True
            say(f"  {complaint}")
    return complained


def main() -> int:
    """Run from the command line; return the exit status."""
    options = options_of(__doc__, choose=("classes",), seconds=60.0)
    need("wrk", "ab")
    return int(run(options.classes, options.seconds))
