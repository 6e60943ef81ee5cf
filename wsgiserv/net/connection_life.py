"""The life of a connection apart from its requests: idle, moved to another process, closed."""

from __future__ import annotations

from _socket import MSG_DONTWAIT, MSG_PEEK, SHUT_RDWR
from _socket import socket as RawSocket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from wsgiserv.http.head import HeaderBlock, RequestLine
from wsgiserv.net.body_stream import BodyStream
from wsgiserv.net.client_socket import ClientSocket, reset
from wsgiserv.net.handoff import MOST_MOVED_BYTES, ConnectionState
from wsgiserv.net.request_account import CLIENT_GONE, RequestAccount
from wsgiserv.net.request_reader import BODY, CLOSED, FLUSHING, HEAD, LINGERING, READY, WAITING, RequestReader
from wsgiserv.net.serving_context import NEVER, NONE, READ, UNWATCHED, WRITE
from wsgiserv.net.upgrade import Upgrade
from wsgiserv.wsgi.response import ClientGone, Response

# How long a closing connection discards what the client still sends, when no unread byte is here, but the client may
# have sent more before it could know: about a round trip.
BRIEF_LINGER_S: Final = 1.0
# While clients wait for room, how long a body may come as slowly as it likes.
_BODY_GRACE_S: Final = 1.0


@dataclass(slots=True, eq=False, repr=False)
class ConnectionLife(RequestAccount):
    """A connection as its loop and its worker see it: whether it is idle, and how it ends.

    Attributes:
        deadline: when to call `expire`; ``time.monotonic()`` seconds.
        interest: what the loop watches for now; kept by the loop.
    """

    deadline: float = field(init=False)
    interest: int = field(init=False, default=UNWATCHED)
    # Reads the body of the current request for the application; kept until that body has come to its end.
    _stream: BodyStream | None = field(init=False, default=None)
    _close_after: bool = field(init=False, default=False)  # when the queue is flushed
    _upgrade: Upgrade | None = field(init=False, default=None)  # of the request in the application

    def __post_init__(self) -> None:
        context = self.context
        self.fd = self.sock.fileno()
        self.reader = RequestReader(context)
        self.deadline = context.now + (context.settings.header_timeout or NEVER)

    def replace_socket(self, sock: ClientSocket) -> None:
        """Use ``sock`` from now on: the socket behind a PROXY header that has been read."""
        self.sock = sock
        if "PROXY_PROTOCOL" in self.peer:
            # From now on the client has one name, in all logs and in the status.
            self.peer_name = self.peer["REMOTE_ADDR"].encode("latin-1")

    def due_interest(self, wish: int) -> int:
        """Return the interest of the state, if it has one; else ``wish``.

        The loop calls it under its lock.
        """
        # A thread may have been overtaken by another: its wish must not undo the other's.
        state = self.state
        if state <= LINGERING:
            return READ
        if state == FLUSHING or (state == READY and self.has_output):
            return WRITE
        return NONE if wish == WRITE or state == CLOSED else wish

    # ---- what others ask -----------------------------------------------------------------------------

    @property
    def request(self) -> tuple[RequestLine, HeaderBlock]:
        """The request in the application; for hooks."""
        assert self.reader.line is not None
        assert self.reader.block is not None
        return self.reader.line, self.reader.block

    @property
    def received_by_application(self) -> int:
        """Bytes of a streamed body that the application has read so far."""
        return 0 if self._stream is None else self._stream.received

    @property
    def is_read_by_application(self) -> bool:
        """Whether the application reads a streamed body, and not from a plain socket."""
        return self._stream is not None and type(self.sock) is not RawSocket

    @property
    def is_idle(self) -> bool:
        """Whether no byte of a request is here: closing loses nothing."""
        return self.state == HEAD and self.reader.buffer is None

    @property
    def is_silent(self) -> bool:
        """Whether the client has not sent a byte yet."""
        return self.reader.line is None and self.is_idle

    def unfinished_since(self, now: float) -> float:
        """Return when the unfinished request began, in seconds.

        Returns:
            `NEVER` without one, and for a body at ``body_min_rate`` or faster: it may be an honest client's.
        """
        state, reader = self.state, self.reader
        if state == HEAD and (reader.buffer is not None or reader.line is None):
            return reader.since
        if state == BODY and reader.body is not None:
            began = reader.body_since
            earned = self.context.settings.body_min_rate * (now - began - _BODY_GRACE_S)
            return began if reader.body.length < earned else NEVER
        return NEVER

    def idle_for(self, now: float) -> float:
        """Return how long a used connection has waited for its next request, or to be closed by its client; else 0."""
        if self.state == LINGERING:
            return now - (self.deadline - BRIEF_LINGER_S)
        if self.reader.line is None or not self.is_idle:
            return 0.0
        return now - (self.deadline - self.context.keepalive)

    def has_input(self) -> bool:
        """Return whether unread bytes are here."""
        # At the end of the data, b"": closing loses nothing then.
        try:
            return bool(self.sock.recv(1, MSG_DONTWAIT | MSG_PEEK))
        except OSError:
            return False

    # ---- to the application --------------------------------------------------------------------------

    def prepare_upgrade(self) -> None:
        """Wait until the client has all that was sent before its socket is the application's. See `Upgrade`.

        Raises:
            RuntimeError: it would hold the whole worker, or the application has answered already.
            OSError: the client has gone, or its request has been ended from outside.
        """
        context = self.context
        if not self.base["wsgi.multithread"]:
            raise RuntimeError(
                "the application has used the client's socket (a WebSocket?), which would hold the whole worker for as "
                "long as it is open: use worker_class = 'gevent' or 'threads'"
            )
        response, _ = self._call_under_way()
        if response.begun and response.code != 101:
            raise RuntimeError(f"the response has begun ({response.status}): its connection cannot be taken any more")
        context.cork.push()
        self.wait_until_sent()

    def begin_upgrade(self) -> None:
        """Leave the socket to the application. Waits for nothing. Raises OSError as `prepare_upgrade` does."""
        response, cell = self._call_under_way()
        try:
            response.take()
        except ClientGone:
            raise _ended() from None
        self.context.slot.mark_detached(cell)
        self.deadline = NEVER
        self.loop.ignore(self)

    def _call_under_way(self) -> tuple[Response, int]:
        """Return the response in the making, and the cell of its request. Raises ConnectionResetError."""
        request = self.context.running.get(self)
        if request is None or self._lost or self.state != READY:
            raise _ended()
        return request[1], request[3]

    # ---- to another process --------------------------------------------------------------------------

    @property
    def is_movable(self) -> bool:
        """Whether another process could continue it: no byte of a request is with the application, or owed."""
        state, buffer = self.state, self.reader.buffer
        return (
            # HEAD and not watched yet: the thread that has ended its request is about to see to that.
            (state == WAITING or (state == HEAD and self.interest == READ))
            and type(self.sock) is RawSocket  # neither TLS nor behind a PROXY header that is still to come
            and not self._queue
            and (buffer is None or len(buffer) <= MOST_MOVED_BYTES)
        )

    @property
    def is_waiting(self) -> bool:
        """Whether unexamined bytes of a next request are here."""
        return self.state == WAITING

    def transfer_state(self) -> ConnectionState:
        """Return the values for another process to continue a movable connection."""
        reader = self.reader
        data = b"" if reader.buffer is None else bytes(reader.buffer)
        waiting = self.state == WAITING
        used = waiting or (reader.line is not None and not data)
        return ConnectionState(self.peer, self.peer_name, data, waiting, reader.has_blank, used, self.deadline)

    def detach(self) -> None:
        """Drop a connection after another process has got it; its client sees nothing of it."""
        self.state = CLOSED
        self.loop.forget(self)
        self.reader.discard()
        self.sock.close()

    def restore(self, state: ConnectionState) -> None:
        """Continue where another process stopped; called once, on a new connection. Then `receive` or `advance`."""
        reader = self.reader
        # As it is: CLOCK_MONOTONIC is the same in all processes of a host, so a move gives a client no more time.
        self.deadline = state.deadline
        reader.has_blank = state.blank
        if state.data:
            reader.buffer = bytearray(state.data)
        if state.waiting:
            self.state = WAITING
        elif state.used and not state.data:
            # Stands for the request that the other process has answered: a connection that has been used.
            reader.line = self.context.parser.request_line(b"GET / HTTP/1.1")

    # ---- the end -------------------------------------------------------------------------------------

    def _connection_lost(self, error: BaseException | None) -> None:
        if self.state == READY:
            self._lost = True
            return
        self.context.log.debug("%s: connection lost (%s)", self.name, error)
        if self.state == BODY:
            self._log_unrun(CLIENT_GONE)
        self.close()

    def reset(self) -> None:
        """Close with a reset: the client must not take its part for the whole."""
        reset(self.sock)
        self.close()

    def abandon(self, is_mine: bool) -> None:
        """Close after a fault of the server, in any state. Raises nothing.

        Args:
            is_mine: whether no other thread can be in its call. That thread finds the connection broken and closes it.
        """
        if self.state == READY and not is_mine:
            self._lost = True
            # Not closed: the other thread may be about to use the number, which would be the next client's by then.
            with suppress(OSError):
                self.sock.shutdown(SHUT_RDWR)
            self.abandon_sending()
            return
        with suppress(Exception):
            self._log_server_fault()
        with suppress(Exception):
            self.close()
        if self.sock.fileno() >= 0:  # close() has failed half-way; else the number may be another's by now
            with suppress(Exception):
                self.loop.forget(self)
            with suppress(Exception):
                self.sock.close()

    def abandon_sending(self) -> None:
        """Drop queued data after a fault of the server in a helper thread. Raises nothing.

        The loop closes the connection: at once, or when the application's call ends.
        """
        with suppress(Exception):
            self.cut_off(OSError("a fault of the server"))
            if self.state == READY:
                self.loop.ignore(self)  # epoll would report the broken socket again and again

    def close(self) -> None:
        """Close the socket and release body, queue and buffer."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        # The response was queued, and its client has not got all of it.
        if self._pending is not None:
            self._log_pending(True)
        # Before close(2): right after that the number may belong to a new connection.
        self.loop.forget(self)
        if self._queue is not None:
            self._drop_queue(self._queue)
        if self._upgrade is not None and self._upgrade.is_taken:
            self._upgrade.close()
            self._upgrade = None
        self.reader.discard()
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
        # No shutdown(2) and no close_notify: both would end the connection of the parent, too.
        sock = self.sock
        if isinstance(sock, RawSocket):
            sock.close()
        else:
            sock.close_in_child()
        if self._upgrade is not None:
            self._upgrade.close_in_child()
        if self._queue is not None:
            self._queue.drop_in_child()
            self._queue = None  # what is still sent fails at the socket


def _ended() -> ConnectionResetError:
    return ConnectionResetError("the client has gone, or its request has been ended")
