"""The application of the tests that change its code under a running server, and the ways to break it."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["MODULE", "SITE", "change", "version"]

MODULE = "site_of_rolling.py"
SITE = "site_of_rolling:app"

# Its import takes as long as the file `hold` is there, and `imports` has a line for its beginning and one for its end.
_TEXT = """\
import os, time
VERSION = {version!r}

def note(what):
    with open("imports", "a") as file:
        print(what, VERSION, os.getpid(), time.monotonic(), file=file)

note("begin")
time.sleep({takes_s})
while os.path.exists("hold"):
    time.sleep(0.005)
note("end")

def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/gate":  # lasts until the file is removed
        open(query, "w").close()
        while os.path.exists(query):
            time.sleep(0.005)
    status = {warm!r} if path == "/warm" else "200 OK"
    headers = [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid())), ("X-Master", str(os.getppid()))]
    start_response(status, [*headers, ("Content-Length", str(len(VERSION)))])
    return [VERSION.encode()]
"""


def version(name: str, *, warm: str = "200 OK", takes_s: float = 0.0) -> str:
    """Return the text of a version.

    Args:
        name: the body of its responses.
        warm: the status of ``/warm``.
        takes_s: how long its import takes.
    """
    return _TEXT.format(version=name, warm=warm, takes_s=takes_s)


def change(directory: Path, text: str, name: str = MODULE) -> None:
    """Replace the file in one step, as a deployment does: nobody reads half of it."""
    fresh = directory / f"{name}.new"
    fresh.write_text(text)
    os.replace(fresh, directory / name)
