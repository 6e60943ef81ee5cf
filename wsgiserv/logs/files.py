"""The log files that the master opens, and how they reach its children.

Owns: the access log's descriptors in the master, the mailbox with what USR1 has reopened.
Must not know: what is written to a log.

Workers run as another user than the master, who may open neither root's files nor the terminal's. So the master opens
both logs. A worker has the descriptors from its fork. When the master has opened the files again, it puts the new
descriptors into a mailbox, a socket whose reading end all workers and the zygote share, and sends USR1: each *looks*
(``MSG_PEEK`` gives a copy of the descriptors to everyone who does, unix(7)), and what is there stays for the next.
The next USR1 replaces it. A worker that finds nothing opens the file itself, as the user that it is: where there is no
such socket, and where another worker has taken the message away against the rules.
"""

from __future__ import annotations

import os
import sys
from _socket import MSG_DONTWAIT, MSG_PEEK, socket
from collections.abc import Mapping
from os import close, dup2, getpid
from typing import Final

from wsgiserv.ipc import packet_pair, receive_packet, send_packet
from wsgiserv.logs.opening import open_log
from wsgiserv.safe_open import Owner

__all__ = ["log_files"]


_LONGEST_MESSAGE: Final = 65536
_MOST_FILES: Final = 128  # in a message; the kernel takes 253 (SCM_MAX_FD)
_MOST_ACCESS_LOGS: Final = 4


class _LogFiles:
    """The files of this process; in a child of the master those that it was forked with."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, Owner]] = {}  # the access logs by path, the latest last
        self._mailbox: tuple[socket, socket] | None = None
        self._master = 0

    # ---- in the master -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Be the master's from now on. Called once, in the process that forks the workers."""
        self._master = getpid()
        if sys.platform.startswith("linux"):
            self._mailbox = packet_pair()

    def open(self, path: str, owner: Owner) -> None:
        """Open a file for the workers to come, or open it again. Raises OSError."""
        path = os.path.abspath(path)
        fd, is_absent = open_log(path, owner)
        before = self._files.pop(path, None)
        if is_absent:  # each worker waits for a reader itself
            close(fd)
            if before is not None:
                close(before[0])
            return
        if before is not None:
            dup2(fd, before[0], inheritable=False)
            close(fd)
            fd = before[0]
        self._files[path] = fd, owner
        while (
            len(self._files) > _MOST_ACCESS_LOGS
        ):  # of configurations that no worker is forked with any more
            close(self._files.pop(next(iter(self._files)))[0])

    @property
    def is_masters(self) -> bool:
        """Whether this process is the master."""
        return self._master == getpid()

    def _reopen(self, also: Mapping[str, int]) -> list[str]:
        failures = []
        for path, (fd, owner) in self._files.items():
            try:
                fresh, _ = open_log(path, owner)
            except OSError as error:
                failures.append(f"{path}: {error.strerror}")
                continue
            dup2(fresh, fd, inheritable=False)
            close(fresh)
        self.post({**also, **{path: fd for path, (fd, _) in self._files.items()}})
        return failures

    def post(self, files: Mapping[str, int]) -> None:
        """Leave these descriptors, by the absolute paths of their files, for the children, instead of the last ones."""
        if self._mailbox is None:
            return
        reader, writer = self._mailbox
        try:
            while _discard(reader):
                pass  # what the last USR1 has left
        except OSError:
            pass  # empty
        names = list(files)[-_MOST_FILES:]
        try:
            data = b"\0".join(map(os.fsencode, names))
            send_packet(writer, data, [files[name] for name in names], MSG_DONTWAIT)
        except OSError:
            pass  # the workers open the files themselves

    # ---- in its children -----------------------------------------------------------------------------------

    def close_in_child(self) -> None:
        """Close what only the master writes to. Called in each child of the master after the fork."""
        if self._mailbox is not None:
            self._mailbox[1].close()

    def close(self) -> None:
        """Close everything. Called in a child of the application, which opens its logs itself."""
        mailbox, self._mailbox = self._mailbox, None
        files, self._files = self._files, {}
        for sock in mailbox or ():
            sock.close()
        for fd, _ in files.values():
            close(fd)

    def successor(self, path: str) -> int | None:
        """Return the file that the master has opened last under this path; None where it has not, or in the master."""
        if self._mailbox is None or self._master == getpid():
            return None
        try:
            data, fds, _ = receive_packet(
                self._mailbox[0], _LONGEST_MESSAGE, _MOST_FILES, MSG_PEEK | MSG_DONTWAIT
            )
        except OSError:
            return None
        found = None
        paths, name = data.split(b"\0"), os.fsencode(path)
        if len(paths) == len(fds) and name in paths:  # else it is no message of the master's
            found = fds.pop(paths.index(name))
        for fd in fds:
            close(fd)
        return found

    # ---- in both -------------------------------------------------------------------------------------------

    def take(self, path: str) -> int | None:
        """Return a descriptor of a file that the master has opened, the caller's own; None when it has not."""
        found = self._files.get(path)
        if found is None:
            return None
        if self._master == getpid():
            fd = os.dup(found[0])
            os.set_inheritable(fd, False)
            return fd
        del self._files[path]
        return found[0]

    def refresh(self, also: Mapping[str, int]) -> list[str]:
        """Open the files again (USR1); return what could not be opened. Never raises.

        In the master, which then leaves them for its children, together with ``also``, the descriptors of other paths.
        In a zygote, whose workers are to have them, they are what the master has left. In a worker there are none.
        """
        if self._master == getpid():
            return self._reopen(also)
        for path, (fd, _) in self._files.items():
            fresh = self.successor(path)
            if fresh is not None:
                dup2(fresh, fd, inheritable=False)
                close(fresh)
        return []


def _discard(sock: socket) -> bool:
    """Discard one message with its descriptors; whether there was one. Raises OSError."""
    data, fds, _ = receive_packet(sock, _LONGEST_MESSAGE, _MOST_FILES, MSG_DONTWAIT)
    for fd in fds:
        close(fd)
    return bool(data)


log_files: Final = _LogFiles()
