"""Reads what concerns PasteDeploy: the setting `paste`, and the server's section of a file that pserve serves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from wsgiserv.config.argv import Given
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError
from wsgiserv.wording import did_you_mean, nearest

# They name the application, or end the command in place of serving.
_COMMANDS = frozenset({"wsgi_app", "paste", "check_config", "print_config"})
# A backslash before an equals sign makes it part of the key (gunicorn's rule).
_EQUALS = re.compile(r"(?<!\\)=")


def split_uri(uri: str) -> tuple[str, str]:
    """Return the path of the file, and the rest from the ``#`` on: the name of an application in it."""
    path, mark, name = uri.partition("#")
    return path, mark + name


def has_loggers(path: str) -> bool:
    """Tell whether a file configures loggers, for `logconfig`. A malformed file is PasteDeploy's to refuse."""
    import configparser

    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError):
        return False
    return parser.has_section("loggers")


def global_conf(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return the variables of `raw_paste_global_conf`."""
    split = (_EQUALS.split(pair, maxsplit=1) for pair in pairs)
    return {key.replace("\\=", "="): value.replace("\\=", "=") for key, value in split}


def of_server_section(section: Mapping[str, object], where: str) -> Iterator[Given]:
    """Yield the settings of a section such as ``[server:main]``.

    Args:
        section: its keys, without ``use``.
        where: the source, for messages.

    Raises:
        ConfigError: all keys that are no settings.
    """
    values = {key.lower(): value for key, value in section.items() if value is not None}
    host, port = (str(values.pop(name, "") or "").strip() for name in ("host", "port"))
    if port:
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host or "127.0.0.1"
        values["bind"] = f"{host}:{port}"
    elif host:
        values["bind"] = host.split(",")
    by_alias = {alias: name for name, setting in SETTINGS.items() for alias in setting.aliases}
    faults = []
    for key, value in values.items():
        name = by_alias.get(key, key)
        if (name in SETTINGS or name in GUNICORN_ONLY) and name not in _COMMANDS:
            yield Given(name, value, key, where)
        else:
            near = nearest(key, [*SETTINGS, "host", "port"], limit=1)
            advice = f" {did_you_mean(near)}" if near else ""
            faults.append(
                ConfigError(
                    f"WS1096 {key} = {value!r} ({where}) is not a setting.{advice} Accepted: host, port, config, and "
                    "the settings of a configuration file."
                )
            )
    if faults:
        raise ConfigError.of(faults)


def check_file(uri: str, directory: str) -> str:
    """Return the URI with an absolute path. Raises ValueError when there is no such file."""
    path, name = split_uri(uri)
    path = os.path.normpath(os.path.join(directory, path))
    if not os.path.isfile(path):
        raise ValueError(f"there is no such file: {path}")
    return path + name
