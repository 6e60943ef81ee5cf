"""Files of a server that root starts: nobody leads it astray, and what root may open its workers may write."""

from __future__ import annotations

import grp
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rawclient import RawClient
from rootserver import (
    NOBODY,
    ROOT_PYTHON,
    as_root,
    environment_of_workers,
    needs_public_python,
    public_directory,
    start_as_root,
)
from server import Server, wait_until

pytestmark = [as_root, needs_public_python]

WHO = """
import json, os, time

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/slow"):
        time.sleep(0.05)  # so that the other worker takes the next
    if environ["PATH_INFO"] == "/fork" and os.fork() == 0:
        os.setsid()
        os.execvp("sleep", ["sleep", "60"])
    keys = ("HOME", "USER", "LOGNAME")
    found = {
        "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
        "groups": os.getgroups(),
        "home": {key: os.environ.get(key) for key in keys},
        "pid": os.getpid(),
        "umask": os.umask(0),
    }
    os.umask(found["umask"])
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]
"""
AS_NOBODY = ("-u", "nobody")

Begin = Callable[..., Server]


@pytest.fixture
def place() -> Iterator[Path]:
    with public_directory() as directory:
        (directory / "who.py").write_text(WHO)
        yield directory


@pytest.fixture
def begin(place: Path) -> Iterator[Begin]:
    """Start a server of root's in `place`; stopped and checked at the end."""
    made: list[Server] = []

    def start(*args: str, worker_class: str = "sync", app: str = "who:app", **rest: object) -> Server:
        server = start_as_root(place, app, *args, worker_class=worker_class, **rest)  # type: ignore[arg-type]
        made.append(server)
        return server

    yield start
    problems = []
    for server in made:
        try:
            if server.process.poll() is None:
                assert server.stop() == 0, server.log.text
            server.check()
        except AssertionError as problem:
            problems.append(str(problem))
        finally:
            server.close()
    assert not problems, "\n\n".join(problems)


@pytest.fixture
def theirs(place: Path) -> Path:
    """A directory of the workers' user."""
    directory = place / "theirs"
    directory.mkdir()
    os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
    return directory


@pytest.fixture
def secret(place: Path) -> Iterator[Path]:
    """A file of root's, which is the same in the end."""
    path = place / "secret"
    path.write_text("secret\n")
    path.chmod(0o600)
    before = path.stat()
    yield path
    after = path.stat()
    assert path.read_text() == "secret\n"
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (0, 0, 0o600)
    assert before.st_ino == after.st_ino


def ask(server: Server, path: str = "/") -> dict[str, object]:
    with RawClient(server.address) as client:
        found: dict[str, object] = client.get(path).json()
        return found


def address_in(log: Path) -> tuple[str, int]:
    text: str = wait_until(
        lambda: log.exists() and "] ready: " in (text := log.read_text()) and text, "ready, by the log"
    )
    match = re.search(r"http://127\.0\.0\.1:(\d+)", text)
    return "127.0.0.1", int(match[1]) if match else 0


# ---- who the workers are ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_users_workers_have_that_users_group_groups_and_home(
    begin: Begin, worker_class: str, preload: tuple[str, ...]
) -> None:
    found = ask(begin("-u", "daemon", *preload, worker_class=worker_class))
    entry = pwd.getpwnam("daemon")
    assert found["ids"] == [entry.pw_uid, entry.pw_uid, entry.pw_gid, entry.pw_gid]
    assert sorted(found["groups"]) == sorted(os.getgrouplist("daemon", entry.pw_gid))  # type: ignore[call-overload]
    assert found["home"] == {"HOME": entry.pw_dir, "USER": "daemon", "LOGNAME": "daemon"}


def test_a_number_without_an_entry_does_not_keep_roots_group(begin: Begin) -> None:
    server = begin("-u", "54321", expect=(r"user = 54321 .* is in no user database",))
    found = ask(server)
    assert found["ids"] == [54321, 54321, 65534, 65534]
    assert found["groups"] == [65534]
    assert found["home"] == {"HOME": "/", "USER": None, "LOGNAME": None}


def test_raw_env_goes_before(begin: Begin) -> None:
    found = ask(begin("-u", "nobody", "-g", "daemon", "--no-initgroups", "-e", "HOME=/srv"))
    assert found["groups"] == [grp.getgrnam("daemon").gr_gid]
    assert found["home"] == {"HOME": "/srv", "USER": "nobody", "LOGNAME": "nobody"}


def test_workers_of_root_are_warned_of_once(begin: Begin) -> None:
    server = begin("-w", "3")
    server.wait_for_log("ready: 3 workers")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: 3 workers")
    (line,) = [line for line in server.log.lines if "the workers run as root" in line]
    assert "[WARNING]" in line
    assert f"[{server.pid}]" in line
    silent = begin("-u", "root")
    silent.wait_for_log("ready: 1 worker")
    assert "run as root" not in silent.log.text


# ---- logs --------------------------------------------------------------------------------------------------


def test_logs_that_only_root_may_open_are_rotated_for_all_workers(begin: Begin, place: Path, worker_class: str) -> None:
    """logrotate's ``create 640 root``, in a directory of root's."""
    rotate(begin, place, worker_class)


def test_logs_are_rotated_with_preload(begin: Begin, place: Path, worker_class: str) -> None:
    rotate(begin, place, worker_class, "--preload")


def rotate(begin: Begin, place: Path, worker_class: str, *args: str) -> None:
    logs = place / "logs"
    logs.mkdir()
    names = ("access.log", "error.log")

    def create() -> None:
        for name in names:
            (logs / name).touch()
            (logs / name).chmod(0o640)

    create()
    server = begin(
        *AS_NOBODY,
        *("-w", "2", "--access-logfile", "logs/access.log", "--error-logfile", "logs/error.log"),
        *("--access-logformat", "%(p)s %(U)s", *args),
        worker_class=worker_class,
    )
    address = address_in(logs / "error.log")

    def ask_all(path: str, log: Path) -> None:
        """Ask until both workers have written their line."""

        def ask_once() -> None:
            with RawClient(address) as client:
                client.get(f"/slow{path}", headers="Connection: close\r\n")

        def asked() -> bool:
            threads = [threading.Thread(target=ask_once) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return len({line for line in log.read_text().splitlines() if line.endswith(f" /slow{path}")}) == 2

        wait_until(asked, f"both workers' lines for {path} in {log}")

    ask_all("/first", logs / "access.log")
    for round_ in (1, 2):
        for name in names:
            (logs / name).rename(logs / f"{name}.{round_}")
        create()
        server.send_signal(signal.SIGUSR1)
        wait_until(lambda: "reopened" in (logs / "error.log").read_text(), "the new error log is in use")
        ask_all(f"/after{round_}", logs / "access.log")
    # A worker that comes later writes there, too.
    victim = server.workers()[-1]
    os.kill(victim, signal.SIGTERM)
    wait_until(lambda: len(server.workers()) >= 2 and victim not in server.workers(), "the worker has been replaced")
    (logs / "access.log").write_text("")
    ask_all("/late", logs / "access.log")
    assert "/late" not in (logs / "access.log.2").read_text()
    for path in logs.iterdir():
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (0, 0o640), path
        assert "Cannot" not in path.read_text()


def test_standard_streams_by_name(begin: Begin, worker_class: str) -> None:
    server = begin(
        *AS_NOBODY, "--access-logfile", "/dev/stdout", "--error-logfile", "/dev/stderr", worker_class=worker_class
    )
    ask(server, "/a")
    server.out.wait_for(r"GET /a")
    server.send_signal(signal.SIGUSR1)
    server.wait_for_log("logs reopened")
    ask(server, "/b")
    server.out.wait_for(r"GET /b")
    assert "annot" not in server.log.text


def test_a_socket_as_standard_output(place: Path) -> None:
    """As of systemd's journal, and of a container's runtime: it cannot be opened again by its name."""
    ours, given = socket.socketpair()
    with ours, given:
        assert ROOT_PYTHON
        process = subprocess.Popen(
            [
                *(ROOT_PYTHON, "-m", "wsgiserv", "-b", "127.0.0.1:0", *AS_NOBODY),
                *("--access-logfile", "/dev/stdout", "who:app"),
            ],
            cwd=place,
            env={**os.environ, **environment_of_workers()},
            stdout=given,
            stderr=subprocess.PIPE,
        )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if b"listening on http://" in line:
                    break
            with RawClient(("127.0.0.1", int(line.rpartition(b":")[2]))) as client:
                assert client.get("/through").status == 200
            ours.settimeout(15)
            assert b"GET /through" in ours.recv(65536)
        finally:
            process.terminate()
            process.wait(15)
            assert process.stderr is not None
            process.stderr.close()


def test_a_fifo_that_nobody_reads_yet(begin: Begin, place: Path) -> None:
    os.mkfifo(place / "access.fifo", 0o600)
    server = begin(*AS_NOBODY, "--access-logfile", "access.fifo")
    ask(server, "/before")
    with (place / "access.fifo").open("rb", buffering=0) as reader:
        assert b"GET /before" in reader.read(4096)
        server.send_signal(signal.SIGUSR1)
        server.wait_for_log("logs reopened")
        ask(server, "/after")
        assert b"GET /after" in reader.read(4096)


def test_a_link_in_the_workers_directory_is_not_followed_at_the_start(begin: Begin, theirs: Path, secret: Path) -> None:
    for name, setting in (("error.log", "--error-logfile"), ("access.log", "--access-logfile")):
        (theirs / name).symlink_to(secret)
        server = begin(*AS_NOBODY, setting, f"theirs/{name}")
        assert server.wait() == 2
        assert "root does not follow it" in server.log.text


@pytest.mark.parametrize("how", ["USR1", "HUP"])
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_link_that_is_put_there_later_is_not_followed(
    begin: Begin, theirs: Path, secret: Path, how: str, preload: tuple[str, ...]
) -> None:
    logs = [theirs / "error.log", theirs / "access.log"]
    server = begin(
        *AS_NOBODY,
        *preload,
        *("--error-logfile", str(logs[0]), "--access-logfile", str(logs[1])),
        expect=(r"Cannot reopen|not follow",),
    )
    address = address_in(logs[0])
    for log in logs:
        log.rename(log.with_suffix(".1"))
        log.symlink_to(secret)
    server.send_signal(getattr(signal, f"SIG{how}"))
    old = logs[0].with_suffix(".1")
    wait_until(lambda: "root does not follow it" in old.read_text(), "the refusal is in the old log")
    with RawClient(address) as client:
        assert client.get("/still").status == 200
    wait_until(lambda: "/still" in logs[1].with_suffix(".1").read_text(), "the old access log is in use")


def test_a_hard_link_is_not_written_to(begin: Begin, place: Path, theirs: Path, secret: Path) -> None:
    os.link(secret, theirs / "error.log")
    server = begin(*AS_NOBODY, "--error-logfile", "theirs/error.log")
    assert server.wait() == 2
    assert "hard link" in server.log.text


def test_a_link_that_leads_where_the_user_may_write_is_followed_as_that_user(begin: Begin, theirs: Path) -> None:
    """/srv/app/current, as tools for releases have it."""
    (theirs / "releases").mkdir()
    os.chown(theirs / "releases", NOBODY.pw_uid, NOBODY.pw_gid)
    os.symlink("releases", theirs / "current")
    begin(
        *AS_NOBODY,
        *("--error-logfile", "theirs/current/error.log", "-p", "theirs/current/pid"),
        *("-b", "unix:theirs/current/s"),
    )
    address_in(theirs / "releases" / "error.log")
    for name in ("error.log", "pid", "s"):
        assert (theirs / "releases" / name).lstat().st_uid == NOBODY.pw_uid, name


def test_links_of_roots_own_go_on_working(begin: Begin, place: Path) -> None:
    (place / "data").mkdir()
    (place / "log").symlink_to(place / "data")
    (place / "data" / "real.log").touch()
    (place / "data" / "error.log").symlink_to("real.log")
    (place / "data" / "access.log").symlink_to("made.log")
    server = begin(
        *AS_NOBODY, "--error-logfile", "log/error.log", "--access-logfile", "log/access.log", "-p", "log/pid"
    )
    address = address_in(place / "data" / "real.log")
    with RawClient(address) as client:
        assert client.get("/x").status == 200
    wait_until(lambda: "/x" in (place / "data" / "made.log").read_text(), "the access log has the line")
    assert int((place / "data" / "pid").read_text()) == server.pid


def test_the_error_log_obeys_umask(begin: Begin, place: Path) -> None:
    begin(*AS_NOBODY, "--umask", "77", "--error-logfile", "error.log", "--access-logfile", "access.log")
    address_in(place / "error.log")
    for name in ("error.log", "access.log"):
        status = (place / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, NOBODY.pw_uid)


def test_the_workers_umask_and_the_sockets_are_octal(begin: Begin, place: Path) -> None:
    server = begin(*AS_NOBODY, "--umask", "27", "-b", "unix:s")
    assert ask(server)["umask"] == 0o27
    assert stat.S_IMODE((place / "s").stat().st_mode) == 0o750


# ---- logs of the logging module ---------------------------------------------------------------------------

LOGGING = """
import logging.config
def handler(kind, name, **rest):
    return {"class": "logging." + kind, "formatter": "line", "filename": "logs/" + name, **rest}
logconfig_dict = {
    "formatters": {"line": {"format": "[%(process)d] [%(levelname)s] %(message)s"}},
    "handlers": {
        "plain": handler("FileHandler", "plain.log"),
        "errors": handler("handlers.WatchedFileHandler", "watched.log"),
        "size": handler("handlers.RotatingFileHandler", "size.log", maxBytes=10**6, backupCount=1),
        "time": handler("handlers.TimedRotatingFileHandler", "time.log", when="D"),
        "access": handler("FileHandler", "access.log", mode="w", encoding="utf-8"),
    },
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["errors"], "propagate": False},
        "gunicorn.access": {"level": "INFO", "handlers": ["access"], "propagate": False},
        "site": {"level": "INFO", "handlers": ["plain", "size", "time", "errors"], "propagate": False},
    },
}
"""
LOGGING_APP = """
import logging

def app(environ, start_response):
    logging.getLogger("site").info("view %s", environ["PATH_INFO"])
    start_response("200 OK", [])
    return [b"x"]
"""
LOG_NAMES = ("plain.log", "watched.log", "size.log", "time.log", "access.log")


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("created", ["root's", "the server's"])
def test_files_of_logconfig_are_rotated(
    begin: Begin, place: Path, worker_class: str, preload: tuple[str, ...], created: str
) -> None:
    """Between the renaming and USR1 the old file is written to, and no record fails."""
    if created != "root's" and (preload or worker_class != "sync"):
        pytest.skip("who makes the files is the same process")
    logs = place / "logs"
    logs.mkdir()
    (place / "conf.py").write_text(LOGGING)
    (place / "site_of_logs.py").write_text(LOGGING_APP)

    def create() -> None:
        for name in LOG_NAMES if created == "root's" else ():
            (logs / name).touch()
            (logs / name).chmod(0o640)

    create()
    server = begin(*AS_NOBODY, *preload, "-c", "conf.py", app="site_of_logs:app", worker_class=worker_class)
    address = address_in(logs / "watched.log")

    def written(suffix: str) -> bool:
        return all((log := logs / name).exists() and suffix in log.read_text() for name in LOG_NAMES)

    def ask_for(path: str) -> bool:
        with RawClient(address) as client:
            assert client.get(path).status == 200
        return written(path)

    wait_until(lambda: ask_for("/first"), "the lines are in all files")
    owner = 0 if created == "root's" else NOBODY.pw_uid
    for round_ in ("1", "2"):
        for name in LOG_NAMES:
            assert (logs / name).stat().st_uid == owner, name
            (logs / name).rename(logs / f"{name}.{round_}")
        create()
        ask_for(f"/between{round_}")
        server.send_signal(signal.SIGUSR1)
        wait_until(
            lambda: (log := logs / "watched.log").exists() and "reopened" in log.read_text(),
            "the master writes to the new file",
        )
        wait_until(lambda n=round_: ask_for(f"/after{n}"), "the lines are in all new files")
    # A worker that comes later writes there, too.
    (victim,) = [pid for pid in server.workers() if pid_of_view(logs / "plain.log") == pid]
    os.kill(victim, signal.SIGTERM)
    wait_until(lambda: victim not in server.workers(), "the worker has left")
    wait_until(lambda: ask_for("/late"), "the lines of a new worker")
    assert "annot" not in "".join(path.read_text() for path in logs.iterdir())
    assert server.log.text == ""
    if created == "root's":
        assert not [path for path in logs.iterdir() if (path.stat().st_uid, path.stat().st_mode & 0o777) != (0, 0o640)]


def pid_of_view(log: Path) -> int:
    return int(log.read_text().split()[0].strip("[]"))


def test_a_link_in_the_way_of_a_logconfigs_file_is_not_followed(
    begin: Begin, place: Path, theirs: Path, secret: Path
) -> None:
    (theirs / "plain.log").symlink_to(secret)
    (place / "conf.py").write_text(
        LOGGING.replace('"logs/" + name', '"theirs/" + name').replace('"console"', '"plain"')
    )
    server = begin(*AS_NOBODY, "-c", "conf.py")
    assert server.wait() == 2
    assert "root does not follow it" in server.log.text


def test_a_fifo_of_logconfig_is_opened_again(begin: Begin, place: Path) -> None:
    os.mkfifo(place / "log.fifo", 0o600)
    (place / "conf.py").write_text(
        'logconfig_dict = {"handlers": {"fifo": {"class": "logging.FileHandler", "filename": "log.fifo"}},'
        ' "loggers": {"gunicorn.access": {"level": "INFO", "handlers": ["fifo"], "propagate": False}}}\n'
    )
    with open(os.open(place / "log.fifo", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as reader:
        os.set_blocking(reader.fileno(), True)
        server = begin(*AS_NOBODY, "-c", "conf.py")
        ask(server, "/before")
        assert b"GET /before" in reader.read(4096)
        server.send_signal(signal.SIGUSR1)
        server.wait_for_log("logs reopened")
        ask(server, "/after")
        assert b"GET /after" in reader.read(4096)


# ---- pid file ----------------------------------------------------------------------------------------------


def test_planted_names_of_pid_files_are_not_written_through(begin: Begin, theirs: Path, secret: Path) -> None:
    last = int(Path("/proc/loadavg").read_text().split()[-1])  # the latest process id, proc(5)
    for number in range(last, last + 300):
        (theirs / f"pid.{number}").symlink_to(secret)
    (theirs / "pid").symlink_to(secret)
    server = begin(*AS_NOBODY, "-p", "theirs/pid")
    server.wait_for_log("ready: 1 worker")
    assert not (theirs / "pid").is_symlink()
    assert int((theirs / "pid").read_text()) == server.pid
    left = [path for path in theirs.iterdir() if not path.is_symlink()]
    assert left == [theirs / "pid"]


def test_a_link_on_the_way_to_the_pid_file_is_not_followed(begin: Begin, place: Path, theirs: Path) -> None:
    (place / "roots").mkdir()
    (theirs / "way").symlink_to(place / "roots")
    server = begin(*AS_NOBODY, "-p", "theirs/way/pid")
    assert server.wait() == 2
    assert list((place / "roots").iterdir()) == []


# ---- sockets -----------------------------------------------------------------------------------------------


def test_a_socket_is_given_to_the_user_with_its_mode(begin: Begin, place: Path) -> None:
    server = begin(*AS_NOBODY, "-b", "unix:s", "--socket-mode", "660", "--umask", "77")
    server.wait_for_log("ready")
    status = (place / "s").stat()
    assert (status.st_uid, status.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert stat.S_IMODE(status.st_mode) == 0o660


def test_a_link_in_a_sockets_place_is_left_alone(begin: Begin, theirs: Path, secret: Path) -> None:
    (theirs / "s").symlink_to(secret)
    server = begin(*AS_NOBODY, "-b", "unix:theirs/s")
    assert server.wait() == 2
    assert "is not a socket" in server.log.text


def test_a_link_on_the_way_to_a_socket_is_not_followed_as_root(begin: Begin, place: Path, theirs: Path) -> None:
    (place / "roots").mkdir()
    (theirs / "way").symlink_to(place / "roots")
    for args in (("-b", "unix:theirs/way/s"), ("--control-socket", "theirs/way/c")):
        server = begin(*AS_NOBODY, *args, expect=("no control socket",))
        if args[0] == "-b":
            assert server.wait() == 2
        else:
            server.wait_for_log("no control socket")
            server.stop()
        assert list((place / "roots").iterdir()) == []


@pytest.mark.parametrize(
    ("args", "warned"),
    [
        (("--forwarded-headers", "for"), True),
        (("--forwarded-allow-ips", "*"), True),
        (("--forwarded-headers", "for", "--socket-mode", "660"), False),
        (("--forwarded-headers", "for", "--umask", "7"), False),
        ((), False),
    ],
)
def test_a_socket_open_to_all_where_forwarded_headers_are_trusted(
    begin: Begin, args: tuple[str, ...], warned: bool
) -> None:
    server = begin(*AS_NOBODY, "-b", "unix:s", *args, expect=("every user of this host may connect",))
    server.wait_for_log("ready: 1 worker")
    assert ("every user of this host may connect (mode 0777)" in server.log.text) == warned
