"""The parts of the frameworks' commands that need no process."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from wsgiserv.config.argv import parse
from wsgiserv.config.loader import load
from wsgiserv.integrations.command import as_flags, developers_defaults, flag_settings
from wsgiserv.integrations.django.request_lines import with_request_lines


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("workers", "3"),
        ("bind", ["127.0.0.1:1", "-odd:1"]),
        ("reload", True),
        ("reload", False),
        ("proxy_protocol", True),
        ("proxy_protocol", "v2"),
        ("server_header", ""),
    ],
)
def test_flags_are_read_as_they_were_given(name: str, value: Any) -> None:
    line = parse(as_flags(name, value))
    assert not line.faults
    assert [(given.name, given.raw) for given in line.given] == [(name, value)]


def test_each_setting_of_a_command_has_a_flag() -> None:
    for setting in flag_settings():
        value = {"none": True, "many": ["x"]}.get(setting.kind.arity, "x")
        [given] = parse(as_flags(setting.name, value)).given
        assert (given.name, given.raw) == (setting.name, value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((False, True, ()), {"worker_class": "threads", "threads": 8}),
        ((False, False, ()), {}),
        ((False, True, ("worker_class",)), {}),
        ((False, True, ("config",)), {}),
        ((True, True, ("threads",)), {"reload": True, "timeout": 0}),
    ],
)
def test_defaults(arguments: Any, expected: dict[str, Any]) -> None:
    values = developers_defaults(*arguments)
    assert values == expected
    load([flag for name, value in values.items() for flag in as_flags(name, value)], {}).raise_faults()


ENVIRON = {"REQUEST_METHOD": "GET", "RAW_URI": "/a%20b?c", "SERVER_PROTOCOL": "HTTP/1.1"}


class _Body:
    is_closed = False

    def __iter__(self) -> Any:
        return iter([b"abc", b"de"])

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    ("status", "level"),
    [("200 OK", "INFO"), ("302 Found", "INFO"), ("404 Not Found", "WARNING"), ("500 Error", "ERROR")],
)
def test_request_lines(caplog: pytest.LogCaptureFixture, status: str, level: str) -> None:
    body, sent = _Body(), []

    def app(environ: Any, start_response: Any) -> Any:
        start_response(status, [("Content-Length", "9")])
        return body

    caplog.set_level(logging.INFO, "django.server")
    found = with_request_lines(app)(dict(ENVIRON), lambda *args: sent.append(args))
    assert b"".join(found) == b"abcde"
    assert not caplog.records
    found.close()
    assert body.is_closed
    assert sent == [(status, [("Content-Length", "9")])]
    [record] = caplog.records
    assert record.levelname == level
    assert record.getMessage() == f'"GET /a%20b?c HTTP/1.1" {status[:3]} 5'
    assert record.status_code == int(status[:3])  # type: ignore[attr-defined]


def test_a_file_stays_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    class Wrapper:
        pass

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("content-length", "9")])
        return Wrapper()

    caplog.set_level(logging.INFO, "django.server")
    found = with_request_lines(app)({**ENVIRON, "wsgi.file_wrapper": Wrapper}, lambda *args: None)
    assert type(found) is Wrapper
    assert [record.getMessage() for record in caplog.records] == ['"GET /a%20b?c HTTP/1.1" 200 9']
