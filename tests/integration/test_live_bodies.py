"""Request bodies: framing, pieces, chunks, Expect (RFC 9112 6, 7; RFC 9110 10.1.1), and wsgi.input (PEP 3333)."""

from __future__ import annotations

import json
import random
from typing import Any
from urllib.parse import quote

import pytest
from cases import check_each
from rawclient import RawClient
from server import Server

CHUNKED = b"POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
MEBIBYTE = 1 << 20


def chunks(body: bytes, *sizes: int) -> bytes:
    """Return the body in chunks of these sizes, the last size again and again."""
    out, start, number = b"", 0, 0
    while start < len(body):
        size = sizes[min(number, len(sizes) - 1)]
        part = body[start : start + size]
        out += b"%x\r\n%b\r\n" % (len(part), part)
        start, number = start + size, number + 1
    return out + b"0\r\n\r\n"


@pytest.mark.parametrize("sizes", [(1,), (3, 7, 1), (100,), (4096,), (100_000,)], ids=str)
def test_a_chunked_body_is_whole(client: RawClient, sizes: tuple[int, ...]) -> None:
    body = random.Random(5).randbytes(5000)
    client.send(CHUNKED + chunks(body, *sizes))
    assert client.read_response().body == body
    assert client.get("/").status == 200


GOOD_CHUNKS = {
    "empty": (b"0\r\n\r\n", b""),
    "upper case": (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "lower case": (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "leading zeros": (b"0005\r\nhello\r\n0\r\n\r\n", b"hello"),
    "last chunk of many zeros": (b"5\r\nhello\r\n000\r\n\r\n", b"hello"),
    "CRLF within": (b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", b"\r\n0\r\n\r\n"),
    "extension": (b"5;name=value\r\nhello\r\n0\r\n\r\n", b"hello"),
    "extension without value": (b"5;name\r\nhello\r\n0\r\n\r\n", b"hello"),
    "quoted extension": (b'5;name="a \\" ; b"\r\nhello\r\n0;last=1\r\n\r\n', b"hello"),
    "two extensions": (b"5;a=b;c\r\nhello\r\n0\r\n\r\n", b"hello"),
    "trailers": (b"5\r\nhello\r\n0\r\nX-Trailer: a\r\nX-Other: b\r\n\r\n", b"hello"),
}


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "byte by byte"])
def test_well_formed_chunks(server: Server, step: int) -> None:
    def check(case: tuple[bytes, bytes]) -> None:
        data, body = case
        with RawClient(server.address) as client:
            client.send(CHUNKED + data, step=step)
            assert client.read_response().body == body
            assert client.get("/").body == b"hello\n"

    check_each(GOOD_CHUNKS, check)


def test_a_chunked_body_split_at_every_position(client: RawClient) -> None:
    data = CHUNKED + b'5;a="b"\r\nhello\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n'
    for cut in range(1, len(data)):
        client.send(data, cuts=[cut])
        assert client.read_response().body == b"hello world", f"cut at {cut}"


def test_trailers_are_not_merged_into_the_environ(client: RawClient) -> None:
    client.send(
        b"POST /environ HTTP/1.1\r\nHost: test\r\nX-A: field\r\nTransfer-Encoding: chunked\r\nTrailer: X-A, X-B\r\n\r\n"
        b"0\r\nX-A: trailer\r\nX-B: trailer\r\nHost: other\r\n\r\n"
    )
    environ = client.read_response().json()["environ"]
    assert environ["HTTP_X_A"] == "field"
    assert environ["HTTP_HOST"] == "test"
    assert "HTTP_X_B" not in environ


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 65535, 65536, 65537, MEBIBYTE - 1, MEBIBYTE, MEBIBYTE + 1])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_bodies_around_the_buffers_sizes(client: RawClient, size: int, framing: str) -> None:
    body = random.Random(size).randbytes(size)
    if framing == "length":
        client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size + body)
    else:
        client.send(CHUNKED + chunks(body, 10_000))
    assert client.read_response().body == body
    assert client.get("/").status == 200


def test_a_large_body_in_odd_pieces(client: RawClient) -> None:
    body = random.Random(7).randbytes(3 * MEBIBYTE)
    client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(body))
    client.send(body, step=77_777)
    assert client.read_response().body == body


@pytest.mark.parametrize("size", [10, 100_000, 3 * MEBIBYTE])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_the_application_did_not_read_is_never_a_request(client: RawClient, size: int, framing: str) -> None:
    """The body consists of requests, which must not be answered: the next answer is to what follows it."""
    bait = b"GET /count?bait HTTP/1.1\r\nHost: test\r\n\r\n"
    body = (bait * (size // len(bait) + 1))[:size]
    head = b"POST /unread HTTP/1.1\r\nHost: test\r\n"
    if framing == "length":
        data = head + b"Content-Length: %d\r\n\r\n" % size + body
    else:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks(body, 5000)
    client.offer(data)
    response = client.read_response()
    assert response.body == b"unread"
    if response.closes:  # the other right way: drained within a bound, or closed
        client.expect_close()
    else:
        assert "bait" not in client.get("/counts").json()


def test_content_length_zero_and_none_are_empty_bodies(client: RawClient) -> None:
    for field in (b"", b"Content-Length: 0\r\n"):
        client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\n" + field + b"\r\n")
        assert client.read_response().body == b""


def test_methods_of_any_kind_may_have_bodies(client: RawClient) -> None:
    for method in ("GET", "DELETE", "OPTIONS", "PATCH", "M-SEARCH"):
        assert client.get("/echo", method=method, body=b"body").body == b"body"


# Expect: 100-continue


@pytest.mark.parametrize("field", [b"Content-Length: 5", b"Transfer-Encoding: chunked"], ids=["length", "chunked"])
@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue"])
def test_expect_continue_is_sent_once_before_the_body(client: RawClient, field: bytes, value: bytes) -> None:
    client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\n" + field + b"\r\nExpect: " + value + b"\r\n\r\n")
    assert client.read_interim() == 100
    client.send(b"hello" if b"Length" in field else b"5\r\nhello\r\n0\r\n\r\n", step=1)
    response = client.read_response()
    assert (response.status, response.interim, response.body) == (200, [], b"hello")
    assert client.get("/").status == 200


def test_expect_continue_with_the_body_sent_at_once(client: RawClient) -> None:
    """RFC 9110 10.1.1: the 100 may be left out when the body has come already."""
    client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello")
    response = client.read_response()
    assert response.body == b"hello"
    assert response.interim in ([], [100])
    assert client.get("/").status == 200


@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n"], ids=["none", "zero"])
def test_expect_continue_without_a_body_is_answered(client: RawClient, length: bytes) -> None:
    client.send(b"POST /echo HTTP/1.1\r\nHost: test\r\n" + length + b"Expect: 100-continue\r\n\r\n")
    assert client.read_response().status == 200
    assert client.get("/").status == 200


def test_expect_continue_is_ignored_in_http10(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(b"POST /echo HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        client.send(b"hello")
        response = client.read_response(http10=True)
        assert (response.body, response.interim) == (b"hello", [])


# wsgi.input

TEXT = b"first line\nsecond\n\nfourth, without an end"

CALLS: dict[str, tuple[list[list[Any]], list[Any]]] = {
    "read all, then nothing": ([["read"], ["read"], ["read", 5]], [TEXT.decode(), "", ""]),
    "read -1": ([["read", -1], ["read", -1]], [TEXT.decode(), ""]),
    "read None": ([["read", None]], [TEXT.decode()]),
    "read 0": ([["read", 0], ["read", 5], ["read", 0]], ["", "first", ""]),
    "read by pieces": ([["read", 6], ["read", 4], ["read", 1000]], ["first ", "line", TEXT[10:].decode()]),
    "read more than there is": ([["read", 10_000], ["read", 1]], [TEXT.decode(), ""]),
    "readline": ([["readline"]] * 5, ["first line\n", "second\n", "\n", "fourth, without an end", ""]),
    "readline with sizes": (
        [["readline", 5], ["readline", 100], ["readline", 0], ["readline", -1], ["readline", 1]],
        ["first", " line\n", "", "second\n", "\n"],
    ),
    "readlines": ([["readlines"], ["readlines"]], [["first line\n", "second\n", "\n", "fourth, without an end"], []]),
    "iter": ([["iter"], ["iter"]], [["first line\n", "second\n", "\n", "fourth, without an end"], []]),
    "mixed": (
        [["readline"], ["read", 3], ["iter"], ["read"]],
        ["first line\n", "sec", ["ond\n", "\n", "fourth, without an end"], ""],
    ),
}


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_input(server: Server, framing: str) -> None:
    if framing == "length":
        field, body = b"Content-Length: %d" % len(TEXT), TEXT
    else:
        field, body = b"Transfer-Encoding: chunked", chunks(TEXT, 3, 11, 1)

    def check(case: tuple[list[list[Any]], list[Any]]) -> None:
        calls, results = case
        target = b"/input?" + quote(json.dumps(calls)).encode()
        with RawClient(server.address) as client:
            client.send(b"POST " + target + b" HTTP/1.1\r\nHost: test\r\n" + field + b"\r\n\r\n" + body)
            response = client.read_response()
            assert response.status == 200
            assert response.json() == results
            assert client.get("/").status == 200

    check_each(CALLS, check)


def test_readlines_with_a_hint_stops_after_it(client: RawClient) -> None:
    client.request("/input?" + quote(json.dumps([["readlines", 12], ["read"]])), method="POST", body=TEXT)
    lines, rest = client.read_response().json()
    assert "".join(lines) + rest == TEXT.decode()
    assert lines[:1] == ["first line\n"]


def test_input_of_a_large_body_by_lines(client: RawClient) -> None:
    body = b"x" * 70_000 + b"\n" + b"y" * 70_000
    client.request("/input?" + quote(json.dumps([["readline"], ["readline"], ["readline"]])), method="POST", body=body)
    assert client.read_response().json() == ["x" * 70_000 + "\n", "y" * 70_000, ""]


def test_input_never_reads_into_the_next_request(client: RawClient) -> None:
    calls = quote(json.dumps([["read", 1000], ["readline"], ["read"]])).encode()
    client.send(
        b"POST /input?" + calls + b" HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody"
        b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
    )
    assert client.read_response().json() == ["body", "", ""]
    assert client.read_response().body == b"hello\n"


def test_a_body_that_never_ends_is_not_passed_as_complete(strict_server: Server) -> None:
    for data in (
        b"POST /count?cut HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello",
        b"POST /count?cut HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"POST /count?cut HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ):
        with RawClient(strict_server.address) as client:
            client.send(data)
            client.half_close()
            while client.sock.recv(65536):  # a 400 or nothing, but no success
                pass
    with RawClient(strict_server.address) as client:
        assert "cut" not in client.get("/counts").json()
