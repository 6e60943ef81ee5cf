"""The channel between workers, and which connections may go over it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_connection import Peer

from wsgiserv.net.handoff import MOST_MOVED_BYTES, ConnectionState, Handoff
from wsgiserv.net.serving_context import NEVER, READ

LOG = logging.getLogger("test.handoff")
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n"


def state_of(**changes: Any) -> ConnectionState:
    plain = ConnectionState(
        {"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "7"}, b"192.0.2.1", b"", False, False, False, 12.5
    )
    return plain._replace(**changes)


@pytest.fixture
def channel() -> Iterator[Handoff]:
    found = Handoff.open()
    assert found is not None
    yield found
    found.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, client = socket.socketpair()
    client.settimeout(5)
    yield ours, client
    ours.close()
    client.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    "sent",
    [
        state_of(),
        state_of(data=REQUEST + b"\n{\0\xff", waiting=True, used=True, deadline=NEVER),
        state_of(data=b"GET / HT", blank=True),
        state_of(peer={"REMOTE_ADDR": "", "PROXY_ADDR": "\xe9"}, peer_name=b"unix\xff"),
        state_of(data=b"x" * MOST_MOVED_BYTES),
    ],
)
def test_a_connection_arrives_with_all_that_was_sent(
    channel: Handoff, pair: tuple[socket.socket, socket.socket], sent: ConnectionState
) -> None:
    ours, client = pair
    assert channel.receive(LOG) is None
    assert channel.send(ours.fileno(), sent, "127.0.0.1:8000")
    ours.close()
    handed = channel.receive(LOG)
    assert handed is not None
    assert handed.listener == "127.0.0.1:8000"
    assert handed.state == sent
    assert not os.get_inheritable(handed.sock.fileno())
    handed.sock.send(b"still here")
    assert client.recv(100) == b"still here"
    handed.sock.close()
    assert client.recv(100) == b""
    assert channel.receive(LOG) is None


def test_its_descriptors(channel: Handoff) -> None:
    for fd in channel.fds():
        assert fd > 2
        assert not os.get_inheritable(fd)
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    assert channel.fileno() == channel.fds()[0]


def test_it_is_taken_over_by_numbers(channel: Handoff, pair: tuple[socket.socket, socket.socket]) -> None:
    channel.send(pair[0].fileno(), state_of(), "a")
    copies = [os.dup(fd) for fd in channel.fds()]
    for fd in copies:
        os.set_inheritable(fd, True)  # as they come out of an exec
    next_one = Handoff.from_fds(*copies)
    handed = next_one.receive(LOG)
    assert handed is not None
    handed.sock.close()
    assert not any(map(os.get_inheritable, next_one.fds()))
    assert next_one.send(pair[0].fileno(), state_of(), "b")
    next_one.close()
    handed = channel.receive(LOG)
    assert handed is not None
    handed.sock.close()


def test_a_full_channel_says_so_and_loses_nothing(channel: Handoff, pair: tuple[socket.socket, socket.socket]) -> None:
    before = open_descriptors()
    sent = 0
    while channel.send(pair[0].fileno(), state_of(data=b"x" * 2000), str(sent)):
        sent += 1
        assert sent < 100_000, "the channel takes everything"
    received = []
    while (handed := channel.receive(LOG)) is not None:
        received.append(handed.listener)
        handed.sock.close()
    assert received == [str(number) for number in range(sent)]
    assert channel.send(pair[0].fileno(), state_of(), "room again")
    handed = channel.receive(LOG)
    assert handed is not None
    handed.sock.close()
    assert open_descriptors() == before


def test_a_worker_without_descriptors_leaves_it_to_others(
    channel: Handoff, pair: tuple[socket.socket, socket.socket]
) -> None:
    channel.send(pair[0].fileno(), state_of(), "a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        with pytest.raises(OSError, match="Too many open files"):
            channel.receive(LOG)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    handed = channel.receive(LOG)
    assert handed is not None
    handed.sock.close()


@pytest.mark.parametrize("message", [b"no header", b"{}\n", b"[]\nrest", b'{"listener": 1}\n', b"\xff\n"])
def test_what_nobody_understands_is_closed(
    channel: Handoff, pair: tuple[socket.socket, socket.socket], message: bytes
) -> None:
    ours, client = pair
    sender = socket.socket(fileno=os.dup(channel.fds()[1]))
    socket.send_fds(sender, [message], [ours.fileno()])
    sender.close()
    ours.close()
    assert channel.receive(LOG) is None
    assert client.recv(10) == b""


def test_a_message_of_another_version_is_refused_with_a_line(
    channel: Handoff, pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    ours, client = pair
    channel.send(ours.fileno(), state_of(), "l")
    with socket.socket(fileno=os.dup(channel.fds()[0])) as receiver:
        message = receiver.recv(1 << 17)
    header = json.loads(message)
    with socket.socket(fileno=os.dup(channel.fds()[1])) as sender:
        newer = json.dumps({**header, "version": header["version"] + 1, "added": 1}).encode() + b"\n"
        socket.send_fds(sender, [newer], [ours.fileno()])
    ours.close()
    assert channel.receive(LOG) is None
    assert client.recv(10) == b""
    assert "WS1401" in caplog.text


# ---- which connections may go ------------------------------------------------------------------------


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = environ["wsgi.input"].read() or b"hello"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(app: Callable[..., Any] = app, **overrides: Any) -> Peer:
        peer = Peer(app, **overrides)
        peer.connection.interest = READ
        made.append(peer)
        return peer

    yield make
    for peer in made:
        peer.close()


def test_idle_half_read_and_pipelined_connections_go(peers: Callable[..., Peer]) -> None:
    peer = peers()
    connection = peer.connection
    assert connection.is_movable
    assert not connection.transfer_state().used
    peer.feed(REQUEST)
    assert connection.is_movable
    assert connection.transfer_state() == state_of(used=True, deadline=connection.deadline)
    peer.feed(b"\r\n" + REQUEST[:10])
    assert connection.is_movable
    assert connection.transfer_state() == state_of(data=REQUEST[:10], blank=True, deadline=connection.deadline)
    peer.client.sendall(REQUEST[10:] + REQUEST * 2)
    assert connection.receive()
    assert not connection.is_movable, "its request is with the application"
    connection.run()
    assert connection.is_waiting
    assert connection.is_movable
    assert connection.transfer_state() == state_of(data=REQUEST * 2, waiting=True, used=True, deadline=NEVER)


def test_a_connection_that_nobody_watches_yet_stays(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.connection.interest = -1
    assert not peer.connection.is_movable


def test_a_body_a_refusal_and_a_queued_response_stay(peers: Callable[..., Peer]) -> None:
    body = peers()
    body.feed(POST + b"ab")
    assert not body.connection.is_movable
    body.feed(b"cd")
    assert body.connection.is_movable
    refused = peers()
    refused.feed(b"nonsense\r\n\r\n")
    assert not refused.connection.is_movable

    def big(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(1 << 22))])
        return [b"x" * (1 << 22)]

    flushing = peers(big)
    flushing.feed(REQUEST)
    assert flushing.connection.has_output
    assert not flushing.connection.is_movable
    closed = peers()
    closed.connection.close()
    assert not closed.connection.is_movable


def test_more_bytes_than_a_message_holds_stay(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.client.sendall(REQUEST)
    assert peer.connection.receive()
    peer.connection.reader.buffer = bytearray(MOST_MOVED_BYTES + 1)
    peer.connection.run()
    assert peer.connection.is_waiting
    assert not peer.connection.is_movable


@pytest.mark.parametrize("cut", [0, 1, 2, 20, len(REQUEST) + 2, len(REQUEST) + 20, 2 * len(REQUEST) + 2])
def test_the_taker_goes_on_where_the_giver_left_off(peers: Callable[..., Peer], cut: int) -> None:
    """At any split of what a client sends, its responses are the same."""
    whole = REQUEST + b"\r\n" + REQUEST + REQUEST
    giver = peers()
    giver.feed(whole[:cut])
    before = giver.got()
    taken = giver.connection.transfer_state()
    assert giver.connection.is_movable
    taker = peers()
    taker.connection.restore(taken)
    assert taker.connection.deadline == taken.deadline
    assert taker.connection.is_idle is (not taken.data)
    taker.feed(whole[cut:])
    after = taker.got()
    assert (before + after).count(b"HTTP/1.1 200 OK") == 3
    assert taker.connection.transfer_state().used


def test_the_taker_answers_what_was_pipelined(peers: Callable[..., Peer]) -> None:
    taker = peers()
    taker.connection.restore(state_of(data=REQUEST * 2, waiting=True, used=True, deadline=NEVER))
    assert taker.connection.advance()
    taker.connection.run()
    while taker.loop.waiting:
        connection = taker.loop.waiting.pop()
        assert connection.advance()
        connection.run()
    assert taker.got().count(b"HTTP/1.1 200 OK") == 2


def test_letting_go_is_not_seen_by_the_client(peers: Callable[..., Peer]) -> None:
    peer = peers()
    other = socket.socket(fileno=os.dup(peer.connection.fd))  # the one that is in the channel
    peer.connection.detach()
    assert peer.loop.forgotten
    assert peer.got() == b""
    other.send(b"hello")
    assert peer.client.recv(10) == b"hello"
    other.close()
    peer.connection.close()  # nothing more
