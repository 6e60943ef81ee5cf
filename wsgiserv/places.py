"""The directories that settings name: whether the server can make its files there.

Owns: what is said of a `spool_dir` or `control_socket` that cannot be used.
Must not know: what is written there, and when.
"""

from __future__ import annotations

import os
import stat
from typing import Final, Protocol

from wsgiserv.errors import ConfigError
from wsgiserv.privileges import PrivilegeSettings, acting_as
from wsgiserv.safe_open import UntrustedPath, absolute, check_directory, is_root, place_of

__all__ = ["PlaceSettings", "check_control_socket", "check_places", "check_spool_dir"]

_O_PATH: Final = getattr(os, "O_PATH", 0)  # to use a directory one need not be able to read it
# sun_path of unix(7), with its NUL
_LONGEST_SOCKET_PATH: Final = 107


class PlaceSettings(PrivilegeSettings, Protocol):
    """The settings that are read here."""

    @property
    def spool_dir(self) -> str | None: ...
    @property
    def control_socket(self) -> str | None: ...
    @property
    def control_socket_disable(self) -> bool: ...


def check_places(settings: PlaceSettings) -> None:
    """Raise ConfigError for a directory that cannot be used. Called in `chdir`, before anything is opened."""
    check_spool_dir(settings)
    check_control_socket(settings)


def check_spool_dir(settings: PlaceSettings) -> None:
    """Raise ConfigError when workers cannot make files in `spool_dir`: large requests would be refused with 507."""
    if settings.spool_dir is None:
        return
    path = absolute(settings.spool_dir)
    where = f"spool_dir = {settings.spool_dir!r}"
    uid = settings.user
    try:
        # The workers make the files, and what root may do is not theirs.
        with acting_as(settings):
            _check_directory(where, path)
            directory = os.open(path, os.O_DIRECTORY | _O_PATH | os.O_CLOEXEC)
            try:
                check_directory(directory, path)
            finally:
                os.close(directory)
    except PermissionError as error:
        raise ConfigError(
            f"{where}: user id {uid} may not make files in {path}. Expected a directory that the workers may write to: "
            f"chown {uid} {path}, or another directory."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot make a file in {path}: {error.strerror}. Expected a directory with room for large bodies."
        ) from error


def check_control_socket(settings: PlaceSettings) -> None:
    """Raise ConfigError when the socket that `control_socket` names cannot be made.

    A path that is in use, or that root does not follow, only costs the socket: the log says so.
    """
    written = settings.control_socket
    if settings.control_socket_disable or not written:
        return
    path = absolute(written)
    where = f"control_socket = {written!r}"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"{where}: the path of a Unix socket may be {_LONGEST_SOCKET_PATH} bytes long, and {path!r} has "
            f"{len(os.fsencode(path))}. Choose a shorter one, or 'off'."
        )
    directory = os.path.dirname(path)
    _check_directory(where, directory)
    try:
        with place_of(path) as place:
            check_directory(place.directory, path)
            status = place.lstat()
    except (UntrustedPath, FileNotFoundError):
        return
    except OSError as error:
        if isinstance(error, PermissionError) and is_root():
            return  # the owner of a directory with a link may not go there, and root does not follow the link
        raise ConfigError(
            f"{where}: user id {os.geteuid()} cannot make a socket in {directory}: {error.strerror}. Choose another "
            "directory, or 'off'."
        ) from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"{where}: {path} exists and is not a socket; it is left alone. Choose another path, or 'off'."
        )


def _check_directory(where: str, path: str) -> None:
    if not os.path.lexists(path):
        raise ConfigError(f"{where}: the directory {path} does not exist. Create it: mkdir -p {path}")
    if not os.path.isdir(path):
        raise ConfigError(f"{where}: {path} is not a directory. Expected a directory that exists.")
