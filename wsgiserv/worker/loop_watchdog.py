"""Warns of calls blocking an event loop, and with it all other requests of the worker."""

from __future__ import annotations

import linecache  # noqa: F401 - the watching thread must not import: a blocked import may be what it tells of
import logging
import sys
import tokenize  # noqa: F401
from collections.abc import Callable
from time import monotonic, time
from types import FrameType
from typing import Any, Final

from wsgiserv.logs.output import Output
from wsgiserv.unpatched import get_ident, sleep, start_thread
from wsgiserv.worker.active_requests import call_in, describe, stack_of

_SHORTEST_NAP_S: Final = 0.05
_LONGEST_NAP_S: Final = 1.0
_PATIENCE_S: Final = 0.2


class LoopWatchdog:
    """Watches a loop from a thread of its own. Made in the loop's thread.

    Args:
        limit_s: how long the loop may give no sign, in seconds.
        log: the error log.
        ask: makes the loop call `alive` soon. Called in the watching thread.
    """

    def __init__(self, limit_s: float, log: logging.Logger, ask: Callable[[], object]) -> None:
        self._limit_s = limit_s
        self._nap_s = min(max(limit_s / 4, _SHORTEST_NAP_S), _LONGEST_NAP_S)
        self._log = log
        self._ask = ask
        self._ident = get_ident()
        self._signs = 0
        self._stopped = False
        # Records for handlers that may wait for a lock: the loop hands them over when it runs again.
        self._unhandled: list[logging.LogRecord] = []
        # Making a record asks for the current thread, under a lock that the blocked call may hold: only copied there.
        self._template = log.makeRecord(log.name, logging.WARNING, __file__, 0, "", (), None)

    def start(self) -> None:
        """Start the watching thread."""
        start_thread(self._watch, name="wsgiserv-loop-watchdog")

    def stop(self) -> None:
        """End the watching thread, soon."""
        self._stopped = True

    def alive(self) -> None:
        """Note a sign of life. Called in the loop."""
        self._signs += 1
        while self._unhandled:
            record = self._unhandled.pop(0)
            for handler in _others(self._log):
                handler.handle(record)

    def _watch(self) -> None:
        # While no sign comes, the naps are counted, not the clock: in a process that was stopped, or on a machine that
        # slept, no call has blocked.
        while not self._stopped:
            signs, silent_s, is_reported = self._signs, 0.0, False
            try:
                self._ask()
            except Exception:  # the loop is gone, and the process follows
                return
            while not self._stopped:
                sleep(self._nap_s)
                if self._signs != signs:
                    break
                silent_s += self._nap_s
                if silent_s >= self._limit_s and not is_reported:
                    is_reported = True  # once: a line for each nap would fill the log
                    try:
                        self._report(silent_s)
                    except Exception:  # the next block is to be reported all the same
                        sys.excepthook(*sys.exc_info())

    def _report(self, silent_s: float) -> None:
        frame: FrameType | None = sys._current_frames().get(self._ident)
        if frame is None:
            return
        call = call_in(frame, "the hub's thread")
        text = describe(call, monotonic()) if call is not None else f"not in a request:\n{stack_of(frame)}"
        self._write(
            f"WS1753 worker {self._template.process}: a call has kept all other requests waiting for {silent_s:.1f} s "
            f"(gevent_block_warning): {text}"
        )

    def _write(self, text: str) -> None:
        """Write a line past all locks: the blocked call may hold one. Other handlers get it later."""
        log = self._log
        if log.getEffectiveLevel() > logging.WARNING:  # not isEnabledFor(): that may take a lock
            return
        record = logging.LogRecord.__new__(type(self._template))
        record.__dict__.update(self._template.__dict__)
        record.created = now = time()
        record.msecs = now % 1 * 1000
        record.msg = text
        # The file itself, as `logs.output` writes it: Handler.handle() would wait for the handler's lock.
        for handler in log.handlers:
            output: Any = getattr(handler, "output", None)
            if isinstance(output, Output) and handler.level <= logging.WARNING:
                line = (handler.format(record) + "\n").encode("utf-8", "backslashreplace")
                done, error = output.write(line, _PATIENCE_S)
                # A line that is there in part is not lost.
                if error is not None and not done:
                    handler.writer.lose()  # type: ignore[attr-defined]
        if _others(log):  # Sentry's, say
            self._unhandled.append(record)


def _others(log: logging.Logger) -> list[logging.Handler]:
    found: list[logging.Handler] = []
    logger: logging.Logger | None = log
    while logger is not None:
        found += [each for each in logger.handlers if not isinstance(getattr(each, "output", None), Output)]
        logger = logger.parent if logger.propagate else None
    return found
