"""Reads a request's body from the socket while the application runs, piece by piece, for ``wsgi.input``.

Used as ``stream_request_body`` says; all other bodies are here before the application is called.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from wsgiserv.errors import ProtocolError
from wsgiserv.http.body import ChunkedDecoder, LengthDecoder
from wsgiserv.http.response import CONTINUE
from wsgiserv.net.response_writer import ResponseWriter
from wsgiserv.net.serving_context import LARGE_STREAMED, RATE_GRACE_S
from wsgiserv.wsgi.input import BodyBuffer, BodyError, StreamedInput
from wsgiserv.wsgi.response import ClientGone, Response

_RECV_BYTES: Final = 65536
# An unread rest up to this size is read and dropped, so that the connection can be used again.
_MOST_DISCARDED: Final = 256 * 1024
# After this much without a wait, the reader waits all the same: a client that is always faster than the application
# must not keep other greenlets from their turn.
_TURN_BYTES: Final = 1024 * 1024


@dataclass(slots=True, eq=False, repr=False)
class BodyStream:
    """The body of one request, from the application's call on.

    Args:
        writer: the connection; only its socket, its loop and `ResponseWriter.send` are used.
        begun: the part of the body that has come already.
        decoder: removes the framing of the rest.
        expects_continue: whether the client waits for ``100 Continue``. It is sent when the application reads (RFC 9110
            §10.1.1): a body that is refused unread need not be sent.

    Attributes:
        done: whether the whole body is here.
        received: bytes of the body that have come since the call: a reader's progress.
        rest: bytes behind the body: the next request's.
    """

    _writer: ResponseWriter
    _begun: BodyBuffer
    _decoder: ChunkedDecoder | LengthDecoder
    _expects_continue: bool
    received: int = field(init=False, default=0)
    done: bool = field(init=False, default=False)
    rest: bytes = field(init=False, default=b"")
    _decoded: list[bytes] = field(init=False, default_factory=list)
    _response: Response | None = field(init=False, default=None)
    _absorbed: BodyBuffer | None = field(init=False, default=None)
    _unwaited: int = field(init=False, default=0)  # bytes read since the last wait
    _waited_s: float = field(init=False, default=0.0)
    _over: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._decoder.sink = self._decoded.append

    def input(self) -> StreamedInput:
        """Return the application's ``wsgi.input``. Raises ProtocolError as `BodyBuffer.rewind`."""
        return StreamedInput(self._begun.rewind(), self.more)

    def attend(self, response: Response) -> None:
        """Have the response say ``Connection: close`` as long as too much of the body is unread."""
        self._response = response
        self._update_keep_alive()
        if self._writer.context.settings.streaming == LARGE_STREAMED:
            response.call_before_stream(self.absorb)

    def absorb(self) -> None:
        """Read the rest of the body before a response of unknown length begins. Raises BodyError."""
        # A proxy may stop sending the body when it sees the response begin (nginx does), and an application that reads
        # while it writes would then wait for ever. ``stream_request_body = "on"`` allows that all the same.
        if self.done:
            return
        rest = self._writer.context.new_body()
        try:
            while piece := self.more():
                rest.write(piece)
            rest.rewind()
        except ProtocolError as error:  # the disk is full
            raise self._break(error.status, error.reason) from None
        except BaseException:
            rest.discard()
            raise
        self._absorbed = rest

    def leave(self) -> None:
        """End reading: the response has ended, and a thread of the application that reads on gets an error."""
        self._over = True
        if self._absorbed is not None:
            self._absorbed.discard()
            self._absorbed = None

    def more(self) -> bytes:
        """Return the next bytes of the body, waiting for them; ``b""`` at its end. In the application's thread.

        Raises:
            BodyError: the client is too slow or has gone, or the bytes it sends are no body.
        """
        # The body was read before the response began: it is here, or in a spool file.
        if self._absorbed is not None:
            return self._absorbed.read(_RECV_BYTES)
        writer = self._writer
        while not self.done:
            self._check_time()
            if self._expects_continue:
                self._expects_continue = False
                self._continue()
            if self._unwaited >= _TURN_BYTES:
                self._wait()
                self._check_time()
            try:
                data = writer.sock.recv(_RECV_BYTES, MSG_DONTWAIT)
            except BlockingIOError:
                self._wait()
                continue
            except OSError as error:
                raise self._break(400, f"the client has gone: {error.strerror}", gone=True) from error
            self._unwaited += len(data)
            # The end of the data is no end of a body: `LengthDecoder` and `ChunkedDecoder` know that.
            if not data:
                raise self._break(400, "the client has ended the body before its end")
            try:
                piece = self.take(data)
            except ProtocolError as error:
                raise self._break(error.status, error.reason) from None
            if piece:
                self.received += len(piece)
                return piece
        return b""

    def _check_time(self) -> None:
        # Once its client has its answer, the application gets no further byte: it may belong to the next request or,
        # behind the end of TLS, be encrypted.
        response = self._response
        if self._over or (response is not None and response.overdue):
            raise self._break(400, "the request is over; the rest of its body cannot be read any more")

    def _continue(self) -> None:
        response = self._response
        if response is not None and response.begun:
            return  # the final response has left: the client knows that its body is not wanted
        try:
            self._writer.send(CONTINUE)
        except ClientGone as error:
            raise self._break(400, "the client has gone", gone=True) from error

    def _wait(self) -> None:
        """Wait for the client, within ``body_timeout`` and ``body_min_rate``. Raises BodyError."""
        writer = self._writer
        settings = writer.context.settings
        started = monotonic()
        self._unwaited = 0
        if not writer.loop.wait_readable(writer):
            raise self._break(408, "the request body came too slowly (body_timeout)")
        # Only waiting counts: the time that the application takes is not the client's fault.
        self._waited_s += monotonic() - started
        late_s = self._waited_s - (settings.body_timeout or RATE_GRACE_S)
        if settings.body_min_rate and late_s > self.received / settings.body_min_rate:
            raise self._break(408, "the request body came too slowly (body_min_rate)")

    def _break(self, status: int, reason: str, gone: bool = False) -> BodyError:
        # Nobody knows where the next request would begin.
        if self._response is not None:
            self._response.allow_keep_alive(False)
        return BodyError(status, reason, gone)

    def take(self, data: bytes) -> bytes:
        """Return the part of ``data`` that belongs to the body; keep the bytes behind it in `rest`.

        Raises:
            ProtocolError: it is no body.
        """
        decoder = self._decoder
        rest = decoder.feed(data)
        piece = b"".join(self._decoded)
        self._decoded.clear()
        if decoder.done:
            self.done = True
            self.rest = rest
        self._update_keep_alive()
        return piece

    def _update_keep_alive(self) -> None:
        response, decoder = self._response, self._decoder
        if response is None or response.begun or response.overdue:
            return
        # A client that waits for a 100 and does not get it may send the body or leave it out, so its next bytes are
        # ambiguous (RFC 9110 §10.1.1). How much is left of a chunked body is not known either.
        small = type(decoder) is LengthDecoder and not self._expects_continue and decoder.left <= _MOST_DISCARDED
        response.allow_keep_alive(self.done or small)
