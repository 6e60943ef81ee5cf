"""The master with real forks, signals and pipes; the workers are fakes that obey the contract."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from server import Server, Start, children, environment, is_alive, title_of, wait_until

FAKE_SERVER = Path(__file__).parents[1] / "support" / "fakeserver.py"


def ready(server: Server, count: int) -> list[int]:
    """Wait for the line that says that all are up; return the workers."""
    server.wait_for_log(rf"ready: {count} workers? in \d+\.\d\d s")
    found = server.workers()
    assert len(found) == count
    return found


def errors(server: Server) -> list[str]:
    return [line for line in server.log.lines if re.search(r"\[(ERROR|CRITICAL)\]|Traceback", line)]


# ---- start and stop ------------------------------------------------------------------------------------


def test_the_start_says_who_listens_where_in_at_most_five_lines(begin: Start) -> None:
    server = begin("-w", "3", "--log-level", "info", "-b", "127.0.0.1:0", "-b", "unix:s.sock", "-n", "shop")
    pids = ready(server, 3)
    lines = [line for line in server.log.lines if "serves for generation" not in line]
    assert len(lines) <= 5
    text = "\n".join(lines)
    assert re.search(rf"wsgiserv \d\S* .*pid {server.pid}.* 3 sync workers for fake:app", text)
    assert re.search(r"listening on http://127\.0\.0\.1:[1-9]\d*, unix:/\S+/s\.sock", text)
    assert title_of(server.pid) == "wsgiserv: master [shop]"
    assert {title_of(pid) for pid in pids} == {"wsgiserv: worker [shop]"}
    assert server.stop() == 0
    assert errors(server) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_leaves_nothing(begin: Start, tmp_path: Path, number: int) -> None:
    server = begin("-w", "2", "-b", "unix:s.sock", "-p", "pid")
    ready(server, 2)
    assert (tmp_path / "pid").read_text() == f"{server.pid}\n"
    assert server.stop(number) == 0
    assert not (tmp_path / "s.sock").exists()
    assert not (tmp_path / "pid").exists()
    assert errors(server) == []


def test_workers_leave_through_the_interpreters_exit_and_clean_up_nothing_of_the_masters(
    begin: Start, tmp_path: Path
) -> None:
    config = "def on_exit(server):\n    import os\n    print('on_exit in', os.getpid(), flush=True)\n"
    server = begin("-w", "2", "-b", "unix:s.sock", "-p", "pid", config=config)
    pids = ready(server, 2)
    os.kill(pids[0], signal.SIGTERM)
    server.out.wait_for(f"atexit in {pids[0]}")
    assert (tmp_path / "s.sock").exists()
    assert (tmp_path / "pid").exists()
    wait_until(lambda: len(server.workers()) == 2, "it is replaced")
    assert server.stop() == 0
    assert server.out.text.count("on_exit in") == 1
    assert f"on_exit in {server.pid}" in server.out.text
    assert f"atexit in {server.pid}" in server.out.text


def test_a_graceful_stop_kills_who_does_not_leave(begin: Start) -> None:
    server = begin("--graceful-timeout", "0.2", behaviour="stubborn")
    ready(server, 1)
    begun = time.monotonic()
    assert server.stop() == 0
    assert 1.0 < time.monotonic() - begun < 4.0
    assert "SIGKILL" in server.log.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_makes_a_graceful_stop_fast(begin: Start, number: int) -> None:
    server = begin("--graceful-timeout", "60", behaviour="stubborn")
    ready(server, 1)
    server.send_signal(signal.SIGTERM)
    server.wait_for_log("stopping gracefully")
    begun = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - begun < 2.5


def test_a_stop_while_the_workers_boot(begin: Start, tmp_path: Path) -> None:
    config = "def post_fork(server, worker):\n    import time\n    time.sleep(60)\n"
    server = begin("-w", "2", "-b", "unix:s.sock", "-p", "pid", config=config)
    wait_until(lambda: len(server.workers()) == 2, "two workers are forked")
    assert server.stop() == 0
    assert not (tmp_path / "s.sock").exists()
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_master_starts(begin: Start, tmp_path: Path, number: int) -> None:
    config = (
        "import time\n\ndef when_ready(server):\n    print('starting', flush=True)\n"
        "    for _ in range(300): time.sleep(0.2)\n"  # short: a signal just before a sleep is heard behind it
        "def on_starting(server):\n    assert server.pid\n"
    )
    server = begin("-b", "unix:s.sock", "-p", "pid", config=config)
    server.out.wait_for("starting")
    assert server.stop(number) == 0
    assert not (tmp_path / "s.sock").exists()
    assert not (tmp_path / "pid").exists()


def test_the_workers_learn_that_the_master_is_gone(begin: Start) -> None:
    server = begin("-w", "2")
    pids = ready(server, 2)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    wait_until(lambda: not any(map(is_alive, pids)), "the workers leave", 2.0)


# ---- supervision ---------------------------------------------------------------------------------------


def test_a_killed_worker_is_back_at_once_and_its_death_is_told(begin: Start) -> None:
    server = begin("-w", "2")
    pids = ready(server, 2)
    os.kill(pids[0], signal.SIGKILL)
    begun = time.monotonic()
    wait_until(lambda: set(server.workers()) - set(pids), "a new worker")
    assert time.monotonic() - begun < 0.5
    server.wait_for_log(rf"worker {pids[0]} \(age \d\) was killed by SIGKILL after \d+\.\d s and 5 requests")
    assert pids[1] in server.workers()


def test_a_silent_worker_is_aborted_then_killed_and_its_request_is_named(begin: Start) -> None:
    config = "import signal\ndef post_fork(server, worker):\n    signal.signal(signal.SIGABRT, signal.SIG_IGN)\n"
    server = begin("--timeout", "1", behaviour="hang", config=config)
    (pid,) = ready(server, 1)
    begun = time.monotonic()
    server.wait_for_log(rf"WS1203 worker {pid} has not responded for 1 s \(timeout\): sending SIGABRT")
    server.wait_for_log(rf'in worker {pid} for \d\.\d s: "GET /slow\\x1b HTTP/1\.1" from 192\.0\.2\.1.* id-1')
    wait_until(lambda: not is_alive(pid), "the silent worker is gone")
    assert 1.5 < time.monotonic() - begun < 4
    wait_until(server.workers, "it is replaced")


def test_timeout_0_waits_for_ever(begin: Start) -> None:
    server = begin("--timeout", "0", behaviour="hang")
    pids = ready(server, 1)
    server.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(server.workers()) == 2, "the master lives and turns")
    assert pids[0] in server.workers()
    assert errors(server) == []


def test_a_crash_loop_is_no_fork_storm(begin: Start) -> None:
    server = begin("--log-level", "debug", behaviour="die-later")
    server.wait_for_log("exited with status 7")
    deadline = time.monotonic() + 1.5
    wait_until(lambda: time.monotonic() > deadline, "a while has passed")
    assert 3 < server.log.text.count("exited with status 7") < 15
    assert server.stop() == 0


def test_a_hooks_own_child_is_the_hooks(begin: Start) -> None:
    config = (
        "import subprocess\n"
        "def when_ready(server):\n    server.helper = subprocess.Popen(['sh', '-c', 'exit 5'])\n"
        "def nworkers_changed(server, new, old):\n"
        "    if old: print('helper', server.helper.wait(), flush=True)\n"
    )
    server = begin(config=config)
    ready(server, 1)
    server.send_signal(signal.SIGTTIN)
    server.out.wait_for("helper 5")


# ---- boots that fail -----------------------------------------------------------------------------------


def test_an_application_that_cannot_be_loaded_ends_the_start_with_status_4(begin: Start) -> None:
    begun = time.monotonic()
    server = begin("-w", "4", "-b", "unix:s.sock", "-p", "pid", behaviour="fail 4")
    assert server.wait() == 4
    assert time.monotonic() - begun < 10  # no second try, no pause
    assert server.log.text.count("Traceback of the user") == 1
    assert server.log.text.count("it is broken") == 1
    assert sorted(os.listdir(server.directory)) == ["behaviour", "conf.py"]


def test_workers_that_die_while_booting_end_the_start_with_status_3(begin: Start) -> None:
    server = begin("-w", "4", behaviour="die")
    assert server.wait() == 3
    assert "was killed by SIGSEGV while it was booting" in server.log.text
    assert server.log.text.count("SIGSEGV after") <= 6


def test_a_fleet_that_was_ready_survives_code_that_cannot_boot(begin: Start, tmp_path: Path) -> None:
    server = begin("-w", "2")
    pids = ready(server, 2)
    (tmp_path / "behaviour").write_text("fail 4")
    os.kill(pids[0], signal.SIGKILL)
    server.wait_for_log(r"\[ERROR\] (?:WS\d+ )?worker \d+ cannot boot: it is broken")
    wait_until(lambda: server.log.text.count("cannot boot") >= 2, "it tries again")
    assert server.log.text.count("Traceback of the user") == 1
    assert pids[1] in server.workers()
    (tmp_path / "behaviour").write_text("ready")
    wait_until(lambda: server.log.text.count("serves for generation 1") == 3, "it recovers")


@pytest.mark.parametrize("hook", ["on_starting(server)", "pre_fork(server, worker)"])
def test_hooks_that_may_forbid_the_start(begin: Start, hook: str) -> None:
    server = begin("-b", "unix:s.sock", "-p", "pid", config=f"def {hook}:\n    raise RuntimeError('no way')\n")
    assert server.wait() == 3
    name = hook.partition("(")[0]
    assert f"BootError: the hook {name} raised RuntimeError: no way" in server.log.text
    assert "Traceback" in server.log.text
    assert sorted(os.listdir(server.directory)) == ["behaviour", "conf.py"]


# ---- reload --------------------------------------------------------------------------------------------


def test_hup_replaces_the_workers_with_the_new_configuration(begin: Start, tmp_path: Path) -> None:
    config = "workers = 2\nraw_env = ['COLOUR=red']\n" + HOOKS
    server = begin(config=config)
    old = ready(server, 2)
    (tmp_path / "conf.py").write_text("workers = 3\nproc_name = 'next'\n" + HOOKS)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"reloaded: 3 workers in \d+\.\d\d s; the old ones retire")
    wait_until(lambda: not set(old) & set(server.workers()), "the old ones retire")
    assert len(server.workers()) == 3, (server.workers(), server.out.text)
    assert title_of(server.pid) == "wsgiserv: master [next]"
    said = server.out.lines
    assert "nworkers_changed 2 None" in said
    assert "nworkers_changed 3 2" in said
    assert said.index("on_reload next") < said.index("pre_fork 3")
    assert [line for line in said if line.startswith("post_fork")] == ["post_fork red"] * 2 + ["post_fork None"] * 3
    assert errors(server) == []


# One write for a line: master and workers share the pipe.
HOOKS = """
import os
def say(*words): os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def on_reload(server): say("on_reload", server.proc_name)
def nworkers_changed(server, new, old): say("nworkers_changed", new, old)
def pre_fork(server, worker): say("pre_fork", worker.age)
def post_fork(server, worker): say("post_fork", os.environ.get("COLOUR"))
def child_exit(server, worker): say("child_exit", worker.pid)
"""


@pytest.mark.parametrize("behaviour", ["fail 4", "die"])
def test_hup_with_code_that_cannot_boot_keeps_the_old_workers(begin: Start, tmp_path: Path, behaviour: str) -> None:
    server = begin("-w", "2", "-b", "unix:s.sock")
    old = ready(server, 2)
    (tmp_path / "behaviour").write_text(behaviour)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"reload failed; still running the old code and settings")
    wait_until(lambda: server.workers() == old, "the old ones, and nobody else")
    (tmp_path / "behaviour").write_text("ready")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: 2 workers")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("workers = -1\n", "workers"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("bind = 'unix:no/such/dir'\n", "does not exist"),
    ],
)
def test_hup_with_a_bad_configuration_changes_nothing(begin: Start, tmp_path: Path, config: str, said: str) -> None:
    server = begin(config="bind = 'unix:s.sock'\nworkers = 2\n")
    old = ready(server, 2)
    (tmp_path / "conf.py").write_text(config)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(rf"\[ERROR\] (?:WS\d+ )?reload failed; still running.*|{said}")
    server.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(server.workers()) == 3, "the master goes on")
    assert set(old) <= set(server.workers())
    assert said in server.log.text
    assert (tmp_path / "s.sock").exists()


def test_hup_with_another_bind_moves_and_keeps_what_is_unchanged(begin: Start, tmp_path: Path) -> None:
    server = begin(behaviour="accept", config="bind = ['unix:a.sock', 'unix:b.sock']\n")
    ready(server, 1)
    inode = (tmp_path / "a.sock").stat().st_ino
    (tmp_path / "conf.py").write_text("bind = ['unix:a.sock', 'unix:c.sock']\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded")
    wait_until(lambda: not (tmp_path / "b.sock").exists(), "the old socket's file is removed")
    assert (tmp_path / "a.sock").stat().st_ino == inode
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(tmp_path / "c.sock"))
        assert client.recv(100).startswith(b"2 ")
    assert server.stop() == 0
    assert not list(tmp_path.glob("*.sock"))


def test_a_hup_during_a_hup_comes_after_it(begin: Start) -> None:
    server = begin("-w", "2")
    ready(server, 2)
    for _ in range(2):
        server.send_signal(signal.SIGHUP)
    # two in one turn of the loop may be one
    server.wait_for_log("reloaded: 2 workers")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.text.count("reloaded: 2 workers") >= 2, "the second reload")
    wait_until(lambda: len(server.workers()) == 2, "two workers in the end")


# ---- other signals -------------------------------------------------------------------------------------


def test_ttin_and_ttou(begin: Start) -> None:
    server = begin(config=HOOKS)
    (first,) = ready(server, 1)
    server.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(server.workers()) == 2, "one more")
    server.wait_for_log("serves for generation", after=len(server.log.lines) - 1)
    server.send_signal(signal.SIGTTOU)
    wait_until(lambda: len(server.workers()) == 1, "one fewer")
    server.send_signal(signal.SIGTTOU)
    server.wait_for_log("one worker is left")
    assert len(server.workers()) == 1
    assert {"nworkers_changed 2 1", "nworkers_changed 1 2"} <= set(server.out.lines)
    wait_until(lambda: any(line.startswith("child_exit") for line in server.out.lines), f"child_exit, {first}")


@pytest.mark.parametrize("back", [signal.SIGHUP, signal.SIGTTIN])
def test_winch_retires_the_workers_and_keeps_the_master(begin: Start, back: int) -> None:
    server = begin("-w", "2")
    ready(server, 2)
    server.send_signal(signal.SIGWINCH)
    wait_until(lambda: not server.workers(), "all retire")
    server.send_signal(back)
    wait_until(lambda: len(server.workers()) == (2 if back == signal.SIGHUP else 1), "they are back")
    assert errors(server) == []


def test_usr1_reopens_the_log_in_master_and_workers(begin: Start, tmp_path: Path) -> None:
    config = "import signal\ndef worker_int(worker): pass\n"
    server = begin("--log-file", "log", "-w", "1", config=config)
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and "ready: 1 worker" in log.read_text(), "it starts")
    log.rename(tmp_path / "log.1")
    server.send_signal(signal.SIGUSR1)
    wait_until(log.exists, "a new log")
    (worker,) = server.workers()
    inode = log.stat().st_ino

    def opened() -> bool:
        return any(os.stat(f"/proc/{worker}/fd/{fd}").st_ino == inode for fd in os.listdir(f"/proc/{worker}/fd"))

    wait_until(opened, "the worker writes into the new log")


def test_usr2_without_a_known_command_says_so_and_serves_on(begin: Start) -> None:
    server = begin()
    pids = ready(server, 1)
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log(r"\[ERROR\] WS1320 upgrade: impossible")
    assert server.workers() == pids


def test_a_hook_that_raises_is_named_and_does_no_harm(begin: Start) -> None:
    # on_starting, when_ready, post_fork and post_worker_init are security checks: those stop the start.
    names = ["nworkers_changed(server, new, old)", "child_exit(server, worker)", "on_reload(server)", "on_exit(server)"]
    server = begin(config="\n".join(f"def {name}:\n    raise SystemExit('oops')\n" for name in names))
    ready(server, 1)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("the hook child_exit raised SystemExit: oops; the server goes on")
    assert server.stop() == 0
    for name in names:
        assert f"the hook {name.partition('(')[0]} raised SystemExit: oops" in server.log.text


# ---- sockets, pid file, daemon -------------------------------------------------------------------------


def test_a_port_in_use_is_one_message_with_its_holder(begin: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = begin("-b", f"127.0.0.1:{port}", "-p", "pid")
        assert server.wait() == 2
    (line,) = server.log.lines
    assert f"127.0.0.1:{port} is in use: pid {os.getpid()} (" in line
    assert not (server.directory / "pid").exists()


def test_sockets_of_the_service_manager_go_before_bind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        (tmp_path / "behaviour").write_text("accept")
        command = [sys.executable, str(FAKE_SERVER), "-b", "unix:unused.sock", "fake:app"]
        # sets LISTEN_PID to its own id and becomes the server, as systemd does
        become = (
            f"import os; os.dup2({given.fileno()}, 3); os.environ.update(LISTEN_FDS='1', "
            f"LISTEN_PID=str(os.getpid())); os.execv({sys.executable!r}, {command!r})"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", become],
            cwd=tmp_path,
            pass_fds=[given.fileno()],
            stderr=subprocess.PIPE,
            env=environment({}),
        )
        try:
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.settimeout(10)
                assert client.recv(100).startswith(b"1 ")
            assert not (tmp_path / "unused.sock").exists()
        finally:
            process.terminate()
            _, said = process.communicate(timeout=10)
    assert process.returncode == 0
    assert b"sockets of the service manager; bind is not used" in said


def test_a_daemon_goes_to_the_background_when_it_is_up(begin: Start, tmp_path: Path) -> None:
    server = begin("-D", "-w", "2", "-p", "pid", "--log-file", "log")
    assert server.wait() == 0
    pid = int((tmp_path / "pid").read_text())
    try:
        # ready, not only forked
        assert "serves for generation 1" in (tmp_path / "log").read_text()
        wait_until(lambda: len(children(pid)) == 2, "its workers")
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(stat[3]) != server.pid, "a session of its own"
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {"/dev/null"}
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), "it stops")
    wait_until(lambda: not (tmp_path / "pid").exists(), "its pid file is removed")


@pytest.mark.parametrize(("behaviour", "status"), [("fail 4", 4), ("die", 3)])
def test_a_daemon_that_cannot_start_says_so_on_the_terminal(begin: Start, behaviour: str, status: int) -> None:
    server = begin("-D", "-p", "pid", "--log-file", "log", behaviour=behaviour)
    assert server.wait() == status
    assert ("Traceback of the user" if status == 4 else "SIGSEGV") in server.log.text
    assert not (server.directory / "pid").exists()


def test_a_daemon_that_cannot_bind_says_so_on_the_terminal(begin: Start) -> None:
    server = begin("-D", "-b", "unix:no/such/s.sock", "--log-file", "log")
    assert server.wait() == 2
    assert "ConfigError: bind = 'unix:no/such/s.sock'" in server.log.text
