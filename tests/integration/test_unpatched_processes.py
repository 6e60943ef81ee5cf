"""Real threads in a process that gevent or eventlet has patched."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

PATCH = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}


@pytest.mark.parametrize("library", PATCH)
@pytest.mark.parametrize("first", ["server", "patch"])
def test_threads_are_real_in_a_patched_process(library: str, first: str) -> None:
    """Also where the process was patched before this package was imported, as by ``python -m gevent.monkey``."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if first == "patch" and library == "eventlet":
        pytest.skip("nothing starts a server in that way")
    server = "from wsgiserv.unpatched import *; import wsgiserv.logs.error; from time import sleep as real_sleep"
    lines = [server, PATCH[library]] if first == "server" else [PATCH[library], server]
    code = "\n".join(
        [
            *lines,
            "import os, threading, _thread",
            f"assert patched_by().startswith({library!r}), patched_by()",
            "seen = []",
            "def work():",
            "    seen.append(os.listdir('/proc/self/task'))",
            "    done.release()",
            "done = allocate_lock(); done.acquire()",
            "thread = start_thread(work, name='real')",
            "assert done.acquire(timeout=10), 'it has not run while this thread was blocked'",
            "thread.join(10)",
            "assert not thread.is_alive()",
            "assert len(seen[0]) >= 2, seen",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
