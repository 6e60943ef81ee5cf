"""Percent-decoding: RFC 3986 §2.1, each octet standing for itself (PEP 3333)."""

from __future__ import annotations

import random
from urllib.parse import unquote_to_bytes

import pytest

from wsgiserv.http.percent import decoded


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/plain", "/plain"),
        ("/a%20b", "/a b"),
        ("/%2f%2F", "///"),
        ("/%C3%A9", "/\xc3\xa9"),
        ("/%00%ff", "/\x00\xff"),
        ("/100%", "/100%"),
        ("/%4", "/%4"),
        ("/%zz%41", "/%zzA"),
        ("/%2541", "/%41"),
        ("/%%41", "/%A"),
        ("/+", "/+"),
    ],
)
def test_each_octet_is_decoded_once(path: str, expected: str) -> None:
    assert decoded(path) == expected


def test_it_decodes_as_the_standard_library_does() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        path = "".join(chance.choice("%%%0123456789abcdefABCDEFgz/.") for _ in range(20))
        assert decoded(path) == unquote_to_bytes(path).decode("latin-1")
