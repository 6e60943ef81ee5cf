"""File modes in text are octal, as of umask(1) and chmod(1); a number in a Python file is the mode itself."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from wsgiserv.config.loader import load
from wsgiserv.errors import ConfigError

NOBODY = pwd.getpwnam("nobody")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="the default group of root's workers")


@pytest.mark.parametrize("name", ["umask", "socket_mode"])
@pytest.mark.parametrize(
    ("text", "mode"),
    [("77", 0o77), ("077", 0o77), ("0077", 0o77), ("0o77", 0o77), ("0O77", 0o77), (" 7 ", 7), ("0", 0), ("777", 0o777)],
)
def test_text_is_octal(tmp_path: Path, name: str, text: str, mode: int) -> None:
    flag = f"--{name.replace('_', '-')}"
    assert getattr(load([flag, text], {}, str(tmp_path)).settings, name) == mode
    assert getattr(load([], {"GUNICORN_CMD_ARGS": f"{flag} '{text}'"}, str(tmp_path)).settings, name) == mode
    (tmp_path / "conf.py").write_text(f"{name} = {text!r}")
    assert getattr(load(["-c", "conf.py"], {}, str(tmp_path)).settings, name) == mode


@pytest.mark.parametrize("name", ["umask", "socket_mode"])
@pytest.mark.parametrize(("number", "mode"), [("77", 77), ("0o77", 0o77), ("0", 0), ("0x1f", 0x1F)])
def test_a_number_is_itself(tmp_path: Path, name: str, number: str, mode: int) -> None:
    (tmp_path / "conf.py").write_text(f"{name} = {number}")
    assert getattr(load(["-c", "conf.py"], {}, str(tmp_path)).settings, name) == mode


@pytest.mark.parametrize("name", ["umask", "socket_mode"])
@pytest.mark.parametrize("text", ["78", "0x1f", "0b11", "-1", "1000", "7.0", "u=rwx", "0o", "7_7", "²"])
def test_anything_else_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} = .* is not accepted"):
        load([f"--{name.replace('_', '-')}={text}"], {}, str(tmp_path))


@as_root
def test_the_group_is_the_users(tmp_path: Path) -> None:
    def loaded(*args: str) -> tuple[int, int, bool, str]:
        found = load(args, {}, str(tmp_path))
        settings = found.settings
        return settings.user, settings.group, settings.initgroups, found.sources["group"]

    assert loaded() == (0, os.getegid(), True, "default")
    assert loaded("-u", "nobody") == (NOBODY.pw_uid, NOBODY.pw_gid, True, "the primary group of nobody")
    assert loaded("-u", "nobody", "-g", "1", "--no-initgroups")[:3] == (NOBODY.pw_uid, 1, False)
    assert loaded("-u", "root")[:2] == (0, os.getegid())
    assert loaded("-u", "54321")[:2] == (54321, 65534)
    assert loaded("-u", "54321", "-g", "54321")[:2] == (54321, 54321)
