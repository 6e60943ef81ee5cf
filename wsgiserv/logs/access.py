"""The access log: one line per request, buffered, written once per loop turn; or a record for a configured logger."""

from __future__ import annotations

import errno
import logging
from _thread import allocate_lock
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError
from wsgiserv.logs.config import ACCESS_NAMES
from wsgiserv.logs.error import access_logger, opening, users_logger, warn_reliably
from wsgiserv.logs.files import log_files
from wsgiserv.logs.format import LogFunction, atoms_for, check_format, compile_format, json_line, template_of
from wsgiserv.logs.output import IMPATIENT_S, PATIENCE_S, RETRY_S, Output
from wsgiserv.logs.shared import ACCESS, SharedLogger, access_handler, begin_access_loggers, needs_records, share
from wsgiserv.logs.statsd import request_counter
from wsgiserv.privileges import acting_as, owner_of
from wsgiserv.scoreboard import RequestInFlight
from wsgiserv.wording import counted

# Lines kept until a disk or a pipe takes them again; lines beyond this are counted and dropped.
_MOST_WAITING_BYTES = 1 << 20

_LINE_END = 10

# How long `close` waits for a reader that is behind.
_LAST_PATIENCE_S = 1.0

# No flush takes nearly as long: a longer wait means that this code has interrupted the holder of the lock (SIGABRT).
_LOCK_S = 1.0


def _ignore(*exchange: Any) -> None:
    """Take a request that nothing logs."""


def _both(log: LogFunction, count: LogFunction) -> LogFunction:
    """Return a function that logs a request, and counts it."""

    def log_and_count(*exchange: Any) -> None:
        log(*exchange)
        count(*exchange)

    return log_and_count


class AccessLog:
    """Takes a line per request, for a file, standard output or a logger.

    Args:
        output: the destination of lines; None if requests go to ``logger`` alone.
        log_format: the setting access_log_format, checked.
        error_log: the error log.
        logger: gets each request as a record, while it has handlers or filters of a user's; None: never.
        is_configured: whether the logging configuration has given it handlers: then it gets all.
        users: the logger of `logger_class`, whose ``access`` is called in place of all that.
        counter: takes the fields of each `Exchange`, too (statsd); never raises.

    Attributes:
        log: buffers the line of an `Exchange`, whose fields it takes. Never raises; any thread may call it.
        lost: the number of lines lost so far.
        untold: how many of them the error log does not tell of yet.
    """

    log: LogFunction

    def __init__(
        self,
        output: Output | None,
        log_format: str,
        error_log: logging.Logger,
        logger: logging.Logger | None = None,
        is_configured: bool = False,
        users: Any = None,
        counter: LogFunction | None = None,
    ) -> None:
        self._output = output
        self._counter = counter
        self._error_log = error_log
        self._lines: list[bytes] = []
        self._lock = allocate_lock()
        self._waiting = b""  # lines that could not be written yet; the first may have gone out in part
        self._is_torn = False
        self.lost = self.untold = 0
        self._warned = False
        self._patient_at = self._retry_at = 0.0  # time.monotonic()
        self._always_records = is_configured or users is not None
        self._log_record = self._log_by(users) if users is not None else None
        if logger is not None:
            self._log_record = self._record_function(logger, log_format)
        self._log_line = compile_format(log_format, self._lines.append) if output is not None else _ignore
        self.look()

    def look(self) -> None:
        """Send requests through the logger while anything but this log listens there, else past it.

        Called at each change of the logger, and once a second: handlers can be changed behind the logger's back.
        """
        record = self._log_record
        log = record if record is not None and (self._always_records or needs_records()) else self._log_line
        self.log = log if self._counter is None else _both(log, self._counter)

    def _record_function(self, logger: logging.Logger, log_format: str) -> LogFunction:
        """Return the function that sends each request as a record through ``logger``."""
        # A record's ``msg`` is the template and its ``args`` are the atoms, as with gunicorn, so filters and JSON
        # formatters written for that keep working. This costs several times the direct way.
        template = template_of(log_format)
        values: Callable[..., Any] = atoms_for(log_format)
        if log_format == "json":
            template, values = "%s", lambda *exchange: json_line(*exchange).decode()
        warned = False

        def log(*exchange: Any) -> None:
            nonlocal warned
            try:
                logger.info(template, values(*exchange))
            except (Exception, SystemExit) as error:
                self.lost += 1
                if not warned:
                    warned = True
                    text = "WS1803 A handler or filter of the logger %s raised: %r"
                    self._error_log.warning(text, logger.name, error, exc_info=error)

        return log

    def _log_by(self, users: Any) -> LogFunction:
        """Return the function that has the logger of `logger_class` log each request."""
        from wsgiserv.logs.logger_class import call_access

        warned = False

        def log(*exchange: Any) -> None:
            nonlocal warned
            try:
                call_access(users, *exchange)
            except (Exception, SystemExit) as error:
                self.lost += 1
                if not warned:
                    warned = True
                    text = "WS1820 access of the logger class %s raised: its line is lost (said once per worker): %r"
                    self._error_log.warning(text, type(users).__qualname__, error, exc_info=error)

        return log

    def append(self, line: str) -> None:
        """Buffer a finished line. Never raises."""
        self._lines.append(line.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Write all buffered lines, in one write if the kernel takes them. Never raises.

        Called by the worker once per loop turn. On a full disk or a full pipe the lines wait, up to 1 MiB.
        """
        if (self._lines or self._waiting or self.untold) and self._lock.acquire(True, _LOCK_S):
            news, told = "", 0
            try:
                news, told = self._write(wait_s=0.0)
            except Exception:  # little stack is left (sys.setrecursionlimit); the lines wait
                pass
            finally:
                self._lock.release()
            self._tell(news, told)

    def _write(self, wait_s: float) -> tuple[str, int]:
        """Write the lines; return the news for the error log, or an empty text, and how many lost lines it tells."""
        # Told by the caller when it no longer holds the lock: a handler of the error log may switch greenlets.
        if self._output is None:
            return "", 0
        lines = self._lines
        count = len(lines)  # other threads may append meanwhile
        if count:
            fresh = b"\n".join(lines[:count]) + b"\n"
            del lines[:count]
            if len(self._waiting) + len(fresh) <= _MOST_WAITING_BYTES or not self._waiting:
                self._waiting += fresh
            else:
                self._lose(count)
        if self._retry_at and monotonic() < self._retry_at:
            return "", 0
        if self._waiting:
            done, error = self._output.write(self._waiting, wait_s)
            if done and error is not None and monotonic() >= self._patient_at:
                # There is a reader again: it gets the rest as fast as it reads, not once per turn.
                self._patient_at = monotonic() + IMPATIENT_S
                more, error = self._output.write(self._waiting[done:], wait_s or PATIENCE_S)
                done += more
            if error is not None:
                if done:
                    self._is_torn = self._waiting[done - 1] != _LINE_END
                    self._waiting = self._waiting[done:]
                return self._failed(error), 0  # they are told when lines are written again
            self._waiting = b""
            self._is_torn = False
        return self._recovered()

    def waiting_lines(self) -> int:
        """Return how many lines wait to be written: they are lost if this process is killed."""
        return len(self._lines) + self._waiting.count(b"\n")

    def _lose(self, count: int) -> None:
        self.lost += count
        self.untold += count

    def _tell(self, news: str, told: int) -> None:
        """Log ``news`` as a warning; if the error log loses it (it may be the same pipe) the next flush tells it."""
        if news and not warn_reliably(self._error_log, news):
            with self._lock:
                self.untold += told
                self._warned = not self._warned

    def _failed(self, error: OSError) -> str:
        if error.errno == errno.EAGAIN:
            return ""  # the reader is behind: normal for a pipe, and the next turn tries again
        self._retry_at = monotonic() + RETRY_S
        if self._warned:
            return ""
        self._warned = True
        where = (self._output.path if self._output else None) or "on standard output"
        return (
            f"WS1804 The access log {where} cannot be written: {error.strerror}. Lines are kept up to "
            f"{_MOST_WAITING_BYTES >> 10} KiB, then dropped, until it can be written again."
        )

    def _recovered(self) -> tuple[str, int]:
        self._retry_at = 0.0
        if not self._warned and not self.untold:
            return "", 0
        self._warned = False
        told, self.untold = self.untold, 0  # with the lock: another thread's flush must not tell them, too
        return f"WS1805 The access log is written again; {counted(told, 'line', 'is', 'are')} lost.", told

    def reopen(self) -> None:
        """Open the file again under its name, after a rotation (USR1). Never raises."""
        if self._output is None:
            return
        with self._lock:
            news, told = self._write(wait_s=0.0)  # these lines belong to the old file
            failure = None
            try:
                self._output.reopen()
                if self._is_torn:  # the old file has the beginning of the first line
                    self._is_torn = False
                    self._waiting = self._waiting[self._waiting.find(b"\n") + 1 :]
                    self._lose(1)
            except OSError as error:
                failure = error
            self._retry_at = 0.0
        # Without the lock: a handler of the error log may switch greenlets.
        self._tell(news, told)
        if failure is not None:
            text = "WS1806 Cannot reopen the access log %s; the old file stays in use: %s"
            self._error_log.warning(text, self._output.path, failure.strerror)

    def close(self, patience_s: float = _LAST_PATIENCE_S) -> None:
        """Write the buffered lines, waiting ``patience_s`` seconds for a slow reader, and close the file."""
        if self._output is None:
            return
        with self._lock:
            self._retry_at = 0.0
            news, told = self._write(wait_s=patience_s)
            self._output.close()
            if self._waiting:
                self._lose(self._waiting.count(b"\n"))
                self._waiting = b""
                self._warned = False  # told now: nothing will be written again
                told, self.untold = self.untold, 0
                news = f"WS1807 The access log cannot be written: {counted(told, 'line', 'is', 'are')} lost."
        self._tell(news, told)

    def close_in_child(self) -> None:
        """Drop the lines and close the file. Called in a child of the application: its parent writes them."""
        self._lines.clear()
        self._waiting = b""
        if self._output is not None:
            self._output.close()


def open_access_log(settings: Settings, error_log: logging.Logger) -> AccessLog | None:
    """Return the access log as the settings say, or None if there is none.

    Called after `open_error_log`, which applies the logging configuration: if that gives `gunicorn.access` or
    `wsgiserv.access` handlers, requests go to them, and `accesslog` is not opened; nor is it with a `logger_class`.

    Raises ConfigError naming access_log_format (an unknown atom, say) or accesslog (a file that cannot be opened).
    """
    log_format = settings.access_log_format
    if (users := users_logger()) is not None:
        return AccessLog(None, log_format, error_log, users=users)
    check_format(log_format)
    counter = request_counter()
    configured = access_logger()
    logger = share(ACCESS_NAMES[1], SharedLogger)
    path = settings.accesslog
    access_log: AccessLog | None = None
    if configured is not None:
        access_log = AccessLog(None, log_format, error_log, configured, is_configured=True, counter=counter)
    elif path:
        if not ACCESS.is_on:  # the error log was opened for other settings
            begin_access_loggers(is_on=True)
        with opening("accesslog", path):
            output = Output(path, 1, owner_of(settings))
        access_log = AccessLog(output, log_format, error_log, logger, counter=counter)
    elif settings.logconfig or settings.logconfig_dict or settings.logconfig_json or _goes_to_syslog(settings):
        # With gunicorn a hook or the application may still add a handler.
        access_log = AccessLog(None, log_format, error_log, logger, counter=counter)
    elif counter is not None:
        access_log = AccessLog(None, log_format, error_log, counter=counter)
    if access_log is not None:
        access_handler.sink = access_log.append
        ACCESS.on_change = access_log.look
    return access_log


def _goes_to_syslog(settings: Settings) -> bool:
    return settings.syslog and not settings.disable_redirect_access_to_syslog


def access_log_path(settings: Settings) -> str | None:
    """Return the access log's file; None if it has none of ours. Called after `open_error_log`."""
    path = settings.accesslog
    is_ours = access_logger() is None and users_logger() is None
    return path if path and path != "-" and is_ours else None


def open_access_file(settings: Settings) -> None:
    """Open the access log's file for new workers. Called by the master, after `open_error_log`.

    Raises ConfigError naming accesslog.
    """
    if (path := access_log_path(settings)) is not None:
        with opening("accesslog", path):
            log_files.open(path, owner_of(settings))


# ---- requests whose worker has ended -------------------------------------------------------------------


class _NoStatus(int):
    """Zero, which the text formats show as curl shows a response that never came."""

    def __str__(self) -> str:
        return "000"


# The worker died under the request, and its client saw the connection end.
NO_RESPONSE: Final = _NoStatus(0)
# The server killed the worker: it took too long, or had to stop at once; its client saw the connection end, too.
KILLED: Final = 504


def log_lost_requests(
    settings: Settings, error_log: logging.Logger, pid: int, requests: Sequence[RequestInFlight], status: int
) -> None:
    """Write a line for each of ``requests`` to the access log, if there is one. Called by the master. Never raises.

    Args:
        settings, pid: the configuration and the process id of the worker.
        error_log: the error log, for a failure.
        requests: the lost ones.
        status: `NO_RESPONSE` or `KILLED`.
    """
    requests = [lost for lost in requests if not lost.logged]
    if not requests:
        return
    try:
        # Opened for these lines alone, so that a rotation needs no thought.
        with acting_as(settings), _borrowed_access_log(settings, error_log) as access:
            if access is not None:
                for lost in requests:
                    access.log(environ_of(lost), status, (), 0, lost.age_s, True, pid)
    except (ConfigError, OSError) as error:
        text = "WS1808 The requests that worker %d has lost are not in the access log: %s"
        error_log.warning(text, pid, error)


@contextmanager
def _borrowed_access_log(settings: Settings, error_log: logging.Logger) -> Iterator[AccessLog | None]:
    """Open the access log for a few lines, and leave the loggers as they were.

    Raises ConfigError as `open_access_log` does.
    """
    before = access_handler.sink, ACCESS.on_change
    access = None
    try:
        access = open_access_log(settings, error_log)
        yield access
    finally:
        if access is not None:
            access.close(patience_s=0.0)  # the master never waits for a reader
        access_handler.sink, ACCESS.on_change = before


def environ_of(lost: RequestInFlight) -> dict[str, Any]:
    """Return the environ of a lost request, as far as its request line tells; other values are ``-`` in the log."""
    method, _, rest = lost.request_line.partition(" ")
    target, _, protocol = rest.rpartition(" ")
    if not protocol.startswith("HTTP/"):  # a line that was cut, or another protocol's
        target, protocol = rest, ""
    path, _, query = target.partition("?")
    environ = {
        "REMOTE_ADDR": lost.peer,
        "REQUEST_METHOD": method,
        "RAW_URI": target,
        # An octet stays an octet (PEP 3333).
        "PATH_INFO": unquote_to_bytes(path.encode("latin-1", "replace")).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": protocol or None,
        "wsgiserv.request_id": lost.request_id or None,
    }
    return {key: value for key, value in environ.items() if value is not None}
