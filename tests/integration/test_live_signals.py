"""Signals to the master, with gunicorn's meanings: HUP, TTIN, TTOU, WINCH, USR1."""

from __future__ import annotations

import signal
from pathlib import Path

from load import Load
from rawclient import RawClient
from server import Server, Start, wait_until

VERSIONED = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    return [b"version {}"]
"""


def wait_for_workers(server: Server, number: int) -> set[int]:
    """Wait until exactly so many workers run (the first ones: until they are ready)."""
    server.wait_for_log(r"ready: \d+ workers?")
    wait_until(lambda: len(server.workers()) == number, f"{number} workers")
    return set(server.workers())


def body(server: Server) -> bytes:
    with RawClient(server.address) as client:
        return client.get("/", headers="Connection: close\r\n").body


def test_hup_starts_new_workers_with_new_code_and_loses_no_request(start: Start, tmp_path: Path) -> None:
    server = start("versioned:app", "-w", "2", files={"versioned.py": VERSIONED.format(1)})
    assert body(server) == b"version 1"
    before = wait_for_workers(server, 2)
    with Load(server.address, clients=4) as load:
        load.wait_for_more(50)
        (tmp_path / "versioned.py").write_text(VERSIONED.format(2))
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: not set(server.workers()) & before, "the old workers are retired")
        load.wait_for_more(50)
    assert load.lost == []
    assert {found for client in load.clients for found in client.bodies} == {b"version 1", b"version 2"}
    assert body(server) == b"version 2"
    wait_for_workers(server, 2)


def test_hup_lets_requests_in_flight_finish(start: Start) -> None:
    server = start("apps:app", "-w", "1")
    with RawClient(server.address) as client:
        client.request("/sleep?1")
        server.wait_for_log("sleeping 1")
        (old,) = server.workers()
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: set(server.workers()) - {old}, "a new worker")
        assert client.read_response().body == b"slept"
    wait_until(lambda: old not in server.workers(), "the old worker leaves")


def test_hup_reads_the_configuration_again(start: Start, tmp_path: Path) -> None:
    server = start("apps:app", "-c", "conf.py", files={"conf.py": "workers = 1\n"})
    wait_for_workers(server, 1)
    (tmp_path / "conf.py").write_text("workers = 3\nraw_env = ['CHANGED=yes']\n")
    server.send_signal(signal.SIGHUP)
    wait_for_workers(server, 3)
    with RawClient(server.address) as client:
        assert client.get("/").status == 200


def test_hup_with_a_broken_configuration_changes_nothing(start: Start, tmp_path: Path) -> None:
    server = start(
        "apps:app", "-c", "conf.py", files={"conf.py": "workers = 2\n"}, expect=(r"\[ERROR\]|\[WARNING\]|Traceback",)
    )
    before = wait_for_workers(server, 2)
    (tmp_path / "conf.py").write_text("workers = 'many'\n")
    with Load(server.address, clients=2) as load:
        load.wait_for_more(20)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(r"many")
        load.wait_for_more(20)
    assert load.lost == []
    assert set(server.workers()) == before


def test_hup_with_a_broken_application_keeps_serving(start: Start, tmp_path: Path) -> None:
    server = start(
        "versioned:app",
        *("-w", "2"),
        files={"versioned.py": VERSIONED.format(1)},
        expect=(r"\[(ERROR|WARNING|CRITICAL)\]|Traceback",),
    )
    before = wait_for_workers(server, 2)
    (tmp_path / "versioned.py").write_text("import does_not_exist_at_all\n")
    with Load(server.address, clients=2) as load:
        load.wait_for_more(20)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(r"does_not_exist_at_all")
        load.wait_for_more(20)
    assert load.lost == []
    assert before <= set(server.workers())
    assert body(server) == b"version 1"


def test_ttin_and_ttou_change_the_number_of_workers(start: Start) -> None:
    server = start("apps:app", "-w", "1")
    first = wait_for_workers(server, 1)
    server.send_signal(signal.SIGTTIN)
    assert first < wait_for_workers(server, 2)
    server.send_signal(signal.SIGTTIN)
    wait_for_workers(server, 3)
    server.send_signal(signal.SIGTTOU)
    wait_for_workers(server, 2)
    server.send_signal(signal.SIGTTOU)
    wait_for_workers(server, 1)
    with RawClient(server.address) as client:
        assert client.get("/").status == 200


def test_ttou_never_takes_the_last_worker(start: Start) -> None:
    server = start("apps:app", "-w", "1")
    before = wait_for_workers(server, 1)
    server.send_signal(signal.SIGTTOU)
    # Of two signals that a process finds at once the kernel delivers the lower number first, and that is SIGTTIN's.
    server.wait_for_log("SIGTTOU ignored: one worker is left")
    server.send_signal(signal.SIGTTIN)
    assert before < wait_for_workers(server, 2)


def test_ttou_under_load_loses_no_request(start: Start) -> None:
    server = start("apps:app", "-w", "3")
    wait_for_workers(server, 3)
    with Load(server.address, clients=4) as load:
        load.wait_for_more(50)
        server.send_signal(signal.SIGTTOU)
        wait_for_workers(server, 2)
        load.wait_for_more(50)
    assert load.lost == []


def test_a_worker_told_to_leave_while_it_starts_drops_no_request(start: Start) -> None:
    """TTOU comes before, while and after the new worker begins to accept."""
    server = start("apps:app", "-w", "1")
    wait_for_workers(server, 1)
    with Load(server.address, clients=3) as load:
        load.wait_for_more(10)
        for _ in range(12):
            server.send_signal(signal.SIGTTIN)
            wait_for_workers(server, 2)
            server.send_signal(signal.SIGTTOU)
            wait_for_workers(server, 1)
        load.wait_for_more(10)
    assert load.lost == []


def test_winch_retires_the_workers_and_keeps_the_master(start: Start) -> None:
    server = start("apps:app", "-w", "2")
    wait_for_workers(server, 2)
    server.send_signal(signal.SIGWINCH)
    wait_until(lambda: not server.workers(), "no worker is left")
    assert server.process.poll() is None
    with RawClient(server.address) as client:  # it waits in the listener
        client.request("/")
        server.send_signal(signal.SIGHUP)
        assert client.read_response().status == 200
    wait_for_workers(server, 2)


def test_usr1_reopens_the_logs(start: Start, tmp_path: Path) -> None:
    access, error = tmp_path / "access.log", tmp_path / "error.log"
    server = start("apps:app", "-w", "2", "--access-logfile", str(access), "--error-logfile", str(error))
    with RawClient(server.address) as client:
        assert client.get("/?before").status == 200
        assert client.get("/log?before").status == 200
    wait_until(lambda: "ready: 2 workers" in error.read_text(), "two workers")
    wait_until(lambda: "/?before" in access.read_text(), "the access log's line")
    access.rename(tmp_path / "access.1")
    error.rename(tmp_path / "error.1")
    server.send_signal(signal.SIGUSR1)
    wait_until(lambda: access.exists() and error.exists(), "new files")

    def line_is_in_the_new_files() -> bool:
        # Each worker reopens on its own, so a request may come a moment early.
        with RawClient(server.address) as client:
            assert client.get("/log?after").status == 200
        return "/log?after" in access.read_text() and "after" in error.read_text()

    wait_until(line_is_in_the_new_files, "the lines in the new files")
    assert "after" in (tmp_path / "access.1").read_text() or "before" in (tmp_path / "access.1").read_text()
    assert server.stop() == 0
    assert "ERROR" not in error.read_text()


def test_a_change_under_reload_is_picked_up(start: Start, tmp_path: Path) -> None:
    server = start("versioned:app", "--reload", files={"versioned.py": VERSIONED.format(1)})
    assert body(server) == b"version 1"
    (tmp_path / "versioned.py").write_text(VERSIONED.format("two"))
    wait_until(lambda: body(server) == b"version two", "the new code")


LATE = """
import os, signal
NUMBERS = [getattr(signal, "SIG" + name) for name in ("HUP", "TTIN", "TTOU", "USR1", "USR2", "WINCH")]

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid, write=os.write, numbers=NUMBERS):
        for number in numbers:
            kill(pid(), number)
        write(2, b"the last of %d\\n" % pid())

late = Late()
"""


def test_what_asks_for_something_does_no_harm_to_a_process_that_is_as_good_as_gone(start: Start) -> None:
    """The interpreter gives the signals their default before it lets go of the modules."""
    files = {"late.py": LATE + "from apps import app\n", "conf.py": "import late_too\n", "late_too.py": LATE}
    server = start("late:app", "-w", "1", "-c", "conf.py", files=files)
    (worker,) = wait_for_workers(server, 1)
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: worker not in server.workers(), "its end")
    server.wait_for_log(rf"the last of {worker}$")
    assert server.stop() == 0
    server.wait_for_log(rf"the last of {server.pid}$")


def test_a_storm_of_signals_does_no_harm(start: Start) -> None:
    server = start("apps:app", "-w", "2", expect=(r"\[WARNING\]",))
    wait_for_workers(server, 2)
    with Load(server.address, clients=2) as load:
        load.wait_for_more(10)
        for _ in range(5):
            for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGUSR1, signal.SIGTTOU, signal.SIGCHLD):
                server.send_signal(number)
        load.wait_for_more(50)
        wait_for_workers(server, 2)
    assert load.lost == []
