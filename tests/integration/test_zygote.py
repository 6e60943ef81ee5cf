"""The zygote of `preload_app`: what it is asked, what becomes of the workers that are not there yet, its deaths."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from server import Server, Start, children, is_alive, title_of, wait_until

from wsgiserv.master import zygote as zygote_process
from wsgiserv.master.slots import SlotPool
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.master.zygote_client import Answer, Zygote

APP = "import os\nprint('imported in', os.getpid(), flush=True)\ndef app(environ, start_response): ...\n"
# Loads when the test lets it.
WAITS = (
    "import os, time\nprint('importing', flush=True)\nwhile not os.path.exists('go'):\n    time.sleep(0.005)\n" + APP
)


def of_role(server: Server, role: str) -> list[int]:
    """Return the master's children of this title."""
    return [pid for pid in children(server.pid) if title_of(pid).startswith(f"wsgiserv: {role} [")]


def wait_for(server: Server, role: str, count: int) -> list[int]:
    """Wait until there are so many of them; return them."""
    found: list[int] = wait_until(
        lambda: (pids := of_role(server, role)) is not None and len(pids) == count and [*pids, 0],
        f"{count} of title {role}",
    )
    return found[:-1]


def imports(server: Server) -> list[int]:
    """Return who has imported the application, in this order."""
    return [int(line.split()[-1]) for line in server.out.lines if line.startswith("imported in")]


def ready(server: Server, count: int = 2) -> None:
    server.wait_for_log(rf"ready: {count} workers? in")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], object]:
    """Write the application's code."""
    return (tmp_path / "fake.py").write_text


def test_workers_come_of_a_zygote(begin: Start, write: Callable[[str], object], tmp_path: Path) -> None:
    write(
        APP
        + "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True, name='T').start()\n"
        # Its own handlers are for the workers, and disturb neither the zygote nor the births.
        + "import signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
    )
    # One write: `print` makes several where nothing buffers, and the workers are forked in the same moment.
    config = (
        "import os\ndef post_fork(server, worker):\n"
        "    os.write(1, b'hook %d %d %d\\n' % (worker.age, worker.pid, worker.ppid))\n"
    )
    server = begin("-w", "2", "--preload", "--log-file", "log", config=config)

    def log() -> str:
        return (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""

    wait_until(lambda: "ready: 2 workers" in log(), "two workers are ready")
    [zygote], workers = wait_for(server, "zygote", 1), wait_for(server, "worker", 2)
    assert imports(server) == [zygote]
    assert "has started a thread while it was loaded (T)" in log()
    wait_until(lambda: server.out.text.count("hook") == 2, "the hooks' lines")
    hooks = sorted(line for line in server.out.lines if line.startswith("hook"))
    assert [line.split()[1::2] for line in hooks] == [["1", str(server.pid)], ["2", str(server.pid)]]
    assert sorted(int(line.split()[2]) for line in hooks) == workers

    # A worker that is made after a rotation writes into the new file.
    (tmp_path / "log").rename(tmp_path / "old")
    server.send_signal(signal.SIGUSR1)
    wait_until(lambda: "reopened" in log(), "logs reopened")
    os.kill(workers[0], signal.SIGKILL)
    [born] = set(
        wait_until(lambda: len(w := set(of_role(server, "worker")) - {workers[0]}) == 2 and w, "a new one")
    ) - {workers[1]}
    wait_until(lambda: f"worker {born} serves for generation 1" in log(), "its line in the new log")
    assert imports(server) == [zygote]

    # What a terminal or systemd tells all processes is not the zygote's affair.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
        os.kill(zygote, number)
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: "reloaded: 2 workers" in log(), "the reload")
    [second] = wait_until(lambda: len(found := of_role(server, "zygote")) == 1 and found, "only the new zygote")
    assert imports(server) == [zygote, second]

    # Nobody needs it until a worker is needed; then it is another one.
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: f"zygote {second} was killed by SIGKILL" in log(), "its death is told")
    assert len(wait_for(server, "worker", 2)) == 2
    server.send_signal(signal.SIGTTIN)
    wait_for(server, "worker", 3)
    assert imports(server) == [zygote, second, *wait_for(server, "zygote", 1)]

    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not server.leftovers(), "all leave without the master", 2.0)


def test_what_cannot_be_loaded_ends_the_start_with_status_4(
    begin: Start, write: Callable[[str], object], tmp_path: Path
) -> None:
    write("1 / 0\n")
    server = begin("-w", "3", "--preload", "-b", "unix:s.sock", "-p", "pid")
    assert server.wait() == 4
    assert server.log.text.count("ZeroDivisionError: division by zero") >= 1
    assert "fake.py" in server.log.text
    assert not (tmp_path / "pid").exists()
    assert not (tmp_path / "s.sock").exists()


def test_a_reload_of_what_cannot_be_loaded(begin: Start, write: Callable[[str], object]) -> None:
    write(APP)
    server = begin("-w", "2", "--preload")
    ready(server)
    [zygote], workers = of_role(server, "zygote"), of_role(server, "worker")
    write("raise RuntimeError('half done')\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("RuntimeError: half done")
    server.wait_for_log("reload failed")
    assert wait_for(server, "zygote", 1) == [zygote]
    assert of_role(server, "worker") == workers
    write(APP)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: 2 workers")
    assert wait_for(server, "zygote", 1) == imports(server)[1:]


def test_workers_that_are_not_there_yet(begin: Start, write: Callable[[str], object], tmp_path: Path) -> None:
    write(WAITS)
    server = begin("-w", "3", "--preload")
    server.out.wait_for("importing")
    [zygote] = of_role(server, "zygote")
    # One of them is not wanted any more, and another one is; then their zygote is killed.
    server.send_signal(signal.SIGTTOU)
    server.wait_for_log("TTOU: 2 workers wanted")
    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("TTIN: 3 workers wanted")
    server.send_signal(signal.SIGTTOU)
    wait_until(lambda: server.log.text.count("2 workers wanted") == 2, "the third signal")
    os.kill(zygote, signal.SIGKILL)
    server.wait_for_log(f"zygote {zygote} was killed by SIGKILL")
    (tmp_path / "go").touch()
    ready(server, 2)
    assert len(wait_for(server, "worker", 2)) == 2
    assert len(imports(server)) == 1
    assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_end_while_the_application_is_loaded(begin: Start, write: Callable[[str], object], number: int) -> None:
    write(WAITS)
    server = begin("-w", "2", "--preload")
    server.out.wait_for("importing")
    server.send_signal(number)
    assert server.wait(2.0) == (-9 if number == signal.SIGKILL else 0)
    wait_until(lambda: not server.leftovers(), "no process is left", 2.0)


def test_an_import_that_hangs(begin: Start, write: Callable[[str], object]) -> None:
    write(WAITS)
    server = begin("-w", "2", "--preload", "--boot-timeout", "0.3")
    server.wait_for_log(
        r"zygote \d+: its worker of age \d+ was not ready after 0.3 s \(boot_timeout\): sending SIGABRT"
    )
    server.wait_for_log("aborted while it was here")
    server.wait_for_log(r"fake\.py\", line 4, in <module>")
    assert server.wait() == 3
    assert re.search(r"the zygote exited with status 3 \(.*boot_timeout\)\) while it was booting", server.log.lines[-1])


def test_more_workers_than_the_zygote_knows_slots_for(begin: Start, write: Callable[[str], object]) -> None:
    write(APP)
    config = "import wsgiserv.master.slots\nwsgiserv.master.slots.room_for = lambda settings: 1\n"
    server = begin("-w", "1", "--preload", config=config)
    ready(server, 1)
    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("more workers than ever")
    wait_for(server, "worker", 2)
    assert len(wait_for(server, "zygote", 1)) == 1
    wait_until(lambda: server.log.text.count("serves for generation 1") == 2, "both serve")
    assert server.stop() == 0


def test_without_subreapers_the_master_loads_the_application(begin: Start, write: Callable[[str], object]) -> None:
    write(APP)
    config = "import wsgiserv.master.resources\nwsgiserv.master.resources.become_subreaper = lambda: False\n"
    server = begin("-w", "2", "--preload", config=config)
    ready(server)
    assert "PR_SET_CHILD_SUBREAPER" in server.log.text
    assert imports(server) == [server.pid]
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("WS1303 reload: the preloaded application stays as it is")
    server.wait_for_log("reloaded: 2 workers")
    assert imports(server) == [server.pid]


def test_with_the_reloader_each_worker_loads_for_itself(begin: Start, write: Callable[[str], object]) -> None:
    write(APP)
    server = begin("-w", "1", "--preload", "--reload")
    ready(server, 1)
    server.wait_for_log("WS1301 preload_app: ignored with reload")
    assert not of_role(server, "zygote")


def test_orphans_leave_no_zombies(begin: Start, write: Callable[[str], object]) -> None:
    write(APP)
    # A child's child, whose parent ends at once: the master inherits it, since it inherits the workers.
    config = (
        "import os, subprocess\n"
        "def post_fork(server, worker):\n"
        "    subprocess.run(['sh', '-c', '(exec sh -c true) & echo orphan $! >&2'])\n"
    )
    server = begin("-w", "1", "--preload", config=config)
    orphan = int(server.wait_for_log(r"orphan (\d+)")[1])
    ready(server, 1)
    wait_until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan has been waited for")
    assert all(is_alive(pid) for pid in children(server.pid))


def test_slots_have_places() -> None:
    pool = SlotPool(cells=1, slots=2)
    slots = [pool.take() for _ in range(3)]
    assert len(pool.boards) == 2
    for slot in slots:
        assert pool.slot(*pool.place(slot)) is slot


def test_a_fork_that_fails_keeps_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(zygote_process, "fork", refuse)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    before = os.listdir("/proc/self/fd")
    assert not zygote_process._spawn(theirs, 7, writer)
    assert os.listdir("/proc/self/fd") == before
    assert json.loads(ours.recv(4096)) == {
        "state": "fork_failed",
        "age": 7,
        "error": "Resource temporarily unavailable",
    }
    for fd in (reader, writer):
        os.close(fd)
    for sock in (ours, theirs):
        sock.close()


@pytest.mark.parametrize("unread", [False, True])
def test_the_end_of_a_killed_master_is_the_end_of_the_line(unread: bool) -> None:
    """With something unread the kernel reports a reset in place of the end of file."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if unread:
        theirs.send(b"{}")
    ours.close()
    assert zygote_process._receive(theirs) == ({}, [])
    theirs.close()


def test_its_last_answers_are_heard_though_it_has_exited_with_requests_unread() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    generation: Any = SimpleNamespace(number=1, pool=SlotPool(cells=1, slots=1))
    zygote = Zygote(0, ours, generation, logging.getLogger("test"), lambda pid: True)
    workers = [
        WorkerHandle(age=age, generation=1, spawned_at=0.0, timeout=30, graceful_timeout=30) for age in range(1, 3)
    ]
    for worker in workers:
        zygote.request(worker, (0, 0))
    theirs.send(json.dumps({"state": "loaded"}).encode())
    theirs.send(json.dumps({"state": "spawned", "age": 1, "pid": 4711}).encode())
    theirs.close()
    assert zygote.hear() == [Answer(workers[0], "spawned")]
    assert zygote.loaded
    assert workers[0].pid == 4711
    assert list(zygote.asked) == [2]
    for worker in workers:
        worker.close_pipes()
    zygote.close()


def test_requests_wait_while_the_line_is_full() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    generation: Any = SimpleNamespace(number=1, pool=SlotPool(cells=1, slots=1))
    zygote = Zygote(0, ours, generation, logging.getLogger("test"), lambda pid: True)
    workers = [
        WorkerHandle(age=age, generation=1, spawned_at=0.0, timeout=30, graceful_timeout=30) for age in range(1, 41)
    ]
    for worker in workers:
        zygote.request(worker, (0, 0))
    received = []
    while len(received) < 40:
        data, fds, _, _ = socket.recv_fds(theirs, 4096, 2, socket.MSG_DONTWAIT)
        received.append(json.loads(data)["age"])
        for fd in fds:
            os.close(fd)
        theirs.send(json.dumps({"state": "cancelled", "age": received[-1]}).encode())
        assert zygote.hear() == [Answer(workers[received[-1] - 1], "cancelled")]
    assert received == list(range(1, 41))
    assert not zygote.asked
    for worker in workers:
        assert worker.reader is not None
        worker.close_pipes()
    zygote.close()
    theirs.close()
