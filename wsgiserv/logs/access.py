"""The access log: one line per request, buffered, written once per loop turn.

Owns: the buffer, the descriptor, what happens when it cannot be written; the way through the logging module
when the configuration asks for it.
Must not know: what a line looks like (formats), who flushes when (the worker).
"""

from __future__ import annotations

import errno
import logging
from _thread import allocate_lock
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from wsgiserv.logs.config import ACCESS_NAMES
from wsgiserv.logs.error import access_logger, cannot_open, warn_reliably
from wsgiserv.logs.files import log_files
from wsgiserv.logs.format import LogFunction, atoms_for, check_format, compile_format, template_of
from wsgiserv.logs.output import Output
from wsgiserv.privileges import owner_of
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = ["AccessLog", "borrowed_access_log", "open_access_file", "open_access_log"]

# Lines that wait for a disk or a pipe to take them again; beyond this they are counted and dropped.
_MOST_WAITING_BYTES = 1 << 20

_LINE_END = 10

# After an error other than a full pipe the next attempt is made this much later.
_RETRY_S = 1.0

# How long a flush waits for a reader that is catching up, and how much later one may wait again.
_PATIENCE_S = 0.05
_IMPATIENT_S = 1.0

# How long `close` waits for a reader that is behind.
_LAST_PATIENCE_S = 1.0

# No flush takes nearly as long: whoever waits for longer has interrupted the one that holds the lock (SIGABRT).
_LOCK_S = 1.0


class AccessLog:
    """A file or standard output that takes a line per request.

    ``log(environ, status, headers, sent_bytes, duration_s, aborted)`` buffers a line: the request's environ (it may
    lack any key when the request was refused), the status, the response's headers as sent, the body bytes
    that went out, the seconds it took, whether the response ended early. It may be called in any thread and never
    raises. Nothing is written until `flush`.

    Attributes:
        lost: how many lines have been lost so far.
    """

    __slots__ = (
        "_error_log",
        "_is_torn",
        "_lines",
        "_lock",
        "_output",
        "_patient_at",
        "_retry_at",
        "_unsaid",
        "_waiting",
        "_warned",
        "log",
        "lost",
    )

    log: LogFunction

    def __init__(self, output: Output, log_format: str, error_log: logging.Logger) -> None:
        self._output = output
        self._error_log = error_log
        self._lines: list[bytes] = []
        self._lock = allocate_lock()
        self._waiting = b""  # lines that could not be written yet; the first may have gone out in part
        self._is_torn = False
        self.lost = 0
        self._unsaid = 0  # lost, and not told yet
        self._warned = False
        self._patient_at = self._retry_at = 0.0  # time.monotonic()
        self.log = compile_format(log_format, self._lines.append)

    def append(self, line: str) -> None:
        """Buffer a line that is ready. Never raises."""
        self._lines.append(line.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Write all buffered lines, in one write if the kernel takes them. Never raises.

        Called by the worker once per loop turn. On a full disk or a full pipe the lines wait, up to 1 MiB.
        """
        if self._lines or self._waiting or self._unsaid:
            if not self._lock.acquire(True, _LOCK_S):
                return
            news = ""
            try:
                news = self._write(wait_s=0.0)
            except Exception:  # the stack is all but used up (sys.setrecursionlimit); the lines wait
                pass
            finally:
                self._lock.release()
            if news:
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
                self._lose(count)
        if self._retry_at and monotonic() < self._retry_at:
            return ""
        if self._waiting:
            done, error = self._output.write(self._waiting, wait_s)
            if done and error is not None and monotonic() >= self._patient_at:
                # There is a reader again: it gets the rest as fast as it reads, not once per turn.
                self._patient_at = monotonic() + _IMPATIENT_S
                more, error = self._output.write(self._waiting[done:], wait_s or _PATIENCE_S)
                done += more
            if error is not None:
                if done:
                    self._is_torn = self._waiting[done - 1] != _LINE_END
                    self._waiting = self._waiting[done:]
                return self._failed(error)
            self._waiting = b""
            self._is_torn = False
        return self._recovered()

    def lost_lines(self) -> int:
        """Return how many lines have been lost so far."""
        return self.lost

    def untold_lines(self) -> int:
        """Return how many of them the error log has not been told of."""
        return self._unsaid

    def waiting_lines(self) -> int:
        """Return how many lines wait to be written: they are lost if this process is killed."""
        return len(self._lines) + self._waiting.count(b"\n")

    def _lose(self, count: int) -> None:
        self.lost += count
        self._unsaid += count

    def _tell(self, news: str) -> None:
        """Tell it in the error log; where that loses it (it may be the same pipe) the next flush tells it again."""
        if news:
            # How many are lost is told when lines are written again.
            told = 0 if self._warned else self._unsaid
            self._unsaid -= told
            if not warn_reliably(self._error_log, news):
                self._unsaid += told
                self._warned = not self._warned

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
        if not self._warned and not self._unsaid:
            return ""
        self._warned = False
        return f"The access log is written again; {counted(self._unsaid, 'line', 'is', 'are')} lost."

    def reopen(self) -> None:
        """Open the file again under its name, after a rotation (USR1). Never raises."""
        with self._lock:
            news = self._write(wait_s=0.0)  # these lines belong to the old file
            failure = ""
            try:
                self._output.reopen()
            except OSError as error:
                path, reason = self._output.path, error.strerror
                failure = f"Cannot reopen the access log {path}, the old file stays in use: {reason}."
            else:
                self._begin_with_a_line()
            self._retry_at = 0.0
        self._tell(news)
        if failure:
            self._error_log.warning("%s", failure)

    def _begin_with_a_line(self) -> None:
        """The old file has got the beginning of a line: the new one is not to begin with its end."""
        if self._is_torn:
            self._is_torn = False
            self._waiting = self._waiting[self._waiting.find(b"\n") + 1 :]
            self._lose(1)

    def close(self, patience_s: float = _LAST_PATIENCE_S) -> None:
        """Write what is buffered, waiting ``patience_s`` seconds for a slow reader, and close the file."""
        with self._lock:
            self._retry_at = 0.0
            news = self._write(wait_s=patience_s)
            self._output.close()
            if self._waiting:
                self._lose(self._waiting.count(b"\n"))
                self._waiting = b""
                self._warned = False  # told now: nothing will be written again
                news = f"The access log cannot be written: {counted(self._unsaid, 'line', 'is', 'are')} lost."
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

    __slots__ = ("_atoms", "_direct", "_logger", "_template", "_warned_of_handler")

    def __init__(
        self, logger: logging.Logger, direct: AccessLog | None, log_format: str, error_log: logging.Logger
    ) -> None:
        self._logger = logger
        self._direct = direct
        self._error_log = error_log
        self._template = template_of(log_format)
        self._atoms = atoms_for(log_format)
        self._warned_of_handler = False
        self.lost = 0
        self.log = compile_format("json", self._emit) if log_format == "json" else self._log_template

    def _log_template(self, *exchange: Any) -> None:
        try:
            self._logger.info(self._template, self._atoms(*exchange))
        except (Exception, SystemExit) as error:
            self._warn(error)

    def _emit(self, line: bytes) -> None:
        try:
            self._logger.info("%s", line.decode())
        except (Exception, SystemExit) as error:
            self._warn(error)

    def _warn(self, error: BaseException) -> None:
        self.lost += 1
        if not self._warned_of_handler:
            self._warned_of_handler = True
            self._error_log.warning(
                "A handler or filter of the logger %s raised: %r", self._logger.name, error, exc_info=error
            )

    def append(self, line: str) -> None:
        """Log a line that is ready. Never raises."""
        try:
            self._logger.info("%s", line)
        except (Exception, SystemExit) as error:
            self._warn(error)

    def lost_lines(self) -> int:
        return self.lost + (self._direct.lost if self._direct is not None else 0)

    def untold_lines(self) -> int:
        return self._direct.untold_lines() if self._direct is not None else 0

    def waiting_lines(self) -> int:
        return self._direct.waiting_lines() if self._direct is not None else 0

    def flush(self) -> None:
        if self._direct is not None:
            self._direct.flush()

    def reopen(self) -> None:
        if self._direct is not None:
            self._direct.reopen()

    def close(self, patience_s: float = _LAST_PATIENCE_S) -> None:
        if self._direct is not None:
            self._direct.close(patience_s)

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
        output = Output(path, 1, owner_of(settings))
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


def access_log_path(settings: Settings) -> str | None:
    """Return the access log's file; None where it has none of ours. To be called after `open_error_log`."""
    configured = access_logger()
    path = settings.accesslog
    if not path or path == "-" or (configured is not None and configured.hasHandlers()):
        return None
    return path


def open_access_file(settings: Settings) -> None:
    """Open the access log's file for the workers to come. Called by the master, after `open_error_log`.

    Raises ConfigError naming accesslog.
    """
    path = access_log_path(settings)
    if path is None:
        return
    try:
        log_files.open(path, owner_of(settings))
    except OSError as error:
        raise cannot_open("accesslog", path, error) from error


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
            access.close(patience_s=0.0)  # the master waits for nobody
        for logger, handlers, level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
