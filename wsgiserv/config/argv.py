"""The command line: flags to raw values, nothing decided yet.

Owns: what the flags are, from the table of settings; how arguments are read; the answer to a mistyped flag.
Must not know: configuration files, defaults, precedence.

It is not `argparse`, which with what it imports is 0.7 MB in every worker, and 10 ms of every start.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Final, Literal, NamedTuple

from wsgiserv.config.gunicorn_compat import FOREIGN
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError

__all__ = ["CommandLine", "Given", "parse"]

_NUMBER: Final = re.compile(r"-\d+|-\d*\.\d+")


class Given(NamedTuple):
    """A setting, ours or gunicorn's, as given by a flag.

    Attributes:
        name: the setting's name.
        raw: the text; a list of texts for a flag that may be repeated; True or False for a switch.
        flag: the flag as written (the last one, if repeated); empty for the application.
    """

    name: str
    raw: object
    flag: str


class CommandLine(NamedTuple):
    """What a command line says.

    Attributes:
        given: the settings given, one entry each.
        wants: ``help`` or ``version`` when one of these flags is there.
    """

    given: list[Given]
    wants: Literal["help", "version"] | None


class _Flag(NamedTuple):
    """What a flag does: the setting's name, what it takes (see `Setting`), and whether it is a ``--no-`` form."""

    name: str
    takes: str
    off: bool = False


def parse(argv: Sequence[str], where: str = "on the command line") -> CommandLine:
    """Read arguments (without the program's name).

    They are written as getopt(3) has it: ``-w 4``, ``-w4``, ``--workers 4``, ``--workers=4``; switches of one letter
    may share a dash; ``--`` ends the flags. Text with a space, and a negative number, is never an unknown flag.

    Args:
        argv: the arguments.
        where: follows a flag in errors: where these arguments came from.

    Raises:
        ConfigError: an unknown or abbreviated flag, a missing value, more than one application.
    """
    given: dict[str, Given] = {}
    applications: list[str] = []
    unknown: list[str] = []
    wants: Literal["help", "version"] | None = None
    rest = deque(argv)
    while rest:
        argument = rest.popleft()
        if argument == "--":
            applications += rest
            break
        if not _looks_like_flag(argument):
            applications.append(argument)
            continue
        text, flag, value = _split(argument)
        if flag is None:
            unknown.append(argument)
            continue
        if flag.takes == "nothing":
            if value is not None and argument.startswith("--"):
                raise _usage(flag, f"takes no value, and {value!r} is given", where)
            if value:
                rest.appendleft(f"-{value}")  # the next of the switches that share a dash
        elif value is None and rest and not _looks_like_flag(rest[0]):
            value = rest.popleft()
        elif value is None and flag.takes != "optional":
            raise _usage(flag, "expected one argument", where)
        if flag.name in ("help", "version"):
            wants = wants or flag.name  # type: ignore[assignment]
        else:
            given[flag.name] = Given(flag.name, _raw(flag, value, given), text)
    if wants is None and unknown:
        raise ConfigError(_unknown_flag(unknown[0], where))
    if wants is None and len(applications) > 1:
        raise ConfigError(
            f"unexpected argument {applications[1]!r} {where}: one application is expected, and that is "
            f"{applications[0]!r}. A flag's value comes right after the flag."
        )
    if applications:
        given["wsgi_app"] = Given("wsgi_app", applications[0], "")
    return CommandLine(list(given.values()), wants)


@cache
def _flags() -> dict[str, _Flag]:
    found = dict.fromkeys(("-h", "--help"), _Flag("help", "nothing"))
    found |= dict.fromkeys(("-v", "--version"), _Flag("version", "nothing"))
    for name, setting in SETTINGS.items():
        found |= dict.fromkeys((*setting.flags, *setting.hidden_flags), _Flag(name, setting.takes))
        found |= dict.fromkeys(setting.off_flags, _Flag(name, "nothing", off=True))
    for name, foreign in FOREIGN.items():
        found |= dict.fromkeys(foreign.flags, _Flag(name, foreign.takes))
    return found


def _looks_like_flag(argument: str) -> bool:
    if len(argument) < 2 or argument[0] != "-":
        return False
    return _split(argument)[1] is not None or not (" " in argument or _NUMBER.fullmatch(argument))


def _split(argument: str) -> tuple[str, _Flag | None, str | None]:
    """Return the flag as written, what it is (None: unknown), and the value that is written with it."""
    flags = _flags()
    text, equals, value = argument.partition("=")
    if text in flags:
        return text, flags[text], value if equals else None
    short = argument[:2]
    return short, flags.get(short), argument[2:]


def _raw(flag: _Flag, value: str | None, given: dict[str, Given]) -> object:
    if flag.takes == "nothing" or value is None:
        return not flag.off
    if flag.takes != "values":
        return value
    before = given.get(flag.name)
    return [*before.raw, value] if before is not None and isinstance(before.raw, list) else [value]


def _usage(flag: _Flag, problem: str, where: str) -> ConfigError:
    names = "/".join(text for text, each in _flags().items() if each == flag)
    return ConfigError(f"argument {names}: {problem} ({where}). Type 'wsgiserv --help' for the flags.")


def _unknown_flag(argument: str, where: str) -> str:
    from difflib import get_close_matches

    flag = argument.partition("=")[0]
    known = ["--help", "--version"]
    for setting in SETTINGS.values():
        known += [name for name in (*setting.flags, *setting.off_flags) if name.startswith("--")]
    near = [name for name in known if flag.startswith("--") and len(flag) > 4 and name.startswith(flag)]
    near = near or get_close_matches(flag.lower().replace("_", "-"), known, n=2, cutoff=0.6)
    message = f"unknown flag {flag!r} {where}."
    if near:
        message += f" Did you mean {' or '.join(near)}? Flags are not abbreviated."
    return f"{message} Type 'wsgiserv --help' for the flags."
