"""Reads ``logger_class``: gunicorn's names for its own class mean the server's logs."""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import Any

from wsgiserv.config.setting import Kind

_OURS = frozenset({"simple", "gunicorn.glogging.Logger", "wsgiserv.gunicorn.glogging.Logger"})
_NAMED = {"statsd": "gunicorn.instrument.statsd.Statsd"}


def parse_logger_class(raw: object) -> str | type[Any] | None:
    """Return the path of a logger class, or the class itself; None for the server's own logs.

    A function is called for its result, as gunicorn does. A path is not imported here, but in
    `wsgiserv.logs.logger_class`. Raises ValueError or TypeError.
    """
    if isinstance(raw, (FunctionType, MethodType)):
        try:
            raw = raw()
        except (Exception, SystemExit) as error:  # user code may raise anything
            raise ValueError(f"calling it for the class raised {type(error).__name__}: {error}") from None
    if raw is None:
        return None
    if issubclass(type(raw), type):
        return None if f"{raw.__module__}.{raw.__qualname__}" in _OURS else raw  # type: ignore[attr-defined,return-value]
    if not issubclass(type(raw), str):
        raise TypeError(f"it is of type {type(raw).__name__}")
    name = str(raw).strip()
    distribution, mark, entry = name.removeprefix("egg:").partition("#")
    if name.startswith("egg:") and mark and distribution.lower() in ("gunicorn", "wsgiserv"):
        name = entry
    path = name.replace(":", ".", 1)
    if not path or path in _OURS:
        return None
    path = _NAMED.get(path, path)
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError
    return path


LOGGER_CLASS = Kind(
    parse_logger_class, "a class derived from gunicorn.glogging.Logger, or its path package.module.Class", "CLASS"
)
