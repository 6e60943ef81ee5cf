"""Moves bytes between a client's socket and the application's end of a socket pair."""

from __future__ import annotations

import select
import sys
from _socket import MSG_DONTWAIT, SHUT_RD, SHUT_RDWR, SHUT_WR
from _socket import socket as RawSocket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

from wsgiserv.net.client_socket import ClientSocket, reset
from wsgiserv.net.serving_context import Loop
from wsgiserv.unpatched import allocate_lock

_PIECE_BYTES: Final = 65536
# How often it is looked whether the call has ended, and whether the time of a client that takes nothing is over.
_LOOK_S: Final = 1.0
# How long a client may take nothing of the last bytes, where `send_timeout` sets no limit.
LAST_WAIT_S: Final = 30.0
# Linux keeps what has come before a shutdown(2) of the reading side (unix(7)); BSD drops it.
_KEEPS_INPUT: Final = sys.platform == "linux"
_IN: Final = select.POLLIN
_OUT: Final = select.POLLOUT


class Tunnel:
    """A thread, or a greenlet, that reads and writes for an application; it holds one piece in each direction.

    Args:
        loop: starts it, and waits in it.
        client: the client's socket, whose reads and writes never wait.
        ours: the server's end of the pair; owned from now on.
        limit_s: how long the client may take nothing of the last bytes, in seconds; 0 means no limit.
    """

    def __init__(self, loop: Loop, client: ClientSocket, ours: RawSocket, limit_s: float) -> None:
        self._loop = loop
        self._client = client
        self._ours = ours
        ours.setblocking(False)
        self._limit_s = limit_s or LAST_WAIT_S
        self._to_application = b""
        self._to_client = b""
        # The directions that are open: bytes may still come from there.
        self._client_sends = self._application_sends = True
        self._application_reads = True
        self._has_ended_output = False
        self._moved_at = 0.0  # when the client has taken something; ``time.monotonic()`` seconds
        self._is_over = False  # the application's call has ended
        self._is_copy = False  # in a child of the application: the original is the parent's
        # What to call at the end, by the last of two: this and the application's call.
        self._lock = allocate_lock()
        self._left = 2
        self._finish: Callable[[], None] | None = None

    def start(self, early: bytes) -> None:
        """Begin with what has been read from the client already. Raises RuntimeError: the system starts no thread."""
        self._to_application = early
        try:
            self._loop.spawn(self._run)
        except BaseException:
            self._one_has_ended()
            raise

    # ---- any thread --------------------------------------------------------------------------------------

    def end(self, finish: Callable[[], None]) -> None:
        """Note that the application's call has ended; call ``finish`` when the client has what was sent in it."""
        self._finish = finish
        self._is_over = True
        if _KEEPS_INPUT:
            # Behind what the application has sent comes the end, though a thread or child of it has a descriptor still.
            self._shut(SHUT_RD)
        self._one_has_ended()

    def end_reading(self) -> None:
        """Let the application find the end of the client's data."""
        self._shut(SHUT_WR)

    def stop(self) -> None:
        """End both directions for the application, now."""
        self._is_over = True
        self._shut(SHUT_RDWR)

    def discard(self) -> None:
        """Release what it has: it is not going to be started."""
        self._ours.close()

    def close_in_child(self) -> None:
        """Close the server's end. Called in a child of the application."""
        self._lock = allocate_lock()  # another thread may have held it, which does not exist here
        self._is_copy = True
        self._ours.close()

    def _shut(self, how: int) -> None:
        # With the lock: it is not closed at this moment, and its number another file's.
        with self._lock, suppress(OSError):
            self._ours.shutdown(how)

    def _one_has_ended(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
            self._ours.close()
        if self._finish is not None:
            self._finish()

    # ---- its thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # the client has gone, or the worker has closed its socket
            while not self._is_copy and self._step():
                pass
        if not self._is_copy:
            self._shut(SHUT_RDWR)
            self._one_has_ended()

    def _step(self) -> bool:
        """Wait for one of the sockets and move what there is; return whether there may be more. Raises OSError."""
        if not (self._application_sends or self._to_client):
            self._end_output()
            if self._is_over or not self._application_reads:
                return False
        waits = [each for each in (self._wish_of_client(), self._wish_of_application()) if each[1]]
        if not waits:
            return False
        # `end` wakes it where it waits for the application's data, and only there.
        is_woken = self._application_sends and not self._to_client and _KEEPS_INPUT
        if not self._loop.wait_for_any(waits, None if is_woken else _LOOK_S):
            return self._has_time()
        if self._is_copy:
            return False
        self._from_client()
        self._from_application()
        return True

    def _wish_of_client(self) -> tuple[int, int]:
        reads = self._client_sends and not self._to_application
        return self._client.fileno(), (_IN if reads else 0) | (_OUT if self._to_client else 0)

    def _wish_of_application(self) -> tuple[int, int]:
        reads = self._application_sends and not self._to_client
        return self._ours.fileno(), (_IN if reads else 0) | (_OUT if self._to_application else 0)

    def _end_output(self) -> None:
        """Tell the client that nothing more comes, once."""
        if not self._has_ended_output:
            self._has_ended_output = True
            self._client.shutdown(SHUT_WR)
            if type(self._client) is not RawSocket:
                # TLS has said goodbye, and deciphers nothing any more.
                self._client_sends, self._to_application = False, b""
                self._shut(SHUT_WR)

    def _has_time(self) -> bool:
        """Return whether to go on although nothing moves; reset a client that does not take the last bytes."""
        if not self._is_over:
            return True
        if self._to_client and monotonic() > self._moved_at + self._limit_s:
            reset(self._client)
            return False
        return bool(self._to_client)

    def _from_client(self) -> None:
        if self._client_sends and not self._to_application:
            with suppress(BlockingIOError):
                self._to_application = self._client.recv(_PIECE_BYTES, MSG_DONTWAIT)
                self._client_sends = bool(self._to_application)
        if self._to_application:
            self._to_application = self._give_application(self._to_application)
        if not (self._client_sends or self._to_application):
            self._shut(SHUT_WR)

    def _give_application(self, data: bytes) -> bytes:
        """Send ``data`` to the application; return what it does not take now."""
        try:
            return data[self._ours.send(data, MSG_DONTWAIT) :]
        except BlockingIOError:
            return data
        except OSError:  # it reads no more: what comes is dropped, so that no reset follows its last words
            self._application_reads = False
            return b""

    def _from_application(self) -> None:
        if self._application_sends and not self._to_client:
            with suppress(BlockingIOError):
                self._to_client = self._ours.recv(_PIECE_BYTES, MSG_DONTWAIT)
                self._application_sends = bool(self._to_client)
                self._moved_at = monotonic()
                if not self._application_sends:
                    self._give_application(b"")  # has it closed its end, or only the one direction?
        if self._to_client:
            with suppress(BlockingIOError):
                self._to_client = self._to_client[self._client.send(self._to_client, MSG_DONTWAIT) :]
                self._moved_at = monotonic()
