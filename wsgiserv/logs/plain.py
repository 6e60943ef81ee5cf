"""Makes lines in the error log's format without the logging module, which filters and factories of users can break."""

from __future__ import annotations

import logging
from os import getpid
from time import strftime, time
from types import TracebackType

from wsgiserv.logs.escape import escape_keeping_lines
from wsgiserv.logs.format import local_time
from wsgiserv.tracebacks import format_error
from wsgiserv.wording import counted

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

# gunicorn's, which log parsers expect. `plain_lines` follows both.
LINE_FORMAT = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
DATE_FORMAT = "[%Y-%m-%d %H:%M:%S %z]"

# getLevelName() would return the names that an application has given with addLevelName()
_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}


def timestamp() -> str:
    """Return the time in brackets. Unlike `logging`'s it cannot fail."""
    return strftime(DATE_FORMAT, local_time(time()))


def plain_lines(level: int, message: str, exc_info: ExcInfo | BaseException | None = None) -> str:
    """Return the lines of a record, with its traceback and the line end."""
    line = f"{timestamp()} [{getpid()}] [{_LEVELS.get(level, level)}] {message}"
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if error is not None and issubclass(type(error), BaseException):
        line += f"\n{format_error(error)}"
    return f"{escape_keeping_lines(line)}\n"


def loss_line(count: int, log: str = "log") -> bytes:
    """Return the line that tells how many messages are lost."""
    lost = counted(count, "message", "is", "are")
    text = f"WS1800 {log}: could not be written for a while: {lost} lost"
    return plain_lines(logging.WARNING, text).encode()


def safe_repr(value: object) -> str:
    """Return ``repr(value)``; its type if that raises."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} without a repr>"
