"""A server that is worked on, and the clients that look on: what `bench.restarts` and its scenarios share.

Owns: `Server` (four workers, an application that can be broken and mended), `Clients` (the load, and what it noticed).
Must not know: what is done to the server.
"""

from __future__ import annotations

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
    """A server whose application is a file that can be broken and mended, while the ``with`` block lasts.

    Args:
        worker_class: ``sync``, ``threads`` or ``gevent``.
        args: more of the command line.
        bind: where it listens, in place of a port of its own.
        port: the port that ``bind`` names, if it names one.
    """

    def __init__(self, worker_class: str, *args: str, bind: str = "", port: int = 0) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="wsgiserv-restarts-"))
        self.port = port or free_port()
        self.pidfile = self.directory / "server.pid"
        self.log = self.directory / "error.log"
        self.site = self.directory / "site_under_test.py"
        self.site.write_text(APPLICATION)
        self._config = self.directory / "gun.py"
        self._config.write_text("")
        threads = ["--threads", "4"] if worker_class == "threads" else []
        command = [sys.executable, "-m", "wsgiserv", "-k", worker_class, "-w", str(WORKERS), *threads]
        command += ["-b", bind or f"127.0.0.1:{self.port}", "-p", str(self.pidfile)]
        command += ["--error-logfile", str(self.log), "-c", str(self._config), *args, "site_under_test:app"]
        self._command = command
        self.start()

    def start(self) -> None:
        """Start it, or start it again after it was stopped."""
        self._process = subprocess.Popen(
            self._command, cwd=self.directory, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    def stop(self) -> None:
        """Stop it with TERM, and wait until it has ended."""
        os.kill(self.master, signal.SIGTERM)
        self._process.wait(timeout=40)

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

    @property
    def failures(self) -> int:
        """How many requests have failed."""
        return sum(self.failed.values())

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
            if failed := _failed_of_ab(done.stdout):
                self._note(failed="ab failed requests", count=failed)
            for what in ("Write errors", "Non-2xx responses"):
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


def _failed_of_ab(output: str) -> int:
    """Return how many requests have failed: ab counts one that was reset three times, one that was closed once."""
    found = re.search(r"Connect: (\d+), Receive: (\d+), Length: (\d+), Exceptions: (\d+)", output)
    if found is None:
        return 0
    connect, receive, length, exceptions = map(int, found.groups())
    complete = re.search(r"Complete requests:\s+(\d+)", output)
    if complete and re.search(r"Document Length:\s+0 bytes", output):
        length = int(complete[1]) - length  # the first request was lost, and ab takes that for the rule
    return connect + max(receive, length, exceptions)
