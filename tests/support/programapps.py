"""Applications and settings for servers in the background of the tests' own process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# Changed by tests: an application object is served with what is here when its server starts.
STATE: dict[str, Any] = {}


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """Answer with what is known here; wait first for the seconds in the query string."""
    print("asked for", environ["PATH_INFO"])
    time.sleep(float(environ["QUERY_STRING"] or 0))
    found = {
        "pid": os.getpid(),
        "state": STATE,
        "threads": [thread.name for thread in threading.enumerate()],
        "handler": str(signal.getsignal(signal.SIGUSR1)),
        "stdout": str(type(sys.stdout)),
        "cwd": os.getcwd(),
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(found, default=str).encode()]


def on_starting(server: Any) -> None:
    """Log a line, as a hook."""
    server.log.info("a hook of programapps")


def nested(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    """Answer what a server answers that is started for this request."""
    from urllib.request import urlopen

    import wsgiserv

    with wsgiserv.Server(app) as server, urlopen(server.url, timeout=20) as response:
        body: bytes = response.read()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [body]
