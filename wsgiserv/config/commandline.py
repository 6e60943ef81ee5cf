"""The command line: flags to raw values, nothing decided yet.

Owns: the argument parser made from the table of settings, and the answer to a mistyped flag.
Must not know: configuration files, defaults, precedence.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, NoReturn

from wsgiserv.config.foreign import FOREIGN
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError

__all__ = ["CommandLine", "Given", "parse"]

_NARGS: dict[str, int | str | None] = {"value": None, "values": None, "nothing": 0, "optional": "?"}


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


def parse(argv: Sequence[str], where: str = "on the command line") -> CommandLine:
    """Read arguments (without the program's name).

    Args:
        argv: the arguments.
        where: follows a flag in errors: where these arguments came from.

    Raises:
        ConfigError: an unknown or abbreviated flag, a missing value, more than one application.
    """
    try:
        namespace, extra = _parser().parse_known_args(list(argv))
    except _UsageError as error:
        raise ConfigError(f"{error} ({where}). Type 'wsgiserv --help' for the flags.") from None
    found: dict[str, Given] = getattr(namespace, "given", {})
    wants = getattr(namespace, "wants", None)
    if wants is None:
        for argument in extra:
            if argument.startswith("-") and argument != "-":
                raise ConfigError(_unknown_flag(argument, where))
        applications = [*namespace.application, *extra]
        if len(applications) > 1:
            raise ConfigError(
                f"unexpected argument {applications[1]!r} {where}: one application is expected, and that is "
                f"{applications[0]!r}. A flag's value comes right after the flag."
            )
        if applications:
            found["wsgi_app"] = Given("wsgi_app", applications[0], "")
    return CommandLine(list(found.values()), wants)


class _UsageError(Exception):
    """A message of argparse."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


class _Note(argparse.Action):
    """Notes the flag as it was written, so that messages can name it."""

    def __init__(self, option_strings: Sequence[str], dest: str, takes: str, off: bool = False) -> None:
        super().__init__(option_strings, dest, nargs=_NARGS[takes], default=argparse.SUPPRESS)
        self._takes = takes
        self._off = off

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = namespace.__dict__.setdefault("given", {})
        if self._takes == "nothing" or values is None:
            values = not self._off
        elif self._takes == "values":
            values = [*given[self.dest].raw, values] if self.dest in given else [values]
        given[self.dest] = Given(self.dest, values, option_string or "")


@cache
def _parser() -> _Parser:
    parser = _Parser(prog="wsgiserv", add_help=False, allow_abbrev=False)
    for name, setting in SETTINGS.items():
        flags = (*setting.flags, *setting.hidden_flags)
        if flags:
            parser.add_argument(*flags, dest=name, action=_Note, takes=setting.takes)
        if setting.off_flags:
            parser.add_argument(*setting.off_flags, dest=name, action=_Note, takes="nothing", off=True)
    for name, foreign in FOREIGN.items():
        if foreign.flags:
            parser.add_argument(*foreign.flags, dest=name, action=_Note, takes=foreign.takes)
    parser.add_argument(
        "-h", "--help", dest="wants", action="store_const", const="help", default=argparse.SUPPRESS
    )
    parser.add_argument(
        "-v", "--version", dest="wants", action="store_const", const="version", default=argparse.SUPPRESS
    )
    parser.add_argument("application", nargs="*")
    return parser


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
