"""A worker that dies leaves an account of who, what, for how long and where (issue 5, part 7), in every class."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient, Truncated
from server import Connect, Server, Start, wait_until

TROUBLE = (r"\[(WARNING|ERROR|CRITICAL)\]|Traceback",)


class CrashReports:
    """The reports in a server's log, by process id: the lines of each."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def of(self, pid: int, *words: str) -> list[str]:
        """Wait for a worker's report that has these words, and return its lines."""

        def found() -> list[str]:
            lines = self._server.log.text.split("\n")
            for number, line in enumerate(lines):
                if re.search(rf"\[ERROR\] WS1209 crash report: worker {pid} \(age \d+\) (was killed|exited)", line):
                    rest = itertools.takewhile(lambda line: line.startswith("    "), lines[number + 1 :])
                    return [line, *rest]
            return []

        try:
            wait_until(lambda: all(word in "\n".join(found()) for word in words) and found(), "the words")
        except AssertionError as failure:
            failure.add_note(f"the report of {pid} with {words}, but the log is:\n{self._server.log.text}")
            raise
        return found()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(re.findall(r"^    cause: ", self._server.log.text, re.MULTILINE))


def begun(server: Server, path: str) -> list[int]:
    """Return the workers in which this path has been asked for, one for each request."""
    return [int(pid) for pid in re.findall(rf"^(\d+) has begun {path}$", server.log.text, re.MULTILINE)]


def request_begins(server: Server, client: RawClient, target: str) -> int:
    """Send a request, wait until it is in the application and return the worker's process id."""
    path = target.partition("?")[0]
    before = len(begun(server, path))
    client.request(target)
    wait_until(lambda: len(begun(server, path)) > before, f"{path} is in the application")
    return begun(server, path)[-1]


def is_lost(client: RawClient) -> bool:
    """Whether the connection ended without a response."""
    try:
        assert client.read_response().status == 200
    except (Truncated, OSError):
        return True
    return False


def test_deaths_and_the_requests_they_cost(start: Start, connect: Connect, tmp_path: Path, worker_class: str) -> None:
    options = ["--access-logfile", "access.log", "--access-logformat", "json", "-w", "2"]
    options += ["--threads", "8"] if worker_class == "threads" else []
    server = start("deathapps:app", *options, expect=TROUBLE)
    reports = CrashReports(server)
    server.wait_for_log("ready: 2 workers")

    def access_lines(pid: int, count: int) -> list[dict[str, Any]]:
        """Wait for the lines of a worker's lost requests: they come after the report, in one write."""

        def found() -> list[dict[str, Any]]:
            log = tmp_path / "access.log"
            lines = map(json.loads, log.read_text().splitlines() if log.exists() else [])
            return [line for line in lines if line["pid"] == pid and line["status"] != 200]

        wait_until(found, f"the access log's lines of {pid}")
        assert len(found()) == count
        return found()

    # kill -9: the requests in flight are lost, and no other.
    clients = [connect(server.address) for _ in range(2 if worker_class == "sync" else 6)]
    holders = [request_begins(server, client, f"/wait?{tmp_path / 'go'}") for client in clients]
    victim = holders[0]
    os.kill(victim, signal.SIGKILL)
    report = reports.of(victim, "in flight")
    (tmp_path / "go").touch()
    lost = [is_lost(client) for client in clients]
    assert lost == [holder == victim for holder in holders]
    assert "was killed by SIGKILL" in report[0]
    assert "SIGKILL from outside" in report[1]
    assert re.fullmatch(r" +memory: .*\d\.\d MiB at its most", report[2])
    in_flight = [line for line in report if re.search(rf"in flight in worker {victim} for", line)]
    assert len(in_flight) == sum(lost)
    assert '"GET /wait?' in in_flight[0]
    assert "from 127.0.0.1, request id " in in_flight[0]
    lines = access_lines(victim, sum(lost))
    assert [line["status"] for line in lines] == [0] * sum(lost)
    assert {line["request_id"] for line in lines} == {
        str(found[1]) for line in in_flight if (found := re.search(r"request id (\S+)", line))
    }
    assert {(line["method"], line["path"], line["remote_addr"]) for line in lines} == {("GET", "/wait", "127.0.0.1")}

    # A request is in flight for a moment longer than its client waits; then comes its line in the access log.
    log = tmp_path / "access.log"
    wait_until(lambda: log.read_text().count('"status":200') == lost.count(False), "the others have ended")

    # The application leaves, or crashes in C: the status or the stack is there.
    for target, how, words in (
        ("/exit", "exited with status 7", ["os._exit(7)"]),
        ("/null", "was killed by SIGSEGV", ["a crash in C code", "in crash_in_c", "Segmentation fault"]),
        ("/segv", "was killed by SIGSEGV", ["a crash in C code", "in kill_itself", "Segmentation fault"]),
    ):
        client = connect(server.address)
        pid = request_begins(server, client, target)
        assert is_lost(client)
        report = reports.of(pid, *words, f'"GET {target} HTTP/1.1"')
        assert how in report[0]
        assert "\n".join(report).count("in flight in worker") == 1
        assert [line["path"] for line in access_lines(pid, 1)] == [target]
        wait_until(lambda: len(server.workers()) == 2, "it is replaced")

    # Who was told to leave gets none.
    assert server.stop() == 0
    assert reports.count == 4
    assert "lost" not in server.log.text


def test_hangs_tell_where(start: Start, connect: Connect, tmp_path: Path, worker_class: str) -> None:
    """In Python the worker tells itself, with all greenlets; where the GIL is held, the interpreter does."""
    options = ["--access-logfile", "access.log", "--access-logformat", "%(s)s %(m)s %(U)s %(p)s %(B)s %(f)s"]
    options += ["-t", "1", "-w", "1" if worker_class == "threads" else "2"]
    options += ["--threads", "2"] if worker_class == "threads" else []
    server = start("deathapps:app", *options, expect=TROUBLE)
    reports = CrashReports(server)
    server.wait_for_log("ready: ")

    def is_in_access_log(line: str) -> None:
        wait_until(lambda: line in (tmp_path / "access.log").read_text().splitlines(), line)

    def spun(pid: int, others: list[int]) -> None:
        said = ["sent by wsgiserv: it has not responded for 1 s (timeout)", "stacks, by the worker itself"]
        reports.of(pid, *said, "in spin_in_python")
        waiting = others.count(pid)
        wait_until(
            lambda: "\n".join(reports.of(pid)).count("in wait_for_file") == waiting,
            f"{waiting} greenlets that wait are listed",
        )
        is_in_access_log(f"504 GET /spin <{pid}> 0 -")

    def held(pid: int) -> None:
        said = ["sent by wsgiserv: it has not responded for 1 s (timeout); it did not end within 1."]
        report = reports.of(pid, *said, "stacks, by faulthandler", "in hold_the_gil")
        assert "was killed by SIGKILL" in report[0]
        assert "run_app" not in "\n".join(report)
        is_in_access_log(f"504 GET /gil <{pid}> 0 -")

    def client() -> RawClient:
        return connect(server.address)

    if worker_class == "threads":
        # One that hangs holds nobody; when all do, the worker is silent.
        first, second = (request_begins(server, client(), "/spin") for _ in range(2))
        assert first == second
        spun(first, [])
        wait_until(lambda: server.workers() and first not in server.workers(), "it is replaced")
        held(request_begins(server, client(), "/gil"))
        return
    others = []
    if worker_class == "gevent":
        others = [request_begins(server, client(), f"/wait?{tmp_path / 'go'}") for _ in range(6)]
    spinning = request_begins(server, client(), "/spin")
    holding = request_begins(server, client(), "/gil")
    assert spinning != holding
    spun(spinning, others)
    held(holding)


@pytest.mark.parametrize("worker_class", ["sync"], indirect=True)
def test_whoever_has_faulthandler_on_keeps_it(start: Start, connect: Connect) -> None:
    options = ["-w", "2", "-t", "1"]
    server = start("deathapps:app", *options, expect=(*TROUBLE, "Fatal"), env={"PYTHONFAULTHANDLER": "1"})
    reports = CrashReports(server)
    spinning = request_begins(server, connect(server.address), "/spin")
    crashed = request_begins(server, connect(server.address), "/segv")
    reports.of(crashed, "no stack is left, unless faulthandler was on before")
    reports.of(spinning, "it ended at SIGABRT", "stacks, by the worker itself", "in spin_in_python")
    assert "Fatal Python error: Segmentation fault" in server.log.lines
    assert "Fatal Python error: Aborted" in server.log.lines


@pytest.mark.parametrize("worker_class", ["sync"], indirect=True)
def test_an_import_that_hangs_tells_where(start: Start) -> None:
    files = {"hanging.py": "import time\n\n\ndef connect_to_nowhere():\n    time.sleep(60)\n\n\nconnect_to_nowhere()\n"}
    server = start("hanging:app", "--boot-timeout", "2", files=files, expect=TROUBLE)
    pid = int(server.wait_for_log(r"worker (\d+) was not ready after 2 s \(boot_timeout\): sending SIGABRT")[1])
    CrashReports(server).of(pid, "(boot_timeout); it ended at SIGABRT", "in connect_to_nowhere")
