"""Sockets that are handed over as systemd does it: from descriptor 3 on, with LISTEN_PID and LISTEN_FDS (issue 4)."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from activation import APP, ask, served
from rawclient import RawClient
from server import ROOT, Server, Start, environment

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
    return start(None, bind="none", files={"shown.py": APP}, command=become, pass_fds=fds)


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
    (tmp_path / "shown.py").write_text(APP)
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
