"""Makes imports of the server safe from files of its users with the names of modules.

It imports only modules of the interpreter's own start: no file of an application can take the place of these.
"""

import os
import sys

_LIBRARY = os.path.dirname(os.__file__)


class LibraryFirst:
    """Searches the standard library first within a ``with``, then installed packages, then all other directories."""

    # ``python -m`` searches the working directory before both; PYTHONPATH and a configuration file's directory are in
    # front, too. An application may have a file ``random.py`` of its own.

    def __enter__(self) -> None:
        self._before = list(sys.path)
        sys.path.sort(key=_rank)

    def __exit__(self, *_: object) -> None:
        sys.path[:] = self._before


def _rank(directory: str) -> int:
    name = os.path.basename(directory)
    # python311.zip: the library of an embedded Python.
    is_zip = name.startswith("python") and name.endswith(".zip")
    if directory == _LIBRARY or name == "lib-dynload" or is_zip:
        return 0
    return 1 if name in ("site-packages", "dist-packages") else 2
