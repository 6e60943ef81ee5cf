"""What an application starts at import, with `preload_app`: it runs in one process or in none, and a line says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from server import Connect, Start, wait_until

# Each starts something that calls tick(), which notes its process.
HEAD = """\
import os, sys, threading, time
{patch}
def tick():
    with open("ticks", "a") as file:
        print(os.getpid(), file=file)

def every():
    try:
        while True:
            tick()
            time.sleep(0.005)
    finally:
        with open("ends", "a") as file:
            print(os.getpid(), file=file)

{start}

def app(environ, start_response):
    time.sleep(0.05)  # lets the hub run, where there is one
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""
GEVENT, EVENTLET = "from gevent import monkey; monkey.patch_all()", "import eventlet; eventlet.monkey_patch()"
THREAD = "threading.Thread(target=every, name='scheduler', daemon=True).start()"
POOL = """\
import gevent
from gevent.monkey import get_original
def work():
    while True:
        tick()
        get_original("time", "sleep")(0.005)
gevent.get_hub().threadpool.spawn(work)
time.sleep(0.05)
"""
STUBBORN = """\
def job():
    while True:
        try:
            tick()
            time.sleep(0.005)
        except BaseException:
            pass
threading.Thread(target=job, name="job", daemon=True).start()
time.sleep(0.02)
"""
STARTS = {
    "thread": (THREAD, r"thread scheduler .*\bevery \(.*bg\.py:7\), spawned at .*bg\.py:16\b"),
    "running": ("import gevent; gevent.spawn(every); time.sleep(0.02)", r"of every \(.*bg\.py:7\), spawned at"),
    "later": ("import gevent; gevent.spawn_later(0.05, every)", r"of every .*, spawned at .*bg\.py:16\b"),
    "raw": ("import gevent; gevent.spawn_raw(every); time.sleep(0.02)", r"a greenlet of every \(.*bg\.py"),
    "timer": (
        "import gevent; TIMER = gevent.get_hub().loop.timer(0.01, repeat=0.01); TIMER.start(tick)",
        r"\(timer\) that calls tick \(.*bg\.py:3\)",
    ),
    "stubborn": (STUBBORN, r"thread job .*\bjob \(.*bg\.py:16\)"),
    "pool": (POOL, r"thread pool .*a thread in work \(.*bg\.py:\d+\)"),
    "waiting": ("import gevent; gevent.get_hub().threadpool.spawn(every); time.sleep(0.05)", "gevent's thread pool"),
}
EVENTLET_STARTS = {
    "spawn": ("eventlet.spawn(every); time.sleep(0.02)", r"a greenlet of every \(.*bg\.py:\d+\)"),
    "later": ("eventlet.spawn_after(0.05, every)", r"every \(.*bg\.py:7\)"),
}
CASES = [
    *(("gevent", "", *case) for case in STARTS.values()),
    *(("sync", GEVENT, *STARTS[name]) for name in ("thread", "later")),
    *(("sync", EVENTLET, *case) for case in EVENTLET_STARTS.values()),
    ("sync", "", THREAD, "while it was loaded .scheduler."),
    ("threads", "", THREAD, "while it was loaded .scheduler."),
]
IDS = [
    *(f"gevent-{name}" for name in STARTS),
    *(f"sync-gevent-{name}" for name in ("thread", "later")),
    *(f"sync-eventlet-{name}" for name in EVENTLET_STARTS),
    *("sync", "threads"),
]


@pytest.mark.parametrize(("worker_class", "patch", "begin", "told"), CASES, ids=IDS)
def test_no_copy_runs_in_a_worker(
    start_unclassed: Start, connect: Connect, tmp_path: Path, worker_class: str, patch: str, begin: str, told: str
) -> None:
    server = start_unclassed(
        "bg:app",
        *("-w", "2", "--preload"),
        worker_class=worker_class,
        files={"bg.py": HEAD.format(patch=patch or "import json", start=begin), "ticks": "", "ends": ""},
        expect=("has started .* while it was loaded", "in a thread pool", "Exception ignored", "eventlet", "Eventlet"),
    )
    server.wait_for_log(r"\[WARNING\] (?:WS\d+ )?.*the application has started .*" + told)
    server.wait_for_log("ready: 2 workers")
    served: set[int] = set()

    def both_have_served() -> bool:
        clients = [connect(server.address) for _ in range(4)]
        for client in clients:
            client.request("/")
        served.update(int(client.read_response().body) for client in clients)
        return len(served) == 2

    wait_until(both_have_served, "both workers serve")
    both_have_served()  # once more: the hub of each has had time
    for pid in served:
        assert str(pid) not in (tmp_path / "ticks").read_text().split()
    ticks = set((tmp_path / "ticks").read_text().split())
    assert len(ticks) <= 1, "it runs in one process or in none"
    assert len(server.log.text.split("has started")) == 2, "it is said once"
    assert server.stop() == 0
    text = (tmp_path / "ends").read_text().split()
    assert not served & set(map(int, text)), "its end is not run in workers either"
    assert str(os.getpid()) not in text


def test_what_has_ended_is_not_told(start_unclassed: Start, connect: Connect) -> None:
    """Greenlets that import has waited for, pools without work, locks and events are no background."""
    begin = (
        "import gevent, gevent.queue, gevent.pool, signal, subprocess\n"
        "gevent.spawn(tick).join(); QUEUE, POOL = gevent.queue.Queue(), gevent.pool.Pool(3)\n"
        "POOL.map(len, ['a', 'b']); gevent.get_hub().threadpool.apply(tick)\n"
        "import socket; socket.getaddrinfo('localhost', 80)\n"
        "subprocess.run(['true'], check=True)\n"
        "thread = threading.Thread(target=tick); thread.start(); thread.join()\n"
        "LOCK, EVENT = threading.Lock(), threading.Event()"
    )
    files = {"bg.py": HEAD.format(patch="import json", start=begin)}
    server = start_unclassed("bg:app", *("-w", "2", "--preload"), worker_class="gevent", files=files)
    server.wait_for_log("ready: 2 workers")
    assert connect(server.address).get("/").status == 200
