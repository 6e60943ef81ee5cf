"""The signal handlers of a worker: the server's own, and behind each of them the application's.

Owns: `SignalHandlers`: the queue of the server's signals, the wakeup descriptor, what `signal.signal` does in a worker.
Must not know: what a signal means to the worker.

An application may install handlers, take the wakeup descriptor (asyncio's ``add_signal_handler`` does both, and its
removal gives the signal its default, which is death), or exit from its handler. None of it may make the worker deaf, or
break off a request in flight. So the server's handler stays installed, whatever the application asks `signal.signal`
for; it notes the signal itself, and then calls the application's.
"""

from __future__ import annotations

import logging
import os
import signal
from _socket import socketpair
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from os import getpid, kill
from signal import (
    SIG_DFL,
    SIG_IGN,
    SIG_UNBLOCK,
    SIGABRT,
    SIGCHLD,
    SIGINT,
    SIGQUIT,
    SIGTERM,
    Signals,
    getsignal,
    pthread_sigmask,
    set_wakeup_fd,
    siginterrupt,
)
from signal import signal as set_handler
from types import FrameType
from typing import Any, Final

from wsgiserv.callables import is_a
from wsgiserv.hooks import call_hook
from wsgiserv.wsgi.run import run_app

__all__ = ["SignalHandlers"]

Handler = Callable[[int, FrameType | None], object]

# The worker leaves at these, and answers what it has: the application's handler cannot break that off.
_LEAVE: Final = frozenset({SIGTERM, SIGINT, SIGQUIT})
# What an application's handler may raise into: its own code.
_PEOPLES: Final = frozenset({run_app.__code__, call_hook.__code__})
_OUR_DIRECTORY: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_GEVENT: Final = f"{os.sep}gevent{os.sep}"


def _heard_by_server(number: int, frame: FrameType | None) -> None:
    """What an application finds as the handler before its own. It may call it: the server has heard the signal."""


class SignalHandlers:
    """The handlers of one worker. Made in its main thread.

    Args:
        log: the error log.
        numbers: the signals that mean something to the server; they are queued, see `take`.
        at_once: what else is to be done in the handler, per signal, before the application's handler is called.
        in_the_end: the same after it; may raise, or end the process.

    Attributes:
        reader: readable when a signal has been queued.
        writer: whatever is written to it makes `reader` readable.
    """

    def __init__(
        self,
        log: logging.Logger,
        numbers: Iterable[int],
        at_once: dict[int, Handler],
        in_the_end: dict[int, Handler],
    ) -> None:
        self._log = log
        self._numbers = tuple(numbers)
        self._at_once = at_once
        self._in_the_end = in_the_end
        self._noted: deque[int] = deque()
        self._applications: dict[int, Any] = {}
        self._pid = getpid()
        self._main = get_ident()
        self._installed = False
        self._serving = False
        self.reader, self.writer = socketpair()
        self.reader.setblocking(False)
        self.writer.setblocking(False)

    def install(self) -> None:
        """Catch the server's signals."""
        self._installed = True
        self.arm()
        for number in self._numbers:
            set_handler(number, self._handle)
            # A system call of the application goes on when a signal has only been queued.
            siginterrupt(number, number == SIGABRT)
        pthread_sigmask(SIG_UNBLOCK, self._numbers)  # a preloaded application may have blocked them

    def raise_at(self, number: int, handler: Handler) -> None:
        """Call ``handler``, which may raise, at this signal, also within a system call."""
        self._in_the_end[number] = handler
        siginterrupt(number, True)

    def guard(self) -> None:
        """From now on ``signal.signal`` puts the application's handlers behind the server's."""
        real_signal, real_getsignal = signal.signal, signal.getsignal

        @wraps(real_signal)
        def guarded_signal(signalnum: Any, handler: Any) -> Any:
            return self._set(real_signal, signalnum, handler)

        @wraps(real_getsignal)
        def guarded_getsignal(signalnum: Any) -> Any:
            return self._shown(signalnum, real_getsignal(signalnum))

        signal.signal = guarded_signal
        signal.getsignal = guarded_getsignal
        self.look()

    def serve(self) -> None:
        """The application has been loaded. From now on what its handlers raise outside of its code ends nothing."""
        self._serving = True
        self.look()

    # ---- the queue -------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Have the interpreter wake the loop at each signal. In the main thread."""
        set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)

    def disarm(self) -> None:
        """The loop has ended, and nobody reads the queue any more."""
        self._installed = False
        set_wakeup_fd(-1)

    def look(self) -> None:
        """Take back the wakeup descriptor, the handlers set past ``signal.signal``, and unblock the server's signals.

        Called after the import of the application and once a second. Does nothing outside of the main thread.
        """
        if not self._installed or get_ident() != self._main or getpid() != self._pid:
            return
        with suppress(OSError, ValueError):
            self.arm()
        for number in self._numbers:
            found = getsignal(number)
            if found != self._handle:
                if found is not None:  # else it is one that is not Python's
                    self._applications[number] = found
                set_handler(number, self._handle)
                siginterrupt(number, number in self._in_the_end)
        pthread_sigmask(SIG_UNBLOCK, self._numbers)
        if not self._serving:
            self._take_over_others()

    def _take_over_others(self) -> None:
        """Call what was installed for other signals, by a preloaded application say, through `_handle`."""
        for number in signal.valid_signals():
            if number != SIGCHLD and number not in self._numbers:
                found = getsignal(number)
                if callable(found) and found != self._handle:
                    self._applications[number] = found
                    set_handler(number, self._handle)

    def take(self) -> list[int]:
        """Return the server's signals that have come, oldest first. In any thread."""
        numbers: list[int] = []
        try:
            data = self.reader.recv(4096)
        except BlockingIOError:
            data = b""
        # The interpreter has written those, too, that `_handle` notes; alone it tells of one whose handler is another.
        numbers = [each for each in data if each in self._numbers and getsignal(each) != self._handle]
        while self._noted:
            numbers.append(self._noted.popleft())
        return numbers

    def has_noted(self, numbers: frozenset[int]) -> bool:
        """Whether one of these signals has come and has not been taken yet."""
        return not numbers.isdisjoint(tuple(self._noted))

    def wake(self) -> None:
        """Make `reader` readable. In any thread, and in a handler."""
        try:
            self.writer.send(b"\0")
        except OSError:
            pass  # it is full: readable already

    # ---- the handler -----------------------------------------------------------------------------------

    def _handle(self, number: int, frame: FrameType | None) -> None:
        theirs = self._applications.get(number, SIG_DFL)
        if getpid() != self._pid:
            self._handle_in_child(number, frame, theirs)
            return
        if number in self._numbers:
            self._noted.append(number)
            self.wake()
            at_once = self._at_once.get(number)
            if at_once is not None:
                at_once(number, frame)
        if callable(theirs):
            failure: BaseException | None = None
            try:
                theirs(number, frame)
            except BaseException as error:
                exits = number in self._numbers and is_a(error, SystemExit)
                if not exits and number not in _LEAVE and not (self._serving and _is_ours(frame)):
                    raise
                failure = error
            if failure is not None:
                self._tell(number, failure)
        in_the_end = self._in_the_end.get(number)
        if in_the_end is not None:
            in_the_end(number, frame)

    def _tell(self, number: int, failure: BaseException) -> None:
        if number in self._numbers and is_a(failure, SystemExit):
            if (
                number not in _LEAVE
            ):  # else to leave is what it wants; the requests in flight are answered first
                with suppress(Exception):
                    text = "the application's handler of %s has called sys.exit(); the worker goes on"
                    self._log.info(text, _name(number))
            return
        if number not in _LEAVE:
            advice = (
                " while no request ran its code; the server goes on. If a timer of the application has sent it "
                "(alarm, setitimer), cancel that at the end of the request"
            )
        elif is_a(failure, KeyboardInterrupt):
            return
        else:
            advice = "; the worker leaves all the same, and answers the requests in flight"
        with suppress(Exception):
            self._log.error(
                "the application's handler of %s raised %s%s",
                _name(number),
                type(failure).__name__,
                advice,
                exc_info=failure,
            )

    @staticmethod
    def _handle_in_child(number: int, frame: FrameType | None, theirs: Any) -> None:
        """In a process that the application has forked: only what the application has set counts."""
        if callable(theirs):
            theirs(number, frame)
        elif theirs != SIG_IGN:
            set_handler(number, SIG_DFL)
            kill(getpid(), number)

    # ---- signal.signal of a worker -----------------------------------------------------------------------

    def _set(self, real_signal: Callable[[Any, Any], Any], number: Any, handler: Any) -> Any:
        if (
            getpid() != self._pid
            or get_ident() != self._main
            or not (callable(handler) or handler in (SIG_DFL, SIG_IGN))
        ):
            return self._shown(number, real_signal(number, handler))
        if number in self._numbers:
            before = self._shown(number, self._handle)
            if handler is _heard_by_server or handler is signal.default_int_handler:
                self._applications.pop(number, None)
            else:
                self._applications[number] = handler
            return before
        if number == SIGCHLD or not callable(handler):
            before = self._shown(number, real_signal(number, handler))
            self._applications.pop(number, None)
            return before
        before = self._shown(number, real_signal(number, self._handle))
        self._applications[number] = handler
        return before

    def _shown(self, number: Any, handler: Any) -> Any:
        """Return what the application is to see in place of ``handler``."""
        if handler != self._handle:
            return handler
        return self._applications.get(number, _heard_by_server if getpid() == self._pid else SIG_DFL)

    def application_handler(self, number: int) -> Any:
        """Return what the application has set, `SIG_DFL` if nothing: a process that it forks goes on with that."""
        return self._applications.get(number, SIG_DFL)


def _is_ours(frame: FrameType | None) -> bool:
    """Whether the interrupted code is the server's, so that what is raised there would be the server's loss."""
    ours = foreign = False
    while frame is not None:
        code = frame.f_code
        if code in _PEOPLES:
            return False
        if code.co_filename.startswith(_OUR_DIRECTORY):
            ours = True
        elif _GEVENT not in code.co_filename:
            foreign = True
        frame = frame.f_back
    return ours or not foreign  # else a greenlet of the application's own, or gevent's hub


def _name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"
