"""Opens files as root without following what another user has put in the way.

Owns: the question who can change a path, the opening and making of files by it, acting as another user for a moment.
Must not know: what the files are for.

A worker's user can put a symbolic link where the server's log, pid file or socket is to be, and root would follow it:
write into any file, or give it away. So root walks the path itself, from one directory's descriptor to the next:

- In a directory that only root can change, links are root's own, and are followed.
- A link in any other directory is not followed by root. The file is opened as the workers' user, or as the owner of
  that directory, who gains nothing by it: the link leads where that user may go anyway.
- A file in such a directory is opened by its name without following (``O_NOFOLLOW``), must have no other name
  (a hard link to somebody's secret), and is made anew only (``O_EXCL``). Owner and mode are set through the
  descriptor of what has been made.

Any other user than root opens files plainly: nothing can be had by deceiving it.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EACCES, EINVAL, EISDIR, ELOOP, EMLINK, ENOENT, ENOTDIR, ENXIO, EOPNOTSUPP, EPERM
from typing import Final, NamedTuple

__all__ = [
    "Owner",
    "Place",
    "UntrustedPath",
    "absolute",
    "acting_as_owner",
    "acting_as_user",
    "check_directory",
    "find",
    "is_root",
    "open_file",
    "place_of",
    "working_directory",
]

# O_PATH: to go through a directory one need not be able to read it.
_O_PATH: Final = getattr(os, "O_PATH", 0)
_STEP: Final = _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS: Final = 40  # as the kernel's, path_resolution(7)
_STANDARD: Final = re.compile(r"/dev/std(out|err)|(?:/dev/fd|/proc/self/fd)/([0-9]{1,6})")
_NO_GROUP: Final = 65534


def working_directory() -> str:
    """Return the working directory; ``PATH (deleted)``, as the kernel names it, if it has been removed. Never raises.

    A release that is replaced may be removed under a running server.
    """
    try:
        return os.getcwd()
    except OSError:
        pass
    try:
        return os.readlink("/proc/self/cwd")
    except OSError:
        return f"{os.sep}(deleted)"


def absolute(path: str) -> str:
    """Return ``path`` from the root; unlike `os.path.abspath`, also in a directory that has been removed."""
    return os.path.normpath(path if os.path.isabs(path) else os.path.join(working_directory(), path))


class Owner(NamedTuple):
    """Who the workers run as, and how they make files.

    Attributes:
        uid, gid: the user and the group.
        umask: the mask of what is made; 0: the process's own.
        groups: all groups they are in.
    """

    uid: int
    gid: int
    umask: int = 0
    groups: Sequence[int] = ()


class UntrustedPath(OSError):
    """Root does not follow a symbolic link that another user may have put there.

    Attributes:
        owner: the owner of the link's directory.
    """

    def __init__(self, path: str, link: str, owner: int) -> None:
        super().__init__(
            ELOOP,
            f"{link} is a symbolic link in a directory that not only root can change, and root does not follow it",
            path,
        )
        self.owner = owner


class Place(NamedTuple):
    """Where a file is, or is to be: a directory and a name that is no link to be followed.

    Attributes:
        directory: a descriptor of the directory (O_PATH).
        name: the name in it.
        is_trusted: whether only root can change the directory.
        is_pinned: whether only root can change those above it: then its path cannot come to mean another.
        is_magic: whether the name is a descriptor's in /proc: what it stands for is no path.
        owner: the directory's owner.
    """

    directory: int
    name: str
    is_trusted: bool
    is_pinned: bool
    is_magic: bool
    owner: int

    def lstat(self) -> os.stat_result:
        """Return what is there. Raises FileNotFoundError."""
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def unlink(self) -> None:
        """Remove it. Raises OSError."""
        os.unlink(self.name, dir_fd=self.directory)

    def close(self) -> None:
        """Close the directory."""
        os.close(self.directory)


def is_root() -> bool:
    """Whether this process acts as root, on a system where paths can be walked (Linux)."""
    return bool(_O_PATH) and sys.platform.startswith("linux") and os.geteuid() == 0


# ---- walking ---------------------------------------------------------------------------------------------


def find(path: str, groups: Sequence[int] = (), *, follow: bool = True) -> Place:
    """Walk an absolute path as root; the caller closes what it gets.

    Args:
        path: the path.
        groups: the groups of the user who is not to lead root astray.
        follow: follow a link as the last component, too, where root may.

    Raises:
        UntrustedPath: there is a link that root does not follow.
        OSError: as open(2).
    """
    todo = _components(path)
    directory = os.open("/", _STEP | os.O_DIRECTORY)
    is_pinned = True
    links = 0
    try:
        found = os.fstat(directory)
        while True:
            name = todo.pop() if todo else "."
            is_last = not todo
            try:
                step = os.open(name, _STEP, dir_fd=directory)
            except FileNotFoundError:
                if not is_last:
                    raise
                return _place(directory, found, name, is_pinned)
            try:
                status = os.fstat(step)
                if stat.S_ISLNK(status.st_mode):
                    if is_last and not follow:
                        return _place(directory, found, name, is_pinned)
                    if not _may_follow(found, status, groups):
                        raise UntrustedPath(path, name, found.st_uid)
                    if _is_magic(found):
                        if is_last:
                            return _place(directory, found, name, is_pinned, is_magic=True)
                        target = os.open(name, os.O_DIRECTORY | _O_PATH | os.O_CLOEXEC, dir_fd=directory)
                        os.close(directory)
                        directory, found = target, os.fstat(target)
                        continue
                    links += 1
                    if links > _MOST_LINKS:
                        raise OSError(ELOOP, os.strerror(ELOOP), path)
                    target_path = os.readlink("", dir_fd=step)
                    todo += _components(target_path)
                    if target_path.startswith("/"):
                        root = os.open("/", _STEP | os.O_DIRECTORY)
                        os.close(directory)
                        directory, found = root, os.fstat(root)
                        is_pinned = True
                    continue
                if is_last:
                    return _place(directory, found, name, is_pinned)
                if not stat.S_ISDIR(status.st_mode):
                    raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), path)
                is_pinned = is_pinned and (_only_roots(found) or _is_held(found, status))
                os.close(directory)
                directory, found = step, status
                step = -1
            finally:
                if step >= 0:
                    os.close(step)
    except BaseException:
        os.close(directory)
        raise


@contextmanager
def place_of(path: str, groups: Sequence[int] = ()) -> Iterator[Place]:
    """Find the place of a file that is to be made, replaced or removed, and close it in the end. Not through a link.

    Where root meets a link that it does not follow, it acts as the owner of the link's directory meanwhile: that user
    can lead it only where he may go himself.

    Args:
        path: absolute.
        groups: see `find`.

    Raises:
        UntrustedPath: nobody is left to act as.
        OSError: as open(2).
    """
    if not is_root():
        flags = (_O_PATH or os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
        directory, name = os.path.split(path)
        place = Place(os.open(directory, flags), name, True, True, False, os.geteuid())
    else:
        try:
            place = find(path, groups, follow=False)
        except UntrustedPath as error:
            if not error.owner:
                raise
            with acting_as_owner(error.owner), place_of(path) as place:
                yield place
            return
    try:
        yield place
    finally:
        place.close()


def check_directory(directory: int, path: str) -> None:
    """Raise OSError, as the making of a file would, when this process could not make one in the directory.

    Tries it, and leaves none: access(2) knows nothing of full disks, quotas and file systems without files.

    Args:
        directory: a descriptor of it.
        path: for the error.
    """
    try:
        try:
            fd = os.open(".", os.O_WRONLY | getattr(os, "O_TMPFILE", os.O_DIRECTORY), 0o600, dir_fd=directory)
        except OSError as error:
            # EISDIR and EOPNOTSUPP: a system, or a file system, without O_TMPFILE (open(2)).
            if error.errno not in (EISDIR, EOPNOTSUPP, EINVAL, ENOENT):
                raise
            name = f".wsgiserv-{os.urandom(8).hex()}"
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
            os.unlink(name, dir_fd=directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    os.close(fd)


def _components(path: str) -> list[str]:
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _place(
    directory: int, found: os.stat_result, name: str, is_pinned: bool, is_magic: bool = False
) -> Place:
    return Place(directory, name, _only_roots(found), is_pinned, is_magic, found.st_uid)


def _only_roots(directory: os.stat_result) -> bool:
    return directory.st_uid == 0 and not directory.st_mode & 0o022


def _may_follow(directory: os.stat_result, link: os.stat_result, groups: Sequence[int]) -> bool:
    """Whether a link in this directory can only be root's.

    In a directory with the sticky bit (/tmp) others can neither replace root's links nor make one of root's. Where a
    group may write (/var/log of Debian, for syslog) the workers must not be in it.
    """
    if _only_roots(directory):
        return True
    if directory.st_uid != 0 or link.st_uid != 0 or link.st_nlink != 1:
        return False
    if directory.st_mode & stat.S_ISVTX:
        return True
    return not directory.st_mode & 0o002 and directory.st_gid not in groups


def _is_held(directory: os.stat_result, entry: os.stat_result) -> bool:
    """Whether root's entry of this directory cannot be replaced, although others can make some: the sticky bit."""
    return directory.st_uid == 0 and bool(directory.st_mode & stat.S_ISVTX) and entry.st_uid == 0


def _is_magic(directory: os.stat_result) -> bool:
    """Whether links in this directory are the kernel's (proc(5): fd, cwd, root); those of /proc itself are plain."""
    try:
        proc = os.stat("/proc")
    except OSError:
        return False
    return directory.st_dev == proc.st_dev and directory.st_ino != proc.st_ino


# ---- opening ---------------------------------------------------------------------------------------------


def open_file(path: str, flags: int, owner: Owner) -> int:
    """Open a file for the server's use, and make it if it is missing; return the descriptor.

    As root in a way that no other user can turn to another file; what is made then belongs to ``owner``. What was there
    keeps owner and mode. The names of standard streams (``/dev/stdout``, ``/proc/self/fd/3``) stand for what is open
    there, also where that cannot be opened again (a socket; another user's pipe).

    Args:
        path: absolute.
        flags: of open(2), without O_CREAT and O_EXCL. With O_NONBLOCK a FIFO is opened also when nobody reads it.
        owner: who the workers run as.

    Raises:
        OSError: as open(2); UntrustedPath.
    """
    flags |= os.O_CLOEXEC | os.O_NOCTTY
    try:
        return _open_as_root(path, flags, owner) if is_root() else _open_or_make(path, flags, owner.umask)[0]
    except OSError as error:
        standard = _STANDARD.fullmatch(path)
        if standard is None or error.errno not in (ENXIO, EACCES, EPERM):
            raise
        number = {"out": 1, "err": 2}.get(standard[1]) or int(standard[2] or 0)
        fd = os.dup(number)
        os.set_inheritable(fd, False)
        return fd


def _open_as_root(path: str, flags: int, owner: Owner) -> int:
    try:
        place = find(path, owner.groups or (owner.gid,))
    except UntrustedPath as error:
        return _open_as(dict.fromkeys((owner.uid, error.owner)), path, flags, owner, error)
    try:
        if place.is_magic:
            return _open_or_make(place.name, flags, 0, place.directory)[0]
        if place.is_trusted:
            return _open_in(place, flags, owner)
        if owner.uid:
            with suppress(PermissionError), acting_as_user(owner.uid, owner.gid, owner.groups):
                return _open_or_make(path, flags, owner.umask)[0]
        return _open_in(place, flags, owner)
    except OSError as error:
        if error.errno != ELOOP or place.is_trusted:
            raise
        # The last component has become a link since the walk.
        raise UntrustedPath(path, place.name, place.owner) from error
    finally:
        place.close()


def _open_as(uids: dict[int, None], path: str, flags: int, owner: Owner, refusal: UntrustedPath) -> int:
    """Open a path with an untrusted link as those who may have made it."""
    for uid in uids:
        if not uid:
            continue
        gid, groups = (owner.gid, owner.groups) if uid == owner.uid else (_group_of(uid), ())
        try:
            with acting_as_user(uid, gid, groups):
                return _open_or_make(path, flags, owner.umask)[0]
        except OSError:
            continue
    raise refusal


def _group_of(uid: int) -> int:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return _NO_GROUP


def _open_or_make(path: str, flags: int, umask: int, directory: int | None = None) -> tuple[int, bool]:
    """Open a file, or make it; return the descriptor and whether it was made."""
    while True:
        try:
            return os.open(path, flags, dir_fd=directory), False
        except FileNotFoundError:
            pass
        except OSError as error:
            # fifo(7): with O_NONBLOCK there is no opening for writing alone before there is a reader. With O_RDWR there
            # is, and what is written waits in the pipe. (A socket has no opening at all.)
            if error.errno != ENXIO or not flags & os.O_NONBLOCK:
                raise
            return os.open(path, flags & ~os.O_WRONLY | os.O_RDWR, dir_fd=directory), False
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
        except FileExistsError:
            if flags & os.O_NOFOLLOW:
                continue  # somebody was faster
            # Perhaps a link to nothing, whose file is to be made.
            return os.open(path, flags | os.O_CREAT, 0o666, dir_fd=directory), False
        if umask:
            with suppress(OSError):  # a file system without modes
                os.fchmod(fd, 0o666 & ~umask)
        return fd, True


def _open_in(place: Place, flags: int, owner: Owner) -> int:
    """Open a file in its directory as root, without following; make it if it is missing, and give it to ``owner``."""
    fd, is_new = _open_or_make(place.name, flags | os.O_NOFOLLOW, owner.umask, place.directory)
    if is_new:
        if (owner.uid, owner.gid) != (0, 0):
            with suppress(OSError):  # a file system without owners
                os.fchown(fd, owner.uid, owner.gid)
        return fd
    status = os.fstat(fd)
    if not place.is_trusted and stat.S_ISREG(status.st_mode) and status.st_nlink != 1:
        os.close(fd)
        raise OSError(
            EMLINK,
            "the file has another name as well (a hard link), in a directory that not only root can change, and root "
            "does not write to it",
            place.name,
        )
    return fd


@contextmanager
def acting_as_owner(uid: int) -> Iterator[None]:
    """Let root act as the owner of a directory, in their primary group. As `acting_as_user`."""
    with acting_as_user(uid, _group_of(uid)):
        yield


@contextmanager
def acting_as_user(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Let root act as another user for a moment. The whole process does: not where threads run.

    Raises OSError when the switch is not allowed.
    """
    groups_before, gid_before = os.getgroups(), os.getegid()
    try:
        os.setgroups(groups or [gid])
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid_before)
        os.setgroups(groups_before)
