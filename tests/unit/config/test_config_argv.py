"""How arguments are written: getopt(3), with the long options of the GNU C library, never abbreviated."""

from __future__ import annotations

import pytest

from wsgiserv.config.argv import parse


def given(*argv: str) -> dict[str, object]:
    return {each.name: each.raw for each in parse(argv).given}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-w", "4"], {"workers": "4"}),
        (["-w4"], {"workers": "4"}),
        (["-w=4"], {"workers": "4"}),
        (["--workers", "4"], {"workers": "4"}),
        (["--workers=4"], {"workers": "4"}),
        (["--workers="], {"workers": ""}),
        (["-w", "4", "-w", "5"], {"workers": "5"}),
        (["-w", "-4"], {"workers": "-4"}),
        (["-t", "-.5"], {"timeout": "-.5"}),
        (["-b", ":1", "--bind", ":2", "-b:3"], {"bind": [":1", ":2", ":3"]}),
        (["-b=unix:/a b"], {"bind": ["unix:/a b"]}),
        (["-bunix:/a b"], {"bind": ["unix:/a b"]}),
        (["-bunix:/a=b"], {"bind": ["unix:/a=b"]}),
        (["--access-logfile", "-"], {"accesslog": "-"}),
        (["--access-logformat", "- %(h)s %(r)s"], {"access_log_format": "- %(h)s %(r)s"}),
        (["--access-logformat=%(h)s = %(r)s"], {"access_log_format": "%(h)s = %(r)s"}),
        (["--reload"], {"reload": True}),
        (["--no-reload"], {"reload": False}),
        (["--reload", "--no-reload"], {"reload": False}),
        (["-DR"], {"daemon": True, "enable_stdio_inheritance": True}),
        (["-Dw4"], {"daemon": True, "workers": "4"}),
        (["-Dw", "4", "a:b"], {"daemon": True, "workers": "4", "wsgi_app": "a:b"}),
        (["a:b"], {"wsgi_app": "a:b"}),
        (["a:b", "-w", "4"], {"wsgi_app": "a:b", "workers": "4"}),
        (["-w", "4", "--", "a:b"], {"workers": "4", "wsgi_app": "a:b"}),
        (["--", "-w"], {"wsgi_app": "-w"}),
        (["--", "-w", "--"], {"wsgi_app": "-w"}),
        (["--name", "--", "a:b"], {"wsgi_app": "a:b"}),
        (["--name=-"], {"proc_name": "-"}),
        (["--name=--reload"], {"proc_name": "--reload"}),
        (["-n--reload"], {"proc_name": "--reload"}),
        (["--name=@file"], {"proc_name": "@file"}),
        (["@file"], {"wsgi_app": "@file"}),
        (["+w"], {"wsgi_app": "+w"}),
        (["--nonsense with a space"], {"wsgi_app": "--nonsense with a space"}),
        (["--proxy-protocol", "-w", "4"], {"proxy_protocol": True, "workers": "4"}),
        (["--proxy-protocol=v1"], {"proxy_protocol": "v1"}),
        (["-t", "5", "a:b", "-w", "4"], {"timeout": "5", "wsgi_app": "a:b", "workers": "4"}),
        ([], {}),
    ],
    ids=" ".join,
)
def test_all_ways_to_write_it(argv: list[str], expected: dict[str, object]) -> None:
    assert given(*argv) == expected


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["-w"], ["-w/--workers", "expected one argument"]),
        (["-w", "--reload"], ["-w/--workers", "expected one argument"]),
        (["-Dw"], ["-w/--workers", "expected one argument"]),
        (["--reload=yes"], ["--reload", "'yes'"]),
        (["--no-reload=yes"], ["--no-reload", "'yes'"]),
        (["-DZ"], ["unknown flag '-Z'"]),
        (["--worker", "4"], ["unknown flag '--worker'", "--workers"]),
        (["--wrokers", "4", "a:b"], ["unknown flag '--wrokers'", "--workers"]),
        (["--worker=4"], ["unknown flag '--worker'", "--workers"]),
        (["a:b", "c:d"], ["'c:d'", "'a:b'"]),
        (["a:b", "-w", "4", "c:d"], ["'c:d'", "'a:b'"]),
        (["-D=yes"], ["-D", "'yes'"]),
        (["-Z"], ["unknown flag '-Z'"]),
        (["--reload=a=b"], ["--reload", "'a=b'"]),
        (["--no-workers"], ["unknown flag '--no-workers'", "--workers"]),
        (["--name", "--"], ["-n/--name", "expected one argument"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_read_is_answered(argv: list[str], parts: list[str]) -> None:
    [fault] = parse(argv).faults
    for part in (*parts, "on the command line", "--help"):
        assert part in str(fault) or (part == "--help" and "right after the flag" in str(fault))


@pytest.mark.parametrize("argv", [["-h"], ["--help"], ["--nonsense", "-h"], ["a:b", "c:d", "--help"], ["-Dh"]])
def test_help_is_given_whatever_else_is_there(argv: list[str]) -> None:
    assert parse(argv).wants == "help"


@pytest.mark.parametrize("argv", [["--version", "--help"], ["-v", "-h"]])
def test_neither_help_nor_version_is_a_setting(argv: list[str]) -> None:
    assert parse(argv).wants == "help"
    assert parse(argv).given == []


@pytest.mark.parametrize("extra", [["-5"], ["-.5"], ["-a b"], ["-"], ["--", "--no-reload"], ["--", "-w"]])
def test_no_flag_is_seen_in_what_is_none(extra: list[str]) -> None:
    (fault,) = parse(["a:b", *extra]).faults
    assert str(fault).startswith(f"WS1004 unexpected argument {extra[-1]!r}")


def test_the_flag_is_known_as_it_was_written() -> None:
    assert [each.flag for each in parse(["-w4", "--bind=:1", "--no-reload", "a:b"]).given] == [
        "-w",
        "--bind",
        "--no-reload",
        "",
    ]


def test_all_mistakes_are_found_in_one_reading() -> None:
    argv = [
        "--wrokers=4",
        "-w",
        "--no-reload=x",
        "-DZ",
        "a:b",
        "--bind",
        "--timeout",
        "5",
        "c:d",
        "e:f",
        "--nonsense=1",
    ]
    line = parse(argv, "in SOME_ARGS")
    assert [str(fault)[:6] for fault in line.faults] == [
        "WS1003",
        "WS1001",
        "WS1002",
        "WS1002",
        "WS1001",
        "WS1001",
        "WS1004",
        "WS1004",
    ]
    assert all("in SOME_ARGS" in str(fault) and "\n" not in str(fault) for fault in line.faults)
    assert {each.name: each.raw for each in line.given} == {
        "reload": False,
        "daemon": True,
        "timeout": "5",
        "wsgi_app": "a:b",
    }
