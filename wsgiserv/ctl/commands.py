"""The command ``wsgiservctl``: ask a running server over its control socket.

Owns: its arguments, finding the server, what the terminal is told, the exit statuses.
Must not know: the master; only the protocol (docs/control.md) and where the sockets are.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from wsgiserv import __version__
from wsgiserv.ctl.format import report, server_line
from wsgiserv.ipc import MessageError, decode, encode, peer_of
from wsgiserv.logs.escape import escape, escape_keeping_lines
from wsgiserv.runtime_dir import directories_to_search, socket_name
from wsgiserv.wording import counted

__all__ = ["main"]

EXIT_OK = 0  # done
EXIT_NO = 1  # the server says no, the reload or upgrade has failed, or there was no answer in time
EXIT_USAGE = 2  # wrong usage, or no server was found
_EXIT_INTERRUPTED = 130

# How long an answer may take that nobody has to wait for: the master is never busy for long.
_ANSWER_S = 10.0
_TRACE_S = 30.0
_STATE_S = 2.0
_LISTENS = 0x10000  # __SO_ACCEPTCON in the Flags of /proc/net/unix


class _Failure(Exception):
    """Ends the command with a message and a status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Server(NamedTuple):
    """A server that has been found: the connection to it, its socket's path and its process id (0: unknown)."""

    connection: socket.socket
    path: str
    pid: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 done, 1 not done (with the reason), 2 wrong usage or no server.

    Args:
        argv: the arguments without the program's name; None takes them from ``sys.argv``.
    """
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as ended:  # argparse has printed the help, or what was wrong
        return int(ended.code or 0)
    try:
        return _run(arguments)
    except _Failure as failure:
        print(f"wsgiservctl: {failure}", file=sys.stderr)
        return failure.status
    except BrokenPipeError:  # of the output: wsgiservctl status | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        print("wsgiservctl: no longer waiting; what was asked for goes on", file=sys.stderr)
        return _EXIT_INTERRUPTED


# ---- arguments -----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"wsgiservctl: {message}. Type 'wsgiservctl --help' for the commands.", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


_EPILOG = """\
exit status: 0 done; 1 the server says no, or the reload or upgrade has failed (the reason is printed);
2 wrong usage, or no server found
"""


def _parser() -> argparse.ArgumentParser:
    # In front of the command and behind it; without a default of the latter, which would undo the former.
    where = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = where.add_argument_group("which server (without any: the only one of this user)")
    group.add_argument("--pid", type=_positive, metavar="PID", help="the master's process id")
    group.add_argument("--pidfile", metavar="FILE", help="the server's pid file")
    group.add_argument("--socket", metavar="PATH", help="its control socket")
    group.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"how long to wait for the answer (default: {_ANSWER_S:g}; with --wait: as long as it takes)",
    )
    parser = _Parser(
        prog="wsgiservctl",
        description="Control a running wsgiserv.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[where],
        allow_abbrev=False,
    )
    parser.add_argument(
        "-v", "--version", action="version", version=f"wsgiservctl {__version__}", help="print the version"
    )
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser, title="commands"
    )

    def add(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help, parents=[where], allow_abbrev=False)

    def waits(command: argparse.ArgumentParser, until: str) -> None:
        command.add_argument("--wait", action="store_true", help=f"wait until {until}")

    add("status", "show the server and its workers").add_argument(
        "--json", action="store_true", help="as JSON"
    )
    waits(
        add("reload", "read configuration and code again, and replace the workers"),
        "the new workers serve; 1 if they cannot, or the server stops",
    )
    scale = add("scale", "change the number of workers, until the next reload")
    scale.add_argument("count", type=_positive, metavar="N")
    waits(scale, "so many serve; 1 if another number is wanted meanwhile")
    retire = add("retire", "replace one worker")
    retire.add_argument("worker", type=_positive, metavar="PID")
    waits(retire, "it has left; 1 if its successor cannot boot")
    waits(
        add("upgrade", "start the next master with new code; this one leaves when that serves"),
        "the next master serves; 1 if it cannot",
    )
    stop = add("stop", "finish the requests under way, and stop")
    stop.add_argument("--now", action="store_true", help="do not finish them")
    waits(stop, "the server has ended")
    trace = add("trace", "show what a worker is doing: its stacks and the requests in flight")
    trace.add_argument("worker", type=_positive, metavar="PID")
    add("reopen-logs", "open the logs anew, after they have been rotated")
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0")
    return seconds


# ---- the commands --------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    command: str = arguments.command.replace("-", "_")
    wait: bool = getattr(arguments, "wait", False)
    request: dict[str, Any] = {"command": command, "wait": wait}
    if command == "scale":
        request["count"] = arguments.count
    elif command in ("retire", "trace"):
        request["pid"] = arguments.worker
        request["wait"] = wait or command == "trace"
    elif command == "stop":
        request["now"] = arguments.now
    usual = None if wait else _TRACE_S if command == "trace" else _ANSWER_S
    timeout: float | None = getattr(arguments, "timeout", usual)
    end = None if timeout is None else time.monotonic() + timeout

    server = _find(arguments)
    # Before it is asked: afterwards the number may be another process's.
    process = _process(server.pid) if command == "stop" and wait else None
    try:
        reply = _ask(server, request, end, timeout)
        if not reply["ok"]:
            reason = escape_keeping_lines(str(reply.get("error", "")).rstrip())
            raise _Failure(f"{arguments.command}: {reason}", EXIT_NO)
        if process is not None:
            _wait_for_end(process, server.pid, end, timeout)
    finally:
        if process is not None:
            os.close(process)
    if command == "status":
        status = reply["status"]
        print(json.dumps(status, indent=2) if arguments.json else report(status))
    else:
        print(_said(command, request, str(reply.get("reason", "")).rstrip()))
    return EXIT_OK


def _said(command: str, request: Mapping[str, Any], reason: str) -> str:
    """Return what is told of something that is done, or has begun."""
    reason = escape_keeping_lines("" if reason == "accepted" else reason)
    if command == "trace":
        return reason
    begun = f"the {command} has begun; {command} --wait, or status, says how it has ended"
    done = {
        "reload": "reloaded" if request["wait"] else begun,
        "upgrade": "upgraded" if request["wait"] else begun,
        "stop": "stopped" if request["wait"] else "the server stops",
        "scale": counted(
            request.get("count", 0),
            "worker",
            *(("serves", "serve") if request["wait"] else ("is wanted", "are wanted")),
        ),
        "retire": f"worker {request.get('pid')} {'has been' if request['wait'] else 'is to be'} replaced",
        "reopen_logs": "logs reopened",
    }[command]
    if not reason or command in ("stop", "reopen_logs"):
        return done
    return f"{done}: {reason}" if request["wait"] and command in ("reload", "upgrade") else reason


def _ask(
    server: _Server, request: Mapping[str, Any], end: float | None, timeout: float | None
) -> dict[str, Any]:
    """Send the request and return the reply. Raises _Failure."""
    command = str(request["command"]).replace("_", "-")
    received = b""
    with server.connection as connection:
        try:
            connection.settimeout(_ANSWER_S)
            try:
                connection.sendall(encode(dict(request)))
            except BrokenPipeError:
                pass  # refused unheard: the reply says why
            while not received.endswith(b"\n"):
                connection.settimeout(None if end is None else max(end - time.monotonic(), 0.001))
                data = connection.recv(65536)
                if not data:
                    break
                received += data
        except TimeoutError:
            raise _Failure(_too_late(request, server.pid, timeout), EXIT_NO) from None
        except OSError as error:
            if not received.endswith(b"\n"):
                raise _Failure(f"{command}: {server.path}: {error.strerror}", EXIT_NO) from None
    try:
        reply = decode(received)
        if isinstance(reply["ok"], bool) and (command != "status" or not reply["ok"] or reply["status"]):
            return dict(reply)
    except (MessageError, KeyError):
        pass
    if not received and command == "stop":
        return {"ok": True}  # it has stopped
    if not received:
        raise _Failure(
            f"{command}: the server has ended, or has hung up, without an answer. Its log says why", EXIT_NO
        )
    raise _Failure(f"what listens at {server.path} is no wsgiserv: {escape(repr(received[:80]))}", EXIT_USAGE)


def _too_late(request: Mapping[str, Any], pid: int, timeout: float | None) -> str:
    command = str(request["command"]).replace("_", "-")
    which = f"--pid {pid} " if pid else ""
    if request["wait"] and command != "trace":
        return f"{command}: not done after {timeout:g} s; it goes on. Type: wsgiservctl {which}status"
    return f"{command}: no answer within {timeout:g} s. The master is stopped or very busy; see its log" + (
        f", and: ps -o pid,stat,wchan,args -p {pid}" if pid else ""
    )


def _process(pid: int) -> int | None:
    """Return a descriptor of the process that tells when it has ended (pidfd_open(2)); None if there is none."""
    try:
        return os.pidfd_open(pid) if pid else None
    except (AttributeError, OSError):
        return None


def _wait_for_end(process: int, pid: int, end: float | None, timeout: float | None) -> None:
    poller = select.poll()
    poller.register(process, select.POLLIN)
    left_s = None if end is None else max(end - time.monotonic(), 0.0) * 1000
    if not poller.poll(left_s):
        raise _Failure(
            f"stop: pid {pid} still runs after {timeout:g} s. Type: wsgiservctl --pid {pid} stop --now",
            EXIT_NO,
        )


# ---- finding the server --------------------------------------------------------------------------------


def _find(arguments: argparse.Namespace) -> _Server:
    """Return a connection to the server that is meant. Raises _Failure."""
    given = [name for name in ("pid", "pidfile", "socket") if getattr(arguments, name, None) is not None]
    if len(given) > 1:
        raise _Failure(f"--{given[0]} and --{given[1]} name a server each; give one of them", EXIT_USAGE)
    if not given:
        return _only_one()
    if given == ["socket"]:
        return _connect_or_fail(arguments.socket)
    if given == ["pid"]:
        return _of_pid(arguments.pid, f"--pid {arguments.pid}")
    return _of_pid(_pid_in(arguments.pidfile), f"--pidfile {arguments.pidfile}")


def _pid_in(path: str) -> int:
    try:
        text = Path(path).read_text(errors="replace")[:64].strip()
    except OSError as error:
        raise _Failure(
            f"--pidfile {path}: {error.strerror}. Expected the file of the server's setting pidfile; or give --pid",
            EXIT_USAGE,
        ) from None
    try:
        return _positive(text)
    except argparse.ArgumentTypeError:
        raise _Failure(
            f"--pidfile {path}: it does not hold a process id but {text[:40]!r}", EXIT_USAGE
        ) from None


def _of_pid(pid: int, given: str) -> _Server:
    paths = [f"{directory}/{socket_name(pid)}" for directory in _directories()]
    refusal = ""
    for path in dict.fromkeys([*paths, *_listening(socket_name(pid))]):
        try:
            server = _connect_in(*os.path.split(path)) if path in paths else _connect(path)
        except PermissionError as error:
            # It may be a directory that is nothing to us: the server can still be in the next.
            refusal = refusal or f"{path}: {error.strerror}"
            continue
        except OSError:
            continue
        # A container's master has another number here than it has given its socket.
        if server.pid in (0, pid) or path.endswith(f"/{socket_name(pid)}"):
            return server
        server.connection.close()
    # A directory that this user may not look into tells nothing of a server that is this user's own, or has ended.
    if refusal and os.geteuid() != 0 and _may_be_anothers(pid):
        raise _Failure(
            f"{given}: {refusal}. The server is another user's: type sudo wsgiservctl --pid {pid} ...",
            EXIT_USAGE,
        )
    if not Path("/proc").exists() or Path(f"/proc/{pid}").exists():
        raise _Failure(
            f"{given}: process {pid} has no control socket in {', '.join(_directories()) or 'any directory'}. If it "
            "is a wsgiserv with the setting control_socket, type: wsgiservctl --socket PATH; if it has none, send "
            f"signals (kill -HUP {pid})",
            EXIT_USAGE,
        )
    raise _Failure(
        f"{given}: there is no process {pid}: the server has ended. Type 'wsgiservctl status' to find a running one",
        EXIT_USAGE,
    )


def _may_be_anothers(pid: int) -> bool:
    """Tell whether a process can be another user's: not one that has ended, or that is of this user."""
    try:
        os.kill(pid, 0)  # sends nothing
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _only_one() -> _Server:
    found = list(_running())
    if len(found) == 1:
        return found[0]
    states = {server: _state(server) for server in found}
    left = [server for server, state in states.items() if state != "stopping"]
    if "upgrading" in states.values():
        left = [server for server in left if states[server] != "starting"]
    if len(left) == 1:  # the others are the masters before and after this one
        return _connect_or_fail(left[0].path)
    if found:
        lines = "".join(
            f"\n  --pid {server.pid:<8} {state + ': ' if state else ''}{server_line(server.pid)}"
            for server, state in states.items()
        )
        raise _Failure(f"several servers are running; say which:{lines}", EXIT_USAGE)
    raise _Failure(
        f"no running server of user id {os.geteuid()} has a control socket in "
        f"{', '.join(_directories()) or 'any directory'}. Start one (wsgiserv module:app), or say where it is: "
        "--pid, --pidfile or --socket",
        EXIT_USAGE,
    )


def _state(server: _Server) -> str:
    """Return what a server is doing; empty when it does not say. Its connection is used up."""
    try:
        reply = _ask(server, {"command": "status", "wait": False}, time.monotonic() + _STATE_S, _STATE_S)
        return escape(str(reply["status"]["server"]["state"]))
    except (_Failure, KeyError, TypeError):
        return ""


def _running() -> Iterator[_Server]:
    """Connect to each server in the directories. One that does not answer is told of, and ends no search."""
    silent: _Failure | None = None
    found = False
    for directory in _directories():
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue  # not ours to read, or gone meanwhile
        for name in names:
            stem = name.removesuffix(".sock")
            if stem == name or not (stem.isascii() and stem.isdigit()):
                continue
            try:
                server = _connect_in(directory, name)
            except _Failure as failure:
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


def _connect_in(directory: str, name: str) -> _Server:
    """Connect to a socket in a directory that is searched: to the owner's of the directory, or root's."""
    path = f"{directory}/{name}"
    if os.geteuid() == 0:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise PermissionError(errno.EPERM, "it is no socket")
        owners = {0, os.lstat(directory).st_uid}
    else:
        owners = {0, os.geteuid()}
    server = _connect(path)
    if peer_of(server.connection)[1] not in owners:
        server.connection.close()
        raise PermissionError(errno.EPERM, "what listens there is another user's")
    return server


def _directories() -> list[str]:
    return directories_to_search(os.environ, os.geteuid())


def _listening(name: str) -> Iterator[str]:
    """Yield the paths of listening sockets of this file name, wherever they are."""
    try:
        rows = Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]
    except OSError:
        return
    for row in rows:
        columns = row.split(maxsplit=7)
        if len(columns) == 8 and columns[7].endswith(f"/{name}") and int(columns[3], 16) & _LISTENS:
            yield columns[7]


def _connect_or_fail(path: str) -> _Server:
    try:
        return _connect(path)
    except FileNotFoundError:
        advice = "there is no such file. Without --socket the only running server is found"
    except ConnectionRefusedError:
        advice = "nobody listens there: the server has ended. Without --socket a running one is found"
    except PermissionError as error:
        advice = f"{error.strerror}. The server is another user's: type sudo wsgiservctl --socket {path} ..."
    except OSError as error:
        advice = f"{error.strerror or error}. Expected the server's control socket"
    raise _Failure(f"--socket {path}: {advice}", EXIT_USAGE)


def _connect(path: str) -> _Server:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(path)
        except BlockingIOError:  # unix(7): its queue of connections is full
            raise _Failure(
                f"{path}: its master does not answer. It is stopped or very busy; see its log", EXIT_NO
            ) from None
        pid, uid = peer_of(connection)
        # Somebody else's socket at a place where ours is expected gets no orders, and is not believed.
        if os.geteuid() not in (0, uid) and uid != 0:
            raise PermissionError(1, f"what listens there is of user id {uid}")
    except BaseException:
        connection.close()
        raise
    return _Server(connection, path, pid)


if __name__ == "__main__":
    sys.exit(main())
