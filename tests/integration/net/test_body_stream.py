"""Request bodies that the application reads while they arrive (``stream_request_body``), without a server.

The rules: RFC 9112 §6-§7 and §9.6, RFC 9110 §10.1.1, PEP 3333, docs/hardening.md.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cases import check_each
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uwsgipacket import packet

sys.path.insert(0, str(Path(__file__).parents[2] / "corpus"))

from corpus import Case, Feed, Recorder, load, serving, statuses

import wsgiserv.net.body_stream
from wsgiserv.http.uwsgi import UwsgiReader
from wsgiserv.net.client import Connection
from wsgiserv.net.request_reader import CLOSED, LINGERING
from wsgiserv.net.serving_context import ALL_STREAMED, LARGE_STREAMED, ServingContext
from wsgiserv.net.uwsgi_client import UwsgiConnection
from wsgiserv.wsgi.input import BodyError
from wsgiserv.wsgi.response import OVERDUE

AFTER = b"GET /after HTTP/1.1\r\nHost: h\r\n\r\n"
BAIT = b"GET /bait HTTP/1.1\r\nHost: h\r\n\r\n"
TEXT = [("Content-Type", "text/plain")]
# Between small (discarded) and large (closed); where the border is, is nobody's business.
SMALL, LARGE = 60_000, 1_000_000

Environ = dict[str, Any]


class Script(Feed):
    """A client whose next piece comes when somebody waits for it: the loop, or the application that reads.

    Args:
        ended: what it does behind the last piece: ``waits``, ``ends`` or ``resets``.
    """

    def __init__(
        self, context: ServingContext, pieces: Iterable[bytes], ended: str = "waits", uwsgi: bool = False
    ) -> None:
        super().__init__(context)
        self.pieces = deque(piece for piece in pieces if piece)
        self.end_by = ended
        self.waits = 0
        wire: Any = self.wire
        self._recv = wire.recv
        wire.recv = self._receive
        self._reset = False
        if uwsgi:
            made = self.connection
            self.connection = UwsgiConnection(
                UwsgiReader(context.parser),
                *(made.context, self, wire, made.base, made.peer, made.peer_name, made.trusted),
            )

    def _receive(self, size: int, flags: int = 0) -> bytes:
        if self._reset and not self.wire.incoming:
            raise ConnectionResetError(104, "Connection reset by peer")
        return self._recv(size, flags)

    def ignore(self, connection: Connection) -> None:
        pass

    def _next(self) -> bool:
        if self.pieces:
            self.wire.incoming.append(self.pieces.popleft())
        elif self.end_by == "ends":
            self.wire.ended = True
        elif self.end_by == "resets":
            self._reset = True
        else:
            return False
        return True

    def wait_readable(self, connection: object) -> bool:
        self.waits += 1
        return bool(self.wire.incoming) or self._next()

    def play(self) -> Script:
        """Let all happen; return this."""
        while self.pieces:
            self._next()
            while self.wire.incoming and self.connection.state != CLOSED:
                self._turn()
        if self.end_by != "waits" and self.connection.state != CLOSED:
            self._next()
            self._turn()
        return self

    @property
    def final(self) -> list[int]:
        """The statuses of the final responses."""
        return [status for status in statuses(self.sent) if status != 100]


def streaming(app: Callable[..., Any], how: int = ALL_STREAMED, **overrides: Any) -> ServingContext:
    return serving(app, streaming=how, **overrides)


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    positions = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[start:end] for start, end in pairwise(positions)]


def bytewise(data: bytes) -> list[bytes]:
    """Cut the data into bytes; long data into a few."""
    step = 1 if len(data) < 2000 else 37
    return [data[i : i + step] for i in range(0, len(data), step)]


def post(body: bytes, chunk: int = 0, fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Return a POST with its body: by length, or in chunks of a size."""
    if not chunk:
        return b"POST / HTTP/%b\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n" % (version, fields, len(body)) + body
    parts = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"POST / HTTP/1.1\r\nHost: h\r\n%bTransfer-Encoding: chunked\r\n\r\n" % fields + coded + b"0\r\n\r\n"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """What the error log gets, from INFO on."""
    records: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    log = logging.getLogger("test.corpus")
    keeper = Keeper(logging.INFO)
    log.addHandler(keeper)
    yield records
    log.removeHandler(keeper)


def expect_one_warning(records: list[logging.LogRecord], status: int) -> None:
    """One line with the peer and the status, and no traceback: the client's fault is not the application's."""
    assert [record.levelname for record in records] == ["WARNING"], [r.getMessage() for r in records]
    assert records[0].exc_info is None
    assert records[0].getMessage().startswith("WS1551 192.0.2.1: ")
    assert str(status) in records[0].getMessage()


# ---- the corpus -----------------------------------------------------------------------------------------


FRAMING = {"CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"}


def without_framing(calls: Iterable[tuple[Environ, str]]) -> list[tuple[Environ, str]]:
    """A chunked body's length is known before the call, or it is not: the only difference that is right."""
    return [({k: v for k, v in e.items() if k not in FRAMING}, body) for e, body in calls]


def converse(case: Case, context: ServingContext, pieces: list[bytes]) -> None:
    recorder = context.app
    assert isinstance(recorder, Recorder)
    for after in ([], [AFTER]) if case.close else ([AFTER],):
        recorder.calls.clear()
        script = Script(context, [*pieces, *after]).play()
        calls, final = without_framing(recorder.calls), script.final
        assert statuses(script.sent).count(100) <= case.continues
        if case.refuse:
            assert (len(calls), final, script.closed) == (case.after, case.statuses, True)
        elif case.close:
            assert (calls, final, script.closed) == (without_framing(case.accept), case.statuses, True)
        else:
            assert calls[:-1] == without_framing(case.accept)
            assert calls[-1][0]["PATH_INFO"] == "/after"
            assert (final, script.closed) == ([*case.statuses, 200], False)


def test_the_corpus_is_accepted_and_refused_as_without_streaming() -> None:
    def check(case: Case) -> None:
        data = case.data
        head = data.find(b"\r\n\r\n") + 4
        ways = [[data], bytewise(data), [data[:head], data[head:]]]
        ways += [pieces_of(data, range(head + i, len(data), 7)) for i in range(0, 7, 2)]
        context = streaming(Recorder())
        for pieces in ways:
            converse(case, context, pieces)

    check_each(((case.name, case) for case in load()), check)


# ---- reading --------------------------------------------------------------------------------------------


class Reader:
    """Reads as it is told, then to the end, and answers with what it has read."""

    def __init__(self, sizes: Iterable[int] = ()) -> None:
        self.sizes = list(sizes)
        self.seen: list[bytes] = []
        self.paths: list[str] = []

    def __call__(self, environ: Environ, start_response: Any) -> list[bytes]:
        self.paths.append(environ["PATH_INFO"])
        file = environ["wsgi.input"]
        got = [file.read(size) for size in self.sizes]
        got.append(file.read())
        assert file.read() == file.read(5) == file.readline() == b""
        assert file.readlines() == list(file) == []
        self.seen.append(b"".join(got))
        start_response("200 OK", TEXT)
        return [b"read\n"]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.binary(max_size=300),
    st.integers(0, 50),
    st.lists(st.integers(0, 700), max_size=30),
    st.lists(st.integers(0, 100), max_size=5),
    st.sampled_from([ALL_STREAMED, LARGE_STREAMED]),
    st.integers(0, 300),
)
def test_any_split_gives_the_same_body_and_the_next_request_is_answered(
    body: bytes, chunk: int, cuts: list[int], sizes: list[int], how: int, memory: int
) -> None:
    reader = Reader(sizes)
    data = post(body, chunk) + post(b"second", chunk) + AFTER
    script = Script(streaming(reader, how, body_memory=memory), pieces_of(data, cuts)).play()
    assert reader.seen == [body, b"second", b""]
    assert reader.paths == ["/", "/", "/after"]
    assert script.final == [200, 200, 200]
    assert not script.closed


@pytest.mark.parametrize("how", [ALL_STREAMED, LARGE_STREAMED])
@pytest.mark.parametrize("chunk", [0, 1000])
def test_bodies_around_the_buffers_sizes(chunk: int, how: int) -> None:
    memory = 100_000
    sizes = [border + i for border in (65536, memory, memory + 65536) for i in (-1, 0, 1)]
    for size in [0, 1, *sizes, 500_000]:
        body = (b"%d " % size * size)[:size]
        reader = Reader([min(size, 7)])
        script = Script(
            streaming(reader, how, body_memory=memory), pieces_of(post(body, chunk) + AFTER, range(0, 10**6, 50_000))
        )
        assert script.play().final == [200, 200]
        assert reader.seen == [body, b""]


def test_the_application_is_called_with_the_head_and_answers_while_it_reads() -> None:
    """Bidirectional: each answer is with the client before the next piece of the body is."""
    script: Script

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        assert not script.wire.incoming
        start_response("200 OK", TEXT)
        for number in b"123":
            assert environ["wsgi.input"].read(4) == b"pie%c" % number
            yield b"got %c" % number
            assert b"got %c" % number in script.sent

    for data in (post(b"pie1pie2pie3"), post(b"pie1pie2pie3", 3)):
        head = data.index(b"\r\n\r\n") + 4
        script = Script(streaming(app), [data[:head], *bytewise(data[head:])])
        assert script.play().final == [200]
        assert script.sent.endswith(b"5\r\ngot 3\r\n0\r\n\r\n")


def test_auto_streams_large_bodies_of_known_length_and_no_other(tmp_path: Path) -> None:
    """What is chunked is waited for: it gets its CONTENT_LENGTH by being here whole, and Django reads by that alone."""
    script: Script
    seen: list[tuple[int, str | None]] = []

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        seen.append((len(script.pieces), environ.get("CONTENT_LENGTH")))
        size = len(environ["wsgi.input"].read())
        start_response("200 OK", TEXT)
        return [b"%d" % size]

    memory = 100_000
    for chunk in (0, 5000):
        # A body that goes to a file is answered with 507 where there is no such directory.
        spool = tmp_path if chunk else tmp_path / "missing"
        context = streaming(app, LARGE_STREAMED, body_memory=memory, spool_dir=str(spool))
        for size in (memory - 1, memory, memory + 1, 3 * memory):
            seen.clear()
            data = post(b"x" * size, chunk)
            script = Script(context, pieces_of(data, range(0, len(data), 9_000)))
            assert script.play().final == [200]
            assert script.sent.endswith(b"\r\n\r\n%d" % size)
            early = not chunk and size > memory
            assert (seen[0][0] > 0, seen[0][1]) == (early, str(size))


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS"])
def test_any_method_may_have_a_body(method: bytes) -> None:
    reader = Reader()
    for chunk in (0, 2):
        data = post(b"body", chunk).replace(b"POST", method, 1)
        script = Script(streaming(reader), [*bytewise(data), AFTER]).play()
        assert script.final == [200, 200]
    assert reader.seen == [b"body", b""] * 2


def test_http_1_0() -> None:
    reader = Reader()
    script = Script(streaming(reader), bytewise(post(b"body", version=b"1.0"))).play()
    assert (script.final, script.closed) == ([200], True)
    kept = post(b"body", version=b"1.0", fields=b"Connection: keep-alive\r\nExpect: 100-continue\r\n")
    script = Script(streaming(reader), [*bytewise(kept), AFTER]).play()
    assert (statuses(script.sent), script.closed) == ([200, 200], False)
    assert reader.seen == [b"body", b"body", b""]


def test_uwsgi() -> None:
    reader = Reader([2])
    head = packet(
        REQUEST_METHOD="POST", REQUEST_URI="/u", PATH_INFO="/u", CONTENT_LENGTH="9", SERVER_PROTOCOL="HTTP/1.1"
    )
    for pieces in ([head + b"some body"], [head, *bytewise(b"some body")], bytewise(head + b"some body")):
        script = Script(streaming(reader), pieces, uwsgi=True).play()
        assert (script.final, script.closed) == ([200], True)
    assert reader.seen == [b"some body"] * 3
    script = Script(streaming(reader), [head + b"some"], "ends", uwsgi=True).play()
    assert (script.final, script.closed) == ([400], True)


def test_a_client_that_is_always_quicker_lets_others_have_their_turn() -> None:
    """In gevent only a wait gives way: 16 MiB that are all here must not be read in one go."""
    reader = Reader()
    script = Script(streaming(reader), [b""])
    script.wire.incoming.append(post(b"x" * (16 << 20)))
    script._turn()
    assert script.final == [200]
    assert script.waits >= 4


# ---- what is not read -----------------------------------------------------------------------------------


def partly(size: int) -> Callable[..., list[bytes]]:
    """An application that reads ``size`` bytes and knows all requests that it gets."""

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        file = environ["wsgi.input"]
        got = b"".join(file.read1(size) for _ in range(1)) if size else b""
        start_response("200 OK", TEXT)
        return [environ["PATH_INFO"].encode() + b" %d\n" % len(got)]

    return app


def paths(sent: bytes) -> list[bytes]:
    return re.findall(rb"\r\n\r\n(/\w*) \d+", sent)


@pytest.mark.parametrize("read", [0, 1, 100, SMALL - 1])
@pytest.mark.parametrize("step", [1_000_000, 20_000, 8191])
def test_a_small_rest_is_discarded_and_the_next_request_answered(read: int, step: int) -> None:
    body = (BAIT * SMALL)[:SMALL]
    data = post(body) + AFTER
    script = Script(streaming(partly(read)), pieces_of(data, range(0, len(data), step))).play()
    assert (paths(script.sent), script.closed) == ([b"/", b"/after"], False)
    assert b"Connection: close" not in script.sent


def test_a_small_rest_at_every_split() -> None:
    data = post(BAIT + BAIT) + post(BAIT) + AFTER
    for cut in range(1, len(data)):
        for pieces in ([data[:cut], data[cut:]], [data[:cut], *bytewise(data[cut:])]):
            script = Script(streaming(partly(0)), pieces).play()
            assert paths(script.sent) == [b"/", b"/", b"/after"], cut


def test_most_of_a_large_body_read_is_a_small_rest_too() -> None:
    def app(environ: Environ, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/":
            environ["wsgi.input"].read(LARGE - 100)
        start_response("200 OK", TEXT)
        return [environ["PATH_INFO"].encode() + b" 0\n"]

    data = post((BAIT * LARGE)[:LARGE]) + AFTER
    script = Script(streaming(app), pieces_of(data, range(0, len(data), 65536))).play()
    assert (paths(script.sent), script.closed) == ([b"/", b"/after"], False)


@pytest.mark.parametrize("read", [0, 1000])
@pytest.mark.parametrize("chunk", [0, 5000])
def test_a_large_rest_closes_as_announced_and_lingers(read: int, chunk: int) -> None:
    """The client is still sending: a close at once would be a reset, which takes the response along (RFC 9112 §9.6)."""
    data = post((BAIT * LARGE)[:LARGE], chunk) + AFTER
    pieces = pieces_of(data, range(100, len(data), 65536))
    script = Script(streaming(partly(read)), pieces[:2]).play()
    assert script.connection.state == LINGERING
    assert b"\r\nConnection: close\r\n" in script.sent
    script.pieces.extend(pieces[2:])
    assert (paths(script.play().sent), script.closed) == ([b"/"], True)


def test_an_unread_chunked_body_is_never_a_request() -> None:
    """All of it here before the call: the connection may go on. Else nobody knows how much is to come: it closes."""
    data = post(BAIT * 2, 10) + AFTER
    for cut in range(1, len(data)):
        script = Script(streaming(partly(0)), [data[:cut], data[cut:]]).play()
        assert paths(script.sent) == ([b"/"] if script.closed else [b"/", b"/after"])
        assert (b"\r\nConnection: close\r\n" in script.sent) is script.closed
    assert paths(Script(streaming(partly(0)), [data]).play().sent) == [b"/", b"/after"]


def test_a_client_that_leaves_while_its_rest_is_discarded() -> None:
    for how in ("ends", "resets"):
        script = Script(streaming(partly(0)), [post(BAIT * 10)[:-5]], how).play()
        assert (paths(script.sent), script.connection.state) == ([b"/"], CLOSED)


def test_a_rest_that_does_not_come_is_not_waited_for_for_ever() -> None:
    script = Script(streaming(partly(0)), [post(BAIT * 10)[:-5]]).play()
    assert script.connection.deadline < float("inf")
    script.connection.expire()
    assert (paths(script.sent), script.connection.state) == ([b"/"], CLOSED)


def test_an_application_that_keeps_the_input_gets_nothing_of_the_next_request() -> None:
    kept: list[Any] = []

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        kept.append(environ["wsgi.input"])
        if environ["PATH_INFO"] == "/":
            assert environ["wsgi.input"].read(5) == BAIT[:5]
        start_response("200 OK", TEXT)
        return [environ["PATH_INFO"].encode() + b" 0\n"]

    data = post(BAIT)
    head = data.index(b"\r\n\r\n") + 4
    script = Script(streaming(app), [data[:head], data[head : head + 5]]).play()
    script.wire.incoming.append(data[head + 5 :] + AFTER)
    with pytest.raises(OSError, match="over"):
        kept[0].read()
    script._turn()
    assert paths(script.sent) == [b"/", b"/after"]


# ---- Expect: 100-continue ----------------------------------------------------------------------------------


EXPECT = b"Expect: 100-continue\r\n"


@pytest.mark.parametrize("chunk", [0, 2])
def test_continue_is_sent_once_when_the_application_reads(chunk: int) -> None:
    script: Script
    before: list[bytes] = []

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        before.append(script.sent)
        if environ["PATH_INFO"] == "/":
            got = environ["wsgi.input"].read(1), environ["wsgi.input"].read()
            assert got == (b"b", b"ody")
        start_response("200 OK", TEXT)
        return [environ["PATH_INFO"].encode() + b" 0\n"]

    data = post(b"body", chunk, EXPECT)
    head = data.index(b"\r\n\r\n") + 4
    script = Script(streaming(app), [data[:head], *bytewise(data[head:]), AFTER])
    script.play()
    assert before[0] == b""
    assert statuses(script.sent) == [100, 200, 200]
    assert not script.closed
    # A client that does not wait for it need not get it, but not twice.
    script = Script(streaming(app), [data + AFTER])
    assert script.play().final == [200, 200]
    assert statuses(script.sent).count(100) <= 1


@pytest.mark.parametrize("chunk", [0, 2])
def test_who_refuses_unread_sends_no_continue_and_closes(chunk: int) -> None:
    """The client may send its body or leave it out: what comes next is nobody's (gevent #2075, "0.CL")."""

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        start_response("401 Unauthorized", TEXT)
        return [environ["PATH_INFO"].encode() + b" 0\n"]

    data = post(BAIT, chunk, EXPECT)
    head = data.index(b"\r\n\r\n") + 4
    for rest in ([data[head:]], bytewise(data[head:]), [AFTER], []):
        script = Script(streaming(app), [data[:head], *rest]).play()
        assert statuses(script.sent) == [401]
        assert b"\r\nConnection: close\r\n" in script.sent
        assert (paths(script.sent), script.closed) == ([b"/"], True)


def test_continue_does_not_follow_a_final_response() -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b"first"
        yield environ["wsgi.input"].read()

    data = post(b"body", 0, EXPECT)
    script = Script(streaming(app), [data[:-4], data[-4:]]).play()
    assert statuses(script.sent) == [200]
    assert b"100" not in script.sent
    assert script.sent.endswith(b"4\r\nbody\r\n0\r\n\r\n")
    assert script.closed


# ---- what breaks off -----------------------------------------------------------------------------------


BROKEN = {
    "by length, ended": (post(b"x" * 100)[:-1], "ends", 400),
    "by length, nothing": (post(b"x" * 100)[:-100], "ends", 400),
    "by length, reset": (post(b"x" * 100)[:-1], "resets", 400),
    "by length, silent": (post(b"x" * 100)[:-1], "waits", 408),
    "chunked, nothing": (post(b"", 5)[:-5], "ends", 400),
    "chunked, within data": (post(b"x" * 100, 30)[:-20], "ends", 400),
    "chunked, between chunks": (post(b"x" * 100, 50)[:-5], "ends", 400),
    "chunked, within the last": (post(b"x" * 100, 50)[:-2], "ends", 400),
    "chunked, within trailers": (post(b"x" * 100, 50)[:-2] + b"A: b\r\n", "ends", 400),
    "chunked, reset": (post(b"x" * 100, 50)[:-5], "resets", 400),
    "chunked, silent": (post(b"x" * 100, 50)[:-5], "waits", 408),
    "chunked, no size": (post(b"x" * 100, 50)[:-5] + b"x\r\n", "waits", 400),
    "chunked, bare LF": (post(b"x" * 100, 50)[:-5] + b"1\nx\r\n", "waits", 400),
    "chunked, data too long": (post(b"x" * 100, 50)[:-5] + b"1\r\nxx\r\n", "waits", 400),
    "chunked, too large": (post(b"x" * 100, 50)[:-5] + b"fffff\r\n", "waits", 413),
    "chunked, bad trailer": (post(b"x" * 100, 50)[:-2] + b"A : b\r\n\r\n", "waits", 400),
    "chunked, trailer too large": (post(b"x" * 100, 50)[:-2] + b"A: " + b"b" * 9000 + b"\r\n\r\n", "waits", 431),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_body_raises_and_is_the_clients_fault(name: str, warnings: list[logging.LogRecord]) -> None:
    data, how, status = BROKEN[name]
    data += AFTER if how == "waits" and status != 408 else b""
    head = data.index(b"\r\n\r\n") + 4
    raised: list[BodyError] = []

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        assert environ["PATH_INFO"] == "/"
        for _ in range(3):
            try:
                environ["wsgi.input"].read()
            except BodyError as error:
                raised.append(error)
        raise raised[-1]

    context = streaming(app, body_limit=1000)
    for pieces in ([data[:head], data[head:]], bytewise(data), [data[:head], data[head:][:9], data[head + 9 :]]):
        warnings.clear()
        raised.clear()
        script = Script(context, pieces, how)
        script.play()
        assert (script.final, script.closed) == ([status], True)
        assert b"\r\nConnection: close\r\n" in script.sent
        if raised:  # else it was refused before the call, as without streaming
            assert [error.status for error in raised] == [status] * 3
            assert all(isinstance(error, OSError) for error in raised)
        if "reset" in name:
            assert warnings == []  # a client that has left is no news
        else:
            expect_one_warning(warnings, status)


@pytest.mark.parametrize("name", BROKEN)
def test_an_application_may_answer_a_broken_body_itself(name: str) -> None:
    data, how, status = BROKEN[name]
    head = data.index(b"\r\n\r\n") + 4

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        with pytest.raises(OSError, match=r"\w"):
            environ["wsgi.input"].read()
        start_response("422 Unprocessable", [("Content-Length", "4")])
        return [b"mine"]

    script = Script(
        streaming(app, body_limit=1000),
        [data[:head], *pieces_of(data[head:], [5]), AFTER * (how == "waits" and status != 408)],
        how,
    ).play()
    assert (script.final, script.closed) == ([422], True)
    assert b"\r\nConnection: close\r\n" in script.sent


@pytest.mark.parametrize("length", [True, False])
def test_a_response_that_has_begun_is_cut_visibly(length: bool, warnings: list[logging.LogRecord]) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "10")] if length else TEXT)
        yield b"first"
        yield environ["wsgi.input"].read()

    script = Script(streaming(app), [post(b"x" * 50)[:-5]], "ends").play()
    assert script.final == [200]
    assert script.sent.endswith(b"\r\n\r\nfirst" if length else b"5\r\nfirst\r\n")
    assert script.closed
    expect_one_warning(warnings, 400)


def test_a_broken_body_read_in_close_is_the_clients_fault_too(warnings: list[logging.LogRecord]) -> None:
    class Result:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __iter__(self) -> Iterator[bytes]:
            yield b"done\n"

        def close(self) -> None:
            self.file.read()

    def app(environ: Environ, start_response: Any) -> Result:
        start_response("200 OK", TEXT)
        return Result(environ["wsgi.input"])

    data = post(b"x" * 50)
    whole = Script(streaming(app), [data[:-5], data[-5:] + AFTER]).play()
    assert (whole.final, whole.closed) == ([200, 200], False)
    assert warnings == []
    broken = Script(streaming(app), [data[:-5]], "ends").play()
    assert (broken.final, broken.closed) == ([200], True)
    expect_one_warning(warnings, 400)


# ---- time ---------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(wsgiserv.net.body_stream, "monotonic", made)
    return made


class Slow(Script):
    """A client that takes ``pause_s`` for each piece somebody waits for."""

    def __init__(self, clock: Clock, pause_s: float, *others: Any) -> None:
        super().__init__(*others)
        self._clock = clock
        self._pause_s = pause_s

    def wait_readable(self, connection: object) -> bool:
        self._clock.now += self._pause_s
        return super().wait_readable(connection)


def test_a_trickle_is_ended_by_body_min_rate(clock: Clock, warnings: list[logging.LogRecord]) -> None:
    context = streaming(Reader(), body_timeout=30.0, body_min_rate=240)
    for data in (post(b"x" * 1000), post(b"x" * 1000, 1)):
        warnings.clear()
        begun = clock.now
        head = data.index(b"\r\n\r\n") + 4
        script = Slow(clock, 10.0, context, [data[:head], *bytewise(data[head:])]).play()
        assert (script.final, script.closed) == ([408], True)
        assert 30 <= clock.now - begun <= 60
        expect_one_warning(warnings, 408)


def test_who_keeps_the_rate_may_take_long(clock: Clock) -> None:
    data = post(b"x" * 100_000)
    reader = Reader()
    pieces = pieces_of(data, range(100, len(data), 2500))
    script = Slow(clock, 10.0, streaming(reader, body_timeout=30.0, body_min_rate=240), pieces).play()
    assert script.final == [200]
    assert clock.now > 1000.0 + 300


def test_a_slow_application_is_not_blamed_on_its_client(clock: Clock) -> None:
    def app(environ: Environ, start_response: Any) -> list[bytes]:
        size = 0
        while data := environ["wsgi.input"].read(10):
            size += len(data)
            clock.now += 100.0
        start_response("200 OK", TEXT)
        return [b"%d" % size]

    data = post(b"x" * 100)
    script = Slow(
        clock, 0.5, streaming(app, body_timeout=30.0, body_min_rate=240), pieces_of(data, range(50, 999, 10))
    ).play()
    assert script.final == [200]
    assert script.sent.endswith(b"100")


def test_an_overdue_request_reads_no_further_and_closes(warnings: list[logging.LogRecord]) -> None:
    """``request_timeout``: the client has its 504, and behind the end of TLS what still comes is enciphered."""

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read(5)
        start_response.__self__.time_out()
        assert start_response.__self__.overdue == OVERDUE
        with pytest.raises(OSError, match="over"):
            environ["wsgi.input"].read(20)
        raise TimeoutError("overdue")

    data = post(b"x" * 50)
    script = Script(streaming(app), [data[:-40], data[-40:], AFTER]).play()
    assert (script.final, script.closed) == ([504], True)
    assert b"\r\nConnection: close\r\n" in script.sent
