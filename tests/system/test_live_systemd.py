"""systemd: the example units, sockets that are handed over, and what is left of them (issue 4).

No systemd runs as process 1 in a test: the units are verified by its own tool, and sockets are handed over by
``systemd-socket-activate``, or as systemd does it: from descriptor 3 on, with LISTEN_PID and LISTEN_FDS.
"""

from __future__ import annotations

import getpass
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import need
from rawclient import RawClient
from server import ROOT, Server, Start, environment, wait_until

UNITS = ROOT / "examples" / "systemd"

# Become a service: the descriptors, what LISTEN_FDS says (empty: their number), its command.
_HAND_OVER = """
import fcntl, os, sys
given, count, *command = sys.argv[1:]
# All out of the way of their places first.
given = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 64) for fd in given.split(",")]
for place, fd in enumerate(given, 3):
    os.dup2(fd, place)
os.closerange(3 + len(given), 64)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = count or str(len(given))
os.environ["LISTEN_FDNAMES"] = ":".join(["wsgiserv.socket"] * len(given))
os.execv(command[0], command)
"""

# Answers with what the environment still says of sockets.
_APP = """
import json, os
from apps import app as others
def app(environ, start_response):
    if environ["PATH_INFO"] != "/variables":
        return others(environ, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([name for name in os.environ if name.startswith("LISTEN_")]).encode()]
"""


def served(worker_class: str, *args: str) -> list[str]:
    """Return the command of a server with two workers, for `_APP`."""
    return [*Server.program, "-k", worker_class, "-w", "2", "-b", "unix:unused.sock", *args, "shown:app"]


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[list[socket.socket]]:
    """A TCP and a Unix socket that listen, held by the test as systemd holds those of a socket unit."""
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(tmp_path / "local.sock"))
    local.listen(16)
    with socket.create_server(("127.0.0.1", 0)) as tcp, local:
        yield [tcp, local]


def hand_over(start: Start, sockets: list[socket.socket], command: list[str], count: str = "") -> Server:
    """Start ``command`` as a service to which these sockets belong."""
    fds = tuple(each.fileno() for each in sockets)
    become = [sys.executable, "-c", _HAND_OVER, ",".join(map(str, fds)), count, *command]
    return start(None, bind="none", files={"shown.py": _APP}, command=become, pass_fds=fds)


def ask(address: Any, target: str = "/") -> Any:
    """Return the response to one request on a connection of its own."""
    with RawClient(address) as client:
        return client.get(target)


@pytest.mark.system
def test_the_units(tmp_path: Path) -> None:
    program = need("systemd-analyze")
    for name in ("wsgiserv.service", "wsgiserv.socket"):
        text = (UNITS / name).read_text()
        # What the operator fills in must be there to be verified.
        text = text.replace("/srv/hello/venv/bin/wsgiserv", sys.executable)
        text = text.replace("User=www-data", f"User={getpass.getuser()}").replace(
            "Group=www-data", "Group=root"
        )
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / "wsgiserv.service"), str(tmp_path / "wsgiserv.socket")]

    def verify() -> tuple[int, str]:
        done = subprocess.run(
            [program, "verify", *units], capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode, done.stdout + done.stderr

    assert verify() == (0, "")
    service = tmp_path / "wsgiserv.service"
    service.write_text(service.read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in verify()[1]  # it would have been seen


def test_the_service_waits_longer_than_the_server() -> None:
    lines = (UNITS / "wsgiserv.service").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    printed = subprocess.run(
        [*Server.program, "--print-config", "apps:app"],
        capture_output=True,
        text=True,
        timeout=15,
        check=True,
        env=environment({}),
    ).stdout
    (graceful,) = [line for line in printed.splitlines() if line.startswith("graceful_timeout")]
    assert float(values["TimeoutStopSec"]) > float(graceful.split()[2]) + 1
    assert values["KillMode"] == "mixed"
    assert values["ExecReload"].endswith("-HUP $MAINPID")


@pytest.mark.system
def test_socket_activation(start: Start, tmp_path: Path, worker_class: str) -> None:
    program = need("systemd-socket-activate")
    path = str(tmp_path / "local.sock")
    with socket.socket() as reservation:
        # Bound, not listening, with SO_REUSEADDR: nobody else is given this port, and systemd may take it.
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        address = reservation.getsockname()
        listens = ["-l", "{}:{}".format(*address), "-l", path, "--fdname=web:local"]
        passed = [f"-E{name}" for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")]
        command = [program, *listens, *passed, *served(worker_class)]
        server = start(None, bind="none", files={"shown.py": _APP}, command=command)
        server.wait_for_log(r"Listening on .*local\.sock as 4")
        # The first connection starts the server, and is answered by it.
        assert ask(address).status == 200
        assert ask(path).status == 200
        server.wait_for_log(r"listening on .* \(sockets of the service manager; bind is not used\)")
        assert not (tmp_path / "unused.sock").exists()
        assert ask(path, "/variables").json() == []
        # A reload keeps the sockets, whatever bind says.
        old = server.workers()
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded")
        wait_until(lambda: not set(old) & set(server.workers()), "the old workers leave")
        assert {ask(each).status for each in (address, path)} == {200}
        assert not (tmp_path / "unused.sock").exists()
        assert server.stop() == 0
        assert (tmp_path / "local.sock").is_socket()  # systemd's, not the server's


def test_the_sockets_outlive_the_server(
    start: Start, sockets: list[socket.socket], tmp_path: Path, worker_class: str
) -> None:
    addresses = [each.getsockname() for each in sockets]
    first = hand_over(start, sockets, served(worker_class))
    pids = {ask(address).one("X-Pid") for address in addresses}
    assert [ask(address, "/variables").json() for address in addresses] == [[], []]
    assert first.stop() == 0
    # Nobody is there: clients wait in the backlog.
    waiting = [RawClient(address) for address in addresses]
    try:
        for client in waiting:
            client.request("/")
        hand_over(start, sockets, served(worker_class))
        for client in waiting:
            response = client.read_response()
            assert response.status == 200
            assert response.one("X-Pid") not in pids
    finally:
        for client in waiting:
            client.close()
    assert not (tmp_path / "unused.sock").exists()


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        (socket.SOCK_STREAM, "2", "LISTEN_FDS: descriptor 4 is not open"),
        (socket.SOCK_STREAM, "1", "LISTEN_FDS: descriptor 3 does not listen"),
        (socket.SOCK_DGRAM, "1", "LISTEN_FDS: descriptor 3 is not a stream socket"),
    ],
    ids=["too few", "Accept=yes", "ListenDatagram"],
)
def test_sockets_that_are_not_right(tmp_path: Path, kind: int, count: str, said: str) -> None:
    (tmp_path / "shown.py").write_text(_APP)
    with socket.socket(socket.AF_INET, kind) as given:
        given.bind(("127.0.0.1", 0))
        if count == "2":
            given.listen()
        fds = (given.fileno(),)
        become = [sys.executable, "-c", _HAND_OVER, str(fds[0]), count, *served("sync")]
        done = subprocess.run(
            become,
            cwd=tmp_path,
            env=environment({}),
            pass_fds=fds,
            capture_output=True,
            text=True,
            timeout=15,
            check=False,
        )
    assert done.returncode == 2
    assert said in done.stderr
    assert "ListenStream=" in done.stderr
