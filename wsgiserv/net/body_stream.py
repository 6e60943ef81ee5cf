"""A request's body that the application reads while it arrives.

Owns: `BodyStream`: taking the body from the socket piece by piece, for `wsgi.input` and after it.
Must not know: who waits for the socket (its `Loop` does), what the application makes of the body.

Used where ``stream_request_body`` says so; all other bodies are here before the application is called.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT
from time import monotonic
from typing import TYPE_CHECKING, Final

from wsgiserv.errors import ProtocolError
from wsgiserv.http.body import ChunkedDecoder
from wsgiserv.http.response import CONTINUE
from wsgiserv.net.serving_context import LARGE_STREAMED, RATE_GRACE_S
from wsgiserv.wsgi.input import BodyBuffer, BodyError, StreamedInput
from wsgiserv.wsgi.response import ClientGone, Response

if TYPE_CHECKING:
    from wsgiserv.net.response_writer import ResponseWriter

__all__ = ["BodyStream"]

_RECV_BYTES: Final = 65536
# An unread rest up to this size is read and thrown away, so that the connection can be used again.
_MOST_DISCARDED: Final = 256 * 1024
# After so much without having had to wait, waiting is offered all the same: a client that is always quicker than
# the application must not keep a greenlet's neighbours from their turn.
_TURN_BYTES: Final = 1024 * 1024


class BodyStream:
    """The body of one request, from the application's call on.

    Args:
        sink: the connection; only its socket and its loop are used.
        begun: what has come of the body already.
        decoder: the decoder of a chunked body, else None.
        left: bytes still to come of a body of known length.
        expects_continue: whether the client waits for ``100 Continue``. It gets it when the application reads
            (RFC 9110 §10.1.1): what is refused unread need not be sent.

    Attributes:
        done: whether the body is here to its end.
        received: bytes of the body that have come since the call: a reader's progress.
        rest: what has come behind it: the next request's bytes.
    """

    __slots__ = (
        "_absorbed",
        "_decoded",
        "_decoder",
        "_expects_continue",
        "_left",
        "_over",
        "_response",
        "_sink",
        "_unwaited",
        "_waited_s",
        "begun",
        "done",
        "received",
        "rest",
    )

    def __init__(
        self,
        sink: ResponseWriter,
        begun: BodyBuffer,
        decoder: ChunkedDecoder | None,
        left: int,
        expects_continue: bool,
    ) -> None:
        self._sink = sink
        self._decoder = decoder
        self._decoded: list[bytes] = []
        if decoder is not None:
            decoder.redirect(self._decoded.append)
        self._left = left
        self._expects_continue = expects_continue
        self._response: Response | None = None
        self._absorbed: BodyBuffer | None = None
        self.received = 0
        self._unwaited = 0
        self._waited_s = 0.0
        self._over = False
        self.begun = begun
        self.done = False
        self.rest = b""

    def input(self) -> StreamedInput:
        """Return the application's ``wsgi.input``. Raises ProtocolError as `BodyBuffer.rewind`."""
        return StreamedInput(self.begun.rewind(), self.more)

    def attend(self, response: Response) -> None:
        """Tell the response to say ``Connection: close`` for as long as too much of the body is unread."""
        self._response = response
        self._judge_keep_alive()
        if self._sink.context.streaming == LARGE_STREAMED:
            response.call_before_stream(self.absorb)

    def absorb(self) -> None:
        """Take the rest of the body before a response begins that comes in pieces.

        A proxy may stop sending the body when it sees the response begin (nginx does), and an application that reads
        while it writes would then wait for ever. Who wants that asks for it (``stream_request_body = "on"``). Raises
        BodyError.
        """
        if self.done:
            return
        context = self._sink.context
        rest = BodyBuffer(context.body_memory, context.spool_dir, context.bodies_memory)
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
        """The response has ended: what still comes is not the application's, whoever of it goes on reading."""
        self._over = True
        if self._absorbed is not None:
            self._absorbed.discard()
            self._absorbed = None

    def more(self) -> bytes:
        """Return the next bytes of the body, waiting for them; ``b""`` at its end. In the application's thread.

        Raises:
            BodyError: the client is too slow or has gone, or what it sends is no body.
        """
        if self._absorbed is not None:
            return self._absorbed.read(_RECV_BYTES)
        sink = self._sink
        while not self.done:
            self._check_time()
            if self._expects_continue:
                self._expects_continue = False
                self._continue()
            if self._unwaited >= _TURN_BYTES:
                self._wait()
                self._check_time()
            try:
                data = sink.sock.recv(_RECV_BYTES, MSG_DONTWAIT)
            except BlockingIOError:
                self._wait()
                continue
            except OSError as error:
                raise self._break(400, f"the client has gone: {error.strerror}", gone=True) from error
            self._unwaited += len(data)
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
        """Not one byte more for an application whose client has had its answer: it may be of the next request, or,
        behind the end of TLS, enciphered."""
        response = self._response
        if self._over or (response is not None and response.overdue):
            raise self._break(400, "the request is over; the rest of its body cannot be read any more")

    def _continue(self) -> None:
        response = self._response
        if response is not None and response.begun:
            return  # the final response has left: the client knows that its body is not wanted
        try:
            self._sink.send(CONTINUE)
        except ClientGone as error:
            raise self._break(400, "the client has gone", gone=True) from error

    def _wait(self) -> None:
        """Wait for the client: not longer than ``body_timeout``, nor for one slower than ``body_min_rate``."""
        sink = self._sink
        timeouts = sink.context.timeouts
        started = monotonic()
        self._unwaited = 0
        if not sink.loop.wait_readable(sink):
            raise self._break(408, "the request body came too slowly (body_timeout)")
        # What the application does meanwhile is not the client's fault: only waiting counts.
        self._waited_s += monotonic() - started
        late_s = self._waited_s - (timeouts.body or RATE_GRACE_S)
        if timeouts.body_rate and late_s > self.received / timeouts.body_rate:
            raise self._break(408, "the request body came too slowly (body_min_rate)")

    def _break(self, status: int, reason: str, gone: bool = False) -> BodyError:
        if self._response is not None:
            self._response.close_connection()
        return BodyError(status, reason, gone)

    def take(self, data: bytes) -> bytes:
        """Return what ``data`` holds of the body; what is behind its end is kept in `rest`. Raises ProtocolError."""
        decoder = self._decoder
        if decoder is not None:
            rest = decoder.feed(data)
            piece = b"".join(self._decoded)
            self._decoded.clear()
            done = decoder.done
        else:
            piece, rest = data[: self._left], data[self._left :]
            self._left -= len(piece)
            done = self._left == 0
        if done:
            self.done = True
            self.rest = rest
        self._judge_keep_alive()
        return piece

    def _judge_keep_alive(self) -> None:
        response = self._response
        if response is None or response.begun or response.overdue:
            return
        # A client that waits for a 100 which it does not get may send the body or leave it out: nobody can know
        # what its next bytes are (RFC 9110 §10.1.1). How much is left of a chunked body is not known either.
        small = self._decoder is None and not self._expects_continue and self._left <= _MOST_DISCARDED
        response.allow_keep_alive(self.done or small)
