"""Texts and tracebacks of exceptions in users' code, without the frames of the server.

No function raises, whatever the exception does when it is asked for its text, notes or causes.
"""

from __future__ import annotations

import importlib
import os
from contextlib import suppress
from types import TracebackType
from typing import Final

OUR_DIRECTORY: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
# What the file names of importlib's frames begin with: those between an import and the imported module's code
IMPORTLIB: Final = ("<frozen importlib", os.path.dirname(importlib.__file__) + os.sep)


def users_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback from the first frame on that belongs neither to the server nor to importlib, or None."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((OUR_DIRECTORY, *IMPORTLIB)):
        trace = trace.tb_next
    return trace


def format_users_error(error: BaseException) -> str:
    """Return the exception as Python prints it, from the user's first frame on, without the last line end."""
    return _format(error, users_traceback(error))


def format_error(error: BaseException) -> str:
    """Return the exception as Python prints it, without the last line end."""
    return _format(error, error.__traceback__)


def _format(error: BaseException, trace: TracebackType | None) -> str:
    # 30 modules, which no worker needs before the first error
    import traceback

    with suppress(Exception):  # its notes or causes raise
        return "".join(traceback.format_exception(type(error), error, trace)).rstrip("\n")
    try:
        head = "Traceback (most recent call last):\n" if trace is not None else ""
        return f"{head}{''.join(traceback.format_tb(trace))}{describe_error(error)}"
    except Exception:  # little stack is left (sys.setrecursionlimit)
        return type(error).__name__


def describe_error(error: BaseException) -> str:
    """Return the type and the text of an exception: ``ValueError: bad``."""
    text = error_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def error_text(error: BaseException) -> str:
    """Return the text of an exception; empty if its ``__str__`` raises."""
    try:
        return str(error)
    except BaseException:
        return ""
