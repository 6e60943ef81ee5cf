"""Stand-ins for ``import gunicorn`` (issue 16, part 2): with gunicorn installed, and without it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hidden_gunicorn import without_gunicorn
from rawclient import RawClient
from server import Server, Start, run, wait_until


@pytest.fixture(params=["installed", "missing"])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a server that finds gunicorn, or does not."""
    return without_gunicorn(tmp_path) if request.param == "missing" else {}


def ask(server: Server, target: str = "/") -> Any:
    with RawClient(server.address) as client:
        return client.get(target, headers="Connection: close\r\n")


# What an agent or an application asks.
APP = """
import importlib.util, json, sys

def tried():
    try:
        import gunicorn
    except ImportError:
        return False
    return True

def app(environ, start_response):
    found = {
        "spec": importlib.util.find_spec("gunicorn") is not None,
        "modules": "gunicorn" in sys.modules,
        "import": tried(),
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found).encode()]
"""

CONFIG = """
import gunicorn
import gunicorn.glogging as logs
from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.app.base import Application, BaseApplication
from gunicorn.config import Config, KNOWN_SETTINGS, make_settings
from gunicorn.instrument.statsd import Statsd
from gunicorn.workers.base import Worker
from base_conf import *

assert util.parse_address("unix:/run/x") == "/run/x"
assert "workers" in make_settings() and any(each.name == "bind" for each in KNOWN_SETTINGS)
VERSION = tuple(map(int, gunicorn.__version__.split(".")))
assert VERSION >= (27,) and issubclass(logs.Logger, object)

def when_ready(server):
    from gunicorn import SERVER_SOFTWARE, glogging
    server.log.info("in the master: %s %s", SERVER_SOFTWARE, glogging.Logger.__module__)

def post_worker_init(worker):
    import gunicorn.util
    worker.log.info("in the worker: %s", gunicorn.util.is_ipv6("::1"))
"""

BASE = """
import gunicorn.util

timeout = 17

def post_fork(server, worker):
    from gunicorn.util import is_ipv6
    worker.log.info("from the helper: %s", is_ipv6("1.2.3.4"))
"""


def test_a_configuration_file_imports_gunicorn(start: Start, env: dict[str, str]) -> None:
    files = {"shop.py": APP, "gun.py": CONFIG, "base_conf.py": BASE}
    # Its application looks for gunicorn, by intention.
    server = start("shop:app", "-c", "gun.py", "--appear-as", "off", files=files, env=env)
    found = json.loads(ask(server).body)
    has = not env
    assert found == {"spec": has, "modules": has, "import": has}
    module = server.wait_for_log(r"in the master: gunicorn/27\.\S+ (\S+)")[1]
    assert module == ("gunicorn.glogging" if has else "wsgiserv.gunicorn.glogging")
    assert server.wait_for_log(r"in the worker: (\w+)")[1] == "True"
    assert server.wait_for_log(r"from the helper: (\w+)")[1] == "False"
    assert server.stop() == 0


def test_the_configuration_file_may_be_called_gunicorn(start_unclassed: Start, env: dict[str, str]) -> None:
    text = "import gunicorn.glogging\nfrom gunicorn import SERVER\nproc_name = SERVER\n"
    files = {"shop.py": APP, "gunicorn.py": text}
    server = start_unclassed("shop:app", "-c", "gunicorn.py", "--appear-as", "off", files=files, env=env)
    assert ask(server).status == 200


def test_what_has_no_stand_in_says_so(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text("\nfrom gunicorn.workers.gtornado import TornadoWorker\n")
    done = run(["-c", "gun.py", "--check-config", "shop:app"], tmp_path)
    assert done.returncode == 2
    assert "gun.py, line 2" in done.stderr
    assert "No module named 'gunicorn.workers.gtornado': wsgiserv has no stand-in" in done.stderr


@pytest.mark.parametrize("name", ["SERVER", "SERVER_SOFTWARE"])
def test_the_server_header(start_unclassed: Start, env: dict[str, str], tmp_path: Path, name: str) -> None:
    files = {"shop.py": APP, "gun.py": f"import gunicorn\ngunicorn.{name} = 'shop/1'\n"}
    server = start_unclassed("shop:app", "-c", "gun.py", files=files, env=env)
    assert ask(server).one("Server") == "shop/1"
    with RawClient(server.address) as client:  # a response of the server's own
        client.send(b"BROKEN\r\n\r\n")
        server.expect("WARNING")
        assert client.read_response().one("Server") == "shop/1"
    (tmp_path / "gun.py").write_text("import gunicorn\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded:")
    wait_until(lambda: ask(server).one("Server") == "wsgiserv", "the name is taken back")


def test_no_server_header(start_unclassed: Start) -> None:
    server = start_unclassed("shop:app", "--server-header", "", "--appear-as", "off", files={"shop.py": APP})
    client = http.client.HTTPConnection(*server.address, timeout=10)
    client.request("GET", "/")
    response = client.getresponse()
    assert (response.status, response.getheader("Server")) == (200, None)
    client.close()


# ---- programs ----------------------------------------------------------------------------------------------

# gunicorn's documentation calls such a class a custom application.
PROGRAM = """
import os, sys
from wsgiserv.gunicorn.app.base import BaseApplication

def handler_app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {LOADED} {os.environ.get('GREETING')}".encode()]

LOADED = None

class StandaloneApplication(BaseApplication):
    def __init__(self, app, options=None):
        self.options = options or {}
        self.application = app
        super().__init__()

    def load_config(self):
        with open("workers") as file:
            self.options["workers"] = int(file.read())
        config = {key: value for key, value in self.options.items() if key in self.cfg.settings and value is not None}
        for key, value in config.items():
            self.cfg.set(key.lower(), value)
        assert self.cfg.workers == self.options["workers"]

    def load(self):
        global LOADED
        LOADED = os.getpid()
        return self.application

if __name__ == "__main__":
    options = dict(bind=sys.argv[1], raw_env=["GREETING=hi"], preload_app="preload" in sys.argv, keepalive=5,
                   worker_class=sys.argv[2], threads=2, proc_name="standalone")
    StandaloneApplication(handler_app, options).run()
    print("never")
"""


def program(tmp_path: Path, start: Start, *args: str, text: str = PROGRAM, env: dict[str, str] | None = None) -> Server:
    (tmp_path / "workers").write_text("2")
    (tmp_path / "prog.py").write_text(text)
    command = [sys.executable, "prog.py", "127.0.0.1:0", *args]
    return start(None, command=command, bind="none", env=env or {}, expect=("WS1090",))


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_program(start_unclassed: Start, tmp_path: Path, worker_class: str, preload: bool) -> None:
    kind = {"threads": "gthread"}.get(worker_class, worker_class)
    server = program(tmp_path, start_unclassed, kind, *["preload"] * preload)
    server.wait_for_log(r"ready: 2 workers")
    pid, loaded, greeting = ask(server).body.decode().split()
    assert greeting == "hi"
    assert (pid == loaded) is not preload, "load() is called in each worker, or once for all"
    assert int(loaded) != server.pid, "never in the master"
    (tmp_path / "workers").write_text("3")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"reloaded: 3 workers")
    wait_until(lambda: ask(server).body.decode().split()[1] != loaded, "load() is called again")
    assert server.stop() == 0
    assert "never" not in server.out.text


def test_a_reload_whose_load_config_fails(start_unclassed: Start, tmp_path: Path) -> None:
    server = program(tmp_path, start_unclassed, "sync")
    server.wait_for_log(r"ready: 2 workers")
    before = server.workers()
    (tmp_path / "workers").write_text("many")
    server.expect("reload failed", "error: invalid literal")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"WS1310 reload failed.*WS1084 load_config of StandaloneApplication")
    assert server.workers() == before
    assert ask(server).status == 200


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (("StandaloneApplication(handler_app, options)", "StandaloneApplication(handler_app, dict(worker_class=5))"), 2,
         "worker_class = 5 is not accepted"),
        (("LOADED = os.getpid()", "raise ValueError('no database')"), 4, "ValueError: no database"),
        (("return self.application", "return 5"), 4, "which cannot be called"),
        (("assert self.cfg.workers", "self.cfg.set('nonsense', 1)\n        assert self.cfg.workers"), 2,
         "No configuration setting for: nonsense"),
        (("options = dict(", "options = dict(errorlog='/missing/directory/log', "), 2, "errorlog"),
    ],
    ids=["value", "load", "result", "name", "log"],
)  # fmt: skip
def test_the_exit_status_of_a_program(
    start_unclassed: Start, tmp_path: Path, change: tuple[str, str], status: int, words: str
) -> None:
    server = program(tmp_path, start_unclassed, "sync", text=PROGRAM.replace(*change))
    server.expect(".")
    assert server.wait() == status, server.log.text
    assert words in server.log.text


WSGI_PROGRAM = """
import sys
from wsgiserv.gunicorn.app.wsgiapp import WSGIApplication

class Shop(WSGIApplication):
    def __init__(self, app_uri, options):
        self.options, self.app_uri = options, app_uri
        super().__init__()

    def load_config(self):
        for key, value in self.options.items():
            self.cfg.set(key, value)

Shop("shop:app", {"bind": sys.argv[1]}).run()
"""
COMMAND_PROGRAM = """
import sys
from wsgiserv.gunicorn.app.wsgiapp import WSGIApplication
sys.argv[1:] = ["-b", sys.argv[1], "-c", "gun.py", "shop:app"]
WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]").run()
"""
RUN_PROGRAM = """
import sys
from wsgiserv.gunicorn.app.wsgiapp import run
sys.argv[1:] = ["-b", sys.argv[1], "-c", "gun.py", "shop:app"]
run()
"""
OWN_LINE = """
import sys
from wsgiserv.gunicorn.app.base import Application

class Shop(Application):
    def init(self, parser, opts, args):
        self.given = args
        return {"proc_name": "below", "graceful_timeout": 9}

    def load_config(self):
        super().load_config()
        self.cfg.set("keepalive", self.cfg.keepalive + 1)

    def load(self):
        from wsgiserv.gunicorn.util import import_app
        assert self.given == ["shop:app"]
        return import_app(self.given[0])

sys.argv[1:] = ["-b", sys.argv[1], "-c", "gun.py", "shop:app"]
Shop().run()
"""
SETTINGS = """
proc_name = "filed"
keepalive = 3

def when_ready(server):
    cfg = server.cfg
    server.log.info("has %s %s %s", cfg.proc_name, cfg.keepalive, cfg.graceful_timeout)
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [(WSGI_PROGRAM, None), (COMMAND_PROGRAM, "filed 3 30"), (RUN_PROGRAM, "filed 3 30"), (OWN_LINE, "filed 4 9")],
    ids=["options", "command", "run", "init"],
)
def test_programs_of_an_application_by_name(
    start_unclassed: Start, tmp_path: Path, text: str, expected: str | None
) -> None:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "gun.py").write_text(SETTINGS)
    server = program(tmp_path, start_unclassed, text=text, env=without_gunicorn(tmp_path))
    assert ask(server).status == 200
    if expected is not None:
        assert server.wait_for_log("has (.+)")[1] == expected
    assert server.stop() == 0


def test_an_upgrade_of_a_program(start_unclassed: Start, tmp_path: Path) -> None:
    server = program(tmp_path, start_unclassed, "sync")
    server.wait_for_log(r"ready: 2 workers")
    port = server.address[1]
    seen = len(server.log.lines)
    server.send_signal(signal.SIGUSR2)
    successor = int(server.wait_for_log(r"wsgiserv \S+ .*, pid (\d+): 2 threads workers", after=seen)[1])
    server.wait_for_log(r"ready: 2 workers", after=seen)
    assert server.wait() == 0
    assert ask(server).status == 200
    assert server.address[1] == port
    os.kill(successor, signal.SIGTERM)
    wait_until(lambda: not server.leftovers(), "the next master has left")
