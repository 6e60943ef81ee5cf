"""The control socket: serves the requests of ``wsgiservctl``.

The protocol uses a Unix stream socket, with one request and one reply per connection, each a JSON object on one line:

    {"command": "reload", "wait": true}
    {"ok": true, "reason": "..."}      or      {"ok": false, "error": "..."}

The reply to ``status`` is ``{"ok": true, "status": {...}}``. Without ``wait`` the reply comes when the command is
accepted or refused; with it, when the command is done or has failed.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from _socket import AF_UNIX, MSG_DONTWAIT, SO_ERROR, SOCK_STREAM, SOL_SOCKET
from _socket import socket as RawSocket  # what gevent's patches leave alone
from collections.abc import Callable, Iterator, Mapping
from errno import EAGAIN, ECONNREFUSED, EINPROGRESS, EMFILE, ENFILE, ENOBUFS, ENOENT, ENOMEM
from os import geteuid, kill, lstat, umask, unlink
from select import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from wsgiserv.ipc import MessageError, decode, encode, peer_of
from wsgiserv.logs.escape import escape
from wsgiserv.runtime_dir import DirectoryError, runtime_directory, socket_name
from wsgiserv.safe_open import Place, place_of

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings


# Called with the outcome of a command, at once or much later: True when it is done; a line about it.
Done: TypeAlias = Callable[[bool, str], None]

LONGEST_REQUEST_BYTES: Final = 64 * 1024
MOST_CLIENTS: Final = 16
# More clients may wait for an outcome: each costs a descriptor, and no time.
MOST_WAITING: Final = 64
# The time for a request to arrive, and for a reply to leave.
CLIENT_S: Final = 10.0
# Accepting pauses so long without a free descriptor or memory; a readable listener would make the loop spin.
_REST_S: Final = 1.0
_MOST_WORKERS: Final = 10_000
_SOCKET_NAME = re.compile(r"[0-9]{1,9}\.sock")


class Commands(Protocol):
    """The commands, which the master carries out. Each is called in the master's thread and must not block.

    ``done`` is called with the outcome: at once when the command is refused or needs no time. Further calls do nothing.
    It is never called when the server ends first.
    """

    def status(self) -> dict[str, Any]:
        """Return the figures, see `wsgiserv.master.status`."""

    def reload(self, done: Done) -> None:
        """Begin a reload; done when the new workers have replaced the old ones, or when that failed."""

    def scale(self, count: int, done: Done) -> None:
        """Want ``count`` workers, 1 to 10,000."""

    def retire(self, pid: int, done: Done) -> None:
        """Replace the worker ``pid``."""

    def upgrade(self, done: Done) -> None:
        """Start the next master; done when it serves, or when it failed."""

    def stop(self, now: bool, done: Done) -> None:
        """Stop, gracefully or ``now``. `ControlServer.close` answers the clients that wait for it."""

    def trace(self, pid: int, done: Done) -> None:
        """Get the stacks of the worker ``pid``; done with the text."""

    def reopen_logs(self, done: Done) -> None:
        """Reopen the logs."""


class _Refused(Exception):
    """A malformed request; the text goes to the client."""


class _Client:
    """A connection: reads the request, waits for the outcome, sends the reply."""

    __slots__ = ("command", "deadline", "is_answered", "name", "received", "sock", "unsent")

    def __init__(self, sock: RawSocket, name: str, deadline: float) -> None:
        self.sock = sock
        self.name = name
        self.deadline = deadline
        self.received = b""
        self.unsent = b""
        # Empty until the request is complete.
        self.command = ""
        self.is_answered = False


class ControlServer:
    """The socket and its clients, for the master's poll(2). No method blocks.

    Args:
        path: the socket's path.
        commands: the master's.
        log: the error log.
        follows: the process id of the old master, whose socket this one may replace; or 0.

    Raises OSError or DirectoryError, also when a running server uses the path.

    Attributes:
        path: the absolute path.
    """

    def __init__(self, path: str, commands: Commands, log: logging.Logger, *, follows: int = 0) -> None:
        self.path = os.path.abspath(path)
        self._commands = commands
        self._log = log
        self._clients: dict[int, _Client] = {}
        self._rests_until = 0.0
        self._listener = RawSocket(AF_UNIX, SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            with place_of(self.path) as place:
                _make_way(self.path, place, follows)
                # bind(2) follows links in the path, and another user can still create one.
                is_safe = place.is_pinned or geteuid() != 0
                path = self.path if is_safe else f"/proc/self/fd/{place.directory}/{place.name}"
                # Closed to other users from its first moment: connect(2) needs write permission (unix(7)).
                before = umask(0o177)
                try:
                    self._listener.bind(path)
                finally:
                    umask(before)
                found = place.lstat()
            self._identity = found.st_dev, found.st_ino
            self._listener.listen(MOST_CLIENTS)
        except BaseException:
            self._listener.close()
            raise

    # ---- for the master's loop ---------------------------------------------------------------------

    def fds(self) -> Iterator[tuple[int, int]]:
        """Yield each descriptor to poll, with the events; 0 means POLLHUP alone."""
        if self._listener.fileno() >= 0 and not self._rests_until:
            yield self._listener.fileno(), POLLIN
        for fd, client in self._clients.items():
            # A waiting client may have shut down its sending side, which would wake the loop again and again.
            yield fd, POLLOUT if client.unsent else 0 if client.command else POLLIN

    def handle(self, fd: int, events: int) -> bool:
        """Handle the events of ``fd``; return False for a descriptor of another owner."""
        if fd < 0:
            return False
        if fd == self._listener.fileno():
            self._accept()
            return True
        client = self._clients.get(fd)
        if client is None:
            return False
        if client.unsent:
            self._send(client)
        elif not client.command:
            self._receive(client)
        elif events & (POLLHUP | POLLERR | POLLNVAL):
            self._log.debug("%s: disconnected; %s goes on", client.name, client.command)
            self._drop(client)
        return True

    def deadline(self) -> float:
        """Return when `expire` is due, ``time.monotonic()`` seconds; ``inf`` without clients."""
        due = min((client.deadline for client in self._clients.values()), default=float("inf"))
        return min(due, self._rests_until) if self._rests_until else due

    def expire(self, now: float) -> None:
        """Disconnect the clients whose deadline has passed."""
        if self._rests_until <= now:
            self._rests_until = 0.0
        for client in [client for client in self._clients.values() if client.deadline <= now]:
            if client.unsent:
                self._drop(client)
            else:
                self._refuse(client, f"no complete request (one line) within {CLIENT_S:g} s")

    def close(self) -> None:
        """Answer all clients, close the socket, and remove it if it is still this server's. May be called twice."""
        for client in list(self._clients.values()):
            if client.command == "stop":
                self._answer(client, {"ok": True, "reason": "the server stops"})
            elif client.command and not client.is_answered:
                self._refuse(client, f"the server has stopped before the {client.command} was done")
            self._drop(client)
        if self._listener.fileno() < 0:
            return
        try:
            with place_of(self.path) as place:
                # While the listener is open, no other file gets its inode number.
                found = place.lstat()
                if (found.st_dev, found.st_ino) == self._identity:
                    place.unlink()
        except OSError:
            pass
        self._listener.close()

    def close_in_child(self) -> None:
        """Close the descriptors only. Called in each child of the master."""
        self._listener.close()
        for client in self._clients.values():
            client.sock.close()
        self._clients.clear()

    # ---- clients -------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(MOST_CLIENTS):
            try:
                fd, _address = self._listener._accept()  # type: ignore[attr-defined]
            except OSError as error:
                if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                    self._rests_until = monotonic() + _REST_S
                return
            sock = RawSocket(AF_UNIX, SOCK_STREAM, 0, fd)
            sock.setblocking(False)
            pid, uid = peer_of(sock)
            client = _Client(sock, f"wsgiservctl (pid {pid}, user id {uid})", monotonic() + CLIENT_S)
            self._clients[fd] = client
            if uid not in (geteuid(), 0):
                self._log.warning(
                    "WS1950 control socket: connection of user id %d refused: the server runs as user id %d",
                    uid,
                    geteuid(),
                )
                self._refuse(client, f"this server belongs to user id {geteuid()}")
            elif len(self._clients) > MOST_CLIENTS and self._is_full():
                self._refuse(client, f"{MOST_CLIENTS} other clients are connected; try again")

    def _is_full(self) -> bool:
        waiting = sum(bool(client.command) and not client.is_answered for client in self._clients.values())
        return waiting > MOST_WAITING or len(self._clients) - waiting > MOST_CLIENTS

    def _receive(self, client: _Client) -> None:
        try:
            data = client.sock.recv(LONGEST_REQUEST_BYTES, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.received += data
        line, newline, _ = client.received.partition(b"\n")
        if len(line) >= LONGEST_REQUEST_BYTES:
            self._refuse(client, f"the request is longer than {LONGEST_REQUEST_BYTES} bytes")
        elif newline:
            client.received = b""
            self._obey(client, line)

    def _obey(self, client: _Client, line: bytes) -> None:
        try:
            request = _request(line)
            command = _ARGUMENTS[request["command"]](request)
        except _Refused as error:
            self._refuse(client, str(error))
            return
        client.command, client.deadline = request["command"], float("inf")
        words = [client.command.replace("_", " ")]
        words += ["now" if value is True else str(value) for value in command.values() if value]
        # A monitor asks for the status again and again.
        level = logging.DEBUG if client.command == "status" else logging.INFO
        self._log.log(level, "%s requests: %s", client.name, " ".join(words))
        try:
            if client.command == "status":
                self._answer(client, {"ok": True, "status": self._commands.status()})
                return
            done = self._done(client)
            getattr(self._commands, client.command)(**command, done=done)
        except Exception:  # a bug must not end the server
            self._log.exception("WS1951 control socket: %s: unexpected error", client.command)
            self._refuse(client, "unexpected error in the server; its log has the traceback (WS1951)")
            return
        if not request["wait"]:
            self._answer(client, {"ok": True, "reason": "accepted"})

    def _done(self, client: _Client) -> Done:
        def done(ok: bool, reason: str) -> None:
            if client.is_answered:
                self._log.debug("%s: %s %s", client.command, "done" if ok else "failed", reason)
            elif ok:
                self._answer(client, {"ok": True, "reason": reason})
            else:
                self._refuse(client, reason)

        return done

    def _refuse(self, client: _Client, error: str) -> None:
        self._answer(client, {"ok": False, "error": error})

    def _answer(self, client: _Client, reply: dict[str, Any]) -> None:
        """Send the reply, as much as the socket takes now. Further replies do nothing."""
        if client.is_answered:
            return
        client.is_answered = True
        client.deadline = monotonic() + CLIENT_S
        client.unsent = encode(reply)
        self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            sent = client.sock.send(client.unsent, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:  # it has disconnected; its command goes on
            self._drop(client)
            return
        client.unsent = client.unsent[sent:]
        if not client.unsent:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        client.is_answered = True
        client.unsent = b""
        if self._clients.get(client.sock.fileno()) is client:
            del self._clients[client.sock.fileno()]
        client.sock.close()


def control_server(
    settings: Settings,
    commands: Commands,
    log: logging.Logger,
    environ: Mapping[str, str],
    *,
    follows: int = 0,
) -> ControlServer | None:
    """Open the control socket of the settings; return None without one. Never raises.

    Args:
        settings: the configuration.
        commands: the master's.
        log: receives one line when there cannot be a socket.
        environ: the environment, for the runtime directory.
        follows: see `ControlServer`.
    """
    path = settings.control_socket
    if settings.control_socket_disable or path == "":
        return None
    try:
        if path is None:
            directory = runtime_directory(environ, geteuid())
            _clear_away(directory)
            path = os.path.join(directory, socket_name())
        server = ControlServer(path, commands, log, follows=follows)
    except (DirectoryError, OSError) as error:
        reason = str(error) if isinstance(error, DirectoryError) else f"{path}: {error.strerror or error}"
        log.info(
            "no control socket: %s: wsgiservctl cannot reach this server, signals can. "
            "Set control_socket to another path, or to 'off'",
            escape(reason),
        )
        return None
    log.debug("control socket: %s", server.path)
    return server


def _clear_away(directory: str) -> None:
    """Remove the sockets of masters that were killed. Never raises."""
    try:
        names = [name for name in os.listdir(directory) if _SOCKET_NAME.fullmatch(name)]
    except OSError:
        return
    for name in names:
        path = os.path.join(directory, name)
        try:
            kill(int(name.partition(".")[0]), 0)
        except ProcessLookupError:
            try:
                # In a directory shared between containers the pid may belong to another process.
                if stat.S_ISSOCK(lstat(path).st_mode) and _holder(path) is None:
                    unlink(path)
            except OSError:
                pass
        except (OSError, OverflowError):
            pass  # another user's process


def _make_way(path: str, place: Place, follows: int) -> None:
    """Remove a socket without a server, or that of the master ``follows``."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise DirectoryError(f"{path} exists and is not a socket")
    holder = _holder(path)
    if holder is not None and holder != follows:
        raise DirectoryError(f"{path} is in use by a running process (pid {holder})")
    try:
        place.unlink()
    except FileNotFoundError:
        pass


def _holder(path: str) -> int | None:
    """Return the pid of the process that listens at ``path``, 0 if it is unknown, None without one."""
    sock = RawSocket(AF_UNIX, SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = sock.connect_ex(path)
        if error in (ECONNREFUSED, ENOENT):
            return None
        if error in (EAGAIN, EINPROGRESS):
            return 0  # a full backlog has a listener
        if error:
            raise OSError(error, os.strerror(error), path)
        sock.getsockopt(SOL_SOCKET, SO_ERROR)
        return peer_of(sock)[0]
    finally:
        sock.close()


def _request(line: bytes) -> dict[str, Any]:
    try:
        request = decode(line)
    except MessageError:
        raise _Refused("the request is not a JSON object on one line") from None
    command = request.get("command")
    if not isinstance(command, str) or command not in _ARGUMENTS:
        raise _Refused(f"unknown command {command!r}; accepted: one of {', '.join(_ARGUMENTS)}"[:400])
    request.setdefault("wait", False)
    _flag(request, "wait")
    return request


def _flag(request: Mapping[str, Any], name: str) -> bool:
    value = request.get(name, False)
    if not isinstance(value, bool):
        raise _Refused(f"{name!r}: accepted: true or false")
    return value


def _number(request: Mapping[str, Any], name: str, largest: int) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise _Refused(f"{name!r}: accepted: a number from 1 to {largest}")
    return value


# The arguments of each command, taken from a request; the names are the methods of `Commands`.
_ARGUMENTS: Final[dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "status": lambda request: {},
    "reload": lambda request: {},
    "scale": lambda request: {"count": _number(request, "count", _MOST_WORKERS)},
    "retire": lambda request: {"pid": _number(request, "pid", 2**31 - 1)},
    "upgrade": lambda request: {},
    "stop": lambda request: {"now": _flag(request, "now")},
    "trace": lambda request: {"pid": _number(request, "pid", 2**31 - 1)},
    "reopen_logs": lambda request: {},
}
