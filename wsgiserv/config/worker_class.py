"""Maps the values of ``worker_class``, ours and gunicorn's, to worker classes."""

from __future__ import annotations

import re
from importlib import import_module
from types import FunctionType, MethodType
from typing import Any

from wsgiserv.config.setting import Kind

# Paths, not classes: they are imported where they are used, since gevent is imported for its class alone, and this
# layer is below the workers.
CLASS_PATHS = {
    "sync": "wsgiserv.worker.sync.SyncWorker",
    "threads": "wsgiserv.worker.threads.ThreadsWorker",
    "gevent": "wsgiserv.worker.gevent_worker.GeventWorker",
}

# gevent-websocket's class: ours for gevent, and the setting `wsgi_websocket`. See `implied_by`.
_WEBSOCKETS = "geventwebsocket.gunicorn.workers.GeventWebSocketWorker"

_MAPPED = {
    **{name: name for name in CLASS_PATHS},
    **{path: name for name, path in CLASS_PATHS.items()},
    "gthread": "threads",
    "thread": "threads",
    "gevent_wsgi": "gevent",
    "gevent_pywsgi": "gevent",
    "gunicorn.workers.sync.SyncWorker": "sync",
    "gunicorn.workers.gthread.ThreadWorker": "threads",
    "gunicorn.workers.ggevent.GeventWorker": "gevent",
    "gunicorn.workers.ggevent.GeventPyWSGIWorker": "gevent",
    "gunicorn.workers.ggevent.PyWSGIWorker": "gevent",
    _WEBSOCKETS: _WEBSOCKETS,
    "flask_sockets.worker": _WEBSOCKETS,
    "flask_sockets.Worker": _WEBSOCKETS,
}
# The bases for classes that were written for gunicorn; by themselves they do no more than ours.
_MAPPED.update({f"wsgiserv.{path}": name for path, name in _MAPPED.items() if path.startswith("gunicorn.")})

_GREENLETS = "use 'gevent', which serves the same kind of load (many connections that wait)"
_NOT_WSGI = (
    "it serves ASGI or its own protocol and wsgiserv serves WSGI applications; use an ASGI server, or "
    "'threads' for a WSGI application"
)
_REFUSED = (
    (r"(.*[.#:])?g?eventlet(\..*)?|gunicorn\.workers\.geventlet\..*", _GREENLETS),
    (r"(egg:)?meinheld.*|.*gmeinheld.*", _GREENLETS),
    (
        r"(.*[.#:])?g?tornado(\..*)?|gunicorn\.workers\.gtornado\..*",
        "Tornado's own applications need Tornado's server; use 'threads' for a WSGI application",
    ),
    (r"(.*#)?g?asgi|gunicorn\.workers\.gasgi\..*|(uvicorn\.workers|uvicorn_worker|hypercorn)\b.*", _NOT_WSGI),
    (r"(.*[.#:])?g?aiohttp(\..*)?|aiohttp\.worker\..*|gaiohttp", _NOT_WSGI),
    # Last: what gunicorn has besides, now or later.
    (r"gunicorn\..*", "it needs gunicorn's own master; use 'sync', 'threads' or 'gevent'"),
)


def resolve(worker_class: str | type[Any], threads: int) -> str | type[Any]:
    """Return the effective class: ``sync`` with several threads is ``threads``, as in gunicorn."""
    if worker_class == _WEBSOCKETS:
        return "gevent"
    # Several threads that sync would ignore are meant.
    return "threads" if worker_class == "sync" and threads > 1 else worker_class


def implied_by(worker_class: str | type[Any]) -> dict[str, Any]:
    """Return the other settings that a parsed value of `worker_class` stands for, by name."""
    return {"wsgi_websocket": True} if worker_class == _WEBSOCKETS else {}


def known(kind: str | type[Any]) -> type[Any] | None:
    """Return one of our classes, or the class itself, for the master's questions, such as `capacity`.

    Returns:
        None for the path of a user's class.
    """
    # Workers alone import a user's class, so that changed code comes with a reload.
    if not isinstance(kind, str):
        return kind
    kind = str(resolve(kind, 1))
    if kind not in CLASS_PATHS:
        return None
    module, _, name = CLASS_PATHS[kind].rpartition(".")
    # By name: no import statement of the configuration's leads to a worker, and the layer test holds that.
    found: type[Any] = getattr(import_module(module), name)
    return found


def patches_library(kind: str | type[Any] | None) -> bool:
    """Tell whether workers of a class of ours, or of this class itself, have greenlets for threads."""
    try:
        return kind is not None and getattr(known(kind), "patches_library", False)
    except ImportError:  # gevent is not installed: the check of the class reports it
        return False


def parse_worker_class(raw: object) -> str | type[Any]:
    """Return ``sync``, ``threads``, ``gevent``, a dotted path, or the class itself.

    A function is called for its result, as gunicorn does. A path is not imported here,
    but in `wsgiserv.worker.registry`. Raises ValueError or TypeError with the class to use.
    """
    if isinstance(raw, (FunctionType, MethodType)):
        try:
            raw = raw()
        except (Exception, SystemExit) as error:  # user code may raise anything
            raise ValueError(f"calling it for the class raised {type(error).__name__}: {error}") from None
    if isinstance(raw, type):
        return _of_class(raw)
    if not isinstance(raw, str):
        raise TypeError(f"it is of type {type(raw).__name__}")
    name = raw.strip()
    # gunicorn finds its classes by entry points ("egg:gunicorn#gevent") as well.
    distribution, mark, entry = name.removeprefix("egg:").partition("#")
    if name.startswith("egg:") and mark and distribution.lower() in ("gunicorn", "wsgiserv"):
        name = entry
    # "package.module:Class" is how the application is written, so it is tried for classes, too.
    path = name.replace(":", ".", 1)
    found = _MAPPED.get(path) or _MAPPED.get(path.lower())
    if found is not None:
        return found
    for pattern, advice in _REFUSED:
        if re.fullmatch(pattern, name):
            raise ValueError(advice)
    if name.startswith("egg:"):
        raise ValueError("entry points of other packages are not read; give the class's dotted path")
    if "." not in path:
        raise ValueError("not a worker class")
    if not all(part.isidentifier() for part in path.split(".")):
        raise ValueError
    return path


def _of_class(found: type[Any]) -> str | type[Any]:
    # Only a class itself is mapped: a subclass of ours has more to it. One of gunicorn's talks to gunicorn's arbiter.
    for base in found.__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in _MAPPED and base is found:
            return _MAPPED[name]
        if base.__module__.startswith("gunicorn."):
            raise TypeError(
                f"it is built on gunicorn's own {name}, which needs gunicorn's master: import that name at the top of "
                "the configuration file or of the class's module, or from wsgiserv.gunicorn.workers"
            )
    return found


WORKER_CLASS = Kind(
    parse_worker_class,
    "sync, threads (also gthread), gevent, a class, or its path package.module:Class",
    "CLASS",
    choices=(*CLASS_PATHS, "gthread"),
)
