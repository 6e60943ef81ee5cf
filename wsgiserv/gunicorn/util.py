"""Functions of gunicorn's ``util`` that configuration files, loggers and programs call."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from wsgiserv.app.loader import load_application
from wsgiserv.config.address import parse_address as _parse_address
from wsgiserv.errors import ApplicationError
from wsgiserv.gunicorn.errors import AppImportError
from wsgiserv.http.response import date_line
from wsgiserv.object_paths import find_object
from wsgiserv.safe_open import working_directory


def import_app(module: str) -> Callable[..., Any]:
    """Return the application named by ``module:app``. Raises AppImportError."""
    try:
        return load_application(module)
    except ApplicationError as error:
        raise AppImportError(str(error)) from error


def load_class(uri: Any, default: str = "", section: str = "") -> Any:
    """Return the class at a dotted path, ``package.module.Class``; a class is returned as it is.

    Args:
        uri: the path or the class.
        default, section: not used: gunicorn looks entry points up by them.

    Raises:
        RuntimeError: there is none.
    """
    if not isinstance(uri, str):
        return uri
    try:
        return find_object(uri)
    except LookupError as error:
        raise RuntimeError(f"class uri {uri!r} cannot be used: {error}") from error


def parse_address(netloc: str, default_port: str = "8000") -> Any:
    """Return the address of a socket: a path for ``unix:PATH``, a descriptor for ``fd://N``, else host and port."""
    if netloc.startswith("unix:"):
        return _parse_address(netloc).path
    if netloc.startswith("fd://"):
        return _parse_address(netloc).fd
    # A number alone is a port there, and all interfaces.
    address = _parse_address(f":{netloc}" if netloc.isdigit() else netloc)
    has_port = netloc.rpartition("]")[2].rpartition(":")[1]
    return address.host, address.port if has_port or netloc.isdigit() else int(default_port)


def is_ipv6(addr: str) -> bool:
    """Tell whether the text is an address of IPv6."""
    try:
        return ipaddress.ip_address(addr).version == 6
    except ValueError:
        return False


def getcwd() -> str:
    """Return the working directory, by the shell's name for it where it has one."""
    name = os.environ.get("PWD", "")
    try:
        return name if name and os.path.samefile(name, ".") else working_directory()
    except OSError:
        return working_directory()


def http_date(timestamp: float | None = None) -> str:
    """Return the time as HTTP headers have it; now without an argument."""
    return date_line(time.time() if timestamp is None else timestamp).decode()[6:].strip()


def close_on_exec(fd: Any) -> None:
    """Keep a descriptor, or a file with one, out of programs that this process starts."""
    os.set_inheritable(fd if isinstance(fd, int) else fd.fileno(), False)


def set_non_blocking(fd: int) -> None:
    """Make a descriptor non-blocking."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


def check_is_writable(path: str) -> None:
    """Raise RuntimeError unless the file can be opened for appending; creates it."""
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise RuntimeError(f"Error: {path!r} isn't writable [{error!r}]") from error


def to_bytestring(value: str | bytes, encoding: str = "utf8") -> bytes:
    """Return the text as bytes; bytes stay as they are. Raises TypeError."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(encoding)
    raise TypeError(f"{value!r} is not a string")


def bytes_to_str(b: str | bytes) -> str:
    """Return the bytes, octets of latin-1, as text; a text stays as it is."""
    return b if isinstance(b, str) else b.decode("latin-1")


def warn(msg: str) -> None:
    """Print a warning on the standard error."""
    print(f"WARNING: {msg}", file=sys.stderr)
