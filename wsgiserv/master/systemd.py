"""The protocols between the server and a service manager: sd_listen_fds(3) and sd_notify(3), without libsystemd."""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_DGRAM
from _socket import socket as RawSocket  # gevent's patches leave it alone
from collections import deque
from collections.abc import Callable, MutableMapping
from errno import EAGAIN, EINTR, ENOBUFS
from math import inf
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Final

SD_LISTEN_FDS_START: Final = 3
_MAX_QUEUED: Final = 16
_STATUS_INTERVAL_S: Final = 5.0


def take_listen_fds(environ: MutableMapping[str, str], pid: int) -> list[int]:
    """Return the sockets that the service manager passed to this process, and remove their variables.

    Args:
        environ: the environment; ``os.environ``.
        pid: this process's id; variables meant for another process (a parent) stay untouched.

    Returns:
        the descriptors; none where the variables make no sense, as in libsystemd.
    """
    try:
        meant_for, count = int(environ["LISTEN_PID"]), int(environ["LISTEN_FDS"])
    except (KeyError, ValueError):
        return []
    if meant_for != pid:
        return []
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    return list(range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + max(0, count)))


class Notifier:
    """Sends datagrams to the service manager; does nothing without one. Never blocks, never raises.

    Each datagram uses its own socket, as in libsystemd, so no child inherits one. When the manager does not keep up,
    a datagram waits for the next call; only those that repeat (`status`, `watchdog`) are dropped.

    Args:
        address: the manager's socket: a path, or ``@`` and a name in the abstract namespace; empty without a manager.
        watchdog_usec: the manager's watchdog period in microseconds; 0 without a watchdog.

    Attributes:
        watchdog_interval_s: seconds between calls of `watchdog`: half the period, as sd_watchdog_enabled(3)
            recommends; 0.0 without a watchdog.
    """

    def __init__(self, address: str = "", watchdog_usec: int = 0) -> None:
        # sd_notify(3) has other address families (vsock:) for virtual machines only.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        if not address.startswith(("/", "@")):
            self._address = ""
        self._queue: deque[bytes] = deque(maxlen=_MAX_QUEUED)
        self.watchdog_interval_s = watchdog_usec / 2_000_000 if self._address else 0.0

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], pid: int | None = None) -> Notifier:
        """Return the notifier that the environment describes, and remove its variables.

        Without the variables, neither workers nor the application's programs speak in the master's name.

        Args:
            environ: the environment; ``os.environ``.
            pid: this process's id; None asks the system. A watchdog for another process (WATCHDOG_PID) is ignored.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, meant_for = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        own = os.getpid() if pid is None else pid
        is_ours = not meant_for or _number(meant_for) == own
        return cls(address, _number(usec) if is_ours else 0)

    def __bool__(self) -> bool:
        """Return whether there is a manager."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """Report the end of the start, or of the reload that `reloading` announced."""
        self._notify("READY=1", _status(status))

    def reloading(self, status: str = "") -> None:
        """Report the begin of a reload."""
        # Type=notify-reload compares this time with the time of its signal.
        now_usec = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
        self._notify("RELOADING=1", f"MONOTONIC_USEC={now_usec}", _status(status))

    def stopping(self, status: str = "") -> None:
        """Report the begin of the shutdown."""
        self._notify("STOPPING=1", _status(status))

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``."""
        self._notify(_status(text), repeats=True)

    def mainpid(self, pid: int) -> None:
        """Make the process ``pid`` the main process of the service; only the present main process may."""
        self._notify(f"MAINPID={pid}")

    def watchdog(self) -> None:
        """Reset the manager's watchdog."""
        if self.watchdog_interval_s:
            self._notify("WATCHDOG=1", repeats=True)

    def _notify(self, *lines: str, repeats: bool = False) -> None:
        if not self._address:
            return
        # A surrogate came from a path or from a client.
        data = "\n".join(line for line in lines if line).encode(errors="replace")
        if not repeats:
            self._queue.append(data)
        try:
            sock = RawSocket(AF_UNIX, SOCK_DGRAM)
        except OSError:
            return  # no descriptor is left
        try:
            while self._queue:
                if not self._send(sock, self._queue[0]):
                    return
                self._queue.popleft()
            if repeats:
                self._send(sock, data)
        finally:
            sock.close()

    def _send(self, sock: RawSocket, data: bytes) -> bool:
        """Send one datagram; return False when it should be sent again."""
        try:
            sock.sendto(data, MSG_DONTWAIT, self._address)
        except OSError as error:
            return error.errno not in (EAGAIN, EINTR, ENOBUFS)
        return True


class ServiceManager:
    """Orders the master's messages to the service manager, and times STATUS and WATCHDOG.

    Args:
        notifier: sends them.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._is_replaced = False
        self._is_reloading = False
        self._next_status = 0.0
        self._next_watchdog = 0.0

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> ServiceManager:
        """Return the manager that the environment describes, and remove its variables."""
        return cls(Notifier.from_environ(environ))

    def ready(self, status: str) -> None:
        """Report that all workers are ready, or that a reload has ended, whatever its outcome."""
        self._is_reloading = False
        if not self._is_replaced:
            self._notifier.ready(status)

    def reload_requested(self) -> None:
        """Report a reload at SIGHUP: systemd waits for the answer, even while the reload is queued."""
        self._is_reloading = True
        if not self._is_replaced:
            self._notifier.reloading()

    def reload_begins(self) -> None:
        """Report a reload that did not come by signal."""
        if not self._is_reloading:
            self.reload_requested()

    def stopping(self) -> None:
        """Report the shutdown, unless another master goes on with the service."""
        if not self._is_replaced:
            self._notifier.stopping()

    def replaced_by(self, pid: int) -> None:
        """Make the master ``pid`` the main process of the service; this one reports nothing from now on."""
        self._notifier.mainpid(pid)
        self._is_replaced = True

    def update(self, now: float, status: Callable[[], str]) -> float:
        """Send STATUS and WATCHDOG when they are due. Called by the loop, so that a hung loop sends no WATCHDOG.

        Args:
            now: ``time.monotonic()`` seconds.
            status: makes the status line.

        Returns:
            when to call again, ``time.monotonic()`` seconds.
        """
        if not self._notifier or self._is_replaced:
            return inf
        interval_s = self._notifier.watchdog_interval_s
        if interval_s and now >= self._next_watchdog:
            self._next_watchdog = now + interval_s
            self._notifier.watchdog()
        if now >= self._next_status:
            self._next_status = now + _STATUS_INTERVAL_S
            self._notifier.status(status())
        return min(self._next_status, self._next_watchdog if interval_s else inf)


def _status(text: str) -> str:
    # Each assignment is a line, so a second line in the text would be another assignment.
    return f"STATUS={' '.join(text.split())}" if text else ""


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
