"""Worker classes by name.

Owns: the names of our classes, the import of anybody else's, and what is said when that fails.
Must not know: what a class does; who asks, in which process.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from wsgiserv.errors import ConfigError
from wsgiserv.safe_open import working_directory
from wsgiserv.tracebacks import describe_error, format_users_error, users_traceback
from wsgiserv.user_code import import_fresh, is_a, own_attribute

if TYPE_CHECKING:
    from wsgiserv.worker.base import Worker

__all__ = ["class_name", "resolve_worker_class"]

# By path, since gevent is imported only where it is used.
_PATHS = {
    "sync": "wsgiserv.worker.sync.SyncWorker",
    "threads": "wsgiserv.worker.threads.ThreadsWorker",
    "gevent": "wsgiserv.worker.gevent_worker.GeventWorker",
}

_EXPECTED = (
    "Expected sync, threads, gevent, or a subclass of wsgiserv.worker.base.Worker: the class itself in the "
    "configuration file, or its path package.module:Class."
)


class _Refused(Exception):
    """Why a class is not accepted, and the user's own traceback where there is one."""

    def __init__(self, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace


def class_name(worker_class: str | type[Any], threads: int) -> str | type[Any]:
    """Return the class that is meant: several threads with ``sync`` are ``threads``, as in gunicorn."""
    return "threads" if worker_class == "sync" and threads > 1 else worker_class


def resolve_worker_class(
    worker_class: str | type[Any], threads: int = 1, source: str | None = None
) -> type[Worker]:
    """Return the class for a ``worker_class`` setting.

    A path is imported in the process that calls this: a worker, before it serves, or a child made to check it.
    The directories of the application must be on ``sys.path``: `wsgiserv.app.loader.prepare_path`.

    Args:
        worker_class: ``sync``, ``threads``, ``gevent``, a dotted path, or a class.
        threads: the ``threads`` setting.
        source: where the value came from, for the message.

    Raises:
        ConfigError: it cannot be imported, or is not a `wsgiserv.worker.base.Worker` that can be used. The message
            ends with the user's own traceback when their code has failed.
    """
    wanted = class_name(worker_class, threads)
    try:
        found = _found(_PATHS.get(wanted, wanted)) if isinstance(wanted, str) else wanted
        return _accepted(found)
    except _Refused as refused:
        shown = repr(wanted) if isinstance(wanted, str) else wanted.__qualname__
        place = f" ({source})" if source else ""
        trace = f"\n{refused.trace}" if refused.trace else ""
        raise ConfigError(f"worker_class = {shown}{place}: {refused} {_EXPECTED}{trace}") from None


def _found(path: str) -> object:
    """Return what is at a dotted path: the longest part of it that is a module, then names in that."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            return _attribute(import_fresh(name), parts[length:])
        except ModuleNotFoundError as error:
            missing = error.name or ""
            is_target = name == missing or name.startswith(missing + ".")
            if not missing or not is_target or users_traceback(error) is not None:
                raise _failure(name, error) from None
        except _Refused:
            raise
        except (Exception, SystemExit) as error:
            raise _failure(name, error) from None
    raise _Refused(
        f"there is no module {parts[0]!r} in {working_directory()}, nor elsewhere on sys.path (--chdir and "
        "--pythonpath add directories)."
    )


def _attribute(module: ModuleType, names: list[str]) -> object:
    found: Any = module
    path = module.__name__
    for name in names:
        try:
            found = getattr(found, name)
        except Exception as error:
            if not is_a(error, AttributeError):
                raise _failure(path, error) from None
            kind = "module" if found is module else "object"
            place = f" ({module.__file__})" if found is module and getattr(module, "__file__", None) else ""
            reason = f"the {kind} {path!r}{place} has no {name!r}."
            classes = [key for key, value in vars(module).items() if _is_usable(value, module)]
            from difflib import get_close_matches

            near = get_close_matches(name, classes, n=1) or classes[:1]
            if near:
                reason += f" Did you mean {module.__name__}:{near[0]}?"
            raise _Refused(reason) from None
        path += f".{name}"
    return found


def _is_usable(value: object, module: ModuleType) -> bool:
    from wsgiserv.worker.base import Worker

    return (
        is_a(value, type)  # not isinstance(): __class__ of a proxy may raise
        and own_attribute(value, "__module__") == module.__name__
        and issubclass(value, Worker)
        and not getattr(value, "__abstractmethods__", ())
    )


def _accepted(found: object) -> type[Worker]:
    from wsgiserv.worker.base import Worker

    if not isinstance(found, type):
        article = "an" if type(found).__name__[0] in "AEIOaeio" else "a"
        raise _Refused(f"it is not a class, but {article} {type(found).__name__}.")
    if not issubclass(found, Worker):
        bases = ", ".join(f"{base.__module__}.{base.__qualname__}" for base in found.__bases__)
        raise _Refused(f"it is not a worker class of wsgiserv (its bases: {bases}).")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise _Refused(f"it is abstract: it does not implement {', '.join(missing)}.")
    return found


def _failure(module: str, error: BaseException) -> _Refused:
    text = format_users_error(error)
    if is_a(error, SyntaxError):
        return _Refused(
            f"there is a syntax error in {error.filename}, line {error.lineno}: {error.msg}.", text
        )
    return _Refused(f"importing {module!r} raised {describe_error(error)}.", text)
