"""The uwsgi protocol in every worker class by a real nginx (issue 3, rule 15)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nginxproxy import UWSGI, Nginx
from programs import need
from rawclient import RawClient
from server import Server, Start

SPOKEN = ("--protocol", "uwsgi")


@pytest.fixture(params=["tcp", "unix"])
def nginx(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Iterator[Nginx]:
    """A real nginx that passes requests by uwsgi_pass, over TCP or a Unix socket."""
    program = need("nginx")
    server: Server
    if request.param == "tcp":
        server = start("apps:app", *SPOKEN, expect=(r"\[ERROR\]|Traceback",))
        upstream = "{}:{}".format(*server.address)
    else:
        server = start("apps:app", *SPOKEN, "-b", "unix:a.sock", bind="none", expect=(r"\[ERROR\]|Traceback",))
        upstream = f"unix:{tmp_path}/a.sock"
    server.wait_for_log("ready")
    made = Nginx(program, tmp_path, upstream, UWSGI)
    try:
        yield made
    finally:
        made.stop()
    assert made.errors == []


def test_nginx(nginx: Nginx) -> None:
    with RawClient(nginx.address) as client:  # keep-alive between client and nginx
        source = str(client.sock.getsockname()[1])
        environ = client.get("/environ/caf%C3%A9%20x/%0A?q=%20", headers="X-Two: 1\r\nX-Two: 2\r\n").json()["environ"]
        assert environ["REMOTE_ADDR"] == "127.0.0.1"
        assert environ["REMOTE_PORT"] == source
        assert environ["SERVER_NAME"] == "shop.example"
        assert environ["SERVER_PORT"] == str(nginx.address[1])
        assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
        assert environ["PATH_INFO"] == "/environ/caf\xc3\xa9 x/\n"
        assert environ["RAW_URI"] == "/environ/caf%C3%A9%20x/%0A?q=%20"
        assert environ["QUERY_STRING"] == "q=%20"
        assert environ["HTTP_HOST"] == "test"
        assert environ["wsgi.url_scheme"] == "http"
        assert environ["HTTP_X_TWO"].replace(" ", "") == "1,2"
        body = bytes(range(256)) * 100
        assert client.get("/echo", method="POST", body=body).body == body
        client.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        assert client.read_response().body == b"abc"
        client.send(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert client.read_interim() == 100
        client.send(b"ok")
        assert client.read_response().body == b"ok"
        assert client.get("/big?3000000").body == b"x" * 3_000_000
        assert client.get("/stream?3,2").body == b"001122"
        assert client.get("/", method="HEAD").status == 200
        assert client.get("/crash").status == 500
        assert client.get("/").status == 200
