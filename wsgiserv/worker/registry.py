"""Finds worker classes by name, and explains why one cannot be used."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

from wsgiserv.config.worker_class import CLASS_PATHS, resolve
from wsgiserv.errors import ConfigError
from wsgiserv.safe_open import working_directory
from wsgiserv.tracebacks import describe_error, format_users_error, users_traceback
from wsgiserv.user_code import import_fresh, is_a, own_attribute
from wsgiserv.wording import did_you_mean, kind_of, nearest

if TYPE_CHECKING:
    from wsgiserv.worker.base import Worker

# The end of each message: the reader has named something else, and may not know the rest.
_ACCEPTED: Final = (
    "Accepted: sync, threads, gevent, or a subclass of wsgiserv.worker.base.Worker: the class itself in the "
    "configuration file, or its path package.module:Class."
)


# An exception: the reasons come up at several depths of the search, and `resolve_worker_class` alone knows the source.
class _Refused(Exception):
    """Why a class is not accepted, and the user's own traceback where there is one."""

    def __init__(self, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace and f"\n{trace}"


def resolve_worker_class(worker_class: str | type[Any], threads: int = 1, source: str | None = None) -> type[Worker]:
    """Return the class for a ``worker_class`` setting.

    The directories of the application must be on ``sys.path``: `wsgiserv.app.loader.prepare_path`.

    Args:
        worker_class: ``sync``, ``threads``, ``gevent``, a dotted path, or a class.
        threads: the ``threads`` setting: ``sync`` with several of them is ``threads``, as in gunicorn.
        source: where the value came from, for the message.

    Raises:
        ConfigError: it cannot be imported, or is no usable subclass of `wsgiserv.worker.base.Worker`. The message
            ends with the user's own traceback when their code has failed.
    """
    wanted = resolve(worker_class, threads)
    # A path is imported in a worker, or in a child that checks it, never in the master: a reload loads changed code.
    try:
        found = _found(CLASS_PATHS.get(wanted, wanted)) if isinstance(wanted, str) else wanted
        if reason := _fault_of(found):
            raise _Refused(reason)
        return cast("type[Worker]", found)
    except _Refused as refused:
        shown = repr(wanted) if isinstance(wanted, str) else wanted.__qualname__
        place = f" ({source})" if source else ""
        # From None: this search is of no use to the user, whose own traceback is at the end of the message.
        raise ConfigError(f"WS1150 worker_class = {shown}{place}: {refused} {_ACCEPTED}{refused.trace}") from None


def _found(path: str) -> object:
    """Return the object at a dotted path: the longest importable part of it, then names in that module."""
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
            return _attribute(module, parts[length:])
    raise _Refused(
        f"there is no module {parts[0]!r} in {working_directory()}, nor elsewhere on sys.path (--chdir and "
        "--pythonpath add directories)."
    )


def _is_missing(name: str, error: BaseException) -> bool:
    """Return whether the module itself was not found, or a package above it."""
    # Else it was found, and an import within it has failed: a shorter path would hide that.
    missing = is_a(error, ModuleNotFoundError) and error.name
    return bool(missing) and f"{name}.".startswith(f"{missing}.") and users_traceback(error) is None


def _attribute(module: ModuleType, names: list[str]) -> object:
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
                if own_attribute(value, "__module__") == module.__name__ and not _fault_of(value)
            ]
            near = nearest(name, classes, limit=1) or classes[:1]
            advice = did_you_mean(f"{module.__name__}:{each}" for each in near)
            raise _Refused(f"{reason} {advice}".rstrip()) from None
        path += f".{name}"
    return found


def _fault_of(found: object) -> str:
    """Return why an object is no worker class; empty for one."""
    from wsgiserv.worker.base import Worker

    if not is_a(found, type):  # not isinstance(): __class__ of a proxy may raise
        return f"it is not a class, but {kind_of(found)}."
    if not issubclass(found, Worker):
        bases = ", ".join(f"{base.__module__}.{base.__qualname__}" for base in found.__bases__)
        return f"it is not a worker class of wsgiserv (its bases: {bases})."
    # Else the TypeError would come from each new worker, without a word about the setting.
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    return f"it is abstract: it does not implement {', '.join(missing)}." if missing else ""


def _failure(module: str, error: BaseException) -> _Refused:
    text = format_users_error(error)
    if is_a(error, SyntaxError):
        return _Refused(f"there is a syntax error in {error.filename}, line {error.lineno}: {error.msg}.", text)
    return _Refused(f"importing {module!r} raised {describe_error(error)}.", text)
