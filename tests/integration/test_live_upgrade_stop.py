"""SIGTERM and other stops while an upgrade runs: who goes on, who leaves, and what clients see (issue 12, part 6)."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from rollingapps import SITE, change, version
from server import DEADLINE_S, Connect, Server, Start, children, is_alive, wait_until
from test_live_rolling import CONF, PATIENT, Order, Parked, Traffic, begin_slow, bodies, ctl, figures, ready, threads_of

DURING = "SIGTERM during an upgrade: this master stops when the next one serves"
# A zygote is the same in each class, but for what it patches in gevent.
BOTH = pytest.mark.parametrize(
    ("worker_class", "preload"),
    [("sync", False), ("sync", True), ("threads", False), ("gevent", False)],
    ids=["sync", "sync-preload", "threads", "gevent"],
    indirect=["worker_class"],
)


def zombies(pid: int) -> list[int]:
    """Return the children of a process that have ended and have not been waited for."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(fields[1]) == pid:
            found.append(int(entry))
    return found


@pytest.fixture
def followed() -> Iterator[Callable[[Server, int], int]]:
    """Wait until the next master has the pid file and the old one has ended; return the next one's pid.

    What still runs at the end of the test is stopped.
    """
    found: list[int] = []

    def of(server: Server, old: int) -> int:
        pidfile = server.directory / "server.pid"

        def next_pid() -> int:
            text = pidfile.read_text().strip() if pidfile.exists() else ""
            return int(text) if text and int(text) != old else 0

        try:
            new: int = wait_until(next_pid, "the pid file has the next master")
        except AssertionError as error:
            raise AssertionError(f"{error}; the log:\n{server.log.text}") from None
        found.append(new)
        if old == server.pid:
            assert server.process.wait(DEADLINE_S) == 0  # its standard error is the next one's, too
        else:
            wait_until(lambda: not is_alive(old), "the old master has left")
        return new

    yield of
    for pid in found:
        if is_alive(pid):
            os.kill(pid, signal.SIGQUIT)


def begin(start: Start, worker_class: str, *args: str, **rest: object) -> Server:
    """Start a server of two workers whose upgrades have a pid file."""
    server = start(
        SITE,
        *("-c", "conf.py", "-p", "server.pid", *PATIENT, *threads_of(worker_class), *args),
        bind="tcp",
        files={"conf.py": CONF, "site_of_rolling.py": version("one")},
        **rest,
    )
    ready(server, 2)
    return server


def alone(start_unclassed: Start, *args: str, **rest: object) -> Server:
    """The same, in one class: for what the class has no part in."""
    return begin(partial(start_unclassed, worker_class="sync"), "sync", *args, **rest)


def hold_upgrade(server: Server, master: int = 0) -> int:
    """Begin an upgrade whose workers boot until the file `hold` is removed; return the next master's pid."""
    master = master or server.pid
    old = set(children(master))
    (server.directory / "hold").touch()
    change(server.directory, version("two"))
    os.kill(master, signal.SIGUSR2)
    (found,) = wait_until(
        lambda: [pid for pid in set(children(master)) - old if children(pid)], "the next master has workers"
    )
    wait_until(lambda: "begin two" in (server.directory / "imports").read_text(), "they import")
    return int(found)


def terminate(master: int) -> None:
    """Tell it to leave, if it has not left already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(master, signal.SIGTERM)


def is_gone(server: Server) -> None:
    """All has ended, well, and nothing is left."""
    assert server.wait() == 0
    wait_until(lambda: not server.leftovers(), "no process is left", 5.0)
    assert not (server.directory / "server.pid").exists()
    assert "upgrade failed" not in server.log.text


# ---- the next master goes on -----------------------------------------------------------------------------


# The class with a preloaded application differs in who boots, not in who waits for the sockets.
@BOTH
def test_the_next_master_lives_whenever_the_old_one_is_told_to_stop(
    start: Start, worker_class: str, preload: bool, followed: Callable[[Server, int], int]
) -> None:
    """The script of many deployments: ``USR2; sleep N; TERM``, whatever N."""
    server = begin(start, worker_class, *(["--preload"] if preload else []))
    master, pause = server.pid, threading.Event()
    with Traffic(server.address, clients=1) as traffic:
        traffic.wait_for_more(5)
        for delay_s in (0.0, 0.04, 0.1, 0.16):
            os.kill(master, signal.SIGUSR2)
            pause.wait(delay_s)
            terminate(master)
            master = followed(server, master)
            assert is_alive(master)
            traffic.wait_for_more(5)
        assert figures(master)["server"]["state"] == "running"
    assert traffic.check() == {b"one"}
    os.kill(master, signal.SIGTERM)
    wait_until(lambda: not server.leftovers(), "no process is left")
    assert "upgrade failed" not in server.log.text


def test_sigterm_as_soon_as_the_pid_file_changes(
    start_unclassed: Start, followed: Callable[[Server, int], int]
) -> None:
    server = alone(start_unclassed)
    master, pidfile = server.pid, server.directory / "server.pid"
    with Traffic(server.address, clients=1) as traffic:
        traffic.wait_for_more(5)
        for _ in range(4):
            before = pidfile.read_bytes()
            os.kill(master, signal.SIGUSR2)
            for _ in range(5_000_000):  # without a pause: the window is a millisecond
                if pidfile.read_bytes() != before:
                    break
            terminate(master)
            master = followed(server, master)
            traffic.wait_for_more(5)
            assert is_alive(master)
    assert traffic.check() == {b"one"}


def test_sigusr2_and_sigterm_that_are_pending_together(
    start_unclassed: Start, followed: Callable[[Server, int], int]
) -> None:
    """The kernel runs the handler of the higher number first: SIGTERM."""
    server = alone(start_unclassed)
    for number in (signal.SIGSTOP, signal.SIGUSR2, signal.SIGTERM, signal.SIGCONT):
        os.kill(server.pid, number)
    assert is_alive(followed(server, server.pid))
    assert bodies(server) == {b"one"}


@BOTH
def test_the_old_one_serves_while_the_next_one_boots_slowly(
    start: Start, connect: Connect, worker_class: str, preload: bool, followed: Callable[[Server, int], int]
) -> None:
    server = begin(start, worker_class, *(["--preload"] if preload else []), "--drain-delay", "20")
    parked = Parked(connect, server.address, 4)
    busy, gate = connect(server.address), server.directory / "gate"
    begin_slow(busy, gate)
    with Traffic(server.address, clients=1) as traffic:
        traffic.wait_for_more(5)
        hold_upgrade(server)
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(DURING)
        assert figures(server.pid)["server"]["state"] == "upgrading"
        traffic.wait_for_more(10)
        assert bodies(server) == {b"one"}
        (server.directory / "hold").unlink()
        server.wait_for_log("serves; this one shuts down")
        traffic.wait_for_more(5)
        gate.unlink()
        assert busy.read_response().body == b"one"
        new = followed(server, server.pid)
        assert parked.check(b"two") <= set(children(new))
        traffic.wait_for_more(5)
        assert bodies(server) == {b"two"}
    assert traffic.check() == {b"one", b"two"}
    assert "draining" not in server.log.text


# ---- it fails --------------------------------------------------------------------------------------------


@BOTH
def test_the_old_one_stops_when_the_next_one_fails_after_sigterm(
    start: Start, worker_class: str, preload: bool
) -> None:
    drain_s = 0.5 if preload else 0.0
    args = (*(["--preload"] if preload else []), "--drain-delay", f"{drain_s:g}")
    server = begin(start, worker_class, *args, expect=(r"\[(ERROR|CRITICAL)\]|Traceback",))
    with Traffic(server.address, clients=1) as traffic:
        traffic.wait_for_more(5)
        hold = server.directory / "hold"
        hold.touch()
        change(server.directory, version("two") + "raise LookupError('no table')\n")
        server.send_signal(signal.SIGUSR2)
        wait_until(lambda: "begin two" in (server.directory / "imports").read_text(), "they import")
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(DURING)
        traffic.wait_for_more(5)
    assert traffic.check() == {b"one"}
    hold.unlink()
    server.wait_for_log(r"upgrade failed; this master stops as well, as it was told.*no table")
    assert server.wait() == 0
    wait_until(lambda: not server.leftovers(), "no process is left", 5.0)
    assert not (server.directory / "server.pid").exists()
    assert ("draining for 0.5 s" in server.log.text) == bool(drain_s)
    assert "this master and its workers stay" not in server.log.text


def test_a_next_master_that_has_failed_leaves_no_zombie(start_unclassed: Start) -> None:
    server = alone(start_unclassed, expect=(r"\[(ERROR|CRITICAL)\]|Traceback",))
    for text in ("raise LookupError\n", "syntax error\n"):
        change(server.directory, text)
        assert ctl(server.pid, "upgrade", "--wait").status == 1
    wait_until(lambda: not zombies(server.pid), "no zombie")
    new = hold_upgrade(server)
    os.kill(new, signal.SIGKILL)
    server.wait_for_log("was killed by SIGKILL without a report")
    (server.directory / "hold").unlink()
    wait_until(lambda: not zombies(server.pid), "no zombie")
    assert len(wait_until(lambda: len(server.workers()) == 2 and server.workers(), "its workers")) == 2


# Its first worker boots, the other one waits: it accepts, and has not taken over.
HALF = """
import os, time
if os.path.exists("half"):
    try:
        os.mkdir("first")
    except FileExistsError:
        while os.path.exists("half"):
            time.sleep(0.005)
"""


@BOTH
def test_a_next_master_that_is_told_to_stop_harms_nobody(start: Start, worker_class: str, preload: bool) -> None:
    """gunicorn's way back. Its workers accept already, on the sockets of the old ones."""
    server = begin(start, worker_class, "--drain-delay", "20", *(["--preload"] if preload else []))
    old = set(server.workers())
    half = server.directory / "half"
    half.touch()
    if preload:
        change(server.directory, version("two"))
        change(server.directory, CONF + f"def post_fork(server, worker):\n    exec({HALF!r}, {{}})\n", "conf.py")
    else:
        change(server.directory, HALF + version("two"))
    with Traffic(server.address, clients=1) as traffic:
        traffic.wait_for_more(5)
        server.send_signal(signal.SIGUSR2)
        wait_until(lambda: b"two" in bodies(server), "its first worker accepts")
        (new,) = (pid for pid in set(server.workers()) - old if children(pid))
        os.kill(new, signal.SIGTERM)
        server.wait_for_log("was told to stop; this one and its workers go on")
        half.unlink()
        wait_until(lambda: not is_alive(new), "it has ended")
        wait_until(lambda: set(server.workers()) == old, "the workers stay, and nobody else")
        traffic.wait_for_more(20)
        assert bodies(server, 20) == {b"one"}
    # Whoever came to the next one is told that its connection ends; nobody is reset, and nobody waits.
    assert traffic.check() <= {b"one", b"two"}
    wait_until(lambda: not zombies(server.pid), "no zombie")
    assert figures(server.pid)["server"]["state"] == "running"
    server.send_signal(signal.SIGQUIT)
    is_gone(server)


# ---- both end --------------------------------------------------------------------------------------------


WAYS = ["TERM TERM", "INT", "QUIT", "group TERM", "group INT", "group QUIT"]


@pytest.mark.parametrize(
    ("worker_class", "how", "drain_s"),
    [
        *(("sync", how, drain_s) for how in WAYS for drain_s in (0.0, 0.3)),
        *((each, how, 0.0) for each in ("threads", "gevent") for how in ("TERM TERM", "group TERM", "group INT")),
    ],
    indirect=["worker_class"],
)
def test_what_ends_both_masters(start: Start, worker_class: str, how: str, drain_s: float) -> None:
    server = begin(start, worker_class, "--drain-delay", f"{drain_s:g}")
    new = hold_upgrade(server)
    if how.startswith("group"):
        os.killpg(server.pid, signal.Signals[f"SIG{how.split()[1]}"])
    else:
        for name in how.split():
            server.send_signal(signal.Signals[f"SIG{name}"])
            server.wait_for_log(f"SIG{name}")
    is_gone(server)
    assert not is_alive(new)


@BOTH
def test_both_end_with_a_preloaded_application_and_requests_in_flight(
    start: Start, connect: Connect, worker_class: str, preload: bool
) -> None:
    """The workers of the next one, too, finish what they have, and the old master ends after the next one."""
    server = begin(start, worker_class, *(["--preload"] if preload else []))
    busy, gate = connect(server.address), server.directory / "gate"
    begin_slow(busy, gate)
    new = hold_upgrade(server)
    server.send_signal(signal.SIGTERM)
    server.wait_for_log(DURING)
    server.send_signal(signal.SIGTERM)
    server.wait_for_log(rf"the next master \(pid {new}\) is stopped, too")
    wait_until(lambda: not is_alive(new), "the next one has ended")
    assert is_alive(server.pid)
    gate.unlink()
    assert busy.read_response().body == b"one"
    is_gone(server)


@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.08, 0.15])
def test_a_signal_to_the_group_early_in_an_upgrade(start_unclassed: Start, delay_s: float) -> None:
    """Also while the next master is an interpreter that starts, with no handler yet."""
    server = alone(start_unclassed)
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("the next master is starting")
    threading.Event().wait(delay_s)
    os.killpg(server.pid, signal.SIGTERM)
    is_gone(server)


@pytest.mark.parametrize("words", [("stop",), ("stop", "--now")], ids="-".join)
def test_the_command_stop_ends_both(start_unclassed: Start, words: tuple[str, ...]) -> None:
    server = alone(start_unclassed, "--drain-delay", "0.2")
    new = hold_upgrade(server)
    order = Order(server.pid, "upgrade")
    assert ctl(server.pid, *words, "--wait") == (0, "stopped\n", "")
    assert not is_alive(new)
    said = order.answer()
    assert (said["ok"], said["error"]) == (False, "the server is stopping")
    is_gone(server)


def test_a_next_master_that_does_not_stop_is_killed(start_unclassed: Start) -> None:
    server = alone(start_unclassed, "--graceful-timeout", "1", expect=(r"\[ERROR\]",))
    new = hold_upgrade(server)
    os.kill(new, signal.SIGSTOP)
    server.send_signal(signal.SIGQUIT)
    server.wait_for_log(rf"the next master \(pid {new}\) does not stop: sending SIGKILL")
    assert server.process.wait(DEADLINE_S) == 0
    (server.directory / "hold").unlink()  # its workers, which have the standard streams, see that it has gone
    assert server.wait() == 0
    wait_until(lambda: not server.leftovers(), "no process is left", 5.0)


# ---- what else comes meanwhile ---------------------------------------------------------------------------


def test_what_asks_for_something_is_for_the_masters_that_can_do_it(
    start_unclassed: Start, followed: Callable[[Server, int], int]
) -> None:
    """``pkill -USR1 wsgiserv`` hits the next master in its first moments, and workers that boot."""
    server = alone(start_unclassed)
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("the next master is starting")
    pause, pidfile = threading.Event(), server.directory / "server.pid"
    while pidfile.read_text().strip() == str(server.pid):
        for number in (signal.SIGUSR1, signal.SIGHUP):
            for process in server.leftovers():
                if process.pid != server.pid:
                    try:
                        os.kill(process.pid, number)
                    except ProcessLookupError:
                        pass
        pause.wait(0.002)
    new = followed(server, server.pid)
    wait_until(lambda: figures(new)["server"]["state"] == "running", "a reload that was asked for is over")
    assert bodies(server) == {b"one"}


def test_an_upgrade_comes_after_a_reload_and_is_cancelled_with_it(
    start_unclassed: Start, followed: Callable[[Server, int], int]
) -> None:
    server = alone(start_unclassed)
    (server.directory / "hold").touch()
    change(server.directory, version("two"))
    reload = Order(server.pid, "reload")
    wait_until(lambda: "begin two" in (server.directory / "imports").read_text(), "the canary boots")
    upgrade = Order(server.pid, "upgrade")
    server.wait_for_log("queued behind the start or reload in progress")
    server.send_signal(signal.SIGTERM)
    server.wait_for_log(DURING)
    (server.directory / "hold").unlink()
    assert reload.answer()["ok"] is True
    assert upgrade.answer()["ok"] is True
    new = followed(server, server.pid)
    assert bodies(server) == {b"two"}

    # A stop while the canary boots: whoever waits is told at once.
    (server.directory / "hold").touch()
    change(server.directory, version("three"))
    orders = [Order(new, "reload")]
    wait_until(lambda: "begin three" in (server.directory / "imports").read_text(), "the canary boots")
    orders += [Order(new, "upgrade"), Order(new, "reload")]
    os.kill(new, signal.SIGINT)
    for order in orders:
        said = order.answer()
        assert (said["ok"], said["error"]) == (False, "overtaken: the server is stopping")
    wait_until(lambda: not server.leftovers(), "no process is left")


def test_nothing_is_begun_while_it_drains(start_unclassed: Start) -> None:
    server = alone(start_unclassed, "--drain-delay", "20")
    workers = set(server.workers())
    server.send_signal(signal.SIGTERM)
    server.wait_for_log("draining for 20 s")
    for name in ("HUP", "USR2"):
        server.send_signal(signal.Signals[f"SIG{name}"])
        server.wait_for_log(f"SIG{name} ignored: the server is stopping")
    for command in ("reload", "upgrade"):
        done = ctl(server.pid, command, "--wait")
        assert (done.status, done.out) == (1, "")
        assert "draining" in done.err
    assert set(server.workers()) == workers
    server.send_signal(signal.SIGTERM)
    is_gone(server)


def test_the_end_of_a_next_master_that_has_just_taken_over(
    start_unclassed: Start, connect: Connect, tmp_path: Path
) -> None:
    """The old one, which has something to finish, has nobody to hand over to any more."""
    server = alone(start_unclassed, "--keep-alive", "60", expect=(r"\[ERROR\].*no process goes on",))
    busy, gate = connect(server.address), tmp_path / "gate"
    begin_slow(busy, gate)
    assert ctl(server.pid, "upgrade", "--wait").status == 0
    new = int((tmp_path / "server.pid").read_text())
    os.kill(new, signal.SIGTERM)
    server.wait_for_log(rf"the next master \(pid {new}\) exited: no process goes on")
    gate.unlink()
    assert busy.read_response().body == b"one"
    is_gone(server)
