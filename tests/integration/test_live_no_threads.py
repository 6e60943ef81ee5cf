"""A worker that cannot start the threads it needs does not become ready, and says so in one line (issue 12, 6)."""

from __future__ import annotations

import pytest
from rawclient import RawClient
from server import Start

# A stack that no address space has: pthread_create(3) fails as at the limit of processes, which root does not have.
_APP = """
import os, threading

if os.environ.get("NO_THREADS") == "import":
    threading.stack_size(1 << 46)

def app(environ, start_response):
    if environ["PATH_INFO"] == "/no-more":
        threading.stack_size(1 << 46)
    start_response("200 OK", [])
    return [b"done"]
"""


@pytest.mark.parametrize("args", [(), ("--request-timeout", "5"), ("-w", "2", "--handoff-after", "1")])
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_worker_without_its_threads_is_not_ready(
    start: Start, worker_class: str, args: tuple[str, ...], preload: bool
) -> None:
    if worker_class == "gevent":
        args = (*args, "--gevent-block-warning", "1")
    server = start(
        "starved:app",
        *("-w", "1", *args, *(["--preload"] if preload else [])),
        files={"starved.py": _APP},
        env={"NO_THREADS": "import"},
        expect=(r"\[ERROR\]|\[WARNING\]|\[CRITICAL\]",),
    )
    line = server.wait_for_log("cannot start the thread.*")[0]
    assert "ulimit -u" in line
    assert server.wait() == 3
    assert "ready: " not in server.log.text
    assert "Traceback" not in server.log.text


def test_one_that_can_start_no_more_serves_with_what_it_has(start: Start, worker_class: str) -> None:
    if worker_class != "threads":
        pytest.skip("only there are threads started as they are needed")
    server = start(
        "starved:app",
        *("-w", "1", "--threads", "4"),
        files={"starved.py": _APP},
        expect=(r"\[ERROR\].*cannot start thread 2 of 4",),
    )
    with RawClient(server.address) as client:
        assert client.get("/no-more").text == "done"
        for _ in range(50):
            assert client.get("/").text == "done"
