"""Finds a running server by its control socket, connects to it, and sends it a request (docs/control.md)."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from wsgiserv.ctl.format import server_line
from wsgiserv.ipc import MessageError, decode, encode, peer_of
from wsgiserv.logs.escape import escape
from wsgiserv.net.port_owner import listening_paths
from wsgiserv.runtime_dir import directories_to_search, socket_name

EXIT_OK = 0  # done
EXIT_FAILED = 1  # the server refuses, the reload or upgrade has failed, or there was no answer in time
EXIT_USAGE = 2  # wrong usage, or no server was found

# Enough for an answer that waits for nothing: the master is never busy for long.
ANSWER_S = 10.0
_STATE_S = 2.0


class Failure(Exception):
    """Ends the command with a message and a status."""

    def __init__(self, message: str, status: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.status = status


class Server(NamedTuple):
    """A running server.

    Attributes:
        connection: to its control socket.
        path: the socket's path.
        pid: its process id; 0 if the system does not tell.
    """

    connection: socket.socket
    path: str
    pid: int


def ask(server: Server, request: Mapping[str, Any], end: float | None, timeout: float | None) -> dict[str, Any]:
    """Send a request and return the reply.

    Args:
        server: its connection is closed afterwards.
        request: see docs/control.md.
        end: when to give up, by time.monotonic(); None waits without limit.
        timeout: the seconds until then, for the message.

    Raises Failure if there is no reply, or none of a wsgiserv.
    """
    command = str(request["command"]).replace("_", "-")
    received = b""
    with server.connection as connection:
        try:
            connection.settimeout(ANSWER_S)
            # EPIPE: refused unread; the reply tells the reason.
            with suppress(BrokenPipeError):
                connection.sendall(encode(dict(request)))
            while not received.endswith(b"\n"):
                # 0 would make the socket non-blocking.
                connection.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
                data = connection.recv(65536)
                if not data:
                    break
                received += data
        except TimeoutError:
            raise Failure(_too_late(command, request, server.pid, timeout), EXIT_FAILED) from None
        except OSError as error:
            # ECONNRESET behind a whole reply: the server closes without reading what it has refused.
            if not received.endswith(b"\n"):
                raise Failure(f"WS1900 {command}: {server.path}: {error.strerror}", EXIT_FAILED) from None
    with suppress(MessageError, KeyError):
        reply = decode(received)
        if isinstance(reply["ok"], bool) and (command != "status" or not reply["ok"] or reply["status"]):
            return reply
    if not received and command == "stop":
        return {"ok": True}  # it has stopped
    if not received:
        raise Failure(
            f"WS1901 {command}: the server has exited or closed the connection without an answer; see its log",
            EXIT_FAILED,
        )
    raise Failure(f"WS1902 {server.path} is no wsgiserv's control socket: its answer is {escape(repr(received[:80]))}")


def _too_late(command: str, request: Mapping[str, Any], pid: int, timeout: float | None) -> str:
    if request["wait"] and command != "trace":
        server = f"--pid {pid} " if pid else ""
        return f"WS1903 {command}: not done after {timeout:g} s; it goes on. Type: wsgiservctl {server}status"
    look = f", and: ps -o pid,stat,wchan,args -p {pid}" if pid else ""
    return f"WS1904 {command}: no answer within {timeout:g} s. The master is stopped or very busy; see its log" + look


# ---- by an option --------------------------------------------------------------------------------------


def find_server(pid: int | None = None, pidfile: str | None = None, path: str | None = None) -> Server:
    """Connect to a server.

    Args:
        pid: the master's process id.
        pidfile: a file that holds it.
        path: the control socket. Without any of the three, the only server of this user.

    Raises Failure if there is no such server, or more than one.
    """
    given = {"--pid": pid, "--pidfile": pidfile, "--socket": path}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise Failure(f"WS1905 {names[0]} and {names[1]} name a server each; give one of them")
    if path is not None:
        return _connect_or_fail(path)
    if pid is not None:
        return _of_pid(pid, f"--pid {pid}")
    if pidfile is not None:
        return _of_pid(_pid_in(pidfile), f"--pidfile {pidfile}")
    return _only_one()


def is_positive(text: str) -> bool:
    """Return True for a whole number from 1 on."""
    # At most nine digits: process ids end at 2**22, and int() of a very long text takes long.
    return text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0


def _pid_in(path: str) -> int:
    try:
        text = Path(path).read_text(errors="replace")[:64].strip()
    except OSError as error:
        raise Failure(
            f"WS1906 --pidfile {path}: {error.strerror}. Expected the file of the server's setting pidfile; or give "
            "--pid"
        ) from None
    if not is_positive(text):
        raise Failure(f"WS1907 --pidfile {path}: it does not hold a process id but {text[:40]!r}")
    return int(text)


def _of_pid(pid: int, given: str) -> Server:
    name = f"/{socket_name(pid)}"
    paths = [f"{directory}{name}" for directory in _directories()]
    # RuntimeDirectory= of a systemd unit: a directory not named in this command's environment.
    others = [path for path, _ in listening_paths() if path.endswith(name)]
    refusal = ""
    for path in dict.fromkeys([*paths, *others]):
        try:
            server = _connect_in(*os.path.split(path)) if path in paths else _connect(path, _trusted())
        except PermissionError as error:
            # It may be an unrelated directory: the server can still be in the next.
            refusal = refusal or f"{path}: {error.strerror}"
            continue
        except OSError:
            continue
        # A container's master has another number here than it has given its socket.
        if server.pid in (0, pid) or path.endswith(name):
            return server
        server.connection.close()
    # A directory that this user may not read tells nothing of this user's own servers, nor of one that has ended.
    if refusal and os.geteuid() != 0 and _may_be_anothers(pid):
        raise Failure(f"WS1908 {given}: {refusal}. The server is another user's: type sudo wsgiservctl --pid {pid} ...")
    if not Path("/proc").exists() or Path(f"/proc/{pid}").exists():
        raise Failure(
            f"WS1909 {given}: process {pid} has no control socket in {', '.join(_directories()) or 'any directory'}. "
            "If it is a wsgiserv with the setting control_socket, type: wsgiservctl --socket PATH; if it has none, "
            f"send signals (kill -HUP {pid})"
        )
    raise Failure(
        f"WS1910 {given}: there is no process {pid}: the server has ended. Type 'wsgiservctl status' to find a running "
        "one"
    )


def _may_be_anothers(pid: int) -> bool:
    """Return True if a process may be another user's, False if it is this user's or has ended."""
    try:
        os.kill(pid, 0)  # sends nothing
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def _connect_or_fail(path: str) -> Server:
    try:
        # With control_socket_mode a server answers other users: whoever owns the directory decides what lies there.
        return _connect(path, _trusted(), os.stat(os.path.dirname(os.path.abspath(path))).st_uid)
    except FileNotFoundError:
        advice = "there is no such file. Without --socket the only running server is found"
    except ConnectionRefusedError:
        advice = "no process listens there: the server has ended. Without --socket a running one is found"
    except PermissionError as error:
        advice = f"{error.strerror}. The server is another user's: type sudo wsgiservctl --socket {path} ..."
    except OSError as error:
        advice = f"{error.strerror or error}. Expected the server's control socket"
    raise Failure(f"WS1911 --socket {path}: {advice}")


# ---- by search -----------------------------------------------------------------------------------------


def _only_one() -> Server:
    found = list(_running())
    if len(found) == 1:
        return found[0]
    # A connection takes one request, so the chosen server gets a new one.
    states = {server: _state(server) for server in found}
    # During an upgrade the other masters are the ones before and after this one.
    left = [server for server, state in states.items() if state != "stopping"]
    if "upgrading" in states.values():
        left = [server for server in left if states[server] != "starting"]
    if len(left) == 1:
        return _connect_or_fail(left[0].path)
    if found:
        lines = "".join(
            f"\n  --pid {server.pid:<8} {state}{': ' if state else ''}{server_line(server.pid)}"
            for server, state in states.items()
        )
        raise Failure(f"WS1912 several servers are running; say which:{lines}")
    raise Failure(
        f"WS1913 no running server of user id {os.geteuid()} has a control socket in "
        f"{', '.join(_directories()) or 'any directory'}. Start one (wsgiserv module:app), or name it: "
        "--pid, --pidfile or --socket"
    )


def _state(server: Server) -> str:
    """Return the state of a server; empty if it does not tell. Its connection is used up."""
    try:
        reply = ask(server, {"command": "status", "wait": False}, time.monotonic() + _STATE_S, _STATE_S)
        return escape(str(reply["status"]["server"]["state"]))
    except (Failure, KeyError, TypeError):
        return ""


def _running() -> Iterator[Server]:
    """Connect to each server in the directories; go on after one that does not answer, and print the failure."""
    # A stopped master must not make the others unreachable, nor be left out in silence.
    silent: Failure | None = None
    found = False
    for directory in _directories():
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue  # not readable, or removed meanwhile
        for name in names:
            if not re.fullmatch(r"[0-9]+\.sock", name):
                continue
            try:
                server = _connect_in(directory, name)
            except Failure as failure:
                silent = failure
            except OSError:
                pass  # left behind by a server that was killed, or another user's
            else:
                found = True
                yield server
    if silent is not None:
        if not found:
            raise silent
        print(f"wsgiservctl: {silent}", file=sys.stderr)


def _directories() -> list[str]:
    return directories_to_search(os.environ, os.geteuid())


def _trusted() -> int | None:
    # Root names a server of any user's by its path.
    return os.geteuid() or None


def _connect_in(directory: str, name: str) -> Server:
    """Connect to a socket in a searched directory. Raises PermissionError if neither its owner nor root listens."""
    path, owner = f"{directory}/{name}", os.geteuid()
    if owner == 0:
        # In another user's directory a link could lead root to any socket of the system.
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise PermissionError(errno.EPERM, "it is no socket")
        owner = os.lstat(directory).st_uid
    return _connect(path, owner)


def _connect(path: str, owner: int | None, other: int = 0) -> Server:
    """Connect to a socket. Raises PermissionError if none of two users nor root listens; None trusts all users."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        # connect(2) itself would wait for room in the queue of a master that is stopped.
        connection.settimeout(ANSWER_S)
        connection.connect(path)
        pid, uid = peer_of(connection)
        # Another user may have put a socket at this place: it must get no orders, and is not believed.
        if owner is not None and uid not in (0, owner, other):
            raise PermissionError(errno.EPERM, f"user id {uid} listens there")
    except BaseException as error:
        connection.close()
        if isinstance(error, BlockingIOError):  # unix(7): its queue of connections is full
            message = f"WS1914 {path}: its master does not answer. It is stopped or very busy; see its log"
            raise Failure(message, EXIT_FAILED) from None
        raise
    return Server(connection, path, pid)
