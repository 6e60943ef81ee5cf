"""Takes over listening sockets opened by the parent process: systemd, circus, an older master, a test."""

from __future__ import annotations

import _socket
import os
import stat
from _socket import socket
from collections.abc import Sequence
from os import fstat

from wsgiserv.errors import ConfigError

# The variable that names the descriptors of a socket unit, sd_listen_fds(3).
FROM_SYSTEMD = "LISTEN_FDS"


def check_descriptors(specs: Sequence[str], inherited: Sequence[int]) -> None:
    """Raise ConfigError for a descriptor to be taken over and not open.

    Called before the master opens a file of its own: it could get the number, and be taken for it.

    Args:
        specs: `bind`.
        inherited: as of `wsgiserv.net.listener.open_listeners`.
    """
    for fd in inherited:
        check_open(fd, FROM_SYSTEMD)
    if inherited:
        return
    for spec in specs:
        # A malformed one is reported with the other faults of `bind`.
        if spec.startswith("fd://") and spec[5:].isdecimal():
            check_open(int(spec[5:]), f"bind = {spec!r}")


def check_open(fd: int, origin: str) -> None:
    """Raise ConfigError when ``fd`` is not open; ``origin`` is as of `take_over`."""
    try:
        fstat(fd)
    except (OSError, OverflowError) as error:
        raise _unfit(fd, origin, "is not open") from error


def take_over(fd: int, origin: str) -> socket:
    """Return the listening socket ``fd``, non-blocking and close-on-exec.

    Args:
        fd: the descriptor; it stays open when it cannot be taken.
        origin: where it is named: the setting with its value, or the variable.

    Raises:
        ConfigError: it is not a listening stream socket.
    """
    check_open(fd, origin)
    if not stat.S_ISSOCK(fstat(fd).st_mode):
        raise _unfit(fd, origin, "is not a socket")
    sock = socket(fileno=fd)
    try:
        listens = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN)
    except OSError:  # macOS does not tell
        listens = 1
    fault = ""
    if sock.family not in (_socket.AF_INET, _socket.AF_INET6, _socket.AF_UNIX):
        fault = "is neither a TCP nor a Unix socket"
    elif sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_TYPE) != _socket.SOCK_STREAM:
        fault = "is not a stream socket"
    elif not listens:
        fault = "does not listen"
    if fault:
        # Not closed: the parent process may want to try again with it.
        sock.detach()
        raise _unfit(fd, origin, fault)
    sock.setblocking(False)
    # sd_listen_fds(3) passes it without close-on-exec: a program of the application would keep the port open.
    os.set_inheritable(fd, False)
    # accept(2) hands it on, which saves a system call for each connection.
    if sock.family != _socket.AF_UNIX:
        sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    return sock


def _unfit(fd: int, origin: str, fault: str) -> ConfigError:
    unit = " Have ListenStream= and Accept=no in the socket unit." if origin == FROM_SYSTEMD else ""
    return ConfigError(
        f"{origin}: descriptor {fd} {fault}. Expected a stream socket that listens, opened by the parent process "
        f"(systemd, circus, a test).{unit}"
    )
