"""A uwsgi request on the connection's state machine: at every split, refused, slow, with a body."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from test_connection import Peer
from uwsgipacket import packet

from wsgiserv.http.uwsgi import UwsgiReader
from wsgiserv.net.client import Connection
from wsgiserv.net.uwsgi_client import BarredConnection, UwsgiConnection

BODY = b"five\n"
POST = packet(
    REQUEST_METHOD="POST",
    REQUEST_URI="/echo?q",
    PATH_INFO="/echo",
    QUERY_STRING="q",
    CONTENT_LENGTH="5",
    SERVER_PROTOCOL="HTTP/1.1",
    REMOTE_ADDR="203.0.113.9",
    HTTP_HOST="h",
    HTTP_EXPECT="100-continue",
    HTTP_CONNECTION="keep-alive",
)


class App:
    def __init__(self) -> None:
        self.environ: dict[str, Any] = {}
        self.calls = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        self.calls += 1
        self.environ = environ
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield environ["wsgi.input"].read()
        yield b"end"


class UwsgiPeer(Peer):
    def __init__(self, app: App, kind: type[Connection] = UwsgiConnection, **overrides: Any) -> None:
        super().__init__(app, **overrides)
        made = self.connection
        others = (made.context, made.loop, made.sock, made.base, made.peer, made.peer_name, made.trusted)
        if kind is UwsgiConnection:
            self.connection = UwsgiConnection(UwsgiReader(self.context.parser), *others)
        else:
            self.connection = kind(*others)


@pytest.fixture
def app() -> App:
    return App()


def served(app: App, *pieces: bytes, **overrides: Any) -> bytes:
    peer = UwsgiPeer(app, **overrides)
    try:
        peer.feed(*pieces)
        assert peer.loop.forgotten, "the connection is to end with the response"
        return peer.got()
    finally:
        peer.close()


def test_whole(app: App) -> None:
    response = served(app, POST + BODY)
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" in head.split(b"\r\n")
    assert b"Transfer-Encoding" not in head
    assert body == BODY + b"end"
    assert app.environ["REMOTE_ADDR"] == "203.0.113.9"
    assert "REMOTE_PORT" not in app.environ  # that of the proxy's own connection
    assert app.environ["SERVER_PROTOCOL"] == "HTTP/1.1"


def test_at_every_split() -> None:
    data = POST + BODY
    for cut in range(1, len(data)):
        app = App()
        assert served(app, data[:cut], data[cut:]).endswith(BODY + b"end"), f"cut at {cut}"
        assert app.calls == 1, f"cut at {cut}"


def test_byte_by_byte(app: App) -> None:
    data = POST + BODY
    response = served(app, *(data[at : at + 1] for at in range(len(data))))
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")  # and no 100 before it
    assert response.endswith(BODY + b"end")


def refused(app: App, *pieces: bytes, **overrides: Any) -> bytes:
    peer = UwsgiPeer(app, **overrides)
    try:
        peer.feed(*pieces)
        assert app.calls == 0
        response = peer.got()
        peer.feed(POST + BODY)  # not one byte behind it is a request
        assert app.calls == 0
        return response[9:12]
    finally:
        peer.close()


def test_refusals(app: App, caplog: pytest.LogCaptureFixture) -> None:
    assert refused(app, b"G") == b"400"
    assert refused(app, packet(REQUEST_METHOD="GET")) == b"400"
    assert refused(app, packet(REQUEST_METHOD="PUT", REQUEST_URI="/", CONTENT_LENGTH="9"), body_limit=8) == b"413"
    assert len(caplog.records) == 3
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_second_packet_is_no_request(app: App) -> None:
    peer = UwsgiPeer(app)
    peer.feed(POST + BODY + POST + BODY)
    assert peer.got().count(b"HTTP/1.1 ") == 1
    assert app.calls == 1
    peer.close()


def test_slow_and_cut_off(app: App) -> None:
    peer = UwsgiPeer(app)
    peer.feed(POST[:20])
    assert peer.connection.deadline <= peer.context.now + peer.context.settings.header_timeout
    peer.connection.expire()
    assert peer.got().startswith(b"HTTP/1.1 408 ")
    peer.close()
    peer = UwsgiPeer(app)
    peer.feed(POST + b"f")
    peer.connection.expire()
    assert peer.got().startswith(b"HTTP/1.1 408 ")
    peer.close()
    peer = UwsgiPeer(app)
    peer.feed(POST + b"f")
    peer.client.shutdown(1)
    peer.turn()
    assert peer.got().startswith(b"HTTP/1.1 400 ")
    peer.close()
    assert app.calls == 0


def test_a_barred_peer_is_closed_unread(app: App, caplog: pytest.LogCaptureFixture) -> None:
    peer = UwsgiPeer(app, BarredConnection)
    peer.feed(POST + BODY)
    assert peer.loop.forgotten
    assert app.calls == 0
    (record,) = caplog.records
    assert "uwsgi_allow_ips" in record.getMessage()
    assert "192.0.2.1" in record.getMessage()
    peer.close()


def test_the_client_that_the_proxy_tells_of_has_one_name() -> None:
    """In the access log (REMOTE_ADDR), in the error log, and on the scoreboard."""
    app = App()
    peer = UwsgiPeer(app)
    try:
        peer.feed(POST + BODY)
        assert app.environ["REMOTE_ADDR"] == "203.0.113.9"
        assert peer.connection.name == "203.0.113.9"
    finally:
        peer.close()
