"""The shutdown of the server: graceful or fast, after a drain, together with an upgrade in progress."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Literal

from wsgiserv.errors import WsgiservError
from wsgiserv.hooks import StoppedByHook
from wsgiserv.master.reload import Reload
from wsgiserv.master.resources import ServerResources
from wsgiserv.master.systemd import ServiceManager
from wsgiserv.master.upgrade import Upgrade
from wsgiserv.master.waiters import settle
from wsgiserv.master.workers import Workers
from wsgiserv.wording import counted


@dataclass(eq=False)
class Shutdown:
    """Stops the server; a next master that does not serve yet is stopped, too.

    Args:
        resources, workers, reload, upgrade, manager: the master's.

    Attributes:
        how: empty while the server runs.
        error: the error that the process ends with, or None.
        drain_until: the end of the drain, ``time.monotonic()`` seconds; ``inf`` while the server does not drain.
    """

    _resources: ServerResources
    _workers: Workers
    _reload: Reload
    _upgrade: Upgrade
    _manager: ServiceManager
    how: Literal["", "graceful", "fast"] = ""
    error: WsgiservError | None = None
    drain_until: float = inf
    # SIGTERM came during an upgrade: this master stops when that is decided.
    _after_upgrade: bool = False
    # The next master's workers take over connections.
    _is_followed: bool = False

    @property
    def is_draining(self) -> bool:
        """True from the begin of the drain until the stop."""
        return self.drain_until < inf

    @property
    def has_begun(self) -> bool:
        """True from the begin of the drain on."""
        return bool(self.how) or self.is_draining

    def terminate(self) -> None:
        """SIGTERM: shut down gracefully. During an upgrade the next master goes on, and this one stops after it."""
        if self._after_upgrade:
            # The next master may have reported by now, in a message not read yet: then it serves, and is not stopped.
            self.follow_upgrade()
            self.stop("graceful", "SIGTERM, a second time")
        elif self._upgrade.is_pending and not self.has_begun:
            self._after_upgrade = True
            self._resources.log.info(
                "SIGTERM during an upgrade: this master stops when the next one serves, or when the upgrade fails; "
                "a second SIGTERM stops both"
            )
        else:
            self.begin("SIGTERM")

    def begin(self, why: str) -> None:
        """Shut down gracefully, after `drain_delay`."""
        delay_s = self._resources.server.settings.drain_delay
        # A next master that does not serve yet has no clients to drain.
        if delay_s and self._resources.has_taken_over and not self.has_begun:
            self._overtake(at_once=False)
            self._workers.drain()
            self._resources.log.info(
                "%s: draining for %g s: still accepting, responses say Connection: close", why, delay_s
            )
            self.drain_until = monotonic() + delay_s
        else:
            self.stop("graceful", why)

    def end_drain(self, now: float) -> None:
        """Stop when the drain is over."""
        if now >= self.drain_until:
            self.stop("graceful", "drained")

    def stop(self, how: Literal["graceful", "fast"], why: str) -> None:
        """Stop accepting, and end the workers; a fast stop overtakes a graceful one."""
        self.drain_until = inf
        if self.how in ("fast", how):
            return  # no news, and nothing slows a fast stop down
        workers = counted(len(self._workers.fleet.workers), "worker")
        if how == "graceful":
            limit = max((worker.graceful_timeout for worker in self._workers.fleet.workers), default=0)
            self._resources.log.info("%s: stopping gracefully: up to %g s for %s to finish", why, limit, workers)
        else:
            self._resources.log.info("%s: stopping at once: %s", why, workers)
        self._begin(how)
        if not self._is_followed:  # else the new workers receive what the old ones hand over
            # An old master that goes on has the same sockets: its workers take the connections.
            self._workers.hand_over_no_more(for_good=self._resources.has_taken_over)
        # Before the workers leave: zygotes hold the listening sockets, too.
        self._workers.dismiss_zygotes()
        if self._resources.has_taken_over:
            self._manager.stopping()
        else:
            # A service manager that reads STOPPING=1 here would give up the old master, too.
            self._resources.report_stop()

    def halt(self, reason: str | None, exit_status: int) -> None:
        """Shut down gracefully, since a hook has called ``server.halt()``; the process ends with ``exit_status``."""
        if self.how:
            return
        why = f"a hook has called server.halt(){f': {reason}' if reason else ''}"
        if exit_status:
            self.error = StoppedByHook(why, exit_status)
        self.stop("graceful", why)

    def fail(self, error: WsgiservError) -> None:
        """Stop at once, and end with ``error``."""
        # No line in the log: the error itself is logged at the end.
        self.drain_until = inf
        self.error = error
        self._begin("fast")

    def _begin(self, how: Literal["graceful", "fast"]) -> None:
        self.how = how
        self._workers.is_stopping = True
        self._overtake(at_once=how == "fast")

    def _overtake(self, *, at_once: bool) -> None:
        """Stop a next master that starts, and report a failure to every command that waits for an outcome."""
        cfg = self._resources.server.settings
        self._after_upgrade = False
        # It may drain, too, before it stops.
        self._upgrade.cancel(at_once=at_once, timeout_s=cfg.graceful_timeout + cfg.drain_delay)
        new = self._upgrade.new_master
        reason = (
            f"overtaken: the next master (pid {new.pid}) serves, ask that"
            if new is not None and new.ready
            else "overtaken: the server is stopping"
        )
        settle(self._upgrade.requests, False, reason)
        self._reload.overtake(reason, requests_too=True)
        self._workers.waiters.on_overtaken(reason)

    # ---- upgrades ------------------------------------------------------------------------------------

    def follow_upgrade(self) -> None:
        """Read the next master's report; stop when it serves, or has failed and SIGTERM waited for that."""
        new = self._upgrade.read_report(stops=self._after_upgrade)
        if new is not None and new.ready:
            # Before anything of this master goes: from here on an exit of it is no end of the service.
            self._manager.replaced_by(new.pid)
            # The files of Unix sockets are the next master's: clients connect to the same path, and the same socket.
            for listener in self._resources.listeners:
                listener.disown()
            self._is_followed = True
            self.stop("graceful", "upgraded")
        elif self._after_upgrade and (new is not None or not self._upgrade.is_pending):
            self.begin("SIGTERM")

    def reap_new_masters(self) -> None:
        """Wait for next masters that have exited."""
        exited = self._upgrade.reap()
        new = self._upgrade.new_master
        if self._is_followed and new is not None and new.pid in exited:
            self._resources.log.error(
                "WS1326 upgrade: the next master (pid %d) exited: no process goes on with this server", new.pid
            )
            self._is_followed = False
            # The workers wait for no process to take their connections, and close them.
            self._workers.hand_over_no_more(for_good=True)
