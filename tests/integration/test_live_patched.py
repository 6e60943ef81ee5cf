"""Applications and configurations that call gevent.monkey.patch_all() or eventlet.monkey_patch()."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patchedapps import PATCHES, rewrite, text
from rawclient import RawClient
from server import DEADLINE_S, Connect, Server, Start, is_alive, run, wait_until

# coverage saves its data through what the application has patched, and a worker does not come to its end.
pytestmark = pytest.mark.no_coverage

# Where the call stands.
PLACES = ("app", "view", "file", "hook", "preload")
EXPECT = (
    *(r"SIGKILL", r"Eventlet", r"was killed by SIGKILL"),
    # eventlet's own word about what was imported before it.
    r"RLock\(s\) were not greened",
)


@pytest.fixture(params=PATCHES)
def library(request: pytest.FixtureRequest) -> str:
    """What patches."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


def begin(start: Start, library: str, place: str, *args: str, **rest: Any) -> Server:
    """Start a server of which the ``place`` calls what patches."""
    call = PATCHES[library]
    module = {"app": text(call), "preload": text(call), "view": text(in_view=call)}.get(place, text())
    file = {"file": f"{call}\n", "hook": f"def post_fork(server, worker):\n    {call}\n"}.get(place, "")
    options = ["--preload"] if place == "preload" else []
    rest.setdefault("worker_class", "sync")
    return start(
        "patched:app",
        *("-c", "gun.py", *options, *args),
        files={"patched.py": module, "gun.py": file},
        expect=EXPECT,
        **rest,
    )


def ask(server: Server, target: str = "/", **rest: Any) -> dict[str, Any]:
    """Ask as a new client."""
    with RawClient(server.address) as client:
        response = client.get(target, **rest)
        assert response.status == 200, (response.status, response.body)
        facts: dict[str, Any] = response.json()
        return facts


def serving(server: Server, preload: bool = False) -> list[int]:
    """Return the workers that there are, without the zygote."""
    found = server.workers()
    return found[1:] if preload else found


@contextlib.contextmanager
def slow_server(wait_s: float) -> Iterator[int]:
    """A server of HTTP/1.0 that thinks; gives its port."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                time.sleep(wait_s)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nfrom afar")

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("place", PLACES)
def test_sync_serves_and_obeys(start_unclassed: Start, tmp_path: Path, library: str, place: str) -> None:
    # An import of these libraries is half a second: two workers, with their helper's threads, in one place only.
    count = 2 if place == "app" else 1
    server = begin(start_unclassed, library, place, "-w", str(count), "--handoff-after", "0.1")
    server.wait_for_log(f"ready: {count} worker")
    if place == "view":
        ask(server)  # the worker has had a request, and so has patched
    assert ask(server)["sleeps_in"] == {"gevent": "gevent.hub", "eventlet": "eventlet.greenthread"}[library]
    if library == "gevent":  # eventlet's main thread is another object
        assert ask(server)["main"]

    # What the application waits for comes, and the loop goes on.
    assert ask(server, "/sleep?s=0.2")["version"] == "one"
    with slow_server(0.2) as port:
        assert ask(server, f"/fetch?port={port}")["fetched"].endswith("from afar")
    with RawClient(server.address) as client:
        body = b"x" * 300_000  # goes to a file
        assert client.get("/body", method="POST", body=body).json()["read"] == len(body)
    ask(server, "/log")
    server.wait_for_log("a line of the application")

    # A worker that was killed comes again.
    victim = ask(server)["pid"]
    os.kill(victim, signal.SIGKILL)
    server.wait_for_log(rf"worker {victim} .*was killed by SIGKILL")
    wait_until(
        lambda: victim not in server.workers() and len(serving(server, place == "preload")) == count,
        "as many as before",
    )
    assert ask(server)["version"] == "one"

    # A reload takes the new code.
    call = PATCHES[library] if place in ("app", "preload", "view") else ""
    rewrite(tmp_path / "patched.py", call, "two")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log(f"reloaded: {count} worker")
    wait_until(lambda: ask(server)["version"] == "two", "the new code alone")

    # Told to stop while a request sleeps, that is answered, and the process ends by itself.
    with RawClient(server.address) as client:
        before = len(server.log.lines)
        client.send(b"GET /sleep?s=0.5 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for_log("asleep", after=before)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert client.read_response().status == 200
        assert server.wait() == 0
    assert time.monotonic() - began < 5.0


def test_background_jobs_run_while_the_worker_is_idle(start_unclassed: Start, library: str) -> None:
    """As under gunicorn, whose loop waits in the patched select()."""
    server = begin(start_unclassed, library, "app")
    server.wait_for_log("ready: 1 worker")
    ask(server, "/tick")
    first = ask(server)["ticks"]
    wait_until(lambda: ask(server)["ticks"] >= first + 3, "the greenlet runs")
    before, began = ask(server)["ticks"], time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.5, "half a second without a request")
    assert ask(server)["ticks"] >= before + 10


def test_a_worker_is_recycled(start_unclassed: Start, library: str) -> None:
    server = begin(start_unclassed, library, "app", "--max-requests", "3")
    server.wait_for_log("ready: 1 worker")
    seen = set()
    end = time.monotonic() + DEADLINE_S
    while len(seen) < 3 and time.monotonic() < end:
        seen.add(ask(server)["pid"])
    assert len(seen) >= 3


@pytest.mark.parametrize("place", ["app", "view", "preload"])
def test_an_overdue_request_is_interrupted_where_it_waits(start_unclassed: Start, library: str, place: str) -> None:
    if place == "view" and library == "eventlet":
        pytest.skip("as with gevent, and it takes its time")
    # Where a request patches, that is the most of its time.
    limit = "6" if place == "view" else "1"
    server = begin(start_unclassed, library, place, "--request-timeout", limit)
    server.expect("request_timeout", "RequestTimeout", "Traceback")
    server.wait_for_log("ready: 1 worker")
    first = ask(server)["pid"]
    began = time.monotonic()
    with RawClient(server.address) as client:
        assert client.get("/sleep?s=60").status == 504
    server.wait_for_log("request_timeout .*answered with 504")
    if place != "view":  # where it is not known yet that there are greenlets
        server.log.wait_for(r"time\.sleep")  # the application's frames, though its greenlet waits
    wait_until(lambda: first not in server.workers(), "the worker that was interrupted is replaced")
    assert time.monotonic() - began < float(limit) + 4.0
    assert ask(server)["pid"] != first
    assert "does not come back" not in server.log.text


def test_who_waits_behind_a_long_call_is_handed_on(start_unclassed: Start, library: str) -> None:
    """The helper's thread is a real one: it works while the main thread's greenlets all wait."""
    server = begin(start_unclassed, library, "app", "-w", "2", "--handoff-after", "0.1")
    server.wait_for_log("ready: 2 workers")
    with contextlib.ExitStack() as stack:
        clients: dict[int, list[RawClient]] = {}
        while min(map(len, clients.values()), default=0) < 2 or len(clients) < 2:
            client = stack.enter_context(RawClient(server.address))
            clients.setdefault(client.get("/").json()["pid"], []).append(client)
            assert sum(map(len, clients.values())) < 200, "all connections are one worker's"
        slow, behind = next(iter(clients.values()))[:2]
        slow.send(b"GET /sleep?s=3 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for_log("asleep")
        began = time.monotonic()
        assert behind.get("/").status == 200
        assert time.monotonic() - began < 2.0
        assert slow.read_response().status == 200


def test_reload_watches_the_code(start_unclassed: Start, tmp_path: Path, library: str) -> None:
    server = begin(start_unclassed, library, "app", "--reload")
    server.wait_for_log("ready: 1 worker")
    assert ask(server)["version"] == "one"
    rewrite(tmp_path / "patched.py", PATCHES[library], "two")
    server.wait_for_log("patched.py has changed")
    wait_until(lambda: ask(server)["version"] == "two", "the new code is served")


def test_the_next_master_takes_over(start_unclassed: Start, tmp_path: Path, library: str) -> None:
    server = begin(start_unclassed, library, "file", "-p", str(tmp_path / "pid"))
    server.wait_for_log("ready: 1 worker")
    server.send_signal(signal.SIGUSR2)
    new = wait_until(lambda: (pid := int((tmp_path / "pid").read_text() or 0)) != server.pid and pid, "the next master")
    try:
        assert server.process.wait(DEADLINE_S) == 0
        assert ask(server)["version"] == "one"
    finally:
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not is_alive(new), "its end")


def test_a_worker_leaves_without_its_master(start_unclassed: Start, library: str) -> None:
    server = begin(start_unclassed, library, "app", "-w", "2")
    server.expect("is gone")
    server.wait_for_log("ready: 2 workers")
    with RawClient(server.address) as client:
        client.send(b"GET /sleep?s=30 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for_log("asleep")
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not server.leftovers(), "no process is left", 4.0)


def test_a_trace_shows_the_greenlet_that_waits(start_unclassed: Start, library: str) -> None:
    server = begin(start_unclassed, library, "app", "--timeout", "1")
    server.expect("is aborted", "SIGABRT", "exited with status 1")
    server.wait_for_log("ready: 1 worker")
    with RawClient(server.address) as client:
        client.send(b"GET /sleep?s=30 HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for_log("asleep")
        server.wait_for_log(r'"GET /sleep\?s=30 HTTP/1\.1"')
        server.log.wait_for(r"patched\.py.* in app")
    wait_until(lambda: ask(server)["version"] == "one", "the next worker serves")


# ---- threads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["app", "file", "hook", "preload"])
def test_threads_refuses_at_start(tmp_path: Path, library: str, place: str) -> None:
    call = PATCHES[library]
    (tmp_path / "patched.py").write_text(text(call if place in ("app", "preload") else ""))
    (tmp_path / "gun.py").write_text(
        {"file": call, "hook": f"def post_fork(server, worker):\n    {call}"}.get(place, "")
    )
    options = ["--preload"] if place == "preload" else []
    for more in (["--check-config"], []) if place in ("app", "file") else ([],):
        arguments = ["-c", "gun.py", "-b", "127.0.0.1:0", "--threads", "2", *options, *more, "patched:app"]
        done = run(arguments, tmp_path)
        assert done.returncode == 2, done.stderr
        assert re.search(
            r"worker_class = 'threads'.*the threads of the standard library replaced by greenlets "
            rf"\({library}\.monkey.*\)\. Expected worker_class = '(gevent|sync)', or no such call\.",
            done.stderr,
        ), done.stderr


def test_threads_serves_when_a_request_patches(start_unclassed: Start, connect: Connect, library: str) -> None:
    """Too late to refuse: the threads that are started from then on are real ones."""
    server = start_unclassed(
        "patched:app",
        *("-k", "threads", "--threads", "4"),
        files={"patched.py": text(in_view=PATCHES[library])},
        # What gevent and eventlet make of threads that are older than they are.
        expect=(*EXPECT, "MonkeyPatchWarning", "Traceback"),
    )
    server.wait_for_log("ready: 1 worker")
    assert ask(server)["version"] == "one"
    # gevent makes its first hub under the locks of imports, its own by then: not in several threads at once.
    assert ask(server, "/sleep?s=0.1")["version"] == "one"
    sleepers = [connect(server.address) for _ in range(3)]
    for each in sleepers:
        each.send(b"GET /sleep?s=0.5 HTTP/1.1\r\nHost: x\r\n\r\n")
    for each in sleepers:
        assert each.read_response().status == 200
    assert server.stop() == 0
