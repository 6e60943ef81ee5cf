"""The error log: what the server and the application have to say to the people who run them.

Owns: the logger `wsgiserv.error` (and `gunicorn.error`, which applications borrow handlers from), its
handler and line format, `wsgi.errors`, capture_output, reopening after a rotation.
Must not know: who logs what.

The one rule: a log that cannot be written (full disk, closed terminal, a pipe whose reader sleeps) must never
become a fault of the server. Nothing here waits or raises into a caller; lines that are lost are counted, and the
count is written when the log can be written again. The same goes for what people hang into the logging module:
a filter, handler, formatter or record factory that raises costs at most the record.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import traceback
from _thread import get_ident
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from os import dup2, getpid
from time import time
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar, cast

from wsgiserv.errors import ConfigError
from wsgiserv.logs.atoms import local_time, numeric_offset
from wsgiserv.logs.config import ACCESS_NAMES, ERROR_NAMES, apply_logconfig
from wsgiserv.logs.escape import escape_keeping_lines
from wsgiserv.logs.files import log_files
from wsgiserv.logs.lossy import LogText, LossyText, LossyWriter
from wsgiserv.logs.output import Output, close_duplicates, renew_standard_streams
from wsgiserv.privileges import owner_of
from wsgiserv.process import fill_standard_streams, flush_standard_streams
from wsgiserv.safe_open import Owner, is_root, open_file
from wsgiserv.unpatched import RealRLock
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = [
    "ErrorStream",
    "access_logger",
    "cannot_open",
    "close_logs_in_child",
    "guard_standard_streams",
    "lost_messages",
    "open_error_log",
    "reopen_error_log",
    "say_lost_messages",
    "share_log_files",
    "take_over_losses",
    "unguard_standard_streams",
    "untold_messages",
    "warn_reliably",
]

# gunicorn's, since people's tools read it
_LINE = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
_DATE = "[%Y-%m-%d %H:%M:%S %z]"

# Faults of people's filters and handlers that are told, each once.
_MOST_FAULTS = 32

_open: Any = open
_Kind = TypeVar("_Kind", bound=logging.Handler)
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

# An application that never ends its line in wsgi.errors gets it written in pieces of this many characters.
_LONGEST_LINE = 65536


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of ``record``; control characters other than line ends are made visible.

        Callers escape client text themselves, line ends too; this catches what is in exception messages.
        """
        return escape_keeping_lines(super().format(record))

    def formatException(self, ei: Any) -> str:
        """Return the traceback, also of an exception that raises when it is asked for its text or notes."""
        try:
            return super().formatException(ei)
        except Exception:
            return _traceback(ei[1])

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time of ``record``, also of a clock that local time has no words for."""
        try:
            return super().formatTime(record, datefmt)
        except Exception:
            return _stamp()


class _Logger(logging.Logger):
    """A logger that an application can neither switch off by accident nor break.

    `logging.config.dictConfig` disables every logger it does not name unless it is told otherwise, so a
    Django project's LOGGING would silence the server that runs it.

    What a filter, a handler or a record factory raises would end the request, the worker or the master that has
    something to say: it is told once, and the record is written without it.
    """

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass

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
                _tell_fault(f"a filter of the logger {self.name}", error)
            except Exception:  # the stack is all but used up (sys.setrecursionlimit)
                if _opened.handler is not None:
                    writer = _opened.handler.writer
                    writer.lost += 1
                    writer.unsaid += 1

    def makeRecord(
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        """Make a record by the factory that people may have set; without it when it fails."""
        try:
            record = super().makeRecord(name, level, fn, lno, msg, args, exc_info, func, extra, sinfo)
            if isinstance(record, logging.LogRecord):
                return record
            raise TypeError(f"the record factory has made {type(record).__name__}")
        except (Exception, SystemExit) as error:
            _tell_fault("the record factory", error)
        return _record(name, level, fn, lno, msg, args, exc_info, func or "", sinfo)

    def callHandlers(self, record: logging.LogRecord) -> None:
        """Give ``record`` to all handlers, whatever one of them does."""
        level = record.levelno
        found = _handlers(self)
        if not found and _opened.handler is not None and level >= logging.WARNING:
            found = [_opened.handler]  # where logging's handler of last resort might wait
        for handler in found:
            if level >= handler.level:
                try:
                    handler.handle(record)
                except (Exception, SystemExit) as error:
                    if handler is _opened.handler:  # a filter has been put on it
                        handler.emit(record)
                    _tell_fault(f"the handler {type(handler).__name__} of the logger {self.name}", error)


class _HandlerStream(LogText):
    """A handler's destination as the text stream that people expect in ``handler.stream``."""

    def __init__(self, handler: _ErrorLogHandler) -> None:
        super().__init__()
        self._handler = handler

    def write(self, text: str) -> int:
        self._handler.write(text)
        return len(text)

    def fileno(self) -> int:
        return self._handler.output.fileno()

    def isatty(self) -> bool:
        return os.isatty(self._handler.output.fd)


class _ErrorLogHandler(logging.Handler):
    """Writes each record at once, whole, to an `Output`."""

    _own_lock: RealRLock

    def __init__(self, output: Output) -> None:
        self._own_lock = RealRLock()
        super().__init__()
        self.writer = LossyWriter(output, _loss)
        self.stream = _HandlerStream(self)
        self.setFormatter(_Formatter(_LINE, _DATE))

    @property
    def output(self) -> Output:
        return self.writer.output

    @property
    def lock(self) -> Any:
        """The lock of real threads: helper threads log, too, and gevent and eventlet replace the locks of handlers."""
        return self._own_lock

    @lock.setter
    def lock(self, value: object) -> None:
        pass

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as error:  # a message and arguments that do not fit, a __str__ that raises
            text = _plain(
                record.levelno,
                f"(a log message could not be formatted: {_repr(error)}) {_repr(record.msg)}",
                record.exc_info,
            )
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """Write ``text`` as it is. May be called in any thread. Never raises."""
        self.write_bytes(text.encode("utf-8", "backslashreplace"))

    def write_bytes(self, data: bytes) -> None:
        """Write ``data`` as it is. May be called in any thread. Never raises."""
        self.acquire()
        try:
            self.writer.write(data)
        finally:
            self.release()

    def close(self) -> None:
        """Leave the destination open.

        An application's `dictConfig` and `logging.shutdown` close every handler there is, but the server is
        not done with this one. `open_error_log` closes the destination when another takes its place.
        """
        super().close()


# ---- lines without the logging module, which people can break ------------------------------------------


def _stamp() -> str:
    now = local_time(time())
    return (
        f"[{now.tm_year}-{now.tm_mon:02d}-{now.tm_mday:02d} {now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d}"
        f" {numeric_offset(now.tm_gmtoff, '')}]"
    )


def _record(
    name: str,
    level: int,
    path: str,
    line: int,
    msg: object,
    args: Any,
    exc_info: Any,
    func: str,
    sinfo: str | None,
) -> logging.LogRecord:
    try:
        return logging.LogRecord(name, level, path, line, msg, args, exc_info, func, sinfo)
    except Exception:  # it asks time.time() for the time, which people replace
        found = logging.LogRecord.__new__(logging.LogRecord)
    now = time()
    found.name, found.msg, found.args, found.exc_info, found.stack_info = name, msg, args, exc_info, sinfo
    found.levelno, found.levelname = level, logging.getLevelName(level)
    found.pathname, found.lineno, found.funcName = path, line, func
    found.filename = os.path.basename(path)
    found.module = os.path.splitext(found.filename)[0]
    found.exc_text = found.thread = found.threadName = found.taskName = None
    found.created, found.msecs, found.relativeCreated = now, now % 1 * 1000, 0.0
    found.process, found.processName = getpid(), "MainProcess"
    return found


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def _plain(level: int, message: str, exc_info: ExcInfo | BaseException | None = None) -> str:
    """Return the lines of a record, without the line end."""
    line = f"{_stamp()} [{getpid()}] [{_LEVELS.get(level, level)}] {message}"
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    if error is not None and issubclass(type(error), BaseException):
        line += f"\n{_traceback(error)}"
    return escape_keeping_lines(line)


def _traceback(error: BaseException) -> str:
    """Return the traceback of an exception; of one that raises when it is looked at the frames and the type alone."""
    try:
        return "".join(traceback.format_exception(error)).rstrip("\n")
    except Exception:
        pass
    try:
        frames = "".join(traceback.format_tb(error.__traceback__))
        return f"Traceback (most recent call last):\n{frames}{type(error).__name__}"
    except Exception:
        return type(error).__name__


_LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}


def _loss(count: int, log: str = "error log") -> bytes:
    what = f"The {log} could not be written for a while: {counted(count, 'message', 'is', 'are')} lost."
    return f"{_plain(logging.WARNING, what)}\n".encode()


def _write_plainly(level: int, msg: object, args: Any, exc_info: Any) -> None:
    handler = _opened.handler
    if handler is None:
        return
    try:
        message = str(msg) % (args[0] if len(args) == 1 and isinstance(args[0], Mapping) else args)
    except Exception:
        message = _repr(msg)
    handler.write(_plain(level, message, exc_info) + "\n")


def _tell_fault(what: str, error: BaseException) -> None:
    """Say once that ``what`` has raised ``error``. Never raises."""
    handler = _opened.handler
    try:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        # Where it comes from, not its text, which may differ each time.
        fault = (type(error), frame.tb_frame.f_code, frame.tb_lineno) if frame is not None else type(error)
        if handler is None or fault in _faults or len(_faults) >= _MOST_FAULTS:
            return
        _faults.add(fault)
        text = f"{what} raised {type(error).__name__}; the record is written without it. This is said once."
        handler.write(_plain(logging.WARNING, text, error) + "\n")
    except Exception:  # the stack is all but used up (sys.setrecursionlimit)
        if handler is not None:
            handler.writer.lost += 1
            handler.writer.unsaid += 1


_faults: set[object] = set()


# ---- what the process prints ---------------------------------------------------------------------------


class _LossyRaw(io.RawIOBase):
    """Descriptor 1 or 2 under `sys.stdout` or `sys.stderr` where these are ours: `print` neither waits nor raises."""

    def __init__(self, write: Callable[[bytes], None], fd: int) -> None:
        self._write = write
        self._number = fd
        self.name = "<stdout>" if fd == 1 else "<stderr>"
        self.mode = "wb"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        whole = bytes(data)
        self._write(whole)
        return len(whole)


def _lossy_stream(write: Callable[[bytes], None], fd: int) -> TextIO:
    """Return what takes the place of `sys.stdout` or `sys.stderr`."""
    # Line by line: stdout would hold what is printed until 8 KiB are full, and it is a log now. And where Python does
    # not buffer (PYTHONUNBUFFERED) `print` would write word by word, and other processes in between.
    encoding = getattr(sys.stdout if fd == 1 else sys.stderr, "encoding", None) or "utf-8"
    raw = io.BufferedWriter(_LossyRaw(write, fd))
    stream: Any = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)
    stream.mode = "w"  # as the interpreter does it
    return cast("TextIO", stream)


class _Capture:
    """Sends descriptors 1 and 2 to the error log's file (capture_output), and back."""

    def __init__(self, handler: _ErrorLogHandler) -> None:
        self._handler = handler
        self._saved = [self._duplicate(1), self._duplicate(2)]
        self._streams = sys.stdout, sys.stderr
        flush_standard_streams(wait=True)
        self.attach()
        write = handler.write_bytes
        sys.stdout, sys.stderr = self._captured = _lossy_stream(write, 1), _lossy_stream(write, 2)

    @staticmethod
    def _duplicate(fd: int) -> int | None:
        try:
            return os.dup(fd)
        except OSError:
            return None  # it was closed

    def attach(self) -> None:
        """Send the descriptors to the file that is open now. For children, and for what is not Python."""
        for fd in (1, 2):
            dup2(self._handler.output.fd, fd)

    def detach(self) -> None:
        flush_standard_streams(wait=True)
        if sys.stdout is self._captured[0]:
            sys.stdout = self._streams[0]
        if sys.stderr is self._captured[1]:
            sys.stderr = self._streams[1]
        for fd, saved in zip((1, 2), self._saved, strict=True):
            if saved is not None:
                dup2(saved, fd)
                os.close(saved)


def guard_standard_streams() -> None:
    """Let `print` neither wait nor raise in this process. Called by the master, for its configuration file and hooks.

    The descriptors stay as they are, and so do the streams of regular files.
    """
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        try:
            if stream.fileno() != fd or stat.S_ISREG(os.fstat(fd).st_mode):
                continue
            if not isinstance(getattr(stream.buffer, "raw", None), _LossyRaw):
                flush_standard_streams()
                guard = _lossy_stream(_console(fd).write, fd)
                setattr(sys, name, guard)
                _guards[name] = guard, stream
        except (AttributeError, OSError, ValueError):  # None, closed; in memory
            continue


def unguard_standard_streams() -> None:
    """Give a child of the master the streams of its own: what the application prints is the application's."""
    for name, (guard, stream) in _guards.items():
        if getattr(sys, name) is guard:
            setattr(sys, name, stream)
    _guards.clear()


_guards: dict[str, tuple[TextIO, TextIO]] = {}


class _Opened:
    """What the last `open_error_log` set up in this process."""

    handler: _ErrorLogHandler | None = None
    handlers: Sequence[logging.Handler] = ()  # all that are on the error log by our or a logconfig's doing
    capture: _Capture | None = None
    access: logging.Logger | None = None


_opened = _Opened()


def _logger(name: str) -> logging.Logger:
    logger = logging.getLogger(name)
    # Not through logging.setLoggerClass: a configuration file may have asked for gunicorn.error before us.
    logger.__class__ = _Logger
    return logger


def open_error_log(settings: Settings) -> logging.Logger:
    """Set up the error log as the settings say and return its logger, ``wsgiserv.error``.

    Called by the master before anything is started, and again on a reload; workers inherit it. What an
    earlier call set up is replaced, and stays as it was when this call fails.

    Raises ConfigError naming errorlog, logconfig, logconfig_dict or logconfig_json.
    """
    fill_standard_streams()
    try:
        output = Output(settings.errorlog, 2, owner_of(settings))
    except OSError as error:
        raise cannot_open("errorlog", settings.errorlog, error) from error
    old_handler, old_capture = _opened.handler, _opened.capture
    handler = _ErrorLogHandler(output)
    ours, borrowed = (_logger(name) for name in ERROR_NAMES)
    level = logging.getLevelName(settings.loglevel.upper())
    loggers = [ours, borrowed, *map(logging.getLogger, ACCESS_NAMES)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    if _opened.access:
        _opened.access.handlers.clear()  # the earlier configuration's, which may name it no more
    # What a configuration file or a hook has added itself (Sentry, say) stays, and serves both names.
    added = [h for h in ours.handlers + borrowed.handlers if h not in _opened.handlers]
    ours.handlers[:] = [handler, *dict.fromkeys(added)]
    ours.filters[:] = dict.fromkeys(ours.filters + borrowed.filters)
    borrowed.handlers, borrowed.filters = ours.handlers, ours.filters
    for logger in (ours, borrowed):
        logger.setLevel(level if isinstance(level, int) else logging.INFO)
        logger.propagate = False
    try:
        with _handlers_open_safely(output.owner):
            named = apply_logconfig(settings)
    except ConfigError:
        for logger, handlers, old_level, propagate in before:
            logger.handlers[:] = handlers
            logger.setLevel(old_level)
            logger.propagate = propagate
        output.close()
        raise
    _opened.handlers = [handler]
    if named.error:
        if not named.error.handlers and not named.error.propagate:
            ours.addHandler(handler)  # the configuration has set the level only
        _opened.handlers = [handler, *ours.handlers]
        for logger in (ours, borrowed):
            logger.setLevel(named.error.level)
            logger.propagate = named.error.propagate
    for logger, handlers, _, _ in before:
        for old in handlers:
            if old not in logger.handlers:
                old.close()  # a file handler that is still used elsewhere opens its file again
    _opened.handler, _opened.access, _opened.capture = handler, named.access, None
    if old_capture:
        old_capture.detach()
    if settings.capture_output and output.path is not None:
        _opened.capture = _Capture(handler)
    if old_capture or _opened.capture:
        renew_standard_streams()
    if old_handler:
        old_handler.output.close()
        handler.writer.lost, handler.writer.unsaid = old_handler.writer.lost_here(), old_handler.writer.unsaid
        old_handler.writer = handler.writer  # for whoever still holds it: its descriptor may be a socket soon
    if settings.logconfig_dict or settings.logconfig_json or settings.logconfig:
        _unblock_streams()
    return ours


def _unblock_streams() -> None:
    """Give handlers of the logging configuration that write to a standard stream or a pipe a stream that never waits.

    ``console`` is one of these. A handler that people have written themselves is theirs.
    """
    for found in _all_handlers(logging.StreamHandler):
        handler: Any = found
        stream = handler.stream
        try:
            mode = os.fstat(stream.fileno()).st_mode
            if isinstance(stream, LossyText) or stat.S_ISREG(mode):
                continue
            if stream in (sys.stdout, sys.__stdout__):
                writer = _console(1)
            elif stream in (sys.stderr, sys.__stderr__):
                writer = _console(2)
            elif isinstance(found, logging.FileHandler):
                writer = LossyWriter(Output(found.baseFilename, 1, Owner(0, 0)), partial(_loss, log="log"))
                stream.close()
            else:
                continue
            handler.stream = LossyText(writer)
        except (AttributeError, OSError, ValueError):  # none yet; in memory; closed
            continue


def _console(fd: int) -> LossyWriter:
    """Return the way to a standard stream that all handlers share, also after a reload."""
    if fd not in _consoles:
        _consoles[fd] = LossyWriter(Output("-", fd, Owner(0, 0)), partial(_loss, log="log"))
    return _consoles[fd]


_consoles: dict[int, LossyWriter] = {}


def close_logs_in_child() -> None:
    """Close what a child of the application must not hold of the logs; the error log can still be written to there."""
    close_duplicates()
    log_files.close()


def lost_messages() -> int:
    """Return how many messages this process has lost."""
    writers = list(_consoles.values())
    if _opened.handler is not None:
        writers.append(_opened.handler.writer)
    return sum(writer.lost_here() for writer in writers)


def untold_messages() -> int:
    """Return how many of them nobody has been told of yet."""
    handler = _opened.handler
    return handler.writer.unsaid if lost_messages() and handler is not None else 0


def take_over_losses(count: int) -> None:
    """Tell of ``count`` lines, too, that a process has lost which has ended. Called by the master."""
    if count and _opened.handler is not None:
        lost_messages()  # what was lost before the fork is forgotten first
        _opened.handler.writer.unsaid += count


def say_lost_messages() -> None:
    """Write how many messages have been lost, if there are any and the log takes lines again. Never raises.

    Called once a second: the next message may be hours away.
    """
    handler = _opened.handler
    if handler is not None and handler.writer.is_behind:
        handler.acquire()
        try:
            handler.writer.recover()
        finally:
            handler.release()


def warn_reliably(log: logging.Logger, text: str) -> bool:
    """Log ``text`` as a warning; return False when it has been lost, and must be said again. Never raises."""
    before = lost_messages()
    log.warning("%s", text)
    return lost_messages() == before


def cannot_open(setting: str, path: str, error: OSError) -> ConfigError:
    """Return the ConfigError for a log file that cannot be opened."""
    directory = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(directory):
        advice = f"The directory {directory} does not exist: create it (mkdir -p {directory})."
    else:
        advice = f"Expected '-' or a file that user id {os.geteuid()} may write."
    return ConfigError(f"{setting} = {path!r}: cannot open the file: {error.strerror}. {advice}")


def access_logger() -> logging.Logger | None:
    """Return the logger that the logging configuration set up for the access log, or None."""
    return _opened.access


def reopen_error_log() -> None:
    """Open the error log's file again under its name, and every other log file in the process (USR1).

    Called in the master and in each worker. Files of `logging.FileHandler` handlers are reopened, too, as
    gunicorn does, so the application's own logs can be rotated together with ours. Never raises: a file that
    cannot be opened stays as it was, with a warning.
    """
    handler = _opened.handler
    failures: list[str] = []
    in_master = log_files.is_masters
    if in_master:  # first of all, for what is opened here goes to the workers
        failures += _reopen_handlers()
    if handler is not None:
        handler.acquire()
        try:
            handler.writer.reopen()
            if _opened.capture:
                _opened.capture.attach()
                renew_standard_streams()
        except OSError as error:
            failures.append(f"{handler.output.path}: {error.strerror}")
        finally:
            handler.release()
        failures += log_files.refresh(_open_files())
    if not in_master:
        failures += _reopen_handlers()
    for failure in failures:
        logging.getLogger(ERROR_NAMES[0]).warning(
            "Cannot reopen a log file, the old one stays in use: %s", failure
        )


def share_log_files() -> None:
    """Put the files of the logs where workers find those that they may not open. Called by the master at its start."""
    log_files.post(_open_files())


def _open_files() -> dict[str, int]:
    """Return the descriptors of this process's log files by their absolute paths."""
    found: dict[str, int] = {}
    for handler in _all_handlers(logging.FileHandler):
        stream: Any = handler.stream
        try:
            found[os.path.abspath(handler.baseFilename)] = stream.fileno()
        except (AttributeError, OSError, ValueError):  # none yet; closed; in memory
            continue
    if _opened.handler is not None and _opened.handler.output.path is not None:
        found[_opened.handler.output.path] = _opened.handler.output.fd
    return found


def _reopen_handlers() -> list[str]:
    """Open the files of all file handlers again; return what could not be opened. Never raises."""
    failures: list[str] = []
    for handler in _all_handlers(logging.FileHandler):
        handler.acquire()
        try:
            old: Any = handler.stream
            if isinstance(old, LossyText):
                old.writer.reopen()
            elif old is not None:
                owner = _opened.handler.output.owner if _opened.handler is not None else Owner(0, 0)
                setattr(handler, "_builtin_open", partial(_open_again, owner))  # noqa: B010 - it has no type
                try:
                    handler.stream = handler._open()
                finally:
                    setattr(handler, "_builtin_open", partial(_open_for_handler, owner))  # noqa: B010
                remember = getattr(handler, "_statstream", None)
                if (
                    remember is not None
                ):  # WatchedFileHandler: or it would open the file itself at the next record
                    remember()
                old.close()
        except (OSError, ValueError) as error:
            failures.append(f"{handler.baseFilename}: {error}")
        finally:
            handler.release()
    return failures


@contextmanager
def _handlers_open_safely(owner: Owner) -> Iterator[None]:
    """Have root open the files of the handlers that are made meanwhile, and give new ones to the workers' user."""
    if not is_root():
        yield
        return
    # What `FileHandler.__init__` takes its `_builtin_open` from: the module's, or the builtin.
    setattr(logging, "open", partial(_open_for_handler, owner))  # noqa: B010
    try:
        yield
    finally:
        delattr(logging, "open")


def _open_for_handler(owner: Owner, file: str, *args: Any, **kwargs: Any) -> IO[Any]:
    """`open`, for handlers of logconfig or of the application. A file that this user may not open, while the master
    can, stays the one that the master has opened last."""
    return cast("IO[Any]", _open(file, *args, opener=partial(_open_or_take, owner), **kwargs))


def _open_again(owner: Owner, file: str, *args: Any, **kwargs: Any) -> IO[Any]:
    """The same, but take what the master has opened, if it has."""
    fd = log_files.successor(os.path.abspath(file))
    if fd is None:
        return _open_for_handler(owner, file, *args, **kwargs)
    return cast("IO[Any]", _open(file, *args, opener=lambda path, flags: fd, **kwargs))


def _open_or_take(owner: Owner, path: str, flags: int) -> int:
    path = os.path.abspath(path)
    if is_root():  # without following others' links
        try:
            return open_file(path, flags & ~(os.O_CREAT | os.O_EXCL), owner)
        except OSError as error:
            error.filename = path  # not the one part of it that was being opened
            raise
    try:
        return os.open(path, flags, 0o666)
    except PermissionError:
        fd = log_files.successor(path)
        if fd is None:
            raise
        return fd


def _all_handlers(kind: type[_Kind]) -> Iterator[_Kind]:
    """Yield each handler of that kind that any logger has."""
    seen = set()
    loggers = list(logging.root.manager.loggerDict.values())
    for logger in [logging.root, *loggers]:
        for handler in getattr(logger, "handlers", ()):  # a PlaceHolder has none
            if issubclass(type(handler), kind) and id(handler) not in seen:
                seen.add(id(handler))
                yield handler


class _ErrorBytes(io.BufferedIOBase):
    """The ``buffer`` of a text stream: what is written there is decoded, and written to the stream."""

    def __init__(self, stream: ErrorStream) -> None:
        super().__init__()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, data: Any) -> int:
        whole = bytes(data)
        self._stream.write(whole.decode("utf-8", "backslashreplace"))
        return len(whole)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.flush()

    def __del__(self) -> None:
        """Do nothing, where `io.IOBase` calls `close`."""


class ErrorStream(LogText):
    """``wsgi.errors``: a text stream into the error log, without its line format (PEP 3333).

    One object serves a whole worker. Each thread's text is put together to whole lines, so that the two
    writes of a ``print(..., file=environ["wsgi.errors"])`` in one thread are not torn apart by another's.
    `write` raises TypeError for anything but str; no other error reaches the application.
    """

    name = "<wsgi.errors>"

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log
        # Each thread touches its own key only, so there is no lock, which a handler that switches
        # greenlets could be caught in.
        self._unfinished: dict[int, str] = {}  # thread -> the beginning of a line

    def write(self, text: str) -> int:
        """Write ``text``; what follows its last line end waits for the rest of the line, or for `flush`."""
        if not isinstance(text, str):
            raise TypeError(f"wsgi.errors takes str, not {type(text).__name__}")
        thread = get_ident()
        whole = self._unfinished.pop(thread, "") + text
        end = len(whole) if len(whole) > _LONGEST_LINE else whole.rfind("\n") + 1
        if end < len(whole):
            self._unfinished[thread] = whole[end:]
        if end:
            self._emit(whole[:end])
        return len(text)

    def flush(self) -> None:
        """Write what this thread has begun."""
        if begun := self._unfinished.pop(get_ident(), ""):
            self._emit(begun)

    def close(self) -> None:
        """Write what this thread has begun; the stream stays open."""
        self.flush()

    @property
    def buffer(self) -> io.BufferedIOBase:
        """The same log, for bytes in UTF-8."""
        return _ErrorBytes(self)

    def fileno(self) -> int:
        """Return the descriptor of the log's file or standard stream: for child processes and `faulthandler`.

        Raises io.UnsupportedOperation where the log has none (syslog, mail).
        """
        for handler in _handlers(self._log):
            with suppress(AttributeError, OSError, ValueError):
                fd = cast("Any", handler).stream.fileno()
                if isinstance(fd, int):
                    return fd
        raise io.UnsupportedOperation("fileno")

    def isatty(self) -> bool:
        """Return False: the log is not a terminal, whatever it is written to."""
        return False

    def _emit(self, text: str) -> None:
        without_stream = []
        for handler in _handlers(self._log):
            stream = cast("TextIO | None", getattr(handler, "stream", None))
            if stream is None:
                without_stream.append(handler)
                continue
            try:
                handler.acquire()
                try:
                    stream.write(text)
                    stream.flush()
                finally:
                    handler.release()
            except Exception:  # a full disk, a stream that was closed: not the application's fault
                pass
        # syslog, mail, a queue: they take records only
        for handler in without_stream:
            try:
                record: Any = self._log.makeRecord(
                    self._log.name, logging.ERROR, "wsgi.errors", 0, "%s", (text.rstrip("\n"),), None
                )
                handler.handle(record)
            except (Exception, SystemExit) as error:
                _tell_fault(f"the handler {type(handler).__name__} of the logger {self._log.name}", error)


def _handlers(log: logging.Logger) -> list[logging.Handler]:
    """Return the handlers that a record of ``log`` reaches."""
    found: list[logging.Handler] = []
    logger: logging.Logger | None = log
    while logger is not None:
        found += logger.handlers
        logger = logger.parent if logger.propagate else None
    return found
