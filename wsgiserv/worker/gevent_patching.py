"""Patches the standard library for gevent, and warns of modules with unpatched parts."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import dropwhile, takewhile
from types import ModuleType
from typing import Any, Final, cast

import gevent.events
import gevent.monkey

# Patched in workers only. In a master, gevent's subprocess would take SIGCHLD, and reap the workers.
_OF_WORKERS: Final = ("os", "subprocess", "signal")
_CALL_IT_THERE: Final = "Call it through its module, as subprocess.Popen: that is patched in the workers"

# The order matters, as in patch_all(): `time` after `thread`, which needs the real time.sleep(); from Python 3.14 on,
# `selectors` before `select`, since it tries each of its selectors then, and gevent's would make the hub.
_PARTS: Final = ("os", "thread", "time", "socket", "selectors", "select", "ssl", "subprocess", "signal", "queue")
# The arguments of patch_all() that these stand for.
_ARGUMENTS_OF_ALL: Final = {*_PARTS, "dns"} - {"selectors"}
_DONE: Final = "_gevent_saved_patch_all_module_settings"

_ADVICE: Final = "Import it in the application, or give -k gevent on the command line"

_OLDER_THAN_SERVER: Final = (
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
_EXEMPT: Final = frozenset({"wsgiserv", "gevent", "greenlet", "zope", "_greenlet", "pkg_resources"})
# gevent before 23.7 imports pkg_resources, which imports these.
_OF_PKG_RESOURCES: Final = frozenset({"more_itertools"})
_MOST_NAMES: Final = 6

# The modules that were there before the master was patched; None: it was not, by us.
_before_patching: list[str] | None = None
# Whether this process is the child of a zygote, which has patched, and warned of what was imported before.
_patched_in_zygote = False


def patch_master() -> None:
    """Patch the standard library in the master, before a configuration file or a preloaded application is run."""
    # For their imports, and for the workers, which inherit it. The master's own modules are older than the patch, and
    # go on with the originals.
    global _before_patching
    if is_patched():
        return
    _before_patching = later_modules()
    with _patching():
        gevent.monkey.patch_all(**dict.fromkeys(_OF_WORKERS, False))
    _note_as_done(_OF_WORKERS)


def is_patched() -> bool:
    """Return whether this process has been patched."""
    return gevent.monkey.is_module_patched("socket")


def patch_worker(log: logging.Logger, warns: bool = True, in_zygote: bool = False) -> None:
    """Patch the parts not patched yet, in a worker or for it.

    Args:
        log: the error log.
        warns: whether to warn of modules with unpatched parts.
        in_zygote: whether this process forks workers: they inherit the patch.
    """
    global _patched_in_zygote
    if _patched_in_zygote:
        return
    _patched_in_zygote = in_zygote
    names = later_modules()
    _patch()
    if warns:
        for line in _early_imports(names):
            log.warning("WS1719 %s", line)


def _patch() -> None:
    monkey = gevent.monkey
    with _patching():
        if not is_patched():
            monkey.patch_all()
            return
        # Not by patch_all() where something has been patched one by one: it would patch the threads a second time, and
        # os.fork() would fail after that.
        for part in _PARTS:
            if not monkey.is_module_patched("threading" if part == "thread" else part):
                getattr(monkey, f"patch_{part}")()
        _note_as_done(_ARGUMENTS_OF_ALL)


def _note_as_done(names: Iterable[str]) -> None:
    """Enter these in gevent's own record of patch_all()."""
    # Private to gevent: a patch_all() of a configuration file would patch subprocess in the master, whose workers it
    # would reap, and one of an application the threads a second time, after which os.fork() fails.
    getattr(gevent.monkey, "saved", {}).get(_DONE, {}).update(dict.fromkeys(names, True))


@contextmanager
def _patching() -> Iterator[None]:
    """Keep gevent from warning, and from searching for its plugins again and again, while it patches."""
    # gevent reads the metadata of every installed package for each of 25 events. Once is enough: from the start of
    # 4 workers to the first answer of a Flask application, the processes take 1.9 s of CPU time instead of 2.8 s
    # (median of 4 alternating starts, 110 packages installed).
    search = importlib.metadata.entry_points
    found: Any = None

    def search_once(**which: Any) -> Any:
        nonlocal found
        if found is None:
            found = search()
        return found.select(**which)

    with warnings.catch_warnings():
        # The warning is about ssl; `find_early_imports` tells the same, for all modules.
        warnings.simplefilter("ignore", gevent.monkey.MonkeyPatchWarning)
        importlib.metadata.entry_points = search_once
        try:
            yield
        finally:
            importlib.metadata.entry_points = search


def later_modules() -> list[str]:
    """Return the names of the modules imported after this server."""
    # sys.modules is a dict, and keeps the order of the imports.
    return list(dropwhile(lambda name: name != "wsgiserv", list(sys.modules)))


def _original(module: str, name: str) -> object:
    if not gevent.monkey.is_object_patched(module, name):
        return None
    return gevent.monkey.get_original(module, name)


def _early_imports(names: list[str]) -> list[str]:
    """Return a line for each module with unpatched parts: older than the server, or one of ``names``."""
    earlier = takewhile(lambda name: name != "wsgiserv", list(sys.modules))
    before = names if _before_patching is None else _before_patching
    later = [name for name in names if name not in before]

    def original(module: str, name: str) -> object:
        return _original(module, name) if module in _OF_WORKERS else None

    return [
        *find_early_imports(earlier, _original, _OLDER_THAN_SERVER),
        *find_early_imports(before, _original),
        *find_early_imports(later, original, _CALL_IT_THERE),
    ]


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
    exempt = _EXEMPT | _OF_PKG_RESOURCES if "pkg_resources" in sys.modules else _EXEMPT
    for name in names:
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package in exempt:
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
