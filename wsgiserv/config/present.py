"""Lays out the settings as text for a terminal: --help and --print-config."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from wsgiserv.config import values as parsers
from wsgiserv.config.setting import Section, Setting, show
from wsgiserv.config.settings import SETTINGS, Settings

# Not the terminal's width: the text is the same in a pipe, in a test and in a report of a problem.
_WIDTH = 80
_FLAGS_WIDTH = 30
_VALUE_WIDTH = 44

_TOP = """\
Usage: wsgiserv [OPTIONS] [APPLICATION]

Serve a WSGI application. APPLICATION is module:name, for example hello:app.

  wsgiserv hello:app
  wsgiserv -w 4 -k threads -b 0.0.0.0:8000 shop.wsgi:application
  wsgiserv -c gun.py

Defaults are in brackets.
"""

_BOTTOM = """\
Every switch has a --no- form, to undo what a configuration file says.
Durations are in seconds or as 500ms, 2m; sizes in bytes or as 10M.
Defaults < configuration file < environment (WEB_CONCURRENCY, PORT,
GUNICORN_CMD_ARGS, WSGISERV_CMD_ARGS) < flags. Further settings, for a
configuration file only, such as the hooks: docs/settings.md.
"""


def help_text() -> str:
    """Return the text of --help; no line is longer than 80 columns."""
    lines = [_TOP]
    for section in Section:
        rows = [
            (_flags_text(setting), f"{setting.help} [{default_text(setting)}]")
            for setting in SETTINGS.values()
            if setting.section == section and setting.flags
        ]
        if rows:
            lines.append(f"{section}:")
            for row in rows:
                lines += _row(*row)
            lines.append("")
    lines.append("Help:")
    lines += _row("-h, --help", "Print this and exit.")
    lines += _row("-v, --version", "Print the version and exit.")
    return "\n".join([*lines, "", _BOTTOM])


def _row(flags: str, sentence: str) -> list[str]:
    indent = " " * _FLAGS_WIDTH
    first = f"  {flags}"
    # Long flags have a line of their own, as in every --help: else all sentences would start further right.
    above = [first] if len(first) >= _FLAGS_WIDTH - 1 else []
    start = indent if above else f"{first:{_FLAGS_WIDTH}}"
    return above + textwrap.wrap(
        sentence, _WIDTH, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
    )


def _flags_text(setting: Setting) -> str:
    # A switch that is on by default is of use in its --no- form only; those of the others go without saying.
    flags = (*setting.flags, *setting.off_flags) if setting.default is True else setting.flags
    text = ", ".join(flags)
    return f"{text} {setting.metavar}" if setting.metavar else text


def default_text(setting: Setting) -> str:
    """Return the default in words, the same on every host."""
    default = setting.default
    if setting.show_default:
        return setting.show_default
    if isinstance(default, bool):
        return "on" if default else "off"
    if default in (None, (), {}):
        return "none"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return default if isinstance(default, str) else show(default)


def config_text(settings: Settings, sources: Mapping[str, str]) -> str:
    """Return the text of --print-config: every setting, its value and its source."""
    names_width = max(map(len, SETTINGS))
    lines = []
    for section in Section:
        lines.append(f"# {section}")
        for name, setting in SETTINGS.items():
            if setting.section == section:
                value = getattr(settings, name)
                # As chmod(1) and a Python file have them: 493 tells nobody that it is 0o755.
                is_mode = setting.parse in (parsers.mode, parsers.mode_or_none) and value is not None
                shown = oct(value) if is_mode else show(value)
                source = sources[name]
                if setting.when_unset and name not in settings.given:
                    source += f", not set: {setting.when_unset}"
                lines.append(f"{name:{names_width}} = {shown:{_VALUE_WIDTH}} # {source}")
        lines.append("")
    return "\n".join(lines[:-1])
