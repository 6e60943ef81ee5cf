"""Hides gunicorn, as if it were not installed: most who come from it remove it."""

import sys
from importlib.machinery import PathFinder


class WithoutGunicorn(PathFinder):
    """Finds all modules but gunicorn's."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] == "gunicorn":
            return None
        return super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutGunicorn
