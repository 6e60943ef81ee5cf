"""One client's connection: a state machine that never waits.

Owns: `Connection`: bytes in, requests out, responses back, keep-alive, refusals, timeouts of one client.
Must not know: who waits for the socket, on which thread or greenlet the application runs.

The worker's loop calls `receive` when the socket is readable; when that says True a request is complete and
`run` may be called, at once or on another thread. `flush` is called when the socket is writable again, also while the
application runs; `expire` when `deadline` has passed. What the connection wants next it tells its `Loop`.

    state     readable               run           writable       deadline
    HEAD      head or part of it     -             -              408 or silent close
    BODY      body or part of it     -             -              408
    DISCARDING discard, to its end   -             -              close
    LINGERING discard                -             -              close
    READY     -                      application   send           reset when output waits
    WAITING   -                      -             -              -          (its next bytes are here: `advance`)
    FLUSHING  -                      -             send           reset
    CLOSED    -                      -             -              -
"""

from __future__ import annotations

import errno
import logging
from _socket import MSG_DONTWAIT, MSG_PEEK, SHUT_RDWR, SHUT_WR, SO_ERROR, SOL_SOCKET
from _socket import socket as RawSocket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from wsgiserv.callables import is_a
from wsgiserv.errors import ProtocolError
from wsgiserv.http.body import ChunkedDecoder
from wsgiserv.http.grammar import STRAY
from wsgiserv.http.head import HeaderBlock, RequestLine
from wsgiserv.http.response import CONTINUE, refusal
from wsgiserv.logs.escape import escape
from wsgiserv.net.body_stream import BodyStream
from wsgiserv.net.handoff import MOST_MOVED_BYTES, ConnectionState
from wsgiserv.net.reset import reset
from wsgiserv.net.response_writer import NoTimeLeft, ResponseWriter
from wsgiserv.net.send_queue import SendQueue
from wsgiserv.net.serving_context import (
    ALL_STREAMED,
    NEVER,
    NONE,
    RATE_GRACE_S,
    READ,
    UNWATCHED,
    WRITE,
    InFlight,
    Loop,
    ServingContext,
)
from wsgiserv.scoreboard import ERRORS, REQUESTS
from wsgiserv.wording import counted
from wsgiserv.wsgi.environ import adjust, refused_environ
from wsgiserv.wsgi.input import BodyBuffer, BodyError, empty_input
from wsgiserv.wsgi.response import TIMEOUT_HEADERS, BodyTooLong, ClientGone, Response

if TYPE_CHECKING:
    from wsgiserv.net.proxy_socket import ProxySocket
    from wsgiserv.net.tls import TLSSocket

__all__ = ["Connection"]

HEAD: Final = 0
BODY: Final = 1
DISCARDING: Final = 2
LINGERING: Final = 3
READY: Final = 4
WAITING: Final = 5
FLUSHING: Final = 6
CLOSED: Final = 7

_RECV_BYTES: Final = 65536
# RFC 8446 §5.1: the type of a TLS record that begins a handshake; the version that follows begins with 3.
_TLS_HANDSHAKE: Final = 0x16
# How long a closing connection goes on discarding what the client still sends, so that the refusal is not
# lost to a reset (RFC 9112 §9.6).
_LINGER_S: Final = 5.0
# The same where nothing unread is here, but the client may have sent more before it could know: a round trip, or so.
_BRIEF_LINGER_S: Final = 1.0
# A client may have left during a call that has taken so long: that is looked at before its line is written.
_SLOW_S: Final = 0.01
# The status in the access log of a client that has left before anything was sent, as nginx has it.
_CLIENT_GONE: Final = 499
# The same where the server has cut the request.
_CUT: Final = 504
# While others wait for a place, how long a body may come as slowly as it likes.
_BODY_GRACE_S: Final = 1.0


class Connection(ResponseWriter):
    """One client.

    Args:
        context: what the worker's connections share.
        loop: who waits for the socket.
        sock: the client's socket, in blocking mode (reads and sends here never wait all the same), or TLS over it,
            or what reads the PROXY header first and then replaces itself here.
        base: the base environ of the listener.
        peer: the keys of the client in the environ (``REMOTE_ADDR``, ``REMOTE_PORT``).
        trusted: whether the peer is in ``forwarded_allow_ips``.

    Attributes:
        deadline: ``time.monotonic()`` after which `expire` is to be called.
        interest: what the loop watches for now; kept by the loop.
        since: when it came, or when the unfinished head of a later request did; ``time.monotonic()`` seconds.
    """

    __slots__ = (  # noqa: RUF023 - grouped by lifetime
        # shared by all connections of the worker
        "base",
        # the connection
        "_buffer",
        "deadline",
        "interest",
        "peer",
        "since",
        "state",
        "trusted",
        # the request
        "_blank",
        "_block",
        "_body",
        "_body_began",
        "_close_after",
        "_decoder",
        "_keep_alive",
        "_left",
        "_line",
        "_pending",
        "_stream",
    )

    def __init__(
        self,
        context: ServingContext,
        loop: Loop,
        sock: RawSocket | TLSSocket | ProxySocket,
        base: dict[str, Any],
        peer: dict[str, str],
        peer_name: bytes,
        trusted: bool,
    ) -> None:
        super().__init__(context, loop, sock, peer_name)
        self.base = base
        self.peer = peer
        self.trusted = trusted
        self.state = HEAD
        self.deadline = context.now + context.header_timeout
        self.since = context.now
        self.interest = UNWATCHED
        # Bytes that are not consumed yet: of an unfinished head, or behind a request (pipelined).
        self._buffer: bytearray | None = None
        self._blank = False  # whether an empty line before the current head has been forgiven
        self._line: RequestLine | None = None
        self._block: HeaderBlock | None = None
        self._body: BodyBuffer | None = None
        self._decoder: ChunkedDecoder | None = None
        self._stream: BodyStream | None = None
        self._left = 0
        self._body_began = 0.0
        self._keep_alive = True
        self._close_after = False
        # The request whose response has been made and not been sent to its end: its line is still to be written.
        self._pending: InFlight | None = None

    # ---- reading -----------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Take what has arrived; True when a request is complete and `run` is to be called."""
        if self.state > LINGERING:
            self._leave_alone()
            return False
        try:
            data = self.sock.recv(_RECV_BYTES, MSG_DONTWAIT)
        except BlockingIOError:
            if self.interest == READ:
                # Woken for nothing: with threads the poller may have got an older wish after a newer one.
                self.loop.watch(self, READ)
            return False
        except OSError as error:
            self._connection_lost(error)
            return False
        except ProtocolError as error:  # plain HTTP where TLS is spoken
            data, broken = None, error
        if not data:
            if data is None:
                self._refuse(broken)
                return False
            return self._end_of_input()
        state = self.state
        try:
            if state == HEAD:
                return self._take_head(data)
            if state == BODY:
                return self._take_body(data)
            if state == DISCARDING:
                self._discard(data)
        except ProtocolError as error:
            broken = error
            if data[0] == _TLS_HANDSHAKE and state == HEAD:
                broken = self._judge_tls(data, error)
        else:
            # LINGERING: what a client sends behind its last request is nobody's.
            return False
        self._refuse(broken)  # outside of the handler: what it logs may run people's filters
        return False

    def _judge_tls(self, data: bytes, error: ProtocolError) -> ProtocolError:
        """Return the error to answer with: a TLS handshake, where HTTP was expected, is told as such."""
        buffer = self._buffer
        if (
            data[1:2] not in (b"", b"\x03")
            or (buffer is not None and buffer[0] != _TLS_HANDSHAKE)
            or self.base["wsgi.url_scheme"] == "https"
        ):
            return error
        return ProtocolError(
            400,
            "HTTPS was sent to an HTTP port; use http:// in the URL",
            "a TLS handshake came; set certfile and keyfile to serve HTTPS here",
            repeats=True,
        )

    def _leave_alone(self) -> None:
        """What the client sends now waits in the kernel for its turn; a level-triggered poller would spin on it."""
        if self.interest == READ:
            self.loop.watch(self, NONE)
        elif self.interest == NONE:
            # A reset is told all the same, again and again, and nobody can act on it now.
            self.loop.ignore(self)
        # Another thread may just have finished the request.
        if self.state <= LINGERING:
            self.loop.watch(self, READ)
        elif self.state == FLUSHING:
            self.loop.watch(self, WRITE)

    def due_interest(self, wish: int) -> int:
        """Return what is to be watched for now, by the state. Called by the loop under its lock: the wish of a thread
        that another one has overtaken must not undo what that one has asked for."""
        state = self.state
        if state <= LINGERING:
            return READ
        if state == FLUSHING or (state == READY and self.has_output):
            return WRITE
        return NONE if wish == WRITE or state == CLOSED else wish

    def advance(self) -> bool:
        """Go on with bytes that came behind the last request; like `receive` without reading."""
        if self.state != WAITING or self._buffer is None:
            return False
        self.state = HEAD
        data = bytes(self._buffer)
        self._buffer = None
        broken: ProtocolError | None = None
        try:
            if self._take_head(data):
                return True
        except ProtocolError as error:
            broken = error
        if broken is not None:
            self._refuse(broken)
            return False
        # While it waited for its turn, `receive` may have stopped watching it.
        if self.state <= BODY and self.interest != READ:
            self.loop.watch(self, READ)
        return False

    def _take_head(self, data: bytes) -> bool:
        buffer = self._buffer
        seen = 0
        if buffer is not None:
            seen = len(buffer)
            buffer += data
            end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
            if end < 0 and not buffer.startswith(b"\r\n"):
                self._check_partial(buffer, seen)
                return False
            data = bytes(buffer)
            self._buffer = None
        else:
            end = data.find(b"\r\n\r\n")
        if data.startswith(b"\r\n"):
            data = self._skip_blank(data)
            if not data:
                return False
            seen, end = 0, data.find(b"\r\n\r\n")
        if end < 0:
            if buffer is None:
                self.deadline = self.context.now + self.context.header_timeout
                if self._line is not None:
                    self.since = self.context.now
                self._line = self._block = None  # a refusal from here on is not of the request before
            self._buffer = bytearray(data)
            self._check_partial(self._buffer, seen)
            return False
        context = self.context
        eol = data.find(b"\r\n")
        raw = data[:eol]
        # Kept where a refusal finds it: the log says which request it was.
        self._line = self._block = None
        self._line = line = context.lines.get(raw) or context.parser.new_line(raw)
        raw = data[eol + 2 : end + 2]
        self._block = block = context.blocks.get(raw) or context.parser.new_block(raw)
        self._blank = False
        rest = data[end + 4 :] if len(data) > end + 4 else b""
        if line.http11:
            if not block.has_host:
                # RFC 9112 §3.2, and it holds for absolute-form targets too.
                raise ProtocolError(400, "HTTP/1.1 request without a Host header field")
            if block.plain and not line.is_connect:
                self._keep_alive = True
                if rest:
                    self._buffer = bytearray(rest)
                self.state = READY
                return True
            self._keep_alive = not (block.close or line.is_connect)
        else:
            if block.chunked:
                # RFC 9112 §6.1: a 1.0 client cannot know the coding; somebody between us does not.
                raise ProtocolError(400, "Transfer-Encoding in an HTTP/1.0 request")
            self._keep_alive = block.keep_alive and not block.close and not line.is_connect
        return self._expect_body(line, block, rest)

    def _skip_blank(self, data: bytes) -> bytes:
        """RFC 9112 §2.2: one empty line before a request line is forgiven (old clients sent it after a POST)."""
        if self._blank or data.startswith(b"\r\n\r\n"):
            self._line = self._block = None
            raise ProtocolError(400, "more than one empty line before the request line")
        self._blank = True
        return data[2:]

    def _check_partial(self, buffer: bytearray, seen: int) -> None:
        """Refuse at once what no further byte can make valid: the client need not wait for the timeout."""
        limits = self.context.limits
        if STRAY.search(buffer, max(0, seen - 1)):
            raise ProtocolError(400, "stray control character, or a line that does not end with CRLF")
        first = buffer.find(b"\r\n", 0, limits.line + 2)
        if first < 0 and len(buffer) > limits.line + 1:
            raise ProtocolError(414, "request line longer than limit_request_line")
        if first >= 0 and first + 1 >= seen:
            self._line = self.context.parser.request_line(bytes(buffer[:first]))
        if len(buffer) > self.context.longest_head:
            raise ProtocolError(
                431, "header fields larger than limit_request_fields times limit_request_field_size"
            )
        if first >= 0 and len(buffer) - buffer.rfind(b"\r\n") - 2 > limits.field_size + 1:
            raise ProtocolError(431, "header field larger than limit_request_field_size")

    def _expect_body(self, line: RequestLine, block: HeaderBlock, rest: bytes) -> bool:
        """Settle what follows the head (RFC 9112 §6.3); True when nothing does or it is all here."""
        context = self.context
        length = block.content_length
        if context.body_limit and length > context.body_limit:
            raise ProtocolError(413, "request body larger than limit_request_body")
        if length == 0:
            if rest:
                self._buffer = bytearray(rest)
            self.state = READY
            return True
        streaming = context.streaming
        body = self._body = BodyBuffer(context.body_memory, context.spool_dir, context.bodies_memory)
        if 0 < length <= len(rest):  # it came with its head, as small ones do
            if len(rest) > length:
                self._buffer = bytearray(rest[length:])
                rest = rest[:length]
            body.write(rest)
            self.state = READY
            return True
        if block.chunked:
            self._decoder = ChunkedDecoder(
                body.write, context.body_limit, context.limits.fields, context.limits.field_size
            )
        else:
            self._decoder = None
            self._left = length
        self.state = BODY
        self._body_began = context.now
        self._await_body(context.now, body)
        if rest and self._take_body(rest):
            return True
        # A large chunked body is not streamed unless all are: it gets its CONTENT_LENGTH by being here whole, and
        # Django, for one, reads nothing without.
        if streaming == ALL_STREAMED or (streaming and length > context.body_memory):
            return self._begin_stream(body, block.expect_continue and line.http11 and not rest)
        if block.expect_continue and line.http11 and not rest:
            # RFC 9110 §10.1.1: once, and only because the body is going to be read now.
            try:
                self.send(CONTINUE)
            except ClientGone:
                self._connection_lost(None)
        return False

    def _take_body(self, data: bytes) -> bool:
        body = self._body
        assert body is not None
        decoder = self._decoder
        if decoder is not None:
            rest = decoder.feed(data)
            done = decoder.done
        else:
            left = self._left
            if len(data) <= left:
                rest = b""
            else:
                data, rest = data[:left], data[left:]
            body.write(data)
            self._left = left - len(data)
            done = self._left == 0
        if not done:
            self._await_body(self.context.now, body)
            return False
        if rest:
            self._buffer = bytearray(rest)
        self.state = READY
        return True

    def _begin_stream(self, body: BodyBuffer, expects_continue: bool) -> bool:
        """Let the application read the rest of the body itself (``stream_request_body``)."""
        self._stream = BodyStream(self, body, self._decoder, self._left, expects_continue)
        self.state = READY
        if self.interest == READ:
            self.loop.watch(self, NONE)  # nobody else is to read now
        return True

    def _await_body(self, now: float, body: BodyBuffer) -> None:
        """Set the deadline of the next bytes: progress within ``body_timeout``, and ``body_min_rate`` overall."""
        timeouts = self.context.timeouts
        deadline = now + (timeouts.body or NEVER)
        if timeouts.body_rate:
            earned = self._body_began + (timeouts.body or RATE_GRACE_S) + body.length / timeouts.body_rate
            deadline = min(deadline, earned)
        self.deadline = deadline

    def _end_of_input(self) -> bool:
        """The client has sent all it will. It may still read: what was asked is answered."""
        if self.state == BODY or (self.state == HEAD and self._buffer):
            self._refuse(ProtocolError(400, "the connection ended in the middle of a request"), quiet=True)
        else:
            self.close()
        return False

    # ---- the application ---------------------------------------------------------------------------

    def run(self, cell: int = 0) -> float:
        """Call the application with the request that is ready, and send its response.

        Args:
            cell: the scoreboard cell of this request: one per request in flight.

        Returns:
            How long the call took, in seconds; 0.0 when there was none.
        """
        context = self.context
        line, block = self._line, self._block
        assert line is not None
        assert block is not None
        started = monotonic()
        request_id = (
            block.request_id if self.trusted else None
        ) or f"{context.id_prefix}{next(context.serial):016x}"
        try:
            body = self._body
            environ = {
                **self.base,
                **self.peer,
                **block.environ,
                **line.environ,
                "wsgi.input": empty_input() if body is None else self._input(body),
                "wsgiserv.request_id": request_id,
            }
            if block.unusual or line.authority is not None:
                length = body.length if body and block.chunked and self._stream is None else -1
                adjust(environ, line, block, self.trusted, length, context.forwarding)
                if block.claims and not (self.trusted or context.warned_untrusted_headers):
                    context.warned_untrusted_headers = True
                    self._tell_distrust(block)
        except ProtocolError as error:
            environ, broken = None, error
        if environ is None:
            self._refuse(broken)
            return 0.0
        response = Response(self, context.gateway, line.http11, line.is_head, self._keep_alive, line.raw)
        slot = context.slot
        slot.begin(cell, started, self.peer_name, request_id.encode("ascii"), line.raw)
        self.deadline = NEVER
        # A plain tuple: an InFlight, four times as quick.
        context.running[self] = (environ, response, started, cell)  # type: ignore[assignment]
        environ["wsgi.early_hints"] = response.early_hints
        if self._stream is not None:
            self._stream.attend(response)
        if context.pre_request is not None:
            context.pre_request(self, environ)
        failure = context.call(context.app, environ, response)
        slot.end(cell)
        context.now = now = monotonic()  # the call may have been long: no deadline is counted from before it
        if failure is not None and not response.overdue:  # that has been reported
            self._report(failure, environ)
        # Whoever takes it out accounts for it: another thread has, when it was cut or answered with 504.
        if context.running.pop(self, None) is not None:
            context.answered = answered = next(context.counter)
            words = context.words
            words[REQUESTS] = answered
            code = response.code
            if code >= 500:
                words[ERRORS] += 1
            if (
                failure is not None
                or self._outbox is not None
                or response.incomplete
                or now - started > _SLOW_S
            ):
                self._log_later(InFlight(environ, response, started, cell), failure)
            elif context.access is not None:
                context.access.log(environ, code, response.headers, response.sent, now - started)
            if context.post_request is not None:
                context.post_request(self, environ, response)
        if body is not None:
            body.discard()
            self._body = None
        if self._stream is not None:
            self._leave_stream(self._stream)
        self._settle(response)
        return now - started

    def _input(self, body: BodyBuffer) -> object:
        """Return the application's ``wsgi.input``. Raises ProtocolError."""
        return body.rewind() if self._stream is None else self._stream.input()

    def _tell_distrust(self, block: HeaderBlock) -> None:
        """Once per worker: whoever has moved a proxy to another host must not have to guess."""
        self.context.log.info(
            "%s is not in forwarded_allow_ips: its %s did not reach the application, and so with the like from others. "
            "If it is your proxy, add it: --forwarded-allow-ips (this is said once per worker)",
            self.name,
            ", ".join(escape(key[5:].replace("_", "-").title()) for key in block.claims),
        )

    def _report(self, failure: BaseException, environ: dict[str, Any]) -> None:
        log = self.context.log
        what = escape(f"{environ['REQUEST_METHOD']} {environ['RAW_URI']}")
        request_id = environ["wsgiserv.request_id"]
        if is_a(failure, BodyError):
            log.log(
                logging.DEBUG if failure.gone else logging.WARNING,
                "%s: %s: %s (%d, request %s)",
                self.name,
                what,
                failure.reason,
                failure.status,
                request_id,
            )
        elif is_a(failure, BodyTooLong):
            log.error("%s: %s (request %s)", what, failure, request_id)
        elif is_a(failure, ClientGone):
            if self._outbox is not None and is_a(self._outbox.error, NoTimeLeft):
                self._tell_cut(environ, *self.context.why_leaving)
                return
            log.debug("%s closed the connection during %s (request %s)", self.name, what, request_id)
        else:
            log.error("Error handling request %s (request %s)", what, request_id, exc_info=failure)

    def _tell_missing(self, request: InFlight) -> None:
        environ, response = request.environ, request.response
        self.context.log.error(
            "%s: the application's body is %s shorter than its Content-Length of %s; the connection is closed "
            "(request %s)",
            escape(f"{environ['REQUEST_METHOD']} {environ['RAW_URI']}"),
            counted(response.missing, "byte"),
            response.length,
            environ["wsgiserv.request_id"],
        )

    # ---- the request's line in the access log ------------------------------------------------------------

    def _log_later(self, request: InFlight, failure: BaseException | None) -> None:
        """Write the line of a request that may have ended early; while data wait for the client, only note that."""
        outbox, response = self._outbox, request.response
        if response.missing and failure is None:
            self._tell_missing(request)
        if outbox is not None and outbox.has_items and not is_a(failure, ClientGone) and not self._lost:
            self._pending = request
            return
        # A reset in answer to our data (EPIPE): the client had closed before. One that resets after it has read all
        # (ECONNRESET; some health checks do) had not.
        left_before = failure is None and not self._lost and self._error_of_socket() == errno.EPIPE
        if left_before:
            self._lost = True
            response.note_client_gone()
        gone = left_before or is_a(failure, ClientGone) or response.unsent
        gone = gone or (self._lost and outbox is not None and outbox.dropped > 0)
        self._log(request, gone or (self._lost and not response.is_whole))

    def _log(self, request: InFlight, aborted: bool, unsent_status: int = _CLIENT_GONE) -> None:
        """Write the line of a request.

        Args:
            request: the request.
            aborted: whether its client has not got all.
            unsent_status: its status, when its client has got nothing.
        """
        access = self.context.access
        if access is None:
            return
        environ, response, started, _ = request
        status, sent = response.code, response.sent
        aborted = aborted or response.incomplete or response.aborted
        if aborted and (response.unsent or not response.begun):
            status, sent = unsent_status, 0
        elif aborted and self._outbox is not None:
            sent = max(0, sent - self._outbox.count_unsent())
        access.log(environ, status, response.headers, sent, monotonic() - started, aborted)

    def _log_pending(self, aborted: bool) -> None:
        """Write the line that has waited until the response had left, or could not any more."""
        request, self._pending = self._pending, None
        if request is not None:
            self._log(request, aborted)

    def _error_of_socket(self) -> int:
        try:
            sock = RawSocket(fileno=self.fd)
        except (OSError, ValueError):  # it is closed already
            return 0
        try:
            return sock.getsockopt(SOL_SOCKET, SO_ERROR)
        except OSError:
            return 0
        finally:
            sock.detach()

    def answer_overdue(self, sent: int | None) -> bool:
        """Account for a request that is overdue: its call may never end. By the thread that watches its time.

        Args:
            sent: how many bytes of the body of a 504 have been sent, -1 when its client had gone; None: what the
                application has sent stays.

        Returns:
            False when it has been accounted for already.
        """
        context = self.context
        request = context.running.pop(self, None)
        if request is None:
            return False
        request = InFlight(*request)
        response = request.response
        code = response.code if sent is None else 504
        if sent is None:
            self._log(request, not response.is_whole)
        elif context.access is not None:
            gone = sent < 0
            context.access.log(
                request.environ,
                _CLIENT_GONE if gone else code,
                list(TIMEOUT_HEADERS),
                max(0, sent),
                monotonic() - request.started,
                gone,
            )
        context.slot.mark_logged(request.cell)
        self._count(code)
        return True

    def _count(self, code: int) -> None:
        context = self.context
        words = context.words
        context.answered = words[REQUESTS] = next(context.counter)
        if code >= 500:
            words[ERRORS] += 1

    def cut(self, running: bool = True) -> None:
        """Account for what is under way, in the log and the access log: the worker ends, and this with it.

        The worker closes the connection. In a thread that the request does not run in.

        Args:
            running: whether to account for a request in the application, too.
        """
        context = self.context
        level, why = context.why_leaving
        request = context.running.pop(self, None) if running else None
        if request is not None:
            request = InFlight(*request)
            response = request.response
            whole = response.is_whole and not self.has_output
            self._lost = True
            self._log(request, not whole, _CUT)
            self._count(response.code if response.begun else _CUT)
            context.slot.end(request.cell)
            if not whole:
                self._tell_cut(request.environ, level, why, monotonic() - request.started)
                if response.begun:
                    reset(self.sock)  # what the client has must not look like the whole
        elif self._pending is not None:
            request = self._pending
            self._log_pending(True)
            self._tell_cut(request.environ, level, why, monotonic() - request.started)
            reset(self.sock)
        elif self.state == BODY:
            self._cut_unrun(level, why)

    def cut_unrun(self) -> None:
        """As `cut`, for a request that waits for its thread. By whoever has taken it out of the queue."""
        self._cut_unrun(*self.context.why_leaving)

    def _cut_unrun(self, level: int, why: str) -> None:
        environ = refused_environ(self._line, self._block, self.peer)
        environ["wsgiserv.request_id"] = (self._block and self.trusted and self._block.request_id) or (
            f"{self.context.id_prefix}{next(self.context.serial):016x}"
        )
        if self.context.access is not None:
            self.context.access.log(environ, _CUT, [], 0, 0.0, True)
        self._tell_cut(environ, level, why)

    def _tell_cut(self, environ: dict[str, Any], level: int, why: str, after_s: float | None = None) -> None:
        self.context.log.log(
            level,
            'cut: "%s" from %s, request id %s, %s: %s',
            escape(
                f"{environ.get('REQUEST_METHOD', '-')} {environ.get('RAW_URI', '-')} "
                f"{environ.get('SERVER_PROTOCOL', '-')}"
            ),
            escape(self.name),
            escape(str(environ.get("wsgiserv.request_id", "-"))),
            "before the application was called" if after_s is None else f"after {after_s:.1f} s",
            why,
        )

    def _leave_stream(self, stream: BodyStream) -> None:
        """The application has ended; what it has not read of the body must not be read as a request."""
        stream.leave()
        if stream.done:
            self._stream = None
            if stream.rest:
                self._buffer = bytearray(stream.rest)
        else:
            self._buffer = bytearray()  # unread bytes: a connection that closes now has to linger

    def _settle(self, response: Response) -> None:
        """After the response: keep, flush or close."""
        if self._outbox is not None and self._leave_rest(self._outbox, response):
            return
        if self._pending is not None:
            self._log_pending(self._lost)
        if self._lost:
            self.close()
        elif response.aborted:
            self.reset()
        elif response.keep_alive:
            self._next_request()
        else:
            self._finish()

    def _leave_rest(self, outbox: SendQueue, response: Response) -> bool:
        """Leave what is queued to the loop; False when there is nothing, or nobody to send it to.

        Under the lock: the loop may be sending the last of it at this moment.
        """
        with outbox.lock:
            if self._lost or response.aborted or not outbox.has_items:
                return False
            self._close_after = not response.keep_alive
            self.state = FLUSHING
            self._start_flushing()
            return True

    def _next_request(self) -> None:
        context = self.context
        if self._stream is not None:
            self._buffer = None
            self.state = DISCARDING
            self.deadline = context.now + (context.timeouts.body or NEVER)
            self.loop.watch(self, READ)
        elif self._buffer is not None:
            self.state = WAITING
            self.deadline = NEVER
            self.loop.resume(self)
        elif context.retiring and not context.linger_s:
            # The response promised keep-alive, but the worker has begun to leave since.
            self.close()
        else:
            self.deadline = context.now + context.keepalive
            self.state = HEAD  # from here on another thread may read, run and close it
            if self.interest != READ:
                self.loop.watch(self, READ)

    def _discard(self, data: bytes) -> None:
        """Throw away what the application has not read of a streamed body. Raises ProtocolError."""
        stream = self._stream
        assert stream is not None
        stream.take(data)
        if stream.done:
            self._stream = None
            if stream.rest:
                self._buffer = bytearray(stream.rest)
            self._next_request()

    def _finish(self) -> None:
        """Close a connection whose responses have all been sent."""
        # Unread bytes, or those of a client that cannot know yet that this is the end, would turn the close into a
        # reset, which could take the response along (RFC 9112 §9.6).
        if self._buffer is not None:
            self._linger(_LINGER_S)
        elif self._keep_alive:
            self._linger(_BRIEF_LINGER_S)
        else:
            self.close()

    def _refuse(self, error: ProtocolError, quiet: bool = False) -> None:
        """Answer a broken request and close: not one byte behind it is ever read as a request."""
        context = self.context
        level = logging.DEBUG if quiet else logging.WARNING
        reason = f"{error.reason}: {error.detail}" if error.detail else error.reason
        untold = context.repeated_refusal(error.reason) if error.repeats else 0
        if untold > 0:
            reason = f"{reason} ({untold} more since this was logged last)"
        if untold >= 0:
            context.log.log(level, "%s: refused with %d: %s", self.name, error.status, reason)
        self._buffer = None
        if self._body is not None:
            self._body.discard()
            self._body = None
        answer = refusal(error.status, error.reason, self._line is not None and self._line.is_head)
        gone = False
        try:
            self.send(answer, wait=False)
        except ClientGone:
            gone = True
        sent = 0 if gone else len(answer) - answer.index(b"\r\n\r\n") - 4
        if context.access is not None:
            environ = refused_environ(self._line, self._block, self.peer)
            context.access.log(environ, _CLIENT_GONE if gone else error.status, [], sent, 0.0, gone)
        if gone:
            self.close()
            return
        if self._outbox:
            self._close_after = True
            self._buffer = bytearray()  # linger once it is flushed
            self.state = FLUSHING
            self._start_flushing()
        else:
            self._linger(_LINGER_S)

    def _linger(self, seconds: float) -> None:
        self._buffer = None
        self.state = LINGERING
        self.deadline = self.context.now + seconds
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError:
            self.close()
            return
        if self.interest != READ:
            self.loop.watch(self, READ)

    # ---- what has not been sent yet --------------------------------------------------------------------

    def _start_flushing(self) -> None:
        self.deadline = self.context.now + (self.context.timeouts.send or NEVER)
        if self.interest != WRITE:
            self.loop.watch(self, WRITE)

    def _start_draining(self) -> None:
        if self.state == READY:
            self.deadline = monotonic() + (self.context.timeouts.send or NEVER)
            self.loop.watch(self, WRITE)

    def drain(self) -> int:
        """Send what is queued, as far as the socket takes it, whatever the application does; return how many bytes.

        From any thread, at any time. What comes after the response is left to `flush`. Raises ClientGone when the
        response has been made and the connection is broken.
        """
        outbox = self._outbox
        if outbox is None:
            return 0
        with outbox.lock:
            state = self.state
            if not outbox.has_items:
                if state == READY:
                    self.loop.watch(self, NONE)  # the application's thread has sent it itself
                return 0
            if state == FLUSHING:
                return self._send_queued(outbox)
            if state != READY:
                return 0
            try:
                sent = self._send_queued(outbox)
            except ClientGone:
                # The application learns of it when it sends its next block. A poller would tell of it for ever.
                self.loop.ignore(self)
                return 0
            if not outbox:
                # With something queued until now its thread has not left the response: the deadline is still ours.
                self.deadline = NEVER
                self.loop.watch(self, NONE)
            return sent

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it, and go on behind it. Called when it is writable."""
        try:
            sent = self.drain()
        except ClientGone as error:
            self._connection_lost(error.__cause__)
            return
        if self.state != FLUSHING:
            return
        outbox = self._outbox
        assert outbox is not None
        if outbox.error is not None:  # a helper has met it
            self._connection_lost(outbox.error)
        elif outbox.has_items:
            if sent:
                self.deadline = self.context.now + (self.context.timeouts.send or NEVER)
        else:
            self._log_pending(False)
            if self._close_after:
                self._finish()
            else:
                self._next_request()

    # ---- the end -------------------------------------------------------------------------------------

    @property
    def request(self) -> tuple[RequestLine, HeaderBlock]:
        """The request in the application; for hooks."""
        assert self._line is not None
        assert self._block is not None
        return self._line, self._block

    @property
    def received_by_application(self) -> int:
        """Bytes of a streamed body that the application has read itself so far."""
        return 0 if self._stream is None else self._stream.received

    @property
    def is_read_by_application(self) -> bool:
        """Whether the application reads a streamed body, through more than a plain socket."""
        return self._stream is not None and type(self.sock) is not RawSocket

    @property
    def is_idle(self) -> bool:
        """Whether no byte of a request is here: closing loses nothing."""
        return self.state == HEAD and self._buffer is None

    @property
    def is_silent(self) -> bool:
        """Whether the client has not sent a byte yet."""
        return self._line is None and self.is_idle

    def unfinished_since(self, now: float) -> float:
        """Return when the request began of which a part is still missing, in seconds; `NEVER` when that cannot be told
        from an honest client's: a body that is not slower than ``body_min_rate``."""
        state = self.state
        if state == HEAD and (self._buffer is not None or self._line is None):
            return self.since
        if state == BODY and self._body is not None:
            began = self._body_began
            earned = self.context.timeouts.body_rate * (now - began - _BODY_GRACE_S)
            return began if self._body.length < earned else NEVER
        return NEVER

    def idle_for(self, now: float) -> float:
        """Return for how many seconds a connection that has been used waits for its next request, or to be closed by
        its client; else 0."""
        if self.state == LINGERING:
            return now - (self.deadline - _BRIEF_LINGER_S)
        if self._line is None or not self.is_idle:
            return 0.0
        return now - (self.deadline - self.context.keepalive)

    def has_input(self) -> bool:
        """Whether something has come that has not been read."""
        try:
            return bool(self.sock.recv(1, MSG_DONTWAIT | MSG_PEEK))
        except OSError:
            return False

    def expire(self) -> None:
        """The deadline has passed: answer 408 where a response is owed, close."""
        state = self.state
        if state == BODY:
            self._refuse(ProtocolError(408, "the request body came too slowly (body_timeout, body_min_rate)"))
        elif state == HEAD and self._buffer is not None:
            self._refuse(ProtocolError(408, "the request head did not come within header_timeout"))
        elif state == FLUSHING:
            if self.expire_output(self.context.now):
                self.close()
        elif state == READY:  # a request that has come in time waits for its thread, not for its client
            self.expire_output(self.context.now)
        else:
            if self.context.retiring and self.is_idle and self.has_input():
                return  # its next request has come in this moment: it is read in the next turn
            self.close()

    def expire_output(self, now: float) -> bool:
        """Whether the client has taken nothing of what is queued for ``send_timeout``: then nothing more is sent.

        From any thread. While the application runs, it is told when it sends its next block.
        """
        outbox = self._outbox
        if outbox is None:
            return False
        with outbox.lock:
            if not outbox.has_items:
                return outbox.error is not None
            due = outbox.moved_at + (self.context.timeouts.send or NEVER)
            if due > now:
                self.deadline = due  # some of it has been taken, by whichever thread
                return False
        self._give_up(outbox)
        if self.state == READY:
            self.loop.ignore(self)
        return True

    def retire(self, grace_s: float) -> bool:
        """The worker leaves: close if nothing is under way; what is under way ends with ``Connection: close``.

        With ``linger_s`` of the context an idle connection stays for so long: its next response announces the end.

        Args:
            grace_s: how long a client that has connected, but has not sent its first request yet, may take.

        Returns:
            True when a request has come in this very moment: it is still to be `run`.
        """
        if self.state == LINGERING:
            self.deadline = min(self.deadline, self.context.now + _BRIEF_LINGER_S)
        if not self.is_idle:
            return False
        if self.receive():
            return True
        if self.is_idle:
            if self._line is None or self.context.linger_s:
                self.bound_idle_time(grace_s)
            else:
                self.close()
        return False

    def bound_idle_time(self, grace_s: float) -> None:
        """Let an idle connection of a worker that leaves end in time; ``grace_s`` is of `retire`."""
        if self.is_idle:
            context = self.context
            most_s = context.linger_s if self._line is not None else max(context.linger_s, grace_s)
            self.deadline = min(self.deadline, context.now + most_s)

    # ---- to another process --------------------------------------------------------------------------

    @property
    def is_movable(self) -> bool:
        """Whether another process could go on with it: no byte of a request is with the application, or owed."""
        state, buffer = self.state, self._buffer
        return (
            # HEAD and not watched yet: the thread that has ended its request is about to see to that.
            (state == WAITING or (state == HEAD and self.interest == READ))
            and type(self.sock) is RawSocket  # neither TLS nor behind a PROXY header that is still to come
            and not self._outbox
            and (buffer is None or len(buffer) <= MOST_MOVED_BYTES)
        )

    @property
    def is_waiting(self) -> bool:
        """Whether the bytes of a next request are here, and nobody has looked at them."""
        return self.state == WAITING

    def luggage(self) -> ConnectionState:
        """Return what another process needs to go on with a movable connection."""
        data = b"" if self._buffer is None else bytes(self._buffer)
        waiting = self.state == WAITING
        used = waiting or (self._line is not None and not data)
        return ConnectionState(self.peer, self.peer_name, data, waiting, self._blank, used, self.deadline)

    def detach(self) -> None:
        """Drop a connection that another process has now: its client sees nothing of it."""
        self.state = CLOSED
        self.loop.forget(self)
        self._buffer = None
        self.sock.close()

    def restore(self, luggage: ConnectionState) -> None:
        """Go on where another process has left off; called once, on a new connection. Then `receive` or `advance`."""
        data = luggage.data
        self.deadline = luggage.deadline
        self._blank = luggage.blank
        if data:
            self._buffer = bytearray(data)
        if luggage.waiting:
            self.state = WAITING
        elif luggage.used and not data:
            # Stands for the request that the other process has answered: a connection that has been used.
            self._line = self.context.parser.request_line(b"GET / HTTP/1.1")

    def _connection_lost(self, error: BaseException | None) -> None:
        if self.state == READY:
            self._lost = True
            return
        self.context.log.debug("%s: connection lost (%s)", self.name, error)
        if self.state == BODY and self.context.access is not None:
            environ = refused_environ(self._line, self._block, self.peer)
            self.context.access.log(environ, _CLIENT_GONE, [], 0, 0.0, True)
        self.close()

    def reset(self) -> None:
        """Close with a reset, so that the client does not take what it has for the whole."""
        reset(self.sock)
        self.close()

    def abandon(self, is_mine: bool) -> None:
        """Close after a fault of the server, in whatever state that has left it. Raises nothing.

        Args:
            is_mine: whether no other thread can be in its call. One that is finds the connection broken, and closes it.
        """
        if self.state == READY and not is_mine:
            self._lost = True
            with suppress(OSError):
                self.sock.shutdown(SHUT_RDWR)
            self.abandon_sending()
            return
        with suppress(Exception):
            self._log_failure()
        with suppress(Exception):
            self.close()
        if self.sock.fileno() >= 0:  # close() has failed half-way; else the number may be another's by now
            with suppress(Exception):
                self.loop.forget(self)
            with suppress(Exception):
                self.sock.close()

    def abandon_sending(self) -> None:
        """Drop the queued output after a fault of the server in a helper thread. Raises nothing.

        The loop closes the connection: at once, or when the application's call ends.
        """
        with suppress(Exception):
            self.cut_off(OSError("a fault of the server"))
            if self.state == READY:
                self.loop.ignore(self)  # the poller would report the broken socket again and again

    def _log_failure(self) -> None:
        """Write the line of a request that a fault of the server has ended."""
        request = self.context.running.pop(self, None)
        if request is not None:
            request = InFlight(*request)
            self._count(500)
            self._log(request, True, 500)
            self.context.slot.end(request.cell)

    def close(self) -> None:
        """Close the socket and let go of everything."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        if self._pending is not None:
            self._log_pending(True)
        self.loop.forget(self)
        if self._outbox is not None:
            self._drop_queue(self._outbox)
        if self._body is not None:
            self._body.discard()
            self._body = None
        self._buffer = None
        sock = self.sock
        try:
            # close(2) tells the client nothing while a child of the application has the descriptor, too.
            sock.shutdown(SHUT_RDWR)
        except OSError:  # it has been reset, or its client has left
            pass
        sock.close()

    def close_in_child(self) -> None:
        """Close the descriptor and nothing else: the parent goes on. Called in a child of the application."""
        self.state = CLOSED
        self._pending = None
        self._lost = True
        sock = self.sock
        if isinstance(sock, RawSocket):
            sock.close()
        else:
            sock.close_in_child()
        if self._outbox is not None:
            self._outbox.drop_in_child()
            self._outbox = None  # what is still sent fails at the socket
