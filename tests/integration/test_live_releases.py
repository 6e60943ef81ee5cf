"""Releases by symlink: the working directory is removed, or its name leads to another one, under a running server."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rawclient import RawClient
from server import DEADLINE_S, Server, Start, is_alive, wait_until

# Coverage asks for the working directory in each child, and these have none.
pytestmark = pytest.mark.no_coverage

APP = """\
import os
VERSION = "{version}"
def app(environ, start_response):
    try:
        here = os.getcwd()
    except FileNotFoundError:
        here = "removed"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{{VERSION}} {{os.getpid()}} {{os.getppid()}} {{here}}".encode()]
"""
EXPECT = ("SIGKILL",)


def ask(server: Server) -> tuple[str, int, int, str]:
    """Ask as a new client: the version, the worker's pid, its master's, its directory."""
    with RawClient(server.address) as client:
        version, pid, parent, here = client.get("/").text.split(" ", 3)
        return version, int(pid), int(parent), here


@pytest.fixture(params=["alone", "preloaded"])
def options(request: pytest.FixtureRequest) -> list[str]:
    """With the application loaded by each worker, and once for all."""
    return ["--preload"] if request.param == "preloaded" else []


@pytest.fixture
def successor() -> Iterator[Callable[[Server, Path], int]]:
    """Ask for an upgrade and wait until the next master serves; it is stopped at the end of the test."""
    found: list[int] = []

    def of(server: Server, pidfile: Path) -> int:
        server.send_signal(signal.SIGUSR2)
        new: int = wait_until(
            lambda: pidfile.exists() and (pid := int(pidfile.read_text() or 0)) != server.pid and pid,
            "the next master has the pid file",
        )
        found.append(new)
        assert server.process.wait(DEADLINE_S) == 0
        return new

    yield of
    for pid in found:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda pid=pid: not is_alive(pid), "the next master's end")  # type: ignore[misc]


def switch(link: Path, target: Path) -> None:
    """Have the link lead to another release, in one step."""
    draft = link.with_name("draft")
    draft.symlink_to(target)
    draft.replace(link)


def replaced(server: Server, count: int) -> None:
    """Kill a worker; another one takes its place and serves."""
    _, pid, _, _ = ask(server)
    before = len(server.log.lines)
    os.kill(pid, signal.SIGKILL)
    server.wait_for_log(rf"worker {pid} .*was killed by SIGKILL", after=before)
    wait_until(lambda: len(server.workers()) == count and pid not in server.workers(), "a worker in its place")
    assert ask(server)[1] != pid


@pytest.mark.parametrize("given", ["by default", "chdir"])
def test_the_directory_is_removed(
    start: Start, tmp_path: Path, options: list[str], given: str, successor: Callable[[Server, Path], int]
) -> None:
    """The application is elsewhere: installed, on PYTHONPATH."""
    site, release = tmp_path / "site", tmp_path / "release"
    site.mkdir()
    release.mkdir()
    (site / "released.py").write_text(APP.format(version="one"))
    wrap = ["env", "-C", str(release)] if given == "by default" else []
    chdir = ["--chdir", str(release)] if given == "chdir" else []
    server = start(
        "released:app",
        *("-w", "1", "-p", str(tmp_path / "pid"), "--pythonpath", str(site), *chdir, *options),
        expect=EXPECT,
        wrap=wrap,
    )
    count = 1 + len(options)
    server.wait_for_log("ready: 1 worker")
    if wrap:
        wait_until(lambda: len(server.workers()) == count, "all")
    shutil.rmtree(release)

    replaced(server, count)
    assert ask(server)[3] == "removed"
    before = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: 1 worker", after=before)
    wait_until(lambda: len(server.workers()) == count, "the old ones have left")
    replaced(server, count)
    new = successor(server, tmp_path / "pid")
    wait_until(lambda: ask(server)[2] == new, "the next master's workers")
    assert ask(server)[0] == "one"


@pytest.mark.parametrize("given", ["by default", "chdir"])
def test_the_link_leads_to_another_release(
    start: Start, tmp_path: Path, options: list[str], given: str, successor: Callable[[Server, Path], int]
) -> None:
    """As with gunicorn: SIGHUP and SIGUSR2 serve what the link leads to then, and the old one can be removed."""
    link = tmp_path / "current"
    for version in ("one", "two", "three"):
        release = tmp_path / version
        release.mkdir()
        (release / "released.py").write_text(APP.format(version=version))
    switch(link, tmp_path / "one")
    server = start(
        "released:app",
        *("-w", "1", "-p", str(tmp_path / "pid"), *(["--chdir", str(link)] if given == "chdir" else []), *options),
        # As a shell's cd leaves it.
        **({"env": {"PWD": str(link)}, "wrap": ["env", "-C", str(link)]} if given == "by default" else {}),
        expect=EXPECT,
    )
    count = 1 + len(options)
    server.wait_for_log("ready: 1 worker")
    assert ask(server)[::3] == ("one", str(tmp_path / "one"))

    switch(link, tmp_path / "two")
    before = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: 1 worker", after=before)
    wait_until(lambda: ask(server)[::3] == ("two", str(tmp_path / "two")), "the second release")
    shutil.rmtree(tmp_path / "one")
    wait_until(lambda: len(server.workers()) == count, "the old ones have left")
    replaced(server, count)
    assert ask(server)[::3] == ("two", str(tmp_path / "two"))

    switch(link, tmp_path / "three")
    if options:  # what has been loaded stays what it is, and where
        replaced(server, count)
        assert ask(server)[::3] == ("two", str(tmp_path / "two"))
    shutil.rmtree(tmp_path / "two")
    new = successor(server, tmp_path / "pid")
    wait_until(lambda: ask(server)[2] == new, "the next master's workers")
    assert ask(server)[::3] == ("three", str(tmp_path / "three"))


@pytest.mark.parametrize("worker_class", ["sync"], indirect=True)
def test_a_broken_reload_in_a_removed_directory_harms_nobody(start: Start, tmp_path: Path) -> None:
    """The application has gone with it: what runs goes on."""
    release = tmp_path / "release"
    release.mkdir()
    (release / "released.py").write_text(APP.format(version="one"))
    server = start(
        "released:app",
        *("-w", "1", "--chdir", str(release), "--bind", "unix:app.sock"),
        expect=(r"\[ERROR\]", r"\[WARNING\]", "Traceback"),
    )
    server.wait_for_log("ready: 1 worker")
    _, pid, _, _ = ask(server)
    shutil.rmtree(release)
    for _ in range(2):
        before = len(server.log.lines)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reload", after=before)
        time.sleep(0.2)
        assert ask(server)[1] == pid
