"""sd_notify(3): the datagrams, exactly; that nothing waits or raises; that nobody inherits the variables."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server import Start, wait_until

from wsgiserv.master.systemd import ServiceManager


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address[0] == "@" else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Return the datagrams that have come."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return found

    def fill(self) -> int:
        """Let nobody say anything more; return how many datagrams that took."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.setblocking(False)
            for count in range(100_000):
                try:
                    other.sendto(b"other", self.socket.getsockname())
                except BlockingIOError:
                    return count
        raise AssertionError


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@wsgiserv-test-{os.getpid()}-{time.monotonic_ns()}"
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else name)
    yield manager
    manager.socket.close()


CASES: list[tuple[Callable[[ServiceManager], None], list[str]]] = [
    (lambda notifier: notifier.ready("4 workers serve"), ["READY=1\nSTATUS=4 workers serve"]),
    (lambda notifier: notifier.stopping(), ["STOPPING=1"]),
    (lambda notifier: notifier.status("12 requests"), ["STATUS=12 requests"]),
    # A line more would be an assignment more.
    (lambda notifier: notifier.status("a\nREADY=1\r\nb"), ["STATUS=a READY=1 b"]),
    (lambda notifier: notifier.status("Wörter \udcff"), ["STATUS=Wörter ?"]),
    (lambda notifier: notifier.watchdog(), ["WATCHDOG=1"]),
    (lambda notifier: notifier.replaced_by(4711), ["MAINPID=4711"]),
    # The next master has the word now.
    (lambda notifier: notifier.stopping(), []),
    (lambda notifier: notifier.watchdog(), []),
]


def test_what_is_said(manager: Manager) -> None:
    notifier = ServiceManager(manager.address, watchdog_usec=20_000_000)
    for say, said in CASES:
        say(notifier)
        assert manager.heard() == said


def test_a_reload_tells_its_time(manager: Manager) -> None:
    notifier = ServiceManager(manager.address)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reload_requested()
    notifier.reload_begins()  # of which the signal has told
    [first] = manager.heard()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    ready, usec = first.split("\n")
    assert ready == "RELOADING=1"
    assert before <= int(usec.removeprefix("MONOTONIC_USEC=")) <= after
    notifier.ready("reloaded")
    notifier.reload_begins()
    assert [said.split("\n")[0] for said in manager.heard()] == ["READY=1", "RELOADING=1"]


def test_the_environment_is_taken(manager: Manager) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
        "OTHER": "stays",
    }
    notifier = ServiceManager.from_environ(environ)
    assert environ == {"OTHER": "stays"}
    assert notifier.watchdog_interval_s == 1.5
    notifier.watchdog()
    assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("3000000", "", 1.5),
        ("3000000", "1", 0.0),  # another process's watchdog
        ("3000000", "x", 0.0),
        ("", "", 0.0),
        ("-5", "", 0.0),
        ("²", "", 0.0),
        ("9" * 5000, "", 0.0),
    ],
)
def test_the_watchdog_of_the_environment(manager: Manager, usec: str, pid: str, interval_s: float) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    notifier = ServiceManager.from_environ({name: value for name, value in environ.items() if value}, pid=4711)
    assert notifier.watchdog_interval_s == interval_s
    notifier.watchdog()
    assert len(manager.heard()) == (1 if interval_s else 0)


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/missing/socket", "/" + "x" * 200, "@"])
def test_nobody_listens(address: str) -> None:
    notifier = ServiceManager(address, watchdog_usec=2_000_000)
    for say, _ in CASES:
        say(notifier)
    notifier.reload_requested()
    if address in ("", "relative", "vsock:2:1234"):
        assert notifier.watchdog_interval_s == 0.0
        assert notifier.update(0.0, str) == float("inf")


def test_a_manager_that_does_not_keep_up(manager: Manager) -> None:
    notifier = ServiceManager(manager.address, watchdog_usec=2_000_000)
    count = manager.fill()
    began = time.monotonic()
    notifier.reload_requested()
    notifier.status("lost")
    notifier.watchdog()
    notifier.ready("reloaded")
    assert time.monotonic() - began < 1
    assert manager.heard() == ["other"] * count
    # What matters comes with the next word, in its order.
    notifier.status("later")
    reloading, *rest = manager.heard()
    assert reloading.startswith("RELOADING=1\n")
    assert rest == ["READY=1\nSTATUS=reloaded", "STATUS=later"]
    # A manager that never comes back costs no memory.
    manager.fill()
    for _ in range(1000):
        notifier.stopping()
    manager.heard()
    notifier.watchdog()
    assert len(manager.heard()) < 20


def test_no_descriptor_is_kept(manager: Manager) -> None:
    before = os.listdir("/proc/self/fd")
    notifier = ServiceManager(manager.address)
    notifier.ready("")
    assert os.listdir("/proc/self/fd") == before


UNIT = Path(__file__).parents[2] / "examples" / "systemd" / "wsgiserv-notify.service"


def test_the_unit_has_what_the_server_says() -> None:
    lines = UNIT.read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    assert values["Type"] == "notify-reload"
    # sd_notify(3): MAINPID= of the old master, and all that the new one says after it, come from the main process.
    assert values["NotifyAccess"] == "main"
    assert values["ReloadSignal"] == "SIGHUP"
    assert float(values["WatchdogSec"]) > 0
    assert values["KillMode"] == "mixed"


def test_a_service_from_its_start_to_its_end(begin: Start, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    heard: list[str] = []

    def has_said(line: str) -> bool:
        heard.extend(manager.heard())
        return any(line in said.split("\n") for said in heard)

    with manager.socket:
        server = begin("-w", "2", env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"})
        wait_until(lambda: has_said("READY=1"), "it is ready")
        assert len(server.workers()) == 2
        assert not has_said("RELOADING=1")
        wait_until(lambda: has_said("WATCHDOG=1"), "a sign of life")
        heard.clear()
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: has_said("RELOADING=1"), "a reload has begun")
        wait_until(lambda: has_said("READY=1"), "the reload is over")
        assert server.stop() == 0
        assert has_said("STOPPING=1")
        order = [said.split("\n")[0] for said in heard if not said.startswith(("STATUS", "WATCHDOG"))]
        assert order == ["RELOADING=1", "READY=1", "STOPPING=1"]
