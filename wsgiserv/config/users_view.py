"""Shows the settings to code of users that was written for gunicorn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wsgiserv.config.hook_config import HookConfig, remember_unused, unused_of, view_of
from wsgiserv.config.settings import Settings


def cfg_for_users(settings: Settings, **changed: Any) -> HookConfig:
    """Return the ``cfg`` object of loggers and worker classes.

    Args:
        settings: the configuration.
        changed: settings to show with other values.
    """
    if not changed:
        return view_of(settings)
    shown = replace(settings, **changed)
    remember_unused(shown, unused_of(settings))
    return view_of(shown)
