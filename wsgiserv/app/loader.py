"""Loads a WSGI application from ``module:app``: parses the text, imports the module, checks the object."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Callable
from types import CoroutineType, FunctionType, ModuleType
from typing import Any, cast

from wsgiserv.app import diagnostics
from wsgiserv.app.diagnostics import Target
from wsgiserv.config.masking import mask_text
from wsgiserv.errors import ApplicationError, ConfigError
from wsgiserv.process import leave_if_child
from wsgiserv.safe_open import absolute, working_directory
from wsgiserv.user_code import accepts_args, import_fresh, is_a
from wsgiserv.wording import kind_of

# Applications that a program makes itself, by the name that stands for each in `wsgi_app`. Processes inherit them.
_provided: dict[str, Callable[[], Any]] = {}

# For a text without a name
_DEFAULT_NAMES = ("application", "app")
_EXPECTED = 'Expected module:app, package.module:app, module:factory() or module:factory("text", debug=True).'


def enter_directory(chdir: str) -> bool:
    """Change to ``chdir``; return False, and change nothing, if it has been removed.

    Raises ConfigError if it may not be entered.
    """
    # It existed at the start of the server. Releases are removed under running servers, whose applications may be
    # elsewhere, or in memory.
    try:
        os.chdir(chdir)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(
            f"chdir = {chdir!r}: cannot change to it: {error.strerror}. Expected a directory that exists "
            f"(now in {working_directory()})."
        ) from error
    return True


def prepare_path(chdir: str, pythonpath: str | None) -> bool:
    """Change to ``chdir`` and make it importable, as well as the directories of ``pythonpath``.

    ``pythonpath`` is separated by commas. Its entries are searched before the working directory, the last one first
    (gunicorn's order); relative ones start at ``chdir``. Entries of sys.path keep their place.

    Returns False if ``chdir`` has been removed. Raises ConfigError if it may not be entered.
    """
    exists = enter_directory(chdir)
    for entry in [working_directory() if exists else chdir, *(pythonpath or "").split(",")]:
        # A reload with preload_app may run here again.
        if entry and absolute(entry) not in sys.path:
            sys.path.insert(0, absolute(entry))
    return exists


def missing_in(chdir: str, pythonpath: str | None) -> list[str]:
    """Return the missing entries of ``pythonpath``, directories or archives."""
    entries = (pythonpath or "").split(",")
    return [entry for entry in entries if entry and not os.path.exists(os.path.join(chdir, entry))]


def provide(name: str, factory: Callable[[], Any]) -> None:
    """Have `load_application` call ``factory`` for ``name``, in place of importing a module.

    Called by a program that runs the server in its own process, before the start.
    """
    _provided[name] = factory


def load_application(spec: str) -> Callable[..., Any]:
    """Import and return the WSGI application named by ``spec``.

    Args:
        spec: ``module:app``, ``package.module:obj.attr``, ``module:factory()``,
            ``module:factory("literal", debug=True)``, or ``module`` alone (``application``, else ``app``); or a name
            that a program has given to `provide`.

    Raises ApplicationError for any exception of the application's code, `SystemExit` and `KeyboardInterrupt` included.
    Called by a worker, the zygote, or --check-config's child, after `prepare_path`.
    """
    if spec in _provided:
        # As of a factory: it is the factory's result, not its signature, which is checked.
        target = Target(spec, spec.partition(":")[0], spec.partition(":")[2], ([], {}))
        application = _call_provided(spec)
    else:
        target = _parse(spec)
        try:
            module = import_fresh(target.module)
        except BaseException as error:
            raise diagnostics.import_failed(target, error) from None
        application = _find(target, module)
        if target.call is not None:
            application = _call(target, application)
    return check_loaded(target, application)


def check_loaded(target: Target, application: object) -> Callable[..., Any]:
    """Return the application of ``target``. Raises ApplicationError if it cannot be one in the sense of PEP 3333."""
    try:
        _check(target, application)
    except ApplicationError:
        raise
    except BaseException as error:  # an object of the application raises for a simple question
        leave_if_child(error)
        raise diagnostics.raised(error, f"looking at {target.spec!r}") from None
    return cast("Callable[..., Any]", application)


# --- the string


def _parse(spec: str) -> Target:
    module, colon, expression = spec.partition(":")
    if "/" in module or os.sep in module or module.endswith(".py"):
        raise ApplicationError(diagnostics.path_advice(mask_text(spec), module, mask_text(expression)))
    spec = mask_text(spec)  # from here on for messages
    if not module:
        raise ApplicationError(f"{spec!r} names no module. {_EXPECTED}")
    # Any name for importlib, `my-app` and `2024_site` too: only an import statement needs identifiers.
    if not all(part and part == part.strip() and part.isprintable() for part in module.split(".")):
        raise ApplicationError(f"{module!r} in {spec!r} cannot be the name of a Python module. {_EXPECTED}")
    if not colon:
        return Target(spec, module, None, None)
    return _parse_expression(spec, module, expression)


def _parse_expression(spec: str, module: str, expression: str) -> Target:
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ApplicationError(
            f"{mask_text(expression)!r} in {spec!r} is not a name in a module. {_EXPECTED}"
        ) from None
    call = None
    if isinstance(tree, ast.Call):
        call = _literals(spec, tree)
        tree = tree.func
    first = tree
    while isinstance(first, ast.Attribute):
        first = first.value
    if not isinstance(first, ast.Name):
        raise ApplicationError(
            f"{mask_text(expression)!r} in {spec!r} is neither a name nor the call of one. {_EXPECTED}"
        )
    return Target(spec, module, ast.unparse(tree), call)


def _literals(spec: str, call: ast.Call) -> tuple[list[Any], dict[str, Any]]:
    # Not eval(): the text may come from a unit file or an environment variable, and must not run any code.
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


# --- the object


def _find(target: Target, module: ModuleType) -> Any:
    if target.name is None:
        # vars(), not getattr(): a module's own __getattr__ (PEP 562) may answer for any name.
        for name in _DEFAULT_NAMES:
            if name in vars(module):
                return vars(module)[name]
        raise diagnostics.nothing_in(target, module)
    found: Any = module
    path = target.module
    for name in target.name.split("."):
        try:
            found = getattr(found, name)
        except BaseException as error:
            holder = f"module {path!r} ({diagnostics.place(module)})" if found is module else f"object {path!r}"
            if is_a(error, AttributeError):
                raise diagnostics.no_attribute(target, module, found, holder, name, error) from None
            raise diagnostics.raised(error, f"getting {name!r} of {path!r}") from None
        path += f".{name}"
    return found


def _call(target: Target, factory: Any) -> Any:
    assert target.call is not None
    positional, keywords = target.call
    if not callable(factory):
        raise ApplicationError(
            f"{target.name!r} in {target.module!r} cannot be called: it is {kind_of(factory)}. "
            f"Without parentheses: wsgiserv {target.module}:{target.name}"
        )
    try:
        application = factory(*positional, **keywords)
    except BaseException as error:
        leave_if_child(error)
        doing = f"calling {target.spec.partition(':')[2].strip()!r} of {target.module!r}"
        raise diagnostics.raised(error, doing) from None
    leave_if_child()  # the factory has forked
    return application


def _call_provided(name: str) -> Any:
    try:
        application = _provided[name]()
    except ApplicationError:  # it loads its application by this module
        raise
    except BaseException as error:
        leave_if_child(error)
        raise diagnostics.raised(error, f"loading the application of {name!r}") from None
    leave_if_child()
    return application


def _check(target: Target, application: Any) -> None:
    """Raise ApplicationError if ``application`` cannot be one in the sense of PEP 3333."""
    what = f"{target.spec!r} is {kind_of(application)}"
    # By its type: isinstance() asks __class__, which a proxy looks up in another object.
    kind = type(application)
    if issubclass(kind, ModuleType):
        inner = target._replace(module=f"{target.module}.{target.name or 'app'}", name=None)
        raise ApplicationError(f"{what}, not an application. {diagnostics.advice(inner, application, 'app')}")
    if kind is CoroutineType:
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
    # A class that is the application itself is called through its metaclass. Statically: an attribute of a proxy runs
    # code that raises anything.
    if any(map(_is_async, (application, inspect.getattr_static(kind, "__call__", None)))):
        raise ApplicationError(
            f"{what}, an ASGI application (async). wsgiserv serves WSGI applications: run this one with an "
            "ASGI server, or wrap it: a2wsgi.ASGIMiddleware(app)."
        )
    # By the outer function's own signature, since that is called. Functions alone: the signature of any other
    # callable is a guess, and a wrong refusal is worse than the TypeError of the first request.
    is_function = target.call is None and kind is FunctionType
    if is_function and not accepts_args(application, 2, follow_wrapped=False):
        raise ApplicationError(
            f"{target.spec!r} is a function that does not take the two arguments of a WSGI application, "
            "environ and start_response. If it makes the application, call it: "
            f"wsgiserv '{target.module}:{target.name or application.__name__}()'"
        )


def _is_async(function: Any) -> bool:
    if type(function) in (staticmethod, classmethod):
        function = function.__func__
    try:
        return inspect.iscoroutinefunction(function)
    except BaseException:  # the attributes of a proxy raise anything
        return False
