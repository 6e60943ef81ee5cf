"""What an application may send: PEP 3333 and RFC 9112 §4-§6."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest

from wsgiserv.http.response import HeadTemplates, date_line, refusal


def test_a_template_is_the_status_line_and_the_headers() -> None:
    template = HeadTemplates().get("200 OK", [("Content-Type", "text/plain"), ("X-A", "é")])
    assert (
        template.prefix
        == "HTTP/1.1 200 OK\r\nServer: wsgiserv\r\nContent-Type: text/plain\r\nX-A: é\r\n".encode("latin-1")
    )
    assert (template.code, template.length, template.bodiless, template.has_date) == (200, -1, False, False)


def test_the_applications_own_date_and_server_stay_alone() -> None:
    template = HeadTemplates().get("200 OK", [("date", "x"), ("SERVER", "mine")])
    assert template.has_date
    assert b"wsgiserv" not in template.prefix


@pytest.mark.parametrize(
    ("status", "bodiless"),
    [
        ("100 Continue", True),
        ("101 X", True),
        ("204 No Content", True),
        ("304 Not Modified", True),
        ("205 X", False),
    ],
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
        ("200 OK", [["a", "b"]]),
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
        ("200 OK", [("Connection", "close")]),
        ("200 OK", [("Transfer-Encoding", "chunked")]),
        ("200 OK", [("keep-alive", "x")]),
        ("200 OK", [("Upgrade", "x")]),
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
