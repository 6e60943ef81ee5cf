"""wsgiservctl against a server's control socket: each command, exit statuses, messages, finding the server."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from server import ROOT, environment

from wsgiserv.ctl import commands as ctl
from wsgiserv.ctl import find
from wsgiserv.master.status import LastReload, ServerFacts, status_line, status_of
from wsgiserv.master.worker_handle import WorkerHandle
from wsgiserv.scoreboard import CONNECTIONS, ERRORS, REQUESTS, Scoreboard, SlotFigures

PID = os.getpid()

Answer = Callable[[dict[str, Any]], "dict[str, Any] | bytes | None"]


class Fake:
    """A server in a thread: one request a connection, answered by ``answer`` (None hangs up)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[dict[str, Any]] = []
        self.answer: Answer = lambda request: {"ok": True, "reason": "accepted"}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._wake, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._end], [], [])
            if self._end in ready:
                return
            client, _ = self._listener.accept()
            with client, client.makefile("rb") as file:
                client.settimeout(5)
                line = file.readline()
                if not line:
                    continue  # it has only looked whether somebody is here
                self.asked.append(json.loads(line))
                reply = self.answer(self.asked[-1])
                if isinstance(reply, dict):
                    reply = json.dumps(reply).encode() + b"\n"
                if reply is not None:
                    try:
                        client.sendall(reply)
                    except BrokenPipeError:
                        pass
                elif self.answer is SILENCE:
                    select.select([self._end, client], [], [], 5)

    def close(self) -> None:
        self._wake.close()
        self._thread.join(5)
        self._end.close()
        self._listener.close()


def SILENCE(request: dict[str, Any]) -> None:
    """An answer that does not come."""


class Said(NamedTuple):
    status: int
    out: str
    err: str


Ctl = Callable[..., Said]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory that is searched."""
    monkeypatch.setattr(find, "directories_to_search", lambda environ, uid: [str(tmp_path)])
    return tmp_path


@pytest.fixture
def run(directory: Path, capsys: pytest.CaptureFixture[str]) -> Ctl:
    def run(*argv: str) -> Said:
        status = ctl.main(argv)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Said(status, out, err)

    return run


@pytest.fixture
def make(directory: Path) -> Iterator[Callable[[str], Fake]]:
    made: list[Fake] = []

    def make(name: str) -> Fake:
        made.append(Fake(directory / name))
        return made[-1]

    yield make
    for fake in made:
        fake.close()


@pytest.fixture
def fake(make: Callable[[str], Fake]) -> Fake:
    return make(f"{PID}.sock")


# ---- each command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "request_", "said"),
    [
        ("reload", {"command": "reload", "wait": False}, "reload started; see the result with 'wsgiservctl status'"),
        ("reload --wait", {"command": "reload", "wait": True}, "reloaded"),
        ("scale 5", {"command": "scale", "wait": False, "count": 5}, "5 workers are wanted"),
        ("scale 5 --wait", {"command": "scale", "wait": True, "count": 5}, "5 workers serve"),
        ("retire 77 --wait", {"command": "retire", "wait": True, "pid": 77}, "worker 77 has been replaced"),
        ("retire 77", {"command": "retire", "wait": False, "pid": 77}, "worker 77 is to be replaced"),
        ("upgrade", {"command": "upgrade", "wait": False}, "upgrade started; see the result with 'wsgiservctl status'"),
        ("upgrade --wait", {"command": "upgrade", "wait": True}, "upgraded"),
        ("stop", {"command": "stop", "wait": False, "now": False}, "the server is stopping"),
        ("stop --now", {"command": "stop", "wait": False, "now": True}, "the server is stopping"),
        ("trace 77", {"command": "trace", "wait": True, "pid": 77}, ""),
        ("reopen-logs", {"command": "reopen_logs", "wait": False}, "logs reopened"),
    ],
)
def test_each_command(fake: Fake, run: Ctl, argv: str, request_: dict[str, Any], said: str) -> None:
    done = run(*argv.split())
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(said)
    assert fake.asked == [request_]
    # The server has something to say about it.
    fake.answer = lambda request: {"ok": True, "reason": "4 workers\nin \x1b[31m0.2 s"}
    done = run(*argv.split())
    if argv.split()[0] not in ("stop", "reopen-logs"):
        assert done.out.removeprefix(f"{said}: ") == "4 workers\nin \\x1b[31m0.2 s\n"
    assert (done.status, done.err) == (0, "")
    # It says no.
    fake.answer = lambda request: {"ok": False, "error": "SyntaxError: invalid syntax\n  (gun.py, line 3)\x1b"}
    assert run(*argv.split()) == (
        1,
        "",
        f"wsgiservctl: {argv.split()[0]}: SyntaxError: invalid syntax\n  (gun.py, line 3)\\x1b\n",
    )


def test_stop_is_done_when_the_server_hangs_up(fake: Fake, run: Ctl) -> None:
    fake.answer = lambda request: None
    assert run("stop") == (0, "the server is stopping\n", "")
    failed = run("reload", "--wait")
    assert failed.status == 1
    assert "the server has exited" in failed.err


_ENDS = """
import socket, sys, time
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("listens", flush=True)
    client, _ = listener.accept()
    client.recv(1000)
    client.sendall(b'{"ok": true, "reason": ""}\\n')
    client.close()
sys.stdin.read()
"""


def test_stop_waits_for_the_process(run: Ctl, directory: Path) -> None:
    path = directory / "other.sock"
    with subprocess.Popen(
        [sys.executable, "-c", _ENDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        server.stdout.readline()
        late = run("--socket", str(path), "stop", "--wait", "--timeout", "0.1")
        assert late.status == 1
        assert f"pid {server.pid} still runs after 0.1 s" in late.err
        assert f"wsgiservctl --pid {server.pid} stop --now" in late.err
    path.unlink()
    with subprocess.Popen(
        [sys.executable, "-c", _ENDS, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert run("--socket", str(path), "stop", "--wait") == (0, "stopped\n", "")
        assert server.wait(0) == 0  # it had ended already


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("reload --wait", "not done after 0.05 s; it goes on. Type: wsgiservctl"),
        ("upgrade --wait", "not done after 0.05 s; it goes on. Type: wsgiservctl"),
        ("status", "no answer within 0.05 s. The master is stopped or very busy"),
        ("trace 3", "no answer within 0.05 s"),
        ("scale 3 --wait", "not done after 0.05 s; it goes on"),
    ],
)
def test_an_answer_that_is_late(fake: Fake, run: Ctl, argv: str, said: str) -> None:
    fake.answer = SILENCE
    done = run("--timeout", "0.05", *argv.split())
    assert done.status == 1
    assert said in done.err


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n", b"[]\n", b'{"ok": 1}\n', b"{}\n", b"[" * 50_000 + b"\n", b"\xff\n"]
)
def test_something_else_listens(fake: Fake, run: Ctl, reply: bytes) -> None:
    fake.answer = lambda request: reply
    done = run("status")
    assert done.status == 2
    assert "is no wsgiserv's control socket" in done.err


# ---- status ----------------------------------------------------------------------------------------------


def sample() -> dict[str, Any]:
    """Return the figures of a server as the master makes them."""
    board = Scoreboard(3, 8)
    workers = []
    for index, age in enumerate((7, 3, 8)):
        slot = board.slots[index]
        handle = WorkerHandle(age=age, generation=2, spawned_at=100.0, timeout=30, graceful_timeout=30, pid=500 + age)
        handle.slot = slot
        slot.words[REQUESTS], slot.words[ERRORS], slot.words[CONNECTIONS] = 100 * age, age, 5
        workers.append(handle)
    _, serving, retiring = workers
    serving.ready_at = retiring.ready_at = 101.0
    retiring.term_at = 150.0
    serving.recycle(reason="it is large", now=120.0)
    serving.slot.begin(0, 188.0, b"10.0.0.1", b"r-1", b"GET /slow\x1b HTTP/1.1")
    serving.slot.begin(1, 199.0, b"", b"", b"GET / HTTP/1.1")
    gone = SlotFigures(requests=1000, errors=1)
    return status_of(
        ServerFacts(
            pid=499,
            started_at=100.0,
            state="running",
            application="hello:app",
            bind=["http://127.0.0.1:8000", "unix:/run/hello.sock"],
            generation=2,
            wanted=2,
            last_reload=LastReload(False, "SyntaxError: invalid syntax\n  gun.py, line 3", 140.0),
            gone=gone,
        ),
        workers,
        now=200.0,
        wall=1_800_000_000.0,
        memory=lambda pid: pid << 20,
    )


def test_the_figures() -> None:
    status = json.loads(json.dumps(sample()))
    server = status["server"]
    assert server["workers"] == {"wanted": 2, "serving": 1, "booting": 1, "retiring": 1}
    assert (server["requests"], server["errors"]) == (1000 + 1800, 1 + 18)
    assert (server["connections"], server["in_flight"]) == (15, 2)
    assert (server["started"], server["uptime_s"]) == ("2027-01-15T07:58:20+00:00", 100.0)
    assert server["last_reload"] == {
        "ok": False,
        "reason": "SyntaxError: invalid syntax\n  gun.py, line 3",
        "at": "2027-01-15T07:59:00+00:00",
        "age_s": 60.0,
    }
    rows = status["workers"]
    assert [row["age"] for row in rows] == [3, 7, 8]
    assert [(row["state"], row["since_s"]) for row in rows] == [
        ("recycling", 80.0),
        ("booting", 100.0),
        ("retiring", 50.0),
    ]
    assert rows[0]["in_flight"] == [
        {"request_line": "GET /slow\x1b HTTP/1.1", "peer": "10.0.0.1", "id": "r-1", "age_s": 12.0, "detached": False},
        {"request_line": "GET / HTTP/1.1", "peer": "", "id": "", "age_s": 1.0, "detached": False},
    ]
    assert rows[0]["rss_bytes"] == 503 << 20


def test_the_line_for_the_service_manager() -> None:
    handle = WorkerHandle(age=1, generation=1, spawned_at=0.0, timeout=30, graceful_timeout=30, ready_at=1.0)
    facts = ServerFacts(
        pid=1,
        started_at=0.0,
        state="running",
        application="hello:app",
        bind=[],
        generation=1,
        wanted=2,
        last_reload=LastReload(False, "SyntaxError\nmore", 1.0),
        gone=SlotFigures(3, 1),
    )
    server = status_of(facts, [handle], now=2.0, wall=1_800_000_000.0)["server"]
    assert status_line(server) == (
        "running; 1 of 2 workers serve; 3 requests, 1 with errors; 0 connections; the last reload failed: SyntaxError"
    )


def test_status(fake: Fake, run: Ctl) -> None:
    fake.answer = lambda request: {"ok": True, "status": sample()}
    page = run("status")
    assert (page.status, page.err) == (0, "")
    for text in (
        ", pid 499: running, up 1m40s\n",
        "  application  hello:app\n",
        "  listening    http://127.0.0.1:8000, unix:/run/hello.sock\n",
        "  workers      1 of 2 serve, 1 booting, 1 retiring; generation 2\n",
        "  last reload  FAILED 60s ago: SyntaxError: invalid syntax\n                 gun.py, line 3\n",
        "    to be replaced: it is large\n",
        "    12s  GET /slow\\x1b HTTP/1.1  from 10.0.0.1  id r-1\n",
        "    1.00s  GET / HTTP/1.1  from a Unix socket\n",
    ):
        assert text in page.out
    (row,) = [line for line in page.out.splitlines() if line.split()[:1] == ["503"]]
    assert row.split() == ["503", "3", "2", "recycling", "80s", "300", "3", "5", "2", "503", "MiB"]
    as_json = run("status", "--json")
    assert as_json.status == 0
    assert json.loads(as_json.out) == sample()
    assert "\x1b" not in as_json.out


# ---- finding the server ----------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [False, True], ids=["in front", "behind"])
def test_the_ways_to_name_it(fake: Fake, make: Callable[[str], Fake], run: Ctl, directory: Path, behind: bool) -> None:
    other = make("1.sock")
    pidfile = directory / "server.pid"
    pidfile.write_text(f"{PID}\n")
    for where in (
        ["--pid", str(PID)],
        ["--pidfile", str(pidfile)],
        [f"--pidfile={pidfile}"],
        ["--socket", str(fake.path)],
    ):
        argv = ["reload", *where, "--wait"] if behind else [*where, "reload", "--wait"]
        assert run(*argv).status == 0, argv
    assert len(fake.asked) == 4
    assert other.asked == []


def test_a_socket_elsewhere_is_found_by_its_name(
    run: Ctl, fake: Fake, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RuntimeDirectory=shop of a systemd unit: a directory that the client's environment does not name."""
    monkeypatch.setattr(find, "directories_to_search", lambda environ, uid: [str(directory / "other")])
    assert run("--pid", str(PID), "reload").status == 0
    assert len(fake.asked) == 1


def test_several_are_listed(fake: Fake, make: Callable[[str], Fake], run: Ctl) -> None:
    make("123456.sock")
    done = run("status")
    assert done.status == 2
    assert "several servers are running; say which:" in done.err
    # Both are this process, which is what the kernel says.
    assert done.err.count(f"--pid {PID}") == 2
    assert "pytest" in done.err


def in_state(state: str) -> Answer:
    return lambda request: {"ok": True, "status": {"server": {"state": state}}}


@pytest.mark.parametrize(
    ("states", "chosen"),
    [
        (("stopping", "running"), 1),  # upgraded: the old one finishes its requests
        (("upgrading", "starting"), 0),
        (("stopping", "stopping", "draining"), 2),
        (("stopping", "upgrading", "starting"), 1),
        (("running", "starting"), None),
        (("running", "running"), None),
        (("stopping", "stopping"), None),
    ],
)
def test_an_upgrade_does_not_make_it_two_servers(
    make: Callable[[str], Fake], run: Ctl, states: tuple[str, ...], chosen: int | None
) -> None:
    fakes = [make(f"{number}.sock") for number in range(7, 7 + len(states))]
    for fake, state in zip(fakes, states, strict=True):
        fake.answer = in_state(state)
    done = run("reload")
    reloaded = [index for index, fake in enumerate(fakes) if fake.asked[-1]["command"] == "reload"]
    assert reloaded == ([] if chosen is None else [chosen])
    assert done.status == (2 if chosen is None else 0)
    if chosen is None:
        assert all(f"{state}: " in done.err for state in states)


def test_none(run: Ctl, directory: Path) -> None:
    (directory / "notes.sock").touch()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(directory / "7.sock"))
    stale.close()
    done = run("status")
    assert done.status == 2
    assert done.out == ""
    assert str(directory) in done.err
    assert "wsgiserv module:app" in done.err
    assert "--pidfile" in done.err


@pytest.fixture
def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_what_cannot_be_found(run: Ctl, directory: Path, dead_pid: int) -> None:
    (directory / "empty.pid").touch()
    (directory / "words.pid").write_text("not a number")
    (directory / "dead.pid").write_text(str(dead_pid))
    (directory / "file.sock").touch()
    refusing = socket.socket(socket.AF_UNIX)
    refusing.bind(str(directory / "refusing.sock"))
    refusing.close()
    for where, said in (
        (["--pid", str(dead_pid)], f"there is no process {dead_pid}: the server has ended"),
        (["--pid", str(PID)], f"process {PID} has no control socket in {directory}"),
        (["--pid", str(PID)], f"kill -HUP {PID}"),
        (["--pidfile", f"{directory}/dead.pid"], "the server has ended"),
        (["--pidfile", f"{directory}/missing.pid"], "No such file or directory"),
        (["--pidfile", f"{directory}/empty.pid"], "does not hold a process id"),
        (["--pidfile", f"{directory}/words.pid"], "not a number"),
        (["--socket", f"{directory}/missing.sock"], "there is no such file"),
        (["--socket", f"{directory}/refusing.sock"], "no process listens there"),
        (["--socket", f"{directory}/file.sock"], "no process listens there"),
        (["--socket", "x" * 200], "too long"),
        (["--pid", "1", "--socket", "x"], "--pid and --socket name a server each"),
    ):
        done = run(*where, "reload")
        assert done.status == 2, where
        assert said in done.err, where
        assert done.out == ""


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "relaod",
        "scale",
        "scale many",
        "scale 0",
        "scale -1",
        "retire",
        "--pid x status",
        "--timeout 0 status",
        "--timeout nan status",
        "status --wait",
        "stop --no",
        "reload now",
    ],
)
def test_wrong_usage(run: Ctl, fake: Fake, argv: str) -> None:
    done = run(*argv.split())
    assert done.status == 2
    assert "Type 'wsgiservctl --help'" in done.err
    assert fake.asked == []


def test_a_mistyped_command(run: Ctl) -> None:
    said = "wsgiservctl: WS1915 'relaod' is not a command. Did you mean reload? Type 'wsgiservctl --help'"
    assert run("relaod").err.startswith(said)
    assert run("xyzzy").err.startswith("wsgiservctl: WS1915 'xyzzy' is not a command. Type")


def test_another_users_socket_gets_no_orders(fake: Fake, run: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    monkeypatch.setattr(find, "peer_of", lambda connection: (PID, 4712))
    done = run("--socket", str(fake.path), "stop")
    assert done.status == 2
    assert "user id 4712" in done.err or "another user's" in done.err
    assert run("stop").status == 2
    assert fake.asked == []


def test_a_directory_of_another_users_tells_nothing_of_ones_own_servers(
    run: Ctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.geteuid", lambda: 4711)
    monkeypatch.setattr(find, "_directories", lambda: ["/run/wsgiserv"])
    monkeypatch.setattr(find, "_connect_in", refuse)
    with subprocess.Popen(["true"]) as ended:
        pass
    assert f"there is no process {ended.pid}" in run("--pid", str(ended.pid), "status").err
    assert f"process {os.getpid()} has no control socket" in run("--pid", str(os.getpid()), "status").err
    monkeypatch.setattr("os.kill", refuse)
    assert "another user's" in run("--pid", str(os.getpid()), "status").err


# ---- the command itself ----------------------------------------------------------------------------------


def test_the_command(fake: Fake, directory: Path) -> None:
    """Installed as a script; quick, since it imports neither the master nor the workers."""
    text = (ROOT / "pyproject.toml").read_text()
    assert 'wsgiservctl = "wsgiserv.ctl.commands:main"' in text
    script = (
        "import sys; from wsgiserv.ctl.commands import main; status = main(); "
        "foreign = [m for m in sys.modules if m.startswith(('wsgiserv.master', 'wsgiserv.worker', 'gevent'))]; "
        "sys.exit(f'imported: {foreign}' if foreign else status)"
    )

    def command(*argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, *argv],
            env=environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    helping = command("--help")
    fake.answer = SILENCE
    waiting = command("--socket", str(fake.path), "reload", "--wait")
    while not fake.asked:
        assert waiting.poll() is None
        select.select([], [], [], 0.01)
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=10)
    assert (waiting.returncode, out) == (130, "")
    assert "goes on" in err
    out, err = helping.communicate(timeout=10)
    assert (helping.returncode, err) == (0, "")
    assert "reopen-logs" in out
