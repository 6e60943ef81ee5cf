"""What a real server tells its service manager, and when; nobody else speaks in its name (issue 5, part 11)."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rawclient import RawClient
from server import DEADLINE_S, Start, children, is_alive, wait_until

from wsgiserv.master.systemd import ServiceManager

# The second worker that imports it waits until the test lets it go on.
SLOW_FLEET = """
import json, os, time
from apps import app as others

try:
    os.close(os.open("first", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    while not os.path.exists("go"):
        time.sleep(0.01)

def app(environ, start_response):
    if environ["PATH_INFO"] != "/variables":
        return others(environ, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([name for name in os.environ if name.startswith(("NOTIFY_", "WATCHDOG_"))]).encode()]
"""


class Manager:
    """The service manager's end: each datagram as a dictionary, with when it came and from which process."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.said: list[tuple[float, int, dict[str, str]]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(65536, socket.CMSG_SPACE(12))
            if data == b"the end of the test":
                return
            ((_, _, credentials),) = ancillary
            lines = dict(line.split("=", 1) for line in data.decode().split("\n"))
            self.said.append((time.monotonic(), int.from_bytes(credentials[:4], "little"), lines))

    def heard(self, key: str, after: int = 0) -> list[dict[str, str]]:
        """Return what has been said with this word, from number ``after`` on."""
        return [lines for _, _, lines in self.said[after:] if key in lines]

    def wait_for(self, key: str, after: int = 0) -> dict[str, str]:
        """Wait until it is said, from number ``after`` on."""
        try:
            wait_until(lambda: self.heard(key, after), key)
        except AssertionError as failure:
            failure.add_note(f"what was said: {self.said}")
            raise
        return self.heard(key, after)[0]

    def order(self, after: int = 0) -> list[str]:
        """Return the first word of all that was said, without what comes again and again."""
        words = [next(iter(lines)) for _, _, lines in self.said[after:]]
        return [word for word in words if word not in ("STATUS", "WATCHDOG")]

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"the end of the test", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@pytest.fixture
def manager_at() -> Iterator[Callable[[str], Manager]]:
    made: list[Manager] = []

    def listen(address: str) -> Manager:
        made.append(Manager(address))
        return made[-1]

    yield listen
    for manager in made:
        manager.close()


@pytest.fixture
def manager(manager_at: Callable[[str], Manager], tmp_path: Path) -> Manager:
    return manager_at(str(tmp_path / "notify"))


def test_a_service_from_its_start_to_its_end(
    start_unclassed: Start, tmp_path: Path, manager_at: Callable[[str], Manager]
) -> None:
    """A socket in the abstract namespace; READY with the last worker; a reload that succeeds and one that does not."""
    manager = manager_at(f"@wsgiserv-test-{os.getpid()}-{time.monotonic_ns()}")
    variables = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    server = start_unclassed(
        "fleet:app", "-w", "2", files={"fleet.py": SLOW_FLEET}, env=variables, expect=(r"\[ERROR\]|Traceback",)
    )
    with RawClient(server.address) as client:
        # One worker serves: the fleet is not ready.
        assert client.get("/variables").json() == []
        wait_until(lambda: len(server.workers()) == 2, "the other one boots")
        manager.wait_for("WATCHDOG")
        assert manager.order() == []
        (tmp_path / "go").touch()
        ready = manager.wait_for("READY")
        assert ready["READY"] == "1"
        assert "2 of 2 workers serve" in ready["STATUS"]
        server.wait_for_log("ready: 2 workers")
        assert manager.order() == ["READY"]
        for _ in range(9):
            assert client.get("/").status == 200
        assert client.get("/crash").status == 500

    # A reload, with the figures of the moment at its end.
    mark = len(manager.said)
    before_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    server.send_signal(signal.SIGHUP)
    done = manager.wait_for("READY", mark)
    reloading = manager.wait_for("RELOADING", mark)
    after_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert manager.order(mark) == ["RELOADING", "READY"]
    assert reloading["RELOADING"] == "1"
    # systemd takes it for an answer to its SIGHUP only if it is not older than that.
    assert before_usec <= int(reloading["MONOTONIC_USEC"]) <= after_usec
    assert re.search(r"1[01] requests, 1 with errors", done["STATUS"]), done

    # One that fails is over, too; why it has failed is in the status.
    (tmp_path / "fleet.py").write_text("import no_such_package_here\n")
    mark = len(manager.said)
    server.send_signal(signal.SIGHUP)
    done = manager.wait_for("READY", mark)
    assert manager.order(mark) == ["RELOADING", "READY"]
    assert "failed" in done["STATUS"]
    assert "no_such_package_here" in done["STATUS"]
    assert "2 of 2 workers serve" in done["STATUS"]

    mark = len(manager.said)
    assert server.stop() == 0
    stopping = manager.wait_for("STOPPING", mark)
    assert stopping["STOPPING"] == "1"
    assert manager.order(mark) == ["STOPPING"]
    assert {pid for _, pid, _ in manager.said} == {server.pid}


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "another's"])
def test_the_watchdog_of_which_process(start_unclassed: Start, manager: Manager, ours: bool) -> None:
    """WATCHDOG_PID: the shell becomes the server, so its process id is ours."""
    pid = "$$" if ours else "1"
    server = start_unclassed(
        "apps:app",
        wrap=("sh", "-c", f'WATCHDOG_PID={pid} exec "$@"', "sh"),
        env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "100000"},
    )
    manager.wait_for("READY")
    if ours:
        wait_until(lambda: len(manager.heard("WATCHDOG")) >= 5, "signs of life")
    # In the time of a start, a reload and a stop there would have been several.
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded")
    assert server.stop() == 0
    assert manager.order() == ["READY", "RELOADING", "READY", "STOPPING"]
    assert bool(manager.heard("WATCHDOG")) == ours


def test_an_upgrade_names_the_next_main_process(start_unclassed: Start, manager: Manager) -> None:
    server = start_unclassed(
        "fleet:app",
        "-p",
        "server.pid",
        files={"fleet.py": SLOW_FLEET, "go": ""},
        env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "300000"},
    )
    manager.wait_for("READY")
    old = server.pid
    mark = len(manager.said)
    server.send_signal(signal.SIGUSR2)
    new = int(manager.wait_for("MAINPID", mark)["MAINPID"])
    try:
        assert new != old
        assert server.process.wait(DEADLINE_S) == 0  # its log goes on
        assert is_alive(new)
        # By the word of the main process, which is the only one that is believed (NotifyAccess=main). It has named the
        # next one when that served, and nothing was said of stopping.
        (named,) = [number for number, (_, _, lines) in enumerate(manager.said) if "MAINPID" in lines]
        assert manager.said[named][1] == old
        assert {pid for _, pid, _ in manager.said[:named]} <= {old, new}
        assert manager.heard("STOPPING") == []
        assert old not in {pid for _, pid, _ in manager.said[named + 1 :]}
        # The next one goes on: signs of life, reloads, the end; and keeps the variables to itself.
        seen = len(manager.said)
        manager.wait_for("WATCHDOG", seen)
        with RawClient(server.address) as client:
            assert client.get("/variables").json() == []
        mark = len(manager.said)
        os.kill(new, signal.SIGHUP)
        manager.wait_for("READY", mark)
        assert manager.order(mark) == ["RELOADING", "READY"]
        workers = children(new)
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not any(map(is_alive, [new, *workers])), "the next one ends")
        assert manager.order(mark) == ["RELOADING", "READY", "STOPPING"]
        assert {pid for _, pid, _ in manager.said[seen:]} == {new}
    finally:
        if is_alive(new):
            os.kill(new, signal.SIGQUIT)


def test_without_a_manager_nothing_is_said(
    start_unclassed: Start, manager_at: Callable[[str], Manager], tmp_path: Path
) -> None:
    manager = manager_at(str(tmp_path / "notify"))
    # A watchdog alone is nobody's. Nor may a socket that has gone cost anything.
    for address in ("", str(tmp_path / "gone")):
        server = start_unclassed("apps:app", env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"})
        server.wait_for_log("ready")
        with RawClient(server.address) as client:
            assert client.get("/").status == 200
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded")
        assert server.stop() == 0
        assert "notify" not in server.log.text.lower()
    assert manager.said == []


def test_how_often(manager: Manager) -> None:
    """By an invented clock: a sign of life at least twice in WATCHDOG_USEC, the figures every 5 s."""
    speaker = ServiceManager(manager.address, watchdog_usec=3_000_000)
    figures = iter(range(1000))
    signs, told, now = [], [], 100.0
    while now < 160.0:
        seen = len(manager.said)
        again = speaker.update(now, lambda: f"{next(figures)} requests")
        assert now < again <= now + 1.5, "the master spins, or sleeps too long"
        speaker.stopping()  # behind all that was due
        wait_until(lambda seen=seen: manager.heard("STOPPING", seen), "what was due")
        words = [next(iter(lines)) for _, _, lines in manager.said[seen:]]
        if "WATCHDOG" in words:
            signs.append(now)
        if "STATUS" in words:
            told.append(now)
        now = again
    assert max(b - a for a, b in itertools.pairwise(signs)) <= 1.5
    assert {round(b - a, 6) for a, b in itertools.pairwise(told)} == {5.0}
    assert [lines["STATUS"] for lines in manager.heard("STATUS")][:3] == ["0 requests", "1 requests", "2 requests"]


def test_a_master_that_hangs_gives_no_sign_of_life(start_unclassed: Start, manager: Manager) -> None:
    """Only its loop may say that it is well; what the workers do does not count."""
    server = start_unclassed("apps:app", env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "200000"})
    manager.wait_for("READY")
    manager.wait_for("WATCHDOG", len(manager.said))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "stopped")
        seen = len(manager.said)
        with RawClient(server.address) as client:
            for _ in range(3):
                assert client.get("/sleep?0.1").status == 200
        assert len(manager.said) <= seen + 1  # that which was on its way
    finally:
        os.kill(server.pid, signal.SIGCONT)
    manager.wait_for("WATCHDOG", seen + 1)
