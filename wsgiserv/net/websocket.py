"""`WebSocket`: the object in ``environ["wsgi.websocket"]``, with the interface of gevent-websocket.

Applications that were written for gevent-websocket, or for Flask-Sockets, read and write messages with it. The frames
are wsproto's (RFC 6455); all reading happens in the calls of the application, so that an idle connection has neither
a thread nor a greenlet besides its own.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from select import POLLIN, POLLOUT
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage
from wsproto.utilities import LocalProtocolError

from wsgiserv.net.upgrade import Upgrade

# How long the other side may take to answer a close frame. A worker that leaves waits no longer for it, either.
CLOSE_S: Final = 3.0
# Hundreds of small frames: the other greenlets wait while these are read.
_READ_BYTES: Final = 4096
_ALREADY_CLOSED: Final = "Connection is already closed"
_DEAD: Final = "Socket is dead"

# Codes of RFC 6455 §7.4.1.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
_NOT_UTF8: Final = 1007
_TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
_LEAST_CODE: Final = 1000
_LARGEST_CODE: Final = 4999


class WebSocketError(OSError):
    """The connection has ended. Stands for ``geventwebsocket.exceptions.WebSocketError`` where that is not imported."""


class _Failure(Exception):
    """The client has broken the protocol, or a limit; ends the connection with a close frame."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def websocket_error() -> type[OSError]:
    """Return the class of the errors that an application can catch: gevent-websocket's own, if it has imported that."""
    # One that has not imported it cannot name it.
    found = getattr(sys.modules.get("geventwebsocket.exceptions"), "WebSocketError", None)
    return found if isinstance(found, type) and issubclass(found, OSError) else WebSocketError


class WebSocket:
    """One WebSocket connection of an application.

    Messages may be sent from several threads or greenlets at once; one at a time receives.

    Args:
        environ: the request.
        sock: its socket, which has been taken, or is by the first frame.
        upgrade: the connection that the socket belongs to.
        largest: the largest message that is received, in bytes, of text in characters; 0 means no limit.
        handler: what gevent-websocket's applications reach through `handler`.

    Attributes:
        closed: whether a close frame has been sent, or the connection is broken: nothing can be sent any more.
    """

    OPCODE_CONTINUATION: Final = 0x00
    OPCODE_TEXT: Final = 0x01
    OPCODE_BINARY: Final = 0x02
    OPCODE_CLOSE: Final = 0x08
    OPCODE_PING: Final = 0x09
    OPCODE_PONG: Final = 0x0A

    def __init__(
        self, environ: dict[str, Any], sock: Any, upgrade: Upgrade, largest: int, handler: SimpleNamespace
    ) -> None:
        self.environ = environ
        self.handler = handler
        self.closed = False
        self._sock = sock
        self._upgrade = upgrade
        self._largest = largest
        self._protocol = Connection(ConnectionType.SERVER)
        self._events: Iterator[Event] = iter(())
        # Of these modules now: in a gevent worker they are greenlets' locks by the time of the first request.
        self._sending = threading.Lock()
        self._ended = threading.Event()  # when the client's side has ended, or the application's call

    # ---- gevent-websocket's interface: about the request -------------------------------------------------

    @property
    def origin(self) -> str | None:
        """The page that the client's script came from."""
        return self.environ.get("HTTP_ORIGIN")

    @property
    def protocol(self) -> str | None:
        """The sub-protocols that the client has asked for, separated by commas."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL")

    @property
    def version(self) -> str | None:
        """The version of the protocol."""
        return self.environ.get("HTTP_SEC_WEBSOCKET_VERSION")

    @property
    def path(self) -> str | None:
        """The request's path."""
        return self.environ.get("PATH_INFO")

    # ---- gevent-websocket's interface: messages ----------------------------------------------------------

    def receive(self) -> str | bytearray | None:
        """Wait for the next message: text is a str, binary data a bytearray; None at the end of the connection.

        Raises:
            WebSocketError: the connection has been closed before.
        """
        if self.closed:
            raise websocket_error()(_ALREADY_CLOSED)
        return self.read_message()

    def read_message(self) -> str | bytearray | None:
        """Wait for the next message; None at the end of the connection."""
        if self._ended.is_set():
            return None
        try:
            return self._next_message()
        except _Failure as failure:
            self.close(failure.code, str(failure))
        except OSError:  # the client has gone without a close frame
            self.closed = True
        self._ended.set()
        return None

    def send(self, message: Any, binary: bool | None = None) -> None:
        """Send one message.

        Args:
            message: text or bytes; another object is sent as its text.
            binary: whether it is sent as binary data; None means unless it is text.

        Raises:
            WebSocketError: the connection has ended.
        """
        if binary is None:
            binary = not isinstance(message, str)
        self.send_frame(message, self.OPCODE_BINARY if binary else self.OPCODE_TEXT)

    def send_frame(self, message: Any, opcode: int) -> None:
        """Send one whole message, ping, pong or close frame.

        Raises:
            WebSocketError: the connection has ended.
            ValueError: there is no such frame.
        """
        if self.closed:
            raise websocket_error()(_DEAD)
        if opcode == self.OPCODE_CLOSE:
            self.close(NORMAL, message)
            return
        try:
            self._transmit(_event_of(message, opcode))
        except OSError as error:
            self.closed = True
            raise websocket_error()(_DEAD) from error

    def close(self, code: int = NORMAL, message: Any = b"") -> None:
        """Send a close frame, once. The connection ends when the application's call has returned."""
        if not _LEAST_CODE <= code <= _LARGEST_CODE:
            raise ValueError(f"the close code {code!r} is not within {_LEAST_CODE} to {_LARGEST_CODE} (RFC 6455)")
        if not self.closed:
            self.closed = True
            with suppress(OSError):  # the client has gone
                self._transmit(CloseConnection(code, _text_of(message) or None))

    def __repr__(self) -> str:
        return f"<wsgiserv WebSocket {self.path}{' closed' if self.closed else ''}>"

    # ---- frames ------------------------------------------------------------------------------------------

    def _transmit(self, event: Event) -> None:
        """Send a frame, unless the protocol has no place for it any more. Raises OSError."""
        with self._sending:
            state = self._protocol.state
            closes = isinstance(event, CloseConnection) and state is ConnectionState.REMOTE_CLOSING
            if state is ConnectionState.OPEN or closes:
                try:
                    self._sock.sendall(self._protocol.send(event))
                except LocalProtocolError:  # a close frame has come meanwhile
                    pass
                except OSError:
                    self._ended.set()  # no answer comes
                    raise

    def _next_message(self) -> str | bytearray | None:
        """Return the next message, None when the client has closed. Raises OSError, _Failure."""
        # Not lists of parts: of one byte each they would take fifty times as much memory as they have bytes.
        text, data, size = StringIO(), bytearray(), 0
        while True:
            event = self._next_event()
            if isinstance(event, Ping):
                self._transmit(event.response())
            elif isinstance(event, CloseConnection):
                self._note_close(event)
                return None
            elif isinstance(event, (TextMessage, BytesMessage)) and not self.closed:
                size += len(event.data)
                if 0 < self._largest < size:
                    raise _Failure(_TOO_BIG, f"a message has at most {self._largest} bytes here")
                if isinstance(event, TextMessage):
                    text.write(event.data)
                else:
                    data += event.data
                if event.message_finished:
                    return text.getvalue() if isinstance(event, TextMessage) else data

    def _next_event(self) -> Event:
        """Return what comes next from the client. Raises OSError at the end of its data."""
        # One at a time: with a close frame wsproto sends nothing more, not even the answers to what came before it.
        while (event := next(self._events, None)) is None:
            data = self._sock.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the client has closed the connection without a close frame")
            # A greenlet would never pause while its client sends faster than it reads.
            time.sleep(0)
            self._protocol.receive_data(data)
            self._events = self._protocol.events()
        return event

    def _note_close(self, event: CloseConnection) -> None:
        """Take a close frame of the client's, or what wsproto makes of one that is broken. Raises _Failure."""
        if self._protocol.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            raise _Failure(int(event.code), event.reason or "")
        if not self.closed:
            self.closed = True
            with suppress(OSError):
                self._transmit(event.response())
        self._ended.set()

    # ---- the end -----------------------------------------------------------------------------------------

    def open(self, head: bytes) -> None:
        """Send the response to the handshake. Raises OSError; RuntimeError in a class that cannot hold the socket."""
        with self._sending:  # before the close frame of a worker that leaves
            self._upgrade.call_at_end(self._leave)
            self._sock.sendall(head)

    def finish(self, code: int) -> None:
        """Close the connection with the application's call, and wait for the client's part for `CLOSE_S`."""
        self.close(code)
        if not self._ended.is_set():
            with suppress(OSError):
                self._await_close(monotonic() + CLOSE_S)
            self._ended.set()
        self._sock.close()

    def _await_close(self, deadline: float) -> None:
        """Discard what comes until the client closes, or ``deadline`` (``time.monotonic()``). Raises OSError."""
        while True:
            for event in self._events:
                if isinstance(event, CloseConnection):
                    return
            if monotonic() > deadline or not self._upgrade.wait(POLLIN, deadline - monotonic()):
                return
            self._protocol.receive_data(self._sock.recv(_READ_BYTES) or None)
            self._events = self._protocol.events()

    def _leave(self) -> None:
        """Close the connection for a worker that leaves. In a thread or greenlet of its own."""
        deadline = monotonic() + CLOSE_S
        # A client that reads nothing gets no frame, and must not keep this from its end.
        if self._sending.acquire(timeout=CLOSE_S):
            can_send = self._upgrade.wait(POLLOUT, deadline - monotonic())
            self._sending.release()
            if can_send:
                self.close(GOING_AWAY)
        self.closed = True
        self._ended.wait(max(deadline - monotonic(), 0.0))
        self._upgrade.end_data()


def _event_of(message: Any, opcode: int) -> Message[Any] | Ping | Pong:
    if opcode == WebSocket.OPCODE_TEXT:
        return TextMessage(_text_of(message))
    if opcode == WebSocket.OPCODE_BINARY:
        return BytesMessage(_bytes_of(message))
    if opcode == WebSocket.OPCODE_PING:
        return Ping(_bytes_of(message))
    if opcode == WebSocket.OPCODE_PONG:
        return Pong(_bytes_of(message))
    raise ValueError(f"send_frame: {opcode!r} is none of OPCODE_TEXT, OPCODE_BINARY, OPCODE_PING and OPCODE_PONG")


def _text_of(message: Any) -> str:
    if isinstance(message, (bytes, bytearray, memoryview)):
        return bytes(message).decode("utf-8", "replace")
    return message if isinstance(message, str) else str(message or "")


def _bytes_of(message: Any) -> bytes:
    if isinstance(message, (bytes, bytearray, memoryview)):
        return bytes(message)
    return _text_of(message).encode("utf-8")
