"""Resources owned by the master: sockets, pid file, environment, title, handoff channel, preloaded application."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from os import getpid
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from wsgiserv import __version__
from wsgiserv.app.appearance import identify
from wsgiserv.config.masking import mask_text
from wsgiserv.config.process_environment import ProcessEnvironment, State
from wsgiserv.config.settings import Settings, speaks_tls
from wsgiserv.errors import ConfigError
from wsgiserv.hooks import call_hook_or_stop
from wsgiserv.logs.access import open_access_file
from wsgiserv.logs.error import share_log_files
from wsgiserv.logs.files import log_files
from wsgiserv.master.generation import Generation
from wsgiserv.master.hooks_server import HookServer
from wsgiserv.master.pidfile import PidFile
from wsgiserv.master.signals import StartInterrupt
from wsgiserv.master.slots import slot_pool
from wsgiserv.master.spawn import set_title
from wsgiserv.master.systemd import take_listen_fds
from wsgiserv.master.upgrade import TOLD_TO_STOP, OldMaster
from wsgiserv.master.zygote import become_subreaper, threads_left_behind
from wsgiserv.net.handoff import Handoff
from wsgiserv.net.inherited_sockets import check_descriptors
from wsgiserv.net.listener import Listener, exposure_warning, open_listeners
from wsgiserv.privileges import check_privileges
from wsgiserv.process import add_child_cleanup
from wsgiserv.titles import has_titles
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.net.tls_context import ContextSeries  # imports ssl, which a plain server does not need

# What is done, or opened, before the hook on_starting: too late for `cfg.set`.
_APPLIED: Final = frozenset({
    "capture_output", "chdir", "check_config", "config", "daemon", "errorlog", "logconfig", "logconfig_dict",
    "logconfig_json", "loglevel", "pidfile", "print_config", "raw_env", "umask",
})  # fmt: skip

# Loads an application with these settings; the last argument is True when this process goes on as the master.
Preload = Callable[[Settings, logging.Logger, bool], Callable[..., Any]]


class ServerResources:
    """Holds what the master must close or remove at the end, and passes on at an upgrade.

    Created before a daemon forks: LISTEN_PID names the process that the service manager started.

    Args:
        settings: the configuration of the start.
        log: the error log.
        old_master: the master whose sockets this one takes over, or None.
        preload_application: loads the application for `preload_app`; None where each worker loads it.
        environment: the environment of this process; None where no environment file was read.

    Attributes:
        settings, log, old_master: the arguments.
        server: the ``server`` argument of the hooks.
        environment: the variables of `raw_env` and of environment files.
        pid_file: the pid file, or None.
        listeners: all open listening sockets, of every generation.
        handoff: the workers' channel, one for the life of the server.
        began_at: when this process began to start, ``time.monotonic()`` seconds.
        activated: True when the sockets came from the service manager, so that `bind` does not apply.
        has_taken_over: True when no old master may still go on with the service in place of this one.
    """

    def __init__(
        self,
        settings: Settings,
        log: logging.Logger,
        old_master: OldMaster | None,
        preload_application: Preload | None,
        environment: ProcessEnvironment | None = None,
    ) -> None:
        self.settings = settings
        self.log = log
        self.old_master = old_master
        self.has_taken_over = old_master is None
        self.began_at = monotonic()
        self.server: HookServer
        self.environment = environment or ProcessEnvironment(os.environ)
        self.pid_file: PidFile | None = None
        self.listeners: list[Listener] = []
        self.handoff: Handoff | None = None
        self._last_number = 0
        self._preload_application = preload_application
        self._preloaded: Callable[..., Any] | None = None
        # From the first generation with `preload_app` on: "zygote", "master", or "fallback" for the master of a system
        # without zygotes.
        self._preloads_in = ""
        self._inherited_fds = take_listen_fds(os.environ, getpid())
        # Over each upgrade: the next master has the sockets, but not the manager's variables.
        self.activated = bool(self._inherited_fds) or (old_master is not None and old_master.activated)
        # The sockets of the old master: the files of Unix sockets are its own until this master serves.
        self._old_listeners: list[Listener] = []
        add_child_cleanup(self._close_in_child)

    def _close_in_child(self) -> None:
        """Close the sockets in a child that a hook or a configuration file has forked."""
        for listener in (*self._old_listeners, *self.listeners):
            listener.close()
        if self.handoff is not None:
            self.handoff.close()

    def check_inherited(self) -> None:
        """Check what the parent process passed on. Raises ConfigError or BootError.

        Called before this process opens any descriptor.
        """
        # The number of a socket that is missing would become that of the next file, which would be taken for it.
        if self.old_master is None:
            check_descriptors(self.settings.bind, self._inherited_fds)
        else:
            self.old_master.check_version()

    def acquire(self, notices: Sequence[str], interrupt: StartInterrupt) -> Generation:
        """Acquire the resources, call the hooks of the start, and return the first generation.

        Args:
            notices: warnings about the configuration, for the log.
            interrupt: ends the start at a signal.

        Raises ConfigError, BootError, ApplicationError; the caller then calls `clean_up`.
        """
        log, settings = self.log, self.settings
        check_privileges(settings)
        server = self.server = HookServer(settings, log, self.old_master.pid if self.old_master is not None else 0)
        server.systemd = bool(self._inherited_fds)
        # Before the pid file: another server knows a master by its title.
        set_title("master", server.proc_name)
        if not has_titles:
            log.debug("no process titles: the package setproctitle is not installed")
        # A signal must not end the start between the creation of a file and the note of it: nothing would remove it.
        with interrupt.held():
            # Before the sockets: the second of two servers with one configuration is told of the first by this.
            self._create_pid_file()
        server.show_pidfile(self.pid_file.path if self.pid_file is not None else None)
        # Before the hooks and the application, whose own code may read them at its import.
        self.apply_environment(settings)
        for notice in notices:
            log.warning("%s", notice)
        settings = self._call_on_starting()
        with interrupt.held():
            self._open_listeners()
        server.listen(self.listeners)
        # After the inherited sockets: a descriptor number of a missing one must not become the log's.
        log_files.begin()
        open_access_file(settings)  # the workers' user may not be allowed to: workers get the descriptor
        share_log_files()
        # The old master's, so that its workers can hand their idle connections over to the next ones.
        fds = self.old_master.handoff if self.old_master is not None else None
        self.handoff = server.handoff = Handoff.from_fds(*fds) if fds is not None else Handoff.open()
        self._log_start()
        # The application's import, where the master preloads it, comes after the server's own faults: it may take long.
        generation = self.generation(settings, self.listeners)
        self._show_application(generation)
        # A hook may have set it.
        generation.workers = server.take_wanted() or settings.workers
        server.set_num_workers(generation.workers)
        call_hook_or_stop(log, "when_ready", settings.when_ready, server)
        return generation

    def apply_environment(self, settings: Settings) -> None:
        """Set the variables of `raw_env` and the server's own, in place of those of other settings."""
        self.environment.apply(identify(settings))

    def restore_environment(self, settings: Settings, variables: State) -> None:
        """Set the variables, and the server's names, that were there with these settings."""
        identify(settings)
        self.environment.restore(variables)

    def _call_on_starting(self) -> Settings:
        """Call the hook; return the settings with its changes (``server.cfg.set``). Raises BootError, StoppedByHook."""
        server, settings = self.server, self.settings
        if settings.on_starting is None:
            return settings
        warn = server.cfg.on_late_change
        assert warn is not None
        server.cfg.on_late_change = lambda name: warn(name) if name in _APPLIED else None
        call_hook_or_stop(self.log, "on_starting", settings.on_starting, server)
        server.cfg.on_late_change = warn
        changed = server.cfg.take_changes(_APPLIED)
        if changed is not settings:
            check_privileges(changed)
            self.settings = changed
            server.configure(changed)
        return changed

    def _show_application(self, generation: Generation) -> None:
        """Show hooks the application, where the master itself has loaded it."""
        if generation.application is not None:
            self.server.app.callable = generation.application

    def _log_start(self) -> None:
        settings, log = self.settings, self.log
        kind = settings.worker_class
        name = kind if isinstance(kind, str) else kind.__name__
        log.info(
            "wsgiserv %s (Python %s), pid %d: %s for %s",
            __version__,
            ".".join(map(str, sys.version_info[:3])),
            self.server.pid,
            counted(settings.workers, f"{name} worker"),
            mask_text(settings.wsgi_app or ""),
        )
        origin = " (sockets of the service manager; bind is not used)" if self.activated else ""
        protocol = " for the uwsgi protocol" if settings.protocol == "uwsgi" else ""
        log.info("listening on %s%s%s", ", ".join(map(str, self.listeners)), protocol, origin)
        self.warn_of_exposure(self.listeners, settings)

    def warn_of_exposure(self, listeners: Sequence[Listener], settings: Settings) -> None:
        """Warn of Unix sockets where any user of this host is trusted as a proxy."""
        for listener in listeners:
            if warning := exposure_warning(listener, settings):
                self.log.warning("%s", warning)

    def _create_pid_file(self) -> None:
        """Create the pid file, unless the old master holds it until this one serves. Raises ConfigError."""
        if not self.settings.pidfile:
            return
        pid_file = PidFile(self.settings.pidfile, self.log)
        if self.old_master is None or not pid_file.is_held_by(self.old_master.pid):
            pid_file.create()
        self.pid_file = pid_file

    def _open_listeners(self) -> None:
        """Open the sockets of `bind`, or take those of the old master or the service manager. Raises ConfigError."""
        if self.old_master is None:
            self.listeners = open_listeners(self.settings, self._inherited_fds)
            return
        left = self._old_listeners = self.old_master.listeners(speaks_tls(self.settings))
        self.listeners = left if self.old_master.activated else open_listeners(self.settings, keep=left)
        for listener in left:
            if listener not in self.listeners:
                # Closed only: until this master serves, the old one accepts there.
                listener.close()

    # ---- generations ---------------------------------------------------------------------------------

    def generation(
        self, settings: Settings, listeners: Sequence[Listener], before: Generation | None = None
    ) -> Generation:
        """Return the generation after ``before``. Raises ConfigError, ApplicationError."""
        began_at = monotonic() if before else self.began_at
        # Never used again, even if this one fails: workers of it may still exit, and be counted as failures of it.
        self._last_number += 1
        pool = slot_pool(settings, before.pool if before else None)
        tls_contexts = self._tls_contexts(settings, before.tls_contexts if before else None)
        application, preload = self._preload(settings)
        number, workers = self._last_number, settings.workers
        return Generation(
            number, settings, list(listeners), pool, application, preload, began_at, tls_contexts, workers
        )

    def publish(self, generation: Generation) -> None:
        """Show a generation to hooks and in the process title."""
        self.server.configure(generation.settings)
        self.server.listen(generation.listeners)
        self._show_application(generation)
        # Last of the three: it calls a hook, which sees the rest.
        self.server.set_num_workers(generation.workers)
        set_title("master", self.server.proc_name)

    def keep_listeners(self, kept: Sequence[Listener]) -> None:
        """Close all sockets but these."""
        # Workers that still have a closed one serve its backlog until it is empty.
        for listener in self.listeners:
            if listener not in kept:
                listener.unlink()
                listener.close()
        self.listeners = list(kept)

    def close_listeners(self, kept: Sequence[Listener] = ()) -> None:
        """Close this process's descriptors of all sockets but ``kept``; the files of Unix sockets stay."""
        for listener in self.listeners:
            if listener not in kept:
                listener.close()

    def replace_pid_file(self, new: PidFile | None, settings: Settings) -> None:
        """Put ``new`` in the place of the pid file, or drop it where the new ``settings`` have none."""
        if new is None and settings.pidfile:
            return  # the path is the same, and the file stays
        if self.pid_file is not None:
            self.pid_file.remove()
        self.pid_file = new
        self.server.show_pidfile(new.path if new is not None else None)

    def _preload(self, settings: Settings) -> tuple[Callable[..., Any] | None, Callable[[], Callable[..., Any]] | None]:
        """Return the preloaded application, and the function that preloads it in a zygote: one of both, or neither.

        Raises ConfigError, ApplicationError.
        """
        if not settings.preload_app or settings.wsgi_app is None or self._preload_application is None:
            return None, None
        if settings.reload:
            self.log.warning(
                "WS1301 preload_app: ignored with reload: each worker loads the application, to see what has changed"
            )
            return None, None
        if not self._preloads_in:
            # Workers are grandchildren of a zygote. The child between ends at once, and the kernel gives the worker to
            # its nearest subreaper: only a parent can wait for it. Not tried for "master": a subreaper has the
            # application's orphans for children, too.
            is_possible = settings.preload_in != "zygote" or become_subreaper()
            self._preloads_in = settings.preload_in if is_possible else "fallback"
        elif self._preloads_in not in ("fallback", settings.preload_in):
            # What is loaded here cannot be unloaded, and a zygote's workers need a subreaper.
            self.log.warning(
                "WS1290 reload: preload_in = %r takes effect at a restart or an upgrade (SIGUSR2); it stays %r",
                settings.preload_in,
                self._preloads_in,
            )
        if self._preloads_in == "zygote":
            return None, partial(self._preload_application, settings, self.log, False)
        return self._preload_here(settings, self._preload_application), None

    def _preload_here(self, settings: Settings, load: Preload) -> Callable[..., Any]:
        """Load the application in this process, once: Python has no way to unload modules."""
        is_again = self._preloaded is not None
        if self._preloads_in == "master":
            if is_again:
                self.log.warning(
                    "WS1291 reload: the preloaded application stays as it is: preload_in = 'master'. Restart the "
                    "server, or send SIGUSR2, to load it again"
                )
            else:
                self.log.info(
                    "preload_in = 'master': the master itself loads the application, with the rights of its own user: "
                    "SIGHUP will not reload it (restart, or send SIGUSR2), boot_timeout does not apply, and its "
                    "threads, memory and faults at import are the master's"
                )
        elif is_again:
            self.log.warning(
                "WS1303 reload: the preloaded application stays as it is: this system has no PR_SET_CHILD_SUBREAPER "
                "(prctl(2)). Restart the server, or send SIGUSR2, to load it again"
            )
        else:
            self.log.warning(
                "WS1302 preload_app: the master itself loads the application: this system has no "
                "PR_SET_CHILD_SUBREAPER (prctl(2)). SIGHUP will not reload it; restart the server, or send SIGUSR2"
            )
        if self._preloaded is None:
            self._preloaded = load(settings, self.log, True)
            if names := threads_left_behind():
                self.log.warning(
                    "WS1292 preload_app: the application has started %s while it was loaded (%s): threads stay in the "
                    "master, the workers do not have them. Start them in post_worker_init, or at the first request",
                    counted(len(names), "thread") if len(names) > 1 else "a thread",
                    ", ".join(names),
                )
            # As in a zygote: the collector of a worker would write into the pages that all share, and so copy them.
            gc.collect()
            gc.freeze()
        return self._preloaded

    def _tls_contexts(self, settings: Settings, before: ContextSeries | None) -> ContextSeries | None:
        """Return the TLS contexts of the workers: ``before`` while certificates and settings are the same.

        None without TLS, and with the hook `ssl_context`, which each worker calls. Raises ConfigError.
        """
        # All workers inherit the same ones, so that a session resumes in each: ticket keys cannot be set.
        if not speaks_tls(settings) or settings.ssl_context is not None:
            return None
        if before is not None and before.fits(settings):
            return before
        from wsgiserv.net.tls_context import ContextSeries

        return ContextSeries(settings, monotonic())

    # ---- upgrade and end -----------------------------------------------------------------------------

    def take_over(self) -> None:
        """Report to the old master that this one serves, and take its pid file and its Unix sockets' files."""
        self.has_taken_over = True
        self.server.master_pid, self.server.master_name = 0, "Master"
        if self.old_master is None:
            return
        for listener in self._old_listeners:
            if listener not in self.listeners:
                listener.unlink()  # the old workers serve the clients in its backlog
        self._old_listeners = []
        if self.pid_file is not None:
            try:
                self.pid_file.take_over(self.old_master.pid)
            except ConfigError as error:
                # This master serves: a pid file is no reason to stop.
                self.log.error("WS1325 upgrade: cannot take over the pid file: %s", error)
                self.pid_file = None
        # Last: it makes the old master stop, which must find its files taken.
        self.old_master.ready()

    def report_stop(self) -> None:
        """Report to the old master that this one was told to stop, unless it serves already."""
        if self.old_master is not None:
            self.old_master.failed(TOLD_TO_STOP)

    def clean_up(self) -> None:
        """Close the sockets, and remove the files that this master still owns. May be called twice."""
        for listener in self.listeners:
            if listener not in self._old_listeners:
                # Before the close: it compares inode numbers, and another file may get that of a closed socket.
                listener.unlink()
            listener.close()
        self.listeners = []
        if self.handoff is not None:
            self.handoff.close()
        if self.pid_file is not None:
            self.pid_file.remove()
