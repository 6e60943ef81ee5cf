"""Finds modules with unpatched parts of the standard library: they were imported before it was patched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import dropwhile, takewhile
from types import ModuleType
from typing import Any, Final, cast

_ADVICE: Final = "Import it in the application, or give -k gevent on the command line"

OLDER_THAN_SERVER: Final = (
    "It is older than the server, which can only patch after it (sitecustomize, a .pth file, a launcher such as "
    "ddtrace-run): have the application import it"
)
# The properties of the original class call themselves through the name in `ssl`, which is gevent's class by then.
_RECURSES: Final = "ssl.SSLContext"

# The parts that a module must not have kept. subprocess.run, socket.create_connection, threading.Thread and the like
# are left out, although gevent replaces them: they look the patched parts up in their own modules at each call.
REPLACED: Final[Mapping[str, tuple[str, ...]]] = {
    "time": ("sleep",),
    "socket": (
        *("socket", "SocketType", "getaddrinfo", "getnameinfo"),
        *("gethostbyname", "gethostbyname_ex", "gethostbyaddr"),
    ),
    "select": ("select", "poll", "epoll", "kqueue"),
    "selectors": ("DefaultSelector", "EpollSelector", "KqueueSelector"),
    "ssl": ("SSLContext", "SSLSocket"),
    "threading": ("Lock", "local"),
    "_thread": ("allocate_lock",),
    "queue": ("SimpleQueue",),
    "subprocess": ("Popen",),
    "os": ("waitpid",),
}

# This server and gevent's own parts mean to have the originals.
_EXEMPT: Final = frozenset({"wsgiserv", "gevent", "greenlet", "zope", "_greenlet"})
_MOST_NAMES: Final = 6


# sys.modules is a dict, and keeps the order of the imports.


def later_modules() -> list[str]:
    """Return the names of the modules imported after this server."""
    return list(dropwhile(lambda name: name != "wsgiserv", list(sys.modules)))


def earlier_modules() -> list[str]:
    """Return the names of the modules imported before this server, by the interpreter or a launcher."""
    return list(takewhile(lambda name: name != "wsgiserv", list(sys.modules)))


def find_early_imports(
    names: Iterable[str], original: Callable[[str, str], object], advice: str = _ADVICE
) -> list[str]:
    """Return a line for each package, or module outside of one, with unpatched parts.

    Args:
        names: the modules to look at; those of the standard library and of gevent are skipped.
        original: returns the object at a place (module, name) before patching; None where nothing was replaced.
        advice: the next step, without a full stop.
    """
    # By id, since an object may have no hash; with the object, since an id is good only while that lives.
    originals: dict[int, tuple[str, object]] = {}
    for module_name, parts in REPLACED.items():
        for part in parts:
            found = original(module_name, part)
            if found is not None:
                originals.setdefault(id(found), (f"{module_name}.{part}", found))
    packages: dict[str, dict[str, None]] = {}  # dicts for sets in order
    for name in names:
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in _EXEMPT:
            continue
        module = sys.modules.get(name)
        if not issubclass(type(module), ModuleType):  # sys.modules may hold anything
            continue
        # The module's own __getattribute__ would import a lazy module.
        kept = _kept(object.__getattribute__(module, "__dict__"), originals)
        if name == "__config__":  # see wsgiserv.config.file
            package = f"the configuration file {getattr(module, '__file__', '')}"
        if kept:
            packages.setdefault(package, {}).update(kept)
    return [f"{_line(package, list(kept))}. {advice}" for package, kept in packages.items()]


def _kept(namespace: dict[str, Any], originals: Mapping[int, tuple[str, object]]) -> dict[str, None]:
    found: dict[str, None] = {}
    for value in list(namespace.values()):  # a copy: another thread may import
        if id(value) in originals:
            found[originals[id(value)][0]] = None
        elif issubclass(type(value), type):  # not isinstance(): __class__ of a proxy may raise
            bases = type.__getattribute__(cast("type", value), "__mro__")[1:]
            base = next((base for base in bases if id(base) in originals), None)
            if base is not None:
                found[f"a subclass of {originals[id(base)][0]}"] = None
    return found


def _line(package: str, kept: list[str]) -> str:
    what = ", ".join(kept[:_MOST_NAMES]) + (", ..." if len(kept) > _MOST_NAMES else "")
    is_file = package.startswith("the configuration file")
    subject = f"{package} was run" if is_file else f"the module {package!r} was imported"
    recursion = (
        ", and to set options, verify_mode or minimum_version of such an SSLContext ends in a RecursionError"
        if any(part.endswith(_RECURSES) for part in kept)
        else ""
    )
    return (
        f"{subject} before gevent could patch the standard library and keeps its own {what}: calls through them block "
        f"all requests of a worker{recursion}"
    )
