"""A thread that comes late never touches the descriptor of another client: who owns it is looked at under the lock."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from contexts import serving

from wsgiserv.net.client import Connection
from wsgiserv.net.event_loop import EventLoop, open_poller
from wsgiserv.net.request_reader import CLOSED, FLUSHING, HEAD, LINGERING, READY
from wsgiserv.net.serving_context import NONE, READ, UNWATCHED, WRITE, no_application
from wsgiserv.scoreboard import Scoreboard

LOG = logging.getLogger("test.event_loop")
DEADLINE_S = 10.0


class Slow:
    """A client's socket whose `shutdown` lasts until the test says so: the window between two threads."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)
        if how == socket.SHUT_WR:
            self.inside.set()
            assert self.go_on.wait(DEADLINE_S)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Bench:
    """An event loop with connections over socket pairs; the test is the leader."""

    def __init__(self, portable: bool) -> None:
        self.context = serving(no_application, log=LOG, slot=Scoreboard(1, 1).slots[0])
        self.event_loop = EventLoop(
            [], self.admit, 100, LOG, 60.0, lambda at_capacity: None, poller=open_poller(portable)
        )
        self.clients: list[socket.socket] = []

    def admit(self, loop: Any, sock: Any, address: Any, listener: Any) -> Connection:
        return Connection(self.context, loop, sock, {}, {}, b"192.0.2.1", False)

    def connect(self, fd: int = -1) -> tuple[Connection, socket.socket]:
        """Return a new connection and its client; its descriptor has the number ``fd`` where that is given."""
        ours, client = socket.socketpair()
        self.clients.append(client)
        if fd >= 0 and ours.fileno() != fd:
            os.dup2(ours.fileno(), fd)
            ours.close()
        else:
            fd = ours.detach()
        from _socket import socket as RawSocket

        connection = self.admit(self.event_loop, RawSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd), "", None)
        self.event_loop.adopt(connection)
        return connection, client

    def queue(self, connection: Connection) -> None:
        """Let the connection have a response that its client has not taken yet, all but the last byte of it."""
        connection.state = READY
        connection.send(b"x" * (1 << 22))
        assert connection.has_output
        connection.state = FLUSHING
        self.event_loop.watch(connection, WRITE)

    def close(self) -> None:
        self.event_loop.close()
        for client in self.clients:
            client.close()


@pytest.fixture(params=[False, True], ids=["native", "portable"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


def all_of(client: socket.socket, size: int) -> int:
    """Take what has come of ``size`` bytes; return how many bytes that was."""
    client.setblocking(False)
    taken = 0
    try:
        while taken < size and (data := client.recv(1 << 20)):
            taken += len(data)
    except BlockingIOError:
        pass
    return taken


def test_one_who_lingers_late_does_not_take_the_next_clients_wish(bench: Bench) -> None:
    """Thread A is in shutdown(2); the leader sees the client's end and closes; a new client has the number."""
    event_loop = bench.event_loop
    old, old_client = bench.connect()
    event_loop.watch(old, READ)
    old.sock = slow = Slow(old.sock)  # type: ignore[assignment]
    old.state = READY
    thread = threading.Thread(target=old._linger, args=(1.0,))
    thread.start()
    assert slow.inside.wait(DEADLINE_S)
    assert old.state == LINGERING
    old_client.close()
    assert [fd for fd, _ in event_loop.poll(DEADLINE_S)] == [old.fd]
    assert not old.receive()
    assert old.state == CLOSED

    new, client = bench.connect(old.fd)
    bench.queue(new)
    slow.go_on.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()

    assert event_loop.connections == {new.fd: new}
    assert new.interest == WRITE
    assert old.interest == UNWATCHED
    taken = 0
    while new.state == FLUSHING:
        taken += all_of(client, 1 << 22)
        events = event_loop.poll(DEADLINE_S)
        assert [fd for fd, _ in events] == [new.fd], "the new client's response stalls"
        new.flush()
    assert taken + all_of(client, 1 << 22) == 1 << 22


def test_one_who_closes_late_does_not_drop_the_next_client(bench: Bench) -> None:
    event_loop = bench.event_loop
    old, _ = bench.connect()
    event_loop.watch(old, READ)
    old.close()
    new, client = bench.connect(old.fd)
    event_loop.watch(new, READ)
    old.state = LINGERING  # as a thread leaves it that has not seen the other's close
    event_loop.forget(old)
    event_loop.ignore(old)
    event_loop.watch(old, READ)
    assert event_loop.connections == {new.fd: new}
    assert (old.interest, new.interest) == (UNWATCHED, READ)
    client.send(b"G")
    assert [fd for fd, _ in event_loop.poll(DEADLINE_S)] == [new.fd]


@pytest.mark.parametrize("late", [READ, NONE])
def test_a_late_wish_for_the_same_connection_gives_way_to_its_state(bench: Bench, late: int) -> None:
    """Thread A has ended a request; before it says READ, thread B has run the next one, whose response waits."""
    event_loop = bench.event_loop
    connection, _client = bench.connect()
    event_loop.watch(connection, READ)
    bench.queue(connection)
    event_loop.watch(connection, late)
    event_loop.ignore(connection)
    assert connection.interest == WRITE
    connection._queue.clear()  # type: ignore[union-attr]
    connection.state = HEAD
    event_loop.watch(connection, NONE)
    assert connection.interest == READ


def test_threads_that_watch_and_close_at_random_raise_nothing(bench: Bench) -> None:
    """EBADF, FileExistsError and the like: five in 640,000 connections."""
    event_loop = bench.event_loop
    failures: list[BaseException] = []
    current: list[Connection] = []
    stop = threading.Event()

    def meddle() -> None:
        try:
            while not stop.is_set():
                for connection in list(current):
                    event_loop.watch(connection, READ)
                    event_loop.ignore(connection)
                    event_loop.watch(connection, WRITE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=meddle) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3000):
            connection, client = bench.connect()
            bench.clients.pop()
            current[:] = [connection]
            event_loop.watch(connection, READ)
            connection.close()
            client.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert not failures
    assert event_loop.connections == {}
