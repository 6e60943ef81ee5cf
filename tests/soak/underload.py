"""A server with a changeable application, and clients which count everything they notice. For restarts and kill9."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import threading
import time

import requests

from bench.servers import Server, ours, workers_of

WORKERS = 4
APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\\n"]
"""


def wait_until_ready(server: Server, mark: int = 0) -> None:
    """Wait until all workers serve; they may listen on no port."""
    server.wait_for_log(rf"ready: {WORKERS} workers", mark)


class SiteServer(Server):
    """A server with four workers, whose application and configuration are files that a test may break and mend.

    Args:
        worker_class: of the workers.
        options: more of the command line.
        bind: where it listens, in place of a port of its own.
    """

    def __init__(self, worker_class: str, *options: str, bind: str = "127.0.0.1:{port}") -> None:
        threads = ["--threads", "4"] if worker_class == "threads" else []
        rest = ["-p", "{dir}/server.pid", "-c", "{dir}/gun.py", *threads, *options]
        arguments = ours(worker_class, WORKERS, *rest, app="site_under_test:app", address=bind)
        files = {"site_under_test.py": APPLICATION, "gun.py": ""}
        super().__init__(arguments, files=files, until_up=wait_until_ready)
        self.pidfile = self.directory / "server.pid"
        self.site = self.directory / "site_under_test.py"
        self.configuration = self.directory / "gun.py"

    def restart(self) -> None:
        """Stop it, start it again, and wait until all workers serve."""
        mark = self.mark()
        self.stop()
        self.start()
        wait_until_ready(self, mark)

    @property
    def master(self) -> int:
        """The present master's process id: after an upgrade another than the one that was started."""
        try:
            return int(self.pidfile.read_text())
        except (OSError, ValueError, AttributeError):
            return self.process.pid

    def signal(self, number: int, pattern: str = "") -> None:
        """Signal the master, and wait for the answer in its log."""
        mark = self.mark()
        os.kill(self.master, number)
        if pattern:
            self.wait_for_log(pattern, mark)

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return workers_of(self.master)


class Clients:
    """Clients of four kinds while the ``with`` block lasts; afterwards the counts.

    wrk (keep-alive), ab (a connection per request), sessions of `requests`, and plain sockets with pauses of 0 to 2 s
    between two requests, so that their connections are mostly idle.

    Attributes:
        asked: requests that were answered.
        failed: the failures in words, each with its count.
        unannounced: connections that were closed while they were idle, without ``Connection: close``.
        slowest_s: the slowest answer to a session or a socket.
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

    def __exit__(self, *about: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failures(self) -> int:
        """The number of failed requests."""
        return sum(self.failed.values())

    def _note(self, asked: int = 0, failed: str = "", count: int = 1, took_s: float = 0.0) -> None:
        with self._lock:
            self.asked += asked
            self.slowest_s = max(self.slowest_s, took_s)
            if failed and count:
                self.failed[failed] = self.failed.get(failed, 0) + count

    def _wrk(self) -> None:
        while not self._stop.is_set():
            command = ["wrk", "-t1", "-c8", "-d2s", "--timeout", "10s", self._url]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = re.search(r"(\d+) requests in", done.stdout)
            self._note(int(found[1]) if found else 0, "" if found else f"wrk: {done.stderr.strip()[:80]}")
            for kind, number in re.findall(r"(connect|read|write|timeout|responses:) (\d+)", done.stdout):
                self._note(failed=f"wrk {kind}", count=int(number))

    def _ab(self) -> None:
        while not self._stop.is_set():
            command = ["ab", "-q", "-r", "-s", "10", "-n", "2000", "-c", "4", self._url]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            numbers = dict(re.findall(r"^([A-Z][\w -]+):\s+(\d+)", done.stdout, re.MULTILINE))
            self._note(int(numbers.get("Complete requests", 0)))
            if done.returncode:
                self._note(failed=f"ab: {done.stderr.strip()[:80]}")
            self._note(failed="ab failed requests", count=_failed_of_ab(done.stdout))
            for kind in ("Write errors", "Non-2xx responses"):
                self._note(failed=f"ab {kind.lower()}", count=int(numbers.get(kind, 0)))

    def _session(self, seed: int) -> None:
        chance = random.Random(seed)
        with requests.Session() as session:
            session.trust_env = False
            while not self._stop.wait(chance.uniform(0, 2)):
                begun = time.perf_counter()
                try:
                    answer = session.get(self._url, timeout=10)
                    good = answer.status_code == 200 and answer.text == "hello\n"
                    failed = "" if good else f"requests: {answer.status_code}"
                    self._note(1, failed, took_s=time.perf_counter() - begun)
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
