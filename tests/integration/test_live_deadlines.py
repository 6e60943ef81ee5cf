"""``request_timeout``: what the client of an overdue request gets, what the log has, who else notices."""

from __future__ import annotations

import re
import socket
import time

import pytest
from rawclient import RawClient, Truncated
from server import Connect, Server, Start, wait_until

LIMIT_S = 0.4
LOGGED = (r"\[(?:WARNING|ERROR|CRITICAL)\]", r"Traceback")


@pytest.fixture
def limited(shared_servers: Start, worker_class: str) -> Server:
    """A worker whose requests may take `LIMIT_S`; what it logs is the tests' business."""
    threads = ["--threads", "4"] if worker_class == "threads" else []
    return shared_servers(
        *("deadlineapps:app", "-w", "1", *threads, "--request-timeout", str(LIMIT_S), "--access-logfile", "-"),
        expect=LOGGED,
    )


def workers(server: Server) -> list[int]:
    """Return the workers of a server that has begun to answer."""
    with RawClient(server.address) as client:
        assert client.get("/").text == "done"
    return server.workers()


def not_gevent(worker_class: str) -> None:
    """What blocks gevent's hub is told by `gevent_block_warning`, and nothing can end it."""
    if worker_class == "gevent":
        pytest.skip("nothing runs in gevent while the hub is blocked")


def report_of(server: Server, target: str, after: int) -> str:
    """Return what the log says of an overdue request, with its stack, and the line after it."""
    first = server.wait_for_log(
        rf'request_timeout \({LIMIT_S} s\): .*"(?:GET|POST) {re.escape(target)} HTTP/1\.[01]" from 127\.0\.0\.1',
        after=after,
    )
    server.wait_for_log(r"in (?:culprit_\w+|blocks|close)$", after=after)
    lines = server.log.text.split("\n")
    at = next(number for number, line in enumerate(lines) if first.string == line)
    return "\n".join(lines[at : at + 20])


@pytest.mark.parametrize("target", ["/started?1", "/iterable?1", "/hints?1"])
def test_the_client_gets_504_and_the_log_has_the_culprit(limited: Server, connect: Connect, target: str) -> None:
    after, accessed = len(limited.log.lines), len(limited.out.lines)
    client = connect(limited.address)
    response = client.get(target)
    assert (response.status, response.closes) == (504, True)
    client.expect_close()
    report = report_of(limited, target, after)
    assert "answered with 504" in report
    assert re.search(r"request id [0-9a-f]{32}, for 0\.[3-9] s in ", report) or " for 1." in report
    assert re.search(r'deadlineapps\.py", line \d+, in culprit_', report)
    limited.out.wait_for(rf'"GET {re.escape(target)} HTTP/1\.1" 504 ', after=accessed)
    with RawClient(limited.address) as other:
        assert other.get("/").text == "done"


@pytest.mark.parametrize("target", ["/hash?2000000", "/late?0.7"])
def test_a_culprit_that_cannot_be_ended_at_once(
    limited: Server, worker_class: str, connect: Connect, target: str
) -> None:
    not_gevent(worker_class)
    after = len(limited.log.lines)
    client = connect(limited.address)
    begun = time.monotonic()
    assert client.get(target).status == 504
    assert time.monotonic() - begun < 5
    client.expect_close()
    report_of(limited, target, after)
    with RawClient(limited.address) as other:
        assert other.get("/").text == "done"


@pytest.mark.parametrize("target", ["/stream?1", "/short?1"])
def test_a_response_that_has_begun_is_seen_to_be_cut(limited: Server, connect: Connect, target: str) -> None:
    after = len(limited.log.lines)
    client = connect(limited.address)
    client.request(target)
    with pytest.raises((Truncated, ConnectionResetError)):
        client.read_response()
    assert "the response is cut" in report_of(limited, target, after)


def test_a_response_that_was_complete_stays_so(limited: Server, connect: Connect) -> None:
    """Its iterable's close() is overdue: that costs the client nothing but the connection."""
    after = len(limited.log.lines)
    for target, whole in (("/close?1", b"first"), ("/whole?1", b"w" * 300_000)):
        client = connect(limited.address)
        client.request(target)
        assert client.read_response().body == whole
        client.expect_close()
        assert "its response had been sent" in report_of(limited, target, after)


def test_an_http10_response_that_has_begun_is_reset(limited: Server, connect: Connect) -> None:
    """Its end is the connection's: only a reset tells."""
    client = connect(limited.address)
    client.send(b"GET /stream?1 HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        client.read_response(http10=True)


def test_an_upload_and_what_is_pipelined_behind_it(limited: Server, connect: Connect) -> None:
    """The second request is not executed: whose turn it would be has been told that the connection closes."""
    client = connect(limited.address)
    client.send(
        b"POST /upload?1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n"
        + b"x" * 3000
        + b"GET /sleep?0.001&pipelined HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    assert client.read_response("POST").status == 504
    client.send(b"GET /sleep?0.002&later HTTP/1.1\r\nHost: a\r\n\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    client.expect_close()
    with RawClient(limited.address) as other:
        executed = other.get("/executed").text
    assert "pipelined" not in executed
    assert "later" not in executed


def test_sync_replaces_its_worker_and_serves_what_it_has(limited: Server, worker_class: str, connect: Connect) -> None:
    if worker_class != "sync":
        pytest.skip("the others go on in the same process")
    # Another test's overdue request may just have the worker replaced.
    old = wait_until(lambda: len(found := workers(limited)) == 1 and found, "one worker, and no successor")
    culprit, waiting = connect(limited.address), connect(limited.address)
    culprit.request("/sleep?1")
    waiting.request("/")
    assert culprit.read_response().status == 504
    assert waiting.read_response().text == "done"
    wait_until(lambda: not set(old) & set(limited.workers()), "a successor in its place")


def test_the_others_go_on(limited: Server, worker_class: str, connect: Connect) -> None:
    if worker_class == "sync":
        pytest.skip("one call at a time")
    old = workers(limited)
    overdue = [connect(limited.address) for _ in range(6)]  # more than there are threads
    for client in overdue[:3]:
        client.request("/sleep?1")
    with RawClient(limited.address) as other:
        for _ in range(20):
            assert other.get("/").text == "done"
    for client in overdue[3:]:
        client.request("/sleep?1")
    assert [client.read_response().status for client in overdue] == [504] * 6
    assert limited.workers() == old
