"""Reads requests: takes bytes, gives request lines, header blocks and bodies. Uses no socket and no clock.

The connection feeds `RequestReader` with arriving bytes, and takes the returned state:

    state   fed with              becomes
    HEAD    a head or part of it  HEAD, BODY, READY
    BODY    a body or part of it  BODY, READY
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from wsgiserv.errors import ProtocolError
from wsgiserv.http.body import ChunkedDecoder, LengthDecoder
from wsgiserv.http.grammar import STRAY
from wsgiserv.http.head import HeaderBlock, RequestLine
from wsgiserv.net.serving_context import ALL_STREAMED, NEVER, RATE_GRACE_S, ServingContext
from wsgiserv.wsgi.input import BodyBuffer

# The states of a connection; the last five are the connection's own.
HEAD: Final = 0
BODY: Final = 1
DISCARDING: Final = 2
LINGERING: Final = 3
READY: Final = 4
WAITING: Final = 5
FLUSHING: Final = 6
CLOSED: Final = 7

# RFC 8446 §5.1: the type of a TLS record that begins a handshake; the version that follows begins with 3.
TLS_HANDSHAKE: Final = 0x16


@dataclass(slots=True, eq=False, repr=False)
class RequestReader:
    """The reading half of one connection.

    Args:
        context: limits, caches and the time of the loop's turn, shared by the connections of a worker.

    Attributes:
        line, block: head of the current request; None before it has come.
        body: body of the current request; None without one.
        decoder: removes the framing of a body, unless it came whole with its head.
        keep_alive: whether the client wants to use the connection again (RFC 9112 §9.3).
        expects_continue: whether the client waits for ``100 Continue`` before it sends the body.
        buffer: unconsumed bytes: an unfinished head, or bytes behind a request (pipelined).
        has_blank: whether an empty line before the current head has been skipped.
        head_since: when the first byte of the unfinished head came; times are ``time.monotonic()`` seconds.
        since: the same for a later request; for the first one, when the connection came.
        body_since: when the body began.
    """

    _context: ServingContext
    line: RequestLine | None = field(init=False, default=None)
    block: HeaderBlock | None = field(init=False, default=None)
    body: BodyBuffer | None = field(init=False, default=None)
    decoder: ChunkedDecoder | LengthDecoder | None = field(init=False, default=None)
    keep_alive: bool = field(init=False, default=True)
    expects_continue: bool = field(init=False, default=False)
    buffer: bytearray | None = field(init=False, default=None)
    has_blank: bool = field(init=False, default=False)
    since: float = field(init=False)
    head_since: float = field(init=False)
    body_since: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.since = self.head_since = self._context.now

    def feed_head(self, data: bytes) -> int:
        """Take a head or part of it, and bytes behind it; return the next state.

        Raises:
            ProtocolError: the request is refused. Nothing may be fed after that.
        """
        buffer = self.buffer
        seen = 0
        if buffer is not None:
            seen = len(buffer)
            buffer += data
            # Three bytes of the empty line may have come before; to search all again would be quadratic for slow
            # clients.
            end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
            if end < 0 and not buffer.startswith(b"\r\n"):
                self._check_partial(buffer, seen)
                return HEAD
            data = bytes(buffer)
            self.buffer = None
        else:
            end = data.find(b"\r\n\r\n")
        if data.startswith(b"\r\n"):
            data = self._skip_blank(data)
            if not data:
                return HEAD
            seen, end = 0, data.find(b"\r\n\r\n")
        if end < 0:
            self._begin_partial(data, seen, is_new=buffer is None)
            return HEAD
        parser = self._context.parser
        eol = data.find(b"\r\n")
        raw = data[:eol]
        # Reset first: a refusal is logged with the request line that it is about.
        self.line = self.block = None
        self.line = line = parser.lines.get(raw) or parser.new_line(raw)
        raw = data[eol + 2 : end + 2]
        self.block = block = parser.blocks.get(raw) or parser.new_block(raw)
        self.has_blank = False
        rest = data[end + 4 :] if len(data) > end + 4 else b""
        if line.http11:
            if not block.has_host:
                # RFC 9112 §3.2, and it holds for absolute-form targets too.
                raise ProtocolError(400, "HTTP/1.1 request without a Host header field")
            if block.plain and not line.is_connect:
                self.keep_alive = True
                if rest:
                    self.buffer = bytearray(rest)
                return READY
            # CONNECT asks for a tunnel (RFC 9110 §9.3.6): bytes behind it may not be HTTP.
            self.keep_alive = not (block.close or line.is_connect)
        else:
            if block.chunked:
                # RFC 9112 §6.1: a 1.0 client cannot know the coding, so some hop between does not know it either.
                raise ProtocolError(400, "Transfer-Encoding in an HTTP/1.0 request")
            # RFC 9112 §9.3: HTTP/1.0 closes unless the client has asked otherwise.
            self.keep_alive = block.keep_alive and not block.close and not line.is_connect
        return self._begin_body(line, block, rest)

    def feed_body(self, data: bytes) -> int:
        """Take part of a body, and bytes behind it; return the next state. Raises ProtocolError."""
        decoder = self.decoder
        assert decoder is not None
        rest = decoder.feed(data)
        if not decoder.done:
            return BODY
        if rest:
            self.buffer = bytearray(rest)
        return READY

    def _begin_partial(self, data: bytes, seen: int, is_new: bool) -> None:
        if is_new:
            self.head_since = self._context.now
            if self.line is not None:
                self.since = self.head_since
            self.line = self.block = None  # a refusal from here on is not about the request before
        self.buffer = bytearray(data)
        self._check_partial(self.buffer, seen)

    def _skip_blank(self, data: bytes) -> bytes:
        # RFC 9112 §2.2: one empty line before a request line is skipped; old clients sent it after a POST.
        if self.has_blank or data.startswith(b"\r\n\r\n"):
            self.line = self.block = None
            raise ProtocolError(400, "more than one empty line before the request line")
        self.has_blank = True
        return data[2:]

    def _check_partial(self, buffer: bytearray, seen: int) -> None:
        """Refuse at once a head beyond repair: the client need not wait for the timeout. Raises ProtocolError."""
        limits = self._context.settings.limits
        # One byte back: a CR at the end of the last piece is judged by what follows.
        if STRAY.search(buffer, max(0, seen - 1)):
            raise ProtocolError(400, "stray control character, or a line that does not end with CRLF")
        first = buffer.find(b"\r\n", 0, limits.line + 2)
        if first < 0 and len(buffer) > limits.line + 1:
            raise ProtocolError(414, "request line longer than limit_request_line")
        # Parsed once, when its end has just come: its faults are told without waiting for the fields.
        if first >= 0 and first + 1 >= seen:
            self.line = self._context.parser.request_line(bytes(buffer[:first]))
        if len(buffer) > limits.head:
            raise ProtocolError(431, "header fields larger than limit_request_fields times limit_request_field_size")
        if first >= 0 and len(buffer) - buffer.rfind(b"\r\n") - 2 > limits.field_size + 1:
            raise ProtocolError(431, "header field larger than limit_request_field_size")

    def _begin_body(self, line: RequestLine, block: HeaderBlock, rest: bytes) -> int:
        """Settle the framing of the body (RFC 9112 §6.3); return the next state. Raises ProtocolError."""
        context = self._context
        settings = context.settings
        length = block.content_length
        # Before a byte of it is taken: a chunked body is counted as it comes.
        if settings.body_limit and length > settings.body_limit:
            raise ProtocolError(413, "request body larger than limit_request_body")
        if length == 0:
            if rest:
                self.buffer = bytearray(rest)
            return READY
        body = self.body = context.new_body()
        if 0 < length <= len(rest):  # it came with its head, as small ones do
            if len(rest) > length:
                self.buffer = bytearray(rest[length:])
                rest = rest[:length]
            body.write(rest)
            return READY
        if block.chunked:
            limits = settings.limits
            self.decoder = ChunkedDecoder(body.write, settings.body_limit, limits.fields, limits.field_size)
        else:
            self.decoder = LengthDecoder(body.write, length)
        # Small bodies have come by now, so only slow ones are timed.
        self.body_since = context.now
        self.expects_continue = block.expect_continue and line.http11 and not rest
        return self.feed_body(rest) if rest else BODY

    @property
    def streams_body(self) -> bool:
        """Whether the application reads the rest of the current body itself (``stream_request_body``)."""
        # A large chunked body is not streamed unless all are: read whole, it gets a CONTENT_LENGTH, and Django, for
        # one, reads nothing without.
        settings = self._context.settings
        streaming = settings.streaming
        assert self.block is not None
        return streaming == ALL_STREAMED or (streaming > 0 and self.block.content_length > settings.body_memory)

    def body_deadline(self) -> float:
        """Return when more of the body must have come: within ``body_timeout``, at ``body_min_rate`` overall."""
        assert self.body is not None
        settings = self._context.settings
        deadline = self._context.now + (settings.body_timeout or NEVER)
        if settings.body_min_rate:
            # A trickle that restarts `body_timeout` with each byte must end, too (slowloris with a body).
            earned = (
                self.body_since + (settings.body_timeout or RATE_GRACE_S) + self.body.length / settings.body_min_rate
            )
            deadline = min(deadline, earned)
        return deadline

    def keep(self, data: bytes) -> None:
        """Keep ``data``, which came behind a request, for the next one."""
        # Empty is not None: the caller knows of bytes that are still in the socket.
        self.buffer = bytearray(data)

    def take_buffer(self) -> bytearray | None:
        """Return the unconsumed bytes, and keep them no longer."""
        buffer, self.buffer = self.buffer, None
        return buffer

    def discard(self) -> None:
        """Drop all that has come: the body, and the unconsumed bytes."""
        self.buffer = None
        self.discard_body()

    def discard_body(self) -> None:
        """Drop the body, and its spool file."""
        if self.body is not None:
            self.body.discard()
            self.body = None

    def explain(self, error: ProtocolError, data: bytes) -> ProtocolError:
        """Return the error to answer a head ending with ``data``: a TLS handshake is named as such."""
        buffer = self.buffer
        if data[1:2] not in (b"", b"\x03") or (buffer is not None and buffer[0] != TLS_HANDSHAKE):
            return error
        return ProtocolError(
            400,
            "HTTPS was sent to an HTTP port; use http:// in the URL",
            "a TLS handshake came; set certfile and keyfile to serve HTTPS here",
            repeats=True,
        )
