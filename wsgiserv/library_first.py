"""Makes imports of the server safe from files of its users with the names of modules, and these from its imports.

It imports only modules of the interpreter's own start: no file of an application can take the place of these.
"""

import os
import sys

_LIBRARY = os.path.dirname(os.__file__)

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
    """Forget those modules `for_applications` whose names modules of the application have, too.

    Called when its directories are on the path, before it is loaded.
    """
    from importlib.machinery import PathFinder

    ranks = [*map(_rank, sys.path), 0]
    own = sys.path[: ranks.index(0)]
    for name in {module.partition(".")[0] for module in for_applications}:
        spec = PathFinder.find_spec(name, own)
        # A directory without code (`locale`, with translations) stands behind the library's module.
        if spec is not None and spec.origin is not None:
            for module in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
                del sys.modules[module]
