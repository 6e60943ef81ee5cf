"""The ``gevent`` worker: one watcher for all connections, a pooled greenlet per request in flight.

Owns: monkey patching, the hub, the pool of greenlets, their deadlines. The only module that imports gevent.
Must not know: HTTP, the master.

The event_loop keeps its own epoll, and the hub watches that one descriptor: an idle connection costs neither
a greenlet nor a watcher, and accepting, deadlines and leaving are the same code as in the other classes.
"""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from signal import SIG_DFL, SIGINT, default_int_handler, getsignal
from signal import signal as set_handler
from sys import getrefcount
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import gevent
import gevent.event
import gevent.events
import gevent.monkey
import gevent.queue
import gevent.select
import gevent.selectors
import gevent.socket
import gevent.subprocess
import gevent.threading  # type: ignore[import-not-found]
from gevent import Greenlet
from gevent.hub import get_hub
from greenlet import getcurrent, gettrace, settrace
from greenlet import greenlet as RawGreenlet

from wsgiserv import process as atfork
from wsgiserv.boot import WorkerBoot
from wsgiserv.library_first import LibraryFirst
from wsgiserv.net.client import Connection
from wsgiserv.net.serving_context import LARGE_STREAMED, RATE_GRACE_S
from wsgiserv.worker.active_requests import Call, call_in, describe, other_threads, stack_of
from wsgiserv.worker.event_loop_worker import CHANNEL_FULL_S, CROWDED_TURN_S, EventLoopWorker, TurnEnded
from wsgiserv.worker.helper_thread import cannot_start
from wsgiserv.worker.loop_watchdog import HubWatch
from wsgiserv.worker.patch_check import OLDER_THAN_SERVER, find_early_imports, newcomers, seniors
from wsgiserv.wsgi.response import Response
from wsgiserv.wsgi.run import run_app

if TYPE_CHECKING:
    from wsgiserv.net.response_writer import ResponseWriter

# What gevent imports when it patches, makes its hub, and looks up its first name. Here, since an application may empty
# sys.path, or have files of these names.
with LibraryFirst():
    for _name in (
        *("pprint", "gevent.ares", "gevent.builtins", "gevent.contextvars", "gevent.local", "gevent.lock"),
        *("gevent.os", "gevent.resolver.thread", "gevent.signal", "gevent.ssl", "gevent.thread"),
        *("gevent.threadpool", "gevent.time", "gevent.timeout"),
    ):
        with suppress(ImportError):  # another gevent, another platform
            import_module(_name)

__all__ = ["GeventWorker", "is_patched", "patch_master"]

_READABLE: Final = 1  # libev's EV_READ
# How often a greenlet that waits for its client looks how long that has taken nothing.
_LOOK_S: Final = 0.25
_MOST_GREENLETS_SHOWN: Final = 50
# How much later than its time a worker that leaves looks whether that is over.
_END_LATE_S: Final = 0.01

# What is patched in workers only. In a master, subprocess by gevent would take SIGCHLD, and reap the workers.
_OF_WORKERS: Final = ("os", "subprocess", "signal")
_CALL_IT_THERE: Final = "Call it through its module, as subprocess.Popen: that is patched in the workers"

_PATCHES: Final[dict[str, Callable[[], object]]] = {
    "os": gevent.monkey.patch_os,
    "threading": gevent.monkey.patch_thread,
    "time": gevent.monkey.patch_time,
    "socket": gevent.monkey.patch_socket,
    "select": gevent.monkey.patch_select,
    "selectors": gevent.monkey.patch_selectors,
    "ssl": gevent.monkey.patch_ssl,
    "subprocess": gevent.monkey.patch_subprocess,
    "signal": gevent.monkey.patch_signal,
    "queue": gevent.monkey.patch_queue,
}
# What gevent notes of patch_all()'s arguments, and under which key: a call of the application's is then no second one.
_PATCHES_OF_ALL: Final = (
    "os",
    "thread",
    "time",
    "socket",
    "dns",
    "select",
    "ssl",
    "subprocess",
    "signal",
    "queue",
)
_DONE: Final = "_gevent_saved_patch_all_module_settings"

# Of a pooled greenlet, in its dictionary.
_OWN_ATTRIBUTES: Final = 2
_switch: Final = RawGreenlet.switch
# More greenlets than these end with their request, after a burst.
_MOST_IDLE: Final = 256

# The modules that were there before the master was patched; None: it was not, by us.
_before_patching: list[str] | None = None
# Whether this process is the child of a zygote, which has patched, and told what was imported before.
_patched_in_zygote = False


def patch_master() -> None:
    """Patch the standard library in the master, before a configuration file or a preloaded application is run.

    For what they import, and for the workers, which inherit it. The master's own modules have been imported before,
    and go on using what they have taken from the library.
    """
    global _before_patching
    if is_patched():
        return
    _before_patching = newcomers()
    with _patching():
        gevent.monkey.patch_all(**dict.fromkeys(_OF_WORKERS, False))
    # A configuration file that calls patch_all() itself finds it done: another time is not harmless, see `_patch`.
    _note_as_done(_OF_WORKERS)


def is_patched() -> bool:
    """Whether this process has been patched."""
    return gevent.monkey.is_module_patched("socket")


def _patch() -> None:
    """Patch what has not been patched yet.

    Not by patch_all() where something has: it would patch the threads a second time, and os.fork() fail after that.
    """
    monkey = gevent.monkey
    with _patching():
        if not is_patched():
            monkey.patch_all()
            return
        for module, patch in _PATCHES.items():
            if not monkey.is_module_patched(module):
                patch()
        _note_as_done(_PATCHES_OF_ALL)


def _note_as_done(names: Iterable[str]) -> None:
    getattr(gevent.monkey, "saved", {}).get(_DONE, {}).update(dict.fromkeys(names, True))


@contextmanager
def _patching() -> Iterator[None]:
    """For as long as gevent patches: no warning of its own, and no search for what it has found already.

    The warning is about ssl; `find_early_imports` tells the same, for all modules. The search is for plugins of
    gevent: it reads the metadata of every installed package, for each of 25 events. Once is enough: with 100
    packages that saves a worker half of its start.
    """
    search = importlib.metadata.entry_points
    found: Any = None

    def search_once(**which: Any) -> Any:
        nonlocal found
        if found is None:
            found = search()
        return found.select(**which)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gevent.monkey.MonkeyPatchWarning)
        importlib.metadata.entry_points = search_once
        try:
            yield
        finally:
            importlib.metadata.entry_points = search


def _original(module: str, name: str) -> object:
    if not gevent.monkey.is_object_patched(module, name):
        return None
    return gevent.monkey.get_original(module, name)


class _RequestTimeout(gevent.Timeout):
    """Raised in the greenlet of a request that has taken longer than ``request_timeout``."""

    def __init__(self, limit_s: float) -> None:
        super().__init__()  # the timer is the worker's
        self.seconds = limit_s
        self.raised = False
        self.cut = False
        self.outcome = "answered with 504"

    def meets(self, response: Response) -> None:
        """Note what becomes of the client's part. When it is raised for the first time."""
        self.raised = True
        if response.is_whole:
            self.outcome = "its response had been sent"
        elif response.begun:
            self.cut = True
            self.outcome = "the response is cut"


class _InChild(TurnEnded):
    """Ends a turn of the loop in which a request has forked, in the child; the hub goes on there."""


class _Pooled(Greenlet):  # type: ignore[type-arg]
    """A greenlet that serves one request after another, and waits for the next in the pool.

    A new greenlet costs 11 µs, another switch to this one 0.5. But each request is to find what it would find in a new
    one: no context variables, thread-locals, attributes, links or pending timeouts of the last. So one that has been
    left with anything ends.

    It is switched to with the connection whose request is next; with anything else it ends.

    Attributes:
        cell: its cell of the scoreboard.
    """

    def __init__(self, worker: GeventWorker, cell: int) -> None:
        super().__init__()
        self._worker = worker
        self.cell = cell

    def _run(self) -> None:
        worker, cell = self._worker, self.cell
        idle = worker._idle
        # Bound once: an attribute of a greenlet costs three times that of another object.
        wait = _switch.__get__(get_hub())  # as its own switch(), which asks each for a `switch_out` first
        has_links, attributes = self.has_links, self.__dict__
        try:
            while True:
                idle.append(self)
                try:
                    connection = wait()
                except BaseException:  # a timeout of the last request, or somebody who has kept this greenlet
                    connection = None
                if not isinstance(connection, Connection):
                    if self in idle:
                        idle.remove(self)
                    return
                try:
                    connection.run(cell)
                    failure = None
                except BaseException as error:
                    failure = error
                if failure is not None:
                    worker.lose(connection, failure, is_mine=True)
                connection = failure = None
                if not worker._is_turning:
                    worker._turn_soon()
                if worker._queued:
                    worker._run_queued_soon()
                # Thread-locals are attributes of the greenlet, and links of it.
                if len(idle) >= _MOST_IDLE or len(attributes) > _OWN_ATTRIBUTES or has_links():
                    return
        finally:
            worker._ended(self)


class GeventWorker(EventLoopWorker):
    """Runs each request in a greenlet; the application yields where it waits."""

    multithread = True
    streams = LARGE_STREAMED

    def __init__(self, boot: WorkerBoot) -> None:
        super().__init__(boot)
        self._idle: list[_Pooled] = []
        # Complete requests beyond worker_connections: clients that were silent when they came are not counted.
        self._queued: deque[Connection] = deque()
        self._pool: set[_Pooled] = set()
        # How many references there are to a greenlet that has waited in the pool, and that nobody else holds.
        self._own_references = 0
        self._free_cells: list[int] = []
        self._started = 0
        self._is_turning = False
        self._will_turn = False
        self._has_ended = False
        self._exits_in_greenlet = False
        self._hub_loop: Any = None
        self._crowded_timer: Any = None
        self._full_timer: Any = None
        self._ends_at = float("inf")
        self.run_request = self._run_in_greenlet
        self._done: Any = None
        self._watchers: list[Any] = []
        # Whether this is a process that the application has forked: gevent lets the hub run there, and its turns would
        # take our clients' bytes.
        self._is_copy = False
        self._thread = gevent.monkey.get_original("_thread", "get_ident")()

    @classmethod
    def patch(cls, log: logging.Logger, in_master: bool) -> None:
        """Patch the standard library for an application that is loaded for all workers."""
        global _patched_in_zygote
        if in_master:
            patch_master()
            return
        names = newcomers()
        _patch()
        _patched_in_zygote = True
        for line in _early_imports(names):
            log.warning("%s", line)

    def _exit_while_booting(self, name: str = "", hook: Callable[..., Any] | None = None) -> None:
        """As of the base; in a greenlet of its own where this is the hub, in which a hook could not wait."""
        if getcurrent() is not get_hub():
            super()._exit_while_booting(name, hook)
        elif not self._exits_in_greenlet:
            self._exits_in_greenlet = True
            gevent.spawn_raw(super()._exit_while_booting, name, hook)

    def _await_exit(self) -> None:
        """As of the base: the import may have come to its end while that greenlet is in a hook."""
        while self._exits_in_greenlet:
            gevent.sleep(1.0)

    def prepare(self) -> None:
        """Patch the standard library before anything of the application is imported."""
        gevent.reinit()  # a hub that was made before the fork, by a configuration file for one, does not survive it
        if _patched_in_zygote:
            return
        names = newcomers()
        _patch()
        if self._speaks_for_its_generation():
            for line in _early_imports(names):
                self.log.warning("%s", line)

    def _speaks_for_its_generation(self) -> bool:
        """Whether what is the same in all workers is told by this one: the first, also of a reload."""
        boot = self.boot
        workers = getattr(boot.server, "WORKERS", {}).values()
        return boot.age == 1 or (
            boot.generation > 1
            and not any(each.generation == boot.generation for each in workers if each is not boot.handle)
        )

    def load(self) -> None:
        """As of the base; with ``request_timeout`` each call has a timer."""
        os.register_at_fork(before=self._hear_of_children)
        super().load()
        if self.cfg.request_timeout:
            self.context.call = self._call_with_deadline

    def _hear_of_children(self) -> None:
        """Install libev's SIGCHLD handler before a fork of the application.

        gevent installs it after the first fork. libev would never learn of a child that exits before that, and
        os.waitpid() would wait without end.
        """
        is_main = gevent.monkey.get_original("_thread", "get_ident")() == self._thread
        if is_main and not self._is_copy and gevent.monkey.is_object_patched("os", "fork"):
            get_hub().loop.install_sigchld()

    # ---- greenlets -------------------------------------------------------------------------------------

    def _run_in_greenlet(self, connection: Connection) -> None:
        """Run a request in a greenlet that nothing of another request's is left in. In the hub."""
        idle = self._idle
        while True:
            if not idle and not self._add_greenlet():
                self._queued.append(connection)
                return
            greenlet = idle.pop()
            references = getrefcount(greenlet)
            if references <= self._own_references:
                break
            if not self._own_references:
                self._own_references = references
                break
            greenlet.switch()  # somebody holds it, a timeout of the last request say: it ends
        greenlet.gr_context = None
        _switch(greenlet, connection)
        if self._is_copy:
            raise _InChild

    def _add_greenlet(self) -> bool:
        """Add a greenlet to those that wait for a request; False when there are as many as may be."""
        if len(self._pool) >= self.cfg.worker_connections:
            return False
        if self._free_cells:
            cell = self._free_cells.pop()
        else:
            cell = min(self._started, self.boot.slot.cells - 1)
            self._started += 1
        greenlet = _Pooled(self, cell)
        self._pool.add(greenlet)
        greenlet.switch()
        return True

    def _run_queued_soon(self) -> None:
        """Run requests that have waited for a greenlet, from the hub."""
        self._hub_loop.run_callback(self._run_queued)

    def _run_queued(self) -> None:
        with suppress(_InChild):
            while self._queued and (self._idle or len(self._pool) < self.cfg.worker_connections):
                self._run_in_greenlet(self._queued.popleft())

    def _ended(self, greenlet: _Pooled) -> None:
        """A greenlet leaves the pool."""
        self._pool.discard(greenlet)
        if greenlet.cell < self.boot.slot.cells - 1:  # the last one is shared when there are too few
            self._free_cells.append(greenlet.cell)

    def _frame_of(self, greenlet: RawGreenlet) -> FrameType | None:
        """Return the innermost frame, also of the one that runs at this moment, which gives none itself."""
        if greenlet.dead or not greenlet:
            return None
        return greenlet.gr_frame or sys._current_frames().get(self._thread)

    def calls(self) -> list[Call]:
        """Return the requests of all greenlets, whether they run or wait, oldest first."""
        pool = list(self._pool)
        found = [call_in(self._frame_of(each), f"greenlet {each.cell}") for each in pool]
        return sorted(filter(None, found), key=lambda call: call.started)

    def other_stacks(self) -> list[str]:
        """Return the stacks of the threads, and of the greenlets that run no request."""
        stacks = other_threads()
        gc.unfreeze()  # the main greenlet, and what was spawned before this process, are frozen (see `birth`)
        for each in gc.get_objects():
            # Not isinstance(): each proxy of the application would be asked for its __class__.
            if issubclass(type(each), RawGreenlet) and each not in self._pool and each.gr_frame is not None:
                name = getattr(each, "name", "")
                stacks.append(f"{name or type(each).__name__}:\n{stack_of(each.gr_frame)}")
                if len(stacks) >= _MOST_GREENLETS_SHOWN:
                    break
        return stacks

    def _call_with_deadline(
        self, app: Callable[..., Any], environ: dict[str, Any], response: Response
    ) -> BaseException | None:
        """Call the application, as `run_app` does, and interrupt it where it waits for longer than its time."""
        limit_s = self.cfg.request_timeout
        timeout = _RequestTimeout(limit_s)
        # Repeating: an application that swallows the exception and waits on is interrupted again.
        timer = self._hub_loop.timer(limit_s, repeat=limit_s)
        timer.start(self._interrupt, getcurrent(), response, timeout, update=True)
        try:
            failure = run_app(app, environ, response)
        finally:
            timer.stop()
            timer.close()
        if timeout.cut and failure is not None:
            response.cut()  # what has been sent must not look like the whole
        return failure

    def _interrupt(self, greenlet: RawGreenlet, response: Response, timeout: _RequestTimeout) -> None:
        """The time of a request is over, and its greenlet waits. In the hub."""
        if not timeout.raised:
            timeout.meets(response)
            response.time_out()
            call = call_in(greenlet.gr_frame, f"greenlet {getattr(greenlet, 'cell', '')}")
            self.log.error(
                "request_timeout (%g s): %s, %s",
                timeout.seconds,
                timeout.outcome,
                describe(call, monotonic()) if call is not None else "a request",
            )
        greenlet.throw(timeout)

    # ---- the hub ---------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Let the hub run until the worker has left."""
        self.loop.wait_writable = self._wait_writable
        self.loop.wait_readable = self._wait_readable
        hub = get_hub()
        self._hub_loop = hub.loop
        self._done = gevent.event.Event()
        watch = self._watch_the_hub() if self.cfg.gevent_block_warning else None
        self.start()
        watcher = hub.loop.io(self.event_loop.poller.fileno(), _READABLE)
        watcher.start(self._turn)
        timer = hub.loop.timer(self._turn_s, repeat=self._turn_s)
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

    def _waiting_requests(self) -> Iterator[Connection]:
        """As of the base."""
        while self._queued:
            yield self._queued.popleft()

    def close_in_child(self) -> None:
        """As of the base. The hub may run in the child, without our watchers and the parent's other requests."""
        self._is_copy = True
        if getsignal(SIGINT) is default_int_handler:
            set_handler(
                SIGINT, SIG_DFL
            )  # KeyboardInterrupt would be raised in the hub, which may only print it
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
        """Let the greenlets of the other requests never run on: they are copies of what runs in the parent.

        They cannot be killed: that would run their ``finally``, on connections that the parent uses. So each goes back
        to the hub when it is switched to, before its own code is. A greenlet of the application that has forked and
        returns ends the child; ours does so in the gateway.
        """
        current = getcurrent()
        others = {id(each) for each in self._pool if each is not current}
        before = gettrace()

        def trace(event: Any, switch: Any) -> None:
            if id(switch[1]) in others:
                while True:
                    get_hub().switch()
            if before is not None:
                before(event, switch)

        settrace(trace)
        if isinstance(current, Greenlet) and current not in self._pool:
            current.link(_leave)

    def _watch_the_hub(self) -> HubWatch:
        sign = self._hub_loop.async_()
        get_original = gevent.monkey.get_original
        watch = HubWatch(
            self.cfg.gevent_block_warning,
            self.log,
            sign.send,
            get_original("_thread", "start_new_thread"),
            get_original("time", "sleep"),
        )
        sign.start(watch.alive)
        try:
            watch.start()
        except RuntimeError as error:
            raise cannot_start("that watches the hub", error) from error
        return watch

    def _turn(self) -> None:
        """One turn of the event_loop, in the hub: nothing here waits."""
        if self._has_ended:
            return
        if self._is_copy:
            for watcher in self._watchers:
                watcher.stop()
            return
        self._is_turning = True
        failure: BaseException | None = None
        try:
            self.turn(0.0)
            if self.retiring:
                self._hand_over_after_turn()
        except _InChild:
            return
        except BaseException as error:  # in the hub nobody else would log it, and the server must go on
            failure = error
        finally:
            self._is_turning = False
        if failure is not None:
            self.survive(failure)
        if self.is_done:
            self._done.set()
        elif self.event_loop.waiting:
            self._turn_soon()
        elif self._wants_place:
            self._crowded_timer.again(self._turn)
        elif self._crowded_timer.active:
            self._crowded_timer.stop()

    def _hand_over_after_turn(self) -> None:
        """What the turn has made movable leaves now: nothing may wake the hub for the next one.

        Nor when the time is over, and the master would be first: it kills a worker that is a second late.
        """
        if self.leave_by < self._ends_at:
            self._ends_at = self.leave_by
            late_s = max(self.leave_by - monotonic(), 0.0) + _END_LATE_S
            timer = self._hub_loop.timer(late_s, repeat=1.0)
            self._watchers.append(timer)
            timer.start(self._turn)
        if 0.0 < self._go_on_leaving(1.0) < 1.0:
            self._full_timer.again(self._turn)
        elif self._full_timer.active:
            self._full_timer.stop()

    def _turn_soon(self) -> None:
        """Take a turn in this iteration of the hub: a request has ended, there are lines to log and more to do.

        A request that ends within a turn, as quick ones do, needs none: that turn ends with all this.
        """
        if not (self._is_turning or self._will_turn or self._has_ended):
            self._will_turn = True
            self._hub_loop.run_callback(self._turn_now)

    def _turn_now(self) -> None:
        self._will_turn = False
        self._turn()

    # ---- waiting in a request --------------------------------------------------------------------------

    def _wait_writable(self, connection: ResponseWriter) -> bool:
        """Let the greenlet that produces a response wait while the event_loop sends on what is queued."""
        taken = gevent.event.Event()
        if not connection.call_when_sent(taken.set) or taken.wait(_LOOK_S):
            return True
        return not connection.has_stopped(monotonic(), self.cfg.send_timeout)

    def _wait_readable(self, connection: ResponseWriter) -> bool:
        """Let the greenlet that reads a streamed body wait for its client."""
        timeouts = connection.context.timeouts
        limit_s = timeouts.body or (RATE_GRACE_S if timeouts.body_rate else 0.0)
        return self._wait(connection.fd, _READABLE, limit_s)

    def _wait(self, fd: int, event: int, limit_s: float) -> bool:
        hub = get_hub()
        timeout = gevent.Timeout(limit_s or None)
        timeout.start()
        try:
            hub.wait(hub.loop.io(fd, event))
        except gevent.Timeout as error:
            if error is not timeout:
                raise
            return False
        finally:
            timeout.close()
        return True


def _leave(ended: Greenlet[Any, Any]) -> None:
    atfork.leave(ended.exception)


def _early_imports(names: list[str]) -> list[str]:
    """Return a line for each module that has kept unpatched parts: older than the server, or one of ``names``."""
    older = find_early_imports(seniors(), _original, OLDER_THAN_SERVER)
    if _before_patching is None:
        return [*older, *find_early_imports(names, _original)]
    later = [name for name in names if name not in _before_patching]

    def original(module: str, name: str) -> object:
        return _original(module, name) if module in _OF_WORKERS else None

    return [
        *older,
        *find_early_imports(_before_patching, _original),
        *find_early_imports(later, original, _CALL_IT_THERE),
    ]
