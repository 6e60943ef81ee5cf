"""Makes the logger of a class of the user's (``logger_class``), and calls it as gunicorn calls it.

Nothing here is imported unless the setting names such a class.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from wsgiserv.app.loader import prepare_path
from wsgiserv.config.settings import Settings
from wsgiserv.config.users_view import cfg_for_users
from wsgiserv.errors import ConfigError
from wsgiserv.logs.format import template_for_gunicorn
from wsgiserv.object_paths import NotFoundError, find_object
from wsgiserv.process import leave_if_child
from wsgiserv.stand_ins import is_installed, supplied_imports
from wsgiserv.tracebacks import describe_error, format_users_error
from wsgiserv.user_code import is_a

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "exception": 40, "critical": 50}

# Takes the level, the message, its arguments, exc_info and the exception of the user's code.
Fallback = Callable[[int, object, Any, Any, BaseException], None]


def open_logger(
    settings: Settings,
    before: Any,
    found: Sequence[tuple[logging.Logger, list[logging.Handler]]],
    owned: Sequence[logging.Handler],
    fallback: Fallback,
) -> tuple[Any, list[logging.Handler]]:
    """Return the logger of ``settings.logger_class``, and the handlers that it has set.

    Args:
        settings: the configuration.
        before: the logger of the configuration before, or None.
        found: the loggers of the logs, each with its handlers before.
        owned: the handlers of the server, the new one first, and of the logger before.
        fallback: writes a record whose logging has raised.

    Raises:
        ConfigError: the class cannot be imported, or its setup raises.
    """
    kind = find_logger_class(settings)
    before = before if type(before) is kind else None
    servers = owned[:2]
    for log, handlers in found:
        # Those of the logger before stay, those too that its __init__ has added: `setup` replaces its own.
        stay = dict.fromkeys([*log.handlers, *(handlers if before is not None else ())])
        log.handlers[:] = [handler for handler in stay if handler not in servers]
    others = {id(handler) for log, _ in found for handler in log.handlers if handler not in owned}
    logger = _make_logger(kind, settings, before, fallback)
    return logger, [handler for log, _ in found for handler in log.handlers if id(handler) not in others]


def _make_logger(kind: type[Any], settings: Settings, before: Any, fallback: Fallback) -> Any:
    """Return a logger of a user's class: a new one, or ``before``.

    Args:
        kind: the class.
        settings: the configuration.
        before: the logger of the configuration before if it is of this class, or None. As with gunicorn its ``setup``
            is called again.
        fallback: writes a record whose logging has raised.

    Raises:
        ConfigError: its setup raises.
    """
    cfg = cfg_for_users(settings, access_log_format=_access_format(settings))
    try:
        if before is not None:
            _set_up_again(before, cfg)
            return before
        install = getattr(kind, "install", None)
        if install is not None:
            install()
        logger = kind(cfg)
        missing = [name for name in ("access", *LEVELS) if not callable(getattr(logger, name, None))]
        if missing:
            raise TypeError(f"it has no method {', '.join(missing)}")
        close_on_exec = getattr(logger, "close_on_exec", None)
        if close_on_exec is not None:
            close_on_exec()
    except BaseException as error:
        leave_if_child(error)
        if not is_a(error, (Exception, SystemExit)):
            raise
        text = f"{_named(settings)} cannot be used: {describe_error(error)}"
        raise ConfigError(f"WS1082 {text}\n{format_users_error(error)}") from None
    for name, level in LEVELS.items():
        # On the object: the class's own calls of super() go past them.
        setattr(logger, name, partial(_log_safely, getattr(logger, name), level, fallback))
    return logger


def _set_up_again(logger: Any, cfg: Any) -> None:
    """Call ``setup`` with new settings; with the old ones if it raises, as gunicorn does."""
    old = getattr(logger, "cfg", None)
    try:
        logger.setup(cfg)
    except (Exception, SystemExit):
        with suppress(Exception):
            logger.setup(old)
        raise


def _named(settings: Settings) -> str:
    kind = settings.logger_class
    return f"logger_class = {kind!r}" if isinstance(kind, str) else f"logger_class = {kind.__qualname__}"  # type: ignore[union-attr]


def _access_format(settings: Settings) -> str:
    template = template_for_gunicorn(settings.access_log_format)
    if template is None:
        raise ConfigError(
            f"WS1081 access_log_format = {settings.access_log_format!r} cannot be used with {_named(settings)}, which "
            "makes the lines itself. Accepted: common, combined, or a format of atoms such as %(h)s."
        )
    return template


def find_logger_class(settings: Settings) -> type[Any]:
    """Return the class. Raises ConfigError if it cannot be imported, or is no class."""
    kind: Any = settings.logger_class
    if isinstance(kind, str):
        path = f"wsgiserv.{kind}" if kind.startswith("gunicorn.") and not is_installed() else kind
        before = list(sys.path)
        try:
            # As for the application; the master's own path stays as it is.
            prepare_path(settings.chdir, settings.pythonpath)
            with supplied_imports(None):
                kind = find_object(path)
        except NotFoundError as error:
            accepted = "Accepted: a class derived from gunicorn.glogging.Logger, or its path package.module.Class."
            raise ConfigError(f"WS1080 {_named(settings)}: {error} {accepted}{error.trace}") from None
        finally:
            sys.path[:] = before
    if not is_a(kind, type):
        text = f"{_named(settings)} is not a class. Accepted: one derived from gunicorn.glogging.Logger."
        raise ConfigError(f"WS1083 {text}")
    return kind


def _log_safely(
    method: Callable[..., Any], level: int, fallback: Fallback, msg: object, *args: Any, **kwargs: Any
) -> None:
    """Call a method of the logger; no exception of it ends the process that logs."""
    try:
        method(msg, *args, **kwargs)
    except (Exception, SystemExit) as error:
        fallback(level, msg, args, kwargs.get("exc_info"), error)


# ---- the access log ----------------------------------------------------------------------------------------


class LoggedRequest:
    """A request with the attributes of gunicorn's, made of its environ."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self.method = environ["REQUEST_METHOD"]
        self.uri = environ["RAW_URI"]
        self.path = environ.get("PATH_INFO", "")
        self.query = environ.get("QUERY_STRING", "")
        self.fragment = ""
        self.version = (1, 0) if environ["SERVER_PROTOCOL"] == "HTTP/1.0" else (1, 1)
        self.scheme = environ.get("wsgi.url_scheme", "http")
        self.headers = [
            (key.removeprefix("HTTP_").replace("_", "-"), value)
            for key, value in environ.items()
            if key.startswith("HTTP_") or (key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
        ]
        self.trailers: list[tuple[str, str]] = []
        self.body = environ.get("wsgi.input")
        self.peer_addr = self.remote_addr = (environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT", "0"))


class LoggedResponse:
    """A response with the attributes of gunicorn's.

    Attributes:
        aborted: whether it ended early.
    """

    def __init__(
        self, request: LoggedRequest, status: int, headers: Sequence[tuple[str, str]], sent: int, aborted: bool
    ) -> None:
        self.req = request
        self.status_code = status
        self.status = f"{int(status)} {_PHRASES.get(status, '')}".rstrip()
        self.headers = list(headers)
        self.sent = sent
        self.aborted = aborted
        self.headers_sent = True
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        self.response_length = int(lengths[0]) if lengths else None

    def should_close(self) -> bool:
        """Return whether the response has ended its connection early."""
        return self.aborted


_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}
# A refused request, or one that was lost with its worker, may lack any.
_LEAST: Final = {"RAW_URI": "-", "SERVER_PROTOCOL": "-"}


def call_access(
    logger: Any,
    environ: dict[str, Any],
    status: int,
    headers: Sequence[tuple[str, str]],
    sent: int,
    duration_s: float,
    aborted: bool = False,
    pid: int = 0,
) -> None:
    """Call ``logger.access`` for one request; the other arguments are the fields of an `Exchange`."""
    if "REQUEST_METHOD" not in environ:
        return  # no request line has been read: gunicorn does not call it either, and classes rely on that
    if not environ.keys() >= _LEAST.keys():
        environ = {**_LEAST, **environ}
    request = LoggedRequest(environ)
    response = LoggedResponse(request, status, headers, sent, aborted)
    logger.access(response, request, environ, timedelta(seconds=duration_s))
