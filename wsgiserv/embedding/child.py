"""Runs the server of a `wsgiserv.Server` in its child process."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import IO, Any, Final

from wsgiserv.errors import ConfigError, WsgiservError
from wsgiserv.library_first import LibraryFirst
from wsgiserv.unpatched import originals

with LibraryFirst(), originals():
    from wsgiserv.cli import catch_signals, is_stop, patch_for_gevent, run_reporting, serve
    from wsgiserv.embedding.arguments import Arguments
    from wsgiserv.master.program import Program, ProgramLine
    from wsgiserv.preimport import import_server

_FUNCTION: Final = "wsgiserv.Server"
# The settings that make no sense in a child of a program.
_REFUSED: Final = {
    "daemon": "the server runs in the background of this program, and ends with it",
    "check_config": "it ends a command",
    "print_config": "it ends a command",
}
# wsgiservctl finds servers by their control sockets: one of a test is not to come between an operator and a service.
_DEFAULTS: Final = {"control_socket_disable": True}


def main(payload: IO[bytes], channel: int, parent: int) -> int:
    """Run the server in a fresh interpreter; return its exit status.

    Args:
        payload: the pickled arguments: the application's name and the settings.
        channel: the descriptor of the line to the program.
        parent: the process id of the program.
    """
    os.setsid()
    line = ProgramLine(channel, parent)
    with payload:
        data = payload.read()
    try:
        app, settings = pickle.loads(data)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        problem = ConfigError(
            f"WS1921 the arguments of {_FUNCTION} cannot be read in the child process: {text}. Accepted for an "
            "application given by its name: functions and classes of modules that can be imported there; or use config="
        )
        return _end(line, problem)
    return run_child(line, app, settings, patch_for_gevent, lambda: None)


def run_child(
    line: ProgramLine,
    app: object,
    settings: Mapping[str, object],
    before_gevent: Callable[[], None] | None,
    in_child: Callable[[], object],
) -> int:
    """Serve; tell the program the end; return the exit status.

    Args:
        line: the line to the program.
        app, settings: the arguments of `Server`.
        before_gevent: as of `wsgiserv.config.loader.collect`.
        in_child: called in each forked process of the server.
    """
    pid = os.getpid()
    try:
        status = run_reporting(lambda _: _serve(line, app, settings, before_gevent, in_child))
    except WsgiservError as error:
        return _end(line, error)
    except KeyboardInterrupt as interrupt:
        if os.getpid() != pid or not is_stop(interrupt):
            raise
        status = 0
    line.tell({"event": "end", "status": status})
    return status


def _serve(
    line: ProgramLine,
    app: object,
    settings: Mapping[str, object],
    before_gevent: Callable[[], None] | None,
    in_child: Callable[[], object],
) -> int:
    catch_signals()
    with originals():
        import_server()
    arguments = Arguments(app, settings, _FUNCTION, _REFUSED)
    read = partial(arguments.read, before_gevent=before_gevent, program=_DEFAULTS)
    program = Program(in_child, line, upgrades=False)
    return serve(read, arguments.environment, None, program=program)


def _end(line: ProgramLine, error: WsgiservError) -> int:
    kinds: list[Any] = [type(error).__name__]
    line.tell(
        {
            "event": "end",
            "status": int(error.exit_status),
            "kind": kinds[0],
            "faults": list(error.faults),
            "traceback": error.traceback,
        }
    )
    return error.exit_status
