"""A master of the test's own, with the fake worker of fakeserver.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Server, Start, wait_until

FAKE_SERVER = str(Path(__file__).with_name("fakeserver.py"))


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Start]:
    """Start ``fakeserver.py`` with flags, in ``tmp_path``; at the end nothing of it may be left.

    ``behaviour`` is how its workers behave, ``config`` the text of its configuration file.
    """
    made: list[Server] = []

    def start(
        *args: str, behaviour: str = "ready", config: str = "", env: dict[str, str] | None = None
    ) -> Server:
        (tmp_path / "behaviour").write_text(behaviour)
        (tmp_path / "conf.py").write_text(config)
        command = [sys.executable, FAKE_SERVER, "-c", "conf.py", *args, "fake:app"]
        if not any(arg == "-b" for arg in args) and "bind" not in config:
            command[2:2] = ["-b", "127.0.0.1:0"]
        found = Server(tmp_path, None, bind="none", command=command, env=env)
        made.append(found)
        return found

    yield start
    for server in made:
        if server.process.poll() is None:
            server.stop(2)
        try:
            wait_until(lambda server=server: not server.leftovers(), "no process is left", 5.0)
        finally:
            server.close()
