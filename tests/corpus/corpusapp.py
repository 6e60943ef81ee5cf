"""The application of tests/integration/test_live_corpus.py: it tells in a header what it was called with.

A header, since a response to HEAD has no body. Loaded by the server under test; must not know pytest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from corpus import requests_keys


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = environ["wsgi.input"].read().decode("latin-1")
    seen = json.dumps({"environ": requests_keys(environ), "body": body})
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Seen", seen)])
    return [b"seen"]
