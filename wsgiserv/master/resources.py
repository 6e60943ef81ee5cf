"""What the master does before its loop, and what it takes back after it.

Owns: the order of starting: privileges, pid file, environment, hooks, sockets, preloading, the first lines
of the log.
Must not know: workers, signals (but that they can end a start), reloads.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any

from wsgiserv import __version__
from wsgiserv.config.tls import speaks_tls
from wsgiserv.errors import ConfigError
from wsgiserv.hooks import call_hook, call_hook_or_stop
from wsgiserv.logs.access import open_access_file
from wsgiserv.logs.error import share_log_files
from wsgiserv.logs.files import log_files
from wsgiserv.master.generation import Generation, RawEnvironment
from wsgiserv.master.hooks_server import HookServer
from wsgiserv.master.pidfile import PidFile
from wsgiserv.master.slots import slot_pool
from wsgiserv.master.spawn import set_title
from wsgiserv.master.start_interrupt import StartInterrupt
from wsgiserv.master.systemd import take_listen_fds
from wsgiserv.master.upgrade import OldMaster
from wsgiserv.master.zygote import become_subreaper
from wsgiserv.net.handoff import Handoff
from wsgiserv.net.listener import Listener, check_descriptors, exposure_warning, open_listeners
from wsgiserv.privileges import check_privileges
from wsgiserv.process import add_child_cleanup
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings
    from wsgiserv.net.tls_series import ContextSeries

__all__ = ["Preload", "ServerResources"]

# Loads an application with these settings; the last argument says whether this process goes on as the master.
Preload = Callable[["Settings", logging.Logger, bool], Callable[..., Any]]


class ServerResources:
    """The master's possessions outside of its process: pid file, sockets, environment, title.

    Attributes:
        server: the master as hooks see it.
        environment: what `raw_env` has set.
        pid_file: the pid file, or None.
        listeners: all listening sockets that are open, of every generation.
        handoff: the channel between the workers, one for the life of the server; None where there is none.
        began_at: when this process began to start, ``time.monotonic()`` seconds.
        inherited: whether the sockets came from the service manager, so that `bind` does not count.

    Made before a daemon forks: LISTEN_PID names the process that the service manager has started.
    """

    def __init__(
        self,
        settings: Settings,
        notices: Sequence[str],
        log: logging.Logger,
        predecessor: OldMaster | None = None,
        preload_application: Preload | None = None,
    ) -> None:
        self._settings = settings
        self._preload_application = preload_application
        self._preloaded: Callable[..., Any] | None = None
        self._predecessor = predecessor
        self._notices = notices
        self.log = log
        self.began_at = monotonic()
        self._inherited_fds = take_listen_fds(os.environ, getpid())
        self.inherited = bool(self._inherited_fds) or (predecessor is not None and predecessor.activated)
        self.server: HookServer
        self.environment = RawEnvironment(os.environ)
        self.pid_file: PidFile | None = None
        self.listeners: list[Listener] = []
        # The sockets of the old master: their files are its own until this one serves.
        self._left: list[Listener] = []
        self.handoff: Handoff | None = None
        add_child_cleanup(self._close_in_child)

    def _close_in_child(self) -> None:
        """Called in a child that a hook or a configuration file has forked."""
        for listener in (*self._left, *self.listeners):
            listener.close()
        if self.handoff is not None:
            self.handoff.close()

    def check_descriptors(self) -> None:
        """Raise ConfigError for a socket that should be handed over and is not there. Called before any is opened."""
        if self._predecessor is None:
            check_descriptors(self._settings.bind, self._inherited_fds)

    def start(self, interrupt: StartInterrupt) -> Generation:
        """Do it; return the first generation. Raises ConfigError, BootError, ApplicationError; then `clean_up`.

        ``interrupt`` ends it from outside, but not between the making of a file and the note of it.
        """
        settings, log = self._settings, self.log
        check_privileges(settings)
        self.server = HookServer(settings, log)
        set_title("master", self.server.proc_name)
        if settings.pidfile:
            pid_file = PidFile(settings.pidfile, log)
            with interrupt.held():
                if self._predecessor is None or not pid_file.is_held_by(self._predecessor.pid):
                    pid_file.create()
                self.pid_file = pid_file
        self.environment.apply(settings.raw_env)
        for notice in self._notices:
            log.warning("%s", notice)
        call_hook_or_stop(log, "on_starting", settings.on_starting, self.server)
        with interrupt.held():
            self.listeners = self._listeners()
        self.server.listen(self.listeners)
        # After the sockets that are to be here already: one that is missing must not be this.
        log_files.begin()
        open_access_file(settings)  # the workers may not be allowed to: they get the descriptor
        share_log_files()
        left = self._predecessor.handoff if self._predecessor is not None else None
        self.server.handoff = self.handoff = Handoff.from_fds(*left) if left is not None else Handoff.open()
        log.info(
            "wsgiserv %s (Python %s), pid %d: %s for %s",
            __version__,
            ".".join(map(str, sys.version_info[:3])),
            self.server.pid,
            _workers(settings),
            settings.wsgi_app,
        )
        handed_over = " (sockets of the service manager; bind is not used)" if self.inherited else ""
        spoken = " for the uwsgi protocol" if settings.protocol == "uwsgi" else ""
        log.info("listening on %s%s%s", ", ".join(map(str, self.listeners)), spoken, handed_over)
        for listener in self.listeners:
            if warning := exposure_warning(listener, settings):
                log.warning("%s", warning)
        generation = Generation(
            1,
            settings,
            self.listeners,
            slot_pool(settings),
            *self.preload(settings),
            self.began_at,
            self.tls_contexts(settings),
        )
        self.server.set_num_workers(settings.workers)
        call_hook(log, "when_ready", settings.when_ready, self.server)
        return generation

    def _listeners(self) -> list[Listener]:
        settings, predecessor = self._settings, self._predecessor
        if predecessor is None:
            return open_listeners(settings, self._inherited_fds)
        left = self._left = predecessor.listeners(speaks_tls(settings))
        listeners = left if predecessor.activated else open_listeners(settings, keep=left)
        for listener in left:
            if listener not in listeners:
                listener.close()
        return listeners

    def take_over(self) -> None:
        """Tell the old master that this one serves, and take its pid file and sockets' files. Once, when all is up."""
        if self._predecessor is None:
            return
        for listener in self._left:
            if listener not in self.listeners:
                listener.unlink()  # who is in its backlog is the old workers'
        self._left = []
        if self.pid_file is not None:
            try:
                self.pid_file.take_over(self._predecessor.pid)
            except ConfigError as error:
                self.log.error("%s", error)
                self.pid_file = None
        self._predecessor.ready()

    def leave_to_successor(self) -> None:
        """The next master has the sockets, and their files, from now on."""
        for listener in self.listeners:
            listener.disown()

    def preload(
        self, settings: Settings
    ) -> tuple[Callable[..., Any] | None, Callable[[], Callable[..., Any]] | None]:
        """Return what `preload_app` asks for: the application itself, or what loads it in a zygote; or neither.

        The application where the system has no subreapers. It stays as it is then, whatever is reloaded. Raises
        ConfigError, ApplicationError.
        """
        if not settings.preload_app or settings.wsgi_app is None or self._preload_application is None:
            return None, None
        if settings.reload:
            self.log.warning(
                "preload_app does nothing with reload: each worker loads the application, to see what has changed in it"
            )
            return None, None
        if become_subreaper():
            return None, partial(self._preload_application, settings, self.log, False)
        if self._preloaded is None:
            self.log.warning(
                "preload_app: this system has no PR_SET_CHILD_SUBREAPER (prctl(2)), so the master itself loads the "
                "application. SIGHUP will not reload it: restart the server (or SIGUSR2) to load it anew"
            )
            self._preloaded = self._preload_application(settings, self.log, True)
        else:
            self.log.warning("SIGHUP does not reload preloaded code here: restart the server to load it anew")
        return self._preloaded, None

    def tls_contexts(self, settings: Settings, before: ContextSeries | None = None) -> ContextSeries | None:
        """Return the TLS contexts that the workers inherit, so that sessions resume in each of them.

        Args:
            settings: the configuration of the workers.
            before: those of the generation before, which are kept while certificates and settings are the same.

        Returns:
            None without TLS, and with the hook `ssl_context`, which each worker calls.

        Raises ConfigError.
        """
        if not speaks_tls(settings) or settings.ssl_context is not None:
            return None
        if before is not None and before.fits(settings):
            return before
        from wsgiserv.net.tls_series import ContextSeries  # with it `ssl`, which no plain server needs

        return ContextSeries(settings, monotonic())

    def clean_up(self) -> None:
        """Close the sockets, remove their files and the pid file: only what is still ours. May be called twice."""
        for listener in self.listeners:
            if listener not in self._left:
                listener.unlink()
            listener.close()
        self.listeners = []
        if self.handoff is not None:
            self.handoff.close()
            self.handoff = None
        if self.pid_file is not None:
            self.pid_file.remove()
            self.pid_file = None


def _workers(settings: Settings) -> str:
    kind = settings.worker_class
    name = kind if isinstance(kind, str) else kind.__name__
    return counted(settings.workers, f"{name} worker")
