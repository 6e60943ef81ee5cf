"""wsgiservctl finds servers in the runtime directories, root those of all users; one bad directory hides no server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rootserver import NOBODY, ROOT_PYTHON, as_root, environment_of_workers, needs_public_python, public_directory
from server import Start, environment

from wsgiserv.runtime_dir import directories_to_search, runtime_directory

HELLO = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hello']\n"


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """Give a descriptor of a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def theirs() -> Iterator[subprocess.Popen[bytes]]:
    """A server that another user has started: the only one of that user, whom several processes of this run are."""
    assert ROOT_PYTHON
    with open_directory(Path(__file__).parent) as lock, public_directory() as place:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (place / "hello.py").write_text(HELLO)
        env = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        process = subprocess.Popen(
            [ROOT_PYTHON, "-m", "wsgiserv", "-b", "127.0.0.1:0", "hello:app"],
            cwd=place,
            env={**env, **environment_of_workers(), "HOME": str(place)},
            stderr=subprocess.PIPE,
            user=NOBODY.pw_uid,
            group=NOBODY.pw_gid,
            extra_groups=[],
        )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if b"] ready: " in line:
                    break
            else:
                raise AssertionError("it has not started")
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(15)
            assert process.stderr is not None
            process.stderr.close()


def ctl(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsgiserv.ctl", *args],
        env={**environment(env), "RUNTIME_DIRECTORY": env.get("RUNTIME_DIRECTORY", "")},
        capture_output=True,
        text=True,
        timeout=30,
    )


@as_root
@needs_public_python
def test_root_finds_other_users_servers(theirs: subprocess.Popen[bytes]) -> None:
    done = ctl("--pid", str(theirs.pid), "status", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["server"]["pid"] == theirs.pid
    done = ctl("status", XDG_RUNTIME_DIR="/nonexistent")
    # Others may run on this machine: then it is listed.
    assert f"pid {theirs.pid}" in done.stdout or f"--pid {theirs.pid}" in done.stderr, done


@as_root
def test_the_directories_of_all_users_that_are_theirs_alone(tmp_path: Path) -> None:
    for uid in (1001, 1002, 1003, 1004):
        directory = tmp_path / f"wsgiserv-{uid}"
        directory.mkdir(0o700)
        os.chown(directory, uid, uid)
    os.chown(tmp_path / "wsgiserv-1002", 1001, 1001)  # of somebody else
    (tmp_path / "wsgiserv-1003").chmod(0o770)
    (tmp_path / "wsgiserv-1004").rename(tmp_path / "elsewhere")
    (tmp_path / "wsgiserv-1004").symlink_to("elsewhere")
    (tmp_path / "wsgiserv-x").mkdir()
    found = directories_to_search({}, 0, system="/missing", tmp=str(tmp_path))
    assert [path for path in found if path.startswith(str(tmp_path))] == [f"{tmp_path}/wsgiserv-1001"]
    assert directories_to_search({}, 1002, system="/missing", tmp=str(tmp_path)) == []


@as_root
def test_a_runtime_directory_of_anothers_is_not_roots(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o755)
    os.chown(tmp_path / "theirs", 1001, 1001)
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path}/theirs"}
    places = {"system": f"{tmp_path}/system", "tmp": f"{tmp_path}"}
    assert runtime_directory(environ, 0, **places) == f"{tmp_path}/system"
    os.chown(tmp_path / "theirs", 0, 0)
    assert runtime_directory(environ, 0, **places) == f"{tmp_path}/theirs"


def test_one_directory_that_cannot_be_read_ends_no_search(start_unclassed: Start, tmp_path: Path) -> None:
    server = start_unclassed("hello:app", files={"hello.py": HELLO}, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    server.wait_for_log("] ready: ")
    (tmp_path / "closed").mkdir(0o700)
    (tmp_path / "closed" / f"{server.pid}.sock").symlink_to("nowhere")
    (tmp_path / "closed" / "1.sock").symlink_to(tmp_path / "wsgiserv" / f"{server.pid}.sock")
    with socket.socket(socket.AF_UNIX) as silent:
        # A master that is stopped: its queue of connections is full.
        silent.bind(str(tmp_path / "closed" / "999999.sock"))
        silent.listen(0)
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for client in (first, second):
                client.setblocking(False)
                client.connect_ex(silent.getsockname())
            where = {
                "XDG_RUNTIME_DIR": str(tmp_path),
                "RUNTIME_DIRECTORY": f"{tmp_path}/closed:{tmp_path}/missing:{tmp_path}/hello.py",
            }
            done = ctl("status", "--json", **where)
            assert str(server.pid) in done.stdout + done.stderr, done
            done = ctl("--pid", str(server.pid), "status", "--json", **where)
            assert done.returncode == 0, done.stderr


@as_root
@needs_public_python
def test_a_directory_of_roots_hides_no_server_of_ones_own(theirs: subprocess.Popen[bytes]) -> None:
    assert ROOT_PYTHON
    with public_directory() as place:
        (place / "closed").mkdir(0o700)
        env = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        for args in (("--pid", str(theirs.pid)), ()):
            done = subprocess.run(
                [ROOT_PYTHON, "-m", "wsgiserv.ctl", *args, "status", "--json"],
                env={**env, **environment_of_workers(), "RUNTIME_DIRECTORY": f"{place}/closed:{place}/closed/x"},
                cwd=place,
                user=NOBODY.pw_uid,
                group=NOBODY.pw_gid,
                extra_groups=[],
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["server"]["pid"] == theirs.pid
