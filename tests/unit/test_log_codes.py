"""Each log line of level warning and above begins with a code of its own, which no other line ever had.

The registry switches the strict part on: python -m tests.support.log_codes writes it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import log_codes
import pytest

FOLDERS = ("docs", "tests", "examples", "bench")

strict = pytest.mark.skipif(
    not log_codes.REGISTRY.exists(), reason="no registry: python -m tests.support.log_codes writes it"
)


def test_each_code_is_used_once_and_in_its_range() -> None:
    assert log_codes.faults() == []


@strict
def test_no_warning_or_error_is_without_a_code() -> None:
    assert log_codes.uncoded() == []


@strict
def test_the_registry_is_what_the_source_says() -> None:
    known = log_codes.registry()
    assert known == log_codes.updated(known), "run python -m tests.support.log_codes"


def test_each_exemption_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    exempt = log_codes.CARRIED
    monkeypatch.setattr(log_codes, "CARRIED", frozenset())
    without = log_codes.uncoded()
    assert [
        (name, argument)
        for name, argument in sorted(exempt)
        if not any(line.startswith(f"{name}:") and f"{argument}" in line for line in without)
    ] == []


@strict
def test_a_code_in_tests_and_docs_is_one_of_the_registry() -> None:
    texts = [path for folder in FOLDERS for path in (log_codes.ROOT / folder).rglob("*.*")]
    assert len(texts) > 200
    known = log_codes.registry().keys()
    unknown = {
        f"{path.name}: {code}"
        for path in texts
        if path.suffix in {".py", ".md", ".conf", ".service"} and path.name != Path(__file__).name
        for code in re.findall(r"\bWS\d{4}\b", path.read_text())
        if code not in known
    }
    assert unknown == set()


def test_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
'''WS1200 in a docstring counts, too.'''
self._log.error("WS1201 worker %d: exited", pid)
log.warning("%s", notice)
log.info("quiet")
log.log(logging.INFO, "quiet")
log.log(level, "loud")
report = log.error
parser.error("no log")
print(f"WS1002 {name}: not readable", file=sys.stderr)
logging.getLogger("x").critical("WS12013 has a digit too many")
log.error("WS1204 a" if failed else "WS1205 b")
boot.log.exception(
    "WS1203 nothing"
    " is reloaded"
)
def tell(text):
    other = "WS1206 %s: other"
    log.error(other, 1)
    log.error(text, 1)
"""
    monkeypatch.setattr(log_codes, "sources", lambda: [("master/a.py", ast.parse(source))])
    assert [(line.code, line.place, line.text) for line in log_codes.lines()] == [
        ("WS1200", "master/a.py:2", "in a docstring counts, too."),
        ("WS1201", "master/a.py:3", "worker %d: exited"),
        ("WS1002", "master/a.py:10", "{}: not readable"),
        ("WS1204", "master/a.py:12", "a"),
        ("WS1205", "master/a.py:12", "b"),
        ("WS1203", "master/a.py:14", "nothing is reloaded"),
        ("WS1206", "master/a.py:18", "%s: other"),
    ]
    found = {place.split(": ")[0] for place in log_codes.uncoded()}
    assert found == {f"master/a.py:{line}" for line in (4, 7, 8, 11, 20)}
    assert log_codes.faults() == []
    # A part that does not write such lines, and a code of two lines.
    monkeypatch.setattr(log_codes, "sources", lambda: [("http/a.py", ast.parse('"WS1201 a"; "WS1201 b"'))])
    assert [fault.split(": ")[1][:18] for fault in log_codes.faults()] == [
        *["WS1201 is used 2 t"] * 2,
        *["WS1201 is of the r"] * 2,
    ]


def test_a_code_is_never_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_codes, "lines", lambda: [log_codes.Line("WS1201", "master", "a:1", "worker %d: exited")])
    known = {"WS1201": "worker %d: gone", "WS1202": "worker %d: silent"}
    new = log_codes.updated(known)
    assert new == {"WS1201": "worker %d: exited", "WS1202": "retired: worker %d: silent"}
    assert log_codes.updated(new) == new
    with pytest.raises(ValueError, match="WS1201 is retired"):
        log_codes.updated({"WS1201": "retired: worker %d: gone"})
