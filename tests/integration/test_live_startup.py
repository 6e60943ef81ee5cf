"""Before the first request: addresses, configuration, the application, and what is said when it cannot be."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rawclient import RawClient
from server import DEADLINE_S, Server, Start, environment, is_alive, run, title_of, wait_until

import wsgiserv

HELLO = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""


def write(directory: Path, **files: str) -> None:
    """Write ``name=text`` to name.py."""
    for name, text in files.items():
        (directory / f"{name}.py").write_text(text)


def refused(directory: Path, *args: str, status: int = 2, env: dict[str, str] | None = None) -> str:
    """Run a server that cannot start; return its one message."""
    done = run(args, directory, env)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("\n") <= 4, done.stderr
    assert done.stderr.strip()
    return done.stderr


# Start and stop


def test_the_startup_lines_say_who_listens_where(start: Start, worker_class: str) -> None:
    server = start("app:app", "-w", "2", files={"app.py": HELLO}, bind="tcp")
    host, port = server.address
    with RawClient(server.address) as client:
        assert client.get("/").body == b"hello"
    said = server.log.text
    for part in (f"http://{host}:{port}", worker_class, str(server.pid), wsgiserv.__version__):
        assert part in said
    assert len(said.splitlines()) <= 5, said
    assert server.out.text == ""


def test_several_addresses(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    server = start("app:app", "-b", "127.0.0.1:0", "-b", f"unix:{path}", files={"app.py": HELLO}, bind="none")
    server.wait_for_log("unix:")
    for address in (server.address, str(path)):
        with RawClient(address) as client:
            assert client.get("/").body == b"hello"


def test_a_unix_sockets_mode_comes_from_the_umask(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    server = start("app:app", "-b", f"unix:{path}", "-m", "0o117", files={"app.py": HELLO}, bind="none")
    server.wait_for_log("unix:")
    assert oct(path.stat().st_mode & 0o777) == "0o660"


def test_a_stale_unix_socket_is_replaced(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    start("app:app", "-b", f"unix:{path}", files={"app.py": HELLO}, bind="none").wait_for_log("unix:")
    with RawClient(str(path)) as client:
        assert client.get("/").body == b"hello"


def test_a_live_unix_socket_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path, app=HELLO)
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        assert str(path) in refused(tmp_path, "-b", f"unix:{path}", "app:app")
        assert path.exists()


def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path, app=HELLO)
    path = tmp_path / "precious"
    path.write_text("precious")
    assert str(path) in refused(tmp_path, "-b", f"unix:{path}", "app:app")
    assert path.read_text() == "precious"


def test_python_m_and_the_version(tmp_path: Path) -> None:
    done = run(["--version"], tmp_path)
    assert done.returncode == 0
    assert wsgiserv.__version__ in done.stdout


def test_help_is_grouped_and_complete(tmp_path: Path) -> None:
    done = run(["--help"], tmp_path)
    assert done.returncode == 0
    for flag in ("--bind", "--workers", "--worker-class", "--config", "--timeout", "--reload", "--access-logfile"):
        assert flag in done.stdout
    assert done.stderr == ""


# What cannot be


def test_a_port_in_use_names_the_address_and_its_holder(tmp_path: Path) -> None:
    write(tmp_path, app=HELLO)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        said = refused(tmp_path, "-b", f"127.0.0.1:{port}", "app:app")
    assert f"127.0.0.1:{port}" in said
    assert str(os.getpid()) in said


BAD_ARGUMENTS: dict[str, tuple[list[str], list[str]]] = {
    "port too large": (["-b", "127.0.0.1:99999"], ["99999", "bind"]),
    "port is a word": (["-b", "127.0.0.1:http"], ["127.0.0.1:http", "bind"]),
    "socket in no directory": (["-b", "unix:/nowhere/at/all/s.sock"], ["/nowhere/at/all"]),
    "descriptor that is not open": (["-b", "fd://199"], ["199"]),
    "no number of workers": (["-w", "zero"], ["zero", "workers"]),
    "minus one worker": (["--workers", "-1"], ["-1", "workers"]),
    "unknown worker class": (["-k", "syn"], ["syn", "sync"]),
    "no duration": (["-t", "soon"], ["soon", "timeout"]),
    "unknown log level": (["--log-level", "loud"], ["loud", "loglevel"]),
    "unknown user": (["-u", "no-such-user-here"], ["no-such-user-here"]),
    "no such directory": (["--chdir", "/nowhere/at/all"], ["/nowhere/at/all"]),
    "mistyped flag": (["--worker-clas", "sync"], ["--worker-class"]),
    "mistyped flag without value": (["--relod"], ["--reload"]),
    "no such config file": (["-c", "missing.py"], ["missing.py"]),
    "config file is a directory": (["-c", "."], ["."]),
    "no such config module": (["-c", "python:no_such_module_here"], ["no_such_module_here"]),
    "log in no directory": (["--error-logfile", "/nowhere/at/all/e.log"], ["/nowhere/at/all/e.log"]),
    "access log in no directory": (["--access-logfile", "/nowhere/at/all/a.log"], ["/nowhere/at/all/a.log"]),
    "access log format": (["--access-logfile", "-", "--access-logformat", "%(nothing"], ["nothing"]),
    "certificate that is not there": (["--certfile", "missing.pem"], ["missing.pem"]),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments_get_one_message(tmp_path: Path, name: str) -> None:
    write(tmp_path, app=HELLO)
    args, parts = BAD_ARGUMENTS[name]
    bind = [] if "-b" in args else ["-b", "127.0.0.1:0"]
    said = refused(tmp_path, *args, *bind, "app:app")
    for part in parts:
        assert part.lower() in said.lower().replace("worker_class", "worker-class"), said


@pytest.mark.parametrize("daemon", [[], ["-D"]], ids=["foreground", "daemon"])
@pytest.mark.parametrize("address", ["192.0.2.1:8000", "[2001:db8::1]:8000", "no-such-host.invalid:8000"])
def test_an_address_that_may_come_by_itself_is_status_1(tmp_path: Path, address: str, daemon: list[str]) -> None:
    """The interface, or the resolver, is not up yet: a service manager is to try again."""
    write(tmp_path, app=HELLO)
    said = refused(tmp_path, *daemon, "-b", "127.0.0.1:0", "-b", address, "app:app", status=1)
    assert address.rpartition(":")[0].strip("[]") in said


BAD_FILES: dict[str, tuple[str, list[str]]] = {
    "bad value": ("bind = '127.0.0.1:0'\nworkers = 'many'\n", ["workers", "many", "conf.py"]),
    "bad type": ("timeout = [1]\n", ["timeout", "conf.py"]),
    "hook that is no function": ("when_ready = 5\n", ["when_ready", "conf.py"]),
    "hook with wrong arguments": ("def pre_fork(server): pass\n", ["pre_fork", "conf.py"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_value_in_a_file_names_setting_value_and_file(tmp_path: Path, name: str) -> None:
    text, parts = BAD_FILES[name]
    write(tmp_path, app=HELLO, conf=text)
    said = refused(tmp_path, "-c", "conf.py", "-b", "127.0.0.1:0", "app:app")
    for part in parts:
        assert part in said


def test_an_unreadable_config_file(tmp_path: Path) -> None:
    """As root every file can be read, so the file is one that cannot be: a broken Python file names its line."""
    write(tmp_path, app=HELLO, conf="workers = = 2\n")
    done = run(["-c", "conf.py", "-b", "127.0.0.1:0", "app:app"], tmp_path)
    assert done.returncode == 2
    assert "conf.py" in done.stderr
    assert "line 1" in done.stderr
    assert "wsgiserv/" not in done.stderr, "frames of ours help nobody"


def test_a_config_file_that_raises_shows_where(tmp_path: Path) -> None:
    write(tmp_path, app=HELLO, conf="workers = 2\nraise RuntimeError('from the file')\n")
    done = run(["-c", "conf.py", "-b", "127.0.0.1:0", "app:app"], tmp_path)
    assert done.returncode == 2
    assert "from the file" in done.stderr
    assert "line 2" in done.stderr
    assert "wsgiserv/" not in done.stderr, "frames of ours help nobody"


def test_no_application_at_all(tmp_path: Path) -> None:
    assert refused(tmp_path, "-b", "127.0.0.1:0")


def test_a_mistyped_setting_is_answered_with_the_nearest(start: Start) -> None:
    server = start("app:app", "-c", "conf.py", files={"app.py": HELLO, "conf.py": "wrokers = 3\n"})
    server.expect(r"wrokers")
    line = server.wait_for_log("wrokers").string
    assert "workers" in line.replace("wrokers", "")


# The application cannot be loaded

BROKEN_APPS: dict[str, tuple[str, str, list[str]]] = {
    "import fails": (
        "import json\nimport no_such_package_here\n",
        "app:app",
        ["no_such_package_here", "app.py", "line 2"],
    ),
    "raises": (
        "def f():\n    raise ValueError('inside')\nf()\n",
        "app:app",
        ["ValueError: inside", "line 2", "line 3"],
    ),
    "syntax": ("def app(:\n", "app:app", ["SyntaxError", "app.py", "line 1"]),
    "exits": ("import sys\nsys.exit('bye')\n", "app:app", ["bye"]),
    "name is missing": ("def application(e, s): pass\n", "app:aplication", ["aplication", "application"]),
    "not callable": ("app = 5\n", "app:app", ["app", "callable"]),
    "module is missing": ("", "ap:app", ["'ap'"]),
    "factory raises": ("def make():\n    raise KeyError('deep')\n", "app:make()", ["KeyError: 'deep'", "line 2"]),
    "factory returns nothing": ("def make():\n    pass\n", "app:make()", ["make", "None"]),
}


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize("name", BROKEN_APPS)
def test_an_application_that_cannot_be_loaded_is_exit_4(tmp_path: Path, name: str, workers: str) -> None:
    text, app, parts = BROKEN_APPS[name]
    write(tmp_path, app=text)
    begun = time.monotonic()
    done = run(["-b", "127.0.0.1:0", "-w", workers, app], tmp_path)
    assert time.monotonic() - begun < 3.0
    assert done.returncode == 4, done.stderr
    for part in parts:
        assert part in done.stderr
    assert not re.search(r'File ".*/wsgiserv/', done.stderr), "frames of ours help nobody:\n" + done.stderr
    last = parts[0]
    assert done.stderr.count(last) <= 6, "no respawn loop:\n" + done.stderr


GOOD_APPS = {
    "app:app": HELLO,
    "app": HELLO,
    "app:make()": HELLO + "\ndef make():\n    return app\n",
    "app:make('x', debug=True)": HELLO
    + "\ndef make(name, *, debug):\n    assert (name, debug) == ('x', True)\n    return app\n",
    "app:holder.inner": HELLO + "\nclass holder:\n    inner = staticmethod(app)\n",
    "pkg.sub:app": HELLO,
    "2024-site:app": HELLO,
}


@pytest.mark.parametrize("name", GOOD_APPS)
def test_ways_to_name_the_application(start: Start, name: str) -> None:
    files = (
        {"pkg/__init__.py": "", "pkg/sub.py": HELLO}
        if name.startswith("pkg")
        else {f"{name.partition(':')[0]}.py": GOOD_APPS[name]}
    )
    server = start(name, files=files)
    with RawClient(server.address) as client:
        assert client.get("/").body == b"hello"


def test_chdir_and_pythonpath(start: Start, tmp_path: Path) -> None:
    files = {"site/inner.py": "from shared_part import app\n", "lib/shared_part.py": HELLO}
    server = start("inner:app", "--chdir", "site", "--pythonpath", str(tmp_path / "lib"), files=files)
    with RawClient(server.address) as client:
        assert client.get("/").body == b"hello"


def test_workers_that_cannot_boot_are_exit_3_without_a_fork_storm(tmp_path: Path) -> None:
    """An application that kills its process while it is imported."""
    write(tmp_path, app="import os\nopen('boots', 'a').write('x')\nos._exit(7)\n")
    done = subprocess.run(
        [*Server.program, "-b", "127.0.0.1:0", "-w", "2", "app:app"],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert len((tmp_path / "boots").read_text()) < 30


# Configuration


def test_the_command_line_in_the_environment(start_unclassed: Start) -> None:
    server = start_unclassed("app:app", files={"app.py": HELLO}, bind="none", env={"WSGISERV_CMD_ARGS": "-b :0 -w 2"})
    with RawClient(server.address) as client:
        assert client.get("/").body == b"hello"
    wait_until(lambda: len(server.workers()) == 2, "two workers")


@pytest.mark.parametrize("name", ["wsgiserv.conf.py", "gunicorn.conf.py"])
def test_a_config_file_is_found_by_itself(start: Start, name: str) -> None:
    server = start("app:app", files={"app.py": HELLO, name: "workers = 2\n"})
    wait_until(lambda: len(server.workers()) == 2, "two workers")
    if name.startswith("gunicorn"):
        server.expect(re.escape(name))
        server.wait_for_log(re.escape(name))


def test_precedence(start: Start) -> None:
    """Defaults < environment < file < flags."""
    files = {"app.py": HELLO, "conf.py": "workers = 2\nproc_name = 'x'\n"}
    server = start("app:app", "-c", "conf.py", files=files, env={"WEB_CONCURRENCY": "3", "WSGISERV_WORKERS": "4"})
    wait_until(lambda: len(server.workers()) == 2, "two workers")
    other = start("app:app", "-c", "conf.py", "-w", "1", env={"WEB_CONCURRENCY": "3"})
    with RawClient(other.address) as client:
        assert client.get("/").status == 200
    wait_until(lambda: len(other.workers()) == 1, "one worker")


def test_port_in_the_environment(tmp_path: Path) -> None:
    write(tmp_path, app=HELLO)
    done = run(["--print-config", "app:app"], tmp_path, {"PORT": "5123"})
    assert done.returncode == 0
    assert "0.0.0.0:5123" in done.stdout


def test_raw_env_reaches_the_application(start: Start) -> None:
    text = (
        "import os\ndef app(e, s):\n    s('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [os.environ['GREETING'].encode()]\n"
    )
    server = start("app:app", "-e", "GREETING=a=b", files={"app.py": text})
    with RawClient(server.address) as client:
        assert client.get("/").body == b"a=b"


def test_check_config(tmp_path: Path) -> None:
    write(tmp_path, app=HELLO, broken="import no_such_package_here\n")
    assert run(["--check-config", "app:app"], tmp_path).returncode == 0
    done = run(["--check-config", "broken:app"], tmp_path)
    assert done.returncode == 4
    assert "no_such_package_here" in done.stderr
    assert run(["--check-config", "-w", "x", "app:app"], tmp_path).returncode == 2


def test_print_config_says_where_a_value_came_from(tmp_path: Path) -> None:
    write(tmp_path, app=HELLO, conf="workers = 2\n")
    done = run(["--print-config", "-c", "conf.py", "-t", "17", "app:app"], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()}
    assert "17" in lines["timeout"]
    assert "--timeout" in lines["timeout"] or "-t" in lines["timeout"]
    assert "conf.py" in lines["workers"]
    assert "default" in lines["backlog"]


# Pid file, daemon, privileges


def test_a_stale_pid_file_is_replaced(start: Start, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "pid").write_text(f"{gone.pid}\n")
    server = start("app:app", "-p", "pid", files={"app.py": HELLO})
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    assert int((tmp_path / "pid").read_text()) == server.pid


def test_a_live_pid_file_refuses_the_start(start: Start, tmp_path: Path) -> None:
    server = start("app:app", "-p", "pid", files={"app.py": HELLO})
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    said = refused(tmp_path, "-p", "pid", "-b", "127.0.0.1:0", "app:app")
    assert str(server.pid) in said
    assert int((tmp_path / "pid").read_text()) == server.pid


def test_daemon(start: Start, tmp_path: Path) -> None:
    pidfile, log = tmp_path / "pid", tmp_path / "error.log"
    args = ("-D", "-p", str(pidfile), "--error-logfile", str(log), "-b", "127.0.0.1:0")
    server = start("app:app", *args, files={"app.py": HELLO}, bind="none")
    assert server.wait() == 0
    pid = int(wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), "the pid file"))
    try:
        assert pid != server.pid
        server.watch_session(os.getsid(pid))
        assert os.getsid(pid) != server.pid
        port = wait_until(lambda: re.search(r"http://127.0.0.1:(\d+)", log.read_text()), "the address in the log")
        with RawClient(("127.0.0.1", int(port[1]))) as client:
            assert client.get("/").body == b"hello"
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), "the daemon's end")
    assert not pidfile.exists()
    assert "ERROR" not in log.read_text()


WHO = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr((os.getuid(), os.geteuid(), os.getgid(), os.getegid())).encode()]
"""


# What many applications import is imported by the master all the same: see wsgiserv/preimport.py. `ssl` must not be
# there before an application that patches the library by itself has done so.
LARGE = (
    *("asyncio", "concurrent.futures", "http.client", "logging.config", "logging.handlers", "multiprocessing"),
    *("queue", "socketserver", "sqlite3", "ssl", "subprocess", "unittest", "urllib.request", "watchfiles", "xml"),
)
MODULES = """
import sys
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(sys.modules).encode()]
"""


@pytest.mark.parametrize("worker_class", ["sync", "threads"], indirect=True)
@pytest.mark.no_coverage
def test_a_worker_has_no_large_modules_that_neither_it_nor_most_applications_use(start: Start) -> None:
    """Each would be in the memory of every worker, and in the time of every start."""
    # The variable: a process of its own, since one forked from the tests has what the tests have.
    server = start("modules:app", files={"modules.py": MODULES}, env={"PYTHONHASHSEED": "0"})
    with RawClient(server.address) as client:
        modules = client.get("/a%20b").body.decode().split()
    assert "wsgiserv.net.client" in modules
    # What any worker has: an environment may have every Python import something (a .pth file, as of an editable
    # install), paths are unquoted, and invalidate_caches() imports importlib.metadata from Python 3.13 on.
    bare = [
        sys.executable,
        "-c",
        "import importlib, sys, urllib.parse; importlib.invalidate_caches(); print(*sys.modules)",
    ]
    always = subprocess.run(bare, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout.split()
    assert sorted(set(LARGE) & set(modules) - set(always)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")
def test_workers_drop_privileges(start: Start, tmp_path: Path) -> None:
    places = [Path(sys.base_prefix), *Path(sys.base_prefix).parents]
    if not all(place.stat().st_mode & 0o001 for place in places):
        pytest.skip(f"a worker imports as it goes, and other users may not read the Python in {sys.base_prefix}")
    for directory in (tmp_path, *tmp_path.parents[:2]):  # pytest's own are closed to others
        directory.chmod(0o755)
    server = start("app:app", "-u", "65534", "-g", "65534", files={"app.py": WHO})
    with RawClient(server.address) as client:
        assert client.get("/").body == b"(65534, 65534, 65534, 65534)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its group")
def test_workers_change_their_group(start: Start) -> None:
    server = start("app:app", "-g", "65534", files={"app.py": WHO})
    with RawClient(server.address) as client:
        assert client.get("/").body == b"(0, 0, 65534, 65534)"


def test_process_titles(start: Start) -> None:
    server = start("app:app", "-n", "my-site", files={"app.py": HELLO})
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    (worker,) = server.workers()
    master_title, worker_title = title_of(server.pid), title_of(worker)
    assert "master" in master_title
    assert "my-site" in master_title
    assert "worker" in worker_title
    assert "my-site" in worker_title


# The two files that people have in the field (issue 2, part 4), as they are

FIELD_FILES = {
    "plain": """import os
bind = '127.0.0.1:5000'
workers = 4
backlog = 2048
worker_class = "sync"
debug = True
proc_name = 'gunicorn.proc'
pidfile = '/tmp/gunicorn.pid'
logfile = '/var/log/gunicorn/debug.log'
loglevel = 'debug'
""",
    "gevent": """import os
import gevent.monkey
gevent.monkey.patch_all()
import multiprocessing
debug = True
loglevel = 'debug'
bind = '0.0.0.0:8800'
pidfile = 'log/gunicorn.pid'
logfile = 'log/debug.log'
workers = multiprocessing.cpu_count() * 2 + 1
worker_class = 'gunicorn.workers.ggevent.GeventWorker'
x_forwarded_for_header = 'X-FORWARDED-FOR'
""",
}
PORTS = {"plain": 5000, "gevent": 8800}


@pytest.fixture
def field_directories(tmp_path: Path) -> Iterator[None]:
    """The log directories that the files name; one test at a time, since the files name fixed paths.

    Locked is the directory itself, which needs no file, so that a run of another user waits, too.
    """
    (tmp_path / "log").mkdir()
    var = Path("/var/log/gunicorn")
    with alone_in("/tmp"):
        made = not var.exists()
        try:
            var.mkdir(exist_ok=True)
        except PermissionError:
            pytest.skip("/var/log/gunicorn is not there and cannot be made")
        if not os.access(var, os.W_OK):
            pytest.skip("/var/log/gunicorn is another user's")
        pidfile = Path("/tmp/gunicorn.pid")
        if os.path.lexists(pidfile) and pidfile.lstat().st_uid != os.geteuid():
            pytest.skip(f"{pidfile} is another user's")
        yield
        if made:
            shutil.rmtree(var)


@contextlib.contextmanager
def alone_in(directory: str) -> Iterator[None]:
    """Hold the lock of a directory, which every user can take (flock(2))."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def lock() -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        wait_until(lock, f"the lock of {directory}", 4 * DEADLINE_S)
        yield
    finally:
        os.close(fd)


def own_network() -> list[str]:
    """The command that gives a process a loopback of its own, or nothing where that is not allowed."""
    wrap = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return []
    return wrap if subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode == 0 else []


ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
for _ in range(3):
    connection.request("GET", "/")
    response = connection.getresponse()
    print(response.status, response.read().decode())
"""


@pytest.mark.parametrize("name", FIELD_FILES)
@pytest.mark.usefixtures("field_directories")
def test_the_files_in_the_field_run_as_they_are(start_unclassed: Start, tmp_path: Path, name: str) -> None:
    wrap = own_network()
    if not wrap:
        pytest.skip("the files' fixed ports need a network namespace (unshare -n)")
    files = {"app.py": HELLO, "gun.py": FIELD_FILES[name]}
    server = start_unclassed("app:app", "-c", "gun.py", files=files, bind="none", wrap=wrap)
    server.expect(r"gun\.py line \d+\) is ignored")
    log = Path("/var/log/gunicorn/debug.log") if name == "plain" else tmp_path / "log/debug.log"
    pidfile = Path("/tmp/gunicorn.pid") if name == "plain" else tmp_path / "log/gunicorn.pid"

    def said() -> str:
        # gunicorn of today ignores `logfile`; a server that obeys it is right too
        return server.log.text + (log.read_text() if log.exists() else "")

    wait_until(lambda: f":{PORTS[name]}" in said(), "the startup lines")
    assert int(pidfile.read_text()) == server.pid
    enter = ["nsenter", "-t", str(server.pid), "-n", sys.executable, "-c", ASK, str(PORTS[name])]
    answers = subprocess.run(enter, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout
    assert answers == "200 hello\n" * 3
    expected = 4 if name == "plain" else (os.cpu_count() or 1) * 2 + 1
    wait_until(lambda: len(server.workers()) == expected, f"{expected} workers")
    assert server.stop() == 0
    assert not pidfile.exists()
    assert "Traceback" not in said()
    assert "[ERROR]" not in said()


@pytest.mark.parametrize("name", FIELD_FILES)
def test_settings_that_mean_nothing_here_get_one_line_each(tmp_path: Path, name: str) -> None:
    (tmp_path / "log").mkdir()
    write(tmp_path, app=HELLO, gun=FIELD_FILES[name].replace("/var/log/gunicorn", str(tmp_path / "log")))
    done = run(["--check-config", "-c", "gun.py", "app:app"], tmp_path)
    assert done.returncode == 0, done.stderr
    for setting in ("debug",) if name == "plain" else ("debug", "x_forwarded_for_header"):
        lines = [line for line in (done.stderr + done.stdout).splitlines() if re.search(rf"\b{setting}\b", line)]
        assert len(lines) == 1, (setting, done.stderr, done.stdout)


# What gunicorn takes in silence


def test_what_gunicorn_takes_in_silence_gets_a_line(start_unclassed: Start, tmp_path: Path) -> None:
    text = "pythonpath = 'none'\naccess_log_format = 'combind'\ntimeout = 10 ** 9\nlogfile = 'e.log'\n"
    server = start_unclassed("app:app", "-c", "gun.py", files={"app.py": HELLO, "gun.py": text})
    with RawClient(server.address) as client:
        assert client.get("/").body == b"hello"
    said = (tmp_path / "e.log").read_text()
    for name in ("pythonpath", "access_log_format", "timeout", "logfile"):
        assert len(re.findall(rf"\[WARNING\] (?:WS\d+ )?(WS\d+ )?{name} ", said)) == 1, said
    done = run(["--check-config", "-c", "gun.py", "-b", "127.0.0.1:0", "app:app"], tmp_path)
    assert done.returncode == 0
    assert len(re.findall(r"^wsgiserv: note: ", done.stderr, re.MULTILINE)) == 4


# Limits below what a worker needs


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["plain", "preload"])
def test_a_memory_limit_below_a_workers_own_size(tmp_path: Path, worker_class: str, preload: list[str]) -> None:
    write(tmp_path, app=HELLO)
    args = ["-k", worker_class, *preload, "-b", "127.0.0.1:0", "--max-worker-memory", "1M", "app:app"]
    for check in ([], ["--check-config"]) if not preload else ([],):
        done = run([*check, *args], tmp_path)
        assert done.returncode == 2, done.stderr
        assert re.search(r"max_worker_memory = 1.0 MiB: a worker has [\d.]+ MiB before its first", done.stderr)


def test_a_reload_with_a_memory_limit_below_a_workers_own_size(start_unclassed: Start, tmp_path: Path) -> None:
    files = {"app.py": HELLO, "gun.py": "max_worker_memory = '500M'\n"}
    server = start_unclassed("app:app", "-c", "gun.py", files=files, expect=("max_worker_memory", "SIGKILL"))
    server.wait_for_log("ready")
    before = server.workers()
    (tmp_path / "gun.py").write_text("max_worker_memory = '1M'\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"\[ERROR\].*reload.*failed.*max_worker_memory = 1.0 MiB")
    wait_until(lambda: server.workers() == before, "the old workers alone")
    with RawClient(server.address) as client:
        assert client.get("/").body == b"hello"
