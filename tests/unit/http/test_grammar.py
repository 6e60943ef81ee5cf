"""The patterns match the same on every Python that is supported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import wsgiserv
from wsgiserv.http.grammar import CHUNK_LINE


def test_no_group_is_repeated_possessively() -> None:
    """Before Python 3.11.5 such a repetition keeps what a failed attempt has consumed (gh-106052)."""
    escapes, classes = re.compile(r"\\."), re.compile(r"\[[^\]]*\]")
    repeated = re.compile(r"\)(?:[*+?]|\{[\d,]+\})\+")
    sources = Path(wsgiserv.__file__).parent.rglob("*.py")
    lines = [
        f"{path.name}: {line}"
        for path in sources
        for line in path.read_text("utf-8").splitlines()
        if repeated.search(classes.sub("", escapes.sub("", line)))
    ]
    assert lines == []


@pytest.mark.parametrize("line", [b"3;", b"3 ;", b"3;a=", b'3;a="x', b'3;a="x\\', b"3;a=b;", b"3;;a"])
def test_half_a_chunk_extension_is_none(line: bytes) -> None:
    assert CHUNK_LINE.fullmatch(line) is None
