"""Worker classes of people's own: found, checked before anything starts, loaded anew at HUP (issue 4, part 3)."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rawclient import RawClient
from server import DEADLINE_S, ROOT, Server, Start, environment, run, wait_until


@pytest.fixture(scope="session")
def worker_class() -> str:
    """Each test names its own class."""
    return "-"


APP = """
import os

def app(environ, start_response):
    import worker_part
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{worker_part.VERSION} {os.environ.get('GREETING')}".encode()]
"""

WORKER = """
import os
import sys

from wsgiserv.worker.{base} import {name}

os.environ["GREETING"]  # raw_env is there

class Outer:
    class Mine({name}):
        def tick(self, now):
            import worker_part
            worker_part.VERSION = {version!r}
            return super().tick(now)
"""


def body(server: Server, target: str = "/") -> str:
    with RawClient(server.address) as client:
        response = client.get(target, headers="Connection: close\r\n")
    assert response.status == 200
    return response.body.decode()


def test_hup_loads_changed_code_and_refuses_broken_code(start: Start, tmp_path: Path) -> None:
    """By a nested path, on `pythonpath`; the master never imports it."""
    part = {"base": "threads", "name": "ThreadsWorker"}
    files = {
        "app.py": APP,
        "worker_part.py": "VERSION = None\n",
        "lib/own.py": WORKER.format(version=1, **part),
        "gun.py": (
            "import sys\nworker_class = 'own:Outer.Mine'\npythonpath = 'lib'\nraw_env = ['GREETING=hi']\n"
            "def on_reload(server):\n    server.log.info('the master has it: %s', 'own' in sys.modules)\n"
        ),
    }
    server = start("app:app", "-c", "gun.py", files=files, worker_class=None)
    assert body(server) == "1 hi"
    workers = server.workers()

    own = tmp_path / "lib" / "own.py"
    own.write_text("def broken():\n    1 / 0\nbroken()\n")
    server.expect(r"reload failed; still running", "Traceback")
    server.send_signal(signal.SIGHUP)
    said = server.wait_for_log(r"reload failed; still running.*worker_class = 'own\.Outer\.Mine'.*")
    assert "gun.py" in said[0]
    server.wait_for_log(r'own\.py", line 2, in broken')
    assert server.workers() == workers
    assert body(server) == "1 hi"

    own.write_text(WORKER.format(version=2, **part))
    server.send_signal(signal.SIGHUP)
    assert server.wait_for_log(r"the master has it: (\w+)")[1] == "False"
    wait_until(lambda: body(server) == "2 hi", "the changed class")


CONFIG = """
from wsgiserv.worker.gevent_worker import GeventWorker

class worker_class(GeventWorker):
    def __init__(self, boot):
        super().__init__(boot)
        self.log.info("made by worker %d of %d, age %d", self.pid, self.ppid, self.age)

def when_ready(server):
    import gevent.monkey
    server.log.info("the master is patched: %s", gevent.monkey.is_anything_patched())
"""

PATCHED = """
import socket, threading
FROM_THE_START = (socket.socket.__module__, threading.current_thread.__module__)

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr(FROM_THE_START).encode()]
"""


def test_a_class_in_the_configuration_file_built_on_gevents_is_patched(start: Start) -> None:
    files = {"gun.py": CONFIG, "patched.py": PATCHED}
    server = start("patched:app", "-c", "gun.py", "--pythonpath", ".", files=files, worker_class=None)
    assert "gevent" in body(server)
    made = server.wait_for_log(r"made by worker (\d+) of (\d+), age 1")
    assert [int(made[1])] == server.workers()
    assert int(made[2]) == server.pid
    assert server.wait_for_log(r"the master is patched: (\w+)")[1] == "False"


@pytest.mark.parametrize("check", [True, False])
def test_a_class_that_cannot_be_used_stops_the_start(tmp_path: Path, check: bool) -> None:
    """With status 2, before a socket is bound, and before there are workers."""
    (tmp_path / "app.py").write_text("open('imported', 'w')\ndef app(e, s): pass\n")
    (tmp_path / "own.py").write_text("import sys\nprint('tried')\nsys.exit(3)\n")
    path = tmp_path / "s.sock"
    args = [*(["--check-config"] if check else []), "-b", f"unix:{path}", "-p", "pid", "app:app"]
    done = run(args, tmp_path, {"WSGISERV_CMD_ARGS": "-k own:Mine"})
    assert done.returncode == 2, done.stderr
    assert "worker_class = 'own.Mine' (-k in WSGISERV_CMD_ARGS)" in done.stderr
    assert 'own.py", line 3' in done.stderr
    assert done.stdout == "tried\n", "once, by the check"
    assert not {"s.sock", "imported", "pid"} & {entry.name for entry in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("text", "words"),
    [("import os; os._exit(7)", "exited with status 7"), ("import os; os.kill(os.getpid(), 9)", "signal 9")],
)
def test_a_module_that_ends_its_process(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "own.py").write_text(text)
    done = run(["-k", "own:Mine", "-b", "127.0.0.1:0", "app:app"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "import own" in done.stderr


def test_an_import_that_hangs(tmp_path: Path) -> None:
    """At a HUP the master waits for it: not for ever."""
    (tmp_path / "own.py").write_text("import threading\nthreading.Event().wait()\n")
    code = (
        "import sys, wsgiserv.cli as cli; cli._LONGEST_IMPORT_S = 0.2\n"
        "sys.exit(cli.main(['-k', 'own:Mine', '--check-config', 'app:app']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "did not come back within 0.2 s" in done.stderr


GATED = """
import fcntl, threading

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/reports"):
        with open("gate") as gate:
            fcntl.flock(gate, fcntl.LOCK_SH)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [threading.current_thread().name.encode()]
"""


def test_the_example(start: Start, tmp_path: Path) -> None:
    """Its slow part waits for its own threads; the rest of the site does not."""
    args = ("-k", "custom_worker:BulkheadWorker", "--pythonpath", str(ROOT / "examples"), "--threads", "2")
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context((tmp_path / "gate").open("w"))
        fcntl.flock(gate, fcntl.LOCK_EX)
        server = start("app:app", *args, files={"app.py": GATED}, worker_class=None)
        waiting = [stack.enter_context(RawClient(server.address)) for _ in range(3)]
        for client in waiting:
            client.request("/reports/1")
        with RawClient(server.address) as client:
            for _ in range(3):
                assert client.get("/").body.startswith(b"pool /_")
            client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 2)  # the second waits in the first's buffer
            assert [client.read_response().status for _ in range(2)] == [200, 200]
        server.send_signal(signal.SIGTERM)
        server.wait_for_log("stopping gracefully")
        fcntl.flock(gate, fcntl.LOCK_UN)
        names = {client.read_response().body for client in waiting}
    assert names <= {b"pool /reports_0", b"pool /reports_1"}
    assert server.wait() == 0


CLEARS = """
import sys
from apps import app
sys.path.clear()
"""


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("name", ["sync.SyncWorker", "threads.ThreadsWorker", "gevent_worker.GeventWorker"])
def test_an_application_that_empties_the_search_path(start: Start, name: str, options: tuple[str, ...]) -> None:
    """A worker imports nothing after the application, also where its class was unknown to the master."""
    module, base = name.split(".")
    files = {
        "own.py": f"from wsgiserv.worker.{module} import {base}\nclass Mine({base}): pass\n",
        "clears.py": CLEARS,
        "pprint.py": "1 / 0\n",  # an application's file, named like what gevent imports for its hub
    }
    server = start("clears:app", "-k", "own:Mine", *options, files=files, worker_class=None)
    body(server)
    assert server.stop() == 0


# Names that people give, some of them once the server's own.
COLLIDES = """
from wsgiserv.worker.{module} import {base}

class Mine({base}):
    idle = queued = signals = addresses = surplus = fatal = told_to_leave = handing_over = stalled_since = None

    def __init__(self, boot):
        super().__init__(boot)
        self.idle = self.queued = self.state = self.queue = self.name = self.main_thread = self.accepting = None

def own(name):
    def method(*args, **rest):
        raise SystemExit(name)
    return method

for name in (
    "accept admit adopt main hand_over detach install_signals load_certificates start_reloader "
    "stop_handing_over occupancy go_on_leaving pass_on_handed share_out wants_place ended run_in_current "
    "run_queued_soon turn_soon run stop close init_process "
    "handle handle_request notify log_request is_parent_alive application peers wake ring lead judge work"
).split():
    setattr(Mine, name, own(name))
"""


@pytest.mark.parametrize("name", ["sync.SyncWorker", "threads.ThreadsWorker", "gevent_worker.GeventWorker"])
def test_names_of_ones_own_replace_nothing(start: Start, name: str) -> None:
    """Accepting, a reload with a connection that is handed over, and the stop go on as ever."""
    module, base = name.split(".")
    files = {"own.py": COLLIDES.format(module=module, base=base)}
    server = start("apps:app", "-k", "own:Mine", "-w", "2", files=files, worker_class=None)
    server.wait_for_log("ready:")
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded:")
        wait_until(lambda: len(server.workers()) == 2, "the old ones have left")
        assert client.get("/").status == 200
    assert server.stop() == 0
