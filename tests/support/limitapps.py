"""Applications that show what the server keeps of a request, and send files in all ways."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]


class Slice(io.BytesIO):
    """A file-like object with nothing but `read`."""

    def fileno(self) -> int:
        """There is none."""
        raise io.UnsupportedOperation


def open_descriptors(pid: int | str = "self") -> list[str]:
    """What the descriptors of a process are; but for the one that its stacks go to when it crashes."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if "crash-dump" not in target:
                found.append(target)
        except OSError:
            pass
    return found


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """``/where``: the body's digest and the deleted files that are open; ``/big``; ``/sleep``; ``/file``."""
    query = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    path = environ["PATH_INFO"]
    if path == "/where":
        digest = hashlib.sha256()
        while data := environ["wsgi.input"].read(65536):
            digest.update(data)
        files = [name for name in open_descriptors() if name.endswith("(deleted)")]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return ["\n".join([digest.hexdigest(), *files]).encode()]
    if path == "/big":
        size = int(query["size"])
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
        return (b"x" * 65536 for _ in range(size // 65536))
    if path == "/sleep":
        time.sleep(float(query["s"]))
    if path == "/file":
        return send(environ, start_response, query)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello\n"]


def send(environ: Environ, start_response: StartResponse, query: dict[str, str]) -> Iterable[bytes]:
    """A file as the query says: path, kind, offset, length."""
    filelike: Any
    kind = query.get("kind", "plain")
    if kind == "gzip":
        filelike = gzip.open(query["path"], "rb")  # noqa: SIM115 (the server closes it)
    elif kind == "bytes":
        filelike = io.BytesIO(b"0123456789" * 1000)
    elif kind == "read":
        filelike = Slice(b"0123456789" * 1000)
    elif kind == "temporary":
        filelike = tempfile.NamedTemporaryFile()  # noqa: SIM115
        filelike.write(b"0123456789" * 1000)
        filelike.seek(0)
    else:
        filelike = open(query["path"], "rb", buffering=0 if kind == "raw" else -1)  # noqa: SIM115
    if "offset" in query:
        filelike.read(int(query["offset"]))
    headers = [("Content-Type", "text/plain")]
    if "length" in query:
        headers.append(("Content-Length", query["length"]))
    start_response("200 OK", headers)
    return environ["wsgi.file_wrapper"](filelike, 4096)
