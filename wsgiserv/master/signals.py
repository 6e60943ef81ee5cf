"""The signals of the master: interrupts while it starts, numbers in a socket while it runs.

A handler only queues: the interpreter's C code writes the number of each signal into a socket (signal.set_wakeup_fd),
and the loop polls that socket like everything else. So a signal interrupts nothing half-way. Until the loop runs, TERM,
INT and QUIT raise instead, because a start runs users' code (a configuration file, hooks), which may take long.
"""

from __future__ import annotations

import atexit
from _socket import socketpair
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from os import _exit
from signal import (
    SIG_BLOCK,
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    Signals,
    getsignal,
    pthread_sigmask,
    set_wakeup_fd,
    siginterrupt,
    signal,
    valid_signals,
)
from time import monotonic
from types import FrameType
from typing import Final

from wsgiserv.process import add_child_cleanup

STOP_SIGNALS = (Signals.SIGINT, Signals.SIGQUIT, Signals.SIGTERM)
_REQUESTS = (Signals.SIGHUP, Signals.SIGTTIN, Signals.SIGTTOU, Signals.SIGUSR1, Signals.SIGUSR2, Signals.SIGWINCH)
MASTER_SIGNALS = (Signals.SIGCHLD, *STOP_SIGNALS, *_REQUESTS)
# Each of these counts; several of another kind mean the same as one.
_COUNTED: Final = frozenset((Signals.SIGTERM, Signals.SIGTTIN, Signals.SIGTTOU))
# A server may have ended while its process stays (a thread of a configuration file); then a signal ends the process.
_EXIT_TIMEOUT_S: Final = 5.0
# A second stop signal within this time repeats the first: the server is already undoing its start.
_REPEAT_S: Final = 1.0

# The stop signals whose exception has been raised. A list: several `StartInterrupt` objects share it.
_raised: Final[list[int]] = []


class SignalQueue:
    """Catches `MASTER_SIGNALS` from its creation on. One per process, created in the main thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._noted: set[int] = set()
        # Noted before the last `take`, but not read from the socket by then.
        self._unread: set[int] = set()
        self.arm()

    def arm(self) -> None:
        """Catch the signals. Called again at the end of the start: users' code may have set handlers."""
        set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in MASTER_SIGNALS:
            signal(number, self._note)
            # Python sets no SA_RESTART; the C code of users' libraries is rarely ready for EINTR.
            siginterrupt(number, False)
        # Unblocks what the parent (the mask survives execve(2)) or a configuration file blocked. After the handlers:
        # a pending signal is delivered here.
        pthread_sigmask(SIG_SETMASK, ())
        add_child_cleanup(self._close)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A flood of signals fills the socket, and a hook can take the wakeup descriptor; this set loses nothing.
        self._noted.add(number)

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._reader.fileno()

    def take(self) -> list[Signals]:
        """Return the received signals in the order to handle them (see `in_order`), and forget them."""
        numbers = bytearray()
        with suppress(BlockingIOError):
            while data := self._reader.recv(4096):
                numbers += data
        # Code in this process may have taken the descriptor (asyncio does).
        set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # A call: before it the interpreter runs the handlers of all signals whose numbers have been read.
        noted = self._take_noted()
        # The interpreter writes the number before the handler notes the signal. A signal that came after the socket
        # was read is in the socket next time, and must not count twice; if it is not there either, it was lost.
        lost = self._unread.difference(numbers)
        self._unread = noted.difference(numbers)
        return in_order([*numbers, *lost])

    def _take_noted(self) -> set[int]:
        noted, self._noted = self._noted, set()
        return noted

    @contextmanager
    def held(self) -> Iterator[None]:
        """Block all signals around a fork."""
        # A signal that hits the child before `leave` would write to the socket that it shares with the master, and the
        # master would take the signal for its own.
        before = pthread_sigmask(SIG_BLOCK, valid_signals())
        try:
            yield
        finally:
            pthread_sigmask(SIG_SETMASK, before)

    def leave(self) -> None:
        """Give a child its own signal handlers. Called in the child, within `held`."""
        set_wakeup_fd(-1)
        for number in MASTER_SIGNALS:
            # A signal to all processes of the server (``pkill -HUP wsgiserv``) is meant for the master, so a request
            # does nothing in the child. Not SIG_IGN, which programs that the child executes would inherit.
            signal(number, _do_nothing if number in _REQUESTS else SIG_DFL)
        self._close()

    def end(self, status: int) -> None:
        """Handle no signal any more: the server has ended, and the process exits soon with ``status``."""
        # TERM, INT and QUIT would change the exit status. When the process is still there after 5 s they end it.
        until = monotonic() + _EXIT_TIMEOUT_S

        def exit_if_late(number: int, frame: FrameType | None) -> None:
            if monotonic() > until:
                _exit(status)

        for number in STOP_SIGNALS:
            signal(number, exit_if_late)
        ignore_requests()
        set_wakeup_fd(-1)
        signal(Signals.SIGCHLD, SIG_DFL)
        self._close()

    def _close(self) -> None:
        self._reader.close()
        self._writer.close()


def in_order(numbers: Sequence[int]) -> list[Signals]:
    """Return the master's signals among ``numbers``, oldest first, SIGCHLD before all and SIGUSR2 before SIGTERM.

    Repeated requests are returned once.
    """
    found: list[Signals] = []
    for number in numbers:
        if number in MASTER_SIGNALS and (number in _COUNTED or number not in found):
            found.append(Signals(number))
    found.sort(key=lambda number: number != Signals.SIGCHLD)
    # The kernel runs the handler of the higher number first when two signals are pending, so an upgrade and the stop of
    # this master after it arrive in the wrong order.
    upgrade, stop = Signals.SIGUSR2, Signals.SIGTERM
    if upgrade in found and stop in found and found.index(stop) < found.index(upgrade):
        found.remove(upgrade)
        found.insert(found.index(stop), upgrade)
    return found


def ignore_requests() -> None:
    """Ignore the signals that only ask for something. Called when the process is about to exit."""
    # The interpreter restores the default actions before it exits, which are to die, or to stop for good; of ignored
    # signals it does not.
    for number in _REQUESTS:
        signal(number, SIG_IGN)


def ignore_all() -> None:
    """Ignore the stop signals, too: the last function that the interpreter calls as it exits (atexit)."""
    # A second Ctrl-C, or the TERM of an impatient supervisor, must not turn an exit status into a death by signal.
    ignore_requests()
    for number in STOP_SIGNALS:
        signal(number, SIG_IGN)


# ---- while the server starts ---------------------------------------------------------------------------


# A KeyboardInterrupt: users' code that catches Exception (a configuration file, a hook) lets it through.
class StoppedWhileStarting(KeyboardInterrupt):
    """A signal stops the server while it starts."""


class StartInterrupt:
    """Raises `StoppedWhileStarting` at TERM, INT and QUIT, until the loop reads them from its `SignalQueue`."""

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
        if self._is_over or now - self._last < _REPEAT_S:
            return
        self._last = now
        if self._is_held:
            self._is_due = True
        else:
            _raised.append(number)
            raise StoppedWhileStarting

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raise at the end of the block instead of in it: between the creation of a file and the note of it."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self._is_due:
            self._is_due = False
            raise StoppedWhileStarting

    def end(self) -> None:
        """Raise no more: the server is undoing its start."""
        self._is_over = True


def raise_if_dropped() -> None:
    """Raise `StoppedWhileStarting` again if it was raised before, but the start went on."""
    # Python drops an exception in a weakref callback (importlib has one) or in a ``__del__``; users' code may catch it.
    if _raised:
        _raised.clear()
        raise StoppedWhileStarting


def catch_early() -> None:
    """Catch fatal signals from before the configuration is read until the master catches them itself.

    A stop signal raises `StoppedWhileStarting`; a request does nothing.
    """
    StartInterrupt().arm()
    # A request is meant for a server that runs already (``pkill -USR1 wsgiserv``), and its default is to kill.
    for number in (Signals.SIGHUP, Signals.SIGUSR1, Signals.SIGUSR2):
        # One that the process was started to ignore stays ignored (nohup).
        if getsignal(number) == SIG_DFL:
            signal(number, _do_nothing)
    # atexit calls the first function last, after those that a configuration file registers.
    atexit.register(ignore_all)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass
