"""Hides an installed gunicorn from a server under test, as if it were not installed."""

from __future__ import annotations

import os
from pathlib import Path

from server import HERE, ROOT

# Not an exception: a package that is missing is not found, by `find_spec` neither.
_SITE = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "gunicorn" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hidden
"""


def without_gunicorn(directory: Path) -> dict[str, str]:
    """Return the environment of a process that finds no gunicorn.

    Args:
        directory: where a ``sitecustomize`` may be written.
    """
    site = directory / "hidden"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_SITE)
    return {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT), str(HERE)])}
