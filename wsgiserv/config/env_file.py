"""Reads environment files (``--env-file``): lines NAME=value."""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from typing import Final, NamedTuple

from wsgiserv.config.file import note_read
from wsgiserv.errors import ConfigError

_NAME: Final = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=")
_BETWEEN: Final = re.compile(r"(?:[ \t]*(?:[#;][^\n]*)?\n)*[ \t]*(?:[#;][^\n]*\Z)?")
# A hash begins a comment behind a blank alone: URLs and colours have one, too.
_COMMENT: Final = re.compile(r"[ \t]#")
_SINGLE: Final = re.compile(r"[ \t]*'([^']*)'")
_DOUBLE: Final = re.compile(r'[ \t]*"((?:[^"\\]|\\.)*)"', re.DOTALL)
_QUOTE: Final = re.compile(r"[ \t]*(['\"])")
_REST: Final = re.compile(r"[ \t]*(?:(?<=[ \t])#[^\n]*)?(?:\n|\Z)")
_ESCAPE: Final = re.compile(r'\\([nrt"\\$])')
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t"}

_ACCEPTED: Final = "NAME=value, NAME='value', NAME=\"value\", export NAME=value, an empty line, or a comment after #"


class FileVariable(NamedTuple):
    """A variable of an environment file.

    Attributes:
        name: its name.
        value: its value; may be empty.
        place: the file, as given, and the line.
        used: False when the process's own environment has the name already.
    """

    name: str
    value: str
    place: str
    used: bool = True


def read_env_file(location: str, directory: str) -> tuple[list[FileVariable], list[ConfigError]]:
    """Return the variables of a file, and its faults.

    Args:
        location: the path, as given.
        directory: where a relative path starts.
    """
    path = os.path.join(directory, location)
    try:
        with open(path, "rb") as file:
            note_read(path, os.fstat(file.fileno()))
            content = file.read().removeprefix(BOM_UTF8)
            content.decode()
    except OSError as error:
        problem = f"WS1064 cannot read the environment file {path}: {error.strerror}."
    except UnicodeDecodeError as error:
        problem = f"WS1065 the environment file {path} is not UTF-8 (byte {error.start})."
    else:
        # As `os.environ` has bytes that come from outside, in locales without UTF-8, too.
        return parse_env_file(os.fsdecode(content), location)
    return [], [ConfigError(f"{problem} Accepted: the path of a file with lines NAME=value, after --env-file.")]


def parse_env_file(text: str, location: str) -> tuple[list[FileVariable], list[ConfigError]]:
    """Return the variables of a file's text, in order, and its faults: one for each line that is wrong."""
    text = text.replace("\r\n", "\n")
    found: list[FileVariable] = []
    faults: list[ConfigError] = []
    position = 0
    while (position := _after(_BETWEEN, text, position)) < len(text):
        line = text.count("\n", 0, position) + 1
        place = f"{location} line {line}"
        name = _NAME.match(text, position)
        if name is None:
            # Never the line itself: it may be the rest of a secret.
            faults.append(_fault(place, "is not NAME=value"))
            position = _end_of_line(text, position)
            continue
        value, position, problem = _value(text, name.end())
        if not problem and "\0" in value:
            problem = "has a NUL character"
        if problem:
            faults.append(_fault(place, f"{name[1]} {problem}"))
        else:
            found.append(FileVariable(name[1], value, place))
    return found, faults


def _value(text: str, start: int) -> tuple[str, int, str]:
    """Return the value that begins at ``start``, the start of the next line, and the problem with the value."""
    quote = _QUOTE.match(text, start)
    if quote is None:
        end = _end_of_line(text, start)
        comment = _COMMENT.search(text, start, end)
        return text[start : comment.start() if comment else end].strip(), end, ""
    found = (_SINGLE if quote[1] == "'" else _DOUBLE).match(text, start)
    if found is None:
        # The rest of the file may belong to the value.
        return "", len(text), "has a quote that does not close"
    value = found[1]
    if quote[1] == '"':
        value = _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], escape[1]), value)
    rest = _REST.match(text, found.end())
    if rest is None:
        return "", _end_of_line(text, found.end()), "has text behind the closing quote"
    return value, rest.end(), ""


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _end_of_line(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end + 1


def _fault(place: str, problem: str) -> ConfigError:
    return ConfigError(f"WS1066 {place}: {problem}. Accepted: {_ACCEPTED}.")
