"""Chooses the directory of a control socket, for the server and for ``wsgiservctl``.

A socket is named ``PID.sock``, after the master. A directory is only used if nobody but this user and root can write to
it: another user could put a socket of that name there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from glob import escape, glob
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
    refused: list[str] = []
    given = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        # systemd has made it for this service, with the owner and mode of its unit. Root alone checks it: after
        # sudo -E it may be the directory of another user, and root does not work there.
        is_checked = uid == 0 and os.path.isdir(given)
        fault = _fault_of(os.path.realpath(given), uid, is_private=False) if is_checked else ""
        if not fault:
            return given
        refused.append(fault)
    for path in _own_directories(environ, uid, system, tmp):
        fault = _make(path, uid, is_private=path.startswith(f"{tmp}/"))
        if not fault:
            return path
        refused.append(fault)
    raise DirectoryError("; ".join(refused))


def directories_to_search(environ: Mapping[str, str], uid: int, *, system: str = _SYSTEM, tmp: str = _TMP) -> list[str]:
    """Return the fit directories for sockets of this user's servers; for root, of all users'. Called by wsgiservctl."""
    # The server may have been started with another environment: by systemd, or from another login. Root may control
    # the servers of all users, as with kill(1).
    given = [path for path in environ.get("RUNTIME_DIRECTORY", "").split(":") if path]
    own = [*_own_directories(environ, uid, system, tmp), f"/run/user/{uid}/wsgiserv", system]
    found = [
        path
        for path in dict.fromkeys([*given, *own])
        if not _fault_of(path, uid, is_private=path.startswith(f"{tmp}/"))
    ]
    if uid == 0:
        found += [path for path in _of_all_users(given, tmp) if path not in found]
    return found


def _of_all_users(given: Sequence[str], tmp: str) -> Iterator[str]:
    """Yield other users' directories with access for their owner only; no links, which could lead elsewhere."""
    prefix = f"{tmp}/wsgiserv-"
    candidates = [
        *((path, "") for path in given),
        *((path, path.split("/")[3]) for path in sorted(glob("/run/user/*/wsgiserv"))),
        *((path, path.removeprefix(prefix)) for path in sorted(glob(f"{escape(prefix)}*"))),
    ]
    for path, user in candidates:
        try:
            owner = lstat(path).st_uid
        except OSError:
            continue
        # Where the name tells the user, another owner has made it, to be asked in that user's place.
        is_his = not user or user == str(owner)
        if is_his and not _fault_of(path, owner, is_private=path.startswith(f"{tmp}/")):
            yield path


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


def _make(path: str, uid: int, is_private: bool) -> str:
    try:
        mkdir(path, 0o700)
    except FileExistsError:
        pass  # of an earlier server, or planted
    except OSError as error:
        return f"{path} cannot be made: {error.strerror}"
    return _fault_of(path, uid, is_private)


def _fault_of(path: str, uid: int, is_private: bool) -> str:
    """Tell how another user than this one and root can put a file there; an empty text if none can."""
    try:
        found = lstat(path)  # a symbolic link in /tmp leads where another user wants
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is not a directory"
    if found.st_uid != uid and (is_private or found.st_uid != 0):
        return f"{path} belongs to user id {found.st_uid}, not {uid}"
    # In /tmp the directory is this server's alone, so nobody else need even list it.
    forbidden = 0o077 if is_private else 0o022
    if found.st_mode & forbidden:
        mode, wanted = stat.S_IMODE(found.st_mode), stat.S_IMODE(found.st_mode) & ~forbidden
        return f"{path} has mode {mode:04o}, expected {wanted:04o} (chmod {wanted:o} {path})"
    return ""
