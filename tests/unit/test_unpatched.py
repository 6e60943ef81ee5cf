"""Real threads and locks in a process that gevent or eventlet has patched; who else looks up what they replace."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import wsgiserv
from wsgiserv.unpatched import RealRLock, patched_by, start_thread, thread_names

PACKAGE = Path(wsgiserv.__file__).parent
# What gevent and eventlet replace, by the module where they do. Bound at import ("from os import read") it is the
# original; looked up when it is called ("os.read()") it is theirs, and waits in an event loop, or has become greenlets.
REPLACED = {
    "os": {"fork", "forkpty", "posix_spawn", "posix_spawnp", "read", "wait", "waitpid", "write", "fdopen"},
    "time": {"sleep"},
    "select": {"select", "poll", "epoll", "kqueue"},
    "_thread": {"start_new_thread", "start_joinable_thread", "allocate_lock", "get_ident"},
    "threading": {"Thread", "Event", "Lock", "RLock", "Condition", "Semaphore", "Timer", "Barrier", "local"},
    "socket": {"socket", "create_connection", "socketpair", "getaddrinfo"},
    "subprocess": {"Popen", "run", "call", "check_output"},
    "queue": {"Queue", "SimpleQueue"},
}
# Each with its reason there.
ALLOWED = {
    ("worker/threads.py", "threading.Thread"),  # where nobody has patched
    ("worker/sync.py", "select.select"),  # the patched one is meant
    ("unpatched.py", "_thread.start_new_thread"),  # is it still the original?
    ("unpatched.py", "select.select"),
}
PATCH = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
}


def test_what_may_be_replaced_is_bound_at_import() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if name in ("ctl/commands.py", "worker/gevent_worker.py"):  # another program; who has patched
            continue
        tree = ast.parse(path.read_text())
        late = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = f"{node.value.id}.{node.attr}"
                is_bad = id(node) in late and node.attr in REPLACED.get(node.value.id, ())
            elif isinstance(node, ast.ImportFrom) and node.module == "threading":
                # The class would be the original, what its methods look up would not.
                used = "threading." + ", ".join(alias.name for alias in node.names)
                is_bad = True
            else:
                continue
            if is_bad and (name, used) not in ALLOWED and not _is_annotation(tree, node):
                found.append(f"{name}:{node.lineno}: {used}")
    assert found == []


def _is_annotation(tree: ast.AST, wanted: ast.AST) -> bool:
    annotations = [node.annotation for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    return any(wanted is inner for each in annotations for inner in ast.walk(each))


def test_a_thread_runs_and_ends() -> None:
    begun, end = threading.Event(), threading.Event()

    def work(number: int) -> None:
        seen.append((number, thread_names()[threading.get_ident()]))
        begun.set()
        end.wait(10)

    seen: list[tuple[int, str]] = []
    thread = start_thread(work, (3,), name="a-name")
    assert begun.wait(10)
    assert seen == [(3, "a-name")]
    assert thread.is_alive()
    thread.join(0.0)
    assert thread.is_alive()
    end.set()
    thread.join(10)
    assert not thread.is_alive()
    assert "a-name" not in thread_names().values()
    assert not patched_by()


def test_the_lock_is_re_entrant_and_keeps_others_out() -> None:
    lock = RealRLock()
    entered: list[bool] = []
    with lock, lock:
        thread = start_thread(lambda: entered.append(lock.acquire(False)), name="other")
        thread.join(10)
    assert entered == [False]
    lock.acquire()
    lock._at_fork_reinit()
    thread = start_thread(lambda: entered.append(lock.acquire(False)), name="other")
    thread.join(10)
    assert entered == [False, True]


@pytest.mark.parametrize("library", PATCH)
@pytest.mark.parametrize("first", ["server", "patch"])
def test_threads_are_real_in_a_patched_process(library: str, first: str) -> None:
    """Also where the process was patched before this package was imported, as by ``python -m gevent.monkey``."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if first == "patch" and library == "eventlet":
        pytest.skip("nothing starts a server in that way")
    server = (
        "from wsgiserv.unpatched import *; import wsgiserv.logs.error; from time import sleep as real_sleep"
    )
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
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
