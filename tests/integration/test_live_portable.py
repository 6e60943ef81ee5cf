"""A server that waits through `selectors`, as on systems without epoll."""

from __future__ import annotations

from pathlib import Path

import pytest
from rawclient import timed_get
from server import Connect, Start

CONFIG = """
import wsgiserv.net.event_loop
wsgiserv.net.event_loop._epoll = None
"""


@pytest.mark.parametrize("worker_class", ["sync", "threads", "gevent"])
def test_it_serves(start: Start, connect: Connect, tmp_path: Path, worker_class: str) -> None:
    config = tmp_path / "conf.py"
    config.write_text(CONFIG)
    server = start("limitapps:app", "-c", str(config), "-k", worker_class, "-w", "1")
    client = connect(server.address)
    body = b"x" * 200_000
    for _ in range(2):  # kept open between the two; the body and its end come separately
        client.send(b"POST /where HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body))
        client.send(body)
        assert client.read_response().status == 200
    assert timed_get(server.address) < 10
    server.stop()
