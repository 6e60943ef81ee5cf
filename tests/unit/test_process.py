"""Primitives of processes: children that run one function, signals, and what proc(5) tells."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from wsgiserv import process


def _exit_status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _raise() -> NoReturn:
    raise SystemExit(9)


@pytest.mark.parametrize(("run", "status"), [(lambda: 7, 7), (_raise, 1)])
def test_a_child_runs_one_function(run: Callable[[], int], status: int) -> None:
    assert _exit_status(process.run_in_child(run)) == status


def test_a_buffer_is_written_once() -> None:
    code = (
        "import sys; from wsgiserv.process import run_in_child; import os\n"
        "print('once', end=''); os.waitpid(run_in_child(lambda: print('child') or 0), 0)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "oncechild\n"


def test_a_child_is_reaped_once() -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert process.reap(child.pid) is None
    process.send_signal(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    end = process.reap(child.pid)
    assert end is not None
    assert end.wait_status == signal.SIGKILL
    assert end.max_rss > 0
    assert process.reap(child.pid) == (None, 0)
    process.send_signal(child.pid, signal.SIGKILL)
    child.returncode = -9


def test_a_process_that_has_not_begun_gets_no_signal() -> None:
    """kill(2) would take 0 for the caller's own process group."""
    process.send_signal(0, signal.SIGKILL)


def test_the_memory_is_counted_in_the_systems_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    own = process.rss_of(os.getpid())
    assert own > 1 << 20
    monkeypatch.setattr(process, "_PAGE_BYTES", 16 * process._PAGE_BYTES)
    assert process.rss_of(os.getpid()) > 10 * own
    assert process.memory_of(os.getpid()) < 2 * own, "the share of common pages is told in KiB"
    assert process.rss_of(2**22 + 1) == process.memory_of(2**22 + 1) == 0


def test_the_state_of_a_process() -> None:
    child = subprocess.Popen(["sleep", "60"])
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    assert process.state_of(child.pid) == "T"
    child.kill()
    child.wait()
    assert process.state_of(child.pid) == ""
