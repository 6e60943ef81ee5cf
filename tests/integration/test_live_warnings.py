"""The server is clean under Python's development mode, and with warnings as errors (issue 13)."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from gevents import needs_silent_gevent
from server import Connect, Start, run

# What Python's warnings look like in the standard error; the server's own begin with the time.
WARNED = re.compile(r"^(?!\[).*\w+Warning\b|Exception ignored", re.MULTILINE)
DEV = {"PYTHONDEVMODE": "1"}
STRICT = {**DEV, "PYTHONWARNINGS": "error"}


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_no_warning_from_start_to_end(
    start: Start, connect: Connect, preload: tuple[str, ...], tmp_path: Path, worker_class: str
) -> None:
    """Workers answer, are replaced by a reload and told to stop; sockets of both kinds, and logs, are open."""
    needs_silent_gevent(worker_class)
    args = ("-w", "2", "--threads", "4", "-b", f"unix:{tmp_path}/s", "--access-logfile", "access", *preload)
    server = start("apps:app", *args, env=DEV)
    server.wait_for_log("ready:")
    for _ in range(4):
        assert connect(server.address).get("/").status == 200
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded:")
    assert connect(server.address).get("/").status == 200
    assert server.stop() == 0
    assert not WARNED.search(server.log.text), server.log.text


@pytest.mark.parametrize("args", [(), ("--preload",), ("--check-config",)], ids=["", "preload", "check"])
def test_no_warning_after_a_failed_import(worker_class: str, args: tuple[str, ...], tmp_path: Path) -> None:
    needs_silent_gevent(worker_class)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    done = run(["-k", worker_class, "-b", "127.0.0.1:0", *args, "broken:app"], tmp_path, STRICT)
    assert done.returncode == 4, done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert not WARNED.search(done.stderr), done.stderr


COUNTS = """
import atexit, os, stat

def is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False

def count():
    with open("counted", "a") as file:
        print([fd for fd in range(256) if is_socket(fd)], file=file)

atexit.register(count)
{rest}
"""


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_worker_that_ends_leaves_no_socket_open(
    start: Start, connect: Connect, preload: tuple[str, ...], tmp_path: Path
) -> None:
    """Else it is up to the order of the interpreter's end whether it warns of them."""
    files = {"counts.py": COUNTS.format(rest="from apps import app")}
    server = start("counts:app", "-b", f"unix:{tmp_path}/s", "--threads", "3", *preload, files=files)
    server.wait_for_log("ready:")
    assert connect(server.address).get("/").status == 200
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded:")
    assert server.stop() == 0
    lines = (tmp_path / "counted").read_text().splitlines()
    assert len(lines) == 2
    assert all(line == "[]" for line in lines), lines


def test_nor_one_that_cannot_load_its_application(worker_class: str, tmp_path: Path) -> None:
    (tmp_path / "counts.py").write_text(COUNTS.format(rest="1 / 0"))
    assert run(["-k", worker_class, "-b", "127.0.0.1:0", "counts:app"], tmp_path).returncode == 4
    lines = (tmp_path / "counted").read_text().splitlines()
    assert all(line == "[]" for line in lines), lines
