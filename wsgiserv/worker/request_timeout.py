"""Limits how long a request may take (``request_timeout``), where the application runs in threads.

The watching thread answers the client, since the request's thread may be in a system call for hours. From then on
nothing of the application's leaves. The setting is off by default, and costs nothing then: `Connection` calls
the application directly.
"""

from __future__ import annotations

import ctypes
import logging
import signal
from _socket import AF_UNIX, SHUT_RDWR, SHUT_WR, SOCK_STREAM
from _socket import socket as RawSocket
from _thread import allocate_lock, get_ident
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from os import dup2
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from wsgiserv.http.response import refusal
from wsgiserv.net.client_socket import reset
from wsgiserv.unpatched import OSThread, start_thread
from wsgiserv.worker.active_requests import Call, describe
from wsgiserv.wsgi.response import ANSWERED, TIMEOUT_BODY, TIMEOUT_REASON, ClientGone, Response
from wsgiserv.wsgi.run import run_app

if TYPE_CHECKING:
    from wsgiserv.net.client import Connection

_SHORTEST_LOOK_S: Final = 0.02
_LONGEST_LOOK_S: Final = 1.0

# Python code cannot raise in another thread in any other way. The interpreter delivers the exception when the thread
# runs bytecode again, so a thread in a system call gets it late; hence the answer by the watching thread.
_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_NULL: Final = ctypes.py_object()  # takes an exception back; None would be raised


class RequestTimeout(BaseException):
    """Raised in a call of the application, when it has taken ``request_timeout``.

    Not an `Exception`: an application may catch those, to answer 500, and is not meant to catch this.
    """


class TimedSink:
    """One call: the sink of its response until its time is over.

    Args:
        environ: the request's environ.
        response: the response to a connection.

    Attributes:
        connection: the connection.
        began: ``time.monotonic()`` of the call, in seconds.
        ident: the thread of the call.
        lock: held while something is sent, and while the call ends or expires.
        sent: something of the final response has been sent.
        expired: the watching thread has ended the client's part.
        finished: the call has ended.
    """

    def __init__(self, environ: dict[str, Any], response: Response) -> None:
        self.environ = environ
        self.response = response
        self.connection: Connection = response.redirect(self)  # type: ignore[assignment]
        self.began = monotonic()
        self.ident = get_ident()
        self.lock = allocate_lock()
        self.sent = self.expired = self.finished = False
        # `post_request`, once the request has been accounted for here. Two threads may call it: the one whose pop
        # succeeds does.
        self._hook: list[Callable[[Connection, dict[str, Any], Response], object]] = []

    # ---- the Sink of the response ----------------------------------------------------------------------

    def set_streaming(self, streaming: bool) -> None:
        self.connection.set_streaming(streaming)

    def send(self, data: bytes) -> None:
        with self.lock:
            self._check()
            self.connection.send(data, wait=False)
        self.connection.wait_for_client()  # without the lock: the request's time goes on

    def send_last(self, data: bytes) -> None:
        with self.lock:
            self._check()
            self.connection.send_last(data)

    def send_pair(self, head: bytes, body: bytes) -> None:
        with self.lock:
            self._check()
            self.connection.send_pair(head, body)

    def send_file(self, fd: int, offset: int, count: int) -> None:
        with self.lock:
            self._check()
            self.connection.send_file(fd, offset, count)

    def give_up(self, take: Callable[[], None]) -> None:
        with self.lock:  # a 504 is sent before, and not taken then, or not at all
            self._check()
            take()

    def _check(self) -> None:
        if self.expired:
            raise ClientGone("the request was overdue, and its client has been answered")
        if self.response.begun:  # else it is an interim response, and a 504 may still follow
            self.sent = True

    # ---- the end ---------------------------------------------------------------------------------------

    def expire(self) -> bool:
        """End the client's part. In the watching thread.

        Returns:
            False when the call has just ended, or is sending at this moment: look again later.
        """
        # One watching thread looks after all calls: it does not wait for one.
        if not self.lock.acquire(blocking=False):
            return False
        try:
            if not (self.finished or self.response.is_taken):  # a WebSocket stays for as long as it likes
                self.expired = True
                self._end_clients_part()
            return self.expired
        finally:
            self.lock.release()

    def _end_clients_part(self) -> None:
        response, connection = self.response, self.connection
        if self.sent and response.is_whole:
            response.time_out()
            self._account(None)
            self._end_output()
        elif self.sent or connection.is_read_by_application:
            # The second: the request's thread may be reading through TLS at this moment, which two threads must not
            # use at once.
            response.time_out()
            response.aborted = True
            connection.cut_off(TimeoutError("the request was overdue"))
            self._account(None)
            _reset(connection.fd)
        else:
            response.time_out(answered=True)
            body_sent = -1
            with suppress(ClientGone, OSError):
                connection.send(refusal(504, TIMEOUT_REASON, response.is_head), wait=False)
                body_sent = 0 if response.is_head else len(TIMEOUT_BODY)
                self._end_output()
            self._account(body_sent)

    def _end_output(self) -> None:
        # The client waits for the end of the connection, and the thread may keep it for hours. What is queued is to
        # be sent before.
        if not self.connection.has_output:
            with suppress(OSError):
                self.connection.sock.shutdown(SHUT_WR)

    def _account(self, sent: int | None) -> None:
        connection = self.connection
        post_request = connection.context.application.post_request
        if connection.answer_overdue(sent) and post_request is not None:
            self._hook.append(post_request)

    def call_hook(self) -> None:
        """Call ``post_request``, once. Not in the watching thread: the hook may wait for a lock of the request's."""
        try:
            hook = self._hook.pop()
        except IndexError:
            return
        hook(self.connection, self.environ, self.response)

    def call_hook_apart(self) -> OSThread | None:
        """Call ``post_request`` in a thread of its own, and return that; None where there is nothing to call."""
        if self._hook:
            with suppress(RuntimeError):  # the system starts no thread
                return start_thread(self.call_hook, (), name="wsgiserv-post-request")
        return None

    @property
    def outcome(self) -> str:
        """The client's part in words, for the log."""
        response = self.response
        if response.aborted:
            return "the response is cut"
        return "answered with 504" if response.overdue == ANSWERED else "its response had been sent"

    def finish(self) -> None:
        """End the call: it cannot be interrupted from here on. In the call's thread."""
        with self.lock:
            self.finished = True
        if self.expired:
            _set_async_exc(self.ident, _NULL)  # the exception may not have been delivered yet


@dataclass
class Deadlines:
    """Watches the calls of one worker.

    Attributes:
        limit_s: ``request_timeout`` in seconds.
        log: the error log.
        calls: returns the running calls, with their stacks.
        interrupt: raises `RequestTimeout` in the thread with this ident.
    """

    limit_s: float
    log: logging.Logger
    calls: Callable[[], Iterable[Call]]
    interrupt: Callable[[int], object]
    # A dict for its order; each operation on it is atomic, and `list` copies it in one step.
    _running: dict[TimedSink, None] = field(default_factory=dict, init=False)

    @property
    def look_s(self) -> float:
        """How often `look` is to be called, in seconds."""
        return min(max(self.limit_s / 20, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)

    def call(self, app: Callable[..., Any], environ: dict[str, Any], response: Response) -> BaseException | None:
        """Call the application within its time, as `run_app` does. In the thread of the request.

        Args:
            app: the application.
            environ: the request's environ.
            response: its response.

        Returns:
            The exception of the call, or None.
        """
        sink = TimedSink(environ, response)
        self._running[sink] = None
        failure: BaseException | None
        try:
            failure = run_app(app, environ, response)
        except RequestTimeout as error:  # it came when the application had just ended
            failure = error
        # The exception may be delivered here as well, as long as `finished` is not set.
        while True:
            try:
                sink.finish()
                break
            except RequestTimeout as error:
                failure = error
        del self._running[sink]
        sink.call_hook()
        return failure

    def look(self, now: float) -> bool:
        """Answer, interrupt and log overdue requests; return whether there were any. In the watching thread.

        Args:
            now: ``time.monotonic()``.
        """
        due = [sink for sink in list(self._running) if now - sink.began > self.limit_s]
        late = [sink for sink in due if not (sink.expired or sink.response.is_taken)]
        if not late:
            return False
        # Before the interrupts: the stacks are to show what has taken so long.
        calls = {call.connection: call for call in self.calls()}
        for sink in late:
            if not sink.expire():
                continue
            # Under the lock: an exception after the end of the call would hit the thread's next request.
            with sink.lock:
                if not sink.finished:
                    self.interrupt(sink.ident)
            call = calls.get(sink.connection)
            self.log.error(
                "WS1752 request_timeout (%g s): %s, %s",
                self.limit_s,
                sink.outcome,
                describe(call, now) if call is not None else f"a request of {sink.connection.name}",
            )
        return True

    def stuck(self, now: float, for_s: float) -> list[TimedSink]:
        """Return the calls that do not end.

        Args:
            now: ``time.monotonic()``.
            for_s: how long a call may take to end after it was interrupted, in seconds.
        """
        since = now - self.limit_s - for_s
        return [sink for sink in list(self._running) if sink.expired and sink.began < since]

    def is_interrupted(self, ident: int) -> bool:
        """Return whether the call of a thread is overdue and still runs."""
        return any(sink.ident == ident and sink.expired and not sink.finished for sink in list(self._running))


def _reset(fd: int) -> None:
    """Reset a client's connection without closing its descriptor: a thread may use it for hours."""
    sock = RawSocket(fileno=fd)
    placeholder = None
    reset(sock)
    try:
        # A socket that was never connected takes the descriptor's place: closed, its number would soon be that of
        # another client, whom the thread could answer.
        placeholder = RawSocket(AF_UNIX, SOCK_STREAM)
        dup2(placeholder.fileno(), fd, inheritable=False)
    except OSError:
        # Out of descriptors: a plain end, from which most framings tell that something is missing.
        with suppress(OSError):
            sock.shutdown(SHUT_RDWR)
    finally:
        sock.detach()  # the connection goes on to use the descriptor
        if placeholder is not None:
            placeholder.close()


def interrupt_thread(ident: int) -> None:
    """Raise `RequestTimeout` in a thread as soon as it runs Python code again."""
    _set_async_exc(ident, RequestTimeout)


def interrupt_main_thread(ident: int) -> None:
    """Make the main thread run its handler of SIGUSR2 now, in the middle of a system call, too; the handler raises."""
    signal.pthread_kill(ident, signal.SIGUSR2)
