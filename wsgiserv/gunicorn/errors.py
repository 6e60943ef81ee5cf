"""The exceptions of gunicorn that programs raise and catch."""

from __future__ import annotations


class HaltServer(BaseException):
    """The server is to end.

    Attributes:
        reason: why, for a person.
        exit_status: the status to exit with.
    """

    def __init__(self, reason: str, exit_status: int = 1) -> None:
        super().__init__(reason, exit_status)
        self.reason = reason
        self.exit_status = exit_status


class ConfigError(Exception):
    """The configuration cannot be used."""


class AppImportError(Exception):
    """The application cannot be loaded."""
