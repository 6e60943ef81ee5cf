"""The master's signals, as numbers in a socket.

Owns: the handlers of the master's signals, the wakeup socket pair, the way out of both for a child.
Must not know: what a signal means.

A handler only queues: the interpreter's own C code writes the number of each signal into the socket
(signal.set_wakeup_fd), which the loop polls like everything else. So nothing is ever interrupted half-way.
The interpreter writes the number of every signal with a handler there, also of those that a configuration file
catches for itself. A flood of them fills the socket, and a hook can take the wakeup descriptor: the handler notes
the signal as well.
"""

from __future__ import annotations

from _socket import socketpair
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import _exit
from signal import (
    SIG_BLOCK,
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    SIGTTIN,
    SIGTTOU,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
    Signals,
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

__all__ = ["MASTER_SIGNALS", "STOP_SIGNALS", "SignalQueue", "ignore_all", "ignore_requests"]

MASTER_SIGNALS = (
    SIGCHLD,
    SIGHUP,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    SIGTTIN,
    SIGTTOU,
    SIGUSR1,
    SIGUSR2,
    SIGWINCH,
)

STOP_SIGNALS = (SIGINT, SIGQUIT, SIGTERM)
_REQUESTS = (SIGHUP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH)
# Of these each one counts; of the others one is as good as many.
_COUNTED: Final = frozenset((SIGTERM, SIGTTIN, SIGTTOU))
# A server that has ended, but whose process stays for longer (a thread of a configuration file), can be stopped.
_LAST_S: Final = 5.0


class SignalQueue:
    """Catches `MASTER_SIGNALS` from its creation on. One per process, made in the main thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._noted: set[int] = set()
        # Noted before the last `take`, and their numbers have not been read from the socket.
        self._unread: set[int] = set()
        self.arm()

    def arm(self) -> None:
        """Catch the signals. Again at the end of the start, whose code may have had handlers of its own."""
        set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in MASTER_SIGNALS:
            signal(number, self._note)
            siginterrupt(number, False)
        # Also what was blocked by the parent, which execve(2) keeps, or by a configuration file. After the handlers: a
        # signal that has waited is delivered here.
        pthread_sigmask(SIG_SETMASK, ())
        add_child_cleanup(self._close)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler of all of them: the interpreter has written the number into the socket, if there was room."""
        self._noted.add(number)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has come."""
        return self._reader.fileno()

    def take(self) -> list[Signals]:
        """Return the signals that have come, oldest first, but SIGCHLD before all and SIGUSR2 before SIGTERM.

        Of those that only ask for something once, one is returned however many have come.
        """
        numbers = bytearray()
        while True:
            try:
                data = self._reader.recv(4096)
            except BlockingIOError:
                break
            if not data:
                break
            numbers += data
        # Whatever runs in this process may have taken the descriptor (asyncio does).
        set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # A call: before it the interpreter runs the handlers of all whose numbers have been read.
        noted = self._take_noted()
        # The number is written before the signal is noted. One that has come since the socket was read is there the
        # next time, and must not count twice; one that is not there then, either, was lost.
        lost = self._unread.difference(numbers)
        self._unread = noted.difference(numbers)
        return in_order([*numbers, *lost])

    def _take_noted(self) -> set[int]:
        noted, self._noted = self._noted, set()
        return noted

    @contextmanager
    def held(self) -> Iterator[None]:
        """Block all signals while forking.

        Else one that hits the child before `leave` would be written into the socket it shares with us, and
        the master would take it for its own.
        """
        before = pthread_sigmask(SIG_BLOCK, valid_signals())
        try:
            yield
        finally:
            pthread_sigmask(SIG_SETMASK, before)

    def leave(self) -> None:
        """Give a child its own signal handlers. Called in the child, under `held`.

        A signal to all processes of the server (``pkill -HUP wsgiserv``) means the master: what asks for something
        does nothing to the child. The others have their defaults.
        """
        set_wakeup_fd(-1)
        for number in MASTER_SIGNALS:
            signal(number, _ignored if number in _REQUESTS else SIG_DFL)
        self._close()

    def end(self, status: int) -> None:
        """Heed no signal any more: the server has ended, and the process is about to, with ``status``.

        TERM, INT and QUIT would change its status. When the process is still there after 5 s they end it.
        """
        until = monotonic() + _LAST_S

        def late(number: int, frame: FrameType | None) -> None:
            if monotonic() > until:
                _exit(status)

        for number in STOP_SIGNALS:
            signal(number, late)
        ignore_requests()
        set_wakeup_fd(-1)
        signal(SIGCHLD, SIG_DFL)
        self._close()

    def _close(self) -> None:
        self._reader.close()
        self._writer.close()


def in_order(numbers: Sequence[int]) -> list[Signals]:
    """Return what is to be answered of the signals that have come, in the order of `SignalQueue.take`.

    When two signals are pending the kernel runs the handler of the higher number first: an upgrade (SIGUSR2), and
    the wish that this master leaves after it (SIGTERM), come the wrong way round.
    """
    found: list[Signals] = []
    for number in numbers:
        if number in MASTER_SIGNALS and (number in _COUNTED or number not in found):
            found.append(Signals(number))
    if SIGCHLD in found:
        found.remove(SIGCHLD)
        found.insert(0, SIGCHLD)
    if SIGUSR2 in found and SIGTERM in found and found.index(SIGTERM) < found.index(SIGUSR2):
        found.remove(SIGUSR2)
        found.insert(found.index(SIGTERM), SIGUSR2)
    return found


def ignore_requests() -> None:
    """Ignore the signals that only ask for something. Called when the process is about to end.

    The interpreter gives the signals their default before it ends, which is death, or to stop for good; and who asks
    cannot know yet that nobody is left to answer.
    """
    for number in _REQUESTS:
        signal(number, SIG_IGN)


def ignore_all() -> None:
    """Ignore those that stop, too: the last function that the interpreter calls at its end (atexit)."""
    ignore_requests()
    for number in STOP_SIGNALS:
        signal(number, SIG_IGN)


def _ignored(number: int, frame: FrameType | None) -> None:
    """The handler of what means the master; not SIG_IGN, which programs that a child executes would inherit."""
