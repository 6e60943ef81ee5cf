"""Upgraded connections behind a real nginx, as docs/websockets.md configures it, and by its uwsgi_pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nginxproxy import UWSGI, Nginx
from programs import need
from server import Server, Start
from upgradeclient import FIN, UpgradeClient

UPGRADING = """
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $http_connection;
            proxy_read_timeout 1h;
"""


@pytest.fixture(scope="session", params=["threads", "gevent"])
def worker_class(request: pytest.FixtureRequest) -> str:
    """The classes that can hold a connection."""
    return str(request.param)


@pytest.fixture(params=["http", "uwsgi"])
def behind(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Iterator[tuple[Server, Nginx]]:
    """A server, and the nginx in front of it."""
    program = need("nginx")
    server = start("upgradeapps:app", "--threads", "40", "--protocol", request.param)
    server.wait_for_log("ready")
    location = UPGRADING if request.param == "http" else UWSGI
    made = Nginx(program, tmp_path, "{}:{}".format(*server.address), location)
    try:
        yield server, made
    finally:
        made.stop()
    assert made.errors == []


def test_upgraded_connections_pass_and_end_with_a_reload(behind: tuple[Server, Nginx]) -> None:
    server, nginx = behind
    with UpgradeClient(nginx.address) as client, UpgradeClient(nginx.address) as other:
        for each in (client, other):
            each.upgrade()
            each.talk(b"through nginx\n")
            each.talk(b"x" * 300_000)
        other.talk(b"quit\n")
        assert other.read_end() == (FIN, b"")
        server.reload()
        assert client.read_end() == (FIN, b"bye\n")
    with UpgradeClient(nginx.address) as client:
        client.ask("/refuse")
        assert client.read_response().status == 400
        client.upgrade()
        client.talk(b"with the new worker\n")
        client.half_close()
