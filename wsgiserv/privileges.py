"""The user, the groups and the file mode mask that workers run with.

Owns: what `user`, `group`, `initgroups` and `umask` do to a process.
Must not know: who starts the process, what it does afterwards.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from wsgiserv.errors import ConfigError

__all__ = ["PrivilegeSettings", "acting_as", "check_privileges", "drop_privileges"]


class PrivilegeSettings(Protocol):
    """The settings that are read here."""

    @property
    def user(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def initgroups(self) -> bool: ...
    @property
    def umask(self) -> int: ...


def check_privileges(settings: PrivilegeSettings) -> None:
    """Raise ConfigError when this process may not become `user` and `group`. Called by the master at start."""
    euid = os.geteuid()
    if euid == 0:
        return
    for name, wanted, ours in (("user", settings.user, euid), ("group", settings.group, os.getegid())):
        # A process may always switch to a group that it is in.
        if wanted != ours and not (name == "group" and wanted in os.getgroups()):
            raise ConfigError(
                f"{name} = {wanted}: only root can run workers as another {name}, and this process runs as "
                f"{name} id {ours}. Start it as root (or let systemd's User= and Group= do it), or leave "
                f"{name} out."
            )


def drop_privileges(settings: PrivilegeSettings) -> None:
    """Become `user` and `group` for good, and set `umask`. Called in a worker just after the fork.

    Root's supplementary groups do not stay with another user: with `initgroups` they become that user's
    groups, else the one `group` (gunicorn leaves root's groups there). `umask` 0, which is gunicorn's
    default, leaves the mask that the server was started with: a worker that writes files everybody may
    change is nobody's wish.

    Raises ConfigError when the switch is not allowed.
    """
    uid, gid = settings.user, settings.group
    try:
        if os.geteuid() == 0 and (uid != 0 or gid != os.getegid()):
            name = _user_name(uid) if settings.initgroups else None
            if name is not None:
                os.initgroups(name, gid)
            else:
                os.setgroups([gid])
        if gid != os.getegid() or gid != os.getgid():
            os.setgid(gid)
        if uid != os.geteuid() or uid != os.getuid():
            os.setuid(uid)
    except OSError as error:
        raise ConfigError(
            f"user = {uid}, group = {gid}: a worker cannot switch to them: {error.strerror}. Start the server "
            "as root, or leave user and group out."
        ) from error
    if settings.umask:
        os.umask(settings.umask)


@contextmanager
def acting_as(settings: PrivilegeSettings) -> Iterator[None]:
    """Open files as the workers would, when this process is root. Called by the master, which is one thread.

    A worker may have put a symbolic link in a log's place, and root would follow it to anywhere.
    Raises OSError when the switch is not allowed.
    """
    if os.geteuid() != 0 or settings.user == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups([settings.group])
        os.setegid(settings.group)
        os.seteuid(settings.user)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None  # a number without an entry (containers): it has no groups to take
