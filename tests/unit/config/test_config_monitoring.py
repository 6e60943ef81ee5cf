"""The settings of syslog and statsd mean what they mean in gunicorn, whose parsers give the expected values."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config, validate_statsd_address
from gunicorn.glogging import SYSLOG_FACILITIES
from gunicorn.glogging import parse_syslog_address as parse_theirs

from wsgiserv.config.daemon_address import FACILITIES, parse_statsd_host, parse_syslog_address
from wsgiserv.config.hook_config import view_of
from wsgiserv.config.loader import collect, load
from wsgiserv.gunicorn.glogging import parse_syslog_address as parse_for_loggers


@pytest.mark.parametrize(
    "address",
    [
        *("udp://localhost:514", "udp://LOGS.example:1514", "udp://10.0.0.1", "tcp://10.0.0.1:601", "udp://[::1]:514"),
        *("tcp://[FE80::1]", "udp://", "unix:///dev/log", "unix:///dev/log#dgram", "unix:///dev/log#stream"),
    ],
)
def test_the_addresses_of_syslog_are_gunicorns(address: str) -> None:
    assert parse_for_loggers(address) == parse_theirs(address)
    kind, path, host = parse_syslog_address(address)
    types = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM, "dgram": socket.SOCK_DGRAM, "unix": None}
    assert (types[kind], path or host) == parse_theirs(address)


@pytest.mark.parametrize(
    "address",
    ["localhost", "localhost:514", "http://x:1", "udp://x:many", "udp://x:70000", "udp://[::1", "unix://", "udp://::1"],
)
def test_other_addresses_of_syslog_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_syslog_address(address)


@pytest.mark.parametrize(
    "address",
    [
        *("localhost:8125", "127.0.0.1", "STATS.example:9125", "[::1]:8125", "[::1]", "unix:///run/statsd"),
        *("unix:/run/statsd", "unix://run/statsd", "unix:8125", "tcp://127.0.0.1:1", "  localhost:8125 "),
    ],
)
def test_the_addresses_of_statsd_are_gunicorns(address: str) -> None:
    assert parse_statsd_host(address.strip()) == validate_statsd_address(address)


@pytest.mark.parametrize("raw", ["localhost:many", "::1", "127.0.0.1:99999", "unix://", ("localhost", 8125), 5])
def test_other_addresses_of_statsd_are_refused(raw: object, tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(f"statsd_host = {raw!r}\n")
    [fault] = collect(["hello:app"], {}, str(tmp_path)).faults
    assert "WS1010 statsd_host = " in str(fault)
    assert "gunicorn.conf.py line 1" in str(fault)
    assert "Accepted: 'HOST:PORT', " in str(fault)


def test_the_facilities_are_gunicorns() -> None:
    assert FACILITIES == SYSLOG_FACILITIES


_NAMES = (
    *("syslog", "syslog_addr", "syslog_prefix", "syslog_facility", "disable_redirect_access_to_syslog"),
    *("statsd_host", "statsd_prefix", "dogstatsd_tags", "enable_backlog_metric"),
)


def test_the_defaults_are_gunicorns(tmp_path: Path) -> None:
    theirs, ours = Config(), view_of(load(["hello:app"], {}, str(tmp_path)).settings)
    assert {name: getattr(ours, name) for name in _NAMES} == {name: getattr(theirs, name) for name in _NAMES}


def test_flags_variables_and_file_say_the_same(tmp_path: Path) -> None:
    flags = [
        *("--log-syslog", "--log-syslog-to", "udp://logs:514", "--log-syslog-prefix", "shop"),
        *("--log-syslog-facility", "LOCAL3", "--disable-redirect-access-to-syslog", "--statsd-host", "stats:1"),
        *("--statsd-prefix", "web", "--dogstatsd-tags", "a:b", "--enable-backlog-metric"),
    ]
    by_flags = load([*flags, "hello:app"], {}, str(tmp_path)).settings
    values: dict[str, Any] = {name: getattr(by_flags, name) for name in _NAMES}
    assert values == dict(
        zip(_NAMES, (True, "udp://logs:514", "shop", "LOCAL3", True, "stats:1", "web", "a:b", True), strict=True)
    )
    assert view_of(by_flags).statsd_host == ("stats", 1)
    variables = {f"WSGISERV_{name.upper()}": str(value) for name, value in values.items()}
    assert load(["hello:app"], variables, str(tmp_path)).settings == by_flags
    (tmp_path / "gunicorn.conf.py").write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    loaded = load(["hello:app"], {}, str(tmp_path))
    assert {name: getattr(loaded.settings, name) for name in _NAMES} == values
    assert not [notice for notice in loaded.notices if "WS1033" in notice]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("syslog_addr = 'localhost:514'", ("WS1058 syslog_addr = 'localhost:514' (", "udp://HOST:PORT")),
        ("syslog_facility = 'nonsense'", ("WS1058 syslog_facility = 'nonsense' (", "local7")),
    ],
)
def test_the_settings_of_syslog_are_checked_when_it_is_on(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "gunicorn.conf.py"
    file.write_text(f"syslog = True\n{text}\n")
    [fault] = collect(["hello:app"], {}, str(tmp_path)).faults
    assert [word for word in (*words, "(gunicorn.conf.py", "Accepted: ") if word not in str(fault)] == []
    file.write_text(f"{text}\n")  # gunicorn does not look at it either
    assert collect(["hello:app"], {}, str(tmp_path)).faults == []


def test_an_empty_host_means_none(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("import os, syslog\nstatsd_host = os.environ.get('NO_SUCH_HOST', '')\n")
    assert load(["hello:app"], {}, str(tmp_path)).settings.statsd_host is None
