"""The names that ``worker_class`` accepts, ours and those that gunicorn's users have in their files.

Owns: the mapping of names to our worker classes and the refusal of those that cannot be served.
Must not know: the worker classes themselves; nothing is imported here.
"""

from __future__ import annotations

import re
from types import FunctionType, MethodType
from typing import Any

__all__ = ["ACCEPTED", "DEFAULT", "worker_class"]

DEFAULT: str | type[Any] = "sync"

ACCEPTED = (
    "'sync', 'threads' (also 'gthread') or 'gevent', a class, or its path 'package.module:Class'; "
    "for example 'threads'"
)

_OURS = ("sync", "threads", "gevent")

_MAPPED = {
    "gthread": "threads",
    "thread": "threads",
    "threads": "threads",
    "sync": "sync",
    "gevent": "gevent",
    "gevent_wsgi": "gevent",
    "gevent_pywsgi": "gevent",
    "wsgiserv.worker.sync.SyncWorker": "sync",
    "wsgiserv.worker.threads.ThreadsWorker": "threads",
    "wsgiserv.worker.gevent_worker.GeventWorker": "gevent",
    "gunicorn.workers.sync.SyncWorker": "sync",
    "gunicorn.workers.gthread.ThreadWorker": "threads",
    "gunicorn.workers.ggevent.GeventWorker": "gevent",
    "gunicorn.workers.ggevent.GeventPyWSGIWorker": "gevent",
    "gunicorn.workers.ggevent.PyWSGIWorker": "gevent",
}

_GREENLETS = "use 'gevent', which serves the same kind of load (many connections that wait)"
_NOT_WSGI = (
    "it serves ASGI or its own protocol and wsgiserv serves WSGI applications; use an ASGI server, or "
    "'threads' for a WSGI application"
)
_REFUSED = (
    (re.compile(r"(.*[.#:])?g?eventlet(\..*)?"), _GREENLETS),
    (re.compile(r"gunicorn\.workers\.geventlet\..*"), _GREENLETS),
    (
        re.compile(r"(.*[.#:])?g?tornado(\..*)?|gunicorn\.workers\.gtornado\..*"),
        "Tornado's own applications need Tornado's server; use 'threads' for a WSGI application",
    ),
    (re.compile(r"(.*#)?g?asgi|gunicorn\.workers\.gasgi\..*"), _NOT_WSGI),
    (re.compile(r"(uvicorn\.workers|uvicorn_worker|hypercorn)\b.*"), _NOT_WSGI),
    (re.compile(r"(.*[.#:])?g?aiohttp(\..*)?|aiohttp\.worker\..*|gaiohttp"), _NOT_WSGI),
    (re.compile(r"(egg:)?meinheld.*|.*gmeinheld.*"), _GREENLETS),
    (re.compile(r"gunicorn\..*"), "it needs gunicorn's own master; use 'sync', 'threads' or 'gevent'"),
)


def worker_class(raw: object) -> str | type[Any]:
    """Return ``sync``, ``threads``, ``gevent``, a dotted path, or the class itself.

    A function is called for its result, as gunicorn does. A path is not imported: what is there is known to
    `wsgiserv.worker.registry`. Raises ValueError or TypeError with what to use.
    """
    if isinstance(raw, (FunctionType, MethodType)):
        try:
            raw = raw()
        except (Exception, SystemExit) as error:  # a person's code: whatever it raises is their answer
            raise ValueError(f"calling it for the class raised {type(error).__name__}: {error}") from None
    if isinstance(raw, type):
        return _of_class(raw)
    if not isinstance(raw, str):
        raise TypeError(f"it is of type {type(raw).__name__}")
    name = raw.strip()
    distribution, mark, entry = name.removeprefix("egg:").partition("#")
    if name.startswith("egg:") and mark and distribution.lower() in ("gunicorn", "wsgiserv"):
        name = entry
    path = name.replace(":", ".", 1)
    found = _MAPPED.get(path) or _MAPPED.get(path.lower())
    if found is not None:
        return found
    for pattern, advice in _REFUSED:
        if pattern.fullmatch(name):
            raise ValueError(advice)
    if name.startswith("egg:"):
        raise ValueError("entry points of other packages are not read; give the class's dotted path")
    if "." not in path:
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), (*_OURS, "gthread"), n=1)
        raise ValueError(f"did you mean {near[0]!r}?" if near else "")
    if not all(part.isidentifier() for part in path.split(".")):
        raise ValueError
    return path


def _of_class(found: type[Any]) -> str | type[Any]:
    for base in found.__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        if name in _MAPPED and base is found:
            return _MAPPED[name]
        if base.__module__.startswith("gunicorn."):
            raise TypeError(f"it is built on gunicorn's {name}, which needs gunicorn's own master")
    return found
