"""Explains why an application cannot be loaded: a missing name, the nearest ones, the searched places."""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from wsgiserv.errors import ApplicationError
from wsgiserv.safe_open import absolute, working_directory
from wsgiserv.tracebacks import describe_error, format_users_error, users_traceback
from wsgiserv.user_code import is_a, own_attribute
from wsgiserv.wording import did_you_mean, nearest

# Those in the manuals of frameworks
_FACTORY_NAMES = ("create_app", "make_app", "build_app", "get_app", "create_application", "make_application")


class Target(NamedTuple):
    """A parsed ``module:app``.

    Attributes:
        spec: the whole text.
        module: the module's name.
        name: the dotted name in the module; None for the default names.
        call: the arguments of the call; None if the name is not called.
    """

    spec: str
    module: str
    name: str | None
    call: tuple[list[Any], dict[str, Any]] | None


def path_advice(spec: str, path: str, expression: str) -> str:
    """Return the text to type instead of a path such as ``dir/hello.py:app``."""
    # The shell completes file names, so a path is what many type first.
    bare = os.path.normpath(path.removesuffix(".py"))
    parts = bare.split(os.sep)
    suffix = f":{expression}" if expression else ":app"
    base = f"{spec!r} is a path. wsgiserv needs the module's name as in an import statement, and its app: "
    if not os.path.exists(path) and not os.path.exists(bare + ".py"):
        base = f"{spec!r} is a path, and there is no such file in {working_directory()}. Type a module and its app: "
    if len(parts) == 1:
        return f"{base}wsgiserv {bare}{suffix}"
    directory, name = os.path.split(bare)
    advice = f"{base}wsgiserv --chdir {directory} {name}{suffix}"
    if all(part.isidentifier() for part in parts):
        advice += f" (or, if {parts[0]} is a package, wsgiserv {'.'.join(parts)}{suffix})"
    return advice


def raised(error: BaseException, doing: str) -> ApplicationError:
    """Return the error for an exception of the application's code."""
    if is_a(error, SystemExit):
        text = (
            f"The application ended the process while {doing}: sys.exit({error.code!r}). Put what must run "
            'only as a program under: if __name__ == "__main__":'
        )
    elif is_a(error, SyntaxError):
        text = f"There is a syntax error in {error.filename}, line {error.lineno}, found while {doing}: {error.msg}."
    else:
        text = f"The application raised an exception while {doing}: {describe_error(error)}"
    with suppress(BaseException):  # its attributes may raise
        if hint := _hidden_by_own(error):
            text = f"{text.removesuffix('.')}. {hint}"
    return ApplicationError(text, format_users_error(error))


def import_failed(target: Target, error: BaseException) -> ApplicationError:
    """Return the error for a target whose module could not be imported."""
    if not is_a(error, ModuleNotFoundError):
        return raised(error, f"importing {target.module!r}")
    missing, module = error.name, target.module
    is_target = missing is not None and (module == missing or module.startswith(missing + "."))
    # A frame of the user means that the module was found, and that one of its own imports failed.
    if is_target and not users_traceback(error):
        return ApplicationError(_not_found(target, str(missing)))
    return ApplicationError(_missing_dependency(target, error), format_users_error(error))


def nothing_in(target: Target, module: ModuleType) -> ApplicationError:
    """Return the error for a module without an application under the default names."""
    return ApplicationError(
        f"The module {target.module!r} ({place(module)}) has neither 'application' nor 'app'. "
        f"{_shadowed(target, module)}{advice(target, module, 'app')}"
    )


def no_attribute(
    target: Target, module: ModuleType, holder: Any, what: str, name: str, error: AttributeError
) -> ApplicationError:
    """Return the error for a missing attribute.

    Args:
        target: the parsed text.
        module: its module.
        holder: the module or the object in it without the attribute.
        what: ``holder`` in words.
        name: the attribute.
        error: the AttributeError.
    """
    # The user's own frames are there when a property has raised it, not when the name is missing.
    text = format_users_error(error) if users_traceback(error) else ""
    hints = _shadowed(target, module) + advice(target, holder, name)
    return ApplicationError(f"There is no {name!r} in the {what}. {hints}", text)


def _missing_dependency(target: Target, error: ModuleNotFoundError) -> str:
    message = f"Importing {target.module!r} failed, since it imports {error.name!r}, which was not found."
    if not error.name:
        return message
    hint = _hidden_by_own(error) or _missing_in_package(error.name) or _misspelt_own(error.name)
    if hint:
        return f"{message} {hint}"
    # With the interpreter's path: often it is installed, into another environment.
    return (
        f"{message} Install it into the environment of {sys.executable} (python -m pip install ...), or, if it is "
        f"yours, add its directory with --pythonpath. Searched: {_searched()}."
    )


def _missing_in_package(name: str) -> str:
    """Return the advice for a missing ``package.module`` whose package exists; else an empty text."""
    # Looked for on the disk: a package whose import has failed is not in `sys.modules` any more.
    holder: ModuleSpec | None = None
    for part in name.split("."):
        path = None if holder is None else holder.submodule_search_locations
        if holder is not None and path is None:
            return (
                f"{holder.name!r} ({holder.origin}) is a module, not a package: there is nothing within it to import. "
                f"Make it a directory {holder.name.rpartition('.')[2]}/ with an __init__.py and a {part}.py."
            )
        spec = _spec(part if holder is None else f"{holder.name}.{part}", path)
        if spec is None:
            break
        holder = spec
    if holder is None or holder.name == name:
        return ""
    directories = [absolute(directory) for directory in holder.submodule_search_locations or ()]
    message = f"There is no {part!r} in the package {holder.name!r} ({', '.join(directories)})."
    names = sorted(set(_modules_in(directories)) - {"__init__", "__main__"})
    if near := nearest(part, names):
        return f"{message} {did_you_mean(f'{holder.name}.{each}' for each in near)}"
    if any(map(_is_own, directories)):
        return f"{message} Modules in it: {', '.join(names[:8]) or 'none'}."
    return f"{message} Another version of that package may have it (python -m pip install --upgrade ...)."


def _misspelt_own(name: str) -> str:
    """Return the advice for a name near one of the user's own modules, or of a module in a directory below."""
    top = name.partition(".")[0]
    if directory := _subdirectory_with(top):
        return f"It is in the directory {directory}: wsgiserv --pythonpath {directory} ..., or --chdir {directory}."
    near = nearest(top, _modules_in(_own_entries()))
    return f"Did you mean your own {' or '.join(map(repr, near))}?" if near else ""


def _hidden_by_own(error: BaseException) -> str:
    """Return the advice for a file of the user imported in place of a package; else an empty text."""
    seen: set[int] = set()  # the chain of an exception may be a circle
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        # The module in which the import, or the attribute, was looked for
        name = one.name if isinstance(one, ImportError) else None
        if isinstance(one, AttributeError) and type(one.obj) is ModuleType:
            name = one.obj.__name__
        if name and (hint := _hides(name.partition(".")[0])):
            return hint
        one = one.__cause__ or one.__context__
    return ""


def _hides(name: str) -> str:
    """Return the advice if the user's own file is imported under the name of a package; else an empty text."""
    # Asked for each entry alone: the import system stops at the first hit, and the others are hidden by it.
    specs = [spec for entry in dict.fromkeys(sys.path) if (spec := _spec(name, [entry])) is not None]
    # Without links: one file may be found through several entries (lib64 is a link to lib).
    origins = list(dict.fromkeys(os.path.realpath(spec.origin) for spec in specs if spec.origin))
    if not origins or not _is_own(origins[0]):
        return ""
    ours = specs[0].origin
    if len(origins) > 1:
        what = f"the {'package' if origins[1].endswith('__init__.py') else 'module'} {name!r} ({origins[1]})"
    elif name in sys.stdlib_module_names:
        what = f"the standard library's {name!r}"
    else:
        return ""
    return f"Your own {ours} is imported in place of {what}: rename yours."


def _is_own(path: str) -> bool:
    """Return True for a file of the user, False for one of an installed package or the standard library."""
    paths = sysconfig.get_paths()
    theirs = [os.path.realpath(paths[key]) + os.sep for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    place = os.path.realpath(path) + os.sep
    is_installed = f"{os.sep}site-packages{os.sep}" in place or f"{os.sep}dist-packages{os.sep}" in place
    return not (is_installed or place.startswith(tuple(theirs)))


def _spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """Find a module without importing it, or its package; None if it is not found."""
    with suppress(Exception):  # an entry of sys.path whose finder fails
        return PathFinder.find_spec(name, path)
    return None


def _not_found(target: Target, missing: str) -> str:
    module = target.module
    suffix = target.spec[len(module) :] or ":app"
    message = f"There is no module {module!r}. "
    parent, _, last = module.rpartition(".")
    if missing != module:
        message = f"There is no module {module!r}, since there is no {missing!r}. "
    # The parent has been imported: otherwise the missing name would be its own.
    elif parent and (package := sys.modules.get(parent)) is not None:
        if not hasattr(package, "__path__"):
            message = f"There is no module {module!r}: {parent!r} is a module, not a package. "
            if hasattr(package, last):
                return message + _meant([f"{parent}:{last}"])
        elif near := nearest(last, _modules_in(package.__path__)):
            return message + _meant(f"{parent}.{name}{suffix}" for name in near)
    message += f"Searched: {_searched()}."
    top = missing.partition(".")[0]
    if directory := _subdirectory_with(top):
        return f"{message} It is in the directory {directory}: wsgiserv --chdir {directory} {target.spec}"
    # In the user's own directories alone: an installed package is hardly the application.
    if near := nearest(top, _modules_in(_own_entries())):
        rest = module[len(top) :]
        return f"{message} {_meant(name + rest + suffix for name in near)}"
    if here := sorted(_modules_in([working_directory()]))[:8]:
        return f"{message} Modules in the working directory: {', '.join(here)}."
    return f"{message} There is no Python module in the working directory: is it the right one? (--chdir)"


def _meant(specs: Iterable[str]) -> str:
    return did_you_mean(f"wsgiserv {spec}" for spec in specs)


def _entries() -> list[str]:
    """Return the entries of sys.path except the standard library's."""
    paths = sysconfig.get_paths()
    standard = {os.path.realpath(paths["stdlib"]), os.path.realpath(paths["platstdlib"])}
    standard |= {os.path.join(path, "lib-dynload") for path in standard}
    found = dict.fromkeys(absolute(entry) for entry in sys.path)
    return [e for e in found if os.path.realpath(e) not in standard and not e.endswith(".zip")]


def _own_entries() -> list[str]:
    """Return the entries except those of installed packages."""
    return [e for e in _entries() if os.path.basename(e) not in ("site-packages", "dist-packages")]


def _searched() -> str:
    here = working_directory()
    entries = [f"{here} (the working directory)" if entry == here else entry for entry in _entries()]
    if here not in _entries():
        entries.append(f"but not the working directory {here}, which is not on sys.path")
    return ", ".join(entries)


def _modules_in(directories: Iterable[str]) -> Iterator[str]:
    """Yield the names of the modules and packages in ``directories``."""
    for directory in directories:
        for entry in _listed(directory):
            name, extension = os.path.splitext(entry)
            # setup.py and conftest.py are never the application.
            if not name.replace("-", "_").isidentifier() or name in ("setup", "conftest"):
                continue
            # A directory is a package without an __init__.py, too (PEP 420).
            inside = [] if extension else _listed(os.path.join(directory, entry))
            if extension == ".py" or any(each.endswith(".py") for each in inside):
                yield name


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:  # not a directory, or not readable: it holds nothing to propose
        return []


def _subdirectory_with(module: str) -> str | None:
    """Return the only directory below the working directory with ``module``, such as ``src``."""
    files = (f"{module}.py", f"{module}/__init__.py")
    found = [d for d in _listed(".") if d[0] != "." and any(os.path.isfile(f"{d}/{file}") for file in files)]
    # With several the advice would be a guess.
    return found[0] if len(found) == 1 else None


def _shadowed(target: Target, module: ModuleType) -> str:
    """Return a warning if another module of the same name was imported instead of the user's file."""
    theirs = absolute(target.module.replace(".", os.sep) + ".py")
    imported = getattr(module, "__file__", None)
    if not imported or not os.path.isfile(theirs) or os.path.realpath(imported) == os.path.realpath(theirs):
        return ""
    return f"Your {theirs} is hidden by that module of the same name: rename yours. "


def place(module: ModuleType) -> str:
    """Return the file of the module, or words for a module without one."""
    return getattr(module, "__file__", None) or "which has no file"


def advice(target: Target, holder: Any, wanted: str) -> str:
    """Return names to type in place of ``wanted``: near ones, factories and applications of ``holder``."""
    # Not dir() or vars(): a proxy's own would run its code.
    names = own_attribute(holder, "__dict__") or {}
    public = {name: value for name, value in names.items() if name[:1] != "_"}
    prefix = target.module + ":"
    if target.name is not None and "." in target.name:
        prefix += target.name.rpartition(wanted)[0]
    near = nearest(wanted, public)
    factories = [f"{name}()" for name in _FACTORY_NAMES if callable(public.get(name))]
    # Instances with a __call__ are applications more often than functions and classes are.
    instances = [
        name
        for name, value in public.items()
        if callable(value) and not is_a(value, (type, FunctionType, BuiltinFunctionType, MethodType))
    ]
    choices = list(dict.fromkeys([*(n for n in near if callable(public[n])), *instances[:3], *factories]))
    if choices:
        return _meant(shlex.quote(prefix + choice) for choice in choices[:4])
    called = sorted(name for name, value in public.items() if callable(value))[:10]
    if called:
        return f"Callable names in it: {', '.join(called)}."
    return "It holds nothing that can be called: is the application made in another module?"
