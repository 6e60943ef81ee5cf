"""The rule: every name and flag of gunicorn is supported, or accepted with one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import check_each
from gunicorn.config import KNOWN_SETTINGS
from server import bare_environment

from wsgiserv.config.argv import parse
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.loader import load
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError

ALIASES = {alias: name for name, setting in SETTINGS.items() for alias in setting.aliases}

# Values that gunicorn accepts by flag, for its settings that are supported here; "5" for the others.
VALUES = {
    "bind": "127.0.0.1:5",
    "worker_class": "gthread",
    "reload_engine": "poll",
    "reload_extra_files": "*.html",
    "chdir": "/",
    "raw_env": "A=B",
    "user": "0",
    "group": "0",
    "umask": "022",
    "forwarded_allow_ips": "*",
    "proxy_protocol": "v1",
    "proxy_allow_ips": "10.0.0.0/8",
    "protocol": "uwsgi",
    "uwsgi_allow_ips": "10.0.0.0/8",
    "loglevel": "debug",
    "logger_class": "shop.logs.Logger",
    "header_map": "refuse",
    "root_path": "/x",
    "cert_reqs": "1",
    "keyfile": "",
    "paste": "",
    "raw_paste_global_conf": "A=B",
    "config": os.devnull,
}

BY_FLAG = [(known, flag) for known in KNOWN_SETTINGS for flag in known.cli or ()]


def test_the_list_is_gunicorns() -> None:
    assert len(KNOWN_SETTINGS) > 100


def directory_of(known: Any, tmp_path: Path) -> Path:
    directory = tmp_path / known.name
    directory.mkdir()
    return directory


def test_every_name_is_supported_or_answered(tmp_path: Path) -> None:
    def check(known: Any) -> None:
        name = known.name
        ours = ALIASES.get(name, name)
        assert (ours in SETTINGS) != (name in GUNICORN_ONLY)
        if ours in SETTINGS:
            if known.default is not None and name not in ("config", "chdir"):
                SETTINGS[ours].parse(known.default)  # gunicorn's own default is a value here too
            return
        directory = directory_of(known, tmp_path)
        gun = directory / "gun.py"
        gun.write_text(f"def {name}(*args): pass" if callable(known.default) else f"{name} = 'other'")
        (notice,) = load(["-c", str(gun)], {}, str(directory)).notices
        assert notice.startswith(f"WS1033 {name} (")
        assert "gun.py line 1" in notice
        assert GUNICORN_ONLY[name].instead in notice
        assert "\n" not in notice

    check_each(((known.name, known) for known in KNOWN_SETTINGS), check)


def test_gunicorns_default_gets_no_line(tmp_path: Path) -> None:
    def check(known: Any) -> None:
        directory = directory_of(known, tmp_path)
        gun = directory / "gun.py"
        value = int(known.default) if known.name == "ssl_version" else known.default
        gun.write_text(f"{known.name} = {value!r}")
        assert load(["-c", str(gun)], {}, str(directory)).notices == []

    concerned = (
        (known.name, known)
        for known in KNOWN_SETTINGS
        if known.name in GUNICORN_ONLY and not callable(known.default) and known.name != "control_socket"
    )
    check_each(concerned, check)


def test_every_flag_is_supported_or_answered(tmp_path: Path) -> None:
    def check(case: tuple[Any, str]) -> None:
        known, flag = case
        without_value = known.action in ("store_true", "store_const")
        value = VALUES.get(known.name, "5")
        argv = [flag] if without_value else [flag, value]
        # The application behind the flag shows that the flag has taken its own value only.
        settings, _, notices, *_ = load([*argv, "hello:app"], {}, str(tmp_path))
        assert settings.wsgi_app == "hello:app"
        if known.name in GUNICORN_ONLY:
            if without_value and known.default is True:
                assert notices == []
                return
            (notice,) = notices
            assert notice.startswith(f"WS1033 {flag} (")
            assert GUNICORN_ONLY[known.name].instead in notice
        else:
            assert notices == []
            assert known.name in {given.name for given in parse(argv).given}

    check_each(((flag, (known, flag)) for known, flag in BY_FLAG), check)


def test_proxy_protocol_may_stand_without_a_value(tmp_path: Path) -> None:
    loaded = load(["hello:app", "--proxy-protocol"], {}, str(tmp_path))
    assert loaded.settings.wsgi_app == "hello:app"
    assert loaded.settings.proxy_protocol == "auto"
    assert loaded.notices == []


def test_a_function_of_the_users_own_under_a_foreign_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text("def debug(text): print(text)\ndef http_parser(): pass\n")
    assert load(["-c", "gun.py"], {}, str(tmp_path)).notices == []


FIRST = """\
import os
bind = '127.0.0.1:5000'
workers = 4
backlog = 2048
worker_class = "sync"
debug = True
proc_name = 'gunicorn.proc'
pidfile = '/tmp/gunicorn.pid'
logfile = '/var/log/gunicorn/debug.log'
loglevel = 'debug'
"""

SECOND = """\
import os
import gevent.monkey
gevent.monkey.patch_all()
import multiprocessing
debug = True
loglevel = 'debug'
bind = '0.0.0.0:8800'
pidfile = 'log/gunicorn.pid'
logfile = 'log/debug.log'
workers = multiprocessing.cpu_count() * 2 + 1
worker_class = 'gunicorn.workers.ggevent.GeventWorker'
x_forwarded_for_header = 'X-FORWARDED-FOR'
"""


def test_the_first_file_of_the_field(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text(FIRST)
    settings, sources, notices, *_ = load(["-c", "gun.py"], {}, str(tmp_path))
    assert settings.bind == ("127.0.0.1:5000",)
    assert (settings.workers, settings.backlog, settings.worker_class) == (4, 2048, "sync")
    assert (settings.proc_name, settings.pidfile) == ("gunicorn.proc", "/tmp/gunicorn.pid")
    assert settings.loglevel == "debug"
    assert sources["workers"] == "gun.py"
    debug, logfile = notices
    assert debug.startswith("WS1033 debug (gun.py line 6) is ignored")
    assert (
        logfile == "WS1037 logfile (gun.py line 9) is gunicorn's old name of errorlog, and is taken as that: rename it"
    )
    assert settings.errorlog == "/var/log/gunicorn/debug.log"


SHOW = """\
import multiprocessing, os, sys
from wsgiserv.config.loader import load
loaded = load(["-c", "gun.py"], os.environ)
settings = loaded.settings
assert settings.worker_class == "gevent", settings
assert settings.workers == multiprocessing.cpu_count() * 2 + 1
assert settings.bind == ("0.0.0.0:8800",)
assert settings.pidfile == "log/gunicorn.pid"
print("\\n".join(notice.split(" ")[1] for notice in loaded.notices))
"""


def test_the_second_file_of_the_field(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text(SECOND)
    environ = bare_environment()
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["debug", "logfile", "x_forwarded_for_header"]


def test_the_old_name_of_the_error_log(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text("logfile = '-'\nerrorlog = 'e.log'\n")
    settings, _, notices, *_ = load(["-c", "gun.py"], {}, str(tmp_path))
    assert settings.errorlog == "e.log"
    [notice] = notices
    assert notice.startswith("WS1036 logfile (gun.py line 1) is ignored")
    (tmp_path / "gun.py").write_text("logfile = 5\n")
    with pytest.raises(ConfigError, match=r"errorlog = 5 \(gun.py line 1\)"):
        load(["-c", "gun.py"], {}, str(tmp_path))
    (tmp_path / "gun.py").write_text("def logfile(): pass\n")
    assert load(["-c", "gun.py"], {}, str(tmp_path)).notices == []
    (tmp_path / "gun.py").write_text("logfile = 'old.log'\n")
    settings = load(["-c", "gun.py", "--error-logfile", "flag.log"], {}, str(tmp_path)).settings
    assert settings.errorlog == "flag.log"


# Above the largest: gunicorn accepts any number

TOO_LARGE = {
    "backlog": (10**10, 2**31 - 1),
    "worker_connections": (10**10, 2**31 - 1),
    "max_requests": (10**10, 2**31 - 1),
    "max_requests_jitter": (10**10, 2**31 - 1),
    "timeout": (10**9, 366 * 86400),
    "graceful_timeout": (10**9, 366 * 86400),
    "keepalive": (10**9, 366 * 86400),
    "limit_request_line": (10**8, 1 << 20),
    "limit_request_fields": (10**6, 32768),
    "limit_request_field_size": (10**8, 1 << 20),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_huge_limit_of_gunicorns_is_the_largest_with_a_line(tmp_path: Path, name: str) -> None:
    given, largest = TOO_LARGE[name]
    (tmp_path / "gun.py").write_text(f"{name} = {given}\n")
    for argv, place in ((["-c", "gun.py"], "gun.py line 1"), ([SETTINGS[name].flags[-1], str(given)], "command line")):
        loaded = load(argv, {}, str(tmp_path))
        assert getattr(loaded.settings, name) == largest
        [notice] = loaded.notices
        assert notice.startswith(f"WS1030 {name} = ")
        assert place in notice
        assert "the largest is " in notice


@pytest.mark.parametrize(
    "name",
    [
        "workers",
        "threads",
        "workers_min",
        "reload_surge",
        "header_timeout",
        "umask",
        "cert_reqs",
        "limit_request_body",
        "scale_window",
    ],
)
def test_other_upper_limits_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"the largest is \d|at most|to 1 hour"):
        load([SETTINGS[name].flags[-1], "7" * 30], {}, str(tmp_path))


def mounted(tmp_path: Path, *argv: str, **environ: str) -> tuple[str, str, str]:
    settings, sources, *_ = load(["hello:app", *argv], environ, str(tmp_path))
    return settings.root_path, settings.root_path_outside, sources["root_path"]


def test_script_name_is_the_default_of_the_root_path(tmp_path: Path) -> None:
    assert mounted(tmp_path) == ("", "serve", "default")
    by_environment = ("/shop", "refuse", "SCRIPT_NAME in the environment")
    assert mounted(tmp_path, SCRIPT_NAME="/shop") == by_environment
    assert mounted(tmp_path, "-e", "A=1", SCRIPT_NAME="/shop/") == by_environment
    # raw_env is put into the environment, and so goes before what is there.
    by_raw_env = ("/x", "refuse", "SCRIPT_NAME in raw_env")
    assert mounted(tmp_path, "-e", "SCRIPT_NAME=/x", SCRIPT_NAME="/shop") == by_raw_env
    assert mounted(tmp_path, "-e", "SCRIPT_NAME=", SCRIPT_NAME="/shop") == ("", "serve", "default")
    assert mounted(tmp_path, "--root-path", "/y", SCRIPT_NAME="/shop")[:2] == ("/y", "serve")
    assert mounted(tmp_path, "--root-path-outside", "serve", SCRIPT_NAME="/shop")[:2] == ("/shop", "serve")


def test_a_script_name_that_no_path_begins_with_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"WS1010 root_path = 'shop' \(SCRIPT_NAME in the environment\).*slash"):
        load(["hello:app"], {"SCRIPT_NAME": "shop"}, str(tmp_path))


def test_preload_in_without_preload_app_is_told(tmp_path: Path) -> None:
    [notice] = load(["hello:app", "--preload-in", "master"], {}, str(tmp_path)).notices
    assert notice.startswith("WS1092 preload_in = 'master' (--preload-in on the command line) has no effect")
    assert load(["hello:app", "--preload-in", "master", "--preload"], {}, str(tmp_path)).notices == []


def test_a_flags_name_in_a_file_suggests_its_setting(tmp_path: Path) -> None:
    (tmp_path / "gun.py").write_text("preload = True\nlog_file = 'x'\nkeep_alive = 5\nname = 'own'\nenv = {}\n")
    notices = load(["-c", "gun.py", "hello:app"], {}, str(tmp_path)).notices
    assert [notice.partition(" is not a setting and is ignored. ")[::2] for notice in notices] == [
        ("WS1035 preload (gun.py line 1)", "Did you mean preload_app?"),
        ("WS1035 log_file (gun.py line 2)", "Did you mean errorlog?"),
        ("WS1035 keep_alive (gun.py line 3)", "Did you mean keepalive?"),
    ]
