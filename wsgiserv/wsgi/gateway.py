"""Calls the application and turns what it says into one response. PEP 3333, and nothing else.

Owns: `Response` (the state of ``start_response``/``write``) and `run_app`.
Must not know: sockets, threads, the log's format, who waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from math import inf
from time import time
from types import TracebackType
from typing import Any, Final, NoReturn, Protocol, cast

from wsgiserv.http.response import (
    CHUNKED,
    CHUNKED_CLOSE,
    CLOSE,
    KEEP_ALIVE,
    LAST_CHUNK,
    HeadTemplate,
    HeadTemplates,
    content_length,
    date_line,
    early_hints,
)
from wsgiserv.process import SERVER_PROCESS, leave
from wsgiserv.tracebacks import users_traceback
from wsgiserv.user_code import is_a
from wsgiserv.wsgi.filewrapper import FileWrapper
from wsgiserv.wsgi.input import BodyError

__all__ = [
    "ANSWERED",
    "IN_TIME",
    "OVERDUE",
    "TIMEOUT_BODY",
    "TIMEOUT_HEADERS",
    "TIMEOUT_REASON",
    "TIMEOUT_STATUS",
    "BodyTooLong",
    "ClientGone",
    "GatewayContext",
    "Response",
    "Sink",
    "run_app",
]

ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

# Whether a response has kept its deadline (request_timeout), and what has been made of it.
IN_TIME = 0
OVERDUE = 1
ANSWERED = 2

# So many empty blocks in a row may follow a response that is complete; more, and the iterable is taken for endless.
_MOST_EMPTY: Final = 1000
# An application may write() the body of a response that has none, to HEAD for one: up to here, or its declared length.
_MOST_UNSENT: Final = 1024 * 1024

# Above this, a body is not copied behind its head but sent from where it is (measured: the copy is
# cheaper than a second buffer up to about here).
_COPY_UP_TO = 32 * 1024

# So many names of dropped headers are remembered, and told, by a worker.
_MOST_WARNED_HEADERS: Final = 64

_ERROR_STATUS = "500 Internal Server Error"
# The answer to an overdue request, the same in all worker classes.
TIMEOUT_STATUS: Final = "504 Gateway Timeout"
TIMEOUT_REASON: Final = "the request took too long"
TIMEOUT_BODY: Final = f"{TIMEOUT_STATUS}: {TIMEOUT_REASON}\n".encode()
_ERROR_HEADERS = [("Content-Type", "text/plain; charset=utf-8")]
TIMEOUT_HEADERS: Final = tuple(_ERROR_HEADERS)


class ClientGone(Exception):
    """The client has closed the connection: nothing more can be sent. Raised by a `Sink`."""


class BodyTooLong(Exception):
    """The application goes on although its whole response has been sent (PEP 3333, "Handling the Content-Length
    Header"). The client has what it was promised, and its connection stays."""


class Sink(Protocol):
    """What a response is written to: a connection.

    Attributes:
        streams: whether what follows are blocks of a body of unknown length, whose producer may have to wait.
    """

    streams: bool

    def send(self, data: bytes) -> None:
        """Send or queue ``data``, in order. Raises `ClientGone`."""

    def send_pair(self, head: bytes, body: bytes) -> None:
        """Send or queue two pieces without joining them. Raises `ClientGone`."""

    def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send or queue ``count`` bytes of a file; ``fd`` may be closed after the call. Raises `ClientGone`."""


class GatewayContext:
    """What all responses of one worker share.

    Attributes:
        templates: the response heads seen so far.
        date_line: the Date header line; the worker's loop renews it every second, and `date` in a call that is longer.
        date_until: when it gets too old, ``time.time()``; infinite until the loop has renewed it.
        keep_open: whether connections stay open after their responses; looked at when a head is made, so
            that a response says ``close`` even if the worker was told to leave during the call.
        log: the error log.
        sendfile: whether ``wsgi.file_wrapper`` may hand files to the kernel.
    """

    __slots__ = (
        "_warned_headers",
        "date_line",
        "date_until",
        "keep_open",
        "log",
        "sendfile",
        "templates",
    )

    def __init__(self, log: logging.Logger, date_line: bytes, sendfile: bool = True) -> None:
        self.templates = HeadTemplates()
        self.date_line = date_line
        self.date_until = inf
        self.keep_open = True
        self.log = log
        self.sendfile = sendfile
        self._warned_headers: dict[str, object] = {}

    def date(self) -> bytes:
        """Return the Date line of now: of the response, however long its call has taken."""
        now = time()
        if now >= self.date_until:
            self.date_line = date_line(now)
            self.date_until = now // 1.0 + 1.0
        return self.date_line

    def warn_dropped(self, names: Iterable[str], request_line: bytes) -> None:
        """Say that headers of an application are not sent: once per worker and name.

        Args:
            names: the headers' names.
            request_line: of the request that was answered so; empty when there is none.
        """
        warned = self._warned_headers
        fresh = []
        for name in names:
            mark = object()
            # setdefault: two threads may be here at once. An application may make up names without end.
            if len(warned) < _MOST_WARNED_HEADERS and warned.setdefault(name.lower(), mark) is mark:
                fresh.append(name)
        if fresh:
            method, _, target = request_line.decode("ascii", "backslashreplace").partition(" ")
            path = target.partition(" ")[0].partition("?")[0]
            for name in fresh:
                self.log.warning(
                    "%s: response header %s dropped: it is about the connection, which is the server's (PEP 3333); "
                    "remove it from the application (said once per worker and header)",
                    f"{method} {path}" if path else "The application",
                    name,
                )


class Response:
    """One response in the making.

    Args:
        sink: where its bytes go.
        context: what the worker's responses share.
        http11: whether the client speaks HTTP/1.1.
        is_head: whether the method is HEAD.
        keep_alive: whether the connection is to stay open.

    Attributes:
        keep_alive: may become False while the response is made.
        may_keep_alive: what ``keep_alive`` was at first.
        begun: whether its head has been sent: nothing can replace it any more.
        sent: body bytes sent, without framing.
        aborted: it ended early, and the client could mistake what it got for the whole.
        incomplete: it began, and ended early.
        unsent: nothing of it was sent: the client had gone before.
        before_stream: called once before the head of a response that comes in pieces; may raise BodyError.
        overdue: `IN_TIME`, `OVERDUE` (a failure is answered with 504), or `ANSWERED` (504 has been sent in its stead).
        sink: where its bytes go.
        request_line: of the request; empty when there is none. For the log.
    """

    __slots__ = (
        "_chunked",
        "_context",
        "_cut",
        "_http11",
        "_left",
        "_template",
        "aborted",
        "before_stream",
        "begun",
        "incomplete",
        "is_head",
        "keep_alive",
        "may_keep_alive",
        "overdue",
        "request_line",
        "sent",
        "sink",
        "unsent",
    )

    def __init__(
        self, sink: Sink, context: GatewayContext, http11: bool, is_head: bool, keep_alive: bool
    ) -> None:
        self.sink = sink
        self._context = context
        self._http11 = http11
        self.is_head = is_head
        self.keep_alive = self.may_keep_alive = keep_alive
        self._template: HeadTemplate | None = None
        self._chunked = False
        self._cut = False
        self._left = -1  # body bytes still owed to the declared length; -1 without one
        self.begun = False
        self.sent = 0
        self.aborted = False
        self.incomplete = False
        self.unsent = False
        self.before_stream: Callable[[], None] | None = None
        self.overdue = IN_TIME
        self.request_line = b""

    def allow_keep_alive(self, allowed: bool) -> None:
        """Say whether the connection may stay open, as far as the request's body goes; before the head is made."""
        self.keep_alive = self.may_keep_alive and allowed

    def call_before_stream(self, prepare: Callable[[], None]) -> None:
        """Call ``prepare`` before a body of unknown length begins."""
        self.before_stream = prepare

    @property
    def status(self) -> str:
        """The status as sent, such as ``200 OK``; empty before there is one."""
        return self._template.status if self._template is not None else ""

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The application's headers as sent."""
        return self._template.fields if self._template is not None else ()

    @property
    def code(self) -> int:
        """The status code; 500 before there is one."""
        if self.overdue == ANSWERED:
            return 504
        return self._template.code if self._template is not None else 500

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing of what has been sent."""
        return self.begun and (
            self._left == 0 or self._bodiless or (self._left < 0 and self._http11 and not self._chunked)
        )

    @property
    def missing(self) -> int:
        """How many bytes of the declared length the application has not sent."""
        return max(0, self._left)

    @property
    def is_one_block(self) -> bool:
        """Whether it was made in one piece, at the end of the call."""
        return self.begun and not self._chunked and self._left < 0

    @property
    def length(self) -> int | None:
        """The declared Content-Length in bytes, if there is one."""
        template = self._template
        return template.length if template is not None and template.length >= 0 else None

    def start_response(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """The callable of PEP 3333, "The start_response() Callable".

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
        elif self._template is not None:
            raise AssertionError("start_response() was called a second time without exc_info")
        self._template = template = self._context.templates.get(status, headers)
        if template.hop_by_hop:
            self._drop(template)
        return self.write

    def _drop(self, template: HeadTemplate) -> None:
        """Do what a header about the connection asks, where it can be done; say so where not."""
        names = template.hop_by_hop
        if template.closes:
            self.keep_alive = self.may_keep_alive = False
            names = tuple(name for name in names if name.lower() != "connection")
        self._context.warn_dropped(names, self.request_line)

    def early_hints(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        """``environ["wsgi.early_hints"]``: send a 103 before the response (RFC 8297), any number of times.

        Names and values may be bytes, as with gunicorn.

        Nothing is sent to HTTP/1.0 clients, which do not know interim responses (RFC 9110 §15.2), nor once the
        response has begun. Raises TypeError or ValueError for headers that must not reach the wire.
        """
        hints, dropped = early_hints(headers)
        if dropped:
            self._context.warn_dropped(dropped, self.request_line)
        if self._http11 and not self.begun:
            self.sink.send(hints)

    def write(self, data: bytes) -> None:
        """Send a block of the body: PEP 3333's ``write()``, and each item of an iterable.

        Raises BodyTooLong when the block before was too much already: an application that never stops is stopped.
        """
        if type(data) is not bytes:
            data = _plain(data)
        if not self.begun:
            self._begin(data)
        elif self._left >= 0:
            if self._cut and data:
                raise self._too_long()
            self._send_declared(b"", data)
        elif self._chunked:
            if data:
                self.sent += len(data)
                self.sink.send(b"%x\r\n%b\r\n" % (len(data), data))
        elif not self._bodiless:
            if data:
                self.sent += len(data)
                self.sink.send(data)
        else:
            self._count_unsent(data)

    def _count_unsent(self, data: bytes) -> None:
        """Count what is written behind a response without a body; `_left` counts down from -1 there."""
        if self._cut and data:
            raise self._too_long()
        self._left -= len(data)
        declared = self.length if self.is_head else None
        self._cut = -1 - self._left > (_MOST_UNSENT if declared is None else declared)

    def _too_long(self) -> BodyTooLong:
        length = self.length
        if length is None:
            return BodyTooLong("the application goes on with a body that the response does not have")
        return BodyTooLong(
            f"the application's body is longer than its Content-Length of {length}; the rest is dropped"
        )

    @property
    def _bodiless(self) -> bool:
        return self.is_head or (self._template is not None and self._template.bodiless)

    def _head(self, ending: bytes) -> bytes:
        template = self._template
        if template is None:
            raise AssertionError("the application did not call start_response()")
        return b"".join((template.prefix, b"" if template.has_date else self._context.date(), ending))

    def _ending(self) -> bytes:
        """Return the Connection line and the empty line of a head without any further framing."""
        if self.keep_alive and self._context.keep_open:
            return b"\r\n" if self._http11 else KEEP_ALIVE + b"\r\n"
        self.keep_alive = False
        return CLOSE + b"\r\n"

    def _begin(self, data: bytes) -> None:
        """Send the head with the first block: its framing is settled here (RFC 9112 §6.3)."""
        template = self._template
        if template is None:
            raise AssertionError("the application did not call start_response()")
        if self.before_stream is not None:
            prepare, self.before_stream = self.before_stream, None
            prepare()
        if self.is_head or template.bodiless:
            if template.code < 200:
                self.keep_alive = False  # no final response follows
            self._send_head(self._ending())
            self._count_unsent(data)
        elif template.length >= 0:
            self._left = template.length
            head = self._head(self._ending())
            self.begun = True
            try:
                self._send_declared(head, data)
            except ClientGone:
                self.unsent = True
                raise
        elif self._http11:
            self._chunked = True
            self.keep_alive = self.keep_alive and self._context.keep_open
            head = self._head(CHUNKED if self.keep_alive else CHUNKED_CLOSE)
            self.begun = self.sink.streams = True
            self.sent += len(data)
            self._send_first(b"%b%x\r\n%b\r\n" % (head, len(data), data) if data else head)
        else:
            # HTTP/1.0 has no chunks: the close ends the body.
            self.keep_alive = False
            head = self._head(self._ending())
            self.begun = self.sink.streams = True
            self.sent += len(data)
            self._send_first(head + data)

    def _send_head(self, ending: bytes) -> None:
        head = self._head(ending)
        self.begun = True
        self._send_first(head)

    def _send_first(self, data: bytes) -> None:
        try:
            self.sink.send(data)
        except ClientGone:
            self.unsent = True
            raise

    def _send_declared(self, head: bytes, data: bytes) -> None:
        """Send a block of a body of declared length; what is too long is cut, so that nothing follows the body."""
        if len(data) > self._left:
            self._cut = True
            data = data[: self._left]
        self._left -= len(data)
        self.sent += len(data)
        if len(data) > _COPY_UP_TO and head:
            self.sink.send_pair(head, data)
        elif head or data:
            self.sink.send(head + data if head else data)

    def whole(self, body: bytes) -> None:
        """Send a response whose body is one block: one head, one body, one send. The usual way."""
        template = self._template
        if template is None or type(body) is not bytes or self.begun or template.bodiless or self.is_head:
            # Not the usual way: HEAD keeps the length that GET would have had (RFC 9110 §9.3.2).
            if (
                self.is_head
                and not self.begun
                and template is not None
                and template.length < 0
                and not template.bodiless
                and body
            ):
                self._send_head(content_length(len(body)) + self._ending())
            else:
                self.write(body)
                self._finish_counted()
            return
        size, context = len(body), self._context
        if template.length != size:
            if template.length >= 0:
                self.write(body)
                self._finish_counted()
                return
            ending = content_length(size) + self._ending()
        elif self.keep_alive and self._http11 and context.keep_open:
            ending = b"\r\n"
        else:
            ending = self._ending()
        self.begun = True
        self.sent = size
        if template.has_date:
            date = b""
        elif time() < context.date_until:
            date = context.date_line
        else:
            date = context.date()
        try:
            if size <= _COPY_UP_TO:
                self.sink.send(b"".join((template.prefix, date, ending, body)))
            else:
                self.sink.send_pair(b"".join((template.prefix, date, ending)), body)
        except ClientGone:
            self.unsent = True
            raise

    def stream(self, result: Iterable[bytes]) -> None:
        """Send the blocks of an iterable as they come, each before the next is asked for (PEP 3333).

        An iterable that goes on after its Content-Length is left. It is asked once more when all has been sent: code
        behind its last `yield` is to run, and only so it can be told from one that ends there.

        Raises BodyTooLong, once what the client was promised has been sent.
        """
        send, size, line, empty, process = self.sink.send, 0, b"", 0, SERVER_PROCESS
        for block in result:
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
                self.write(block)
                if self._cut or self._bodiless:
                    break
            elif self._left == 0 or self._bodiless or self.length == 0:
                empty += 1
                if empty > _MOST_EMPTY:
                    self._cut = True
                    break
        if not process[0]:
            leave()
        self._finish_counted()

    def _finish_counted(self) -> None:
        """End the response, and say so when the application wanted more than that. Raises BodyTooLong."""
        self.finish()
        if self._cut:
            raise self._too_long()

    def file(self, wrapper: FileWrapper) -> bool:
        """Hand a file to the kernel; False when it must be read here instead."""
        template = self._template
        if template is None or self.begun or template.bodiless or not self._context.sendfile:
            return False
        extent = wrapper.extent()
        if extent is None:
            return False
        fd, offset, available = extent
        if self.is_head:  # the length that GET would have had, and not a byte is read
            self._send_head((content_length(available) if template.length < 0 else b"") + self._ending())
            return True
        if template.length < 0:
            self._left = count = available
            self._send_head(content_length(available) + self._ending())
        else:
            self._left = template.length
            count = min(available, template.length)
            self._send_head(self._ending())
        if count:
            self.sink.send_file(fd, offset, count)
        self._left -= count
        self.sent += count
        self.finish()
        return True

    def finish(self) -> None:
        """End the response: what has not been sent yet, the last chunk, the account of the declared length.

        A body that is too short closes the connection, so that the client sees it.
        """
        if not self.begun:
            template = self._template
            if template is None:
                raise AssertionError("the application did not call start_response()")
            if template.length < 0 and not (template.bodiless or self.is_head):
                self._send_head(content_length(0) + self._ending())
                return
            self._begin(b"")
        if self._left < 0:
            self._left = 0  # before it is sent: whoever is interrupted behind it has nothing to cut
            if self._chunked:
                self.sink.streams = False
                self.sink.send(LAST_CHUNK)
        elif self._left > 0:
            # The client waits for the rest; the next response must not fill the gap (seen in gunicorn).
            self.keep_alive = False
            self.incomplete = True

    def time_out(self, answered: bool = False) -> None:
        """The request is overdue: a failure is answered with 504 from now on, where nothing has been sent.

        Args:
            answered: whether a 504 has been sent already, around this object.
        """
        self.overdue = ANSWERED if answered else OVERDUE
        self.keep_alive = False

    def fail(self, error: BaseException | None = None) -> None:
        """Answer 500, 504 when it was overdue, the client's own fault with its status; a response that has begun
        is cut so that the client can see it.

        Args:
            error: what the application raised.
        """
        if self.overdue == ANSWERED:
            return
        if not self.begun:
            self._template = None
            status = _ERROR_STATUS
            if self.overdue:
                status = TIMEOUT_STATUS
            elif is_a(error, BodyError):
                status = f"{error.status} {HTTPStatus(error.status).phrase}"
            self.start_response(status, list(_ERROR_HEADERS))
            self.whole(TIMEOUT_BODY if self.overdue else status.encode() + b"\n")
        else:
            self.keep_alive = False
            self.incomplete = not self.is_whole
            # Missing bytes or a missing last chunk tell the client by themselves; a body that the close
            # ends does not: there the connection must be reset.
            self.aborted = not self._chunked and self._left < 0 and not self._bodiless


def run_app(
    app: Callable[..., Iterable[bytes]], environ: dict[str, Any], response: Response
) -> BaseException | None:
    """Call the application and send what it returns; ``close()`` of its result is called exactly once.

    Returns:
        What the application raised (it has got its 500 or the connection is marked to be closed), or
        `ClientGone` when the client has left; None when all went well. Nothing the application does, not
        even ``sys.exit()``, leaves this function as an exception.
    """
    # Nothing of the application's, not even a filter of its log, runs inside of a handler of ours: it would find our
    # exception in sys.exc_info(), and as the context of its own.
    result: Any = None
    failure: BaseException | None = None
    try:
        result = app(environ, response.start_response)
        if not SERVER_PROCESS[0]:
            leave()  # the application has forked, and this is the child
        kind = type(result)
        if kind is list and len(result) == 1:
            response.whole(result[0])
            return None
        if kind is tuple and len(result) == 1:
            response.whole(result[0])
        elif kind is bytes or kind is str:
            raise TypeError(
                f"the application returned {kind.__name__}; return a list of bytes such as [body]"
            )
        elif kind is not FileWrapper or not response.file(result):
            response.stream(result)
    except BaseException as error:  # the boundary to the application: nothing may pass
        failure = error
    if failure is not None:
        if not SERVER_PROCESS[0]:
            _leave(failure)
        _failed(response, failure)
    if result is not None:
        close_failure = None
        try:
            close = getattr(result, "close", None)
            if close is not None:
                close()
                if not SERVER_PROCESS[0]:
                    leave()
        except BaseException as error:
            close_failure = error
        if close_failure is not None:
            if not SERVER_PROCESS[0]:
                _leave(close_failure)
            if not is_a(close_failure, BodyError):  # that is the client's fault, and told as such
                response._context.log.error(
                    "close() of the application's result raised", exc_info=close_failure
                )
            failure = failure or close_failure
    return failure


def _plain(block: object) -> bytes:
    """Return the content of an object of a subclass of bytes, whatever that has as ``__len__`` or ``__bytes__``."""
    if not issubclass(type(block), bytes):
        raise TypeError(f"the response body must be made of bytes, not {type(block).__name__}")
    return b"".join((b"", cast("bytes", block)))


def _leave(error: BaseException) -> NoReturn:
    leave(error.with_traceback(users_traceback(error) or error.__traceback__))


def _failed(response: Response, error: BaseException) -> None:
    if is_a(error, BodyTooLong):
        return  # the client has its whole response
    if is_a(error, ClientGone):
        response.keep_alive = False
        return
    error.__traceback__ = users_traceback(error) or error.__traceback__
    try:
        response.fail(error)
    except ClientGone:
        response.keep_alive = False
