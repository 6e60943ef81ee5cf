"""Looks at the functions and objects of people: none of them runs code of the object.

Owns: `takes` (whether a function can be called as it is going to be), `is_a`, `own_attribute`, `own_call`.
Must not know: what is called, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, TypeGuard, TypeVar

__all__ = ["is_a", "own_attribute", "own_call", "takes"]

_Kind = TypeVar("_Kind")

# inspect.CO_VARARGS
_CO_VARARGS: Final = 0x04


def is_a(value: object, kinds: type[_Kind] | tuple[type[_Kind], ...]) -> TypeGuard[_Kind]:
    """Tell whether the type of ``value`` is one of ``kinds``, or below one.

    isinstance() also asks the object for its ``__class__``, which a proxy looks up in the object that it stands for,
    and which may raise.
    """
    return issubclass(type(value), kinds)


def own_attribute(value: object, name: str) -> Any:
    """Return an attribute of ``value``, or None where it has none.

    Without ``__getattr__`` and ``__getattribute__`` of its class: those of a proxy ask another object, and raise
    anything where there is none (an unbound werkzeug LocalProxy: RuntimeError). A property that raises counts as none.
    """
    look = type.__getattribute__ if issubclass(type(value), type) else object.__getattribute__
    try:
        return look(value, name)
    except BaseException:  # SystemExit, too: it is only looked at
        return None


def own_call(value: object) -> Any:
    """Return what the class of ``value`` has as ``__call__``, unbound; None where it has none."""
    for kind in type.__getattribute__(type(value), "__mro__"):
        found = type.__getattribute__(kind, "__dict__").get("__call__")
        if found is not None:
            return found
    return None


def takes(function: Callable[..., Any], count: int, *, follow_wrapped: bool = True) -> bool:
    """Tell whether ``function`` can be called with ``count`` arguments by position. True where nobody can know.

    Args:
        function: a function, or anything else that can be called.
        count: how many arguments.
        follow_wrapped: of a decorated function (`functools.wraps`), ask what is decorated.
    """
    is_wrapper = follow_wrapped and own_attribute(function, "__wrapped__") is not None
    if type(function) is FunctionType and not is_wrapper:
        # The rule without `inspect`, which is 1 MB in every worker.
        code = function.__code__
        required = code.co_argcount - len(function.__defaults__ or ())
        suffices = count <= code.co_argcount or bool(code.co_flags & _CO_VARARGS)
        needs_keywords = code.co_kwonlyargcount > len(function.__kwdefaults__ or ())
        return required <= count and suffices and not needs_keywords
    import inspect

    try:
        inspect.signature(function, follow_wrapped=follow_wrapped).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a function written in C without a signature: nothing is known against it
        return True
    except BaseException:  # its own attributes raise
        call = own_call(function)
        return type(call) is not FunctionType or takes(call, count + 1, follow_wrapped=follow_wrapped)
    return True
