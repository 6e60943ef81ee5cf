"""RFC 6455, case by case as Autobahn's testsuite orders them: over ``wsgi.websocket``, and by simple-websocket over the
client's socket.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from server import Server, Start
from wsclient import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, FrameClient, closing, frame

pytest.importorskip("wsproto")

LIMIT = 20 * 1024 * 1024
TEXT_SAMPLE = "κόσμε, 𝄞, ﷽, hello".encode()
# Autobahn's 6.3 and following: an overlong form, a surrogate, beyond the last code point, a lone continuation, a
# sequence that breaks off.
BROKEN_TEXT = [b"\xc0\xaf", b"a\xed\xa0\x80b", b"\xf4\x90\x80\x80", b"\x80", b"\xce\xba\xe1\xbd"]
# The borders of what is valid.
WHOLE_TEXT = [TEXT_SAMPLE, b"\x00", b"\xed\x9f\xbf\xee\x80\x80", b"\xf4\x8f\xbf\xbf", b"\xef\xbf\xbf"]
VALID_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
INVALID_CODES = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


@pytest.fixture(scope="module", params=["threads", "gevent"])
def worker_class(request: pytest.FixtureRequest) -> str:
    """The classes that can hold a WebSocket."""
    return str(request.param)


@pytest.fixture(scope="module", params=["adapter", "simple"])
def library(request: pytest.FixtureRequest) -> str:
    """What speaks the protocol."""
    if request.param == "simple":
        pytest.importorskip("simple_websocket")
    return str(request.param)


@pytest.fixture
def site(shared_servers: Start, worker_class: str, library: str) -> Iterator[Server]:
    """A server of an application that sends each message back."""
    threads = ("--threads", "8") if worker_class == "threads" else ()
    adapter = ("--wsgi-websocket",) if library == "adapter" else ()
    limit = ("--limit-request-body", str(LIMIT))
    server = shared_servers(f"websocketapps:{library}", "-w", "1", *threads, *adapter, *limit)
    before = len(server.log.lines)
    yield server
    server.check(before)


@pytest.fixture
def peer(site: Server) -> Iterator[FrameClient]:
    """A connection whose handshake is done."""
    with FrameClient(site.address) as client:
        assert client.status == 101
        yield client


# ---- 1: sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20])
def test_messages_of_all_sizes_come_back(peer: FrameClient, size: int) -> None:
    peer.echo(b"*" * size, TEXT)
    peer.echo(bytes(range(256)) * (size // 256) + b"\xfe" * (size % 256), BINARY)
    peer.close()


def test_a_frame_may_come_byte_by_byte(peer: FrameClient) -> None:
    for octet in frame(TEXT, TEXT_SAMPLE):
        peer.send(bytes([octet]))
    assert peer.message() == Frame(TEXT, TEXT_SAMPLE)
    peer.close()


# ---- 2: ping and pong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"hello", b"\x00\xff\xfe", b"\xfe" * 125])
def test_a_ping_is_answered(peer: FrameClient, payload: bytes) -> None:
    peer.send(frame(PING, payload))
    assert peer.receive() == Frame(PONG, payload)
    peer.close()


def test_pings_are_answered_in_their_order(peer: FrameClient) -> None:
    peer.send(b"".join(frame(PING, b"%d" % number) for number in range(10)))
    assert [peer.receive() for _ in range(10)] == [Frame(PONG, b"%d" % number) for number in range(10)]
    peer.close()


def test_a_pong_that_nobody_asked_for_is_no_event(peer: FrameClient) -> None:
    peer.send(frame(PONG, b"unasked") + frame(PONG))
    peer.echo(b"after it")
    peer.close()


# ---- 5: fragments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("parts", [(b"one", b"two"), (b"", b"", b""), (b"", b"middle", b""), (b"x",) * 100])
def test_fragments_are_one_message(peer: FrameClient, opcode: int, parts: tuple[bytes, ...]) -> None:
    first, *middle, last = parts
    peer.send(frame(opcode, first, last=False))
    peer.send(b"".join(frame(CONTINUATION, part, last=False) for part in middle))
    peer.send(frame(CONTINUATION, last))
    assert peer.message() == Frame(opcode, b"".join(parts))
    peer.close()


def test_control_frames_between_fragments(peer: FrameClient) -> None:
    peer.send(frame(TEXT, b"one ", last=False) + frame(PING, b"1") + frame(PONG))
    assert peer.receive() == Frame(PONG, b"1")
    peer.send(frame(CONTINUATION, b"two ", last=False) + frame(PING, b"2"))
    assert peer.receive() == Frame(PONG, b"2")
    peer.send(frame(CONTINUATION, b"three"))
    assert peer.message() == Frame(TEXT, b"one two three")
    peer.close()


# ---- 6: UTF-8 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [TEXT_SAMPLE, b"\x00", b"\xed\x9f\xbf\xee\x80\x80", b"\xf4\x8f\xbf\xbf", b"\xef\xbf\xbf"]
)
def test_text_comes_back_also_cut_within_characters(peer: FrameClient, text: bytes) -> None:
    peer.echo(text)
    pieces = [text[at : at + 1] for at in range(len(text))]
    peer.send(frame(TEXT, pieces[0], last=len(pieces) == 1))
    peer.send(b"".join(frame(CONTINUATION, piece, last=False) for piece in pieces[1:-1]))
    if len(pieces) > 1:
        peer.send(frame(CONTINUATION, pieces[-1]))
    assert peer.message() == Frame(TEXT, text)
    peer.close()


def test_any_bytes_are_binary_data(peer: FrameClient) -> None:
    for data in BROKEN_TEXT:
        peer.echo(data, BINARY)
    peer.close()


# ---- what ends the connection --------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What a client sends, and the close code that answers it."""

    name: str
    sent: bytes
    code: int


def _reserved() -> Iterator[Case]:
    for bits in range(1, 8):
        yield Case(f"3 RSV {bits:03b} in text", frame(TEXT, b"x", reserved=bits), 1002)
    yield Case("3 RSV in a ping", frame(PING, b"x", reserved=4), 1002)
    yield Case("3 RSV in a close frame", frame(CLOSE, b"\x03\xe8", reserved=1), 1002)
    for opcode in (*range(3, 8), *range(11, 16)):
        yield Case(f"4 opcode {opcode}", frame(opcode, b"x"), 1002)


def _framing() -> Iterator[Case]:
    yield Case("2 a ping of 126 bytes", frame(PING, b"x" * 126), 1002)
    yield Case("5 a ping in fragments", frame(PING, b"x", last=False), 1002)
    yield Case("5 a pong in fragments", frame(PONG, b"x", last=False), 1002)
    yield Case("5 a continuation of nothing", frame(CONTINUATION, b"x"), 1002)
    yield Case("5 its first part", frame(CONTINUATION, b"x", last=False), 1002)
    yield Case("5 text within a message", frame(TEXT, b"x", last=False) + frame(TEXT, b"y"), 1002)
    yield Case("5 binary data within text", frame(TEXT, b"x", last=False) + frame(BINARY, b"y"), 1002)
    yield Case("a frame without a mask", frame(TEXT, b"x", masked=False), 1002)
    yield Case("a ping without a mask", frame(PING, masked=False), 1002)
    yield Case("a length of 5 in 2 bytes", b"\x81\xfe\0\x05\0\0\0\0hello", 1002)
    yield Case("a length of 5 in 8 bytes", b"\x81\xff\0\0\0\0\0\0\0\x05\0\0\0\0hello", 1002)
    yield Case("a length of 2 ** 63", b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0", 1002)


def _text() -> Iterator[Case]:
    for broken in BROKEN_TEXT:
        yield Case(f"6 text {broken!r}", frame(TEXT, broken), 1007)
        parts = frame(TEXT, b"good ", last=False) + frame(CONTINUATION, broken)
        yield Case(f"6 text in fragments {broken!r}", parts, 1007)
    # At once, not at the end of the message, which never comes.
    yield Case("6 text that goes on", frame(TEXT, b"\xf4\x90", last=False), 1007)
    yield Case("7 a reason that is not UTF-8", closing(1000, b"\xce\xba\xe1\xbd\xb9\xff"), 1007)


def _closing() -> Iterator[Case]:
    for code in INVALID_CODES:
        yield Case(f"7 code {code}", closing(code), 1002)
    yield Case("7 a payload of one byte", frame(CLOSE, b"x"), 1002)
    yield Case("7 a reason of 124 bytes", closing(1000, b"x" * 124), 1002)


@pytest.mark.parametrize("case", [*_reserved(), *_framing(), *_text(), *_closing()], ids=lambda case: case.name)
def test_what_is_broken_ends_the_connection_with_a_code(peer: FrameClient, case: Case) -> None:
    peer.echo(b"before it")
    peer.send(case.sent)
    answer = peer.receive()
    assert answer is not None
    assert answer.code == case.code
    assert peer.receive() is None


# ---- 7: closing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", VALID_CODES)
def test_a_close_frame_is_answered_with_its_code(peer: FrameClient, code: int) -> None:
    peer.close(code)


@pytest.mark.parametrize(("code", "reason"), [(None, ""), (1000, "x" * 123), (1000, "grüße")])
def test_close_frames_with_and_without_a_reason(peer: FrameClient, code: int | None, reason: str) -> None:
    peer.send(closing(code, reason.encode()))
    answer = peer.receive()
    assert answer is not None
    assert answer.code in (1000, None)
    assert peer.receive() is None


# simple-websocket answers nothing that has come along with a close frame.
@pytest.mark.parametrize("library", ["adapter"], indirect=True)
def test_what_follows_a_close_frame_is_not_answered(peer: FrameClient) -> None:
    peer.send(frame(TEXT, b"before") + closing(1000) + frame(PING, b"after") + frame(TEXT, b"after"))
    assert peer.message() == Frame(TEXT, b"before")
    answer = peer.receive()
    assert answer is not None
    assert answer.code == 1000
    assert peer.receive() is None


# ---- 9: large ones, and many ---------------------------------------------------------------------------------------


def _whole(data: bytes) -> bytes:
    return frame(BINARY, data)


def _in_fragments(data: bytes) -> bytes:
    parts = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    first, *rest = parts
    sent = [frame(BINARY, first, last=False), *(frame(CONTINUATION, each, last=False) for each in rest)]
    return b"".join([*sent, frame(CONTINUATION)])


@pytest.mark.parametrize("form", [_whole, _in_fragments])
def test_a_message_of_16_mib(peer: FrameClient, form: Callable[[bytes], bytes]) -> None:
    data = struct.pack("!I", 0xDEADBEEF) * (4 << 20)
    peer.send(form(data))
    answer = peer.message()
    assert answer.opcode == BINARY
    assert answer.payload == data
    peer.close()


def test_many_messages_at_once(peer: FrameClient) -> None:
    peer.send(b"".join(frame(TEXT, b"%d" % number) for number in range(1000)))
    assert [peer.message().payload for _ in range(1000)] == [b"%d" % number for number in range(1000)]
    peer.close()


@pytest.mark.parametrize("library", ["adapter"], indirect=True)
@pytest.mark.parametrize("in_fragments", [False, True])
def test_a_message_beyond_the_limit_is_refused_before_it_is_here(peer: FrameClient, in_fragments: bool) -> None:
    if in_fragments:
        part = b"x" * (1 << 20)
        peer.send(frame(BINARY, part, last=False))
        for _ in range(LIMIT >> 20):
            peer.send(frame(CONTINUATION, part, last=False))
    else:  # its length is told, and it never ends
        peer.send(b"\x82\xff" + struct.pack("!Q", 1 << 40) + b"\0\0\0\0" + b"x" * (LIMIT + 1))
    answer = peer.receive()
    assert answer is not None
    assert answer.code == 1009
    assert peer.receive() is None
