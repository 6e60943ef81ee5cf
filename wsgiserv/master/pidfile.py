"""The pid file.

A server owns the file while it holds a lock on it (flock(2)), which ends with the process.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EAGAIN, EEXIST, EMLINK, ENOSPC, ENOTSUP, EPERM
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import partial
from os import close, fstat, fsync, getpid, kill, urandom, write
from time import monotonic, sleep
from typing import Final

from wsgiserv.errors import ConfigError
from wsgiserv.net.port_owner import describe_process, is_master
from wsgiserv.safe_open import Place, UntrustedPath, check_directory, place_of

# How long another starting server may hold a file without a running server before it publishes its own.
_PATIENCE_S: Final = 1.0
# What a file may hold instead of a number; kill(2) takes neither for a process.
_EMPTY: Final = 0
_FOREIGN: Final = -1
# O_NONBLOCK: to open a FIFO does not wait for a writer.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# The locked descriptors of this process. A lock, because the number alone proves little: in a container the number of
# an exited server soon belongs to another process. A fork shares the lock, and would keep it after the server's end.
_held: Final[set[int]] = set()


def _let_go_in_child() -> None:
    while _held:
        with suppress(OSError):
            close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


class _Taken(Exception):
    """Another process holds the file."""


class PidFile:
    """A file with the id of this process while it runs.

    Args:
        path: relative to the working directory at creation.
        log: receives a line about a replaced stale file.
    """

    def __init__(self, path: str, log: logging.Logger | None = None) -> None:
        self.path = os.path.abspath(path)
        self._log = log
        self._fd = -1
        self._owner_pid = 0

    # ---- the server's ------------------------------------------------------------------------------------

    def create(self) -> None:
        """Write the file, whole or not at all. Raises ConfigError for a running server's file, or a failed write."""
        with self._place() as place:
            self._replace(place, taken_from=None)

    def check(self) -> str:
        """Return the message about a running server with this file; empty without one. Creates nothing.

        Raises ConfigError when the file cannot be written.
        """
        with self._place() as place:
            check_directory(place.directory, self.path)
            is_link = _is_link(place)
            if is_link is None or is_link:
                return ""  # a link is replaced
            holder = _number_in(place)
            if holder == _FOREIGN:
                raise ConfigError(self._foreign())
            return self._running(holder) if is_master(holder) else ""

    def take_over(self, holder: int) -> None:
        """Replace the id of ``holder``, the old master, by this process's. Raises ConfigError as `create`."""
        with self._place() as place:
            # It is ours already where the setting has changed since the old master started.
            if self._fd not in _held or not self._is_ours(place):
                self._replace(place, taken_from=holder)

    def is_held_by(self, pid: int) -> bool:
        """Return True when the file names the process ``pid``."""
        try:
            with place_of(self.path) as place:
                return _number_in(place) == pid
        except OSError:
            return False

    def remove(self) -> None:
        """Remove the file if it is still this server's. Never raises."""
        # A forked child that comes here, as it exits, must leave the file alone.
        if self._owner_pid != getpid() or self._fd not in _held:
            return
        with suppress(OSError), place_of(self.path) as place:
            if self._is_ours(place):
                place.unlink()
        self._let_go()  # after the file: a server waiting for the lock finds no file

    # ---- the steps -----------------------------------------------------------------------------------------

    def _is_ours(self, place: Place) -> bool:
        # Somebody may have put another file, or another number, in its place by hand.
        return _is_at(place, self._fd) and _number_in(place) == self._owner_pid

    def _let_go(self) -> None:
        _held.discard(self._fd)
        close(self._fd)
        self._fd = -1

    def _replace(self, place: Place, taken_from: int | None) -> None:
        pid = getpid()
        # An unpredictable name, for no link to wait there; two servers that start at once have two drafts.
        draft = f"{place.name}.{pid}.{urandom(4).hex()}"
        # A draft, so that the file appears whole or not at all.
        fd = os.open(draft, _MAKE, 0o644, dir_fd=place.directory)
        try:
            text = f"{pid}\n".encode()
            if write(fd, text) != len(text):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            fsync(fd)  # after a power cut the name must not lead to an empty file
            _lock(fd)  # before it has the name: no one is to find an unlocked file there
            end = monotonic() + _PATIENCE_S
            while True:
                try:
                    self._publish(place, draft, taken_from)
                    break
                except _Taken as error:
                    if monotonic() > end:
                        raise ConfigError(str(error)) from None
                    sleep(0.02)
        except BaseException:
            close(fd)
            raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=place.directory)
        if self._fd in _held:
            self._let_go()  # of the file before, which has lost its name
        self._fd, self._owner_pid = fd, pid
        _held.add(fd)

    def _publish(self, place: Place, draft: str, taken_from: int | None) -> None:
        """Give the draft the file's name, unless a running server has it. Raises _Taken, ConfigError, OSError."""
        name, directory = place.name, place.directory
        replace = partial(os.replace, draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        try:
            # link(2) fails when the name exists, so of two servers that start at once only one gets it.
            os.link(draft, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
            return
        except OSError as error:
            # The others: a file system without hard links (vfat, some mounts of containers).
            if error.errno not in (EEXIST, EPERM, ENOTSUP, EMLINK):
                raise
            if error.errno != EEXIST and _is_link(place) is None:
                replace()
                return
        try:
            fd = os.open(name, _READ, dir_fd=directory)
        except FileNotFoundError:
            raise _Taken(self._busy()) from None  # gone just now: once more
        except OSError:
            if _is_link(place):
                replace()  # the link, not what it leads to
                return
            raise
        try:
            holder = _number_in_file(fd)
            if holder == _FOREIGN:
                raise ConfigError(self._foreign())
            if holder != taken_from:
                self._check_stale(fd, holder)
            # With the lock of a stale file nobody else is here.
            if not _is_at(place, fd):
                raise _Taken(self._busy())
            replace()
        finally:
            close(fd)

    def _check_stale(self, fd: int, holder: int) -> None:
        """Lock a file without a running server, or raise _Taken or ConfigError."""
        is_other = holder not in (_EMPTY, getpid())
        is_servers = is_other and is_master(holder)
        if not _lock(fd):
            if is_servers:
                raise ConfigError(self._running(holder))
            if holder == _EMPTY:
                raise _Taken(self._busy())
            # A server that cannot be seen from here (another container, hidepid), or one that starts just now.
            raise _Taken(
                f"pidfile = {self.path!r}: a running server holds it (its lock; the process id in it is {holder}). "
                "Stop that server, or give this one another pidfile."
            )
        if is_servers:
            # It holds no lock: an older wsgiserv, or another server that has got the number of one that is gone.
            raise ConfigError(f"{self._running(holder)} If that server has another pid file, remove this one.")
        if self._log is not None and is_other:
            now = f"which is {describe_process(holder)} now, no wsgiserv" if _is_alive(holder) else "which is gone"
            self._log.info("the pid file %s is stale and is replaced: it names %d, %s", self.path, holder, now)

    def _running(self, holder: int) -> str:
        return (
            f"Already running on PID {holder} (pidfile {self.path}): {describe_process(holder)}. Stop it "
            f"(kill {holder}), or give this server another pidfile."
        )

    def _foreign(self) -> str:
        return (
            f"pidfile = {self.path!r}: the file exists and holds something else than a process id; it is left alone. "
            f"Choose another path, or remove it by hand (rm {self.path})."
        )

    def _busy(self) -> str:
        return f"pidfile = {self.path!r}: another process keeps writing it. Choose another path."

    @contextmanager
    def _place(self) -> Iterator[Place]:
        """Open the file's directory, as root without following links of other users.

        Turns an OSError, also of the block, into a ConfigError with advice.
        """
        try:
            with place_of(self.path) as place:
                yield place
        except UntrustedPath as error:
            raise ConfigError(
                f"pidfile = {self.path!r}: {error.strerror}. Choose a directory that is root's, such as /run."
            ) from error
        except OSError as error:
            directory = os.path.dirname(self.path)
            if not os.path.isdir(directory):
                advice = f"The directory {directory} does not exist: create it (mkdir -p {directory})."
            elif error.errno == ENOSPC:
                advice = "Make room on that disk, or choose another path."
            else:
                advice = f"Expected a path that user id {os.geteuid()} may write."
            raise ConfigError(f"pidfile = {self.path!r}: cannot write it: {error.strerror}. {advice}") from error


def _lock(fd: int) -> bool:
    """Lock the file; return False when another process holds the lock. Without file locks (NFS), return True."""
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except OSError as error:
        return error.errno != EAGAIN
    return True


def _is_link(place: Place) -> bool | None:
    """Return whether the file is a symbolic link; None without a file."""
    try:
        return stat.S_ISLNK(place.lstat().st_mode)
    except FileNotFoundError:
        return None


def _is_at(place: Place, fd: int) -> bool:
    """Return whether the open file is still the one with the name."""
    try:
        return os.path.samestat(fstat(fd), place.lstat())
    except FileNotFoundError:
        return False


def _number_in(place: Place) -> int:
    fd = os.open(place.name, _READ, dir_fd=place.directory)
    try:
        return _number_in_file(fd)
    finally:
        close(fd)


def _number_in_file(fd: int) -> int:
    """Return the number in the file, or _EMPTY, or _FOREIGN."""
    if not stat.S_ISREG(fstat(fd).st_mode):
        return _FOREIGN
    data = os.pread(fd, 64, 0)
    if not data:
        return _EMPTY
    text = data.strip()
    return int(text) if text.isdigit() and len(text) < 12 else _FOREIGN


def _is_alive(pid: int) -> bool:
    try:
        kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # gone, or no number that a process can have
        return False
    except OSError:
        pass  # EPERM: it lives, as another user
    return True
