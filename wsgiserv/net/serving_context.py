"""The values that all connections of one worker share, and the calls that a connection makes to its event loop."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from os import getpid, urandom
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, TypeVar

from wsgiserv.http.head import HeadLimits, HeadParser
from wsgiserv.logs.access import AccessLog
from wsgiserv.net.send_queue import MEMORY_BYTES, WORKER_MEMORY_BYTES
from wsgiserv.scoreboard import DRAINING, Slot
from wsgiserv.wsgi.budget import MemoryBudget
from wsgiserv.wsgi.response import Response
from wsgiserv.wsgi.response_context import ResponseContext
from wsgiserv.wsgi.run import run_app

if TYPE_CHECKING:
    from wsgiserv.wsgi.forwarded import Forwarding

# The memory that the request bodies of a worker may take together; beyond it they go to spool files early.
_BODIES_MEMORY_BYTES: Final = 64 * 1024 * 1024

NEVER: Final = float("inf")
# Without body_timeout, how long a body may come as slowly as it likes.
RATE_GRACE_S: Final = 30.0

# When a body is streamed (stream_request_body).
NEVER_STREAMED: Final = 0
LARGE_STREAMED: Final = 1
ALL_STREAMED: Final = 2

# A refusal that repeats (health checks of the wrong scheme) would fill the log: it is logged once in this time.
_REPEATED_REFUSAL_S: Final = 10.0

# What a connection wants to be woken for; at first its loop does not know it.
UNWATCHED: Final = -1
NONE: Final = 0
READ: Final = 1
WRITE: Final = 2


# The connections of a loop. Their modules import this one, so it cannot name their class.
C = TypeVar("C", contravariant=True)


class Loop(Protocol[C]):
    """The calls of a connection to the loop that waits for its socket."""

    def watch(self, connection: C, interest: int) -> None:
        """Call `receive` (READ) or `flush` (WRITE) when the socket is ready; NONE: leave it alone.

        Called with WRITE while the application runs, too, when something of its response has been queued.
        """

    def ignore(self, connection: C) -> None:
        """Not even tell that the client has left, until the next `watch`."""

    def resume(self, connection: C) -> None:
        """Call `advance` soon: bytes of a next request are here already."""

    def forget(self, connection: C) -> None:
        """The connection is about to close its socket."""

    def wait_writable(self, connection: C) -> bool:
        """Let the producer of a response wait until its client has taken more; False at the send timeout.

        Raises ClientGone when the worker has no time left to wait.
        """

    def wait_readable(self, connection: C) -> bool:
        """Let the reader of a streamed body wait until the socket has more; False at the body timeout."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """The settings of the same names: seconds, ``body_min_rate`` in bytes per second; 0 means no limit."""

    header_timeout: float = 10.0
    body_timeout: float = 30.0
    body_min_rate: int = 240
    send_timeout: float = 60.0
    keepalive: float = 75.0


class InFlight(NamedTuple):
    """A request in the application.

    Attributes:
        environ: its environ.
        response: its response.
        started: ``time.monotonic()`` when the application was called, in seconds.
        cell: its cell of the scoreboard.
    """

    environ: dict[str, Any]
    response: Response
    started: float
    cell: int


def no_application(environ: dict[str, Any], start_response: Callable[..., Any]) -> NoReturn:
    """Stand for the application before it is loaded, and after the worker has ended."""
    raise RuntimeError("the worker has ended")


class ServingContext:
    """The values that all connections of one worker share.

    Args:
        app: the WSGI application.
        limits: the limits of a head.
        timeouts: the timeouts of a connection.
        body_limit: most bytes of a body; 0 means no limit.
        body_memory: bytes of a body kept in memory.
        spool_dir: directory of spool files; None means the system's.
        log: the error log.
        access: the access log, None when it is off.
        gateway: values shared by the responses.
        slot: the worker's row of the scoreboard.
        forwarding: the rules for trusted proxies' X-Forwarded-* and Forwarded; None when not asked for.
        streaming: when the application is called before a body is complete: `NEVER_STREAMED`, `LARGE_STREAMED`
            (its declared length is above ``body_memory``) or `ALL_STREAMED`.
        stream_buffer: how many bytes a response of unknown length may run ahead of its client; then its producer waits.
        call: calls the application: `run_app`, or a function that watches its time around it.

    Attributes:
        now: ``time.monotonic()`` of the current loop turn.
        pre_request, post_request: gunicorn's hooks, called with (request, environ) and (request, environ,
            response); None when they are not set.
        retiring: whether the worker leaves.
        linger_s: how long a worker that leaves keeps an idle connection that no other worker can take over; 0.0: not
            at all.
        why_leaving: the level and the reason with which requests are logged that the worker cuts.
        warned_untrusted_headers: whether the log says already that a peer's forwarded headers are removed.
        answered: requests answered by this worker.
        running: the requests in the application. The code that takes one out counts it, and writes its line.
    """

    # More than 18 attributes, and on purpose: most are read for each request, and a group of them would cost a lookup
    # each time.
    __slots__ = (  # noqa: RUF023 - grouped by lifetime
        # settings
        "body_limit",
        "body_memory",
        "forwarding",
        "header_timeout",
        "limits",
        "spool_dir",
        "stream_buffer",
        "streaming",
        "timeouts",
        # the application, and the calls around it
        "access",
        "app",
        "call",
        "post_request",
        "pre_request",
        # shared by the requests
        "blocks",
        "bodies_memory",
        "gateway",
        "lines",
        "log",
        "parser",
        "response_memory",
        "slot",
        "words",
        # counters
        "answered",
        "counter",
        "id_prefix",
        "running",
        "serial",
        # changed by the worker
        "_refusals",
        "keepalive",
        "linger_s",
        "now",
        "retiring",
        "warned_untrusted_headers",
        "why_leaving",
    )

    def __init__(
        self,
        *,
        app: Callable[..., Any],
        limits: HeadLimits,
        timeouts: Timeouts,
        body_limit: int,
        body_memory: int,
        spool_dir: str | None,
        log: logging.Logger,
        access: AccessLog | None,
        gateway: ResponseContext,
        slot: Slot,
        forwarding: Forwarding | None = None,
        streaming: int = NEVER_STREAMED,
        stream_buffer: int = MEMORY_BYTES,
        call: Callable[..., BaseException | None] = run_app,
    ) -> None:
        self.app = app
        self.call = call
        self.streaming = streaming
        self.stream_buffer = stream_buffer
        self.limits = limits
        self.parser = HeadParser(limits)
        self.lines = self.parser.lines
        self.blocks = self.parser.blocks
        self.timeouts = timeouts
        self.keepalive = timeouts.keepalive
        self.header_timeout = timeouts.header_timeout or NEVER
        self.body_limit = body_limit
        self.body_memory = body_memory
        self.spool_dir = spool_dir
        self.response_memory = MemoryBudget(WORKER_MEMORY_BYTES)
        self.bodies_memory = MemoryBudget(_BODIES_MEMORY_BYTES)
        self.log = log
        self.access = access
        self.gateway = gateway
        self.slot = slot
        self.forwarding = forwarding
        self.words = slot.words
        self.now = monotonic()
        self.retiring = False
        self.linger_s = 0.0
        self.warned_untrusted_headers = False
        self._refusals: dict[str, tuple[float, int]] = {}
        gateway.allow_keep_alive(self.keepalive > 0)
        self.answered = 0
        self.running: dict[Any, InFlight] = {}  # by connection
        self.why_leaving = (logging.WARNING, "the worker ends")
        self.counter = itertools.count(1)
        # A request id is 32 hexadecimal digits: the process that made it, and a count. Unique without a system call.
        self.id_prefix = urandom(6).hex() + f"{getpid() & 0xFFFF:04x}"
        self.serial = itertools.count(1)
        self.pre_request: Callable[[Any, dict[str, Any]], object] | None = None
        self.post_request: Callable[[Any, dict[str, Any], Response], object] | None = None

    def begin(
        self,
        app: Callable[..., Any],
        access: AccessLog | None,
        pre_request: Callable[[Any, dict[str, Any]], object] | None,
        post_request: Callable[[Any, dict[str, Any], Response], object] | None,
    ) -> None:
        """Serve a loaded application from now on; see the arguments and attributes of the class."""
        self.app = app
        self.access = access
        self.pre_request = pre_request
        self.post_request = post_request

    def cut_because(self, why: tuple[int, str]) -> None:
        """Log the requests that the worker cuts from now on with this level and reason."""
        self.why_leaving = why

    def end(self) -> None:
        """Drop the application: the worker has ended."""
        self.app = no_application

    def repeated_refusal(self, reason: str) -> int:
        """Return how many refusals for this reason have not been logged; -1: do not log this one either.

        Args:
            reason: the reason of the refusal.
        """
        now = monotonic()
        logged_at, count = self._refusals.get(reason, (-_REPEATED_REFUSAL_S, 0))
        if now - logged_at < _REPEATED_REFUSAL_S:
            self._refusals[reason] = (logged_at, count + 1)
            return -1
        self._refusals[reason] = (now, 0)
        return count

    def close_in_child(self) -> None:
        """Drop the data that a child of the application must not write again. Called there, after `Slot.detach`."""
        self.words = self.slot.words
        if self.access is not None:
            self.access.close_in_child()

    def retire(self, linger_s: float = 0.0) -> None:
        """Have every response say ``Connection: close`` from now on; keep idle connections for ``linger_s`` seconds."""
        self.retiring = True
        self.linger_s = linger_s
        self.keepalive = min(self.keepalive, linger_s)
        self.gateway.allow_keep_alive(False)

    def set_at_capacity(self, is_at_capacity: bool) -> None:
        """Have responses say ``Connection: close`` while clients wait for room: none is cut off to make room."""
        is_leaving = self.retiring or self.words[DRAINING]
        self.gateway.allow_keep_alive(not (is_at_capacity or is_leaving) and self.keepalive > 0)

    def drain(self) -> None:
        """Have every response say ``Connection: close`` from now on: the server is about to stop."""
        self.gateway.allow_keep_alive(False)
