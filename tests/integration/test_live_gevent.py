"""The gevent worker as a whole: patching, what blocks it, deadlines of requests, bodies that yield, its end."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from rawclient import Response
from server import Connect, Server, Start, environment, wait_until

APP = """\
import json, logging, os, sys, time
import gevent, gevent.monkey
AT_IMPORT = {
    "patched": gevent.monkey.is_module_patched("socket"),
    "pid": os.getpid(),
    "callback": getattr(sys.modules.get("psycopg_like"), "callback", None),
}
native_sleep = gevent.monkey.get_original("time", "sleep")
running = peak = 0

def forever():
    while True:
        gevent.sleep(3600)

gevent.spawn(forever)  # the application's own: nobody waits for its end

def app(environ, start_response):
    global running, peak
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    plain = [("Content-Type", "text/plain")]
    if path == "/about":
        import settings_of_users
        sleeps = settings_of_users.sleep is time.sleep
        about = {**AT_IMPORT, "sleeps": sleeps, "peak": peak, "worker": os.getpid()}
        start_response("200 OK", plain)
        return [json.dumps(about).encode()]
    if path == "/block":
        native_sleep(float(query))
    elif path == "/lock":
        for handler in logging.getLogger("wsgiserv.error").handlers:
            handler.acquire()
            try:
                native_sleep(float(query))
            finally:
                handler.release()
    elif path == "/sleep":
        running += 1
        peak = max(peak, running)
        try:
            time.sleep(float(query))
        finally:
            running -= 1
    elif path == "/stream":
        start_response("200 OK", plain)
        def blocks():
            yield b"first"
            time.sleep(float(query))
            yield b"last"
        return blocks()
    elif path == "/own":
        with gevent.Timeout(0.01):
            gevent.sleep(10)
    elif path == "/caught":
        try:
            time.sleep(10)
        except gevent.Timeout:
            start_response("503 Slow", plain)
            return [b"caught"]
    elif path == "/upload":
        start_response("200 OK", plain)
        total = 0
        while data := environ["wsgi.input"].read(65536):
            total += len(data)
        return [b"%d" % total]
    start_response("200 OK", plain)
    return [b"done"]
"""
SETTINGS = "from time import sleep\nfrom socket import socket\n"
EARLY = r"'settings_of_users' was imported before gevent could patch .* own time\.sleep, socket\.socket: "

# As psycogreen does: the driver is told how to wait, after patching and before the application is imported.
GUN = """\
import gevent.monkey, multiprocessing, os
gevent.monkey.patch_all()
import settings_of_users
assert gevent.monkey.is_module_patched("socket")
worker_class = "gevent"
gevent_block_warning = 0.15
request_timeout = 0.6
stream_request_body = "on"

def post_fork(server, worker):
    import psycogreen_like
    psycogreen_like.patch_psycopg()
"""
PSYCOGREEN = """\
import sys, types
import gevent.monkey

def patch_psycopg():
    assert gevent.monkey.is_module_patched("socket")
    assert "geventapp" not in sys.modules, "the application was imported before the hook"
    driver = sys.modules["psycopg_like"] = types.ModuleType("psycopg_like")
    driver.callback = "gevent"
"""
FILES = {"geventapp.py": APP, "settings_of_users.py": SETTINGS}


class InBackground:
    """A request on its way, whose answer is taken by a thread."""

    def __init__(self, connect: Connect, server: Server, target: str) -> None:
        self.answer: Response | None = None
        client = connect(server.address)

        def ask() -> None:
            self.answer = client.get(target)

        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def wait(self) -> Response:
        """Return the answer."""
        self._thread.join(15)
        assert self.answer is not None
        return self.answer


def test_what_an_application_may_do_to_the_hub(start_unclassed: Start, connect: Connect) -> None:
    server = start_unclassed(
        "geventapp:app",
        "-c",
        "gun.py",
        files={**FILES, "gun.py": GUN, "psycogreen_like.py": PSYCOGREEN},
        expect=(r"gevent_block_warning", r"request_timeout \(0\.6 s\)", r"GET /own", r"Traceback"),
    )
    client = connect(server.address)
    # The configuration file was run patched, the hook came before the application.
    about = client.get("/about").json()
    assert (about["patched"], about["callback"], about["sleeps"]) == (True, "gevent", True)
    assert about["pid"] == about["worker"] != server.pid
    assert "was imported before" not in server.log.text

    # A call that blocks is told while it does, with its request and its place; once.
    assert client.get("/block?0.5").status == 200
    line = server.wait_for_log(r"\[WARNING\].*gevent_block_warning")[0]
    assert f"worker {about['worker']}" in line
    wait_until(lambda: "native_sleep(float(query))" in server.log.text, "the stack of the call")
    log = server.log.text
    assert log.count("gevent_block_warning") == 1
    assert re.search(r'"GET /block\?0\.5 HTTP/1\.1" from 127\.0\.0\.1, request id \w{32}, for 0\.\d s', log)
    # So is the unlucky one, who holds the lock of the log. And a hub that only waits is not blocked.
    assert client.get("/lock?0.4").status == 200
    server.wait_for_log(r"gevent_block_warning.*/lock")
    assert client.get("/sleep?0.4").status == 200
    assert server.log.text.count("gevent_block_warning") == 2

    # A request that waits for too long, while others are served.
    before = time.monotonic()
    late, caught, own = (InBackground(connect, server, path) for path in ("/sleep?9", "/caught", "/own"))
    cut = connect(server.address)
    cut.send(b"GET /stream?9 HTTP/1.0\r\nHost: t\r\n\r\n")
    assert client.get("/").status == 200
    assert time.monotonic() - before < 0.5
    assert own.wait().status == 500  # a Timeout of the application's own
    assert late.wait().status == 504
    assert (caught.wait().status, caught.wait().body) == (503, b"caught")
    try:
        while cut.sock.recv(4096):
            pass
        raise AssertionError("the response looks complete")
    except ConnectionResetError:
        pass
    assert time.monotonic() - before < 5
    overdue = "request_timeout (0.6 s)"
    wait_until(lambda: server.log.text.count(overdue) >= 3, "three lines about overdue requests")
    server.wait_for_log(r"time\.sleep\(float\(query\)\)")
    log = server.log.text
    assert re.search(r'\(0\.6 s\): answered with 504, "GET /sleep\?9 HTTP/1\.1" from .*, for \d\.\d s in greenlet', log)
    assert re.search(r'\(0\.6 s\): the response is cut, "GET /stream\?9', log)
    assert log.count(overdue) == 3

    # wsgi.input yields.
    upload = connect(server.address)
    upload.send(b"POST /upload HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nhalf ")
    assert client.get("/").status == 200
    upload.send(b"whole")
    answer = upload.read_response()
    assert (answer.status, answer.body) == (200, b"10")


def test_places_reports_and_the_end(start_unclassed: Start, connect: Connect) -> None:
    server = start_unclassed(
        "geventapp:app",
        "--worker-connections",
        "3",
        files=FILES,
        worker_class="gevent",
        expect=(r"SIGABRT|aborted|in flight|exited with status 1",),
    )
    # The master has imported gevent for the workers, and no more: a hub would have its epoll descriptor there.
    pid = connect(server.address).get("/about").json()["worker"]
    for process, hubs in ((server.pid, 0), (pid, 1)):
        assert "gevent" in Path(f"/proc/{process}/maps").read_text()
        files = [os.readlink(each) for each in Path(f"/proc/{process}/fd").iterdir()]
        # A worker has one more, for all connections.
        assert sum("eventpoll" in file for file in files) == 2 * hubs

    asked = [InBackground(connect, server, "/sleep?0.2") for _ in range(7)]
    assert [each.wait().status for each in asked] == [200] * 7
    about = connect(server.address).get("/about").json()
    assert 2 <= about["peak"] <= 3

    # Aborted, a worker tells of all that waits in it.
    first, second = (connect(server.address) for _ in range(2))
    first.send(b"GET /sleep?61 HTTP/1.1\r\nHost: t\r\n\r\n")
    second.send(b"GET /sleep?62 HTTP/1.1\r\nHost: t\r\n\r\n")
    third = connect(server.address)
    assert third.get("/about").status == 200
    os.kill(pid, signal.SIGABRT)
    server.wait_for_log(rf"worker {pid} .*exited with status 1")
    server.wait_for_log(r"^ +gevent\.sleep\(3600\)")  # so long a record comes through a pipe in pieces
    log = server.log.text
    for query in ("61", "62"):
        assert re.search(rf'in flight: "GET /sleep\?{query} HTTP/1\.1" from .* in greenlet \d+:', log)
    assert log.count("time.sleep(float(query))") == 2
    assert re.search(r"not in a request: [^\n]+:\n[^\n]+\n +gevent\.sleep\(3600\)", log), log
    for client in (first, second, third):
        client.close()

    # Told to stop, it lets them end; what the application spawned for itself keeps nobody.
    waits, streams = (InBackground(connect, server, path) for path in ("/sleep?0.4", "/stream?0.4"))
    wait_until(lambda: connect(server.address).get("/about").json()["peak"] >= 1, "a request in the application")
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 5
    assert (waits.wait().status, waits.wait().closes) == (200, True)
    assert streams.wait().body == b"firstlast"


def test_a_class_that_is_known_too_late(start_unclassed: Start, connect: Connect) -> None:
    server = start_unclassed(
        "geventapp:app",
        "-c",
        "gun.py",
        files={
            **FILES,
            "gun.py": "import os, multiprocessing, settings_of_users\n"
            "workers = 2\nworker_class = ''.join(['gev', 'ent'])\n",
        },
        expect=(EARLY,),
    )
    about = connect(server.address).get("/about").json()
    assert (about["patched"], about["sleeps"]) == (True, False)
    server.wait_for_log("ready: 2 workers")
    lines = [line for line in server.log.text.split("\n") if "was imported before" in line]
    assert len(lines) == 1, lines  # not one of each worker
    assert "[WARNING]" in lines[0]
    assert re.search(EARLY, lines[0])
    assert "give -k gevent on the command line" in lines[0]


def test_a_master_that_is_patched(start_unclassed: Start, connect: Connect, tmp_path: Path) -> None:
    def gun(worker_class: str) -> str:
        return f"import settings_of_users\nworker_class: str = {worker_class!r}\npreload_app = True\n"

    server = start_unclassed(
        "geventapp:app",
        "-c",
        "gun.py",
        files={**FILES, "gun.py": gun("gevent")},
        expect=("preloaded code", "SIGKILL", "greenlets for threads", "in the background while it was loaded"),
    )
    about = connect(server.address).get("/about").json()
    assert (about["patched"], about["sleeps"]) == (True, True)
    assert about["pid"] != about["worker"], "the application was imported once for all workers"
    os.kill(about["worker"], signal.SIGKILL)
    server.wait_for_log(f"worker {about['worker']} .*SIGKILL")
    again = connect(server.address).get("/about").json()
    assert again["worker"] != about["worker"]

    # Others cannot serve with greenlets for threads: the server stays as it is.
    for other in ("threads", "sync"):
        (tmp_path / "gun.py").write_text(gun(other))
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(rf"\[ERROR\].*worker_class = '{other}' \(gun\.py.*SIGUSR2, or stop and start")
        assert connect(server.address).get("/about").json()["worker"] == again["worker"]

    (tmp_path / "gun.py").write_text(gun("gevent"))
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: 1 worker")
    wait_until(lambda: again["worker"] not in server.workers(), "the old worker has left")
    assert connect(server.address).get("/about").json()["patched"]
    assert server.stop(signal.SIGINT) == 0


TRACER = "from ssl import PROTOCOL_TLS_CLIENT, SSLContext\nfrom time import sleep\n"
TRACED = """
import tracer

def app(environ, start_response):
    context = tracer.SSLContext(tracer.PROTOCOL_TLS_CLIENT)
    try:
        context.options |= 0
    except RecursionError:
        result = b"recursion"
    else:
        result = b"fine"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [result]
"""


@pytest.mark.no_coverage  # which has a sitecustomize of its own
@pytest.mark.parametrize("options", [(), ("--preload",), ("-c", "gun.py")], ids=["", "preload", "config"])
def test_what_is_older_than_the_server_is_told(
    start_unclassed: Start, connect: Connect, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """A sitecustomize, as a launcher's, has imported it: a warning once, with what comes of it."""
    path = f"{tmp_path}:{environment({})['PYTHONPATH']}"  # before the suite's own sitecustomize
    server = start_unclassed(
        "traced:app",
        *("-w", "2", *options),
        worker_class="gevent",
        files={"sitecustomize.py": "import tracer\n", "tracer.py": TRACER, "traced.py": TRACED, "gun.py": ""},
        env={"PYTHONPATH": path},
        expect=("'tracer' was imported",),
    )
    server.wait_for_log("ready:")
    line = server.wait_for_log(r"the module 'tracer' was imported before gevent could patch.*")[0]
    assert "ssl.SSLContext" in line
    assert "time.sleep" in line
    assert "RecursionError" in line
    assert "sitecustomize" in line
    assert connect(server.address).get("/").body == b"recursion"
    assert server.log.text.count("'tracer' was imported") == 1
