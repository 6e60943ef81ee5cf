"""Imports users' modules and looks at their objects without running code of those objects."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeGuard, TypeVar

from wsgiserv.process import leave_if_child

if sys.version_info >= (3, 13):
    # invalidate_caches() imports it. Here, while the library is searched first (`LibraryFirst`): an application may
    # have a file email.py of its own.
    import importlib.metadata

_Kind = TypeVar("_Kind")


def import_fresh(name: str) -> ModuleType:
    """Import a module whose file may be newer than the last listing of its directory.

    Raises whatever the module's code raises. If that code forked, the child leaves here.
    """
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        leave_if_child(error)
        raise
    leave_if_child()
    return module


def is_a(value: object, kinds: type[_Kind] | tuple[type[_Kind], ...]) -> TypeGuard[_Kind]:
    """Tell whether the type of ``value`` is one of ``kinds`` or a subclass of one."""
    # isinstance() also asks the object for its `__class__`, which a proxy looks up in another object: it may raise.
    return issubclass(type(value), kinds)


def own_attribute(value: object, name: str) -> Any:
    """Return an attribute of ``value`` without its class's ``__getattr__``; None if it is missing or raises."""
    # `__getattr__` of a proxy asks another object and raises anything if there is none (an unbound werkzeug
    # LocalProxy: RuntimeError). inspect.getattr_static() would return the descriptor in place of its value.
    look = type.__getattribute__ if issubclass(type(value), type) else object.__getattribute__
    try:
        return look(value, name)
    except BaseException:  # SystemExit of a property, too
        return None


def accepts_args(function: Callable[..., Any], count: int, *, follow_wrapped: bool = True) -> bool:
    """Tell whether ``function`` can be called with ``count`` positional arguments; True if its signature is unknown.

    Args:
        function: any callable.
        count: the number of arguments.
        follow_wrapped: for a decorated function (`functools.wraps`), use the signature of the inner function.
    """
    try:
        inspect.signature(function, follow_wrapped=follow_wrapped).bind(*[None] * count)
    except TypeError:
        return False
    except BaseException:  # written in C without a signature; or a proxy, whose attributes raise anything
        return True
    return True
