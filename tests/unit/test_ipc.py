"""Messages between processes: whole or not at all, bounded, and garbage is found at once."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from wsgiserv.boot import ReadinessReader, ReadinessWriter, Report
from wsgiserv.ipc import (
    LONGEST_MESSAGE_BYTES,
    MOST_READ_BYTES,
    MessageError,
    MessageReader,
    MessageWriter,
    OutcomeWriter,
    decode,
    encode,
    packet_pair,
    receive_packet,
    send_packet,
    write_all,
)


class Pipe:
    """A pipe with a reader, and a writer made when it is asked for."""

    def __init__(self) -> None:
        read_fd, self.write_fd = os.pipe()
        self.reader = MessageReader(read_fd)
        self._writer: MessageWriter | None = None

    @property
    def writer(self) -> MessageWriter:
        self._writer = self._writer or MessageWriter(self.write_fd)
        return self._writer

    def read_all(self) -> list[dict[str, Any]]:
        """Read until the writer has nothing unsent, as the two processes do in turn."""
        found: list[dict[str, Any]] = []
        while True:
            messages, _ = self.reader.read()
            found += messages
            if not messages and not self.writer.is_behind:
                return found
            self.writer.flush()

    def break_off(self) -> None:
        """Close the reading end, as is done after garbage."""
        self.reader.close()
        self.reader = MessageReader(os.open(os.devnull, os.O_RDONLY))

    def close(self) -> None:
        self.reader.close()
        os.close(self.write_fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def test_messages_come_as_they_were_sent(pipe: Pipe) -> None:
    messages = [{"a": 1}, {"b": "zwei\nZeilen ✓ 🐍"}, {"c": "\ud800"}, {}]
    for message in messages:
        pipe.writer.send(message)
    assert pipe.reader.read() == (messages, False)
    assert pipe.reader.read() == ([], False)


def test_a_message_longer_than_the_pipe_arrives_whole(pipe: Pipe) -> None:
    messages = [{"n": n, "text": "ü" * 200_000} for n in range(4)]
    for message in messages:
        pipe.writer.send(message)
    assert pipe.writer.is_behind
    assert pipe.read_all() == messages


def test_a_waiting_writer_goes_on_as_the_reader_takes(pipe: Pipe) -> None:
    got: list[dict[str, Any]] = []
    message = {"text": "x" * 500_000}

    def take() -> None:
        while not got:
            select.select([pipe.reader], [], [], 0.05)
            got.extend(pipe.reader.read()[0])

    thread = threading.Thread(target=take)
    thread.start()
    pipe.writer.send(message, wait_s=10.0)
    assert not pipe.writer.is_behind
    thread.join(10.0)
    assert got == [message]


def test_a_reader_that_does_not_read_holds_the_writer_for_its_time_only(pipe: Pipe) -> None:
    began = time.monotonic()
    pipe.writer.send({"text": "x" * 500_000}, wait_s=0.05)
    assert time.monotonic() - began < 5.0
    for _ in range(40):
        pipe.writer.send({"text": "x" * 500_000})
    found = pipe.read_all()
    assert 2 <= len(found) < 40, "what is kept for a reader that does not read is bounded"
    assert all(each == {"text": "x" * 500_000} for each in found)


def test_a_message_above_the_bound_is_dropped(pipe: Pipe) -> None:
    pipe.writer.send({"text": "x" * LONGEST_MESSAGE_BYTES})
    pipe.writer.send({"next": True})
    assert pipe.reader.read() == ([{"next": True}], False)


def test_a_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    pipe.break_off()
    pipe.writer.send({"a": 1}, wait_s=10.0)
    assert not pipe.writer.is_behind


def test_signals_during_a_report_tear_nothing(pipe: Pipe) -> None:
    """A handler that reports runs in the middle of a report, again and again."""
    reader, writer = pipe.reader, pipe.writer
    count = 200
    sent = 0

    def handler(number: int, frame: object) -> None:
        nonlocal sent
        if sent < count:
            sent += 1
            writer.send({"signal": sent, "text": "é" * 3_000}, wait_s=1.0)

    got: list[dict[str, Any]] = []
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            select.select([reader], [], [], 0.05)
            got.extend(reader.read()[0])

    thread = threading.Thread(target=take)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        thread.start()
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        number = 0
        end = time.monotonic() + 20.0
        while sent < count and time.monotonic() < end:
            number += 1
            writer.send({"main": number, "text": "ß" * 30_000}, wait_s=1.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        writer.flush(10.0)
        done.set()
        thread.join(10.0)
    got += reader.read()[0]
    # A handler may be interrupted by the next one before it sends.
    assert sorted(each["signal"] for each in got if "signal" in each) == list(range(1, count + 1))
    assert [each["main"] for each in got if "main" in each] == list(range(1, number + 1))


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"garbage\n",
        b"\n",
        b"\x00\xff\n",
        b"[1]\n",
        b"null\n",
        b"{]\n",
        b'{"a": 1}x\n',
        b'{"a": "\xff\xfe"}\n',
        b"[" * 200_000 + b"\n",
        b'{"a":' * 50_000 + b"\n",
        b'{"torn": "a mess{"whole": 1}\n',
    ],
)
def test_garbage_is_an_error(pipe: Pipe, garbage: bytes) -> None:
    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):
            write_all(pipe.write_fd, encode({"good": 1}) + garbage)

    thread = threading.Thread(target=feed)
    thread.start()
    with pytest.raises(MessageError):  # noqa: PT012 - it comes in pieces
        while True:
            pipe.reader.read()
    pipe.break_off()
    thread.join(10.0)


def test_an_endless_writer_is_read_in_bounded_pieces(pipe: Pipe) -> None:
    stop = threading.Event()
    data = encode({"x": "y" * 1000}) * 60
    os.set_blocking(pipe.write_fd, False)

    def flood() -> None:
        rest = data
        while not stop.is_set():
            try:
                rest = rest[os.write(pipe.write_fd, rest) :] or data
            except BlockingIOError:
                pass

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(20):
            messages, closed = pipe.reader.read()
            assert len(messages) <= MOST_READ_BYTES // 1000
            assert not closed
    finally:
        stop.set()
        thread.join(10.0)


def test_a_line_without_end_is_an_error_in_bounded_memory(pipe: Pipe) -> None:
    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):
            write_all(pipe.write_fd, b"{" + b"x" * (LONGEST_MESSAGE_BYTES + 1))

    thread = threading.Thread(target=feed)
    thread.start()
    with pytest.raises(MessageError, match="more than"):  # noqa: PT012
        while True:
            pipe.reader.read()
    pipe.break_off()
    thread.join(10.0)


@pytest.mark.parametrize(
    ("end", "messages"), [(b'{"whole": 1}', [{"whole": 1}]), (b'{"whole": 1}\n', [{"whole": 1}]), (b'{"torn": ', [])]
)
def test_the_end_of_the_pipe(end: bytes, messages: list[dict[str, Any]]) -> None:
    """A master of the first release sends its only message without a newline; a killed sender, half of one."""
    read_fd, write_fd = os.pipe()
    reader = MessageReader(read_fd)
    os.write(write_fd, end)
    os.close(write_fd)
    assert reader.read() == (messages, True)
    reader.close()


# ---- outcomes -----------------------------------------------------------------------------------------


def test_an_outcome_is_told_once(pipe: Pipe) -> None:
    writer = OutcomeWriter(os.dup(pipe.write_fd))
    writer.tell({"ready": True})
    writer.tell({"ready": False})
    writer.close()
    assert pipe.reader.read_first() == {"ready": True}
    assert pipe.reader.read() == ([], False)


def test_a_process_that_ends_without_an_outcome_is_noticed() -> None:
    read_fd, write_fd = os.pipe()
    reader = MessageReader(read_fd)
    OutcomeWriter(write_fd).close()
    assert reader.read_first() is None
    reader.close()


def test_an_outcome_that_nothing_reads_is_no_error(pipe: Pipe) -> None:
    writer = OutcomeWriter(os.dup(pipe.write_fd))
    pipe.break_off()
    writer.tell({"ready": True})


# ---- packets ------------------------------------------------------------------------------------------


def test_packets_carry_descriptors_that_no_program_inherits() -> None:
    left, right = packet_pair()
    with contextlib.closing(left), contextlib.closing(right):
        send_packet(left, encode({"a": 1}), [0, 1])
        send_packet(left, b"x" * 100)
        data, fds, is_truncated = receive_packet(right, 4096, 2)
        assert (decode(data), len(fds), is_truncated) == ({"a": 1}, 2, False)
        assert not any(map(os.get_inheritable, fds))
        for fd in fds:
            os.close(fd)
        assert receive_packet(right, 50, 2) == (b"x" * 50, [], True)
        with pytest.raises(BlockingIOError):
            receive_packet(right, 50, 2, socket.MSG_DONTWAIT)
        left.close()
        assert receive_packet(right, 50, 2).data == b""


# ---- reports ------------------------------------------------------------------------------------------


@pytest.fixture
def reports() -> Iterator[tuple[ReadinessReader, int]]:
    read_fd, write_fd = os.pipe()
    reader = ReadinessReader(read_fd)
    yield reader, write_fd
    reader.close()
    os.close(write_fd)


def test_a_report_arrives(reports: tuple[ReadinessReader, int]) -> None:
    reader, fd = reports
    writer = ReadinessWriter(fd)
    writer.report("failed", "no module", "Traceback", 4)
    assert reader.read_reports() == ([Report("failed", "no module", "Traceback", 4)], False)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"state": "loaded"},
        {"state": ["ready"]},
        {"state": "ready", "more": 1},
        {"state": "failed", "reason": 5},
        {"state": "failed", "traceback": None},
        {"state": "failed", "exit_status": "4"},
        {"state": "failed", "exit_status": True},
        {"state": "failed", "exit_status": 1 << 70},
        {"state": "failed", "exit_status": -1},
    ],
)
def test_what_is_not_a_report_is_an_error(reports: tuple[ReadinessReader, int], message: dict[str, Any]) -> None:
    reader, fd = reports
    os.write(fd, encode(message))
    with pytest.raises(MessageError):
        reader.read_reports()
