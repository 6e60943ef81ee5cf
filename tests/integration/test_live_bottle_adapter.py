"""Bottle's ``run`` with this server, by an adapter (issue 17, part 4)."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Start, wait_until

PROGRAM = """
import os, sys
import bottle
{imports}

@bottle.get("/")
def index():
    return f"one {{os.getpid()}}"

if __name__ == "__main__":
    bottle.run(host="127.0.0.1", {arguments})
    print("behind", flush=True)
"""
NAME = "server='wsgiserv.integrations.bottle:WsgiservServer'"


@pytest.mark.parametrize(
    ("imports", "arguments"),
    [
        ("", f"port=0, {NAME}, workers=2"),
        ("import wsgiserv.integrations.bottle", "port=0, server='wsgiserv', workers=2, worker_class='threads'"),
        ("from wsgiserv.integrations.bottle import WsgiservServer as S", "port=0, server=S, workers=2, threads=2"),
    ],
    ids=["path", "name", "class"],
)
def test_run(start_unclassed: Start, imports: str, arguments: str) -> None:
    text = PROGRAM.format(imports=imports, arguments=arguments)
    server = start_unclassed(None, command=[sys.executable, "prog.py"], bind="none", files={"prog.py": text})
    server.wait_for_log("ready: 2 workers")
    server.wait_for_log(r"Bottle v\S+ server starting up \(using WsgiservServer\(workers=2")
    listening = server.wait_for_log(r"listening on http://127.0.0.1:(\d+)")
    with RawClient(("127.0.0.1", int(listening[1]))) as client:
        found = client.get("/", headers="Connection: close\r\n").text.split()
    assert found[0] == "one"
    assert int(found[1]) in server.workers()
    assert server.stop(signal.SIGINT) == 0
    assert server.out.text == "behind"


def test_bottles_reloader(start_unclassed: Start, tmp_path: Path) -> None:
    """Its own: a child process, which it starts anew."""
    text = PROGRAM.format(imports="", arguments=f"{NAME}, bind='unix:site.sock', reloader=True, interval=0.1")
    server = start_unclassed(None, command=[sys.executable, "prog.py"], bind="none", files={"prog.py": text})

    def begins_with(word: str) -> bool:
        try:
            with RawClient(str(tmp_path / "site.sock")) as client:
                return client.get("/", headers="Connection: close\r\n").text.startswith(word)
        except OSError:
            return False

    wait_until(lambda: begins_with("one"), "the first code")
    (tmp_path / "prog.py").write_text(text.replace('f"one', 'f"two'))
    wait_until(lambda: begins_with("two"), "the changed code")
    server.send_signal(signal.SIGINT)
    server.wait()
