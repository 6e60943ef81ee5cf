"""Keeps the handlers of logconfig and of the application safe: opening as root, rotation, standard streams."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from wsgiserv.logs.files import log_files
from wsgiserv.logs.output import LossyWriter, Output
from wsgiserv.logs.plain import loss_line
from wsgiserv.logs.streams import LossyText, console
from wsgiserv.safe_open import Owner, is_root, open_file

_open: Any = open


class DaemonHandler(logging.Handler):
    """A handler whose messages go to another daemon, which may be away.

    Attributes:
        tell: called with the address, what is wrong (None: messages are taken again) and the number lost meanwhile.
    """

    tell: Callable[[str, OSError | None, int], object] | None = None

    @property
    def lost(self) -> int:
        """The number of messages lost in this process."""
        return 0

    def look(self) -> None:
        """Send what is kept. Called once a second."""

    def close_in_child(self) -> None:
        """Close the socket in a child of the application; a record opens another one."""


def handlers_of(log: logging.Logger) -> list[logging.Handler]:
    """Return the handlers reached by a record of ``log``."""
    found = list(log.handlers)
    if log.propagate:
        # A logger with two names has the parents of both.
        for each in (log, getattr(log, "twin", None)):
            logger = each.parent if each is not None else None
            while logger is not None:
                found += [handler for handler in logger.handlers if not any(handler is known for known in found)]
                logger = logger.parent if logger.propagate else None
    return found


def _all_handlers(kind: type[logging.Handler]) -> list[Any]:
    """Return the handlers of that kind of all loggers."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    # By id: a handler of the application may define what equals it. A PlaceHolder has no handlers.
    found = {id(handler): handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    # By type: a proxy pretends to be another class.
    return [handler for handler in found.values() if issubclass(type(handler), kind)]


def unblock_streams() -> None:
    """Replace the streams of handlers on a standard stream or a pipe by ones without waiting.

    Called after a logging configuration: its ``console`` is such a handler. Users' own classes stay as they are.
    """
    for handler in _all_handlers(logging.StreamHandler):
        stream = handler.stream
        with suppress(AttributeError, OSError, ValueError):  # none yet; in memory; closed
            mode = os.fstat(stream.fileno()).st_mode
            if isinstance(stream, LossyText) or stat.S_ISREG(mode):
                continue
            if stream in (sys.stdout, sys.__stdout__):
                writer = console(1)
            elif stream in (sys.stderr, sys.__stderr__):
                writer = console(2)
            elif isinstance(handler, logging.FileHandler):  # of a FIFO or a terminal
                writer = LossyWriter(Output(handler.baseFilename, 1, Owner(0, 0)), loss_line)
                stream.close()
            else:
                continue
            handler.stream = LossyText(writer)


def open_handler_files() -> dict[str, int]:
    """Return the descriptors of all file handlers by their absolute paths."""
    found: dict[str, int] = {}
    for handler in _all_handlers(logging.FileHandler):
        with suppress(AttributeError, OSError, ValueError):  # none yet; closed; in memory
            found[os.path.abspath(handler.baseFilename)] = handler.stream.fileno()
    return found


def reopen_handlers(owner: Owner) -> list[str]:
    """Open the files of all file handlers again; return the failures. Never raises.

    Args:
        owner: the owner of a file that root creates.
    """
    failures: list[str] = []
    for handler in _all_handlers(logging.FileHandler):
        handler.acquire()
        try:
            _reopen(handler, owner)
        except (OSError, ValueError) as error:
            failures.append(f"{handler.baseFilename}: {error}")
        finally:
            handler.release()
    return failures


def _reopen(handler: Any, owner: Owner) -> None:
    old = handler.stream
    if isinstance(old, LossyText):
        old.writer.reopen()
    elif old is not None:
        # `_builtin_open`: a private name of `logging`, which FileHandler opens its file with since Python 3.10, so that
        # subclasses with an `_open` of their own (WatchedFileHandler, a rotating one) go through it, too.
        handler._builtin_open = partial(_open_for_handler, owner, True)
        try:
            handler.stream = handler._open()
        finally:
            handler._builtin_open = partial(_open_for_handler, owner, False)
        remember = getattr(handler, "_statstream", None)
        if remember is not None:  # WatchedFileHandler: or it would open the file itself at the next record
            remember()
        old.close()  # last: where the new file cannot be opened, the old one stays in use


@contextmanager
def handlers_open_safely(owner: Owner) -> Iterator[None]:
    """Let root's new handlers open their files without following others' links, and give the files to ``owner``."""
    if not is_root():
        yield
        return
    # FileHandler.__init__ looks up `open` among the module's names before the builtins, and remembers it.
    module: Any = logging
    module.open = partial(_open_for_handler, owner, False)
    try:
        yield
    finally:
        del module.open


def _open_for_handler(owner: Owner, again: bool, file: str, *args: Any, **kwargs: Any) -> Any:
    """Do as `open`; take the master's newest descriptor of a file that it alone may open, and of any ``again``."""
    return _open(file, *args, opener=partial(_open_or_take, owner, again), **kwargs)


def _open_or_take(owner: Owner, again: bool, path: str, flags: int) -> int:
    path = os.path.abspath(path)
    if again and (fd := log_files.latest(path)) is not None:
        return fd
    if is_root():  # without following others' links
        try:
            return open_file(path, flags & ~(os.O_CREAT | os.O_EXCL), owner)
        except OSError as error:
            error.filename = path  # not the one part of it that was being opened
            raise
    try:
        return os.open(path, flags, 0o666)
    except PermissionError:
        if (latest := log_files.latest(path)) is None:
            raise
        return latest
