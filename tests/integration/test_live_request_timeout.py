"""request_timeout: one overdue request ends, with 504, and the others go on (issue 4, part 4)."""

from __future__ import annotations

import re
import time

import pytest
from rawclient import RawClient, Truncated
from server import Connect, Server, Start, wait_until

OVERDUE = (r"\[(?:ERROR|WARNING)\]|Traceback|File \"|in flight",)
REPORT = (
    r"request_timeout \(0\.5 s\): (answered with 504|the response is cut), "
    r"\"GET {} HTTP/1\.1\" from 127\.0\.0\.1, request id \w+"
)


@pytest.fixture
def limited(start: Start, worker_class: str) -> Server:
    """A server whose requests may take half a second."""
    threads = ("--threads", "4") if worker_class == "threads" else ()
    return start(
        *("threadapps:app", "-w", "1", "--request-timeout", "0.5", *threads),
        *("--access-logfile", "access.log"),
        expect=OVERDUE,
    )


def test_an_overdue_request_gets_504_and_the_others_go_on(limited: Server, worker_class: str, connect: Connect) -> None:
    late = connect(limited.address)
    before = limited.workers()
    began = time.monotonic()
    late.request("/sleep?20")
    if worker_class != "sync":  # which runs one at a time
        with RawClient(limited.address) as other:
            assert other.get("/who").status == 200
    found = late.read_response()
    assert found.status == 504
    assert found.closes
    assert 0.4 < time.monotonic() - began < 5
    late.expect_close()
    limited.wait_for_log(REPORT.format(re.escape("/sleep?20")))
    limited.wait_for_log(r"threadapps\.py\", line \d+, in _sleep")
    if worker_class == "sync":
        wait_until(lambda: limited.workers() and not set(before) & set(limited.workers()), "a successor")
    for _ in range(3):
        with RawClient(limited.address) as client:
            assert client.get("/who").status == 200


@pytest.mark.parametrize("target", ["/modest?20", "/spin?2"])
def test_what_an_application_catches_is_not_what_ends_it(limited: Server, target: str, worker_class: str) -> None:
    """RequestTimeout, and gevent's Timeout, are no Exception. A greenlet that never yields cannot be ended."""
    if worker_class == "gevent" and target.startswith("/spin"):
        target = "/modest?3"
    with RawClient(limited.address) as client:
        assert client.get(target).status == 504
    limited.wait_for_log(REPORT.format(re.escape(target)))
    with RawClient(limited.address) as client:
        assert client.get("/who").status == 200


@pytest.mark.parametrize("target", ["/stream?50", "/short?50"])
def test_a_response_that_has_begun_is_seen_to_be_cut(limited: Server, target: str) -> None:
    with RawClient(limited.address) as client:
        client.request(target)
        with pytest.raises((Truncated, ConnectionError)):
            client.read_response()
    limited.wait_for_log(REPORT.format(re.escape(target)))


def test_nothing_follows_the_504_on_its_connection(limited: Server) -> None:
    with RawClient(limited.address) as client:
        client.send(b"GET /sleep?1 HTTP/1.1\r\nHost: a\r\n\r\nGET /who HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_response().status == 504
        client.expect_close()  # the request behind an overdue one must not be answered


def test_each_request_about_the_limit_gets_one_whole_answer(limited: Server, worker_class: str) -> None:
    """200 or 504, never both, and never the exception that was meant for the request before."""
    # In sync each 504 costs a worker.
    for number in range(3 if worker_class == "sync" else 10):
        with RawClient(limited.address) as client:
            found = client.get(f"/sleep?{0.49 + 0.003 * number:.3f}")
            assert found.status in (200, 504)
            if found.status == 200:
                assert client.get("/who").status == 200
    assert "failed in the server" not in limited.log.text


def test_the_access_log_has_the_504(limited: Server) -> None:
    with RawClient(limited.address) as client:
        assert client.get("/sleep?0.9").status == 504
    log = limited.directory / "access.log"
    wait_until(lambda: '"GET /sleep?0.9 HTTP/1.1" 504 ' in log.read_text(), "the line of the overdue request")
