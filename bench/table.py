"""The frame of a measurement: its options, its rounds, its table."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from bench.servers import CLASSES, Tree

Entry = TypeVar("Entry")


def options_of(doc: str | None, *, choose: Sequence[str] = (), **defaults: Any) -> argparse.Namespace:
    """Read the command line of a measurement, and answer ``--help`` with its docstring.

    Args:
        doc: the module's docstring.
        choose: shared options that it has: ``classes`` (``-k sync,gevent``), ``trees`` (``--trees OLD NEW``).
        defaults: its own options by name, each with its default. False makes a flag, a type an option without one.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if "classes" in choose:
        classes, text = ",".join(CLASSES), "separated by commas (default: all)"
        parser.add_argument("-k", "--class", dest="classes", metavar="CLASSES", default=classes, help=text)
    if "trees" in choose:
        text = "compare two checkouts in place of measuring this one"
        parser.add_argument("--trees", nargs=2, metavar=("OLD", "NEW"), type=Tree.at, help=text)
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(option, action="store_true")
        elif isinstance(default, type):
            parser.add_argument(option, type=default)
        else:
            parser.add_argument(option, type=type(default), default=default, help="(default: %(default)s)")
    found = parser.parse_args()
    if "classes" in choose:
        found.classes = some_of(found.classes, CLASSES)
    return found


def some_of(names: str, known: Iterable[str]) -> list[str]:
    """Split names at the commas; exit with status 2 when one is unknown."""
    found = names.split(",")
    if unknown := [name for name in found if name not in known]:
        say(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
        sys.exit(2)
    return found


def need(*programs: str) -> None:
    """Exit with status 2 when a program is not installed."""
    if missing := [program for program in programs if shutil.which(program) is None]:
        say(f"not installed: {', '.join(missing)} (Debian: apt-get install wrk apache2-utils nginx)")
        sys.exit(2)


def say(text: str) -> None:
    """Print progress to the standard error."""
    print(text, file=sys.stderr, flush=True)


def turns(rounds: int, entries: Sequence[Entry]) -> Iterator[tuple[int, Entry]]:
    """Yield each entry once a round, every other round in reverse.

    Another load on the machine meets all entries alike, and none profits from always being the first.
    """
    for number in range(1, rounds + 1):
        for entry in entries if number % 2 else reversed(entries):
            yield number, entry


class Table:
    """A Markdown table with text in its first column; a float has two decimals, an int thousands.

    Args:
        heads: of the columns.
        write: is called with each line.
    """

    def __init__(self, *heads: str, write: Callable[[str], object] = print) -> None:
        self._write = write
        self.row(*heads)
        write("|---|" + "---:|" * (len(heads) - 1))

    def row(self, *cells: object) -> None:
        """Write a row."""
        self._write(f"| {' | '.join(map(cell, cells))} |")


def cell(value: object) -> str:
    """Return a value as a table shows it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def ms(*seconds: float) -> list[str]:
    """Return cells with milliseconds."""
    return [f"{each * 1000:.2f} ms" for each in seconds]
