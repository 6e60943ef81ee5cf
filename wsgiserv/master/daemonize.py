"""Daemonizes the server: the foreground process waits for the outcome of the start, and reports it on the terminal."""

from __future__ import annotations

import os
import sys
from os import _exit, close, dup2, pipe, setsid, umask, waitpid
from typing import NoReturn

from wsgiserv.errors import ApplicationError, BootError, ConfigError, UnavailableError, WsgiservError
from wsgiserv.ipc import MessageError, MessageReader, OutcomeWriter
from wsgiserv.process import flush_standard_streams, fork

_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_ERRORS = {error.__name__: error for error in (ConfigError, UnavailableError, BootError, ApplicationError)}


class Foreground(OutcomeWriter):
    """The daemon's line to the foreground process, which waits on the terminal.

    Attributes:
        is_silent: True when the daemon's standard streams are the null device. Before that, an error log on the
            standard error and the foreground process share a terminal.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.is_silent = False

    @property
    def is_awaited(self) -> bool:
        """True until the outcome is reported; never without a foreground process."""
        return self._fd >= 0

    def silence(self, *, keep_output: bool) -> None:
        """Point the standard descriptors to the null device.

        Args:
            keep_output: leave 1 and 2 alone: they go to the error log's file already (`capture_output`).
        """
        flush_standard_streams()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0,) if keep_output else (0, 1, 2):
            dup2(null, fd)
        if null > 2:  # else a standard stream was closed, and this took its number
            close(null)
        self.is_silent = True

    def started(self) -> None:
        """Report that the server serves: the foreground process exits with status 0."""
        self.tell({})

    def failed(self, error: WsgiservError) -> None:
        """Report why the server did not start: the foreground process prints it and exits with its status."""
        traceback = error.traceback if isinstance(error, ApplicationError) else ""
        is_news = self.is_awaited
        self.tell({"error": type(error).__name__, "message": str(error), "traceback": traceback})
        if is_news and not self.is_silent:
            # The foreground process prints the error on the same terminal.
            self.silence(keep_output=False)


def daemonize() -> Foreground:
    """Fork twice and return in the grandchild: in its own session, without a terminal, a child of init.

    The foreground process waits for the outcome. It exits with status 0, or raises the error that ended the start
    (ConfigError, BootError, ApplicationError), which the daemon has logged.
    """
    reader, writer = pipe()
    child = fork()
    if child:
        close(writer)
        try:
            waitpid(child, 0)  # of the session leader, which exits at once: it must not stay a zombie
            _await_outcome(reader)
        except KeyboardInterrupt:
            # The daemon goes on: the terminal's Ctrl-C does not reach it.
            print("wsgiserv: no longer waiting; the server goes on starting in the background", file=sys.stderr)
            sys.stderr.flush()
            _exit(_EXIT_INTERRUPTED)
    close(reader)
    setsid()
    if fork():
        _exit(0)  # a session leader could acquire a terminal again; the grandchild cannot
    umask(0o022)  # an operator's own mask must not decide who may read a daemon's files
    return Foreground(writer)


def _await_outcome(fd: int) -> NoReturn:
    try:
        outcome = MessageReader(fd).read_first()
    except MessageError as error:
        raise BootError(f"the server's report of its start is corrupt ({error}).") from None
    if outcome is None:
        raise BootError("the server ended while it was starting; the error log may say why.")
    if not outcome:
        # Not sys.exit(): the functions that a configuration file registered with atexit belong to the daemon now.
        flush_standard_streams()
        _exit(0)
    kind, message = outcome.get("error"), str(outcome.get("message"))
    if kind == "ApplicationError":
        raise ApplicationError(message, str(outcome.get("traceback")))
    raise _ERRORS.get(str(kind), BootError)(message)
