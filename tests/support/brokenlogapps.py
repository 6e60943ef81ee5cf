"""Applications that hurt the server's logs: filters that raise, closed streams, a stack that is used up."""

from __future__ import annotations

import logging
import logging.config
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import apps

_LOGGERS = [logging.getLogger(f"{server}.{log}") for server in ("wsgiserv", "gunicorn") for log in ("error", "access")]


class _BrokenFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Fail."""
        raise RuntimeError("a filter that fails")


class _BrokenHandler(logging.Handler):
    def handle(self, record: logging.LogRecord) -> bool:
        """Fail."""
        raise RuntimeError("a handler that fails")


class _LeavingHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Leave."""
        sys.exit("a handler that leaves")


class _BrokenFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Fail."""
        raise RuntimeError("a formatter that fails")


def _break_filters() -> None:
    for logger in _LOGGERS:
        logger.addFilter(_BrokenFilter())


def _break_filters_of_handlers() -> None:
    for logger in _LOGGERS:
        for handler in logger.handlers:
            handler.addFilter(_BrokenFilter())


def _add_broken_handlers() -> None:
    for logger in _LOGGERS:
        logger.addHandler(_BrokenHandler())


def _add_leaving_handlers() -> None:
    for logger in _LOGGERS:
        logger.addHandler(_LeavingHandler())


def _break_formatters() -> None:
    for logger in _LOGGERS:
        for handler in logger.handlers:
            handler.setFormatter(_BrokenFormatter())


def _break_factory() -> None:
    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        raise RuntimeError("a factory that fails")

    logging.setLogRecordFactory(make)


def _factory_of_nothing() -> None:
    logging.setLogRecordFactory(lambda *args, **kwargs: None)  # type: ignore[arg-type,return-value]


def _remove_handlers() -> None:
    for logger in _LOGGERS:
        logger.handlers.clear()


def _shut_down() -> None:
    logging.shutdown()


def _configure() -> None:
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})


def _no_streams() -> None:
    sys.stdout = sys.stderr = None


def _closed_streams() -> None:
    for logger in _LOGGERS:
        logger.addHandler(logging.StreamHandler(sys.stderr))  # it complains there, too
    sys.stdout.close()
    sys.stderr.close()


def _clock_of_the_logs() -> None:
    import time

    times = iter([1e20, -1e20, float("nan"), float("inf"), 0.0] * 1000)
    time.time = lambda: next(times)


BREAKS: dict[str, Callable[[], None]] = {
    "filters": _break_filters,
    "filters of handlers": _break_filters_of_handlers,
    "handlers": _add_broken_handlers,
    "leaving handlers": _add_leaving_handlers,
    "formatters": _break_formatters,
    "factory": _break_factory,
    "factory of nothing": _factory_of_nothing,
    "handlers removed": _remove_handlers,
    "shutdown": _shut_down,
    "dictConfig": _configure,
    "no streams": _no_streams,
    "closed streams": _closed_streams,
    "clock": _clock_of_the_logs,
}

if broken := os.environ.get("WSGISERV_TEST_BREAKS"):
    BREAKS[broken]()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Break what the path names, or be `apps.app`."""
    path = environ["PATH_INFO"]
    done = b"done\n"
    if path == "/recursion":
        sys.setrecursionlimit(_least_limit())
    elif path == "/close-streams":
        os.close(1)
        os.close(2)
    elif path == "/write-to-streams":
        for fd in (1, 2):
            try:
                os.write(fd, b"printed by the application\n")
            except OSError:
                done = b"failed\n"
    elif path == "/warn":
        logging.getLogger("gunicorn.error").warning("warned by the application %s", apps.argument(environ))
        if sys.stderr is not None and not sys.stderr.closed:
            warnings.warn("a warning on the standard error", stacklevel=1)
    elif path == "/print":
        print("printed", apps.argument(environ), "x" * 200)
        print("printed", apps.argument(environ), file=sys.stderr)
    else:
        return apps.app(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(done)))])
    return [done]


def _least_limit() -> int:
    """Return a limit that leaves the application almost nothing."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return depth + 12
