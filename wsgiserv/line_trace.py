"""Prints each line of Python that this process executes, as ``module:line: source`` (the setting `spew`)."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from linecache import getline
from types import FrameType
from typing import Any


def trace_lines() -> None:
    """Trace this thread, the threads to come, and their children, until the process ends."""
    threading.settrace(_on_event)
    sys.settrace(_on_event)


def _on_event(frame: FrameType, event: str, argument: Any) -> Any:
    if event == "line":
        name = frame.f_globals.get("__name__", "?")
        source = getline(frame.f_code.co_filename, frame.f_lineno)
        # What is raised here would be raised in the traced code: of a reader that has gone, of a closed stream.
        with suppress(Exception):
            print(f"{name}:{frame.f_lineno}: {source.rstrip()}")
    return _on_event
