"""Reads command lines: flags, from the table of settings, to raw values; decides nothing."""

# Not by `argparse`: it stops at the first mistake, does not keep a flag as it was written, reads ``-DZ`` and
# ``--switch=value`` in another way in each version of Python, and imports `gettext` and `locale` for its headings.

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.setting import Arity
from wsgiserv.config.settings import SETTINGS
from wsgiserv.errors import ConfigError
from wsgiserv.wording import did_you_mean, nearest

_HELP: Final = "Type 'wsgiserv --help' for the flags."
# A negative number, and text with a space (a log format), may be a value although it begins with a dash.
_NO_FLAG: Final = re.compile(r"-|-\d*\.?\d+|.* .*", re.DOTALL)


class Given(NamedTuple):
    """A setting, ours or gunicorn's, as given by a flag.

    Attributes:
        name: the setting's name.
        raw: the text; a list of texts for a repeatable flag; True or False for a switch.
        flag: the flag as written (the last one, if repeated); empty for the application.
    """

    name: str
    raw: object
    flag: str


class CommandLine(NamedTuple):
    """The contents of a command line.

    Attributes:
        given: the settings given, one entry each.
        wants: ``help`` or ``version`` when one of these flags is there.
        faults: its mistakes: unknown or abbreviated flags, missing values, more than one application.
    """

    given: list[Given]
    wants: str | None
    faults: list[ConfigError]


class _Flag(NamedTuple):
    """One flag, with the setting's other ones.

    Attributes:
        name: the setting.
        arity: see `Kind`.
        names: all flags with this meaning.
        const: the value of a switch.
    """

    name: str
    arity: Arity
    names: tuple[str, ...]
    const: bool = True


@cache
def _flags() -> dict[str, _Flag]:
    """Return all flags."""
    rows = [_Flag("help", "none", ("-h", "--help")), _Flag("version", "none", ("-v", "--version"))]
    for name, setting in SETTINGS.items():
        rows.append(_Flag(name, setting.kind.arity, (*setting.flags, *setting.hidden_flags)))
        rows.append(_Flag(name, "none", setting.off_flags, const=False))
    rows += [
        _Flag(each.name, "none" if each.switch else "one", each.flags) for each in GUNICORN_ONLY.values()
    ]
    return {name: row for row in rows for name in row.names}


def _flag_in(argument: str) -> str:
    """Return the flag that an argument begins with, known or not, without its value."""
    written = argument.partition("=")[0]
    # -w4, and the first of several switches behind one dash. With abbreviations of long flags every new flag could
    # change what an old command line means.
    return written if written in _flags() or argument[:2] not in _flags() else argument[:2]


def _is_flag(argument: str) -> bool:
    return argument.startswith("-") and (_flag_in(argument) in _flags() or not _NO_FLAG.fullmatch(argument))


class _Line:
    """A command line as far as it has been read."""

    def __init__(self, argv: Sequence[str], where: str) -> None:
        self.where = where
        self.todo = list(reversed(argv))
        self.given: dict[str, Given] = {}
        self.applications: list[str] = []
        self.faults: list[ConfigError] = []
        # What follows an unknown flag may be its value, so one mistake would be told as two.
        self.may_be_value = False

    def refuse(self, fault: str) -> None:
        """Note a fault, and go on: a person wants to see all of them."""
        self.faults.append(ConfigError(fault))

    def read(self) -> None:
        """Read all arguments."""
        while self.todo:
            argument = self.todo.pop()
            # An application, or a file, may have a name that begins with a dash.
            if argument == "--":
                self.applications += reversed(self.todo)
                return
            if _is_flag(argument):
                self._read_flag(argument)
            else:
                self.applications.append(argument)

    def _read_flag(self, argument: str) -> None:
        written = _flag_in(argument)
        rest = argument[len(written) :]
        flag = _flags().get(written)
        if flag is None:
            self.refuse(_unknown_flag(written, self.where))
            self.may_be_value |= not rest  # "=" has the value in it
            return
        raw: object = flag.const
        if flag.arity == "none":
            self._read_behind_switch(written, rest)
        elif rest:
            raw = rest.removeprefix("=")  # of -w=4, too, as `argparse` and so gunicorn has it
        elif self.todo and not _is_flag(self.todo[-1]):
            raw = self.todo.pop()
        elif flag.arity != "optional":
            names = "/".join(flag.names)
            self.refuse(f"WS1002 argument {names}: expected one argument ({self.where}). {_HELP}")
            return
        if flag.arity == "many":
            before = self.given.get(flag.name)
            raw = [*(before.raw if before else ()), raw]  # type: ignore[misc]
        self.given[flag.name] = Given(flag.name, raw, written)

    def _read_behind_switch(self, written: str, rest: str) -> None:
        if rest.startswith("="):
            self.refuse(
                f"WS1003 argument {written}: takes no value, and {rest[1:]!r} is given ({self.where}). {_HELP}"
            )
        elif rest and f"-{rest[0]}" in _flags():
            self.todo.append(f"-{rest}")
        elif rest:
            self.refuse(_unknown_flag(f"-{rest[0]}", self.where))


def parse(argv: Sequence[str], where: str = "on the command line") -> CommandLine:
    """Read arguments (without the program's name).

    They are written as getopt(3) has it: ``-w 4``, ``-w4``, ``--workers 4``, ``--workers=4``; switches of one letter
    may share a dash; ``--`` ends the flags. Text with a space, and a negative number, is never an unknown flag.

    Args:
        argv: the arguments.
        where: follows a flag in errors: the source of these arguments.
    """
    line = _Line(argv, where)
    line.read()
    given, applications = line.given, line.applications
    # A misplaced value ("-D yes") looks like a second application.
    for argument in [] if line.may_be_value else applications[1:]:
        line.refuse(
            f"WS1004 unexpected argument {argument!r} {where}: the application is {applications[0]!r}, and there is "
            "one only. A flag's value comes right after the flag."
        )
    if applications:
        given["wsgi_app"] = Given("wsgi_app", applications[0], "")
    # Whatever else is wrong: who asks for help may have no idea of the rest.
    wanted = [name for name in ("help", "version") if given.pop(name, None)]
    return CommandLine(list(given.values()), wanted[0] if wanted else None, line.faults)


def _unknown_flag(flag: str, where: str) -> str:
    known = ["--help", "--version"]
    for setting in SETTINGS.values():
        known += [name for name in (*setting.flags, *setting.off_flags) if name.startswith("--")]
    # An abbreviation first: "--work" looks as much like "--fork" as like "--workers".
    near = [name for name in known if re.match("--..", flag) and name.startswith(flag)]
    near = near or nearest(flag.lower().replace("_", "-"), known, limit=2)
    advice = f" {did_you_mean(near)} Flags are not abbreviated." if near else ""
    return f"WS1001 unknown flag {flag!r} {where}.{advice} {_HELP}"
