"""The error log: the logger `wsgiserv.error` and its handler.

An error log that cannot be written (full disk, closed terminal, a pipe whose reader sleeps) never becomes a fault of
the server: nothing here waits or raises into a caller. Lost lines are counted, and told when the log takes lines again.
A filter, handler, formatter or record factory of the application that raises costs at most its record.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from wsgiserv.config.hook_config import view_of
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError
from wsgiserv.logs.config import ACCESS_NAMES, ERROR_NAMES, Named, apply_logconfig
from wsgiserv.logs.escape import escape_keeping_lines
from wsgiserv.logs.files import log_files
from wsgiserv.logs.handlers import (
    DaemonHandler,
    handlers_of,
    handlers_open_safely,
    open_handler_files,
    reopen_handlers,
    unblock_streams,
)
from wsgiserv.logs.hook_log import HookLog
from wsgiserv.logs.output import LossyWriter, Output, close_duplicates, renew_standard_streams
from wsgiserv.logs.plain import DATE_FORMAT, LINE_FORMAT, loss_line, plain_lines, safe_repr, timestamp
from wsgiserv.logs.shared import ACCESS, ERROR, SharedLogger, access_handler, begin_access_loggers, share
from wsgiserv.logs.statsd import StatsdLog, close_statsd_in_child, open_statsd
from wsgiserv.logs.streams import Capture, LogText, consoles
from wsgiserv.privileges import owner_of
from wsgiserv.process import fill_standard_streams
from wsgiserv.safe_open import Owner
from wsgiserv.tracebacks import format_error
from wsgiserv.unpatched import RealRLock
from wsgiserv.wording import counted

# Faults of filters and handlers that are told, each once
_MOST_FAULTS = 32


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of ``record``; control characters other than line ends are made visible."""
        # Callers escape client text themselves, line ends too; exception messages are escaped here.
        return escape_keeping_lines(super().format(record))

    def formatException(self, ei: Any) -> str:
        return super().formatException(ei) if ei[1] is None else format_error(ei[1])

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        try:
            return super().formatTime(record, datefmt)
        except Exception:  # the time is out of local time's range
            return timestamp()


class _Logger(HookLog, SharedLogger):
    """A logger that an application can neither disable by accident nor break."""

    # An exception from a filter, a handler or a record factory would end the request, the worker or the master that
    # logs: the methods below catch it.

    def _log(
        self,
        level: int,
        msg: object,
        args: Any,
        exc_info: Any = None,
        extra: Mapping[str, object] | None = None,
        stack_info: bool = False,
        stacklevel: int = 1,
    ) -> None:
        # logging would ask isinstance(), and so for its __class__, which may raise.
        if issubclass(type(exc_info), BaseException):
            exc_info = type(exc_info), exc_info, exc_info.__traceback__
        try:
            super()._log(level, msg, args, exc_info, extra, stack_info, stacklevel + 1)
        except (Exception, SystemExit) as error:
            try:
                if exc_info is True:
                    exc_info = error.__context__
                _write_plainly(level, msg, args, exc_info)
                report_fault(f"a filter or factory of the logger {self.name}", error)
            except Exception:  # little stack is left (sys.setrecursionlimit)
                _lose()

    def log(self, level: int | str, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log at ``level``, a number or, as in gunicorn's class, a name."""
        if isinstance(level, str):
            level = self.LOG_LEVELS.get(level.lower(), logging.INFO)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        super().log(level, msg, *args, **kwargs)

    def reopen_files(self) -> None:
        """Open the error log and the files of all handlers again (gunicorn's name)."""
        reopen_error_log()

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """Make a record by the factory of the application; without it if it fails."""
        if self.name == ERROR_NAMES[0] and _opened.name:
            args = (_opened.name, *args[1:])
        try:
            record = super().makeRecord(*args, **kwargs)
            if isinstance(record, logging.LogRecord):
                return record
            raise TypeError(f"the record factory has made {type(record).__name__}")
        except (Exception, SystemExit) as error:
            report_fault("the record factory", error)
        name, level, path, line, msg, values, exc_info, function, _extra, stack = (*args, *[None] * 3)[:10]
        try:
            return logging.LogRecord(name, level, path, line, msg, values, exc_info, function, stack)
        except Exception:  # time.time() of the application raises, or returns no number
            record = logging.LogRecord.__new__(logging.LogRecord)
        filename = os.path.basename(path)
        vars(record).update(
            name=name, msg=msg, args=values, levelno=level, levelname=logging.getLevelName(level), pathname=path,
            filename=filename, module=filename.partition(".")[0], lineno=line, funcName=function, exc_info=exc_info,
            exc_text=None, stack_info=stack, created=0.0, msecs=0.0, relativeCreated=0.0, process=os.getpid(),
            processName="MainProcess", thread=None, threadName=None, taskName=None,
        )  # fmt: skip
        return record

    def callHandlers(self, record: logging.LogRecord) -> None:
        """Give ``record`` to all handlers, even if one raises."""
        level = record.levelno
        found = handlers_of(self)
        if not found and _opened.handler is not None and level >= logging.WARNING:
            found = [_opened.handler]  # logging's handler of last resort might wait
        for handler in found:
            if level >= handler.level:
                try:
                    handler.handle(record)
                except (Exception, SystemExit) as error:
                    if handler is _opened.handler:  # the application has put a filter on it
                        handler.emit(record)
                    report_fault(f"the handler {type(handler).__name__} of the logger {self.name}", error)


class _UsersClassLogger(_Logger):
    """The error log of a configuration with a `logger_class`: each record goes through a method of that logger."""

    def _log(
        self, level: int, msg: object, args: Any, exc_info: Any = None, extra: Any = None, *_: Any, **__: Any
    ) -> None:
        name = "exception" if exc_info and level == logging.ERROR else logging.getLevelName(level).lower()
        method = getattr(_opened.users, name, None)
        if method is None:  # a level without a method
            super()._log(level, msg, args, exc_info, extra)
            return
        more = {"exc_info": exc_info, "extra": extra}
        # To `exception`, True is what it takes by itself.
        given = {
            key: value for key, value in more.items() if not (value is None or (value is True and name == "exception"))
        }
        method(msg, *args, **given)


class _CountedLogger(StatsdLog, _Logger):
    """The error log of a configuration with statsd."""


class _HandlerStream(LogText):
    """A handler's destination as the text stream that applications expect in ``handler.stream``."""

    def __init__(self, handler: _ErrorLogHandler) -> None:
        super().__init__()
        self._handler = handler

    def write(self, text: str) -> int:
        self._handler.write(text)
        return len(text)

    def fileno(self) -> int:
        return self._handler.writer.output.fileno()

    def isatty(self) -> bool:
        return os.isatty(self._handler.writer.output.fd)


class _ErrorLogHandler(logging.Handler):
    """Writes each record at once, whole, to an `Output`."""

    # `close` leaves the destination open: an application's `dictConfig` and `logging.shutdown` close every handler, but
    # the server needs this one. `open_error_log` closes the destination when another takes its place.
    #
    # The lock of real threads: helper threads log, too, and gevent and eventlet replace the locks of handlers.
    lock: Any = property(lambda self: self._own_lock, lambda self, value: None)

    def __init__(self, output: Output) -> None:
        self._own_lock = RealRLock()
        super().__init__()
        self.writer = LossyWriter(output, lambda count: loss_line(count, "error log"))
        self.stream = _HandlerStream(self)
        self.setFormatter(_Formatter(LINE_FORMAT, DATE_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{self.format(record)}\n"
        except Exception as error:  # a message and arguments that do not fit, a __str__ that raises
            message = f"(a log message could not be formatted: {safe_repr(error)}) {safe_repr(record.msg)}"
            text = plain_lines(record.levelno, message, record.exc_info)
        self.write(text)

    def write(self, text: str | bytes) -> None:
        """Write ``text`` as it is. May be called in any thread. Never raises."""
        data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        with self._own_lock:
            self.writer.write(data)


def _write_plainly(level: int, msg: object, args: Any, exc_info: Any) -> None:
    if _opened.handler is None:
        return
    try:
        message = str(msg) % (args[0] if len(args) == 1 and isinstance(args[0], Mapping) else args)
    except Exception:
        message = safe_repr(msg)
    _opened.handler.write(plain_lines(level, message, exc_info))


def _write_without_class(level: int, msg: object, args: Any, exc_info: Any, error: BaseException) -> None:
    """Write a record whose logging by a method of `logger_class` has raised ``error``."""
    _write_plainly(level, msg, args, error.__context__ if exc_info is True else exc_info)
    report_fault(f"the method {logging.getLevelName(level).lower()} of the logger class", error)


def report_fault(culprit: str, error: BaseException) -> None:
    """Log once that ``culprit`` has raised ``error``. Never raises."""
    try:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        # By its origin, not by its text, which may differ each time.
        fault = (type(error), frame.tb_frame.f_code, frame.tb_lineno) if frame is not None else type(error)
        if _opened.handler is None or fault in _faults or len(_faults) >= _MOST_FAULTS:
            return
        _faults.add(fault)
        text = f"WS1801 {culprit} raised {type(error).__name__}; the record is written without it (logged once)"
        _opened.handler.write(plain_lines(logging.WARNING, text, error))
    except Exception:  # little stack is left (sys.setrecursionlimit)
        _lose()


def _lose() -> None:
    # In place of `LossyWriter.lose`: little stack is left, perhaps none for further calls.
    if _opened.handler is not None:
        _opened.handler.writer.lost += 1
        _opened.handler.writer.untold += 1


_faults: set[object] = set()


class _Opened:
    """The state of the last `open_error_log` in this process."""

    handler: _ErrorLogHandler | None = None
    handlers: Sequence[logging.Handler] = ()  # all that are on the error log by our or a logconfig's doing
    capture: Capture | None = None
    access: logging.Logger | None = None
    daemons: Sequence[Any] = ()  # of these the instances of `DaemonHandler`
    users: Any = None  # the logger of `logger_class`
    name: str = ""  # of the logger in records, where a logconfig says another one


_opened = _Opened()


# ---- opening -------------------------------------------------------------------------------------------


def _logger(name: str) -> logging.Logger:
    return share(name, _Logger)


def open_error_log(settings: Settings) -> logging.Logger:
    """Set up the error log as the settings say and return its logger, ``wsgiserv.error``.

    Called by the master before it starts anything, and again on a reload; workers inherit the log. The new log replaces
    that of an earlier call, which stays as it was if this call fails.

    Raises ConfigError naming errorlog, logconfig, logconfig_dict or logconfig_json.
    """
    # Without a descriptor 2 the next file or socket would get that number, and all that is printed to it.
    fill_standard_streams()
    with opening("errorlog", settings.errorlog):
        output = Output(settings.errorlog, 2, owner_of(settings))
    handler = _ErrorLogHandler(output)
    ours, _ = (_logger(name) for name in ERROR_NAMES)
    loggers = [ours, *[share(name, SharedLogger) for name in ACCESS_NAMES]]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    users, named = None, Named(None, None)
    added: list[logging.Handler] = []
    _install(handler, ours, settings.loglevel)
    begin_access_loggers(bool(settings.accesslog) and settings.logger_class is None)
    try:
        with handlers_open_safely(output.owner):
            if settings.logger_class is None:
                if settings.syslog:
                    from wsgiserv.logs.syslog import add_syslog

                    added = add_syslog(settings, ours, loggers[-1])
                named = apply_logconfig(settings)
            else:
                from wsgiserv.logs.logger_class import open_logger

                found = [(logger, handlers) for logger, handlers, _, _ in before]
                owned = [handler, *_opened.handlers]
                users, added = open_logger(settings, _opened.users, found, owned, _write_without_class)
    except ConfigError:
        for logger, handlers, old_level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(old_level)
            logger.propagate = propagate
        for each in added:
            each.close()
        output.close()
        raise
    _opened.handlers = [handler, *added]
    _opened.users = users
    are_counted = open_statsd(settings, partial(_tell_of_statsd, settings.statsd_host))
    ours.__class__ = _UsersClassLogger if users is not None else _CountedLogger if are_counted else _Logger
    theirs = getattr(users, "error_log", None)
    if isinstance(theirs, logging.Logger):
        ours.handlers, ours.filters, ours.propagate = theirs.handlers, theirs.filters, theirs.propagate
        ours.setLevel(theirs.level)
    # Formats and filters of a file for gunicorn read the name.
    _opened.name = named.error.name if named.error else ""
    if named.error:
        if not named.error.handlers and not named.error.propagate:
            ours.addHandler(handler)  # the configuration has set the level only
        _opened.handlers = [handler, *added, *ours.handlers]
    if named.access and settings.accesslog and not named.access.hasHandlers():
        named.access.addHandler(access_handler)  # the configuration has set the level only
    if _opened.handler is not None:
        _opened.handler.writer.lost += sum(each.lost for each in _opened.daemons)
    _opened.daemons = [each for each in dict.fromkeys(_opened.handlers) if issubclass(type(each), DaemonHandler)]
    for each in _opened.daemons:
        each.tell = _tell_of_syslog
    ERROR.note_propagate()
    ACCESS.note_propagate()
    ERROR.cfg = view_of(settings)
    for logger, handlers, _, _ in before:
        for old in handlers:
            if old not in logger.handlers:
                old.close()  # a file handler that is still used elsewhere opens its file again
    _opened.access = named.access
    _replace_opened(handler, captures=settings.capture_output and output.path is not None)
    if users is not None or settings.logconfig_dict or settings.logconfig_json or settings.logconfig:
        unblock_streams()
    return ours


def log_for_users(log: logging.Logger) -> Any:
    """Return the ``log`` object of hooks and workers: the logger of `logger_class`, or the error log itself."""
    return log if _opened.users is None else _opened.users


def users_logger() -> Any:
    """Return the logger of `logger_class`, or None."""
    return _opened.users


def _install(handler: _ErrorLogHandler, ours: logging.Logger, loglevel: str) -> None:
    """Give the loggers ``handler`` and the handlers of the application, but none of an earlier configuration."""
    if _opened.access:
        _opened.access.handlers.clear()  # the new configuration may not name it
    ACCESS.handlers[:] = [each for each in ACCESS.handlers if each not in _opened.handlers]  # of a `logger_class`
    # A handler added by a configuration file or a hook (Sentry, say) stays.
    added = [h for h in ours.handlers if h not in _opened.handlers]
    ours.handlers[:] = [handler, *dict.fromkeys(added)]
    level = logging.getLevelName(loglevel.upper())
    ours.setLevel(level if isinstance(level, int) else logging.INFO)
    ERROR.begin()


def _replace_opened(handler: _ErrorLogHandler, captures: bool) -> None:
    """Make ``handler`` the log of this process; capture the standard streams or release them."""
    old_handler, old_capture = _opened.handler, _opened.capture
    _opened.handler, _opened.capture = handler, None
    if old_capture:
        old_capture.detach()
    if captures:
        _opened.capture = Capture(handler.writer.output, handler.write)
    if old_capture or captures:
        renew_standard_streams()
    if old_handler:
        old_handler.writer.output.close()
        handler.writer.lost, handler.writer.untold = old_handler.writer.lost, old_handler.writer.untold
        # An application may still hold the old handler, and its descriptor may be a socket soon.
        old_handler.writer = handler.writer


@contextmanager
def opening(setting: str, path: str) -> Iterator[None]:
    """Raise an OSError of the block as the ConfigError for a log file that cannot be opened."""
    try:
        yield
    except OSError as error:
        directory = os.path.dirname(os.path.abspath(path))
        advice = f"Expected '-' or a file that user id {os.geteuid()} may write."
        if not os.path.isdir(directory):
            advice = f"The directory {directory} does not exist: create it (mkdir -p {directory})."
        text = f"{setting} = {path!r}: cannot open the file: {error.strerror}. {advice}"
        raise ConfigError(text) from error


def access_logger() -> logging.Logger | None:
    """Return the access log's logger if the logging configuration has given it handlers, else None."""
    return _opened.access if _opened.access is not None and _opened.access.hasHandlers() else None


def close_logs_in_child() -> None:
    """Close the logs' descriptors in a child of the application; it can still write to the error log."""
    close_duplicates()
    log_files.close()
    close_statsd_in_child()
    for each in _opened.daemons:
        each.close_in_child()


# ---- other daemons --------------------------------------------------------------------------------------


def _tell_of_syslog(where: str, fault: OSError | None, lost: int) -> None:
    if fault is not None:
        reason = fault.strerror or fault
        _warn_here(f"WS1840 syslog: {where}: {reason}: lines are lost until it takes them again (told once)")
    else:
        _warn_here(f"WS1841 syslog: {where}: takes lines again: {counted(lost, 'line', 'is', 'are')} lost")


def _tell_of_statsd(host: str | None, fault: OSError) -> None:
    _warn_here(f"WS1842 statsd: {host}: {fault.strerror or fault}: metrics are lost (told once per process)")


def _warn_here(text: str) -> None:
    """Write a warning to the error log alone, not to what the warning is about."""
    if _opened.handler is not None:
        _opened.handler.write(plain_lines(logging.WARNING, text))


# ---- lost lines ----------------------------------------------------------------------------------------


def lost_messages() -> int:
    """Return the number of messages lost in this process."""
    writers = list(consoles.values())
    if _opened.handler is not None:
        writers.append(_opened.handler.writer)
    return sum(each.lost for each in (*writers, *_opened.daemons))


def untold_messages() -> int:
    """Return how many lost messages the error log does not tell of yet."""
    return _opened.handler.writer.untold if _opened.handler is not None else 0


def take_over_losses(count: int) -> None:
    """Tell of ``count`` lines, too, lost by a process that has ended. Called by the master."""
    if _opened.handler is not None:
        _opened.handler.writer.untold += count


def tell_lost_messages() -> None:
    """Write how many messages are lost, if there are any and the log takes lines again. Never raises.

    Called once a second: the next message may be hours away.
    """
    handler = _opened.handler
    if handler is not None and handler.writer.is_behind:
        with handler.lock:
            handler.writer.recover()
    for each in _opened.daemons:
        each.look()


def warn_reliably(log: logging.Logger, text: str) -> bool:
    """Log ``text`` as a warning; return False if it is lost and must be logged again. Never raises."""
    before = lost_messages()
    log.warning("%s", text)
    return lost_messages() == before


# ---- rotation ------------------------------------------------------------------------------------------


def reopen_error_log() -> None:
    """Do `reopen_files`, and call the method of that name of a user's logger class. Never raises."""
    reopen_files()
    method = getattr(type(_opened.users), "reopen_files", None)
    if method is not None and not method.__module__.endswith("gunicorn.glogging"):
        try:
            _opened.users.reopen_files()
        except (Exception, SystemExit) as error:
            report_fault("reopen_files of the logger class", error)


def reopen_files() -> None:
    """Open the error log's file again under its name, and the files of all file handlers (USR1). Never raises.

    Called in the master and in each worker. After a failure the old file stays in use, and a warning is logged.
    """
    # The files of every `logging.FileHandler`, as gunicorn does it: the application's own logs can be rotated together
    # with the server's.
    handler = _opened.handler
    owner = handler.writer.output.owner if handler is not None else Owner(0, 0)
    failures: list[str] = []
    in_master = log_files.is_masters
    if in_master:  # first of all: their new descriptors go to the workers
        failures += reopen_handlers(owner)
    if handler is not None:
        with handler.lock:
            try:
                handler.writer.reopen()
                if _opened.capture:
                    _opened.capture.attach()
                    renew_standard_streams()
            except OSError as error:
                failures.append(f"{handler.writer.output.path}: {error.strerror}")
        failures += log_files.refresh(_open_files())
    if not in_master:
        failures += reopen_handlers(owner)
    log = logging.getLogger(ERROR_NAMES[0])
    for failure in failures:
        log.warning("WS1802 Cannot reopen a log file; the old one stays in use: %s", failure)


def share_log_files() -> None:
    """Leave the descriptors of the logs for workers that may not open them. Called by the master at its start."""
    log_files.post(_open_files())


def _open_files() -> dict[str, int]:
    """Return the descriptors of this process's log files by their absolute paths."""
    found = open_handler_files()
    if _opened.handler is not None and (output := _opened.handler.writer.output).path is not None:
        found[output.path] = output.fd
    return found
