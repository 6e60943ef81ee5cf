"""One client's connection: a state machine that never waits.

The worker's loop calls `Connection.receive` when the socket is readable; on True a request is complete, and `run` may
be called, at once or on another thread. The loop calls `flush` when the socket is writable again, also while the
application runs, and `expire` after the deadline. The connection tells its `Loop` the next event to wait for.

    state       readable                  run          writable  deadline
    HEAD        head or part of it        -            -         408 or silent close
    BODY        body or part of it        -            -         408
    DISCARDING  discard to the body's end -            -         close
    LINGERING   discard                   -            -         close
    READY       -                         application  send      reset when output waits
    WAITING     -                         -            -         -     (its next bytes are here: `advance`)
    FLUSHING    -                         -            send      reset
    CLOSED      -                         -            -         -
"""

from __future__ import annotations

import logging
from _socket import MSG_DONTWAIT, SHUT_WR
from time import monotonic
from typing import Final

from wsgiserv.errors import ProtocolError
from wsgiserv.http.response import CONTINUE, refusal
from wsgiserv.net.body_stream import BodyStream
from wsgiserv.net.connection_life import BRIEF_LINGER_S, ConnectionLife
from wsgiserv.net.request_account import CLIENT_GONE
from wsgiserv.net.request_reader import BODY, DISCARDING, FLUSHING, HEAD, LINGERING, READY, TLS_HANDSHAKE, WAITING
from wsgiserv.net.send_queue import SendQueue
from wsgiserv.net.serving_context import NEVER, NONE, READ, WRITE, InFlight
from wsgiserv.net.upgrade import offer
from wsgiserv.scoreboard import CELL_BYTES, CELL_WORDS, CELLS_AT, ERRORS, REQUESTS, pack_cell
from wsgiserv.wsgi.environ import adjust
from wsgiserv.wsgi.input import BodyBuffer, empty_input
from wsgiserv.wsgi.response import ClientGone, Response

_RECV_BYTES: Final = 65536
# How long a closing connection discards what the client still sends, so that the refusal is not lost to a reset
# (RFC 9112 §9.6).
_LINGER_S: Final = 5.0
# A client may leave during a call that takes this long, so its socket is checked before its line is written.
_SLOW_S: Final = 0.01


class Connection(ConnectionLife):
    """The connection of one client; arguments as of `ConnectionLife`."""

    __slots__ = ()

    # ---- reading -----------------------------------------------------------------------------------

    def receive(self) -> bool:
        """Take the arrived bytes; return True when a request is complete and `run` is to be called."""
        state = self.state
        if state > LINGERING:
            self._leave_input()
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
        except ProtocolError as error:  # plain HTTP on a TLS port
            data, broken = None, error
        if not data:
            if data is None:
                self._refuse(broken)
                return False
            return self._end_of_input()
        try:
            if state == HEAD:
                self.state = state = self.reader.feed_head(data)
                return state == READY or self._wait_for_rest(state)
            if state == BODY:
                self.state = state = self.reader.feed_body(data)
                if state == READY:
                    return True
                self.deadline = self.reader.body_deadline()
            elif state == DISCARDING:
                self._discard(data)
        except ProtocolError as error:
            broken = error
            if data[0] == TLS_HANDSHAKE and state == HEAD and self.base["wsgi.url_scheme"] != "https":
                broken = self.reader.explain(error, data)
        else:
            # LINGERING: bytes behind a client's last request are dropped.
            return False
        self._refuse(broken)  # outside of the handler: the log's filters are user code
        return False

    def _wait_for_rest(self, state: int) -> bool:
        """Set the deadline for the rest of a request; return True when the application is to read it."""
        reader = self.reader
        if state == HEAD:
            if reader.buffer is not None:
                self.deadline = reader.head_since + (self.context.settings.header_timeout or NEVER)
            return False
        self.deadline = reader.body_deadline()
        if reader.streams_body:
            assert reader.body is not None
            assert reader.decoder is not None
            self._stream = BodyStream(self, reader.body, reader.decoder, reader.expects_continue)
            self.state = READY
            if self.interest == READ:
                self.loop.watch(self, NONE)  # only the application's thread reads now
            return True
        if reader.expects_continue:
            # RFC 9110 §10.1.1: once, and only because the body is going to be read now.
            try:
                self.send(CONTINUE)
            except ClientGone:
                self._connection_lost(None)
        return False

    def _leave_input(self) -> None:
        """Leave input in the kernel until its turn: a level-triggered poller would spin on it."""
        if self.interest == READ:
            self.loop.watch(self, NONE)
        elif self.interest == NONE:
            # epoll reports a reset even then, again and again, and it cannot be acted on now.
            self.loop.ignore(self)
        # Another thread may just have finished the request.
        if self.state <= LINGERING:
            self.loop.watch(self, READ)
        elif self.state == FLUSHING:
            self.loop.watch(self, WRITE)

    def advance(self) -> bool:
        """Read the bytes behind the last request; return as `receive` does."""
        buffer = self.reader.take_buffer() if self.state == WAITING else None
        if buffer is None:
            return False
        broken: ProtocolError | None = None
        try:
            self.state = state = self.reader.feed_head(bytes(buffer))
            if state == READY or self._wait_for_rest(state):
                return True
        except ProtocolError as error:
            broken = error
        if broken is not None:
            self._refuse(broken)
        elif self.state <= BODY and self.interest != READ:
            # While it waited for its turn, `receive` may have stopped watching it.
            self.loop.watch(self, READ)
        return False

    def _end_of_input(self) -> bool:
        # The client sends no more. It may still read: a request that is complete is answered.
        if self.state == BODY or (self.state == HEAD and self.reader.buffer):
            self._refuse(ProtocolError(400, "the connection ended in the middle of a request"), quiet=True)
        else:
            self.close()
        return False

    # ---- the application ---------------------------------------------------------------------------

    def run(self, cell: int = 0) -> float:
        """Call the application with the complete request, and send its response; return the seconds of the call.

        Args:
            cell: the scoreboard cell of this request: one per request in flight.
        """
        context, reader = self.context, self.reader
        line, block, body = reader.line, reader.block, reader.body
        assert line is not None
        assert block is not None
        started = monotonic()
        request_id = (block.request_id if self.trusted else None) or next(context.request_ids)
        try:
            environ = {
                **self.base,
                **self.peer,
                **block.environ,
                **line.environ,
                "wsgi.input": empty_input() if body is None else self._input(body),
                "wsgiserv.request_id": request_id,
            }
            if line.authority is not None or (
                block.unusual and not (block.only_claims and self.trusted and context.settings.forwarding is None)
            ):
                length = body.length if body and block.chunked and self._stream is None else -1
                adjust(environ, line, block, self.trusted, length, context.settings.forwarding)
                if block.claims and not self.trusted:
                    context.untrusted_headers.handle(environ, block.claims, self.name, self.sock)
                # Of the client's own protocol, also where a proxy's is uwsgi: HTTP/1.0 has no upgrade (RFC 9110 §7.8).
                if block.upgrades and self._stream is None and environ["SERVER_PROTOCOL"] == "HTTP/1.1":
                    self._upgrade = offer(self, environ)
        except ProtocolError as error:
            environ, broken = None, error
        if environ is None:
            self._refuse(broken)
            return 0.0
        response = Response(self, context.gateway, line.http11, line.is_head, reader.keep_alive, line.raw)
        slot = context.slot
        # Before the call: when it ends the process, the master reads here which request that was. (`begin` and `end` of
        # the slot are in place: two calls fewer for each request.)
        place = CELLS_AT + cell * CELL_BYTES
        pack_cell(slot.memory, place, started, self.peer_name, request_id.encode("ascii"), line.raw)
        # The request has come in time. How long its call may take is up to `request_timeout`.
        self.deadline = NEVER
        # A plain tuple: an InFlight, four times as quick.
        context.running[self] = (environ, response, started, cell)  # type: ignore[assignment]
        environ["wsgi.early_hints"] = response.early_hints
        if self._stream is not None:
            self._stream.attend(response)
        application = context.application
        app = application.app
        if application.pre_request is not None:
            app = application.pre_request(self, environ) or app
        failure = application.call(app, environ, response)
        slot.begun[cell * CELL_WORDS] = 0.0
        context.now = now = monotonic()  # the call may have been long: no deadline is counted from before it
        if context.cork.is_on:
            context.cork.after_call(now, now - started)
        if failure is not None and not response.overdue:  # that has been reported
            self._report_failure(failure, environ, response.is_taken)
        # The thread that takes it out accounts for it: another has, when it was cut or answered with 504.
        if context.running.pop(self, None) is not None:
            # `_count`, inlined: it is on every request's way.
            slot.words[REQUESTS] = next(context.counter)
            code = response.code
            if code >= 500:
                # Two threads may lose a count here. A lock for each request would cost more than that is worth.
                slot.words[ERRORS] += 1
            if failure is not None or self._queue is not None or response.incomplete or now - started > _SLOW_S:
                self._log_later(InFlight(environ, response, started, cell), failure)
            elif context.access is not None:
                context.access.log(environ, code, response.headers, response.sent, now - started)
            if application.post_request is not None:
                application.post_request(self, environ, response)
        if body is not None:
            reader.discard_body()
        if self._stream is not None:
            self._leave_stream(self._stream)
        # The usual end in place of `_settle` and `_next_request`: two calls fewer for each request.
        if (
            response.keep_alive
            and reader.buffer is None
            and context.linger_s != 0.0
            and self._stream is None
            and self._queue is None
            and self._pending is None
            and self._upgrade is None
            and not (self._lost or response.aborted)
        ):
            self.deadline = now + context.keepalive
            self.state = HEAD  # from here on another thread may read, run and close it
            if self.interest != READ:
                self.loop.watch(self, READ)
        else:
            self._settle(response)
        return now - started

    def _input(self, body: BodyBuffer) -> object:
        """Return the application's ``wsgi.input``. Raises ProtocolError."""
        return body.rewind() if self._stream is None else self._stream.input()

    # ---- after the response --------------------------------------------------------------------------

    def _end_upgrade(self) -> None:
        """Close a connection that the application has had: the client has all that it has sent. From any thread."""
        upgrade = self._upgrade
        if upgrade is not None:  # kept until the connection is closed: see `Upgrade.close`
            self.context.drop_upgrade(upgrade)
            if self.state == READY:
                self._linger(BRIEF_LINGER_S)

    def _settle(self, response: Response) -> None:
        """Keep, flush or close the connection."""
        if self._upgrade is not None:
            if self._upgrade.end(self._end_upgrade):
                return
            self._upgrade = None
        if self._queue is not None and self._leave_queue(self._queue, response):
            return
        if self._pending is not None:
            self._log_pending(self._lost)
        if self._lost:
            self.close()
        # A body without its end must not look whole: only a reset tells an HTTP/1.0 client.
        elif response.aborted:
            self.reset()
        elif response.keep_alive:
            self._next_request()
        else:
            self._finish()

    def _leave_queue(self, queue: SendQueue, response: Response) -> bool:
        """Leave queued data to the loop; return False when there is none, or the client has gone."""
        with queue.lock:  # the loop may be sending the last of it at this moment
            if self._lost or response.aborted or not queue.has_items:
                return False
            self._close_after = not response.keep_alive
            self._start_flushing()
            return True

    def _next_request(self) -> None:
        context = self.context
        if self._stream is not None:
            self.reader.discard()
            self.state = DISCARDING
            self.deadline = context.now + (context.settings.body_timeout or NEVER)
            self.loop.watch(self, READ)
        elif self.reader.buffer is not None:
            self.state = WAITING
            self.deadline = NEVER
            self.loop.resume(self)
        elif context.linger_s == 0.0:
            # The response promised keep-alive, but the worker has begun to leave since.
            self.close()
        else:
            self.deadline = context.now + context.keepalive
            self.state = HEAD  # from here on another thread may read, run and close it
            if self.interest != READ:
                self.loop.watch(self, READ)

    def _discard(self, data: bytes) -> None:
        """Drop the unread rest of a streamed body. Raises ProtocolError."""
        stream = self._stream
        assert stream is not None
        stream.take(data)
        if self._end_stream(stream):
            self._next_request()

    def _leave_stream(self, stream: BodyStream) -> None:
        """Take a body stream from the application: bytes that it has not read must not be read as a request."""
        stream.leave()
        if not self._end_stream(stream):
            self.reader.keep(b"")  # unread bytes: a connection that closes now has to linger

    def _end_stream(self, stream: BodyStream) -> bool:
        """Drop the body stream if its body is complete; return whether it is."""
        if stream.done:
            self._stream = None
            if stream.rest:
                self.reader.keep(stream.rest)
        return stream.done

    def _finish(self) -> None:
        """Close the connection: all responses have been sent."""
        # Unread bytes, or those of a client that cannot know yet that this is the end, would turn the close into a
        # reset, which could take the response along (RFC 9112 §9.6).
        if self.reader.buffer is not None:
            self._linger(_LINGER_S)
        elif self.reader.keep_alive:
            self._linger(BRIEF_LINGER_S)
        else:
            self.close()

    def _refuse(self, error: ProtocolError, quiet: bool = False) -> None:
        """Answer a broken request and close: no byte behind it is ever read as a request.

        Args:
            error: the status and the reason.
            quiet: whether the refusal is usual, and no warning.
        """
        context, reader = self.context, self.reader
        level = logging.DEBUG if quiet else logging.WARNING
        reason = f"{error.reason}: {error.detail}" if error.detail else error.reason
        unlogged = context.repeated_refusal(error.reason) if error.repeats else 0
        if unlogged > 0:
            reason = f"{reason} ({unlogged} more since this was logged last)"
        if unlogged >= 0:
            context.log.log(level, "WS1550 %s: refused with %d: %s", self.name, error.status, reason)
        reader.discard()
        answer = refusal(error.status, error.reason, reader.line is not None and reader.line.is_head)
        gone = False
        # This is the loop: it cannot wait for one client.
        try:
            self.send(answer, wait=False)
        except ClientGone:
            gone = True
        # The access log counts the body alone.
        sent = 0 if gone else len(answer) - answer.index(b"\r\n\r\n") - 4
        self._log_unrun(CLIENT_GONE if gone else error.status, sent, gone)
        if gone:
            self.close()
        elif self._queue:
            self._close_after = True
            reader.keep(b"")  # linger once it is flushed
            self._start_flushing()
        else:
            self._linger(_LINGER_S)

    def _linger(self, seconds: float) -> None:
        self.reader.discard()
        self.state = LINGERING
        self.deadline = self.context.now + seconds
        # The client learns of the end now, and what it still sends is discarded (RFC 9112 §9.6).
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError:
            self.close()
            return
        if self.interest != READ:
            self.loop.watch(self, READ)

    # ---- queued output -------------------------------------------------------------------------------

    def _start_flushing(self) -> None:
        self.state = FLUSHING
        self.deadline = self.context.now + (self.context.settings.send_timeout or NEVER)
        if self.interest != WRITE:
            self.loop.watch(self, WRITE)

    def _start_draining(self) -> None:
        if self.state == READY:
            self.deadline = monotonic() + (self.context.settings.send_timeout or NEVER)
            self.loop.watch(self, WRITE)

    def drain(self) -> int:
        """Send queued data, as much as the socket takes; return how many bytes. From any thread, at any time.

        `flush` continues after the response.

        Raises:
            ClientGone: the response is made, and the connection is broken.
        """
        queue = self._queue
        if queue is None:
            return 0
        with queue.lock:
            state = self.state
            if not queue.has_items:
                if state == READY:
                    self.loop.watch(self, NONE)  # the application's thread has sent it itself
                return 0
            if state == FLUSHING:
                return self._send_queued(queue)
            if state != READY:
                return 0
            try:
                sent = self._send_queued(queue)
            except ClientGone:
                # The application learns of it when it sends its next block. epoll would report it until then.
                self.loop.ignore(self)
                return 0
            if not queue:
                # As long as data was queued, its thread has not left the response: the deadline is still ours.
                self.deadline = NEVER
                self.loop.watch(self, NONE)
            return sent

    def flush(self) -> None:
        """Send queued data, as much as the socket takes, and continue after it. Called when it is writable."""
        try:
            sent = self.drain()
        except ClientGone as error:
            self._connection_lost(error.__cause__)
            return
        if self.state != FLUSHING:
            return
        queue = self._queue
        assert queue is not None
        if queue.error is not None:  # a helper thread has met it
            self._connection_lost(queue.error)
        elif queue.has_items:
            # `send_timeout` bounds a standstill, not the time of the whole response.
            if sent:
                self.deadline = self.context.now + (self.context.settings.send_timeout or NEVER)
        else:
            self._log_pending(False)
            if self._close_after:
                self._finish()
            else:
                self._next_request()

    # ---- time ----------------------------------------------------------------------------------------

    def expire(self) -> None:
        """Act on the passed deadline: answer 408 where a response is owed, close."""
        state = self.state
        if state == BODY:
            self._refuse(ProtocolError(408, "the request body came too slowly (body_timeout, body_min_rate)"))
        elif state == HEAD and self.reader.buffer is not None:
            self._refuse(ProtocolError(408, "the request head did not come within header_timeout"))
        elif state == FLUSHING:
            if self.expire_output(self.context.now):
                self.close()
        elif state == READY:  # a request that has come in time waits for its thread, not for its client
            self.expire_output(self.context.now)
        elif not (self.context.linger_s is not None and self.is_idle and self.has_input()):
            # With input, its next request has just come: it is read in the next turn.
            self.close()

    def expire_output(self, now: float) -> bool:
        """Give up a client after ``send_timeout`` without taking queued data; return whether it is given up.

        From any thread. The application learns of it when it sends its next block.
        """
        queue = self._queue
        if queue is None:
            return False
        with queue.lock:
            if not queue.has_items:
                return queue.error is not None
            due = queue.moved_at + (self.context.settings.send_timeout or NEVER)
            if due > now:
                self.deadline = due  # some of it has been taken, by whichever thread
                return False
        self._give_up(queue)
        if self.state == READY:
            self.loop.ignore(self)
        return True

    def retire(self, grace_s: float) -> bool:
        """Close an idle connection: the worker leaves. A request under way ends with ``Connection: close``.

        With ``linger_s`` of the context an idle connection stays for so long: its next response announces the end.

        Args:
            grace_s: how long a client may take to send its first request.

        Returns:
            True when a request has come in this very moment: it is still to be `run`.
        """
        if self.state == LINGERING:
            self.deadline = min(self.deadline, self.context.now + BRIEF_LINGER_S)
        if not self.is_idle:
            return False
        # Its next request may have come since the loop looked last: closing would lose it.
        if self.receive():
            return True
        if self.is_idle:
            if self.reader.line is None or self.context.linger_s:
                self.bound_idle_time(grace_s)
            else:
                self.close()
        return False

    def bound_idle_time(self, grace_s: float) -> None:
        """Bound the time that an idle connection of a leaving worker stays; ``grace_s`` is as of `retire`."""
        if self.is_idle:
            context = self.context
            most_s = context.linger_s or 0.0
            if self.reader.line is None:
                most_s = max(most_s, grace_s)
            self.deadline = min(self.deadline, context.now + most_s)
