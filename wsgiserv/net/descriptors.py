"""Keeps sockets off the standard streams' numbers."""

from __future__ import annotations

import os
from fcntl import F_DUPFD_CLOEXEC, fcntl
from os import close, dup2


def off_standard(fd: int) -> int:
    """Return a duplicate of the socket ``fd``, which is 0, 1 or 2, and put the null device in its place.

    The application has closed a standard stream: what is printed, or logged to it, would reach the client. Raises
    OSError when no descriptor is left; ``fd`` is closed then.
    """
    try:
        high = fcntl(fd, F_DUPFD_CLOEXEC, 3)
        null = os.open(os.devnull, os.O_RDWR)
    except OSError:
        close(fd)
        raise
    dup2(null, fd)
    close(null)
    return high
