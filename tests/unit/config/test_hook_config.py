"""The configuration that hooks see: all of gunicorn's names, with its types."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS, Config

from wsgiserv.config.hook_config import HookConfig, view_of
from wsgiserv.config.loader import collect
from wsgiserv.config.settings import Settings

# Where a value here is another one, or has another type, with the reason.
DIFFERENT = {
    "config": "no file was read",
    "control_socket": "the default path is made at the start",
    "worker_class": "our class",
    "sendfile": "gunicorn's None means on",
}
DEFAULTS = {
    **dict.fromkeys(
        ["keepalive", "limit_request_line", "initgroups", "default_proc_name", "proc_name", "chdir"], "ours"
    ),
    **dict.fromkeys(["access_log_format", "control_socket_disable", "logger_class"], "looked at elsewhere"),
}


def view(directory: Path, text: str = "", *flags: str) -> HookConfig:
    (directory / "conf.py").write_text(text)
    return view_of(collect(["-c", "conf.py", *flags, "hello:app"], {}, str(directory)).settings)


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@pytest.mark.parametrize("setting", KNOWN_SETTINGS, ids=lambda setting: str(setting.name))
def test_each_setting_of_gunicorns_is_there(setting: Any) -> None:
    cfg, theirs = view_of(Settings()), Config()
    ours, other = getattr(cfg, setting.name), getattr(theirs, setting.name) if setting.name != "logger_class" else None
    assert cfg.settings[setting.name].name == setting.name
    if setting.name in DIFFERENT:
        return
    if callable(other):
        assert callable(ours)
    elif setting.name not in DEFAULTS:
        assert plain(ours) == plain(other)
        assert isinstance(ours, type(plain(other)))


def test_each_attribute_of_gunicorns_config_is_there() -> None:
    cfg = view_of(Settings())
    assert [name for name in dir(Config()) if not name.startswith("_") and not hasattr(cfg, name)] == []


def test_each_own_setting_is_there() -> None:
    cfg = view_of(Settings())
    assert cfg.request_timeout == 0
    assert cfg.body_buffer_size == 1 << 20
    assert cfg.tmp_upload_dir is None
    with pytest.raises(AttributeError, match="nothing_like_it"):
        cfg.nothing_like_it  # noqa: B018 - the access is the test


def test_the_access_log_format_is_the_template() -> None:
    assert view_of(Settings()).access_log_format == Config().access_log_format


def test_what_the_user_has_given_for_an_unused_setting(tmp_path: Path) -> None:
    cfg = view(tmp_path, "http_parser = 'fast'\ndirty_workers = 2\n", "--http-protocols", "h1,h2")
    assert cfg.http_parser == "fast"
    assert cfg.dirty_workers == 2
    assert cfg.http_protocols == ["h1", "h2"]
    assert cfg.settings["dirty_workers"].value == 2
    assert cfg.settings["dirty_workers"].default == 0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "sync"),
        ("threads = 4", "gthread"),
        ("worker_class = 'gthread'", "gthread"),
        ("worker_class = 'gevent'", "gevent"),
    ],
)
def test_the_worker_class(tmp_path: Path, text: str, name: str) -> None:
    cfg = view(tmp_path, text)
    assert cfg.worker_class_str == name
    assert cfg.worker_class.__name__.lower().startswith(name.removeprefix("g")[:5]) or name == "gevent"
    assert cfg.settings["worker_class"].get() == name


def test_addresses(tmp_path: Path) -> None:
    cfg = view(tmp_path, "bind = ['127.0.0.1:80', ':81', '[::1]:82', 'unix:s', 'fd://3']")
    assert cfg.address == [("127.0.0.1", 80), ("0.0.0.0", 81), ("::1", 82), "s", 3]
    assert isinstance(cfg.bind, list)


def test_a_list_is_the_hooks_own(tmp_path: Path) -> None:
    cfg = view(tmp_path, "http_protocols = ['h1', 'h2']")
    cfg.http_protocols.append("h3")
    cfg.bind.clear()
    assert cfg.http_protocols == ["h1", "h2"]
    assert cfg.bind == ["127.0.0.1:8000"]


def test_changes(tmp_path: Path) -> None:
    cfg = view(tmp_path)
    late: list[str] = []
    cfg.on_late_change = late.append
    cfg.set("timeout", "2m")
    cfg.set("spew", True)
    cfg.set("threads", 3)
    assert (cfg.timeout, cfg.spew, late) == (120, True, ["timeout", "spew", "threads"])
    settings = cfg.take_changes(frozenset({"timeout"}))
    assert (settings.timeout, settings.threads, settings.worker_class) == (30.0, 3, "threads")
    assert view_of(settings) is cfg
    assert (cfg.spew, cfg.threads, cfg.worker_class_str) == (True, 3, "gthread")
    with pytest.raises(ValueError, match=r"cfg\.set\('timeout', 'soon'\): not accepted"):
        cfg.set("timeout", "soon")
    with pytest.raises(ValueError, match="auto"):
        cfg.set("workers", "auto")
    with pytest.raises(AttributeError, match="wrokers"):
        cfg.set("wrokers", 1)
    with pytest.raises(AttributeError, match=r"cfg\.set"):
        cfg.workers = 3
    cfg.mine = 1
    assert cfg.mine == 1


def test_nothing_changed_is_the_same_record(tmp_path: Path) -> None:
    cfg = view(tmp_path)
    assert view_of(cfg.take_changes()) is cfg
    assert cfg.take_changes() is cfg.take_changes()
