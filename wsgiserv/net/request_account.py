"""Accounts for a connection's requests: counts them, writes their access-log lines, reports how they ended."""

from __future__ import annotations

import errno
import logging
from _socket import SO_ERROR, SOL_SOCKET
from _socket import socket as RawSocket
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from wsgiserv.logs.escape import escape
from wsgiserv.net.client_socket import reset
from wsgiserv.net.request_reader import BODY, HEAD, RequestReader
from wsgiserv.net.response_writer import NoTimeLeft, ResponseWriter
from wsgiserv.net.serving_context import InFlight
from wsgiserv.scoreboard import ERRORS, REQUESTS
from wsgiserv.user_code import is_a
from wsgiserv.wording import counted
from wsgiserv.wsgi.environ import refused_environ
from wsgiserv.wsgi.input import BodyError
from wsgiserv.wsgi.response import TIMEOUT_HEADERS, BodyTooLong, ClientGone

# The status in the access log when the client left before anything was sent; nginx's.
CLIENT_GONE: Final = 499
# The same when the server cut the request.
_CUT: Final = 504


@dataclass(slots=True, eq=False, repr=False)
class RequestAccount(ResponseWriter):
    """Accounts for the requests of one connection.

    Attributes:
        reader: the reading half: the request, its body, unconsumed bytes.
        state: one of the states of `wsgiserv.net.request_reader`.
    """

    reader: RequestReader = field(init=False)
    state: int = field(init=False, default=HEAD)
    # A request whose response is made and not wholly sent: its access-log line is still to be written.
    _pending: InFlight | None = field(init=False, default=None)

    # ---- counting and the access log -----------------------------------------------------------------

    def _count(self, status: int) -> None:
        context = self.context
        words = context.slot.words
        words[REQUESTS] = next(context.counter)
        if status >= 500:
            words[ERRORS] += 1

    def _log_request(self, request: InFlight, aborted: bool, unsent_status: int = CLIENT_GONE) -> None:
        """Write the line of a request after the application's call.

        Args:
            request: the request.
            aborted: whether its client has not got the whole response.
            unsent_status: the status to log when its client has got nothing.
        """
        access = self.context.access
        if access is None:
            return
        environ, response, started, _ = request
        status, sent = response.code, response.sent
        aborted = aborted or response.incomplete or response.aborted
        if aborted and (response.unsent or not response.begun):
            status, sent = unsent_status, 0
        elif aborted and self._queue is not None:
            # The head may be among the unsent bytes, and `sent` does not count it.
            sent = max(0, sent - self._queue.count_unsent())
        access.log(environ, status, response.headers, sent, monotonic() - started, aborted)

    def _log_unrun(self, status: int, sent: int = 0, aborted: bool = True) -> None:
        """Write the line of a request without an application's call."""
        if self.context.access is not None:
            environ = refused_environ(self.reader.line, self.reader.block, self.peer)
            self.context.access.log(environ, status, [], sent, 0.0, aborted)

    def _log_later(self, request: InFlight, failure: BaseException | None) -> None:
        """Write the line of a request that may have ended early; later, if data is still queued."""
        queue, response = self._queue, request.response
        if response.is_taken:
            self._log_request(request, False)  # whoever has ended it: nothing was promised
            return
        if response.missing and failure is None:
            self._report_missing(request)
        gone = is_a(failure, ClientGone)
        if queue is not None and queue.has_items and not gone and not self._lost:
            self._pending = request
            return
        # A reset in answer to our data (EPIPE): the client had closed before. One that resets after it has read all
        # (ECONNRESET; some health checks do) had not.
        if failure is None and not self._lost and _pending_error(self.fd) == errno.EPIPE:
            self._lost = gone = True
            response.note_client_gone()
        gone = gone or response.unsent or (self._lost and queue is not None and queue.dropped > 0)
        self._log_request(request, gone or (self._lost and not response.is_whole))

    def _log_pending(self, aborted: bool) -> None:
        """Write the line put off until the response is sent, or has failed."""
        request, self._pending = self._pending, None
        if request is not None:
            self._log_request(request, aborted)

    def _take_running(self) -> InFlight | None:
        """Take the request out of those in the application: the caller accounts for it."""
        # Its own thread does it, or one watching its time, or one ending the worker: the first one finds the request,
        # so each is counted and logged once.
        request = self.context.running.pop(self, None)
        return None if request is None else InFlight(*request)

    def _log_server_fault(self) -> None:
        """Account for a request ended by a fault of the server."""
        request = self._take_running()
        if request is not None:
            self._count(500)
            self._log_request(request, True, 500)
            self.context.slot.end(request.cell)

    # ---- requests that end early ---------------------------------------------------------------------

    def answer_overdue(self, sent: int | None) -> bool:
        """Account for a request beyond ``request_timeout``; its call may never end. By the watching thread.

        Args:
            sent: bytes sent of the body of a 504, -1 when its client had gone; None when the response of the
                application stays.

        Returns:
            False when it has been accounted for already.
        """
        request = self._take_running()
        if request is None:
            return False
        context, response = self.context, request.response
        status = 504
        if sent is None:
            status, sent = response.code, response.sent
            self._log_request(request, not response.is_whole)
        else:
            gone, sent = sent < 0, max(0, sent)
            logged = CLIENT_GONE if gone else status
            took_s = monotonic() - request.started
            if context.access is not None:
                context.access.log(request.environ, logged, list(TIMEOUT_HEADERS), sent, took_s, gone)
        # The call goes on, perhaps for ever: when the process ends, its request must not be reported a second time.
        context.slot.mark_logged(request.cell)
        self._count(status)
        return True

    def cut(self, running: bool = True) -> None:
        """Account for the request under way: the worker ends, and closes the connection.

        Called by a thread other than the request's.

        Args:
            running: whether to account for a request in the application, too.
        """
        request = self._take_running() if running else None
        if request is not None:
            response = request.response
            is_whole = response.is_whole and not self.has_output
            # Before the line is written: the thread of the request must not send behind it.
            self._lost = True
            self._log_request(request, not is_whole, _CUT)
            self._count(response.code if response.begun else _CUT)
            self.context.slot.end(request.cell)
            if is_whole:
                return
        elif self._pending is not None:
            request = self._pending
            self._log_pending(True)
        else:
            if self.state == BODY:
                self.cut_unrun()
            return
        self._report_cut(request.environ, monotonic() - request.started)
        if request.response.begun and not request.response.is_taken:
            reset(self.sock)  # what the client has must not look like the whole

    def cut_unrun(self) -> None:
        """As `cut`, for a request waiting for a thread. Called by the thread that took it out of the queue."""
        block = self.reader.block
        environ = refused_environ(self.reader.line, block, self.peer)
        given = block.request_id if block and self.trusted else None
        environ["wsgiserv.request_id"] = given or next(self.context.request_ids)
        if self.context.access is not None:
            self.context.access.log(environ, _CUT, [], 0, 0.0, True)
        self._report_cut(environ)

    # ---- the error log -------------------------------------------------------------------------------

    def _report_failure(self, failure: BaseException, environ: dict[str, Any], is_upgraded: bool) -> None:
        """Report an exception returned by `run_app`."""
        log = self.context.log
        if is_upgraded and is_a(failure, (StopIteration, BodyTooLong, ConnectionError)):
            # Libraries end so. The client may leave at any moment, and the application finds a broken socket then.
            log.debug("%s: an upgraded connection has ended: %r", self.name, failure)
            return
        asked = escape(f"{environ['REQUEST_METHOD']} {environ['RAW_URI']}")
        request_id = environ["wsgiserv.request_id"]
        # A client that breaks off is no fault of the application: no traceback, and no line at all in most logs.
        if is_a(failure, BodyError):
            level = logging.DEBUG if failure.gone else logging.WARNING
            values = (self.name, asked, failure.reason, failure.status, request_id)
            log.log(level, "WS1551 %s: %s: %s (%d, request %s)", *values)
        elif is_a(failure, BodyTooLong):
            log.error("WS1690 %s: %s (request %s)", asked, failure, request_id)
        elif is_a(failure, ClientGone):
            # The client is still there: the worker has ended the wait for it.
            if self._queue is not None and is_a(self._queue.error, NoTimeLeft):
                self._report_cut(environ)
            else:
                log.debug("%s closed the connection during %s (request %s)", self.name, asked, request_id)
        else:
            log.error("WS1691 Error handling request %s (request %s)", asked, request_id, exc_info=failure)

    def _report_missing(self, request: InFlight) -> None:
        environ, response = request.environ, request.response
        self.context.log.error(
            "WS1692 %s: the application's body is %s shorter than its Content-Length of %s; the connection is closed "
            "(request %s)",
            escape(f"{environ['REQUEST_METHOD']} {environ['RAW_URI']}"),
            counted(response.missing, "byte"),
            response.length,
            environ["wsgiserv.request_id"],
        )

    def _report_cut(self, environ: dict[str, Any], after_s: float | None = None) -> None:
        """Report a request ended with its worker, so many seconds after the application was called."""
        level, why = self.context.why_leaving
        when = "before the application was called" if after_s is None else f"after {after_s:.1f} s"
        line = " ".join(str(environ.get(key, "-")) for key in ("REQUEST_METHOD", "RAW_URI", "SERVER_PROTOCOL"))
        request_id = escape(str(environ.get("wsgiserv.request_id", "-")))
        values = (escape(line), escape(self.name), request_id, when, why)
        self.context.log.log(level, 'WS1790 cut: "%s" from %s, request id %s, %s: %s', *values)


def _pending_error(fd: int) -> int:
    """Return the pending error (errno) of a socket; 0 when there is none, or it is closed."""
    with suppress(OSError, ValueError):
        # A second object, since the connection's may be TLS: it has no getsockopt().
        sock = RawSocket(fileno=fd)
        try:
            return sock.getsockopt(SOL_SOCKET, SO_ERROR)
        finally:
            sock.detach()
    return 0
