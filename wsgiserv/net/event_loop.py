"""Waits for the sockets of one worker: epoll where there is one, kqueue or poll through `selectors` elsewhere.

`EventLoop` accepts connections, watches them for what their state asks for, and expires their deadlines. The worker
polls it and runs what is ready.
"""

from __future__ import annotations

import logging
import select
from _socket import getdefaulttimeout
from _socket import socket as RawSocket
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import InitVar, dataclass, field
from errno import ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM, EPROTO
from operator import itemgetter
from socket import socket as _Socket
from sys import maxsize
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from wsgiserv.net.client import Connection
from wsgiserv.net.client_socket import off_standard
from wsgiserv.net.listener import Listener
from wsgiserv.net.response_writer import ResponseWriter
from wsgiserv.net.serving_context import NONE, RATE_GRACE_S, READ, UNWATCHED
from wsgiserv.process import leave
from wsgiserv.unpatched import start_thread
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.net.portable_poller import SelectorPoller

# Without the rest, a readable listener that cannot be accepted from, for lack of descriptors or memory, spins
# (waitress CVE-2024-49769, 100 % CPU).
_ACCEPT_REST_S: Final = 0.5
_EXHAUSTED: Final = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})
# accept(2): the client has gone, or a firewall forbids the connection. Neither is the listener's fault.
_CLIENT_GONE: Final = frozenset({ECONNABORTED, EPROTO, EPERM})
# A worker that lives at its limit would write a line at each attempt.
_WARN_AGAIN_S: Final = 60.0
# A connection must have been idle for this long before it may be closed to make room for a new one.
_LEAST_IDLE_S: Final = 0.5
# How many unfinished requests are checked for more input before none of them is closed: each check is a system call.
_MOST_CHECKS: Final = 8
# How often a producer that waits for its client checks how long the client has taken nothing.
_WAIT_S: Final = 0.25
# poll(2) takes milliseconds as an int, so no more than 24 days.
_LONGEST_POLL_S: Final = 2_000_000.0

# Quoted: not every platform has the first, and only those load the second.
Poller: TypeAlias = "select.epoll | SelectorPoller"

# Bound at import: a config file may call gevent.monkey.patch_all(), which removes select.epoll.
_epoll: Callable[[], select.epoll] | None = getattr(select, "epoll", None)
_EPOLLEXCLUSIVE: Final[int] = getattr(select, "EPOLLEXCLUSIVE", 0)
_poll = select.poll
_POLLIN: Final = select.POLLIN
if _epoll is None:
    import wsgiserv.net.portable_poller  # noqa: F401 - bound at import, too


def open_poller(portable: bool = False) -> Poller:
    """Return the platform's best poller; ``portable`` asks for the one over `selectors`, for tests."""
    if not portable and _epoll is not None:
        return _epoll()
    from wsgiserv.net.portable_poller import SelectorPoller

    return SelectorPoller()


def body_limit_s(connection: ResponseWriter) -> float:
    """Return how long the reader of a streamed body may wait for more of it, in seconds; 0.0 means no limit."""
    settings = connection.context.settings
    return settings.body_timeout or (RATE_GRACE_S if settings.body_min_rate else 0.0)


def _is_readable(fd: int, timeout_s: float | None = 0.0) -> bool:
    poller = _poll()
    poller.register(fd, _POLLIN)
    return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


@dataclass(eq=False, repr=False)
class EventLoop:
    """The sockets of one worker. A `Loop` for its connections.

    Worker classes subclass it where they wait for a client, or need to know of a queued connection, in another way.

    Args:
        listeners: the bound listening sockets, non-blocking.
        admit: returns a `Connection` for this loop, an accepted socket, its peer's address and its listener.
        most: most connections open at once; beyond it they wait in the backlog (``worker_connections``).
            Clients that have not sent a byte do not count, up to as many again.
        log: the error log.
        send_timeout: how long a producer waits for its client in seconds; 0 means no limit.
        at_capacity: called with True when clients begin to wait for room, with False when they cease to.
        poller: the platform's poller.

    Attributes:
        connections: all open connections by descriptor.
        waiting: connections whose next bytes are here already.
        accepting: whether new connections are taken.
        poll: the poller's `poll`.
    """

    listeners: InitVar[Sequence[Listener]]
    _admit: Callable[[EventLoop, RawSocket, Any, Listener], Connection]
    _most: int
    _log: logging.Logger
    _send_timeout: float
    _at_capacity: Callable[[bool], None]
    poller: Poller = field(default_factory=open_poller)
    poll: Callable[[float], list[tuple[int, int]]] = field(init=False)
    connections: dict[int, Connection] = field(init=False, default_factory=dict)
    waiting: deque[Connection] = field(init=False, default_factory=deque)
    accepting: bool = field(init=False, default=False)
    _is_at_capacity: bool = field(init=False, default=False)
    _listeners: dict[int, tuple[Listener, int, int]] = field(init=False)
    _callbacks: dict[int, Callable[[], None]] = field(init=False, default_factory=dict)
    # Of these, what is watched only while new connections are taken.
    _sources: list[int] = field(init=False, default_factory=list)
    # Held while it is decided what to watch for, and the poller is told.
    _lock: LockType = field(init=False, default_factory=allocate_lock)
    _rest_until: float = field(init=False, default=0.0)
    _warned_of_exhaustion: float = field(init=False, default=-_WARN_AGAIN_S)

    def __post_init__(self, listeners: Sequence[Listener]) -> None:
        self.poll = self.poller.poll
        # Family and type as plain integers: the properties of `socket.socket` make enum members at each call.
        self._listeners = {each.fileno(): (each, int(each.sock.family), int(each.sock.type)) for each in listeners}

    # ---- the Loop of the connections -------------------------------------------------------------------

    def watch(self, connection: Connection, interest: int) -> None:
        """Wake ``connection`` for ``interest``; it is registered at its first wish only."""
        # Several threads may be here for one connection, and one of them may come late: when another has closed the
        # connection, and its descriptor is a new client's. So ownership and state are checked under the lock.
        fd = connection.fd
        with self._lock:
            if self.connections.get(fd) is not connection:
                return
            interest = connection.due_interest(interest)
            known = connection.interest != UNWATCHED
            if not known and interest == NONE:
                return
            connection.interest = interest
            right, other = self.poller.modify, self.poller.register
            if not known:
                right, other = other, right
            try:
                right(fd, interest)
            except (FileNotFoundError, FileExistsError, KeyError):
                # `request_timeout` has put another socket in its place: the poller has forgotten the one before.
                other(fd, interest)

    def ignore(self, connection: Connection) -> None:
        """Watch a connection no longer until its next wish: epoll reports a reset without any interest, too."""
        with self._lock:
            if (
                self.connections.get(connection.fd) is connection
                and connection.interest != UNWATCHED
                and connection.due_interest(NONE) == NONE
            ):
                self._unregister(connection)

    def _unregister(self, connection: Connection) -> None:
        connection.interest = UNWATCHED
        with suppress(OSError, KeyError):  # another socket has been put in its place
            self.poller.unregister(connection.fd)

    def resume(self, connection: Connection) -> None:
        """Queue a connection whose next bytes are here: one request per turn each, so none starves the others."""
        self.waiting.append(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is about to close its socket; do nothing the second time."""
        with self._lock:
            # By then the number may be another connection's.
            if self.connections.get(connection.fd) is connection:
                del self.connections[connection.fd]
                if connection.interest != UNWATCHED:
                    self._unregister(connection)
        if self._rest_until:
            self._rest_until = 0.0  # its descriptor is free in a moment

    def wait_writable(self, connection: ResponseWriter, longest_s: float = _WAIT_S) -> bool:
        """Block while the loop sends what is queued, until the client has taken enough; False at ``send_timeout``.

        It returns True after ``longest_s``, too: the producer then sends what it can by itself.
        """
        # A bare lock serves as an event for one use: `threading.Event` makes a condition and a list besides.
        wakeup = allocate_lock()
        wakeup.acquire()
        if not connection.call_when_sent(wakeup.release) or wakeup.acquire(timeout=longest_s):
            return True
        return not connection.has_stopped(monotonic(), self._send_timeout)

    def wait_readable(self, connection: ResponseWriter) -> bool:
        """Block until the client sends more of its body; False at ``body_timeout``."""
        return _is_readable(connection.fd, min(body_limit_s(connection), _LONGEST_POLL_S) or None)

    # ---- upgraded connections ------------------------------------------------------------------------------

    @property
    def socket_class(self) -> type[Any]:
        """Python's own."""
        return _Socket

    def spawn(self, function: Callable[[], object]) -> None:
        """Run ``function`` in a thread of its own. Raises RuntimeError."""
        start_thread(function, (), name="wsgiserv-tunnel")

    def wait_for_any(self, waits: Sequence[tuple[int, int]], timeout_s: float | None) -> bool:
        """Block until one of the descriptors is ready; False when the time is over."""
        poller = _poll()
        for fd, events in waits:
            poller.register(fd, events)
        return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))

    # ---- other descriptors ---------------------------------------------------------------------------------

    def add_callback(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` whenever ``fd`` is readable."""
        self._callbacks[fd] = callback
        self.poller.register(fd, READ)

    def add_source(self, fd: int, callback: Callable[[], None]) -> None:
        """Treat ``fd`` like a listener: watched while connections are taken, and one worker is woken, not all.

        Args:
            fd: the descriptor; before `start_accepting`.
            callback: takes connections while there is room (`has_room`), and adds them by `adopt`.
        """
        self._callbacks[fd] = callback
        self._sources.append(fd)

    def remove_callback(self, fd: int) -> None:
        """Watch ``fd`` no longer."""
        if self._callbacks.pop(fd, None) is not None:
            self.poller.unregister(fd)

    def call_back(self, fd: int) -> None:
        """Call what `add_callback` or `add_source` was given for ``fd``; do nothing for a descriptor closed since."""
        callback = self._callbacks.get(fd)
        if callback is not None:
            callback()
            return
        # With threads, one may have watched a connection that another closed: the number may be the application's by
        # now, and would wake every poll.
        with self._lock, suppress(OSError, KeyError):
            if fd not in self.connections:
                self.poller.unregister(fd)

    # ---- accepting -----------------------------------------------------------------------------------------

    def start_accepting(self) -> None:
        """Watch the listeners."""
        if not self.accepting:
            self.accepting = True
            for fd in (*self._listeners, *self._sources):
                # EPOLLEXCLUSIVE: a new connection wakes one of the workers that wait, not all of them.
                self.poller.register(fd, READ | _EPOLLEXCLUSIVE)

    def stop_accepting(self) -> None:
        """Leave what comes in the backlog, for a sibling or for later."""
        if self.accepting:
            self.accepting = False
            # Unregistered, not ignored: a readable listener would wake a level-triggered poller each time.
            for fd in (*self._listeners, *self._sources):
                self.poller.unregister(fd)

    def lift_limit(self) -> None:
        """Take all connections that come from now on, whatever ``most`` says. Called by a worker that leaves."""
        # When the last process closes a listener, the kernel resets the clients that are left in its backlog.
        self._most = maxsize

    def has_room(self) -> bool:
        """Return whether one more connection may be taken; if not, stop accepting until there is room again."""
        if len(self.connections) < self._most or self._make_room():
            return True
        self.stop_accepting()
        self._set_at_capacity(True)
        return False

    def _set_at_capacity(self, is_at_capacity: bool) -> None:
        if is_at_capacity != self._is_at_capacity:
            self._is_at_capacity = is_at_capacity
            self._at_capacity(is_at_capacity)

    def adopt(self, connection: Connection) -> None:
        """Add a connection that did not come from a listener; it is watched from its first wish on."""
        self.connections[connection.fd] = connection

    def close_listeners(self) -> None:
        """Close this process's listeners for good."""
        self.stop_accepting()
        for listener, _, _ in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def reject_new_connections(self) -> None:
        """Let no new client into the backlog: see `Listener.reject_new_connections`."""
        for listener, _, _ in self._listeners.values():
            listener.reject_new_connections()

    def is_listener(self, fd: int) -> bool:
        """Return whether ``fd`` is one of the listeners."""
        return fd in self._listeners

    def listener_fds(self) -> list[int]:
        """Return the descriptors of the listeners."""
        return list(self._listeners)

    def accept(self, listener_fd: int) -> Connection | None:
        """Take one connection; None when there is none, or none can be taken now."""
        # Checked here first: a call less for each connection. Room is made only where a client waits for it.
        if len(self.connections) >= self._most and not (_is_readable(listener_fd) and self.has_room()):
            return None
        listener, family, kind = self._listeners[listener_fd]
        try:
            # Private, and in CPython since 2.7: accept() would make a `socket.socket`, whose Python layer costs more
            # than the system call, and after monkey patching gevent's.
            fd, address = listener.sock._accept()  # type: ignore[attr-defined]
            if fd <= 2:
                fd = off_standard(fd)
        except BlockingIOError:
            return None
        except OSError as error:
            self.refused(error)
            return None
        sock = RawSocket(family, kind, 0, fd)
        if listener.adjusts:
            listener.adjust(sock)
        if getdefaulttimeout() is not None:
            sock.settimeout(None)  # the application has called socket.setdefaulttimeout()
        connection = self._admit(self, sock, address, listener)
        self.connections[fd] = connection
        return connection

    def _make_room(self, for_descriptor: bool = False) -> bool:
        """Close a connection that waits long for its client where that helps; return whether one more can be taken.

        Args:
            for_descriptor: whether a descriptor is wanted, however many connections there are.
        """
        # A client between two quick requests is never cut off: while others wait, its next response says
        # ``Connection: close``. A connection that has not completed its first request gives way like an idle one: a
        # flood of heads that never end must not shut all others out until ``header_timeout`` (puma CVE-2019-16770).
        silent, longest, chosen = 0, _LEAST_IDLE_S, None
        unfinished: list[tuple[float, Connection]] = []
        now = monotonic()
        for connection in list(self.connections.values()):
            if connection.is_silent:
                silent += 1
            elif (idle := connection.idle_for(now)) > longest:
                longest, chosen = idle, connection
            since = connection.unfinished_since(now)
            if now - since > _LEAST_IDLE_S:
                unfinished.append((since, connection))
        if chosen is not None and not chosen.has_input():
            chosen.close()
            for_descriptor = False
        total = len(self.connections)
        has_place = total - silent < self._most and total < 2 * self._most
        if has_place and not for_descriptor:
            return True
        # Silent clients do not count, so closing one makes room only when there are too many of all.
        takes_silent = for_descriptor or total - silent < self._most
        checks = 0
        for _, connection in sorted(unfinished, key=itemgetter(0)):
            if checks >= _MOST_CHECKS:
                break
            if takes_silent or not connection.is_silent:
                checks += 1
                if not connection.has_input():
                    connection.close()
                    return True
        return has_place

    def refused(self, error: OSError) -> None:
        """Rest from accepting: the system has no descriptor or memory for a connection, or fails otherwise."""
        if error.errno in _CLIENT_GONE:
            return
        is_exhausted = error.errno in _EXHAUSTED
        if not is_exhausted:
            self._log.error(
                "WS1706 accept: failed: %s: trying again in %.1f s", error.strerror or error, _ACCEPT_REST_S
            )
        elif (now := monotonic()) - self._warned_of_exhaustion >= _WARN_AGAIN_S:
            self._warned_of_exhaustion = now
            self._log.warning(
                "WS1707 accept: out of descriptors (%s) with %s open: accepting pauses until some are free. "
                "Raise the limit (ulimit -n, LimitNOFILE=) or lower worker_connections",
                error.strerror,
                counted(len(self.connections), "connection"),
            )
        self.rest()
        if is_exhausted:
            self._set_at_capacity(True)
            self._make_room(for_descriptor=True)  # an idle client gives its descriptor up; that ends the rest

    def rest(self) -> None:
        """Accept nothing for a moment, since it has failed: a readable listener would be reported again at once."""
        self.stop_accepting()
        self._rest_until = monotonic() + _ACCEPT_REST_S

    def consider_accepting(self, now: float) -> None:
        """Accept again when there is room. Called once per turn while not accepting, by a worker that stays."""
        if now >= self._rest_until and (len(self.connections) < self._most or self._make_room()):
            self.start_accepting()
            self._set_at_capacity(False)

    # ---- deadlines -----------------------------------------------------------------------------------------

    def sweep(self, now: float, expire: Callable[[Connection], object] = Connection.expire) -> None:
        """Expire the connections whose deadline is before ``now``. Once a second: no timer per connection."""
        for connection in list(self.connections.values()):  # a copy in one step: threads come and go
            if connection.deadline < now:
                expire(connection)

    def close(self) -> None:
        """Close all connections and the poller; the listeners are the caller's."""
        for connection in list(self.connections.values()):
            connection.close()
        self.poller.close()

    def close_in_child(self) -> None:
        """Drop all connections in a child of the application. Their clients see nothing of it."""
        # The poller first: the epoll is the parent's, too, and to unregister a descriptor here takes it away there.
        # Code that comes back to the loop by another way than the gateway leaves at its next turn.
        self.poll = _leave
        self.poller.close()
        for connection in list(self.connections.values()):
            connection.close_in_child()
        self.connections.clear()
        self.waiting.clear()


def _leave(timeout_s: float) -> NoReturn:
    leave()
