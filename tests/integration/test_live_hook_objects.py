"""What hooks find: the objects that gunicorn gives them, used as people use them (issue 16, part 1)."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient
from server import Server, Start, run, wait_until

NOTE = """
import json, logging, os, sys, threading

def note(name, /, **shown):
    with open("notes.txt", "a") as file:
        file.write(json.dumps([name, os.getpid(), shown]) + "\\n")
"""

APP = """
import json, os, threading

def app(environ, start_response):
    if environ["PATH_INFO"] == "/leave":
        environ["leave"]()
    shown = {key: value for key, value in environ.items() if isinstance(value, (str, int, tuple))}
    body = json.dumps({**shown, "pid": os.getpid(), "env": dict(os.environ)}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""


def notes(directory: Path, name: str) -> list[dict[str, Any]]:
    """Return what calls of one hook have noted, each with its process id under ``in``."""
    path = directory / "notes.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [{"in": pid, **shown} for called, pid, shown in found if called == name]


def begin(
    start: Start, config: str, *args: str, expect: tuple[str, ...] = (), app: str = APP, bind: str = "fd"
) -> Server:
    return start(
        "shop:app", "-c", "conf.py", *args, files={"conf.py": NOTE + config, "shop.py": app}, expect=expect, bind=bind
    )


def get(server: Server, path: str = "/", headers: str = "") -> Any:
    with RawClient(server.address) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: example.com\r\n{headers}Connection: close\r\n\r\n".encode())
        response = client.read_response()
        assert response.status == 200, response
        return response.json()


# ---- the application and its worker ------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [False, True], ids=["each", "preload"])
def test_the_application_in_the_worker(start: Start, tmp_path: Path, preload: bool) -> None:
    config = """
class Wrapped:
    def __init__(self, app, name):
        self.app, self.name = app, name
    def __call__(self, environ, start_response):
        environ["seen"] = environ.get("seen", "") + self.name
        return self.app(environ, start_response)

def post_fork(server, worker):
    before = worker.app.callable is not None
    worker.app.callable = Wrapped(worker.app.wsgi(), "fork ")
    note("post_fork", before=before, same=server.app is worker.app, uri=worker.app.app_uri,
         cfg=worker.app.cfg is worker.cfg)

def post_worker_init(worker):
    note("post_worker_init", wsgi=worker.wsgi is worker.app.callable, name=worker.wsgi.name)
    worker.wsgi = Wrapped(worker.wsgi, "init ")

def when_ready(server):
    try:
        server.app.wsgi()
    except RuntimeError as error:
        note("when_ready", error=str(error), callable=server.app.callable is None, uri=server.app.app_uri)
"""
    server = begin(start, config, *["--preload"] * preload)
    assert get(server)["seen"] == "init fork "
    (found,) = notes(tmp_path, "post_fork")
    assert found == {"in": server.workers()[-1], "before": preload, "same": True, "uri": "shop:app", "cfg": True}
    (found,) = notes(tmp_path, "post_worker_init")
    assert (found["wsgi"], found["name"]) == (True, "fork ")
    (found,) = notes(tmp_path, "when_ready")
    assert (found["callable"], found["uri"]) == (True, "shop:app")
    assert "never imports the application" in found["error"]


LEAVES = {
    "post_request": """
def post_request(worker, req, environ, resp):
    if req.path == "/go":
        note("before", alive=worker.alive, nr=worker.nr)
        worker.alive = False
        note("after", alive=worker.alive)
""",
    "thread": """
def pre_request(worker, req):
    if req.path == "/go":
        def leave():
            note("before", alive=worker.alive, nr=worker.nr)
            worker.alive = False
            note("after", alive=worker.alive)
        threading.Thread(target=leave).start()
""",
    "post_worker_init": """
def post_worker_init(worker):
    if worker.age == 1:
        note("before", alive=worker.alive, nr=worker.nr)
        worker.alive = False
        note("after", alive=worker.alive)
""",
}


@pytest.mark.parametrize("place", list(LEAVES))
def test_a_worker_that_is_not_alive_leaves_and_is_replaced(start: Start, tmp_path: Path, place: str) -> None:
    server = begin(start, LEAVES[place])
    if place != "post_worker_init":
        get(server, "/go")
    wait_until(lambda: notes(tmp_path, "after"), "the hook")
    first = notes(tmp_path, "before")[0]
    wait_until(lambda: server.workers() and first["in"] not in server.workers(), "another worker")
    assert get(server)["pid"] != first["in"]
    assert first["alive"] is True
    assert notes(tmp_path, "after")[0]["alive"] is False
    server.wait_for_log(r"worker\.alive was set to False|retires")
    assert server.stop() == 0


def test_a_handle_that_is_not_alive_is_replaced(start: Start, tmp_path: Path) -> None:
    config = """
def nworkers_changed(server, new, old):
    for worker in server.WORKERS.values():
        note("before", alive=worker.alive, pid=worker.pid, nr=worker.nr, booted=worker.booted)
        worker.alive = False
        note("after", alive=worker.alive)
"""
    server = begin(start, config)
    server.wait_for_log("ready: 1 worker")
    with RawClient(server.address) as client:
        # The worker counts a request when its answer has been sent: the second answer says that the first is counted.
        first = client.get("/").json()["pid"]
        assert client.get("/").json()["pid"] == first
    server.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(server.workers()) == 2 and first not in server.workers(), "the replacement")
    (before,) = notes(tmp_path, "before")
    assert before.pop("nr") in (1, 2)
    assert before == {"in": server.pid, "alive": True, "pid": first, "booted": True}
    assert notes(tmp_path, "after")[0]["alive"] is False


def test_a_worker_notifies_from_any_place(start: Start, tmp_path: Path, worker_class: str) -> None:
    """A hook that takes longer than `timeout` and tells that it is alive keeps its worker."""
    config = """
import time
def post_request(worker, req, environ, resp):
    for _ in range(25):
        time.sleep(0.1)
        worker.tmp.notify()
        worker.notify()
    note("post_request", nr=worker.nr, max_requests=worker.max_requests == sys.maxsize, reloader=worker.reloader,
         sockets=len(worker.sockets), age=worker.age, text=str(worker), tmp=worker.tmp.last_update() > 0)
"""
    threads = ["--threads", "1"] if worker_class == "threads" else []
    server = begin(start, config, "-t", "1", *threads)
    get(server)
    wait_until(lambda: notes(tmp_path, "post_request"), "the hook's end")
    (found,) = notes(tmp_path, "post_request")
    pid = found.pop("in")
    shown = {
        "nr": 1,
        "max_requests": True,
        "reloader": None,
        "sockets": 1,
        "age": 1,
        "text": f"<Worker {pid}>",
        "tmp": True,
    }
    assert found == shown
    assert server.workers() == [pid]


# ---- from pre_fork to child_exit -------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [False, True], ids=["each", "preload"])
def test_attributes_and_environment_of_pre_fork(start: Start, tmp_path: Path, preload: bool) -> None:
    config = """
class Place:
    def __init__(self, number):
        self.number = number

def pre_fork(server, worker):
    worker.index = worker.age * 10
    worker.place = Place(worker.age)
    worker.pool = worker.slot = "a name of the master's own"
    os.environ["WORKER_AGE"] = str(worker.age)
    os.environ.pop("GONE", None)
    note("pre_fork", pid=worker.pid, most=worker.max_requests)

def show(name, worker):
    note(name, index=worker.index, place=worker.place.number, pool=worker.pool, age=worker.age)

def post_fork(server, worker):
    worker.late = True
    show("post_fork", worker)

def post_worker_init(worker):
    show("post_worker_init", worker)
    note("most", most=worker.max_requests)

def worker_exit(server, worker):
    show("worker_exit", worker)

def child_exit(server, worker):
    show("child_exit", worker)  # raises for a zygote, which has no such attributes
    note("late", late=hasattr(worker, "late"), nr=worker.nr)
"""
    limits = ["--max-requests", "1000", "--max-requests-jitter", "500"]
    flags = ["-w", "2", *limits, *["--preload"] * preload]
    server = begin(start, config, *flags)
    wait_until(lambda: len(notes(tmp_path, "post_worker_init")) == 2, "both workers")
    server.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(notes(tmp_path, "post_worker_init")) == 3, "a third worker")
    assert server.stop() == 0
    expected = [
        {"index": 10 * age, "place": age, "pool": "a name of the master's own", "age": age} for age in (1, 2, 3)
    ]
    for name in ("post_fork", "post_worker_init", "worker_exit", "child_exit"):
        found = sorted(({**each, "in": 0} for each in notes(tmp_path, name)), key=lambda each: each["age"])
        assert found == [{"in": 0, **each} for each in expected], name
    # As with gunicorn: what the child sets stays there.
    assert all(not each["late"] for each in notes(tmp_path, "late"))
    assert {each["pid"] for each in notes(tmp_path, "pre_fork")} == {"[booting]"}
    seen = sorted(each["most"] for each in notes(tmp_path, "pre_fork"))
    assert seen == sorted(each["most"] for each in notes(tmp_path, "most"))
    assert all(1000 <= each <= 1500 for each in seen)


def test_the_environment_of_pre_fork_reaches_this_worker_and_later_ones(start: Start, tmp_path: Path) -> None:
    """Also where a zygote forks the worker, and was itself forked before."""
    config = """
def pre_fork(server, worker):
    os.environ[f"FOR_{worker.age}"] = "yes"
    os.environ["LAST"] = str(worker.age)
    os.environ.pop("TAKEN_OUT", None)

def post_worker_init(worker):
    names = sorted(name for name in os.environ if name.startswith("FOR_"))
    note("init", age=worker.age, names=names, last=os.environ["LAST"], out="TAKEN_OUT" in os.environ)
"""
    server = begin(start, config, "-w", "3", "--preload", "--env", "TAKEN_OUT=1")
    wait_until(lambda: len(notes(tmp_path, "init")) == 3, "three workers")
    found = sorted(notes(tmp_path, "init"), key=lambda each: each["age"])
    assert [each["last"] for each in found] == ["1", "2", "3"]
    assert [each["names"] for each in found] == [["FOR_1"], ["FOR_1", "FOR_2"], ["FOR_1", "FOR_2", "FOR_3"]]
    assert not any(each["out"] for each in found)
    assert server.stop() == 0


def test_what_cannot_be_pickled_gets_one_line(start: Start, tmp_path: Path) -> None:
    config = """
def pre_fork(server, worker):
    worker.lock = lambda: 0
    worker.index = worker.age

def post_fork(server, worker):
    note("post_fork", lock=hasattr(worker, "lock"), index=worker.index)

def child_exit(server, worker):
    if worker.age:
        note("child_exit", lock=hasattr(worker, "lock"))
"""
    server = begin(start, config, "-w", "2", "--preload", expect=(r"WS1105",))
    wait_until(lambda: len(notes(tmp_path, "post_fork")) == 2, "both workers")
    assert sorted((each["lock"], each["index"]) for each in notes(tmp_path, "post_fork")) == [(False, 1), (False, 2)]
    assert server.stop() == 0
    assert len(re.findall(r"WS1105 .*worker\.lock.*function.*post_fork", server.log.text)) == 1
    assert [each["lock"] for each in notes(tmp_path, "child_exit")] == [True, True]


def test_a_name_of_the_workers_own_is_told(start: Start) -> None:
    config = "def pre_fork(server, worker):\n    worker.context = 1\n"
    server = begin(start, config, expect=(r"WS1104 .*worker\.context",))
    get(server)
    server.wait_for_log(r"WS1104 .*worker\.context")


# ---- the server ----------------------------------------------------------------------------------------------


def test_the_server_has_the_names_of_gunicorns_arbiter(start: Start, tmp_path: Path) -> None:
    config = """
pidfile = "server.pid"

def on_starting(server):
    note("on_starting", address=server.address, pidfile=server.pidfile.fname, pid=server.pidfile.pid,
         workers=server.num_workers)
    server.num_workers = 2

def when_ready(server):
    (host, port), = server.address
    note("when_ready", host=host, port=port, master_pid=server.master_pid, pid=server.pid, workers=server.num_workers,
         listeners=len(server.LISTENERS), worker_class=server.worker_class.__name__, name=server.master_name,
         names=server.SIG_NAMES[15], signals=[int(each) for each in server.SIGNALS], ctx=list(map(str,
         server.START_CTX)),
         boot=server.WORKER_BOOT_ERROR, app=server.APP_LOAD_ERROR, has=hasattr(server, "SIG_QUEUE"))
    try:
        server.spawn_worker()
    except AttributeError as error:
        note("error", text=str(error))

def nworkers_changed(server, new, old):
    note("nworkers", new=new, old=old)
"""
    server = begin(start, config, bind="tcp")
    get(server)
    wait_until(lambda: len(server.workers()) == 2, "two workers")
    (found,) = notes(tmp_path, "on_starting")
    path = str(tmp_path / "server.pid")
    shown = {"in": server.pid, "address": [["127.0.0.1", 0]], "pidfile": path, "pid": server.pid, "workers": 1}
    assert found == shown
    (found,) = notes(tmp_path, "when_ready")
    assert (found["host"], found["port"], found["pid"]) == ("127.0.0.1", server.address[1], server.pid)
    assert (found["master_pid"], found["workers"], found["listeners"]) == (0, 2, 1)
    assert found["worker_class"].endswith("Worker")
    assert found["name"] == "Master"
    assert found["names"] == "term"
    assert signal.SIGUSR2 in found["signals"]
    assert found["ctx"] == ["args", "cwd", "0"]
    assert (found["boot"], found["app"], found["has"]) == (3, 4, False)
    assert "num_workers" in notes(tmp_path, "error")[0]["text"]
    assert [(each["new"], each["old"]) for each in notes(tmp_path, "nworkers")] == [(2, None)]


def test_a_hook_sets_the_number_of_workers(start: Start, tmp_path: Path) -> None:
    config = """
def on_reload(server):
    note("workers", workers=sorted(server.WORKERS), num=server.num_workers)
    server.num_workers = 3
    note("after", num=server.num_workers)
    server.manage_workers()
"""
    server = begin(start, config)
    get(server)
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: len(server.workers()) == 3, "three workers")
    server.wait_for_log(r"a hook has set server\.num_workers to 3")
    assert notes(tmp_path, "after")[0]["num"] == 3


def test_a_hook_kills_a_worker(start: Start, tmp_path: Path) -> None:
    config = """
import signal
def nworkers_changed(server, new, old):
    if old and new > old:
        for pid in list(server.WORKERS):
            server.kill_worker(pid, signal.SIGTERM)
        server.kill_worker(1, signal.SIGTERM)  # none of its workers: nothing happens
        note("killed", pids=list(server.WORKERS))
"""
    server = begin(start, config)
    first = get(server)["pid"]
    server.send_signal(signal.SIGTTIN)
    wait_until(lambda: len(server.workers()) == 2 and first not in server.workers(), "two other workers")
    assert notes(tmp_path, "killed")[0]["pids"] == [first]
    get(server)


@pytest.mark.parametrize("status", [0, 7])
def test_halt_in_a_running_server(start: Start, tmp_path: Path, status: int) -> None:
    config = f"""
def nworkers_changed(server, new, old):
    if old:
        server.halt("the licence has ended", {status})
        note("not reached")

def on_exit(server):
    note("on_exit")
"""
    server = begin(start, config, expect=(r"WS1201 .*licence",))
    get(server)
    server.wait_for_log("ready: 1 worker")
    server.send_signal(signal.SIGTTIN)
    assert server.wait() == status
    assert "a hook has called server.halt(): the licence has ended" in server.log.text
    assert not notes(tmp_path, "not reached")
    assert len(notes(tmp_path, "on_exit")) == 1


def test_halt_in_a_worker_says_what_to_use(start: Start, tmp_path: Path) -> None:
    config = """
def post_worker_init(worker):
    pass

def post_fork(server, worker):
    try:
        server.halt()
    except RuntimeError as error:
        note("error", text=str(error))
"""
    server = begin(start, config)
    get(server)
    assert "os.kill(server.pid, signal.SIGTERM)" in notes(tmp_path, "error")[0]["text"]


# ---- cfg -----------------------------------------------------------------------------------------------------


def test_cfg(start: Start, tmp_path: Path, worker_class: str) -> None:
    config = """
statsd_host = "127.0.0.1:9"
raw_env = ["COLOUR=blue"]

def post_worker_init(worker):
    cfg = worker.cfg
    note("cfg", name=cfg.worker_class_str, kind=cfg.worker_class.__name__, timeout=repr(cfg.timeout), env=cfg.env,
         ssl=bool(cfg.is_ssl), uid=cfg.uid == os.geteuid(), gid=cfg.gid == os.getegid(), bind=type(cfg.bind).__name__,
         statsd=list(cfg.statsd_host),
         setting=cfg.settings["timeout"].get(), value=cfg.settings["bind"].value == cfg.bind,
         hook=cfg.on_exit(None), log=isinstance(worker.log, cfg.logger_class), spew=cfg.spew,
         lines=len(str(cfg).splitlines()) > 100,
         address=type(cfg.address[0]).__name__, ours=cfg.request_timeout, name2=cfg.proc_name)
    try:
        cfg.timeout = 5
    except AttributeError as error:
        note("error", text=str(error))
    cfg.my_own = 1
"""
    server = begin(start, config, expect=("WS1842",))
    get(server)
    (found,) = notes(tmp_path, "cfg")
    found.pop("in")
    names = {
        "sync": ("sync", "SyncWorker"),
        "threads": ("gthread", "ThreadsWorker"),
        "gevent": ("gevent", "GeventWorker"),
    }
    assert found == {
        "name": names[worker_class][0], "kind": names[worker_class][1], "timeout": "30", "env": {"COLOUR": "blue"},
        "ssl": False, "uid": True, "gid": True, "bind": "list", "statsd": ["127.0.0.1", 9], "setting": 30,
        "value": True,
        "hook": None, "log": True, "spew": False, "lines": True, "address": "int", "ours": 0, "name2": "shop:app",
    }  # fmt: skip
    assert "cfg.set('timeout', value)" in notes(tmp_path, "error")[0]["text"]


def test_cfg_set(start: Start, tmp_path: Path) -> None:
    config = """
def on_starting(server):
    server.cfg.set("workers", 2)
    server.cfg.set("timeout", 77)
    try:
        server.cfg.set("timeout", "soon")
    except ValueError as error:
        note("error", text=str(error))

def when_ready(server):
    note("when_ready", workers=server.num_workers, timeout=server.cfg.timeout)
    server.cfg.set("timeout", 5)

def post_worker_init(worker):
    note("init", timeout=worker.timeout, shown=worker.cfg.timeout)
"""
    server = begin(start, config, expect=("WS1102 .*'timeout'",))
    get(server)
    wait_until(lambda: len(notes(tmp_path, "init")) == 2, "two workers")
    (found,) = notes(tmp_path, "when_ready")
    assert (found["workers"], found["timeout"]) == (2, 77)
    assert {(each["timeout"], each["shown"]) for each in notes(tmp_path, "init")} == {(38.5, 5)}
    assert "soon" in notes(tmp_path, "error")[0]["text"]
    assert len(re.findall("WS1102", server.log.text)) == 1


# ---- logs ----------------------------------------------------------------------------------------------------


FILE = """
def handler(name):
    found = logging.FileHandler(name)
    found.setFormatter(logging.Formatter("%(name)s %(message)s"))
    return found
"""

WHERE = {
    "file": 'logging.getLogger("gunicorn.access").addHandler(handler("extra.txt"))',
    "wsgiserv": 'logging.getLogger("wsgiserv.access").addHandler(handler("extra.txt"))',
    "on_starting": 'def on_starting(server):\n    server.log.access_log.addHandler(handler("extra.txt"))',
    "post_fork": 'def post_fork(server, worker):\n    worker.log.access_log.addHandler(handler("extra.txt"))',
    "post_worker_init": "def post_worker_init(worker):\n    worker.log.access_log.handlers += [handler('extra.txt')]",
    "propagate": """
def post_worker_init(worker):
    logging.getLogger("gunicorn.access").propagate = True
    logging.getLogger().addHandler(handler("extra.txt"))
""",
}


@pytest.mark.parametrize("where", list(WHERE))
def test_a_handler_of_the_access_log_takes_effect(start: Start, tmp_path: Path, where: str) -> None:
    server = begin(start, FILE + WHERE[where], "--access-logfile", "access.txt", "--access-logformat", "%(m)s %(U)s")
    extra, own = tmp_path / "extra.txt", tmp_path / "access.txt"
    if where == "post_worker_init":  # behind the logger's back: the worker looks once a second

        def is_there() -> bool:
            get(server, "/again")
            return extra.exists() and "/again" in extra.read_text()

        wait_until(is_there, "the handler")
    get(server, "/one")
    assert server.stop() == 0
    assert re.search(r"^(gunicorn|wsgiserv)\.access GET /one$", extra.read_text(), re.MULTILINE)
    assert own.read_text().splitlines()[-1:] == ["GET /one"]


def test_filters_and_handlers_that_the_application_adds_in_a_request(start: Start, tmp_path: Path) -> None:
    app = """
import logging

def drop(record):
    return record.args["U"] != "/health"

def app(environ, start_response):
    log = logging.getLogger("gunicorn.access")
    if environ["PATH_INFO"] == "/on":
        log.addFilter(drop)
    if environ["PATH_INFO"] == "/off":
        log.removeFilter(drop)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"{}"]
"""
    server = begin(start, "", "--access-logfile", "access.txt", "--access-logformat", "%(U)s", app=app)
    for path in ("/health", "/on", "/health", "/one", "/off", "/health"):
        get(server, path)
    assert server.stop() == 0
    assert (tmp_path / "access.txt").read_text().split() == ["/health", "/on", "/one", "/off", "/health"]


def test_an_application_that_configures_gunicorns_loggers_has_its_way(start: Start, tmp_path: Path) -> None:
    """`dictConfig` takes the server's handler out, as with gunicorn, and the access log is the application's."""
    app = """
import logging.config
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": True,
    "formatters": {"short": {"format": "%(name)s %(message)s"}},
    "handlers": {"file": {"class": "logging.FileHandler", "filename": "extra.txt", "formatter": "short"}},
    "loggers": {"gunicorn.access": {"handlers": ["file"], "level": "INFO", "propagate": False}},
})
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"{}"]
"""
    server = begin(start, "", "--access-logfile", "access.txt", "--access-logformat", "%(U)s", app=app)
    get(server, "/one")
    assert server.stop() == 0
    assert (tmp_path / "extra.txt").read_text() == "gunicorn.access /one\n"
    assert (tmp_path / "access.txt").read_text() == ""


def test_the_error_log_under_gunicorns_names(start: Start, tmp_path: Path) -> None:
    config = (
        FILE
        + """
def on_starting(server):
    log = server.log
    log.error_log.addHandler(handler("errors.txt"))
    note("log", level=log.loglevel, same=log.error_log.handlers is log.handlers, cfg=log.cfg is server.cfg,
         now=log.now())
    log.log("info", "by %s", "name")
    log.info("plain")
    log.reopen_files()

def post_worker_init(worker):
    logging.getLogger("gunicorn.error").setLevel(logging.DEBUG)
    worker.log.debug("now debug")
    logging.getLogger("gunicorn.error").propagate = True
    logging.getLogger("gunicorn").addHandler(handler("parent.txt"))
    worker.log.info("to the parent")
"""
    )
    server = begin(start, config)
    get(server)
    assert server.stop() == 0
    (found,) = notes(tmp_path, "log")
    assert (found["level"], found["same"], found["cfg"]) == (20, True, True)
    text = (tmp_path / "errors.txt").read_text()
    for line in ("by name", "plain", "now debug", "to the parent"):
        assert re.search(rf"\.error {line}$", text, re.MULTILINE), line
    assert "to the parent" in (tmp_path / "parent.txt").read_text()
    assert "by name" in server.log.text


# ---- requests ------------------------------------------------------------------------------------------------


def test_the_request_is_one_object_and_its_changes_reach_the_application(start: Start, tmp_path: Path) -> None:
    config = """
def pre_request(worker, req):
    req.mark = object()
    note("pre", id=id(req), cfg=req.cfg is worker.cfg, close=req.should_close(), nr=worker.nr)
    if req.path == "/old/a%20b":
        req.method = "PUT"
        req.path = "/new/a%20b"
        req.uri = "/uri?changed=1"
        req.query = "changed=2"
        req.scheme = "https"
        req.headers.append(("X-USER", "ann"))
        req.headers = [(name, value) for name, value in req.headers if name != "X-OUT"]
        req.headers = [(name, "other.example" if name == "HOST" else value) for name, value in req.headers]
        req.headers += [("CONTENT-TYPE", "text/x"), ("X-TWICE", "b")]

def post_request(worker, req, environ, resp):
    note("post", id=id(req), mark=hasattr(req, "mark"), same=resp.req is req, path=environ["PATH_INFO"],
         set=environ.get("app.set"),
         status=resp.status, code=resp.status_code, length=resp.response_length, sent=resp.sent,
         headers_sent=resp.headers_sent,
         chunked=resp.is_chunked(), close=resp.should_close(), names=[name for name, _ in resp.headers],
         version=resp.version)
"""
    app = APP.replace("    shown =", '    environ["app.set"] = 1\n    shown =')
    server = begin(start, config, app=app)
    found = get(server, "/old/a%20b?q=1", "X-Out: 1\r\nX-Twice: a\r\nX-Kept: 2\r\nX-Kept: 3\r\n")
    expected = {
        "REQUEST_METHOD": "PUT", "PATH_INFO": "/new/a b", "RAW_URI": "/uri?changed=1", "QUERY_STRING": "changed=2",
        "wsgi.url_scheme": "https", "HTTP_X_USER": "ann", "HTTP_HOST": "other.example", "CONTENT_TYPE": "text/x",
        "HTTP_X_TWICE": "a,b", "HTTP_X_KEPT": "2, 3", "SCRIPT_NAME": "", "HTTP_CONNECTION": "close",
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert "HTTP_X_OUT" not in found
    wait_until(lambda: notes(tmp_path, "post"), "post_request")
    (pre,), (post,) = notes(tmp_path, "pre"), notes(tmp_path, "post")
    assert pre["id"] == post["id"]
    assert (pre["cfg"], pre["close"], pre["nr"]) == (True, True, 0)
    length = post["length"]
    assert {**post, "in": 0, "id": 0} == {
        "in": 0, "id": 0, "mark": True, "same": True, "path": "/new/a b", "set": 1, "status": "200 OK", "code": 200,
        "length": length, "sent": length, "headers_sent": True, "chunked": False, "close": True,
        "names": ["Content-Type", "Content-Length"], "version": post["version"],
    }  # fmt: skip


def test_unchanged_requests_are_as_without_a_hook(start: Start) -> None:
    """What the server takes out of an untrusted client's headers stays out, and framing is not the hook's."""
    config = (
        "forwarded_allow_ips = '10.0.0.1'\ndef pre_request(worker, req):\n    req.headers.append(('X-MORE', '1'))\n"
    )
    server = begin(start, config)
    found = get(server, "/a%2Fb", "X-Forwarded-For: 1.2.3.4\r\nCookie: a=1\r\nCookie: b=2\r\n")
    assert found["PATH_INFO"] == "/a/b"
    assert found["HTTP_COOKIE"] == "a=1; b=2"
    assert "HTTP_X_FORWARDED_FOR" not in found
    assert found["HTTP_X_MORE"] == "1"


def test_script_name_of_a_hook(start: Start) -> None:
    config = "def pre_request(worker, req):\n    req.headers.append(('SCRIPT_NAME', '/shop'))\n"
    server = begin(start, config, expect=("WS1108", "WS1691", "Traceback"))
    found = get(server, "/shop/cart")
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/shop", "/cart")
    with RawClient(server.address) as client:
        assert client.get("/elsewhere").status == 500


def test_a_pre_request_that_raises_keeps_the_request_from_the_application(start: Start, tmp_path: Path) -> None:
    """As with gunicorn, where such a hook may check a token: 500, and the server goes on."""
    config = """
def pre_request(worker, req):
    if req.path == "/secret":
        raise PermissionError("no token")

def post_request(worker, req, environ, resp):
    note("post", path=req.path, status=resp.status_code)
"""
    app = APP.replace(
        '    if environ["PATH_INFO"] == "/leave"',
        '    open("called.txt", "a").write(environ["PATH_INFO"])\n    if environ["PATH_INFO"] == "/leave"',
    )
    server = begin(start, config, app=app, expect=("WS1691", "Traceback"))
    with RawClient(server.address) as client:
        assert client.get("/secret").status == 500
    get(server, "/open")
    wait_until(lambda: len(notes(tmp_path, "post")) == 2, "post_request")
    assert (tmp_path / "called.txt").read_text() == "/open"
    server.wait_for_log("PermissionError: no token")
    assert sorted(each["status"] for each in notes(tmp_path, "post")) == [200, 500]


# ---- hooks that stop -----------------------------------------------------------------------------------------


ARGUMENTS = {
    "on_starting": "server",
    "when_ready": "server",
    "post_fork": "server, worker",
    "post_worker_init": "worker",
}


@pytest.mark.parametrize("name", list(ARGUMENTS))
@pytest.mark.parametrize("preload", [False, True], ids=["each", "preload"])
def test_a_hook_that_raises_stops_the_start(tmp_path: Path, worker_class: str, name: str, preload: bool) -> None:
    (tmp_path / "conf.py").write_text(f"def {name}({ARGUMENTS[name]}):\n    raise RuntimeError('not today')\n")
    (tmp_path / "shop.py").write_text(APP)
    flags = ["--preload"] * preload
    done = run(["-c", "conf.py", "-k", worker_class, "-b", "127.0.0.1:0", *flags, "shop:app"], tmp_path)
    assert done.returncode == 3
    assert re.search(rf"the hook {name} raised RuntimeError: not today", done.stderr)
    assert "Traceback" in done.stderr
    assert "conf.py" in done.stderr


@pytest.mark.parametrize("name", ["on_starting", "when_ready"])
@pytest.mark.parametrize(
    ("call", "status"), [("sys.exit(9)", 9), ("sys.exit()", 0), ("sys.exit('no')", 1), ("server.halt('no', 5)", 5)]
)
def test_a_hook_that_exits_ends_the_start_with_its_status(tmp_path: Path, name: str, call: str, status: int) -> None:
    (tmp_path / "conf.py").write_text(f"import sys\npidfile = 'pid'\ndef {name}(server):\n    {call}\n")
    (tmp_path / "shop.py").write_text(APP)
    done = run(["-c", "conf.py", "-b", "127.0.0.1:0", "shop:app"], tmp_path)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "pid").exists()
    if status:
        assert f"the hook {name} has called" in done.stderr


@pytest.mark.parametrize("name", ["post_fork", "post_worker_init"])
@pytest.mark.parametrize("preload", [False, True], ids=["each", "preload"])
def test_a_hook_that_raises_rolls_a_reload_back(start: Start, tmp_path: Path, name: str, preload: bool) -> None:
    server = begin(start, "", *["--preload"] * preload, expect=("WS1103", "WS1205", "WS1313", "Traceback"))
    pid = get(server)["pid"]
    (tmp_path / "conf.py").write_text(f"def {name}({ARGUMENTS[name]}):\n    raise RuntimeError('not today')\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(r"WS1313 .*not today")
    assert get(server)["pid"] == pid
    (tmp_path / "conf.py").write_text("")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: ")
    wait_until(lambda: get(server)["pid"] != pid, "a new worker")


def test_an_application_that_a_hook_cannot_load_fails_as_always(tmp_path: Path, worker_class: str) -> None:
    (tmp_path / "conf.py").write_text("def post_fork(server, worker):\n    worker.app.wsgi()\n")
    (tmp_path / "shop.py").write_text("import nothing_of_that_name\n")
    done = run(["-c", "conf.py", "-k", worker_class, "-b", "127.0.0.1:0", "shop:app"], tmp_path)
    assert done.returncode == 4
    assert "nothing_of_that_name" in done.stderr
