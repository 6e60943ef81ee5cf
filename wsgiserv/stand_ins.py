"""Lets configuration, logger and worker-class modules import gunicorn where it is not installed.

Such a module is executed with built-in names of its own: its ``__import__`` answers ``gunicorn`` with the package
`wsgiserv.gunicorn`, also in functions that run later. `sys.modules` and the finders of Python do not know the
stand-ins, so an application or an agent that looks for gunicorn finds what is installed.

``gunicorn.workers`` is ours in such modules in any case: classes that are built on it run on wsgiserv's workers.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, Final

from wsgiserv.library_first import LibraryFirst

_GUNICORN: Final = "gunicorn"
_PACKAGE: Final = "wsgiserv.gunicorn"


@cache  # hooks may import in each call
def is_installed() -> bool:
    """Tell whether the real gunicorn can be imported; it need not be loaded."""
    # Not by `sys.modules`, where another module may stand under its name; and a user's own directory or file
    # `gunicorn.py` is not the package.
    with LibraryFirst():
        for finder in sys.meta_path:
            try:
                spec = finder.find_spec(_GUNICORN, None)
            except ImportError:  # a finder that hides it
                return False
            if spec is not None:
                return spec.origin is not None and spec.submodule_search_locations is not None
    return False


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """Import a module, a stand-in for one of gunicorn's; the ``__import__`` of the modules named above."""
    find = builtins.__import__  # now: an agent may have replaced it
    if level or name.partition(".")[0] != _GUNICORN:
        return find(name, globals, locals, fromlist or (), level)
    if not f"{name}.".startswith("gunicorn.workers.") and is_installed():
        if _GUNICORN not in sys.modules:
            with LibraryFirst():  # a configuration file may be named gunicorn.py
                find(_GUNICORN)
        return find(name, globals, locals, fromlist or (), 0)
    try:
        found = find(f"wsgiserv.{name}", globals, locals, fromlist or (), 0)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("wsgiserv."):
            raise
        text = f"No module named {name!r}: wsgiserv has no stand-in for it, see docs/embedding-gunicorn.md"
        raise ModuleNotFoundError(text, name=name) from None
    return found if fromlist else sys.modules[_PACKAGE]


def supply(module: ModuleType) -> None:
    """Let the code of ``module``, which has not run yet, import stand-ins."""
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}


def imports_gunicorn(code: CodeType) -> bool:
    """Tell whether the code imports gunicorn, a function in it included."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    # A direct call of __import__() may name anything.
    names = (_GUNICORN, "__import__")
    return any(name.partition(".")[0] in names for name in code.co_names) or any(map(imports_gunicorn, inner))


# ---- modules that are imported by such a module ------------------------------------------------------------


@contextmanager
def supplied_imports(directory: str | None) -> Iterator[None]:
    """Let modules that are imported within the block for the first time import stand-ins, if they need gunicorn.

    A module needs it when it imports it at its top level. Where an ``except ImportError`` may follow, as in a module
    that only asks whether gunicorn is there, the module must lie below ``directory``; None is no directory.
    """
    finder = _Finder(directory)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Finds the modules that need stand-ins, and leaves all others to the finders of Python."""

    def __init__(self, directory: str | None) -> None:
        self._directory = os.path.join(os.path.realpath(directory), "") if directory is not None else None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in ("wsgiserv", _GUNICORN):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or type(spec.loader) is not SourceFileLoader or spec.origin is None:
            return None
        is_near = self._directory is not None and os.path.realpath(spec.origin).startswith(self._directory)
        if not _needs_gunicorn(spec.origin, is_near):
            return None
        spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Executes a module that gets stand-ins."""

    def exec_module(self, module: ModuleType) -> None:
        supply(module)
        super().exec_module(module)


def _needs_gunicorn(path: str, is_near: bool) -> bool:
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError:
        return False
    if b"gunicorn" not in source:  # most modules: no parsing
        return False
    import ast

    try:
        statements: list[ast.stmt] = list(ast.parse(source).body)
    except (SyntaxError, ValueError):
        return False  # Python reports it
    while statements:
        statement = statements.pop()
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            names = [] if statement.level else [statement.module or ""]
        else:
            if isinstance(statement, (ast.If, ast.With)) or (is_near and isinstance(statement, ast.Try)):
                statements += statement.body
            continue
        if any(name.partition(".")[0] == _GUNICORN for name in names):
            return True
    return False


# ---- the Server header -------------------------------------------------------------------------------------


def _gunicorns() -> list[Any]:
    return [sys.modules[name] for name in (_PACKAGE, _GUNICORN) if name in sys.modules]


def begin_configuration() -> None:
    """Forget what the configuration before has set of `server_name`, and whether gunicorn was installed."""
    is_installed.cache_clear()
    for module in _gunicorns():
        if hasattr(module, "version_info"):
            module.SERVER, module.SERVER_SOFTWARE = _server_names(module)


def server_name() -> str | None:
    """Return what a configuration file has set ``gunicorn.SERVER`` or ``SERVER_SOFTWARE`` to; None if it has not."""
    for module in _gunicorns():
        if not hasattr(module, "version_info"):  # another module under gunicorn's name
            continue
        for name, default in zip(("SERVER", "SERVER_SOFTWARE"), _server_names(module), strict=True):
            value = getattr(module, name, default)
            if value != default:
                return str(value)
    return None


def _server_names(module: Any) -> tuple[str, str]:
    return _GUNICORN, f"{_GUNICORN}/{'.'.join(map(str, module.version_info))}"
