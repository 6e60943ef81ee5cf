"""Binds Unix sockets: the socket's file, its mode and owner, and files left by earlier servers."""

from __future__ import annotations

import errno
import os
import stat
from _socket import AF_UNIX, SOCK_STREAM, socket
from contextlib import suppress
from os import fstat, umask
from typing import Final

from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError
from wsgiserv.net.port_owner import AddressInUse, owner_of_path
from wsgiserv.safe_open import Place, absolute, acting_as_user, check_directory, is_root, place_of

# sizeof(sockaddr_un.sun_path) is 108 on Linux, unix(7); a path needs its NUL, an abstract name its leading one.
_LONGEST_PATH: Final = 107


def bind_unix(spec: str, path: str, settings: Settings) -> socket:
    """Return a bound socket; it does not listen yet.

    Args:
        spec: its `bind`.
        path: as `socket_path` returns it.
        settings: the mode and the owner of the file.

    Raises:
        ConfigError: it cannot be bound; `AddressInUse` when a server listens there.
    """
    try:
        if path.startswith("@"):
            return _bound("\0" + path[1:])
        with place_of(path, (settings.group,)) as place:
            _make_way(spec, path, place)
            return _bind_file(place, path, settings)
    except OSError as error:
        raise unix_error(spec, path, error) from error


def check_unix(spec: str, path: str, settings: Settings) -> None:
    """Raise as `bind_unix` would, and leave no file."""
    try:
        if path.startswith("@"):
            # An abstract name is free again when its last socket is closed, unix(7).
            _bound("\0" + path[1:]).close()
            return
        with place_of(path, (settings.group,)) as place:
            _is_stale(spec, path, place)
            check_directory(place.directory, path)
    except OSError as error:
        raise unix_error(spec, path, error) from error


def socket_path(spec: str, written: str) -> str:
    """Return the absolute path, or the abstract name with its ``@``. Raises ConfigError: it is too long."""
    # Absolute, since the file is removed at the end, when the working directory may be another one.
    path = written if written.startswith("@") else absolute(written)
    length = len(os.fsencode(path))
    if length > _LONGEST_PATH:
        raise ConfigError(
            f"bind = {spec!r}: the path of a Unix socket may be {_LONGEST_PATH} bytes long, and {path!r} has "
            f"{length}. Choose a shorter one; for example under /run."
        )
    return path


def _bound(name: str) -> socket:
    sock = socket(AF_UNIX, SOCK_STREAM)
    try:
        sock.bind(name)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_file(place: Place, path: str, settings: Settings) -> socket:
    """Bind a socket to a file with the mode and owner of the settings. Raises OSError."""
    mode = settings.socket_mode
    # The file gets its mode as it is made: no moment in which others may connect.
    old = umask(settings.umask if mode is None else 0o777 & ~mode)
    try:
        sock, maker = _bind_safely(place, path, settings)
    finally:
        umask(old)
    # The workers' user owns it, so that a socket of mode 0600 or 0660 is theirs, as with gunicorn.
    if os.getuid() == 0 and (settings.user, settings.group) != (os.getuid(), os.getgid()):
        try:
            _give(place, path, maker, settings)
        except BaseException:
            place.unlink()
            sock.close()
            raise
    return sock


def _bind_safely(place: Place, path: str, settings: Settings) -> tuple[socket, int]:
    """Bind, and return the socket and the user id of its file. Raises OSError."""
    # bind(2) takes a path only, and follows links on the way to the file's directory. Where another user could still
    # change that way, root does not use it: the workers' user binds, or root by the directory's descriptor.
    uid = os.geteuid()
    if uid != 0 or place.is_pinned:
        return _bound(path), uid
    if settings.user:
        try:
            with acting_as_user(settings.user, settings.group):
                return _bound(path), settings.user
        except PermissionError:
            pass  # that user may not write there, and root may
    return _bound(f"/proc/self/fd/{place.directory}/{place.name}"), uid


def _give(place: Place, path: str, maker: int, settings: Settings) -> None:
    """Give the socket's file to the workers' user. Raises OSError for a file put in its place."""
    if not is_root() and os.geteuid() == 0:  # not Linux
        os.chown(path, settings.user, settings.group, follow_symlinks=False)
        return
    # O_PATH: open(2) refuses a socket otherwise, and the descriptor holds the very file that is checked and given.
    fd = os.open(place.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
    try:
        status = fstat(fd)
        # A second hard link would give another file of that user, or of root, away with it.
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != maker or status.st_nlink != 1:
            raise OSError(errno.EBUSY, "another process has replaced the file", path)
        if (status.st_uid, status.st_gid) == (settings.user, settings.group):
            return
        if os.geteuid() != 0:
            return  # its directory's owner has made it, and cannot give it away: its mode decides
        # fchown(2) does not take an O_PATH descriptor; its link in /proc leads to the same file.
        os.chown(f"/proc/self/fd/{fd}", settings.user, settings.group)
    finally:
        os.close(fd)


def _make_way(spec: str, path: str, place: Place) -> None:
    """Remove the socket of an earlier server; raise ConfigError for anything else there."""
    if not _is_stale(spec, path, place):
        return
    try:
        with suppress(FileNotFoundError):
            place.unlink()
    except OSError as error:
        raise ConfigError(
            f"bind = {spec!r}: no server listens at {path} any more, but the old socket cannot be removed: "
            f"{error.strerror}. Remove it by hand (rm {path})."
        ) from error


def _is_stale(spec: str, path: str, place: Place) -> bool:
    """Return whether an earlier server has left a socket there; raise ConfigError for anything else there."""
    try:
        status = place.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"bind = {spec!r}: {path} exists and is not a socket; it is left alone. Choose another path, or "
            f"remove it by hand (rm {path})."
        )
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)  # a live server with a full backlog answers EAGAIN instead of nothing
        probe.connect(path)
    except ConnectionRefusedError:
        return True
    except FileNotFoundError:
        return False
    except OSError as error:
        # EPROTOTYPE: another type of socket, such as SOCK_DGRAM, is bound there.
        if error.errno in (errno.EAGAIN, errno.EPROTOTYPE, errno.EINPROGRESS):
            raise _unix_in_use(spec, path) from None
        raise ConfigError(
            f"bind = {spec!r}: there is a socket at {path}, and whether a server listens there cannot be "
            f"found out: {error.strerror}. Start it as the socket's owner, or choose another path."
        ) from error
    else:
        raise _unix_in_use(spec, path)
    finally:
        probe.close()


def _unix_in_use(spec: str, path: str) -> ConfigError:
    owner = owner_of_path(path)
    by = f"{owner} listens there" if owner else "another server listens there"
    return AddressInUse(f"bind = {spec!r}: the socket {path} is in use: {by}. Stop it, or choose another path.")


def unix_error(spec: str, path: str, error: OSError) -> ConfigError:
    """Return the ConfigError for a socket that could not be made."""
    directory = os.path.dirname(path)
    if error.errno == errno.EADDRINUSE:
        return _unix_in_use(spec, path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ConfigError(
            f"bind = {spec!r}: the directory {directory} does not exist. Create it (mkdir -p {directory}), or "
            "choose another path."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(
            f"bind = {spec!r}: no permission to make a socket in {directory} as user id {os.geteuid()}: "
            f"{error.strerror}. Choose a directory that it may write to."
        )
    return ConfigError(f"bind = {spec!r}: cannot listen at {path}: {error.strerror}.")
