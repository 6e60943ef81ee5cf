"""Finds the requests in the application at this moment, and their places in its code, for reports.

Nothing is noted down while a request runs: the frame of `Connection.run` has all of it, so a request
costs nothing unless it hangs.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from _thread import get_ident
from collections.abc import Iterable
from itertools import islice
from operator import attrgetter
from time import monotonic
from types import FrameType
from typing import Final, NamedTuple

from wsgiserv.logs.escape import escape
from wsgiserv.net.client import Connection
from wsgiserv.unpatched import thread_names, waiting_main_frame
from wsgiserv.wsgi.run import run_app

_RUN: Final = Connection.run.__code__
_RUN_APP: Final = run_app.__code__
_OUR_WORKERS: Final = os.path.dirname(__file__)
_REPORTERS: Final = tuple(f"{_OUR_WORKERS}/{name}.py" for name in ("active_requests", "process", "base"))
# The innermost frames of a stack; a recursion without end must not fill the log.
_MOST_FRAMES: Final = 400
_MOST_CALLS: Final = 50


class Call(NamedTuple):
    """One request in the application.

    Attributes:
        connection: the request's connection.
        request_line: as it came, for a log.
        request_id: its id.
        started: ``time.monotonic()`` when the application was called, in seconds.
        where: the name of the thread or greenlet.
        stack: the application's frames, outermost first, as in a traceback.
        is_upgraded: whether the application has taken its connection.
    """

    connection: Connection
    request_line: str
    request_id: str
    started: float
    where: str
    stack: str
    is_upgraded: bool = False


def _frame_of_run(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_code is not _RUN:
        frame = frame.f_back
    return frame


def call_in(frame: FrameType | None, where: str) -> Call | None:
    """Return the request of a stack; None when there is none.

    Args:
        frame: the innermost frame of a thread or greenlet.
        where: its name.
    """
    run = _frame_of_run(frame)
    if run is None:
        return None
    # To note a request where another thread finds it would cost each request a dict entry and a lock; its local
    # variables are read instead. One that is not set yet is missing here.
    names = run.f_locals
    connection, line = names["self"], names.get("line")
    return Call(
        connection,
        escape(line.raw.decode("latin-1")) if line is not None else "-",
        names.get("request_id", "-"),
        names.get("started", 0.0),
        where,
        stack_of(frame),
        (response := names.get("response")) is not None and response.is_taken,
    )


def stack_of(frame: FrameType | None) -> str:
    """Return a stack as a traceback shows it, from the application's first frame on where there is one."""
    frame = _without_report(frame)
    frames: list[tuple[FrameType, int]] = []
    # Not traceback.walk_stack(): it would go on through the server's own frames, below `run_app`.
    while frame is not None and frame.f_code is not _RUN_APP and len(frames) < _MOST_FRAMES:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return "".join(traceback.StackSummary.extract(reversed(frames)).format()).rstrip()


def _without_report(frame: FrameType | None) -> FrameType | None:
    """Return the frame below those of the report itself, in the reporting thread."""
    while frame is not None and frame.f_code.co_filename in _REPORTERS:
        frame = frame.f_back
    return frame


def _named_threads() -> Iterable[tuple[str, FrameType]]:
    # threading.enumerate() takes a lock that a hanging thread may hold; the dict below it needs none.
    active: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]
    # Ours last: where threads are patched, `threading` knows the main thread by its greenlet's identifier.
    names = {ident: thread.name for ident, thread in list(active.items())} | thread_names()
    own = get_ident()
    # sys._current_frames() shows the greenlet that runs; a request of `sync` may wait in another one.
    if (waiting := waiting_main_frame()) is not None:
        yield "MainThread, in a greenlet that waits", waiting
    for ident, frame in sys._current_frames().items():
        # Our own innermost frame is this generator's, which has nothing behind it once it is suspended.
        yield names.get(ident, f"thread {ident}"), sys._getframe(1) if ident == own else frame


def thread_calls() -> list[Call]:
    """Return the requests in the process's threads, oldest first."""
    calls = (call_in(frame, name) for name, frame in _named_threads())
    return sorted(filter(None, calls), key=attrgetter("started"))


def other_threads() -> list[str]:
    """Return the stacks of all other threads by their names, without the server's own waiting ones."""
    found = []
    for name, frame in _named_threads():
        top = _without_report(frame)
        # A pool thread without a request waits in the server's own code: a hundred of them say nothing.
        waits = top is not None and top.f_code.co_filename.startswith(_OUR_WORKERS)
        if _frame_of_run(frame) is None and not waits:
            found.append(f"{name}:\n{stack_of(frame)}")
    return found


def progress() -> dict[str, int]:
    """Return the requests in the process's threads by id, each with the bytes of its bodies so far.

    Without those of upgraded connections: they hold their threads for as long as they like.
    """
    found = {}
    for _, frame in _named_threads():
        run = _frame_of_run(frame)
        names = run.f_locals if run is not None else {}
        if (response := names.get("response")) is not None and not response.is_taken:
            connection = names["self"]
            # To wait for a slow client is progress, too: `send_timeout` bounds it.
            found[names["request_id"]] = response.sent + connection.received_by_application + connection.waits
    return found


def describe(call: Call, now: float) -> str:
    """Return a request in words, with its peer, its time, its thread and its stack, for the log.

    Args:
        call: the request.
        now: ``time.monotonic()``.
    """
    return (
        f'"{call.request_line}" from {escape(call.connection.name)}, request id {escape(call.request_id)}, for '
        f"{now - call.started:.1f} s in {call.where}{' (an upgraded connection)' if call.is_upgraded else ''}:\n"
        f"{call.stack}"
    )


def report(calls: list[Call], others: Iterable[str]) -> str:
    """Return all requests in flight and all other stacks, for a worker about to be killed.

    Args:
        calls: the requests.
        others: the stacks.
    """
    now = monotonic()
    # Bounded: the report goes through a pipe, and a worker may have a thousand greenlets.
    parts = [f"in flight: {describe(call, now)}" for call in calls[:_MOST_CALLS]]
    if len(calls) > _MOST_CALLS:
        parts.append(f"in flight: {len(calls) - _MOST_CALLS} more")
    parts += [f"not in a request: {stack}" for stack in islice(others, _MOST_CALLS)]
    return "\n".join(parts)
