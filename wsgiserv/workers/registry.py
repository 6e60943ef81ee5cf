"""Worker classes by name.

Owns: the names of our classes, and the import of anybody else's.
Must not know: what a class does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wsgiserv.errors import ConfigError

__all__ = ["class_name", "resolve_worker_class"]

# By path, since gevent is imported only by a worker that runs it.
_PATHS = {
    "sync": "wsgiserv.workers.sync.SyncWorker",
    "threads": "wsgiserv.workers.threads.ThreadsWorker",
    "gevent": "wsgiserv.workers.gevent.GeventWorker",
}


def class_name(worker_class: str | type[Any], threads: int) -> str | type[Any]:
    """Return the class that is meant: several threads with ``sync`` are ``threads``, as in gunicorn."""
    return "threads" if worker_class == "sync" and threads > 1 else worker_class


def resolve_worker_class(worker_class: str | type[Any], threads: int = 1) -> type[Any]:
    """Return the class for a ``worker_class`` setting.

    Args:
        worker_class: ``sync``, ``threads``, ``gevent``, a dotted path, or a class.
        threads: the ``threads`` setting.

    Raises:
        ConfigError: it cannot be imported, or is not a `wsgiserv.workers.base.Worker`.
    """
    from wsgiserv.workers.base import Worker

    wanted = class_name(worker_class, threads)
    if isinstance(wanted, str):
        module_name, _, name = _PATHS.get(wanted, wanted).rpartition(".")
        try:
            found: object = getattr(import_module(module_name), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"worker_class: cannot load {wanted!r}: {error}. Expected sync, threads, gevent, or the dotted "
                "path of a class that can be imported from here."
            ) from error
    else:
        found = wanted
    if not isinstance(found, type) or not issubclass(found, Worker):
        raise ConfigError(
            f"worker_class: {wanted!r} is not a worker class of wsgiserv. "
            "Expected a subclass of wsgiserv.workers.base.Worker."
        )
    return found
