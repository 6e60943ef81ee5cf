"""The standard streams, without waiting for who reads them.

Owns: duplicates of descriptors 1 and 2, flushing `sys.stdout` and `sys.stderr`, holes among 0, 1 and 2.
Must not know: logs, their lines.
"""

from __future__ import annotations

import os
import stat
import sys
from fcntl import F_DUPFD_CLOEXEC, fcntl
from os import close, dup2, fstat
from select import poll

__all__ = [
    "duplicate",
    "fill_standard_streams",
    "flush_standard_streams",
    "is_writable",
    "release_standard_streams",
    "reopened",
]

_POLLOUT = 4
# Above what a program closes that makes itself a daemon by hand, and below every usual limit.
_HIGH = 64


def is_writable(fd: int, wait_s: float = 0.0) -> bool:
    """Whether a write would not wait, or would fail at once; waits for that up to ``wait_s`` seconds."""
    poller = poll()
    poller.register(fd, _POLLOUT)
    return bool(poller.poll(wait_s * 1000))


def duplicate(fd: int) -> int:
    """Return a duplicate of ``fd`` with a high number; ``fd`` itself when there is no room for one."""
    for least in (_HIGH, 3):
        try:
            return fcntl(fd, F_DUPFD_CLOEXEC, least)
        except OSError:  # EMFILE; EINVAL where the limit is that low
            continue
    return fd


def reopened(fd: int, access: int = os.O_WRONLY) -> int | None:
    """Return a non-blocking descriptor of the same pipe or terminal, which shares no flags with ``fd``.

    Args:
        fd: an open descriptor.
        access: ``O_WRONLY`` or ``O_RDWR``.

    Returns:
        None for other kinds of files, and where the system does not allow it.
    """
    try:
        found = fstat(fd)
        if not (stat.S_ISFIFO(found.st_mode) or (stat.S_ISCHR(found.st_mode) and os.isatty(fd))):
            return None
        flags = access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        own = os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:  # no /proc; another user's pipe; a pipe that nobody reads any more
        return None
    if not os.path.samestat(found, fstat(own)) or os.get_blocking(own):
        close(own)
        return None
    high = duplicate(own)
    if high != own:
        close(own)
    return high


def fill_standard_streams() -> None:
    """Open the null device in place of standard streams that are closed. Never raises.

    Else the next socket would be descriptor 1 or 2, and whatever is printed would go to a client.
    """
    try:
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(fd, True)
    except OSError:
        return  # no descriptor is left, so none of these either
    close(fd)


def flush_standard_streams() -> None:
    """Write what `sys.stdout` and `sys.stderr` hold, as far as it can be done without waiting. Never raises.

    Before a fork, or the child would write it, too.
    """
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            own = reopened(fd)
            if own is None:
                if is_writable(fd):
                    stream.flush()
                continue
            saved = fcntl(fd, F_DUPFD_CLOEXEC, 3)
            try:
                dup2(own, fd)
                stream.flush()
            finally:
                dup2(saved, fd)
                close(saved)
                close(own)
        except Exception:
            continue


def release_standard_streams() -> None:
    """Flush the standard streams for the last time in this process. Never waits, never raises.

    The interpreter flushes them at its end, and would wait there for a reader that sleeps, whatever signals come. From
    now on they do not block; what does not go out now is given up.
    """
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            own = reopened(fd)
            if own is not None:
                dup2(own, fd)
                close(own)
            elif not is_writable(fd):
                raise BlockingIOError
            stream.flush()
        except (AttributeError, ValueError):  # None, closed
            continue
        except Exception:
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                dup2(null, fd)
                close(null)
                stream.flush()
            except Exception:
                continue
