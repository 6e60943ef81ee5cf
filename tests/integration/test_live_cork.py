"""Answers that are made in one turn leave together, and none waits for a call that lasts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Connect, Server, Start, wait_until

APP = """
import os, time

class Marked:
    def __init__(self, body):
        self.body = body

    def __iter__(self):
        return iter([self.body])

    def close(self):
        with open("sent", "a") as file:
            file.write(".")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    end = time.perf_counter() + 0.0002
    while time.perf_counter() < end:
        pass
    if path == "/long":
        open("begun", "w").close()
        time.sleep(1.5)
    body = path.encode() * 3
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    if path == "/marked":
        return Marked(body)
    return iter([body]) if path == "/iterated" else [body]
"""
CLIENTS = 10


def held(server: Server) -> int:
    """Hold the only worker, so that what is sent meanwhile is one turn's."""
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    wait_until(
        lambda: all("\nState:\tT" in (t / "status").read_text() for t in Path(f"/proc/{worker}/task").iterdir()),
        "it is held",
    )
    return worker


def rounds(clients: list[RawClient], count: int) -> None:
    for number in range(count):
        for client in clients:
            client.request("/iterated" if number % 2 else "/listed")
        for client in clients:
            response = client.read_response()
            assert (response.status, len(response.body)) == (200, 27 if number % 2 else 21)


@pytest.fixture(params=["auto", "off"])
def server(start: Start, worker_class: str, request: pytest.FixtureRequest) -> Server:
    threads = ["--threads", "4"] if worker_class == "threads" else []
    found = start("corked:app", *threads, "--cork", request.param, files={"corked.py": APP}, expect=("SIGKILL",))
    found.wait_for_log("ready: 1 worker")
    return found


def test_each_client_gets_its_answers(server: Server, connect: Connect) -> None:
    clients = [connect(server.address) for _ in range(CLIENTS)]
    rounds(clients, 60)


@pytest.mark.parametrize("end", ["", "killed"])
def test_behind_a_sudden_long_call_no_answer_waits(server: Server, connect: Connect, tmp_path: Path, end: str) -> None:
    clients = [connect(server.address) for _ in range(CLIENTS)]
    rounds(clients, 60)
    worker = held(server)
    for client in clients[:-1]:
        client.request("/marked")
    clients[-1].request("/long")
    os.kill(worker, signal.SIGCONT)
    begun = time.monotonic()
    wait_until((tmp_path / "begun").exists, "the long call has begun")
    # With threads it may overtake another.
    sent = tmp_path / "sent"
    wait_until(lambda: sent.exists() and sent.stat().st_size == CLIENTS - 1, "the others have been answered")
    if end:
        os.kill(worker, signal.SIGKILL)
    for client in clients[:-1]:
        assert client.read_response().status == 200
    if not end:
        assert time.monotonic() - begun < 1.5  # the call still lasts
        assert clients[-1].read_response().status == 200
