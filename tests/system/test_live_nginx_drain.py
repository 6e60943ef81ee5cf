"""One of two servers behind nginx stops, and no request is lost (issue 5, part 9)."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from load import Load
from nginxproxy import Nginx
from programs import need
from server import Server, Start, is_alive, wait_until


def ready(server: Server, workers: int) -> list[int]:
    server.wait_for_log(f"ready: {workers} workers?")
    return server.workers()


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Iterator[tuple[list[Server], str]]:
    """Two servers that nginx takes for one: they share a port, or each has its path. What nginx calls them."""
    with socket.socket() as reservation:
        if request.param == "unix":
            binds = [f"unix:{tmp_path}/a.sock", f"unix:{tmp_path}/b.sock"]
            upstream, flags = "; server ".join(binds), []
        else:
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reservation.bind(("127.0.0.1", 0))  # not listening: the port is ours to share
            upstream = f"127.0.0.1:{reservation.getsockname()[1]}"
            binds, flags = [upstream, upstream], ["--reuse-port"]
        servers = [start("apps:app", "-w", "2", "-b", bind, *flags, bind="none") for bind in binds]
        for server in servers:
            ready(server, 2)
        yield servers, upstream


def test_one_of_two_behind_nginx_stops(pair: tuple[list[Server], str], tmp_path: Path) -> None:
    program = need("nginx")
    (first, second), upstream = pair
    pids = [first.workers(), second.workers()]
    nginx = Nginx(program, tmp_path, upstream)

    def asked(load: Load) -> Any:
        return {client.served_by for client in load.clients}

    try:
        with Load(nginx.address, clients=8) as load:
            wait_until(lambda: asked(load) & {*pids[0]} and asked(load) & {*pids[1]}, "both serve")
            load.wait_for_more(100)
            first.send_signal(signal.SIGTERM)
            assert first.process.wait(15) == 0
            assert not any(map(is_alive, pids[0]))
            load.wait_for_more(100)
            wait_until(lambda: asked(load) <= {*pids[1]}, "the other one serves")
        assert load.lost == []
        assert {status for client in load.clients for status in client.statuses} == {200}
    finally:
        nginx.stop()
    # What had just been sent on a kept connection that the server closed, nginx has asked again, and says so.
    assert set(nginx.statuses) == {200}, nginx.errors
