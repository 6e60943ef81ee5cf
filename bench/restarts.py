"""Does any client notice? Reloads, upgrades, recycling, scaling, bad deploys and kill -9 under three kinds of clients.

    python -m bench.restarts [--class sync,threads,gevent] [--scenario hup,upgrade,...] [--quick]

Four workers. The clients, all at once: wrk (keep-alive), ab (a connection per request), `requests` sessions and
plain sockets that pause for 0 to 2 s between two requests, so that their connections are mostly idle. Counted are the
requests, those that failed, and the connections that were closed without ``Connection: close`` before. Ends with
status 1 when a client noticed anything that it should not have.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import requests

from bench.hello import free_port

ROOT = Path(__file__).parents[1]
WORKERS = 4
APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\\n"]
"""


class Server:
    """A server whose application is a file that can be broken and mended, while the ``with`` block lasts."""

    def __init__(self, worker_class: str, *args: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="wsgiserv-restarts-"))
        self.port = free_port()
        self.pidfile = self.directory / "server.pid"
        self.log = self.directory / "error.log"
        self.site = self.directory / "site_under_test.py"
        self.site.write_text(APPLICATION)
        threads = ["--threads", "4"] if worker_class == "threads" else []
        command = [sys.executable, "-m", "wsgiserv", "-k", worker_class, "-w", str(WORKERS), *threads]
        command += ["-b", f"127.0.0.1:{self.port}", "-p", str(self.pidfile), "--error-logfile", str(self.log)]
        self._config = self.directory / "gun.py"
        self._config.write_text("")
        self._process = subprocess.Popen(
            [*command, "-c", str(self._config), *args, "site_under_test:app"],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> Server:
        self.wait_for(r"ready: 4 workers", 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            os.kill(self.master, signal.SIGQUIT)
        except (OSError, ValueError):
            pass
        self._process.wait(timeout=40)
        if error is None:
            shutil.rmtree(self.directory)
        else:
            print(f"the log is {self.log}", file=sys.stderr)

    @property
    def master(self) -> int:
        """The master's pid, from its pid file."""
        return int(self.pidfile.read_text())

    def workers(self) -> list[int]:
        """Return the pids of the workers."""
        master = self.master
        return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]

    def configure(self, text: str) -> None:
        """Write the configuration file."""
        self._config.write_text(text)

    def mark(self) -> int:
        """Return where the log ends now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def wait_for(self, pattern: str, mark: int, limit_s: float = 60.0) -> str:
        """Wait until the log has a line behind ``mark``, and return it."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self.log.exists():
                with self.log.open() as file:
                    file.seek(mark)
                    found = re.search(pattern, file.read())
                if found:
                    return found[0]
            time.sleep(0.02)
        raise TimeoutError(f"not in the log within {limit_s:g} s: {pattern}")


class Clients:
    """The load, while the ``with`` block lasts; afterwards the counts.

    Attributes:
        asked: requests that were answered.
        failed: what went wrong, in words, with how often.
        unannounced: connections that were closed while they were idle, without ``Connection: close``.
        slowest_s: the slowest answer that the sessions and sockets have seen.
    """

    def __init__(self, port: int, sessions: int = 8, sockets: int = 16) -> None:
        self._url = f"http://127.0.0.1:{port}/"
        self._address = ("127.0.0.1", port)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.asked = 0
        self.failed: dict[str, int] = {}
        self.unannounced = 0
        self.slowest_s = 0.0
        self._threads = [threading.Thread(target=self._wrk), threading.Thread(target=self._ab)]
        self._threads += [threading.Thread(target=self._session, args=(n,)) for n in range(sessions)]
        self._threads += [threading.Thread(target=self._socket, args=(n,)) for n in range(sockets)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _note(self, asked: int = 0, failed: str = "", count: int = 1, took_s: float = 0.0) -> None:
        with self._lock:
            self.asked += asked
            self.slowest_s = max(self.slowest_s, took_s)
            if failed:
                self.failed[failed] = self.failed.get(failed, 0) + count

    def _wrk(self) -> None:
        while not self._stop.is_set():
            done = subprocess.run(
                ["wrk", "-t1", "-c8", "-d2s", "--timeout", "10s", self._url],
                capture_output=True,
                text=True,
                check=False,
            )
            found = re.search(r"(\d+) requests in", done.stdout)
            self._note(asked=int(found[1]) if found else 0)
            if found is None:
                self._note(failed=f"wrk: {done.stderr.strip()[:80]}")
            for what, number in re.findall(r"(connect|read|write|timeout) (\d+)", done.stdout):
                if int(number):
                    self._note(failed=f"wrk {what}", count=int(number))
            if bad := re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout):
                self._note(failed="wrk status", count=int(bad[1]))

    def _ab(self) -> None:
        while not self._stop.is_set():
            done = subprocess.run(
                ["ab", "-q", "-r", "-s", "10", "-n", "2000", "-c", "4", self._url],
                capture_output=True,
                text=True,
                check=False,
            )
            numbers = dict(re.findall(r"^([A-Z][\w -]+):\s+(\d+)", done.stdout, re.MULTILINE))
            self._note(asked=int(numbers.get("Complete requests", 0)))
            if done.returncode:
                self._note(failed=f"ab: {done.stderr.strip()[:80]}")
            for what in ("Failed requests", "Write errors", "Non-2xx responses"):
                if int(numbers.get(what, 0)):
                    self._note(failed=f"ab {what.lower()}", count=int(numbers[what]))

    def _session(self, seed: int) -> None:
        chance = random.Random(seed)
        with requests.Session() as session:
            session.trust_env = False
            while not self._stop.wait(chance.uniform(0, 2)):
                begun = time.perf_counter()
                try:
                    answer = session.get(self._url, timeout=10)
                    good = answer.status_code == 200 and answer.text == "hello\n"
                    self._note(
                        asked=1,
                        failed="" if good else f"requests: {answer.status_code}",
                        took_s=time.perf_counter() - begun,
                    )
                except requests.RequestException as error:
                    self._note(failed=f"requests: {type(error).__name__}")

    def _socket(self, seed: int) -> None:
        """Unlike a session it does not open another connection in silence when the server has closed this one."""
        chance = random.Random(1000 + seed)
        client = None
        while not self._stop.is_set():
            begun = time.perf_counter()
            try:
                client = client or socket.create_connection(self._address, timeout=10)
                client.settimeout(10)
                client.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
                data = b""
                while not data.endswith(b"hello\n"):
                    piece = client.recv(65536)
                    if not piece:
                        raise ConnectionError("closed")
                    data += piece
                self._note(asked=1, took_s=time.perf_counter() - begun)
                if b"connection: close" in data.lower():
                    client.close()
                    client = None
                    self._stop.wait(chance.uniform(0, 2))
                    continue
                client.settimeout(chance.uniform(0.001, 2))
                if client.recv(1) == b"":  # while it is idle
                    with self._lock:
                        self.unannounced += 1
                    client.close()
                    client = None
            except TimeoutError:
                if time.perf_counter() - begun > 9:
                    self._note(failed="socket: timeout")
                    client = None
            except OSError as error:
                self._note(failed=f"socket: {type(error).__name__}")
                if client is not None:
                    client.close()
                client = None
        if client is not None:
            client.close()


def hup(server: Server, quick: bool) -> None:
    """20 reloads."""
    for _ in range(4 if quick else 20):
        mark = server.mark()
        os.kill(server.master, signal.SIGHUP)
        server.wait_for(r"reloaded: 4 workers", mark)
        time.sleep(0.3)


def upgrade(server: Server, quick: bool) -> None:
    """10 upgrades."""
    for _ in range(2 if quick else 10):
        old = server.master
        mark = server.mark()
        os.kill(old, signal.SIGUSR2)
        server.wait_for(rf"\[{old}\] \[INFO\] stopped", mark)
        time.sleep(0.3)


def recycle(server: Server, quick: bool) -> None:
    """max_requests = 500, until enough have been replaced."""
    end = time.monotonic() + (3 if quick else 15)
    while time.monotonic() < end:
        time.sleep(0.1)


def scale(server: Server, quick: bool) -> None:
    """10 times two workers more, and back."""
    for _ in range(2 if quick else 10):
        for number, wanted in (
            (signal.SIGTTIN, 5),
            (signal.SIGTTIN, 6),
            (signal.SIGTTOU, 5),
            (signal.SIGTTOU, 4),
        ):
            os.kill(server.master, number)
            end = time.monotonic() + 20
            while len(server.workers()) != wanted:
                if time.monotonic() > end:
                    raise TimeoutError(f"{len(server.workers())} workers instead of {wanted}")
                time.sleep(0.02)
        time.sleep(0.1)


def deploy(server: Server, quick: bool) -> None:
    """Deploys that are broken in four ways, then the mend."""
    for broken, pattern in (
        ("def app(:\n", r"SyntaxError"),
        ("raise RuntimeError('on purpose')\n", r"RuntimeError: on purpose"),
        ("import time\ntime.sleep(600)\n", r"boot_timeout"),
    ):
        server.site.write_text(broken)
        mark = server.mark()
        os.kill(server.master, signal.SIGHUP)
        server.wait_for(r"the reload has failed", mark)
        server.wait_for(pattern, mark)
    server.site.write_text(APPLICATION)
    server.configure("workers = 'lots'\n")
    mark = server.mark()
    os.kill(server.master, signal.SIGHUP)
    server.wait_for(r"nothing is reloaded", mark)
    server.configure("")
    mark = server.mark()
    os.kill(server.master, signal.SIGHUP)
    server.wait_for(r"reloaded: 4 workers", mark)


SCENARIOS: dict[str, tuple[Callable[[Server, bool], None], tuple[str, ...]]] = {
    "hup": (hup, ()),
    "upgrade": (upgrade, ()),
    "max_requests": (recycle, ("--max-requests", "500")),
    "scale": (scale, ()),
    "deploy": (deploy, ("--boot-timeout", "2")),
}


def main() -> int:
    """Run the scenarios and print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.restarts", description=__doc__.partition("\n")[0])
    parser.add_argument("--class", dest="classes", default="sync,threads,gevent")
    parser.add_argument("--scenario", dest="scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    given = parser.parse_args()
    print("| class | scenario | requests | failed | closed unannounced | slowest | took |")
    print("|---|---|---:|---:|---:|---:|---:|")
    noticed = False
    for worker_class in given.classes.split(","):
        for name in given.scenarios.split(","):
            scenario, args = SCENARIOS[name]
            begun = time.monotonic()
            with Server(worker_class, *args) as server, Clients(server.port) as clients:
                time.sleep(0.5)
                scenario(server, given.quick)
                time.sleep(0.5)
            failed = sum(clients.failed.values())
            print(
                f"| {worker_class} | {name} | {clients.asked:,} | {failed} | {clients.unannounced} | "
                f"{clients.slowest_s * 1000:.0f} ms | {time.monotonic() - begun:.0f} s |",
                flush=True,
            )
            if failed or clients.unannounced:
                noticed = True
                print(f"  {clients.failed}", file=sys.stderr)
    return 1 if noticed else 0


if __name__ == "__main__":
    sys.exit(main())
