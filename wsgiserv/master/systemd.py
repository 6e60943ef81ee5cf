"""The protocols between the server and a service manager: sd_listen_fds(3) and sd_notify(3), without libsystemd."""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_DGRAM
from _socket import socket as RawSocket  # gevent's patches leave it alone
from collections import deque
from collections.abc import Callable, MutableMapping
from contextlib import closing, suppress
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
    # A worker, or a program of the application, must not take these numbers for its own sockets.
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environ.pop(name, None)
    return list(range(SD_LISTEN_FDS_START, SD_LISTEN_FDS_START + max(0, count)))


class ServiceManager:
    """Tells the service manager about this process; does nothing without a manager. Never blocks, never raises.

    Args:
        address: the manager's socket: a path, or ``@`` and a name in the abstract namespace; empty without a manager.
        watchdog_usec: the manager's watchdog period in microseconds; 0 without a watchdog.

    Attributes:
        watchdog_interval_s: seconds between calls of `watchdog`; 0.0 without a watchdog.
    """

    def __init__(self, address: str = "", watchdog_usec: int = 0) -> None:
        # sd_notify(3) has other address families (vsock:) for virtual machines only.
        known = address if address.startswith(("/", "@")) else ""
        self._address = f"\0{known[1:]}" if known.startswith("@") else known
        # What a manager that does not keep up has not taken; bounded, for it may never come back.
        self._queue: deque[bytes] = deque(maxlen=_MAX_QUEUED)
        # Half the period, as sd_watchdog_enabled(3) recommends.
        self.watchdog_interval_s = watchdog_usec / 2_000_000 if self._address else 0.0
        self._is_reloading = False
        self._next_status = 0.0
        self._next_watchdog = 0.0

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], pid: int | None = None) -> ServiceManager:
        """Return the manager that the environment describes, and remove its variables.

        Args:
            environ: the environment; ``os.environ``.
            pid: this process's id; None asks the system. A watchdog for another process (WATCHDOG_PID) is ignored.
        """
        # Removed: else workers and the application's programs would speak in the master's name.
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, meant_for = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        own = os.getpid() if pid is None else pid
        is_ours = not meant_for or _number(meant_for) == own
        return cls(address, _number(usec) if is_ours else 0)

    def ready(self, status: str) -> None:
        """Report that all workers are ready, or that a reload has ended, whatever its outcome."""
        self._is_reloading = False
        self._notify("READY=1", _status(status))

    def reload_requested(self) -> None:
        """Report a reload at SIGHUP."""
        # At the signal, even while the reload is queued: systemd waits for the answer, and Type=notify-reload compares
        # this time with the time of its signal.
        self._is_reloading = True
        self._notify("RELOADING=1", f"MONOTONIC_USEC={clock_gettime_ns(CLOCK_MONOTONIC) // 1000}")

    def reload_begins(self) -> None:
        """Report a reload that did not come by signal."""
        if not self._is_reloading:
            self.reload_requested()

    def stopping(self) -> None:
        """Report the begin of the shutdown, unless another master goes on with the service."""
        self._notify("STOPPING=1")

    def replaced_by(self, pid: int) -> None:
        """Make the master ``pid`` the main process of the service; this one reports nothing from now on."""
        self._notify(f"MAINPID={pid}")
        # STOPPING=1 of this master would be taken for the end of the service.
        self._address = ""

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``."""
        self._notify(_status(text), repeats=True)

    def watchdog(self) -> None:
        """Reset the manager's watchdog."""
        if self.watchdog_interval_s:
            self._notify("WATCHDOG=1", repeats=True)

    def update(self, now: float, status: Callable[[], str]) -> float:
        """Send STATUS and WATCHDOG when they are due.

        Args:
            now: ``time.monotonic()`` seconds.
            status: makes the status line.

        Returns:
            when to call again, ``time.monotonic()`` seconds.
        """
        # Called by the master's loop, not by a timer: a loop that hangs must send no WATCHDOG.
        if not self._address:
            return inf
        interval_s = self.watchdog_interval_s
        if interval_s and now >= self._next_watchdog:
            self._next_watchdog = now + interval_s
            self.watchdog()
        if now >= self._next_status:
            self._next_status = now + _STATUS_INTERVAL_S
            self.status(status())
        return min(self._next_status, self._next_watchdog if interval_s else inf)

    def _notify(self, *lines: str, repeats: bool = False) -> None:
        """Send a datagram after those that wait; one that ``repeats`` is dropped when it cannot go now."""
        if not self._address:
            return
        # A surrogate came from a path or from a client.
        data = "\n".join(lines).encode(errors="replace")
        if not repeats:
            self._queue.append(data)
        # A socket for each, as in libsystemd: no child inherits one. An OSError: no descriptor is left.
        with suppress(OSError), closing(RawSocket(AF_UNIX, SOCK_DGRAM)) as sock:
            while self._queue and self._send(sock, self._queue[0]):
                self._queue.popleft()
            if repeats and not self._queue:
                self._send(sock, data)

    def _send(self, sock: RawSocket, data: bytes) -> bool:
        """Send one datagram; return False when it should be sent again."""
        try:
            sock.sendto(data, MSG_DONTWAIT, self._address)
        except OSError as error:
            # Any other error lasts: the manager has gone, or its socket is not one. A retry would fail alike.
            return error.errno not in (EAGAIN, EINTR, ENOBUFS)
        return True


def _status(text: str) -> str:
    # Each assignment is a line, so a second line in the text would be another assignment.
    return f"STATUS={' '.join(text.split())}"


def _number(text: str) -> int:
    # isdigit() alone takes other scripts' digits, and int() of a very long text raises.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
