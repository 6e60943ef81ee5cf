"""Signals to the master from its first moment to its last, and those that are not its own (issue 12, part 6)."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Connect, Server, Start, is_alive, wait_until

# Coverage has code of its own before the server's first line and behind its last one.
pytestmark = pytest.mark.no_coverage
STOPS = ("TERM", "INT", "QUIT")
ALL_STOPS = pytest.mark.parametrize("name", STOPS)


def number_of(name: str) -> signal.Signals:
    return signal.Signals[f"SIG{name}"]


def ready(server: Server, workers: int = 1) -> list[int]:
    server.wait_for_log(rf"ready: {workers} workers?")
    return server.workers()


def nothing_is_left(server: Server) -> None:
    wait_until(lambda: not server.leftovers(), "no process is left", 5.0)
    for name in ("server.pid", "site.sock", "control.sock"):
        assert not (server.directory / name).exists(), name
    assert not list(server.directory.glob("server.pid*"))


# ---- the last moments ------------------------------------------------------------------------------------

# What a configuration file has registered, and what it holds, sends the signals at the end of the interpreter.
LAST = """
import atexit, os, signal
PID = os.getpid()
NUMBERS = [getattr(signal, "SIG" + name) for name in ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "WINCH")]

def send(where, kill=os.kill, pid=os.getpid, write=os.write, numbers=NUMBERS, master=PID):
    if pid() == master:
        for number in numbers:
            kill(master, number)
        write(2, b"sent by %s\\n" % where)

class Late:
    def __del__(self, send=send):
        send(b"the last object")

late = Late()
atexit.register(send, b"atexit")

def on_exit(server):
    send(b"on_exit")
"""


@ALL_STOPS
def test_no_signal_changes_the_status_of_a_master_that_has_stopped(start_unclassed: Start, name: str) -> None:
    server = start_unclassed(
        *("apps:app", "-c", "conf.py", "-p", "server.pid"),
        files={"conf.py": "import last\nfrom last import on_exit\n", "last.py": LAST},
        env={"PYTHONHASHSEED": "0"},  # a process of its own: one that is forked ends without the last collection
    )
    ready(server)
    assert server.stop(number_of(name)) == 0
    for where in ("on_exit", "atexit", "the last object"):
        assert f"sent by {where}" in server.log.text
    nothing_is_left(server)


@ALL_STOPS
def test_a_flood_of_stops_until_the_process_is_gone(start: Start, name: str) -> None:
    server = start("apps:app", "-p", "server.pid", "-b", "unix:site.sock", bind="none")
    ready(server)
    pause = threading.Event()
    for _ in range(20_000):
        if server.process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, number_of(name))
        pause.wait(0.0005)
    assert server.wait() == 0
    nothing_is_left(server)


def test_a_process_that_does_not_end_can_be_stopped(start_unclassed: Start) -> None:
    """A thread of the configuration file keeps the interpreter: later signals end it, with the status it has."""
    conf = "import threading\ndef when_ready(server):\n    threading.Thread(target=threading.Event().wait).start()\n"
    server = start_unclassed("apps:app", "-c", "conf.py", files={"conf.py": conf})
    ready(server)
    server.send_signal(signal.SIGTERM)
    server.wait_for_log(r"stopped \(pid")
    pause, began = threading.Event(), time.monotonic()
    while server.process.poll() is None and time.monotonic() < began + 15:
        server.send_signal(signal.SIGTERM)
        pause.wait(0.1)
    assert server.wait() == 0
    assert time.monotonic() - began > 2, "not at once: the interpreter has its time"


# ---- the first moments -----------------------------------------------------------------------------------

# Short sleeps: Python hears a signal that comes just before one only behind it.
STAY = "open('here', 'w').close()\n{0}import time\n{0}for _ in range(1200): time.sleep(0.05)\n"
HERE = "def {hook}(server):\n    " + STAY.format("    ")


@ALL_STOPS
@pytest.mark.parametrize("where", ["file", "on_starting", "when_ready", "twice"])
def test_a_start_that_is_told_to_stop_is_taken_back(start_unclassed: Start, name: str, where: str) -> None:
    conf = STAY.format("") if where == "file" else HERE.format(hook="when_ready" if where == "twice" else where)
    server = start_unclassed(
        *("apps:app", "-c", "conf.py", "-p", "server.pid", "-b", "unix:site.sock"),
        *("--control-socket", "control.sock"),
        bind="none",
        files={"conf.py": conf},
    )
    wait_until((server.directory / "here").exists, "it starts")
    for _ in range(10 if where == "twice" else 1):
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(number_of(name))
    assert server.wait() == 0
    nothing_is_left(server)


def test_a_stop_at_any_moment_of_the_start_leaves_nothing(start_unclassed: Start) -> None:
    pause = threading.Event()
    for step in range(24):
        server = start_unclassed(
            *("apps:app", "-p", "server.pid", "-b", "unix:site.sock", "--control-socket", "control.sock"),
            bind="none",
            wrap=("/usr/bin/env",),  # from the begin of the interpreter on
            # The interpreter's own, of SIGINT.
            expect=(r"Traceback \(most recent call last\)", "init_import_site"),
        )
        pause.wait(step * 0.009)
        for _ in range(1 + step % 2):
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(number_of(STOPS[step % 3]))
        # Before there is a handler there is no server either: the interpreter is killed, or interrupted.
        try:
            status = server.wait()
        except AssertionError as error:
            with open(f"/proc/{server.pid}/status") as file:
                signals = [line.strip() for line in file if line.startswith("Sig")]
            raise AssertionError(f"step {step}, {signals}") from error
        # 1 is Python's, for an interrupt while it imports its site module.
        assert status in (0, 1, 130, -signal.SIGTERM, -signal.SIGQUIT, -signal.SIGINT)
        nothing_is_left(server)


def test_what_is_asked_for_before_the_loop_runs_is_done_after_it(start_unclassed: Start) -> None:
    """From the pid file on anybody may send anything: the hooks do."""
    conf = """
import os, signal, time

def send(*names):
    assert open("server.pid").read().strip() == str(os.getpid())
    for name in names:
        os.kill(os.getpid(), getattr(signal, name))

def on_starting(server):
    send("SIGUSR1", "SIGHUP")

def when_ready(server):
    send("SIGUSR1", "SIGTTIN")

def on_reload(server):
    open("reloaded", "a").write("once ")
"""
    server = start_unclassed(*("apps:app", "-c", "conf.py", "-p", "server.pid"), bind="tcp", files={"conf.py": conf})
    server.wait_for_log("logs reopened")
    server.wait_for_log("SIGTTIN: 2 workers wanted")
    server.wait_for_log(r"reloaded: 1 worker")
    assert (server.directory / "reloaded").read_text() == "once "
    with RawClient(server.address) as client:
        assert client.get("/").status == 200


def test_an_upgrade_that_is_asked_for_before_the_loop_runs(start_unclassed: Start) -> None:
    conf = """
import os, signal

def when_ready(server):
    if not os.path.exists("once"):
        open("once", "w").close()
        os.kill(os.getpid(), signal.SIGUSR2)
"""
    server = start_unclassed(*("apps:app", "-c", "conf.py", "-p", "server.pid"), bind="tcp", files={"conf.py": conf})
    server.wait_for_log("serves; this one shuts down")
    assert server.process.wait(15) == 0
    new = int((server.directory / "server.pid").read_text())
    assert is_alive(new)
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    os.kill(new, signal.SIGTERM)
    nothing_is_left(server)


# ---- signals that are not the server's -------------------------------------------------------------------

NUMBERS = [signal.SIGRTMIN, signal.SIGRTMIN + 3, signal.SIGRTMAX - 1, signal.SIGALRM, signal.SIGVTALRM]

CATCHING = """
import os, signal
NUMBERS = {numbers}

def note(number, frame):
    with open("caught", "a") as file:
        print({who!r}, os.getpid(), number, file=file)

for number in NUMBERS:
    signal.signal(number, note)
""".format(numbers=[int(number) for number in NUMBERS], who="{who}")


def caught(server: Server, pid: int) -> set[int]:
    path = server.directory / "caught"
    rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return {int(number) for _, by, number in rows if int(by) == pid}


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_signal_that_the_users_code_catches_is_its_own(start: Start, preload: bool) -> None:
    server = start(
        *("catching:app", "-c", "conf.py", *(["--preload"] if preload else [])),
        files={
            "conf.py": CATCHING.replace("{who}", "conf") + "workers = 2\n",
            "catching.py": CATCHING.replace("{who}", "app") + "from apps import app\n",
        },
    )
    workers = ready(server, 2)
    everybody = [server.pid, *server.workers()]
    for pid in everybody:
        for number in NUMBERS:
            os.kill(pid, number)
    for pid in everybody:
        wait_until(lambda pid=pid: caught(server, pid) == set(map(int, NUMBERS)), f"{pid} has caught all")
    for _ in range(6):
        with RawClient(server.address) as client:
            assert client.get("/").status == 200
    assert server.workers() == workers
    # And it is not deaf to its own.
    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("SIGTTIN: 3 workers wanted")


def test_a_storm_of_signals_hides_none(start_unclassed: Start) -> None:
    """More numbers than the wakeup socket holds come while the master is in a hook."""
    conf = """
import os, signal
pid = os.getpid()
signal.signal(signal.SIGRTMIN, lambda number, frame: None)

def nworkers_changed(server, new, old):
    if new == 2 and not os.path.exists("once"):
        open("once", "w").close()
        for _ in range(3000):
            os.kill(pid, signal.SIGRTMIN)
            os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGTTIN)
"""
    server = start_unclassed("apps:app", "-c", "conf.py", files={"conf.py": conf + "workers = 1\n"})
    ready(server)
    mark = len(server.log.lines)
    os.kill(server.pid, signal.SIGTTIN)
    server.wait_for_log("SIGTTIN: 3 workers wanted", after=mark)
    server.wait_for_log("reloaded: 1 worker", after=mark)
    assert server.log.text.count("logs reopened") == 1
    assert server.stop() == 0


def test_a_hook_that_takes_the_wakeup_descriptor(start: Start) -> None:
    """asyncio does, and leaves none when its loop is closed."""
    conf = """
import asyncio, signal

def take(*args):
    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGALRM, print)
        loop.remove_signal_handler(signal.SIGALRM)
    asyncio.run(main())
    signal.set_wakeup_fd(-1)

when_ready = pre_fork = child_exit = take
"""
    server = start("apps:app", "-c", "conf.py", files={"conf.py": conf})
    (worker,) = ready(server)
    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: server.workers() not in ([], [worker]), "another worker")
    began = time.monotonic()
    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("SIGTTIN: 2 workers wanted", 5.0)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded")
    assert server.stop() == 0
    assert time.monotonic() - began < 15


def test_what_is_for_the_master_does_not_kill_workers_that_boot(start: Start, connect: Connect, tmp_path: Path) -> None:
    """``pkill -USR1 wsgiserv`` (logrotate) and ``pkill -HUP wsgiserv`` reach everybody."""
    server = start("apps:app", "-w", "2")
    ready(server, 2)
    pause = threading.Event()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        os.killpg(server.pid, signal.SIGUSR1)
        os.killpg(server.pid, signal.SIGHUP)
        pause.wait(0.03)
    client = connect(server.address)
    assert client.get("/").status == 200
    server.check()
