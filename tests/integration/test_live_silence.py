"""Each request has one line in the access log, and one in the error log when it was cut (issue 13, 1)."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient
from server import Connect, Server, Start, wait_until

LOGGED = ("--access-logfile", "access.log", "--access-logformat", "json")
# What a worker that is killed leaves in the error log.
KILLED = (r"\[ERROR\]|\[WARNING\]|\[CRITICAL\]|Traceback|File \"|in flight",)


def lines_of(server: Server, path: str = "") -> list[dict[str, Any]]:
    """Return the access log's lines whose path begins with ``path``."""
    file = server.directory / "access.log"
    text = file.read_text() if file.exists() else ""
    found = [json.loads(line) for line in text.split("\n")[:-1]]
    return [line for line in found if (line["path"] or "").startswith(path)]


def line_of(server: Server, path: str) -> dict[str, Any]:
    """Return the one line of a request, as soon as it is there."""
    wait_until(lambda: lines_of(server, path), f"the line of {path}")
    (line,) = lines_of(server, path)
    return line


def in_flight(server: Server) -> int:
    """Return how many requests the first worker's application has begun, as far as its output tells."""
    return server.out.text.count("begun ")


APP = """
import os, time
from silentapps import app as others

def app(environ, start_response):
    os.write(1, f"begun {environ['PATH_INFO']}\\n".encode())  # in one piece, whichever thread writes beside it
    if environ["PATH_INFO"].startswith("/wait"):
        for _ in range(300):
            time.sleep(0.2)  # short: a signal just before a sleep is heard behind it
    return others(environ, start_response)
"""
THREADS = 4


def start_in_flight(
    start: Start, connect: Connect, worker_class: str, *args: str, expect: tuple[str, ...] = (), queued: int = 2
) -> tuple[Server, dict[str, int]]:
    """Start a server with requests in flight; return them with the status that each is to have."""
    threads = ("--threads", str(THREADS)) if worker_class == "threads" else ()
    most = ("--worker-connections", str(THREADS + queued + 1)) if worker_class == "gevent" else ()
    server = start(
        *("waiting:app", "-w", "1", *threads, *most, *LOGGED, *args),
        files={"waiting.py": APP},
        env={"PYTHONPATH": str(Path(__file__).parents[1] / "support")},
        expect=expect,
    )
    clients: list[RawClient] = []

    def ask(data: bytes) -> RawClient:
        client = connect(server.address)
        clients.append(client)
        client.send(data)
        return client

    if worker_class == "sync":  # which has one at a time, and reads nothing else meanwhile
        ask(b"GET /wait-0 HTTP/1.1\r\nHost: a\r\n\r\n")
        expected = {"/wait-0": 504}
    else:
        ask(b"POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        stream = ask(b"GET /stream?60 HTTP/1.1\r\nHost: a\r\n\r\n")
        old = ask(b"GET /declared?60 HTTP/1.0\r\n\r\n")
        for client in (stream, old):
            assert client.sock.recv(12) == b"HTTP/1.1 200"
        for number in range(THREADS - 2):
            ask(b"GET /wait-%d?q HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        expected = {"/stream": 200, "/declared": 200, "/half": 504}
        expected |= {f"/wait-{number}": 504 for number in range(THREADS - 2)}
        if worker_class == "threads":
            wait_until(lambda: in_flight(server) == THREADS, "all threads in their calls")
            for number in range(queued):
                ask(b"GET /queued-%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
                expected[f"/queued-{number}"] = 504
    wait_until(lambda: in_flight(server) == min(THREADS, len(expected)), "the requests in flight")
    if worker_class != "sync":
        wait_until(lambda: all_read(server, clients), "all that was sent has been read")
    return server, expected


def all_read(server: Server, clients: list[RawClient]) -> bool:
    """Whether nothing that the clients have sent waits in the kernel, as far as that is accepted."""
    ports = {client.sock.getsockname()[1] for client in clients}
    read = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        # The server's ends: their peers' ports are the clients'.
        local, remote = (int(field.partition(":")[2], 16) for field in fields[1:3])
        if local == server.address[1] and remote in ports and fields[4].endswith(":00000000"):
            read += 1
    return read == len(ports)


def check_cut(server: Server, expected: dict[str, int], why: str) -> None:
    """Each request has its one line in both logs."""
    for path, status in expected.items():
        (line,) = lines_of(server, path)
        assert (line["status"], line["aborted"]) == (status, True), line
        told = [text for text in server.log.text.split("\n") if f" {path}" in text and "request id" in text]
        assert len(told) == 1, (path, told)
        if line["request_id"]:
            assert line["request_id"] in told[0]
    assert re.search(why, server.log.text), server.log.text
    assert len(lines_of(server)) == len(expected)


@pytest.mark.parametrize(
    ("number", "preload"), [(signal.SIGINT, ()), (signal.SIGQUIT, ("--preload",))], ids=["INT", "QUIT-preload"]
)
def test_a_fast_stop_accounts_for_what_it_cuts(
    start: Start, worker_class: str, connect: Connect, number: int, preload: tuple[str, ...]
) -> None:
    server, expected = start_in_flight(start, connect, worker_class, *preload)
    assert server.stop(number) == 0
    check_cut(server, expected, "told to leave at once|did not leave at once")


def test_a_graceful_stop_accounts_for_what_it_cuts(start: Start, worker_class: str, connect: Connect) -> None:
    """In time: the master's second on top of graceful_timeout is never used where the worker can look at the clock."""
    server, expected = start_in_flight(
        start, connect, worker_class, "--graceful-timeout", "1", expect=(r"cut: |did not retire within|was killed by",)
    )
    assert server.stop(signal.SIGTERM) == 0
    check_cut(server, expected, r"graceful_timeout \(1 s\)")
    if worker_class != "sync":
        assert "SIGKILL" not in server.log.text


def test_a_worker_without_its_master_accounts_for_what_it_cuts(
    start: Start, worker_class: str, connect: Connect
) -> None:
    server, expected = start_in_flight(start, connect, worker_class, expect=(r"cut: |master .* is gone",))
    (worker,) = server.workers()
    server.send_signal(signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not server.leftovers(), f"the end of worker {worker}")
    server.log.join()
    check_cut(server, expected, "the master is gone")


def test_what_waits_in_a_silent_worker_is_accounted_for(start: Start, worker_class: str, connect: Connect) -> None:
    """SIGABRT by `timeout`: what is in the application is the master's to tell, what waits the worker's."""
    if worker_class == "gevent":
        pytest.skip("greenlets that wait do not make a worker silent")
    server, expected = start_in_flight(start, connect, worker_class, "--timeout", "1", expect=KILLED)
    wait_until(lambda: len(lines_of(server)) >= len(expected), "all lines", 20)
    server.wait_for_log(r"worker \d+ replaces worker \d+")
    assert server.stop() == 0
    for path in expected:
        (line,) = lines_of(server, path)
        assert (line["status"], line["aborted"]) == (504, True)
    assert len(lines_of(server)) == len(expected)


# ---- overdue requests ------------------------------------------------------------------------------------

HOOKS = """
def post_request(worker, req, environ, resp):
    worker.log.info("hook %s %s %s %d %s", req.path, resp.status, resp.status_code, resp.sent, resp.headers_sent)
"""


def test_an_overdue_request_has_one_line_whether_its_call_ends_or_not(
    start: Start, worker_class: str, connect: Connect
) -> None:
    """The same body in all classes, its bytes counted, and post_request called once."""
    threads = ("--threads", "4") if worker_class == "threads" else ()
    server = start(
        *("silentapps:app", "-w", "1", "--request-timeout", "0.5", "-c", "hooked.py", *threads, *LOGGED),
        files={"hooked.py": HOOKS},
        expect=KILLED,
    )
    body = b"504 Gateway Timeout: the request took too long\n"
    # In gevent a call is interrupted where it waits, and answered when it ends.
    paths = ["/sleep?30", "/stubborn?1.5"] if worker_class != "gevent" else ["/sleep?30"]
    if worker_class == "threads":
        paths.append("/stubborn?30")
    for target in paths:
        client = connect(server.address)
        client.request(target)
        found = client.read_response()
        assert (found.status, found.body) == (504, body)
    connect(server.address).request("/sleep?30", method="HEAD")
    wait_until(lambda: len(lines_of(server)) == len(paths) + 1, "a line each")
    lines = lines_of(server)
    assert [line["status"] for line in lines] == [504] * len(lines)
    assert sorted(line["bytes"] for line in lines) == [0] + [len(body)] * len(paths)
    assert not any(line["aborted"] for line in lines)
    for target in paths:
        path = target.partition("?")[0]
        server.wait_for_log(rf"hook {path} 504 Gateway Timeout 504 {len(body)} True")
    wait_until(lambda: server.log.text.count("hook /") == len(paths) + 1, "one call of the hook each")
    if worker_class == "threads":
        server.wait_for_log("does not come back from its overdue request")
    assert server.stop() == 0
    assert len(lines_of(server)) == len(lines)
    assert server.log.text.count("hook /") == len(paths) + 1


def test_a_worker_that_never_comes_back_leaves_one_line(start: Start, worker_class: str, connect: Connect) -> None:
    """C code that holds no lock and hears nothing. sync ends the process, and the master knows of the line."""
    if worker_class != "sync":
        pytest.skip("threads: the test above; gevent cannot interrupt what does not wait")
    server = start(
        *("silentapps:app", "-w", "1", "--request-timeout", "0.5", "-c", "hooked.py", *LOGGED),
        files={"hooked.py": HOOKS},
        expect=KILLED,
    )
    client = connect(server.address)
    client.request("/hash?2000000000")
    assert client.read_response().status == 504
    server.wait_for_log("does not come back from its overdue request")
    server.wait_for_log(r"worker \d+ \(age 1\) exited with status 3")
    (line,) = lines_of(server, "/hash")
    assert (line["status"], line["bytes"]) == (504, 47)
    assert server.log.text.count("hook /hash 504") == 1


# ---- clients that have gone ------------------------------------------------------------------------------


def test_a_client_that_has_gone_is_told_from_one_that_was_served(
    start: Start, worker_class: str, connect: Connect
) -> None:
    threads = ("--threads", "4") if worker_class == "threads" else ()
    server = start(
        *("silentapps:app", "-w", "1", *threads, *LOGGED),
        expect=("Error handling request|RuntimeError|Traceback|shorter than",),
    )
    address = server.address

    def leave(target: str, how: Callable[[RawClient], object], read: int = 0) -> dict[str, Any]:
        client = connect(address)
        client.request(target)
        got = b""
        while len(got) < read:
            got += client.sock.recv(65536)
        how(client)
        return line_of(server, target.partition("?")[0])

    def fate(line: dict[str, Any]) -> tuple[int, bool]:
        return line["status"], line["aborted"]

    # Before anything was sent.
    line = leave("/sleep?0.3", RawClient.close)
    assert (*fate(line), line["bytes"]) == (499, True, 0)
    line = leave("/stubborn?0.3", RawClient.reset)
    assert (*fate(line), line["bytes"]) == (499, True, 0)
    # In the middle.
    assert fate(leave("/stream?0.05", RawClient.close, 200)) == (200, True)
    assert fate(leave("/declared?0.05", RawClient.reset, 200)) == (200, True)
    # With the response queued, and its call over.
    line = leave("/big/gone?30000000", RawClient.reset, 1000)
    assert fate(line) == (200, True)
    assert 0 < line["bytes"] < 30_000_000
    line = leave("/torrent?300", RawClient.reset, 1000)
    assert fate(line) == (200, True)
    assert line["bytes"] < 30_000_000
    # While its body comes.
    client = connect(address)
    client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
    wait_until(lambda: all_read(server, [client]), "the half body read")
    client.reset()
    assert fate(line_of(server, "/upload")) == (499, True)
    # The application's fault, which its client sees as a cut.
    client = connect(address)
    client.request("/broken")
    assert client.sock.recv(12) == b"HTTP/1.1 200"
    assert fate(line_of(server, "/broken")) == (200, True)
    client = connect(address)
    client.request("/short?9")
    line = line_of(server, "/short")
    assert (*fate(line), line["bytes"]) == (200, True, 9)
    server.wait_for_log(
        r"GET /short\?9: the application's body is 1 byte shorter than its Content-Length of 10; .*"
        rf"\(request {line['request_id']}\)"
    )
    # All is well where all was read, also by who half-closes, or reads late.
    client = connect(address)
    client.request("/well-1?")
    client.half_close()
    assert client.read_response().body == b"done"
    late = connect(address)
    late.request("/big/late?20000000")
    with connect(address) as other:
        assert other.get("/well-2").status == 200
    assert len(late.read_response().body) == 20_000_000
    for path in ("/well-1", "/well-2", "/big/late"):
        assert fate(line_of(server, path)) == (200, False)
    assert line_of(server, "/big/late")["bytes"] == 20_000_000
    assert len(lines_of(server)) == 12


# ---- what was not said, or not counted -------------------------------------------------------------------


@pytest.fixture
def proxied(start: Start) -> Server:
    """A server that hears of its clients by the PROXY protocol, and cuts requests after half a second."""
    return start(
        *("silentapps:app", "-w", "1", "--proxy-protocol", "auto", "--request-timeout", "0.5", *LOGGED),
        *("--limit-request-line", "100"),
        expect=KILLED,
    )


def test_a_client_behind_the_proxy_protocol_has_one_name(proxied: Server, connect: Connect) -> None:
    """In the access log, in the error log, and on the scoreboard; also where TLS would follow: see the unit tests."""
    hello = b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n"
    client = connect(proxied.address)
    client.send(hello + b"GET /sleep?30 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.read_response().status == 504
    proxied.wait_for_log(r'"GET /sleep\?30 HTTP/1.1" from 203\.0\.113\.9, ')
    client = connect(proxied.address)
    client.send(hello + b"GET /" + b"x" * 200)
    assert client.read_response().status == 414
    proxied.wait_for_log(r"203\.0\.113\.9: refused with 414")
    wait_until(lambda: len(lines_of(proxied)) == 2, "a line each")
    assert [line["remote_addr"] for line in lines_of(proxied)] == ["203.0.113.9"] * 2


def test_the_bytes_of_a_refusal_are_counted(start: Start, connect: Connect) -> None:
    server = start("silentapps:app", "-w", "1", *LOGGED, expect=("refused with",))
    client = connect(server.address)
    client.send(b"GET /refused HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n")
    found = client.read_response()
    assert found.status == 400
    line = wait_until(lambda: lines_of(server), "the line")[0]
    assert (line["status"], line["bytes"], line["aborted"]) == (400, len(found.body), False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_lines_that_a_full_disk_does_not_take_are_counted_at_the_stop(
    start: Start, connect: Connect, number: int
) -> None:
    server = start("silentapps:app", "-w", "1", "--access-logfile", "/dev/full", expect=("access log",))
    client = connect(server.address)
    for _ in range(5):
        assert client.get("/").status == 200
    server.wait_for_log("access log /dev/full cannot be written")
    assert server.stop(number) == 0
    assert re.search(r"access log .*: 5 lines are lost", server.log.text), server.log.text
    assert server.log.text.count(" lost") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_lines_that_a_killed_worker_kept_are_counted(start: Start, connect: Connect) -> None:
    server = start(*("silentapps:app", "-w", "1", "--access-logfile", "/dev/full"), expect=(*KILLED, "access log"))
    client = connect(server.address)
    for _ in range(5):
        assert client.get("/").status == 200
    (worker,) = server.workers()
    os.kill(worker, signal.SIGABRT)
    ended = server.wait_for_log(
        rf"WS1207 worker {worker}: exited while the access log could not be written: (\d+) lines? (is|are) lost"
    )
    # The last may be in flight all the same, though its client has it all: then its line is the master's.
    assert int(ended[1]) in (4, 5)


DYING = """
import os, threading, time

def die():
    time.sleep(0.3)
    os._exit(7)

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"served"]
"""
DIE = """
import threading

def post_worker_init(worker):
    if worker.age != 1:  # one stays
        import dying
        threading.Thread(target=dying.die, daemon=True).start()
"""


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_a_crash_loop_and_what_replaces_the_dead_are_told(start_unclassed: Start, preload: tuple[str, ...]) -> None:
    """By the master, which is the same for all classes."""
    server = start_unclassed(
        *("dying:app", "-w", "2", "-c", "die.py", *preload),
        files={"dying.py": DYING, "die.py": DIE},
        worker_class="sync",
        expect=(*KILLED, "crash loop"),
    )
    told = server.wait_for_log(
        r"crash loop: \d+ workers have died within 5 s .*no new worker for (\d\.\d) s, "
        r".* up to 30 s; 1 worker serves now"
    )
    assert 0.3 < float(told[1]) < 0.7
    # The pauses after it are no news.
    wait_until(lambda: len(re.findall(r"exited with status 7", server.log.text)) > 8, "two deaths more")
    assert server.log.text.count("crash loop") == 1
    dead = re.findall(r"worker (\d+) \(age \d+\) exited with status 7", server.log.text)
    replaced = re.findall(r"worker \d+ replaces worker (\d+): ready after", server.log.text)
    assert replaced[:5] == dead[:5]


def test_boot_timeout_at_the_first_start_means_three_rounds(start_unclassed: Start) -> None:
    for preload in ((), ("--preload",)):
        server = start_unclassed(
            *("hanging:app", "-w", "3", "--boot-timeout", "0.5", *preload),
            files={"hanging.py": "import time\ntime.sleep(60)\n"},
            worker_class="sync",
            expect=(*KILLED, "cannot boot|boot_timeout"),
        )
        assert server.wait() == 3
        aborted = server.log.text.count("sending SIGABRT")
        assert aborted == (3 if preload else 5), server.log.text
