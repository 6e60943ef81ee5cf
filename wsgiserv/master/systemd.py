"""Sockets handed over by a service manager: sd_listen_fds(3).

Owns: reading and removing LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES.
Must not know: what is done with the sockets.
"""

from __future__ import annotations

from collections.abc import MutableMapping

__all__ = ["SD_LISTEN_FDS_START", "take_listen_fds"]

SD_LISTEN_FDS_START = 3


def take_listen_fds(environ: MutableMapping[str, str], pid: int) -> list[int]:
    """Return the descriptors that were handed to this process, and remove the variables that say so.

    Args:
        environ: the environment; ``os.environ``.
        pid: this process's id: variables meant for another process (a parent's) are left alone.

    Returns an empty list when there are none, or when the variables make no sense, as libsystemd does.
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
