"""`Worker`: what gunicorn's worker classes offer to their subclasses, on top of one of wsgiserv's classes.

A subclass may extend the worker's life: `init_process`, `load_wsgi`, `notify`, the handlers of signals. How requests
are accepted and run is the server's own: a class that replaces that is refused at the start, with the method's name.
"""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from wsgiserv.boot import WorkerBoot
from wsgiserv.config.users_view import cfg_for_users
from wsgiserv.errors import BootError, ExitStatus
from wsgiserv.logs.error import log_for_users

if TYPE_CHECKING:
    from wsgiserv.worker.base import Worker as _Base
else:
    # The subclasses of this package have one of the server's classes behind this one.
    _Base = object

# What a subclass may replace besides names with two underscores.
_CALLED: Final = frozenset(
    {
        *("init_process", "init_signals", "load_wsgi", "notify", "patch", "setup", "check_config"),
        *("handle_abort", "handle_exit", "handle_quit", "handle_usr1", "handle_winch"),
    }
)
# gunicorn's own, which its workers call and wsgiserv's do not.
_NOT_CALLED: Final = frozenset(
    {
        *("run", "handle", "handle_request", "handle_error", "accept", "wait", "is_parent_alive", "SIGNALS", "PIPE"),
        *("run_for_one", "run_for_multiple", "get_thread_pool", "set_accept_enabled", "enqueue_req"),
        *("on_client_socket_readable", "on_pending_socket_readable", "murder_keepalived", "murder_pending"),
        *("wait_for_and_dispatch_events", "finish_request", "handle_h2c_upgrade", "handle_http2"),
        *("handle_http2_request", "timeout_ctx", "is_already_handled", "server_class", "wsgi_handler"),
    }
)
# gevent-websocket's class replaces the handler of requests, for what the setting `wsgi_websocket` does here.
_WEBSOCKET_WORKERS: Final = "geventwebsocket.gunicorn.workers"
_HANDLERS: Final = {
    signal.SIGTERM: "handle_exit",
    signal.SIGINT: "handle_quit",
    signal.SIGQUIT: "handle_quit",
    signal.SIGABRT: "handle_abort",
    signal.SIGUSR1: "handle_usr1",
    signal.SIGWINCH: "handle_winch",
}


class Worker(_Base):
    """One worker process.

    Args:
        age, ppid, sockets, app, timeout, cfg, log: as in gunicorn, for subclasses; the server has its own.
    """

    # The values of this process's worker, until it is made: gunicorn's `__init__` has no place for them.
    _booting: ClassVar[WorkerBoot]

    def __init__(self, age: int, ppid: int, sockets: list[Any], app: Any, timeout: float, cfg: Any, log: Any) -> None:
        super().__init__(Worker._booting)
        self._exit_status: int | None = None

    def __str__(self) -> str:
        return f"<Worker {self.pid}>"

    @classmethod
    def _make(cls, boot: WorkerBoot) -> Any:
        Worker._booting = boot
        settings = boot.settings
        cfg, log = cfg_for_users(settings), log_for_users(boot.log)
        setup = getattr(cls, "setup", None)
        if setup is not None:
            setup()
        check_config = getattr(cls, "check_config", None)
        if check_config is not None:
            check_config(cfg, log)
        sockets = [listener.sock for listener in boot.listeners]
        app = getattr(boot.server, "app", None)
        return cls(boot.age, boot.master_pid, sockets, app, settings.timeout / 2, cfg, log)

    @classmethod
    def _patch_before_load(cls, log: logging.Logger, in_master: bool) -> None:
        super().patch(log, in_master)  # `patch` is gunicorn's method of that name here

    @classmethod
    def _why_not(cls) -> str:
        """Return why the class cannot run on the server's workers; empty if it can."""
        known = ("wsgiserv.", "builtins", "abc", _WEBSOCKET_WORKERS)
        users = [each for each in cls.__mro__ if not each.__module__.startswith(known)]
        servers = next(each for each in cls.__mro__ if each not in users)
        for kind in users:
            place = f"{kind.__module__}.{kind.__qualname__}"
            for name in vars(kind):
                if name in _CALLED or name.startswith(("__", "_abc_")):
                    continue
                if name in _NOT_CALLED:
                    return (
                        f"{place} replaces {name}, which only gunicorn's own workers call: wsgiserv accepts "
                        f"connections and runs requests itself. May be replaced: {', '.join(sorted(_CALLED))}."
                    )
                if hasattr(servers, name):
                    return f"{place} has a {name} of its own, and so has wsgiserv's worker: rename it."
        if not hasattr(servers, "serve"):
            return "it is built on no class that serves: take gunicorn's sync, gthread or gevent worker."
        return ""

    # ---- the worker's life -------------------------------------------------------------------------------

    def _boot_and_serve(self) -> int:
        failure: BaseException | None = None
        try:
            self.init_process()
        except BaseException as error:
            failure = error
        name = f"{type(self).__qualname__}.init_process"
        if self._exit_status is None:
            if failure is None:
                failure = BootError(f"{name} has returned without super().init_process(), which serves")
            return self._fail(failure)
        if failure is None:
            return self._exit_status
        if not isinstance(failure, Exception):
            raise failure
        self.log.error("WS1780 worker %d: %s raised after the worker has served:", self.pid, name, exc_info=failure)
        return ExitStatus.FAILURE

    def init_process(self) -> None:
        """Boot and serve, and return when the worker has left. A subclass calls it last."""
        self.init_signals()
        self._exit_status = super()._boot_and_serve()

    def load_wsgi(self) -> None:
        """Load the application into `wsgi`."""
        super()._load_wsgi()

    def _load_wsgi(self) -> None:
        self.load_wsgi()
        if self.wsgi is None:
            raise BootError(f"{type(self).__qualname__}.load_wsgi has not set self.wsgi")

    def notify(self) -> None:
        """Tell the master that the worker is alive. Called once a second; the server does so itself besides."""
        super().notify()

    def each_second(self) -> None:
        """As of the server's class; call `notify`."""
        super().each_second()  # type: ignore[misc]
        self.notify()

    def _serves_wsgi_websocket(self) -> bool:
        """As of the server's class; also for a class that is built on gevent-websocket's."""
        built_on = any(each.__module__ == _WEBSOCKET_WORKERS for each in type(self).__mro__)
        return built_on or super()._serves_wsgi_websocket()

    # ---- signals -----------------------------------------------------------------------------------------

    # The server acts on each signal itself; a subclass's handler is called besides.

    def init_signals(self) -> None:
        """Have the handlers called that a subclass has replaced."""
        for number, name in _HANDLERS.items():
            if getattr(type(self), name) is not getattr(Worker, name):
                signal.signal(number, getattr(self, name))

    def handle_exit(self, sig: int | None, frame: FrameType | None) -> None:
        """Leave gracefully (TERM)."""
        self._handle(sig)

    def handle_quit(self, sig: int | None, frame: FrameType | None) -> None:
        """Leave at once (INT, QUIT)."""
        self._handle(sig)

    def handle_abort(self, sig: int | None, frame: FrameType | None) -> None:
        """Do nothing: the server reports what hangs, and exits (ABRT)."""

    def handle_usr1(self, sig: int | None, frame: FrameType | None) -> None:
        """Do nothing: the server opens its logs again (USR1)."""

    def handle_winch(self, sig: int | None, fname: FrameType | None) -> None:
        """Do nothing (WINCH)."""

    def _handle(self, sig: int | None) -> None:
        if sig is None:  # called by the subclass: no signal has come
            self.alive = False
