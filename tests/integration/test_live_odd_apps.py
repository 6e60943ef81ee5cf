"""An application is looked at by its type: what its attributes raise does not matter, or is the application's error."""

from __future__ import annotations

import os
import signal

import pytest
from server import Connect, Start

ERRORS = (r"\[ERROR\]", "Traceback")
HOOKS = """\
from oddapps import Odd
CALLED = []

def note(*args):
    CALLED.append(len(args))

pre_fork = post_fork = post_worker_init = worker_exit = on_starting = when_ready = Odd(note)
pre_request, post_request = Odd(note), Odd(note)
proxied, http_parser, sendfiles = Odd(note), Odd(note), Odd(note)
"""


@pytest.mark.parametrize("options", [(), ("--preload", "-c", "hooks.py")], ids=["", "preload"])
def test_odd_objects_serve(start: Start, connect: Connect, options: tuple[str, ...]) -> None:
    server = start("oddapps:odd", *options, files={"hooks.py": HOOKS}, expect=ERRORS)
    server.expect(r"hooks\.py")  # what is ignored is said
    server.wait_for_log("ready: 1 worker")
    client = connect(server.address)
    for path, body in {
        "/": b"odd\n",
        "/result": b"result",
        "/bytes": b"the whole",
        "/blocks": b"all of it",
        "/file": b"a file",
        "/closing": b"closing",
    }.items():
        response = client.get(path)
        assert (response.status, response.body) == (200, body), path
        if response.closes:
            client = connect(server.address)
    # /result has an attribute "close" that raises: as with close() itself, the response is whole, and it is told.
    server.wait_for_log("Unbound: working outside of application context")
    server.wait_for_log("Unbound: cannot be closed")
    for path in ("/raises", "/iterator"):
        before = len(server.log.lines)
        assert connect(server.address).get(path).status == 500
        server.wait_for_log("Unbound: ", after=before)
    before = len(server.log.lines)
    assert connect(server.address).get("/error").status == 500
    server.wait_for_log(r"\[ERROR\] (?:WS\d+ )?.*/error", after=before)
    server.wait_for_log(r"oddapps\.py", after=before)
    server.wait_for_log("OddError", after=before)
    assert connect(server.address).get("/").body == b"odd\n"
    assert "fault of the server" not in server.log.text
    # A look at what runs goes over all objects in gevent.
    for pid in server.workers():
        os.kill(pid, signal.SIGTTOU)
    assert connect(server.address).get("/").body == b"odd\n"
    assert server.stop() == 0
    assert "os._exit" not in server.log.text
    assert "error of the server itself" not in server.log.text


@pytest.mark.parametrize("app", ["exits", "interrupts", "make()", "Instance"])
def test_other_odd_applications_serve(start_unclassed: Start, connect: Connect, app: str) -> None:
    server = start_unclassed(f"oddapps:{app}", worker_class="sync")
    assert connect(server.address).get("/").body == b"odd\n"


BROKEN_CLASS = """\
from wsgiserv.worker.{name} import {kind}

class Broken({kind}):
    def load(self):
        super().load()
        raise RuntimeError("no such luck")
"""


@pytest.mark.parametrize("name", ["sync", "threads", "gevent"])
def test_what_a_boot_raises_is_said_with_its_traceback(start_unclassed: Start, name: str) -> None:
    module = "gevent_worker" if name == "gevent" else name
    text = BROKEN_CLASS.format(name=module, kind=f"{name.title()}Worker")
    server = start_unclassed(
        "oddapps:odd",
        *("-k", "broken:Broken"),
        files={"broken.py": text},
        expect=(r"\[ERROR\]|\[CRITICAL\]|Traceback",),
    )
    assert server.wait() == 3
    assert "RuntimeError: no such luck" in server.log.text
    assert 'broken.py", line 6, in load' in server.log.text
    assert "os._exit" not in server.log.text


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_what_a_look_raises_is_the_applications_error(start: Start, options: tuple[str, ...]) -> None:
    server = start("oddapps:nested.app", *options, expect=(r"\[ERROR\]|\[CRITICAL\]|Traceback",))
    assert server.wait() == 4
    assert "Unbound: working outside of application context" in server.log.text
    assert "oddapps.py" in server.log.text
    assert "os._exit" not in server.log.text
