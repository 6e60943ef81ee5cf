"""Each file of tests/corpus fed whole, byte by byte and split at every position; and the limits at their borders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "corpus"))

from cases import check_each
from corpus import (
    HARDENING,
    HERE,
    Case,
    Feed,
    Recorder,
    load,
    outcome,
    serving,
    splits,
    statuses,
    unescape,
    with_listings,
)

from wsgiserv.http.head import HeadLimits

CASES = load()
AFTER = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"


def test_the_corpus_is_as_large_as_it_was_meant_to_be_and_has_both_sides_of_each_rule() -> None:
    assert len(CASES) >= 250
    for group in {case.name.partition("/")[0] for case in CASES} - {"other-protocols", "connection"}:
        mine = [case for case in CASES if case.name.startswith(group + "/")]
        assert any(case.refuse for case in mine), group
        assert any(not case.refuse for case in mine), group


def test_the_format_of_the_files() -> None:
    assert unescape(b"a\\r\\n\nb\\t\\\\\\x00\\xff\n") == b"a\r\nb\t\\\x00\xff"
    with pytest.raises(AssertionError, match="unknown escape"):
        unescape(b"\\q")


def test_the_documented_lists_are_those_of_the_corpus() -> None:
    text = HARDENING.read_text()
    assert with_listings(text) == text, "run: python tests/corpus/corpus.py"
    for group in {case.name.partition("/")[0] for case in CASES}:
        assert f"<!-- corpus: {group} -->" in text, f"docs/hardening.md says nothing about {HERE / group}"


def check(case: Case, context: Any, pieces: list[bytes]) -> None:
    calls, answered, closed = outcome(context, pieces)
    # How many 100s come depends on when the body comes, not on the request.
    final = [status for status in answered if status != 100]
    assert answered.count(100) <= case.continues
    if case.refuse:
        assert (len(calls), final, closed) == (case.after, case.statuses, True)
    else:
        assert calls == case.accept
        assert (final, closed) == (case.statuses, case.close)


def check_every_way(case: Case) -> None:
    check(case, serving(Recorder()), [case.data])
    # One context for all the splits: what is cached of a request must not change what is said of it.
    context = serving(Recorder())
    for pieces in splits(case.data):
        try:
            check(case, context, pieces)
        except AssertionError as error:
            error.add_note(f"pieces: {[len(piece) for piece in pieces[:2]]}")
            raise
    if case.close:
        # Nothing that follows is ever read as a request, wherever the read boundaries fall.
        check(case, context, [case.data + AFTER])
        check(case, context, [case.data, AFTER])
        check(case, context, [case.data, *(AFTER[i : i + 1] for i in range(9))])
    else:
        calls, answered, closed = outcome(context, [case.data, AFTER])
        assert calls[:-1] == case.accept
        assert calls[-1][0]["PATH_INFO"] == "/after"
        assert [status for status in answered if status != 100] == [*case.statuses, 200]
        assert closed is False
    if case.continues:
        # A client that waits for it gets one 100 for each body.
        _, answered, _ = outcome(context, [case.data[i : i + 1] for i in range(len(case.data))])
        assert answered == [100, 200] * case.continues


GROUPS = sorted({case.name.partition("/")[0] for case in CASES})


@pytest.mark.parametrize("group", GROUPS)
def test_whole_byte_by_byte_and_at_every_split(group: str) -> None:
    mine = ((case.name, case) for case in CASES if case.name.startswith(group + "/"))
    check_each(mine, check_every_way)


def test_a_client_that_ends_anywhere_makes_no_other_request() -> None:
    """Cut short, a stream is a prefix of its requests: none is changed, none is made up (RFC 9112 §8)."""
    for case in CASES:
        context = serving(Recorder())
        for cut in range(1, 0 if case.refuse else len(case.data), 3):
            context.app.calls.clear()
            feed = Feed(context)
            feed.feed(case.data[:cut])
            feed.end()
            calls = context.app.calls
            assert calls == case.accept[: len(calls)], (case.name, cut)
            assert feed.closed
            assert set(statuses(feed.sent)) <= {100, 200, 400}


# ---- limits at their borders: cases that are made, since their files would be nothing but filling ----------


def get(target: bytes = b"/", fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET " + target + b" HTTP/" + version + b"\r\nHost: h\r\n" + fields + b"\r\n"


def chunked(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + body


LINE = len(b"GET / HTTP/1.1")
CHUNK = b"1;a=%b\r\nx\r\n"  # 5 bytes and the value
LIMITS: list[tuple[str, bytes, int, dict[str, Any]]] = [
    ("line at its limit", get(b"/" + b"a" * (8190 - LINE)), 200, {}),
    ("line above its limit", get(b"/" + b"a" * (8191 - LINE)), 414, {}),
    ("line far above its limit", get(b"/" + b"a" * 100_000), 414, {}),
    ("line that never ends", b"A" * 9000, 414, {}),
    ("small line at its limit", get(b"/" + b"a" * (100 - LINE)), 200, {"line": 100}),
    ("small line above its limit", get(b"/" + b"a" * (101 - LINE)), 414, {"line": 100}),
    ("fields at their limit", get(fields=b"A: b\r\n" * 99), 200, {}),
    ("fields above their limit", get(fields=b"A: b\r\n" * 100), 431, {}),
    ("few fields at their limit", get(fields=b"A: b\r\n" * 4), 200, {"fields": 5}),
    ("few fields above their limit", get(fields=b"A: b\r\n" * 5), 431, {"fields": 5}),
    ("field at its limit", get(fields=b"A: " + b"b" * 8187 + b"\r\n"), 200, {}),
    ("field above its limit", get(fields=b"A: " + b"b" * 8188 + b"\r\n"), 431, {}),
    ("field that never ends", get()[:-2] + b"A: " + b"b" * 9000, 431, {}),
    ("small field at its limit", get(fields=b"A: " + b"b" * 77 + b"\r\n"), 200, {"field_size": 80}),
    ("small field above its limit", get(fields=b"A: " + b"b" * 78 + b"\r\n"), 431, {"field_size": 80}),
    ("field name above its limit", get(fields=b"a" * 8190 + b":\r\n"), 431, {}),
    ("body at its limit", get(fields=b"Content-Length: 1000\r\n") + b"x" * 1000, 200, {"body": 1000}),
    ("body above its limit", get(fields=b"Content-Length: 1001\r\n") + b"x" * 1001, 413, {"body": 1000}),
    ("chunk at the limit", chunked(b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n"), 200, {"body": 1000}),
    ("chunk above the limit", chunked(b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"), 413, {"body": 1000}),
    ("chunks at the limit", chunked(b"5\r\nhello\r\n" * 200 + b"0\r\n\r\n"), 200, {"body": 1000}),
    ("chunks above the limit", chunked(b"5\r\nhello\r\n" * 200 + b"1\r\nx\r\n0\r\n\r\n"), 413, {"body": 1000}),
    ("chunk line at its limit", chunked(CHUNK % (b"b" * 508) + b"0\r\n\r\n"), 200, {}),
    ("chunk line above its limit", chunked(CHUNK % (b"b" * 509) + b"0\r\n\r\n"), 400, {}),
    ("chunk line that never ends", chunked(b"1;a=" + b"b" * 2000), 400, {}),
    ("extensions at their sum", chunked(CHUNK % (b"b" * 253) * 64 + b"0\r\n\r\n"), 200, {}),
    ("extensions above their sum", chunked(CHUNK % (b"b" * 253) * 64 + b"0;a\r\n\r\n"), 400, {}),
    ("trailers at their number", chunked(b"0\r\n" + b"A: b\r\n" * 100 + b"\r\n"), 200, {}),
    ("trailers above their number", chunked(b"0\r\n" + b"A: b\r\n" * 101 + b"\r\n"), 431, {}),
    ("trailer at its limit", chunked(b"0\r\nA: " + b"b" * 8187 + b"\r\n\r\n"), 200, {}),
    ("trailer above its limit", chunked(b"0\r\nA: " + b"b" * 8188 + b"\r\n\r\n"), 431, {}),
    ("trailer that never ends", chunked(b"0\r\nA: " + b"b" * 9000), 431, {}),
    ("trailers at their sum", chunked(b"0\r\n" + b"A: %b\r\n" % (b"b" * 8187) * 2 + b"\r\n"), 200, {}),
    ("trailers above their sum", chunked(b"0\r\n" + b"A: %b\r\n" % (b"b" * 5500) * 3 + b"\r\n"), 431, {}),
    ("underscore dropped", get(fields=b"A_B: c\r\n"), 200, {"header_map": "drop"}),
    ("underscore refused", get(fields=b"A_B: c\r\n"), 400, {"header_map": "refuse"}),
    ("underscore let in", get(fields=b"A_B: c\r\n"), 200, {"header_map": "dangerous"}),
    ("dash where underscores are refused", get(fields=b"A-B: c\r\n"), 200, {"header_map": "refuse"}),
    ("underscored framing let in", get(fields=b"Content_Length: 9\r\n"), 200, {"header_map": "dangerous"}),
]


@pytest.mark.parametrize(("data", "status", "settings"), [pytest.param(*rest, id=name) for name, *rest in LIMITS])
def test_limits_at_their_borders(data: bytes, status: int, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    overrides = {"body_limit": settings.pop("body")} if "body" in settings else {}
    context = serving(Recorder(), limits=HeadLimits(**settings), **overrides)
    step = 1 if len(data) < 400 else 61
    ways = [[data], [data[i : i + step] for i in range(0, len(data), step)]]
    ways += [[data[:i], data[i:]] for i in range(1, len(data), step if len(data) < 400 else 997)]
    ways += [[data[:-i], data[-i:]] for i in range(1, 8)]
    for pieces in ways:
        calls, answered, closed = outcome(context, [*pieces, AFTER] if status != 200 else pieces)
        assert (answered, closed) == ([status], status != 200)
        assert len(calls) == (status == 200)


def test_each_byte_in_names_values_and_targets() -> None:
    """RFC 9110 §5.6.2 token, §5.5 field-value; RFC 9112 §3.2 request-target, what is visible ASCII but "#"."""
    token = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    context = serving(Recorder())
    for byte in set(range(256)) - set(b"\r\n:"):
        name, value, target = get(fields=b"A%cB: c\r\n"), get(fields=b"A: b%cc\r\n"), get(b"/a%cb")
        for data, good in (
            (name, byte in token),
            (value, byte == 9 or (byte >= 32 and byte != 127)),
            (target, 32 < byte < 127 and byte != ord("#")),
        ):
            data = data % byte
            for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
                calls, answered, closed = outcome(context, [*pieces, AFTER])
                assert answered == ([200, 200] if good else [400]), (byte, data)
                assert (len(calls), closed) == ((2, False) if good else (0, True))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HEAD / HTTP/1.1\r\n\r\n", 400),
        (b"HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: x\r\n\r\n", 501),
        (b"HEAD / HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n", 417),
        (b"HEAD / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", 400),
    ],
)
def test_a_refusal_of_head_has_no_body(data: bytes, status: int) -> None:
    """RFC 9110 §9.3.2: what follows the head would be taken for another response."""
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        feed = Feed(serving(Recorder()))
        feed.feed(*pieces)
        assert statuses(feed.sent) == [status]
        assert feed.sent.endswith(b"\r\nConnection: close\r\n\r\n")


class Access:
    """An access log in a list."""

    def __init__(self) -> None:
        self.lines: list[tuple[str | None, int]] = []

    def log(self, environ: dict[str, Any], code: int, *rest: object) -> None:
        self.lines.append((environ.get("RAW_URI"), code))


@pytest.mark.parametrize(
    ("second", "target", "status"),
    [
        (b"\0", None, 400),
        (b"\r\n\r\n\r\n", None, 400),
        (b"GET /" + b"a" * 9000, None, 414),
        (b"GET /second HTTP/1.1\r\nHost : h\r\n\r\n", "/second", 400),
        (b"GET /second HTTP/1.1\r\n\r\n", "/second", 400),
    ],
)
def test_a_refused_request_is_not_logged_as_the_one_before_it(second: bytes, target: str | None, status: int) -> None:
    access = Access()
    feed = Feed(serving(Recorder(), access=access))
    feed.feed(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n", second)
    assert access.lines == [("/first", 200), (target, status)]
