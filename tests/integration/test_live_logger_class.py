"""``logger_class``: classes derived from gunicorn's Logger are called as gunicorn calls them (issue 16, part 3)."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hidden_gunicorn import without_gunicorn
from rawclient import RawClient
from server import Server, Start, environment, run, wait_until


@pytest.fixture(params=["installed", "missing"])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a server that finds gunicorn, or does not."""
    return without_gunicorn(tmp_path) if request.param == "missing" else {}


APP = """
def app(environ, start_response):
    environ["shop.user"] = "ann"
    environ["wsgi.errors"].write("said by the application\\n")
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Shop", "yes")])
    return [b"hello"]
"""

# What people do with one: redact, add an atom, drop health checks, count errors.
OWN = """
import logging
from gunicorn import glogging

class HealthFilter(logging.Filter):
    def filter(self, record):
        return "/filtered" not in record.getMessage()

class ShopLogger(glogging.Logger):
    def setup(self, cfg):
        super().setup(cfg)
        self.access_log.addFilter(HealthFilter())
        self._set_handler(self.error_log, cfg.errorlog, logging.Formatter("SHOP %(levelname)s %(message)s"))

    def atoms(self, resp, req, environ, request_time):
        atoms = super().atoms(resp, req, environ, request_time)
        atoms["r"] = atoms["r"].split("?")[0]
        atoms["user"] = environ["shop.user"] if "shop.user" in environ else "nobody"
        atoms["seen"] = f"{req.method} {req.uri} {req.version} {dict(req.headers)['HOST']} {resp.status} {resp.sent}"
        return atoms

    def now(self):
        return "[now]"

    def access(self, resp, req, environ, request_time):
        if req.path == "/health":
            return
        if req.path == "/broken":
            raise ValueError("broken on purpose")
        assert request_time.total_seconds() < 60
        super().access(resp, req, environ, request_time)

    def info(self, msg, *args, **kwargs):
        super().info("<%s>" % msg, *args, **kwargs)

    def shop_method(self):
        return "of its own"
"""

CONFIG = """
import own
logger_class = {value}
accesslog = "access.txt"
access_log_format = '%(h)s %(t)s "%(r)s" %(s)s %(b)s %(user)s "%({{x-shop}}o)s" %(seen)s %({{shop.user}}e)s'

def post_worker_init(worker):
    worker.log.info("hook: %s %s", worker.log.shop_method(), type(worker.log).__name__)

def when_ready(server):
    assert isinstance(server.log, own.ShopLogger)
"""


def ask(server: Server, target: str) -> int:
    with RawClient(server.address) as client:
        return client.get(target, headers="Connection: close\r\n").status


def lines_of(path: Path, count: int) -> list[str]:
    return wait_until(
        lambda: lines if len(lines := path.read_text().splitlines() if path.exists() else []) >= count else None,
        f"{count} lines in {path}",
    )


@pytest.mark.parametrize("value", ["'own.ShopLogger'", "own.ShopLogger", "lambda: own.ShopLogger"])
def test_a_class_of_ones_own(start: Start, tmp_path: Path, env: dict[str, str], value: str) -> None:
    files = {"shop.py": APP, "own.py": OWN, "gun.py": CONFIG.format(value=value)}
    expect = ("broken on purpose", "WS1820", "Traceback")
    server = start("shop:app", "-c", "gun.py", files=files, env=env, expect=expect)
    server.wait_for_log(r"^SHOP INFO <hook: of its own ShopLogger>$")
    for target in ("/page?secret=1", "/health", "/filtered", "/broken", "/broken", "/last"):
        assert ask(server, target) == 200
    server.expect("WS1550")
    with RawClient(server.address) as client:
        client.send(b"BROKEN\r\n\r\n")
        assert client.read_response().status == 400
    first, last = lines_of(tmp_path / "access.txt", 2)
    host = r"\(1, 1\) \S+ 200 OK 5"
    assert re.fullmatch(rf'127\.0\.0\.1 \[now\] "GET /page" 200 5 ann "yes" GET /page\?secret=1 {host} ann', first)
    assert '"GET /last HTTP/1.1"' in last
    server.wait_for_log("^said by the application$")
    server.wait_for_log(r"^SHOP WARNING WS1820 access of the logger class ShopLogger raised")
    assert server.log.text.count("WS1820") == 1, "told once"
    assert server.stop() == 0


def test_reload_and_rotation(start_unclassed: Start, tmp_path: Path, env: dict[str, str]) -> None:
    """`setup` is called again, and not twice; files are opened again, and the class's method is called."""
    text = OWN + (
        "\n    def reopen_files(self):\n        super().reopen_files()\n        self.warning('reopened')\n"
        "\n    def __init__(self, cfg):\n        super().__init__(cfg)\n        self.error_log.warning('made')\n"
    )
    files = {"shop.py": APP, "own.py": text, "gun.py": CONFIG.format(value="'own.ShopLogger'")}
    server = start_unclassed("shop:app", "-c", "gun.py", files=files, env=env, expect=("made", "reopened"))
    assert ask(server, "/one") == 200
    lines_of(tmp_path / "access.txt", 1)
    (tmp_path / "access.txt").rename(tmp_path / "access.1")
    server.send_signal(signal.SIGUSR1)
    wait_until(lambda: server.log.text.count("WARNING reopened") == 2, "in the master and in the worker")
    assert ask(server, "/two") == 200
    assert len(lines_of(tmp_path / "access.txt", 1)) == 1
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded:")
    wait_until(lambda: len(server.workers()) == 1, "the old worker has left")
    assert ask(server, "/three") == 200
    assert "/three" in lines_of(tmp_path / "access.txt", 2)[1]
    assert len(lines_of(tmp_path / "access.txt", 2)) == 2
    assert server.log.text.count("SHOP WARNING made") == 1
    assert server.log.text.count("<reloading>") == 1
    # Back to the server's own logs.
    (tmp_path / "gun.py").write_text("accesslog = 'access.txt'\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"^\[\d{4}-.*\] \[INFO\] reloaded:")
    wait_until(lambda: len(server.workers()) == 1, "the old worker has left")
    assert ask(server, "/four?x") == 200
    assert '"GET /four?x HTTP/1.1"' in lines_of(tmp_path / "access.txt", 3)[2]
    assert server.stop() == 0


BREAKS = """
import os
from gunicorn.glogging import Logger

class Breaks(Logger):
    def setup(self, cfg):
        super().setup(cfg)
        if cfg.loglevel == "debug":
            raise OSError("no log server")
        self.info("set up for %s", cfg.loglevel)
"""


def test_a_setup_that_fails_at_a_reload(start_unclassed: Start, tmp_path: Path, env: dict[str, str]) -> None:
    """The server goes on with the logger and the settings that it has."""
    config = "logger_class = 'own.Breaks'\naccesslog = '-'\nloglevel = 'info'\n"
    files = {"shop.py": APP, "own.py": BREAKS, "gun.py": config}
    server = start_unclassed("shop:app", "-c", "gun.py", files=files, env=env, expect=("WS1310", "Traceback"))
    server.wait_for_log("ready:")
    (tmp_path / "gun.py").write_text(config.replace("'info'", "'debug'"))
    server.send_signal(signal.SIGHUP)
    words = "logger_class = 'own.Breaks' cannot be used: OSError: no log server"
    server.wait_for_log(f"WS1310 reload failed.*WS1082 {words}")
    assert ask(server, "/x") == 200
    server.out.wait_for('"GET /x HTTP/1.1" 200 5')
    (tmp_path / "gun.py").write_text(config.replace("'info'", "'warning'"))
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.text.count("reload failed") == 1 and len(server.workers()) == 1, "one worker")
    wait_until(lambda: ask(server, "/y") == 200, "an answer")
    assert server.stop() == 0
    assert server.out.text.count("GET /x") == 1
    assert server.log.text.count("reload failed") == 1, "one line each, from one handler"


JSON_LOGGER = """
import json, logging, sys
from gunicorn.glogging import Logger

class JsonFormatter(logging.Formatter):
    def format(self, record):
        found = {"logger": record.name, "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            found["trace"] = self.formatException(record.exc_info)
        return json.dumps(found)

class JsonLogger(Logger):
    def setup(self, cfg):
        super().setup(cfg)
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(JsonFormatter())
        for log in (self.error_log, self.access_log):
            log.handlers = [handler]
"""
FAILING = "def app(environ, start_response):\n    1 / 0\n"


def test_handlers_of_its_own(start_unclassed: Start, env: dict[str, str]) -> None:
    files = {"shop.py": FAILING, "own.py": JSON_LOGGER}
    args = ("--logger-class", "own.JsonLogger", "--access-logfile", "-")
    server = start_unclassed("shop:app", *args, files=files, env=env)
    assert ask(server, "/") == 500
    assert server.stop() == 0
    found = [json.loads(line) for line in server.out.text.splitlines()]
    assert server.log.text == ""
    assert {each["logger"] for each in found} == {"gunicorn.error", "gunicorn.access"}
    assert any("ZeroDivisionError" in each.get("trace", "") for each in found)
    assert sum('"GET / HTTP/1.1" 500' in each["message"] for each in found) == 1


@pytest.mark.parametrize("value", ["gunicorn.glogging.Logger", "simple", "egg:gunicorn#simple"])
def test_gunicorns_own_class_means_ours(start_unclassed: Start, value: str) -> None:
    args = ("--logger-class", value, "--access-logfile", "-", "--access-logformat", "json")
    server = start_unclassed("shop:app", *args, files={"shop.py": APP})
    assert ask(server, "/x") == 200
    assert json.loads(server.out.wait_for("^{")[0] and server.out.lines[0])["path"] == "/x"


def test_statsd_logs(start_unclassed: Start, env: dict[str, str]) -> None:
    args = ("--logger-class", "gunicorn.instrument.statsd.Statsd", "--access-logfile", "-")
    server = start_unclassed("shop:app", *args, files={"shop.py": APP}, env=env)
    assert ask(server, "/x") == 200
    server.out.wait_for('"GET /x HTTP/1.1" 200 5')


@pytest.mark.parametrize(
    ("text", "args", "words"),
    [
        ("", ["own.Missing"], "has no 'Missing'"),
        ("", ["absent.Logger"], "no module 'absent'"),
        ("1 / 0", ["own.Mine"], "ZeroDivisionError"),
        ("class Mine:\n    def __init__(self, cfg): raise ValueError('no disk')", ["own.Mine"], "ValueError: no disk"),
        ("class Mine:\n    def __init__(self, cfg): pass", ["own.Mine"], "it has no method access"),
        ("Mine = 5", ["own.Mine"], "is not a class"),
        ("from gunicorn.glogging import Logger\nclass Mine(Logger): pass",
         ["own.Mine", "--access-logformat", "json"], "cannot be used with logger_class"),
        ("", ["nonsense"], "logger_class = 'nonsense'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("check", [(), ("--check-config",)], ids=["", "check"])
def test_a_class_that_cannot_be_used(
    tmp_path: Path, text: str, args: list[str], words: str, check: tuple[str, ...]
) -> None:
    (tmp_path / "own.py").write_text(text)
    (tmp_path / "shop.py").write_text(APP)
    done = run([*check, "-b", "127.0.0.1:0", "--logger-class", *args, "shop:app"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr


def test_check_config_leaves_no_file(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "gun.py").write_text(CONFIG.format(value="'own.ShopLogger'"))
    done = run(["--check-config", "-c", "gun.py", "-b", "127.0.0.1:0", "shop:app"], tmp_path, env)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "access.txt").exists()


def listens(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    except OSError:
        return False
    return True


def test_the_same_lines_as_gunicorns(start_unclassed: Start, tmp_path: Path) -> None:
    """The same class and format, the same requests: the same lines."""
    files = {"shop.py": APP, "own.py": OWN, "gun.py": CONFIG.format(value="'own.ShopLogger'")}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    lines = []
    for kind in ("gunicorn", "wsgiserv"):
        (tmp_path / "access.txt").unlink(missing_ok=True)
        if kind == "wsgiserv":
            server = start_unclassed("shop:app", "-c", "gun.py", env=without_gunicorn(tmp_path))
            assert ask(server, "/page?secret=1") == 200
        else:
            command = [
                sys.executable,
                "-m",
                "gunicorn",
                "-c",
                "gun.py",
                "-b",
                "unix:s",
                "--no-control-socket",
                "shop:app",
            ]
            with open(tmp_path / "log", "w") as log:
                process = subprocess.Popen(command, cwd=tmp_path, env=environment({}), stdout=log, stderr=log)
            try:
                wait_until(lambda: listens(tmp_path / "s"), "gunicorn listens")
                with RawClient(str(tmp_path / "s")) as client:
                    client.send(b"GET /page?secret=1 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                    client.read_response()
                lines_of(tmp_path / "access.txt", 1)
            finally:
                process.terminate()
                process.wait(20)
        lines += lines_of(tmp_path / "access.txt", 1)
    theirs, ours = lines
    assert re.sub(r"^\S+", "-", ours) == re.sub(r"^\S*", "-", theirs)
