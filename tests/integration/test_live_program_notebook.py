"""`wsgiserv.Server` and `wsgiserv.run` in a real notebook: a kernel of ipykernel, driven by nbclient."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from server import environment, processes, wait_until

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("nbclient", "ipykernel", "nbformat"))),
        reason="nbclient and ipykernel are not installed",
    ),
]

CELLS = [
    """
import asyncio, os, signal, threading, urllib.request
import wsgiserv

def app(environ, start_response):
    print("asked for", environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]

def ask(server):
    with urllib.request.urlopen(server.url, timeout=20) as response:
        return int(response.read())
""",
    """
server = wsgiserv.Server(app, workers=2).start()
print(ask(server) != os.getpid(), "asked for /" in server.log)
""",
    """
with wsgiserv.Server("programapps:app") as other:
    urllib.request.urlopen(other.url, timeout=20).close()
print(other.stop(), server.stop())
""",
    """
async def use():
    with wsgiserv.Server(app) as server:
        return await asyncio.to_thread(ask, server)
print(await use() != os.getpid())
""",
    """
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
wsgiserv.run(app, bind="127.0.0.1:0")
print("behind", os.getpid())
""",
    """
await asyncio.sleep(0.01)
left = wsgiserv.Server(app).start()
print(left.pid)
""",
]


def test_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    for name, value in environment({"IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS])
    client = NotebookClient(
        notebook, timeout=50, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    texts = [
        "".join(output["text"] for output in cell.outputs if output.get("name") == "stdout") for cell in notebook.cells
    ]
    assert texts[:4] == ["", "True True\n", "0 0\n", "True\n"]
    assert texts[4].startswith("behind "), notebook.cells[4].outputs
    assert texts[4].count("\n") == 1, "the worker has not left run()"
    left = int(texts[5])
    assert left != os.getpid()
    # The kernel has ended, and its server with it.
    wait_until(lambda: not [each for each in processes() if each.session == left], "the server has ended")
