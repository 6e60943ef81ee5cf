"""The names that gunicorn's logger has, for ``server.log`` and ``worker.log`` of hooks."""

from __future__ import annotations

import logging
from time import strftime
from typing import ClassVar

from wsgiserv.config.hook_config import HookConfig
from wsgiserv.logs.config import ACCESS_NAMES, ERROR_NAMES
from wsgiserv.logs.handlers import handlers_of
from wsgiserv.logs.plain import DATE_FORMAT, LINE_FORMAT
from wsgiserv.logs.shared import ACCESS, ERROR


class HookLog:
    """The names of gunicorn's ``Logger`` that a `logging.Logger` lacks, for ``server.log`` and ``worker.log``."""

    LOG_LEVELS: ClassVar[dict[str, int]] = {
        name: getattr(logging, name.upper()) for name in ("critical", "error", "warning", "info", "debug")
    }
    error_fmt, datefmt, access_fmt = LINE_FORMAT, DATE_FORMAT, "%(message)s"
    logfile = None

    @property
    def cfg(self) -> HookConfig | None:
        """The configuration as hooks see it."""
        return ERROR.cfg

    @property
    def error_log(self) -> logging.Logger:
        """The logger of the error log, under gunicorn's name."""
        return logging.getLogger(ERROR_NAMES[1])

    @property
    def access_log(self) -> logging.Logger:
        """The logger of the access log, under gunicorn's name."""
        return logging.getLogger(ACCESS_NAMES[1])

    @property
    def error_handlers(self) -> list[logging.Handler]:
        """The handlers of the error log."""
        return ERROR.handlers

    @property
    def access_handlers(self) -> list[logging.Handler]:
        """The handlers of the access log."""
        return ACCESS.handlers

    @property
    def loglevel(self) -> int:
        """The level of the error log."""
        return ERROR.level

    @property
    def access_log_enabled(self) -> bool:
        """Whether requests are logged."""
        return bool(handlers_of(self.access_log))

    def now(self) -> str:
        """Return the time as in the access log."""
        return strftime("[%d/%b/%Y:%H:%M:%S %z]")

    def close_on_exec(self) -> None:
        """Do nothing: no program that the application starts inherits a log."""
