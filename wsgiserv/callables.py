"""Whether a function can be called as it is going to be.

Owns: `takes`.
Must not know: what is called, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

__all__ = ["takes"]

# inspect.CO_VARARGS
_CO_VARARGS: Final = 0x04


def takes(function: Callable[..., Any], count: int, *, follow_wrapped: bool = True) -> bool:
    """Tell whether ``function`` can be called with ``count`` arguments by position. True where nobody can know.

    Args:
        function: a function, or anything else that can be called.
        count: how many arguments.
        follow_wrapped: of a decorated function (`functools.wraps`), ask what is decorated.
    """
    is_wrapper = follow_wrapped and hasattr(function, "__wrapped__")
    if isinstance(function, FunctionType) and not is_wrapper:
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
    return True
