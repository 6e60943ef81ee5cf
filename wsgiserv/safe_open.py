"""Opens files as root without following links of other users.

A worker's user can place a symbolic link at the path of the server's log, pid file or socket. Root would follow it, and
write into any file, or give it away. So root walks the path itself, from one directory descriptor to the next:

- In a directory writable by root alone, links are root's own, and root follows them.
- Root follows no link in another directory. It opens the file as the workers' user, or as the owner of the directory,
  for whom the link leads nowhere new.
- In such a directory root opens the name with ``O_NOFOLLOW``, refuses a file with a second name (a hard link to a
  secret), and creates files with ``O_EXCL``. It sets owner and mode through the descriptor of the new file.

Other users open files plainly: deceiving them gains nothing.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EACCES, EINVAL, EISDIR, ELOOP, EMLINK, ENOENT, ENOTDIR, ENXIO, EOPNOTSUPP, EPERM
from functools import partial
from typing import Final, NamedTuple

# To pass through a directory, or to return to it, needs no right to read it. 0 on systems without it.
O_PATH: Final = getattr(os, "O_PATH", 0)
_STEP: Final = O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS: Final = 40  # as the kernel's, path_resolution(7)
_STANDARD: Final = re.compile(r"/dev/std(out|err)|(?:/dev/fd|/proc/self/fd)/([0-9]{1,6})")
# nogroup, which owns nothing. Not the user's number: that may be the number of a group that has rights.
NO_GROUP: Final = 65534


def working_directory() -> str:
    """Return the working directory; ``PATH (deleted)``, as the kernel names it, if it has been removed. Never raises.

    A release that is replaced may be removed under a running server.
    """
    for ask in (os.getcwd, partial(os.readlink, "/proc/self/cwd")):
        with suppress(OSError):
            return ask()
    return f"{os.sep}(deleted)"


def absolute(path: str) -> str:
    """Return ``path`` from the root; unlike `os.path.abspath`, also in a directory that has been removed."""
    return os.path.normpath(path if os.path.isabs(path) else os.path.join(working_directory(), path))


class Owner(NamedTuple):
    """The user of the workers, and the mode of their files.

    Attributes:
        uid, gid: the user and the group.
        umask: the mask of new files; 0 means the process's own.
        groups: all groups of the user.
    """

    uid: int
    gid: int
    umask: int = 0
    groups: Sequence[int] = ()


class UntrustedPath(OSError):
    """Root does not follow a symbolic link in a directory writable by other users.

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
    """The place of a file: a directory and a name in it, which is not a link to follow.

    Attributes:
        directory: a descriptor of the directory (O_PATH).
        name: the name in it.
        is_trusted: True when only root can change the directory.
        is_pinned: True when only root can change the directories above, so that the path keeps its meaning.
        is_magic: True when the name is a descriptor in /proc, which stands for no path.
        owner: the directory's owner.
    """

    directory: int
    name: str
    is_trusted: bool
    is_pinned: bool
    is_magic: bool
    owner: int

    def lstat(self) -> os.stat_result:
        """Return the status of the file. Raises FileNotFoundError."""
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def unlink(self) -> None:
        """Remove the file. Raises OSError."""
        os.unlink(self.name, dir_fd=self.directory)

    def close(self) -> None:
        """Close the directory."""
        os.close(self.directory)


def is_root() -> bool:
    """Return True when this process acts as root, on a system with O_PATH (Linux)."""
    return bool(O_PATH) and sys.platform.startswith("linux") and os.geteuid() == 0


# ---- walking ---------------------------------------------------------------------------------------------


def find(path: str, groups: Sequence[int] = (), *, follow: bool = True) -> Place:
    """Walk an absolute path as root; the caller closes the result.

    Args:
        path: the path.
        groups: the groups of the workers' user.
        follow: follow a link as the last component, too, where root may.

    Raises:
        UntrustedPath: for a link that root does not follow.
        OSError: as open(2).
    """
    # Last one first: the components of a link's target go on top.
    todo = _components(path)
    directory = os.open("/", _STEP | os.O_DIRECTORY)
    is_pinned = True
    links = 0
    try:
        found = os.fstat(directory)
        while True:
            name = todo.pop() if todo else "."
            is_last = not todo
            # O_PATH | O_NOFOLLOW opens a link itself. What is checked below is this object, and no other that is put
            # under the name meanwhile.
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
                    # Such a link stands for an object without a path, so that its text cannot be walked.
                    if _is_magic(found):
                        if is_last:
                            return _place(directory, found, name, is_pinned, is_magic=True)
                        target = os.open(name, os.O_DIRECTORY | O_PATH | os.O_CLOEXEC, dir_fd=directory)
                        os.close(directory)
                        directory, found = target, os.fstat(target)
                        continue
                    links += 1
                    if links > _MOST_LINKS:
                        raise OSError(ELOOP, os.strerror(ELOOP), path)
                    # Of the opened link, not of its name: that may be another link by now.
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
                # Who can rename a directory above decides where the path leads tomorrow.
                is_pinned = is_pinned and (_only_roots(found) or _is_held(found, status))
                os.close(directory)
                directory, found = step, status
                step = -1
            finally:
                if step >= 0:
                    os.close(step)
    except BaseException:  # KeyboardInterrupt, too: the master goes on after a failed reload
        os.close(directory)
        raise


@contextmanager
def place_of(path: str, groups: Sequence[int] = ()) -> Iterator[Place]:
    """Find the place of a file to create, replace or remove; close it in the end. Does not follow a final link.

    At an untrusted link, root acts as the owner of the link's directory until the end: the link leads that user
    nowhere new.

    Args:
        path: absolute.
        groups: see `find`.

    Raises:
        UntrustedPath: for an untrusted link in a directory of root.
        OSError: as open(2).
    """
    if not is_root():
        flags = (O_PATH or os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
        directory, name = os.path.split(path)
        place = Place(os.open(directory, flags), name, True, True, False, os.geteuid())
    else:
        try:
            place = find(path, groups, follow=False)
        except UntrustedPath as error:
            if not error.owner:  # a directory of root that others may write to: root's rights are all there are
                raise
            with acting_as_user(error.owner, _group_of(error.owner)), place_of(path) as place:
                yield place
            return
    try:
        yield place
    finally:
        place.close()


def check_directory(directory: int, path: str) -> None:
    """Raise the OSError of creating a file in the directory, if this process cannot create one there.

    Args:
        directory: a descriptor of it.
        path: for the error.
    """
    # By making one without a name: access(2) does not see full disks, quotas and special file systems.
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


def _place(directory: int, found: os.stat_result, name: str, is_pinned: bool, is_magic: bool = False) -> Place:
    return Place(directory, name, _only_roots(found), is_pinned, is_magic, found.st_uid)


def _only_roots(directory: os.stat_result) -> bool:
    return directory.st_uid == 0 and not directory.st_mode & 0o022


def _may_follow(directory: os.stat_result, link: os.stat_result, groups: Sequence[int]) -> bool:
    """Return True when only root can have created a link in this directory."""
    if _only_roots(directory):
        return True
    # A hard link to one of root's links elsewhere would be root's as well.
    if directory.st_uid != 0 or link.st_uid != 0 or link.st_nlink != 1:
        return False
    # With the sticky bit (/tmp) others can neither replace root's links nor make one of root's.
    if directory.st_mode & stat.S_ISVTX:
        return True
    # Where a group may write (/var/log of Debian, for syslog) the workers must not be in it.
    return not directory.st_mode & 0o002 and directory.st_gid not in groups


def _is_held(directory: os.stat_result, entry: os.stat_result) -> bool:
    """Return True when the sticky bit protects root's entry of a directory writable by others."""
    return directory.st_uid == 0 and bool(directory.st_mode & stat.S_ISVTX) and entry.st_uid == 0


def _is_magic(directory: os.stat_result) -> bool:
    """Return True when links in this directory are the kernel's (proc(5): fd, cwd, root)."""
    try:
        proc = os.stat("/proc")
    except OSError:
        return False
    return directory.st_dev == proc.st_dev and directory.st_ino != proc.st_ino


# ---- opening ---------------------------------------------------------------------------------------------


def open_file(path: str, flags: int, owner: Owner) -> int:
    """Open a file, and create it if it is missing; return the descriptor.

    Root opens it safely (see the module), and gives a new file to ``owner``; an existing file keeps owner and mode.
    The names of standard streams (``/dev/stdout``, ``/proc/self/fd/3``) stand for the open descriptor, also where the
    system refuses to open it again (a socket; another user's pipe).

    Args:
        path: absolute.
        flags: of open(2), without O_CREAT and O_EXCL. O_NONBLOCK opens a FIFO without a reader, too.
        owner: the user of the workers.

    Raises:
        OSError: as open(2); UntrustedPath.
    """
    # NOCTTY: a log may be a terminal, which must not become the controlling one of a daemon.
    flags |= os.O_CLOEXEC | os.O_NOCTTY
    try:
        return _open_as_root(path, flags, owner) if is_root() else _open_or_make(path, flags, owner.umask)[0]
    except OSError as error:
        standard = _STANDARD.fullmatch(path)
        if standard is None or error.errno not in (ENXIO, EACCES, EPERM):
            raise
        number = {"out": 1, "err": 2}.get(standard[1]) or int(standard[2] or 0)
        return os.dup(number)  # close-on-exec, PEP 446


def _open_as_root(path: str, flags: int, owner: Owner) -> int:
    try:
        place = find(path, owner.groups or (owner.gid,))
    except UntrustedPath as error:
        # The workers' user first: the log is the workers' in most cases.
        return _open_as(dict.fromkeys((owner.uid, error.owner)), path, flags, owner, error)
    try:
        if place.is_magic:
            return _open_or_make(place.name, flags, 0, place.directory)[0]
        if place.is_trusted:
            return _open_in(place, flags, owner)
        # With the rights of the workers' user a planted name reaches nothing new. Where that user may not open it (a
        # log that logrotate has made for root) root opens the name itself, and no link.
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
    """Open a path with an untrusted link as one of the users, each of whom may have created it."""
    for uid in uids:
        if not uid:  # never as root
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
        return NO_GROUP


def _open_or_make(path: str, flags: int, umask: int, directory: int | None = None) -> tuple[int, bool]:
    """Open or create a file; return the descriptor, and True when the file is new."""
    while True:
        try:
            return os.open(path, flags, dir_fd=directory), False
        except FileNotFoundError:
            pass
        except OSError as error:
            # fifo(7): O_NONBLOCK cannot open a FIFO for writing alone before it has a reader. O_RDWR can; the data
            # waits in the pipe. (A socket cannot be opened at all.)
            if error.errno != ENXIO or not flags & os.O_NONBLOCK:
                raise
            return os.open(path, flags & ~os.O_WRONLY | os.O_RDWR, dir_fd=directory), False
        # O_EXCL tells a new file from one that another process has put there: only a new one gets owner and mode.
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory)
        except FileExistsError:
            if flags & os.O_NOFOLLOW:
                continue  # another process was faster
            # It may be a dangling link, whose file this creates.
            return os.open(path, flags | os.O_CREAT, 0o666, dir_fd=directory), False
        if umask:
            with suppress(OSError):  # a file system without modes
                os.fchmod(fd, 0o666 & ~umask)
        return fd, True


def _open_in(place: Place, flags: int, owner: Owner) -> int:
    """Open a file by its name as root, or create it and give it to ``owner``."""
    fd, is_new = _open_or_make(place.name, flags | os.O_NOFOLLOW, owner.umask, place.directory)
    if is_new:
        if (owner.uid, owner.gid) != (0, 0):
            with suppress(OSError):  # a file system without owners
                os.fchown(fd, owner.uid, owner.gid)
        return fd
    # A hard link that a user makes to a file of another has that file's owner and mode, and O_NOFOLLOW does not see
    # that it is one.
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
def acting_as_user(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Let root act as another user within the block. Affects the whole process, so not for use beside threads.

    Raises OSError when the switch is not allowed.
    """
    groups_before, gid_before = os.getgroups(), os.getegid()
    # The effective ids alone: the saved ones stay root's, and allow the way back, which goes in the opposite order.
    try:
        os.setgroups(groups or [gid])
        os.setegid(gid)
        os.seteuid(uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid_before)
        os.setgroups(groups_before)
