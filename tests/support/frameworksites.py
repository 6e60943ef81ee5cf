"""Servers of the frameworks' examples, and what these pages answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from server import ROOT, Server, Start

EXAMPLES = ROOT / "examples"
APPLICATIONS = {
    "Flask": "flask_app:app",
    "Django": "django_app:application",
    "Bottle": "bottle_app:app",
    "Falcon": "falcon_app:app",
    "Pyramid": "pyramid_app:app",
    "web.py": "webpy_app:app",
    "Werkzeug": "werkzeug_app:app",
    "CherryPy": "cherrypy_app:app",
}
# Their examples have more pages than the others'.
larger_examples = pytest.mark.parametrize("framework", ["Flask", "Django"], indirect=True, scope="module")


# Above body_buffer_size: spooled in sync and threads, read while it comes in gevent.
UPLOAD_BYTES = 3 * 1024 * 1024
LARGE_UPLOAD_BYTES = 20 * 1024 * 1024
STREAM = "".join(f"line {number}\n" for number in range(1000))


FAILURE = "this view fails on purpose"
# Of /error alone, as whoever catches it puts it: a framework or the server.
EXPECTED = (
    r"^Traceback \(most recent call last\)",
    r"\[ERROR\] (?:WS\d+ )?Error handling request GET /error ",
    r"\[FALCON\] \[ERROR\] (?:WS\d+ )?GET /error => Traceback",
)


def serve(shared_servers: Start, worker_class: str, app: str) -> Server:
    """Return a server of one worker for an example; where the class has threads, several."""
    threads = ("--threads", "4") if worker_class == "threads" else ()
    return shared_servers(app, "--chdir", str(EXAMPLES), "-w", "1", *threads, expect=EXPECTED)


def make_file(directory: Path, size: int) -> Path:
    """Write a file of random bytes, the same each time."""
    path = directory / "big.bin"
    path.write_bytes(random.Random(size).randbytes(size))
    return path
