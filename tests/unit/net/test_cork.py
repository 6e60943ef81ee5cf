"""Whole answers of one turn leave together: at its end, after half a millisecond, or when a call lasts."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from server import wait_until

from wsgiserv.net.cork import LEAST_EVENTS, Cork
from wsgiserv.worker.cork_watch import CorkWatch

QUICK_S, USUAL_S = 0.000_010, 0.000_060


class Pair:
    """A client and the server's side of its connection, as accept(2) of `_socket` gives it."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        if family == socket.AF_UNIX:
            server, self.client = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.client = socket.create_connection(listener.getsockname())
                server, _ = listener.accept()
        self.server = socket._socket.socket(fileno=server.detach())  # type: ignore[attr-defined]

    def received(self) -> bytes:
        self.client.setblocking(False)
        try:
            return self.client.recv(100)
        except BlockingIOError:
            return b""
        finally:
            self.client.settimeout(5)

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.close()


def warm(call_s: float = USUAL_S) -> Cork:
    """Return one that has seen turns whose calls took so long."""
    cork = Cork()
    for number in range(30):
        assert cork.begin(8, float(number))
        cork.end(number + 8 * call_s)
    return cork


def test_an_answer_is_held_until_the_turn_ends(pair: Pair) -> None:
    cork = warm()
    cork.begin(8, 100.0)
    assert cork.is_on
    assert cork.send(pair.server, b"answer") == 6
    assert pair.received() == b""
    cork.end(100.001)
    assert pair.client.recv(100) == b"answer"
    assert not cork.is_on


def test_of_quick_calls_nothing_is_held() -> None:
    cork = warm(QUICK_S)
    cork.begin(8, 100.0)
    assert not cork.is_on


def test_with_few_events_nothing_is_held() -> None:
    cork = warm()
    assert not cork.begin(LEAST_EVENTS - 1, 100.0)
    assert not cork.is_on


def test_it_can_be_switched_off() -> None:
    assert not Cork(enabled=False).begin(8, 100.0)


def test_half_a_millisecond_is_the_longest_wait_between_calls(pair: Pair) -> None:
    cork = warm()
    cork.begin(40, 100.0)
    cork.send(pair.server, b"answer")
    cork.after_call(100.000_1, 0.000_1)
    cork.after_call(100.000_5, 0.000_4)
    assert pair.received() == b""
    cork.after_call(100.000_7, 0.000_2)
    assert pair.client.recv(100) == b"answer"
    assert cork.is_on


def test_few_clients_wait_for_half_a_turn(pair: Pair) -> None:
    """All of them would otherwise wait together, then the server for them."""
    cork = warm()
    cork.begin(6, 100.0)  # some 360 µs
    cork.send(pair.server, b"answer")
    cork.after_call(100.000_06, 0.000_06)
    cork.after_call(100.000_12, 0.000_06)
    assert pair.received() == b""
    cork.after_call(100.000_25, 0.000_06)
    assert pair.client.recv(100) == b"answer"


def test_a_long_call_switches_it_off_for_a_second(pair: Pair) -> None:
    cork = warm()
    cork.begin(8, 100.0)
    cork.send(pair.server, b"answer")
    cork.after_call(100.01, 0.006)
    assert pair.client.recv(100) == b"answer"
    cork.end(100.01)
    cork.begin(8, 100.9)
    assert not cork.is_on
    cork.end(100.9)
    cork.begin(8, 101.02)
    assert cork.is_on


def test_a_unix_socket_is_not_held() -> None:
    pair = Pair(socket.AF_UNIX)
    cork = warm()
    cork.begin(8, 100.0)
    cork.send(pair.server, b"answer")
    assert pair.received() == b"answer"
    assert not cork.held
    pair.close()


def test_another_thread_holds_nothing(pair: Pair) -> None:
    cork = warm()
    cork.begin(8, 100.0)
    thread = threading.Thread(target=cork.send, args=(pair.server, b"answer"))
    thread.start()
    thread.join()
    assert pair.client.recv(100) == b"answer"
    assert not cork.held


def test_a_socket_that_is_closed_meanwhile_harms_no_other(pair: Pair) -> None:
    other = Pair()
    cork = warm()
    cork.begin(8, 100.0)
    cork.send(other.server, b"first")
    cork.send(pair.server, b"second")
    other.server.close()
    cork.end(100.001)
    assert other.client.recv(100) == b"first"
    assert pair.client.recv(100) == b"second"
    other.close()


def test_a_helper_is_woken_when_it_sleeps(pair: Pair) -> None:
    cork = warm()
    woken: list[None] = []
    cork.watched_by(lambda: woken.append(None), asleep=[None])
    cork.begin(8, 100.0)
    cork.send(pair.server, b"answer")
    assert woken == [None]
    cork.stop()
    assert pair.client.recv(100) == b"answer"


class Socket:
    """Stands for a socket with a held answer; tells when it is pushed."""

    def __init__(self) -> None:
        self.pushed = threading.Event()

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option, value) == (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pushed.set()


def test_its_helper_pushes_what_is_held_while_a_call_lasts() -> None:
    cork = Cork()
    watch = CorkWatch(cork)
    watch.start()
    try:
        for _ in range(3):
            held = Socket()
            wait_until(lambda: cork._asleep, "the helper sleeps")
            cork.held.append(held)  # type: ignore[arg-type]
            assert cork._wake is not None
            cork._wake()
            assert held.pushed.wait(30)
            assert not cork.held
    finally:
        watch._thread.pause()
