"""The reading half of a connection, without a socket: bytes in, states and requests out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from contexts import serving

from wsgiserv.errors import ProtocolError
from wsgiserv.net.request_reader import BODY, HEAD, READY, RequestReader
from wsgiserv.net.serving_context import ALL_STREAMED, LARGE_STREAMED, no_application

LOG = logging.getLogger("test.reader")
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def reader_of() -> Callable[..., RequestReader]:
    def make(**overrides: Any) -> RequestReader:
        settings = {"body_timeout": 30.0, "body_min_rate": 10, "body_limit": 1 << 20, "body_memory": 1 << 16}
        context = serving(no_application, **{**settings, **overrides})
        context.now = 100.0
        return RequestReader(context)

    return make


def body_of(reader: RequestReader) -> bytes:
    assert reader.body is not None
    return reader.body.rewind().read()


@pytest.mark.parametrize(
    ("data", "body"),
    [(GET, b""), (b"\r\n" + GET, b""), (POST + b"hello", b"hello"), (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"hello")],
)
def test_a_request_at_every_split(reader_of: Callable[..., RequestReader], data: bytes, body: bytes) -> None:
    for cut in range(len(data)):
        reader = reader_of()
        state = HEAD
        for piece in (data[:cut], data[cut:] + b"GET /next"):
            if piece:
                state = reader.feed_head(piece) if state == HEAD else reader.feed_body(piece)
        assert state == READY, cut
        assert reader.line is not None
        assert (body_of(reader) if reader.body else b"") == body
        assert reader.buffer == b"GET /next"
        reader.discard_body()


def test_a_later_head_does_not_keep_the_one_before(reader_of: Callable[..., RequestReader]) -> None:
    reader = reader_of()
    reader._context.now = 103.0
    assert reader.feed_head(b"G") == HEAD
    assert (reader.since, reader.head_since) == (100.0, 103.0)  # the first request counts from the connection's begin
    assert reader.feed_head(GET[1:]) == READY
    reader._context.now = 105.0
    assert reader.feed_head(b"GET /z") == HEAD
    assert (reader.line, reader.block) == (None, None)
    assert (reader.since, reader.head_since) == (105.0, 105.0)


def test_the_deadline_of_a_body_moves_with_its_bytes(reader_of: Callable[..., RequestReader]) -> None:
    reader = reader_of()
    head = POST.replace(b"5", b"1000")
    assert reader.feed_head(head) == BODY
    assert reader.body_deadline() == 130.0
    reader._context.now = 120.0
    assert reader.feed_body(b"x" * 50) == BODY
    assert reader.body_deadline() == 135.0  # 30 s, and 50 bytes at 10 a second; not 30 s from now
    reader.discard_body()


@pytest.mark.parametrize(
    ("streaming", "head", "streamed"),
    [
        (0, POST, False),
        (LARGE_STREAMED, POST, False),
        (LARGE_STREAMED, POST.replace(b"5", b"70000"), True),
        (LARGE_STREAMED, CHUNKED, False),
        (ALL_STREAMED, POST, True),
        (ALL_STREAMED, CHUNKED, True),
    ],
)
def test_which_bodies_the_application_reads(
    reader_of: Callable[..., RequestReader], streaming: int, head: bytes, streamed: bool
) -> None:
    reader = reader_of(streaming=streaming)
    assert reader.feed_head(head) == BODY
    assert reader.streams_body is streamed
    reader.discard_body()


@pytest.mark.parametrize(("behind", "wanted"), [(b"", True), (b"h", False)])
def test_continue_is_for_clients_that_wait(
    reader_of: Callable[..., RequestReader], behind: bytes, wanted: bool
) -> None:
    reader = reader_of()
    assert reader.feed_head(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") + behind) == BODY
    assert reader.expects_continue is wanted
    reader.discard_body()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x00", 400),
        (b"GET /" + b"a" * 9000, 414),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST.replace(b"5", b"9999999"), 413),
        (CHUNKED + b"z\r\n", 400),
    ],
)
def test_refusals(reader_of: Callable[..., RequestReader], data: bytes, status: int) -> None:
    reader = reader_of()
    with pytest.raises(ProtocolError) as raised:
        reader.feed_head(data)
    assert raised.value.status == status
    reader.discard_body()


def test_a_tls_handshake_is_named(reader_of: Callable[..., RequestReader]) -> None:
    reader = reader_of()
    hello = b"\x16\x03\x01\x02\x00"
    with pytest.raises(ProtocolError) as raised:
        reader.feed_head(hello)
    assert "HTTPS was sent" in reader.explain(raised.value, hello).reason
    other = ProtocolError(400, "other")
    assert reader.explain(other, b"\x16GET") is other
