"""One response: ``start_response``, ``write`` and the framing of its body (PEP 3333, RFC 9112 §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from time import time
from types import TracebackType
from typing import Final, Protocol, cast

from wsgiserv.http.response import CHUNKED, CLOSE, KEEP_ALIVE, LAST_CHUNK, HeadTemplate, content_length
from wsgiserv.process import SERVER_PROCESS, leave
from wsgiserv.user_code import is_a
from wsgiserv.wsgi.filewrapper import FileWrapper
from wsgiserv.wsgi.input import BodyError
from wsgiserv.wsgi.response_context import ResponseContext

ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

# States of `Response.overdue`.
IN_TIME = 0
OVERDUE = 1
ANSWERED = 2

# An iterable may yield this many empty blocks in a row behind a complete response; more, and it is taken for endless.
_MOST_EMPTY: Final = 1000
# An application may write() a body that is not sent, for instance in reply to HEAD: up to its declared length or this.
_MOST_UNSENT: Final = 1024 * 1024
# A longer body is not copied behind its head (measured: up to about here the copy is cheaper than a second buffer).
_COPY_UP_TO = 32 * 1024

# Stands for the status and headers until start_response() is called.
_UNSET: Final = HeadTemplate(b"", 500, -1, False, False, "", (), (), False)
# The same for the response of an application that has taken the socket, and writes there by itself.
_TAKEN: Final = HeadTemplate(b"", 101, -1, True, False, "101 Switching Protocols", (), (), False)
_ERROR_STATUS = "500 Internal Server Error"
# The answer to an overdue request, the same in all worker classes.
TIMEOUT_STATUS: Final = "504 Gateway Timeout"
TIMEOUT_REASON: Final = "the request took too long"
TIMEOUT_BODY: Final = f"{TIMEOUT_STATUS}: {TIMEOUT_REASON}\n".encode()
TIMEOUT_HEADERS: Final = (("Content-Type", "text/plain; charset=utf-8"),)


class ClientGone(Exception):
    """The client has closed the connection: nothing more can be sent. Raised by a `Sink`."""


class BodyTooLong(Exception):
    """The application goes on after its complete response (PEP 3333, "Handling the Content-Length Header").

    The client has all promised bytes, and its connection stays open.
    """


class Sink(Protocol):
    """Takes the bytes of a response: a connection."""

    def send(self, data: bytes) -> None:
        """Send or queue ``data``, in order. Raises `ClientGone`."""

    def send_last(self, data: bytes) -> None:
        """The same for a whole response, behind which the connection stays open: it may wait for others."""

    def send_pair(self, head: bytes, body: bytes) -> None:
        """Send or queue two pieces without joining them. Raises `ClientGone`."""

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send or queue ``count`` bytes of a file; ``fd`` may be closed after the call. Raises `ClientGone`."""

    def set_streaming(self, streaming: bool) -> None:
        """Tell whether blocks of a body of unknown length follow: their producer may have to wait for the client."""

    def give_up(self, take: Callable[[], None]) -> None:
        """Call ``take`` at a moment at which nobody else answers the client. Raises `ClientGone`: another one has."""


class _Nowhere:
    """The sink of a response that is not sent."""

    def send(self, data: bytes) -> None: ...
    def send_last(self, data: bytes) -> None: ...
    def send_pair(self, head: bytes, body: bytes) -> None: ...
    def send_file(self, fd: int, offset: int, count: int) -> None: ...
    def set_streaming(self, streaming: bool) -> None: ...
    def give_up(self, take: Callable[[], None]) -> None: ...


_NOWHERE: Final = _Nowhere()


class Response:
    """The state of one response.

    Args:
        sink: takes its bytes.
        context: data shared by the worker's responses.
        http11: whether the client speaks HTTP/1.1.
        is_head: whether the method is HEAD.
        keep_alive: whether the connection stays open after it.
        request_line: the line of the request, empty when there is none; for the log.

    Attributes:
        keep_alive: may become False while the response is made.
        begun: whether its head has been sent: no other response can replace it any more.
        sent: body bytes sent, without framing.
        aborted: it ended early, and the client could take it for complete: its connection is to be reset.
        incomplete: it began, and ended early.
        unsent: the client had gone before its first byte.
        overdue: `IN_TIME`, `OVERDUE` (a failure is answered with 504), or `ANSWERED` (a 504 has been sent instead).
    """

    # Made for each request: slots spare it an instance dictionary.
    __slots__ = (
        "_before_stream", "_chunked", "_cut", "_http11", "_left", "_may_keep_alive", "_sink", "_template", "aborted",
        "begun", "context", "incomplete", "is_head", "keep_alive", "overdue", "request_line", "sent", "unsent",
    )  # fmt: skip

    def __init__(
        self,
        sink: Sink,
        context: ResponseContext,
        http11: bool,
        is_head: bool,
        keep_alive: bool,
        request_line: bytes = b"",
    ) -> None:
        self._sink = sink
        self.context = context
        self._http11 = http11
        self.is_head = is_head
        self.keep_alive = self._may_keep_alive = keep_alive
        self.request_line = request_line
        self._template = _UNSET
        self._chunked = False
        self._cut = False
        self._left = -1  # body bytes still owed to the declared length; -1 without one
        self.begun = False
        self.sent = 0
        self.aborted = False
        self.incomplete = False
        self.unsent = False
        self._before_stream: Callable[[], None] | None = None
        self.overdue = IN_TIME

    # ---- its state, for the connection and the logs ----------------------------------------------------

    @property
    def status(self) -> str:
        """The status as sent, for example ``200 OK``; empty before there is one."""
        return self._template.status

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The application's headers as sent."""
        return self._template.fields

    @property
    def code(self) -> int:
        """The status code; 500 before there is one."""
        return 504 if self.overdue == ANSWERED else self._template.code

    @property
    def is_chunked(self) -> bool:
        """Whether its body is sent in chunks."""
        return self._chunked

    @property
    def is_whole(self) -> bool:
        """Whether all of the response has been sent."""
        return self.begun and (
            self._left == 0 or self._bodiless or (self._left < 0 and self._http11 and not self._chunked)
        )

    @property
    def missing(self) -> int:
        """The number of bytes missing from the declared length."""
        return max(0, self._left)

    @property
    def length(self) -> int | None:
        """The declared Content-Length in bytes, if there is one."""
        return self._template.length if self._template.length >= 0 else None

    @property
    def _bodiless(self) -> bool:
        return self.is_head or self._template.bodiless

    @property
    def is_taken(self) -> bool:
        """Whether the application has taken the socket: nothing of this response is sent."""
        return self._template is _TAKEN

    # ---- changes from outside --------------------------------------------------------------------------

    def redirect(self, sink: Sink) -> Sink:
        """Send to ``sink`` from now on. Returns the sink that it replaces."""
        replaced, self._sink = self._sink, sink
        return replaced

    def take(self) -> None:
        """Send nothing from now on: the application takes the socket. Raises `ClientGone`."""
        self._sink.give_up(self._end_sending)

    def _end_sending(self) -> None:
        self._template, self.begun, self._left, self._before_stream = _TAKEN, True, 0, None
        self.close_connection()
        self._sink = _NOWHERE

    def call_before_stream(self, prepare: Callable[[], None]) -> None:
        """Call ``prepare`` once before the head of a response that comes in pieces; it may raise `BodyError`."""
        # Before the head: the error can still be answered with its own status.
        self._before_stream = prepare

    def allow_keep_alive(self, allowed: bool) -> None:
        """Keep the connection open after the response, or not; never when it was to be closed from the beginning."""
        self.keep_alive = allowed and self._may_keep_alive

    def close_connection(self) -> None:
        """Close the connection after the response, whatever `allow_keep_alive` says later."""
        self.keep_alive = self._may_keep_alive = False

    def time_out(self, answered: bool = False) -> None:
        """Mark the request as overdue: from now on a failure is answered with 504, if nothing has been sent.

        Args:
            answered: whether the sink has sent a 504 itself.
        """
        self.overdue = ANSWERED if answered else OVERDUE
        self.close_connection()

    def note_client_gone(self) -> None:
        """Mark a response in one piece as unsent: the client had gone before."""
        self.unsent = self.begun and not self._chunked and self._left < 0

    # ---- the application's side ------------------------------------------------------------------------

    def start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333, "The start_response() Callable".

        Headers about the connection are not sent, as with gunicorn; ``Connection: close`` closes it.

        Raises:
            AssertionError: called a second time without ``exc_info``.
            TypeError, ValueError: the status or a header must not reach the wire.
        """
        if exc_info is not None:
            try:
                if self.begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no cycle through the traceback's frames
        elif self._template is not _UNSET:
            if self.is_taken:
                return self.write  # frameworks make a response all the same; nothing of it is sent
            raise AssertionError("start_response() was called a second time without exc_info")
        self._template = template = self.context.templates.get(status, headers)
        if names := template.hop_by_hop:
            if template.closes:
                self.close_connection()
                # `Connection: close` is obeyed, so nothing is wrong with it.
                names = tuple(name for name in names if name.lower() != "connection")
            self.context.warn_dropped(names, self.request_line)
        return self.write

    def early_hints(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """``environ["wsgi.early_hints"]``: send a 103 before the response (RFC 8297), any number of times.

        Names and values may be bytes, as with gunicorn. Nothing is sent to HTTP/1.0 clients, nor once the response has
        begun.

        Raises:
            TypeError, ValueError: a header must not reach the wire.
        """
        # Checked for HTTP/1.0 clients as well: a fault of the application shows in its first test.
        template = self.context.templates.early_hints(headers)
        self.context.warn_dropped(template.hop_by_hop, self.request_line)
        # RFC 9110 §15.2: no 1xx to an HTTP/1.0 client, which would take it for the response.
        if self._http11 and not self.begun:
            self._sink.send(template.prefix + b"\r\n")

    def write(self, data: bytes) -> None:
        """Send a block of the body: PEP 3333's ``write()``, and each item of an iterable.

        Raises:
            BodyTooLong: the block before was too much already: an application without an end is stopped.
        """
        if type(data) is not bytes:
            data = _plain(data)
        if not self.begun:
            self._begin(data)
        elif self._cut and data:
            raise self._too_long()
        elif self._left >= 0:
            if data := self._count_declared(data):
                self._sink.send(data)
        elif self._bodiless:
            self._count_unsent(data)
        elif data:  # a chunk of no bytes would be the last one
            self.sent += len(data)
            self._sink.send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _count_declared(self, data: bytes) -> bytes:
        """Count a block of a body of declared length. Returns it, cut at that length: no byte may follow the body."""
        if len(data) > self._left:
            self._cut = True
            data = data[: self._left]
        self._left -= len(data)
        self.sent += len(data)
        return data

    def _count_unsent(self, data: bytes) -> None:
        """Count a block that is not sent: the response has no body. `_left` counts down from -1."""
        self._left -= len(data)
        declared = self.length if self.is_head else None
        self._cut = -1 - self._left > (_MOST_UNSENT if declared is None else declared)

    def _too_long(self) -> BodyTooLong:
        if self.length is None:
            return BodyTooLong("the application goes on with a body that the response does not have")
        text = f"the application's body is longer than its Content-Length of {self.length}; the rest is dropped"
        return BodyTooLong(text)

    # ---- head and framing ------------------------------------------------------------------------------

    def _started(self) -> HeadTemplate:
        if self._template is _UNSET:
            raise AssertionError("the application did not call start_response()")
        return self._template

    def _head(self, framing: bytes = b"") -> bytes:
        template = self._started()
        # RFC 9110 §6.6.1: an origin server with a clock sends Date; a proxy must not have to guess it.
        date = b"" if template.has_date else self.context.date()
        return b"".join((template.prefix, date, framing, self._ending()))

    def _ending(self) -> bytes:
        """Return the Connection line and the empty line that ends a head."""
        # RFC 9112 §9.3: HTTP/1.1 stays open unless one side says close; HTTP/1.0 closes unless both say keep-alive.
        if self.keep_alive and self.context.keep_open:
            return b"\r\n" if self._http11 else KEEP_ALIVE + b"\r\n"
        self.keep_alive = False
        return CLOSE + b"\r\n"

    def _begin(self, data: bytes) -> None:
        """Send the head with the first block. Settles the framing (RFC 9112 §6.3)."""
        template = self._started()
        if self._before_stream is not None:
            prepare, self._before_stream = self._before_stream, None
            prepare()
        if self.is_head or template.bodiless:
            if template.code < 200:
                self.keep_alive = False  # no final response follows
            self._send_first(self._head())
            # RFC 9112 §6.3, 1: a byte of body would begin the client's next response.
            self._count_unsent(data)
        elif template.length >= 0:
            head = self._head()
            self._left = template.length
            self._send_first(head, self._count_declared(data))
        else:
            framing, block = b"", data
            if self._http11:
                # RFC 9112 §7.1: the client sees by the last chunk that nothing is missing; the close would not tell.
                self._chunked = True
                framing, block = CHUNKED, b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            else:
                self.keep_alive = False  # HTTP/1.0 has no chunks: the close ends the body
            head = self._head(framing)
            self._sink.set_streaming(True)
            self.sent += len(data)
            self._send_first(head + block)

    def _send_first(self, head: bytes, body: bytes = b"") -> None:
        self.begun = True
        try:
            if len(body) > _COPY_UP_TO:
                self._sink.send_pair(head, body)
            elif self._left == 0 and self.keep_alive:
                self._sink.send_last(head + body)
            else:
                self._sink.send(head + body)
        except ClientGone:
            self.unsent = True
            raise

    # ---- whole results ---------------------------------------------------------------------------------

    def whole(self, body: bytes) -> None:
        """Send a response whose body is one block in one call of the sink: the usual way."""
        template = self._template
        if template is _UNSET or type(body) is not bytes or self.begun or template.bodiless or self.is_head:
            self._whole_unusual(body)
            return
        size, context = len(body), self.context
        if template.length != size:
            if template.length >= 0:
                self._whole_unusual(body)
                return
            ending = content_length(size) + self._ending()
        elif self.keep_alive and self._http11 and context.keep_open:
            ending = b"\r\n"
        else:
            ending = self._ending()
        self.begun = True
        self.sent = size
        # `_head` and `_send_first` in place: two calls fewer for each request.
        if template.has_date:
            date = b""
        elif time() < context.date_until:
            date = context.date_line
        else:
            date = context.date()
        try:
            if size <= _COPY_UP_TO:
                send = self._sink.send_last if self.keep_alive else self._sink.send
                send(b"".join((template.prefix, date, ending, body)))
            else:
                self._sink.send_pair(b"".join((template.prefix, date, ending)), body)
        except ClientGone:
            self.unsent = True
            raise

    def _whole_unusual(self, body: bytes) -> None:
        """Send a body of one block that `whole` cannot: HEAD, no body allowed, another declared length."""
        if self.is_head and body and not self.begun and self.length is None and not self._started().bodiless:
            # RFC 9110 §9.3.2: HEAD keeps the length that GET would have had.
            self._send_first(self._head(content_length(len(body))))
            return
        self.write(body)
        self.finish()

    def stream(self, result: Iterable[bytes] | None) -> None:
        """Send the blocks of an iterable as they come, each before the next is asked for (PEP 3333).

        Raises:
            BodyTooLong: it went on after its Content-Length; the client has all promised bytes.
        """
        if result is None and self.is_taken:
            return
        send, size, line, empty, process = self._sink.send, 0, b"", 0, SERVER_PROCESS
        # The iterable is asked once more after the last byte of its Content-Length: code behind its last `yield` is to
        # run, and only so it differs from an iterable that goes on.
        for block in cast("Iterable[bytes]", result):  # None has no blocks: a TypeError says so
            if not process[0]:
                leave()  # the iterable has forked, and this is the child
            if self._chunked and type(block) is bytes:  # as `write` would; blocks are often all of one size
                if block:
                    if len(block) != size:
                        size = len(block)
                        line = b"%x\r\n" % size
                    self.sent += size
                    send(b"".join((line, block, b"\r\n")))
                continue
            # An empty block sends nothing, the head neither: the application may still change its mind.
            if type(block) is not bytes:
                block = _plain(block)
            if block:
                # The whole body in one block, as frameworks send it: the short way of `whole`.
                if not (self.begun or self._bodiless or self._before_stream) and len(block) == self.length:
                    self._left = 0  # none is owed from here on, also when the send fails
                    self.whole(block)
                    continue
                self.write(block)
                if self._cut or self._bodiless:
                    break
            elif self._left == 0 or self._bodiless or self.length == 0:
                empty += 1
                if empty > _MOST_EMPTY and not self.is_taken:
                    self._cut = True
                    break
        if not process[0]:
            leave()
        self.finish()

    def file(self, wrapper: FileWrapper) -> bool:
        """Let the kernel send a file. Returns False when it must be read here instead."""
        template = self._template
        if template is _UNSET or self.begun or template.bodiless or not self.context.sendfile:
            return False
        extent = wrapper.extent()
        if extent is None:
            return False
        fd, offset, available = extent
        declared = template.length
        # A file has a length: no chunks, and a client that resumes or shows its progress knows the whole.
        head = self._head(content_length(available) if declared < 0 else b"")
        if self.is_head:  # not a byte is read
            self._send_first(head)
            return True
        self._left = available if declared < 0 else declared
        # The file may be shorter or longer than what the application declared.
        count = min(available, self._left)
        self._send_first(head)
        if count:
            self._sink.send_file(fd, offset, count)
        self._left -= count
        self.sent += count
        self.finish()
        return True

    # ---- the end ---------------------------------------------------------------------------------------

    def finish(self) -> None:
        """End the response: send the head if it has not been sent, and the last chunk; check the declared length.

        Raises:
            BodyTooLong: the application had more to send.
        """
        if not self.begun:
            # A length of 0 rather than no chunks: HTTP/1.0 and 1.1 alike, and the connection stays open.
            if self.length is None and not (self._started().bodiless or self.is_head):
                self._send_first(self._head(content_length(0)))
                return
            self._begin(b"")
        if self._left < 0:
            self._left = 0  # before the send: an interrupt behind it has nothing to cut
            if self._chunked:
                self._sink.set_streaming(False)
                self._sink.send(LAST_CHUNK)
        elif self._left > 0:
            # The client waits for the rest; the next response must not fill the gap (seen in gunicorn).
            self.keep_alive = False
            self.incomplete = True
        if self._cut:
            raise self._too_long()

    def fail(self, error: BaseException | None = None) -> None:
        """Answer 500, 504 when it is overdue, the client's own fault with its status; cut a response that has begun.

        Args:
            error: the exception raised by the application.
        """
        if self.overdue == ANSWERED:
            return
        if self.begun:
            self.keep_alive = False
            self.incomplete = not self.is_whole
            # Missing bytes or a missing last chunk tell the client by themselves; a body that the close
            # ends does not: there the connection must be reset.
            self.aborted = not self._chunked and self._left < 0 and not self._bodiless
            return
        self._template = _UNSET  # the application's own head, if it has made one, is not sent
        status = _ERROR_STATUS
        if self.overdue:
            status = TIMEOUT_STATUS
        elif is_a(error, BodyError):
            status = f"{error.status} {HTTPStatus(error.status).phrase}"
        self.start_response(status, list(TIMEOUT_HEADERS))
        self.whole(TIMEOUT_BODY if self.overdue else status.encode() + b"\n")


def _plain(block: object) -> bytes:
    """Return the content of an instance of a subclass of bytes, without its ``__len__`` or ``__bytes__``."""
    if not issubclass(type(block), bytes):
        raise TypeError(f"the response body must be made of bytes, not {type(block).__name__}")
    return b"".join((b"", cast("bytes", block)))
