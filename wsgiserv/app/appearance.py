"""Tells applications which server runs them: ``SERVER_SOFTWARE``, and gunicorn's name where `appear_as` asks for it."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Final

from wsgiserv import __version__
from wsgiserv.config.settings import Settings
from wsgiserv.library_first import LibraryFirst

_GUNICORN: Final = "gunicorn"
# The release that this server is compared with, for applications where no gunicorn is installed.
_VERSION: Final = (27, 0, 1)
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})

# The program's name from before it was changed, and the module that was put in: a reload may turn `appear_as` off.
_program: Final[list[str]] = []
_modules: Final[list[ModuleType]] = []


def identify(settings: Settings) -> tuple[str, ...]:
    """Tell this process, and so its children, the server's name; return the variables for it, as ``KEY=VALUE``.

    With `appear_as` the name is gunicorn's, in ``sys.argv[0]`` and ``sys.modules`` as well. The variables of `raw_env`
    come last. May be called again: without `appear_as` it takes back what it has done.
    """
    if settings.appear_as == _GUNICORN:
        _appear_as_gunicorn()
        name = f"{_GUNICORN}/{getattr(sys.modules[_GUNICORN], '__version__', '.'.join(map(str, _VERSION)))}"
    else:
        _appear_as_itself()
        name = f"wsgiserv/{__version__}"
    # As with gunicorn `raw_env` alone goes before it: a SERVER_SOFTWARE of the environment tells of the server that
    # has started this one.
    return f"SERVER_SOFTWARE={name}", *settings.raw_env


def _appear_as_gunicorn() -> None:
    if not _program:
        _program[:] = sys.argv[:1] or [""]
    sys.argv[:1] = [_beside(_program[0])]
    if _GUNICORN not in sys.modules:
        _modules[:] = [_installed() or _stand_in()]
        sys.modules[_GUNICORN] = _modules[0]


def _appear_as_itself() -> None:
    if _program:
        sys.argv[:1] = _program
    if _modules and sys.modules.get(_GUNICORN) is _modules[0]:
        del sys.modules[_GUNICORN]
    _program.clear()
    _modules.clear()


def _beside(program: str) -> str:
    """Return the path of a gunicorn command in the directory of ``program``."""
    if os.path.basename(program) == "__main__.py":  # python -m wsgiserv
        program = sys.executable
    return os.path.join(os.path.dirname(program), _GUNICORN)


def _installed() -> ModuleType | None:
    """Import gunicorn if it is installed: the application may import its modules."""
    with LibraryFirst():
        spec = PathFinder.find_spec(_GUNICORN)
        # A directory of the project may have the name, too: with gunicorn.conf.py in it.
        if spec is None or _INSTALLED.isdisjoint((spec.origin or "").split(os.sep)):
            return None
        return import_module(_GUNICORN)


def _stand_in() -> ModuleType:
    module = ModuleType(_GUNICORN, "Stands in for gunicorn, which is not installed: see appear_as of wsgiserv.")
    # importlib.util.find_spec() raises for a module without a spec.
    module.__spec__ = ModuleSpec(_GUNICORN, None, is_package=True)
    version = ".".join(map(str, _VERSION))
    vars(module).update(
        __path__=[],
        __version__=version,
        version_info=_VERSION,
        SERVER=_GUNICORN,
        SERVER_SOFTWARE=f"{_GUNICORN}/{version}",
    )
    return module
