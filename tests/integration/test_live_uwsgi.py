"""The uwsgi protocol in every worker class by hand (issue 3, rule 15)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from rawclient import RawClient, Response
from server import Start

SPOKEN = ("--protocol", "uwsgi")


def packet(target: str, method: str = "GET", body: bytes = b"", **more: str) -> bytes:
    path, _, query = target.partition("?")
    variables = {
        "REQUEST_METHOD": method,
        "REQUEST_URI": target,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_LENGTH": str(len(body) or ""),
        "REMOTE_ADDR": "203.0.113.9",
        "REMOTE_PORT": "4711",
        "HTTP_HOST": "shop.example",
        **more,
    }
    texts = [text.encode("latin-1") for pair in variables.items() for text in pair]
    block = b"".join(struct.pack("<H", len(text)) + text for text in texts)
    return struct.pack("<BHB", 0, len(block), 0) + block + body


@pytest.fixture
def ask(shared_servers: Start) -> Callable[..., Response]:
    """Send one request to the shared server, read its response, and see the connection end."""
    server = shared_servers(
        "apps:app", *SPOKEN, expect=(r"\[WARNING\].*(127\.0\.0\.1|203\.0\.113\.9)", r"\[ERROR\]|Traceback")
    )

    def send(data: bytes, method: str = "GET", step: int = 0) -> Response:
        with RawClient(server.address) as client:
            client.offer(data, step=step)
            response = client.read_response(method, http10=True)
            assert response.framing != "chunked"
            assert response.closes
            client.expect_close()
            return response

    return send


def test_requests(ask: Callable[..., Response]) -> None:
    environ: dict[str, Any] = ask(packet("/environ?a=1", HTTPS="on", HTTP_X_Y="z")).json()["environ"]
    assert environ["REMOTE_ADDR"] == "203.0.113.9"
    assert environ["REMOTE_PORT"] == "4711"
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["HTTP_X_Y"] == "z"
    assert environ["QUERY_STRING"] == "a=1"
    assert environ["RAW_URI"] == "/environ?a=1"
    body = bytes(range(256)) * 8
    assert ask(packet("/echo", "POST", body)).body == body
    assert ask(packet("/echo", "POST", b"abc"), step=1).body == b"abc"
    large = b"x" * 3_000_000  # beyond body_buffer_size: through a file
    assert ask(packet("/echo-stream", "POST", large)).body == large
    assert ask(packet("/stream?3,2")).body == b"001122"
    assert ask(packet("/", "HEAD"), "HEAD").body == b""
    assert ask(packet("/crash")).status == 500


def test_refusals(ask: Callable[..., Response]) -> None:
    response = ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert response.status == 400
    assert "uwsgi" in response.text
    assert ask(packet("/", CONTENT_LENGTH="+1")).status == 400
    assert ask(packet("/", HTTP_X="a\r\nb")).status == 400
    assert ask(packet("/", CONTENT_LENGTH="99999999999")).status == 413
    assert ask(packet("/")).status == 200


def test_only_those_that_are_allowed(start: Start) -> None:
    server = start("apps:app", *SPOKEN, "--uwsgi-allow-from", "127.0.0.1", expect=(r"uwsgi_allow_ips",))
    with socket.create_connection(server.address, 15, source_address=("127.0.0.2", 0)) as stranger:
        try:
            stranger.sendall(packet("/"))
            assert stranger.recv(100) == b""
        except ConnectionError:
            pass  # it was closed with the request unread
    server.wait_for_log(r"\[WARNING\].*127\.0\.0\.2.*--uwsgi-allow-from")
    with RawClient(server.address) as client:
        client.send(packet("/"))
        assert client.read_response(http10=True).status == 200
    assert server.log.text.count("uwsgi_allow_ips") == 1


def test_forwarded_headers_of_a_peer_that_is_not_believed(start: Start) -> None:
    server = start("apps:app", *SPOKEN, "--forwarded-allow-ips", "", "--forwarded-headers", "for,host")
    with RawClient(server.address) as client:
        client.send(packet("/environ", HTTP_X_FORWARDED_FOR="6.6.6.6", HTTP_X_FORWARDED_HOST="evil"))
        environ = client.read_response(http10=True).json()["environ"]
    assert environ["REMOTE_ADDR"] == "203.0.113.9"
    assert environ["HTTP_HOST"] == "shop.example"
    assert "HTTP_X_FORWARDED_FOR" not in environ
