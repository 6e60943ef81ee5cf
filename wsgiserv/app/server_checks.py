"""Looks in an application's sources for checks of the server's name, such as ``"gunicorn" in sys.argv[0]``.

A search of texts: nothing is imported or run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from math import inf
from os import read
from time import monotonic
from typing import Final, NamedTuple

from wsgiserv.config.settings import Settings

_MOST_FILES: Final = 1000
_MOST_ENTRIES: Final = 10_000
# Larger ones are read in part. From 128 KiB on the C library takes the buffer from the kernel, anew each time.
_LONGEST_FILE: Final = 96 << 10

_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})
_NAME: Final = b"gunicorn"
# How far the name and the place may be apart, in an expression that is broken into a few lines.
_REACH: Final = 120
_PLACE: Final = re.compile(rb"SERVER_SOFTWARE|\bargv\b|sys\.modules")
# The name as a text of its own, or within one, as in "gunicorn/20" and "/bin/gunicorn".
_TEXT: Final = re.compile(rb"""["'][^"'\n]{0,20}gunicorn[^"'\n]{0,20}["']""")


class Found(NamedTuple):
    """A check.

    Attributes:
        path: the source.
        line: the number of its line.
        text: that line.
    """

    path: str
    line: int
    text: str


def search_path(settings: Settings) -> list[str]:
    """Return the directories of the project: those of `pythonpath`, and `chdir`."""
    entries = [entry for entry in (settings.pythonpath or "").split(",") if entry]
    return [os.path.join(settings.chdir, entry) for entry in [*reversed(entries), "."]]


def find_check(module: str, directories: list[str], until: float = inf) -> Found | None:
    """Return the first check in the package of ``module``, or in the directory of a module without a package.

    Args:
        module: the application's module, as ``shop.wsgi``.
        directories: where its top package may be. Installed packages are never looked at.
        until: when to give up, ``time.monotonic()`` seconds.
    """
    top = module.partition(".")[0]
    for directory in map(os.path.normpath, directories):
        if not _INSTALLED.isdisjoint(directory.split(os.sep)):
            continue
        package = os.path.join(directory, top)
        if os.path.isdir(package):
            return _first(_sources(package, recursive=True), until)
        if os.path.isfile(f"{package}.py"):
            return _first([f"{package}.py", *_sources(directory, recursive=False)], until)
    return None


def _sources(directory: str, *, recursive: bool) -> Iterator[str]:
    """Yield the Python files of a directory, those at the top first."""
    pending, entries = [directory], 0
    while pending:
        try:
            with os.scandir(pending.pop(0)) as found:
                for entry in found:
                    entries += 1
                    if entries > _MOST_ENTRIES:
                        return
                    if entry.name.endswith(".py"):
                        yield entry.path
                    elif recursive and _may_hold_sources(entry):
                        pending.append(entry.path)
        except OSError:
            continue


def _may_hold_sources(entry: os.DirEntry[str]) -> bool:
    return entry.name.isidentifier() and entry.name != "__pycache__" and entry.is_dir(follow_symlinks=False)


def _first(paths: Iterable[str], until: float) -> Found | None:
    for path in islice(paths, _MOST_FILES):
        if monotonic() > until:
            return None
        source = _read(path)
        at = source.find(_NAME)  # nearly all sources end here
        while at >= 0:
            start = source.rfind(b"\n", 0, at) + 1
            if _is_check(source, start, at):
                line = source[start:].split(b"\n", 1)[0].strip().decode("utf-8", "backslashreplace")
                return Found(path, source.count(b"\n", 0, at) + 1, line[:120])
            at = source.find(_NAME, at + 1)
    return None


def _read(path: str) -> bytes:
    try:
        # Not open(), whose file object costs three times as much as these calls. A FIFO would not answer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return read(fd, _LONGEST_FILE)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _is_check(source: bytes, start: int, at: int) -> bool:
    """Tell whether the name at ``at``, in a line from ``start`` on, is compared with one of the places."""
    if source[start:at].lstrip().startswith(b"#") or _TEXT.search(source, max(start, at - 21), at + 30) is None:
        return False
    return _PLACE.search(source, max(0, at - _REACH), at + _REACH) is not None
