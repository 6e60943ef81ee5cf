"""Shows the settings to code of users that was written for gunicorn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.settings import Settings


def cfg_for_users(settings: Settings, **changed: Any) -> Any:
    """Return the ``cfg`` object of loggers, worker classes and hooks.

    Args:
        settings: the configuration.
        changed: settings to show with other values.
    """
    return _View(replace(settings, **changed))


class _View:
    """The settings, and gunicorn's other settings with their defaults."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        if name in GUNICORN_ONLY:
            ignored = GUNICORN_ONLY[name]
            return next(iter(ignored.defaults), False if ignored.switch else None)
        if name.startswith("_"):  # a copy, or pickle, asks before there are settings
            raise AttributeError(name)
        return getattr(self._settings, name)
