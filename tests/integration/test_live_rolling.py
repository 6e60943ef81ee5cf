"""Reloads, recycling and scaling under load: what clients see, and what is said (issue 5, parts 1, 2 and 5)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from load import Load
from rawclient import RawClient, Response
from rollingapps import SITE, change, version
from server import DEADLINE_S, Connect, Server, Start, environment, is_alive, wait_until

from wsgiserv.ctl.commands import main

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
# Clients that sit idle are not to be ended for that meanwhile.
PATIENT = ("--keep-alive", "60", "--header-timeout", "60")


# ---- what the tests of upgrades use, too -----------------------------------------------------------------


def threads_of(worker_class: str) -> tuple[str, ...]:
    """Return the arguments for which one long call does not hold a worker of this class up."""
    return ("--threads", "4") if worker_class == "threads" else ()


class Said(NamedTuple):
    """How a command has ended."""

    status: int
    out: str
    err: str


def control_socket(pid: int) -> str:
    """Return where a master's control socket is when nothing else was said."""
    return f"{environment({})['XDG_RUNTIME_DIR']}/wsgiserv/{pid}.sock"


def ctl(pid: int, *argv: str) -> Said:
    """Run wsgiservctl in this process, for the master ``pid``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--socket", control_socket(pid), "--timeout", f"{DEADLINE_S:g}", *argv])
    return Said(status, out.getvalue(), err.getvalue())


class Order:
    """A command that the master has been given, by the protocol of docs/control.md, and whose answer is to come."""

    def __init__(self, pid: int, command: str, **rest: Any) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(control_socket(pid))
        self._socket.sendall(json.dumps({"command": command, "wait": True, **rest}).encode() + b"\n")
        figures(pid)  # who comes later has been answered: it is under way, or waits for its turn

    @property
    def is_answered(self) -> bool:
        """Whether the answer is there."""
        return bool(select.select([self._socket], (), (), 0)[0])

    def hang_up(self) -> None:
        """Leave without the answer."""
        self._socket.close()

    def answer(self) -> Any:
        """Wait for the answer and return it; None if the master has hung up without one."""
        with self._socket, self._socket.makefile() as file:
            line = file.readline()
        return json.loads(line) if line else None


def figures(pid: int) -> Any:
    """Return what ``status --json`` says."""
    done = ctl(pid, "status", "--json")
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out)


class Traffic:
    """Clients of both kinds: some keep their connections, some make a new one for each request."""

    def __init__(self, *addresses: Any, clients: int = 2) -> None:
        self.loads = [Load(each, clients=clients, keep=keep) for each in addresses for keep in (True, False)]

    def __enter__(self) -> Traffic:
        for load in self.loads:
            load.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for load in self.loads:
            load.__exit__(*error)

    def wait_for_more(self, requests: int = 10) -> None:
        """Wait until so many requests of each kind have been answered from now on."""
        for load in self.loads:
            load.wait_for_more(requests)

    def check(self) -> set[bytes]:
        """Fail if any request was lost; return the bodies of all responses."""
        clients = [client for load in self.loads for client in load.clients]
        assert [text for client in clients for text in client.lost] == []
        assert {status for client in clients for status in client.statuses} == {200}
        return {body for client in clients for body in client.bodies}


def pid_of(response: Response) -> int:
    """Who has answered, and the connection stays."""
    assert response.status == 200
    assert not response.closes
    return int(response.one("X-Pid") or 0)


def begin_slow(client: RawClient, gate: Path) -> None:
    """Send a request that lasts until `gate` is removed; return when it is with the application."""
    client.request(f"/gate?{gate}")
    wait_until(gate.exists, "the slow request has begun")


def ready(server: Server, workers: int) -> set[int]:
    server.wait_for_log(rf"ready: {workers} workers?")
    return set(server.workers())


def bodies(server: Server, number: int = 6) -> set[bytes]:
    """Ask some times, each time as a new client."""
    found = set()
    for _ in range(number):
        with RawClient(server.address) as client:
            found.add(client.get("/", headers="Connection: close\r\n").body)
    return found


# ---- a reload that fails ---------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A way to break a deployment.

    Attributes:
        reason: what the command and the status say.
        logged: what the log says besides: the traceback, or the place.
    """

    reason: str
    logged: str
    code: str = version("bad")
    conf: str = ""


FAULTS = {
    "syntax": Fault(r"syntax error.*site_of_rolling\.py, line 3", "reload failed", "\n\ndef app(:\n"),
    "import": Fault(r"LookupError: no table", r"File .*site_of_rolling\.py.*line 1", "raise LookupError('no table')\n"),
    "hang": Fault(
        r"boot_timeout", r"site_of_rolling\.py.*line 2\b", "import time\ntime.sleep(600)\n", "boot_timeout = 2\n"
    ),
    "warm-up": Fault(r"/warm .*503", "reload failed", version("bad", warm="503 Cold"), "warmup = ['/', '/warm']\n"),
    "unknown name": Fault(r"conf\.py, line 2.*tow.*not defined", "Traceback", conf="workers = tow\n"),
    "bad value": Fault(r"timeout = 'soon'.*conf\.py", "'soon'", conf="timeout = 'soon'\n"),
    "config syntax": Fault(r"conf\.py.*line 4", r"conf\.py.*line 4", conf="\n\ntimeout = = 5\n"),
}
CONF = "workers = 2\n"


def fail(server: Server, directory: Path, fault: Fault) -> None:
    """Deploy the fault, reload, and see that nothing has changed but what is said."""
    before, mark = set(server.workers()), len(server.log.lines)
    generation = figures(server.pid)["server"]["generation"]
    change(directory, fault.code)
    change(directory, CONF + fault.conf, "conf.py")
    done = ctl(server.pid, "reload", "--wait")
    assert (done.status, done.out) == (1, ""), done
    assert done.err.startswith("wsgiservctl: reload: ")
    assert re.search(fault.reason, done.err, re.DOTALL), done.err
    state = figures(server.pid)["server"]
    assert (state["state"], state["generation"]) == ("running", generation)
    assert state["last_reload"]["ok"] is False
    assert re.search(fault.reason, state["last_reload"]["reason"], re.DOTALL)
    server.wait_for_log("reload failed", after=mark)
    lines = "\n".join(server.log.lines[mark:])
    assert re.search(fault.reason, lines, re.DOTALL), lines
    assert re.search(fault.logged, lines), lines
    assert len(re.findall(r"sending SIGABRT", lines)) == ("boot_timeout" in fault.conf), "it is tried once"
    wait_until(lambda: set(server.workers()) == before, "the same workers, and nobody besides")
    assert state["workers"]["serving"] == 2


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_reload_that_fails_harms_nobody_and_the_mend_is_served(
    start: Start, tmp_path: Path, worker_class: str, preload: bool
) -> None:
    if preload and worker_class != "sync":
        pytest.skip("who loads the application is not the worker")
    server = start(
        SITE,
        *("-c", "conf.py", *PATIENT, *(["--preload"] if preload else [])),
        files={"conf.py": CONF, "site_of_rolling.py": version("one")},
        expect=(r"\[(ERROR|WARNING|CRITICAL)\]|Traceback",),
    )
    ready(server, 2)
    with Traffic(server.address, clients=1) as traffic:
        traffic.wait_for_more()
        for name, fault in FAULTS.items():
            if name == "hang" and worker_class == "threads":
                continue  # as in sync, and it takes its time
            fail(server, tmp_path, fault)
            traffic.wait_for_more(2)
        assert bodies(server) == {b"one"}
        old = set(server.workers())
        change(tmp_path, version("two"))
        change(tmp_path, CONF + "warmup = ['/', '/warm']\n", "conf.py")
        done = ctl(server.pid, "reload", "--wait")
        assert (done.status, done.err) == (0, "")
        assert figures(server.pid)["server"]["last_reload"]["ok"] is True
        wait_until(lambda: not old & set(server.workers()), "the old ones have left")
        traffic.wait_for_more()
        assert bodies(server) == {b"two"}
    assert traffic.check() == {b"one", b"two"}


# ---- connections -----------------------------------------------------------------------------------------


class Parked:
    """Clients that sit there while workers come and go: idle, silent since they came, and within a head.

    Args:
        address: of the server.
        number: how many of each kind.
    """

    def __init__(self, connect: Connect, address: Any, number: int = 8) -> None:
        self.idle, self.silent, self.halves = (
            [connect(address) for _ in range(number)] for _ in ("idle", "silent", "halves")
        )
        for client in [*self.idle, *self.halves]:
            pid_of(client.get())
        # Cut within the request line, a name, a value, the blank line, and after one and a half requests.
        for number, client in enumerate(self.halves):
            client.send(REQUEST[: (3, 10, 20, 27, len(REQUEST) - 1)[number % 5]])

    def check(self, text: bytes) -> set[int]:
        """Go on, on each connection: answered, with `text`, and kept. Return by whom."""
        for number, client in enumerate(self.halves):
            client.send(REQUEST[(3, 10, 20, 27, len(REQUEST) - 1)[number % 5] :])
        return self._answers([*self.idle, *self.silent], text, self.halves)

    def check_idle(self, text: bytes) -> set[int]:
        """The same when `check` has been called: all are idle."""
        return self._answers([*self.idle, *self.silent, *self.halves], text)

    @staticmethod
    def _answers(ask: list[RawClient], text: bytes, asked: Sequence[RawClient] = ()) -> set[int]:
        found = set()
        for client in ask:
            client.send(REQUEST)
        for client in [*ask, *asked]:
            response = client.read_response()
            found.add(pid_of(response))
            assert response.body == text
        return found


def test_connections_survive_a_reload(start: Start, connect: Connect, tmp_path: Path, worker_class: str) -> None:
    """Idle ones, half-sent heads, silent ones; and what is in flight ends as it has begun."""
    args = ("-w", "2", *PATIENT, *threads_of(worker_class))
    server = start(SITE, *args, files={"site_of_rolling.py": version("one")})
    old = ready(server, 2)
    parked = Parked(connect, server.address)
    busy, gate = connect(server.address), tmp_path / "gate"
    begin_slow(busy, gate)
    change(tmp_path, version("two"))
    with Traffic(server.address, clients=1) as traffic:
        traffic.wait_for_more()
        done = ctl(server.pid, "reload", "--wait")
        assert (done.status, done.err) == (0, "")
        wait_until(lambda: len(old & set(server.workers())) == 1, "only the busy one of the old is left")
        (last,) = old & set(server.workers())
        traffic.wait_for_more()
        gate.unlink()
        response = busy.read_response()
        assert (response.status, response.body, response.one("X-Pid")) == (200, b"one", str(last))
        wait_until(lambda: not old & set(server.workers()), "the old ones have left")
    assert traffic.check() == {b"one", b"two"}
    fresh = set(server.workers())
    assert len(fresh) == 2
    assert parked.check(b"two") <= fresh
    if response.closes:
        busy.expect_close()
    else:
        assert pid_of(busy.get()) in fresh


RECYCLING = "max_requests = 40\nmax_requests_jitter = 30\n"
AGEING = "max_worker_lifetime = 0.5\n"


def test_connections_survive_recycling_and_scaling(
    start: Start, connect: Connect, tmp_path: Path, worker_class: str
) -> None:
    """One way out for all: `max_requests`, `max_worker_lifetime`, TTOU, ``scale``, ``retire``."""
    files = {"conf.py": CONF + RECYCLING, "site_of_rolling.py": version("one")}
    server = start(SITE, "-c", "conf.py", *PATIENT, *threads_of(worker_class), files=files)
    ready(server, 2)
    parked = Parked(connect, server.address, 4)

    def reconfigure(text: str) -> int:
        change(tmp_path, CONF + text, "conf.py")
        mark = len(server.log.lines)
        assert ctl(server.pid, "reload", "--wait").status == 0
        return mark

    def recycled(mark: int, why: str, number: int) -> bool:
        found = re.findall(rf"worker (\d+) is to be replaced: .*\({why}\)", "\n".join(server.log.lines[mark:]))
        return len(found) >= number and not any(is_alive(int(pid)) for pid in found[:number])

    with Traffic(server.address, clients=1) as traffic:
        wait_until(lambda: recycled(0, "max_requests", 3), "some were replaced for their requests")
        mark = reconfigure(AGEING)
        wait_until(lambda: recycled(mark, "max_worker_lifetime", 2), "some were replaced for their age")
        reconfigure("")
        traffic.wait_for_more(5)
        assert ctl(server.pid, "scale", "4", "--wait").status == 0
        before = set(server.workers())
        server.send_signal(signal.SIGTTOU)
        wait_until(lambda: len(server.workers()) == 3, "one has left after TTOU")
        assert ctl(server.pid, "scale", "1", "--wait").status == 0
        wait_until(lambda: len(server.workers()) == 1, "two more have left")
        (last,) = server.workers()
        assert last in before
        traffic.wait_for_more(5)
        done = ctl(server.pid, "retire", str(last), "--wait")
        assert (done.status, done.err) == (0, "")
        assert not is_alive(last)
        traffic.wait_for_more(5)
    assert traffic.check() == {b"one"}
    assert parked.check(b"one") == set(server.workers()) - {last}


# ---- how many at a time ----------------------------------------------------------------------------------


class Import(NamedTuple):
    """An import of the application, in ``time.monotonic()`` seconds."""

    version: str
    pid: int
    begun: float
    ended: float


def imports(directory: Path, name: str) -> list[Import]:
    """Return the imports of a version, in the order of their beginning."""
    times: dict[int, dict[str, float]] = {}
    for line in (directory / "imports").read_text().splitlines():
        what, which, pid, at = line.split()
        if which == name:
            times.setdefault(int(pid), {})[what] = float(at)
    return sorted(
        (Import(name, pid, each["begin"], each["end"]) for pid, each in times.items()), key=lambda each: each.begun
    )


@pytest.mark.parametrize("surge", [1, 2])
def test_a_canary_first_and_then_so_many_at_a_time(start_unclassed: Start, tmp_path: Path, surge: int) -> None:
    server = start_unclassed(
        SITE,
        *("-w", "4", "--reload-surge", str(surge)),
        worker_class="sync",
        files={"site_of_rolling.py": version("one")},
    )
    old = ready(server, 4)
    change(tmp_path, version("two", takes_s=0.15 * surge))
    counts = []
    with Traffic(server.address, clients=1) as traffic:
        traffic.wait_for_more(5)
        order = Order(server.pid, "reload")
        while not order.is_answered:
            by_state = figures(server.pid)["server"]["workers"]
            counts.append((by_state["serving"], by_state["serving"] + by_state["booting"]))
        assert order.answer()["ok"] is True
        wait_until(lambda: not old & set(server.workers()), "the old ones have left")
        traffic.wait_for_more(5)
    traffic.check()
    assert min(serving for serving, _ in counts) >= 4
    assert max(number for _, number in counts) <= 4 + surge
    canary, *others = imports(tmp_path, "two")
    assert len(others) == 3
    assert canary.ended <= others[0].begun
    at_once = [sum(each.begun <= one.begun < each.ended for each in others) for one in others]
    assert max(at_once) == surge


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has come to all threads of the process (proc(5))."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


@contextlib.contextmanager
def stopped(pids: set[int]) -> Iterator[None]:
    """Hold these processes meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: all(map(is_stopped, pids)), "they are held")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_no_more_than_max_unavailable_are_recycled_at_once(
    start_unclassed: Start, connect: Connect, tmp_path: Path
) -> None:
    """All four are due; each has a long request to finish; who waits for its turn serves."""
    server = start_unclassed(
        SITE,
        *("-k", "threads", "--threads", "4", "-w", "4", "--max-requests", "100", "--max-unavailable", "2"),
        files={"site_of_rolling.py": version("one")},
    )
    old = ready(server, 4)
    busy: dict[int, tuple[RawClient, Path]] = {}
    spare: dict[int, RawClient] = {}
    for pid in old:
        with stopped(old - {pid}):  # else the kernel has one of them do all
            busy[pid] = connect(server.address), tmp_path / f"gate{pid}"
            begin_slow(*busy[pid])
            spare[pid] = connect(server.address)
            assert pid_of(spare[pid].get()) == pid
    for client in spare.values():
        client.send(REQUEST * 100)
        for _ in range(100):
            assert client.read_response().status == 200

    def states() -> list[str]:
        return sorted(row["state"] for row in figures(server.pid)["workers"] if row["pid"] in old)

    due = ["recycling", "recycling", "retiring", "retiring"]
    wait_until(lambda: states() == due, "two leave, two are due")
    for _ in range(8):
        with RawClient(server.address) as client:
            assert client.get("/").status == 200
        assert states() == due
    assert figures(server.pid)["server"]["workers"]["serving"] >= 4
    for client, gate in busy.values():
        gate.unlink()
        assert client.read_response().status == 200
    wait_until(lambda: not old & set(server.workers()), "all are replaced")


# ---- another one meanwhile -------------------------------------------------------------------------------


def test_a_reload_asked_for_during_another_comes_after_it(start_unclassed: Start, tmp_path: Path) -> None:
    server = start_unclassed(
        SITE,
        *("-c", "conf.py"),
        worker_class="sync",
        files={"conf.py": CONF, "site_of_rolling.py": version("one")},
        expect=(r"\[ERROR\]|Traceback",),
    )
    ready(server, 2)
    hold = tmp_path / "hold"

    def boots(name: str) -> bool:
        return f"begin {name} " in (tmp_path / "imports").read_text()

    with Traffic(server.address, clients=1) as traffic:
        # By signals, several: the last code is served at the end.
        hold.touch()
        change(tmp_path, version("two"))
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: boots("two"), "the first of the new ones boots")
        change(tmp_path, version("three"))
        for _ in range(3):
            server.send_signal(signal.SIGHUP)
        server.wait_for_log("SIGHUP: reload queued behind the start or reload in progress")
        assert bodies(server, 2) == {b"one"}
        hold.unlink()
        wait_until(lambda: bodies(server, 4) == {b"three"}, "the last is served")
        wait_until(lambda: figures(server.pid)["server"]["state"] == "running", "it is over")
        traffic.wait_for_more(5)

        # By commands: each is told of its own.
        hold.touch()
        change(tmp_path, version("four"))
        first = Order(server.pid, "reload")
        wait_until(lambda: boots("four"), "the first of the new ones boots")
        change(tmp_path, CONF + "timeout = 'soon'\n", "conf.py")
        second = Order(server.pid, "reload")
        assert figures(server.pid)["server"]["state"] == "reloading"
        hold.unlink()
        assert first.answer()["ok"] is True
        said = second.answer()
        assert said["ok"] is False
        assert "timeout = 'soon'" in said["error"]
        # The old ones may have a last word: they have been told to leave in the same moment.
        wait_until(lambda: bodies(server) == {b"four"}, "the new code is served")
        change(tmp_path, CONF, "conf.py")
        traffic.wait_for_more(5)

        # A failure does not take the next one with it.
        hold.touch()
        change(tmp_path, version("five") + "\nraise LookupError('no chair')\n")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: boots("five"), "the first of the new ones boots")
        change(tmp_path, version("six"))
        server.send_signal(signal.SIGHUP)
        hold.unlink()
        wait_until(lambda: bodies(server, 4) == {b"six"}, "the last is served")
        traffic.wait_for_more(5)
    assert traffic.check() == {b"one", b"two", b"three", b"four", b"six"}

    # And a stop does not wait for anybody.
    wait_until(lambda: figures(server.pid)["server"]["state"] == "running", "it is over")
    hold.touch()
    change(tmp_path, version("seven"))
    first = Order(server.pid, "reload")
    wait_until(lambda: boots("seven"), "the first of the new ones boots")
    second = Order(server.pid, "reload")
    assert server.stop(deadline_s=5) == 0
    for order in (first, second):
        said = order.answer()
        assert said is None or said["ok"] is False
