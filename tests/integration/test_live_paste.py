"""PasteDeploy files: ``--paste`` as gunicorn has it, and ``pserve`` with ``use = egg:wsgiserv#main``."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient
from server import HERE, ROOT, Connect, Output, Start, bare_environment, children, run, wait_until

MODULE = """\
import json, logging, os

def make(global_conf, **local):
    logging.getLogger("shop").info("made %s", local.get("name"))
    def app(environ, start_response):
        facts = dict(conf=dict(global_conf), local=local, pid=os.getpid(), parent=os.getppid())
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(facts).encode()]
    return app

def broken(global_conf, **local):
    raise RuntimeError("no database")

def nothing(global_conf, **local):
    return None
"""
APPS = """\
[DEFAULT]
color = red
[app:main]
paste.app_factory = shop:make
name = main
[app:admin]
paste.app_factory = shop:make
name = admin
tint = %(COLOR)s
[app:broken]
paste.app_factory = shop:broken
[app:nothing]
paste.app_factory = shop:nothing
"""
LOGGERS = """\
[loggers]
keys = root
[handlers]
keys = file
[formatters]
keys = plain
[logger_root]
level = INFO
handlers = file
[handler_file]
class = FileHandler
args = ("%(here)s/shop.log",)
formatter = plain
[formatter_plain]
format = %(name)s: %(message)s
"""
FILES = {"shop.py": MODULE, "shop.ini": APPS}


def test_the_main_application(start: Start, connect: Connect, tmp_path: Path) -> None:
    server = start(None, "--paste", "shop.ini", files=FILES)
    facts = connect(server.address).get("/").json()
    assert facts["local"] == {"name": "main"}
    assert facts["conf"] == {"color": "red", "here": str(tmp_path), "__file__": str(tmp_path / "shop.ini")}


@pytest.mark.parametrize("preload", [(), ("--preload",), ("--preload", "--preload-in", "master")])
def test_a_named_one_with_variables(
    start_unclassed: Start, connect: Connect, tmp_path: Path, preload: tuple[str, ...]
) -> None:
    """From another directory, with another one to serve from, and an application's name that is not used."""
    (tmp_path / "sub").mkdir()
    arguments = ("--paster", "shop.ini#admin", "--paste-global", "COLOR=blue", "--paste-global", r"a\=b=c=d")
    files = {"sub/shop.py": MODULE, "shop.ini": APPS}
    server = start_unclassed(
        "other:app", *arguments, "--chdir", "sub", *preload, files=files, expect=("WS1097", "WS1291")
    )
    server.wait_for_log(r"WS1097 wsgi_app = 'other:app' \(on the command line\) is not used: paste \(--paster on the")
    server.wait_for_log("ready")
    for _ in range(2):
        facts = connect(server.address).get("/").json()
        assert facts["local"] == {"name": "admin", "tint": "blue"}
        assert facts["conf"]["a=b"] == "c=d"
        before = len(server.log.lines)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded", after=before)


def test_as_gunicorn_does(start_unclassed: Start, connect: Connect, tmp_path: Path) -> None:
    arguments = ["--paste", "shop.ini#admin", "--paste-global", "COLOR=blue"]
    server = start_unclassed(None, *arguments, files={**FILES, "shop.ini": APPS + LOGGERS})
    ours = connect(server.address).get("/").json()
    server.stop()
    log = (tmp_path / "shop.log").read_text()
    assert "shop: made admin" in log
    (tmp_path / "shop.log").unlink()
    with socket.create_server(("127.0.0.1", 0)) as listener, open(tmp_path / "out", "w") as out:
        fd = listener.fileno()
        command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "-b", f"fd://{fd}", *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=bare_environment(), stdout=out, stderr=out, pass_fds=(fd,)
        )
        try:
            with RawClient(listener.getsockname()) as client:
                theirs = client.get("/").json()
        finally:
            process.terminate()
            process.wait(20)
    assert "shop: made admin" in (tmp_path / "shop.log").read_text()
    for key in ("conf", "local"):
        assert ours[key] == theirs[key]


def test_its_faults(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    options = ("-b", "127.0.0.1:0", "--paste-global", "COLOR=x")

    def outcome(*arguments: str, **env: str) -> tuple[int, str]:
        done = run([*options, *arguments], tmp_path, env)
        return done.returncode, done.stderr

    status, said = outcome("--paste", "nowhere.ini#admin")
    assert status == 2
    assert "WS1094 paste = 'nowhere.ini#admin' (--paste on the command line) is not accepted: there is no such" in said
    assert f"file: {tmp_path}/nowhere.ini." in said
    for preload in ((), ("--preload",), ("--preload", "--preload-in", "master"), ("--check-config",)):
        status, said = outcome("--paste", "shop.ini#broken", *preload)
        assert (status, "no database" in said, "shop.py" in said) == (4, True, True)
        status, said = outcome("--paste", "shop.ini#nothing", *preload)
        assert (status, "which cannot be called" in said) == (4, True)
        status, said = outcome("--paste", "shop.ini#unknown", *preload)
        assert (status, "unknown" in said) == (4, True)


@pytest.mark.parametrize("preload", [(), ("--preload",), ("--preload", "--preload-in", "master"), ("--check-config",)])
def test_without_pastedeploy_it_says_what_to_install(tmp_path: Path, preload: tuple[str, ...]) -> None:
    (tmp_path / "shop.ini").write_text(APPS)
    # A finder before all others: the tests' own Python has the package.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('paste', 'paste.deploy'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(HERE)])
    done = run(["-b", "127.0.0.1:0", "--paste", "shop.ini", *preload], tmp_path, {"PYTHONPATH": path})
    assert done.returncode == 2
    assert f"WS1095 paste = '{tmp_path}/shop.ini'" in done.stderr
    assert "pip install 'wsgiserv[paste]'" in done.stderr


# ---- pserve ----------------------------------------------------------------------------------------------


class Pserve:
    """``pserve`` on shop.ini with a section of the server; wsgiserv's entry points are pyproject.toml's."""

    def __init__(self, directory: Path, section: str, apps: str = APPS) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        group = "paste.server_runner"
        points = group, project["entry-points"][group]
        # Metadata of a distribution: this tree may not be installed, or only in an older state.
        metadata = directory / "meta" / "wsgiserv-99.dist-info"
        metadata.mkdir(parents=True, exist_ok=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: wsgiserv\nVersion: 99\n")
        lines = "".join(f"{name} = {value}\n" for name, value in points[1].items())
        (metadata / "entry_points.txt").write_text(f"[{points[0]}]\n{lines}")
        (directory / "shop.py").write_text(MODULE)
        (directory / "shop.ini").write_text(f"{apps}[server:main]\nuse = egg:wsgiserv#main\n{section}")
        path = os.pathsep.join(map(str, [directory / "meta", directory, ROOT]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyramid.scripts.pserve", "shop.ini"],
            cwd=directory,
            env={**bare_environment(), "PYTHONPATH": path, "XDG_RUNTIME_DIR": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out, self.log = Output(self.process.stdout), Output(self.process.stderr)

    @property
    def address(self) -> tuple[str, int]:
        found = self.log.wait_for(r"listening on http://([\d.]+):(\d+)")
        return found[1], int(found[2])

    def ask(self) -> Any:
        with RawClient(self.address) as client:
            return client.get("/").json()

    def wait(self) -> int:
        status = self.process.wait(20)
        self.log.join()
        self.out.join()
        return status


@pytest.fixture
def pserve(tmp_path: Path) -> Iterator[Any]:
    """Start pserve with a section; killed at the end, if it still runs."""
    made: list[Pserve] = []

    def start(*arguments: str) -> Pserve:
        made.append(Pserve(tmp_path, *arguments))
        return made[-1]

    yield start
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)
        each.wait()


@pytest.mark.parametrize("worker_class", ["sync", "threads", "gevent"])
def test_pserve(pserve: Any, worker_class: str) -> None:
    section = f"host = 127.0.0.1\nport = 0\nworkers = 2\nworker_class = {worker_class}\nproc_name = %(color)s\n"
    server = pserve(section)
    server.log.wait_for(f"2 {worker_class} workers for .*/shop.ini")
    server.log.wait_for("ready: 2 workers")
    facts = server.ask()
    assert (facts["parent"], facts["local"]["name"]) == (server.process.pid, "main")
    assert facts["conf"]["color"] == "red"
    before = children(server.process.pid)
    assert len(before) == 2
    os.kill(server.process.pid, signal.SIGHUP)
    server.log.wait_for("reloaded: 2 workers")
    wait_until(lambda: not set(before) & set(children(server.process.pid)), "the old workers have left")
    assert server.ask()["local"]["name"] == "main"
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.wait() == 0
    # A worker's exit is none of pserve's.
    assert "Exiting" not in server.out.text
    assert "Traceback" not in server.log.text
    found = re.findall(r"\[(?:WARNING|ERROR)\] (WS\d+)", server.log.text)
    assert set(found) <= {"WS1291", "WS1470"}


def test_pserve_takes_the_configuration_files_settings_and_loggers(pserve: Any, tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text("workers = 3\nthreads = 2\n")
    server = pserve("port = 0\nconfig = more.py\nworkers = 1\n", APPS + LOGGERS)
    assert server.ask()["local"]["name"] == "main"
    assert "1 threads worker for" in server.log.text
    assert "shop: made main" in (tmp_path / "shop.log").read_text()
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.wait() == 0


def test_pserve_names_what_is_wrong_in_the_section(pserve: Any) -> None:
    server = pserve("port = 0\nwrokers = 2\ntimeout = soon\nlisten = *:80\n")
    assert server.wait() == 2
    assert re.search(r"WS1096 wrokers = '2' \(the server's section of .*/shop.ini\) .* mean workers", server.log.text)
    assert "WS1096 listen" in server.log.text
    server = pserve("port = 0\ntimeout = soon\n")
    assert server.wait() == 2
    assert re.search(r"WS1010 timeout = 'soon' \(timeout the server's section of", server.log.text)


def test_an_upgrade_under_pserve(pserve: Any) -> None:
    server = pserve("port = 0\n")
    server.log.wait_for("ready")
    address, first = server.address, server.ask()
    os.kill(server.process.pid, signal.SIGUSR2)
    server.process.wait(20)
    with RawClient(address) as client:
        second = client.get("/").json()
    assert second["parent"] != first["parent"]
    os.kill(second["parent"], signal.SIGTERM)
    server.log.wait_for(rf"stopped \(pid {second['parent']}\)")
