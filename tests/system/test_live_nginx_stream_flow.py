"""Streams behind an nginx that waits only shortly for each block."""

from __future__ import annotations

from pathlib import Path

import pytest
from flowclient import BLOCK, Reader, numbered
from nginxproxy import PROXY, Nginx
from programs import need
from server import Connect, Start

HASTY = """
            proxy_read_timeout 3s;
            proxy_buffering off;
"""


@pytest.mark.parametrize("how", ["tcp", "unix", "tcp-1.0", "buffered"])
def test_behind_a_proxy_with_a_short_read_timeout(start: Start, connect: Connect, tmp_path: Path, how: str) -> None:
    """Blocks that are made each second reach a proxy that waits for no longer than three."""
    program = need("nginx")
    if how == "unix":
        server = start("flowapps:app", "-b", "unix:a.sock", bind="none")
        upstream = f"unix:{tmp_path}/a.sock"
    else:
        server = start("flowapps:app")
        upstream = "{}:{}".format(*server.address)
    server.wait_for_log("ready")
    location = PROXY + HASTY
    if how == "tcp-1.0":
        location = location.replace("proxy_http_version 1.1", "proxy_http_version 1.0")
    if how == "buffered":
        location = location.replace("proxy_buffering off", "proxy_buffering on")
    nginx = Nginx(program, tmp_path, upstream, location)
    try:
        client = connect(nginx.address)
        client.request(f"/flood?size={BLOCK}&count=6&pause=1")
        reader = Reader(client, tmp_path)
        reader.head()
        for number in range(6):
            assert reader.take(BLOCK) == numbered(number, BLOCK)
        assert nginx.statuses.keys() <= {200}
        assert nginx.errors == []
    finally:
        nginx.stop()
