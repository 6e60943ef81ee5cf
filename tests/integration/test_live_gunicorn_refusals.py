"""The table of docs/migration-from-gunicorn.md: each request is served by gunicorn, and refused here as it says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Start, environment, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "corpus"))

from corpus import unescape

PAGE = Path(__file__).parents[2] / "docs" / "migration-from-gunicorn.md"
SECTION = PAGE.read_text().partition("## Requests that gunicorn serves and wsgiserv refuses")[2].partition("\n## ")[0]
ROW = re.compile(r"^\| (?P<what>.+?) \| `(?P<request>[^`|]+)` \| (?P<status>\d{3}) \| .+ \|$", re.MULTILINE)
ROWS = [(row["what"], unescape(row["request"].encode()), int(row["status"])) for row in ROW.finditer(SECTION)]

# It does not read the body.
APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


def ask(path: Path, request: bytes) -> int:
    """Return the status of the first response."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while b"\r\n" not in answer and (data := client.recv(4096)):
            answer += data
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    assert found, answer
    return int(found[1])


def listens(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A gunicorn on a Unix socket; its path."""
    directory = tmp_path_factory.mktemp("g")
    (directory / "app.py").write_text(APP)
    command = [sys.executable, "-m", "gunicorn", "-b", "unix:s", "--no-control-socket", "app:app"]
    with open(directory / "log", "w") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment({}), stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(directory / "s"), "gunicorn listens")
        yield directory / "s"
    finally:
        process.terminate()
        process.wait(20)


def test_the_table_is_read_whole() -> None:
    lines = [line for line in SECTION.splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(lines) - 1  # the heading
    assert len(ROWS) > 15


def test_each_row(start_unclassed: Start, gunicorn: Path, tmp_path: Path) -> None:
    start_unclassed(
        "app:app", *("-b", "unix:s"), files={"app.py": APP}, bind="none", expect=(r"refused with (400|413|501)",)
    ).wait_for_log("ready")
    for what, request, status in ROWS:
        assert ask(gunicorn, request) == 200, f"gunicorn: {what}"
        assert ask(tmp_path / "s", request) == status, f"wsgiserv: {what}"


def test_what_the_table_advises_is_served(start_unclassed: Start, gunicorn: Path, tmp_path: Path) -> None:
    start_unclassed("app:app", "-b", "unix:s", files={"app.py": APP}, bind="none").wait_for_log("ready")
    for request in (
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: %2Frun%2Fshop.sock\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: xn--caf-dma.example\r\n\r\n",
        b"GET /page%23part HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        b"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example\r\n\r\n",
    ):
        assert ask(gunicorn, request) == 200, request
        assert ask(tmp_path / "s", request) == 200, request
