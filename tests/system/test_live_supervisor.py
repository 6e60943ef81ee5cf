"""supervisor runs wsgiserv with the configuration of examples/supervisord.conf, in every worker class (issue 4)."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import need
from rawclient import RawClient
from server import DEADLINE_S, ROOT, children, environment, is_alive, processes, wait_until


class Supervised:
    """A real supervisord with the example's configuration, and its supervisorctl.

    Attributes:
        addresses: where the server listens: a port and a path.
    """

    def __init__(self, directory: Path, worker_class: str) -> None:
        self.directory = directory
        self._control = need("supervisorctl")
        # Bound and not listening, with SO_REUSEADDR: nobody else is given this port, and a server may take it.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.addresses = (self._reservation.getsockname(), str(directory / "hello.sock"))
        binds = [f"127.0.0.1:{self.addresses[0][1]}", f"unix:{self.addresses[1]}"]
        (directory / "gun.py").write_text(
            f"bind = {binds}\nworkers = 2\nworker_class = {worker_class!r}\naccesslog = '-'\n"
        )
        self.configuration = directory / "supervisord.conf"
        self.configuration.write_text(self._configured())
        self.process = subprocess.Popen(
            [need("supervisord"), "--nodaemon", "--silent", "-c", str(self.configuration)],
            cwd=directory,
            env=environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _configured(self) -> str:
        text = (ROOT / "examples" / "supervisord.conf").read_text()
        for written, ours in {
            "/srv/hello/venv/bin/wsgiserv": f"{shlex.quote(sys.executable)} -m wsgiserv",
            "hello:app": "apps:app",
            "/srv/hello": str(self.directory),
            "user = www-data\n": "",
            "/var/log/supervisor": str(self.directory),
            "/run/": f"{self.directory}/",
        }.items():
            assert written in text, written
            text = text.replace(written, ours)
        return text

    def control(self, *words: str) -> str:
        """Run supervisorctl and return what it printed."""
        done = subprocess.run(
            [self._control, "-c", str(self.configuration), *words],
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        return done.stdout + done.stderr

    @property
    def log(self) -> str:
        """The server's error log, as supervisor keeps it."""
        path = self.directory / "hello-error.log"
        return path.read_text() if path.exists() else ""

    def master(self) -> int:
        """Return the master's process id once it has two workers that serve; 0 before."""
        for pid in children(self.process.pid):
            if f"pid {pid}: 2 " in self.log and self.log.rpartition(f"pid {pid}: 2 ")[2].count("ready: 2 "):
                return pid
        return 0

    def wait_until_up(self, *, without: int = 0) -> tuple[int, list[int]]:
        """Return the ids of the master, which is not ``without``, and of its workers."""
        try:
            pid = wait_until(lambda: (found := self.master()) != without and found, "it is up", 25.0)
        except AssertionError as failure:
            failure.add_note(self.log)
            raise
        return pid, children(pid)

    def serves(self) -> list[int]:
        """Ask at each address; return the ids of the workers that have answered."""
        pids = []
        for address in self.addresses:
            with RawClient(address) as client:
                pids.append(int(client.get("/").one("X-Pid") or 0))
        return pids

    def trouble(self) -> list[str]:
        """Return the lines of the error log that are warnings or worse."""
        return [
            line
            for line in self.log.splitlines()
            if re.search(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback", line) and "the workers run as root" not in line
        ]

    def refuses(self) -> bool:
        """Whether nobody listens at any of its addresses."""
        for address in self.addresses:
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                RawClient(address).close()
                return False
        return True

    def close(self) -> None:
        """Kill what is left."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(DEADLINE_S)
        # supervisor gives each program a session of its own: its processes are known by their directory.
        for process in processes():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/cwd") == str(self.directory):
                    os.kill(process.pid, signal.SIGKILL)
        self.process.wait()
        self._reservation.close()


@pytest.fixture
def supervised(tmp_path: Path, worker_class: str) -> Iterator[Supervised]:
    """A server under supervisor; nothing of it is left after the test."""
    made = Supervised(tmp_path, worker_class)
    try:
        yield made
    finally:
        made.close()


# What supervisor does is the same for all classes, and its commands take seconds.
@pytest.mark.parametrize("worker_class", ["sync"], indirect=True)
def test_restart_reload_and_stop(supervised: Supervised) -> None:
    master, workers = supervised.wait_until_up()
    assert set(supervised.serves()) <= set(workers)
    wait_until(lambda: re.search(rf"hello +RUNNING +pid {master},", supervised.control("status")), "startsecs")

    # Restart: requests in flight are answered, then there is a new master.
    with RawClient(supervised.addresses[0]) as client:
        client.request("/sleep?0.3")
        wait_until(lambda: "sleeping 0.3" in supervised.log, "the request is under way")
        said = supervised.control("restart", "hello")
        assert client.read_response().status == 200
    assert said.splitlines() == ["hello: stopped", "hello: started"]
    assert not any(map(is_alive, [master, *workers]))
    master, workers = supervised.wait_until_up(without=master)
    assert set(supervised.serves()) <= set(workers)

    # HUP through supervisor: the same master, new workers.
    assert supervised.control("signal", "HUP", "hello").strip() == "hello: signalled"
    wait_until(lambda: not set(workers) & set(children(master)), "the old workers leave")
    workers = children(master)
    assert set(supervised.serves()) <= set(workers)

    # Stop: in time, its addresses free, and it stays down.
    assert supervised.control("stop", "hello").strip() == "hello: stopped"
    assert not any(map(is_alive, [master, *workers]))
    assert supervised.refuses()
    assert re.search(r"hello +STOPPED", supervised.control("status"))
    assert supervised.log.count("TERM: stopping gracefully") == 2
    assert supervised.trouble() == []


def test_the_master_is_killed_then_supervisor_ends(supervised: Supervised) -> None:
    killed, orphans = supervised.wait_until_up()
    assert set(supervised.serves()) <= set(orphans)
    with RawClient(supervised.addresses[1]) as client:
        client.request("/sleep?0.3")
        wait_until(lambda: "sleeping 0.3" in supervised.log, "the request is under way")
        os.kill(killed, signal.SIGKILL)
        # An orphan finishes what it is at, and holds the sockets meanwhile. supervisor tries until they are free.
        assert client.read_response().status == 200
    master, workers = supervised.wait_until_up(without=killed)
    wait_until(lambda: not any(map(is_alive, orphans)), "the orphans leave")
    assert set(supervised.serves()) <= set(workers)
    assert [line for line in supervised.trouble() if "is gone: leaving" not in line and "in use" not in line] == []

    # The end of supervisor takes the server along.
    supervised.process.terminate()
    assert supervised.process.wait(DEADLINE_S) == 0
    assert not any(map(is_alive, [master, *workers]))
    assert supervised.refuses()
    assert '"GET / HTTP/1.1" 200' in (supervised.directory / "hello-access.log").read_text()
