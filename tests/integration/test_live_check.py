"""The rule: --check-config finds what would stop the start, says so as the start would, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Start, run

HELLO = """
import os
def app(environ, start_response):
    with open(os.environ.get("NOTES", os.devnull), "a") as file:
        file.write(f"{environ['PATH_INFO']} {environ.get('wsgiserv.warmup')} {os.getuid()}\\n")
    start_response("500 No" if environ["PATH_INFO"] == "/bad" else "200 OK", [])
    return [b"hello"]
"""

# What is asked for, the status of the start, and what is named.
STOPS: dict[str, tuple[list[str], int, list[str]]] = {
    "error log": (["--error-logfile", "/nowhere/e.log"], 2, ["errorlog", "/nowhere"]),
    "error log is a directory": (["--error-logfile", "here"], 2, ["errorlog", "here"]),
    "access log": (["--access-logfile", "/nowhere/a.log"], 2, ["accesslog", "/nowhere"]),
    "log of a kernel": (["--access-logfile", "/proc/a.log"], 2, ["accesslog", "/proc/a.log"]),
    "pid file": (["-p", "/nowhere/x.pid"], 2, ["pidfile", "/nowhere"]),
    "pid file of another kind": (["-p", "app.py"], 2, ["pidfile", "app.py"]),
    "spool": (["--spool-dir", "/nowhere"], 2, ["spool_dir", "/nowhere", "does not exist"]),
    "spool is a file": (["--spool-dir", "app.py"], 2, ["spool_dir", "app.py", "not a directory"]),
    "control socket": (["--control-socket", "/nowhere/c"], 2, ["control_socket", "/nowhere", "does not exist"]),
    "control socket is a file": (["--control-socket", "app.py"], 2, ["control_socket", "app.py"]),
    "control socket is long": (["--control-socket", "x" * 200], 2, ["control_socket", "107"]),
    "socket": (["-b", "unix:/nowhere/s"], 2, ["bind", "/nowhere"]),
    "socket is a file": (["-b", "unix:app.py"], 2, ["bind", "app.py", "not a socket"]),
    "socket is long": (["-b", f"unix:{'x' * 200}"], 2, ["bind", "107"]),
    "descriptor": (["-b", "fd://199"], 2, ["bind", "199"]),
    "foreign address": (["-b", "192.0.2.1:8000"], 1, ["bind", "192.0.2.1"]),
    "unknown name": (["-b", "no-such-host.invalid:8000"], 1, ["bind", "no-such-host.invalid"]),
    "log configuration": (["--log-config", "none.ini"], 2, ["logconfig", "none.ini"]),
    "log configuration in JSON": (["--log-config-json", "app.py"], 2, ["logconfig_json", "app.py"]),
    "handler": (["-c", "handler.py"], 2, ["logconfig_dict", "'f'"]),
    "certificate": (["--certfile", "none.pem"], 2, ["certfile", "none.pem"]),
    "warm-up": (["--warmup", "/", "--warmup", "/bad"], 4, ["/bad", "500"]),
    "class": (["-k", "no_such_module:Worker"], 2, ["no_such_module"]),
}
HANDLER = """
logconfig_dict = {"handlers": {"f": {"class": "logging.FileHandler", "filename": "/nowhere/f.log"}}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(HELLO)
    (tmp_path / "here").mkdir()
    (tmp_path / "handler.py").write_text(HANDLER)
    return tmp_path


def listing(directory: Path) -> list[tuple[str, int]]:
    found = sorted(path for path in directory.rglob("*") if "__pycache__" not in path.parts)
    return [(str(path.relative_to(directory)), path.stat().st_size) for path in found]


@pytest.mark.parametrize("name", STOPS)
def test_the_check_finds_what_stops_the_start(place: Path, name: str) -> None:
    args, status, parts = STOPS[name]
    bind = [] if "-b" in args else ["-b", "127.0.0.1:0"]
    before = listing(place)
    checked = run(["--check-config", *args, *bind, "app:app"], place)
    assert (checked.returncode, checked.stdout) == (status, ""), checked.stderr
    assert listing(place) == before
    started = run([*args, *bind, "app:app"], place)
    assert started.returncode == status, started.stderr
    for part in parts:
        assert part in checked.stderr
        assert part in started.stderr
    [line] = [line for line in checked.stderr.splitlines() if "wsgiserv: error:" in line]
    told = line.partition("error: ")[2]
    if os.geteuid() and "/proc/" in told:
        told = told.partition(": ")[0]  # the kernel gives a user another reason there than the directory's mode
    assert told in started.stderr


def test_everything_that_is_wrong_is_said_at_once(place: Path) -> None:
    wrong = ["-p", "/nowhere/x.pid", "--spool-dir", "/nowhere", "-b", "192.0.2.1:8000", "-b", "unix:/nowhere/s"]
    done = run(["--check-config", *wrong, "app:app"], place)
    assert done.returncode == 2
    for setting in ("pidfile", "spool_dir", "192.0.2.1", "unix:/nowhere/s"):
        assert len(re.findall(rf"^wsgiserv: error: .*{setting}", done.stderr, re.MULTILINE)) == 1, done.stderr


def test_it_says_what_it_found_good_and_leaves_nothing(place: Path) -> None:
    text = "accesslog = 'a.log'\nerrorlog = 'e.log'\npidfile = 'x.pid'\nworkers = 2\nwarmup = ['/a']\n"
    (place / "gun.py").write_text(text)
    before = listing(place)
    bind = ["-b", "127.0.0.1:0", "-b", "unix:here/s", "--control-socket", "here/c"]
    done = run(["--check-config", "-k", "threads", "-c", "gun.py", *bind, "app:app"], place, {"NOTES": "/dev/stderr"})
    assert done.returncode == 0, done.stderr
    for part in ("gun.py", "app:app", str(place / "app.py"), "threads", "2 workers", "127.0.0.1:0", "unix:", "/a"):
        assert part in done.stdout
    assert done.stderr == f"/a True {os.getuid()}\n"
    assert listing(place) == before


@pytest.mark.parametrize("preload", [[], ["--preload", "--preload-in", "zygote"], ["--preload", "--preload-in=master"]])
def test_each_class_can_be_checked(place: Path, worker_class: str, preload: list[str]) -> None:
    args = ["--check-config", "-k", worker_class, *preload, "-b", "127.0.0.1:0", "--warmup", "/"]
    done = run([*args, "app:app"], place)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"worker class: {worker_class}," in done.stdout


def test_beside_the_server_that_is_to_be_reloaded(start_unclassed: Start, place: Path) -> None:
    """Its address, socket and pid file are in use, which is as it should be."""
    args = ["-b", "unix:here/s", "-p", "x.pid", "--control-socket", "here/c"]
    server = start_unclassed("app:app", *args, bind="tcp")
    args += ["-b", "{}:{}".format(*server.address)]
    done = run(["--check-config", *args, "app:app"], place)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(rf"^wsgiserv: note: .*{server.pid}", done.stderr, re.MULTILINE)) == 3, done.stderr


def test_a_reload_with_a_directory_that_does_not_exist(start_unclassed: Start, place: Path) -> None:
    server = start_unclassed("app:app", "-c", "gun.py", files={"gun.py": ""}, expect=("/nowhere",))
    server.wait_for_log("ready")
    for setting in ("spool_dir", "control_socket"):
        (place / "gun.py").write_text(f"{setting} = '/nowhere/x'\n")
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(rf"\[ERROR\].*{setting} = '/nowhere/x': the directory /nowhere.* does not exist")
    with RawClient(server.address) as client:
        assert client.get("/").body == b"hello"


def test_log_files_of_a_logging_configuration_are_left_alone(place: Path) -> None:
    (place / "kept.log").write_text("kept")
    (place / "gun.py").write_text(
        "logconfig_dict = {'handlers': {"
        "'old': {'class': 'logging.FileHandler', 'filename': 'kept.log', 'mode': 'w'},"
        "'turned': {'class': 'logging.handlers.TimedRotatingFileHandler', 'filename': 'kept.log', 'when': 'S'},"
        "'new': {'class': 'logging.handlers.WatchedFileHandler', 'filename': 'new.log'}},"
        "'loggers': {'gunicorn.access': {'handlers': ['new']}, '': {'handlers': ['old', 'turned']}}}\n"
    )
    os.utime(place / "kept.log", (1e9, 1e9))  # due for a rotation
    (place / "app.py").write_text(HELLO + "\nimport logging\nlogging.getLogger().error('loaded')\n")
    before = listing(place)
    done = run(["--check-config", "-c", "gun.py", "-b", "127.0.0.1:0", "app:app"], place)
    assert done.returncode == 0, done.stderr
    assert listing(place) == before


@pytest.mark.parametrize("status", [0, 7])
def test_an_application_that_leaves_in_silence(place: Path, status: int) -> None:
    (place / "app.py").write_text(f"import os\nos._exit({status})\n")
    done = run(["--check-config", "-b", "127.0.0.1:0", "app:app"], place)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"exited with status {status}" in done.stderr


def test_an_application_that_does_not_come_to_an_end(place: Path) -> None:
    (place / "app.py").write_text("import time\ntime.sleep(600)\n")
    done = run(["--check-config", "--boot-timeout", "0.5", "-b", "127.0.0.1:0", "app:app"], place)
    assert done.returncode == 3
    assert "boot_timeout" in done.stderr


def test_two_addresses_of_which_one_includes_the_other(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    args = ["-b", f"0.0.0.0:{port}", "-b", f"127.0.0.1:{port}", "app:app"]
    for done in (run(["--check-config", *args], place), run(args, place)):
        assert done.returncode == 2
        assert f"bind = '0.0.0.0:{port}' has that address already" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
class TestAsRoot:
    def test_the_application_is_loaded_as_the_workers_user(self, place: Path) -> None:
        for path in (place, *place.parents):
            if path.stat().st_uid == os.getuid() and path != Path("/") and not path.stat().st_mode & 0o001:
                path.chmod(0o711)
        place.chmod(0o755)
        (place / "notes").touch()
        (place / "notes").chmod(0o666)
        args = ["-u", "nobody", "-b", "127.0.0.1:0", "--warmup", "/"]
        (place / "app.py").write_text(HELLO + "\nassert os.getuid() != 0\n")
        done = run(["--check-config", *args, "app:app"], place, {"NOTES": "notes"})
        assert done.returncode == 0, done.stderr
        assert not (place / "notes").read_text().endswith(" 0\n")

    def test_a_spool_that_is_roots_alone(self, place: Path) -> None:
        (place / "here").chmod(0o700)
        args = ["-u", "nobody", "-b", "127.0.0.1:0", "--spool-dir", "here", "app:app"]
        for done in (run(["--check-config", *args], place), run(args, place)):
            assert done.returncode == 2, done.stderr
            assert "spool_dir" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen anywhere, and become anybody")
class TestAsAUser:
    @pytest.mark.parametrize(("args", "word"), [(["-u", "root"], "user"), (["-b", "127.0.0.1:1"], "below 1024")])
    def test_what_only_root_may(self, place: Path, args: list[str], word: str) -> None:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
            if "-b" in args and int(file.read()) <= 1:
                pytest.skip("every port is free for everybody here")
        done = run(["--check-config", *args, "app:app"], place)
        assert done.returncode == 2
        assert word in done.stderr
