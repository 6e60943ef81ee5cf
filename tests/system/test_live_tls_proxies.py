"""POSTs on kept TLS connections from real proxies, which repeat none, through reloads (issue 12, part 7)."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from programs import need
from server import Start
from tlsproxies import Posts, Proxy, issue_certificate, post_through_reloads

_POSTS = 600
_RELOADS = 3


@pytest.mark.parametrize("kind", ["nginx", "haproxy", "caddy"])
def test_no_post_is_lost(start: Start, tmp_path: Path, kind: str) -> None:
    program = need(kind)
    issue_certificate(tmp_path)
    server = start("apps:app", "-w", "2", "--certfile", "server.pem", "--keyfile", "server.key")
    server.wait_for_log("ready: ")

    def reload() -> None:
        seen = len(server.log.lines)
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded", after=seen)

    proxy = Proxy(kind, program, tmp_path, server.address)
    try:
        posts = Posts(proxy.address, _POSTS)
        post_through_reloads(posts, _POSTS, _RELOADS, reload)
        assert not posts.wrong, proxy.complaints
        assert posts.done == _POSTS
    finally:
        proxy.stop()
