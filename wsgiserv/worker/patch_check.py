"""What was imported before the standard library was patched, and goes on using the unpatched parts.

Owns: finding these modules, and the lines that tell of them.
Must not know: gevent (it is told what was replaced), worker classes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Final, cast

__all__ = ["OLDER_THAN_SERVER", "REPLACED", "find_early_imports", "newcomers", "seniors"]

_ADVICE: Final = "Import it in the application, or give -k gevent on the command line"

OLDER_THAN_SERVER: Final = (
    "It is older than the server, which can only patch after it (sitecustomize, a .pth file, a launcher such as "
    "ddtrace-run): have the application import it"
)
# Where the original class is kept, its properties call themselves through the name in `ssl`, which is gevent's then.
_RECURSES: Final = "ssl.SSLContext"

# What a module must not have kept. Left out of what gevent replaces is what finds the patched parts by itself when it
# is called, since it looks them up in its own module: subprocess.run, socket.create_connection, threading.Thread, ...
REPLACED: Final[Mapping[str, tuple[str, ...]]] = {
    "time": ("sleep",),
    "socket": (
        "socket",
        "SocketType",
        "getaddrinfo",
        "gethostbyname",
        "gethostbyname_ex",
        "gethostbyaddr",
        "getnameinfo",
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

# Ours, and what gevent itself is made of: they mean to have the originals.
_KNOWING: Final = frozenset({"wsgiserv", "gevent", "greenlet", "zope", "_greenlet"})
_MOST_NAMES: Final = 6


def newcomers() -> list[str]:
    """Return the names of the modules that were imported after this server."""
    names = list(sys.modules)
    return names[names.index("wsgiserv") :] if "wsgiserv" in names else names


def seniors() -> list[str]:
    """Return the names of the modules that were imported before this server: by the interpreter, or by a launcher."""
    names = list(sys.modules)
    return names[: names.index("wsgiserv")] if "wsgiserv" in names else []


def find_early_imports(
    names: Iterable[str], original: Callable[[str, str], object], advice: str = _ADVICE
) -> list[str]:
    """Return a line for each package, or module outside of one, that has kept unpatched parts.

    Args:
        names: the modules to look at; those of the standard library and of gevent are skipped.
        original: returns what was at that place (module, name) before patching; None where nothing was replaced.
        advice: what to do about it, without a full stop.
    """
    originals: dict[int, str] = {}
    kept_alive = []  # an id is only good for as long as its object lives
    for module_name, parts in REPLACED.items():
        for part in parts:
            found = original(module_name, part)
            if found is not None:
                kept_alive.append(found)
                originals.setdefault(id(found), f"{module_name}.{part}")
    packages: dict[str, list[str]] = {}
    for name in names:
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in _KNOWING:
            continue
        module = sys.modules.get(name)
        if not issubclass(type(module), ModuleType):  # sys.modules may hold anything
            continue
        kept = _kept(object.__getattribute__(module, "__dict__"), originals)
        if name == "__config__":  # see wsgiserv.config.file
            package = f"the configuration file {getattr(module, '__file__', '')}"
        if kept:
            known = packages.setdefault(package, [])
            known += [part for part in kept if part not in known]
    return [f"{_line(package, kept)}. {advice}" for package, kept in packages.items()]


def _kept(namespace: dict[str, Any], originals: Mapping[int, str]) -> list[str]:
    found: dict[str, None] = {}
    for value in list(namespace.values()):
        part = originals.get(id(value))
        if part is not None:
            found[part] = None
        elif issubclass(type(value), type):  # not isinstance(): __class__ of a proxy may raise
            for base in type.__getattribute__(cast("type", value), "__mro__")[1:]:
                if id(base) in originals:
                    found[f"a subclass of {originals[id(base)]}"] = None
                    break
    return list(found)


def _line(package: str, kept: list[str]) -> str:
    what = ", ".join(kept[:_MOST_NAMES]) + (", ..." if len(kept) > _MOST_NAMES else "")
    if package.startswith("the configuration file"):
        who = f"{package} was run"
    else:
        who = f"the module {package!r} was imported"
    recursion = (
        ", and to set options, verify_mode or minimum_version of such an SSLContext ends in a RecursionError"
        if any(part.endswith(_RECURSES) for part in kept)
        else ""
    )
    return (
        f"{who} before gevent could patch the standard library and keeps its own {what}: calls through them block "
        f"all requests of a worker{recursion}"
    )
