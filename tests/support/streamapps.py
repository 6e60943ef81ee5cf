"""Applications that read their bodies in all ways while these arrive."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apps
import limitapps

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

TEXT = [("Content-Type", "text/plain")]
SEEN: Counter[str] = Counter()


def say(environ: Environ, text: str) -> None:
    """Write a line to the error log, at once."""
    environ["wsgi.errors"].write(text + "\n")
    environ["wsgi.errors"].flush()


def lines(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Answer each line of the body before the next is read."""
    start_response("200 OK", TEXT)
    for line in environ["wsgi.input"]:
        yield b"got " + line


def digest(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Hash the body; say when the reading begins. Answer with the digest, the size and this process's id."""
    say(environ, f"reading {environ['QUERY_STRING']}")
    found, size = hashlib.sha256(), 0
    while data := environ["wsgi.input"].read(65536):
        found.update(data)
        size += len(data)
    start_response("200 OK", TEXT)
    return [f"{found.hexdigest()} {size} {os.getpid()}".encode()]


def cut(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Read all and let what is raised through; count, under the query, each body that looked complete."""
    say(environ, f"reading {environ['QUERY_STRING']}")
    environ["wsgi.input"].read()
    SEEN[environ["QUERY_STRING"]] += 1
    start_response("200 OK", TEXT)
    return [b"complete"]


def seen(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """What `cut` has counted."""
    return apps.reply_json(start_response, SEEN)


def refuse(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer without reading."""
    start_response("403 Forbidden", TEXT)
    return [b"refused"]


ROUTES = {"/lines": lines, "/digest": digest, "/cut": cut, "/seen": seen, "/refuse": refuse, "/where": limitapps.app}


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by the path: one of the above, `limitapps.app` for /where, or a route of `apps`."""
    return ROUTES.get(environ["PATH_INFO"], apps.app)(environ, start_response)
