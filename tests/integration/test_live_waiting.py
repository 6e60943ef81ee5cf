"""Whoever waits for a command's outcome gets one, also when another command or a signal overtakes it (issue 12)."""

from __future__ import annotations

import os
import signal

import pytest
from rollingapps import SITE, change, version
from server import Server, Start, wait_until
from test_live_rolling import CONF, Order, bodies, control_socket, ctl, figures, ready


@pytest.fixture
def server(start_unclassed: Start) -> Server:
    """Two sync workers, whose code can be changed."""
    found = start_unclassed(
        SITE,
        *("-c", "conf.py", "-p", "server.pid"),
        worker_class="sync",
        bind="tcp",
        files={"conf.py": CONF, "site_of_rolling.py": version("one")},
    )
    ready(found, 2)
    return found


def hold(server: Server, name: str = "two") -> None:
    """From now on workers boot until the file is removed."""
    (server.directory / "hold").touch()
    change(server.directory, version(name))


def begun(server: Server, name: str = "two") -> None:
    imports = server.directory / "imports"
    wait_until(lambda: f"begin {name}" in imports.read_text(), "a worker boots")


@pytest.mark.parametrize("by", ["scale", "TTOU", "TTIN", "WINCH", "HUP", "TERM", "stop"])
def test_scale_that_is_overtaken(server: Server, by: str) -> None:
    hold(server)
    order = Order(server.pid, "scale", count=4)
    begun(server)
    assert not order.is_answered
    expected = "overtaken: "
    if by == "scale":
        assert ctl(server.pid, "scale", "3").status == 0
        expected = "overtaken: 3 workers are wanted now"
    elif by == "stop":
        assert ctl(server.pid, "stop").status == 0
    else:
        server.send_signal(signal.Signals[f"SIG{by}"])
    said = order.answer()
    assert said["ok"] is False
    assert said["error"].startswith(expected)
    (server.directory / "hold").unlink(missing_ok=True)


def test_as_a_command_it_ends_with_1(server: Server) -> None:
    hold(server)
    order = Order(server.pid, "scale", count=3)
    assert ctl(server.pid, "scale", "3").status == 0  # the same is not another one
    assert not order.is_answered
    server.send_signal(signal.SIGTTIN)
    assert order.answer()["error"] == "overtaken: 4 workers are wanted now"
    (server.directory / "hold").unlink()
    assert ctl(server.pid, "scale", "2", "--wait").status == 0


def test_scale_and_sigttin_have_a_maximum(server: Server) -> None:
    server.expect(r"\[WARNING\].*SIGTTIN ignored")
    for count in ("5000", "1000000", "999999999"):
        done = ctl(server.pid, "scale", count, "--wait")
        assert (done.status, done.out) == (1, "")
        assert "accepted" in done.err
    assert figures(server.pid)["server"]["workers"]["wanted"] == 2
    assert len(server.workers()) == 2


def test_reload_that_is_overtaken(server: Server) -> None:
    hold(server)
    order = Order(server.pid, "reload")
    begun(server)
    server.send_signal(signal.SIGWINCH)
    said = order.answer()
    assert (said["ok"], said["error"]) == (False, "overtaken: SIGWINCH has retired the workers")
    (server.directory / "hold").unlink()
    assert ctl(server.pid, "reload", "--wait").status == 0
    assert bodies(server) == {b"two"}


@pytest.mark.parametrize("how", ["TERM", "INT"])
def test_a_stop_while_the_canary_of_a_reload_boots(start_unclassed: Start, how: str) -> None:
    """Its new pid file and socket go, too, and who waits is told at once, though a request is in flight."""
    server = start_unclassed(
        SITE,
        *("-c", "conf.py"),
        worker_class="sync",
        bind="none",
        files={
            "conf.py": f"{CONF}pidfile = 'old.pid'\nbind = ['unix:old.sock']\n",
            "site_of_rolling.py": version("one"),
        },
    )
    ready(server, 2)
    hold(server)
    change(server.directory, f"{CONF}pidfile = 'new.pid'\nbind = ['unix:new.sock']\n", "conf.py")
    orders = [Order(server.pid, "reload")]
    begun(server)
    orders += [Order(server.pid, "reload")]
    if how == "INT":  # SIGTERM waits for what is to be an upgrade
        orders += [Order(server.pid, "upgrade")]
    assert (server.directory / "new.pid").exists()
    server.send_signal(signal.Signals[f"SIG{how}"])
    for order in orders:
        said = order.answer()
        assert (said["ok"], said["error"]) == (False, "overtaken: the server is stopping")
    assert server.wait() == 0
    for name in ("old.pid", "new.pid", "old.sock", "new.sock"):
        assert not (server.directory / name).exists(), name


def test_retire_whose_successor_cannot_boot(server: Server) -> None:
    server.expect(r"\[ERROR\]|Traceback")
    (worker, _) = server.workers()
    change(server.directory, "raise LookupError('no table')\n")
    done = ctl(server.pid, "retire", str(worker), "--wait")
    assert (done.status, done.out) == (1, "")
    assert f"worker {worker} stays until a new one is ready" in done.err
    assert "no table" in done.err
    assert bodies(server) == {b"one"}
    change(server.directory, version("two"))
    wait_until(lambda: worker not in server.workers(), "it is replaced all the same")


def test_clients_that_leave_while_they_wait_and_many_that_stay(server: Server) -> None:
    hold(server)
    gone = [Order(server.pid, "scale", count=4) for _ in range(8)]
    for order in gone:
        order.hang_up()
    waiting = [Order(server.pid, "scale", count=4) for _ in range(20)]
    assert figures(server.pid)["server"]["workers"]["wanted"] == 4
    assert not any(order.is_answered for order in waiting)
    (server.directory / "hold").unlink()
    assert all(order.answer()["ok"] for order in waiting)
    assert os.path.exists(control_socket(server.pid))
