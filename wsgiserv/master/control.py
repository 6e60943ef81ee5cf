"""The control socket: what ``wsgiservctl`` asks of a running server.

Owns: the socket's file, who may connect, the protocol, what a slow or broken client costs (nothing).
Must not know: what a command does (`Commands` are the master's), how the master waits.

The protocol, over a unix stream socket, is one request and one reply a connection, each a JSON object on one line:

    {"command": "reload", "wait": true}
    {"ok": true, "reason": "..."}      or      {"ok": false, "error": "..."}

``status`` is answered with ``{"ok": true, "status": {...}}``. Without ``wait`` a command is answered when it has been
accepted, or refused at once; with it when it is done, or has failed.
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

__all__ = ["Commands", "ControlServer", "Done", "control_server"]

# Told the outcome of a command, at once or much later: whether it is done, and the reason or what there is to say.
Done: TypeAlias = Callable[[bool, str], None]

LONGEST_REQUEST_BYTES: Final = 64 * 1024
MOST_CLIENTS: Final = 16
# So many others may wait for the outcome of a command: they cost a descriptor each, and no time.
MOST_WAITING: Final = 64
# How long a client may take for its request, and for taking the reply.
CLIENT_S: Final = 10.0
# Accepting rests so long when the system has no descriptor or memory; a readable listener would spin meanwhile.
_REST_S: Final = 1.0
_MOST_WORKERS: Final = 10_000
_SOCKET_NAME = re.compile(r"[0-9]{1,9}\.sock")


class Commands(Protocol):
    """What the master can be asked for. Each is called in the master's thread and must not wait.

    ``done`` is called once: at once when the command is refused or has been carried out already, else when it
    is. Nobody minds if it is called again, or never because the server ends first.
    """

    def status(self) -> dict[str, Any]:
        """Return the figures, see `wsgiserv.master.status`."""

    def reload(self, done: Done) -> None:
        """Begin a reload; done when the new workers have replaced the old ones, or with why they have not."""

    def scale(self, count: int, done: Done) -> None:
        """Want ``count`` workers, 1 to 10,000."""

    def retire(self, pid: int, done: Done) -> None:
        """Replace the worker ``pid``."""

    def upgrade(self, done: Done) -> None:
        """Start the next master; done when that serves, or with why it does not."""

    def stop(self, now: bool, done: Done) -> None:
        """Stop gracefully, or ``now``. What waits for it is answered when the server ends (`ControlServer.close`)."""

    def trace(self, pid: int, done: Done) -> None:
        """Find out where the worker ``pid`` is in the code; done with the text."""

    def reopen_logs(self, done: Done) -> None:
        """Reopen the logs."""


class _Refused(Exception):
    """A request that makes no sense; the text is for who has made it."""


class _Client:
    """One connection: it reads until the request is complete, waits until it is done, and sends the reply."""

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
    """The socket and its clients, for the master's poll(2): nothing here ever waits.

    Args:
        path: where the socket is to be.
        commands: the master's.
        log: the error log.
        follows: the process id of the master that this one takes over from, whose socket it may replace; or 0.

    Raises OSError or DirectoryError when there cannot be a socket, also when a running server has it.

    Attributes:
        path: where it is, absolute.
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
                # bind(2) would follow links on the way there, which another user can still put.
                is_safe = place.is_pinned or geteuid() != 0
                path = self.path if is_safe else f"/proc/self/fd/{place.directory}/{place.name}"
                # Never open to others, not for a moment: connect(2) needs the right to write (unix(7)).
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
        """Yield each descriptor to poll with the events to poll it for; 0 asks for POLLHUP alone."""
        if self._listener.fileno() >= 0 and not self._rests_until:
            yield self._listener.fileno(), POLLIN
        for fd, client in self._clients.items():
            # A client that waits may have shut its sending side: that is not to be heard again and again.
            yield fd, POLLOUT if client.unsent else 0 if client.command else POLLIN

    def handle(self, fd: int, events: int) -> bool:
        """Do what poll(2) has found out about ``fd``; return whether the descriptor is one of ours."""
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
            self._log.debug("%s is gone; %s goes on", client.name, client.command)
            self._drop(client)
        return True

    def deadline(self) -> float:
        """Return when `expire` is due, ``time.monotonic()`` seconds; ``inf``: never."""
        due = min((client.deadline for client in self._clients.values()), default=float("inf"))
        return min(due, self._rests_until) if self._rests_until else due

    def expire(self, now: float) -> None:
        """Let go of clients that are late."""
        if self._rests_until <= now:
            self._rests_until = 0.0
        for client in [client for client in self._clients.values() if client.deadline <= now]:
            if client.unsent:
                self._drop(client)
            else:
                self._refuse(client, f"there was no complete request (one line) within {CLIENT_S:g} s")

    def close(self) -> None:
        """Close everything and remove the socket if it is still this server's. May be called twice.

        Who waits for ``stop`` is told that it is done, others that the server has ended before.
        """
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
                # While ours is open the number is not given to another file.
                found = place.lstat()
                if (found.st_dev, found.st_ino) == self._identity:
                    place.unlink()
        except OSError:
            pass
        self._listener.close()

    def close_in_child(self) -> None:
        """Close the descriptors only. Called in each child of the master after the fork."""
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
                self._log.warning("control socket: user id %d is refused", uid)
                self._refuse(client, f"this server belongs to user id {geteuid()}")
            elif len(self._clients) > MOST_CLIENTS and self._is_full():
                self._refuse(client, f"{MOST_CLIENTS} others are asking at the same time; try again")

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
        # Whoever watches the server asks for its status again and again.
        level = logging.DEBUG if client.command == "status" else logging.INFO
        self._log.log(level, "%s asks for %s", client.name, " ".join(words))
        try:
            if client.command == "status":
                self._answer(client, {"ok": True, "status": self._commands.status()})
                return
            done = self._done(client)
            getattr(self._commands, client.command)(**command, done=done)
        except Exception:  # a bug of ours must not end the server
            self._log.exception("%s has failed", client.command)
            self._refuse(client, "the server has an error of its own; its log has the traceback")
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
        """Send the reply, as much as the client takes now. Only the first one counts."""
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
        except OSError:  # it has left; what it has asked for goes on
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
    """Open the control socket that the settings ask for; None where there is none. Never raises.

    Args:
        settings: `control_socket` and `control_socket_disable` count.
        commands: the master's.
        log: is told once, at info, when there cannot be a socket.
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
            "no control socket, wsgiservctl cannot reach this server (signals can): %s. "
            "control_socket = '/path/of/yours.sock' puts it elsewhere, 'off' leaves it out",
            escape(reason),
        )
        return None
    log.debug("the control socket is %s", server.path)
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
                # In a directory that is shared with containers the number may be another's.
                if stat.S_ISSOCK(lstat(path).st_mode) and _holder(path) is None:
                    unlink(path)
            except OSError:
                pass
        except (OSError, OverflowError):
            pass  # another user's process


def _make_way(path: str, place: Place, follows: int) -> None:
    """Remove a socket that nobody serves any more, or that of the master ``follows``."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise DirectoryError(f"{path} exists and is not a socket; it is left alone")
    holder = _holder(path)
    if holder is not None and holder != follows:
        raise DirectoryError(f"{path} is in use by a running process (pid {holder})")
    try:
        place.unlink()
    except FileNotFoundError:
        pass


def _holder(path: str) -> int | None:
    """Return the process that listens at ``path``, 0 if that cannot be said, or None when nobody does."""
    sock = RawSocket(AF_UNIX, SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = sock.connect_ex(path)
        if error in (ECONNREFUSED, ENOENT):
            return None
        if error in (EAGAIN, EINPROGRESS):
            return 0  # its backlog is full: it is there
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
        raise _Refused(f"unknown command {command!r}; expected one of {', '.join(_ARGUMENTS)}"[:400])
    request.setdefault("wait", False)
    _flag(request, "wait")
    return request


def _flag(request: Mapping[str, Any], name: str) -> bool:
    value = request.get(name, False)
    if not isinstance(value, bool):
        raise _Refused(f"{name!r}: expected true or false")
    return value


def _number(request: Mapping[str, Any], name: str, largest: int) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise _Refused(f"{name!r}: expected a number from 1 to {largest}")
    return value


# What each command takes out of a request; the names are those of the methods of `Commands`.
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
