"""The rule: a mistyped name is answered with the nearest known ones; faults of several steps become one error."""

from __future__ import annotations

import pytest

from wsgiserv.errors import ConfigError, ExitStatus, UnavailableError
from wsgiserv.wording import counted, did_you_mean, enumeration, nearest


@pytest.mark.parametrize(
    ("name", "limit", "found"),
    [
        ("gevnt", 3, ["gevent"]),
        ("thread", 1, ["threads"]),
        ("thread", 3, ["threads", "gthread"]),
        ("zzz", 3, []),
        ("", 3, []),
    ],
)
def test_the_nearest_names_come_best_first(name: str, limit: int, found: list[str]) -> None:
    assert nearest(name, (each for each in ("sync", "gthread", "threads", "gevent")), limit) == found


def test_the_sentence() -> None:
    assert did_you_mean([]) == ""
    assert did_you_mean(["--bind"]) == "Did you mean --bind?"
    assert did_you_mean(map(repr, ("a", "b"))) == "Did you mean 'a' or 'b'?"


def test_enumerations() -> None:
    assert [enumeration(words) for words in ((), ("A",), ["A", "B"], ("A", "B", "C"))] == [
        "",
        "A",
        "A and B",
        "A, B and C",
    ]


def test_counts() -> None:
    assert [counted(n, "worker", "serves", "serve") for n in (0, 1, 2)] == [
        "0 workers serve",
        "1 worker serves",
        "2 workers serve",
    ]


def test_errors_become_one_and_a_single_one_stays_as_it_is() -> None:
    alone = UnavailableError("no address")
    assert ConfigError.of([alone]) is alone
    both = ConfigError.of([alone, ConfigError("WS1 a", "WS2 b")])
    assert both.faults == ("no address", "WS1 a", "WS2 b")
    assert str(both) == "no address\nWS1 a\nWS2 b"
    assert both.exit_status == ExitStatus.CONFIG
