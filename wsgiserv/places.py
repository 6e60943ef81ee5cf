"""Checks the directories in settings: whether the server can make its files there."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from wsgiserv.errors import ConfigError
from wsgiserv.privileges import acting_as
from wsgiserv.safe_open import O_PATH, UntrustedPath, absolute, check_directory, is_root, place_of

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

# sun_path of unix(7), with its NUL
_LONGEST_SOCKET_PATH: Final = 107


def check_spool_dir(settings: Settings) -> None:
    """Raise ConfigError when workers cannot make files in `spool_dir`: large requests would be refused with 507.

    Called in `chdir`, before anything is opened, as is `check_control_socket`.
    """
    if settings.spool_dir is None:
        return
    path = absolute(settings.spool_dir)
    where = f"spool_dir = {settings.spool_dir!r}"
    uid = settings.user
    try:
        # The workers make the files, and they have other rights than root.
        with acting_as(settings):
            _check_makes_files(where, path)
    except PermissionError as error:
        raise ConfigError(
            f"WS1070 {where}: user id {uid} may not make files in {path}. Accepted: a directory that the workers may "
            f"write to: chown {uid} {path}, or another directory."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"WS1071 {where}: cannot make a file in {path}: {error.strerror}. Accepted: a directory with room for "
            "large bodies."
        ) from error


def check_worker_tmp_dir(settings: Settings) -> None:
    """Raise ConfigError when `worker_tmp_dir` is no directory where this process can make a file."""
    if not settings.worker_tmp_dir:
        return
    path, where = absolute(settings.worker_tmp_dir), f"worker_tmp_dir = {settings.worker_tmp_dir!r}"
    try:
        _check_makes_files(where, path)
    except OSError as error:
        raise ConfigError(
            f"WS1093 {where}: cannot make a file in {path}: {error.strerror}. Accepted: a directory that this user may "
            "write to; or leave it out, since nothing is written there."
        ) from error


def check_control_socket(settings: Settings) -> None:
    """Raise ConfigError when the socket of `control_socket` cannot be made.

    With a path in use, or one not safe for root, the server runs without the socket: the log says so.
    """
    written = settings.control_socket
    if settings.control_socket_disable or not written:
        return
    path = absolute(written)
    where = f"control_socket = {written!r}"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"WS1072 {where}: the path of a Unix socket may be {_LONGEST_SOCKET_PATH} bytes long, and {path!r} has "
            f"{len(os.fsencode(path))}. Choose a shorter one, or 'off'."
        )
    directory = os.path.dirname(path)
    _check_directory(where, directory)
    try:
        with place_of(path) as place:
            check_directory(place.directory, path)
            status = place.lstat()
    except (UntrustedPath, FileNotFoundError):
        return  # nothing there yet is what a start wants; the untrusted one is told of by the start itself
    except OSError as error:
        if isinstance(error, PermissionError) and is_root():
            return  # root does not follow a link in another user's directory, nor does that user get there
        raise ConfigError(
            f"WS1073 {where}: user id {os.geteuid()} cannot make a socket in {directory}: {error.strerror}. Choose "
            "another directory, or 'off'."
        ) from error
    # A stale socket is replaced by the start; anything else may be somebody's file.
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"WS1074 {where}: {path} exists and is not a socket; it is left alone. Choose another path, or 'off'."
        )


def _check_makes_files(where: str, path: str) -> None:
    """Raise ConfigError when ``path`` is no directory, OSError when this process cannot make a file there."""
    _check_directory(where, path)
    directory = os.open(path, os.O_DIRECTORY | O_PATH | os.O_CLOEXEC)
    try:
        check_directory(directory, path)
    finally:
        os.close(directory)


def _check_directory(where: str, path: str) -> None:
    # Before anything else: "mkdir -p" is better advice than the system's "No such file or directory".
    if not os.path.lexists(path):
        raise ConfigError(f"WS1075 {where}: the directory {path} does not exist. Create it: mkdir -p {path}")
    if not os.path.isdir(path):
        raise ConfigError(f"WS1076 {where}: {path} is not a directory. Accepted: a directory that exists.")
