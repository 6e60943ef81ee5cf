"""Reads command lines: flags, from the table of settings, to raw values; decides nothing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Final, Literal, NamedTuple, NoReturn

from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError
from wsgiserv.library_first import LibraryFirst
from wsgiserv.wording import did_you_mean, nearest

_HELP: Final = "Type 'wsgiserv --help' for the flags."
# As `argparse` has it: a negative number, and text with a space, is no flag.
_NO_FLAG: Final = re.compile(r"-(\d+|\d*\.\d+)?$|.* ", re.DOTALL)
# The value of a flag whose value is missing.
_MISSING: Final = object()


class Given(NamedTuple):
    """A setting, ours or gunicorn's, as given by a flag.

    Attributes:
        name: the setting's name.
        raw: the text; a list of texts for a repeatable flag; True or False for a switch.
        flag: the flag as written (the last one, if repeated); empty for the application.
        where: the source of the arguments, as in `parse`.
    """

    name: str
    raw: object
    flag: str
    where: str


class CommandLine(NamedTuple):
    """The contents of a command line.

    Attributes:
        given: the settings given, one entry each.
        wants: ``help``, ``help_all`` or ``version`` when one of these flags is there.
        faults: its mistakes: unknown or abbreviated flags, missing values, more than one application.
    """

    given: list[Given]
    wants: Literal["help", "help_all", "version"] | None
    faults: list[ConfigError]


class _Found(argparse.Namespace):
    """Collects a command line: `argparse` itself would keep values only, and stop at the first mistake."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.given: dict[str, Given] = {}
        self.applications: list[str] = []
        self.faults: list[ConfigError] = []


class _Take(argparse.Action):
    """Notes a value together with the flag as written, for messages."""

    def __call__(self, parser: object, found: Any, raw: Any, flag: str | None = None) -> None:
        if flag is None:  # once for all adjacent ones; `argparse` leaves later ones to the caller
            found.applications += raw
        elif raw is _MISSING:
            names = "/".join(self.option_strings)
            found.faults.append(ConfigError(f"WS1002 argument {names}: expected one argument ({found.where}). {_HELP}"))
        else:
            if self.nargs == 0:
                raw = self.const
            elif self.dest in SETTINGS and SETTINGS[self.dest].kind.arity == "many":
                before = found.given.get(self.dest)
                raw = [*before.raw, raw] if before else [raw]
            found.given[self.dest] = Given(self.dest, raw, flag, found.where)


class _Parser(argparse.ArgumentParser):
    """The parser, and two facts about its flags.

    Attributes:
        switches: the flags without a value.
        unknown_behind: matches an unknown letter behind switches of one letter, as in ``-DZ``.
    """

    switches: list[str]
    unknown_behind: re.Pattern[str]

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError, in place of ending the process. Never called for arguments from `_readable`."""
        raise ConfigError(f"WS1000 {message}. {_HELP}")


def parse(argv: Sequence[str], where: str = "on the command line") -> CommandLine:
    """Read arguments (without the program's name).

    They are written as getopt(3) has it: ``-w 4``, ``-w4``, ``--workers 4``, ``--workers=4``; switches of one letter
    may share a dash; ``--`` ends the flags. Text with a space, and a negative number, is never an unknown flag.

    Args:
        argv: the arguments.
        where: follows a flag in errors: the source of these arguments.
    """
    found = _Found(where)
    end = argv.index("--") if "--" in argv else len(argv)
    _, rest = _parser().parse_known_args(_readable(argv[:end], found), found)
    unknown = [argument for argument in rest if argument.startswith("-") and not _NO_FLAG.match(argument)]
    found.faults += [_unknown_flag(argument, where) for argument in unknown]
    found.applications += [argument for argument in rest if argument not in unknown]
    # An application, or a file, may have a name that begins with a dash. `argparse` gives what is behind "--" back in
    # another way in each version of Python.
    found.applications += argv[end + 1 :]
    # What follows an unknown flag may be its value, so one mistake would be told as two.
    may_be_value = any("=" not in argument for argument in unknown)
    for argument in [] if may_be_value else found.applications[1:]:
        found.faults.append(
            ConfigError(
                f"WS1004 unexpected argument {argument!r} {where}: the application is {found.applications[0]!r}, and "
                "there is one only. A flag's value comes right after the flag."
            )
        )
    if found.applications:
        found.given["wsgi_app"] = Given("wsgi_app", found.applications[0], "", where)
    # Whatever else is wrong: who asks for help may have no idea of the rest.
    wanted = [found.given.pop(name) for name in ("help", "help_all", "version") if name in found.given]
    return CommandLine(list(found.given.values()), wanted[0].name if wanted else None, found.faults)  # type: ignore[arg-type]


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser, for programs that look at it; `parse` reads command lines."""
    return _parser()


@cache
def _parser() -> _Parser:
    with LibraryFirst():  # for its headings `argparse` asks `gettext`, which imports `locale` by then
        parser = _Parser(
            add_help=False,
            # With abbreviations every new flag could change what an old command line means.
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            # One is made for each flag; without a width each asks for the terminal's, by `shutil`, `bz2`, `lzma`.
            formatter_class=partial(argparse.HelpFormatter, width=80),
        )
    switches: list[str] = []
    others: list[str] = []

    def add_switch(name: str, flags: Sequence[str], const: bool = True) -> None:
        parser.add_argument(*flags, dest=name, action=_Take, nargs=0, const=const)
        switches.extend(flags)

    def add_value(name: str, flags: Sequence[str], without: object = _MISSING) -> None:
        # Not one value exactly: `argparse` would stop at a flag without it, and the rest would not be checked.
        parser.add_argument(*flags, dest=name, action=_Take, nargs="?", const=without)
        others.extend(flags)

    add_switch("help", ("-h", "--help"))
    add_switch("help_all", ("--help-all",))
    add_switch("version", ("-v", "--version"))
    for name, setting in SETTINGS.items():
        flags = (*setting.flags, *setting.hidden_flags)
        if flags and setting.kind.arity == "none":
            add_switch(name, flags)
            add_switch(name, setting.off_flags, const=False)
        elif flags:
            add_value(name, flags, True if setting.kind.arity == "optional" else _MISSING)
    for name, ignored in GUNICORN_ONLY.items():
        if ignored.flags:
            (add_switch if ignored.switch else add_value)(name, ignored.flags)
    parser.add_argument("wsgi_app", nargs="*", action=_Take)
    letters = "".join(flag[1] for flag in switches if len(flag) == 2)
    known = letters + "".join(flag[1] for flag in others if len(flag) == 2)
    parser.switches, parser.unknown_behind = switches, re.compile(f"-[{letters}]+([^{known}])")
    return parser


def _readable(argv: Sequence[str], found: _Found) -> list[str]:
    """Return the arguments with switches' values, and unknown switches behind a known one, cut off.

    `argparse` stops at both, 3.11 in another way than later versions.
    """
    parser, kept = _parser(), []
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if equals and flag in parser.switches:
            found.faults.append(
                ConfigError(f"WS1003 argument {flag}: takes no value, and {value!r} is given ({found.where}). {_HELP}")
            )
            argument = flag
        elif match := parser.unknown_behind.match(argument):
            found.faults.append(_unknown_flag(f"-{match[1]}", found.where))
            argument = argument[: match.start(1)]
        kept.append(argument)
    return kept


def _unknown_flag(argument: str, where: str) -> ConfigError:
    flag = argument.partition("=")[0]
    known = ["--help", "--help-all", "--version"]
    for setting in SETTINGS.values():
        known += [name for name in (*setting.flags, *setting.off_flags) if name.startswith("--")]
    # An abbreviation first: "--work" looks as much like "--fork" as like "--workers".
    near = [name for name in known if re.match("--..", flag) and name.startswith(flag)]
    near = near or nearest(flag.lower().replace("_", "-"), known, limit=2)
    advice = f" {did_you_mean(near)} Flags are not abbreviated." if near else ""
    return ConfigError(f"WS1001 unknown flag {flag!r} {where}.{advice} {_HELP}")
