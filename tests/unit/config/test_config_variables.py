"""The rule: platform variables < WSGISERV_<NAME> < file < GUNICORN_CMD_ARGS < WSGISERV_CMD_ARGS < flags."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsgiserv.config.environment import variables_of
from wsgiserv.config.loader import Loaded, collect, load
from wsgiserv.config.present import config_text, help_text
from wsgiserv.config.setting import Section
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError


@pytest.fixture(autouse=True)
def _same_import_state() -> Iterator[None]:
    path = list(sys.path)
    yield
    sys.path[:] = path
    sys.modules.pop("__config__", None)


# ---- precedence ------------------------------------------------------------------------------------------

# A setting, its flag, its platform's variable; and for each source another value.
_RANKED = {
    "workers": ("--workers", "WEB_CONCURRENCY", ["1", "2", "3", "4", "5", "6"]),
    "bind": ("--bind", "PORT", ["5001", ":5002", ":5003", ":5004", ":5005", ":5006"]),
    "forwarded_allow_ips": ("--forwarded-allow-ips", "FORWARDED_ALLOW_IPS", [f"10.0.0.{n}" for n in range(1, 7)]),
    "timeout": ("--timeout", "", ["", "2", "3", "4", "5", "6"]),
    "worker_class": ("--worker-class", "", ["", "sync", "threads", "sync", "threads", "sync"]),
}


def run(directory: Path, name: str, ranks: tuple[int, ...]) -> Loaded:
    """Load with the sources of these ranks, 0 the lowest."""
    flag, platform, values = _RANKED[name]
    environ, argv = {}, []
    for rank in ranks:
        value = values[rank]
        if rank == 2:
            (directory / "gun.py").write_text(f"{name} = {value!r}\n")
            argv += ["-c", "gun.py"]
        elif rank == 5:
            argv += [flag, value]
        elif rank < 2:
            environ[platform if rank == 0 else f"WSGISERV_{name.upper()}"] = value
        else:
            environ[f"{'GUNICORN' if rank == 3 else 'WSGISERV'}_CMD_ARGS"] = f"{flag} {value}"
    return load(argv, environ, str(directory))


@pytest.mark.parametrize("name", _RANKED)
def test_of_each_two_sources_the_higher_wins(tmp_path: Path, name: str) -> None:
    flag, platform, values = _RANKED[name]
    places = [
        f"{platform} in the environment",
        f"WSGISERV_{name.upper()} in the environment",
        "gun.py",
        f"{flag} in GUNICORN_CMD_ARGS",
        f"{flag} in WSGISERV_CMD_ARGS",
        f"{flag} on the command line",
    ]
    first = 0 if platform else 1
    for ranks in [*itertools.combinations(range(first, 6), 2), tuple(range(first, 6))]:
        loaded = run(tmp_path, name, ranks)
        value = values[ranks[-1]]
        expected = SETTINGS[name].parse(f"0.0.0.0:{value}" if value == "5001" else value)
        assert (getattr(loaded.settings, name), loaded.sources[name]) == (expected, places[ranks[-1]]), ranks


def test_sendfile_is_a_default_too(tmp_path: Path) -> None:
    assert not load([], {"SENDFILE": "no"}, str(tmp_path)).settings.sendfile
    assert load([], {"SENDFILE": "y", "WSGISERV_SENDFILE": ""}, str(tmp_path)).settings.sendfile
    assert load([], {"SENDFILE": "no", "WSGISERV_SENDFILE": "yes"}, str(tmp_path)).settings.sendfile


# ---- unusable variables of platforms -----------------------------------------------------------------------


@pytest.mark.parametrize("port", ["http", "0x50", "65536", "-1", "80 81", "tcp://10.0.0.1:80"])
@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        (["-b", "127.0.0.1:9"], {}),
        (["-c", "gun.py"], {}),
        ([], {"WSGISERV_BIND": "127.0.0.1:9"}),
        ([], {"WSGISERV_CMD_ARGS": "-b 127.0.0.1:9"}),
        ([], {"GUNICORN_CMD_ARGS": "-b 127.0.0.1:9"}),
    ],
)
def test_an_unusable_port_is_ignored_with_a_line_where_something_else_binds(
    tmp_path: Path, argv: list[str], environ: dict[str, str], port: str
) -> None:
    (tmp_path / "gun.py").write_text("bind = '127.0.0.1:9'\n")
    loaded = load(argv, {**environ, "PORT": port}, str(tmp_path))
    assert loaded.settings.bind == ("127.0.0.1:9",)
    [notice] = [notice for notice in loaded.notices if "WS1060" in notice]
    assert "PORT in the environment is ignored" in notice
    assert repr(port)[1:-1] in notice
    assert f"127.0.0.1:9',) ({loaded.sources['bind']})" in notice


@pytest.mark.parametrize("port", ["http", "65536", "-1"])
def test_with_nothing_else_it_is_a_fault(tmp_path: Path, port: str) -> None:
    with pytest.raises(ConfigError, match=f"WS1010 bind = '0.0.0.0:{port}' .PORT in the environment. is not accepted"):
        load([], {"PORT": port}, str(tmp_path))


@pytest.mark.parametrize(
    ("variable", "argv"),
    [
        ("WEB_CONCURRENCY", ["-w", "2"]),
        ("FORWARDED_ALLOW_IPS", ["--forwarded-allow-ips", "*"]),
        ("SENDFILE", ["--sendfile"]),
    ],
)
def test_the_other_variables_of_platforms_are_treated_alike(tmp_path: Path, variable: str, argv: list[str]) -> None:
    [notice] = load(argv, {variable: "nonsense"}, str(tmp_path)).notices
    assert f"WS1060 {variable} in the environment is ignored" in notice
    with pytest.raises(ConfigError, match=f"'nonsense' .{variable} in the environment. is not accepted"):
        load([], {variable: "nonsense"}, str(tmp_path))


def test_a_usable_port_is_not_mentioned_where_something_else_binds(tmp_path: Path) -> None:
    assert load(["-b", ":9"], {"PORT": "80"}, str(tmp_path)).notices == []


# ---- every setting --------------------------------------------------------------------------------------------

_WITH_VARIABLE = [name for name, setting in SETTINGS.items() if setting.section is not Section.HOOKS]
# Where a text of the kind alone would be refused: other settings, files or the host decide.
_SAMPLES = {
    "bind": "127.0.0.1:9000 unix:/run/x",
    "config": "other.py",
    "chdir": "sub",
    "env_file": "a.env 'b c.env'",
    "forwarded_headers": "for,proto",
    "group": "0",
    "logconfig_dict": json.dumps({"version": 1}),
    "paste": "app.ini#shop",
    "raw_env": "A=1 'B=x y'",
    "raw_paste_global_conf": "a=1 'b=x y'",
    "readiness_path": "/-/ready",
    "reload_extra_files": "t/*.html 'u v/*.txt'",
    "root_path": "/shop",
    "secure_scheme_headers": json.dumps({"X-Ssl": "1"}),
    "sni_certificates": "shop.example=a.pem,a.key *.example=b.pem",
    "uwsgi_allow_ips": "10.0.0.0/8,::1",
    "user": "0",
    "warmup": "/ /search?q=a",
    "workers_max": "7",
    "workers_min": "2",
    "worker_class": "threads",
}
_BESIDES = {
    "workers_max": {"WSGISERV_WORKERS_MIN": "1"},
    "workers_min": {"WSGISERV_WORKERS_MAX": "9"},
    "wsgi_websocket": {"WSGISERV_WORKER_CLASS": "threads"},
}


def sample(name: str) -> str:
    """Return a text of the setting's kind that is not its default."""
    setting = SETTINGS[name]
    others = [str(not setting.default).lower()] if setting.kind.arity == "none" else []
    if setting.metavar in ("SECONDS", "N", "BYTES"):
        others.append("2")
    for text in (_SAMPLES.get(name), *others, *setting.kind.choices[::-1], "/x/y", "some.words", "10.0.0.7", "0o27"):
        if text is None:
            continue
        try:
            if name in _SAMPLES or setting.parse(text) != setting.default:
                return text
        except (ValueError, TypeError):
            continue
    raise AssertionError(f"no sample for {name}")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("other.py", "app.ini"):
        (tmp_path / name).write_text("")
    for name in ("a.env", "b c.env"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize("name", _WITH_VARIABLE)
def test_every_setting_has_a_variable(place: Path, name: str) -> None:
    text, variable = sample(name), f"WSGISERV_{name.upper()}"
    loaded = collect([], {**_BESIDES.get(name, {}), variable: f" {text} "}, str(place))
    value, before = getattr(loaded.settings, name), collect([], {}, str(place)).settings
    assert value != getattr(before, name) or name in ("user", "group")
    if name not in ("keyfile", "sni_certificates"):  # which want a certificate
        assert loaded.faults == []
    assert loaded.sources[name].startswith(f"{variable} in the environment")
    assert f"${variable}" in help_text(all_settings=True).replace(",", "").split()
    # As the flag reads it, one value at a time.
    flags = [flag for flag in SETTINGS[name].flags if flag.startswith("--")]
    if flags and SETTINGS[name].kind.arity == "one":
        besides = _BESIDES.get(name, {})
        assert getattr(collect([flags[0], text], besides, str(place)).settings, name) == value


def test_a_hook_has_no_variable_and_the_notice_says_why(tmp_path: Path) -> None:
    for name, setting in SETTINGS.items():
        assert bool(variables_of(setting)) == (setting.section is not Section.HOOKS), name
    [notice] = load([], {"WSGISERV_POST_FORK": "os.getpid"}, str(tmp_path)).notices
    assert "WS1063 WSGISERV_POST_FORK in the environment" in notice
    assert "define post_fork in a configuration file" in notice


def test_no_variable_stands_for_two_settings() -> None:
    names = [variable for setting in SETTINGS.values() for variable in variables_of(setting)]
    assert len(names) == len(set(names))
    assert not {"WSGISERV_CMD_ARGS", "WSGISERV_UPGRADE"} & set(names)


@pytest.mark.parametrize(
    ("variable", "text", "name"),
    [
        ("WSGISERV_TMP_UPLOAD_DIR", "/x", "spool_dir"),
        ("WSGISERV_LOG_LEVEL", "debug", "loglevel"),
        ("WSGISERV_PID", "/x", "pidfile"),
        ("WSGISERV_ACCESS_LOGFILE", "-", "accesslog"),
        ("WSGISERV_KEEP_ALIVE", "7", "keepalive"),
        ("WSGISERV_PRELOAD", "1", "preload_app"),
    ],
)
def test_aliases_and_long_flags_are_names_too(tmp_path: Path, variable: str, text: str, name: str) -> None:
    loaded = load([], {variable: text}, str(tmp_path))
    assert loaded.sources[name] == f"{variable} in the environment"
    assert getattr(loaded.settings, name) == SETTINGS[name].parse(text)


def test_the_settings_own_name_wins_over_an_alias(tmp_path: Path) -> None:
    for environ in (
        {"WSGISERV_SPOOL_DIR": "/own", "WSGISERV_TMP_UPLOAD_DIR": "/alias"},
        {"WSGISERV_TMP_UPLOAD_DIR": "/alias", "WSGISERV_SPOOL_DIR": "/own"},
    ):
        assert load([], environ, str(tmp_path)).settings.spool_dir == "/own"


def test_empty_variables_are_as_not_set(tmp_path: Path) -> None:
    environ = {variable: " " for setting in SETTINGS.values() for variable in variables_of(setting)}
    loaded = load([], environ, str(tmp_path))
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.notices == []


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("WSGISERV_WORKERS", "lots", ["WS1010 workers = 'lots'", "WSGISERV_WORKERS in the environment", "Accepted: "]),
        ("WSGISERV_RELOAD", "maybe", ["WS1010 reload = 'maybe'", "WSGISERV_RELOAD in the environment"]),
        ("WSGISERV_LOG_LEVEL", "wanring", ["loglevel", "WSGISERV_LOG_LEVEL", "Did you mean 'warning'"]),
        ("WSGISERV_BIND", ":1,:2", ["bind", "WSGISERV_BIND", "separated by blanks"]),
        ("WSGISERV_BIND", "':1", ["WS1068 bind", "WSGISERV_BIND", "No closing quotation"]),
        ("WSGISERV_LOGCONFIG_DICT", "{", ["WS1068 logconfig_dict", "WSGISERV_LOGCONFIG_DICT", "JSON"]),
        ("WSGISERV_SECURE_SCHEME_HEADERS", "[]", ["WS1068 secure_scheme_headers", "JSON object"]),
    ],
)
def test_a_fault_names_the_variable(tmp_path: Path, variable: str, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load([], {variable: text}, str(tmp_path))
    [fault] = caught.value.faults
    for word in words:
        assert word in fault


def test_a_faulty_variable_is_told_though_a_higher_source_gives_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="WSGISERV_WORKERS in the environment"):
        load(["-w", "2"], {"WSGISERV_WORKERS": "lots"}, str(tmp_path))


def test_a_variable_names_the_configuration_file_below_the_flags(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("workers = 4\n")
    (tmp_path / "b.py").write_text("workers = 5\n")
    (tmp_path / "wsgiserv.conf.py").write_text("workers = 6\n")
    loaded = load([], {"WSGISERV_CONFIG": "a.py"}, str(tmp_path))
    assert (loaded.settings.workers, loaded.config_path) == (4, str(tmp_path / "a.py"))
    assert loaded.sources["config"] == "WSGISERV_CONFIG in the environment"
    assert load(["-c", "b.py"], {"WSGISERV_CONFIG": "a.py"}, str(tmp_path)).settings.workers == 5


@pytest.mark.parametrize(
    ("file", "patched"),
    [
        ("", True),
        ("worker_class = 'sync'", False),
        ("worker_class = 'sy' + 'nc'", False),
        ("from other import *", False),
        ("worker_class = 'gevent'", True),
    ],
)
def test_gevent_comes_before_the_files_imports_where_the_variable_decides(
    tmp_path: Path, file: str, patched: bool
) -> None:
    (tmp_path / "gun.py").write_text(file)
    (tmp_path / "other.py").write_text("worker_class = 'sync'")
    calls: list[int] = []
    environ = {"WSGISERV_WORKER_CLASS": "gevent"}
    try:
        collect(["-c", "gun.py"], environ, str(tmp_path), before_gevent=lambda: calls.append(1))
    finally:
        sys.modules.pop("other", None)
    assert bool(calls) == patched


# ---- unknown variables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("WSGISERV_WROKERS", "WSGISERV_WORKERS"),
        ("WSGISERV_TIMOUT", "WSGISERV_TIMEOUT"),
        ("WSGISERV_CMD_ARG", "WSGISERV_CMD_ARGS"),
        ("WSGISERV_PORT", "WSGISERV_BIND"),
        ("WSGISERV_APP", "WSGISERV_WSGI_APP"),
        ("WSGISERV_QUITE_ELSE", ""),
    ],
)
def test_an_unknown_variable_gets_one_line_with_the_nearest_name(tmp_path: Path, variable: str, near: str) -> None:
    [notice] = load([], {variable: "8"}, str(tmp_path)).notices
    assert f"WS1063 {variable} in the environment" in notice
    assert (f"Did you mean {near}?" in notice) if near else ("Did you mean" not in notice)


def test_variables_with_another_use_get_none(tmp_path: Path) -> None:
    environ = dict.fromkeys(
        ("WSGISERV_UPGRADE", "WSGISERV_REQUIRE_SYSTEM", "WSGISERV_TEST_X", "WSGISERV_TESTS_SPAWN", "XWSGISERV_Y"), "1"
    )
    # Of Kubernetes, for services named wsgiserv and wsgiserv-web.
    environ |= {
        "WSGISERV_SERVICE_HOST": "10.0.0.1",
        "WSGISERV_SERVICE_PORT": "80",
        "WSGISERV_SERVICE_PORT_HTTP": "80",
        "WSGISERV_PORT": "tcp://10.0.0.1:80",
        "WSGISERV_PORT_80_TCP": "tcp://10.0.0.1:80",
        "WSGISERV_PORT_80_TCP_PROTO": "tcp",
        "WSGISERV_PORT_80_TCP_PORT": "80",
        "WSGISERV_PORT_80_TCP_ADDR": "10.0.0.1",
        "WSGISERV_WEB_SERVICE_HOST": "10.0.0.1",
        "WSGISERV_WEB_PORT": "tcp://10.0.0.1:80",
    }
    loaded = load([], environ, str(tmp_path))
    assert loaded.notices == []
    assert set(loaded.sources.values()) == {"default"}


def test_a_variable_of_a_setting_that_only_gunicorn_has_gets_its_advice(tmp_path: Path) -> None:
    [notice] = load([], {"WSGISERV_HTTP_PARSER": "fast"}, str(tmp_path)).notices
    assert "WS1033 WSGISERV_HTTP_PARSER (in the environment) is ignored: " in notice


def test_print_config_names_the_variable(tmp_path: Path) -> None:
    loaded: Any = load([], {"WSGISERV_TIMEOUT": "2m"}, str(tmp_path))
    [row] = [line for line in config_text(loaded.settings, loaded.sources).splitlines() if line.startswith("timeout ")]
    assert row.split(" = ")[1].split("#") == ["120".ljust(45), " WSGISERV_TIMEOUT in the environment"]
