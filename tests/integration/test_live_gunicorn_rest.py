"""The rest of gunicorn's settings: worker_tmp_dir, spew, control_socket_mode, unknown atoms, names of loggers."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rootserver import (
    ROOT_PYTHON,
    as_root,
    environment_of_workers,
    needs_public_python,
    public_directory,
    start_as_root,
)
from server import Connect, Server, Start, bare_environment, run

APP = """\
def app(environ, start_response):
    marker = "of the application"
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


# ---- worker_tmp_dir --------------------------------------------------------------------------------------


def test_worker_tmp_dir_is_checked(start_unclassed: Start, connect: Connect, tmp_path: Path) -> None:
    server = start_unclassed("app:app", "--worker-tmp-dir", "/dev/shm", files={"app.py": APP})
    assert connect(server.address).get("/").body == b"ok"
    server.stop()
    (tmp_path / "file").touch()
    for check in ((), ("--check-config",)):
        for path, said in (("nowhere", "mkdir -p"), ("file", "is not a directory")):
            done = run([*check, "-b", "127.0.0.1:0", "--worker-tmp-dir", path, "app:app"], tmp_path)
            assert done.returncode == 2
            assert f"worker_tmp_dir = {path!r}" in done.stderr
            assert said in done.stderr


def test_it_must_be_writable(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    done = run(["-b", "127.0.0.1:0", "--worker-tmp-dir", "/proc/self", "app:app"], tmp_path)
    assert done.returncode == 2
    assert "WS1093 worker_tmp_dir = '/proc/self': cannot make a file in /proc/self" in done.stderr


# ---- spew ------------------------------------------------------------------------------------------------


def test_spew_prints_the_lines_of_master_worker_and_application(start: Start, connect: Connect) -> None:
    server = start("app:app", "--spew", files={"app.py": APP})
    server.wait_for_log("ready", 60)
    assert connect(server.address).get("/").body == b"ok"
    server.out.wait_for(r"^wsgiserv\.master\.master:\d+: ")
    server.out.wait_for(r"^wsgiserv\.worker\.\w+:\d+: ")
    server.out.wait_for(r'^app:2:     marker = "of the application"$')
    server.stop(deadline_s=60)


# ---- control_socket_mode -----------------------------------------------------------------------------------


@contextlib.contextmanager
def controlled(*options: str) -> Iterator[tuple[Server, str]]:
    """Start a server of root's with a control socket where others may look; give the socket's path, too."""
    with public_directory() as place:
        (place / "app.py").write_text(APP)
        server = start_as_root(place, "app:app", "--user", "root", "--control-socket", "ctl", *options)
        try:
            server.wait_for_log("ready")
            yield server, str(place / "ctl")
            assert server.stop() == 0
            server.check()
        finally:
            server.close()


def status_as(uid: int, gid: int, path: str) -> subprocess.CompletedProcess[str]:
    """Run ``wsgiservctl --socket PATH status`` as another user."""
    assert ROOT_PYTHON
    return subprocess.run(
        [ROOT_PYTHON, "-m", "wsgiserv.ctl", "--socket", path, "status"],
        env={**bare_environment(), **environment_of_workers()},
        cwd="/",
        user=uid,
        group=gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=30,
    )


def connects_as(uid: int, gid: int, path: str) -> bool:
    """Tell whether another user gets the status by the socket itself."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(path)
                client.sendall(b'{"command": "status"}\n')
                status = 0 if client.recv(100).startswith(b'{"ok": true') else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("given", ["--control-socket-mode 660", "control_socket_mode = 0o660"])
def test_the_mode_of_the_control_socket(start_unclassed: Start, tmp_path: Path, given: str) -> None:
    (tmp_path / "conf.py").write_text("" if given.startswith("--") else given)
    flags = given.split() if given.startswith("--") else []
    files = {"app.py": APP}
    server = start_unclassed("app:app", "-c", "conf.py", *flags, "--control-socket", "ctl", files=files)
    server.wait_for_log("ready")
    status = (tmp_path / "ctl").lstat()
    assert (stat.S_ISSOCK(status.st_mode), stat.S_IMODE(status.st_mode)) == (True, 0o660)
    server.stop()
    assert not (tmp_path / "ctl").exists()


@as_root
@needs_public_python
def test_a_group_commands_the_server() -> None:
    with controlled("--group", "9876", "--control-socket-mode", "660") as (_, path):
        assert os.lstat(path).st_gid == 9876
        assert connects_as(4321, 9876, path)
        assert not connects_as(4321, 4321, path)
        member = status_as(4321, 9876, path)
        assert (member.returncode, "running" in member.stdout) == (0, True), member.stderr
        stranger = status_as(4321, 4321, path)
        assert stranger.returncode != 0
        assert "Permission denied" in stranger.stderr


@as_root
@needs_public_python
def test_without_the_mode_nobody_else_does() -> None:
    with controlled() as (_, path):
        assert not connects_as(4321, os.getgid(), path)
        assert connects_as(0, 0, path)


# ---- logs ------------------------------------------------------------------------------------------------


def test_unknown_atoms_are_dashes_with_one_warning(start: Start, connect: Connect) -> None:
    template = "%(m)s %(nothing)s %({x-a}i)s %({x}y)s"
    server = start(
        "app:app", "--access-logfile", "-", "--access-logformat", template, files={"app.py": APP}, expect=("WS1830",)
    )
    for _ in range(2):
        assert connect(server.address).get("/", headers="X-A: b\r\n").status == 200
    server.stop()
    assert server.out.lines == ["GET - b -"] * 2
    assert len([line for line in server.log.lines if "WS1830" in line]) == 1


LOGGERS = """\
logconfig_dict = dict(
    version=1, disable_existing_loggers=False,
    root=dict(level="INFO", handlers=["file"]),
    formatters=dict(plain=dict(format="%(name)s|%(levelname)s|%(message)s")),
    handlers=dict(file={"class": "logging.FileHandler", "filename": "all.log", "formatter": "plain"}),
    loggers={
        "gunicorn.error": dict(level="INFO", handlers=["file"], propagate=False),
        "gunicorn.access": dict(level="INFO", handlers=["file"], propagate=False),
    },
)
accesslog = "-"
"""


@pytest.mark.parametrize("ours", ["gunicorn", "wsgiserv"])
def test_the_loggers_names_are_those_of_the_file(
    start_unclassed: Start, connect: Connect, tmp_path: Path, ours: str
) -> None:
    text = LOGGERS.replace("gunicorn.", f"{ours}.")
    server = start_unclassed("app:app", "-c", "conf.py", files={"app.py": APP, "conf.py": text})
    connect(server.address).get("/")
    server.stop()
    names = {line.partition("|")[0] for line in (tmp_path / "all.log").read_text().splitlines()}
    assert names == {f"{ours}.error", f"{ours}.access"}
