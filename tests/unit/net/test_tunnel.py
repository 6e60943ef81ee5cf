"""The tunnel of an upgraded connection: what it moves, and how it ends. No server; its loop is a thread."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tlspair import Files, Pair

from wsgiserv.net.tunnel import Tunnel

DEADLINE_S = 15.0


class ThreadLoop:
    """The part of a loop that a tunnel uses.

    Attributes:
        waits: how often the tunnel has waited.
    """

    def __init__(self) -> None:
        self.waits = 0
        self.threads: list[threading.Thread] = []
        self.refuses = False

    def spawn(self, function: Callable[[], object]) -> None:
        if self.refuses:
            raise RuntimeError("can't start new thread")
        thread = threading.Thread(target=function, daemon=True)
        self.threads.append(thread)
        thread.start()

    def wait_for_any(self, waits: Sequence[tuple[int, int]], timeout_s: float | None) -> bool:
        self.waits += 1
        poller = select.poll()
        for fd, events in waits:
            poller.register(fd, events)
        return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


class Ends:
    """A tunnel and the four ends of its sockets, the inner two the tunnel's.

    Args:
        limit_s: as of `Tunnel`.
        server: the client's socket as the server has it; None makes a plain one.
    """

    def __init__(self, limit_s: float = 5.0, server: Any = None) -> None:
        self.loop = ThreadLoop()
        if server is None:
            listener = socket.create_server(("127.0.0.1", 0))
            self.client = socket.create_connection(listener.getsockname())
            accepted, _ = listener.accept()
            listener.close()
            server = socket.socket.__mro__[1](fileno=accepted.detach())
            self.client.settimeout(DEADLINE_S)
        self.server = server
        self.app, ours = socket.socketpair()
        self.app.settimeout(DEADLINE_S)
        self.tunnel = Tunnel(self.loop, self.server, socket.socket.__mro__[1](fileno=ours.detach()), limit_s)  # type: ignore[arg-type]
        self.finished = threading.Semaphore(0)
        self._has_ended = False

    def end(self) -> None:
        """End the call of the application, as the server does."""
        self._has_ended = True
        self.tunnel.end(self.finished.release)  # type: ignore[arg-type]

    def wait_for_finish(self) -> None:
        """Wait until the connection may be closed, which is told once."""
        assert self.finished.acquire(timeout=DEADLINE_S)
        for thread in self.loop.threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()
        assert not self.finished.acquire(blocking=False)

    def close(self) -> None:
        for sock in (self.app, self.server, getattr(self, "client", self.app)):
            sock.close()
        self.tunnel.stop()
        if not self._has_ended:
            self.end()
            for thread in self.loop.threads:
                thread.join(DEADLINE_S)


@pytest.fixture
def ends() -> Iterator[Ends]:
    found = Ends()
    yield found
    found.close()


def read_all(sock: socket.socket) -> bytes:
    """Return what comes until the end."""
    found = b""
    while data := sock.recv(65536):
        found += data
    return found


def take(sock: socket.socket, size: int) -> bytes:
    """Return so many bytes."""
    found = b""
    while len(found) < size:
        data = sock.recv(size - len(found))
        assert data, f"the end after {found[:100]!r}"
        found += data
    return found


def fill(sock: socket.socket) -> int:
    """Send until nothing is taken any more; return how many bytes were."""
    sock.settimeout(0.3)
    sent = 0
    try:
        while sent < 100_000_000:
            sent += sock.send(b"x" * 65536)
    except TimeoutError:
        return sent
    raise AssertionError("it takes all")


def test_bytes_go_both_ways_and_what_came_early_goes_first(ends: Ends) -> None:
    ends.tunnel.start(b"early ")
    ends.client.sendall(b"late")
    assert take(ends.app, 6) == b"early "
    assert take(ends.app, 4) == b"late"
    ends.app.sendall(b"answer")
    assert take(ends.client, 6) == b"answer"


def test_the_client_gets_all_before_the_end(ends: Ends) -> None:
    ends.tunnel.start(b"")
    sent = bytes(range(256)) * 20_000
    thread = threading.Thread(target=ends.app.sendall, args=(sent,))
    thread.start()
    got = take(ends.client, len(sent) - 100_000)
    thread.join()
    ends.app.close()
    ends.end()
    assert got + read_all(ends.client) == sent
    ends.wait_for_finish()


def test_duplicates_of_the_applications_end_do_not_hold_it(ends: Ends) -> None:
    """A thread or a child of the application may still have one."""
    copy = ends.app.dup()
    ends.tunnel.start(b"")
    ends.app.sendall(b"last words")
    ends.app.close()
    ends.end()
    assert read_all(ends.client) == b"last words"
    ends.wait_for_finish()
    with pytest.raises(BrokenPipeError):
        copy.sendall(b"too late")
    copy.close()


def test_the_end_of_the_clients_data_leaves_the_other_direction(ends: Ends) -> None:
    ends.tunnel.start(b"")
    ends.client.sendall(b"all")
    ends.client.shutdown(socket.SHUT_WR)
    assert read_all(ends.app) == b"all"
    ends.app.sendall(b"still")
    assert take(ends.client, 5) == b"still"
    ends.app.close()
    ends.end()
    assert read_all(ends.client) == b""
    ends.wait_for_finish()


def test_the_application_may_end_its_direction_and_read_on(ends: Ends) -> None:
    ends.tunnel.start(b"")
    ends.app.sendall(b"all")
    ends.app.shutdown(socket.SHUT_WR)
    assert read_all(ends.client) == b"all"
    ends.client.sendall(b"still")
    ends.client.close()
    assert read_all(ends.app) == b"still"
    ends.end()
    ends.wait_for_finish()


def test_a_reset_ends_it(ends: Ends) -> None:
    ends.tunnel.start(b"")
    ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ends.client.close()
    assert read_all(ends.app) == b""
    with pytest.raises(BrokenPipeError):
        ends.app.sendall(b"anybody?")
    ends.end()
    ends.wait_for_finish()


def test_the_end_of_reading_lets_last_words_pass(ends: Ends) -> None:
    """A leaving worker asks for it; what the client goes on to say is dropped."""
    ends.tunnel.start(b"")
    ends.client.sendall(b"before")
    assert take(ends.app, 6) == b"before"
    ends.tunnel.end_reading()
    assert ends.app.recv(1) == b""
    ends.client.sendall(b"x" * 100_000)
    ends.app.sendall(b"bye")
    ends.app.close()
    ends.end()
    assert read_all(ends.client) == b"bye"
    ends.wait_for_finish()


def test_stopping_ends_both_directions(ends: Ends) -> None:
    ends.tunnel.start(b"")
    ends.tunnel.stop()
    assert ends.app.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        ends.app.sendall(b"anybody?")
    assert read_all(ends.client) == b""
    ends.end()
    ends.wait_for_finish()


def test_a_client_that_takes_nothing_of_the_last_words_is_reset() -> None:
    ends = Ends(limit_s=0.1)
    ends.tunnel.start(b"")
    fill(ends.app)
    ends.app.close()
    ends.end()
    ends.wait_for_finish()
    with pytest.raises(ConnectionResetError):
        read_all(ends.client)
    ends.close()


def test_nothing_moves_without_a_cause(ends: Ends) -> None:
    """An idle connection costs no processor time, and neither does one with one direction ended."""
    ends.tunnel.start(b"")
    ends.app.sendall(b"a")
    assert ends.client.recv(1) == b"a"
    before = ends.loop.waits
    assert not select.select([ends.client, ends.app], [], [], 1.5)[0]
    assert ends.loop.waits <= before + 1
    ends.client.shutdown(socket.SHUT_WR)
    assert ends.app.recv(1) == b""
    before = ends.loop.waits
    assert not select.select([ends.client], [], [], 1.5)[0]
    assert ends.loop.waits <= before + 2


def test_a_full_application_stops_the_client(ends: Ends) -> None:
    """No more than one piece is held: the client feels that nobody reads."""
    ends.tunnel.start(b"")
    sent = fill(ends.client)
    got = 0
    while got < sent:
        got += len(ends.app.recv(1 << 20))


def test_where_no_thread_starts_the_connection_ends_all_the_same(ends: Ends) -> None:
    ends.loop.refuses = True
    with pytest.raises(RuntimeError, match="thread"):
        ends.tunnel.start(b"")
    ends.end()
    ends.wait_for_finish()


def test_a_child_of_the_application_leaves_it_alone(ends: Ends) -> None:
    ends.tunnel.start(b"")
    ends.tunnel.close_in_child()
    ends.client.sendall(b"wake up")
    ends.app.close()
    assert not ends.finished.acquire(timeout=0.3)


def test_tls_deciphers_nothing_behind_its_own_end(tmp_path: Path) -> None:
    """What the client sends then is no plain text: the application finds the end of the data instead."""
    pair = Pair.of(Files(tmp_path))
    ends = Ends(server=pair.server)
    pair.peer.setblocking(True)
    pair.peer.settimeout(DEADLINE_S)
    ends.tunnel.start(b"")
    pair.say(b"before")
    assert take(ends.app, 6) == b"before"
    ends.app.sendall(b"last words")
    ends.app.shutdown(socket.SHUT_WR)
    said = b""
    while not said.endswith(b"last words"):
        said += pair.hear()
    while pair.pull():  # TLS's goodbye, and the end
        pass
    pair.say(b"behind")
    assert read_all(ends.app) == b""
    ends.end()
    ends.wait_for_finish()
    ends.close()
    pair.close()
