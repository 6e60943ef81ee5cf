"""Finds the worker class of a configuration in the master, which imports no class of users."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

# By path, since gevent is imported only where it is used.
CLASS_PATHS: Final = {
    "sync": "wsgiserv.worker.sync.SyncWorker",
    "threads": "wsgiserv.worker.threads.ThreadsWorker",
    "gevent": "wsgiserv.worker.gevent_worker.GeventWorker",
}


def class_meant(worker_class: str | type[Any], threads: int) -> str | type[Any]:
    """Return the class that a configuration means: ``sync`` with several threads is ``threads``, as in gunicorn."""
    return "threads" if worker_class == "sync" and threads > 1 else worker_class


def known_worker_class(settings: Settings) -> type[Any] | None:
    """Return the worker class for the master, which asks it for its `capacity`, say.

    Returns:
        None for a class of users that is named by its path: workers alone import that, so that changed code comes with
        a reload.
    """
    kind = class_meant(settings.worker_class, settings.threads)
    if not isinstance(kind, str):
        return kind
    if kind not in CLASS_PATHS:
        return None
    module, _, name = CLASS_PATHS[kind].rpartition(".")
    # By name: no import statement of the master's leads to a worker, and the layer test holds that.
    found: type[Any] = getattr(import_module(module), name)
    return found
