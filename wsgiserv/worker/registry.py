"""Finds worker classes by name, and explains why one cannot be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from wsgiserv.config.worker_class import CLASS_PATHS, resolve
from wsgiserv.errors import ConfigError
from wsgiserv.object_paths import NotFoundError, find_object
from wsgiserv.stand_ins import supplied_imports
from wsgiserv.user_code import is_a
from wsgiserv.wording import kind_of

if TYPE_CHECKING:
    from wsgiserv.worker.base import Worker

# The end of each message: the reader has named something else, and may not know the rest.
_ACCEPTED: Final = (
    "Accepted: sync, threads, gevent, or a subclass of wsgiserv.worker.base.Worker, or of gunicorn's sync, gthread or "
    "gevent worker: the class itself in the configuration file, or its path package.module:Class."
)


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
        found = _found(wanted) if isinstance(wanted, str) else wanted
        if reason := _fault_of(found):
            raise NotFoundError(reason)
        return cast("type[Worker]", found)
    except NotFoundError as refused:
        shown = repr(wanted) if isinstance(wanted, str) else wanted.__qualname__
        place = f" ({source})" if source else ""
        # From None: this search is of no use to the user, whose own traceback is at the end of the message.
        raise ConfigError(f"WS1150 worker_class = {shown}{place}: {refused} {_ACCEPTED}{refused.trace}") from None


def _found(path: str) -> object:
    if path in CLASS_PATHS:
        return find_object(CLASS_PATHS[path])
    with supplied_imports(None):  # its module, and what that imports, may be built on gunicorn's workers
        return find_object(path, lambda found: not _fault_of(found))


def _fault_of(found: object) -> str:
    """Return why an object is no worker class; empty for one."""
    from wsgiserv.worker.base import Worker

    if not is_a(found, type):  # not isinstance(): __class__ of a proxy may raise
        return f"it is not a class, but {kind_of(found)}."
    if issubclass(found, Worker) or "_why_not" in dir(found):  # a base for gunicorn's classes alone is none of ours
        return str(found._why_not())  # type: ignore[attr-defined]
    bases = ", ".join(f"{base.__module__}.{base.__qualname__}" for base in found.__bases__)
    return f"it is not a worker class of wsgiserv (its bases: {bases})."
