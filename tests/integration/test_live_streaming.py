"""``stream_request_body`` against real servers of each class: bodies that are read while they arrive (issue 4)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
import trustme
from rawclient import RawClient, Response
from server import ROOT, Connect, Server, Start, wait_until
from test_live_bodies import CALLS, TEXT, chunks

MEBIBYTE = 1 << 20
ON = ("--stream-request-body", "on")
# One worker, so that its neighbours are seen to be served, or not; and a client's silence ends soon.
ONE = ("-w", "1", "--body-timeout", "3")

FAULT = r"\[WARNING\] (?:WS\d+ )?127\.0\.0\.1:\d+: POST /\w+\?\S* : |\[WARNING\].*127\.0\.0\.1"


def threads_of(worker_class: str) -> tuple[str, ...]:
    return ("--threads", "4") if worker_class == "threads" else ()


@pytest.fixture
def streaming(shared_servers: Start, worker_class: str) -> Iterator[Server]:
    """The shared server that streams all bodies. Whatever clients do to it, its log has no error."""
    found = shared_servers("streamapps:app", *ON, *ONE, *threads_of(worker_class), expect=(FAULT,))
    before = len(found.log.lines)
    workers = found.workers()
    yield found
    found.check(before)
    assert not workers or found.workers() == workers, "a client cost a worker"


@pytest.fixture
def client(streaming: Server) -> Iterator[RawClient]:
    with RawClient(streaming.address) as found:
        yield found


def head(target: str, framing: bytes, more: bytes = b"") -> bytes:
    return b"POST " + target.encode() + b" HTTP/1.1\r\nHost: test\r\n" + more + framing + b"\r\n\r\n"


def length(size: int) -> bytes:
    return b"Content-Length: %d" % size


CODED = b"Transfer-Encoding: chunked"


def warnings(server: Server, pattern: str) -> list[str]:
    return [line for line in server.log.text.split("\n") if "[WARNING]" in line and pattern in line]


# ---- what is read ------------------------------------------------------------------------------------------


def test_bodies_of_all_sizes_are_whole(client: RawClient) -> None:
    borders = [border + i for border in (65536, MEBIBYTE, MEBIBYTE + 65536) for i in (-1, 0, 1)]
    for size in (0, 1, 2, *borders, 3_333_333):
        body = random.Random(size).randbytes(size)
        for data in (head("/digest", length(size)) + body, head("/digest", CODED) + chunks(body, 100_000, 7, 30_000)):
            client.send(data, step=size // 3 + 1)
            found, seen, _ = client.read_response().text.split()
            assert (found, seen) == (hashlib.sha256(body).hexdigest(), str(size))


def test_input_methods_while_bytes_come_one_by_one(streaming: Server, connect: Connect) -> None:
    client = connect(streaming.address)
    for calls, results in CALLS.values():
        target = "/input?" + quote(json.dumps(calls))
        for framing, body in ((length(len(TEXT)), TEXT), (CODED, chunks(TEXT, 3, 11, 1))):
            client.send(head(target, framing))
            client.offer(body, step=1)  # a chunked body that is not read to its end closes the connection
            response = client.read_response()
            assert response.json() == results
            if response.closes:
                assert framing == CODED
                client = connect(streaming.address)
    assert client.get("/").status == 200


def test_an_answer_to_each_line_before_the_next_is_sent(client: RawClient) -> None:
    """Bidirectional: a server that waited for the whole body would wait for ever."""
    client.send(head("/lines", CODED))
    for number in range(5):
        client.send(b"7\r\nline %d\n\r\n" % number, step=number)
        expected = b"got line %d\n" % number
        if not number:
            assert client._until(b"\r\n\r\n", "the head").startswith(b"HTTP/1.1 200 OK\r\n")
        assert client._until(b"\r\n", "a chunk's head") == b"%x" % len(expected)
        assert client._exactly(len(expected) + 2, "a chunk") == expected + b"\r\n"
    client.send(b"0\r\n\r\n")
    assert client._exactly(5, "the last chunk") == b"0\r\n\r\n"


def test_an_echo_to_a_client_that_sends_all_before_it_reads(
    shared_servers: Start, connect: Connect, worker_class: str
) -> None:
    """With more than a response may be ahead (stream_buffer) each would wait for the other, once the kernel is full."""
    more = ("--stream-buffer", "8m", *threads_of(worker_class))
    client = connect(shared_servers("streamapps:app", *ON, *ONE, *more, expect=(FAULT,)).address)
    body = random.Random(4).randbytes(8 * MEBIBYTE)
    client.send(head("/echo-stream", length(len(body))) + body)
    assert client.read_response().body == body


def test_pipelined_requests_behind_bodies(client: RawClient) -> None:
    client.send(
        head("/echo", length(5))
        + b"first"
        + head("/echo", CODED)
        + chunks(b"second", 2)
        + head("/echo", length(5))
        + b"third",
        step=11,
    )
    assert [client.read_response().body for _ in range(3)] == [b"first", b"second", b"third"]


# ---- what is not read ----------------------------------------------------------------------------------------


def test_an_unread_rest_is_never_a_request(client: RawClient, streaming: Server) -> None:
    bait = b"GET /count?bait HTTP/1.1\r\nHost: test\r\n\r\n"
    body = bait * 1000
    client.send(head("/unread", length(len(body))))
    response = client.read_response()  # before the body has come
    assert (response.body, response.closes) == (b"unread", False)
    client.send(body, step=9999)
    assert "bait" not in client.get("/counts").json()
    with RawClient(streaming.address) as other:
        other.offer(head("/unread", CODED) + chunks(body, 1000))
        response = other.read_response()
        assert response.body == b"unread"
        if response.closes:
            other.expect_close()
    assert "bait" not in client.get("/counts").json()


def test_a_client_that_is_still_sending_gets_the_refusal(streaming: Server, connect: Connect) -> None:
    """Of a large rest nothing is awaited: the response says so, and no reset takes it along (RFC 9112 9.6)."""
    size = 16 * MEBIBYTE
    for framing, body in ((length(size), b"x" * size), (CODED, chunks(b"x" * size, size))):
        client = connect(streaming.address)
        client.send(head("/refuse", framing))
        client.send(body)
        response = client.read_response()
        assert (response.status, response.body, response.closes) == (403, b"refused", True)
        client.expect_close()


def test_continue_only_for_those_who_read(streaming: Server, connect: Connect) -> None:
    expect = b"Expect: 100-continue\r\n"
    reader = connect(streaming.address)
    for framing, body in ((length(5), b"hello"), (CODED, chunks(b"hello", 2))):
        reader.send(head("/echo", framing, expect))
        assert reader.read_interim() == 100
        reader.send(body, step=1)
        response = reader.read_response()
        assert (response.body, response.interim, response.closes) == (b"hello", [], False)
    refused = connect(streaming.address)
    refused.send(head("/refuse", length(5), expect))
    response = refused.read_response()
    assert (response.status, response.interim, response.closes) == (403, [], True)
    refused.expect_close()


# ---- what breaks off -------------------------------------------------------------------------------------------


def test_a_body_that_breaks_off_is_never_complete(streaming: Server, connect: Connect) -> None:
    bodies = {
        "length": head("/cut?length", length(10)) + b"hello",
        "chunked": head("/cut?chunked", CODED) + b"5\r\nhello\r\n",
        "almost": head("/cut?almost", CODED) + b"5\r\nhello\r\n0\r\n",
    }
    for name, data in bodies.items():
        for leave in (RawClient.half_close, RawClient.close, RawClient.reset):
            before = len(warnings(streaming, f"/cut?{name}"))
            reading = len(streaming.log.lines)
            client = connect(streaming.address)
            client.send(data)
            streaming.wait_for_log(f"reading {name}", after=reading)
            leave(client)
            if leave is RawClient.half_close:
                response = client.read_response()
                assert (response.status, response.closes) == (400, True)
                client.expect_close()
            if leave is RawClient.reset:  # a client that has left is no news
                assert len(warnings(streaming, f"/cut?{name}")) == before
                continue
            wait_until(lambda: len(warnings(streaming, f"/cut?{name}")) > before, "the warning")  # noqa: B023
            assert len(warnings(streaming, f"/cut?{name}")) == before + 1
    assert connect(streaming.address).get("/seen").json() == {}


def test_broken_chunks_behind_good_ones(streaming: Server, connect: Connect) -> None:
    for bad in (b"x\r\n", b"5\nhello\r\n", b"5\r\nhelloo\r\n", b"0\r\nA : b\r\n\r\n"):
        client = connect(streaming.address)
        reading = len(streaming.log.lines)
        client.send(head("/cut?broken", CODED) + b"5\r\nhello\r\n")
        streaming.wait_for_log("reading broken", after=reading)
        client.offer(bad + b"GET /count?behind HTTP/1.1\r\nHost: test\r\n\r\n")
        response = client.read_response()
        assert (response.status, response.closes) == (400, True)
        client.expect_close()
    other = connect(streaming.address)
    assert other.get("/seen").json() == {}
    assert "behind" not in other.get("/counts").json()


@pytest.mark.parametrize("worker_class", ["threads", "gevent"], indirect=True)
def test_a_silent_client_holds_its_own_request_only_and_gets_408(streaming: Server, connect: Connect) -> None:
    """In sync it holds the worker, as docs/settings.md says."""
    silent = connect(streaming.address)
    reading = len(streaming.log.lines)
    begun = time.monotonic()
    silent.send(head("/cut?silent", length(10)) + b"hello")
    streaming.wait_for_log("reading silent", after=reading)
    neighbour = connect(streaming.address)
    for _ in range(20):
        assert neighbour.get("/").status == 200
    assert time.monotonic() - begun < 2.5
    response = silent.read_response()
    assert (response.status, response.closes) == (408, True)
    assert 2.5 < time.monotonic() - begun < 8.0
    silent.expect_close()
    wait_until(lambda: warnings(streaming, "/cut?silent"), "the warning")
    assert len(warnings(streaming, "/cut?silent")) == 1


# ---- auto and off ------------------------------------------------------------------------------------------------


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has had resident so far."""
    text = Path("/proc", str(pid), "status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def upload(client: RawClient, target: str, mebibytes: int) -> Response:
    """Send a body by 1 MiB, without holding it all; its response is checked for the digest."""
    piece = random.Random(8).randbytes(MEBIBYTE)
    found = hashlib.sha256()
    client.send(head(target, length(mebibytes * MEBIBYTE)))
    for _ in range(mebibytes):
        client.send(piece)
        found.update(piece)
    response = client.read_response()
    assert response.text.split()[0] == found.hexdigest()
    return response


def test_auto(shared_servers: Start, worker_class: str, connect: Connect) -> None:
    """gevent streams what is larger than ``body_buffer_size``: no file, no memory. The others spool it."""
    server = shared_servers("streamapps:app", *ONE, *threads_of(worker_class))
    client = connect(server.address)
    assert "(deleted)" not in upload(client, "/where", 1).text
    streams = worker_class == "gevent"
    assert ("(deleted)" in upload(client, "/where", 3).text) is not streams
    # A small body is here before the call: while it is not, nobody is called.
    reading = len(server.log.lines)
    client.send(head("/digest?small", length(10)) + b"hello")
    assert connect(server.address).get("/").status == 200
    assert "reading small" not in "\n".join(server.log.lines[reading:])
    client.send(b"hello")
    pid = int(client.read_response().text.split()[2])
    if streams:
        before = peak_mib(pid)
        upload(client, "/digest", 200)
        assert peak_mib(pid) - before < 10


@pytest.mark.parametrize("worker_class", ["gevent"], indirect=True)
def test_off(start: Start) -> None:
    """In the other classes it is what `auto` is."""
    server = start("streamapps:app", "--stream-request-body", "off", *ONE)
    with RawClient(server.address) as client:
        assert "(deleted)" in upload(client, "/where", 3).text


# ---- the worker's end, TLS, frameworks ---------------------------------------------------------------------------


def test_an_upload_under_way_is_finished_by_a_worker_that_leaves(start: Start, worker_class: str) -> None:
    server = start("streamapps:app", *ON, *ONE, *threads_of(worker_class))
    with RawClient(server.address) as client:
        client.send(head("/digest?upload", length(300_000)) + b"x" * 100_000)
        server.wait_for_log("reading upload")
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(r"\[INFO\].*(?i:term|stop|leav|shut)")
        client.send(b"x" * 200_000, step=50_000)
        response = client.read_response()
        assert response.text.split()[:2] == [hashlib.sha256(b"x" * 300_000).hexdigest(), "300000"]
        client.expect_close()  # announced, unless the response was quicker than the master's word to its worker
    assert server.wait() == 0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def test_tls_behind_a_proxy_line(start: Start, tmp_path: Path, authority: trustme.CA) -> None:
    """Records of odd sizes, some of which are cut: the raw socket is readable, and not a byte of the body is here."""
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    server = start(
        *("streamapps:app", *ON, *ONE, "--certfile", "server.pem", "--keyfile", "server.pem"),
        *("--proxy-protocol", "v1"),
        expect=(r"\[WARNING\].*203\.0\.113\.5.*/cut\?tls|\[WARNING\].*127\.0\.0\.1.*/cut\?tls",),
    )
    body = random.Random(3).randbytes(700_000)
    with RawClient(server.address) as client:
        client.send(b"PROXY TCP4 203.0.113.5 203.0.113.6 4711 443\r\n")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

        def turn(step: Callable[[], bytes | int | None]) -> bytes | int | None:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    client.send(outgoing.read())
                    incoming.write(client.sock.recv(65536))
                finally:
                    client.send(outgoing.read(), step=1000)

        turn(tls.do_handshake)
        for data, whole in (
            (head("/digest?tls", length(len(body))) + body, body),
            (head("/digest?tls", CODED) + chunks(body, 16_385, 100, 1, 50_000), body),
        ):
            view = memoryview(data)
            while view:
                view = view[tls.write(view[: random.Random(len(view)).randint(1, 40_000)]) :]
                client.send(outgoing.read(), step=3_333)
            answer = b""
            while not answer.partition(b"\r\n\r\n")[2]:
                answer += turn(lambda: tls.read(65536))  # type: ignore[operator]
            assert answer.partition(b"\r\n\r\n")[2].split()[:2] == [
                hashlib.sha256(whole).hexdigest().encode(),
                b"%d" % len(whole),
            ]
        # close_notify in the middle is an end before the end.
        tls.write(head("/cut?tls", length(10)) + b"hello")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        client.send(outgoing.read())
        server.wait_for_log(r"\[WARNING\].*/cut\?tls")


@pytest.mark.parametrize(
    ("worker_class", "app"),
    [("gevent", "flask_app:app"), ("threads", "django_app:application")],
    ids=["Flask", "Django"],
    indirect=["worker_class"],
)
def test_frameworks_read_uploads_while_they_arrive(start: Start, worker_class: str, app: str) -> None:
    """Multipart forms of some MiB, twice on one connection: what the form's reader leaves unread is small."""
    server = start(app, "--chdir", str(ROOT / "examples"), *ON, *ONE, *threads_of(worker_class))
    body = random.Random(2).randbytes(3 * MEBIBYTE)
    expected = hashlib.sha256(body).hexdigest()
    with requests.Session() as session:
        session.trust_env = False
        for _ in range(2):
            answer = session.post(server.url + "/upload", files={"file": ("big.bin", body)}, timeout=20)
            assert expected in answer.text
        pools = session.get_adapter("http://").poolmanager.pools
        assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118 (no dictionary)
