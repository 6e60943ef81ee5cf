"""The chunked coding: RFC 9112 §7.1, at every split."""

from __future__ import annotations

import pytest

from wsgiserv.errors import ProtocolError
from wsgiserv.http.body import ChunkedDecoder


def decode(pieces: list[bytes], limit: int = 0) -> tuple[bytes, bytes, bool]:
    got: list[bytes] = []
    decoder = ChunkedDecoder(got.append, limit, 100, 8190)
    rest = b""
    for piece in pieces:
        if decoder.done:
            rest += piece
        else:
            rest += decoder.feed(piece)
    return b"".join(got), rest, decoder.done


def splits(raw: bytes) -> list[list[bytes]]:
    every = [[raw], [raw[i : i + 1] for i in range(len(raw))]]
    return every + [[raw[:i], raw[i:]] for i in range(1, len(raw))]


@pytest.mark.parametrize(
    ("raw", "body", "rest"),
    [
        (b"0\r\n\r\n", b"", b""),
        (b"3\r\nabc\r\n0\r\n\r\n", b"abc", b""),
        (b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\nGET /", b"abc0123456789", b"GET /"),
        (b"a\r\n0123456789\r\n000\r\n\r\n", b"0123456789", b""),
        (b"3\r\n\r\n\r\r\n0\r\n\r\n", b"\r\n\r", b""),
        (b'3;a=b;c;d="x \\" y"\r\nabc\r\n0;z\r\n\r\n', b"abc", b""),
        (b"3 ; a = b\r\nabc\r\n0\r\n\r\n", b"abc", b""),
        (b"1\r\na\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\nrest", b"a", b"rest"),
    ],
)
def test_bodies_that_are_accepted_at_every_split(raw: bytes, body: bytes, rest: bytes) -> None:
    for pieces in splits(raw):
        assert decode(pieces) == (body, rest, True), pieces


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\r\n", 400),
        (b"g\r\n", 400),
        (b"0x3\r\nabc\r\n", 400),
        (b"+3\r\nabc\r\n", 400),
        (b"-3\r\nabc\r\n", 400),
        (b"3_0\r\nabc\r\n", 400),
        (b" 3\r\nabc\r\n", 400),
        (b"3 \r\nabc\r\n", 400),
        (b"3\nabc\r\n", 400),
        (b"3\rabc\r\n", 400),
        (b"3\r\nabcd\r\n", 400),
        (b"3\r\nabc\n0\r\n\r\n", 400),
        (b"3\r\nabc0\r\n\r\n", 400),
        (b"3\r\nabc\r0\r\n\r\n", 400),
        (b"3;\r\nabc\r\n", 400),
        (b"3;a=\r\nabc\r\n", 400),
        (b'3;a="x\r\nabc\r\n', 400),
        (b"3;a\nb\r\nabc\r\n", 400),
        (b"3;\x00\r\nabc\r\n", 400),
        (b"11111111111111111\r\n", 400),
        (b"3;" + b"a" * 600 + b"\r\nabc\r\n", 400),
        (b"f" * 5000, 400),
        (b"0\r\nBad Trailer: x\r\n\r\n", 400),
        (b"0\r\n folded\r\n\r\n", 400),
        (b"0\r\nA: x\n\r\n", 400),
        (b"0\r\n" + b"A: x\r\n" * 101 + b"\r\n", 431),
        (b"0\r\nA: " + b"x" * 8200 + b"\r\n\r\n", 431),
    ],
)
def test_bodies_that_are_refused_at_every_split(raw: bytes, status: int) -> None:
    for pieces in splits(raw) if len(raw) < 100 else [[raw], [raw[:50], raw[50:]]]:
        with pytest.raises(ProtocolError) as caught:
            decode(pieces)
        assert caught.value.status == status, pieces


def test_the_limit_is_exact_and_counts_decoded_bytes() -> None:
    assert decode([b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"], limit=5)[0] == b"abcde"
    with pytest.raises(ProtocolError) as caught:
        decode([b"3\r\nabc\r\n3\r\n"], limit=5)
    assert caught.value.status == 413


def test_many_extensions_are_refused_in_total() -> None:
    with pytest.raises(ProtocolError):
        decode([b"1;" + b"a" * 400 + b"\r\nx\r\n"] * 100)


def test_an_unfinished_body_is_not_done() -> None:
    for raw in (b"3", b"3\r\nab", b"3\r\nabc", b"3\r\nabc\r\n0\r\n", b"3\r\nabc\r\n0\r\nA: b\r\n"):
        assert decode([raw])[2] is False
