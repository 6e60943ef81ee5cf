"""Tells what a configuration for gunicorn does otherwise here: for ``--check-config``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dis import get_instructions
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from wsgiserv.config.environment import GUNICORN_ARGUMENTS
from wsgiserv.config.gunicorn_differences import OTHER_DEFAULTS, effects_of
from wsgiserv.config.present import shown
from wsgiserv.config.setting import Section
from wsgiserv.config.settings import SETTINGS
from wsgiserv.master.hooks_server import ELSEWHERE
from wsgiserv.stand_ins import imports_gunicorn, is_installed
from wsgiserv.user_code import own_attribute

if TYPE_CHECKING:
    from wsgiserv.config.loader import Loaded

# They have a line of their own: preload_in, root_path.
_TOLD_ELSEWHERE: Final = frozenset({"preload_app", "raw_env"})
_LONGEST: Final = 120
# Decorators around a hook.
_MOST_WRAPPED: Final = 10


def is_for_gunicorn(loaded: Loaded) -> bool:
    """Tell whether a configuration was written for gunicorn: its file or arguments say so."""
    if any(f"in {GUNICORN_ARGUMENTS}" in source for source in loaded.sources.values()):
        return True
    name = os.path.basename(loaded.settings.config or "")
    # `wsgiserv migrate` has put it all into the file.
    return not name.startswith("wsgiserv") and ("gunicorn" in name or "gunicorn" in _text_of(loaded.config_path))


def differences(loaded: Loaded) -> Iterator[str]:
    """Yield a line for each difference that the settings, the defaults and the hooks make."""
    settings, sources = loaded.settings, loaded.sources
    for name, setting in SETTINGS.items():
        source = sources[name]
        if name not in settings.given or name in _TOLD_ELSEWHERE:
            continue
        value = getattr(settings, name)
        if source.startswith("SCRIPT_NAME"):
            texts = ["a path outside of it is answered with 400 (gunicorn: 500)"] * (name == "root_path")
        else:
            texts = effects_of(name, value)
        subject = name if setting.section == Section.HOOKS else f"{name} = {shown(setting, value)[:_LONGEST]}"
        for text in texts:
            yield _line(f"{subject} ({source})", text)
    if defaults := _other_defaults(loaded):
        yield _line("the rest (defaults)", defaults)
    for name, setting in SETTINGS.items():
        if setting.section == Section.HOOKS and "(server" in setting.kind.accepts:
            yield from _missing_names(name, getattr(settings, name))
    if not is_installed() and _imports_gunicorn(loaded.config_path):
        text = "wsgiserv's stand-ins are imported, since gunicorn is not installed: see docs/embedding-gunicorn.md"
        yield _line(f"import gunicorn ({loaded.settings.config})", text)


def _line(subject: str, text: str) -> str:
    return f"WS1049 {subject} differs from gunicorn: {text}"


def _other_defaults(loaded: Loaded) -> str:
    has_user = loaded.settings.user != os.geteuid()
    found = []
    for each in OTHER_DEFAULTS:
        is_set = each.name in loaded.settings.given and not loaded.sources[each.name].startswith("the primary group")
        if not is_set and (has_user or not each.with_user):
            found.append(f"{each.name} {each.ours} (gunicorn: {each.theirs})")
    return ", ".join(found)


# ---- code ----------------------------------------------------------------------------------------------------


def _text_of(path: str | None) -> str:
    try:
        with open(path or "", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _imports_gunicorn(path: str | None) -> bool:
    try:
        return imports_gunicorn(compile(_text_of(path), path or "", "exec", dont_inherit=True))
    except (SyntaxError, ValueError):  # another encoding
        return False


def _missing_names(hook: str, function: Callable[..., Any] | None) -> Iterator[str]:
    """Yield a line for each method of gunicorn's Arbiter that a hook uses, and that the server has not."""
    for _ in range(_MOST_WRAPPED):
        function = own_attribute(function, "__wrapped__") or function
    # A method's first argument is its object.
    inner = own_attribute(function, "__func__")
    server_index = 0 if inner is None else 1
    code = own_attribute(inner or function, "__code__")
    if code is None or code.co_argcount <= server_index:
        return
    server = code.co_varnames[server_index]
    names: dict[str, None] = {}
    for load, use in pairwise(get_instructions(code)):
        loaded = load.argval[-1] if isinstance(load.argval, tuple) else load.argval
        is_of_server = loaded == server and load.opname.startswith(("LOAD_FAST", "LOAD_DEREF"))
        if is_of_server and use.opname in ("LOAD_ATTR", "LOAD_METHOD") and use.argval in ELSEWHERE:
            names[use.argval] = None
    for name in names:
        place = f"{code.co_filename} line {code.co_firstlineno}"
        yield _line(f"{hook}: {server}.{name} ({place})", f"it is not there. Instead: {ELSEWHERE[name]}")
