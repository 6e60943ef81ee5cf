"""Runs ``wsgiserv migrate FILE``: reads gunicorn's configuration file, prints one for wsgiserv."""

from __future__ import annotations

import codecs
import io
import os
import sys
import tokenize
from collections.abc import Sequence

from wsgiserv.errors import ConfigError, ExitStatus
from wsgiserv.migrate.rewrite import migrate

_USAGE = """\
Usage: wsgiserv migrate [-o OUTPUT] FILE

Print gunicorn's configuration FILE for wsgiserv, with comments on what is
different. FILE is read, and not run.

  wsgiserv migrate gunicorn.conf.py
  wsgiserv migrate -o wsgiserv.conf.py gunicorn.conf.py

  -o OUTPUT, --output OUTPUT  Write to this file, which must not exist.
  -h, --help                  Print this and exit.

To serve a module of the name migrate: wsgiserv migrate:app
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command with the arguments behind its name, and return the exit status.

    Raises:
        ConfigError: wrong usage, a file that cannot be read, is not Python, or cannot be written.
    """
    if "-h" in arguments or "--help" in arguments:
        print(_USAGE, end="")
        return ExitStatus.OK
    path, output = _parsed(arguments)
    text, encoding = _read(path)
    try:
        made = migrate(text, os.path.basename(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(path, error) from None
    _write(output, made.text.encode(encoding, "backslashreplace"))
    for line in made.refused:
        print(f"wsgiserv: warning: {path} {line}", file=sys.stderr)
    return ExitStatus.OK


def _parsed(arguments: Sequence[str]) -> tuple[str, str | None]:
    """Return the input's path and the output's, if there is one."""
    rest = list(arguments)
    files: list[str] = []
    output = None
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("-o", "--output") and (equals or rest):
            output = value if equals else rest.pop(0)
        elif word == "--":
            files, rest = files + rest, []
        elif word.startswith("-"):
            raise _usage(f"{word!r} is no flag of it, or its value is missing")
        else:
            files.append(word)
    if len(files) != 1:
        raise _usage("no file is named" if not files else f"{len(files)} files are named: {' '.join(files)}")
    return files[0], output


def _usage(problem: str) -> ConfigError:
    return ConfigError(
        f"WS1045 wsgiserv migrate: {problem}. Accepted: wsgiserv migrate [-o OUTPUT] FILE, with gunicorn's "
        "configuration file. To serve a module of this name: wsgiserv migrate:app"
    )


def _read(path: str) -> tuple[str, str]:
    """Return a file's text, with ``\\n`` at the ends of lines, and its encoding."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    # A mark of the byte order would stand before the comments that are added.
    encoding = "utf-8" if codecs.lookup(encoding).name == "utf-8-sig" else encoding
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text if text.endswith("\n") else f"{text}\n", encoding


def _unreadable(path: str, error: Exception) -> ConfigError:
    problem, where = str(error) or type(error).__name__, ""
    if isinstance(error, OSError):
        problem = error.strerror or problem
    elif isinstance(error, SyntaxError):
        problem, where = f"it is not Python: {error.msg}", f", line {error.lineno}" if error.lineno else ""
    return ConfigError(
        f"WS1046 cannot read {path}{where}: {problem}. Accepted: gunicorn's configuration file, such as "
        "gunicorn.conf.py"
    )


def _write(output: str | None, data: bytes) -> None:
    if output is None or output == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
        return
    try:
        with open(output, "xb") as file:
            file.write(data)
    except OSError as error:
        raise ConfigError(
            f"WS1047 cannot write {output}: {error.strerror}. Accepted: a file that does not exist yet, in a directory "
            "that does"
        ) from None
