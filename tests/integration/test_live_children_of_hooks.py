"""Children that hooks, the configuration file and the import of the application fork: none of them serves."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from server import DEADLINE_S, Connect, Server, Start, is_alive, wait_until

# What forks writes its children's pids into `children`, a stayer what it has of its parent into `held`.
CONF = """\
import json, os, signal, sys, time
sys.path.insert(0, {here!r})

def wait(pid):
    # gevent's waits for ever where the hub has not run yet, as in any program.
    monkey = sys.modules.get("gevent.monkey")
    waitpid = monkey.get_original("os", "waitpid") if monkey else os.waitpid
    return os.waitstatus_to_exitcode(waitpid(pid, 0)[1])

def fork(where, how):
    from childapps import shared_descriptors
    own = set(shared_descriptors().values()) - {{"anon_inode:[eventpoll]", "anon_inode:[eventfd]"}}
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        with open("children", "a") as file:
            print(where, how, pid, os.getpid(), file=file)
        if how != "stay":
            with open("statuses", "a") as file:
                print(where, wait(pid), file=file)
        return
    if how == "stay":
        with open("draft-" + where, "w") as file:
            handlers = [int(n) for n in signal.valid_signals() if callable(signal.getsignal(n))]
            json.dump([sorted(own & set(shared_descriptors().values())), handlers], file)
        os.rename("draft-" + where, "held-" + where)
        time.sleep(120)
        os._exit(0)
    if how == "raise":
        raise ValueError("the child of " + where + " raises")
    if how == "exit":
        sys.exit(3)
"""
HOOK = """
def {name}(*arguments):
    fork({name!r}, {how!r})
"""
MASTERS = ["on_starting", "when_ready", "pre_fork", "nworkers_changed"]
WORKERS = ["post_fork", "post_worker_init", "pre_request", "post_request", "worker_exit"]
STATUS = {"return": "0", "raise": "1", "exit": "3"}
HERE = str(Path(__file__).parents[1] / "support")


def lines_of(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def start_with(start: Start, text: str, *args: str, expect: tuple[str, ...] = (), **rest: Any) -> Server:
    return start(
        "childapps:app",
        *("-c", "forks.conf.py", *args),
        files={"forks.conf.py": CONF.format(here=HERE) + text, **rest.pop("files", {})},
        expect=("Traceback", *expect),
        **rest,
    )


def stop_beside_a_child(server: Server) -> int:
    """Stop a server, and do not wait for the end of its output, which its surviving child has, too."""
    server.send_signal(signal.SIGTERM)
    return server.process.wait(DEADLINE_S)


def end(children: list[int]) -> None:
    for pid in children:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not is_alive(pid), f"the child {pid} is gone")


@pytest.mark.parametrize("how", STATUS)
def test_a_child_that_comes_back_to_a_hook_ends(start: Start, connect: Connect, tmp_path: Path, how: str) -> None:
    hooks = [*MASTERS, *WORKERS]
    server = start_with(start, "".join(HOOK.format(name=name, how=how) for name in hooks))
    server.wait_for_log("ready: 1")
    client = connect(server.address)
    for _ in range(3):
        assert client.get("/mine").json() == "/mine"
    [worker] = server.workers()
    client.expect_nothing_more()
    assert server.stop() == 0
    statuses = lines_of(tmp_path / "statuses")
    assert {where for where, _ in statuses} == set(hooks)
    assert {status for _, status in statuses} == {STATUS[how]}
    parents = {int(parent) for *_, parent in lines_of(tmp_path / "children")}
    assert parents == {server.pid, worker}
    assert not [line for line in server.log.lines if "the hook" in line]


@pytest.mark.parametrize("preload", ["", "--preload"], ids=["loaded", "preloaded"])
@pytest.mark.parametrize("hooks", [MASTERS, WORKERS], ids=["the master's", "the worker's"])
def test_a_child_of_a_hook_holds_nothing(
    start: Start, connect: Connect, tmp_path: Path, hooks: list[str], preload: str, worker_class: str
) -> None:
    """Each hook forks one that stays; all together would hold the sockets if one did."""
    if worker_class != "sync" and (hooks is MASTERS or (preload and worker_class == "threads")):
        pytest.skip("the master and the zygote are the same")
    args = ["-b", "127.0.0.1:0", "--pid", "pid", *([preload] if preload else [])]
    text = "".join(HOOK.format(name=hook, how="stay") for hook in hooks)
    server = start_with(start, text, *args, bind="tcp")
    server.wait_for_log("ready: 1")
    client = connect(server.address)
    assert client.get("/mine").json() == "/mine"
    for hook in hooks:
        if hook != "worker_exit":
            wait_until((tmp_path / f"held-{hook}").exists, "the child has looked")
    children: list[int] = []
    try:
        assert stop_beside_a_child(server) == 0
        client.expect_close()
        for hook in hooks:
            wait_until((tmp_path / f"held-{hook}").exists, "the child has looked")
        children = [int(pid) for _, _, pid, _ in lines_of(tmp_path / "children")]
        assert sum(map(is_alive, children)) >= len(hooks)
        for hook in hooks:
            held, handlers = json.loads((tmp_path / f"held-{hook}").read_text())
            assert held == [], hook
            # INT may have been ignored by whoever has started the suite.
            assert set(handlers) <= {signal.SIGINT}
        (tmp_path / "forks.conf.py").write_text("")
        again = start("childapps:app", "-b", "{}:{}".format(*server.address), "--pid", "pid", bind="none")
        again.wait_for_log("ready: 1")
        assert again.stop() == 0
    finally:
        end(children)


@pytest.mark.parametrize("preload", ["", "--preload"], ids=["loaded", "preloaded"])
@pytest.mark.parametrize("how", [*STATUS, "stay"])
def test_a_child_of_the_import(
    start: Start, connect: Connect, tmp_path: Path, how: str, preload: str, worker_class: str
) -> None:
    if how != "stay" and (worker_class == "threads" or (preload and worker_class == "gevent")):
        pytest.skip("as in sync")
    app = (
        CONF.format(here=HERE)
        + f"""
fork("import", {how!r})
from childapps import app
def factory():
    fork("factory", {how!r})
    return app
"""
    )
    args = ["-b", "127.0.0.1:0", *([preload] if preload else [])]
    server = start("forksatimport:factory()", *args, bind="tcp", files={"forksatimport.py": app}, expect=("Traceback",))
    server.wait_for_log("ready: 1")
    client = connect(server.address)
    assert client.get("/mine").json() == "/mine"
    children = [int(pid) for _, _, pid, _ in lines_of(tmp_path / "children")]
    assert len(children) == 2
    try:
        if how == "stay":
            wait_until((tmp_path / "held-import").exists, "the child has looked")
            wait_until((tmp_path / "held-factory").exists, "the child has looked")
            assert all(map(is_alive, children))
            for where in ("import", "factory"):
                held, handlers = json.loads((tmp_path / f"held-{where}").read_text())
                assert held == []
                assert set(handlers) <= {signal.SIGINT}
        else:
            assert lines_of(tmp_path / "statuses") == [["import", STATUS[how]], ["factory", STATUS[how]]]
        for _ in range(10):
            assert connect(server.address).get("/mine").json() == "/mine"
        assert stop_beside_a_child(server) == 0
        again = start("childapps:app", "-b", "{}:{}".format(*server.address), bind="none")
        again.wait_for_log("ready: 1")
        assert again.stop() == 0
    finally:
        end(children)


@pytest.mark.parametrize("how", STATUS)
def test_a_child_of_the_configuration_file(start_unclassed: Start, connect: Connect, tmp_path: Path, how: str) -> None:
    """It is run at the start, and at a reload, when the master has all that it ever has."""
    server = start_with(start_unclassed, f"fork('file', {how!r})\n", worker_class="sync")
    server.wait_for_log("ready: 1")
    before = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: 1", after=before)
    assert lines_of(tmp_path / "statuses") == [["file", STATUS[how]]] * 2
    assert connect(server.address).get("/mine").json() == "/mine"


def test_a_child_of_the_configuration_file_that_stays(start_unclassed: Start, connect: Connect, tmp_path: Path) -> None:
    text = "if os.path.exists('again'):\n    fork('file', 'stay')\n"
    server = start_with(start_unclassed, text, "-b", "127.0.0.1:0", "--control-socket", "control", bind="tcp")
    server.wait_for_log("ready: 1")
    (tmp_path / "again").touch()
    before = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: 1", after=before)
    wait_until((tmp_path / "held-file").exists, "the child has looked")
    children = [int(pid) for _, _, pid, _ in lines_of(tmp_path / "children")]
    try:
        held, handlers = json.loads((tmp_path / "held-file").read_text())
        assert held == []
        assert set(handlers) <= {signal.SIGINT}
        [child] = children
        os.kill(child, signal.SIGTERM)  # not the master's
        wait_until(lambda: not is_alive(child), "TERM has ended it")
        assert connect(server.address).get("/mine").json() == "/mine"
        assert stop_beside_a_child(server) == 0
    finally:
        end(children)
