"""`Response` and `run_app` against PEP 3333 and RFC 9112 §6, without sockets."""

from __future__ import annotations

import enum
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wsgiserv.http.response import date_line
from wsgiserv.wsgi.filewrapper import FileWrapper
from wsgiserv.wsgi.response import ClientGone, Response
from wsgiserv.wsgi.response_context import ResponseContext
from wsgiserv.wsgi.run import run_app


class Wire:
    """A sink that keeps what it gets; ``gone_after`` bytes the client leaves."""

    def __init__(self, gone_after: int = sys.maxsize) -> None:
        self.data = b""
        self.sends = 0
        self.left = gone_after

    def send(self, data: bytes) -> None:
        self.sends += 1
        self.left -= len(data)
        if self.left < 0:
            raise ClientGone
        self.data += data

    def send_last(self, data: bytes) -> None:
        self.send(data)

    def send_pair(self, head: bytes, body: bytes) -> None:
        self.send(head + body)

    def set_streaming(self, streaming: bool) -> None:
        pass

    def send_file(self, fd: int, offset: int, count: int) -> None:
        self.send(os.pread(fd, count, offset))

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


def call(
    app: Callable[..., Any],
    *,
    http11: bool = True,
    is_head: bool = False,
    keep_alive: bool = True,
    wire: Wire | None = None,
) -> tuple[Wire, Response, BaseException | None]:
    wire = wire or Wire()
    context = ResponseContext(logging.getLogger("test.response"), date_line(0))
    response = Response(wire, context, http11, is_head, keep_alive)
    return wire, response, run_app(app, {}, response)


def answering(result: Any, headers: list[tuple[str, str]] | None = None, status: str = "200 OK") -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, list(headers or []))
        return result

    return app


def test_a_single_block_gets_its_length_and_leaves_in_one_send() -> None:
    wire, response, failure = call(answering([b"hello"]))
    assert wire.head.endswith(b"\r\nContent-Length: 5")
    assert wire.body == b"hello"
    assert (wire.sends, response.sent, response.keep_alive, failure) == (1, 5, True, None)
    assert wire.head.count(b"\r\nDate: ") == wire.head.count(b"\r\nServer: ") == 1


def test_a_tuple_of_one_block_is_a_single_block_too() -> None:
    assert b"Content-Length: 5" in call(answering((b"hello",)))[0].head


def test_several_blocks_are_chunked_for_1_1_and_end_with_the_close_for_1_0() -> None:
    wire, response, _ = call(answering([b"ab", b"", b"c"]))
    assert b"\r\nTransfer-Encoding: chunked" in wire.head
    assert wire.body == b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert response.keep_alive
    wire, response, _ = call(answering([b"ab", b"c"]), http11=False)
    assert b"Transfer-Encoding" not in wire.head
    assert b"\r\nConnection: close" in wire.head
    assert wire.body == b"abc"
    assert not response.keep_alive


def test_each_block_is_sent_before_the_next_is_asked_for() -> None:
    wire = Wire()

    def blocks() -> Iterator[bytes]:
        yield b"one"
        assert wire.body == b"3\r\none\r\n"
        yield b"two"
        assert wire.body.endswith(b"3\r\ntwo\r\n")

    assert call(answering(blocks()), wire=wire)[2] is None


def test_an_empty_result_has_length_zero() -> None:
    for result in ([], [b""], iter(())):
        wire, _, failure = call(answering(result))
        assert b"\r\nContent-Length: 0" in wire.head
        assert wire.body == b""
        assert failure is None


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_statuses_without_a_body_send_none(status: str) -> None:
    for result in ([b"hello"], iter([b"hello", b"x"]), []):
        wire, response, failure = call(answering(result, status=status))
        assert wire.body == b""
        assert b"Content-Length" not in wire.head
        assert b"Transfer-Encoding" not in wire.head
        assert response.keep_alive
        assert failure is None


def test_head_sends_no_body_and_keeps_the_length_that_get_would_have() -> None:
    assert call(answering([b"hello"]), is_head=True)[0].data.endswith(b"Content-Length: 5\r\n\r\n")
    wire = call(answering([b""], [("Content-Length", "5")]), is_head=True)[0]
    assert wire.head.count(b"Content-Length: 5") == 1
    assert wire.body == b""
    assert call(answering(iter([b"a", b"b"])), is_head=True)[0].body == b""
    assert b"Content-Length" not in call(answering([b""]), is_head=True)[0].head


def test_a_body_longer_than_its_length_is_cut() -> None:
    for result in ([b"hello world"], iter([b"hel", b"lo wor", b"ld"])):
        wire, response, _ = call(answering(result, [("Content-Length", "5")]))
        assert wire.body == b"hello"
        assert response.sent == 5


def test_a_body_shorter_than_its_length_closes_the_connection() -> None:
    for result in ([b"hel"], iter([b"h", b"el"]), []):
        _, response, _ = call(answering(result, [("Content-Length", "5")]))
        assert not response.keep_alive


def test_write_comes_before_the_result() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "6")])
        write(b"one")
        return [b"two"]

    wire, response, failure = call(app)
    assert (wire.body, response.keep_alive, failure) == (b"onetwo", True, None)


def test_a_generator_may_call_start_response_late() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield b""
        start_response("201 Created", [])
        yield b"x"

    assert call(app)[0].head.startswith(b"HTTP/1.1 201 Created\r\n")


class Boom(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), Boom(), GeneratorExit()])
def test_whatever_the_application_raises_costs_one_500(error: BaseException) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        raise error

    wire, response, failure = call(app)
    assert wire.head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert failure is error
    assert response.keep_alive
    assert failure.__traceback__ is not None
    assert failure.__traceback__.tb_frame.f_code.co_name == "app"  # the user's own frames only


@pytest.mark.parametrize("result", [None, 5, b"bytes", "str", ["str"], [None], [5], iter(["str"]), [bytearray(b"x")]])
def test_nonsense_is_a_500(result: Any) -> None:
    wire, _, failure = call(answering(result))
    assert wire.head.startswith(b"HTTP/1.1 500 ")
    assert isinstance(failure, TypeError)


def test_no_start_response_is_a_500() -> None:
    for result in ([b"x"], [], iter([b"x"]), [b"x", b"y"]):
        wire, _, failure = call(lambda environ, start_response, result=result: result)
        assert wire.head.startswith(b"HTTP/1.1 500 ")
        assert failure is not None


def test_start_response_twice_needs_exc_info() -> None:
    def twice(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        start_response("200 OK", [])
        return [b""]

    assert call(twice)[0].head.startswith(b"HTTP/1.1 500 ")

    def recovering(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X", "1")])
        try:
            raise ValueError("late")
        except ValueError:
            start_response("503 Oops", [("Y", "2")], sys.exc_info())
        return [b"sorry"]

    wire, _, failure = call(recovering)
    assert wire.head.startswith(b"HTTP/1.1 503 Oops\r\n")
    assert b"X: 1" not in wire.head
    assert failure is None


def test_exc_info_after_the_head_is_raised_again_and_the_client_can_tell() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        try:
            raise ValueError("late")
        except ValueError:
            start_response("500 Late", [], sys.exc_info())
        yield b"never"

    wire, response, failure = call(app)
    assert isinstance(failure, ValueError)
    assert not wire.body.endswith(b"0\r\n\r\n")
    assert b"never" not in wire.body
    assert not response.keep_alive
    wire, response, _ = call(app, http11=False)
    assert response.aborted  # only a reset tells a client of a body that the close ends


class Closing:
    def __init__(self, blocks: list[Any], close_error: BaseException | None = None) -> None:
        self.blocks = iter(blocks)
        self.closed = 0
        self.error = close_error

    def __iter__(self) -> Iterator[Any]:
        return self.blocks

    def close(self) -> None:
        self.closed += 1
        if self.error:
            raise self.error


def test_close_is_called_exactly_once_whatever_happens() -> None:
    for result, wire in (
        (Closing([b"a", b"b"]), Wire()),
        (Closing([]), Wire()),
        (Closing(["bad"]), Wire()),
        (Closing([b"a" * 1000, b"b" * 1000]), Wire(gone_after=1100)),
        (Closing([b"a"], ValueError("in close")), Wire()),
        (Closing([b"a"], SystemExit(1)), Wire()),
    ):
        call(answering(result), wire=wire)
        assert result.closed == 1
    head = Closing([b"a", b"b"])
    call(answering(head), is_head=True)
    assert head.closed == 1


def test_a_client_that_leaves_is_not_the_applications_fault() -> None:
    _, response, failure = call(answering(iter([b"a" * 1000, b"b"])), wire=Wire(gone_after=10))
    assert isinstance(failure, ClientGone)
    assert not response.keep_alive


def test_invalid_headers_raise_into_the_application_and_never_reach_the_wire() -> None:
    wire, _, failure = call(answering([b"x"], [("X", "a\r\nSet-Cookie: b")]))
    assert wire.head.startswith(b"HTTP/1.1 500 ")
    assert b"Set-Cookie" not in wire.data
    assert isinstance(failure, ValueError)


def test_a_file_is_handed_to_the_kernel_from_where_its_reader_stands(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    for headers, expected, keep in (
        ([], b"456789", True),
        ([("Content-Length", "3")], b"456", True),
        ([("Content-Length", "9")], b"456789", False),
    ):
        with path.open("rb") as file:
            file.read(4)
            wire, response, failure = call(answering(FileWrapper(file), headers))
            assert file.closed
        assert wire.body == expected
        assert response.keep_alive is keep
        assert failure is None
        assert b"Transfer-Encoding" not in wire.head


def test_a_file_that_is_none_is_read() -> None:
    wire, _, failure = call(answering(FileWrapper(io.BytesIO(b"abc"))))
    assert wire.body == b"3\r\nabc\r\n0\r\n\r\n"
    assert failure is None


def test_an_announced_close_is_in_the_head() -> None:
    for result in ([b"x"], iter([b"x"]), []):
        assert b"\r\nConnection: close" in call(answering(result), keep_alive=False)[0].head


def test_early_hints_go_before_the_response_to_1_1_only() -> None:
    wire, context = Wire(), ResponseContext(logging.getLogger("test.response"), date_line(0))
    response = Response(wire, context, True, False, True)
    response.early_hints([("Link", "</style.css>; rel=preload")])
    run_app(answering([b"x"]), {}, response)
    assert wire.data.startswith(
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n"
    )
    before = len(wire.data)
    response.early_hints([("Link", "late")])
    assert len(wire.data) == before
    old = Wire()
    Response(old, context, False, False, True).early_hints([("Link", "x")])
    assert old.data == b""
    for bad in [("Link", "a\r\nX: y")], [(b"Link", b"a\n")], [(b"Li nk", b"a")], [("Content-Length", "1")]:
        with pytest.raises(ValueError, match=r"Link|Length|Li nk"):
            Response(old, context, True, False, True).early_hints(bad)
    for wrong in [("Link", 1)], [("Link", bytearray(b"a"))], {"Link": "a"}, [b"ab"], None:
        with pytest.raises(TypeError, match="header"):
            Response(old, context, True, False, True).early_hints(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Link", b" </\xe9.css> ")],
        [["Link", b"</\xe9.css>"]],
        ((b"Link", "</\xe9.css>"),),
        {b"Link": b"</\xe9.css>"}.items(),
        [("Connection", "x-hop"), (b"X-Hop", b"1"), (b"Link", b"</\xe9.css>"), (b"keep-alive", "5")],
    ],
)
def test_early_hints_may_be_bytes_in_any_iterable(headers: Any, caplog: pytest.LogCaptureFixture) -> None:
    wire, context = Wire(), ResponseContext(logging.getLogger("test.response"), date_line(0))
    Response(wire, context, True, False, True).early_hints(headers)
    assert wire.data == b"HTTP/1.1 103 Early Hints\r\nLink: </\xe9.css>\r\n\r\n"
    assert len(caplog.records) == (3 if len(headers) == 4 else 0)


def answer(context: ResponseContext, headers: Any, request_line: bytes = b"") -> tuple[Wire, Response]:
    wire = Wire()
    response = Response(wire, context, True, False, True, request_line)
    assert run_app(answering([b"x"], headers), {}, response) is None
    return wire, response


def test_a_dropped_header_is_told_once_per_name(caplog: pytest.LogCaptureFixture) -> None:
    context = ResponseContext(logging.getLogger("test.response"), date_line(0))
    for _ in range(3):
        wire, response = answer(context, [("Connection", "keep-alive")], b"GET /events?key=secret HTTP/1.1")
        assert response.keep_alive
        assert b"onnection" not in wire.head
        answer(context, [("connection", "keep-alive"), ("Keep-Alive", "timeout=5")], b"POST /b HTTP/1.1")
        answer(context, [("X-A", "1")], b"GET /fine HTTP/1.1")
    messages = [record.getMessage() for record in caplog.records]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert messages[0].startswith("WS1600 GET /events: response header Connection dropped")
    assert messages[1].startswith("WS1600 POST /b: response header Keep-Alive dropped")
    assert "secret" not in caplog.text
    for number in range(500):  # an application that makes names up does not fill the memory, nor the log
        answer(context, [("Connection", f"X-{number}"), (f"X-{number}", "1")])
    assert len(caplog.records) < 100


def test_connection_close_closes_and_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    context = ResponseContext(logging.getLogger("test.response"), date_line(0))
    for headers in [("Connection", "close")], [("Connection", "Close"), ("Content-Length", "1")]:
        wire, response = answer(context, headers)
        assert not response.keep_alive
        assert wire.head.count(b"\r\nConnection: close") == 1
        assert response.headers == tuple(headers[1:])
    assert answer(context, [])[1].keep_alive
    assert not caplog.records


def test_the_date_is_that_of_the_head_however_long_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_000_000.5]
    for module in "response", "response_context":
        monkeypatch.setattr(f"wsgiserv.wsgi.{module}.time", lambda: clock[0])
    context = ResponseContext(logging.getLogger("test.response"), date_line(0))
    context.renew_date(0.0)

    def slow(result: Any) -> Callable[..., Any]:
        def app(environ: dict[str, Any], start_response: Any) -> Any:
            start_response("200 OK", [])
            clock[0] += 4
            return result

        return app

    for result in [b"x"], [b"x", b"y"], iter([b"x"]), [], (b"x",), [b"x" * 100_000]:
        clock[0] += 0.25
        wire = Wire()
        run_app(slow(result), {}, Response(wire, context, True, False, True))
        assert date_line(clock[0]) in wire.head + b"\r\n"


def test_a_status_is_sent_as_its_own_content() -> None:
    class Status(str, enum.Enum):  # noqa: UP042 - StrEnum is the harmless one
        TEAPOT = "418 I'm a teapot"

    wire, response, _ = call(answering([b"x"], status=Status.TEAPOT))
    assert wire.head.startswith(b"HTTP/1.1 418 I'm a teapot\r\n")
    assert (type(response.status), response.status, response.code) == (str, "418 I'm a teapot", 418)


# ---- FileWrapper -----------------------------------------------------------------------------------------


def test_a_file_wrapper_has_the_position_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        wrapper = FileWrapper(file, 4)
        assert wrapper.seekable()
        assert wrapper.tell() == 0
        blocks = iter(wrapper)
        assert blocks is wrapper
        assert next(blocks) == b"0123"
        assert wrapper.seek(2) == 2
        assert list(blocks) == [b"2345", b"6789"]
        wrapper.seek(-3, 2)
        assert wrapper.tell() == file.tell() == 7
        wire, _, failure = call(answering(wrapper))
        assert (wire.body, failure) == (b"789", None)


def test_a_file_wrapper_of_what_cannot_seek_says_so() -> None:
    class Stream:
        def read(self, size: int) -> bytes:
            return b""

    class Seeking(Stream):
        def seek(self, position: int) -> None: ...

        def tell(self) -> int:
            return 0

    class Denying(Seeking):
        def seekable(self) -> bool:
            return False

    assert not FileWrapper(Stream()).seekable()
    assert not hasattr(FileWrapper(Stream()), "seek")
    assert not hasattr(FileWrapper(Stream()), "tell")
    assert FileWrapper(Seeking()).seekable()
    assert not FileWrapper(Denying()).seekable()
    reader, writer = os.pipe()
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert not FileWrapper(pipe).seekable()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path", ["/proc/self/status", "/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/self/environ"]
)
def test_a_file_that_does_not_know_its_size_is_read(path: str, method: str) -> None:
    try:
        content = Path(path).read_bytes()
    except OSError:
        pytest.skip(f"no {path} here")
    with open(path, "rb") as file:
        wire, response, failure = call(answering(FileWrapper(file)), is_head=method == "HEAD")
    assert failure is None
    assert response.keep_alive
    assert b"Content-Length" not in wire.head
    if method == "GET":
        assert b"Transfer-Encoding: chunked" in wire.head
        assert wire.body.endswith(b"\r\n0\r\n\r\n")
        size, _, rest = wire.body.partition(b"\r\n")
        assert rest[:5] == content[:5]
        if len(content) <= 65536 and not path.endswith("status"):  # that counts its own reads
            assert abs(int(size, 16) - len(content)) < 64


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_file_without_blocks_is_handed_to_the_kernel_where_its_size_is_true(
    tmp_path: Path, size: int, is_sparse: bool
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        if is_sparse:
            file.truncate(size)
        else:
            file.write(bytes(size))
    for offset in {0, size // 2, size}:
        with path.open("rb") as file:
            file.seek(offset)
            extent = FileWrapper(file).extent()
            assert extent is not None
            assert extent[1:] == (offset, size - offset)


def test_a_response_goes_to_the_sink_that_it_is_redirected_to() -> None:
    first, second = Wire(), Wire()
    response = Response(first, ResponseContext(logging.getLogger("test.response"), date_line(0)), True, False, True)
    assert response.redirect(second) is first
    assert run_app(answering([b"x"]), {}, response) is None
    assert first.data == b""
    assert second.body == b"x"


def test_a_closed_connection_is_not_kept_open_again() -> None:
    response = call(answering([b"x"]))[1]
    response.allow_keep_alive(False)
    response.allow_keep_alive(True)
    assert response.keep_alive
    response.close_connection()
    response.allow_keep_alive(True)
    assert not response.keep_alive
    never = call(answering([b"x"]), keep_alive=False)[1]
    never.allow_keep_alive(True)
    assert not never.keep_alive


def test_only_a_response_in_one_piece_is_unsent_when_the_client_had_gone() -> None:
    whole, streamed = call(answering([b"x"]))[1], call(answering([b"x", b"y"]))[1]
    for response in whole, streamed:
        response.note_client_gone()
    assert (whole.unsent, streamed.unsent) == (True, False)


def test_the_sink_is_told_of_a_stream_while_it_lasts() -> None:
    wire = Wire()
    told: list[bool] = []
    wire.set_streaming = told.append  # type: ignore[method-assign]
    call(answering([b"whole"]), wire=wire)
    assert told == []
    call(answering(iter([b"a", b"b"])), wire=wire)
    assert told == [True, False]


def test_the_call_before_a_stream_is_made_once_and_not_for_a_whole_response() -> None:
    for result, calls in ([b"x"], 0), (iter([b"a", b"b"]), 1):
        made: list[None] = []
        wire, context = Wire(), ResponseContext(logging.getLogger("test.response"), date_line(0))
        response = Response(wire, context, True, False, True)
        response.call_before_stream(lambda made=made: made.append(None))  # type: ignore[misc]
        assert run_app(answering(result), {}, response) is None
        assert len(made) == calls


def test_frames_of_the_server_do_not_precede_the_applications_in_a_traceback() -> None:
    def blocks() -> Iterator[bytes]:
        yield b"a"
        raise LookupError

    failure = call(answering(blocks()))[2]
    assert failure is not None
    assert failure.__traceback__ is not None
    assert failure.__traceback__.tb_frame.f_code.co_name == "blocks"
