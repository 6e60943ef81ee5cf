"""Opens log files so that no write to them waits, and passes those of the master to its children.

The master opens both logs: the workers' user may open neither root's files nor the terminal's. A worker inherits the
descriptors at its fork. After USR1 the master puts the new descriptors into a mailbox, a socket whose reading end all
workers and the zygote share, and signals them. Each child peeks, so the message stays for the others until the next
USR1 replaces it. A child that finds no message opens the file itself, with its own user's rights.
"""

from __future__ import annotations

import os
import stat
import sys
from _socket import MSG_DONTWAIT, MSG_PEEK, socket
from collections.abc import Mapping
from contextlib import suppress
from os import close, dup2, getpid
from typing import Final, NamedTuple

from wsgiserv.ipc import packet_pair, receive_packet, send_packet
from wsgiserv.process import reopened
from wsgiserv.safe_open import Owner, check_directory, open_file, place_of

_LONGEST_MESSAGE: Final = 65536
_MOST_FILES: Final = 128  # in a message; the kernel takes 253 (SCM_MAX_FD)
_MOST_ACCESS_LOGS: Final = 4


class Opened(NamedTuple):
    """An open log file.

    Attributes:
        fd: the descriptor.
        is_absent: True if it is the null device, in place of a FIFO that has no reader and may not be held open here.
    """

    fd: int
    is_absent: bool = False


def open_log(path: str, owner: Owner) -> Opened:
    """Open a file for appending, and create it if it is missing; non-blocking, except an inherited standard stream.

    Args:
        path: absolute.
        owner: see `open_file`.

    Raises OSError if it cannot be opened. A FIFO without a reader can.
    """
    # O_NONBLOCK: without it open(2) of a FIFO waits for a reader, and write(2) for a reader that is behind.
    try:
        fd = open_file(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK, owner)
    except PermissionError:
        if not (_is_fifo(path) and os.access(path, os.W_OK, effective_ids=True)):
            raise
        # Without a reader it can only be opened for reading, too, which is not allowed here: wait for a reader.
        return Opened(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), is_absent=True)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return Opened(fd)
    # Read as well as written: while this process holds the reading end, a reader may leave and come back, and up to
    # 64 KiB wait for it in the pipe.
    both = reopened(fd, os.O_RDWR)
    if both is None:
        return Opened(fd)
    close(fd)
    return Opened(both)


def check_log(path: str, owner: Owner) -> None:
    """Raise OSError if `open_log` could not open the file. Creates no file."""
    if os.path.exists(path):
        close(open_log(path, owner).fd)
        return
    target = os.path.realpath(path)  # of a dangling link: `open_log` would create its file
    try:
        with place_of(target) as place:
            check_directory(place.directory, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


class _LogFiles:
    """The master's log files; in a child, those inherited at its fork."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[int, Owner]] = {}  # the access logs by path, the latest last
        self._mailbox: tuple[socket, socket] | None = None
        self._master = 0

    @property
    def is_masters(self) -> bool:
        """True in the master."""
        return self._master == getpid()

    # ---- in the master -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make this process the master. Called once, in the process that forks the workers."""
        self._master = getpid()
        if sys.platform.startswith("linux"):
            self._mailbox = packet_pair()

    def open(self, path: str, owner: Owner) -> None:
        """Open a file, or open it again, for new workers. Raises OSError."""
        path = os.path.abspath(path)
        fd, is_absent = open_log(path, owner)
        before = self._files.pop(path, None)
        if is_absent:  # each worker waits for a reader itself
            close(fd)
            if before is not None:
                close(before[0])
            return
        if before is not None:
            _replace(before[0], fd)
            fd = before[0]
        self._files[path] = fd, owner
        # The oldest belong to configurations without workers.
        while len(self._files) > _MOST_ACCESS_LOGS:
            close(self._files.pop(next(iter(self._files)))[0])

    def post(self, files: Mapping[str, int]) -> None:
        """Leave descriptors, by the absolute paths of their files, in the mailbox, in place of the last ones."""
        if self._mailbox is None:
            return
        reader, writer = self._mailbox
        with suppress(OSError):  # until it is empty
            while _discard(reader):
                pass
        names = list(files)[-_MOST_FILES:]
        with suppress(OSError):  # the workers open the files themselves
            data = b"\0".join(map(os.fsencode, names))
            send_packet(writer, data, [files[name] for name in names], MSG_DONTWAIT)

    # ---- in its children -----------------------------------------------------------------------------------

    def close_in_child(self) -> None:
        """Close the mailbox's writing end. Called in each child of the master after the fork."""
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

    def latest(self, path: str) -> int | None:
        """Return the descriptor in the mailbox for a path; None if there is none, and in the master."""
        if self._mailbox is None or self.is_masters:
            return None
        reader = self._mailbox[0]
        try:  # a look: the message stays for the siblings
            data, fds, _ = receive_packet(reader, _LONGEST_MESSAGE, _MOST_FILES, MSG_PEEK | MSG_DONTWAIT)
        except OSError:
            return None
        found = None
        paths, name = data.split(b"\0"), os.fsencode(path)
        if len(paths) == len(fds) and name in paths:  # else the application has sent it
            found = fds.pop(paths.index(name))
        for fd in fds:
            close(fd)
        return found

    # ---- in both -------------------------------------------------------------------------------------------

    def take(self, path: str) -> int | None:
        """Return the caller's own descriptor of a file opened by the master; None if there is none."""
        found = self._files.get(path)
        if found is None:
            return None
        if self.is_masters:  # it keeps its own for the next worker
            return os.dup(found[0])
        del self._files[path]
        return found[0]

    def refresh(self, also: Mapping[str, int]) -> list[str]:
        """Open the files again (USR1); return the failures. Never raises.

        The master also puts them into the mailbox, together with ``also``, descriptors of other paths. A zygote takes
        them from there for its workers. A worker has none.
        """
        failures = []
        for path, (fd, owner) in self._files.items():
            try:
                fresh = open_log(path, owner).fd if self.is_masters else self.latest(path)
            except OSError as error:
                failures.append(f"{path}: {error.strerror}")
            else:
                if fresh is not None:
                    _replace(fd, fresh)
        if self.is_masters:
            self.post({**also, **{path: fd for path, (fd, _) in self._files.items()}})
        return failures


def _replace(fd: int, fresh: int) -> None:
    """Let ``fd`` refer to the file of ``fresh``, and close ``fresh``."""
    dup2(fresh, fd, inheritable=False)
    close(fresh)


def _discard(sock: socket) -> bool:
    """Discard one message with its descriptors; return False for an empty one. Raises OSError."""
    data, fds, _ = receive_packet(sock, _LONGEST_MESSAGE, _MOST_FILES, MSG_DONTWAIT)
    for fd in fds:
        close(fd)
    return bool(data)


log_files: Final = _LogFiles()
