"""--reload: changes are picked up, and a broken import is shown until it is mended (issue 2, part 10)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Server, Start, wait_until


@pytest.fixture(scope="session")
def worker_class() -> str:
    """The reloader is the same in every class; test_live_signals.py has one test for all of them."""
    return "sync"


TROUBLE = (r"\[(INFO|WARNING|ERROR|CRITICAL)\]|Traceback",)

APP = """
import part

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [part.TEXT]
"""


def answer(server: Server) -> tuple[int, bytes]:
    with RawClient(server.address) as client:
        response = client.get("/", headers="Connection: close\r\n")
    return response.status, response.body


@pytest.fixture(params=["auto", "poll"])
def reloading(request: pytest.FixtureRequest, start: Start) -> Server:
    """A server under --reload."""
    files = {"app.py": APP, "part.py": "TEXT = b'one'\n", "conf.py": "", "page.html": "x"}
    args = ("--reload", "--reload-engine", request.param, "--reload-extra-file", "page.html", "-c", "conf.py")
    server = start("app:app", *args, files=files, expect=TROUBLE)
    assert answer(server) == (200, b"one")
    return server


def test_a_changed_module_is_picked_up(reloading: Server, tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("TEXT = b'another'\n")
    wait_until(lambda: answer(reloading) == (200, b"another"), "the new text")


@pytest.mark.parametrize("broken", ["import no_such_package_here\n", "TEXT = = 5\n", "raise SystemExit('gone')\n"])
def test_a_broken_import_is_shown_and_recovered_from(reloading: Server, tmp_path: Path, broken: str) -> None:
    (tmp_path / "part.py").write_text(broken)
    status, page = wait_until(lambda: (found := answer(reloading))[0] == 500 and found, "the page of the traceback")
    assert status == 500
    assert b"part.py" in page
    what = {"i": "no_such_package_here", "T": "SyntaxError", "r": "gone"}[broken[0]]
    assert what.encode() in page
    reloading.wait_for_log(what)
    (tmp_path / "part.py").write_text("TEXT = b'mended'\n")
    wait_until(lambda: answer(reloading) == (200, b"mended"), "the mended text")


def test_it_starts_with_a_broken_application(start: Start, tmp_path: Path) -> None:
    server = start("app:app", "--reload", files={"app.py": APP, "part.py": "1 / 0\n"}, expect=TROUBLE)
    wait_until(lambda: b"ZeroDivisionError" in answer(server)[1], "the page of the traceback")
    (tmp_path / "part.py").write_text("TEXT = b'mended'\n")
    wait_until(lambda: answer(server) == (200, b"mended"), "the mended text")


def test_the_config_file_and_extra_files_are_watched(reloading: Server, tmp_path: Path) -> None:
    before = set(reloading.workers())
    (tmp_path / "page.html").write_text("changed")
    wait_until(lambda: reloading.workers() and not set(reloading.workers()) & before, "new workers")
    wait_until(lambda: answer(reloading) == (200, b"one"), "an answer")
    (tmp_path / "conf.py").write_text("workers = 2\n")
    wait_until(lambda: len(reloading.workers()) == 2, "the configuration is read again")


def test_the_page_cannot_carry_a_script(start: Start) -> None:
    files = {"app.py": "raise ValueError('<script>alert(1)</script>')\n"}
    server = start("app:app", "--reload", files=files, expect=TROUBLE)
    with RawClient(server.address) as client:
        response = client.get("/")
    assert response.status == 500
    as_text = (response.one("Content-Type") or "").startswith("text/plain")
    assert as_text or b"<script>alert" not in response.body


# Its import begins, tells so in the log, and goes on when there is a file `go_on`.
SLOW = """
import logging, os, time
import part
failure = None
if os.path.exists("fail"):
    try:
        import missing
    except ImportError as error:
        failure = error
logging.getLogger("gunicorn.error").info("importing")
while not os.path.exists("go_on"):
    time.sleep(0.02)
if failure:
    raise failure

def app(environ, start_response):
    start_response("200 OK", [])
    return [part.TEXT]
"""


@pytest.mark.parametrize("args", [(), ("--reload-engine", "poll")], ids=["", "poll"])
@pytest.mark.parametrize("changed", ["module", "same size", "configuration", "extra file", "what was missing"])
def test_a_change_while_a_worker_imports(start: Start, tmp_path: Path, args: tuple[str, ...], changed: str) -> None:
    """What has been read is old by then, and nothing else would tell."""
    files = {"app.py": SLOW, "part.py": "TEXT = b'one'\n", "conf.py": "", "page.html": "x"}
    if changed == "what was missing":
        files["fail"] = ""
    server = start(
        "app:app",
        *("--reload", *args, "--reload-extra-file", "page.html", "-c", "conf.py"),
        files=files,
        expect=TROUBLE,
    )
    server.wait_for_log("importing$")
    after = len(server.log.lines)
    if changed == "module":
        (tmp_path / "part.py").write_text("TEXT = b'another'\n")
    elif changed == "same size":  # and put in place with its old times, as rsync does with -t
        new = tmp_path / "new"
        new.write_text("TEXT = b'two'\n")
        os.utime(new, ns=(1, 10**18))
        new.rename(tmp_path / "part.py")
    elif changed == "configuration":
        (tmp_path / "conf.py").write_text("workers = 2\n")
    elif changed == "extra file":
        (tmp_path / "page.html").write_text("longer")
    else:
        (tmp_path / "missing.py").write_text("TEXT = b''\n")
    (tmp_path / "go_on").touch()
    server.wait_for_log("has changed: reloading", after=after)
    if changed == "configuration":
        server.wait_for_log("reloaded: 2 workers")
        return
    wanted = {"module": b"another", "same size": b"two"}.get(changed, b"one")
    wait_until(lambda: answer(server) == (200, wanted), "the new text")
    # Once: what has been read is new now.
    changes = [line for line in server.log.lines if "has changed: reloading" in line]
    assert len(changes) == 1, changes


LATE = """
import time

class Late:
    def __del__(self, sleep=time.sleep):
        sleep(0.3)

LATE = Late()

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"one"]
"""


@pytest.mark.parametrize("engine", ["auto", "poll"])
def test_the_watching_thread_does_not_abort_a_worker_that_ends_slowly(start: Start, engine: str) -> None:
    """The interpreter takes its time when the watching thread, in compiled code, is not to come back any more."""
    # Each worker has a chance of its own: it depends on the moment.
    server = start("late:app", "-w", "8", "--reload", "--reload-engine", engine, files={"late.py": LATE})
    server.wait_for_log("ready: 8 workers")
    assert server.stop() == 0
    assert "WS1209" not in server.log.text
