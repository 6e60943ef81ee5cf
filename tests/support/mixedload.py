"""Browsers of many kinds through a proxy: pages, forms, uploads, streams, downloads, errors."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from typing import Any

from rawclient import RawClient

_FORM = b"name=ada&engine=analytical"
_UPLOAD = bytes(range(256)) * 8192  # 2 MiB: beyond body_buffer_size
_STREAM = b"".join(b"%d" % (index % 10) * 5000 for index in range(20))

# (weight, method, target, body, status, response body; None: not looked at)
_MIX: list[tuple[int, str, str, bytes, int, bytes | None]] = [
    (40, "GET", "/", b"", 200, b"hello\n"),
    (10, "GET", "/environ?x=1", b"", 200, None),
    (10, "HEAD", "/", b"", 200, b""),
    (20, "POST", "/echo", _FORM, 200, _FORM),
    (4, "POST", "/echo-stream", _UPLOAD, 200, _UPLOAD),
    (4, "POST", "/unread", _UPLOAD, 200, b"unread"),
    (8, "GET", "/stream?20,5000", b"", 200, _STREAM),
    (4, "GET", "/big?2000000", b"", 200, b"x" * 2_000_000),
    (6, "GET", "/crash", b"", 500, None),
    (4, "GET", "/respond?%7B%22status%22:%22404%20Not%20Found%22%7D", b"", 404, b""),
]

_LEAST_REQUESTS = 20
_LONGEST_S = 15.0


def run_mix(address: Any, seconds: float, clients: int = 6, seed: int = 3) -> tuple[Counter[int], list[str]]:
    """Ask from so many clients for so long, and 20 times each; half of them keep their connections.

    Returns:
        The number of responses by status, and what was wrong, one text for each request.
    """
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    end = time.monotonic() + seconds
    latest = end + _LONGEST_S

    def ask(number: int) -> None:
        choice = random.Random(seed * 1000 + number)
        keep = number % 2 == 0
        client: RawClient | None = None
        counted: Counter[int] = Counter()
        for each in itertools.count():
            if time.monotonic() > (end if each >= _LEAST_REQUESTS else latest):
                break
            _, method, target, body, status, expected = choice.choices(_MIX, [one[0] for one in _MIX])[0]
            try:
                client = client or RawClient(address)
                headers = "" if keep else "Connection: close\r\n"
                response = client.get(target, method=method, body=body, headers=headers)
            except (OSError, AssertionError) as problem:
                wrong.append(f"{method} {target}: {problem!r}"[:300])
                closes = True
            else:
                counted[response.status] += 1
                if response.status != status or expected not in (None, response.body):
                    wrong.append(f"{method} {target}: {response.status}, {len(response.body)} bytes")
                closes = response.closes
            if closes and client is not None:
                client.close()
                client = None
        if client is not None:
            client.close()
        statuses.update(counted)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 2 * _LONGEST_S)
    return statuses, wrong
