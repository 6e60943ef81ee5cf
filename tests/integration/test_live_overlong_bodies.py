"""An application that goes on after its Content-Length costs neither a thread nor a worker (issue 12, 1)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import pytest
from rawclient import RawClient
from server import Server, Start

_SAID = r"\[ERROR\].*(longer than its Content-Length|a body that the response does not have)"
_KEYS = itertools.count(1)


@pytest.fixture
def overlong(shared_servers: Start) -> Iterator[Server]:
    """A server whose only worker a single endless application would keep."""
    args = ("-w", "1", "--threads", "2", "--timeout", "20", "--graceful-timeout", "2")
    server = shared_servers("overlongapps:app", *args, expect=(_SAID,))
    before = len(server.log.lines)
    yield server
    server.check(before)


def key() -> str:
    """Return a key that no other request has."""
    return f"key-{next(_KEYS)}"


def said(server: Server, path: str, request_id: str, after: int) -> int:
    """Return how many lines tell of this request."""
    pattern = re.compile(rf"{_SAID}.*{request_id}")
    return sum(1 for line in server.log.lines[after:] if pattern.search(line) and f"GET {path}" in line)


@pytest.mark.parametrize("length", [0, 1, 999, 1000, 2500, 200_000])
@pytest.mark.parametrize("kind", ["iterable", "generator", "file", "write"])
def test_what_goes_on_after_its_length_is_left_closed_and_said_once(overlong: Server, kind: str, length: int) -> None:
    name, after = key(), len(overlong.log.lines)
    with RawClient(overlong.address) as client:
        path = f"/{kind}?200,{length}"
        client.request(path, headers=f"X-Key: {name}\r\n")
        response = client.read_response()
        assert response.framing == "length"
        assert len(response.body) == length
        # The same connection goes on: nothing of what was too much follows the body.
        assert client.get(f"/closed?{name}").text == "1"
    line = overlong.wait_for_log(rf"{_SAID}.*request [0-9a-f]+", after=after)[0]
    (request_id,) = re.findall(r"request ([0-9a-f]+)", line)
    assert said(overlong, path, request_id, after) == 1
    assert "Traceback" not in "\n".join(overlong.log.lines[after:])


def test_more_endless_responses_than_threads_leave_the_server_free(overlong: Server) -> None:
    for kind in ("iterable", "generator", "file", "device", "write") * 2:
        with RawClient(overlong.address) as client:
            client.request(f"/{kind}?200,10", headers=f"X-Key: {key()}\r\n")
            assert len(client.read_response().body) == 10


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200"), ("GET", "204"), ("GET", "304")])
@pytest.mark.parametrize("kind", ["iterable", "generator", "file", "device", "empty", "write"])
@pytest.mark.parametrize("length", ["", "5000"])
def test_a_response_without_a_body_ends_though_the_application_does_not(
    overlong: Server, kind: str, method: str, status: str, length: str
) -> None:
    name = key()
    with RawClient(overlong.address) as client:
        client.request(f"/{kind}?{status},{length}", method=method, headers=f"X-Key: {name}\r\n")
        assert client.read_response(method).status == int(status)
        if kind != "device":
            assert client.get(f"/closed?{name}").text == "1"


def test_endless_empty_blocks_behind_a_complete_body_are_left(overlong: Server) -> None:
    name = key()
    with RawClient(overlong.address) as client:
        client.request("/empty?200,0", headers=f"X-Key: {name}\r\n")
        assert client.read_response().body == b""
        assert client.get(f"/closed?{name}").text == "1"


def test_a_generator_of_the_right_length_runs_to_its_end(overlong: Server) -> None:
    name, after = key(), len(overlong.log.lines)
    with RawClient(overlong.address) as client:
        client.request("/exact?200,2000", headers=f"X-Key: {name}\r\n")
        assert len(client.read_response().body) == 2000
        assert client.get(f"/closed?{name}").text == "1", "the code behind its last yield"
    assert not any("/exact" in line and re.search(_SAID, line) for line in overlong.log.lines[after:])


def test_one_write_that_is_too_long_is_cut_and_said(overlong: Server) -> None:
    after = len(overlong.log.lines)
    with RawClient(overlong.address) as client:
        client.request("/write-once?200,2000", headers=f"X-Key: {key()}\r\n")
        assert len(client.read_response().body) == 2000
        assert client.get("/closed?none").text == "0"
    overlong.wait_for_log(r"\[ERROR\] (?:WS\d+ )?GET /write-once.*longer than its Content-Length", after=after)
