"""Responses: framing, applications' faults, and that none of it reaches the next response (PEP 3333; RFC 9112 6)."""

from __future__ import annotations

import contextlib
import json
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cases import check_each
from rawclient import RawClient, Truncated
from server import HERE, Server, wait_until


def spec(**rest: Any) -> str:
    """Return the target that makes the application respond so."""
    return "/respond?" + quote(json.dumps(rest))


def test_one_item_gets_its_length(client: RawClient) -> None:
    response = client.get(spec(chunks=["hello"]))
    assert (response.framing, response.body) == ("length", b"hello")
    assert response.one("Content-Length") == "5"


def test_an_empty_list_is_an_empty_body(client: RawClient) -> None:
    response = client.get(spec(chunks=[]))
    assert (response.framing, response.body) == ("length", b"")


@pytest.mark.parametrize("how", ["iterable", "generator"])
def test_unknown_length_is_chunked(client: RawClient, how: str) -> None:
    response = client.get(spec(chunks=["one", "", "two", "three"], how=how))
    assert (response.framing, response.body) == ("chunked", b"onetwothree")
    assert client.get("/").status == 200


def test_the_applications_length_is_kept(client: RawClient) -> None:
    response = client.get(spec(headers=[["Content-Length", "6"]], chunks=["abc", "def"], how="generator"))
    assert (response.framing, response.body) == ("length", b"abcdef")


def test_status_reason_and_headers_as_given(client: RawClient) -> None:
    headers = [["X-One", "1"], ["x-two", "caf\xe9"], ["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"], ["X-Empty", ""]]
    response = client.get(spec(status="299 Rather Odd", headers=headers, chunks=["x"]))
    assert (response.status, response.reason) == (299, "Rather Odd")
    found = [list(pair) for pair in response.headers if pair[0].lower() in {"x-one", "x-two", "set-cookie", "x-empty"}]
    assert found == headers


def test_the_applications_date_and_server_are_not_doubled(client: RawClient) -> None:
    headers = [["Date", "Thu, 01 Jan 1970 00:00:00 GMT"], ["Server", "mine"]]
    response = client.get(spec(headers=headers, chunks=["x"]))  # read_response holds that each is there once
    assert response.one("Date")
    assert response.one("Server")


@pytest.mark.parametrize("target", ["/", spec(chunks=["a", "b"], how="generator"), "/big?100000"])
def test_head_has_the_headers_and_no_body(client: RawClient, target: str) -> None:
    plain = client.get(target)
    head = client.get(target, method="HEAD")
    assert head.status == 200
    if head.one("Content-Length") is not None:
        assert int(head.one("Content-Length") or 0) == len(plain.body)
    assert client.get("/").body == b"hello\n"


def test_head_of_an_application_that_makes_no_body_claims_no_length_of_its_own(client: RawClient) -> None:
    """An application that answers HEAD with its true length and no body is not corrected to 0."""
    response = client.get(spec(headers=[["Content-Length", "1234"]], chunks=[]), method="HEAD")
    assert response.one("Content-Length") == "1234"
    assert client.get("/").status == 200


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("chunks", [[], ["body"], ["a", "b"]], ids=["none", "one", "two"])
@pytest.mark.parametrize("how", ["list", "generator"])
def test_no_body_where_none_may_be(client: RawClient, status: str, chunks: list[str], how: str) -> None:
    response = client.get(spec(status=status, headers=[], chunks=chunks, how=how))
    assert response.status == int(status[:3])
    assert client.get("/").body == b"hello\n"


def test_304_may_tell_the_length_of_the_representation(client: RawClient) -> None:
    response = client.get(
        spec(status="304 Not Modified", headers=[["Content-Length", "99"], ["ETag", '"x"']], chunks=[])
    )
    assert response.status == 304
    assert client.get("/").body == b"hello\n"


def test_write_comes_before_the_iterable(client: RawClient) -> None:
    response = client.get(spec(write=["one ", "two "], chunks=["three"]))
    assert response.body == b"one two three"
    response = client.get(spec(write=["only"], headers=[["Content-Length", "4"]], chunks=[]))
    assert (response.body, response.framing) == (b"only", "length")
    assert client.get("/").status == 200


@pytest.mark.parametrize("size", [100, 100_000, 5_000_000])
def test_large_responses_are_whole(client: RawClient, size: int) -> None:
    assert client.get(f"/big?{size}").body == b"x" * size
    assert client.get("/").status == 200


def test_many_chunks_are_whole(client: RawClient) -> None:
    response = client.get("/stream?500,3000")
    assert response.body == b"".join(b"%d" % (number % 10) * 3000 for number in range(500))


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
def test_a_file_through_the_file_wrapper(client: RawClient, tmp_path: Path, size: int) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(number % 251 for number in range(size)))
    assert client.get(f"/file?{path},8192").body == path.read_bytes()
    assert client.get(f"/file?{path},8192", method="HEAD").status == 200
    assert client.get("/").status == 200


def test_a_file_from_an_offset_and_for_a_length(client: RawClient, tmp_path: Path) -> None:
    path = tmp_path / "data"
    data = bytes(number % 251 for number in range(200_000))
    path.write_bytes(data)
    assert client.get(f"/file?{path},8192,1000").body == data[1000:]
    assert client.get(f"/file?{path},8192,1000,5000").body == data[1000:6000]
    assert client.get("/").status == 200


# start_response


@pytest.mark.parametrize("name", ["started-late", "echo-stream"])
def test_start_response_within_the_iterable(client: RawClient, name: str) -> None:
    response = client.get(f"/{name}", method="POST", body=b"late")
    assert (response.status, response.body) == (200, b"late")


@pytest.mark.parametrize("name", ["replaced", "empty-first"])
def test_exc_info_replaces_a_response_that_was_not_sent(client: RawClient, name: str) -> None:
    response = client.get(f"/{name}")
    assert (response.status, response.body) == (503, b"replaced")
    assert response.one("X-First") is None


def test_exc_info_after_the_head_is_raised_again_and_the_client_can_tell(failing_server: Server) -> None:
    with RawClient(failing_server.address) as client:
        client.request("/replaced-late")
        with pytest.raises(Truncated):
            client.read_response()
    failing_server.wait_for_log("too late on purpose")


# The application's body against its Content-Length


@pytest.mark.parametrize("how", ["list", "generator", "sized"])
@pytest.mark.parametrize("chunks", [["abcdef"], ["abc", "def"], ["abcd", "ef"]], ids="+".join)
def test_a_long_body_is_cut_at_its_length(failing_server: Server, how: str, chunks: list[str]) -> None:
    """Nothing beyond the announced length may be read as the next response; a 500 is as good."""
    with RawClient(failing_server.address) as client:
        response = client.get(spec(headers=[["Content-Length", "4"]], chunks=chunks, how=how))
        if response.status == 200:
            assert response.body == b"abcd"
        else:
            assert response.status == 500
        if response.closes:
            client.expect_close()
        else:
            assert client.get("/").body == b"hello\n"


@pytest.mark.parametrize("how", ["list", "generator", "sized"])
@pytest.mark.parametrize("chunks", [[], ["abc"], ["ab", "c"]], ids=lambda value: "+".join(value) or "none")
def test_a_short_body_ends_the_connection(failing_server: Server, how: str, chunks: list[str]) -> None:
    """The next response must never fill the gap (gunicorn gthread, gevent)."""
    with RawClient(failing_server.address) as client:
        client.send(f"GET {spec(headers=[['Content-Length', '9']], chunks=chunks, how=how)} HTTP/1.1\r\n".encode())
        client.send(b"Host: test\r\n\r\nGET / HTTP/1.1\r\nHost: test\r\n\r\n")
        try:
            response = client.read_response()
        except Truncated:
            pass
        else:
            assert response.status == 500
            if response.closes:
                client.expect_close()
            else:
                assert client.read_response().body == b"hello\n"


def test_a_short_body_by_write_ends_the_connection(failing_server: Server) -> None:
    with RawClient(failing_server.address) as client:
        client.request(spec(headers=[["Content-Length", "9"]], write=["abc"]))
        with pytest.raises(Truncated):
            client.read_response()


# What applications do wrong

WRONG = [
    *("crash", "crash-started", "leave", "interrupt", "base-exception", "generator-exit"),
    *("none", "number", "text-items", "text-body", "never-started", "never-started-empty", "started-twice"),
    "written-text",
    *(
        "odd-headers?" + quote(name)
        for name in (
            *("bytes status", "int status", "no status", "bytes name", "bytes value", "int value", "none value"),
            *("no headers", "not pairs", "not latin-1", "status not latin-1"),
        )
    ),
]


def test_a_failing_application_costs_its_own_request_a_500(failing_server: Server) -> None:
    def check(target: str) -> None:
        with RawClient(failing_server.address) as client, RawClient(failing_server.address) as other:
            assert other.get("/").status == 200
            before = len(failing_server.log.lines)
            response = client.get("/" + target)
            assert response.status == 500
            assert b"Traceback" not in response.body
            failing_server.wait_for_log(r"\[ERROR\]", after=before)
            if response.closes:
                client.expect_close()
            else:
                assert client.get("/").status == 200
            assert other.get("/").status == 200

    check_each(((target, target) for target in WRONG), check)


def test_the_applications_traceback_is_in_the_log(failing_server: Server) -> None:
    with RawClient(failing_server.address) as client:
        before = len(failing_server.log.lines)
        assert client.get("/crash?what=this").status == 500
    failing_server.wait_for_log(r"/crash\?what=this", after=before)
    failing_server.wait_for_log(r"Traceback", after=before)
    failing_server.wait_for_log(r"ValueError: the application fails on purpose", after=before)


BAD_HEADERS = [
    [["X-A", "b\r\nX-Evil: c"]],
    [["X-A", "b\nX-Evil: c"]],
    [["X-A", "b\rX-Evil: c"]],
    [["X-A", "b\x00c"]],
    [["X-A\r\nX-Evil", "b"]],
    [["X A", "b"]],
    [["X-A:", "b"]],
    [["", "b"]],
    [["X-\xe9", "b"]],
    [["Connection", "close\r\nX-Evil: c"]],
    [["Content-Length", "abc"]],
    [["Content-Length", "-5"]],
    [["Content-Length", "+5"]],
    [["Content-Length", ""]],
    [["Content-Length", "5"], ["Content-Length", "6"]],
]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=ascii)
def test_bad_headers_never_reach_the_wire(failing_server: Server, headers: list[list[str]]) -> None:
    with RawClient(failing_server.address) as client:
        before = len(failing_server.log.lines)
        response = client.get(spec(headers=headers, chunks=["hello"]))
        assert response.status == 500
        assert response.one("X-Evil") is None
        failing_server.wait_for_log(r"\[ERROR\]", after=before)


@pytest.mark.parametrize(
    "status", ["", "OK", "20 OK", "2000 OK", "200 O\r\nX-Evil: b", "200 O\nK", "abc OK", "999 \x00", "099 X"]
)
def test_bad_statuses_never_reach_the_wire(failing_server: Server, status: str) -> None:
    with RawClient(failing_server.address) as client:
        response = client.get(spec(status=status, chunks=["hello"]))
        assert response.status == 500
        assert response.one("X-Evil") is None


@pytest.mark.parametrize(
    "target", ["/crash-written", "/leave-later", spec(chunks=["a", "b"], how="iterable", fail_at=1)]
)
def test_an_exception_after_the_first_byte_ends_the_connection(failing_server: Server, target: str) -> None:
    with RawClient(failing_server.address) as client:
        client.request(target)
        with pytest.raises(Truncated):
            client.read_response()
    with RawClient(failing_server.address) as client:
        assert client.get("/").status == 200


def test_an_exception_before_the_first_chunk_is_a_500(failing_server: Server) -> None:
    with RawClient(failing_server.address) as client:
        assert client.get(spec(chunks=["a"], how="iterable", fail_at=0)).status == 500


# close()


def closed(server: Server, key: str) -> int:
    with RawClient(server.address) as client:
        return int(client.get("/counts").json().get(f"closed {key}", 0))


CLOSES: dict[str, dict[str, Any]] = {
    "whole": {"chunks": ["a", "b"]},
    "one": {"chunks": ["a"]},
    "empty": {"chunks": []},
    "fails first": {"chunks": ["a", "b"], "fail_at": 0},
    "fails later": {"chunks": ["a", "b"], "fail_at": 1},
    "too long": {"chunks": ["abc", "def"], "headers": [["Content-Length", "2"]]},
    "too short": {"chunks": ["a"], "headers": [["Content-Length", "9"]]},
    "204": {"chunks": ["a"], "status": "204 No Content", "headers": []},
}


def test_the_iterable_is_closed_exactly_once(failing_server: Server) -> None:
    def check(key: str) -> None:
        name, how, method = key.rsplit(" ", 2)
        with RawClient(failing_server.address) as client:
            client.request(spec(key=key, how=how, **CLOSES[name]), method=method)
            client.half_close()
            with contextlib.suppress(ConnectionResetError):  # a body cut short may end so
                while client.sock.recv(65536):
                    pass
        wait_until(lambda: closed(failing_server, key), f"close() of {key}")
        assert closed(failing_server, key) == 1

    keys = [f"{name} {how} {method}" for name, how, method in product(CLOSES, ("iterable", "sized"), ("GET", "HEAD"))]
    check_each(((key, key) for key in keys), check)


def test_the_iterable_is_closed_when_its_client_has_left(server: Server) -> None:
    with RawClient(server.address) as client:
        client.request("/endless?left")
        assert client.sock.recv(1000)
    wait_until(lambda: closed(server, "left") == 1, "close() of the endless stream")


def test_the_iterable_is_closed_when_its_client_has_reset(server: Server) -> None:
    client = RawClient(server.address)
    client.request("/endless?reset")
    assert client.sock.recv(1000)
    client.reset()
    wait_until(lambda: closed(server, "reset") == 1, "close() of the endless stream")


# wsgiref.validate around the application: the server's side of PEP 3333 and the application's

VALIDATED = [
    ("GET", "/", b""),
    ("HEAD", "/", b""),
    ("GET", "/environ?a=b", b""),
    ("POST", "/echo-by-length", b"hello"),
    ("POST", "/echo-stream", b"hello" * 10_000),
    ("GET", "/stream?10,1000", b""),
    ("GET", spec(status="204 No Content", headers=[], chunks=[]), b""),
    ("GET", spec(status="304 Not Modified", headers=[], chunks=[]), b""),
    ("GET", spec(write=["a"], chunks=["b"]), b""),
    ("GET", "/replaced", b""),
    ("GET", f"/file?{HERE}/apps.py,1000", b""),
    ("GET", "/log?validated", b""),
]


def test_wsgiref_validate_has_nothing_to_say(shared_servers: Any) -> None:
    server = shared_servers("apps:validated")
    with RawClient(server.address) as client:
        for method, target, body in VALIDATED:
            response = client.get(target, method=method, body=body)
            assert response.status < 500 or target == "/replaced", (method, target, response, server.log.text)
            if method == "POST":
                assert response.body == body
    server.check()
