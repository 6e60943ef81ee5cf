"""`wsgiserv.run`: serves an application in this process, until the server is told to stop."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from wsgiserv.errors import WsgiservError
from wsgiserv.library_first import LibraryFirst
from wsgiserv.unpatched import originals

with LibraryFirst(), originals():
    from wsgiserv.cli import catch_signals, is_stop, run_reporting, serve
    from wsgiserv.embedding.arguments import Arguments
    from wsgiserv.embedding.process_state import end_child, kept_process_state, leave_program
    from wsgiserv.master.program import Program
    from wsgiserv.preimport import import_server
    from wsgiserv.process import is_armed

# The process ids of the programs in `run`; children inherit it.
_running: Final[set[int]] = set()


def run(app: str | Callable[..., Any], **settings: Any) -> None:
    """Serve an application in this process and in workers that it forks, until the server is told to stop.

    TERM stops it gracefully, INT (Ctrl-C) and QUIT at once; HUP reloads, as with the command. No command line is read.
    Settings come from, later ones first: the arguments, the file of ``config``, the environment (as for the command),
    the defaults.

    Args:
        app: the application, or its name as for the command: ``"module:app"``, ``"module:factory()"``. Only an
            application given by its name can be reloaded.
        settings: the settings of docs/settings.md by their names: ``bind="127.0.0.1:8000"``, ``workers=4``,
            ``timeout=30`` (seconds). None leaves a setting as it is. A configuration file is read only with
            ``config="wsgiserv.conf.py"``.

    Returns None when the server has stopped as told. The workers never leave this call: what stands behind it, and the
    exit handlers of the program, run once.

    Raises:
        ConfigError: a name or value is wrong (a ValueError), with the text of the command.
        ApplicationError: the application cannot be loaded.
        BootError: the workers cannot boot.
        RuntimeError: it was called outside of the main thread, in a worker, or while another one runs in this process.
    """
    _check_place()
    pid = os.getpid()
    arguments = Arguments(app, settings, "wsgiserv.run")
    try:
        with kept_process_state(arguments.environment):
            _running.add(pid)
            try:
                status = run_reporting(lambda old_master: _serve(arguments, old_master))
            except BaseException as error:
                if os.getpid() != pid:
                    end_child(error)
                raise
            finally:
                _running.discard(pid)
    except WsgiservError as error:
        if error.traceback:
            error.add_note(error.traceback.rstrip())
        raise
    except KeyboardInterrupt as interrupt:
        if not is_stop(interrupt):
            raise
        return
    if status:  # a bug, which the log tells
        raise RuntimeError(f"the server has ended with status {status}: see its log")


def _serve(arguments: Arguments, old_master: Any) -> int:
    if old_master is None:
        catch_signals()
    with originals():
        import_server()
    return serve(arguments.read, arguments.environment, old_master, program=Program(leave_program))


def _check_place() -> None:
    """Raise RuntimeError where no server can run."""
    if os.getpid() in _running:
        raise RuntimeError(
            "wsgiserv.run: another server runs in this process already. Give that one more addresses "
            '(bind=["127.0.0.1:8000", "127.0.0.1:8001"]), or start further ones by wsgiserv.Server'
        )
    if is_armed():
        raise RuntimeError(
            "wsgiserv.run was called in a process of a wsgiserv server: the module of the application, or a "
            f'configuration file, calls it when it is imported. Put the call under: if __name__ == "__main__":{_file()}'
        )
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f"wsgiserv.run was called in the thread {threading.current_thread().name!r}: only the main thread gets the "
            "signals that stop and reload a server. Call it there, or use wsgiserv.Server, which runs the server in a "
            "process of its own and may be started in any thread"
        )


def _file() -> str:
    """Return the place of the call, for a message."""
    frame: Any = sys._getframe()
    own = (__file__, sys.modules["wsgiserv"].__file__)
    while frame is not None and frame.f_code.co_filename in own:
        frame = frame.f_back
    return f" ({frame.f_code.co_filename}, line {frame.f_lineno})" if frame is not None else ""
