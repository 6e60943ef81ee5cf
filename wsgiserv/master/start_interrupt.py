"""TERM, INT and QUIT while the server starts: they end the start, and it takes back what it has done.

Owns: `StartInterrupt`: the handlers of these signals until the master's loop reads them from its queue.
Must not know: what is being started.

A start runs code of other people (a configuration file, hooks), which may take long: so the handler raises. It must
not raise between the making of a file and the note that it has been made: there it waits.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from signal import SIG_DFL, SIGHUP, SIGUSR1, SIGUSR2, getsignal, signal
from time import monotonic
from types import FrameType
from typing import Final

from wsgiserv.master.signals import STOP_SIGNALS, ignore_all

__all__ = ["StartInterrupt", "StoppedWhileStarting", "catch_early", "raise_if_dropped"]

# Sooner than this a further signal says what the first has said: the start is being taken back.
_AGAIN_S: Final = 1.0


# Whether a handler has raised. A list: its handlers belong to several objects.
_raised: Final[list[int]] = []


class StoppedWhileStarting(KeyboardInterrupt):
    """The server was told to stop while it was starting."""


class StartInterrupt:
    """Raises `StoppedWhileStarting` when the process is told to stop."""

    def __init__(self) -> None:
        self._last = -inf
        self._is_held = False
        self._is_due = False
        self._is_over = False

    def arm(self) -> None:
        """Catch the signals."""
        for number in STOP_SIGNALS:
            signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = monotonic()
        if self._is_over or now - self._last < _AGAIN_S:
            return
        self._last = now
        if self._is_held:
            self._is_due = True
        else:
            _raised.append(number)
            raise StoppedWhileStarting

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raise at the end of the block instead of within it. For what takes no time."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_due:
            self._is_due = False
            raise StoppedWhileStarting

    def end(self) -> None:
        """Raise no more: the start has failed, or was stopped, and is being taken back."""
        self._is_over = True


def raise_if_dropped() -> None:
    """Raise `StoppedWhileStarting` if it has been raised before, and the start goes on all the same.

    Python drops an exception in a weakref callback (importlib has one) or in a ``__del__``; people's code may catch it.
    """
    if _raised:
        _raised.clear()
        raise StoppedWhileStarting


def catch_early() -> None:
    """Catch what would kill the process, from before the configuration is read until the master catches signals.

    What stops, ends the start with `StoppedWhileStarting`. What asks for something means a server that serves already
    (``pkill -USR1 wsgiserv``): there is nothing to do yet. What the process was started to ignore stays ignored.
    """
    StartInterrupt().arm()
    for number in (SIGHUP, SIGUSR1, SIGUSR2):
        if getsignal(number) == SIG_DFL:
            signal(number, _nothing_to_do)
    # The first to be registered is called last, after all that a configuration file has registered.
    atexit.register(ignore_all)


def _nothing_to_do(number: int, frame: FrameType | None) -> None:
    """There is no log yet, no worker and no server."""
