"""The user, the groups, the home and the file mode mask that workers run with.

Owns: what `user`, `group`, `initgroups` and `umask` do to a process and its environment.
Must not know: who starts the process, what it does afterwards.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Protocol

from wsgiserv.errors import ConfigError
from wsgiserv.safe_open import Owner, acting_as_user

__all__ = [
    "HomeSettings",
    "PrivilegeSettings",
    "acting_as",
    "check_privileges",
    "drop_privileges",
    "owner_of",
    "root_warning",
    "set_home",
]


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


class HomeSettings(Protocol):
    """The settings that are read by `set_home`."""

    @property
    def user(self) -> int: ...
    @property
    def raw_env(self) -> tuple[str, ...]: ...


def root_warning(user_source: str) -> str:
    """Return the warning for workers that run as root although nobody has said so; empty where none is due.

    Args:
        user_source: where the setting `user` came from, ``default`` when nothing gave it.
    """
    if os.geteuid() != 0 or user_source != "default":
        return ""
    return "the workers run as root. Set user (--user www-data), or say that root is meant (--user root)"


def set_home(settings: HomeSettings, environ: MutableMapping[str, str]) -> None:
    """Have the environment tell of `user`: HOME, USER and LOGNAME, but for those that `raw_env` sets.

    Called before the application is imported, in a worker or zygote. Nothing where the user stays the same.
    """
    uid = settings.user
    if os.geteuid() != 0 or uid == 0:
        return
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a number without an entry (containers)
        found: dict[str, str | None] = {"HOME": "/", "USER": None, "LOGNAME": None}
    else:
        found = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    set_by_hand = {pair.partition("=")[0] for pair in settings.raw_env}
    for name, value in found.items():
        if name in set_by_hand:
            continue
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value


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
    with acting_as_user(settings.user, settings.group):
        yield


def owner_of(settings: PrivilegeSettings) -> Owner:
    """Return who the workers run as, for files that are made for them."""
    uid, gid = settings.user, settings.group
    name = _user_name(uid) if os.geteuid() == 0 and uid != 0 else None
    groups = () if name is None else os.getgrouplist(name, gid)
    return Owner(uid, gid, getattr(settings, "umask", 0), groups)


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None  # a number without an entry (containers): it has no groups to take
