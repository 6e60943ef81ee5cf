"""Loads the application for all workers at once (``preload_app``)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from wsgiserv.app.loader import leave_names_free, load_application, prepare_path
from wsgiserv.config.settings import Settings
from wsgiserv.worker.background import end_background
from wsgiserv.worker.registry import resolve_worker_class


def preload_application(settings: Settings, log: logging.Logger, in_master: bool) -> Callable[..., Any]:
    """Load the application for the workers that this process will fork.

    Args:
        settings: the configuration of the workers.
        log: the error log.
        in_master: this process goes on as the master; else it is a zygote.

    Raises:
        ApplicationError: it cannot be loaded.
        ConfigError: the worker class cannot.
    """
    prepare_path(settings.chdir, settings.pythonpath)
    if not in_master:
        leave_names_free()
    # Monkey patching comes before the application's imports, which would keep the unpatched parts.
    resolve_worker_class(settings.worker_class, settings.threads).patch(log, in_master)
    assert settings.wsgi_app is not None
    application = load_application(settings.wsgi_app)
    end_background(log)
    return application
