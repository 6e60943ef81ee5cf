"""From `module:app` on the command line to the WSGI application object.

Owns: the grammar of that string, the import, and what is said to a newcomer when it fails.
Must not know: settings, workers, who loads and why.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

from wsgiserv.errors import ApplicationError, ConfigError

__all__ = ["load_application", "prepare_path"]

# Without a name in the string, and names people commonly use, for advice
_DEFAULT_NAMES = ("application", "app")
_FACTORY_NAMES = ("create_app", "make_app", "build_app", "get_app", "create_application", "make_application")


class _Target(NamedTuple):
    """A parsed string: the module, the dotted name in it (None: the default names), the call's arguments."""

    spec: str
    module: str
    name: str | None
    call: tuple[list[Any], dict[str, Any]] | None


def prepare_path(chdir: str, pythonpath: str | None) -> None:
    """Change to ``chdir`` and make it importable, as well as the directories of ``pythonpath``.

    ``pythonpath`` is separated by commas. Its entries are searched before the working directory, the last
    one first (gunicorn's order); relative ones start at ``chdir``. What is on sys.path already stays where
    it is.

    Raises ConfigError naming chdir when it is not a directory we may enter.
    """
    try:
        os.chdir(chdir)
    except OSError as error:
        raise ConfigError(
            f"chdir = {chdir!r}: cannot change to it: {error.strerror}. Expected a directory that exists "
            f"(now in {os.getcwd()})."
        ) from error
    for entry in [os.getcwd(), *(pythonpath or "").split(",")]:
        if entry and os.path.abspath(entry) not in sys.path:
            sys.path.insert(0, os.path.abspath(entry))


def load_application(spec: str) -> Callable[..., Any]:
    """Import and return the WSGI application that ``spec`` names.

    Args:
        spec: ``module:app``, ``package.module:obj.attr``, ``module:factory()``,
            ``module:factory("literal", debug=True)``, or ``module`` alone (``application``, else ``app``).

    Raises ApplicationError, whatever the application's code raises, `SystemExit` and `KeyboardInterrupt`
    included. Called by a worker, the zygote, or --check-config's child; `prepare_path` comes first.
    """
    target = _parse(spec)
    module = _import(target)
    application = _find(target, module)
    if target.call is not None:
        application = _call(target, application)
    _check(target, application)
    found: Callable[..., Any] = application
    return found


# --- the string


def _parse(spec: str) -> _Target:
    module, colon, expression = spec.partition(":")
    expected = (
        'Expected module:app, package.module:app, module:factory() or module:factory("text", debug=True).'
    )
    if "/" in module or os.sep in module or module.endswith(".py"):
        raise ApplicationError(_path_advice(spec, module, expression))
    if not module:
        raise ApplicationError(f"{spec!r} names no module. {expected}")
    if not all(part.isidentifier() for part in module.split(".")):
        raise ApplicationError(f"{module!r} in {spec!r} cannot be the name of a Python module. {expected}")
    if not colon:
        return _Target(spec, module, None, None)
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ApplicationError(f"{expression!r} in {spec!r} is not a name in a module. {expected}") from None
    call = None
    if isinstance(tree, ast.Call):
        call = _literals(spec, tree)
        tree = tree.func
    names: list[str] = []
    while isinstance(tree, ast.Attribute):
        names.insert(0, tree.attr)
        tree = tree.value
    if not isinstance(tree, ast.Name):
        raise ApplicationError(
            f"{expression!r} in {spec!r} is neither a name nor the call of one. {expected}"
        )
    return _Target(spec, module, ".".join([tree.id, *names]), call)


def _literals(spec: str, call: ast.Call) -> tuple[list[Any], dict[str, Any]]:
    try:
        positional = [ast.literal_eval(argument) for argument in call.args]
        keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        if len(keywords) < len(call.keywords):
            raise ValueError("** is not a literal")
    except (ValueError, TypeError, SyntaxError):
        raise ApplicationError(
            f"The arguments of the call in {spec!r} must be literals: text in quotes, numbers, True, False, "
            "None, and lists or dictionaries of these. For anything else write a function without arguments "
            "in the module."
        ) from None
    return positional, keywords


def _path_advice(spec: str, path: str, expression: str) -> str:
    """Return what to type instead of a path such as ``dir/hello.py:app``."""
    bare = os.path.normpath(path.removesuffix(".py"))
    parts = bare.split(os.sep)
    suffix = f":{expression}" if expression else ":app"
    base = (
        f"{spec!r} is a path. wsgiserv wants the module's name as an import statement has it, and its app: "
    )
    if not os.path.exists(path) and not os.path.exists(bare + ".py"):
        base = f"{spec!r} is a path, and there is no such file in {os.getcwd()}. Type a module and its app: "
    if len(parts) == 1:
        return f"{base}wsgiserv {bare}{suffix}"
    directory, name = os.path.split(bare)
    advice = f"{base}wsgiserv --chdir {directory} {name}{suffix}"
    if all(part.isidentifier() for part in parts):
        advice += f" (or, if {parts[0]} is a package, wsgiserv {'.'.join(parts)}{suffix})"
    return advice


# --- the import


def _import(target: _Target) -> ModuleType:
    importlib.invalidate_caches()  # files may have been made since the last try (--reload)
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        text = _users_traceback(error)
        if _is_target(error.name, target.module) and not _users_frames(error):
            raise ApplicationError(_not_found(target, str(error.name))) from None
        raise ApplicationError(_missing_dependency(target, error), text) from None
    except BaseException as error:
        raise ApplicationError(
            f"{_what_happened(error, f'importing {target.module!r}')}", _users_traceback(error)
        ) from None


def _is_target(missing: str | None, module: str) -> bool:
    return missing is not None and (module == missing or module.startswith(missing + "."))


def _what_happened(error: BaseException, doing: str) -> str:
    if isinstance(error, SystemExit):
        return (
            f"The application ended the process while {doing}: sys.exit({error.code!r}). Put what must run "
            'only as a program under: if __name__ == "__main__":'
        )
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}"
        return f"There is a syntax error in {where}, found while {doing}: {error.msg}."
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # a __str__ that raises
        text = type(error).__name__
    return f"The application raised an exception while {doing}: {text}"


def _missing_dependency(target: _Target, error: ModuleNotFoundError) -> str:
    message = f"Importing {target.module!r} failed, since it imports {error.name!r}, which was not found."
    if error.name:
        message += (
            f" Install it into the environment of {sys.executable} (python -m pip install ...), or, if it is "
            f"yours, add its directory with --pythonpath. Searched: {_searched()}."
        )
    return message


def _not_found(target: _Target, missing: str) -> str:
    module = target.module
    suffix = target.spec[len(module) :] or ":app"
    message = f"There is no module {module!r}. "
    parent, _, last = module.rpartition(".")
    if missing != module:
        message = f"There is no module {module!r}, since there is no {missing!r}. "
    elif parent and (package := sys.modules.get(parent)) is not None:
        if not hasattr(package, "__path__"):
            message = f"There is no module {module!r}: {parent!r} is a module, not a package. "
            if hasattr(package, last):
                return f"{message}Did you mean wsgiserv {parent}:{last}?"
        elif near := _near(last, _modules_in(package.__path__)):
            return f"{message}Did you mean {_either(f'{parent}.{name}{suffix}' for name in near)}?"
    message += f"Searched: {_searched()}."
    directory = _subdirectory_with(missing.partition(".")[0])
    if directory:
        return f"{message} It is in the directory {directory}: wsgiserv --chdir {directory} {target.spec}"
    top = missing.partition(".")[0]
    near = _near(top, _modules_in(_own_entries()))
    if near:
        rest = module[len(top) :]
        return f"{message} Did you mean {_either(name + rest + suffix for name in near)}?"
    here = sorted(_modules_in([os.getcwd()]))[:8]
    if here:
        return f"{message} Modules in the working directory: {', '.join(here)}."
    return f"{message} There is no Python module in the working directory: is it the right one? (--chdir)"


def _either(choices: Iterable[str]) -> str:
    return " or ".join(f"wsgiserv {choice}" for choice in choices)


def _entries() -> list[str]:
    """Return the entries of sys.path that an application could be in: all but the standard library."""
    paths = sysconfig.get_paths()
    standard = {os.path.realpath(paths["stdlib"]), os.path.realpath(paths["platstdlib"])}
    standard |= {os.path.join(path, "lib-dynload") for path in standard}
    found = dict.fromkeys(os.path.abspath(entry) for entry in sys.path)
    return [e for e in found if os.path.realpath(e) not in standard and not e.endswith(".zip")]


def _own_entries() -> list[str]:
    """Return the entries that are not for installed packages."""
    return [e for e in _entries() if os.path.basename(e) not in ("site-packages", "dist-packages")]


def _searched() -> str:
    here = os.getcwd()
    entries = [f"{here} (the working directory)" if entry == here else entry for entry in _entries()]
    if here not in _entries():
        entries.append(f"but not the working directory {here}, which is not on sys.path")
    return ", ".join(entries)


def _modules_in(directories: Iterable[str]) -> Iterator[str]:
    """Yield the names of the modules and packages in ``directories``."""
    for directory in directories:
        try:
            entries = list(os.scandir(directory))
        except OSError:
            continue
        for entry in entries:
            name, extension = os.path.splitext(entry.name)
            if not name.isidentifier() or name in ("setup", "conftest"):
                continue
            if extension == ".py" or (not extension and _is_package(entry.path)):
                yield name


def _is_package(path: str) -> bool:
    try:
        return any(name.endswith(".py") for name in os.listdir(path))
    except OSError:
        return False


def _subdirectory_with(module: str) -> str | None:
    """Return the one directory below the working directory that holds ``module``, such as ``src``."""
    try:
        directories = [e.name for e in os.scandir(".") if e.is_dir() and not e.name.startswith(".")]
    except OSError:
        return None
    places = (f"{directory}/{module}" for directory in directories)
    found = [p for p in places if os.path.isfile(p + ".py") or os.path.isfile(p + "/__init__.py")]
    return os.path.dirname(found[0]) if len(found) == 1 else None


# --- the object


def _find(target: _Target, module: ModuleType) -> Any:
    if target.name is None:
        for name in _DEFAULT_NAMES:
            if name in vars(module):
                return vars(module)[name]
        raise ApplicationError(
            f"The module {target.module!r} ({_place(module)}) has neither 'application' nor 'app'. "
            f"{_shadowed(target, module)}{_advice(target, module, 'app')}"
        )
    found: Any = module
    path = target.module
    for name in target.name.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            text = _users_traceback(error) if _users_frames(error) else ""
            what = f"module {path!r} ({_place(module)})" if found is module else f"object {path!r}"
            advice = _shadowed(target, module) + _advice(target, found, name)
            raise ApplicationError(f"There is no {name!r} in the {what}. {advice}", text) from None
        except BaseException as error:
            raise ApplicationError(
                _what_happened(error, f"getting {name!r} of {path!r}"), _users_traceback(error)
            ) from None
        path += f".{name}"
    return found


def _shadowed(target: _Target, module: ModuleType) -> str:
    """Return a warning when another module of the same name was imported instead of the user's file."""
    theirs = os.path.abspath(target.module.replace(".", os.sep) + ".py")
    imported = getattr(module, "__file__", None)
    if not imported or not os.path.isfile(theirs) or os.path.realpath(imported) == os.path.realpath(theirs):
        return ""
    return f"Your {theirs} is hidden by that module of the same name: rename yours. "


def _near(name: str, names: Iterable[str]) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(name, list(names), n=3)


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "which has no file"


def _advice(target: _Target, holder: Any, wanted: str) -> str:
    """Return what to type when ``holder`` has no ``wanted``: near names, factories, applications it has."""
    public = (
        {name: value for name, value in vars(holder).items() if name[:1] != "_"}
        if hasattr(holder, "__dict__")
        else {}
    )
    prefix = target.module + ":"
    if target.name is not None and "." in target.name:
        prefix += target.name.rpartition(wanted)[0]
    near = _near(wanted, public)
    factories = [f"{name}()" for name in _FACTORY_NAMES if callable(public.get(name))]
    # instances with a __call__ are applications more often than functions and classes are
    instances = [
        name
        for name, value in public.items()
        if callable(value) and not isinstance(value, type) and not inspect.isroutine(value)
    ]
    choices = list(dict.fromkeys([*(n for n in near if callable(public[n])), *instances[:3], *factories]))
    if choices:
        return f"Did you mean {_either(_quoted(prefix + choice) for choice in choices[:4])}?"
    names = sorted(name for name, value in public.items() if callable(value))[:10]
    if names:
        return f"Callable names in it: {', '.join(names)}."
    return "It holds nothing that can be called: is the application made in another module?"


def _quoted(spec: str) -> str:
    """Return ``spec`` as a shell takes it."""
    return f"'{spec}'" if "(" in spec else spec


def _call(target: _Target, factory: Any) -> Any:
    assert target.call is not None
    positional, keywords = target.call
    doing = f"calling {target.spec.partition(':')[2].strip()!r} of {target.module!r}"
    if not callable(factory):
        raise ApplicationError(
            f"{target.name!r} in {target.module!r} cannot be called: it is {_described(factory)}. "
            f"Without parentheses: wsgiserv {target.module}:{target.name}"
        )
    try:
        return factory(*positional, **keywords)
    except BaseException as error:
        raise ApplicationError(_what_happened(error, doing), _users_traceback(error)) from None


def _described(value: Any) -> str:
    return f"{'an' if type(value).__name__[0] in 'AEIOaeio' else 'a'} {type(value).__name__}"


def _check(target: _Target, application: Any) -> None:
    """Raise ApplicationError when ``application`` cannot be one in the sense of PEP 3333."""
    what = f"{target.spec!r} is {_described(application)}"
    if isinstance(application, ModuleType):
        inner = target._replace(module=f"{target.module}.{target.name or 'app'}", name=None)
        raise ApplicationError(f"{what}, not an application. {_advice(inner, application, 'app')}")
    if inspect.iscoroutine(application):
        application.close()  # or Python warns that it was never awaited
        raise ApplicationError(
            f"{what}: the factory is an async function. wsgiserv needs one that returns the application."
        )
    if not callable(application):
        after = " that the factory returned" if target.call is not None else ""
        raise ApplicationError(
            f"{what}{after}, which cannot be called. Expected a WSGI application: a callable that takes "
            "environ and start_response, such as Flask(...), or get_wsgi_application() of Django."
        )
    # type(): a class that is the application itself is called through its metaclass
    if any(map(inspect.iscoroutinefunction, (application, type(application).__call__))):
        raise ApplicationError(
            f"{what}, an ASGI application (async). wsgiserv serves WSGI applications: run this one with an "
            "ASGI server, or wrap it: a2wsgi.ASGIMiddleware(app)."
        )
    if target.call is None and inspect.isfunction(application):
        try:
            inspect.signature(application, follow_wrapped=False).bind(None, None)
        except TypeError:
            raise ApplicationError(
                f"{target.spec!r} is a function that does not take the two arguments of a WSGI application, "
                "environ and start_response. If it makes the application, call it: "
                f"wsgiserv '{target.module}:{target.name or application.__name__}()'"
            ) from None
        except ValueError:
            pass  # no signature to be had


# --- the user's own traceback

_OUR_FILE = __file__
_IMPORTLIB = os.path.dirname(importlib.__file__) + os.sep


def _is_ours(filename: str) -> bool:
    return filename == _OUR_FILE or filename.startswith(("<frozen importlib", _IMPORTLIB))


def _users_frames(error: BaseException) -> list[str]:
    """Return the files of the traceback's frames that are the user's."""
    frames = traceback.walk_tb(error.__traceback__)
    return [name for frame, _ in frames if not _is_ours(name := frame.f_code.co_filename)]


def _users_traceback(error: BaseException) -> str:
    """Return the traceback as Python prints it, without the frames of this file and of importlib."""
    whole = traceback.TracebackException.from_exception(error, compact=True)
    _remove_ours(whole)
    return "".join(whole.format())


def _remove_ours(part: traceback.TracebackException) -> None:
    stack: list[Any] = [part]
    while stack:
        one = stack.pop()
        one.stack[:] = [frame for frame in one.stack if not _is_ours(frame.filename)]
        stack += [inner for inner in (one.__cause__, one.__context__) if inner is not None]
        stack += getattr(one, "exceptions", None) or []
