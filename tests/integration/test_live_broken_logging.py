"""Applications that break the logging module, the standard streams, the clock, the stack (issue 12, part 3)."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from rawclient import RawClient
from server import Server, Start, wait_until

BREAKS = (
    *("filters", "filters of handlers", "handlers", "leaving handlers", "formatters", "factory"),
    *("factory of nothing", "handlers removed", "shutdown", "dictConfig", "no streams", "closed streams", "clock"),
)
ANYTHING = (r".",)


def exercise(server: Server) -> None:
    """Have all kinds of lines logged; each request gets its answer."""
    for target, status in (("/", 200), ("/log?a%20line", 200), ("/crash", 500), ("/warn?x", 200), ("/", 200)):
        with RawClient(server.address) as client:
            assert client.get(target).status == status
    for _ in range(3):
        with RawClient(server.address) as client:
            client.send(b"BAD\r\n\r\n")
            assert client.read_response().status == 400
    with RawClient(server.address) as client:
        for _ in range(3):
            assert client.get("/").status == 200


# What the log is made of is the same in every class: these meet each class's own loop.
IN_EACH_CLASS = ("filters", "leaving handlers", "factory", "closed streams", "clock")
IN_A_ZYGOTE = ("handlers", "shutdown", "no streams", "closed streams")


@pytest.mark.parametrize(
    ("worker_class", "what", "preload"),
    [
        *(("sync", what, False) for what in BREAKS),
        *(("sync", what, True) for what in IN_A_ZYGOTE),
        *((each, what, False) for each in ("threads", "gevent") for what in IN_EACH_CLASS),
    ],
    indirect=["worker_class"],
)
def test_logging_that_is_broken_at_import(start: Start, worker_class: str, what: str, preload: bool) -> None:
    server = start(
        "brokenlogapps:app", "--access-logfile", "access.log", *(["--preload"] if preload else []),
        env={"WSGISERV_TEST_BREAKS": what}, expect=ANYTHING,
    )  # fmt: skip
    exercise(server)
    workers = server.workers()
    exercise(server)
    assert server.workers() == workers
    server.send_signal(signal.SIGUSR1)
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.workers() and not set(server.workers()) & set(workers), "other workers")
    exercise(server)
    assert server.stop() == 0
    if what not in ("formatters", "clock"):
        assert "Error handling request GET /crash" in server.log.text
        assert "refused with 400" in server.log.text


@pytest.mark.parametrize("what", ["filters", "handlers", "factory"])
def test_a_fault_is_told_once_with_its_traceback(start_unclassed: Start, what: str) -> None:
    server = start_unclassed(
        "brokenlogapps:app", worker_class="sync", env={"WSGISERV_TEST_BREAKS": what}, expect=ANYTHING
    )
    exercise(server)
    exercise(server)
    assert server.stop() == 0
    assert len(re.findall(r"raised RuntimeError; the record is written without it", server.log.text)) == 1
    assert f"RuntimeError: a {what.rstrip('s')} that fails" in server.log.text


CONF = {
    "filters": """
import logging
class Broken(logging.Filter):
    def filter(self, record):
        raise RuntimeError("a filter that fails")
logging.getLogger("gunicorn.error").addFilter(Broken())
logging.getLogger("gunicorn.access").addFilter(Broken())
""",
    "factory": """
import logging
def broken(*args, **kwargs):
    raise RuntimeError("a factory that fails")
logging.setLogRecordFactory(broken)
""",
    "logconfig": """
import logging
class Broken(logging.Handler):
    def handle(self, record):
        raise RuntimeError("a handler that fails")
logconfig_dict = {
    "handlers": {"broken": {"()": Broken}},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["broken", "error_console"], "propagate": True},
        "gunicorn.access": {"level": "INFO", "handlers": ["broken"], "propagate": True},
    },
    "root": {"level": "INFO", "handlers": ["broken"]},
}
""",
    "future": "import time\ntime.time = lambda: 1e20\n",
    "past": "import time\ntime.time = lambda: -1e20\n",
    "no clock": "import time\ntime.time = lambda: float('nan')\n",
}


@pytest.mark.parametrize(
    ("worker_class", "what"),
    [*(("sync", what) for what in CONF), ("threads", "no clock"), ("gevent", "no clock"), ("gevent", "logconfig")],
    indirect=["worker_class"],
)
def test_logging_that_a_configuration_file_has_broken(start: Start, worker_class: str, what: str) -> None:
    """The master logs through it, too."""
    server = start(
        "brokenlogapps:app", "-c", "conf.py", "--access-logfile", "access.log",
        files={"conf.py": CONF[what]}, expect=ANYTHING,
    )  # fmt: skip
    exercise(server)
    workers = server.workers()
    os.kill(workers[0], signal.SIGKILL)  # the master writes a report
    wait_until(lambda: server.workers() and server.workers() != workers, "another worker")
    exercise(server)
    assert server.stop() == 0
    assert "Error handling request GET /crash" in server.log.text
    assert "was killed by SIGKILL" in server.log.text


def test_standard_streams_that_a_view_closes(start: Start, tmp_path: Path) -> None:
    """The next clients get descriptors 1 and 2, and none of what is logged or printed."""
    server = start("brokenlogapps:app", "--access-logfile", "-", expect=ANYTHING)
    with RawClient(server.address) as client:
        assert client.get("/close-streams").status == 200
    clients = [RawClient(server.address) for _ in range(4)]
    try:
        for client in clients:
            assert client.get("/").status == 200
        for client in clients:
            for target in ("/write-to-streams", "/warn?in%20the%20log", "/log?a%20line"):
                assert client.get(target).status == 200
        with RawClient(server.address) as other:
            assert other.get("/crash").status == 500
        for client in clients:
            assert client.get("/").body == b"hello\n"
            client.expect_nothing_more()
    finally:
        for client in clients:
            client.close()
    server.wait_for_log("warned by the application in the log")
    server.wait_for_log("Error handling request GET /crash")
    server.out.wait_for(r'"GET /crash HTTP/1\.1" 500')
    assert server.stop() == 0


@pytest.mark.no_coverage  # which takes a part of the stack
def test_a_stack_that_a_view_uses_up(start: Start) -> None:
    """A record or a request may be lost, never the worker; within a second all is as before."""
    server = start("brokenlogapps:app", "--access-logfile", "access.log", expect=ANYTHING)
    with RawClient(server.address) as client:
        client.get("/")
    workers = server.workers()
    for _ in range(3):
        with RawClient(server.address) as client:
            client.send(b"GET /recursion HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while client.sock.recv(65536):
                pass
        for target in ("/crash", "/log?x", "/warn?x", "/"):
            with RawClient(server.address) as client:
                client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
                while client.sock.recv(65536):
                    pass

    def answers() -> bool:
        with RawClient(server.address) as client:
            client.send(b"GET /crash HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return b" 500 " in client.sock.recv(65536)

    wait_until(answers, "an answer")
    exercise(server)
    assert server.workers() == workers
    assert server.stop() == 0
