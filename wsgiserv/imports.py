"""Importing people's modules.

Owns: `import_fresh`, `forget_listings`, which frames of a traceback are of an import, paths in a working directory that
may have been removed.
Must not know: which module, and what is wanted of it.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder
from types import ModuleType

from wsgiserv.process import leave_if_child

__all__ = ["absolute", "forget_listings", "import_fresh", "is_importing", "working_directory"]

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


def working_directory() -> str:
    """Return the working directory; of one that was removed ``path (deleted)``, as the kernel has it. Never raises.

    A release that is replaced may be removed under a running server.
    """
    try:
        return os.getcwd()
    except OSError:
        pass
    try:
        return os.readlink("/proc/self/cwd")
    except OSError:
        return f"{os.sep}(deleted)"


def absolute(path: str) -> str:
    """Return ``path`` from the root, as `os.path.abspath` does, which raises in a directory that has been removed."""
    return os.path.normpath(path if os.path.isabs(path) else os.path.join(working_directory(), path))


def is_importing(filename: str) -> bool:
    """Tell whether frames of this file stand between who imports a module and the module's own."""
    return filename == __file__ or filename.startswith(("<frozen importlib", _IMPORTLIB))
