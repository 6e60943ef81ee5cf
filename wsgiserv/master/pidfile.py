"""The pid file.

Owns: its creation, the detection of a stale one, its removal.
Must not know: what the process does.
"""

from __future__ import annotations

import os
from errno import EMLINK, ENOTSUP, EPERM
from os import close, fsync, getpid, kill, link, replace, unlink, write

from wsgiserv.errors import ConfigError
from wsgiserv.net.holder import describe_process

__all__ = ["PidFile"]


class PidFile:
    """A file that holds this process's id for as long as it runs.

    Args:
        path: where; a relative one counts from the working directory of now.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def create(self) -> None:
        """Write the file, whole or not at all. Raises ConfigError when its process is alive or it cannot be written."""
        pid = getpid()
        draft = f"{self.path}.{pid}"
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
            try:
                write(fd, f"{pid}\n".encode())
                fsync(fd)
            finally:
                close(fd)
            try:
                self._publish(draft, pid)
            finally:
                if os.path.lexists(draft):
                    unlink(draft)
        except OSError as error:
            directory = os.path.dirname(self.path)
            if not os.path.isdir(directory):
                advice = f"The directory {directory} does not exist: create it (mkdir -p {directory})."
            else:
                advice = f"Expected a path that user id {os.geteuid()} may write."
            raise ConfigError(
                f"pidfile = {self.path!r}: cannot write it: {error.strerror}. {advice}"
            ) from error

    def take_over(self, holder: int) -> None:
        """Put this process's id in the place of ``holder``'s, whose server this process goes on with.

        Raises ConfigError as `create`, also when somebody else has the file by now.
        """
        if self._holder() != holder:
            self.create()
            return
        pid = getpid()
        draft = f"{self.path}.{pid}"
        try:
            with open(draft, "w") as file:
                file.write(f"{pid}\n")
            replace(draft, self.path)
        except OSError as error:
            raise ConfigError(f"pidfile = {self.path!r}: cannot write it: {error.strerror}.") from error

    def is_held_by(self, pid: int) -> bool:
        """Whether the file names this process."""
        return self._holder() == pid

    def _publish(self, draft: str, pid: int) -> None:
        # link() fails when the name is taken, so of two servers that start at once only one gets it.
        for _ in range(10):
            try:
                link(draft, self.path)
                return
            except FileExistsError:
                pass
            except OSError as error:
                # a file system without hard links (vfat, some mounts of containers)
                if error.errno not in (EPERM, ENOTSUP, EMLINK):
                    raise
                if not os.path.lexists(self.path):
                    replace(draft, self.path)
                    return
            holder = self._holder()
            if holder is None and os.path.getsize(self.path):
                raise ConfigError(
                    f"pidfile = {self.path!r}: the file exists and holds something else than a process id; it is "
                    f"left alone. Choose another path, or remove it by hand (rm {self.path})."
                )
            if holder is not None and holder != pid and _is_alive(holder):
                raise ConfigError(
                    f"Already running on PID {holder} (pidfile {self.path}): {describe_process(holder)}. Stop it "
                    f"(kill {holder}), or give this server another pidfile; remove the file if that process is "
                    "something else."
                )
            try:
                unlink(self.path)  # stale, or from an earlier life with our own number (containers)
            except FileNotFoundError:
                pass
        raise ConfigError(f"pidfile = {self.path!r}: another process keeps writing it. Choose another path.")

    def _holder(self) -> int | None:
        try:
            with open(self.path, "rb") as file:
                text = file.read(64).strip()
        except OSError:
            return None
        return int(text) if text.isdigit() and len(text) < 12 else None

    def remove(self) -> None:
        """Remove the file when it is still ours. Never raises."""
        if self._holder() == getpid():
            try:
                unlink(self.path)
            except OSError:
                pass


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # gone, or no number that a process can have
        return False
    except OSError:
        pass  # EPERM: it lives, as another user
    return True
