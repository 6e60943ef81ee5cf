"""Defines the exceptions that cross module borders, and the exit statuses of the server's processes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class ExitStatus(IntEnum):
    """The statuses that the master and its workers exit with; docs/signals.md lists them for operators."""

    OK = 0  # stopped as told
    FAILURE = 1  # the server's fault, or a cause that can go away: the same start may succeed later
    # The one status after which a service manager need not try again (systemd: RestartPreventExitStatus=2).
    CONFIG = 2  # wrong usage or configuration
    BOOT = 3  # the workers cannot boot
    APPLICATION = 4  # the application cannot be loaded
    INTERRUPTED = 130  # by Ctrl-C before the server started: 128 + SIGINT, as a shell reports it


class WsgiservError(Exception):
    """Base of the errors that end a process with a message for a person instead of a traceback.

    Args:
        faults: the messages; their lines are the error's text.

    Attributes:
        exit_status: the status that the process exits with when the error is not caught.
        traceback: the user's own traceback as text, with wsgiserv's frames removed; empty when the failure did not
            happen inside the user's code.
    """

    exit_status = ExitStatus.FAILURE
    traceback = ""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class ConfigError(WsgiservError, ValueError):
    """Wrong usage or configuration: nothing has been started (exit status 2).

    Each fault names the setting, the value, its source, and what is accepted.
    """

    exit_status = ExitStatus.CONFIG

    @staticmethod
    def of(errors: Sequence[ConfigError]) -> ConfigError:
        """Return one error with the faults of all of ``errors``, at least one; a single one stays as it is."""
        if len(errors) == 1:
            return errors[0]
        return ConfigError(*[fault for error in errors for fault in error.faults])


class UnavailableError(ConfigError):
    """The configuration names something that is not there, and that can come by itself (exit status 1).

    An address before its interface is up, a name before the resolver answers: the same start can succeed later, so a
    service manager is to try again.
    """

    exit_status = ExitStatus.FAILURE


class BootError(WsgiservError):
    """The workers cannot boot, for a reason that is not the application's import (exit status 3)."""

    exit_status = ExitStatus.BOOT


class ApplicationError(WsgiservError):
    """The application cannot be loaded (exit status 4).

    Args:
        message: one paragraph: what was asked for, what was searched, near names.
        traceback: as in `WsgiservError`.
    """

    exit_status = ExitStatus.APPLICATION

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
        super().__init__(status, reason)  # not the detail: it may hold paths, and args are printed
        self.status = status
        self.reason = reason
        self.detail = detail
        self.repeats = repeats
