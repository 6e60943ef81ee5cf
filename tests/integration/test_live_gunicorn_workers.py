"""Worker classes that were written for gunicorn run on ours, or are refused (issue 16, part 3)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hidden_gunicorn import without_gunicorn
from rawclient import RawClient
from server import Server, Start, children, run, wait_until

BASES = {"sync": "sync.SyncWorker", "threads": "gthread.ThreadWorker", "gevent": "ggevent.GeventWorker"}


@pytest.fixture(params=["installed", "missing"])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The environment of a server that finds gunicorn, or does not."""
    return without_gunicorn(tmp_path) if request.param == "missing" else {}


APP = """
import os, socket

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ.get('shop.wrapped')} {socket.socket.__module__}".encode()]
"""

# In the manner of those that set up metrics, database drivers and tracing for a worker.
OWN = """
import os, signal
from gunicorn.workers.{module} import {name}

class Mixin:
    def shop_close(self):
        self.log.info("closed by %d", self.pid)

class ShopWorker(Mixin, {name}):
    shop_names = ()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shop_age = args[0]
        self.shop_beats = 0

    def init_process(self):
        self.log.info("before %s %s %s", self.shop_age, self.age, self.booted)
        super().init_process()
        self.log.info("after, retiring %s", not self.alive)
        self.shop_close()

    def load_wsgi(self):
        {name}.load_wsgi(self)
        inner = self.wsgi
        def wrapped(environ, start_response):
            environ["shop.wrapped"] = "wrapped"
            return inner(environ, start_response)
        self.wsgi = wrapped

    def init_signals(self):
        super().init_signals()
        signal.signal(signal.SIGUSR2, lambda *args: self.log.info("USR2 of its own"))

    def notify(self):
        super().notify()
        self.shop_beats += 1
        if self.shop_beats == 1:
            self.log.info("notified")

    def handle_exit(self, sig, frame):
        self.log.info("handle_exit %d", sig)
        self.alive = False
        super().handle_exit(sig, frame)

    def handle_usr1(self, sig, frame):
        self.log.info("handle_usr1")
        super().handle_usr1(sig, frame)
"""


def ask(server: Server, target: str = "/") -> str:
    with RawClient(server.address) as client:
        response = client.get(target, headers="Connection: close\r\n")
    assert response.status == 200
    return response.body.decode()


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_class_by_its_path(start: Start, worker_class: str, env: dict[str, str], preload: tuple[str, ...]) -> None:
    module, _, name = BASES[worker_class].partition(".")
    text = OWN.format(module=module, name=name)
    if worker_class == "gevent":
        text += "\n    def patch(self):\n        super().patch()\n        self.log.info('patched more')\n"
    files = {"shop.py": APP, "own.py": text}
    server = start("shop:app", "-k", "own.ShopWorker", *preload, files=files, worker_class=None, env=env)
    # With preload_app the application itself is wrapped nowhere: as in gunicorn `load_wsgi` takes it.
    assert ask(server).startswith("wrapped ")
    server.wait_for_log("before 1 1 False")
    if worker_class == "gevent":
        assert ask(server).startswith("wrapped gevent.")
        server.wait_for_log("patched more")
    server.wait_for_log("notified")
    worker = server.workers()[-1]
    os.kill(worker, signal.SIGUSR2)
    server.wait_for_log("USR2 of its own")
    server.send_signal(signal.SIGUSR1)
    server.wait_for_log("handle_usr1")
    assert server.stop() == 0
    server.wait_for_log("handle_exit 15")
    server.wait_for_log("after, retiring True")
    server.wait_for_log(r"closed by \d+")


CONFIG = """
from gunicorn.workers.sync import SyncWorker

class ShopWorker(SyncWorker):
    def __init__(self, age, ppid, sockets, app, timeout, cfg, log):
        super().__init__(age, ppid, sockets, app, timeout, cfg, log)
        log.info("made %d %d %d %s %s", age, ppid, len(sockets), timeout, cfg.graceful_timeout)

    @classmethod
    def setup(cls):
        cls.shop_ready = True

    def init_process(self):
        assert self.shop_ready
        super(ShopWorker, self).init_process()

worker_class = ShopWorker
timeout = 40
"""


def test_a_class_in_the_configuration_file(start_unclassed: Start, env: dict[str, str]) -> None:
    files = {"shop.py": APP, "gun.py": CONFIG}
    server = start_unclassed("shop:app", "-c", "gun.py", files=files, env=env)
    ask(server)
    assert server.wait_for_log(r"made (.+)")[1] == f"1 {server.pid} 1 20.0 30"


def test_a_worker_that_stops_itself_is_replaced(start_unclassed: Start) -> None:
    text = (
        "from gunicorn.workers.sync import SyncWorker\nclass Once(SyncWorker):\n"
        "    def notify(self):\n        if self.nr > 0:\n            self.alive = False\n"
    )
    server = start_unclassed("shop:app", "-k", "own:Once", files={"shop.py": APP, "own.py": text})
    server.wait_for_log("ready:")
    before = server.workers()
    ask(server)
    wait_until(lambda: server.workers() not in ([], before) and len(server.workers()) == 1, "another worker")
    assert children(server.pid) != before


@pytest.mark.parametrize(
    ("base", "body", "words"),
    [
        ("sync.SyncWorker", "def handle(self, listener, client, addr): pass", "replaces handle"),
        ("sync.SyncWorker", "def accept(self, listener): pass", "replaces accept"),
        ("gthread.ThreadWorker", "def run(self): pass", "replaces run"),
        ("gthread.ThreadWorker", "def handle_request(self, req, conn): pass", "replaces handle_request"),
        ("ggevent.GeventWorker", "wsgi_handler = object", "replaces wsgi_handler"),
        ("ggevent.GeventPyWSGIWorker", "server_class = object", "replaces server_class"),
        ("base.Worker", "def run(self): pass", "replaces run"),
        ("base.Worker", "pass", "built on no class that serves"),
        ("sync.SyncWorker", "def retire(self): pass", "has a retire of its own"),
    ],
)
def test_a_class_that_replaces_more_is_refused(
    tmp_path: Path, env: dict[str, str], base: str, body: str, words: str
) -> None:
    module, _, name = base.partition(".")
    text = f"from gunicorn.workers.{module} import {name}\nclass Mine({name}):\n    {body}\n"
    (tmp_path / "own.py").write_text(text)
    (tmp_path / "gun.py").write_text(f"{text}worker_class = Mine\n")
    for args in (["-k", "own.Mine"], ["-c", "gun.py"]):
        done = run([*args, "-b", "127.0.0.1:0", "shop:app"], tmp_path, env)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "WS1150 worker_class = " in done.stderr
        assert "Mine" in done.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no licence')", "ValueError: no licence"),
        ("pass", r"Mine\.init_process has returned without super\(\)\.init_process\(\)"),
        ("raise SystemExit(7)", "SystemExit: 7"),
    ],
)
def test_an_init_process_that_fails(start_unclassed: Start, body: str, words: str) -> None:
    text = (
        f"from gunicorn.workers.sync import SyncWorker\nclass Mine(SyncWorker):\n    def init_process(self): {body}\n"
    )
    server = start_unclassed("shop:app", "-k", "own.Mine", files={"shop.py": APP, "own.py": text}, expect=(".",))
    assert server.wait() == 3
    server.wait_for_log(words)


def test_what_raises_after_serving_is_logged(start_unclassed: Start) -> None:
    text = (
        "from gunicorn.workers.sync import SyncWorker\nclass Mine(SyncWorker):\n"
        "    def init_process(self):\n        super().init_process()\n        1 / 0\n"
    )
    files = {"shop.py": APP, "own.py": text}
    server = start_unclassed("shop:app", "-k", "own.Mine", files=files, expect=("WS1780", "Traceback"))
    ask(server)
    assert server.stop() == 0
    server.wait_for_log(r"WS1780 worker \d+: Mine.init_process raised")
