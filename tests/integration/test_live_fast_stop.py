"""A fast stop says nothing of an error, whatever was about to begin (issue 12, 6)."""

from __future__ import annotations

import signal

import pytest
from rawclient import RawClient
from server import Start

_APP = """
import atexit, os, time
print("loading", flush=True)
time.sleep(0.7)

@atexit.register
def end():
    time.sleep(0.1)  # gevent's hub runs on meanwhile

def app(environ, start_response):
    time.sleep(0.02)
    start_response("200 OK", [])
    return [b"done"]
"""
_CONFIG = """
import time

def worker_exit(server, worker):
    time.sleep(0.1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_requests_that_come_with_the_signal_leave_no_traceback(start: Start, number: int) -> None:
    """The signal and the requests wait while the worker boots: its first turn finds all of them."""
    server = start("slow:app", "-c", "hooked.py", "-w", "1", files={"slow.py": _APP, "hooked.py": _CONFIG})
    clients = [RawClient(server.address) for _ in range(8)]
    try:
        for client in clients:
            client.request("/")
        server.out.wait_for("loading")
        assert server.stop(number) == 0
    finally:
        for client in clients:
            client.close()
    # The fixture's end fails when the log holds a traceback, a warning or an error.
