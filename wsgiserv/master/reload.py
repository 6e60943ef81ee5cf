"""From one configuration to the next while the server serves (SIGHUP).

Owns: the generation in force, the one that is to follow it, and what changes hands between them: sockets,
logs, environment, pid file, title.
Must not know: which workers there are, when a generation is ready.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from wsgiserv.errors import WsgiservError
from wsgiserv.hooks import call_hook
from wsgiserv.logs.access import open_access_file
from wsgiserv.logs.error import open_error_log, reopen_error_log
from wsgiserv.master.generation import Generation
from wsgiserv.master.load import scaled
from wsgiserv.master.pidfile import PidFile
from wsgiserv.master.resources import ServerResources
from wsgiserv.master.slots import slot_pool
from wsgiserv.master.spawn import set_title
from wsgiserv.master.status import LastReload
from wsgiserv.net.listener import exposure_warning, open_listeners
from wsgiserv.privileges import check_privileges
from wsgiserv.wording import counted

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded
    from wsgiserv.config.settings import Settings

__all__ = ["Done", "Reload"]

# Called when something that was asked for has come to its end: whether it went well, and a line about it.
Done = Callable[[bool, str], None]


class Reload:
    """The generations.

    Args:
        current: the first one.
        startup: what the master possesses.

    Attributes:
        current: the generation in force.
        waiting: who has asked for a reload that has not begun yet.
        last: how the last reload went; None before any has been settled.
    """

    def __init__(self, current: Generation, startup: ServerResources) -> None:
        self.current = current
        self.waiting: list[Done] = []
        self.last: LastReload | None = None
        self._watching: list[Done] = []
        self._next: Generation | None = None
        self._startup = startup
        self._log = startup.log
        self._last_number = current.number

    @property
    def under_way(self) -> bool:
        """Whether a reload has begun and is not decided yet."""
        return self._next is not None

    @property
    def newest(self) -> Generation:
        """The generation that is to be in force in the end."""
        return self._next or self.current

    def wanted(self) -> tuple[tuple[int, int], ...]:
        """Return the number of workers that each generation is to have, oldest first."""
        both = (self.current,) if self._next is None else (self.current, self._next)
        return tuple((each.number, each.workers) for each in both)

    def generation(self, number: int) -> Generation:
        """Return the generation ``number``, one of those in `wanted`."""
        return self.current if number == self.current.number else self.newest

    def pause(self) -> None:
        """Want no workers at all."""
        self.current.workers = self.newest.workers = 0

    def renew_ticket_keys(self, now: float) -> float:
        """Drop the TLS contexts whose day is over and make as many new ones; return when to look again."""
        series = {self.current.tls_contexts, self.newest.tls_contexts}
        return min((each.renew(now) for each in series if each is not None), default=inf)

    def tell_overtaken(self, why: str, *, also_waiting: bool) -> None:
        """Tell those who wait for the reload that is under way that it will not come to its end.

        Args:
            why: what they are told.
            also_waiting: whether no reload begins any more, either: tell those who wait for theirs.
        """
        watching, self._watching = self._watching, []
        if also_waiting:
            watching += self.waiting
            self.waiting = []
        for done in watching:
            done(False, why)

    def close(self) -> None:
        """Take back what a reload has made that was under way when the server ended."""
        if self._next is not None and self._next.pid_file is not None:
            self._next.pid_file.remove()
            self._next.pid_file = None

    # ---- begin, and one of two ends --------------------------------------------------------------------

    def begin(self, read: Callable[[], Loaded]) -> None:
        """Read the configuration again and make the next generation of it.

        When that cannot be, it is logged and everything stays as it is. Never raises.
        """
        self._watching, self.waiting = self.waiting, []
        try:
            loaded = read()
            self._begin(loaded)
        except WsgiservError as error:
            self._log.error("nothing is reloaded, the settings in force stay. %s", error)
            self._settle(False, str(error))
        except Exception as error:
            self._log.exception("nothing is reloaded, the settings in force stay")
            self._settle(False, f"{type(error).__name__}: {error}")

    def _settle(self, good: bool, reason: str) -> None:
        self.last = LastReload(good, reason, monotonic())
        watching, self._watching = self._watching, []
        for done in watching:
            done(good, reason)

    def _begin(self, loaded: Loaded) -> None:
        old, settings, startup = self.current, loaded.settings, self._startup
        check_privileges(settings)
        tls_contexts = startup.tls_contexts(settings, old.tls_contexts)
        pid_file = self._next_pid_file(settings)
        try:
            if startup.inherited:
                listeners = old.listeners
            else:
                listeners = open_listeners(settings, keep=old.listeners)
        except BaseException:
            if pid_file is not None:
                pid_file.remove()
            raise
        fresh = [listener for listener in listeners if listener not in old.listeners]
        try:
            open_error_log(settings)
            try:
                open_access_file(settings)
            except BaseException:
                open_error_log(old.settings)
                raise
        except BaseException:
            if pid_file is not None:
                pid_file.remove()
            for listener in fresh:
                listener.unlink()
                listener.close()
            raise
        reopen_error_log()
        self._log.info("reloading")
        for notice in loaded.notices:
            self._log.warning("%s", notice)
        if fresh:
            self._log.info("listening on %s", ", ".join(map(str, listeners)))
        for listener in fresh:
            if warning := exposure_warning(listener, settings):
                self._log.warning("%s", warning)
        startup.listeners = [*startup.listeners, *fresh]
        startup.environment.apply(settings.raw_env)
        application, preload = startup.preload(settings)
        self._last_number += 1
        self._next = Generation(
            self._last_number,
            settings,
            listeners,
            slot_pool(settings, old.pool),
            application,
            preload,
            monotonic(),
            tls_contexts,
        )
        self._next.workers = scaled(settings, old.workers)
        self._next.pid_file = pid_file
        self._show(self._next)
        call_hook(self._log, "on_reload", settings.on_reload, startup.server)

    def _next_pid_file(self, settings: Settings) -> PidFile | None:
        """Create the next generation's pid file where it is to be another one."""
        held = self._startup.pid_file
        if not settings.pidfile:
            return None
        pid_file = PidFile(settings.pidfile, self._log)
        if held is not None and held.path == pid_file.path:
            return None
        pid_file.create()
        return pid_file

    def promote(self, now: float) -> float:
        """Put the next generation in force; return how long that took, in seconds."""
        new = self.newest
        self._next, self.current = None, new
        self._drop_listeners(keep=new)
        startup = self._startup
        if startup.pid_file is not None and (new.pid_file is not None or not new.settings.pidfile):
            startup.pid_file.remove()
            startup.pid_file = None
        startup.pid_file = new.pid_file or startup.pid_file
        new.pid_file = None
        took_s = now - new.began_at
        self._settle(True, f"{counted(new.workers, 'worker')} in {took_s:.2f} s")
        return took_s

    def abandon(self, reason: str) -> None:
        """Drop the next generation, for ``reason``, and return to the settings of the one in force."""
        failed, old = self.newest, self.current
        self._next = None
        self._drop_listeners(keep=old)
        if failed.pid_file is not None:
            failed.pid_file.remove()
        self._startup.environment.apply(old.settings.raw_env)
        try:
            open_error_log(old.settings)
        except WsgiservError as error:
            self._log.error("the error log of the old settings cannot be opened again: %s", error)
        self._show(old)
        self._settle(False, reason)

    def _drop_listeners(self, keep: Generation) -> None:
        startup = self._startup
        for listener in startup.listeners:
            if listener not in keep.listeners:
                # Workers that still have it go on until its backlog is empty.
                listener.unlink()
                listener.close()
        startup.listeners = list(keep.listeners)

    def _show(self, generation: Generation) -> None:
        server = self._startup.server
        server.configure(generation.settings)
        server.listen(generation.listeners)
        server.set_num_workers(generation.workers)
        set_title("master", server.proc_name)

    # ---- sockets ----------------------------------------------------------------------------------

    def close_listeners(self) -> None:
        """Close the master's descriptors of all sockets; the files stay until the end."""
        for listener in self._startup.listeners:
            listener.close()

    def close_foreign(self, generation: Generation) -> None:
        """Called in a child: close the sockets that are not its generation's."""
        for listener in self._startup.listeners:
            if listener not in generation.listeners:
                listener.close()
