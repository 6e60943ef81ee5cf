"""Makes a forked child of any program a server's process: nothing of the program goes on in it.

The program may be a test runner or a notebook, with threads, exit handlers, signal handlers, captured streams and
connections of its own. The child keeps its modules and objects, which the application is made of.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import atexit
import gc
import io
import logging
import os
import stat
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Set
from contextlib import suppress
from typing import Any, Final

# What must not be freed: a file would be closed, and write what its buffer holds, a second time; a greenlet would
# run its `finally` blocks.
_kept: Final[list[object]] = []


def isolate(log: int, kept: Set[int]) -> None:
    """Leave the program behind. Called in the child, first of all, with all signals blocked.

    Args:
        log: the descriptor of the server's log, for the standard streams.
        kept: descriptors of sockets that stay.
    """
    _reset_signals()
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    _drop_hubs()  # before the next line, which hides the greenlets
    gc.freeze()
    _replace_streams(log)
    _drop_connections(kept)
    _reset_hooks()
    _reset_libraries()


def _reset_signals() -> None:
    # By the C module: gevent replaces the functions of `signal`.
    _signal.set_wakeup_fd(-1)
    for number in _signal.valid_signals():
        handler = _signal.getsignal(number)
        # One that is ignored stays so, as it would over execve(2), but for Ctrl-C, which a shell's background ignores.
        if callable(handler) and handler not in (_signal.SIG_DFL, _signal.SIG_IGN):
            with suppress(OSError, ValueError):
                _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _replace_streams(log: int) -> None:
    before = sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__
    _kept.extend(before)
    null = os.open(os.devnull, os.O_RDWR)
    for fd, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, fd)
    os.close(null)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout, sys.stderr = _output(1), _output(2)
    names: dict[str, Any] = vars(sys)
    names.update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    _redirect_logging({id(each): sys.stdout if at % 3 == 1 else sys.stderr for at, each in enumerate(before) if at % 3})


def _output(fd: int) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)


def _redirect_logging(streams: dict[int, Any]) -> None:
    """Have handlers of the program's streams write to the child's, and drop those of a test runner."""
    found = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in found:
        for handler in list(getattr(logger, "handlers", ())):
            # They keep each record, for a test that the child is no part of.
            if type(handler).__module__.partition(".")[0] == "_pytest":
                logger.removeHandler(handler)  # type: ignore[union-attr]
            elif (stream := streams.get(id(getattr(handler, "stream", None)))) is not None:
                handler.stream = stream


def _drop_connections(kept: Set[int]) -> None:
    """Put the null device in the place of each TCP and UDP socket: they are the program's, and so are its databases'.

    The numbers stay open: objects of the program may close them.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for fd in _sockets():
        if fd in kept:
            continue
        found = _socket.socket(fileno=fd)
        family = found.family
        found.detach()
        if family in (_socket.AF_INET, _socket.AF_INET6):
            os.dup2(null, fd, inheritable=False)
    os.close(null)


def _sockets() -> Iterator[int]:
    for name in os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"):
        with suppress(OSError, ValueError):  # the descriptor of the listing
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield int(name)


def _reset_hooks() -> None:
    """Undo what a test runner or notebook puts in the interpreter's places."""
    sys.excepthook, sys.unraisablehook, sys.displayhook = (
        sys.__excepthook__,
        sys.__unraisablehook__,
        sys.__displayhook__,
    )
    threading.excepthook = threading.__excepthook__
    # pytest rewrites the modules of packages with a plugin, such as this one, when they are imported.
    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__.partition(".")[0] != "_pytest"]
    warnings.showwarning = _show_warning
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def _reset_libraries() -> None:
    """Tell modules of the library that what they had begun was the program's. Where they differ, they are left."""
    modules = sys.modules
    with suppress(Exception):
        if (asyncio_events := modules.get("asyncio.events")) is not None:
            asyncio_events._set_running_loop(None)
    with suppress(Exception):
        if (futures := modules.get("concurrent.futures.thread")) is not None:
            futures._threads_queues.clear()
    with suppress(Exception):
        if (util := modules.get("multiprocessing.util")) is not None:
            util._finalizer_registry.clear()
            modules["multiprocessing.process"]._children.clear()
            atexit.register(util._exit_function)


def _drop_hubs() -> None:
    """Leave the greenlets of the program behind: they wait in an event loop that never runs here."""
    local = sys.modules.get("gevent._hub_local")
    greenlet = sys.modules.get("greenlet")
    if local is None or greenlet is None:
        return
    _kept.extend(each for each in gc.get_objects() if issubclass(type(each), greenlet.greenlet))
    hub = local.get_hub_if_exists()
    if hub is None:
        return
    loop = hub.loop
    _kept.extend((hub, loop))
    local.set_hub(None)
    local.set_loop(None)
    with suppress(Exception):
        loop.destroy()
