"""How long a request may take (``request_timeout``), where the application runs in threads.

Owns: `RequestTimeout`, and `Deadlines`: watching the calls, answering 504 in a call's stead, interrupting it.
Must not know: worker classes; what becomes of a thread or process that does not come back.

The client is answered by whoever watches, since the culprit may sit in a system call for hours. From then on
nothing that it sends leaves. Off by default, and free then: `Connection` calls the application directly.
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
from os import dup2
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from wsgiserv.http.response import refusal
from wsgiserv.net.reset import reset
from wsgiserv.worker.active_requests import Call, describe
from wsgiserv.wsgi.response import ANSWERED, TIMEOUT_BODY, TIMEOUT_REASON, ClientGone, Response
from wsgiserv.wsgi.run import run_app

if TYPE_CHECKING:
    from wsgiserv.net.client import Connection

__all__ = ["Deadlines", "RequestTimeout", "interrupt_main_thread", "interrupt_thread"]

_SHORTEST_LOOK_S: Final = 0.02
_LONGEST_LOOK_S: Final = 1.0

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_NULL: Final = ctypes.py_object()  # not None: that would be raised


class RequestTimeout(BaseException):
    """Raised in an application's call that takes longer than ``request_timeout``.

    Not an `Exception`: an application that catches those to answer 500 is not meant to catch this.
    """


class TimedSink:
    """One call: the response's sink until its time is over.

    Attributes:
        began: ``time.monotonic()`` of the call, in seconds.
        sent: whether something of the final response has been sent.
        expired: whether the client's part has been ended by the watching thread.
        finished: whether the call has ended.
        hook: calls ``post_request`` once the request has been accounted for here; taken by whoever calls it.
    """

    __slots__ = (
        "began",
        "connection",
        "environ",
        "expired",
        "finished",
        "hook",
        "ident",
        "lock",
        "response",
        "sent",
    )

    def __init__(self, environ: dict[str, Any], response: Response) -> None:
        self.environ = environ
        self.hook: list[Callable[[Connection, dict[str, Any], Response], object]] = []
        self.response = response
        self.connection: Connection = response.redirect(self)  # type: ignore[assignment]
        self.began = monotonic()
        self.ident = get_ident()
        self.lock = allocate_lock()
        self.sent = False
        self.expired = False
        self.finished = False

    # ---- the Sink of the response ----------------------------------------------------------------------

    def set_streaming(self, streaming: bool) -> None:
        self.connection.set_streaming(streaming)

    def send(self, data: bytes) -> None:
        with self.lock:
            self._check()
            self.connection.send(data, wait=False)
        self.connection.wait_for_client()  # without the lock: the request's time goes on

    def send_pair(self, head: bytes, body: bytes) -> None:
        with self.lock:
            self._check()
            self.connection.send_pair(head, body)

    def send_file(self, fd: int, offset: int, count: int) -> None:
        with self.lock:
            self._check()
            self.connection.send_file(fd, offset, count)

    def _check(self) -> None:
        if self.expired:
            raise ClientGone("the request was overdue, and its client has been answered")
        if self.response.begun:  # else it is an interim response, and a 504 may still follow
            self.sent = True

    # ---- the end ---------------------------------------------------------------------------------------

    def expire(self) -> bool:
        """End the client's part. By the watching thread.

        Returns False when the call has just ended by itself, or is sending at this moment: look again later.
        """
        if not self.lock.acquire(blocking=False):
            return False
        try:
            if self.finished:
                return False
            self.expired = True
            response = self.response
            connection = self.connection
            if self.sent and response.is_whole:
                response.time_out()
                self._account(None)
                if not connection.has_output:
                    with suppress(OSError):
                        connection.sock.shutdown(SHUT_WR)
                return True
            # Where the request's thread may be reading through TLS at this moment, nobody else may use it.
            if self.sent or connection.is_read_by_application:
                response.time_out()
                response.cut()
                connection.cut_off(TimeoutError("the request was overdue"))
                self._account(None)
                _reset(connection.fd)
                return True
            response.time_out(answered=True)
            body_sent = -1
            with suppress(ClientGone, OSError):
                connection.send(refusal(504, TIMEOUT_REASON, response.is_head), wait=False)
                body_sent = 0 if response.is_head else len(TIMEOUT_BODY)
                if not connection.has_output:
                    connection.sock.shutdown(SHUT_WR)
            self._account(body_sent)
            return True
        finally:
            self.lock.release()

    def _account(self, sent: int | None) -> None:
        connection = self.connection
        if connection.answer_overdue(sent) and connection.context.post_request is not None:
            self.hook.append(connection.context.post_request)

    def call_hook(self) -> None:
        """Call ``post_request``, once. Not by the watching thread: it may wait for a lock that the culprit holds."""
        try:
            hook = self.hook.pop()
        except IndexError:
            return
        hook(self.connection, self.environ, self.response)

    @property
    def outcome(self) -> str:
        """What has become of the client's part, for the log."""
        response = self.response
        if response.aborted:
            return "the response is cut"
        return "answered with 504" if response.overdue == ANSWERED else "its response had been sent"

    def finish(self) -> None:
        """The call has ended: from here on it cannot be interrupted. By the thread that ran it."""
        with self.lock:
            self.finished = True
        if self.expired:
            _set_async_exc(self.ident, _NULL)  # takes back an exception that has not been delivered yet


class Deadlines:
    """Watches the calls of one worker.

    Args:
        limit_s: ``request_timeout`` in seconds.
        log: the error log.
        calls: what runs now, with its stacks.
        interrupt: raises `RequestTimeout` in the thread with this ident.

    Attributes:
        look_s: how often `look` is to be called, in seconds.
    """

    def __init__(
        self,
        limit_s: float,
        log: logging.Logger,
        calls: Callable[[], Iterable[Call]],
        interrupt: Callable[[int], object],
    ) -> None:
        self._limit_s = limit_s
        self.look_s = min(max(limit_s / 20, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)
        self._log = log
        self._calls = calls
        self._interrupt = interrupt
        self._running: dict[TimedSink, None] = {}

    def call(
        self, app: Callable[..., Any], environ: dict[str, Any], response: Response
    ) -> BaseException | None:
        """Call the application, as `run_app` does, within its time. In the thread of the request."""
        guard = TimedSink(environ, response)
        self._running[guard] = None
        failure: BaseException | None
        try:
            failure = run_app(app, environ, response)
        except RequestTimeout as error:  # it came when the application had just ended
            failure = error
        while True:
            try:
                guard.finish()
                break
            except RequestTimeout as error:
                failure = error
        del self._running[guard]
        guard.call_hook()
        return failure

    def look(self, now: float) -> bool:
        """Answer, interrupt and log what is overdue; whether there was anything. By the watching thread."""
        late = [
            guard for guard in list(self._running) if now - guard.began > self._limit_s and not guard.expired
        ]
        if not late:
            return False
        # The stacks first: they are to show what has taken so long.
        calls = {call.connection: call for call in self._calls()}
        for guard in late:
            call = calls.get(guard.connection)
            if not guard.expire():
                continue
            with guard.lock:
                if not guard.finished:
                    self._interrupt(guard.ident)
            self._log.error(
                "request_timeout (%g s): %s, %s",
                self._limit_s,
                guard.outcome,
                describe(call, now) if call is not None else f"a request of {guard.connection.name}",
            )
        return True

    def stuck(self, now: float, for_s: float) -> list[int]:
        """Return the idents of the threads that have not come back ``for_s`` seconds after they were interrupted."""
        since = now - self._limit_s - for_s
        return [guard.ident for guard in list(self._running) if guard.expired and guard.began < since]

    def call_hook_for(self, ident: int) -> None:
        """Call ``post_request`` for the request of a thread that does not come back from it."""
        for guard in list(self._running):
            if guard.ident == ident and guard.expired:
                guard.call_hook()

    def is_interrupted(self, ident: int) -> bool:
        """Whether the call of a thread is overdue and still runs."""
        return any(
            guard.expired and not guard.finished for guard in list(self._running) if guard.ident == ident
        )


def _reset(fd: int) -> None:
    """Reset a client's connection without closing its descriptor, which a thread that does not come back still has.

    A socket that was never connected takes the descriptor's place, so its number is nobody else's meanwhile.
    """
    sock = RawSocket(fileno=fd)
    nowhere = None
    reset(sock)
    try:
        nowhere = RawSocket(AF_UNIX, SOCK_STREAM)
        dup2(nowhere.fileno(), fd, inheritable=False)
    except OSError:  # out of descriptors: a plain end, which tells wherever the framing does
        with suppress(OSError):
            sock.shutdown(SHUT_RDWR)
    finally:
        sock.detach()
        if nowhere is not None:
            nowhere.close()


def interrupt_thread(ident: int) -> None:
    """Raise `RequestTimeout` in a thread as soon as it runs Python code again."""
    _set_async_exc(ident, RequestTimeout)


def interrupt_main_thread(ident: int) -> None:
    """Make the main thread run its handler of SIGUSR2 now, out of a system call too. Its handler is to raise."""
    signal.pthread_kill(ident, signal.SIGUSR2)
