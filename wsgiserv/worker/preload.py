"""Loading the application for all workers at once (``preload_app``).

Owns: the order: what the worker class must have done first (monkey patching), the path, the application, the end of
what that has started in the background.
Must not know: which process this is done in, how workers come of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from wsgiserv.app.loader import leave_names_free, load_application, prepare_path
from wsgiserv.worker.background import end_background
from wsgiserv.worker.registry import resolve_worker_class

if TYPE_CHECKING:
    from wsgiserv.config.settings import Settings

__all__ = ["preload_application"]


def preload_application(settings: Settings, log: logging.Logger, in_master: bool) -> Callable[..., Any]:
    """Load the application that workers are to be forked with. Raises ApplicationError, ConfigError.

    Args:
        settings: the configuration of the workers.
        log: the error log.
        in_master: whether this process goes on as the master; else it is a zygote.
    """
    prepare_path(settings.chdir, settings.pythonpath)
    if not in_master:
        leave_names_free()
    resolve_worker_class(settings.worker_class, settings.threads).patch(log, in_master)
    assert settings.wsgi_app is not None
    application = load_application(settings.wsgi_app)
    end_background(log)
    return application
