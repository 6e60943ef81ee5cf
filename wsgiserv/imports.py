"""Importing people's modules.

Owns: `import_fresh`, `forget_listings`, and which frames of a traceback are of an import.
Must not know: which module, and what is wanted of it.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder
from types import ModuleType

from wsgiserv.atfork import leave_if_child

__all__ = ["forget_listings", "import_fresh", "is_importing"]

_IMPORTLIB = os.path.dirname(importlib.__file__) + os.sep


def import_fresh(name: str) -> ModuleType:
    """Import a module whose file may have been made since directories were listed. Raises whatever its code raises."""
    forget_listings()
    try:
        module = importlib.import_module(name)
    except BaseException as error:
        leave_if_child(error)  # the module has forked
        raise
    leave_if_child()
    return module


def forget_listings() -> None:
    """Have the finders list directories again.

    As `importlib.invalidate_caches` does it, which from Python 3.13 on imports `importlib.metadata`, `email` and
    `inspect` to forget installed packages, too: 2 MB in every worker.
    """
    finders = [finder for finder in sys.meta_path if finder is not PathFinder]
    for finder in (*finders, *sys.path_importer_cache.values()):
        invalidate = getattr(finder, "invalidate_caches", None)
        if invalidate is not None:
            invalidate()


def is_importing(filename: str) -> bool:
    """Tell whether frames of this file stand between who imports a module and the module's own."""
    return filename == __file__ or filename.startswith(("<frozen importlib", _IMPORTLIB))
