"""The ``gevent`` worker: one watcher for all connections, a pooled greenlet per request in flight.

The event loop keeps its own epoll, and the hub watches that one descriptor: an idle connection costs neither a greenlet
nor a watcher, and accepting, deadlines and leaving are the same code as in the other classes.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from signal import SIG_DFL, SIGINT, default_int_handler, getsignal
from signal import signal as set_handler
from time import monotonic
from types import FrameType
from typing import Any, Final

import gevent
import gevent.event
import gevent.monkey
import gevent.select
import gevent.socket
from gevent import Greenlet
from gevent.hub import get_hub
from greenlet import getcurrent, gettrace, settrace
from greenlet import greenlet as RawGreenlet

from wsgiserv.boot import WorkerBoot
from wsgiserv.library_first import LibraryFirst
from wsgiserv.net.event_loop import body_limit_s
from wsgiserv.net.response_writer import ResponseWriter
from wsgiserv.net.serving_context import LARGE_STREAMED
from wsgiserv.process import leave
from wsgiserv.unpatched import get_ident
from wsgiserv.worker.active_requests import Call, call_in, describe, other_threads, stack_of
from wsgiserv.worker.event_loop_worker import CHANNEL_FULL_S, CROWDED_TURN_S, EventLoopWorker, WorkerEventLoop
from wsgiserv.worker.gevent_patching import patch_master, patch_worker
from wsgiserv.worker.greenlet_pool import GreenletPool, InChild
from wsgiserv.worker.helper_thread import needs_thread
from wsgiserv.worker.loop_watchdog import LoopWatchdog
from wsgiserv.wsgi.response import Response
from wsgiserv.wsgi.run import run_app

# What gevent imports when it patches, makes its hub, and looks up its first name. Here, since an application may empty
# sys.path, or have files of these names.
with LibraryFirst():
    for _name in (
        *("pprint", "gevent.ares", "gevent.builtins", "gevent.contextvars", "gevent.events", "gevent.local"),
        *("gevent.lock", "gevent.os", "gevent.queue", "gevent.resolver.thread", "gevent.select"),
        *("gevent.selectors", "gevent.signal", "gevent.socket", "gevent.ssl", "gevent.subprocess"),
        *("gevent.thread", "gevent.threading", "gevent.threadpool", "gevent.time", "gevent.timeout"),
    ):
        with suppress(ImportError):  # another gevent, another platform
            import_module(_name)

_READABLE: Final = 1  # libev's EV_READ
# How often a greenlet that waits for its client checks how long that has taken nothing.
_CHECK_S: Final = 0.25
_MOST_GREENLETS_SHOWN: Final = 50
_CUT: Final = "the response is cut"


class _RequestTimeout(gevent.Timeout):
    """Raised in the greenlet of a request at ``request_timeout``.

    Attributes:
        outcome: the client's part in words; empty before it is raised for the first time.
    """

    def __init__(self, limit_s: float) -> None:
        super().__init__()  # the timer is the worker's
        self.seconds = limit_s
        self.outcome = ""


class _GeventEventLoop(WorkerEventLoop):
    """Lets producers and readers wait in greenlets."""

    def wait_writable(self, connection: ResponseWriter, longest_s: float = _CHECK_S) -> bool:
        """Let the producer of a response wait while the loop sends queued data."""
        taken = gevent.event.Event()
        if not connection.call_when_sent(taken.set) or taken.wait(longest_s):
            return True
        return not connection.has_stopped(monotonic(), self._send_timeout)

    def wait_readable(self, connection: ResponseWriter) -> bool:
        """Let the reader of a streamed body wait for its client."""
        hub = get_hub()
        watcher = hub.loop.io(connection.fd, _READABLE)
        limit_s = body_limit_s(connection) or None
        return gevent.with_timeout(limit_s, hub.wait, watcher, timeout_value=False) is not False

    @property
    def socket_class(self) -> type[Any]:
        """gevent's."""
        return gevent.socket.socket

    def spawn(self, function: Callable[[], object]) -> None:
        """Run ``function`` in a greenlet of its own."""
        gevent.spawn_raw(function)

    def wait_for_any(self, waits: Sequence[tuple[int, int]], timeout_s: float | None) -> bool:
        """Let the greenlet wait for one of the descriptors."""
        poller = gevent.select.poll()
        for fd, events in waits:
            poller.register(fd, events)
        return bool(poller.poll(None if timeout_s is None else timeout_s * 1000))


class GeventWorker(EventLoopWorker):
    """Runs each request in a greenlet; the application yields where it waits."""

    multithread = True
    streams = LARGE_STREAMED
    _event_loop_class = _GeventEventLoop
    patches_library = True

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self._pool = GreenletPool(
            self.settings.worker_connections, boot.slot.cells, self._queue, self.lose, self._turn_soon
        )
        self.run_request = self._pool.run
        self._will_turn = False
        self._has_ended = False
        self._exits_in_greenlet = False
        self._hub_loop: Any = None
        self._crowded_timer: Any = None
        self._full_timer: Any = None
        self._done: Any = None
        self._watchers: list[Any] = []
        self._thread = get_ident()

    def _caller(self) -> Callable[..., BaseException | None]:
        return self._call_with_deadline if self.settings.request_timeout else super()._caller()

    # ---- the process -------------------------------------------------------------------------------------

    @classmethod
    def patch(cls, log: logging.Logger, in_master: bool) -> None:
        """Patch the standard library for an application loaded for all workers."""
        if in_master:
            patch_master()
        else:
            patch_worker(log, in_zygote=True)

    def prepare(self) -> None:
        """Patch the standard library before anything of the application is imported, and prepare for its children."""
        os.register_at_fork(before=self._hear_of_children)
        gevent.reinit()  # a hub that was made before the fork, by a configuration file for one, does not survive it
        patch_worker(self.log, warns=self._speaks_for_its_generation())

    def _speaks_for_its_generation(self) -> bool:
        """Return whether this worker logs the warnings common to all: the first one does, also of a reload."""
        boot = self.boot
        workers = getattr(boot.server, "WORKERS", {}).values()
        return boot.age == 1 or (
            boot.generation > 1
            and not any(each.generation == boot.generation for each in workers if each is not boot.handle)
        )

    def _hear_of_children(self) -> None:
        """Install libev's SIGCHLD handler before a fork of the application."""
        # gevent installs it after the first fork. libev would never learn of a child that exits before that, and
        # os.waitpid() would wait without end.
        is_ours = get_ident() == self._thread and not self._pool.is_copy
        if is_ours and gevent.monkey.is_object_patched("os", "fork"):
            get_hub().loop.install_sigchld()

    def _exit_while_booting(self, name: str = "", hook: Callable[..., Any] | None = None) -> None:
        """As of the base; in the hub, in a greenlet of its own: a hook could not wait there."""
        if getcurrent() is not get_hub():
            super()._exit_while_booting(name, hook)
        elif not self._exits_in_greenlet:
            self._exits_in_greenlet = True
            gevent.spawn_raw(super()._exit_while_booting, name, hook)

    def _await_exit(self) -> None:
        """As of the base: the import may have ended before the greenlet of the hooks."""
        while self._exits_in_greenlet:
            gevent.sleep(1.0)

    # ---- requests ----------------------------------------------------------------------------------------

    def _frame_of(self, greenlet: RawGreenlet) -> FrameType | None:
        """Return the innermost frame, also of the running greenlet, whose own attribute is None."""
        if greenlet.dead or not greenlet:
            return None
        return greenlet.gr_frame or sys._current_frames().get(self._thread)

    def calls(self) -> list[Call]:
        """Return the requests of all greenlets, whether they run or wait, oldest first."""
        found = [call_in(self._frame_of(each), f"greenlet {each.cell}") for each in list(self._pool.greenlets)]
        return sorted(filter(None, found), key=lambda call: call.started)

    def other_stacks(self) -> list[str]:
        """Return the stacks of the threads, and of greenlets without a request."""
        stacks = other_threads()
        pooled = self._pool.greenlets
        gc.unfreeze()  # the main greenlet, and what was spawned before this process, are frozen (see `master.spawn`)
        for each in gc.get_objects():
            # Not isinstance(): each proxy of the application would be asked for its __class__.
            if issubclass(type(each), RawGreenlet) and each not in pooled and each.gr_frame is not None:
                name = getattr(each, "name", "") or type(each).__name__
                stacks.append(f"{name}:\n{stack_of(each.gr_frame)}")
                if len(stacks) >= _MOST_GREENLETS_SHOWN:  # there may be thousands, and a stack takes time
                    break
        return stacks

    def _call_with_deadline(
        self, app: Callable[..., Any], environ: dict[str, Any], response: Response
    ) -> BaseException | None:
        """Call the application, as `run_app` does, and interrupt it where it waits for longer than its time."""
        limit_s = self.settings.request_timeout
        timeout = _RequestTimeout(limit_s)
        # A timer of its own, not gevent's: `update`, so that the time counts from now, not from the hub's last turn.
        # Repeating: an application that swallows the exception and waits on is interrupted again.
        timer = self._hub_loop.timer(limit_s, repeat=limit_s)
        timer.start(self._interrupt, getcurrent(), response, timeout, update=True)
        try:
            failure = run_app(app, environ, response)
        finally:
            timer.stop()
            timer.close()
        if timeout.outcome == _CUT and failure is not None:
            response.aborted = True  # what has been sent must not look like the whole
        return failure

    def _interrupt(self, greenlet: RawGreenlet, response: Response, timeout: _RequestTimeout) -> None:
        """Interrupt an overdue request in its wait. In the hub."""
        if response.is_taken:  # a WebSocket stays for as long as it likes
            return
        if not timeout.outcome:
            if response.is_whole:
                timeout.outcome = "its response had been sent"
            else:
                timeout.outcome = _CUT if response.begun else "answered with 504"
            response.time_out()
            call = call_in(greenlet.gr_frame, f"greenlet {getattr(greenlet, 'cell', '')}")
            self.log.error(
                "WS1720 request_timeout (%g s): %s, %s",
                timeout.seconds,
                timeout.outcome,
                describe(call, monotonic()) if call is not None else "a request",
            )
        greenlet.throw(timeout)

    # ---- the hub -----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Let the hub run until the worker has left."""
        hub = get_hub()
        self._hub_loop = hub.loop
        self._done = gevent.event.Event()  # here: it makes the hub, and one from before `prepare` would not last
        watch = self._watch_the_hub() if self.settings.gevent_block_warning else None
        self.start()
        watcher = hub.loop.io(self.event_loop.poller.fileno(), _READABLE)
        watcher.start(self._turn)
        turn_s = self._heartbeat.turn_s
        timer = hub.loop.timer(turn_s, repeat=turn_s)
        timer.start(self._turn)
        # Repeating: libev's one-shot timer, started again, fires at once and would spin.
        self._crowded_timer = hub.loop.timer(CROWDED_TURN_S, repeat=CROWDED_TURN_S)
        self._full_timer = hub.loop.timer(CHANNEL_FULL_S, repeat=CHANNEL_FULL_S)
        self._watchers = [watcher, timer, self._crowded_timer, self._full_timer]
        try:
            self._turn_soon()  # not here: greenlets are switched to from the hub
            self._done.wait()
            self.end_if_failed()
        finally:
            # The hub may run on, while hooks and the interpreter's end wait for something: without our turns.
            self._has_ended = True
            if watch is not None:
                watch.stop()
            for each in self._watchers:
                each.stop()
            self._close_connections()

    def _watch_the_hub(self) -> LoopWatchdog:
        sign = self._hub_loop.async_()
        watch = LoopWatchdog(self.settings.gevent_block_warning, self.boot.log, sign.send)
        sign.start(watch.alive)
        with needs_thread("that watches the hub"):
            watch.start()
        return watch

    def _turn(self) -> None:
        """Take one turn of the event loop, in the hub: nothing here waits."""
        if self._has_ended:
            return
        pool = self._pool
        if pool.is_copy:
            for watcher in self._watchers:
                watcher.stop()
            return
        pool.in_turn = True
        failure: BaseException | None = None
        try:
            self.turn(0.0)
            if self._leaving.begun:
                # Hand over what the turn has made movable. Nothing else may wake the hub when the channel has room
                # again, or, in the last second, when the time is over.
                self._keep_timer(self._full_timer, 0.0 < self._go_on_leaving(1.0) < 1.0)
        except InChild:
            return  # the child's hub goes on without the worker
        except BaseException as error:  # the hub would not log it, and the server must go on
            failure = error
        finally:
            pool.in_turn = False
        if failure is not None:
            self.survive(failure)
        if self.is_done:
            self._done.set()
        elif self.event_loop.waiting:
            self._turn_soon()
        else:  # clients may wait for room
            self._keep_timer(self._crowded_timer, not (self.event_loop.accepting or self._leaving.begun))

    def _keep_timer(self, timer: Any, is_needed: bool) -> None:
        """Have a timer take the next turn, or stop it."""
        if is_needed:
            timer.again(self._turn)
        elif timer.active:
            timer.stop()

    def _turn_soon(self) -> None:
        """Take a turn in this iteration of the hub: a request has ended, there are lines to log and more to do.

        A quick request, ended within a turn, needs none: the turn itself ends with all this.
        """
        if not (self._pool.in_turn or self._will_turn or self._has_ended):
            self._will_turn = True
            self._hub_loop.run_callback(self._turn_now)

    def _turn_now(self) -> None:
        self._will_turn = False
        self._turn()

    # ---- children of the application ---------------------------------------------------------------------

    def close_in_child(self) -> None:
        """As of the base. The hub may run in the child, without our watchers and the parent's other requests."""
        self._pool.is_copy = True
        if getsignal(SIGINT) is default_int_handler:
            # KeyboardInterrupt would be raised in the hub, which may only print it. Not by signal.signal(): that puts
            # the application's handlers behind the server's.
            set_handler(SIGINT, SIG_DFL)
        try:
            # libev's epoll is the parent's until then. gevent's own os.fork() does it later, other ways to fork do not.
            gevent.reinit()
            for watcher in self._watchers:
                watcher.stop()
            if self._watchers:
                self._park_others()
        finally:
            super().close_in_child()

    def _park_others(self) -> None:
        """Let the greenlets of the other requests never run on: the originals run in the parent."""
        # They cannot be killed: that would run their ``finally``, on connections that the parent uses. So each goes
        # back to the hub when it is switched to, before its own code is. A greenlet of the application that has forked
        # and returns ends the child; ours does so in the gateway.
        current = getcurrent()
        pooled = self._pool.greenlets
        others = {id(each) for each in pooled if each is not current}
        before = gettrace()

        def trace(event: Any, switch: Any) -> None:
            if id(switch[1]) in others:
                while True:
                    get_hub().switch()
            if before is not None:
                before(event, switch)

        settrace(trace)
        if isinstance(current, Greenlet) and current not in pooled:
            current.link(lambda ended: leave(ended.exception))
