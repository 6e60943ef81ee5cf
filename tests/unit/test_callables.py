"""Whether a function takes so many arguments: what `inspect.signature` says is the rule."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from wsgiserv.callables import takes


class Called:
    def __init__(self, *values: object) -> None: ...

    def __call__(self, one: object, two: object) -> None: ...

    def method(self, one: object) -> None: ...

    @staticmethod
    def of_none(one: object, two: object, three: object = 0) -> None: ...


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*values: Any) -> Any:
        return function(*values)

    return call


CASES: dict[str, Callable[..., Any]] = {
    "nothing": lambda: None,
    "one": lambda a: None,
    "two": lambda a, b: None,
    "a default": lambda a, b=0: None,
    "all defaults": lambda a=0, b=0, c=0: None,
    "any": lambda *a: None,
    "one or more": lambda a, *b: None,
    "keyword only": lambda a, *, b: None,
    "keyword with a default": lambda a, *, b=0: None,
    "keywords": lambda **k: None,
    "by position only": lambda a, b, /: None,
    "an instance": Called(),
    "a method": Called().method,
    "a static method": Called.of_none,
    "a class": Called,
    "partial": functools.partial(lambda a, b: None, 1),
    "decorated": decorated(lambda a: None),
    "in C": len,
}


@pytest.mark.parametrize("count", range(5))
@pytest.mark.parametrize("follow_wrapped", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_signature_decides(name: str, count: int, follow_wrapped: bool) -> None:
    function = CASES[name]
    try:
        inspect.signature(function, follow_wrapped=follow_wrapped).bind(*[None] * count)
        expected = True
    except TypeError:
        expected = False
    assert takes(function, count, follow_wrapped=follow_wrapped) is expected


def test_nothing_is_known_against_a_function_without_a_signature() -> None:
    with pytest.raises(ValueError, match="signature"):
        inspect.signature(dict.update)
    assert takes(dict.update, 3)
