"""Loads the application for all workers at once (``preload_app``), and ends its background work.

It finds the greenlets, timers and watchers of gevent and eventlet, and imports neither: without an import a library has
started nothing.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from wsgiserv.app.loader import prepare_path
from wsgiserv.config.settings import Settings
from wsgiserv.library_first import leave_names_free
from wsgiserv.unpatched import eventlet_hub, gevent_hub
from wsgiserv.user_code import is_a, own_attribute
from wsgiserv.worker.paste import application_of
from wsgiserv.worker.registry import resolve_worker_class

# fork(2) copies greenlets, unlike threads: a scheduler that was started at import would run in each worker. So they
# end in the process that has loaded the application, before it forks, and run nowhere.

# How long greenlets may take to end when GreenletExit is raised in them.
_END_S: Final = 1.0
# Greenlets may start others while they end.
_ROUNDS: Final = 3
_MOST_SHOWN: Final = 10

_LIBRARIES: Final = frozenset({"gevent", "eventlet", "greenlet", "concurrent"})


def preload_application(settings: Settings, log: logging.Logger, in_master: bool) -> Callable[..., Any]:
    """Load the application for the workers that this process will fork.

    Args:
        settings: the configuration of the workers.
        log: the error log.
        in_master: this process goes on as the master; else it is a zygote.

    Raises:
        ApplicationError: it cannot be loaded.
        ConfigError: the worker class cannot.
    """
    prepare_path(settings.chdir, settings.pythonpath)
    if not in_master:
        leave_names_free()
    # Monkey patching comes before the application's imports, which would keep the unpatched parts.
    resolve_worker_class(settings.worker_class, settings.threads)._patch_before_load(log, in_master)
    application = application_of(settings)
    _end_background(log)
    return application


# ---- background work -----------------------------------------------------------------------------------------


def _end_background(log: logging.Logger) -> None:
    """End all greenlets, timers and watchers of this process, and warn of each with its place. Never raises.

    It warns of native threads unknown to `threading`, too; the zygote warns of the others. Called once, when
    the application has been loaded, before workers are forked.

    Args:
        log: the error log.
    """
    if threads := _pool_threads():
        log.warning(
            "WS1156 preload_app: the application has started work in a thread pool while it was loaded (%s): the "
            "threads stay in the process that has loaded it, no worker has them: start it in post_worker_init, or at "
            "the first request",
            ", ".join(threads),
        )
    found: list[str] = []
    for end in (_end_gevent, _end_eventlet):
        try:
            end(found)
        except Exception as error:
            log.error(
                "WS1157 preload_app: background work of the application cannot be ended, and may run in each worker",
                exc_info=error,
            )
    if found:
        shown = found[:_MOST_SHOWN] + [f"{len(found) - _MOST_SHOWN} more"] * (len(found) > _MOST_SHOWN)
        log.warning(
            "WS1158 preload_app: the application has started %s in the background while it was loaded: %s: ended, as "
            "each worker would have run a copy: start it in post_worker_init, or at the first request, or leave "
            "preload_app out",
            "something" if len(found) == 1 else f"{len(found)} things",
            "; ".join(shown),
        )


# ---- gevent ----------------------------------------------------------------------------------------------


def _end_gevent(found: list[str]) -> None:
    hub = gevent_hub()
    if hub is None:
        return
    gevent = sys.modules["gevent"]
    for greenlets in _rounds(hub):
        found += map(_describe, greenlets)
        # With False the block just ends when the time is over.
        with gevent.Timeout(_END_S, False):
            # Not joined by killall(), which cannot wait for raw greenlets.
            gevent.killall(greenlets, block=False)
            while not all(each.dead for each in greenlets):
                gevent.sleep(0.001)
        if not all(each.dead for each in greenlets):
            break  # they have caught GreenletExit: without their watchers they wait for ever
    found += _stop_watchers(hub)


def _rounds(hub: Any) -> Iterator[list[Any]]:
    """Yield the greenlets below a hub, again while there are new ones."""
    hook = threading.excepthook

    def excepthook(args: Any) -> None:
        # A thread may end by SystemExit without a word: GreenletExit would be printed with a traceback for each.
        if not issubclass(args.exc_type, sys.modules["greenlet"].GreenletExit):
            hook(args)

    threading.excepthook = excepthook
    try:
        for _ in range(_ROUNDS):
            if greenlets := _greenlets_below(hub):
                yield greenlets
    finally:
        threading.excepthook = hook


def _greenlets_below(hub: Any) -> list[Any]:
    """Return the hub's greenlets, those not begun yet included."""
    library = sys.modules["greenlet"]
    raw, own = library.greenlet, library.getcurrent()
    return [
        each
        for each in gc.get_objects()
        # isinstance() would ask each proxy of the application for its __class__.
        if is_a(each, raw) and each is not own and each is not hub and not each.dead and each.parent is hub
    ]


def _stop_watchers(hub: Any) -> list[str]:
    """Stop the hub's watchers of timers, descriptors and files."""
    loop = hub.loop
    # Each event loop of gevent (libev in C or through CFFI, libuv) has watcher classes of its own.
    kinds = (type(loop.timer(1.0)), type(loop.io(0, 1)), type(loop.stat("/")))
    told = []
    for each in gc.get_objects():
        if is_a(each, kinds) and each.active and each.loop is loop:
            callback = each.callback
            each.stop()
            # Those of a greenlet have been found with it; those of gevent's own are a resolver's.
            if callback is not None and not _is_of_library(callback):
                told.append(f"a watcher ({type(each).__name__}) that calls {_function(callback)}")
    return told


def _is_of_library(function: Any) -> bool:
    # A method of a compiled class has no module of its own.
    module = own_attribute(function, "__module__") or type(own_attribute(function, "__self__")).__module__
    return is_a(module, str) and module.partition(".")[0] in _LIBRARIES


# ---- eventlet --------------------------------------------------------------------------------------------


def _end_eventlet(found: list[str]) -> None:
    hub = eventlet_hub()
    if hub is None:
        return
    library = sys.modules["greenlet"]
    for greenlets in _rounds(hub.greenlet):
        # Eventlet has the function of a greenlet that has not begun in the timer that is to begin it.
        begins = {id(own_attribute(t.tpl[0], "__self__")): t.tpl[1][0] for t in _timers(hub) if t.tpl[1]}
        for each in greenlets:
            begin = begins.get(id(each)) if not each else None
            found.append(f"a greenlet of {_function(begin)}" if begin is not None else _describe(each))
            # By itself it would go on to its parent, the hub, which runs the other greenlets.
            each.parent = library.getcurrent()
            with suppress(Exception):
                each.throw(library.GreenletExit)
    for timer in _timers(hub):
        if not (timer.called or _is_of_library(timer.tpl[0])):
            found.append(f"a timer that calls {_function(timer.tpl[0])}")
        timer.cancel()


def _timers(hub: Any) -> list[Any]:
    return [timer for _, timer in (*hub.timers, *hub.next_timers) if getattr(timer, "tpl", None)]


# ---- what it is and where it comes from --------------------------------------------------------------------


def _describe(greenlet: Any) -> str:
    """Return the function of a greenlet in words, and where it was spawned if that is known."""
    run = own_attribute(greenlet, "_run")
    thread = own_attribute(run, "__self__")
    what = "a greenlet"
    if own_attribute(thread, "_bootstrap_inner") is not None:  # a threading.Thread, patched or not
        what = f"the thread {own_attribute(thread, '_name')} (a greenlet)"
        target = own_attribute(thread, "_target")
        run = type(thread).run if target is None else target
    if run is not None:
        function = _function(run)
    else:  # a raw greenlet drops its function when it begins
        function = _outermost(own_attribute(greenlet, "gr_frame")) or "a function that is not known"
    # gevent notes the stack at each spawn, its own frames innermost.
    spawned_at = next(_own_frames(own_attribute(greenlet, "spawning_stack")), None)
    if spawned_at is None:
        return f"{what} of {function}"
    return f"{what} of {function}, spawned at {spawned_at.f_code.co_filename}:{spawned_at.f_lineno}"


def _function(function: Any) -> str:
    while (inner := own_attribute(function, "func")) is not None:  # functools.partial
        function = inner
    name = own_attribute(function, "__qualname__") or type(function).__qualname__
    code = own_attribute(own_attribute(function, "__func__") or function, "__code__")
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else str(name)


def _outermost(frame: FrameType | None) -> str:
    """Return the outermost function of the application in a stack; empty when there is none."""
    found = ""
    for each in _own_frames(frame):
        found = f"{each.f_code.co_qualname} ({each.f_code.co_filename}:{each.f_lineno})"
    return found


def _own_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames of the application in a stack, innermost first."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in _LIBRARIES]
    directories = [os.path.dirname(file) + os.sep for file in files if file]
    # The frames of compiled modules name the source files of their build.
    libraries = (*directories, threading.__file__, "src/gevent/", "src/greenlet/")
    while frame is not None:
        if not frame.f_code.co_filename.startswith(libraries):
            yield frame
        frame = frame.f_back


def _pool_threads() -> list[str]:
    """Return the functions of threads unknown to `threading`, those of gevent's and eventlet's pools."""
    own = sys._getframe()
    known = {thread.ident for thread in threading.enumerate()}
    frames = [each for ident, each in sys._current_frames().items() if ident not in known]
    found = [f"a thread in {name}" for each in frames if each is not own and (name := _outermost(each))]
    pool = getattr(gevent_hub(), "_threadpool", None)  # `threadpool` would make one
    if not found and pool is not None and len(pool):
        found.append("gevent's thread pool")  # its task waits in a hub of that thread's own
    return found
