"""Finds objects by their dotted paths in users' modules, and explains why there is none."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from wsgiserv.safe_open import working_directory
from wsgiserv.tracebacks import describe_error, format_users_error, users_traceback
from wsgiserv.user_code import import_fresh, is_a, own_attribute
from wsgiserv.wording import did_you_mean, nearest


# An exception: the reasons come up at several depths of the search, and the caller alone knows the setting.
class NotFoundError(LookupError):
    """There is no object at a path, or its module cannot be imported; the text says why.

    Attributes:
        trace: the user's own traceback where there is one, after a line end; else empty.
    """

    def __init__(self, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace and f"\n{trace}"


def find_object(path: str, is_wanted: Callable[[object], bool] = callable) -> object:
    """Return the object at a dotted path: the longest importable part of it, then names in that module.

    Args:
        path: the path.
        is_wanted: tells whether an object of the module may be meant, for the advice after a mistyped name.

    Raises:
        NotFoundError: there is none.
    """
    parts = path.split(".")
    # A dot may lead to a module or into a class, and the path alone does not say which.
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            module = import_fresh(name)
        # SystemExit, too: a script without a main guard ends by it, and that is a fault of the setting.
        except (Exception, SystemExit) as error:
            if not _is_missing(name, error):
                raise _failure(name, error) from None
        else:
            return _attribute(module, parts[length:], is_wanted)
    raise NotFoundError(
        f"there is no module {parts[0]!r} in {working_directory()}, nor elsewhere on sys.path (--chdir and "
        "--pythonpath add directories)."
    )


def _is_missing(name: str, error: BaseException) -> bool:
    """Return whether the module itself was not found, or a package above it."""
    # Else it was found, and an import within it has failed: a shorter path would hide that.
    missing = is_a(error, ModuleNotFoundError) and error.name
    return bool(missing) and f"{name}.".startswith(f"{missing}.") and users_traceback(error) is None


def _attribute(module: ModuleType, names: list[str], is_wanted: Callable[[object], bool]) -> object:
    found: Any = module
    path = module.__name__
    for name in names:
        try:
            found = getattr(found, name)
        except (Exception, SystemExit) as error:
            if not is_a(error, AttributeError):
                raise _failure(path, error) from None
            # A file of the same name elsewhere on sys.path is a usual reason: say which one was found.
            kind = "module" if found is module else "object"
            place = f" ({module.__file__})" if found is module and getattr(module, "__file__", None) else ""
            reason = f"the {kind} {path!r}{place} has no {name!r}."
            # What would be accepted, of the module's own: a base that it imports is not what was meant.
            classes = [
                key
                for key, value in vars(module).items()
                if own_attribute(value, "__module__") == module.__name__ and is_wanted(value)
            ]
            near = nearest(name, classes, limit=1) or classes[:1]
            advice = did_you_mean(f"{module.__name__}:{each}" for each in near)
            raise NotFoundError(f"{reason} {advice}".rstrip()) from None
        path += f".{name}"
    return found


def _failure(module: str, error: BaseException) -> NotFoundError:
    text = format_users_error(error)
    if is_a(error, SyntaxError):
        return NotFoundError(f"there is a syntax error in {error.filename}, line {error.lineno}: {error.msg}.", text)
    return NotFoundError(f"importing {module!r} raised {describe_error(error)}.", text)
