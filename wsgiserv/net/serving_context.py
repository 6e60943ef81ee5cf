"""What all connections of one worker share, and what a connection asks of the worker's loop.

Owns: `ServingContext`, `Timeouts`, the `Loop` protocol and its words.
Must not know: the states of a connection, sockets, who waits for them.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from os import getpid, urandom
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from wsgiserv.http.head import HeadLimits, HeadParser
from wsgiserv.logs.access import AccessLog
from wsgiserv.net.send_queue import MEMORY_BYTES, WORKER_MEMORY_BYTES
from wsgiserv.scoreboard import Slot
from wsgiserv.wsgi.budget import MemoryBudget
from wsgiserv.wsgi.response import Response
from wsgiserv.wsgi.response_context import ResponseContext
from wsgiserv.wsgi.run import run_app

if TYPE_CHECKING:
    from wsgiserv.net.client import Connection
    from wsgiserv.net.response_writer import ResponseWriter
    from wsgiserv.wsgi.forwarded import Forwarding

__all__ = [
    "ALL_STREAMED",
    "LARGE_STREAMED",
    "NEVER",
    "NEVER_STREAMED",
    "NONE",
    "RATE_GRACE_S",
    "READ",
    "UNWATCHED",
    "WRITE",
    "InFlight",
    "Loop",
    "ServingContext",
    "Timeouts",
]

# What the request bodies of a worker may take of memory together; what is more goes to spool files early.
_BODIES_MEMORY_BYTES: Final = 64 * 1024 * 1024

NEVER: Final = float("inf")
# Without body_timeout, how long a body may come as slowly as it likes.
RATE_GRACE_S: Final = 30.0

# When a body is streamed (stream_request_body).
NEVER_STREAMED: Final = 0
LARGE_STREAMED: Final = 1
ALL_STREAMED: Final = 2

# A refusal that repeats (health checks of the wrong scheme) is logged once in so many seconds.
_REPEATED_REFUSAL_S: Final = 10.0

# What a connection wants to be woken for; at first its loop does not know it.
UNWATCHED: Final = -1
NONE: Final = 0
READ: Final = 1
WRITE: Final = 2


class Loop(Protocol):
    """What a connection asks of whoever waits for its socket."""

    def watch(self, connection: Connection, interest: int) -> None:
        """Call `receive` (READ) or `flush` (WRITE) when the socket is ready; NONE: leave it alone.

        Called with WRITE while the application runs, too, when something of its response has been queued.
        """

    def ignore(self, connection: Connection) -> None:
        """Not even tell that the client has left, until the next `watch`."""

    def resume(self, connection: Connection) -> None:
        """Call `advance` soon: bytes of a next request are here already."""

    def forget(self, connection: Connection) -> None:
        """The connection is about to close its socket."""

    def wait_writable(self, connection: ResponseWriter) -> bool:
        """Let the producer of a response wait until its client has taken more; False at the send timeout.

        Raises ClientGone when the worker has no time left to wait.
        """

    def wait_readable(self, connection: ResponseWriter) -> bool:
        """Let the reader of a streamed body wait until the socket has more; False at the body timeout."""


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """The timeouts of a connection in seconds, from the settings of the same names; 0 is never.

    ``body_rate`` is ``body_min_rate``, in bytes per second.
    """

    header: float = 10.0
    body: float = 30.0
    body_rate: int = 240
    send: float = 60.0
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


class ServingContext:
    """What all connections of one worker share. Read on the hot path, so plain slots.

    Args:
        app: the WSGI application.
        limits: the limits of a head.
        timeouts: the timeouts of a connection.
        body_limit: most bytes of a body; 0 is no limit.
        body_memory: bytes of a body kept in memory.
        spool_dir: directory of spool files; None is the system's.
        log: the error log.
        access: the access log, None when it is off.
        gateway: what the responses share.
        slot: the worker's row of the scoreboard.
        stream_buffer: how many bytes a response of unknown length may run ahead of its client; then its producer waits.
        forwarding: what is made of trusted proxies' X-Forwarded-* and Forwarded; None when not asked for.

    Attributes:
        now: ``time.monotonic()`` of the current loop turn.
        retiring: whether the worker leaves.
        linger_s: how long a worker that leaves keeps an idle connection that no other worker can take over; 0.0: not
            at all.
        crowded: whether new clients wait because of `worker_connections`.
        draining: whether the server is about to stop.
        warned_untrusted_headers: whether it has been said that a peer's forwarded headers are removed.
        answered: requests answered by this worker.
        running: the requests in the application. Whoever takes one out accounts for it: counts it, and writes its line.
        why_leaving: why the worker cuts what it has, and how loud that is said (a level of logging).
        call: calls the application: `run_app`, or what watches its time around it.
        streaming: when the application is called before a body is complete: `NEVER_STREAMED`, `LARGE_STREAMED`
            (its declared length is above ``body_memory``) or `ALL_STREAMED`.
        pre_request, post_request: gunicorn's hooks, called with (request, environ) and (request, environ,
            response); None when they are not set.
    """

    __slots__ = (
        "_refusals",
        "access",
        "answered",
        "app",
        "blocks",
        "bodies_memory",
        "body_limit",
        "body_memory",
        "call",
        "counter",
        "crowded",
        "draining",
        "forwarding",
        "gateway",
        "header_timeout",
        "id_prefix",
        "keepalive",
        "limits",
        "lines",
        "linger_s",
        "log",
        "longest_head",
        "now",
        "parser",
        "post_request",
        "pre_request",
        "response_memory",
        "retiring",
        "running",
        "serial",
        "slot",
        "spool_dir",
        "stream_buffer",
        "streaming",
        "timeouts",
        "warned_untrusted_headers",
        "why_leaving",
        "words",
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
    ) -> None:
        self.app = app
        self.call: Callable[..., BaseException | None] = run_app
        self.streaming = streaming
        self.stream_buffer = stream_buffer
        self.limits = limits
        self.longest_head = limits.head
        self.parser = HeadParser(limits)
        self.lines = self.parser.lines
        self.blocks = self.parser.blocks
        self.timeouts = timeouts
        self.keepalive = timeouts.keepalive
        self.header_timeout = timeouts.header or NEVER
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
        self.crowded = False
        self.draining = False
        self.warned_untrusted_headers = False
        self._refusals: dict[str, tuple[float, int]] = {}
        gateway.allow_keep_alive(self.keepalive > 0)
        self.answered = 0
        self.running: dict[Connection, InFlight] = {}
        self.why_leaving = (logging.WARNING, "the worker ends")
        self.counter = itertools.count(1)
        # A request id is 32 hexadecimal digits: who made it, and a count. Unique without a system call.
        self.id_prefix = urandom(6).hex() + f"{getpid() & 0xFFFF:04x}"
        self.serial = itertools.count(1)
        self.pre_request: Callable[[Connection, dict[str, Any]], object] | None = None
        self.post_request: Callable[[Connection, dict[str, Any], Response], object] | None = None

    def repeated_refusal(self, reason: str) -> int:
        """Return how many refusals for this reason have not been logged, -1 where this one is not to be either."""
        now = monotonic()
        logged_at, count = self._refusals.get(reason, (-_REPEATED_REFUSAL_S, 0))
        if now - logged_at < _REPEATED_REFUSAL_S:
            self._refusals[reason] = (logged_at, count + 1)
            return -1
        self._refusals[reason] = (now, 0)
        return count

    def close_in_child(self) -> None:
        """Drop what a child of the application must not write again. Called in that child, after `Slot.detach`."""
        self.words = self.slot.words
        if self.access is not None:
            self.access.close_in_child()

    def retire(self, linger_s: float = 0.0) -> None:
        """From now on every response says ``Connection: close``; idle connections are kept for ``linger_s``."""
        self.retiring = True
        self.linger_s = linger_s
        self.keepalive = min(self.keepalive, linger_s)
        self.gateway.allow_keep_alive(False)

    def crowd(self, crowded: bool) -> None:
        """While clients wait for a place, responses say ``Connection: close``: nobody is cut off to make room."""
        self.crowded = crowded
        self.gateway.allow_keep_alive(not (crowded or self.retiring or self.draining) and self.keepalive > 0)

    def drain(self) -> None:
        """The server is about to stop: from now on every response says ``Connection: close``."""
        self.draining = True
        self.gateway.allow_keep_alive(False)
