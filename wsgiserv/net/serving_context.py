"""The values that all connections of one worker share, and the calls that a connection makes to its event loop."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import getpid, urandom
from select import POLLIN, POLLOUT
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol

from wsgiserv.http.head import HeadLimits, HeadParser
from wsgiserv.logs.access import AccessLog
from wsgiserv.net.cork import Cork
from wsgiserv.net.send_queue import MEMORY_BYTES, WORKER_MEMORY_BYTES, SendQueue
from wsgiserv.net.untrusted_headers import UntrustedHeaders
from wsgiserv.scoreboard import DRAINING, REQUESTS, Slot
from wsgiserv.wsgi.budget import MemoryBudget
from wsgiserv.wsgi.input import BodyBuffer
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

# What a connection wants to be woken for; at first its loop does not know it. The bits of EPOLLIN and EPOLLOUT, which
# are those of poll(2): epoll takes them as they are.
UNWATCHED: Final = -1
NONE: Final = 0
READ: Final = POLLIN
WRITE: Final = POLLOUT


class Loop(Protocol):
    """The calls of a connection to the loop that waits for its socket."""

    # The module of the connections imports this one, so their class cannot be named here.

    def watch(self, connection: Any, interest: int) -> None:
        """Call `receive` (READ) or `flush` (WRITE) when the socket is ready; NONE: leave it alone.

        Called with WRITE while the application runs, too, when something of its response has been queued.
        """

    def ignore(self, connection: Any) -> None:
        """Not even tell that the client has left, until the next `watch`."""

    def resume(self, connection: Any) -> None:
        """Call `advance` soon: bytes of a next request are here already."""

    def forget(self, connection: Any) -> None:
        """The connection is about to close its socket."""

    def wait_writable(self, connection: Any) -> bool:
        """Let the producer of a response wait until its client has taken more; False at the send timeout.

        Raises ClientGone when the worker has no time left to wait.
        """

    def wait_readable(self, connection: Any) -> bool:
        """Let the reader of a streamed body wait until the socket has more; False at the body timeout."""

    # ---- for upgraded connections: see `Upgrade` ----

    @property
    def socket_class(self) -> type[Any]:
        """The class of the sockets that applications know: they wait as the applications do."""

    def spawn(self, function: Callable[[], object]) -> None:
        """Run ``function`` beside the requests. Raises RuntimeError when the system starts no thread."""

    def wait_for_any(self, waits: Sequence[tuple[int, int]], timeout_s: float | None) -> bool:
        """Let a spawned function, or a request, wait; False when the time is over.

        Args:
            waits: descriptors, and what to wait for on each (POLLIN, POLLOUT).
            timeout_s: in seconds; None means no limit.
        """


class Upgraded(Protocol):
    """A connection that an application has taken."""

    def end_reading(self) -> None:
        """Let the application find the end of the client's data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingSettings:
    """The values of the settings for connections: times in seconds, sizes in bytes; 0 means no limit.

    Attributes:
        limits: the limits of a head.
        header_timeout, body_timeout, send_timeout, keepalive: the settings of the same names.
        body_min_rate: bytes per second.
        body_limit: most bytes of a body.
        body_memory: bytes of a body kept in memory.
        spool_dir: directory of spool files; None means the system's.
        streaming: when the application is called before a body is complete: `NEVER_STREAMED`, `LARGE_STREAMED`
            (its declared length is above ``body_memory``) or `ALL_STREAMED`.
        stream_buffer: how many bytes a response of unknown length may run ahead of its client; then its producer waits.
        forwarding: the rules for trusted proxies' X-Forwarded-* and Forwarded; None when not asked for.
    """

    limits: HeadLimits = HeadLimits()
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    body_min_rate: int = 240
    send_timeout: float = 60.0
    keepalive: float = 75.0
    body_limit: int
    body_memory: int
    spool_dir: str | None
    streaming: int = NEVER_STREAMED
    stream_buffer: int = MEMORY_BYTES
    forwarding: Forwarding | None = None


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


@dataclass(frozen=True, slots=True)
class Application:
    """The application and the calls around it.

    Attributes:
        app: the WSGI application.
        call: calls it: `run_app`, or a function that watches its time around it.
        pre_request: gunicorn's hook, called with (request, environ); it may return what is called in place of ``app``.
            None when it is not set.
        post_request: gunicorn's hook, called with (request, environ, response); None when it is not set.
    """

    app: Callable[..., Any] = no_application
    call: Callable[..., BaseException | None] = run_app
    pre_request: Callable[[Any, dict[str, Any]], Callable[..., Any] | None] | None = None
    post_request: Callable[[Any, dict[str, Any], Response], object] | None = None


def _request_ids() -> Iterator[str]:
    # 32 hexadecimal digits: the process that made it, and a count. Unique without a system call. `map` over `count`
    # makes each in one step, so threads never get the same.
    prefix = urandom(6).hex() + f"{getpid() & 0xFFFF:04x}"
    return map(f"{prefix}%016x".__mod__, itertools.count(1))


@dataclass(kw_only=True, eq=False, slots=True)
class ServingContext:
    """The values that all connections of one worker share.

    Attributes:
        settings: the values of the settings.
        application: the application; `begin` sets it.
        gateway: values shared by the responses.
        slot: the worker's row of the scoreboard.
        access: the access log, None when it is off.
        now: ``time.monotonic()`` of the current loop turn.
        linger_s: how long a worker that leaves keeps an idle connection that no other worker can take over; 0.0: not
            at all. None while the worker stays.
        why_leaving: the level and the reason with which requests are logged that the worker cuts from now on.
        running: the requests in the application, by connection. The code that takes one out counts it, and writes its
            line.
        counter: counts the answered requests; the scoreboard has the last value.
        request_ids: the next request's id is the next value.
        report_passed: has forwarded headers of untrusted peers passed on, as of `UntrustedHeaders`; None: removed.
        log: the error log.
        parser: parses heads, with a cache.
        untrusted_headers: removes the forwarded headers of untrusted peers, or passes them on.
        upgrades: the upgraded connections that applications have taken.
        ends_upgrades: whether their clients' data ends for the applications: the worker leaves.
        keepalive: how long an idle connection stays, in seconds.
        cork: holds the small answers of one turn.
        new_body, new_queue: make the buffer of a request's body, and a connection's queue of response data.
    """

    settings: ServingSettings
    application: Application
    gateway: ResponseContext
    slot: Slot
    access: AccessLog | None = None
    now: float = field(default_factory=monotonic)
    linger_s: float | None = None
    why_leaving: tuple[int, str] = (logging.WARNING, "the worker ends")
    running: dict[Any, InFlight] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=partial(itertools.count, 1))
    request_ids: Iterator[str] = field(default_factory=_request_ids)
    report_passed: Callable[[str], object] | None = None
    cork: Cork = field(default_factory=Cork)
    upgrades: set[Upgraded] = field(default_factory=set)
    ends_upgrades: bool = False
    log: logging.Logger = field(init=False)
    parser: HeadParser = field(init=False)
    untrusted_headers: UntrustedHeaders = field(init=False)
    keepalive: float = field(init=False)
    new_body: Callable[[], BodyBuffer] = field(init=False)
    new_queue: Callable[[], SendQueue] = field(init=False)
    _refusals: dict[str, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.settings
        self.log = self.gateway.log
        self.parser = HeadParser(settings.limits)
        self.untrusted_headers = UntrustedHeaders(self.log, self.report_passed)
        self.keepalive = settings.keepalive
        self.gateway.allow_keep_alive(self.keepalive > 0)
        # Many small bodies, or queues, fill the memory as well as a large one does: each kind has one budget per
        # worker.
        bodies_memory = MemoryBudget(_BODIES_MEMORY_BYTES)
        self.new_body = partial(BodyBuffer, settings.body_memory, settings.spool_dir, bodies_memory)
        self.new_queue = partial(SendQueue, settings.spool_dir, MemoryBudget(WORKER_MEMORY_BYTES))

    @property
    def app(self) -> Callable[..., Any]:
        """The WSGI application."""
        return self.application.app

    @property
    def answered(self) -> int:
        """Requests answered by this worker."""
        return self.slot.words[REQUESTS]

    def begin(self, app: Callable[..., Any], access: AccessLog | None, *hooks: Callable[..., Any] | None) -> None:
        """Serve a loaded application from now on; the arguments are as of `Application`."""
        # One assignment: a request that begins on another thread never sees half of it.
        self.application = Application(app, self.application.call, *hooks)
        self.access = access

    def end(self) -> None:
        """Drop the application: the worker has ended."""
        self.application = replace(self.application, app=no_application)

    def repeated_refusal(self, reason: str) -> int:
        """Return how many refusals for this reason have not been logged; -1: do not log this one either."""
        # The reasons are texts of this program, not of clients: there are few.
        now = monotonic()
        logged_at, count = self._refusals.get(reason, (-_REPEATED_REFUSAL_S, 0))
        if now - logged_at < _REPEATED_REFUSAL_S:
            self._refusals[reason] = (logged_at, count + 1)
            return -1
        self._refusals[reason] = (now, 0)
        return count

    def cut_because(self, why: tuple[int, str]) -> None:
        """Log the requests that the worker cuts from now on with this level and reason."""
        self.why_leaving = why

    def close_in_child(self) -> None:
        """Drop what a child of the application must not send again: held answers, the access log's buffer."""
        self.cork.close_in_child()
        if self.access is not None:
            self.access.close_in_child()

    def retire(self, linger_s: float = 0.0) -> None:
        """Have every response say ``Connection: close`` from now on; keep idle connections for ``linger_s`` seconds."""
        self.linger_s = linger_s
        self.keepalive = min(self.keepalive, linger_s)
        # A response that is on its way may have promised keep-alive: such a connection stays for ``linger_s``.
        self.drain()

    def add_upgrade(self, upgrade: Upgraded) -> None:
        """Count a connection that the application has taken. After that the caller looks at `ends_upgrades`."""
        # In this order: `end_upgrades`, in another thread, either finds it here, or is found by the caller.
        self.upgrades.add(upgrade)

    def drop_upgrade(self, upgrade: Upgraded) -> None:
        """Count such a connection no more: its call has ended."""
        self.upgrades.discard(upgrade)

    def end_upgrades(self) -> None:
        """Let the applications find the end of the data in all connections that they have taken, now and later."""
        self.ends_upgrades = True
        for upgrade in list(self.upgrades):
            upgrade.end_reading()

    def set_at_capacity(self, is_at_capacity: bool) -> None:
        """Have responses say ``Connection: close`` while clients wait for room: none is cut off to make room."""
        # Room that appears must not bring back the promise of a worker that leaves.
        is_leaving = self.linger_s is not None or self.slot.words[DRAINING]
        self.gateway.allow_keep_alive(not (is_at_capacity or is_leaving) and self.keepalive > 0)

    def drain(self) -> None:
        """Have every response say ``Connection: close`` from now on: the server is about to stop."""
        self.gateway.allow_keep_alive(False)
