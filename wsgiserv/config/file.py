"""Finds configuration files and runs them, freshly each time; reads single values without running a file."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from wsgiserv.errors import ConfigError
from wsgiserv.process import leave_if_child
from wsgiserv.stand_ins import begin_configuration, imports_gunicorn, supplied_imports, supply
from wsgiserv.tracebacks import error_text, format_users_error, users_traceback
from wsgiserv.user_code import is_a

if TYPE_CHECKING:
    import ast

_DEFAULT_NAMES = ("wsgiserv.conf.py", "gunicorn.conf.py")

# gunicorn's name for the running configuration; logging configurations refer to it ("__config__.MyFilter").
_MODULE = "__config__"

# The configuration's files (its source, environment files) by absolute path, each with its modification time in ns and
# its size when it was read last. `reload` compares with them.
last_read: dict[str, tuple[int, int]] = {}


class ConfigFile(NamedTuple):
    """A configuration after its run.

    Attributes:
        location: as given: a path or ``python:some.module``.
        path: the source's absolute path; None when a module has none.
        names: its global names.
    """

    location: str
    path: str | None
    names: dict[str, Any]


def find_config_file(directory: str) -> str | None:
    """Return the name of the default configuration file in ``directory``, or None."""
    return next((name for name in _DEFAULT_NAMES if os.path.exists(os.path.join(directory, name))), None)


def read_config_file(location: str, directory: str) -> ConfigFile:
    """Run the configuration at ``location``: a path, ``file:PATH`` or ``python:some.module``.

    Args:
        location: the configuration as given.
        directory: where a relative path starts; it is put on ``sys.path``, as gunicorn does, and stays
            there, since hooks may import later. Nothing else of the process is changed.

    Raises:
        ConfigError: it cannot be found, read or run; with the user's own traceback.
    """
    if directory not in sys.path:
        sys.path.insert(0, directory)
    if location.startswith("python:"):
        return _run_module(location, location.removeprefix("python:"))
    path = os.path.join(directory, location.removeprefix("file:"))
    try:
        with open(path, "rb") as file:
            note_read(path, os.fstat(file.fileno()))
            source = file.read()
    except OSError as error:
        raise ConfigError(
            f"WS1020 cannot read the configuration file {path}: {error.strerror}. "
            "Accepted: the path of a Python file, or python:some.module, after -c."
        ) from None
    module = ModuleType(_MODULE)
    module.__file__ = path
    _run(module, path, lambda: compile(source, path, "exec", dont_inherit=True))
    return ConfigFile(location, path, vars(module))


def note_read(path: str, status: os.stat_result) -> None:
    """Note that a file of the configuration was read, in this state."""
    last_read[os.path.abspath(path)] = status.st_mtime_ns, status.st_size


def _run_module(location: str, name: str) -> ConfigFile:
    importlib.invalidate_caches()  # the module may be newer than the last listing of its directory
    try:
        spec = importlib.util.find_spec(name)
    except (Exception, SystemExit) as error:  # a package above the module may run anything
        # The module itself or a package above it is missing, or something else that these import.
        is_others = isinstance(error, ModuleNotFoundError) and not name.startswith(f"{error.name}.")
        if is_others or not isinstance(error, (ImportError, ValueError)):
            raise _failure(location, error) from None
        spec = None
    loader = spec.loader if spec is not None else None
    if spec is None or loader is None:
        raise ConfigError(
            f"WS1021 cannot find the configuration module {name!r} (from -c {location}). Searched sys.path: "
            f"{', '.join(sys.path)}."
        )
    module = importlib.util.module_from_spec(spec)
    path = spec.origin if spec.has_location else None

    def code() -> CodeType:
        # Not from the bytecode cache, which takes a file changed within the same second for the old one.
        if path is not None and os.path.exists(path):
            note_read(path, os.stat(path))
        get_source: Any = getattr(loader, "get_source", None)
        source = get_source(name) if get_source else None
        if source is None or path is None:
            raise ImportError(f"the module {name!r} has no Python source")
        return compile(source, path, "exec", dont_inherit=True)

    _run(module, location, code)
    return ConfigFile(location, path, vars(module))


def _run(module: ModuleType, where: str, code: Callable[[], CodeType]) -> None:
    """Run the module's code under its name in ``sys.modules``; after a failure the module before is back there."""
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    begin_configuration()
    try:
        compiled = code()
        if imports_gunicorn(compiled):
            supply(module)
        with supplied_imports(os.path.dirname(getattr(module, "__file__", None) or "")):
            exec(compiled, vars(module))
    except BaseException as error:
        leave_if_child(error)  # a child that the file has forked
        if not is_a(error, (Exception, SystemExit)):
            raise
        del sys.modules[module.__name__]
        if before is not None:
            # Hooks of the old configuration go on after a failed reload, and find their module by this name.
            sys.modules[module.__name__] = before
        raise _failure(where, error) from None
    leave_if_child()


def _failure(where: str, error: BaseException) -> ConfigError:
    if is_a(error, SyntaxError) and error.lineno is not None:
        place, what = f"{error.filename or where}, line {error.lineno}", error.msg
    else:
        from traceback import walk_tb

        trace = users_traceback(error)
        lines = [line for frame, line in walk_tb(trace) if frame.f_code.co_filename == where]
        # The innermost line of the file itself, wherever its call has led.
        place = f"{where}, line {lines[-1]}" if lines else where
        what = error_text(error)
    kind = type(error).__name__
    return ConfigError(f"WS1022 the configuration {place} cannot be run: {kind}: {what}\n{format_users_error(error)}")


def line_of(path: str | None, name: str) -> int | None:
    """Return the last line with a value for ``name`` in a file, for a message; None if unknown."""
    return max((line for line, _ in _values_of(path, (name,))), default=None)


def plain_value(location: str, directory: str, names: Sequence[str], otherwise: str | None = None) -> str | None:
    """Return the text given to one of ``names`` in a configuration file, without running the file.

    Returns None when it cannot be told: the file is a module or cannot be read, or the name gets a value anywhere
    but by plain assignments of texts at the top level. Returns ``otherwise`` when the file has no such name.
    """
    if location.startswith("python:"):
        return None
    path = os.path.join(directory, location.removeprefix("file:"))
    values = [value for _, value in _values_of(path, names)]
    if not values and otherwise is not None:
        return None if _imports_all(path) else otherwise
    return values[-1] if values and None not in values else None


def _imports_all(path: str) -> bool:
    """Tell whether a file may take names from elsewhere (``from base import *``), or cannot be read."""
    try:
        with open(path, "rb") as file:
            return re.search(rb"\bimport\s*\*|\bexec\b|\bglobals\b", file.read()) is not None
    except OSError:
        return True


def _values_of(path: str | None, names: Sequence[str]) -> list[tuple[int, str | None]]:
    """Return the lines of a file with a value for one of ``names``, in order, each with the text if it is plain.

    Plain is a text alone, assigned at the top level. An unreadable file has no such lines.
    """
    try:
        with open(path or "", "rb") as file:
            source = file.read()
    except OSError:
        return []
    # Most files of a fault's search have the name, most of the worker class's do not: parsing costs milliseconds.
    if not any(name.encode() in source for name in names):
        return []
    import ast

    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    # Of the top level only: within an `if` or a function the text may never be assigned.
    texts: dict[ast.AST, str] = {}
    for statement in tree.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(statement.value, ast.Constant):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if len(targets) == 1 and isinstance(statement.value.value, str):
                texts[targets[0]] = statement.value.value
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.alias):
            name = node.asname or node.name
        else:
            continue
        if name in names:
            found.append((node.lineno, texts.get(node)))
    return sorted(found, key=lambda each: each[0])
