"""What the service manager is told: sd_notify(3), without libsystemd.

Owns: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, and the words of the datagrams.
Must not know: when something is to be said.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, MSG_DONTWAIT, SCM_RIGHTS, SOCK_DGRAM, SOL_SOCKET
from _socket import socket as RawSocket  # what gevent's patches leave alone
from array import array
from collections import deque
from collections.abc import MutableMapping, Sequence
from errno import EAGAIN, EINTR, ENOBUFS
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Final

__all__ = ["Notifier"]

_MOST_WAITING: Final = 16


class Notifier:
    """Talks to the service manager; says nothing when there is none. Never waits, never raises.

    Each datagram has a socket of its own, as in libsystemd: there is none that a child would inherit. When the manager
    does not keep up, what must not be lost (not `status` and `watchdog`, which come again) is said with the next call.

    Args:
        address: where the manager listens: a path, or ``@`` and a name in the abstract namespace; empty: nowhere.
        watchdog_usec: how long the manager waits for a sign of life, in microseconds; 0: for ever.

    Attributes:
        watchdog_interval_s: how often to call `watchdog`, in seconds: half of that time, as sd_watchdog_enabled(3)
            recommends; 0.0: never.
    """

    def __init__(self, address: str = "", watchdog_usec: int = 0) -> None:
        # sd_notify(3): anything else (vsock:) is for virtual machines.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        if not address.startswith(("/", "@")):
            self._address = ""
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque(maxlen=_MOST_WAITING)
        self.watchdog_interval_s = watchdog_usec / 2_000_000 if self._address else 0.0

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], pid: int | None = None) -> Notifier:
        """Return the notifier that the environment asks for, and remove its variables.

        So neither workers nor what the application starts speak in the master's name. A watchdog that is meant for
        another process (WATCHDOG_PID, sd_watchdog_enabled(3)) is none.

        Args:
            environ: the environment; ``os.environ``.
            pid: this process; None asks the system.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, meant_for = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        own = os.getpid() if pid is None else pid
        is_ours = not meant_for or _number(meant_for) == own
        return cls(address, _number(usec) if is_ours else 0)

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """The server serves: the start, or the reload that `reloading` has announced, is over."""
        self._tell("READY=1", _status(status))

    def reloading(self, status: str = "") -> None:
        """A reload has begun. Type=notify-reload needs to know when, by CLOCK_MONOTONIC; `ready` ends it."""
        now_usec = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now_usec}", _status(status))

    def stopping(self, status: str = "") -> None:
        """The server has begun to stop."""
        self._tell("STOPPING=1", _status(status))

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``."""
        self._tell(_status(text), may_be_lost=True)

    def mainpid(self, pid: int) -> None:
        """Another process is the service's main process from now on. Said by the one that has been that."""
        self._tell(f"MAINPID={pid}")

    def watchdog(self) -> None:
        """The server is well."""
        if self.watchdog_interval_s:
            self._tell("WATCHDOG=1", may_be_lost=True)

    def extend_timeout(self, usec: int) -> None:
        """Starting, reloading or stopping takes ``usec`` microseconds more from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={usec}")

    def fdstore(self, name: str, fds: Sequence[int]) -> None:
        """Give descriptors to the manager, to get them back when it starts the service again.

        Args:
            name: up to 255 printable ASCII characters without a colon; comes back in LISTEN_FDNAMES.
            fds: what to store. FileDescriptorStoreMax= of the unit must allow it.
        """
        self._tell("FDSTORE=1", f"FDNAME={name}", fds=tuple(fds))

    def fdstore_remove(self, name: str) -> None:
        """Have the manager drop the descriptors that were stored as ``name``."""
        self._tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def _tell(self, *lines: str, fds: tuple[int, ...] = (), may_be_lost: bool = False) -> None:
        if not self._address:
            return
        # A surrogate came from a path or from a client.
        data = "\n".join(line for line in lines if line).encode(errors="replace")
        if not may_be_lost:
            self._waiting.append((data, fds))
        try:
            sock = RawSocket(AF_UNIX, SOCK_DGRAM)
        except OSError:
            return  # no descriptor is left
        try:
            while self._waiting:
                if not self._send(sock, *self._waiting[0]):
                    return
                self._waiting.popleft()
            if may_be_lost:
                self._send(sock, data, ())
        finally:
            sock.close()

    def _send(self, sock: RawSocket, data: bytes, fds: tuple[int, ...]) -> bool:
        """Send one datagram; return False when it is worth another try."""
        rights = [(SOL_SOCKET, SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            sock.sendmsg([data], rights, MSG_DONTWAIT, self._address)
        except OSError as error:
            return error.errno not in (EAGAIN, EINTR, ENOBUFS)
        return True


def _status(text: str) -> str:
    # An assignment is a line: a second one in the text would be another assignment.
    return f"STATUS={' '.join(text.split())}" if text else ""


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
