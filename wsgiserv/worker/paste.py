"""Loads the application that the settings name: ``module:app``, or one of a PasteDeploy file (`paste`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from wsgiserv.app.diagnostics import Target, raised
from wsgiserv.app.loader import check_loaded, load_application
from wsgiserv.config.paste import global_conf, split_uri
from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError
from wsgiserv.process import leave_if_child


def application_of(settings: Settings) -> Callable[..., Any]:
    """Return the application. Raises ApplicationError for a fault of its own, ConfigError without PasteDeploy."""
    assert settings.wsgi_app is not None
    if settings.paste is None:
        return load_application(settings.wsgi_app)
    deploy = _paste_deploy(settings.paste)
    variables = global_conf(settings.raw_paste_global_conf)
    try:
        application = deploy.loadapp(f"config:{settings.paste}", global_conf=variables)
    except BaseException as error:
        leave_if_child(error)
        raise raised(error, f"loading {settings.paste!r} with PasteDeploy") from None
    leave_if_child()
    return check_loaded(Target(settings.paste, "paste.deploy", "loadapp", ([], {})), application)


def paste_files(settings: Settings) -> list[str]:
    """Return the file of `paste`, for `reload` to watch."""
    return [split_uri(settings.paste)[0]] if settings.paste else []


def _paste_deploy(uri: str) -> Any:
    try:
        return import_module("paste.deploy")
    except ModuleNotFoundError as error:
        if error.name not in ("paste", "paste.deploy"):
            raise raised(error, "importing PasteDeploy") from None
        raise ConfigError(
            f"WS1095 paste = {uri!r}: reading this file needs the package PasteDeploy, which is not installed. Install "
            "it: pip install 'wsgiserv[paste]'"
        ) from None
    except Exception as error:
        raise raised(error, "importing PasteDeploy") from None
