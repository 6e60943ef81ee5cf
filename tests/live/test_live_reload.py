"""--reload: changes are picked up, and a broken import is shown until it is mended (issue 2, part 10)."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    "broken", ["import no_such_package_here\n", "TEXT = = 5\n", "raise SystemExit('gone')\n"]
)
def test_a_broken_import_is_shown_and_recovered_from(reloading: Server, tmp_path: Path, broken: str) -> None:
    (tmp_path / "part.py").write_text(broken)
    status, page = wait_until(
        lambda: (found := answer(reloading))[0] == 500 and found, "the page of the traceback"
    )
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
