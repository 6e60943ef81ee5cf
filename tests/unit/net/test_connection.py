"""The connection's state machine, fed at every split, without a server: RFC 9112 §9, PEP 3333."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contexts import serving

from wsgiserv.net.client import Connection
from wsgiserv.net.serving_context import NONE, READ, UNWATCHED, WRITE
from wsgiserv.scoreboard import Scoreboard

LOG = logging.getLogger("test.connection")


class Loop:
    """Remembers what the connection asks for."""

    def __init__(self) -> None:
        self.waiting: list[Connection] = []
        self.forgotten = False

    def watch(self, connection: Connection, interest: int) -> None:
        connection.interest = interest

    def ignore(self, connection: Connection) -> None:
        connection.interest = UNWATCHED

    def resume(self, connection: Connection) -> None:
        self.waiting.append(connection)

    def forget(self, connection: Connection) -> None:
        self.forgotten = True

    def wait_writable(self, connection: Connection) -> bool:
        raise AssertionError("nothing here fills memory and disk")


class Peer:
    """One connection over a socket pair: the test is the client and the loop."""

    def __init__(self, app: Callable[..., Any], **overrides: Any) -> None:
        ours, self.client = socket.socketpair()
        self.client.settimeout(5)
        self.loop = Loop()
        settings: dict[str, Any] = {"body_limit": 1 << 20, "body_memory": 1 << 16, **overrides}
        self.context = serving(app, log=LOG, slot=Scoreboard(1, 1).slots[0], **settings)
        raw = socket.socket.__mro__[1](fileno=ours.detach())
        base = {"SERVER_NAME": "s", "SERVER_PORT": "1", "wsgi.url_scheme": "http"}
        self.connection = Connection(
            self.context, self.loop, raw, base, {"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "7"}, b"192.0.2.1", False
        )

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            try:
                self.client.sendall(piece)
            except BrokenPipeError:
                assert self.loop.forgotten  # only a connection that is closed takes nothing
            self.turn()

    def turn(self) -> None:
        if self.connection.receive():
            self.connection.run()
        while self.loop.waiting:
            connection = self.loop.waiting.pop(0)
            if connection.advance():
                connection.run()

    def got(self) -> bytes:
        """Return all that has been sent so far."""
        data = b""
        self.client.setblocking(False)
        try:
            while piece := self.client.recv(1 << 20):
                data += piece
        except BlockingIOError:
            pass
        finally:
            self.client.settimeout(5)
        return data

    def close(self) -> None:
        self.connection.close()
        self.client.close()


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(app: Callable[..., Any], **overrides: Any) -> Peer:
        made.append(Peer(app, **overrides))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ.get('CONTENT_LENGTH')} ".encode() + body
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [line]


STREAM = (
    b"\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n"
    b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n"
    b"GET /d HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    b"GET /never HTTP/1.1\r\nHost: h\r\n\r\n"
)


def test_pipelined_requests_are_answered_in_order_whole_bytewise_and_at_every_split(peers: Callable[..., Peer]) -> None:
    answers = None
    ways = [[STREAM], [STREAM[i : i + 1] for i in range(len(STREAM))]]
    ways += [[STREAM[:i], STREAM[i:]] for i in range(1, len(STREAM))]
    for pieces in ways:
        peer = peers(echo)
        peer.feed(*pieces)
        got = peer.got()
        answers = answers or got
        assert got == answers
        peer.close()
    assert answers is not None
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answers.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert bodies == [b"GET /a None ", b"POST /b 5 hello", b"POST /c 5 abcde", b"GET /d None "]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: h\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\n\r\n", 400),
        (b"GET / HTTP/1.1\r\rHost: h\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://h/ HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/2.0\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /" + b"a" * 9000, 414),
        (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"a" * 9000, 431),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    ],
)
def test_refusals_close_whatever_the_splits_and_nothing_runs_after_them(
    peers: Callable[..., Peer], raw: bytes, status: int
) -> None:
    called: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        called.append(environ["PATH_INFO"])
        return echo(environ, start_response)

    after = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"
    step = 1 if len(raw) < 200 else 997
    for pieces in ([raw + after], [raw, after], [raw[i : i + step] for i in range(0, len(raw), step)] + [after]):
        peer = peers(app)
        peer.feed(*pieces)
        got = peer.got()
        assert got.startswith(b"HTTP/1.1 %d " % status), got
        assert got.count(b"\r\nServer: ") == 1
        assert b"\r\nConnection: close\r\n" in got
        assert called == []
        peer.close()


def test_an_unfinished_request_is_refused_when_the_client_has_ended(peers: Callable[..., Peer]) -> None:
    for raw in (
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: h\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel",
    ):
        peer = peers(echo)
        peer.feed(raw)
        peer.client.shutdown(socket.SHUT_WR)
        peer.turn()
        assert peer.got().startswith(b"HTTP/1.1 400 ")


def test_a_half_closed_client_gets_all_its_answers(peers: Callable[..., Peer]) -> None:
    peer = peers(echo)
    peer.client.sendall(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n")
    peer.client.shutdown(socket.SHUT_WR)
    peer.turn()
    peer.turn()
    assert peer.got().count(b"HTTP/1.1 200 OK") == 2
    assert peer.loop.forgotten


def test_continue_is_sent_once_and_only_when_the_body_is_awaited(peers: Callable[..., Peer]) -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n"
    peer = peers(echo)
    peer.feed(head)
    assert peer.got() == b"HTTP/1.1 100 Continue\r\n\r\n"
    peer.feed(b"h", b"i")
    assert peer.got().startswith(b"HTTP/1.1 200 OK\r\n")
    early = peers(echo)
    early.feed(head + b"hi")
    assert early.got().startswith(b"HTTP/1.1 200 OK\r\n")
    old = peers(echo)
    old.feed(head.replace(b"1.1", b"1.0"))
    assert old.got() == b""
    large = peers(echo)
    large.feed(head.replace(b"Length: 2", b"Length: 99999999"))
    assert large.got().startswith(b"HTTP/1.1 413 ")


def test_a_slow_reader_costs_no_call_and_gets_everything(peers: Callable[..., Peer]) -> None:
    body = bytes(range(256)) * 40_000

    def large(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    peer = peers(large)
    peer.feed(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert peer.connection.interest == WRITE
    got = b""
    while peer.connection.interest == WRITE:
        got += peer.got()
        peer.connection.flush()
    got += peer.got()
    assert got.partition(b"\r\n\r\n")[2] == body
    assert peer.connection.interest == READ
    peer.feed(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert peer.got().startswith(b"HTTP/1.1 200 OK")


def test_what_a_busy_client_sends_waits_in_the_kernel(peers: Callable[..., Peer]) -> None:
    peer = peers(echo)
    peer.client.sendall(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
    assert peer.connection.receive() is True
    peer.connection.interest = READ
    peer.client.sendall(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n")
    assert peer.connection.receive() is False
    assert peer.connection.interest == NONE
    peer.connection.run()
    assert peer.connection.interest == READ
    peer.turn()
    assert peer.got().count(b"HTTP/1.1 200 OK") == 2


def test_a_client_that_was_left_alone_while_it_waited_is_watched_again(peers: Callable[..., Peer]) -> None:
    peer = peers(echo)
    peer.client.sendall(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HT")
    assert peer.connection.receive() is True
    peer.connection.run()
    peer.connection.interest = READ
    assert peer.connection.receive() is False  # readable while its pipelined bytes wait for their turn
    assert peer.connection.interest == NONE
    assert peer.loop.waiting.pop().advance() is False
    assert peer.connection.interest == READ
    peer.feed(b"TP/1.1\r\nHost: h\r\n\r\n")
    assert peer.got().count(b"HTTP/1.1 200 OK") == 2


def test_deadlines(peers: Callable[..., Peer]) -> None:
    silent = peers(echo)
    silent.connection.expire()
    assert silent.got() == b""
    assert silent.loop.forgotten
    for raw in (b"GET /", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nh"):
        slow = peers(echo)
        slow.feed(raw)
        deadline = slow.connection.deadline
        slow.connection.expire()
        assert slow.got().startswith(b"HTTP/1.1 408 ")
        assert deadline < float("inf")
    idle = peers(echo)
    idle.feed(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
    idle.got()
    idle.connection.expire()
    assert idle.got() == b""


def test_one_byte_at_a_time_does_not_move_the_heads_deadline(peers: Callable[..., Peer]) -> None:
    peer = peers(echo)
    peer.feed(b"G")
    deadline = peer.connection.deadline
    peer.context.now += 5
    peer.feed(b"E")
    assert peer.connection.deadline == deadline


def test_a_body_that_trickles_does_not_move_its_deadline_for_ever(peers: Callable[..., Peer]) -> None:
    peer = peers(echo, body_timeout=30.0, body_min_rate=100)
    peer.feed(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n")
    began = peer.context.now
    for seconds in range(1, 100):
        peer.context.now = began + seconds
        peer.feed(b"x")
    assert peer.connection.deadline == pytest.approx(began + 30.0 + 0.99)
    quick = peers(echo, body_timeout=30.0, body_min_rate=100)
    quick.feed(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n")
    quick.context.now = now = quick.context.now + 20
    quick.feed(b"x" * 4000)
    assert quick.connection.deadline == pytest.approx(now + 30.0)


def test_http_1_0_keeps_alive_only_when_asked_and_says_so(peers: Callable[..., Peer]) -> None:
    peer = peers(echo)
    peer.feed(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"\r\nConnection: keep-alive\r\n" in peer.got()
    assert not peer.loop.forgotten
    plain = peers(echo)
    plain.feed(b"GET /a HTTP/1.0\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in plain.got()
    assert plain.loop.forgotten


# The type and version of a TLS record, and what browsers send first, in short.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 shop.example"


def test_tls_where_http_was_expected_is_logged_once_in_ten_seconds(
    peers: Callable[..., Peer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("wsgiserv.net.serving_context.monotonic", lambda: clock[0])
    context = peers(echo).context
    for number in range(25):  # one a second
        peer = peers(echo)
        peer.connection.context = context
        peer.feed(HELLO)
        assert peer.got().startswith(b"HTTP/1.1 400 ")
        clock[0] = 1001.0 + number
    messages = [record.getMessage() for record in caplog.records]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert all("HTTPS was sent to an HTTP port" in message for message in messages)
    assert "more" not in messages[0]
    assert all(message.endswith(" (9 more since this was logged last)") for message in messages[1:])


@pytest.mark.parametrize(
    ("pieces", "is_tls"),
    [
        ([HELLO[:1]], True),
        ([HELLO[:2]], True),
        ([HELLO[:1], HELLO[1:]], True),
        ([HELLO + b"\r\n\r\n"], True),
        ([b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n", HELLO], True),
        ([b"GET / HTTP/1.1\r\n", HELLO], False),
        ([b"\x16\x01"], False),
        ([b"\x17\x03\x03"], False),
        ([b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 24\r\n\r\n", HELLO], None),
    ],
)
def test_what_is_taken_for_tls(
    peers: Callable[..., Peer], caplog: pytest.LogCaptureFixture, pieces: list[bytes], is_tls: bool | None
) -> None:
    peer = peers(echo)
    peer.feed(*pieces)
    if is_tls is None:
        assert not caplog.records
    else:
        assert [("HTTPS was sent" in record.getMessage()) for record in caplog.records] == [is_tls]
