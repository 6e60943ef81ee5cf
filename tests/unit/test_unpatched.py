"""Real threads and locks in a process that gevent or eventlet has patched; who else looks up what they replace."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

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
    ("net/websocket.py", "threading.Lock"),  # the application's kind, which are greenlets' in a gevent worker
    ("net/websocket.py", "threading.Event"),
    ("net/websocket.py", "time.sleep"),
    ("worker/sync.py", "select.select"),  # the patched one is meant
    ("unpatched.py", "_thread.start_new_thread"),  # is it still the original?
    ("unpatched.py", "select.select"),
}


def test_what_may_be_replaced_is_bound_at_import() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        # Another program; the program's side of a server, which waits as the program does; who has patched.
        others = (
            *("ctl/commands.py", "ctl/find.py", "embedding/background.py", "embedding/server.py"),
            "integrations/django/test.py",
        )
        if name in (*others, "worker/gevent_worker.py"):
            continue
        tree = ast.parse(path.read_text())
        late = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
        annotations = _annotations(tree)
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
            if is_bad and (name, used) not in ALLOWED and id(node) not in annotations:
                found.append(f"{name}:{node.lineno}: {used}")
    assert found == []


def _annotations(tree: ast.AST) -> set[int]:
    annotations = [node.annotation for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
    return {id(inner) for each in annotations for inner in ast.walk(each)}


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
