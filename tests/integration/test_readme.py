"""The README, the other pages at the root and those of docs/ do what they say: their commands are run.

The convention, by the fence's words:

- a ``python`` block whose first line is a comment with a file's name is written to that file;
- ``sh`` is run in a fresh directory with the page's files and must succeed;
- ``sh serve`` is a server: it is started, must answer a request, and must end with status 0 on TERM. It is given
  a free port unless it names an address;
- commands that make a virtual environment are run by .ci/run as they stand, and only looked at here;
- anything else (``console``, ``ini``, ``nginx``) is text.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest
from projects import python_path
from server import ROOT, Server, plugin_environment, wait_until

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_URL = re.compile(r"http://127\.0\.0\.1:[1-9]\d*(?=\D)")
_FILE_NAME = re.compile(r"#\s*([\w./-]+\.\w+)")


class Block(NamedTuple):
    """One fenced block."""

    page: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1].strip(), found[2])


ALL = [block for page in PAGES for block in blocks(page)]
INSTALLS = [block for block in ALL if block.kind == "sh" and "-m venv" in block.text]
RUNS = [block for block in ALL if block.kind == "sh" and block not in INSTALLS]
SERVES = [block for block in ALL if block.kind == "sh serve"]


def prepare(block: Block, directory: Path) -> dict[str, str]:
    """Write the page's files, and the commands ``wsgiserv``, ``wsgiservctl`` and ``python``; return the environment."""
    for other in blocks(block.page):
        name = _FILE_NAME.match(other.text)
        if other.kind == "python" and name:
            path = directory / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(other.text)
    for name in ("examples", "bench"):
        if (ROOT / name).exists():
            (directory / name).symlink_to(ROOT / name)
    commands = directory / "commands"
    commands.mkdir()
    for name, command in {
        "wsgiserv": f"'{sys.executable}' -m wsgiserv",
        "wsgiservctl": f"'{sys.executable}' -m wsgiserv.ctl",
        "python": f"'{sys.executable}'",
        "python3": f"'{sys.executable}'",
        "flask": f"'{sys.executable}' -m flask",
    }.items():
        (commands / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (commands / name).chmod(0o755)
    env = {**python_path(directory), **plugin_environment()}
    return {**env, "PATH": f"{commands}:{env['PATH']}"}


def test_the_contributors_page_has_set_up_in_three_commands() -> None:
    [block] = [block.text for block in INSTALLS if block.page.name == "CONTRIBUTING.md"]
    commands = block.splitlines()
    assert len(commands) == 3
    assert "pip install -e '.[dev]'" in commands[1]
    assert "pytest -m unit" in commands[2]


def test_the_readme_says_how_to_install_and_how_to_test() -> None:
    commands = [block.text for block in INSTALLS if block.page.name == "README.md"]
    assert len(commands) == 2, "the README has two commands: install and serve, install and test"
    assert "pip install ." in commands[0]
    assert "wsgiserv" in commands[0]
    assert "hello:app" in commands[0]
    assert (ROOT / "examples" / "hello.py").exists()
    assert "pytest" in commands[1]


@pytest.mark.parametrize("block", RUNS, ids=str)
def test_commands(block: Block, tmp_path: Path) -> None:
    env = prepare(block, tmp_path)
    done = subprocess.run(
        ["sh", "-ec", block.text], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", SERVES, ids=str)
def test_servers(block: Block, tmp_path: Path) -> None:
    env = prepare(block, tmp_path)
    command = re.sub(r"(-b|--bind)[ =]\S*:\d+", r"\1 127.0.0.1:0", block.text.strip())
    if command == block.text.strip():
        env.update(WSGISERV_CMD_ARGS="-b 127.0.0.1:0", PORT="0", PYTHONUNBUFFERED="1")
    *before, last = command.replace("\\\n", " ").splitlines()
    script = "\n".join([*before, "exec " + last])  # exec: the signal is for the server, not for the shell
    server = Server(tmp_path, env=env, bind="none", command=["sh", "-ec", script])
    try:
        # Commands of frameworks print it, the server logs it.
        printed = wait_until(lambda: _URL.search(f"{server.log.text}\n{server.out.text}\n"), "an address")
        with urlopen(printed[0], timeout=20) as response:
            assert response.status == 200
        wait_until(server.workers, "workers")
        assert server.stop() == 0
        server.check()
    finally:
        server.close()


LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
_HEADING = re.compile(r"^#+ (.*?)\s*$", re.MULTILINE)
# A path from the root of the project: in backquotes, with one of its directories before it.
_PATH = re.compile(r"`((?:wsgiserv|docs|bench|examples|\.ci)/[\w./-]*)`")


def anchors(page: Path) -> set[str]:
    """Return the fragments by which a page's headings can be linked to, as GitHub and others make them."""
    prose = _FENCE.sub("", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in _HEADING.findall(prose)}


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target, fragment in LINK.findall(page.read_text()):
        found = page.parent / target if target else page
        assert found.exists(), f"{page_id(page)} links to {target}, which is not there"
        if fragment:
            assert fragment in anchors(found), f"{page_id(page)} links to {target}#{fragment}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_that_are_named_exist(page: Path) -> None:
    for name in _PATH.findall(page.read_text()):
        assert (ROOT / name).exists(), f"{page_id(page)} names {name}, which is not there"
