"""Configuration files: finding one, running it, and saying what went wrong in it.

Owns: the execution of a user's configuration, as a file or as a module, freshly each time.
Must not know: which names are settings, what their values may be.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import CodeType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from wsgiserv.errors import ConfigError
from wsgiserv.process import leave_if_child
from wsgiserv.tracebacks import error_text, format_users_error, users_traceback
from wsgiserv.user_code import is_a

if TYPE_CHECKING:
    import ast

__all__ = [
    "FOUND_BY_ITSELF",
    "ConfigFile",
    "find_config_file",
    "last_read",
    "line_of",
    "plain_value",
    "read_config_file",
]

FOUND_BY_ITSELF = ("wsgiserv.conf.py", "gunicorn.conf.py")

# gunicorn's name for the running configuration; logging configurations refer to it ("__config__.MyFilter").
_MODULE = "__config__"

# The configuration's source by its absolute path, and how that file was when it was read last: (modification time in
# ns, size). Empty without one. What `reload` compares with.
last_read: dict[str, tuple[int, int]] = {}


class ConfigFile(NamedTuple):
    """A configuration that has been run.

    Attributes:
        location: as given: a path or ``python:some.module``.
        path: the source's absolute path; None when a module has none.
        names: its global names.
    """

    location: str
    path: str | None
    names: dict[str, Any]


def find_config_file(directory: str) -> str | None:
    """Return the path of the file that is read when none is named, or None."""
    for name in FOUND_BY_ITSELF:
        path = os.path.join(directory, name)
        if os.path.exists(path):
            return path
    return None


def read_config_file(location: str, directory: str) -> ConfigFile:
    """Run the configuration at ``location``: a path, ``file:PATH`` or ``python:some.module``.

    ``directory`` is where a relative path starts; it is put on ``sys.path``, as gunicorn does, and stays
    there, since hooks may import later. Nothing else of the process changes by our doing.

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
            _note(path, os.fstat(file.fileno()))
            source = file.read()
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file {path}: {error.strerror}. "
            "Expected the path of a Python file, or python:some.module, after -c."
        ) from None
    module = ModuleType(_MODULE)
    module.__file__ = path
    _run(module, path, lambda: compile(source, path, "exec", dont_inherit=True))
    return ConfigFile(location, path, vars(module))


def _note(path: str, status: os.stat_result) -> None:
    last_read.clear()
    last_read[os.path.abspath(path)] = status.st_mtime_ns, status.st_size


def _run_module(location: str, name: str) -> ConfigFile:
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if not name.startswith(f"{error.name}."):
            raise _failure(location, error) from None
        spec = None
    except (ImportError, ValueError):
        spec = None
    except (Exception, SystemExit) as error:  # a package above the module may run anything
        raise _failure(location, error) from None
    loader = spec.loader if spec is not None else None
    if spec is None or loader is None:
        raise ConfigError(
            f"cannot find the configuration module {name!r} (from -c {location}). Searched sys.path: "
            f"{', '.join(sys.path)}."
        )
    module = importlib.util.module_from_spec(spec)
    path = spec.origin if spec.has_location else None

    def code() -> CodeType:
        # Not from the bytecode cache, which takes a file changed within the same second for the old one.
        if path is not None and os.path.exists(path):
            _note(path, os.stat(path))
        get_source: Any = getattr(loader, "get_source", None)
        source = get_source(name) if get_source else None
        if source is None or path is None:
            raise ImportError(f"the module {name!r} has no Python source")
        return compile(source, path, "exec", dont_inherit=True)

    _run(module, location, code)
    return ConfigFile(location, path, vars(module))


def _run(module: ModuleType, where: str, code: Callable[[], CodeType]) -> None:
    """Run the module's code under its name in ``sys.modules``, which a failure puts back as it was."""
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        exec(code(), vars(module))
    except BaseException as error:
        leave_if_child(error)  # the file has forked
        if not is_a(error, (Exception, SystemExit)):
            raise
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before
        raise _failure(where, error) from None
    leave_if_child()


def _failure(where: str, error: BaseException) -> ConfigError:
    trace = users_traceback(error)
    if is_a(error, SyntaxError) and error.lineno is not None:
        place, what = f"{error.filename or where}, line {error.lineno}", error.msg
    else:
        line = _last_line_in(where, trace)
        place = f"{where}, line {line}" if line else where
        what = error_text(error)
    return ConfigError(
        f"the configuration {place} cannot be run: {type(error).__name__}: {what}\n{format_users_error(error)}"
    )


def _last_line_in(path: str, trace: TracebackType | None) -> int | None:
    line = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def line_of(path: str | None, name: str) -> int | None:
    """Return the last line of the file that gives ``name`` a value, for a message; None if unknown."""
    if path is None:
        return None
    import ast

    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return None
    line = None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found = node.id == name and isinstance(node.ctx, ast.Store)
        else:
            found = isinstance(node, ast.FunctionDef) and node.name == name
        if found:
            line = max(line or 0, node.lineno)  # type: ignore[attr-defined]
    return line


def plain_value(location: str, directory: str, names: Sequence[str]) -> str | None:
    """Return the text that a configuration file gives to one of ``names``, without running the file.

    Returns None when it cannot be told: the file is a module or cannot be read, or the name gets a value anywhere
    but by plain assignments of texts at the top level.
    """
    if location.startswith("python:"):
        return None
    try:
        with open(os.path.join(directory, location.removeprefix("file:")), "rb") as file:
            source = file.read()
    except OSError:
        return None
    if not any(name.encode() in source for name in names):
        return None
    import ast

    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    value, plain = None, 0
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, given = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, given = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id in names:
            if not (isinstance(given, ast.Constant) and isinstance(given.value, str)):
                return None
            value, plain = given.value, plain + 1
    return value if plain == sum(_gives_value(node, names) for node in ast.walk(tree)) else None


def _gives_value(node: ast.AST, names: Sequence[str]) -> bool:
    kind = type(node).__name__
    if kind == "Name":
        return node.id in names and type(node.ctx).__name__ == "Store"  # type: ignore[attr-defined]
    if kind in ("FunctionDef", "ClassDef"):
        return node.name in names  # type: ignore[attr-defined]
    return kind == "alias" and (node.asname or node.name) in names  # type: ignore[attr-defined]
