"""Chooses the directory of a control socket, for the server and for ``wsgiservctl``.

A socket is named ``PID.sock``, after the master. A directory is only used if nobody but this user and root can write to
it: another user could put a socket of that name there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from os import getpid, lstat, mkdir

_SYSTEM = "/run/wsgiserv"
_TMP = "/tmp"


class DirectoryError(Exception):
    """A directory cannot hold a control socket; the text has its path and the reason."""


def socket_name(pid: int = 0) -> str:
    """Return the file name of the control socket of the master ``pid``; 0 is this process."""
    return f"{pid or getpid()}.sock"


def runtime_directory(environ: Mapping[str, str], uid: int, *, system: str = _SYSTEM, tmp: str = _TMP) -> str:
    """Return the directory for this server's socket, and create it if it is missing. Called by the master.

    The first fit one, in this order:

    1. RUNTIME_DIRECTORY, created and removed by systemd (systemd.exec(5), RuntimeDirectory=); of several the first;
    2. ``$XDG_RUNTIME_DIR/wsgiserv`` (XDG Base Directory Specification);
    3. ``/run/wsgiserv``, for root;
    4. ``/tmp/wsgiserv-UID``, with access for this user only: every user can write to /tmp.

    Args:
        environ: the environment.
        uid: this process's effective user.
        system, tmp: ``/run/wsgiserv`` and ``/tmp``.

    Raises DirectoryError if none is fit; its text names each with the reason.
    """
    given = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    refused: list[str] = []
    if given:
        try:
            if uid == 0 and os.path.isdir(given):
                _check(os.path.realpath(given), uid, is_private=False)
        except DirectoryError as error:
            refused.append(str(error))  # another user's: root does not work there
        else:
            return given
    for path in _own_directories(environ, uid, system, tmp):
        try:
            _make(path, uid, is_private=path.startswith(f"{tmp}/"))
        except DirectoryError as error:
            refused.append(str(error))
        else:
            return path
    raise DirectoryError("; ".join(refused))


def directories_to_search(
    environ: Mapping[str, str], uid: int, *, system: str = _SYSTEM, tmp: str = _TMP
) -> list[str]:
    """Return the fit directories for sockets of this user's servers; for root, of all users'. Called by wsgiservctl."""
    # The server may have been started with another environment: by systemd, or from another login. Root may control the
    # servers of all users, as with kill(1).
    given = [path for path in environ.get("RUNTIME_DIRECTORY", "").split(":") if path]
    own = [*_own_directories(environ, uid, system, tmp), f"/run/user/{uid}/wsgiserv", system]
    found = []
    for path in dict.fromkeys([*given, *own]):
        try:
            _check(path, uid, is_private=path.startswith(f"{tmp}/"))
        except DirectoryError:
            continue
        found.append(path)
    if uid == 0:
        found += [path for path in _of_all_users(given, tmp) if path not in found]
    return found


def _of_all_users(given: Sequence[str], tmp: str) -> Iterator[str]:
    """Yield other users' directories with access for their owner only; no links, which could lead elsewhere."""
    prefix = "wsgiserv-"
    candidates = [
        *((path, "") for path in given),
        *((f"/run/user/{name}/wsgiserv", name) for name in _names_in("/run/user")),
        *((f"{tmp}/{name}", name.removeprefix(prefix)) for name in _names_in(tmp) if name.startswith(prefix)),
    ]
    for path, user in candidates:
        try:
            owner = lstat(path).st_uid
            if not user or user == str(owner):
                _check(path, owner, is_private=path.startswith(f"{tmp}/"))
                yield path
        except (OSError, DirectoryError):
            continue


def _names_in(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def _own_directories(environ: Mapping[str, str], uid: int, system: str, tmp: str) -> list[str]:
    paths = []
    session = environ.get("XDG_RUNTIME_DIR", "")
    # With sudo -E or su it is another user's.
    if os.path.isabs(session) and _owner(session) == uid:
        paths.append(f"{session.rstrip('/')}/wsgiserv")
    if uid == 0:
        paths.append(system)
    return [*paths, f"{tmp}/wsgiserv-{uid}"]


def _owner(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def _make(path: str, uid: int, is_private: bool) -> None:
    try:
        mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise DirectoryError(f"{path} cannot be made: {error.strerror}") from None
    _check(path, uid, is_private)


def _check(path: str, uid: int, is_private: bool) -> None:
    """Raise DirectoryError if another user than this one and root can put a file there."""
    try:
        found = lstat(path)  # a symbolic link in /tmp leads where another user wants
    except OSError as error:
        raise DirectoryError(f"{path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise DirectoryError(f"{path} is not a directory")
    if found.st_uid != uid and (is_private or found.st_uid != 0):
        raise DirectoryError(f"{path} belongs to user id {found.st_uid}, not {uid}")
    forbidden = 0o077 if is_private else 0o022
    if found.st_mode & forbidden:
        mode, wanted = stat.S_IMODE(found.st_mode), stat.S_IMODE(found.st_mode) & ~forbidden
        raise DirectoryError(f"{path} has mode {mode:04o}, expected {wanted:04o} (chmod {wanted:o} {path})")
