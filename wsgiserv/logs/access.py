"""The access log: one line per request, buffered, written once per loop turn.

Owns: the buffer, the descriptor, what happens when it cannot be written; the way through the logging module
when the configuration asks for it.
Must not know: what a line looks like (formats), who flushes when (the worker).
"""

from __future__ import annotations

import errno
import logging
from _thread import allocate_lock
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from wsgiserv.logs.atoms import Atoms, LogFunction
from wsgiserv.logs.error import access_logger, cannot_open
from wsgiserv.logs.formats import check_format, compile_format, template_of
from wsgiserv.logs.jsonlines import json_line
from wsgiserv.logs.logconfig import ACCESS_NAMES
from wsgiserv.logs.output import Output, Owner

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = ["AccessLog", "borrowed_access_log", "open_access_log"]

# Lines that wait for a disk or a pipe to take them again; beyond this they are counted and dropped.
_MOST_WAITING_BYTES = 1 << 20

# After an error other than a full pipe the next attempt is made this much later.
_RETRY_S = 1.0

# How long `close` waits for a reader that is behind.
_LAST_PATIENCE_S = 1.0


class AccessLog:
    """A file or standard output that takes a line per request.

    ``log(environ, status, headers, sent_bytes, duration_s)`` buffers a line: the request's environ (it may
    lack any key when the request was refused), the status, the response's headers as sent, the body bytes
    that went out, the seconds it took. It may be called in any thread and never raises. Nothing is written
    until `flush`.
    """

    __slots__ = (
        "_error_log",
        "_format",
        "_lines",
        "_lock",
        "_lost",
        "_output",
        "_retry_at",
        "_waiting",
        "_warned",
        "log",
    )

    log: LogFunction

    def __init__(self, output: Output, log_format: str, error_log: logging.Logger) -> None:
        self._output = output
        self._error_log = error_log
        self._format = log_format
        self._lines: list[bytes] = []
        self._lock = allocate_lock()
        self._waiting = b""  # lines that could not be written yet
        self._lost = 0
        self._warned = False
        self._retry_at = 0.0  # time.monotonic()
        self.log = compile_format(log_format, self._lines.append)

    def append(self, line: str) -> None:
        """Buffer a line that is ready. Never raises."""
        self._lines.append(line.encode("utf-8", "backslashreplace"))

    def log_for(self, pid: int, environ: dict[str, Any], status: int, duration_s: float) -> None:
        """Buffer the line of a request that got no response, in the name of the worker ``pid``. Never raises."""
        if self._format == "json":
            self._lines.append(json_line(environ, status, (), 0, duration_s, pid))
        else:
            atoms = Atoms(environ, status, (), 0, duration_s)
            atoms["p"] = f"<{pid}>"
            self.append(template_of(self._format) % atoms)

    def flush(self) -> None:
        """Write all buffered lines, in one write if the kernel takes them. Never raises.

        Called by the worker once per loop turn. On a full disk or a full pipe the lines wait, up to 1 MiB.
        """
        if self._lines or self._waiting or self._lost:
            with self._lock:
                news = self._write(wait_s=0.0)
            self._tell(news)

    def _write(self, wait_s: float) -> str:
        """Write what there is; return what is to be told in the error log.

        Told by the caller when it no longer holds the lock: a handler of the error log may switch greenlets.
        """
        lines = self._lines
        count = len(lines)  # other threads may append while we work
        if count:
            fresh = b"\n".join(lines[:count]) + b"\n"
            del lines[:count]
            if len(self._waiting) + len(fresh) <= _MOST_WAITING_BYTES or not self._waiting:
                self._waiting += fresh
            else:
                self._lost += count
        if self._retry_at and monotonic() < self._retry_at:
            return ""
        if self._waiting:
            done, error = self._output.write(self._waiting, wait_s)
            self._waiting = self._waiting[done:]
            if error is not None:
                return self._failed(error)
        return self._recovered()

    def _tell(self, news: str) -> None:
        if news:
            self._error_log.warning("%s", news)

    def _failed(self, error: OSError) -> str:
        if error.errno == errno.EAGAIN:
            return ""  # the reader is behind: normal for a pipe, and the next turn tries again
        self._retry_at = monotonic() + _RETRY_S
        if self._warned:
            return ""
        self._warned = True
        where = self._output.path or "on standard output"
        return (
            f"The access log {where} cannot be written: {error.strerror}. Lines are kept up to "
            f"{_MOST_WAITING_BYTES >> 10} KiB, then dropped, until it can be written again."
        )

    def _recovered(self) -> str:
        self._retry_at = 0.0
        if not self._warned and not self._lost:
            return ""
        self._warned = False
        lost, self._lost = self._lost, 0
        return f"The access log is written again; {lost} lines are lost."

    def reopen(self) -> None:
        """Open the file again under its name, after a rotation (USR1). Never raises."""
        with self._lock:
            news = self._write(wait_s=0.0)  # these lines belong to the old file
            try:
                self._output.reopen()
            except OSError as error:
                path, reason = self._output.path, error.strerror
                news = f"Cannot reopen the access log {path}, the old file stays in use: {reason}."
            self._retry_at = 0.0
        self._tell(news)

    def close(self) -> None:
        """Write what is buffered, waiting a second for a slow reader, and close the file."""
        with self._lock:
            self._retry_at = 0.0
            news = self._write(wait_s=_LAST_PATIENCE_S)
            self._output.close()
            self._waiting = b""
        self._tell(news)

    def close_in_child(self) -> None:
        """Drop the lines and close the file. Called in a child of the application: its parent writes them."""
        self._lines.clear()
        self._waiting = b""
        self._output.close()


class _LinesToAccessLog(logging.Handler):
    """Takes what the application logs to `gunicorn.access` by itself into our access log."""

    def __init__(self, access_log: AccessLog) -> None:
        super().__init__()
        self._access_log = access_log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._access_log.append(record.getMessage())
        except Exception:
            self.handleError(record)


class _LoggerAccessLog(AccessLog):
    """Sends every request as a record through a logger that has handlers or filters of its own.

    A record's ``msg`` is the template and its ``args`` are the atoms, as with gunicorn, so people's filters
    and JSON formatters keep working. The price is several times that of the direct way.
    """

    __slots__ = ("_direct", "_logger", "_template", "_warned_of_handler")

    def __init__(
        self, logger: logging.Logger, direct: AccessLog | None, log_format: str, error_log: logging.Logger
    ) -> None:
        self._logger = logger
        self._direct = direct
        self._error_log = error_log
        self._format = log_format
        self._template = template_of(log_format)
        self._warned_of_handler = False
        self.log = compile_format("json", self._emit) if log_format == "json" else self._log_template

    def _log_template(
        self,
        environ: dict[str, Any],
        status: int,
        headers: Sequence[tuple[str, str]],
        sent_bytes: int,
        duration_s: float,
    ) -> None:
        try:
            self._logger.info(self._template, Atoms(environ, status, headers, sent_bytes, duration_s))
        except Exception as error:
            self._warn(error)

    def _emit(self, line: bytes) -> None:
        try:
            self._logger.info("%s", line.decode())
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned_of_handler:
            self._warned_of_handler = True
            self._error_log.warning(
                "A handler or filter of the logger %s raised: %r", self._logger.name, error, exc_info=error
            )

    def append(self, line: str) -> None:
        self._logger.info("%s", line)

    def log_for(self, pid: int, environ: dict[str, Any], status: int, duration_s: float) -> None:
        if self._format == "json":
            self._emit(json_line(environ, status, (), 0, duration_s, pid))
            return
        try:
            atoms = Atoms(environ, status, (), 0, duration_s)
            atoms["p"] = f"<{pid}>"
            self._logger.info(self._template, atoms)
        except Exception as error:
            self._warn(error)

    def flush(self) -> None:
        if self._direct is not None:
            self._direct.flush()

    def reopen(self) -> None:
        if self._direct is not None:
            self._direct.reopen()

    def close(self) -> None:
        if self._direct is not None:
            self._direct.close()

    def close_in_child(self) -> None:
        if self._direct is not None:
            self._direct.close_in_child()


def open_access_log(settings: Settings, error_log: logging.Logger) -> AccessLog | None:
    """Return the access log as the settings say, or None when there is none.

    To be called after `open_error_log`, which applies the logging configuration: when that gives
    `gunicorn.access` or `wsgiserv.access` handlers, lines go to them and `accesslog` is not opened.

    Raises ConfigError naming access_log_format (an unknown atom, say) or accesslog (a file that cannot be
    opened).
    """
    check_format(settings.access_log_format)
    loggers = [logging.getLogger(name) for name in ACCESS_NAMES]
    for logger in loggers:
        # What an earlier call (before a reload) has left there
        logger.handlers[:] = [h for h in logger.handlers if not isinstance(h, _LinesToAccessLog)]
    configured = access_logger()
    if configured is not None and configured.hasHandlers():
        return _LoggerAccessLog(configured, None, settings.access_log_format, error_log)
    path = settings.accesslog
    if not path:
        return None
    try:
        output = Output(path, 1, Owner(settings.user, settings.group))
    except OSError as error:
        raise cannot_open("accesslog", path, error) from error
    access_log = AccessLog(output, settings.access_log_format, error_log)
    filtered = None
    for logger in loggers:
        logger.addHandler(_LinesToAccessLog(access_log))
        logger.propagate = False
        logger.setLevel(logging.INFO)
        if logger.filters:
            filtered = logger
    if filtered is not None:
        # A configuration file has put a filter on it, such as one that drops health checks
        return _LoggerAccessLog(filtered, access_log, settings.access_log_format, error_log)
    return access_log


@contextmanager
def borrowed_access_log(settings: Settings, error_log: logging.Logger) -> Iterator[AccessLog | None]:
    """Open the access log for a few lines, and leave the loggers as they were. Called by the master.

    Raises ConfigError as `open_access_log` does.
    """
    loggers = [logging.getLogger(name) for name in ACCESS_NAMES]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    access = None
    try:
        access = open_access_log(settings, error_log)
        yield access
    finally:
        if access is not None:
            access.close()
        for logger, handlers, level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
