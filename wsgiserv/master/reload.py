"""The reload (SIGHUP): replaces one generation of workers and settings by the next while the server serves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from wsgiserv.config.settings import Settings
from wsgiserv.errors import WsgiservError
from wsgiserv.hooks import call_hook
from wsgiserv.logs.access import open_access_file
from wsgiserv.logs.error import open_error_log, reopen_error_log
from wsgiserv.master.control import Done
from wsgiserv.master.generation import Generation
from wsgiserv.master.load import scaled
from wsgiserv.master.pidfile import PidFile
from wsgiserv.master.resources import ServerResources
from wsgiserv.master.status import LastReload
from wsgiserv.master.waiters import settle
from wsgiserv.net.listener import open_listeners
from wsgiserv.privileges import check_privileges
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded


class Reload:
    """Holds the generation in force, and during a reload the next one.

    Args:
        current: the first generation.
        resources: the master's resources.

    Attributes:
        current: the generation in force.
        requests: the callbacks of requested reloads that have not begun.
        last: the outcome of the last reload; None before the first.
    """

    def __init__(self, current: Generation, resources: ServerResources) -> None:
        self.current = current
        self.requests: list[Done] = []
        self.last: LastReload | None = None
        self._waiters: list[Done] = []
        self._next: Generation | None = None
        # The variables in the environment before the reload in progress.
        self._variables_before = resources.environment.state
        self._resources = resources
        self._log = resources.log

    @property
    def in_progress(self) -> bool:
        """True from the begin of a reload until its outcome."""
        return self._next is not None

    @property
    def newest(self) -> Generation:
        """The next generation during a reload, otherwise the current one."""
        return self._next or self.current

    def targets(self) -> tuple[tuple[int, int], ...]:
        """Return the number and the wanted workers of each generation, oldest first."""
        both = (self.current,) if self._next is None else (self.current, self._next)
        return tuple((each.number, each.workers) for each in both)

    def generation(self, number: int) -> Generation:
        """Return the generation with this number, one of `targets`."""
        return self.current if number == self.current.number else self.newest

    def scale(self, count: int, reason: str) -> None:
        """Want ``count`` workers of the newest generation; ``reason`` is for the log."""
        generation = self.newest
        generation.workers = count
        self._log.info("%s", reason)
        self._resources.server.set_num_workers(count)

    def pause(self) -> None:
        """Want no workers at all."""
        # Of both: else a reload in progress would bring the old ones back when it fails.
        for each in (self.current, self.newest):
            each.workers = 0
        self._resources.server.set_num_workers(0)

    def renew_ticket_keys(self, now: float) -> float:
        """Replace the TLS contexts whose day is over; return when to call again, ``time.monotonic()`` seconds."""
        # A set: both generations may share one series, which is renewed once.
        series = {self.current.tls_contexts, self.newest.tls_contexts}
        return min((each.renew(now) for each in series if each is not None), default=inf)

    def overtake(self, reason: str, *, requests_too: bool) -> None:
        """Report a failure to the callbacks of the reload in progress: another event decides instead.

        Args:
            reason: the reason to report.
            requests_too: True when no reload begins any more, so that requested ones fail as well.
        """
        # The reload itself goes on, unless the server stops: only its clients need not wait.
        settle(self._waiters, False, reason)
        if requests_too:
            settle(self.requests, False, reason)

    def close(self) -> None:
        """Remove the pid file of a reload that was in progress when the server ended."""
        if self._next is not None and self._next.pid_file is not None:
            self._next.pid_file.remove()

    # ---- begin, and one of two outcomes ----------------------------------------------------------------

    def begin(self, read: Callable[[], Loaded]) -> None:
        """Read the configuration again and create the next generation from it. Never raises.

        A failure is logged, and the current generation stays.
        """
        # One reload answers all requests so far; those to come may mean a later state of the files.
        self._waiters, self.requests = self.requests, []
        # `read` puts those of environment files there.
        self._variables_before = self._resources.environment.state
        try:
            self._begin(read())
        except WsgiservError as error:
            self._log.error("WS1310 reload failed; still running the old code and settings: %s", error)
            self._resources.environment.restore(self._variables_before)
            self._settle(False, str(error))
        except Exception as error:  # of a configuration file's own code, or a bug: the server must go on
            self._log.exception("WS1311 reload failed; still running the old code and settings")
            self._resources.environment.restore(self._variables_before)
            self._settle(False, f"{type(error).__name__}: {error}")

    def _settle(self, ok: bool, reason: str) -> None:
        self.last = LastReload(ok, reason, monotonic())
        settle(self._waiters, ok, reason)

    def _begin(self, loaded: Loaded) -> None:
        old, settings, resources = self.current, loaded.settings, self._resources
        check_privileges(settings)
        # All that can fail comes first, and is undone.
        with ExitStack() as undo:
            pid_file = self._new_pid_file(settings)
            if pid_file is not None:
                undo.callback(pid_file.remove)
            # The service manager's sockets stay: `bind` does not apply to them.
            listeners = old.listeners if resources.activated else open_listeners(settings, keep=old.listeners)
            fresh = [listener for listener in listeners if listener not in old.listeners]
            for listener in fresh:
                # Called in reverse: the file goes while the socket is open, and its inode number its own.
                undo.callback(listener.close)
                undo.callback(listener.unlink)
            open_error_log(settings)
            undo.callback(open_error_log, old.settings)
            # Opened here, since the workers' user may not be allowed to.
            open_access_file(settings)
            # Before the application is loaded, where the master itself preloads it.
            resources.apply_environment(settings)
            undo.callback(resources.restore_environment, old.settings, self._variables_before)
            new = resources.generation(settings, listeners, old)
            undo.pop_all()
        # SIGHUP rotates logs, too: files of the same name are opened again, in the master first.
        reopen_error_log()
        self._log.info("reloading")
        for notice in loaded.notices:
            self._log.warning("%s", notice)
        if fresh:
            self._log.info("listening on %s", ", ".join(map(str, listeners)))
        resources.warn_of_exposure(fresh, settings)
        resources.listeners += fresh
        # A fleet that has grown under load is not thrown back to `workers`.
        new.workers = scaled(settings, old.workers)
        new.pid_file = pid_file
        self._next = new
        # Before the hook, which sees the new configuration.
        resources.publish(new)
        call_hook(self._log, "on_reload", settings.on_reload, resources.server)

    def _new_pid_file(self, settings: Settings) -> PidFile | None:
        """Create the next generation's pid file where its path is another one."""
        if not settings.pidfile:
            return None
        held = self._resources.pid_file
        pid_file = PidFile(settings.pidfile, self._log)
        if held is not None and held.path == pid_file.path:
            return None  # this server has it, and its lock would refuse itself
        pid_file.create()
        return pid_file

    def promote(self, now: float) -> float:
        """Put the next generation in force; return the duration of the reload in seconds."""
        new = self.newest
        self._next, self.current = None, new
        # Workers of the old generation still serve the clients in the backlogs of the closed ones.
        self._resources.keep_listeners(new.listeners)
        self._resources.replace_pid_file(new.pid_file, new.settings)
        duration_s = now - new.began_at
        self._settle(True, f"{counted(new.workers, 'worker')} in {duration_s:.2f} s")
        return duration_s

    def abandon(self, reason: str) -> None:
        """Drop the next generation, for ``reason``, and return to the settings of the current one."""
        failed, old = self.newest, self.current
        self._next = None
        self._resources.keep_listeners(old.listeners)
        if failed.pid_file is not None:
            failed.pid_file.remove()
        self._resources.restore_environment(old.settings, self._variables_before)
        try:
            open_error_log(old.settings)
        except WsgiservError as error:
            # Its directory may be gone since. The log of the new settings works, and stays.
            self._log.error("WS1312 reload failed: cannot reopen the error log of the old settings: %s", error)
        self._resources.publish(old)
        self._settle(False, reason)
