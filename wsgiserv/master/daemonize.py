"""Going into the background, with the terminal told how it went.

Owns: the double fork, the pipe over which the process in front learns the outcome, the standard descriptors.
Must not know: what is being started.
"""

from __future__ import annotations

import os
import sys
from os import _exit, close, dup2, pipe, setsid, umask, waitpid
from typing import NoReturn

from wsgiserv.errors import ApplicationError, BootError, ConfigError, UnavailableError, WsgiservError
from wsgiserv.ipc import MessageError, MessageReader, OutcomeWriter
from wsgiserv.process import flush_standard_streams, fork

__all__ = ["Foreground", "daemonize", "silence_standard_streams"]

_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_ERRORS = {error.__name__: error for error in (ConfigError, UnavailableError, BootError, ApplicationError)}


class Foreground(OutcomeWriter):
    """The background process's line to the process in front, which waits on the terminal."""

    def started(self) -> None:
        """All is up: the process in front exits with status 0."""
        self.tell({})

    def failed(self, error: WsgiservError) -> None:
        """It did not start: the process in front says why and exits with the error's status."""
        traceback = error.traceback if isinstance(error, ApplicationError) else ""
        self.tell({"error": type(error).__name__, "message": str(error), "traceback": traceback})


def daemonize() -> Foreground:
    """Fork twice and go on in the grandchild: a session of its own, no terminal, its parent is init.

    Returns in the grandchild only. The process in front stays until it is told the outcome; then it exits
    with status 0, or raises the error that ended the start (as ConfigError, BootError or ApplicationError).
    """
    reader, writer = pipe()
    child = fork()
    if child:
        close(writer)
        try:
            waitpid(child, 0)
            _await_outcome(reader)
        except KeyboardInterrupt:
            # The server is another process, and is not told: a terminal's Ctrl-C does not reach it, either.
            print(
                "wsgiserv: no longer waiting; the server goes on starting in the background", file=sys.stderr
            )
            sys.stderr.flush()
            _exit(_EXIT_INTERRUPTED)
    close(reader)
    setsid()
    if fork():
        _exit(0)  # a session's leader could get a terminal again; the grandchild cannot
    umask(0o022)
    return Foreground(writer)


def _await_outcome(fd: int) -> NoReturn:
    try:
        outcome, _ = MessageReader(fd).read_first()
    except MessageError as error:
        raise BootError(f"the server's report of its start is corrupt ({error}).") from None
    if outcome is None:
        raise BootError("the server ended while it was starting; the error log may say why.")
    if not outcome:
        # Not sys.exit: what the configuration file registered with atexit belongs to the server now.
        flush_standard_streams()
        _exit(0)
    kind, message = outcome.get("error"), str(outcome.get("message"))
    if kind == "ApplicationError":
        raise ApplicationError(message, str(outcome.get("traceback")))
    raise _ERRORS.get(str(kind), BootError)(message)


def silence_standard_streams(*, keep_output: bool) -> None:
    """Point the standard descriptors to the null device.

    Args:
        keep_output: leave 1 and 2 alone: they go to the error log's file already (`capture_output`).
    """
    flush_standard_streams()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0,) if keep_output else (0, 1, 2):
        dup2(null, fd)
    if null > 2:
        close(null)
