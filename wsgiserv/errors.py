"""The errors that cross module borders, each with what its catcher needs to know.

Owns: the exception classes and the exit status that each one means.
Must not know: anything else of wsgiserv (this is the lowest floor).
"""

from __future__ import annotations

__all__ = [
    "ApplicationError",
    "BootError",
    "ConfigError",
    "ProtocolError",
    "UnavailableError",
    "WsgiservError",
]


class WsgiservError(Exception):
    """Base of the errors that end a process with a message for a person instead of a traceback.

    ``exit_status`` is the status that the process ends with when nobody catches the error.
    """

    exit_status = 1


class ConfigError(WsgiservError):
    """Bad usage or configuration: nothing has been started (exit status 2).

    The message names the setting, the value, where the value came from, and what is accepted.
    """

    exit_status = 2


class UnavailableError(ConfigError):
    """The configuration names something that is not there, and that can come by itself (exit status 1).

    An address before its interface is up, a name before the resolver answers: the same start can succeed later, so a
    service manager is to try again.
    """

    exit_status = 1


class BootError(WsgiservError):
    """The workers cannot boot, for a reason that is not the application's import (exit status 3)."""

    exit_status = 3


class ApplicationError(WsgiservError):
    """The application cannot be loaded (exit status 4).

    Args:
        message: one paragraph: what was asked for, what was searched, near names.
        traceback: the user's own traceback as text, with wsgiserv's frames removed; empty when the
            failure did not happen inside the user's code.
    """

    exit_status = 4

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class ProtocolError(Exception):
    """The client broke the protocol or a limit: answer with ``status`` and close the connection.

    Args:
        status: the HTTP status code that the client gets, 400 to 599.
        reason: what was wrong, in words for the log and the response's body; never holds raw client bytes, and
            nothing of this host: no path, no error of the system.
        detail: what else is for the log alone.
        repeats: whether a client of that kind comes again and again, and the log is told now and then only.
    """

    def __init__(self, status: int, reason: str, detail: str = "", repeats: bool = False) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.detail = detail
        self.repeats = repeats
