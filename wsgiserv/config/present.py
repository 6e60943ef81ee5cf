"""Lays out the settings as text for a terminal: --help and --print-config."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from wsgiserv.config import values as parsers
from wsgiserv.config.env_file import FileVariable
from wsgiserv.config.environment import variables_of
from wsgiserv.config.masking import MASK, mask, mask_variable
from wsgiserv.config.setting import Section, Setting, show
from wsgiserv.config.settings import SETTINGS, Settings

# Not the terminal's width: the text is the same in a pipe, in a test and in a report of a problem.
_WIDTH = 80
_FLAGS_WIDTH = 30
_VALUE_WIDTH = 44

# Formats and names, not values of their own: what looks like an assignment there is none.
_NEVER_SECRET = frozenset({"access_log_format", "secure_scheme_headers", "sni_certificates"})

_TOP = """\
Usage: wsgiserv [OPTIONS] [APPLICATION]

Serve a WSGI application. APPLICATION is module:name, for example hello:app.

  wsgiserv hello:app
  wsgiserv -w 4 -k threads -b 0.0.0.0:8000 shop.wsgi:application
  wsgiserv -c gun.py

wsgiserv migrate gunicorn.conf.py prints that file as a wsgiserv.conf.py.
Defaults are in brackets.
"""

_BOTTOM = """\
Every switch has a --no- form, to undo what a configuration file says.
Durations are in seconds or as 500ms, 2m; sizes in bytes or as 10M.
Defaults < environment (PORT, WEB_CONCURRENCY, FORWARDED_ALLOW_IPS < variables
such as WSGISERV_TIMEOUT) < configuration file < GUNICORN_CMD_ARGS and
WSGISERV_CMD_ARGS < flags. --help-all has all settings and variables;
docs/settings.md explains them.
"""

_BOTTOM_OF_ALL = """A name without dashes is a setting for a configuration file.
$NAME is the setting's variable in the environment, or in a file given by
--env-file; its aliases and long flags give further names: WSGISERV_LOG_LEVEL.
An empty variable is as if not set. Values of a flag that may be repeated are
separated by blanks, with quotes as in a shell; a dictionary is JSON.
"""


def help_text(*, all_settings: bool = False) -> str:
    """Return the text of --help, or of --help-all; no line is longer than 80 columns."""
    lines = [_TOP]
    for section in Section:
        rows = [
            (_flags_text(setting), _sentence(setting, with_variables=all_settings))
            for setting in SETTINGS.values()
            if setting.section == section and (setting.flags or all_settings)
        ]
        if rows:
            lines.append(f"{section}:")
            for row in rows:
                lines += _row(*row)
            lines.append("")
    lines.append("Help:")
    lines += _row("-h, --help", "Print this and exit.")
    lines += _row("--help-all", "Print all settings, with their variables, and exit.")
    lines += _row("-v, --version", "Print the version and exit.")
    return "\n".join([*lines, "", _BOTTOM + (_BOTTOM_OF_ALL if all_settings else "")])


def _sentence(setting: Setting, *, with_variables: bool) -> str:
    sentence = f"{setting.help} [{default_text(setting)}]"
    variables = [*variables_of(setting)[:1], *([setting.environment] if setting.environment else [])]
    return f"{sentence} {', else '.join(f'${each}' for each in variables)}" if with_variables else sentence


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
    text = ", ".join(flags) or setting.name
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


def config_text(settings: Settings, sources: Mapping[str, str], variables: Sequence[FileVariable] = ()) -> str:
    """Return the text of --print-config: every setting, its value and its source; with secrets masked.

    Args:
        settings: the configuration.
        sources: the source of each setting.
        variables: the variables of environment files.
    """
    names_width = max(map(len, SETTINGS))
    lines = []
    for section in Section:
        lines.append(f"# {section}")
        for name, setting in SETTINGS.items():
            if setting.section == section:
                text = shown(setting, getattr(settings, name))
                source = sources[name]
                if setting.when_unset and name not in settings.given:
                    source += f", not set: {setting.when_unset}"
                lines.append(f"{name:{names_width}} = {text:{_VALUE_WIDTH}} # {source}")
        lines.append("")
    if variables:
        lines += [*_variable_lines(variables), ""]
    if any(MASK in line for line in lines):
        lines += [f"# {MASK} stands for a value that looks like a secret: it is masked here only.", ""]
    return "\n".join(lines[:-1])


def shown(setting: Setting, value: object) -> str:
    """Return the value of a setting as a person would write it, on one line; with secrets masked."""
    if setting.name not in _NEVER_SECRET:
        value = mask(value)
    # As chmod(1) and a Python file have them: 493 tells nobody that it is 0o755.
    is_mode = setting.parse in (parsers.mode, parsers.mode_or_none)
    return oct(value) if is_mode and isinstance(value, int) else show(value)


def _variable_lines(variables: Sequence[FileVariable]) -> list[str]:
    width = max(len(each.name) for each in variables)
    return [
        "# Variables of environment files",
        *(
            f"# {each.name:{width}} = {mask_variable(each.name, each.value)!r} ({each.place})"
            + ("" if each.used else ": not used, a later file or the environment has it")
            for each in variables
        ),
    ]
