"""What an application may send: PEP 3333 and RFC 9112 §4-§6."""

from __future__ import annotations

import enum
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from wsgiserv.http.response import HeadTemplates, date_line, refusal


def test_a_template_is_the_status_line_and_the_headers() -> None:
    template = HeadTemplates().get("200 OK", [("Content-Type", "text/plain"), ("X-A", "é")])
    assert template.prefix == "HTTP/1.1 200 OK\r\nServer: wsgiserv\r\nContent-Type: text/plain\r\nX-A: é\r\n".encode(
        "latin-1"
    )
    assert (template.code, template.length, template.bodiless, template.has_date) == (200, -1, False, False)


def test_the_applications_own_date_and_server_stay_alone() -> None:
    template = HeadTemplates().get("200 OK", [("date", "x"), ("SERVER", "mine")])
    assert template.has_date
    assert b"wsgiserv" not in template.prefix


@pytest.mark.parametrize(
    ("status", "bodiless"),
    [("100 Continue", True), ("101 X", True), ("204 No Content", True), ("304 Not Modified", True), ("205 X", False)],
)
def test_statuses_without_a_body(status: str, bodiless: bool) -> None:
    assert HeadTemplates().get(status, []).bodiless is bodiless


def test_content_length_is_read_and_never_sent_twice_or_with_204() -> None:
    template = HeadTemplates().get("200 OK", [("Content-Length", "5"), ("content-length", "5")])
    assert template.length == 5
    assert template.prefix.lower().count(b"content-length") == 1
    assert b"Content-Length" not in HeadTemplates().get("204 No Content", [("Content-Length", "0")]).prefix
    assert b"Content-Length: 9" in HeadTemplates().get("304 Not Modified", [("Content-Length", "9")]).prefix


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("", []),
        ("OK", []),
        ("20 OK", []),
        ("2000 OK", []),
        ("099 X", []),
        ("200OK", []),
        ("200 OK\r\nX: y", []),
        ("200 O\x00K", []),
        ("200 \u20ac", []),
        (200, []),
        (b"200 OK", []),
        (None, []),
        ("200 OK", None),
        ("200 OK", {"a": "b"}),
        ("200 OK", {"ab": "c"}),
        ("200 OK", "ab"),
        ("200 OK", ["ab"]),
        ("200 OK", [{"a", "b"}]),
        ("200 OK", [None]),
        ("200 OK", [("a",), ("b", "c", "d")]),
        ("200 OK", 5),
        ("200 OK", [("a",)]),
        ("200 OK", [("a", "b", "c")]),
        ("200 OK", [("a", 1)]),
        ("200 OK", [(b"a", "b")]),
        ("200 OK", [("a", b"b")]),
        ("200 OK", [("a", None)]),
        ("200 OK", [("", "b")]),
        ("200 OK", [("a b", "c")]),
        ("200 OK", [("a:", "c")]),
        ("200 OK", [("a\r\n", "c")]),
        ("200 OK", [("a", "b\r\nX: y")]),
        ("200 OK", [("a", "b\n")]),
        ("200 OK", [("a", "b\r")]),
        ("200 OK", [("a", "b\x00")]),
        ("200 OK", [("a", "\u20ac")]),
        ("200 OK", [("Connection", "close\r\nX: y")]),
        ("200 OK", [("Connection ", "close")]),
        ("200 OK", [("a", " b\r\n ")]),
        ("200 OK", [("Content-Length", "x")]),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("Content-Length", "1_0")]),
        ("200 OK", [("Content-Length", "²")]),
        ("200 OK", [("Content-Length", "5"), ("Content-Length", "6")]),
    ],
)
def test_what_must_not_reach_the_wire_is_refused_every_time(status: Any, headers: Any) -> None:
    templates = HeadTemplates()
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            templates.get(status, headers)


HOP_BY_HOP = [
    ("Connection", "keep-alive"),
    ("Connection", ""),
    ("connection", "Upgrade"),
    ("Keep-Alive", "timeout=5"),
    ("Transfer-Encoding", "chunked"),
    ("TE", "trailers"),
    ("Trailer", "X"),
    ("Upgrade", "h2c"),
    ("Proxy-Authenticate", "Basic"),
    ("PROXY-AUTHORIZATION", "x"),
    ("Proxy-Connection", "keep-alive"),
]


@pytest.mark.parametrize("header", HOP_BY_HOP, ids=" ".join)
@pytest.mark.parametrize("status", ["200 OK", "101 Switching Protocols", "304 Not Modified"])
def test_headers_about_the_connection_are_not_sent(header: tuple[str, str], status: str) -> None:
    templates = HeadTemplates()
    bare = templates.get(status, [("X-A", "1"), ("X-B", "2")])
    for _ in range(2):
        template = templates.get(status, [("X-A", "1"), header, ("X-B", "2")])
        assert template.prefix == bare.prefix
        assert template.hop_by_hop == (header[0],)
        assert template.fields == (("X-A", "1"), ("X-B", "2"))
        assert not template.closes


@pytest.mark.parametrize("value", ["close", "Close", " close ", "keep-alive, close", "close,X-B"])
def test_connection_close_is_understood(value: str) -> None:
    template = HeadTemplates().get("200 OK", [("Connection", value), ("X-A", "1")])
    assert template.closes
    assert b"onnection" not in template.prefix


def test_fields_that_connection_names_are_not_sent() -> None:
    templates = HeadTemplates()
    templates.get("200 OK", [("X-Hop", "1"), ("X-End", "2")])  # its lines are known from here on
    headers = [
        ("X-Hop", "1"),
        ("connection", "x-HOP,\tX-Other, "),
        ("X-End", "2"),
        ("Connection", "third"),
        ("Third", "3"),
    ]
    template = templates.get("200 OK", headers)
    assert template.fields == (("X-End", "2"),)
    assert template.hop_by_hop == ("X-Hop", "connection", "Third")
    assert templates.get("200 OK", [("X-Hop", "1")]).fields == (("X-Hop", "1"),)


Pair = namedtuple("Pair", "name value")


class Headers(list[Any]):
    """A list of an application's own kind."""


PAIRS = [("Content-Type", "text/plain"), ("X-A", "1")]
SHAPES: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(PAIRS),
    "lists": lambda: [list(pair) for pair in PAIRS],
    "tuple of lists": lambda: tuple(list(pair) for pair in PAIRS),
    "mixed": lambda: [PAIRS[0], list(PAIRS[1])],
    "generator": lambda: (pair for pair in PAIRS),
    "items": lambda: dict(PAIRS).items(),
    "ordered items": lambda: OrderedDict(PAIRS).items(),
    "iterator": lambda: iter(PAIRS),
    "map": lambda: map(tuple, PAIRS),
    "zip": lambda: zip(*zip(*PAIRS, strict=True), strict=True),
    "list subclass": lambda: Headers(PAIRS),
    "named tuples": lambda: [Pair(*pair) for pair in PAIRS],
    "iterators of two": lambda: [iter(pair) for pair in PAIRS],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_headers_may_come_in_any_iterable_of_pairs(shape: str) -> None:
    expected = HeadTemplates().get("200 OK", list(PAIRS))
    templates = HeadTemplates()
    for _ in range(2):
        template = templates.get("200 OK", SHAPES[shape]())
        assert template.prefix == expected.prefix
        assert template.fields == tuple(PAIRS)


class Mime(str, enum.Enum):  # noqa: UP042 - StrEnum is the harmless one
    CSV = "text/csv"


class Evil(str):
    """Says one thing and is another, and compares as whatever it is asked for."""

    __slots__ = ()

    def __str__(self) -> str:
        return "evil\r\nX-Evil: 1"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("text/plain")

    def lower(self) -> str:
        return "evil"

    def strip(self, *_: Any) -> str:
        return "evil\r\n"

    def encode(self, *_: Any) -> bytes:
        return b"evil"

    def __len__(self) -> int:
        return 1

    def split(self, *_: Any) -> Any:
        return ["evil"]


def test_a_string_is_sent_as_its_own_content() -> None:
    templates = HeadTemplates()
    for _ in range(2):
        template = templates.get("200 OK", [("Content-Type", Mime.CSV)])
        assert template.prefix.endswith(b"Content-Type: text/csv\r\n")
        assert template.fields == (("Content-Type", "text/csv"),)
        assert type(template.fields[0][1]) is str
        assert templates.get("200 OK", [("Content-Type", "CSV")]).fields[0][1] == "CSV"
        template = templates.get(Evil("201 Created"), [(Evil("X-A"), Evil(" 1 "))])
        assert template.prefix == b"HTTP/1.1 201 Created\r\nServer: wsgiserv\r\nX-A: 1\r\n"
        assert (type(template.status), template.status) == (str, "201 Created")


@pytest.mark.parametrize("evil_first", [False, True])
def test_no_string_finds_the_head_of_another(evil_first: bool) -> None:
    templates = HeadTemplates()
    plain = [("Content-Type", "text/plain")]
    evil = [("Content-Type", Evil("image/png"))]
    pairs = [tuple.__new__(EvilPair, ("Content-Type", "image/png"))]
    for headers in (evil, pairs, plain) if evil_first else (plain, evil, pairs):
        value = "text/plain" if headers is plain else "image/png"
        for _ in range(2):
            assert templates.get("200 OK", headers).fields == (("Content-Type", value),)  # type: ignore[arg-type]
    for value in "a\r\nX-Evil: 1", "\u20ac":
        with pytest.raises(ValueError, match="response header"):
            templates.get("200 OK", [("Content-Type", Evil(value))])


class EvilPair(tuple[str, str]):
    """The same for a pair."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(("Content-Type", "text/plain"))


def test_a_proxy_is_no_string() -> None:
    class Proxy:
        __class__ = str

    with pytest.raises(TypeError, match="must be str"):
        HeadTemplates().get("200 OK", [("X", Proxy())])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="must be a str"):
        HeadTemplates().get(Proxy(), [])  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["  a  ", "\ta b\t ", "   ", "a", ""])
def test_blanks_around_a_value_are_not_sent(value: str) -> None:
    templates = HeadTemplates()
    for _ in range(2):
        template = templates.get("200 OK", [("X-A", value), ("Content-Length", f" {len(value)}\t")])
        assert template.prefix.endswith(f"\r\nX-A: {value.strip()}\r\nContent-Length: {len(value)}\r\n".encode())
        assert template.fields[0] == ("X-A", value.strip())
        assert template.length == len(value)


def test_unique_headers_do_not_grow_the_memory() -> None:
    templates = HeadTemplates()
    for number in range(5000):
        templates.get("200 OK", [("X", str(number))])
    assert len(templates._kept) <= 512
    assert len(templates._lines) <= 512


def test_the_date_is_an_imf_fixdate() -> None:
    assert date_line(784111777) == b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    for day in range(366 + 7):
        at = 1_700_000_000 + day * 86_399
        assert date_line(at + 0.9).decode() == f"Date: {formatdate(at, usegmt=True)}\r\n"


def test_a_refusal_is_complete_and_announces_the_close() -> None:
    raw = refusal(400, "malformed request line")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nConnection: close" in head
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert b"\r\nDate: " in head
    assert b"\r\nServer: " in head
