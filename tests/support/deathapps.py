"""An application that ends, or holds, its worker in the ways that real ones do."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any


def wait_for_file(path: str) -> None:
    """Wait as an application does for a database: other greenlets and threads run."""
    while not os.path.exists(path):
        time.sleep(0.02)


def spin_in_python(path: str) -> None:
    """Never come back, and let signal handlers run."""
    while True:
        pass


def hold_the_gil(path: str) -> None:
    """Never come back from C code that neither lets the GIL go nor looks for signals."""
    assert "x" in itertools.repeat("y")


def crash_in_c(path: str) -> None:
    """Read what is not there, as a broken extension module does."""
    ctypes.string_at(0)


def kill_itself(path: str) -> None:
    """Be killed by SIGSEGV, in this very thread."""
    signal.raise_signal(signal.SIGSEGV)


def leave(path: str) -> None:
    """Leave without a word."""
    os._exit(7)


ACTIONS: dict[str, Callable[[str], None]] = {
    "/wait": wait_for_file,
    "/spin": spin_in_python,
    "/gil": hold_the_gil,
    "/null": crash_in_c,
    "/segv": kill_itself,
    "/exit": leave,
    "/": lambda path: None,
}


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Say that the request has begun, and by whom; then do what the path says."""
    environ["wsgi.errors"].write(f"{os.getpid()} has begun {environ['PATH_INFO']}\n")
    ACTIONS[environ["PATH_INFO"]](environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
