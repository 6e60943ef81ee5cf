"""The next master takes over while clients are there; one that fails harms nobody (issue 5, part 4)."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rawclient import RawClient
from rollingapps import SITE, change, version
from server import DEADLINE_S, Connect, Server, Start, children, is_alive, wait_until
from test_live_rolling import (
    CONF,
    FAULTS,
    PATIENT,
    Order,
    Parked,
    Traffic,
    begin_slow,
    bodies,
    ctl,
    figures,
    pid_of,
    ready,
    threads_of,
)


@pytest.fixture
def successors() -> Iterator[Callable[[Server, int], int]]:
    """Wait until the next master has taken over from the master with this pid; return the next one's.

    What still runs at the end of the test is stopped.
    """
    found: list[int] = []

    def of(server: Server, old: int) -> int:
        pidfile = server.directory / "server.pid"
        new: int = wait_until(
            lambda: (pid := int(pidfile.read_text() or 0)) != old and pid, "the pid file has the next master"
        )
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


def masters(address: object, number: int = 6) -> set[int]:
    """Ask some times, each time as a new client; return whose workers have answered."""
    found = set()
    for _ in range(number):
        with RawClient(address) as client:
            found.add(int(client.get("/", headers="Connection: close\r\n").one("X-Master") or 0))
    return found


def test_nobody_notices_an_upgrade_and_the_next_one(
    start: Start, connect: Connect, tmp_path: Path, worker_class: str, successors: Callable[[Server, int], int]
) -> None:
    path, pidfile = tmp_path / "site.sock", tmp_path / "server.pid"
    server = start(
        SITE,
        *("-c", "conf.py", "-p", str(pidfile), "-b", f"unix:{path}", *PATIENT, *threads_of(worker_class)),
        bind="tcp",
        files={"conf.py": CONF, "site_of_rolling.py": version("one")},
    )
    old_workers = ready(server, 2)
    inode = path.stat().st_ino
    parked = [Parked(connect, server.address, 4), Parked(connect, str(path), 4)]
    busy, gate = connect(server.address), tmp_path / "gate"
    begin_slow(busy, gate)
    change(tmp_path, version("two"))
    with Traffic(server.address, str(path), clients=1) as traffic:
        traffic.wait_for_more(5)
        done = ctl(server.pid, "upgrade", "--wait")
        assert (done.status, done.err) == (0, "")
        second = int(pidfile.read_text())
        assert f"(pid {second})" in done.out
        assert second != server.pid
        # The old one is there as long as it has something to finish.
        assert is_alive(server.pid)
        wait_until(lambda: len(old_workers & set(children(server.pid))) == 1, "all but one are gone")
        traffic.wait_for_more(5)
        gate.unlink()
        response = busy.read_response()
        assert (response.status, response.body) == (200, b"one")
        assert int(response.one("X-Pid") or 0) in old_workers
        assert successors(server, server.pid) == second
        wait_until(lambda: not any(map(is_alive, old_workers)), "its workers have left")
        traffic.wait_for_more(5)
        fresh = set(children(second))
        for each in parked:
            assert each.check(b"two") <= fresh
        assert masters(server.address) == masters(str(path)) == {second}
        state = figures(second)
        assert (state["server"]["state"], state["server"]["pid"]) == ("running", second)
        assert {row["pid"] for row in state["workers"]} == fresh

        # Again, by the signal, and with the application in a zygote from now on.
        change(tmp_path, version("three"))
        change(tmp_path, CONF + "preload_app = True\n", "conf.py")
        os.kill(second, signal.SIGUSR2)
        third = successors(server, second)
        assert third not in (server.pid, second)
        traffic.wait_for_more(5)
        for each in parked:
            assert each.check_idle(b"three") <= set(children(third))
        # Its reloads are its own.
        change(tmp_path, version("four"))
        assert ctl(third, "reload", "--wait").status == 0
        wait_until(lambda: bodies(server) == {b"four"}, "the new code is served")
        traffic.wait_for_more(5)
    assert traffic.check() == {b"one", b"two", b"three", b"four"}
    # The socket's file has been the same all the time, and at the end nothing is left.
    assert path.stat().st_ino == inode
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert ctl(third, "stop", "--wait") == (0, "stopped\n", "")
    assert not path.exists()
    assert not pidfile.exists()
    with pytest.raises(ConnectionRefusedError):
        RawClient(server.address)
    wait_until(lambda: not server.leftovers(), "no process is left", 2.0)


def fail(server: Server, reason: str, logged: str) -> None:
    """Upgrade, in vain: exit 1 with the reason, and all is as it was."""
    workers, mark = set(server.workers()), len(server.log.lines)
    done = ctl(server.pid, "upgrade", "--wait")
    assert (done.status, done.out) == (1, ""), done
    assert done.err.startswith("wsgiservctl: upgrade: ")
    assert re.search(reason, done.err, re.DOTALL), done.err
    server.wait_for_log("upgrade failed; this master and its workers go on", after=mark)
    lines = "\n".join(server.log.lines[mark:])
    assert re.search(logged, lines, re.DOTALL), lines
    wait_until(lambda: set(server.workers()) == workers, "the same workers, and no other child")
    assert figures(server.pid)["server"]["state"] == "running"
    assert (server.directory / "server.pid").read_text().strip() == str(server.pid)


def test_a_next_master_that_fails_harms_nobody(
    start_unclassed: Start, connect: Connect, tmp_path: Path, successors: Callable[[Server, int], int]
) -> None:
    path = tmp_path / "site.sock"
    conf = f"{CONF.rstrip()}; bind = ['127.0.0.1:0', 'unix:{path}']\n"
    server = start_unclassed(
        SITE,
        *("-c", "conf.py", "-p", "server.pid", *PATIENT),
        worker_class="sync",
        bind="none",
        files={"conf.py": conf, "site_of_rolling.py": version("one")},
        expect=(r"\[(ERROR|WARNING|CRITICAL)\]|Traceback", "note:"),
    )
    ready(server, 2)
    inode = path.stat().st_ino
    parked = Parked(connect, str(path), 4)
    with Traffic(server.address, str(path), clients=1) as traffic:
        traffic.wait_for_more(5)
        for name in ("syntax", "import", "warm-up", "bad value", "config syntax"):
            fault = FAULTS[name]
            change(tmp_path, fault.code)
            change(tmp_path, conf + fault.conf, "conf.py")
            fail(server, fault.reason, fault.reason)
            traffic.wait_for_more(2)
        # A bind that cannot be had, and a death that says nothing.
        change(tmp_path, version("two"))
        change(tmp_path, conf.replace("site.sock", "nowhere/a.sock"), "conf.py")
        fail(server, r"nowhere/a\.sock", r"nowhere/a\.sock")
        change(tmp_path, conf, "conf.py")
        hold = tmp_path / "hold"
        hold.touch()
        order = Order(server.pid, "upgrade")
        (next_one,) = wait_until(
            lambda: [pid for pid in server.workers() if children(pid)], "the next master has workers"
        )
        assert figures(server.pid)["server"]["state"] == "upgrading"
        os.kill(next_one, signal.SIGKILL)
        said = order.answer()
        assert said["ok"] is False
        assert said["error"]
        hold.unlink()
        wait_until(lambda: len(server.workers()) == 2, "what the next master has left behind is gone")
        traffic.wait_for_more(5)
        assert bodies(server) == {b"one"}
        assert path.stat().st_ino == inode
        assert parked.check(b"one") <= set(server.workers())
        # It can still reload, and after the mend an upgrade works.
        assert ctl(server.pid, "reload", "--wait").status == 0
        wait_until(lambda: bodies(server) == {b"two"}, "the new code is served")
        change(tmp_path, version("three"))
        assert ctl(server.pid, "upgrade", "--wait").status == 0
        new = successors(server, server.pid)
        assert masters(server.address) == {new}
        assert bodies(server) == {b"three"}
        assert parked.check_idle(b"three") <= set(children(new))
        traffic.wait_for_more(5)
    assert traffic.check() == {b"one", b"two", b"three"}
    assert path.stat().st_ino == inode
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: not server.leftovers(), "no process is left")
    assert not path.exists()
    assert not (tmp_path / "server.pid").exists()


def test_what_else_is_asked_for_during_an_upgrade(
    start_unclassed: Start, tmp_path: Path, successors: Callable[[Server, int], int]
) -> None:
    """A second one joins the first; a stop ends both masters; a reload comes after one that has failed."""
    server = start_unclassed(
        SITE,
        *("-c", "conf.py", "-p", "server.pid"),
        worker_class="sync",
        bind="tcp",
        files={"conf.py": CONF, "site_of_rolling.py": version("one")},
        expect=(r"\[(ERROR|WARNING|CRITICAL)\]|Traceback",),
    )
    ready(server, 2)
    hold = tmp_path / "hold"
    hold.touch()
    change(tmp_path, version("two") + "raise LookupError('no table')\n")
    orders = [Order(server.pid, "upgrade"), Order(server.pid, "upgrade"), Order(server.pid, "reload")]
    wait_until(lambda: (tmp_path / "imports").read_text().count("begin two") == 2, "the next fleet boots")
    assert len(server.workers()) == 3, "one next master"
    change(tmp_path, version("three"))
    hold.unlink()
    for order in orders[:2]:
        said = order.answer()
        assert said["ok"] is False
        assert "no table" in said["error"]
    assert orders[2].answer()["ok"] is True
    wait_until(lambda: bodies(server) == {b"three"}, "the reload has come after it")

    # One that succeeds: the reload that was asked for meanwhile is told so, and is not left without an answer.
    hold.touch()
    change(tmp_path, version("four"))
    orders = [Order(server.pid, "upgrade"), Order(server.pid, "reload")]
    wait_until(lambda: "begin four" in (tmp_path / "imports").read_text(), "the next fleet boots")
    hold.unlink()
    assert orders[0].answer()["ok"] is True
    said = orders[1].answer()
    assert said is not None
    assert said["ok"] is True or "next master" in said["error"] or "stopp" in said["error"]
    new = successors(server, server.pid)
    assert bodies(server) == {b"four"}

    # A stop meanwhile, which is a second SIGTERM, ends the old one, the next one, and all their workers.
    hold.touch()
    change(tmp_path, version("five"))
    order = Order(new, "upgrade")
    wait_until(lambda: "begin five" in (tmp_path / "imports").read_text(), "the next fleet boots")
    os.kill(new, signal.SIGTERM)
    server.wait_for_log("SIGTERM during an upgrade")
    os.kill(new, signal.SIGTERM)
    said = order.answer()
    assert said is None or said["ok"] is False
    wait_until(lambda: not server.leftovers(), "no process is left", 5.0)
    assert not (tmp_path / "server.pid").exists()


def test_the_next_master_may_have_other_sockets(
    start_unclassed: Start, connect: Connect, tmp_path: Path, successors: Callable[[Server, int], int]
) -> None:
    """What it does not want any more is removed; what it has added is there; who was connected is served on."""
    kept, dropped, added = (tmp_path / f"{name}.sock" for name in ("kept", "dropped", "added"))
    server = start_unclassed(
        SITE,
        *("-c", "conf.py", "-p", "server.pid"),
        worker_class="sync",
        bind="none",
        files={"conf.py": f"bind = ['unix:{kept}', 'unix:{dropped}']\n", "site_of_rolling.py": version("one")},
    )
    ready(server, 1)
    client = connect(str(dropped))
    pid_of(client.get())
    change(tmp_path, f"bind = ['unix:{added}', 'unix:{kept}']\n", "conf.py")
    change(tmp_path, version("two"))
    inode = kept.stat().st_ino
    assert ctl(server.pid, "upgrade", "--wait").status == 0
    new = successors(server, server.pid)
    assert kept.stat().st_ino == inode
    assert masters(str(kept)) == masters(str(added)) == {new}
    assert not dropped.exists()
    response = client.get()
    assert (response.status, response.body) == (200, b"two")
    os.kill(new, signal.SIGTERM)
    wait_until(lambda: not server.leftovers(), "no process is left")
    assert not kept.exists()
    assert not added.exists()
