"""The master's signals, as numbers in a socket.

Owns: the handlers of the master's signals, the wakeup socket pair, the way out of both for a child.
Must not know: what a signal means.

A handler only queues: the interpreter's own C code writes the number of each signal into the socket
(signal.set_wakeup_fd), which the loop polls like everything else. So nothing is ever interrupted half-way.
"""

from __future__ import annotations

from _socket import socketpair
from collections.abc import Iterator
from contextlib import contextmanager
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
from types import FrameType

from wsgiserv.atfork import add_child_cleanup

__all__ = ["MASTER_SIGNALS", "SignalQueue", "ignore_requests"]

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

_REQUESTS = (SIGHUP, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH)


class SignalQueue:
    """Catches `MASTER_SIGNALS` from its creation on. One per process, made in the main thread."""

    def __init__(self) -> None:
        self._reader, self._writer = socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in MASTER_SIGNALS:
            signal(number, _queued)
            siginterrupt(number, False)
        add_child_cleanup(self._close)

    def fileno(self) -> int:
        """Return the descriptor that is readable when a signal has come."""
        return self._reader.fileno()

    def take(self) -> list[Signals]:
        """Return the signals that have come, oldest first; children's (SIGCHLD) only once."""
        numbers = bytearray()
        while True:
            try:
                data = self._reader.recv(4096)
            except BlockingIOError:
                break
            if not data:
                break
            numbers += data
        return list(dict.fromkeys(Signals(n) for n in numbers if n == SIGCHLD)) + [
            Signals(n) for n in numbers if n != SIGCHLD
        ]

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
        """Give the process back its default signal handlers. Called in the child, under `held`, and at the end."""
        set_wakeup_fd(-1)
        for number in MASTER_SIGNALS:
            signal(number, SIG_DFL)
        self._close()

    def _close(self) -> None:
        self._reader.close()
        self._writer.close()


def ignore_requests() -> None:
    """Ignore the signals that only ask for something. Called when the process is about to end.

    The interpreter gives the signals their default before it ends, which is death, or to stop for good; and who asks
    cannot know yet that nobody is left to answer.
    """
    for number in _REQUESTS:
        signal(number, SIG_IGN)


def _queued(number: int, frame: FrameType | None) -> None:
    """The handler of all of them: the interpreter has written the number into the socket already."""
