"""The master's small parts: pid file, LISTEN_FDS, raw_env, slots, words about dead workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsgiserv.config.process_environment import ProcessEnvironment
from wsgiserv.errors import ConfigError
from wsgiserv.master.crash_report import describe_exit, request_lines
from wsgiserv.master.pidfile import PidFile
from wsgiserv.master.slots import SlotPool
from wsgiserv.master.systemd import take_listen_fds
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.scoreboard import LISTENING, REQUESTS, Scoreboard

# ---- pid file ------------------------------------------------------------------------------------------


def dead_pid() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_pid_file_holds_the_pid_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pid_file = PidFile(str(path))
    pid_file.create()
    assert path.read_text() == f"{os.getpid()}\n"
    assert path.stat().st_mode & 0o022 == 0
    pid_file.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{dead}\n", "{ours}\n", "99999999999\n"])
def test_a_stale_pid_file_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pid"
    path.write_text(text.format(dead=dead_pid(), ours=os.getpid()))
    PidFile(str(path)).create()
    assert path.read_text() == f"{os.getpid()}\n"


def test_a_file_that_is_no_pid_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("SECRET_KEY = 1")
    with pytest.raises(ConfigError, match="something else than a process id"):
        PidFile(str(path)).create()
    assert path.read_text() == "SECRET_KEY = 1"


def test_a_pid_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"The directory {tmp_path}/no does not exist"):
        PidFile(str(tmp_path / "no" / "pid")).create()


def test_a_pid_file_that_is_anothers_now_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pid_file = PidFile(str(path))
    pid_file.create()
    path.write_text("1\n")
    pid_file.remove()
    assert path.read_text() == "1\n"


# ---- sd_listen_fds(3) ----------------------------------------------------------------------------------


def test_descriptors_meant_for_this_process_are_taken_once() -> None:
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "HOME": "/"}
    assert take_listen_fds(environ, 7) == [3, 4]
    assert environ == {"HOME": "/"}
    assert take_listen_fds(environ, 7) == []


@pytest.mark.parametrize(
    "environ",
    [
        {"LISTEN_PID": "8", "LISTEN_FDS": "2"},
        {"LISTEN_FDS": "2"},
        {"LISTEN_PID": "7"},
        {"LISTEN_PID": "x", "LISTEN_FDS": "2"},
        {"LISTEN_PID": "7", "LISTEN_FDS": "-1"},
    ],
)
def test_variables_for_others_or_without_sense(environ: dict[str, str]) -> None:
    assert take_listen_fds(environ, 7) == []


# ---- raw_env -------------------------------------------------------------------------------------------


def test_raw_env_is_applied_and_taken_back_by_the_next_one() -> None:
    environ = {"A": "old", "B": "old"}
    raw = ProcessEnvironment(environ)
    raw.apply(["A=1", "A=2", "C=x=y", "D="])
    assert environ == {"A": "2", "B": "old", "C": "x=y", "D": ""}
    raw.apply(["B=3"])
    assert environ == {"A": "old", "B": "3"}
    raw.apply([])
    assert environ == {"A": "old", "B": "old"}


def test_the_variables_of_files_are_below_raw_env_and_come_and_go() -> None:
    environ = {"A": "old"}
    process = ProcessEnvironment(environ)
    process.put_files({"B": "file", "C": "file"})
    process.apply(["B=raw"])
    assert environ == {"A": "old", "B": "raw", "C": "file"}
    before = process.state
    process.put_files({"B": "new", "D": "new"})
    assert environ == {"A": "old", "B": "raw", "D": "new"}
    process.apply([])
    assert environ == {"A": "old", "B": "new", "D": "new"}
    process.restore(before)
    assert environ == {"A": "old", "B": "raw", "C": "file"}
    process.put_files({})
    assert environ == {"A": "old", "B": "raw"}


def test_variables_that_stay_are_not_written_again() -> None:
    """Else a reload without environment files would undo what a hook has set."""
    environ: dict[str, str] = {}
    process = ProcessEnvironment(environ)
    process.apply(["A=raw"])
    environ["A"] = "of a hook"
    process.put_files({})
    process.restore(process.state)
    assert environ == {"A": "of a hook"}


# ---- slots and words -----------------------------------------------------------------------------------


def test_slots_are_given_cleared_and_there_is_always_one_more() -> None:
    pool = SlotPool(cells=2, slots=1)
    first = pool.take()
    first.words[REQUESTS] = 5
    first.begin(1, 3.0, b"p", b"i", b"l")
    second = pool.take()
    assert second is not first
    pool.give_back(first)
    again = pool.take()
    assert again is first
    assert again.figures().requests == 0
    assert again.in_flight(0.0) == []


def handle() -> WorkerHandle:
    found = WorkerHandle(age=3, generation=1, spawned_at=10.0, timeout=1.0, graceful_timeout=1.0, pid=77)
    found.slot = SlotPool(cells=30, slots=1).take()
    return found


def test_how_a_process_ended() -> None:
    assert describe_exit(9) == "was killed by SIGKILL"
    assert describe_exit(11 | 0x80) == "was killed by SIGSEGV"
    assert describe_exit(3 << 8) == "exited with status 3"
    assert describe_exit(64) == "was killed by signal 64" or "SIGRTMAX" in describe_exit(64)


def test_a_life_and_the_requests_it_left_behind() -> None:
    worker = handle()
    assert worker.slot is not None
    worker.slot.words[REQUESTS] = 1
    assert worker.life(12.34) == "up 2.3 s, 1 request"
    worker.slot.begin(0, 11.0, b"10.0.0.1", b"r1", b"GET /a\r\nX HTTP/1.1")
    worker.slot.begin(1, 10.5, b"", b"", b"GET /b HTTP/1.1")
    older, younger = request_lines(77, worker.in_flight(12.0))
    assert older == 'in flight in worker 77 for 1.5 s: "GET /b HTTP/1.1" from a Unix socket, request id -'
    assert '"GET /a\\x0d\\x0aX HTTP/1.1" from 10.0.0.1, request id r1' in younger
    for cell in range(2, 30):
        worker.slot.begin(cell, 11.5, b"p", b"i", b"l")
    lines = request_lines(77, worker.in_flight(12.0))
    assert len(lines) == 21
    assert lines[-1] == "in flight in worker 77: 10 more"


def test_who_else_listens() -> None:
    """A worker without siblings takes all that has come at once; with some, it leaves them their part."""
    first, second, _ = Scoreboard(3, 1).slots
    first.words[LISTENING] = 1
    assert not first.others_listen()
    second.words[LISTENING] = 1
    assert first.others_listen()
    first.words[LISTENING] = 0
    assert not second.others_listen()
    assert first.others_listen(), "also for one that has ceased to"
