"""Imports of the server, whatever directories of its users are searched.

Owns: `LibraryFirst`.
Must not know: which modules are imported. It imports nothing that a file of an application could stand in for: the
interpreter has `os` and `sys` from its start.
"""

import os
import sys

__all__ = ["LibraryFirst"]

_LIBRARY = os.path.dirname(os.__file__)


class LibraryFirst:
    """Have what is imported within a ``with`` come from the standard library, then from installed packages.

    ``python -m`` searches the working directory before both, PYTHONPATH and a configuration file's directory are there,
    too; an application may have a file ``random.py`` of its own. No directory is left out, so nothing goes missing.
    """

    def __enter__(self) -> None:
        self._before = list(sys.path)
        sys.path.sort(key=_rank)

    def __exit__(self, *_: object) -> None:
        sys.path[:] = self._before


def _rank(directory: str) -> int:
    name = os.path.basename(directory)
    if (
        directory == _LIBRARY
        or name == "lib-dynload"
        or (name.startswith("python") and name.endswith(".zip"))
    ):
        return 0
    return 1 if name in ("site-packages", "dist-packages") else 2
