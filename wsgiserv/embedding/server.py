"""`wsgiserv.Server`: a server in the background, in a child process of the program."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NoReturn, Self

from wsgiserv import errors
from wsgiserv.embedding.background import Child
from wsgiserv.errors import BootError, WsgiservError

_MOST_LINES: Final = 30


class Server:
    """A server in a child process, which serves while the program goes on: for tests and tools.

    A context manager: it starts when entered, returns when all workers serve, and stops at the end of the block. It
    also ends with the program, however that ends. There may be many at once, started in any thread.

    An application given by its name runs in a fresh interpreter, with the program's ``sys.path``, working directory and
    environment. An object runs in a fork of the program, with all that the program has loaded and set up by then; TCP
    and UDP sockets of the program, its threads, exit handlers and signal handlers are not the server's.

    Args:
        app: the application, or its name as for the command: ``"module:app"``, ``"module:factory()"``.
        bind: the address, or several; ``"127.0.0.1:0"`` is a free port of this machine.
        settings: as of `wsgiserv.run`.

    Raises:
        ConfigError, ApplicationError, BootError: by `start`.
    """

    def __init__(
        self, app: str | Callable[..., Any], bind: str | list[str] | tuple[str, ...] = "127.0.0.1:0", **settings: Any
    ) -> None:
        self._app = app
        self._settings = {"bind": bind, **settings}
        self._child: Child | None = None
        self._end: weakref.finalize[..., Self] | None = None
        self._starting = threading.Lock()

    def __repr__(self) -> str:
        child = self._child
        state = "not started" if child is None else f"pid {child.pid}" if child.is_running else "ended"
        return f"<wsgiserv.Server {self._app!r}: {state}>"

    # ---- start and end -----------------------------------------------------------------------------------

    def start(self, timeout: float = 60.0) -> Self:
        """Start the server; return it when all its workers serve.

        Args:
            timeout: the longest time in seconds.

        Raises:
            ConfigError: a name or value is wrong (a ValueError).
            ApplicationError: the application cannot be loaded.
            BootError: the workers cannot boot, or not in time; the text has the last lines of the log.
            RuntimeError: it has been started already; or a worker imports the module that starts it.
        """
        __tracebackhide__ = True  # of pytest: the error says it all
        _check_place()
        with self._starting:
            if self._child is not None and self._child.is_running:
                raise RuntimeError(f"this server runs already (pid {self._child.pid})")
            child = self._child = Child(self._app, self._settings)
            # Also at the exit of the interpreter.
            self._end = weakref.finalize(self, child.end_now)
            is_ready = False
            try:
                is_ready = child.wait_for_ready(time.monotonic() + timeout)
            finally:
                if not is_ready:
                    self._raise_if_ended(child, timeout)
        return self

    def _raise_if_ended(self, child: Child, timeout: float) -> None:
        __tracebackhide__ = True
        is_late = child.end is None and not child.has_hung_up
        child.end_now()
        _raise_failure(child, timeout if is_late else None)

    def stop(self, timeout: float = 10.0) -> int:
        """Stop the server and return its exit status: 0 when it has stopped as told. It may be called again.

        Args:
            timeout: how long requests may go on, in seconds; after that the server stops at once, and is killed if it
                does not.

        Returns:
            The exit status; minus a signal's number if the process was killed by one; 0 if it was never started.
        """
        child = self._child
        if child is None:
            return 0
        status = child.stop(timeout)
        if self._end is not None and os.getpid() == child.owner:
            self._end.detach()
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # ---- while it runs -----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL of its first address, without a slash at the end: ``http://127.0.0.1:43211``; or ``unix:/path``."""
        return str(self._address()[0])

    @property
    def address(self) -> Any:
        """Its first address, as `socket.socket.connect` takes it: host and port, or the path of a Unix socket."""
        found = self._address()[1]
        return tuple(found) if isinstance(found, list) else found

    @property
    def port(self) -> int:
        """The port of its first address. Raises RuntimeError for a Unix socket."""
        found = self.address
        if not isinstance(found, tuple):
            raise RuntimeError(f"{self.url} is a Unix socket, and has no port")
        return int(found[1])

    @property
    def pid(self) -> int:
        """The process id of its master."""
        return self._started().pid

    @property
    def log(self) -> str:
        """What the server and the application have logged and printed so far; also after the end."""
        return self._child.log.text() if self._child is not None else ""

    def reload(self, timeout: float = 60.0) -> None:
        """Load the application and the configuration again; return when new workers alone accept connections.

        Args:
            timeout: the longest time in seconds.

        Raises:
            RuntimeError: the reload has failed, and the old workers serve on; or the application is an object, which
                cannot be loaded again.
        """
        child = self._started()
        done, reason = child.reload(time.monotonic() + timeout)
        if not done:
            raise RuntimeError(f"reload failed: {reason}")

    def _started(self) -> Child:
        if self._child is None:
            raise RuntimeError("this server has not been started: use it in a with statement, or call start()")
        return self._child

    def _address(self) -> Any:
        ready = self._started().ready
        if ready is None:
            raise RuntimeError("this server is not ready")
        return ready["addresses"][0]


def _check_place() -> None:
    """Raise RuntimeError where the module of an application starts a server when a worker imports it."""
    # That one's workers would import it again, and so on.
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "load_application" and frame.f_globals.get("__name__") == "wsgiserv.app.loader":
            raise RuntimeError(
                "wsgiserv.Server was started while a worker imports its application: each server would start another. "
                'Put it under: if __name__ == "__main__":'
            )
        frame = frame.f_back


def _raise_failure(child: Child, late_s: float | None) -> NoReturn:
    """Raise the error of a server that has not started.

    Args:
        child: its process, which has ended.
        late_s: the time that it had, in seconds, where that is over; else None.
    """
    __tracebackhide__ = True
    end = child.end or {}
    lines = child.log.text().splitlines()[-_MOST_LINES:]
    log = "\n".join(["The last lines of its log:", *lines]) if lines else "Its log is empty."
    if "kind" in end:
        kind: Any = getattr(errors, end["kind"], BootError)
        error: WsgiservError = kind(*end["faults"])
        error.traceback = end["traceback"]
        for note in filter(None, (error.traceback.rstrip(), *([] if kind is errors.ConfigError else [log]))):
            error.add_note(note)
        raise error
    if late_s is not None:
        raise BootError(f"the server was not ready within {late_s:g} s. {log}")
    how = "stopped" if child.status == 0 else f"ended with status {child.status}"
    raise BootError(f"the server {how} before it was ready. {log}")
