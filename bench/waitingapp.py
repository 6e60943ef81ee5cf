"""The application of bench.waiting and bench.mixed: it waits, as for a database.

Owns: `app`. Must not know: the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

PLAIN = [("Content-Type", "text/plain"), ("Content-Length", "6")]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """``/wait?ms`` sleeps so long; anything else is answered at once."""
    if environ["PATH_INFO"] == "/wait":
        time.sleep(float(environ["QUERY_STRING"]) / 1000)
    start_response("200 OK", PLAIN)
    return [b"hello\n"]
