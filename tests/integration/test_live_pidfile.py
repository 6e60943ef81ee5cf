"""The pid file is a running server's by its lock, not by the number in it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Server, Start, children, is_alive, is_worker, run, wait_until

HELLO = """
import os

def app(environ, start_response):
    if environ["PATH_INFO"] == "/fork" and os.fork() == 0:
        os.setsid()  # a daemon of the application's, which outlives the server
        os.execvp("sleep", ["sleep", "300"]) if environ["QUERY_STRING"] else __import__("time").sleep(300)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""
FILES = {"hello.py": HELLO}


@contextmanager
def stranger(*command: str) -> Iterator[int]:
    """A live process that is no wsgiserv."""
    process = subprocess.Popen(command or (sys.executable, "-c", "import signal; signal.pause()"))
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def begin(start_unclassed: Start, *args: str, app: str = "hello:app") -> Server:
    server = start_unclassed(app, "-p", "pid", *args, files=FILES)
    server.wait_for_log("ready: ")
    return server


@pytest.mark.parametrize("command", [("sleep", "300"), ("bash", "-c", "exec -a 'a wsgiserv: master [x]' sleep 300")])
def test_a_stranger_with_the_number_does_not_stop_the_start(
    start_unclassed: Start, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with stranger(*command) as pid:
        (tmp_path / "pid").write_text(f"{pid}\n")
        server = begin(start_unclassed)
        assert int((tmp_path / "pid").read_text()) == server.pid
        (line,) = [line for line in server.log.lines if "is stale and is replaced" in line]
        assert f"it names {pid}" in line
        assert "kill" not in line
        assert is_alive(pid)


def test_pid_1_is_a_stranger(start_unclassed: Start, tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("1\n")
    server = begin(start_unclassed)
    assert int((tmp_path / "pid").read_text()) == server.pid


def test_of_two_servers_the_second_refuses(start_unclassed: Start, tmp_path: Path) -> None:
    server = begin(start_unclassed, "-w", "2")
    assert is_locked(tmp_path / "pid")
    done = run(("-p", "pid", "-b", "127.0.0.1:0", "hello:app"), tmp_path)
    assert done.returncode == 2
    assert f"Already running on PID {server.pid}" in done.stderr
    assert f"kill {server.pid}" in done.stderr
    assert int((tmp_path / "pid").read_text()) == server.pid
    assert [path.name for path in tmp_path.glob("pid*")] == ["pid"]


def test_a_lock_is_enough_where_the_process_cannot_be_seen(tmp_path: Path) -> None:
    """A server in another container has another number there: it is never told to be killed by the one in the file."""
    (tmp_path / "hello.py").write_text(HELLO)
    with stranger() as pid, (tmp_path / "pid").open("w") as file:
        file.write(f"{pid}\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run(("-p", "pid", "-b", "127.0.0.1:0", "hello:app"), tmp_path)
        assert done.returncode == 2
        assert "a running server holds it" in done.stderr
        assert "(kill" not in done.stderr
        assert (tmp_path / "pid").read_text() == f"{pid}\n"


def test_an_older_wsgiserv_without_a_lock_keeps_its_file(start_unclassed: Start, tmp_path: Path) -> None:
    server = start_unclassed("hello:app", files=FILES)
    server.wait_for_log("ready: ")
    (tmp_path / "pid").write_text(f"{server.pid}\n")
    done = run(("-p", "pid", "-b", "127.0.0.1:0", "hello:app"), tmp_path)
    assert done.returncode == 2
    assert f"Already running on PID {server.pid}" in done.stderr
    # Nor does a worker of another server, under whose number a server was once.
    (worker,) = server.workers()
    (tmp_path / "pid").write_text(f"{worker}\n")
    begin(start_unclassed)


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("path", ["/fork", "/fork?exec"])
def test_no_child_holds_the_lock_on(start: Start, tmp_path: Path, preload: tuple[str, ...], path: str) -> None:
    """Not a worker, not a zygote, not what the application has forked; and the killed master's file is stale."""
    first = start(
        "hello:app", "-p", "pid", "-w", "1", *preload, files=FILES, expect=("is gone|ends|died|killed|in flight",)
    )
    first.wait_for_log("ready: ")
    (worker,) = wait_until(lambda: _workers(first), "the worker")
    with RawClient(first.address) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        child = wait_until(lambda: children(worker), "the application's child")[0]
        try:
            os.kill(first.pid, signal.SIGKILL)
            first.process.wait()
            assert is_alive(child)
            assert not is_locked(tmp_path / "pid")
            second = start("hello:app", "-p", "pid", *preload, files=FILES)
            second.wait_for_log("ready: ")
            assert int((tmp_path / "pid").read_text()) == second.pid
        finally:
            os.kill(child, signal.SIGKILL)
            wait_until(lambda: not is_alive(worker), "the old worker has left")
            first.close()


def _workers(server: Server) -> list[int]:
    return [pid for pid in server.workers() if is_worker(pid)]


def test_an_upgrade_hands_the_file_over_with_a_lock(start_unclassed: Start, tmp_path: Path) -> None:
    server = begin(start_unclassed)
    server.send_signal(signal.SIGUSR2)
    new = wait_until(
        lambda: (pid := int((tmp_path / "pid").read_text())) != server.pid and pid, "the next master has the file"
    )
    try:
        server.process.wait(15)
        assert int((tmp_path / "pid").read_text()) == new, "the old one has left it alone"
        assert is_locked(tmp_path / "pid")
        done = run(("-p", "pid", "-b", "127.0.0.1:0", "hello:app"), tmp_path)
        assert f"Already running on PID {new}" in done.stderr
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not is_alive(new), "the next master's end")
    assert list(tmp_path.glob("pid*")) == []


def test_an_upgrade_that_fails_leaves_file_and_lock(start_unclassed: Start, tmp_path: Path) -> None:
    server = begin(start_unclassed)
    server.expect("upgrade|There is|error|Traceback|cannot")
    (tmp_path / "hello.py").write_text("1/0")
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("upgrade failed")
    assert int((tmp_path / "pid").read_text()) == server.pid
    assert is_locked(tmp_path / "pid")
    assert [path.name for path in tmp_path.glob("pid*")] == ["pid"]
    (tmp_path / "hello.py").write_text(HELLO)


def test_a_reload_moves_the_file(start_unclassed: Start, tmp_path: Path) -> None:
    files = {**FILES, "conf.py": "pidfile = 'one'"}
    server = start_unclassed("hello:app", "-c", "conf.py", files=files)
    server.wait_for_log("ready: ")
    assert is_locked(tmp_path / "one")
    (tmp_path / "conf.py").write_text("pidfile = 'two'")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: ")
    assert not (tmp_path / "one").exists()
    assert is_locked(tmp_path / "two")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.text.count("reloaded: ") == 2, "the second reload")
    assert int((tmp_path / "two").read_text()) == server.pid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_no_draft_is_left_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk], check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with (disk / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        done = run(("-p", "disk/pid", "-b", "127.0.0.1:0", "hello:app"), tmp_path)
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert [path.name for path in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.no_coverage
def test_no_draft_is_left_where_files_cannot_grow(start_unclassed: Start, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(HELLO)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));"
        "from wsgiserv.cli import main; sys.exit(main())"
    )
    server = start_unclassed(
        None, bind="none", command=[sys.executable, "-c", code, "-p", "pid", "-b", "127.0.0.1:0", "hello:app"]
    )
    assert server.wait() == 2
    assert "File too large" in server.log.text
    assert list(tmp_path.glob("pid*")) == []
