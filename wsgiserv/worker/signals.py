"""The signal handlers of a worker: the server's own, and behind each of them the application's.

An application may install handlers, take the wakeup descriptor, or exit from its handler. None of it may make the
worker deaf, or break off a request in flight. So the server's handler stays installed, whatever the application asks
`signal.signal` for; it notes the signal itself, and then calls the application's.
"""

from __future__ import annotations

import logging
import os
import signal
from _socket import socketpair
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from os import getpid, kill
from signal import SIG_DFL, SIG_IGN, getsignal, pthread_sigmask, set_wakeup_fd, siginterrupt
from signal import signal as set_handler  # `guard` and gevent replace it there
from types import FrameType
from typing import Any, Final

from wsgiserv.hooks import call_hook
from wsgiserv.tracebacks import OUR_DIRECTORY
from wsgiserv.user_code import is_a
from wsgiserv.wsgi.run import run_app

Handler = Callable[[int, FrameType | None], object]
_Handlers = dict[int, Handler]

# The worker leaves at these, and answers what it has: the application's handler cannot break that off.
_LEAVE: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
# The code of users runs below these: an exception that a handler of theirs raises there is theirs to handle.
_CALLS_USERS_CODE: Final = frozenset({run_app.__code__, call_hook.__code__})
_GEVENT: Final = f"{os.sep}gevent{os.sep}"


def _heard_by_server(number: int, frame: FrameType | None) -> None:
    """Stand for the server's handler where the application asks for the one before its own; it may call it."""


class SignalHandlers:
    """The handlers of one worker. Made in its main thread.

    Args:
        log: the error log.
        numbers: the signals that mean something to the server; they are queued, see `take`.
        at_once: what else is to be done in the handler, per signal, before the application's handler is called.
        in_the_end: the same after it; may raise, or end the process.

    Attributes:
        reader: readable when a signal has been queued.
    """

    def __init__(
        self, log: logging.Logger, numbers: tuple[int, ...], at_once: _Handlers, in_the_end: _Handlers
    ) -> None:
        self._log = log
        self._numbers = numbers
        self._at_once = at_once
        self._in_the_end = in_the_end
        self._noted: deque[int] = deque()
        self._applications: dict[int, Any] = {}
        self._pid = getpid()
        self._main = get_ident()
        self._installed = False
        self._serving = False
        self.reader, self._writer = socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)

    def install(self) -> None:
        """Catch the server's signals."""
        self._installed = True
        self._arm()
        for number in self._numbers:
            set_handler(number, self._handle)
            # A system call of the application goes on when a signal has only been queued.
            siginterrupt(number, number in self._in_the_end)
        pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)  # a preloaded application may have blocked them

    def raise_at(self, number: int, handler: Handler) -> None:
        """Call ``handler``, which may raise, at this signal, also within a system call.

        Args:
            number: one of the server's signals.
            handler: called after the application's.
        """
        self._in_the_end[number] = handler
        siginterrupt(number, True)

    def guard(self) -> None:
        """Put the application's handlers behind the server's from now on, when it calls ``signal.signal``."""
        # Around the functions found there, which may be gevent's.
        signal.signal = wraps(signal.signal)(partial(self._set, signal.signal))
        signal.getsignal = wraps(signal.getsignal)(partial(self._get, signal.getsignal))
        self.look()

    def serve(self) -> None:
        """Contain what the application's handlers raise outside of its code from now on: it has been loaded."""
        self._serving = True
        self.look()

    def close(self) -> None:
        """Wake nothing any more: the loop, which reads the queue, has ended, or this is a child of the application."""
        self._installed = False
        # First: a signal that came later would be written to the file that has the descriptor's number then.
        with suppress(ValueError):  # not the main thread; it has been done by the handlers of the fork
            set_wakeup_fd(-1)
        self.reader.close()
        self._writer.close()

    # ---- the queue -------------------------------------------------------------------------------------

    def _arm(self) -> None:
        # asyncio's add_signal_handler() takes the descriptor, too, and its removal gives the signal its default, which
        # is death: hence `look`.
        set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def look(self) -> None:
        """Take back the wakeup descriptor, the handlers set past ``signal.signal``, and unblock the server's signals.

        Called after the import of the application and once a second. Does nothing outside of the main thread.
        """
        if not self._installed or get_ident() != self._main or getpid() != self._pid:
            return
        with suppress(OSError, ValueError):
            self._arm()
        for number in self._numbers:
            found = getsignal(number)
            if found != self._handle:
                if found is not None:  # else it is one that is not Python's
                    self._applications[number] = found
                set_handler(number, self._handle)
                siginterrupt(number, number in self._in_the_end)
        pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        if self._serving:
            return
        # What a preloaded application, say, has installed for other signals is called through `_handle`, too. Once
        # the worker serves, the guard sees to that.
        for number in signal.valid_signals():
            if number != signal.SIGCHLD and number not in self._numbers:
                found = getsignal(number)
                if callable(found) and found != self._handle:
                    self._applications[number] = found
                    set_handler(number, self._handle)

    def take(self) -> list[int]:
        """Return the server's signals that have come, oldest first. In any thread."""
        try:
            data = self.reader.recv(4096)
        except BlockingIOError:
            data = b""
        # The interpreter has written those, too, that `_handle` notes; the bytes alone show a signal with another
        # handler.
        numbers = [each for each in data if each in self._numbers and getsignal(each) != self._handle]
        while self._noted:  # a handler may append at this moment: no copy and clear()
            numbers.append(self._noted.popleft())
        return numbers

    def has_noted(self, numbers: frozenset[int]) -> bool:
        """Return whether one of these signals has come and has not been taken yet."""
        return not numbers.isdisjoint(tuple(self._noted))

    def wake(self) -> None:
        """Make `reader` readable. In any thread, and in a handler."""
        with suppress(OSError):  # it is full, and so readable already; or the worker has ended
            self._writer.send(b"\0")

    # ---- the handler -----------------------------------------------------------------------------------

    def _handle(self, number: int, frame: FrameType | None) -> None:
        theirs = self.application_handler(number)
        if getpid() != self._pid:
            # Do what the application has set, and nothing else, in a process that it has forked.
            if callable(theirs):
                theirs(number, frame)
            elif theirs != SIG_IGN:
                # Die of it: the parent is to see the signal in the wait status.
                set_handler(number, SIG_DFL)
                kill(getpid(), number)
            return
        is_servers = number in self._numbers
        if is_servers:
            # First of all: what the application's handler does must not lose the signal.
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
                exits = is_servers and is_a(error, SystemExit)
                if not exits and number not in _LEAVE and not (self._serving and _is_ours(frame)):
                    raise
                failure = error
            # Outside of the `except`: handlers of the log would find the exception in sys.exc_info().
            if failure is not None:
                with suppress(Exception):  # a handler of the application's log
                    self._tell(number, failure)
        in_the_end = self._in_the_end.get(number)
        if in_the_end is not None:
            in_the_end(number, frame)

    def _tell(self, number: int, failure: BaseException) -> None:
        names = (_name(number), type(failure).__name__)
        if number in self._numbers and is_a(failure, SystemExit):
            # At a signal to leave, to leave is what it wants; the requests in flight are answered first.
            if number not in _LEAVE:
                text = "the application's handler of %s has called sys.exit(); the worker goes on"
                self._log.info(text, names[0])
        elif number not in _LEAVE:
            self._log.error(
                "WS1717 the application's handler of %s raised %s while no request ran its code: the server goes on. "
                "If a timer of the application has sent the signal (alarm, setitimer), cancel the timer at the end of "
                "the request",
                *names,
                exc_info=failure,
            )
        elif not is_a(failure, KeyboardInterrupt):
            self._log.error(
                "WS1718 the application's handler of %s raised %s: the worker leaves all the same, and answers the "
                "requests in flight",
                *names,
                exc_info=failure,
            )

    # ---- signal.signal of a worker -----------------------------------------------------------------------

    # With the names of the arguments that they have there: an application may give them by name.

    def _set(self, real_signal: Callable[[Any, Any], Any], signalnum: Any, handler: Any) -> Any:
        is_callable = callable(handler)
        is_valid = is_callable or handler in (SIG_DFL, SIG_IGN)
        # Python's own function raises for a wrong thread or handler.
        if getpid() != self._pid or get_ident() != self._main or not is_valid:
            return self._shown(signalnum, real_signal(signalnum, handler))
        if signalnum in self._numbers:
            before = self._shown(signalnum, self._handle)
            # What an application restores that had asked for the handler before its own: nothing of its own is left.
            keeps = handler is not _heard_by_server and handler is not signal.default_int_handler
        else:
            keeps = signalnum != signal.SIGCHLD and is_callable
            before = self._shown(signalnum, real_signal(signalnum, self._handle if keeps else handler))
        if keeps:
            self._applications[signalnum] = handler
        else:
            self._applications.pop(signalnum, None)
        return before

    def _get(self, real_getsignal: Callable[[Any], Any], signalnum: Any) -> Any:
        return self._shown(signalnum, real_getsignal(signalnum))

    def _shown(self, number: Any, handler: Any) -> Any:
        """Return what the application is to see in place of ``handler``."""
        if handler != self._handle:
            return handler
        return self._applications.get(number, _heard_by_server if getpid() == self._pid else SIG_DFL)

    def application_handler(self, number: int) -> Any:
        """Return the application's own handler, `SIG_DFL` without one: a process that it forks goes on with that."""
        return self._applications.get(number, SIG_DFL)


def _is_ours(frame: FrameType | None) -> bool:
    """Return whether the interrupted code is the server's: what is raised there would be the server's loss."""
    ours = foreign = False
    while frame is not None:
        code = frame.f_code
        if code in _CALLS_USERS_CODE:
            return False
        if code.co_filename.startswith(OUR_DIRECTORY):
            ours = True
        elif _GEVENT not in code.co_filename:
            foreign = True
        frame = frame.f_back
    return ours or not foreign  # else a greenlet of the application's own, or gevent's hub


def _name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"  # a real-time signal
