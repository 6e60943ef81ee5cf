"""HTTP/1.1 and 1.0 over one connection: keep-alive, pipelining, pieces (RFC 9112 9, 9.3, 9.6; RFC 9110 9.3.2)."""

from __future__ import annotations

import pytest
from rawclient import RawClient
from server import Server

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 11\r\n\r\nhello world"


def test_a_connection_is_kept_and_used_again(client: RawClient) -> None:
    for _ in range(50):
        response = client.get("/")
        assert (response.status, response.reason, response.body) == (200, "OK", b"hello\n")
        assert response.framing == "length"
        assert not response.closes


def test_get_and_post_alternate_on_one_connection(client: RawClient) -> None:
    for number in range(20):
        body = b"%d" % number * (number + 1)
        assert client.get("/echo", method="POST", body=body).body == body
        assert client.get("/").body == b"hello\n"


def test_pipelined_requests_are_answered_in_order(client: RawClient) -> None:
    requests = b"".join(
        b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%d" % (len(str(number)), number)
        for number in range(200)
    )
    client.send(requests)
    assert [client.read_response().body for _ in range(200)] == [b"%d" % number for number in range(200)]


def test_pipelined_requests_of_every_framing_do_not_touch_each_other(client: RawClient) -> None:
    chunked = b"POST /echo HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    head = b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n"
    unread = b"POST /unread HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nGET /"
    client.send((GET + POST + chunked + head + unread) * 5)
    for _ in range(5):
        assert client.read_response().body == b"hello\n"
        assert client.read_response().body == b"hello world"
        assert client.read_response().body == b"abcde"
        assert client.read_response("HEAD").body == b""
        assert client.read_response().body == b"unread"
    client.expect_nothing_more()


@pytest.mark.parametrize("data", [GET, POST, GET + POST + GET], ids=["get", "post", "three"])
def test_requests_byte_by_byte(server: Server, data: bytes) -> None:
    with RawClient(server.address) as client:
        client.send(data, step=1)
        for _ in range(data.count(b"HTTP/1.1")):
            assert client.read_response().status == 200
        client.expect_nothing_more()


def test_a_request_split_at_every_position(server: Server) -> None:
    with RawClient(server.address) as client:
        for cut in range(1, len(POST)):
            client.send(POST, cuts=[cut])
            assert client.read_response().body == b"hello world", f"cut at {cut}"


def test_a_split_between_two_pipelined_requests_at_every_position(server: Server) -> None:
    data = POST + GET
    with RawClient(server.address) as client:
        for cut in range(len(POST) - 15, len(POST) + 15):
            client.send(data, cuts=[cut])
            assert client.read_response().body == b"hello world", f"cut at {cut}"
            assert client.read_response().body == b"hello\n", f"cut at {cut}"


@pytest.mark.parametrize("value", ["close", "Close", "foo, close", "close, foo", "keep-alive, close", "foo,,close"])
def test_connection_close_is_obeyed_wherever_it_stands(server: Server, value: str) -> None:
    with RawClient(server.address) as client:
        response = client.get("/", headers=f"Connection: {value}\r\n")
        assert response.closes
        client.expect_close()


def test_connection_close_in_a_second_field(server: Server) -> None:
    with RawClient(server.address) as client:
        assert client.get("/", headers="Connection: foo\r\nConnection: close\r\n").closes
        client.expect_close()


def test_nothing_after_a_closing_request_is_answered(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n" + GET)
        assert client.read_response().closes
        client.expect_close()


@pytest.mark.parametrize("value", ["closed", "not-close", "keep-alive", "foo"])
def test_other_connection_members_do_not_close(client: RawClient, value: str) -> None:
    assert not client.get("/", headers=f"Connection: {value}\r\n").closes
    assert client.get("/").status == 200


def test_http10_closes_by_default(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.read_response(http10=True).body == b"hello\n"
        client.expect_close()


@pytest.mark.parametrize("value", ["keep-alive", "Keep-Alive", "foo, keep-alive"])
def test_http10_keep_alive_is_kept_and_announced(server: Server, value: str) -> None:
    with RawClient(server.address) as client:
        for _ in range(3):
            client.send(f"GET / HTTP/1.0\r\nConnection: {value}\r\n\r\n".encode())
            response = client.read_response(http10=True)
            assert response.body == b"hello\n"
            assert (response.one("Connection") or "").lower() == "keep-alive"


def test_http10_with_close_and_keep_alive_closes(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n")
        client.read_response(http10=True)
        client.expect_close()


@pytest.mark.parametrize("connection", [b"", b"Connection: keep-alive\r\n"], ids=["close", "keep-alive"])
def test_http10_never_gets_chunks(server: Server, connection: bytes) -> None:
    with RawClient(server.address) as client:
        client.send(b"GET /stream?5,1000 HTTP/1.0\r\n" + connection + b"\r\n")
        response = client.read_response(http10=True)
        assert response.framing == "close"
        assert len(response.body) == 5000


def test_a_later_minor_version_is_answered_as_1_1(client: RawClient) -> None:
    for version in (b"HTTP/1.2", b"HTTP/1.9"):
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n".replace(b"HTTP/1.1", version))
        assert client.read_response().body == b"hello\n"


def test_one_empty_line_before_a_request_is_tolerated(client: RawClient) -> None:
    client.send(b"\r\n" + GET)
    assert client.read_response().status == 200
    client.send(b"\r\n" + POST)
    assert client.read_response().body == b"hello world"


def test_a_half_closed_client_still_gets_its_response(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(GET + POST)
        client.half_close()
        assert client.read_response().body == b"hello\n"
        assert client.read_response().body == b"hello world"
        client.expect_close()


def test_clients_that_leave_at_any_point_cost_nothing(server: Server) -> None:
    for position in range(0, len(POST) + 1, 4):
        with RawClient(server.address) as gone:
            gone.send(POST[:position])
        with RawClient(server.address) as crashed:
            crashed.send(POST[:position])
            crashed.reset()
    with RawClient(server.address) as client:
        assert client.get("/").status == 200


def test_upgrade_requests_are_ordinary_ones(client: RawClient) -> None:
    response = client.get(
        "/", headers="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    )
    assert response.status == 200
    assert client.get("/").status == 200


def test_connect_never_leaves_a_reusable_connection(server: Server) -> None:
    with RawClient(server.address) as client:
        client.send(b"CONNECT example.com:80 HTTP/1.1\r\nHost: example.com:80\r\n\r\n" + GET)
        client.read_response()
        client.expect_close()


def test_many_connections_at_once(server: Server) -> None:
    clients = [RawClient(server.address) for _ in range(100)]
    try:
        for _ in range(3):
            for client in clients:
                client.request("/")
            for client in reversed(clients):
                assert client.read_response().body == b"hello\n"
    finally:
        for client in clients:
            client.close()
