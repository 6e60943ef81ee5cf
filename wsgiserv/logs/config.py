"""Applies logconfig, logconfig_dict and logconfig_json, the logging module's own configuration.

Files written for gunicorn name `gunicorn.error` and `gunicorn.access`, others `wsgiserv.error` and `wsgiserv.access`.
Either name of a pair means the same log.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any, NamedTuple

from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError
from wsgiserv.logs.plain import DATE_FORMAT, LINE_FORMAT

ERROR_NAMES = ("wsgiserv.error", "gunicorn.error")
ACCESS_NAMES = ("wsgiserv.access", "gunicorn.access")

# gunicorn's defaults (its documentation of logconfig_dict): dictionaries refer to the handler `console` and the
# formatter `generic` without defining them.
_DEFAULTS: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {"gunicorn.access": {"level": "INFO", "handlers": ["console"], "propagate": False}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stdout"},
        "error_console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stderr"},
    },
    "formatters": {"generic": {"format": LINE_FORMAT, "datefmt": DATE_FORMAT, "class": "logging.Formatter"}},
}
# gunicorn's default, too. Added only where a dictionary without `loggers` changes what it refers to: else the error log
# of the server says the same, and is not written through logging. Not propagated: `root` would write each line again.
_ERROR_DEFAULT = {"gunicorn.error": {"level": "INFO", "handlers": ["error_console"], "propagate": False}}


class Named(NamedTuple):
    """The loggers named by the configuration; None for a log that it does not configure."""

    error: logging.Logger | None
    access: logging.Logger | None


def apply_logconfig(settings: Settings) -> Named:
    """Apply the first one set of logconfig_dict, logconfig_json and logconfig (gunicorn's order).

    Raises ConfigError naming the setting and its file.
    """
    if settings.logconfig_dict:
        return _apply_dict("logconfig_dict", settings.logconfig_dict)
    if settings.logconfig_json:
        return _apply_json(settings.logconfig_json)
    if settings.logconfig:
        return _apply_ini(settings.logconfig)
    return Named(None, None)


def _apply_json(path: str) -> Named:
    where = f"logconfig_json = {path!r}"
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except OSError as error:
        raise ConfigError(f"{where}: cannot read the file: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{where}: this is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{where}: expected a JSON object, as in logging.config.dictConfig.")
    return _apply_dict(where, config)


def _apply_dict(where: str, config: dict[str, Any]) -> Named:
    import logging.config  # here and below: it is seldom needed, and a seventh of what the master imports

    whole = _DEFAULTS | config
    try:
        for part in ("handlers", "formatters"):
            whole[part] = _DEFAULTS[part] | (config.get(part) or {})
        changes = whole["formatters"]["generic"] is not _DEFAULTS["formatters"]["generic"]
        changes |= whole["handlers"]["error_console"] is not _DEFAULTS["handlers"]["error_console"]
        if changes and "loggers" not in config:
            whole["loggers"] = _DEFAULTS["loggers"] | _ERROR_DEFAULT
        logging.config.dictConfig(whole)
    except Exception as error:  # dictConfig runs the classes of the dictionary
        raise ConfigError(f"{where}: {_reason(error)}.") from error
    return _named(whole.get("loggers") or {})


def _apply_ini(path: str) -> Named:
    import configparser
    import logging.config

    where = f"logconfig = {path!r}"
    if not os.path.isfile(path):  # before Python 3.12 fileConfig takes a missing file for an empty one
        raise ConfigError(f"{where}: there is no such file (looked for {os.path.abspath(path)}).")
    absolute = os.path.abspath(path)
    defaults = {"__file__": absolute, "here": os.path.dirname(absolute)}
    try:
        # Not the default, which would silence the loggers of all modules that the file does not name.
        logging.config.fileConfig(path, defaults=defaults, disable_existing_loggers=False)
        ini = configparser.RawConfigParser()
        ini.read(path, encoding="utf-8")
        names = {ini.get(section, "qualname", fallback="") for section in ini.sections()}
    except Exception as error:  # fileConfig evaluates expressions of the file
        raise ConfigError(f"{where}: {_reason(error)}.") from error
    return _named(names)


def _reason(error: BaseException) -> str:
    # dictConfig wraps: "Unable to configure handler 'x'" is raised from the real error.
    text = str(error) or type(error).__name__
    return f"{text}: {error.__cause__}" if error.__cause__ else text


def _named(names: Any) -> Named:
    pairs = (ERROR_NAMES, ACCESS_NAMES)
    return Named(*[next((logging.getLogger(name) for name in pair if name in names), None) for pair in pairs])
