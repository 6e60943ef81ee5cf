"""The server's state does not leak into the application, nor one request's into the next (issue 12, 3)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rawclient import RawClient
from server import Server, Start, wait_until

_FAILS = (r"\[ERROR\]|Traceback|\[WARNING\]",)

_CONFIG = """
import json, os, sys
import stateapps

def _named(name):
    def hook(*arguments):
        stateapps.probe(name)
        with open("hooks.txt", "a") as file:
            file.write(json.dumps({name: stateapps.SEEN[name]}) + "\\n")
        if name in os.environ.get("FAILING_HOOKS", ""):
            raise ValueError(name)
    return hook

stateapps.probe("configuration")

NAMES = ("on_starting", "when_ready", "pre_fork", "post_fork", "post_worker_init", "worker_int", "worker_exit",
         "child_exit", "on_exit", "on_reload", "nworkers_changed", "worker_abort")
ARGUMENTS = {"on_starting": 1, "when_ready": 1, "on_exit": 1, "on_reload": 1, "post_worker_init": 1, "worker_int": 1,
             "worker_abort": 1, "nworkers_changed": 3}
for _name in NAMES:
    _hook = _named(_name)
    _count = ARGUMENTS.get(_name, 2)
    _parameters = ", ".join("abc"[:_count])
    globals()[_name] = eval(f"lambda {_parameters}: hook({_parameters})", {"hook": _hook})

def pre_request(worker, req):
    stateapps.probe("pre_request")
    if "pre_request" in os.environ.get("FAILING_HOOKS", "") and req.query == "again":  # it answers those with 500
        raise ValueError("pre_request")

def post_request(worker, req, environ, resp):
    stateapps.probe("post_request")
    if "post_request" in os.environ.get("FAILING_HOOKS", ""):
        raise ValueError("post_request")
"""
_LOGGING = """
import logging
class Filter(logging.Filter):
    def filter(self, record):
        stateapps.probe("log filter")
        return True
logging.getLogger("gunicorn.error").addFilter(Filter())
"""

_ROUTES = ("", "call", "iteration", "close", "write", "again")


def seen(server: Server) -> dict[str, list[str]]:
    """Return what the application's places have seen."""
    with RawClient(server.address) as client:
        found: dict[str, list[str]] = json.loads(client.get("/seen").body)
        return found


def ask_everything(server: Server) -> None:
    """Let each place of the application be called, after successes and after failures."""
    for _ in range(3):
        for query in _ROUTES:
            with RawClient(server.address) as client:
                client.request(f"/probe?{query}", headers="Connection: close\r\n")
                while client.sock.recv(65536):
                    pass
        with RawClient(server.address) as client:  # a refusal, whose line the log's filters see
            client.offer(b"GET / HTTP/1.1\r\nHost : x\r\n\r\n")
            while client.sock.recv(65536):
                pass


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_no_code_of_the_application_runs_in_a_handler_of_ours(start: Start, preload: bool) -> None:
    args = ("--preload",) if preload else ()
    server = start("stateapps:app", "-w", "1", "--threads", "2", *args, expect=_FAILS)
    ask_everything(server)
    found = seen(server)
    assert {"import", "call", "iteration", "close", "after write"} <= found.keys()
    assert not any(found.values()), found


@pytest.mark.no_coverage  # which handles exceptions of its own in a new worker, where a stop may find it
@pytest.mark.parametrize("fails", ["", "pre_request,post_request,worker_exit,worker_int,child_exit"])
def test_no_hook_runs_in_a_handler_of_ours(start: Start, fails: str) -> None:
    server = start(
        "stateapps:app",
        *("-c", "hooked.py", "-w", "1", "--threads", "2"),
        files={"hooked.py": _CONFIG + _LOGGING},
        expect=_FAILS,
        env={"FAILING_HOOKS": fails},
    )
    ask_everything(server)
    found = seen(server)
    assert {"pre_request", "post_request", "log filter", "configuration"} <= found.keys()
    assert not any(found.values()), found
    server.send_signal(1)
    server.wait_for_log("reloaded: 1 worker")  # a worker that boots runs its hooks in its signal handler
    ask_everything(server)
    assert not any(seen(server).values())
    assert server.stop() == 0
    lines = [json.loads(line) for line in (server.directory / "hooks.txt").read_text().splitlines()]
    assert {name for line in lines for name in line} >= {"on_starting", "post_fork", "worker_exit", "child_exit"}
    assert not any(found for line in lines for found in line.values()), lines


def test_a_worker_whose_loop_fails_for_good_is_replaced(start: Start, worker_class: str) -> None:
    """Its poll fails at each turn. It says so, and its hook sees nothing of what ends it."""
    if worker_class == "gevent":
        pytest.skip("its hub would lose its own poller with ours")
    server = start(
        "closer:app",
        *("-c", "hooked.py", "-w", "1", "--threads", "2"),
        files={
            "hooked.py": _CONFIG,
            "closer.py": """
import os
def app(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/close":
        for name in os.listdir("/proc/self/fd"):
            try:
                if "eventpoll" in os.readlink(f"/proc/self/fd/{name}"):
                    os.close(int(name))
            except OSError:
                pass
    return [b"ok"]
""",
        },
        expect=(*_FAILS, r"\[CRITICAL\]"),
    )
    with RawClient(server.address) as client:
        assert client.get("/").text == "ok"
    (first,) = server.workers()
    with RawClient(server.address) as client:
        client.request("/close")
        client.sock.settimeout(5)
        try:
            client.sock.recv(100)
        except OSError:
            pass
    wait_until(lambda: server.workers() not in ([first], []), "the worker is replaced")
    with RawClient(server.address) as client:
        assert client.get("/").text == "ok"
    assert server.stop() == 0
    lines = [json.loads(line) for line in (server.directory / "hooks.txt").read_text().splitlines()]
    assert [line for line in lines if "worker_exit" in line] == [{"worker_exit": []}] * 2


def texts(server: Server, target: str, clients: int = 1, requests: int = 8) -> list[Any]:
    """Return the JSON of so many requests, over so many connections in turn."""
    found = []
    for _ in range(clients):
        with RawClient(server.address) as client:
            found += [json.loads(client.get(f"{target}?secret-{n}").body) for n in range(requests)]
    return found


@pytest.mark.parametrize("more", [(), ("--request-timeout", "20"), ("--handoff-after", "0.5", "-w", "2")])
def test_context_variables_of_one_request_are_not_in_the_next(start: Start, more: tuple[str, ...]) -> None:
    server = start("stateapps:app", "-w", "1", "--threads", "2", *more)
    assert all(found == [""] for found in texts(server, "/only-context", 4))


def test_each_request_begins_with_fresh_locals_in_gevent(start: Start, worker_class: str) -> None:
    server = start("stateapps:app", "-w", "1", "--threads", "1")
    found = texts(server, "/secrets", 4)
    assert all(each[0] == "" for each in found)
    if worker_class == "gevent":
        assert all(not any(each) for each in found), found
    elif worker_class == "threads":
        assert found[1][1] == "secret-0", "threads are reused, as in any pool: their locals stay"
        assert all(each[3] == "" for each in found), "but decimal's context is a context variable"


def test_what_the_import_has_set_is_there_in_sync(start: Start, worker_class: str) -> None:
    server = start("stateapps:app", "-w", "1")
    with RawClient(server.address) as client:
        text = client.get("/imported").text
    assert text == ("by the import" if worker_class == "sync" else "unset")


class TestGevent:
    """Only there are greenlets pooled."""

    @pytest.fixture
    def worker_class(self) -> str:
        """The one class that these tests are about."""
        return "gevent"

    def test_a_greenlet_that_nothing_is_left_in_serves_again(self, start: Start) -> None:
        server = start("stateapps:app", "-w", "1")
        with RawClient(server.address) as client:
            names = {client.get("/greenlet").text for _ in range(20)}
        assert len(names) == 1

    def test_a_timeout_that_one_request_has_left_behind_does_not_hit_another(self, start: Start) -> None:
        server = start("stateapps:app", "-w", "1")
        with RawClient(server.address) as client:
            for _ in range(5):
                assert client.get("/timeout").text == "armed"
                assert client.get("/sleep").text == "slept"

    def test_requests_that_wait_for_a_greenlet_get_one(self, start: Start) -> None:
        server = start("stateapps:app", "-w", "1", "--worker-connections", "2")
        clients = [RawClient(server.address) for _ in range(4)]
        try:
            for client in clients:
                client.request("/sleep", headers="Connection: close\r\n")
            for client in clients:
                assert client.read_response().text == "slept"
        finally:
            for client in clients:
                client.close()
