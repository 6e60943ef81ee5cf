"""The settings about proxies: what may be written, and what is answered to the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsgiserv.config.loader import load
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("", ()),
        ([], ()),
        (None, ()),
        ("for", ("for",)),
        ("For, proto,host , port,prefix", ("for", "proto", "host", "port", "prefix")),
        (["X-Forwarded-For", "x-forwarded-proto"], ("for", "proto")),
        ("for,X-Forwarded-For", ("for",)),
        ("Forwarded", ("forwarded",)),
    ],
)
def test_forwarded_headers(raw: object, value: tuple[str, ...]) -> None:
    assert SETTINGS["forwarded_headers"].parse(raw) == value


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("off", "off"),
        (None, "off"),
        (False, "off"),
        ("0", "off"),
        (True, "auto"),
        ("true", "auto"),
        ("AUTO", "auto"),
        ("v1", "v1"),
        (" V2 ", "v2"),
    ],
)
def test_proxy_protocol(raw: object, value: str) -> None:
    assert SETTINGS["proxy_protocol"].parse(raw) == value


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--forwarded-headers", "for,x-real-ip", "'x-real-ip'"),
        ("--forwarded-headers", "for,forwarded", "RFC 7239"),
        ("--proxy-protocol", "v3", "proxy_protocol = 'v3'"),
        ("--proxy-protocol", "hello:app", "'off', 'v1', 'v2' or 'auto'"),
        ("--proxy-allow-from", "proxy.example", "proxy_allow_ips = 'proxy.example'"),
    ],
)
def test_what_is_not_accepted(flag: str, value: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load([flag, value], {}, str(tmp_path))
    assert flag in str(caught.value)
    assert says in str(caught.value)


def test_everything_is_off_by_default(tmp_path: Path) -> None:
    settings = load(["hello:app"], {}, str(tmp_path)).settings
    assert settings.forwarded_headers == ()
    assert settings.proxy_protocol == "off"
    assert settings.proxy_allow_ips == ("127.0.0.1", "::1")
