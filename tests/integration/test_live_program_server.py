"""`wsgiserv.Server`: servers in the background of a program, here of the tests' own process (issue 17, part 2)."""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programapps
import pytest
from rawclient import RawClient
from server import ROOT, environment, processes, wait_until

import wsgiserv

# Some start many interpreters, beside others that do.
pytestmark = pytest.mark.timeout(180)


def ask(server: wsgiserv.Server, query: str = "") -> Any:
    with RawClient(server.address) as client:
        return client.get(f"/?{query}", headers="Connection: close\r\n").json()


def left_of(pid: int) -> list[int]:
    """The processes of a server, which has a session of its own."""
    return [each.pid for each in processes() if each.session == pid]


def is_gone(pid: int) -> None:
    wait_until(lambda: not left_of(pid), f"all processes of the server {pid} have ended")


@pytest.fixture(autouse=True)
def state() -> Iterator[dict[str, Any]]:
    """What the application object finds in its module."""
    programapps.STATE.clear()
    yield programapps.STATE
    programapps.STATE.clear()


# ---- what it does ------------------------------------------------------------------------------------------


def test_an_object(worker_class: str, state: dict[str, Any]) -> None:
    state["before"] = 1
    with wsgiserv.Server(programapps.app, workers=2, worker_class=worker_class, threads=2) as server:
        state["after"] = 2
        pid = server.pid
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert server.address == ("127.0.0.1", server.port)
        answer = ask(server)
        assert answer["state"] == {"before": 1}
        assert answer["pid"] != pid
        assert "ready: 2 workers" in server.log
        assert "asked for /" in server.log
        with pytest.raises(RuntimeError, match=r'WS1917 the application is an object.*wsgiserv\.Server\("module:app"'):
            server.reload()
        assert ask(server)["state"] == {"before": 1}
    assert server.stop() == 0
    assert server.stop() == 0
    assert "stopped" in server.log
    is_gone(pid)


SHOP = """
import sys

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [b'[1, "%s"]' % __name__.encode()]
"""


def test_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "programshop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path / "below")
    with wsgiserv.Server("programshop:app", workers=2) as server:
        assert ask(server) == [1, "programshop"]
        (tmp_path / "programshop.py").write_text(SHOP.replace("[1", "[23"))
        server.reload()
        # The old workers accept no more.
        assert [ask(server) for _ in range(20)] == [[23, "programshop"]] * 20
        (tmp_path / "programshop.py").write_text("1 +")
        with pytest.raises(RuntimeError, match="reload failed: There is a syntax error in"):
            server.reload()
        assert ask(server) == [23, "programshop"]
    assert server.stop() == 0
    assert "programshop" not in sys.modules


def test_the_directory_of_the_caller_is_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for app in ("programapps:app", programapps.app):
        with wsgiserv.Server(app) as server:
            assert ask(server)["cwd"] == str(tmp_path)


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("workers = 2\n")
    settings = {"config": str(tmp_path / "conf.py"), "on_starting": programapps.on_starting}
    for app in ("programapps:app", programapps.app):
        with wsgiserv.Server(app, accesslog="-", **settings) as server:
            ask(server)
        assert "2 sync workers" in server.log
        assert "a hook of programapps" in server.log
        assert '"GET /? HTTP/1.1" 200' in server.log


def test_a_unix_socket(tmp_path: Path) -> None:
    with wsgiserv.Server(programapps.app, bind=f"unix:{tmp_path}/s") as server:
        assert server.url == f"unix:{tmp_path}/s"
        assert server.address == f"{tmp_path}/s"
        assert ask(server)["pid"]
        with pytest.raises(RuntimeError, match="is a Unix socket, and has no port"):
            _ = server.port


def test_an_inherited_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bind = f"fd://{listener.fileno()}"
        with wsgiserv.Server(programapps.app, bind=bind) as server:
            assert server.port == listener.getsockname()[1]
            assert ask(server)["pid"]


def test_many_at_once_in_threads() -> None:
    found: list[tuple[int, Any]] = []

    def serve(number: int) -> None:
        with wsgiserv.Server("programapps:app" if number % 2 else programapps.app) as server:
            found.append((server.port, ask(server)["pid"]))

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(dict(found)) == 6


def test_start_and_stop() -> None:
    server = wsgiserv.Server(programapps.app)
    assert server.log == ""
    assert server.stop() == 0
    for use in (lambda: server.url, lambda: server.pid, server.reload):
        with pytest.raises(RuntimeError, match="has not been started"):
            use()
    pids = []
    for _ in range(2):
        assert server.start() is server
        pids.append(server.pid)
        with pytest.raises(RuntimeError, match=f"runs already .pid {server.pid}"):
            server.start()
        assert ask(server)["pid"]
        assert server.stop() == 0
    assert pids[0] != pids[1]


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("application", ["programapps:app", programapps.app], ids=["name", "object"])
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"workers": "no"},
            "WS1010 workers = 'no' (an argument of wsgiserv.Server) is not accepted. Accepted: a whole",
        ),
        ({"wrkers": 1}, "WS1920 wrkers = 1 (an argument of wsgiserv.Server) is not a setting. Did you mean workers?"),
        ({"daemon": True}, "WS1919 daemon = True (an argument of wsgiserv.Server) is not accepted: the server runs in"),
        ({"bind": "192.0.2.1:1"}, "192.0.2.1:1"),
    ],
    ids=["value", "name", "daemon", "address"],
)
def test_a_wrong_setting(application: Any, settings: dict[str, Any], text: str) -> None:
    server = wsgiserv.Server(application, **settings)
    with pytest.raises(ValueError, match="WS1") as found:
        server.start()
    assert isinstance(found.value, wsgiserv.ConfigError)
    assert text in str(found.value)
    is_gone(server.pid)


@pytest.mark.parametrize(
    ("application", "text"),
    [("nothere:app", "There is no module 'nothere'"), ("programapps:missing", "missing"), (42, "cannot be called")],
)
def test_an_application_that_cannot_be_loaded(application: Any, text: str) -> None:
    server = wsgiserv.Server(application)
    with pytest.raises(wsgiserv.ApplicationError, match=text) as found:
        server.start()
    assert any("log" in note for note in found.value.__notes__)
    is_gone(server.pid)


def test_a_server_that_is_not_ready_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text("print('importing', flush=True)\nimport time; time.sleep(100)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    server = wsgiserv.Server("hangs:app")
    with pytest.raises(wsgiserv.BootError, match="not ready within 2 s") as found:
        server.start(timeout=2)
    assert "importing" in str(found.value)
    is_gone(server.pid)


def test_a_server_that_dies_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("import os\nos._exit(7)\n")
    with pytest.raises(wsgiserv.BootError, match="the server ended with status 7 before it was ready"):
        wsgiserv.Server(programapps.app, config=str(tmp_path / "conf.py")).start()


def test_an_application_that_starts_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "itself.py").write_text("import wsgiserv\ndef app(e, s): ...\nwsgiserv.Server('itself:app').start()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(wsgiserv.ApplicationError, match=r'each server would start another.*if __name__ == "__main__":'):
        wsgiserv.Server("itself:app").start()


def test_arguments_that_cannot_be_sent() -> None:
    with pytest.raises(wsgiserv.ConfigError, match=r"WS1922 the arguments of .* cannot be sent"):
        wsgiserv.Server("programapps:app", when_ready=lambda server: None).start()


# ---- its end -----------------------------------------------------------------------------------------------


def test_a_request_is_finished() -> None:
    server = wsgiserv.Server(programapps.app).start()
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask(server, "0.5")))
    thread.start()
    wait_until(lambda: "asked for" in server.log, "the request has begun")
    assert server.stop() == 0
    thread.join()
    assert answers[0]["pid"]


def test_a_long_request_is_cut() -> None:
    server = wsgiserv.Server(programapps.app).start()
    with RawClient(server.address) as client:
        client.send(b"GET /?60 HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: "asked for" in server.log, "the request has begun")
        began = time.monotonic()
        assert server.stop(timeout=0.5) == 0
        assert time.monotonic() - began < 10
    is_gone(server.pid)


def test_a_server_that_does_not_react_is_killed() -> None:
    server = wsgiserv.Server(programapps.app, workers=2).start()
    os.kill(server.pid, signal.SIGSTOP)
    assert server.stop(timeout=0.2) == -signal.SIGKILL
    is_gone(server.pid)


def test_a_server_that_was_killed() -> None:
    server = wsgiserv.Server(programapps.app).start()
    os.kill(server.pid, signal.SIGKILL)
    assert server.stop() == -signal.SIGKILL
    with pytest.raises(RuntimeError, match="the server has ended"):
        server.reload()
    is_gone(server.pid)


def test_an_exception_ends_it() -> None:
    with contextlib.suppress(LookupError), wsgiserv.Server(programapps.app) as server:
        raise LookupError
    is_gone(server.pid)


def test_the_garbage_collector_ends_it() -> None:
    server = wsgiserv.Server(programapps.app).start()
    pid = server.pid
    del server
    gc.collect()
    is_gone(pid)


ENDS = """
import os, sys, time
import programapps, wsgiserv

servers = [wsgiserv.Server(each).start() for each in (programapps.app, "programapps:app")]
if sys.argv[1] == "child":  # it holds what it has inherited
    if os.fork() == 0:
        time.sleep(50)
        os._exit(0)
print(*[each.pid for each in servers], *[each.port for each in servers], flush=True)
if sys.argv[1] == "exit":
    sys.exit()
if sys.argv[1] == "error":
    raise LookupError
if sys.argv[1] == "abrupt":
    os._exit(3)
time.sleep(50)
"""


@pytest.mark.parametrize("how", ["exit", "error", "abrupt", "kill", "child", "interrupt"])
def test_the_end_of_the_program_ends_it(how: str, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(ENDS)
    command = [sys.executable, "prog.py", how]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment({}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        first, second, *ports = map(int, process.stdout.readline().split())
        if how in ("kill", "child"):
            # A request that goes on does not keep it.
            with RawClient(("127.0.0.1", ports[0])) as client:
                client.send(b"GET /?60 HTTP/1.1\r\nHost: a\r\n\r\n")
                process.kill()
                process.wait()
        elif how == "interrupt":
            process.send_signal(signal.SIGINT)
        process.wait()
        is_gone(first)
        is_gone(second)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# ---- nothing of the program acts in it ---------------------------------------------------------------------


def test_what_is_the_programs_stays_its_own(
    state: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    ends = tmp_path / "ends"
    ends.touch()

    def note() -> None:
        with ends.open("a") as file:
            file.write(f"{os.getpid()}\n")

    atexit.register(note)
    before = signal.signal(signal.SIGUSR1, lambda *_: note())
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait, name="of the program")
    thread.start()
    directory = tempfile.TemporaryDirectory()
    state["directory"] = directory.name
    try:
        with (
            warnings.catch_warnings(record=True) as told,
            open(tmp_path / "buffered", "w") as buffered,
            socket.create_server(("127.0.0.1", 0)) as listener,
            wsgiserv.Server(programapps.app) as server,
        ):
            buffered.write("once")
            address = listener.getsockname()
            listener.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            answer = ask(server)
            assert "of the program" not in answer["threads"]
            assert "note" not in answer["handler"]
            assert answer["stdout"] == str(type(sys.__stdout__))
            os.kill(server.pid, signal.SIGUSR1)  # it reopens its logs
        assert told == []
    finally:
        signal.signal(signal.SIGUSR1, before)
        atexit.unregister(note)
        waiting.set()
        thread.join()
    is_gone(server.pid)
    assert ends.read_text() == ""
    assert (tmp_path / "buffered").read_text() == "once"
    assert os.path.isdir(directory.name)
    directory.cleanup()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_a_forked_child_of_the_program_ends_nothing() -> None:
    with wsgiserv.Server(programapps.app) as server:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                status = server.stop()
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ask(server)["pid"]


def test_a_server_in_a_server(worker_class: str) -> None:
    with wsgiserv.Server(programapps.nested, worker_class=worker_class) as server:
        outer = server.pid
        assert ask(server)["pid"] != outer
        assert ask(server)["pid"] != outer
    assert "Traceback" not in server.log
    is_gone(outer)


# ---- in other surroundings ---------------------------------------------------------------------------------


def in_another_process(results: Any) -> None:
    """Use servers. Called in a process of `multiprocessing`."""
    found = []
    for app in ("programapps:app", programapps.app):
        with wsgiserv.Server(app) as server:
            found.append(ask(server)["pid"] != os.getpid())
    results.put(found)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
@pytest.mark.parametrize("daemon", [False, True], ids=["", "daemon"])
def test_in_a_process_of_multiprocessing(method: str, daemon: bool) -> None:
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    process = context.Process(target=in_another_process, args=(results,), daemon=daemon)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    assert results.get(timeout=30) == [True, True]
    process.join()
    assert process.exitcode == 0
    process.close()
    results.close()
    results.join_thread()


PATCHED = """
from gevent import monkey; monkey.patch_all()
import json, os, sys, threading, time
import gevent
import wsgiserv

ticks = []

def tick():
    while True:
        with open("ticks", "a") as file:
            file.write(f"{os.getpid()} ")
        gevent.sleep(0.02)

def app(environ, start_response):
    time.sleep(0.1)
    found = []
    gevent.spawn(found.append, 1).join()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(found).encode()]

def ask(server):
    from urllib.request import urlopen
    return urlopen(server.url, timeout=20).read()

def use(application, **settings):
    with wsgiserv.Server(application, **settings) as server:
        asking = [gevent.spawn(ask, server) for _ in range(2)]
        answer = ask(server)
        gevent.sleep(0.05)
    assert [answer, *(each.get() for each in asking)] == [b"[1]"] * 3

if __name__ == "__main__":
    gevent.spawn(tick)
    gevent.sleep(0.05)
    use("prog:app")
    for kind in ("sync", "gevent"):
        use(app, worker_class=kind)
    gevent.spawn(use, app).get()
    thread = threading.Thread(target=use, args=(app,))
    thread.start()
    thread.join()
    gevent.get_hub().threadpool.spawn(use, app).get()
    with open("ticks") as file:
        found = file.read().split()
    assert set(found) == {str(os.getpid())}, "a greenlet of the program has run in the server"
    print("good", len(found))
"""


def test_in_a_program_that_gevent_has_patched(tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text(PATCHED)
    done = subprocess.run(
        [sys.executable, "prog.py"], cwd=tmp_path, env=environment({}), capture_output=True, text=True, timeout=150,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("good"), done.stdout + done.stderr
    assert int(done.stdout.split()[1]) > 50, "the greenlets of the program go on while it waits"


BESIDE = """
import os, signal, sys, threading, programapps, wsgiserv
from urllib.request import urlopen

def use(server):
    def go():
        for app in (programapps.app, "programapps:app"):
            with wsgiserv.Server(app) as other, urlopen(other.url, timeout=20) as response:
                print(response.status, flush=True)
            print(other.stop(), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=go).start()

wsgiserv.run(programapps.app, bind="127.0.0.1:0", when_ready=use)
print("behind")
"""


def test_beside_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BESIDE], cwd=tmp_path, env=environment({}), capture_output=True, text=True, timeout=150,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["200", "0", "200", "0", "behind"], done.stderr


def test_in_a_process_that_waits_for_all_children(tmp_path: Path) -> None:
    text = """
import os, signal, programapps, wsgiserv

def reap(number, frame):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, reap)
with wsgiserv.Server(programapps.app) as server:
    pass
print(server.stop())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], cwd=tmp_path, env=environment({}), capture_output=True, text=True,
        timeout=150, check=False,
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr
    assert done.stderr == ""


def test_the_package_is_cheap_to_import(tmp_path: Path) -> None:
    code = "import sys, wsgiserv, json; print(json.dumps([each for each in sys.modules if each.startswith('wsgi')]))"
    done = subprocess.run([sys.executable, "-c", code], env=environment({}), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["wsgiserv"]


USER = """
from collections.abc import Callable
from typing import Any

import wsgiserv
from wsgiserv import ConfigError, Server, run


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    return []


def main() -> None:
    with Server(app, bind=["127.0.0.1:0"], workers=2) as server:
        reveal_type((server, server.url, server.port, server.pid, server.log, server.stop(timeout=1.0)))
    reveal_type(Server("shop:app").start())
    try:
        run("shop:app", bind="127.0.0.1:0")
    except ConfigError as error:
        reveal_type((error, error.exit_status))
    wsgiserv.run(3)
    wsgiserv.nothing
"""


def test_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}", "user.py"],
        cwd=tmp_path, env=environment({"MYPYPATH": str(ROOT)}), capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    server = "wsgiserv.embedding.server.Server"
    expected = [
        f'note: Revealed type is "tuple[{server}, str, int, int, str, int]"',
        f'note: Revealed type is "{server}"',
        'note: Revealed type is "tuple[wsgiserv.errors.ConfigError, wsgiserv.errors.ExitStatus]"',
        'error: Argument 1 to "run" has incompatible type "int"; expected "str | Callable[..., Any]"  [arg-type]',
        'error: Module has no attribute "nothing"  [attr-defined]',
    ]
    # An older mypy writes types in capitals.
    found = [line.partition(": ")[2].replace("Tuple[", "tuple[") for line in done.stdout.splitlines()[:-1]]
    assert found == expected, done.stdout + done.stderr
