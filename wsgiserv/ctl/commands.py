"""The command ``wsgiservctl``: sends requests to a running server over its control socket (docs/control.md)."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from wsgiserv import __version__
from wsgiserv.ctl.find import ANSWER_S, EXIT_FAILED, EXIT_OK, EXIT_USAGE, Failure, ask, find_server, is_positive
from wsgiserv.ctl.format import report
from wsgiserv.ipc import wait_for
from wsgiserv.logs.escape import escape_keeping_lines
from wsgiserv.wording import counted, did_you_mean, nearest

_EXIT_INTERRUPTED = 130
_TRACE_S = 30.0


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
    except Failure as failure:
        print(f"wsgiservctl: {failure}", file=sys.stderr)
        return failure.status
    except BrokenPipeError:  # of the output: wsgiservctl status | head
        # Python's flush of stdout at the exit would fail again, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        # The request is with the server: an interrupt here cannot take it back.
        print("wsgiservctl: no longer waiting; the server goes on with the command", file=sys.stderr)
        return _EXIT_INTERRUPTED


# ---- arguments -----------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the usage, and a list of commands without the nearest one.
        mistyped = re.match("argument COMMAND: invalid choice: '([^']*)'", message)
        if mistyped:
            near = did_you_mean(nearest(mistyped[1], _COMMANDS, limit=1))
            message = f"{mistyped[1]!r} is not a command. {near}".rstrip()
        stop = "" if message[-1] in "?." else "."
        advice = "Type 'wsgiservctl --help' for the commands."
        print(f"wsgiservctl: WS1915 {message}{stop} {advice}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


_COMMANDS = ("status", "reload", "scale", "retire", "upgrade", "stop", "trace", "reopen-logs")
_EPILOG = """\
exit status: 0 done; 1 the server refuses, or the reload or upgrade has failed (the reason is printed);
2 wrong usage, or no server found
"""


def _parser() -> argparse.ArgumentParser:
    # Options before the command and after it. The latter have no defaults, which would undo the former.
    where = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = where.add_argument_group("which server (default: the only one of this user)")
    group.add_argument("--pid", type=_positive, metavar="PID", help="the master's process id")
    group.add_argument("--pidfile", metavar="FILE", help="the server's pid file")
    group.add_argument("--socket", metavar="PATH", help="its control socket")
    group.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"how long to wait for the answer (default: {ANSWER_S:g}; with --wait: as long as it takes)",
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

    def add(name: str, help: str, until: str = "") -> argparse.ArgumentParser:
        # Abbreviations would change their meaning with each new option.
        command = commands.add_parser(name, help=help, description=help, parents=[where], allow_abbrev=False)
        if until:
            command.add_argument("--wait", action="store_true", help=f"wait until {until}")
        return command

    status = add("status", "show the server and its workers")
    status.add_argument("--json", action="store_true", help="as JSON")
    add(
        "reload",
        "read configuration and code again, and replace the workers",
        "the new workers serve; exit status 1 if they cannot, or the server stops",
    )
    until = "N workers serve; exit status 1 if another number is set meanwhile"
    scale = add("scale", "change the number of workers, until the next reload", until)
    scale.add_argument("count", type=_positive, metavar="N")
    retire = add("retire", "replace one worker", "it has exited; exit status 1 if its replacement cannot boot")
    retire.add_argument("worker", type=_positive, metavar="PID")
    add(
        "upgrade",
        "start a new master with new code; this one exits when the new one serves",
        "the new master serves; exit status 1 if it cannot",
    )
    stop = add("stop", "finish the requests in flight, and stop", "the server has exited")
    stop.add_argument("--now", action="store_true", help="do not finish the requests")
    trace = add("trace", "show the stacks of a worker and its requests in flight")
    trace.add_argument("worker", type=_positive, metavar="PID")
    add("reopen-logs", "open the log files again after a rotation")
    return parser


def _positive(text: str) -> int:
    # Not int() alone: it takes blanks, signs, underscores and other scripts' digits.
    if not is_positive(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # Neither inf nor nan, which poll(2) and settimeout() do not take.
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0")
    return seconds


# ---- the commands --------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    command: str = arguments.command.replace("-", "_")
    wait: bool = getattr(arguments, "wait", False)
    # Stacks take the worker a moment: their reply is the outcome in any case.
    request: dict[str, Any] = {"command": command, "wait": wait or command == "trace"}
    if command == "scale":
        request["count"] = arguments.count
    elif command in ("retire", "trace"):
        request["pid"] = arguments.worker
    elif command == "stop":
        request["now"] = arguments.now
    usual = None if wait else _TRACE_S if command == "trace" else ANSWER_S
    timeout: float | None = getattr(arguments, "timeout", usual)
    end = None if timeout is None else time.monotonic() + timeout

    server = find_server(*(getattr(arguments, name, None) for name in ("pid", "pidfile", "socket")))
    # Opened before the request: afterwards the number may be another process's.
    process = _process(server.pid) if command == "stop" and wait else None
    try:
        reply = ask(server, request, end, timeout)
        if not reply["ok"]:
            reason = escape_keeping_lines(str(reply.get("error", "")).rstrip())
            raise Failure(f"{arguments.command}: {reason}", EXIT_FAILED)
        if process is not None:
            # The reply comes when the master closes its socket; it exits a moment later.
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
    """Return the text for a command that is done, or has started."""
    # The text may quote a client's request line, which must not drive the terminal.
    reason = escape_keeping_lines("" if reason == "accepted" else reason)
    wait = request["wait"]
    if command == "trace":
        return reason
    started = f"{command} started; see the result with 'wsgiservctl status'"
    done = {
        "reload": "reloaded" if wait else started,
        "upgrade": "upgraded" if wait else started,
        "stop": "stopped" if wait else "the server is stopping",
        "scale": counted(
            request.get("count", 0), "worker", *(("serves", "serve") if wait else ("is wanted", "are wanted"))
        ),
        "retire": f"worker {request.get('pid')} {'has been' if wait else 'is to be'} replaced",
        "reopen_logs": "logs reopened",
    }[command]
    if not reason or command in ("stop", "reopen_logs"):
        return done
    # The server's own line about the other commands says more than ours.
    return f"{done}: {reason}" if wait and command in ("reload", "upgrade") else reason


def _process(pid: int) -> int | None:
    """Return a descriptor that becomes readable at the end of the process (pidfd_open(2)); None if there is none."""
    # Unlike kill(pid, 0) this sees the end even if the number is another process's at once.
    try:
        return os.pidfd_open(pid) if pid else None
    except (AttributeError, OSError):
        return None


def _wait_for_end(process: int, pid: int, end: float | None, timeout: float | None) -> None:
    if not wait_for(process, None if end is None else max(end - time.monotonic(), 0.0)):
        raise Failure(
            f"WS1916 stop: pid {pid} still runs after {timeout:g} s. Type: wsgiservctl --pid {pid} stop --now",
            EXIT_FAILED,
        )
