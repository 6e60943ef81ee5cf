"""Servers that are given their sockets: the application, the command, one question."""

from __future__ import annotations

from typing import Any

from rawclient import RawClient
from server import Server

# Answers with what the environment still says of sockets.
APP = """
import json, os
from apps import app as others
def app(environ, start_response):
    if environ["PATH_INFO"] != "/variables":
        return others(environ, start_response)
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([name for name in os.environ if name.startswith("LISTEN_")]).encode()]
"""


def served(worker_class: str, *args: str) -> list[str]:
    """Return the command of a server with two workers, for `APP`."""
    return [*Server.program, "-k", worker_class, "-w", "2", "-b", "unix:unused.sock", *args, "shown:app"]


def ask(address: Any, target: str = "/") -> Any:
    """Return the response to one request on a connection of its own."""
    with RawClient(address) as client:
        return client.get(target)
