"""What an application does that gevent or eventlet is to make cooperative, in one module that is written to a file.

`text` makes the module: patched in its first line, by its first request, or not at all.
"""

from __future__ import annotations

from pathlib import Path

PATCHES = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}

_APP = """\
import json, os, socket, sys, threading, time, logging
from urllib.parse import parse_qs

VERSION = "{version}"
patched = []
LOADED_IN = os.getpid()
ticks = []

def tick():
    while True:
        ticks.append(None)
        time.sleep(0.02)

def start_ticking():
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    return thread

def fetch(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET /slow HTTP/1.0\\r\\n\\r\\n")
        data = b""
        while piece := sock.recv(65536):
            data += piece
    return data.decode()

def facts():
    return dict(
        version=VERSION, pid=os.getpid(), loaded_in=LOADED_IN, ticks=len(ticks),
        sleeps_in=time.sleep.__module__, main=threading.current_thread() is threading.main_thread(),
        threads=[each.name for each in threading.enumerate()],
    )

def app(environ, start_response):
    if not patched:
        patched.append(None)
        {in_view}
    query = {{key: value[0] for key, value in parse_qs(environ["QUERY_STRING"]).items()}}
    path, found = environ["PATH_INFO"], {{}}
    if path == "/tick":
        start_ticking()
    elif path == "/sleep":
        print("asleep", file=environ["wsgi.errors"], flush=True)
        time.sleep(float(query["s"]))
    elif path == "/fetch":
        found["fetched"] = fetch(int(query["port"]))
    elif path == "/log":
        logging.getLogger("gunicorn.error").info("a line of the application")
    elif path == "/body":
        found["read"] = len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(facts() | found).encode()]
"""


def text(at_import: str = "", in_view: str = "pass", version: str = "one") -> str:
    """Return the module's text, ``at_import`` its first line, ``in_view`` the first line of its view."""
    return f"{at_import}\n{_APP.format(in_view=in_view, version=version)}"


def rewrite(path: Path, at_import: str, version: str) -> None:
    """Write another version of the module, as an editor does: whole."""
    draft = path.with_suffix(".new")
    draft.write_text(text(at_import, version=version))
    draft.replace(path)
