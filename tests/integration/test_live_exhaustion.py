"""Out of descriptors, out of disk, clients that crash: the server is calm, says it once, and recovers."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time

import pytest
from limitapps import open_descriptors
from rawclient import RawClient, timed_get
from server import Connect, Start, wait_until

pytestmark = pytest.mark.no_coverage

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def limited(name: str, value: int) -> list[str]:
    """A command to run a server under: one resource limit."""
    code = (
        f"import os, resource, sys; resource.setrlimit(resource.{name}, ({value}, {value})); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-I", "-S", "-c", code]


def cpu_s(pid: int) -> float:
    """The processor time of a process so far, in seconds."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def share_of_cpu(pid: int, during_s: float) -> float:
    """What part of a processor a process takes in the time to come."""
    before, begun = cpu_s(pid), time.monotonic()
    threading.Event().wait(during_s)
    return (cpu_s(pid) - before) / (time.monotonic() - begun)


def test_out_of_descriptors(start: Start, connect: Connect) -> None:
    server = start(
        "limitapps:app", *("-w", "1"), wrap=limited("RLIMIT_NOFILE", 40), expect=(r"\[WARNING\].*out of descriptors",)
    )
    timed_get(server.address)
    (worker,) = server.workers()
    before = len(open_descriptors(worker))
    clients = [connect(server.address) for _ in range(120)]
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHo")
    server.wait_for_log("out of descriptors")
    assert share_of_cpu(worker, 1.2) < 0.05
    for client in clients:
        client.close()
    released = time.monotonic()
    timed_get(server.address)
    assert time.monotonic() - released < 1.0
    wait_until(lambda: len(open_descriptors(worker)) <= before, "the descriptors of before")
    assert server.log.text.count("out of descriptors") == 1
    assert server.workers() == [worker]


def test_idle_clients_give_their_descriptors_up(start: Start, connect: Connect) -> None:
    """120 keep-alive clients on 40 descriptors: all are answered, long before keepalive is over."""
    server = start(
        "limitapps:app", *("-w", "1"), wrap=limited("RLIMIT_NOFILE", 40), expect=(r"\[WARNING\].*out of descriptors",)
    )
    timed_get(server.address)
    clients = [connect(server.address) for _ in range(120)]
    for client in clients:
        client.request("/")
    begun = time.monotonic()
    assert [client.read_response().status for client in clients] == [200] * 120
    assert time.monotonic() - begun < 10


def test_a_full_disk_under_a_body_is_507(start: Start, connect: Connect) -> None:
    server = start(
        "limitapps:app",
        *("-w", "1", "--body-buffer-size", "1000", "--stream-request-body", "off"),
        wrap=limited("RLIMIT_FSIZE", 65536),
        expect=(r"\[WARNING\].*refused with 507",),
    )
    timed_get(server.address)
    (worker,) = server.workers()
    for framing in (b"Content-Length: 300000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n493e0\r\n"):
        client = connect(server.address)
        client.offer(b"POST /where HTTP/1.1\r\nHost: test\r\n" + framing + b"x" * 300_000)
        response = client.read_response()
        assert (response.status, response.closes) == (507, True)
        assert connect(server.address).get("/", body=b"x" * 60_000).status == 200
    wait_until(lambda: server.log.text.count("refused with 507") >= 2, "the warnings are in the log")
    assert server.log.text.count("refused with 507") == 2
    assert server.workers() == [worker]
    wait_until(lambda: not any("wsgiserv-body" in name for name in open_descriptors(worker)), "no spool file")


def test_a_full_disk_under_a_response_makes_the_producer_wait(start: Start, connect: Connect) -> None:
    server = start("limitapps:app", "-w", "1", wrap=limited("RLIMIT_FSIZE", 65536))
    size = 8 << 20
    client = connect(server.address)
    client.request(f"/big?size={size}")
    threading.Event().wait(0.3)  # by now memory is full, and the disk takes nothing
    response = client.read_response()
    assert response.body == b"x" * size
    assert client.get("/").status == 200


def test_a_reader_that_stops_under_a_full_disk_ends_at_send_timeout(start: Start, connect: Connect) -> None:
    server = start(
        "limitapps:app",
        *("-w", "1", "--send-timeout", "1"),
        wrap=limited("RLIMIT_FSIZE", 65536),
        expect=(r"\[WARNING\].*send_timeout",),
    )
    client = connect(server.address)
    client.request("/big?size=50003968")
    server.wait_for_log("send_timeout", 5.0)
    with pytest.raises((ConnectionResetError, AssertionError)):
        client.read_response()
    assert connect(server.address).get("/").status == 200
    assert server.log.text.count("send_timeout") == 1


def test_clients_that_crash_at_any_time_leak_nothing(start: Start) -> None:
    """Resets right after the connect, within the head, within the body, within the response."""
    server = start("limitapps:app", "-w", "1", "--body-buffer-size", "100")
    timed_get(server.address)
    (worker,) = server.workers()
    before = len(open_descriptors(worker))
    stages = [
        b"",
        b"GET / HTTP/1.1\r\nHo",
        b"POST /where HTTP/1.1\r\nHost: test\r\nContent-Length: 5000\r\n\r\n" + b"x" * 2000,
        b"GET /big?size=6553600 HTTP/1.1\r\nHost: test\r\n\r\n",
    ]
    for number in range(120):
        client = RawClient(server.address)
        client.send(stages[number % 4])
        if number % 4 == 3 and number % 8 == 3:
            client.sock.recv(1000)
        client.reset()
    wait_until(lambda: len(open_descriptors(worker)) <= before, "the descriptors of before")
    assert share_of_cpu(worker, 0.3) < 0.2
    timed_get(server.address)
    assert server.workers() == [worker]


def test_a_client_that_crashes_during_its_request_does_not_spin_the_loop(start: Start) -> None:
    """epoll tells of a reset even those who ask for nothing."""
    server = start("limitapps:app", "-w", "1", "--threads", "3")
    client = RawClient(server.address)
    assert client.get("/").status == 200  # from now on the loop watches it
    (worker,) = server.workers()
    client.request("/sleep?s=1.5")
    client.send(b"G")  # and wakes when there is more
    threading.Event().wait(0.2)
    client.reset()
    assert share_of_cpu(worker, 0.8) < 0.2
    timed_get(server.address)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_logs_on_a_full_device(start: Start, connect: Connect) -> None:
    """Also with what a client and an application do wrong: nothing is raised into anything."""
    server = start("apps:app", "-w", "1", "--access-logfile", "/dev/full", "--error-logfile", "/dev/full")
    timed_get(server.address)
    (worker,) = server.workers()
    client = connect(server.address)
    assert client.get("/crash").status == 500
    assert client.get("/log?x").status == 200
    client.send(b"nonsense\r\n\r\n")
    assert client.read_response().status == 400
    timed_get(server.address)
    assert server.workers() == [worker]


def test_the_limit_of_this_process_is_not_the_servers() -> None:
    """The tests above mean what they say only if their own descriptors suffice."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 300
