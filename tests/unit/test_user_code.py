"""Users' objects and exceptions: looked at by type alone, so that a hostile one cannot break the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wsgiserv import tracebacks
from wsgiserv.user_code import accepts_args, is_a, own_attribute


class Hostile(Exception):
    """Raises for every question."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("asked for its class")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"asked for {name}")

    def __call__(self, one: object, two: object) -> None: ...

    def __str__(self) -> str:
        raise RuntimeError("asked for its text")


def test_a_hostile_object_is_seen_by_its_type() -> None:
    with pytest.raises(RuntimeError):
        isinstance(Hostile(), ValueError)
    assert not is_a(Hostile(), ValueError)
    assert is_a(Hostile(), (ValueError, Hostile))


def test_attributes_without_getattr() -> None:
    assert own_attribute(Hostile(), "missing") is None
    assert own_attribute(Hostile(), "__class__") is None
    assert own_attribute(Hostile, "__name__") == "Hostile"
    assert own_attribute([].append, "__self__") == []


@pytest.mark.parametrize(
    ("function", "count", "expected"),
    [
        (lambda one: None, 1, True),
        (lambda one: None, 2, False),
        (lambda one, *, key: None, 1, False),
        (len, 1, True),
        (dict.update, 3, True),  # no signature: nothing is known against it
    ],
)
def test_arguments(function: Callable[..., Any], count: int, expected: bool) -> None:
    assert accepts_args(function, count) is expected


def test_nothing_is_known_against_a_hostile_callable() -> None:
    accepted = accepts_args(Hostile(), 2)
    assert accepted


def test_the_text_of_a_hostile_exception_is_its_type() -> None:
    def fail() -> None:
        raise Hostile

    with pytest.raises(Hostile) as raised:
        fail()
    assert tracebacks.describe_error(raised.value) == "Hostile"
    text = tracebacks.format_users_error(raised.value)
    assert text.startswith("Traceback (most recent call last):")
    assert __file__ in text
    assert "Hostile" in text.splitlines()[-1]


def test_a_traceback_begins_with_the_users_frame() -> None:
    def hook() -> None:
        raise ValueError("bad")

    from wsgiserv.user_code import import_fresh

    with pytest.raises(ModuleNotFoundError) as missing:
        import_fresh("no_such_module_anywhere")
    missing.value.__traceback__ = missing.value.__traceback__.tb_next  # type: ignore[union-attr]
    assert tracebacks.users_traceback(missing.value) is None
    with pytest.raises(ValueError, match="bad") as raised:
        hook()
    trace = tracebacks.users_traceback(raised.value)
    assert trace is not None
    assert trace.tb_frame.f_code.co_filename == __file__
