"""The loggers of the error log and of the access log: each has two names, ours and gunicorn's, and one state.

Handlers, filters, level and `propagate` that a configuration file, a hook or the application sets on either logger
count for both, whenever that happens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from wsgiserv.config.hook_config import HookConfig
from wsgiserv.logs.config import ACCESS_NAMES, ERROR_NAMES
from wsgiserv.logs.handlers import handlers_of


class _State:
    """The state of two loggers.

    Attributes:
        names: their names.
        handlers, filters, level, propagate: as of `logging.Logger`.
        given_propagate: the last `propagate` that the server has set; another one is the user's.
        is_on: whether the server has given them its handler (the access log's).
        cfg: the configuration of the last `open_error_log`, as hooks see it.
        kept: what is to live as long as the loggers.
        on_change: called when handlers, filters or the level may have changed.
    """

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names
        self.handlers: list[logging.Handler] = []
        self.filters: list[Any] = []
        self.level = logging.NOTSET
        self.propagate = self.given_propagate = False
        self.on_change: Callable[[], object] | None = None
        self.is_on = False
        self.kept: object = None
        self.cfg: HookConfig | None = None

    def changed(self) -> None:
        """Tell of a change."""
        if self.on_change is not None:
            self.on_change()

    def begin(self) -> None:
        """Do not propagate, unless a user has asked for it. Called before a logging configuration is applied."""
        if self.propagate is self.given_propagate:
            self.propagate = False
        self.given_propagate = False

    def note_propagate(self) -> None:
        """Note `propagate` as the server's own setting."""
        self.given_propagate = self.propagate


ERROR: Final = _State(ERROR_NAMES)
ACCESS: Final = _State(ACCESS_NAMES)
_STATES: Final = {name: state for state in (ERROR, ACCESS) for name in state.names}


def _attribute(name: str) -> Any:
    """Return a property for an attribute of the state."""

    def read(self: logging.Logger) -> Any:
        return getattr(_STATES[self.name], name)

    def write(self: logging.Logger, value: Any) -> None:
        setattr(_STATES[self.name], name, value)
        _STATES[self.name].changed()

    return property(read, write)


class SharedLogger(logging.Logger):
    """One of two loggers with one state. An application cannot disable it by accident."""

    # `logging.config.dictConfig` disables every logger that it does not name, unless it is told otherwise: a Django
    # project's LOGGING would silence its server.
    disabled: Any = property(lambda self: False, lambda self, value: None)
    handlers: Any = _attribute("handlers")
    filters: Any = _attribute("filters")
    level: Any = _attribute("level")
    propagate: Any = _attribute("propagate")

    @property
    def twin(self) -> logging.Logger:
        """The logger of the other name."""
        ours, borrowed = _STATES[self.name].names
        return logging.getLogger(borrowed if self.name == ours else ours)

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Add a handler, to both loggers."""
        super().addHandler(hdlr)
        _STATES[self.name].changed()

    def removeHandler(self, hdlr: logging.Handler) -> None:
        """Remove a handler, of both loggers."""
        super().removeHandler(hdlr)
        _STATES[self.name].changed()

    def addFilter(self, filter: Any) -> None:
        """Add a filter, to both loggers."""
        super().addFilter(filter)
        _STATES[self.name].changed()

    def removeFilter(self, filter: Any) -> None:
        """Remove a filter, of both loggers."""
        super().removeFilter(filter)
        _STATES[self.name].changed()

    def callHandlers(self, record: logging.LogRecord) -> None:
        """Give ``record`` to all handlers that either name leads to."""
        # The base's method: agents (Sentry's) replace it, to see records.
        super().callHandlers(record)
        if self.propagate:
            own = _chain(self)
            for handler in handlers_of(self):
                if record.levelno >= handler.level and not any(handler is known for known in own):
                    handler.handle(record)


def _chain(log: logging.Logger) -> list[logging.Handler]:
    """Return the handlers that the name of ``log`` alone leads to."""
    found: list[logging.Handler] = []
    logger: logging.Logger | None = log
    while logger is not None:
        found += logger.handlers
        logger = logger.parent if logger.propagate else None
    return found


def share(name: str, kind: type[SharedLogger]) -> logging.Logger:
    """Return the logger ``name`` as one of that kind."""
    logger = logging.getLogger(name)
    if not isinstance(logger, kind):
        # logging.setLoggerClass() would not do: a configuration file or an early import may have asked for
        # gunicorn.error already, and holds the logger, so it must change its class in place.
        state, before = _STATES[name], vars(logger)
        state.handlers += [each for each in before.pop("handlers", ()) if each not in state.handlers]
        state.filters += [each for each in before.pop("filters", ()) if each not in state.filters]
        # gunicorn overrides these two as well.
        before.pop("level", None)
        before.pop("propagate", None)
        # Held by a logger, and so by the module logging: at the end of the interpreter a handler must not go before
        # that module does, which would run code of gevent's that has gone.
        before["_state"] = state
        state.kept = access_handler
        logger.__class__ = kind
    return logger


class AccessHandler(logging.Handler):
    """The access log as a handler of its loggers. One for the process, made by the master before it forks.

    Attributes:
        sink: takes each line; None in a process without an open access log.
    """

    sink: Callable[[str], object] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nobody has given it a filter, a formatter or a level: then a record need not be made."""
        return not self.filters and self.formatter is None and self.level <= logging.INFO

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record's text to the access log."""
        if self.sink is not None:
            try:
                self.sink(self.format(record))
            except Exception:
                self.handleError(record)

    def addFilter(self, filter: Any) -> None:
        """As of the base."""
        super().addFilter(filter)
        ACCESS.changed()

    def removeFilter(self, filter: Any) -> None:
        """As of the base."""
        super().removeFilter(filter)
        ACCESS.changed()

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        """As of the base."""
        super().setFormatter(fmt)
        ACCESS.changed()

    def setLevel(self, level: int | str) -> None:
        """As of the base."""
        super().setLevel(level)
        ACCESS.changed()


access_handler: Final = AccessHandler()


def begin_access_loggers(is_on: bool) -> None:
    """Make the loggers of the access log those of this module, with the server's handler if there is an access log.

    Called by the master before a logging configuration is applied: what that, a hook or an application removes later
    stays removed, as with gunicorn.
    """
    for name in ACCESS_NAMES:
        share(name, SharedLogger)
    ACCESS.begin()
    ACCESS.level = logging.INFO
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]  # as setLevel() does
    others = [each for each in ACCESS.handlers if each is not access_handler]
    ACCESS.handlers[:] = [access_handler, *others] if is_on else others
    ACCESS.is_on = is_on


def needs_records() -> bool:
    """Tell whether requests have to go through the loggers: something else than the access log itself listens there."""
    logger: Any = logging.getLogger(ACCESS_NAMES[1])
    reached = handlers_of(logger)
    is_direct = len(reached) == 1 and reached[0] is access_handler and access_handler.is_plain
    return not is_direct or bool(ACCESS.filters) or ACCESS.level > logging.INFO
