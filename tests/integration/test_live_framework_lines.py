"""The line with this server for each framework of docs/frameworks.md, in place of the framework's own server."""

from __future__ import annotations

import importlib.util
import re
import signal
import sys
from urllib.request import urlopen

import pytest
from server import ROOT, Start, wait_until

PAGE = (ROOT / "docs" / "frameworks.md").read_text()
[PROGRAM] = re.findall(r"^```python\n(# sites.py\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SITES = re.findall(r"def (\w+)_site\(", PROGRAM)
MODULES = {"webpy": "web"}


@pytest.mark.parametrize("name", SITES)
def test_an_object(start_unclassed: Start, name: str) -> None:
    module = MODULES.get(name, name)
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    server = start_unclassed(
        None,
        command=[sys.executable, "sites.py", name],
        bind="none",
        files={"sites.py": PROGRAM},
        env={"WSGISERV_CMD_ARGS": "-b 127.0.0.1:0"},
    )
    server.expect("pkg_resources")  # Pyramid 2.1
    with urlopen(server.url, timeout=20) as response:
        assert b"hello" in response.read() or name == "dash"
    assert server.stop(signal.SIGINT) == 0


def test_a_name_is_reloaded(start_unclassed: Start) -> None:
    program = "import wsgiserv\n\nif __name__ == '__main__':\n    wsgiserv.run('sites:falcon_site()', reload=True)\n"
    server = start_unclassed(
        None,
        command=[sys.executable, "serve.py"],
        bind="none",
        files={"sites.py": PROGRAM, "serve.py": program},
        env={"WSGISERV_CMD_ARGS": "-b 127.0.0.1:0"},
    )
    with urlopen(server.url, timeout=20) as response:
        assert response.read() == b"hello\n"
    (server.directory / "sites.py").write_text(PROGRAM.replace('"hello\\n"', '"changed\\n"'))

    def page() -> bytes:
        with urlopen(server.url, timeout=20) as response:
            found: bytes = response.read()
        return found

    wait_until(lambda: page() == b"changed\n", "the changed page")
    server.stop()
