"""user, group, initgroups and umask: dropped for good, in a child process of root's."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from wsgiserv.errors import ConfigError
from wsgiserv.privileges import check_privileges, drop_privileges

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

CHILD = """
import json, os, sys
from types import SimpleNamespace
from wsgiserv.errors import ConfigError
from wsgiserv.privileges import check_privileges, drop_privileges
settings = SimpleNamespace(**json.loads(sys.argv[1]))
os.umask(0o027)
check_privileges(settings)
drop_privileges(settings)
said = {"uids": os.getresuid(), "gids": os.getresgid(), "groups": sorted(os.getgroups()), "umask": os.umask(0)}
try:
    os.setuid(0)
    said["back"] = True
except OSError:
    said["back"] = False
try:
    check_privileges(SimpleNamespace(user=settings.user + 1, group=settings.group))
except ConfigError as error:
    said["error"] = str(error)
print(json.dumps(said))
"""


def settings(**values: Any) -> Any:
    return SimpleNamespace(**{"user": os.geteuid(), "group": os.getegid(), "initgroups": False, "umask": 0, **values})


def dropped(**values: Any) -> dict[str, Any]:
    text = json.dumps(vars(settings(**values)))
    done = subprocess.run([sys.executable, "-c", CHILD, text], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@as_root
def test_root_and_its_groups_are_given_up_for_good() -> None:
    found = dropped(user=65534, group=65533)
    assert found["uids"] == [65534] * 3
    assert found["gids"] == [65533] * 3
    assert found["groups"] == [65533]
    assert found["back"] is False
    assert "only root can run workers as another user" in found["error"]


@as_root
def test_initgroups_takes_the_users_groups() -> None:
    members = {name for group in grp.getgrall() for name in group.gr_mem}
    user = next((user for user in pwd.getpwall() if user.pw_uid and user.pw_name in members), None)
    if user is None:
        pytest.skip("no user of this host is in a second group")
    found = dropped(user=user.pw_uid, group=user.pw_gid, initgroups=True)
    assert found["groups"] == sorted(set(os.getgrouplist(user.pw_name, user.pw_gid)))


@as_root
def test_a_number_without_an_entry_has_no_groups_to_take() -> None:
    assert dropped(user=54321, group=54321, initgroups=True)["groups"] == [54321]


def test_umask_is_set_and_0_leaves_it() -> None:
    assert dropped(umask=0o077)["umask"] == 0o077
    assert dropped(umask=0)["umask"] == 0o027


def test_to_stay_who_one_is_needs_no_right() -> None:
    before = os.getgroups()
    check_privileges(settings())
    drop_privileges(settings())
    assert os.getgroups() == before


def test_a_switch_without_the_right_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", lambda: [1000, 44])
    check_privileges(settings(user=1000, group=44))
    with pytest.raises(ConfigError, match=r"user = 33: only root can run workers as another user"):
        check_privileges(settings(user=33, group=1000))
    with pytest.raises(ConfigError, match=r"group = 33: only root"):
        check_privileges(settings(user=1000, group=33))
