"""The control socket: who may connect, what is answered, and that no client costs the master anything."""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wsgiserv.config.loader import load
from wsgiserv.master import control
from wsgiserv.master.control import CLIENT_S, LONGEST_REQUEST_BYTES, MOST_CLIENTS, ControlServer, Done
from wsgiserv.runtime_dir import DirectoryError, directories_to_search, runtime_directory, socket_name

UID = os.geteuid()
LOG = logging.getLogger("test.control")


class Master:
    """Commands that note how they were called; what they answer, and when, is the test's."""

    def __init__(self) -> None:
        self.called: list[tuple[Any, ...]] = []
        self.dones: list[Done] = []
        self.at_once: tuple[bool, str] | None = None
        self.figures: dict[str, Any] = {"server": {"pid": 7}}

    def _note(self, done: Done, *called: Any) -> None:
        self.called.append(called)
        self.dones.append(done)
        if self.at_once is not None:
            done(*self.at_once)

    def status(self) -> dict[str, Any]:
        return self.figures

    def reload(self, done: Done) -> None:
        self._note(done, "reload")

    def scale(self, count: int, done: Done) -> None:
        self._note(done, "scale", count)

    def retire(self, pid: int, done: Done) -> None:
        self._note(done, "retire", pid)

    def upgrade(self, done: Done) -> None:
        self._note(done, "upgrade")

    def stop(self, now: bool, done: Done) -> None:
        self._note(done, "stop", now)

    def trace(self, pid: int, done: Done) -> None:
        self._note(done, "trace", pid)

    def reopen_logs(self, done: Done) -> None:
        raise RuntimeError("a bug")


class Loop:
    """A server and its master's loop, one turn at a time."""

    def __init__(self, path: Path, **more: Any) -> None:
        self.master = Master()
        self.server = ControlServer(str(path), self.master, LOG, **more)

    def turn(self, timeout_s: float = 0.0) -> int:
        """Handle what there is; return how many descriptors had something."""
        poller = select.poll()
        for fd, events in self.server.fds():
            poller.register(fd, events)
        ready = poller.poll(timeout_s * 1000)
        for fd, events in ready:
            self.server.handle(fd, events)
        return len(ready)

    def settle(self) -> None:
        """Turn until nothing happens any more. It must come to rest: a loop that does not spins."""
        for _ in range(1000):
            if not self.turn():
                return
        raise AssertionError("the master spins")

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(self.server.path)
        self.settle()
        return client

    def ask(self, request: Any) -> socket.socket:
        client = self.connect()
        try:
            client.sendall(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            pass  # refused unheard; the reply says why
        self.settle()
        return client

    def reply(self, client: socket.socket) -> Any:
        """Return the reply, which must be one line and the connection's end."""
        data = b""
        with client:
            deadline = time.monotonic() + 5
            client.setblocking(False)
            while time.monotonic() < deadline:
                try:
                    more = client.recv(1 << 20)
                except BlockingIOError:
                    self.turn(0.01)
                    continue
                except ConnectionResetError:  # the end, when the server has not read all: unix(7) is silent on it
                    more = b""
                if not more:
                    assert data.endswith(b"\n"), data
                    assert data.count(b"\n") == 1
                    return json.loads(data)
                data += more
        raise AssertionError(f"no end of the reply: {data!r}")

    def clients(self) -> int:
        return len(list(self.server.fds())) - 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


@pytest.fixture
def loop(path: Path) -> Iterator[Loop]:
    loop = Loop(path)
    yield loop
    loop.server.close()


def is_silent(client: socket.socket) -> bool:
    return not select.select([client], [], [], 0)[0]


# ---- the protocol ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "called"),
    [
        ({"command": "reload"}, ("reload",)),
        ({"command": "scale", "count": 5}, ("scale", 5)),
        ({"command": "retire", "pid": 77}, ("retire", 77)),
        ({"command": "upgrade"}, ("upgrade",)),
        ({"command": "stop"}, ("stop", False)),
        ({"command": "stop", "now": True}, ("stop", True)),
        ({"command": "trace", "pid": 77}, ("trace", 77)),
    ],
    ids=str,
)
def test_each_command(loop: Loop, request_: dict[str, Any], called: tuple[Any, ...]) -> None:
    # Without wait: an answer when it is accepted.
    assert loop.reply(loop.ask(request_)) == {"ok": True, "reason": "accepted"}
    assert loop.master.called == [called]
    loop.master.dones[0](False, "later; nobody waits for it")
    # With it: when it is done.
    for outcome, reply in [
        ((True, "fine"), {"ok": True, "reason": "fine"}),
        ((False, "an import hangs"), {"ok": False, "error": "an import hangs"}),
    ]:
        client = loop.ask({**request_, "wait": True})
        assert is_silent(client)
        loop.server.expire(time.monotonic() + 10 * CLIENT_S)  # who waits may wait for long
        loop.master.dones[-1](*outcome)
        loop.master.dones[-1](True, "a second time")
        assert loop.reply(client) == reply
    # What is refused at once is told in either case.
    loop.master.at_once = (False, "the server is stopping")
    for wait in (False, True):
        assert loop.reply(loop.ask({**request_, "wait": wait})) == {"ok": False, "error": "the server is stopping"}
    assert loop.clients() == 0
    assert loop.server.deadline() == float("inf")


def test_status(loop: Loop) -> None:
    assert loop.reply(loop.ask({"command": "status"})) == {"ok": True, "status": {"server": {"pid": 7}}}
    # More than a socket's buffer holds.
    loop.master.figures = {"workers": ["x" * 1000] * 2000}
    assert loop.reply(loop.ask({"command": "status"}))["status"] == loop.master.figures


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"[]\n",
        b"7\n",
        b"\xff\xfe\x00\n",
        b"[" * 60_000 + b"\n",
        b'{"command": 7}\n',
        b'{"command": "shutdown"}\n',
        b'{"command": "__init__"}\n',
        b'{"command": ["reload"]}\n',
        b'{"command": "reload", "wait": "yes"}\n',
        b'{"command": "scale"}\n',
        b'{"command": "scale", "count": 0}\n',
        b'{"command": "scale", "count": true}\n',
        b'{"command": "scale", "count": 1e3}\n',
        b'{"command": "scale", "count": 10001}\n',
        b'{"command": "scale", "count": ' + b"9" * 5000 + b"}\n",
        b'{"command": "retire", "pid": "1"}\n',
        b'{"command": "retire", "pid": -1}\n',
        b'{"command": "stop", "now": 1}\n',
        b"x" * LONGEST_REQUEST_BYTES,
        b'{"command": "reload", "x": "' + b"x" * LONGEST_REQUEST_BYTES + b'"}\n',
    ],
    ids=lambda garbage: repr(garbage[:40]),
)
def test_garbage_is_answered_and_does_nothing(loop: Loop, garbage: bytes) -> None:
    reply = loop.reply(loop.ask(garbage))
    assert reply["ok"] is False
    assert reply["error"]
    assert len(reply["error"]) < 500
    assert loop.master.called == []
    assert loop.clients() == 0


def test_an_error_of_the_master_is_answered(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    reply = loop.reply(loop.ask({"command": "reopen_logs"}))
    assert reply["ok"] is False
    assert "log" in reply["error"]
    assert "RuntimeError: a bug" in caplog.text


def test_a_request_in_pieces_and_what_is_behind_it(loop: Loop) -> None:
    client = loop.connect()
    for byte in b'{"command": "reload"}\n{"command": "stop"}\n':
        try:
            client.send(bytes([byte]))
        except BrokenPipeError:
            break  # answered, and closed
        loop.settle()
    assert loop.reply(client)["ok"] is True
    assert loop.master.called == [("reload",)]


# ---- clients that are slow, silent, many or gone ---------------------------------------------------------


def test_half_a_request_ends_after_its_time(loop: Loop) -> None:
    silent, half = loop.connect(), loop.ask(b'{"command": ')
    due = loop.server.deadline()
    assert 0 < due - time.monotonic() <= CLIENT_S
    loop.server.expire(due - 1)
    assert is_silent(silent)
    assert is_silent(half)
    loop.server.expire(due + 1)
    for client in (silent, half):
        assert "within 10 s" in loop.reply(client)["error"]
    assert loop.clients() == 0


def test_a_client_that_does_not_take_its_reply_is_let_go(loop: Loop) -> None:
    loop.master.figures = {"long": "x" * 4_000_000}
    client = loop.ask({"command": "status"})
    assert loop.clients() == 1
    assert loop.turn() == 0  # nothing to do until there is room, or the time is up
    loop.server.expire(loop.server.deadline())
    assert loop.clients() == 0
    client.close()


def test_a_client_that_goes_away(loop: Loop) -> None:
    loop.ask({"command": "reload", "wait": True}).close()  # while it waits
    loop.connect().close()  # without a word
    loop.ask(b'{"comm').close()  # in the middle
    loop.settle()
    assert loop.clients() == 0
    loop.master.dones[0](True, "done all the same")
    # One that has only shut its sending side (socat, nc) waits for the answer, and costs no turn.
    client = loop.ask({"command": "reload", "wait": True})
    client.shutdown(socket.SHUT_WR)
    assert loop.turn() == 0
    loop.master.dones[1](True, "now")
    assert loop.reply(client)["reason"] == "now"


def test_many_clients(loop: Loop) -> None:
    waiting = [loop.connect() for _ in range(MOST_CLIENTS)]
    assert "try again" in loop.reply(loop.connect())["error"]
    waiting.pop().close()
    loop.settle()
    assert loop.reply(loop.ask({"command": "status"}))["ok"] is True
    for client in waiting:
        client.close()


def test_without_descriptors_accepting_rests(loop: Loop) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = socket.socket(socket.AF_UNIX)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, limits[1]))
        client.connect(loop.server.path)
        with pytest.raises(OSError, match="Too many open files"):
            fillers.extend(os.dup(client.fileno()) for _ in range(highest + 21))
        loop.turn()
        assert loop.turn() == 0  # the client waits still, and costs nothing
        rest = loop.server.deadline()
        assert rest < time.monotonic() + 2
    finally:
        for fd in fillers:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    loop.server.expire(rest)
    loop.settle()
    client.sendall(b'{"command": "status"}\n')
    assert loop.reply(client)["ok"] is True


def test_another_user_is_refused(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_of", lambda sock: (5, UID + 1))
    reply = loop.reply(loop.ask({"command": "stop"}))
    assert f"user id {UID}" in reply["error"]
    monkeypatch.setattr(control, "peer_of", lambda sock: (5, 0))
    assert loop.reply(loop.ask({"command": "stop"}))["ok"] is True
    assert loop.master.called == [("stop", False)]


def test_the_peer_is_who_the_kernel_says() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert control.peer_of(left) == (os.getpid(), UID)


# ---- the socket's file -----------------------------------------------------------------------------------


def test_the_file_is_the_users_alone_and_goes_at_the_end(path: Path) -> None:
    before = os.umask(0)
    try:
        loop = Loop(path)
        assert os.umask(0) == 0  # it has been put back
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert stat.S_ISSOCK(path.lstat().st_mode)
    loop.server.close()
    assert not path.exists()
    loop.server.close()
    assert list(loop.server.fds()) == []
    assert not loop.server.handle(0, select.POLLIN)


def test_the_end_of_the_server_answers_who_waits(path: Path) -> None:
    loop = Loop(path)
    stops = loop.ask({"command": "stop", "wait": True})
    reloads = loop.ask({"command": "reload", "wait": True})
    half = loop.ask(b"{")
    loop.server.close()
    for client in (stops, reloads, half):
        client.settimeout(5)
    assert json.loads(stops.recv(1000))["ok"] is True
    assert "stopped before the reload" in json.loads(reloads.recv(1000))["error"]
    assert half.recv(1000) == b""
    for client in (stops, reloads, half):
        client.close()
    loop.master.dones[1](True, "too late")


def test_a_child_closes_its_copies_and_leaves_the_file(loop: Loop, path: Path) -> None:
    client = loop.connect()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            fds = [fd for fd, _ in loop.server.fds()]
            loop.server.close_in_child()
            closed = [not os.path.exists(f"/proc/self/fd/{fd}") for fd in fds]
            status = 0 if closed == [True, True] and not list(loop.server.fds()) else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert path.exists()
    client.sendall(b'{"command": "status"}\n')
    assert loop.reply(client)["ok"] is True


_KILLED = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(os.getpid(), flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""


def test_a_running_servers_socket_is_left_a_dead_ones_is_replaced(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == other.pid
        with pytest.raises(DirectoryError, match=f"in use by a running process .pid {other.pid}"):
            Loop(path)
        # The next master may take it from the one before.
        successor = Loop(path, follows=other.pid)
        identity = path.lstat().st_ino
        other.communicate()
    assert path.lstat().st_ino == identity
    assert successor.reply(successor.ask({"command": "status"}))["ok"] is True
    # Of that one killed, the file stays; who comes next replaces it.
    successor.server.close_in_child()
    assert path.exists()
    third = Loop(path)
    assert third.reply(third.ask({"command": "status"}))["ok"] is True
    third.server.close()


def test_the_old_master_does_not_remove_its_successors_socket(path: Path) -> None:
    old = Loop(path)
    new = Loop(path, follows=os.getpid())
    old.server.close()
    assert new.reply(new.ask({"command": "status"}))["ok"] is True
    new.server.close()
    assert not path.exists()


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(DirectoryError, match="not a socket"):
        Loop(path)
    assert path.read_text() == "precious"


# ---- where it is -----------------------------------------------------------------------------------------


@pytest.fixture
def choose(tmp_path: Path) -> Callable[..., str]:
    (tmp_path / "tmp").mkdir()

    def choose(**environ: str) -> str:
        return runtime_directory(environ, UID, system=str(tmp_path / "system"), tmp=str(tmp_path / "tmp"))

    return choose


def test_the_directory_is_the_first_that_can_be_had(tmp_path: Path, choose: Callable[..., str]) -> None:
    session = tmp_path / "session"
    session.mkdir()
    assert choose(RUNTIME_DIRECTORY="/run/a:/run/b", XDG_RUNTIME_DIR=str(session)) == "/run/a"
    assert choose(XDG_RUNTIME_DIR=str(session)) == f"{session}/wsgiserv"
    assert stat.S_IMODE((session / "wsgiserv").stat().st_mode) == 0o700
    assert choose(XDG_RUNTIME_DIR=str(session)) == f"{session}/wsgiserv"  # it is there by now
    private = f"{tmp_path}/tmp/wsgiserv-{UID}"
    without = f"{tmp_path}/system" if UID == 0 else private
    for other in ("", "relative", str(tmp_path / "missing"), str(tmp_path / "c.txt")):
        assert choose(XDG_RUNTIME_DIR=other) == without
    if UID == 0:
        (tmp_path / "system").chmod(0o777)
        assert choose() == private
    assert stat.S_IMODE(os.stat(private).st_mode) == 0o700


def test_another_users_session_is_not_used(
    tmp_path: Path, choose: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``sudo -E``: a directory of root's in it would be in that user's way."""
    monkeypatch.setattr("wsgiserv.runtime_dir._owner", lambda path: UID + 1)
    (tmp_path / "session").mkdir()
    assert not choose(XDG_RUNTIME_DIR=str(tmp_path / "session")).startswith(f"{tmp_path}/session")
    assert list((tmp_path / "session").iterdir()) == []


@pytest.mark.parametrize("wrong", ["link", "file", "mode", "owner"])
def test_a_directory_in_tmp_must_be_ours_alone(tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = UID or 4711  # not root, who would have /run/wsgiserv
    place = tmp_path / f"wsgiserv-{uid}"
    if wrong == "link":
        (tmp_path / "elsewhere").mkdir(0o700)
        place.symlink_to(tmp_path / "elsewhere")
    elif wrong == "file":
        place.touch()
    else:
        place.mkdir(0o700)
    monkeypatch.setattr("wsgiserv.runtime_dir.lstat", lambda path: _owned(os.lstat(path), uid + (wrong == "owner")))
    if wrong == "mode":
        place.chmod(0o750)
    with pytest.raises(DirectoryError, match=f"wsgiserv-{uid}") as raised:
        runtime_directory({}, uid, system="/missing", tmp=str(tmp_path))
    if wrong == "mode":
        assert f"chmod 700 {place}" in str(raised.value)
    assert str(place) not in directories_to_search({}, uid, system="/missing", tmp=str(tmp_path))


def _owned(found: os.stat_result, uid: int) -> os.stat_result:
    return os.stat_result((*found[:4], uid, *found[5:]))


def test_the_client_looks_where_the_server_may_be(tmp_path: Path, choose: Callable[..., str]) -> None:
    session = tmp_path / "session"
    session.mkdir()
    made = choose(XDG_RUNTIME_DIR=str(session))
    places = {"system": str(tmp_path / "system"), "tmp": str(tmp_path / "tmp")}
    assert made in directories_to_search({"XDG_RUNTIME_DIR": str(session)}, UID, **places)
    assert choose() in directories_to_search({}, UID, **places)


# ---- the setting -----------------------------------------------------------------------------------------


def opened(tmp_path: Path, *flags: str, **environ: str) -> ControlServer | None:
    settings = load([*flags, "hello:app"], {}, str(tmp_path)).settings
    return control.control_server(settings, Master(), LOG, environ)


def test_the_setting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    given = f"{tmp_path}/given.sock"
    for flags, where in [
        ((), f"{tmp_path}/{socket_name()}"),
        (("--control-socket", given), given),
        (("--control-socket", "off"), None),
        (("--control-socket", ""), None),
        (("--no-control-socket",), None),
        (("--no-control-socket", "--control-socket", given), None),
    ]:
        server = opened(tmp_path, *flags, RUNTIME_DIRECTORY=str(tmp_path))
        assert (server and server.path) == where, flags
        if server:
            server.close()
    assert caplog.text == ""


def test_sockets_of_killed_servers_are_cleared_away(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    dead, alive, other = f"{process.pid}.sock", f"{os.getppid()}.sock", "app.sock"
    for name in (dead, alive, other):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / name))
    (tmp_path / "99999999.sock").write_text("no socket")
    server = opened(tmp_path, RUNTIME_DIRECTORY=str(tmp_path))
    assert server is not None
    server.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive, other, "99999999.sock"])


@pytest.mark.parametrize(
    ("flags", "directory", "said"),
    [
        ((), "/proc/none", "No such file or directory"),
        (("--control-socket", "/proc/none/x.sock"), "", "/proc/none/x.sock"),
        (("--control-socket", "/tmp/" + "x" * 120), "", "too long"),
        ((), os.devnull, "Not a directory"),
    ],
    ids=["no directory", "not that path", "a long path", "a file"],
)
def test_without_a_socket_the_server_runs_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, flags: tuple[str, ...], directory: str, said: str
) -> None:
    caplog.set_level("DEBUG")
    assert opened(tmp_path, *flags, RUNTIME_DIRECTORY=directory) is None
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert said in record.getMessage()
    assert "control_socket" in record.getMessage()
