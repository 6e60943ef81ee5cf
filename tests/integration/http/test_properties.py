"""What is true of any bytes, any request and any response. hypothesis, derandomised: the same examples in every run.

``WSGISERV_TESTS_EXAMPLES=50 pytest tests/integration/http/test_properties.py`` looks at fifty times as many, at random.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import h11
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "corpus"))

from corpus import Feed, Outcome, Recorder, load, outcome, serving
from oracle import Breach, examine

from wsgiserv.errors import ProtocolError
from wsgiserv.http.body import ChunkedDecoder
from wsgiserv.http.head import HeadLimits, HeadParser
from wsgiserv.net.client import Connection

TIMES = int(os.environ.get("WSGISERV_TESTS_EXAMPLES", "1"))


def examples(number: int) -> Callable[[Any], Any]:
    """The profile of these tests: bounded, seeded by the test itself, without a database or a clock."""
    return settings(
        max_examples=number * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


STATUSES = {400, 413, 414, 417, 431, 501, 505}
AFTER = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"
LIMITS = HeadLimits(line=60, fields=6, field_size=40)

# ---- bytes -------------------------------------------------------------------------------------------------

SOUP = [
    *(b"\r\n", b"\r\n", b"\r\n", b"\r\n\r\n", b"\r", b"\n", b" ", b"\t", b"\0", b"\x0b", b"\x85", b"\xa0", b"\x7f"),
    *(b"GET ", b"POST ", b"HEAD ", b"OPTIONS ", b"CONNECT ", b"/", b"/a?b", b"*", b"http://a", b"a:1", b"#"),
    *(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"Host: h\r\n", b"Host:", b"X: y\r\n", b"X_Y: z\r\n"),
    *(b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Content-Length:", b"Transfer-Encoding: chunked\r\n"),
    *(b"Transfer-Encoding:", b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n"),
    *(b"0\r\n\r\n", b"0", b"3\r\nabc\r\n", b"3", b"abc", b";a=b", b';a="b"', b":", b",", b"-", b"_", b"%41", b"%"),
    *(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"),
]
CASES = [case.data for case in load() if len(case.data) < 400]


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A case of the corpus, or two in a row, with a few bytes changed, put in, taken out or moved."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(CASES), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(st.integers(0, 6))
        data[start:end] = draw(
            st.one_of(st.sampled_from(SOUP), st.binary(max_size=3), st.just(bytes(data[end : end + 9])))
        )
    return bytes(data)


streams = st.one_of(
    st.binary(max_size=80), st.lists(st.sampled_from(SOUP), max_size=14).map(b"".join), mutants(), mutants()
)


@st.composite
def cut(draw: st.DrawFn, data: bytes, most: int = 4) -> list[bytes]:
    """The same bytes in a few pieces."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=most)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """What ``data`` is parsed to, None when it is well refused; any other exception is a failure."""
    error = None
    try:
        return parse(data)
    except ProtocolError as refusal:
        error = refusal
    assert error.status in STATUSES
    assert error.reason.isascii()
    return None


@examples(800)
@given(st.one_of(st.binary(max_size=70), st.lists(st.sampled_from(SOUP), max_size=7).map(b"".join)))
def test_any_bytes_are_a_head_or_a_refusal(data: bytes) -> None:
    parser = HeadParser(LIMITS)
    for _ in range(2):  # the second time, what is valid comes from a cache
        line = parsed(parser.request_line, data)
        if line is not None:
            assert b"%b %b HTTP/1." % (line.method.encode(), line.environ["RAW_URI"].encode()) == data[:-1]
        block = parsed(parser.header_block, data)
        if block is not None:
            assert data.count(b"\r\n") == len(block.fields())


@examples(400)
@given(st.data())
def test_any_bytes_are_a_chunked_body_or_a_refusal_at_any_split(data: st.DataObject) -> None:
    raw = data.draw(
        st.one_of(
            st.binary(max_size=60),
            st.lists(st.sampled_from([*SOUP, b"1\r\nx\r\n", b"A: b\r\n"]), max_size=9).map(b"".join),
        )
    )

    def decode(pieces: list[bytes]) -> tuple[int, bytes, bytes, bool]:
        out: list[bytes] = []
        decoder = ChunkedDecoder(out.append, 50, 3, 20)
        rest = b""
        try:
            for piece in pieces:
                rest = rest + piece if decoder.done else decoder.feed(piece)
        except ProtocolError as error:
            return error.status, b"", b"", False
        assert decoder.done or rest == b""
        return 0, b"".join(out), rest, decoder.done

    whole = decode([raw])
    assert whole[0] in {0, *STATUSES}
    assert decode(data.draw(cut(raw)))[1:] == whole[1:]
    assert decode([raw[i : i + 1] for i in range(len(raw))])[1:] == whole[1:]


def responses(sent: bytes, methods: list[str]) -> list[tuple[h11.Response, bytes]]:
    """Read responses to these methods with h11; what is left over is a response to nothing."""
    found = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        client.send(h11.EndOfMessage())
        client.receive_data(sent)
        client.receive_data(b"")
        body, response = b"", None
        while not isinstance(got := client.next_event(), h11.EndOfMessage):
            assert not isinstance(got, (type(h11.NEED_DATA), h11.ConnectionClosed)), (got, sent)
            if isinstance(got, h11.Response):
                response = got
            elif isinstance(got, h11.Data):
                body += bytes(got.data)
        assert response is not None
        found.append((response, body))
        sent = client.trailing_data[0]
    assert sent == b""
    return found


@examples(400)
@given(st.data())
def test_any_bytes_are_answered_well_or_refused_and_nothing_runs_after_a_refusal(data: st.DataObject) -> None:
    raw = data.draw(streams)
    recorder = Recorder()
    feed = Feed(serving(recorder, body_limit=100))
    feed.feed(*data.draw(cut(raw)))
    closed, ran = feed.closed, len(recorder.calls)
    methods = [environ["REQUEST_METHOD"] for environ, _ in recorder.calls]
    feed.feed(AFTER)
    feed.end()
    assert feed.closed
    if closed:
        assert len(recorder.calls) == ran
    methods = [environ["REQUEST_METHOD"] for environ, _ in recorder.calls]
    answered = [int(code) for code in _codes(feed.sent)]
    final = [code for code in answered if code != 100]
    refused = [code for code in final if code != 200]
    assert final == [200] * len(methods) + refused
    assert len(refused) <= 1
    assert set(refused) <= STATUSES
    event("refused" if refused else "answered" if methods else "silent")
    read = responses(
        feed.sent, [*("GET" if m == "CONNECT" else m for m in methods), *([feed.last_method] * len(refused))]
    )
    for response, body in read[len(methods) :]:
        headers = dict(response.headers)
        assert headers[b"connection"] == b"close"
        assert body.isascii()


def _codes(sent: bytes) -> list[bytes]:
    return [line[9:12] for line in sent.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


@examples(400)
@given(st.data())
def test_two_connections_fed_at_different_splits_agree(data: st.DataObject) -> None:
    raw = data.draw(streams)

    def judge(pieces: list[bytes]) -> Outcome:
        calls, answered, closed = outcome(serving(Recorder(), body_limit=100), pieces)
        # Of two faults in one request, which is met first depends on where the reads end; that it is
        # refused does not, nor what was answered before.
        return calls, [400 if code not in (100, 200) else code for code in answered if code != 100], closed

    first = judge([raw])
    assert judge(data.draw(cut(raw))) == first
    assert judge([raw[i : i + 1] for i in range(len(raw))]) == first


# ---- requests ----------------------------------------------------------------------------------------------

TCHAR = "!#$%&'*+-.^`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
methods = st.text(TCHAR + "_", min_size=1, max_size=8).filter(lambda name: name != "CONNECT")
names = st.text(TCHAR, min_size=1, max_size=8).map(lambda name: "X-P-" + name)
values = st.text([chr(n) for n in (9, *range(32, 127), *range(128, 256))], max_size=12).map(
    lambda text: text.strip(" \t")
)
queries = st.text([chr(n) for n in range(33, 127) if n != ord("#")], max_size=12)
blank = st.text(" \t", max_size=3)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, tuple[dict[str, str], str]]:
    """A request's bytes, and the environ and body that they mean."""
    method = draw(methods)
    path = b"/" + draw(st.binary(max_size=10))
    target = quote_from_bytes(path, safe="/:@!$&'()*+,;=~")
    query = draw(queries)
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": f"{target}?{query}" if query else target,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "h",
    }
    lines = ["Host: h"]
    for name, value in draw(st.lists(st.tuples(names, values), max_size=4)):
        lines.append(f"{name}:{draw(blank)}{value}{draw(blank)}")
        key = "HTTP_" + name.upper().replace("-", "_")
        environ[key] = f"{environ[key]}, {value}" if key in environ else value
    body = draw(st.none() | st.binary(max_size=40))
    payload = b""
    if body is not None:
        environ["CONTENT_LENGTH"] = str(len(body))
        if draw(st.booleans()):
            lines.append(f"Content-Length: {len(body)}")
            payload = body
        else:
            lines.append("Transfer-Encoding: chunked")
            for piece in filter(None, draw(cut(body, 3))):
                extension = draw(st.sampled_from([b"", b";a", b";a=b", b' ; a = "\\"; c"']))
                payload += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
            payload += b"0\r\n" + draw(st.sampled_from([b"", b"X-T: 1\r\n"])) + b"\r\n"
    head = "\r\n".join([f"{method} {environ['RAW_URI']} HTTP/1.1", *lines, "", ""]).encode("latin-1")
    return head + payload, (environ, (body or b"").decode("latin-1"))


@examples(200)
@given(st.lists(requests(), min_size=1, max_size=3), st.data())
def test_what_was_serialised_is_what_is_parsed(
    made: list[tuple[bytes, tuple[dict[str, str], str]]], data: st.DataObject
) -> None:
    pieces = data.draw(cut(b"".join(raw for raw, _ in made)))
    calls, answered, closed = outcome(serving(Recorder()), pieces)
    assert calls == [meant for _, meant in made]
    assert [code for code in answered if code != 100] == [200] * len(made)
    assert closed is False


# ---- responses ---------------------------------------------------------------------------------------------

HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"),
    *("trailer", "trailers", "transfer-encoding", "upgrade", "content-length", "date", "server"),
}
response_names = st.text(TCHAR + "_", min_size=1, max_size=10).filter(lambda name: name.lower() not in HOP_BY_HOP)


@examples(300)
@given(
    code=st.integers(200, 599),
    reason=values,
    headers=st.lists(st.tuples(response_names, values), max_size=4),
    blocks=st.lists(st.binary(max_size=50), max_size=4),
    how=st.sampled_from(["list", "generator", "write", "both"]),
    declared=st.booleans(),
    method=st.sampled_from(["GET", "GET", "POST", "HEAD"]),
    version=st.sampled_from(["1.1", "1.1", "1.0"]),
)
def test_what_an_application_said_is_what_h11_reads(
    code: int,
    reason: str,
    headers: list[tuple[str, str]],
    blocks: list[bytes],
    how: str,
    declared: bool,
    method: str,
    version: str,
) -> None:
    length = [("Content-Length", str(sum(map(len, blocks))))] if declared else []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        write = start_response(f"{code} {reason}", [*headers, *length])
        if how == "generator":
            return iter(blocks)
        if how == "list":
            return blocks
        parts = len(blocks) if how == "write" else len(blocks) // 2
        for block in blocks[:parts]:
            write(block)
        return blocks[parts:]

    feed = Feed(serving(app))
    feed.feed(f"{method} / HTTP/{version}\r\nHost: h\r\n\r\n".encode() * 2)
    # An HTTP/1.0 connection is closed after the first of the two.
    read = responses(feed.sent, [method] * (2 if version == "1.1" else 1))
    bodiless = method == "HEAD" or code in (204, 304)
    for response, body in read:
        assert response.status_code == code
        assert bytes(response.reason) == reason.encode("latin-1")
        assert body == (b"" if bodiless else b"".join(blocks))
        said = [(bytes(name), bytes(value)) for name, value in response.headers]
        own = (b"server", b"date", b"connection", b"content-length", b"transfer-encoding")
        assert [pair for pair in said if pair[0] not in own] == [
            (name.lower().encode(), value.encode("latin-1")) for name, value in headers
        ]
        present = [name for name, _ in said]
        for name in own[:2]:
            assert present.count(name) == 1
        assert present.count(b"content-length") + present.count(b"transfer-encoding") <= 1
        assert (b"connection", b"close") in said or version == "1.1"
        if version == "1.0" or code == 204:
            assert b"transfer-encoding" not in present
    assert feed.closed is (version == "1.0")


def test_a_head_that_was_sent_by_write_is_not_sent_again_with_the_block_that_is_returned() -> None:
    """Found by the property above: the second head would be taken for the response to the next request."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response("200 OK", [])(b"")
        return [b"body"]

    for method, body in (("HEAD", b""), ("GET", b"body")):
        feed = Feed(serving(app))
        feed.feed(f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        assert [found for _, found in responses(feed.sent, [method])] == [body]


@pytest.mark.parametrize("bad", ["\r", "\n", "\0", "\r\nX: y", "\u20ac", "\x7f"])
@pytest.mark.parametrize("where", ["status", "name", "value"])
def test_what_must_not_reach_the_wire_is_a_500(where: str, bad: str) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        parts = {"status": "200 OK", "name": "X-A", "value": "b"}
        parts[where] += bad + "tail"
        start_response(parts["status"], [(parts["name"], parts["value"])])
        return [b"body"]

    feed = Feed(serving(app))
    feed.feed(AFTER)
    ((response, body),) = responses(feed.sent, ["GET"])
    assert response.status_code == 500
    assert b"tail" not in feed.sent
    assert body


def test_the_oracle_of_the_fuzzer_finds_nothing_in_its_seeds_and_something_in_a_broken_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for case in load():
        if len(case.data) < 300:
            examine(case.data)
    monkeypatch.setattr(Connection, "_linger", lambda self, _: setattr(self, "state", 0))
    with pytest.raises(Breach):
        examine(b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n")
