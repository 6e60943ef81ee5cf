"""What must be refused, with which status, and that nothing after it is ever read as a request.

The cases stand in `refused.py` beside this file. Each is followed at once by a well-formed request to
``/count``: an answer to that, or a count, would be request smuggling.
"""

from __future__ import annotations

import os

import pytest
from cases import check_each
from rawclient import RawClient
from refused import REFUSED, Case
from server import Server, Start

FOLLOW_UP = b"GET /count?smuggled HTTP/1.1\r\nHost: test\r\n\r\n"


def counts(server: Server) -> dict[str, int]:
    with RawClient(server.address) as client:
        found: dict[str, int] = client.get("/counts").json()
    return found


def expect_refusal(server: Server, data: bytes, statuses: tuple[int, ...], step: int = 0) -> None:
    with RawClient(server.address) as client:
        client.offer(data + FOLLOW_UP, step=step)
        response = client.read_response()
        assert response.status in statuses, (data[:200], response)
        assert response.closes, "the end of the connection is not announced"
        client.expect_close()
    assert "smuggled" not in counts(server)


def test_refused_whole(strict_server: Server) -> None:
    def check(case: Case) -> None:
        expect_refusal(strict_server, case.data, case.statuses)

    check_each(((case.name, case) for case in REFUSED), check)


def test_refused_byte_by_byte(strict_server: Server) -> None:
    def check(case: Case) -> None:
        expect_refusal(strict_server, case.data, case.statuses, step=1)

    check_each(((case.name, case) for case in REFUSED if len(case.data) < 400), check)


SAMPLES = ("two spaces", "no Host", "Content-Length with plus", "both lengths", "chunk size with sign")


@pytest.mark.parametrize("name", SAMPLES)
def test_refused_after_good_requests_on_the_same_connection(strict_server: Server, name: str) -> None:
    case = next(case for case in REFUSED if case.name == name)
    good = b"POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nok"
    with RawClient(strict_server.address) as client:
        client.offer(good * 3 + case.data + FOLLOW_UP)
        for _ in range(3):
            assert client.read_response().body == b"ok"
        assert client.read_response().status in case.statuses
        client.expect_close()
    assert "smuggled" not in counts(strict_server)


def test_a_refusal_says_what_was_wrong_without_repeating_the_client(strict_server: Server) -> None:
    with RawClient(strict_server.address) as client:
        client.offer(b"GET /<script> HTTP/1.1\r\nHost: a<b>\r\n\r\n")
        response = client.read_response()
        assert response.status == 400
        assert b"<b>" not in response.body
        assert response.body


def test_a_refusal_is_one_warning_line_with_the_peer(start: Start) -> None:
    server = start("apps:app", "-u", str(os.geteuid()), expect=(r"\[WARNING\]",))  # else root has a warning, too
    with RawClient(server.address) as client:
        client.offer(b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.read_response().status == 400
    server.wait_for_log(r"\[WARNING\].*127\.0\.0\.1")
    assert server.stop() == 0
    warnings = [line for line in server.log.text.splitlines() if "[WARNING]" in line and "as root" not in line]
    assert len(warnings) == 1, warnings


LIMITS = ("--limit-request-line", "100", "--limit-request-fields", "5", "--limit-request-field_size", "80")


@pytest.fixture
def limited(shared_servers: Start) -> Server:
    return shared_servers("apps:app", *LIMITS, "--limit-request-body", "1000", expect=(r"\[WARNING\].*127\.0\.0\.1",))


def head(target: str = "/echo", fields: str = "") -> bytes:
    return f"POST {target} HTTP/1.1\r\nHost: test\r\n{fields}".encode()


LIMIT_CASES = {
    "a line of 101 bytes": (head("/" + "x" * 86) + b"\r\n", 414),
    "six fields": (head(fields="A: 1\r\n" * 4 + "B: 1\r\n") + b"\r\n", 431),
    "a field of 81 bytes": (head(fields="A: " + "x" * 78 + "\r\n") + b"\r\n", 431),
    "a body of 1,001 bytes": (head(fields="Content-Length: 1001\r\n") + b"\r\n" + b"x" * 1001, 413),
    "one chunk of 1,001 bytes": (
        head(fields="Transfer-Encoding: chunked\r\n") + b"\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
        413,
    ),
    "chunks that sum up": (
        head(fields="Transfer-Encoding: chunked\r\n") + b"\r\n" + b"5\r\nxxxxx\r\n" * 201 + b"0\r\n\r\n",
        413,
    ),
}


@pytest.mark.parametrize("name", LIMIT_CASES)
def test_above_a_limit(limited: Server, name: str) -> None:
    data, status = LIMIT_CASES[name]
    expect_refusal(limited, data, (status,))


WITHIN = {
    "a line of 100 bytes": head("/" + "x" * 85) + b"\r\n",
    "five fields": head(fields="A: 1\r\n" * 4) + b"\r\n",
    "a field of 80 bytes": head(fields="A: " + "x" * 77 + "\r\n") + b"\r\n",
    "a body of 1,000 bytes": head(fields="Content-Length: 1000\r\n") + b"\r\n" + b"x" * 1000,
    "chunks of 1,000 bytes": (
        head(fields="Transfer-Encoding: chunked\r\n") + b"\r\n" + b"5\r\nxxxxx\r\n" * 200 + b"0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("name", WITHIN)
def test_at_a_limit(limited: Server, name: str) -> None:
    with RawClient(limited.address) as client:
        client.send(WITHIN[name])
        assert client.read_response().status == 200
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert client.read_response().status == 200


def test_a_body_above_the_limit_is_refused_before_it_is_sent(limited: Server) -> None:
    with RawClient(limited.address) as client:
        client.send(head(fields="Content-Length: 5000000000\r\n") + b"\r\n")
        assert client.read_response().status == 413


def test_expect_continue_of_a_body_above_the_limit_gets_no_100(limited: Server) -> None:
    with RawClient(limited.address) as client:
        client.send(head(fields="Content-Length: 5000\r\nExpect: 100-continue\r\n") + b"\r\n")
        response = client.read_response()
        assert (response.status, response.interim) == (413, [])
        client.expect_close()


@pytest.mark.parametrize(("policy", "status"), [("drop", 200), ("refuse", 400), ("dangerous", 200)])
def test_names_with_underscores(shared_servers: Start, policy: str, status: int) -> None:
    server = shared_servers("apps:app", "--header-map", policy, expect=(r"\[WARNING\]",))
    with RawClient(server.address) as client:
        client.request("/environ", headers="X-Name: dashed\r\nX_Name: under\r\n")
        response = client.read_response()
        assert response.status == status
        if status == 200:
            value = response.json()["environ"]["HTTP_X_NAME"]
            assert value == ("dashed" if policy == "drop" else "dashed, under")
