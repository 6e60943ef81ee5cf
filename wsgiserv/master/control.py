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
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_STREAM
from _socket import socket as RawSocket  # what gevent's patches leave alone
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from errno import EAGAIN, ECONNREFUSED, EINPROGRESS, EMFILE, ENFILE, ENOBUFS, ENOENT, ENOMEM
from functools import partial
from math import inf
from os import geteuid, kill, lstat, umask, unlink
from select import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT
from time import monotonic
from typing import Any, Final, TypeAlias

from wsgiserv.config.settings import Settings
from wsgiserv.ipc import MessageError, decode, encode, peer_of
from wsgiserv.logs.escape import escape
from wsgiserv.runtime_dir import DirectoryError, runtime_directory, socket_name
from wsgiserv.safe_open import O_PATH, Place, place_of

# Called with the outcome of a command, at once or much later: True when it is done; a line about it. Further calls do
# nothing. It is never called when the server ends first.
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


@dataclass(slots=True, eq=False)
class _Client:
    """A connection: reads the request, waits for the outcome, sends the reply."""

    sock: RawSocket
    name: str
    deadline: float
    received: bytes = b""
    unsent: bytes = b""
    command: str = ""  # empty until the request is complete
    is_answered: bool = False


class ControlServer:
    """The socket and its clients, for the master's poll(2). No method blocks.

    Args:
        path: the socket's path.
        commands: the master's (`MasterCommands`): a method for each command, called in its thread, which must not
            block.
        log: the error log.
        follows: the process id of the old master, whose socket this one may replace; or 0.
        mode: the mode of the socket's file; with bits for others than its owner these are answered, too.
        group: the group of the socket's file, where the mode has bits for a group.

    Raises OSError or DirectoryError, also when a running server uses the path.

    Attributes:
        path: the absolute path.
    """

    def __init__(
        self,
        path: str,
        commands: Any,
        log: logging.Logger,
        *,
        follows: int = 0,
        mode: int = 0o600,
        group: int | None = None,
    ) -> None:
        self.path = os.path.abspath(path)
        self._commands = commands
        self._log = log
        # The kernel has compared the client with the mode: connect(2) needs write permission (unix(7)).
        self._is_shared = bool(mode & 0o022)
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
                # Closed to other users from its first moment.
                before = umask(0o177)
                try:
                    self._listener.bind(path)
                finally:
                    umask(before)
                if mode != 0o600:
                    _open_to_others(place, mode, group)
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

    def handle(self, fd: int, events: int) -> None:
        """Handle the events of ``fd``, unless that is another owner's."""
        if fd == self._listener.fileno():
            self._accept()
        elif client := self._clients.get(fd):
            self._handle_client(client, events)

    def _handle_client(self, client: _Client, events: int) -> None:
        if client.unsent:
            self._send(client)
        elif not client.command:
            self._receive(client)
        elif events & (POLLHUP | POLLERR | POLLNVAL):
            self._log.debug("%s: disconnected; %s goes on", client.name, client.command)
            self._drop(client)

    def deadline(self) -> float:
        """Return when `expire` is due, ``time.monotonic()`` seconds; ``inf`` without clients."""
        due = min((client.deadline for client in self._clients.values()), default=inf)
        return min(due, self._rests_until) if self._rests_until else due

    def expire(self, now: float) -> None:
        """Disconnect the clients whose deadline has passed."""
        if self._rests_until <= now:
            self._rests_until = 0.0  # the listener is polled again
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
        with suppress(OSError), place_of(self.path) as place:
            # By now it may be the socket of the next master. While the listener is open, no other file gets its inode
            # number.
            found = place.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                place.unlink()
        self._listener.close()

    def close_in_child(self) -> None:
        """Close the descriptors only. Called in each child of the master."""
        # No answers, and no unlink: the connections and the file are the parent's.
        self._listener.close()
        for client in self._clients.values():
            client.sock.close()
        self._clients.clear()

    # ---- clients -------------------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(MOST_CLIENTS):
            try:
                # The C class has no accept(): that of `socket.socket`, which gevent replaces, calls this.
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
            # The socket's mode keeps others out, but not where a file system ignores it.
            if uid not in (geteuid(), 0) and not self._is_shared:
                self._log.warning(
                    "WS1950 control socket: connection of user id %d refused: the server runs as user id %d",
                    uid,
                    geteuid(),
                )
                self._refuse(client, f"this server belongs to user id {geteuid()}")
            elif len(self._clients) > MOST_CLIENTS and self._is_full():
                self._refuse(client, f"{MOST_CLIENTS} other clients are connected; try again")

    def _is_full(self) -> bool:
        # Waiting clients count apart: a script that waits for each of its commands must not lock an operator out.
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
            # One request for each connection: what follows is not read.
            client.received = b""
            self._obey(client, line)

    def _obey(self, client: _Client, line: bytes) -> None:
        try:
            name, arguments, waits = _parse(line)
        except ValueError as error:
            self._refuse(client, str(error))
            return
        # No time limit: a reload takes as long as the application's boot, and the client gives up by itself.
        client.command, client.deadline = name, inf
        words = [name.replace("_", " ")]
        words += ["now" if value is True else str(value) for value in arguments.values() if value]
        # A monitor asks for the status again and again.
        level = logging.DEBUG if name == "status" else logging.INFO
        self._log.log(level, "%s requests: %s", client.name, " ".join(words))
        try:
            if name == "status":
                self._answer(client, {"ok": True, "status": self._commands.status()})
                return
            getattr(self._commands, name)(**arguments, done=partial(self._on_outcome, client))
        except Exception:  # a bug must not end the server
            self._log.exception("WS1951 control socket: %s: unexpected error", name)
            self._refuse(client, "unexpected error in the server; its log has the traceback (WS1951)")
            return
        if not waits:
            self._answer(client, {"ok": True, "reason": "accepted"})

    def _on_outcome(self, client: _Client, ok: bool, reason: str) -> None:
        if client.is_answered:  # without `wait`; or it has disconnected
            self._log.debug("%s: %s %s", client.command, "done" if ok else "failed", reason)
        else:
            self._answer(client, {"ok": ok, "reason" if ok else "error": reason})

    def _refuse(self, client: _Client, error: str) -> None:
        self._answer(client, {"ok": False, "error": error})

    def _answer(self, client: _Client, reply: dict[str, Any]) -> None:
        """Send the reply, as much as the socket takes now. Further replies do nothing."""
        if client.is_answered:
            return
        client.is_answered = True
        # The status of many workers can be larger than the socket's buffer, and the client may not read.
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
        self._clients.pop(client.sock.fileno(), None)
        client.sock.close()


def control_server(
    settings: Settings, commands: Any, log: logging.Logger, environ: Mapping[str, str], *, follows: int = 0
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
        mode = settings.control_socket_mode
        server = ControlServer(path, commands, log, follows=follows, mode=mode, group=settings.group)
    except (DirectoryError, OSError) as error:
        reason = str(error) if isinstance(error, DirectoryError) else f"{path}: {error.strerror or error}"
        # Not a warning: signals do the same, and a read-only or shared directory may be meant.
        log.info(
            "no control socket: %s: wsgiservctl cannot reach this server, signals can. "
            "Set control_socket to another path, or to 'off'",
            escape(reason),
        )
        return None
    log.debug("control socket: %s", server.path)
    return server


def _open_to_others(place: Place, mode: int, group: int | None) -> None:
    """Give the socket's file, which this process has just made, its mode and its group. Raises OSError."""
    # By a descriptor of the very file: another user may replace it, or link it to a file of root's.
    fd = os.open(place.name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != geteuid() or status.st_nlink != 1:
            raise DirectoryError("another process has replaced the control socket's file")
        # Neither fchown(2) nor fchmod(2) takes such a descriptor; its link in /proc leads to the same file.
        name = f"/proc/self/fd/{fd}"
        if mode & 0o070 and group is not None and group != status.st_gid:
            os.chown(name, -1, group)
        os.chmod(name, mode)
    finally:
        os.close(fd)


def _clear_away(directory: str) -> None:
    """Remove the sockets of masters that were killed. Never raises."""
    try:
        names = [name for name in os.listdir(directory) if _SOCKET_NAME.fullmatch(name)]
    except OSError:
        return
    for name in names:
        path = os.path.join(directory, name)
        # Other errors of kill(2) mean a process: another user's.
        with suppress(OSError, OverflowError):
            try:
                kill(int(name.partition(".")[0]), 0)
            except ProcessLookupError:
                # In a directory shared between containers the pid may belong to another process.
                if stat.S_ISSOCK(lstat(path).st_mode) and _holder(path) is None:
                    unlink(path)


def _make_way(path: str, place: Place, follows: int) -> None:
    """Remove a socket without a server, or that of the master ``follows``."""
    # Another master may remove it at any moment.
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(place.lstat().st_mode):
            raise DirectoryError(f"{path} exists and is not a socket")
        holder = _holder(path)
        if holder is not None and holder != follows:
            raise DirectoryError(f"{path} is in use by a running process (pid {holder})")
        place.unlink()


def _holder(path: str) -> int | None:
    """Return the pid of the process that listens at ``path``, 0 if it is unknown, None without one."""
    with closing(RawSocket(AF_UNIX, SOCK_STREAM)) as sock:
        sock.setblocking(False)
        error = sock.connect_ex(path)
        if error in (ECONNREFUSED, ENOENT):
            return None
        if error in (EAGAIN, EINPROGRESS):
            return 0  # a full backlog has a listener; the master must not wait for it, which may be stopped
        if error:
            raise OSError(error, os.strerror(error), path)
        return peer_of(sock)[0]


def _parse(line: bytes) -> tuple[str, dict[str, Any], bool]:
    """Return a request's command, its arguments, and whether it waits. Raises ValueError with a text for the client."""
    try:
        request = decode(line)
    except MessageError:
        raise ValueError("the request is not a JSON object on one line") from None
    command = request.get("command")
    if not isinstance(command, str) or command not in _ARGUMENTS:
        # The text holds what the client has sent, of any length.
        raise ValueError(f"unknown command {command!r}; accepted: one of {', '.join(_ARGUMENTS)}"[:400])
    arguments = {name: _argument(request, name, largest) for name, largest in _ARGUMENTS[command].items()}
    return command, arguments, _argument(request, "wait", None)


def _argument(request: Mapping[str, Any], name: str, largest: int | None) -> Any:
    """Return a number from 1 to ``largest``; without that, a flag, which may be missing. Raises ValueError."""
    value = request.get(name, False)
    if largest is None:
        if not isinstance(value, bool):
            raise ValueError(f"{name!r}: accepted: true or false")
    # True is an int, too.
    elif not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise ValueError(f"{name!r}: accepted: a number from 1 to {largest}")
    return value


# The arguments of each command, by name: a number with its largest value, or a flag.
_ARGUMENTS: Final[dict[str, dict[str, int | None]]] = {
    "status": {},
    "reload": {},
    "scale": {"count": _MOST_WORKERS},
    "retire": {"pid": 2**31 - 1},
    "upgrade": {},
    "stop": {"now": None},
    "trace": {"pid": 2**31 - 1},
    "reopen_logs": {},
}
