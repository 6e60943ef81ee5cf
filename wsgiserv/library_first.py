"""Makes imports of the server safe from files of its users with the names of modules, and these from its imports.

It imports only modules of the interpreter's own start: no file of an application can take the place of these.
"""

import os
import sys

_LIBRARY = os.path.dirname(os.__file__)
_SUFFIXES = (".py", ".pyc", ".so")

# The modules that the master has imported for applications alone. os.wait4() imports `resource`.
for_applications = {"resource"}


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


def leave_names_free() -> None:
    """Forget those modules `for_applications` whose names the application's own directories have, too.

    Called when these are on the path, before the application is loaded.
    """
    for name in _own_names() & {module.partition(".")[0] for module in for_applications}:
        for module in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            del sys.modules[module]


def _own_names() -> set[str]:
    """Return the names that are found before the standard library is searched."""
    names: set[str] = set()
    for directory in sys.path:
        if _rank(directory) == 0:
            break
        try:
            entries = os.listdir(directory or os.curdir)
        except OSError:  # an archive, or nothing
            continue
        # ``calendar``, ``calendar.py`` and ``calendar.cpython-311-x86_64-linux-gnu.so``
        names.update(entry.partition(".")[0] for entry in entries if "." not in entry or entry.endswith(_SUFFIXES))
    return names
