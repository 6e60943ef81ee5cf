"""Messages to other daemons: none waits, whatever becomes of the daemon; what comes back is used again."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import wait_until

from wsgiserv.logs import senders
from wsgiserv.logs.senders import Datagrams, Stream, Target, connect_any

# No call may take nearly as long as a daemon's time-out.
_AT_ONCE_S = 1.0


@pytest.fixture(autouse=True)
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "RETRY_S", 0.0)


def udp() -> socket.socket:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(10)
    return receiver


def unix(path: Path, kind: int = socket.SOCK_DGRAM) -> socket.socket:
    path.unlink(missing_ok=True)
    receiver = socket.socket(socket.AF_UNIX, kind)
    receiver.bind(str(path))
    receiver.settimeout(10)
    if kind == socket.SOCK_STREAM:
        receiver.listen(8)
    return receiver


def tcp(port: int = 0) -> socket.socket:
    receiver = socket.socket()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    receiver.bind(("127.0.0.1", port))
    receiver.listen(8)
    receiver.settimeout(10)
    return receiver


@pytest.fixture
def default_timeout() -> Iterator[None]:
    """An application has set one: the server's sockets do not obey it."""
    socket.setdefaulttimeout(7)
    yield
    socket.setdefaulttimeout(None)


# ---- datagrams -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("default_timeout")
def test_each_message_is_a_datagram() -> None:
    with udp() as receiver:
        sender = Datagrams(Target(socket.SOCK_DGRAM, "", *receiver.getsockname()))
        assert sender.sock is not None
        assert sender.sock.gettimeout() == 0
        assert [sender.send(b"one"), sender.send(b"two")] == [None, None]
        assert [receiver.recv(99), receiver.recv(99)] == [b"one", b"two"]
        assert sender.lost == 0
        sender.close()


def test_nobody_receives_at_a_port() -> None:
    with udp() as receiver:
        address = receiver.getsockname()
    sender = Datagrams(Target(socket.SOCK_DGRAM, "", *address))
    fault = wait_until(lambda: sender.send(b"x"), "the kernel tells")
    assert fault.errno == errno.ECONNREFUSED
    assert sender.lost > 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(10)
        sender.send(b"here again")
        assert receiver.recv(99) == b"here again"
    sender.close()


def test_a_unix_socket_that_comes_goes_and_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sender = Datagrams(Target(socket.SOCK_DGRAM, str(path)))
    fault = sender.send(b"lost")
    assert fault is not None
    assert (fault.errno, sender.lost) == (errno.ENOENT, 1)
    for _ in range(2):
        with unix(path) as receiver:
            assert sender.send(b"taken") is None
            assert receiver.recv(99) == b"taken"
    fault = sender.send(b"lost")
    assert fault is not None
    assert (fault.errno, sender.lost) == (errno.ECONNREFUSED, 2)
    sender.close()
    with unix(path) as receiver:
        assert sender.send(b"after close") is None
        assert receiver.recv(99) == b"after close"
    sender.close()


def test_an_attempt_is_made_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "RETRY_S", 3600.0)
    sender = Datagrams(Target(socket.SOCK_DGRAM, str(tmp_path / "s")))
    with unix(tmp_path / "s"):
        assert sender.send(b"too early") is not None
    sender.close()


@pytest.mark.parametrize("patience_s", [0.0, 0.05])
def test_a_full_queue_costs_messages_not_time(tmp_path: Path, patience_s: float) -> None:
    with unix(tmp_path / "s") as receiver:
        sender = Datagrams(Target(socket.SOCK_DGRAM, str(tmp_path / "s")), patience_s)
        began = time.monotonic()
        faults = [sender.send(b"x" * 1000) for _ in range(5000)]
        assert time.monotonic() - began < _AT_ONCE_S
        taken = faults.index(next(fault for fault in faults if fault is not None))
        assert sender.lost == sum(fault is not None for fault in faults) > 0
        assert [receiver.recv(2000) for _ in range(taken)] == [b"x" * 1000] * taken
        assert sender.send(b"room again") is None
        sender.close()


def test_a_long_message_is_cut() -> None:
    with udp() as receiver:
        sender = Datagrams(Target(socket.SOCK_DGRAM, "", *receiver.getsockname()))
        assert sender.send(b"x" * 200_000) is None
        assert len(receiver.recv(1 << 20)) == 65_000
        sender.close()


@pytest.mark.parametrize("host", ["a" * 300, "x..y"])
def test_a_host_without_an_address_loses_messages(host: str) -> None:
    sender = Datagrams(Target(socket.SOCK_DGRAM, "", host, 514))
    assert sender.send(b"x") is not None
    assert (sender.sock, sender.lost) == (None, 1)
    stream = Stream(Target(socket.SOCK_STREAM, "", host, 514))
    assert stream.send(b"x") is not None
    assert stream.lost == 1


def test_the_descriptor_stays_and_is_not_inherited(tmp_path: Path) -> None:
    with unix(tmp_path / "s"):
        sender = Datagrams(Target(socket.SOCK_DGRAM, str(tmp_path / "s")))
        assert sender.sock is not None
        number = sender.sock.fileno()
    with unix(tmp_path / "s"):
        assert sender.send(b"x") is None
        assert sender.sock.fileno() == number
        assert not os.get_inheritable(number)
    sender.close()


# ---- streams -------------------------------------------------------------------------------------------------


def read(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += connection.recv(65536) or pytest.fail(f"the stream has ended: {found[-99:]!r}")
    return found


def test_messages_in_a_row() -> None:
    with tcp() as receiver:
        sender = Stream(Target(socket.SOCK_STREAM, "", *receiver.getsockname()))
        assert [sender.send(b"one\0"), sender.send(b"two\0")] == [None, None]
        connection = receiver.accept()[0]
        with connection:
            assert read(connection, 8) == b"one\0two\0"
        sender.close()


def test_a_daemon_that_restarts() -> None:
    with tcp() as receiver:
        address = receiver.getsockname()
        sender = Stream(Target(socket.SOCK_STREAM, "", *address))
        sender.send(b"one\0")
        receiver.accept()[0].close()
    wait_until(lambda: sender.send(b"kept\0"), "the end is seen")
    with tcp(address[1]) as receiver:
        sender.send(b"last\0")
        connection = receiver.accept()[0]
        with connection:
            assert read(connection, 10)[:5] == b"kept\0"
    assert sender.lost == 0
    sender.close()


def test_a_daemon_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "_MOST_WAITING_BYTES", 10_000)
    with tcp() as receiver:
        sender = Stream(Target(socket.SOCK_STREAM, "", *receiver.getsockname()))
        connection = receiver.accept()[0] if sender.send(b"0000\0") is None else None
        assert connection is not None
        sent, began = 1, time.monotonic()
        while not sender.lost:
            sender.send(b"%04d\0" % (sent % 10_000) * 200)
            sent += 1
        assert time.monotonic() - began < 10 * _AT_ONCE_S, "each call is quick; there are thousands"
        assert sender.is_behind
        with connection:
            began = time.monotonic()
            assert sender.flush(0.1) is None
            assert time.monotonic() - began < _AT_ONCE_S
            found = b""
            while sender.is_behind:
                connection.setblocking(False)
                try:
                    found += connection.recv(1 << 20)
                except BlockingIOError:
                    pass
                sender.flush()
            assert all(part.isdigit() and len(part) == 4 for part in found.split(b"\0")[:-1]), "no message is torn"
    sender.close()


def test_after_a_torn_message_a_connection_begins_with_a_whole_one() -> None:
    with tcp() as receiver:
        sender = Stream(Target(socket.SOCK_STREAM, "", *receiver.getsockname()))
        sender.send(b"0\0")
        first = receiver.accept()[0]
        while not sender._is_torn:
            sender.send(b"<" + b"x" * 99_999 + b"\0")
        first.close()
        wait_until(lambda: sender.flush(), "the end is seen")
        assert sender.lost == 1
        sender.send(b"<last\0")
        with receiver.accept()[0] as second:
            second.settimeout(10)
            assert read(second, 1)[:1] == b"<"
    sender.close()


def test_a_child_has_a_connection_of_its_own() -> None:
    with tcp() as receiver:
        sender = Stream(Target(socket.SOCK_STREAM, "", *receiver.getsockname()))
        sender.send(b"parent\0")
        with receiver.accept()[0] as first:
            pid = os.fork()
            if not pid:
                try:
                    os._exit(0 if sender.send(b"child\0") is None else 1)
                finally:
                    os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            sender.send(b"again\0")
            with receiver.accept()[0] as second:
                assert read(second, 6) == b"child\0"
            assert read(first, 13) == b"parent\0again\0"
    sender.close()


def test_a_host_that_does_not_answer_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "RETRY_S", 3600.0)
    # A full backlog: the kernel drops the SYN.
    with socket.socket() as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.listen(0)
        waiting = []
        for _ in range(3):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(receiver.getsockname())
            waiting.append(client)
        sender = Stream(Target(socket.SOCK_STREAM, "", *receiver.getsockname()))
        began = time.monotonic()
        assert [sender.send(b"x\0") for _ in range(100)] == [None] * 100
        assert time.monotonic() - began < _AT_ONCE_S
        assert sender.is_behind
        for client in waiting:
            client.close()
        sender.close()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_child_begins_without_losses(tmp_path: Path, kind: int) -> None:
    sender = (Datagrams if kind == socket.SOCK_DGRAM else Stream)(Target(kind, str(tmp_path / "s")))
    sender.lost = 7
    pid = os.fork()
    if not pid:
        os._exit(sender.lost)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sender.lost == 7


# ---- either type ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_unix_socket_of_either_type(tmp_path: Path, kind: int) -> None:
    with unix(tmp_path / "s", kind) as receiver:
        sender = connect_any(str(tmp_path / "s"), 0.0)
        assert sender.send(b"one\0") is None
        if kind == socket.SOCK_STREAM:
            with receiver.accept()[0] as connection:
                assert read(connection, 4) == b"one\0"
        else:
            assert receiver.recv(99) == b"one\0"
        sender.close()
