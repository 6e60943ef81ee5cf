"""The user, groups, home directory and umask of the workers."""

from __future__ import annotations

import os
import pwd
from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from wsgiserv.errors import ConfigError
from wsgiserv.safe_open import Owner, acting_as_user

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings


def root_warning(user_source: str) -> str:
    """Return the warning for workers that run as root by default; empty when none is due.

    Args:
        user_source: the source of the setting `user`; ``default`` when it is not set.
    """
    if os.geteuid() != 0 or user_source != "default":
        return ""
    return "WS1470 the workers run as root. Set user (--user www-data), or --user root to keep it so"


def set_home(settings: Settings, environ: MutableMapping[str, str]) -> None:
    """Set HOME, USER and LOGNAME for `user`, except those that `raw_env` sets; nothing when the user does not change.

    Called in a worker or zygote, before it imports the application.
    """
    uid = settings.user
    if os.geteuid() != 0 or uid == 0:
        return
    # Root's HOME is closed to the workers: libraries that look for files there (pip, matplotlib, .netrc) would fail.
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # a number without an entry (containers)
        found: dict[str, str | None] = {"HOME": "/", "USER": None, "LOGNAME": None}
    else:
        found = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    # A person who sets one of them means it.
    set_by_hand = {pair.partition("=")[0] for pair in settings.raw_env}
    for name, value in found.items():
        if name in set_by_hand:
            continue
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value


def check_privileges(settings: Settings) -> None:
    """Raise ConfigError when this process may not switch to `user` and `group`. Called by the master."""
    # In the master: a worker that cannot switch would be forked, fail and be forked again.
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


def drop_privileges(settings: Settings) -> None:
    """Switch to `user` and `group` for good, and set `umask`. Called in a worker after the fork.

    Raises ConfigError when the switch is not allowed.
    """
    # Other than gunicorn's workers, these keep none of root's supplementary groups: they get the user's own
    # (`initgroups`), or `group` alone.
    uid, gid = settings.user, settings.group
    try:
        # Groups first, then the group, then the user: each step takes the right to the one before.
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
    # 0, gunicorn's default, would make files writable for everyone: the inherited mask stays.
    if settings.umask:
        os.umask(settings.umask)


def acting_as(settings: Settings) -> AbstractContextManager[None]:
    """Act as the workers' user within the block, when this process is root. Called by the master, a single thread.

    Raises OSError when the switch is not allowed.
    """
    # A worker may have replaced a log by a symbolic link, which root would follow anywhere.
    is_same = os.geteuid() != 0 or settings.user == 0
    return nullcontext() if is_same else acting_as_user(settings.user, settings.group)


def owner_of(settings: Settings) -> Owner:
    """Return the owner of files created for the workers."""
    # By the user database, not by `initgroups`: a user who may be in a group is not safe from it.
    uid, gid = settings.user, settings.group
    name = _user_name(uid) if os.geteuid() == 0 and uid != 0 else None
    groups = () if name is None else os.getgrouplist(name, gid)
    return Owner(uid, gid, settings.umask, groups)


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None  # a number without an entry (containers): it has no groups to take
