"""One configuration file under gunicorn and under wsgiserv: what its hooks find and do is the same."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gevents import needs_gevent_of_gunicorn
from server import DEADLINE_S, environment, wait_until

NOTE = """
import json, logging, os, sys

def note(name, /, **shown):
    with open("notes.txt", "a") as file:
        file.write(json.dumps([name, shown]) + "\\n")
"""

APP = """
import json
NAMES = ["REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "RAW_URI", "SCRIPT_NAME", "CONTENT_TYPE", "wsgi.url_scheme"]

def app(environ, start_response):
    shown = {name: environ.get(name) for name in NAMES}
    shown |= {name: value for name, value in environ.items() if name.startswith("HTTP_")}
    environ["app.mark"] = "left here"
    body = json.dumps(shown).encode()
    start_response("200 OK", [("Content-Length", str(len(body))), ("Content-Type", "application/json")])
    return [body]
"""


class Outcome(NamedTuple):
    """What can be seen of one server's run."""

    answers: list[tuple[int, Any]]
    notes: list[Any]
    files: dict[str, list[str]]
    status: int


SERVERS = {"gunicorn": ["-m", "gunicorn", "--no-control-socket"], "wsgiserv": ["-m", "wsgiserv", "--no-control-socket"]}


def ask(path: Path, target: str) -> tuple[int, Any]:
    """Send a request; return the status and the body from JSON."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(path))
        fields = "Host: example.com\r\nX-Mine: 1\r\nX-Mine: 2\r\nX-Out: 3\r\nConnection: close\r\n"
        head = f"GET {target} HTTP/1.1\r\n{fields}\r\n"
        client.sendall(head.encode())
        answer = b""
        while data := client.recv(65536):
            answer += data
    head, _, body = answer.decode().partition("\r\n\r\n")
    status = int(head.split()[1])
    return status, json.loads(body) if status == 200 else None


def run_under(server: str, directory: Path, config: str, *targets: str, flags: tuple[str, ...] = ()) -> Outcome:
    directory.mkdir()
    (directory / "shop.py").write_text(APP)
    (directory / "conf.py").write_text(NOTE + config)
    command = [sys.executable, *SERVERS[server], "-b", "unix:s", "-c", "conf.py", *flags, "shop:app"]
    answers = []
    with open(directory / "log", "w") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment({}), stdout=log, stderr=log)
    try:
        if targets:

            def answers_first() -> bool:
                assert process.poll() is None, (directory / "log").read_text()
                try:
                    ask(directory / "s", "/first")
                except OSError:
                    return False
                return True

            wait_until(answers_first, f"{server} answers")
            answers = [ask(directory / "s", target) for target in targets]
            process.send_signal(signal.SIGTERM)
        status = process.wait(DEADLINE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    path = directory / "notes.txt"
    notes = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    files = {each.name: sorted(each.read_text().splitlines()) for each in sorted(directory.glob("*.out"))}
    return Outcome(answers, notes, files, status)


OBJECTS = """
raw_env = ["COLOUR=blue"]
threads = 1
timeout = 40

def cfg(where, cfg):
    note(where, timeout=cfg.timeout, kind=cfg.worker_class_str, env=cfg.env, address=cfg.address, ssl=bool(cfg.is_ssl),
         uid=cfg.uid, bind=cfg.bind, spew=cfg.spew, format=cfg.access_log_format, grace=cfg.graceful_timeout,
         name=cfg.proc_name, prefix=cfg.statsd_prefix, host=cfg.statsd_host, value=cfg.settings["timeout"].value,
         hooks=callable(cfg.on_reload), allow=cfg.forwarded_allow_ips, options=sorted(cfg.ssl_options)[:1])

def on_starting(server):
    note("on_starting", workers=server.num_workers > 0, listeners=len(server.LISTENERS), age=server.worker_age,
         master=server.master_pid, app=server.app.app_uri, callable=server.app.callable is None)
    cfg("starting.cfg", server.cfg)

def when_ready(server):
    note("when_ready", listeners=len(server.LISTENERS), workers=len(server.WORKERS), log=hasattr(server.log,
         "error_log"))

def pre_fork(server, worker):
    worker.mine = worker.age * 2
    os.environ["MINE"] = "yes"
    note("pre_fork", pid=worker.pid, alive=worker.alive, booted=worker.booted, nr=worker.nr,
         sockets=len(worker.sockets),
         most=worker.max_requests == sys.maxsize, text=str(worker), reloader=worker.reloader)

def post_fork(server, worker):
    note("post_fork", mine=worker.mine, env=os.environ["MINE"], pid=worker.pid == os.getpid(),
         ppid=worker.ppid == server.pid,
         booted=worker.booted, app=worker.app is server.app, aborted=worker.aborted)
    worker.here = 1

def post_worker_init(worker):
    note("post_worker_init", mine=worker.mine, here=worker.here, wsgi=callable(worker.wsgi), nr=worker.nr,
         alive=worker.alive,
         callable=worker.app.callable is worker.wsgi, colour=os.environ["COLOUR"])
    worker.tmp.notify()
    worker.notify()
    cfg("worker.cfg", worker.cfg)

def worker_exit(server, worker):
    note("worker_exit", mine=worker.mine, here=worker.here)

def child_exit(server, worker):
    note("child_exit", mine=worker.mine, here=hasattr(worker, "here"))

def on_exit(server):
    note("on_exit", workers=len(server.WORKERS))
"""

REQUESTS = """
def pre_request(worker, req):
    req.mark = "hung here"
    note("pre", method=req.method, path=req.path, uri=req.uri, query=req.query, version=req.version, scheme=req.scheme,
         fragment=req.fragment, headers=sorted(map(list, req.headers)), close=req.should_close())
    if req.path == "/change":
        req.method, req.path, req.uri, req.query = "PUT", "/a%20b", "/raw?x", "y=2"
        req.headers.append(("X-ADDED", "4"))
        req.headers[:] = [pair for pair in req.headers if pair[0] != "X-OUT"]
        req.headers = [(name, "b.example" if name == "HOST" else value) for name, value in req.headers]
        req.headers.append(("CONTENT-TYPE", "text/x"))
        req.headers.append(("X-ADDED", "5"))
    if req.path == "/mount/here":
        req.headers.append(("SCRIPT_NAME", "/mount"))
    if req.path == "/refuse":
        raise ValueError("no")

def post_request(worker, req, environ, resp):
    if resp is None or req.path == "/refuse":
        return note("post", refused=True)
    note("post", mark=req.mark, method=req.method, left=environ["app.mark"], path=environ["PATH_INFO"],
         status=resp.status,
         code=resp.status_code, headers=[name for name, _ in resp.headers],
         sent=resp.sent > 10, length=resp.response_length == resp.sent,
         headers_sent=resp.headers_sent, chunked=resp.is_chunked(), same=resp.req is req, upgrade=resp.upgrade)
"""

LOGS = """
accesslog = "own.out"
access_log_format = "%(m)s %(U)s %(s)s"

def handler(name):
    found = logging.FileHandler(name)
    found.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    return found

def drop(record):
    return record.args["U"] != "/health" if isinstance(record.args, dict) else True

def when_ready(server):
    server.log.error_log.addHandler(handler("errors.out"))
    server.log.warning("from %s", "when_ready")
    server.log.log("error", "by name")

def post_worker_init(worker):
    worker.log.access_log.addHandler(handler("access.out"))
    logging.getLogger("gunicorn.access").addFilter(drop)
    logging.getLogger("gunicorn.error").propagate = True
    logging.getLogger().addHandler(handler("root.out"))
    worker.log.warning("from post_worker_init")
"""


FILES = {
    "objects": (OBJECTS, ("/one",)),
    "requests": (REQUESTS, ("/one?a=1", "/change?z=1", "/mount/here", "/refuse", "/two")),
    "logs": (LOGS, ("/one", "/health", "/two")),
}


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
@pytest.mark.parametrize("name", list(FILES))
def test_the_same_file(tmp_path: Path, name: str, kind: str) -> None:
    needs_gevent_of_gunicorn(kind)
    config, targets = FILES[name]
    theirs = run_under("gunicorn", tmp_path / "g", config, *targets, flags=("-k", kind))
    ours = run_under("wsgiserv", tmp_path / "w", config, *targets, flags=("-k", kind))
    assert [comparable(each) for each in ours.answers] == [comparable(each) for each in theirs.answers]
    assert by_name(ours.notes) == by_name(theirs.notes)
    assert {name: named(lines) for name, lines in ours.files.items()} == {
        name: named(lines) for name, lines in theirs.files.items()
    }
    assert ours.status == theirs.status


def comparable(answer: tuple[int, Any]) -> tuple[int, Any]:
    """Leave out what is known to differ: repeated fields are joined with a blank behind the comma here."""
    status, body = answer
    return status, body and {name: value.replace(", ", ",") if value else value for name, value in body.items()}


def by_name(notes: list[Any]) -> dict[str, list[Any]]:
    """Sort the notes of several processes: by the hook, in order within it."""
    found: dict[str, list[Any]] = {}
    for name, shown in notes:
        if shown.get("method") == "GET" and shown.get("path") == "/first":
            continue  # asked for until the server answers
        found.setdefault(name, []).append(shown)
    return found


def named(lines: list[str]) -> list[str]:
    """Leave out the servers' own lines, which differ."""
    return [line.replace("wsgiserv.error ", "gunicorn.error ") for line in lines if "error INFO" not in line]


ARGUMENTS = {
    "on_starting": "server",
    "when_ready": "server",
    "post_fork": "server, worker",
    "post_worker_init": "worker",
}


@pytest.mark.parametrize("name", list(ARGUMENTS))
@pytest.mark.parametrize("what", ["raise RuntimeError('no')", "sys.exit(7)"])
def test_a_hook_that_stops_the_start(tmp_path: Path, name: str, what: str) -> None:
    if name.startswith("post_") and "exit" in what:
        pytest.skip("gunicorn starts such a worker again and again")
    config = f"def {name}({ARGUMENTS[name]}):\n    {what}\n"
    theirs, ours = (run_under(each, tmp_path / each, config) for each in ("gunicorn", "wsgiserv"))
    assert theirs.status != 0
    assert ours.status != 0
    # An exception in the master's hooks is status 1 there, with a traceback, and 3 here.
    if name.startswith("post_") or "exit" in what:
        assert ours.status == theirs.status
