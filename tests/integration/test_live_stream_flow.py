"""A block of a response leaves when the socket takes it, whatever the application does meanwhile (PEP 3333)."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from flowclient import BLOCK, COUNT, Reader, numbered
from rawclient import RawClient
from server import Connect, Server, Start, wait_until

# Blocks of a stream whose client has stopped reading: so little that many of them fit in the sockets.
MIB = 1 << 20

CERTIFICATE = ("--certfile", "server.pem", "--keyfile", "server.key")


def ask(gate: Path, *flags: str) -> str:
    """Return the target of a gated response."""
    gate.mkdir()
    return f"/gated?size={BLOCK}&count={COUNT}&gate={gate}" + "".join(f"&{flag}=1" for flag in flags)


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, shared_servers: Start, start: Start, tmp_path: Path) -> Any:
    """Where a server of `flowapps` listens."""
    if request.param == "tcp":
        return shared_servers("flowapps:app").address
    server = start("flowapps:app", "-b", "unix:a.sock", bind="none")
    server.wait_for_log("ready")
    return f"{tmp_path}/a.sock"


@pytest.mark.parametrize("flags", [(), ("write",), ("length",), ("write", "length")], ids="-".join)
def test_each_block_is_there_before_the_next_is_made(
    address: Any, connect: Connect, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Over TCP and a Unix socket, HTTP/1.1 (chunked) and 1.0 (ended by the close), by iterable and by write()."""
    for version in ("1.1", "1.0"):
        client = connect(address)
        gate = tmp_path / version
        client.send(f"GET {ask(gate, *flags)} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
        reader = Reader(client, gate)
        reader.head()
        assert reader.is_chunked == (version == "1.1" and "length" not in flags)
        reader.read_blocks()
        if version == "1.1":
            if reader.is_chunked:
                assert client._until(b"0\r\n\r\n", "the last chunk") == b""
            assert client.get("/").status == 200  # the connection is kept, and nothing is left of the stream
        else:
            assert client.sock.recv(1) == b""


def test_a_pipelined_request_waits_for_the_end_of_the_stream(
    shared_servers: Start, connect: Connect, tmp_path: Path
) -> None:
    client = connect(shared_servers("flowapps:app").address)
    gate = tmp_path / "gate"
    client.request(ask(gate))
    client.request("/")
    reader = Reader(client, gate)
    reader.head()
    reader.read_blocks()
    assert client._until(b"0\r\n\r\n", "the last chunk") == b""
    assert client.read_response().status == 200


def test_a_half_closed_client_gets_the_stream(shared_servers: Start, connect: Connect, tmp_path: Path) -> None:
    client = connect(shared_servers("flowapps:app").address)
    gate = tmp_path / "gate"
    client.request(ask(gate))
    client.half_close()
    reader = Reader(client, gate)
    reader.head()
    reader.read_blocks()
    assert client._until(b"0\r\n\r\n", "the last chunk") == b""


def test_over_tls(start: Start, tmp_path: Path) -> None:
    """The application's thread and the one that sends use OpenSSL's object one after the other."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    (tmp_path / "server.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    server = start("flowapps:app", *CERTIFICATE)
    for version in ("1.1", "1.0"):
        with RawClient(server.address) as client:
            client.sock = context.wrap_socket(client.sock, server_hostname="localhost")
            gate = tmp_path / version
            client.send(f"GET {ask(gate)} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
            reader = Reader(client, gate)
            reader.head()
            reader.read_blocks()


def test_with_a_time_limit_for_requests(start: Start, connect: Connect, tmp_path: Path) -> None:
    server = start("flowapps:app", "--request-timeout", "60")
    client = connect(server.address)
    gate = tmp_path / "gate"
    client.request(ask(gate))
    reader = Reader(client, gate)
    reader.head()
    reader.read_blocks()


def test_another_clients_download_goes_on_during_a_long_call(start: Start, connect: Connect, tmp_path: Path) -> None:
    """A response that has been made is sent while the only worker is in another request's application."""
    size = 64 << 20  # no pair of sockets holds that
    server = start("flowapps:app")
    slow, other = connect(server.address), connect(server.address)
    slow.request(f"/whole?size={size}")
    reader = Reader(slow, tmp_path)
    reader.head()
    reader.take(MIB)
    gate = tmp_path / "gate"
    other.request(ask(gate))  # the application does not go on before its client has read, and that comes last
    first = Reader(other, gate)
    first.head()
    reader.take(size - MIB)
    first.read_blocks()


def made(server: Server) -> int:
    """Return how many MiB the endless application has made."""
    found = [line for line in server.log.text.split("\n") if " MiB" in line]
    return int(found[-1].rsplit(" ", 2)[1]) if found else 0


def wait_for_standstill(server: Server) -> int:
    """Wait until the endless application makes no more; return how many MiB it has made."""

    def stands() -> bool:
        before = made(server)
        time.sleep(0.4)
        return before > 0 and made(server) == before

    wait_until(stands, "the producer waits")
    return made(server)


def start_flood(server: Server, client: RawClient, version: str = "1.1", query: str = "") -> Reader:
    """Ask for an endless response and take its first block."""
    client.send(f"GET /flood?size=65536{query} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
    reader = Reader(client, Path())
    reader.head()
    assert reader.take(65536) == numbered(0, 65536)
    return reader


def read_to_the_end(client: RawClient) -> None:
    """Take all that comes. Raises ConnectionResetError when the end is a reset."""
    while client.sock.recv(1 << 20):
        pass


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_does_not_run_far_ahead_of_its_client(
    start: Start, connect: Connect, worker_class: str, version: str
) -> None:
    """In threads and gevent by 1 MiB, in sync by 64 MiB; what the sockets hold comes on top."""
    server = start("flowapps:app", *(("--threads", "2") if worker_class == "threads" else ()))
    client = connect(server.address)
    reader = start_flood(server, client, version)
    ahead = wait_for_standstill(server)
    assert 64 <= ahead < 85 if worker_class == "sync" else ahead < 16
    if worker_class != "sync":
        assert connect(server.address).get("/").status == 200  # the others are served meanwhile
    # All that was made comes, in order, and the producer goes on.
    for number in range(1, (ahead + 4) * 16):
        assert reader.take(65536) == numbered(number, 65536)
    client.reset()
    server.wait_for_log("closed")


@pytest.mark.parametrize("worker_class", ["threads", "gevent"], indirect=True)
def test_stream_buffer(start: Start, connect: Connect) -> None:
    server = start("flowapps:app", "--stream-buffer", "24M")
    client = connect(server.address)
    start_flood(server, client)
    assert 24 <= wait_for_standstill(server) < 40
    client.reset()
    server.wait_for_log("closed")


@pytest.mark.parametrize("how", ["&length=1", ""], ids=["known", "whole"])
def test_a_response_of_known_length_leaves_at_once(shared_servers: Start, connect: Connect, how: str) -> None:
    """Its client takes nothing, and the application ends all the same."""
    server = shared_servers("flowapps:app")
    seen = len(server.log.lines)
    client = connect(server.address)
    if how:
        client.request(f"/flood?size=65536&count=512{how}")
        server.wait_for_log("made all", after=seen)
        server.wait_for_log("closed", after=seen)
    else:
        client.request(f"/whole?size={32 << 20}")
    assert connect(server.address).get("/").status == 200
    assert len(client.read_response().body) == 32 << 20


@pytest.mark.parametrize("worker_class", ["threads", "gevent"], indirect=True)
def test_small_blocks_are_bounded_like_large_ones(start: Start, connect: Connect) -> None:
    """A block of a few bytes costs little more than these: the queue is bounded in memory, not in bytes alone."""
    server = start("flowapps:app")
    client = connect(server.address)
    client.request("/flood?size=8")
    worker = wait_until(server.workers, "a worker")[0]

    def resident() -> int:
        with open(f"/proc/{worker}/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    wait_for_standstill(server)
    assert resident() - before < 12 << 20
    client.reset()
    server.wait_for_log("closed")


def test_frames_come_again_at_once_after_a_pause(start: Start, connect: Connect) -> None:
    """A client that reads nothing for 5 s gets what was held for it, and then what is made now."""
    server = start("flowapps:app")
    client = connect(server.address)
    client.request("/frames")
    reader = Reader(client, Path())
    reader.head()
    frame = len(b"--frame\r\n\r\n") + 20 + 65536 + 2

    def age() -> float:
        """Return how old the next frame is; the clock is one for all processes of a machine."""
        return time.monotonic() - float(reader.take(frame)[11:31])

    for _ in range(20):
        age()
    time.sleep(5.0)
    resumed = time.monotonic()
    age()
    assert time.monotonic() - resumed < 1.0
    while age() > 0.5:  # until frames are new again
        assert time.monotonic() - resumed < 10.0
    client.reset()


def test_a_reset_while_the_application_sleeps_ends_it_at_its_next_block(
    shared_servers: Start, connect: Connect
) -> None:
    server = shared_servers("flowapps:app")
    seen = len(server.log.lines)
    client = connect(server.address)
    client.request(f"/silent?size={32 << 20}&seconds=1")
    client.sock.recv(1)
    client.reset()
    server.wait_for_log("closed", after=seen)
    assert connect(server.address).get("/").status == 200


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_takes_nothing_is_reset_at_send_timeout(start: Start, connect: Connect, version: str) -> None:
    """While its producer waits; the iterable is closed, and what the client has cannot look like the whole."""
    server = start("flowapps:app", "--send-timeout", "1", expect=("takes no data within send_timeout",))
    client = connect(server.address)
    start_flood(server, client, version)
    server.wait_for_log("takes no data within send_timeout")
    server.wait_for_log("closed")
    with pytest.raises(ConnectionResetError):
        read_to_the_end(client)
    assert connect(server.address).get("/").status == 200


def test_a_client_that_takes_nothing_of_a_silent_application_is_reset(start: Start, connect: Connect) -> None:
    """No producer waits: what is queued has its deadline all the same."""
    server = start("flowapps:app", "--send-timeout", "1", expect=("takes no data within send_timeout",))
    client = connect(server.address)
    # Less than a stream may be ahead, and more than the sockets take.
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.request(f"/silent?size={5 << 20}&seconds=4")
    server.wait_for_log("takes no data within send_timeout", 10)
    server.wait_for_log("closed")
    assert connect(server.address).get("/").status == 200


def test_progress_of_a_slow_reader_keeps_its_stream_alive(start: Start, connect: Connect) -> None:
    server = start("flowapps:app", "--send-timeout", "1.5", expect=())
    client = connect(server.address)
    client.request(f"/flood?size=65536&count={80 * 16}")
    reader = Reader(client, Path())
    reader.head()
    for number in range(80 * 16):
        assert reader.take(65536) == numbered(number, 65536)
        if number % 128 == 0:
            time.sleep(0.4)
    assert client._until(b"0\r\n\r\n", "the last chunk") == b""


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_producer_that_waits_does_not_hold_the_stop_up(
    start: Start, connect: Connect, worker_class: str, signal_number: int
) -> None:
    server = start("flowapps:app", "--graceful-timeout", "1", expect=("did not retire|killed|KILL",))
    client = connect(server.address)
    start_flood(server, client)
    wait_for_standstill(server)
    began = time.monotonic()
    assert server.stop(signal_number) == 0
    assert time.monotonic() - began < 6.0


@pytest.mark.parametrize("worker_class", ["sync", "threads"], indirect=True)
def test_waiting_for_a_client_is_a_sign_of_life(start: Start, connect: Connect, worker_class: str) -> None:
    """All that could run requests waits for clients, for longer than `timeout`."""
    args = ("--threads", "2") if worker_class == "threads" else ()
    server = start("flowapps:app", "--timeout", "2", *args)
    workers = wait_until(server.workers, "a worker")
    clients = [connect(server.address) for _ in range(2 if worker_class == "threads" else 1)]
    readers = [start_flood(server, client) for client in clients]
    wait_for_standstill(server)
    time.sleep(4.0)
    assert server.workers() == workers
    for reader in readers:
        assert reader.take(65536) == numbered(1, 65536)
    for client in clients:
        client.reset()
    server.wait_for_log("closed")


@pytest.mark.parametrize("worker_class", ["sync"], indirect=True)
def test_siblings_take_the_clients_of_a_worker_that_waits(start: Start, connect: Connect) -> None:
    server = start("flowapps:app", "-w", "2")
    wait_until(lambda: server.log.text.count("ready") or len(server.workers()) == 2, "two workers")
    others = [connect(server.address) for _ in range(8)]
    for other in others:
        assert other.get("/").status == 200
    client = connect(server.address)
    start_flood(server, client)
    wait_for_standstill(server)
    for other in others:
        assert other.get("/").status == 200
    client.reset()
    server.wait_for_log("closed")


def test_a_request_that_waits_for_its_client_ends_at_request_timeout(start: Start, connect: Connect) -> None:
    """The time that the client takes is the request's time, too."""
    # On a busy machine it may find the application in the close() of its iterable.
    in_close = r"close\(\) of the application's result raised"
    expect = ("request_timeout", in_close, "Traceback")
    server = start("flowapps:app", "--request-timeout", "1.5", expect=expect)
    client = connect(server.address)
    start_flood(server, client)
    server.wait_for_log("request_timeout.*the response is cut")
    server.wait_for_log("closed")
    with pytest.raises(ConnectionResetError):
        read_to_the_end(client)
    assert connect(server.address).get("/").status == 200
    # No other traceback than that of an interrupted close().
    assert server.log.text.count("Traceback") == len(re.findall(in_close, server.log.text))
