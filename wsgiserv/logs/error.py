"""The error log: what the server and the application have to say to the people who run them.

Owns: the logger `wsgiserv.error` (and `gunicorn.error`, which applications borrow handlers from), its
handler and line format, `wsgi.errors`, capture_output, reopening after a rotation.
Must not know: who logs what.

The one rule: a log that cannot be written (full disk, closed terminal) must never become a fault of the
server. Nothing here raises into a caller; lines that are lost are counted, and the count is written when
the log can be written again.
"""

from __future__ import annotations

import logging
import os
import sys
from _thread import get_ident
from collections.abc import Iterable, Iterator, Sequence
from os import dup2
from typing import TYPE_CHECKING, Any, TextIO, cast

from wsgiserv.errors import ConfigError
from wsgiserv.logs.escape import escape_keeping_lines
from wsgiserv.logs.logconfig import ACCESS_NAMES, ERROR_NAMES, apply_logconfig
from wsgiserv.logs.output import Output, Owner
from wsgiserv.unpatched import RealRLock

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = ["ErrorStream", "access_logger", "cannot_open", "open_error_log", "reopen_error_log"]

# gunicorn's, since people's tools read it
_LINE = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
_DATE = "[%Y-%m-%d %H:%M:%S %z]"

# How long a line waits for a full pipe or terminal in non-blocking mode before it is given up.
_PATIENCE_S = 0.2

# An application that never ends its line in wsgi.errors gets it written in pieces of this many characters.
_LONGEST_LINE = 65536


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of ``record``; control characters other than line ends are made visible.

        Callers escape client text themselves, line ends too; this catches what is in exception messages.
        """
        return escape_keeping_lines(super().format(record))


class _Logger(logging.Logger):
    """A logger that an application cannot switch off by accident.

    `logging.config.dictConfig` disables every logger it does not name unless it is told otherwise, so a
    Django project's LOGGING would silence the server that runs it.
    """

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        pass


class _HandlerStream:
    """A handler's destination as the text stream that people expect in ``handler.stream``."""

    def __init__(self, handler: _ErrorLogHandler) -> None:
        self._handler = handler

    def write(self, text: str) -> int:
        self._handler.write(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def fileno(self) -> int:
        return self._handler.output.fd

    def isatty(self) -> bool:
        return os.isatty(self._handler.output.fd)


class _ErrorLogHandler(logging.Handler):
    """Writes each record at once, whole, to an `Output`."""

    _own_lock: RealRLock

    def __init__(self, output: Output) -> None:
        self._own_lock = RealRLock()
        super().__init__()
        self.output = output
        self.stream = _HandlerStream(self)
        self._lost = 0
        self.setFormatter(_Formatter(_LINE, _DATE))

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
            text = f"(a log message could not be formatted: {error!r}) {record.msg!r}"
        self.write(text + "\n")

    def write(self, text: str) -> None:
        """Write ``text`` as it is. May be called in any thread. Never raises."""
        data = text.encode("utf-8", "backslashreplace")
        self.acquire()
        try:
            if self._lost:
                data = self._loss().encode() + data
            done, error = self.output.write(data, _PATIENCE_S)
            if error is None:
                self._lost = 0
            elif done == 0 or not self._lost:
                self._lost += 1
        finally:
            self.release()

    def _loss(self) -> str:
        what = f"The error log could not be written for a while: {self._lost} messages are lost."
        record = logging.LogRecord("wsgiserv.error", logging.WARNING, "", 0, what, None, None)
        return self.format(record) + "\n"

    def close(self) -> None:
        """Leave the destination open.

        An application's `dictConfig` and `logging.shutdown` close every handler there is, but the server is
        not done with this one. `open_error_log` closes the destination when another takes its place.
        """
        super().close()


class _Capture:
    """Sends descriptors 1 and 2 to the error log's file (capture_output), and back."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._saved = [self._duplicate(1), self._duplicate(2)]
        self.attach()

    @staticmethod
    def _duplicate(fd: int) -> int | None:
        try:
            return os.dup(fd)
        except OSError:
            return None  # it was closed

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):  # None under a daemon, broken, closed
                pass

    def attach(self) -> None:
        self._flush()
        for fd in (1, 2):
            dup2(self._fd, fd)
        # stdout would hold what the application prints until 8 KiB are full: it is a log now. And where Python does not
        # buffer (PYTHONUNBUFFERED) `print` would write word by word, and other processes in between.
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure:
                reconfigure(line_buffering=True, write_through=False)

    def detach(self) -> None:
        self._flush()
        for fd, saved in zip((1, 2), self._saved, strict=True):
            if saved is not None:
                dup2(saved, fd)
                os.close(saved)


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
    _fill_standard_streams()
    try:
        output = Output(settings.errorlog, 2, Owner(settings.user, settings.group))
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
        _opened.capture = _Capture(output.fd)
    if old_handler:
        old_handler.output.close()
        old_handler.output = output  # for whoever still holds it: its descriptor may be a socket soon
    return ours


def _fill_standard_streams() -> None:
    """Open the null device in place of standard streams that are closed.

    Else the next socket would be descriptor 1 or 2, and whatever is printed would go to a client.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


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
    if handler is not None:
        handler.acquire()
        try:
            handler.output.reopen()
            if _opened.capture:
                _opened.capture.attach()
        except OSError as error:
            failures.append(f"{handler.output.path}: {error.strerror}")
        finally:
            handler.release()
    for file_handler in _file_handlers():
        file_handler.acquire()
        try:
            if (old := file_handler.stream) is not None:
                file_handler.stream = file_handler._open()
                old.close()
        except (OSError, ValueError) as error:
            failures.append(f"{file_handler.baseFilename}: {error}")
        finally:
            file_handler.release()
    for failure in failures:
        logging.getLogger(ERROR_NAMES[0]).warning(
            "Cannot reopen a log file, the old one stays in use: %s", failure
        )


def _file_handlers() -> Iterator[logging.FileHandler]:
    seen = set()
    loggers = list(logging.root.manager.loggerDict.values())
    for logger in [logging.root, *loggers]:
        for handler in getattr(logger, "handlers", ()):  # a PlaceHolder has none
            if isinstance(handler, logging.FileHandler) and id(handler) not in seen:
                seen.add(id(handler))
                yield handler


class ErrorStream:
    """``wsgi.errors``: a text stream into the error log, without its line format (PEP 3333).

    One object serves a whole worker. Each thread's text is put together to whole lines, so that the two
    writes of a ``print(..., file=environ["wsgi.errors"])`` in one thread are not torn apart by another's.
    `write` raises TypeError for anything but str; no other error reaches the application.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, log: logging.Logger) -> None:
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

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of ``lines``; they bring their own line ends."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what this thread has begun."""
        if begun := self._unfinished.pop(get_ident(), ""):
            self._emit(begun)

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
            handler.acquire()
            try:
                stream.write(text)
                stream.flush()
            except Exception:  # a full disk, a stream that was closed: not the application's fault
                pass
            finally:
                handler.release()
        # syslog, mail, a queue: they take records only
        for handler in without_stream:
            record: Any = self._log.makeRecord(
                self._log.name, logging.ERROR, "wsgi.errors", 0, "%s", (text.rstrip("\n"),), None
            )
            try:
                handler.handle(record)
            except Exception:
                pass


def _handlers(log: logging.Logger) -> list[logging.Handler]:
    """Return the handlers that a record of ``log`` reaches."""
    found: list[logging.Handler] = []
    logger: logging.Logger | None = log
    while logger is not None:
        found += logger.handlers
        logger = logger.parent if logger.propagate else None
    return found
