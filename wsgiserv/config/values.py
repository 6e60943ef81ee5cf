"""The parsers of settings: a raw value, text or an object from a configuration file, to a typed value.

Owns: what each kind of value may look like.
Must not know: which settings exist, where a value came from.

Every parser raises ValueError or TypeError with a short reason (or none); the loader adds the setting, the
value, its source and what is accepted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Literal

from wsgiserv.config.address import parse_address
from wsgiserv.user_code import accepts_args

__all__ = [
    "TooLarge",
    "addresses",
    "boolean",
    "choice",
    "duration",
    "environment_pairs",
    "forwarded_headers",
    "group",
    "hook",
    "integer",
    "log_level",
    "mapping",
    "mode",
    "mode_or_none",
    "networks",
    "path",
    "path_or_off",
    "post_request_hook",
    "protocol",
    "proxy_protocol",
    "reload_engine",
    "root_path",
    "scale_window",
    "size",
    "stream_request_body",
    "text",
    "text_or_none",
    "user",
    "warmup_paths",
    "words",
    "workers",
]

_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.ASCII)
_LONGEST_S = 366 * 86400.0


class TooLarge(ValueError):
    """A number is above the largest that is accepted.

    Attributes:
        largest: that number.
    """

    def __init__(self, largest: float, shown: str) -> None:
        super().__init__(f"the largest is {shown}")
        self.largest = largest


def text(raw: object) -> str:
    """Read a string, without the white space around it."""
    if isinstance(raw, bytes):
        raw = raw.decode()
    if not isinstance(raw, str):
        raise TypeError(f"it is of type {type(raw).__name__}")
    return raw.strip()


def text_or_none(raw: object) -> str | None:
    """Read a string; an empty one means not set."""
    return None if raw is None else text(raw) or None


def path(raw: object) -> str | None:
    """Read a path, as text or as a ``pathlib.Path``; an empty one means not set."""
    if isinstance(raw, os.PathLike):
        raw = os.fspath(raw)
    if isinstance(raw, str) and "\0" in raw:
        raise ValueError("it holds a NUL character")
    return text_or_none(raw)


def path_or_off(raw: object) -> str | None:
    """Read a path; ``off`` or an empty text gives an empty one. Not set is None."""
    if raw is None:
        return None
    found = path(raw) or ""
    return "" if found.lower() == "off" else found


def boolean(raw: object) -> bool:
    """Read True or False, also as text; 0 and 1 are the numbers accepted."""
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, int) and raw in (0, 1):
        return bool(raw)
    words_for = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False}
    words_for["0"] = False
    try:
        return words_for[text(raw).lower()]
    except KeyError:
        raise ValueError from None


def integer(smallest: int, largest: int = 2**31 - 1) -> Callable[[object], int]:
    """Return a parser of whole numbers; text may be decimal, ``0x``, ``0o`` or ``0b``."""

    def parse(raw: object) -> int:
        if isinstance(raw, float) and raw.is_integer():
            raw = int(raw)
        number = raw if isinstance(raw, int) else int(text(raw), 0)
        if number > largest:
            raise TooLarge(largest, str(largest))
        if number < smallest:
            raise ValueError
        return int(number)

    return parse


def workers(raw: object) -> int:
    """Read a count of workers; ``auto`` gives 0, for the loader to replace by what fits the container."""
    if isinstance(raw, str) and raw.strip().lower() == "auto":
        return 0
    return integer(1, 10_000)(raw)


def duration(raw: object) -> float:
    """Read a duration in seconds; text may end in ms, s, m, h or d."""
    if isinstance(raw, (int, float)):
        number = float(raw)
    else:
        match = _DURATION.fullmatch(text(raw).lower())
        if match is None or match[2] not in _UNITS_S:
            raise ValueError
        number = float(match[1]) * _UNITS_S[match[2]]
    if _LONGEST_S < number < float("inf"):
        raise TooLarge(_LONGEST_S, f"{_LONGEST_S / 86400:g} days, {_LONGEST_S:.0f} seconds")
    if not 0 <= number <= _LONGEST_S:  # also refuses nan
        raise ValueError
    return number


def scale_window(raw: object) -> float:
    """Read a duration of a second to an hour."""
    seconds = duration(raw)
    if not 1 <= seconds <= 3600:
        raise ValueError
    return seconds


def size(largest: int = 2**62, zero: int = 0) -> Callable[[object], int]:
    """Return a parser of sizes in bytes; text may end in K, M, G or T: powers of 1,024, as are KiB and KB.

    Args:
        largest: the largest size accepted.
        zero: what 0 means.
    """

    def parse(raw: object) -> int:
        if isinstance(raw, (int, float)):
            number = float(raw)
            count = int(raw) if number.is_integer() else -1
        else:
            match = _SIZE.fullmatch(text(raw).lower())
            if match is None:
                raise ValueError
            scaled = float(match[1]) * _UNITS_BYTES[match[2]]
            count = int(match[1]) * _UNITS_BYTES[match[2]] if match[1].isdigit() else int(scaled)
        if count == 0:
            return zero
        if count > largest:
            raise TooLarge(largest, _size_text(largest))
        if count < 1:
            raise ValueError
        return count

    return parse


def _size_text(count: int) -> str:
    for unit, number in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if not count % number:
            return f"{count // number} {unit}, {count} bytes"
    return f"{count} bytes"


def choice(*accepted: str) -> Callable[[object], str]:
    """Return a parser of one of a few words, in either case."""

    def parse(raw: object) -> str:
        word = text(raw).lower()
        if word not in accepted:
            raise ValueError
        return word

    return parse


def stream_request_body(raw: object) -> Literal["auto", "on", "off"]:
    """Read ``auto``, ``on`` or ``off``; True and False will do."""
    if isinstance(raw, str) and raw.strip().lower() == "auto":
        return "auto"
    return "on" if boolean(raw) else "off"


def warmup_paths(raw: object) -> tuple[str, ...]:
    """Read paths, each of which must begin with a slash."""
    paths = strings(raw)
    if not all(path.startswith("/") for path in paths):
        raise ValueError
    return paths


def log_level(raw: object) -> str:
    """Read a level by name, in either case; the other names that are in use are mapped to the nearest."""
    word = text(raw).lower()
    word = {"warn": "warning", "fatal": "critical", "trace": "debug", "notset": "debug"}.get(word, word)
    return choice("debug", "info", "warning", "error", "critical")(word)


def reload_engine(raw: object) -> Literal["auto", "poll", "watchfiles"]:
    """Read how changes are watched; gunicorn's ``inotify`` is what ``auto`` uses where it can."""
    word = text(raw).lower()
    if word in ("auto", "inotify"):
        return "auto"
    if word == "poll":
        return "poll"
    if word == "watchfiles":
        return "watchfiles"
    raise ValueError


def header_map(raw: object) -> Literal["drop", "refuse", "dangerous"]:
    """Read what happens to a header whose name is ambiguous in the environ."""
    word = text(raw).lower()
    if word == "drop":
        return "drop"
    if word == "refuse":
        return "refuse"
    if word == "dangerous":
        return "dangerous"
    raise ValueError


def words(raw: object) -> tuple[str, ...]:
    """Read a list of strings; text is split at commas."""
    parts: Iterable[object] = raw.split(",") if isinstance(raw, str) else _items(raw)
    return tuple(part for part in map(text, parts) if part)


def strings(raw: object) -> tuple[str, ...]:
    """Read a list of strings; text is one string, not split."""
    return tuple(map(text, [raw] if isinstance(raw, (str, bytes)) else _items(raw)))


def files(raw: object) -> tuple[str, ...]:
    """Read a list of paths or patterns."""
    items = [raw] if isinstance(raw, (str, bytes, os.PathLike)) else _items(raw)
    return tuple(found for found in map(path, items) if found)


def addresses(raw: object) -> tuple[str, ...]:
    """Read one bind or a list; each is checked by its form, and the same one twice is refused."""
    binds = strings(raw)
    seen = set()
    for bind in binds:
        try:
            address = parse_address(bind)
        except ValueError as error:
            raise ValueError(f"in {bind!r}, {error}" if len(binds) > 1 else str(error)) from None
        if address in seen and not (address.kind == "tcp" and address.port == 0):
            raise ValueError(f"{bind!r} is given twice")
        seen.add(address)
    if not binds:
        raise ValueError("the list is empty")
    return binds


def networks(raw: object) -> tuple[str, ...]:
    """Read IP addresses and networks; ``*`` is any address."""
    found = words(raw)
    if any(word != "*" for word in found):
        import ipaddress  # 5 ms that the default does not need

        for word in found:
            if word != "*":
                ipaddress.ip_network(word)
    return found


_FORWARDED = ("for", "proto", "host", "port", "prefix", "forwarded")


def forwarded_headers(raw: object) -> tuple[str, ...]:
    """Read which of a proxy's headers are used, by short name or by the field's own (``X-Forwarded-For``)."""
    found = tuple(dict.fromkeys(word.lower().removeprefix("x-forwarded-") for word in words(raw)))
    for word in found:
        if word not in _FORWARDED:
            raise ValueError(f"{word!r} is none of them")
    if "forwarded" in found and len(found) > 1:
        # Of two families a proxy sets one, and the client the other.
        raise ValueError(
            "'forwarded' (RFC 7239) and X-Forwarded-* exclude each other: a proxy sets one of them"
        )
    return found


def protocol(raw: object) -> Literal["http", "uwsgi"]:
    """Read which protocol the listeners speak."""
    word = text(raw).lower()
    if word == "http":
        return "http"
    if word == "uwsgi":
        return "uwsgi"
    raise ValueError


def proxy_protocol(raw: object) -> Literal["off", "v1", "v2", "auto"]:
    """Read which versions of the PROXY protocol are expected; True is ``auto`` and False ``off``."""
    word = raw if isinstance(raw, bool) else text(raw).lower() if raw is not None else "off"
    if word == "v1":
        return "v1"
    if word == "v2":
        return "v2"
    if word in (True, "auto", "true", "1"):
        return "auto"
    if word in (False, "off", "false", "0", "none"):
        return "off"
    raise ValueError


def environment_pairs(raw: object) -> tuple[str, ...]:
    """Read ``KEY=VALUE`` strings; a dictionary is accepted too."""
    pairs = (
        tuple(f"{key}={value}" for key, value in raw.items()) if isinstance(raw, Mapping) else strings(raw)
    )
    for pair in pairs:
        if pair.find("=") < 1 or "\0" in pair:
            raise ValueError(f"{pair!r} is not KEY=VALUE")
    return pairs


def mapping(raw: object) -> dict[str, Any]:
    """Read a dictionary; it is copied (its values are not)."""
    if not isinstance(raw, Mapping):
        raise TypeError(f"it is of type {type(raw).__name__}")
    return dict(raw)


def sni_certificates(raw: object) -> dict[str, tuple[str, str | None]]:
    """Read certificates by host name: a dictionary, or texts NAME=CERTFILE[,KEYFILE]."""
    if isinstance(raw, Mapping):
        given = list(raw.items())
    else:
        given = [
            (name, tuple(files.split(",")))
            for name, _, files in (pair.partition("=") for pair in strings(raw))
        ]
    found: dict[str, tuple[str, str | None]] = {}
    for name, files in given:
        host = text(name).lower().rstrip(".")
        if not _HOST_NAME.fullmatch(host):
            raise ValueError(f"{name!r} is not a host name such as 'shop.example' or '*.shop.example'")
        certfile, keyfile = (files, None) if isinstance(files, str) else (*files, None)[:2]
        if not certfile or (not isinstance(files, str) and not 1 <= len(files) <= 2):
            raise ValueError(f"{name!r} has no certificate file, or more than a certificate and a key")
        found[host] = (text(certfile), None if keyfile is None else text(keyfile))
    return found


# A name as TLS clients send it (RFC 6066 §3), or a wildcard for its first label (RFC 9525 §6.3).
_HOST_NAME = re.compile(
    r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*"
)


def header_values(raw: object) -> dict[str, str]:
    """Read a dictionary of header names to values; names become upper case, with dashes."""
    found = mapping(raw)
    return {text(name).upper().replace("_", "-"): text(value) for name, value in found.items()}


_OCTAL = re.compile(r"(?:0[oO])?([0-7]+)")


def mode(raw: object) -> int:
    """Read a file mode, or a mask of one: text is octal, as of chmod(1) and umask(1); a number is the mode itself."""
    if isinstance(raw, (str, bytes)):
        match = _OCTAL.fullmatch(text(raw))
        if match is None:
            raise ValueError("text is octal, as of umask(1)")
        raw = int(match[1], 8)
    if isinstance(raw, bool):
        raise TypeError("it is of type bool")
    try:
        return integer(0, 0o777)(raw)
    except TooLarge:
        raise ValueError("the largest is 0o777") from None


def mode_or_none(raw: object) -> int | None:
    """Read a file mode; an empty text means not set."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None
    return mode(raw)


def root_path(raw: object) -> str:
    """Read the path that the application is mounted under, for SCRIPT_NAME: empty, or from a slash on."""
    found = text(raw).rstrip("/")
    if found and not found.startswith("/"):
        raise ValueError("it does not begin with a slash")
    return found


def readiness_path(raw: object) -> str:
    """Read a path without a query; an empty one means not set."""
    found = text(raw)
    if found and not found.startswith("/"):
        raise ValueError("it does not begin with a slash")
    if "?" in found:
        raise ValueError("it has a query")
    return found


def user(raw: object) -> int:
    """Read a user, by name or by number, into the number."""
    if isinstance(raw, int) or text(raw).isdigit():
        return integer(0, 2**32 - 2)(int(text(raw)) if isinstance(raw, str) else raw)
    import pwd

    try:
        return pwd.getpwnam(text(raw)).pw_uid
    except KeyError:
        raise ValueError("this host has no such user") from None


def group(raw: object) -> int:
    """Read a group, by name or by number, into the number."""
    if isinstance(raw, int) or text(raw).isdigit():
        return integer(0, 2**32 - 2)(int(text(raw)) if isinstance(raw, str) else raw)
    import grp

    try:
        return grp.getgrnam(text(raw)).gr_gid
    except KeyError:
        raise ValueError("this host has no such group") from None


def hook(*arguments: str) -> Callable[[object], Callable[..., Any] | None]:
    """Return a parser of a function called with ``arguments``; text is a dotted path to one."""

    def parse(raw: object) -> Callable[..., Any]:
        function = _callable(raw)
        if not accepts_args(function, len(arguments)):
            raise ValueError(f"it does not take {len(arguments)} argument{'s' * (len(arguments) > 1)}")
        return function

    return parse


def post_request_hook(raw: object) -> Callable[..., Any]:
    """Read post_request: a function of 2, 3 or 4 arguments, wrapped so that it can be called with 4."""
    function = _callable(raw)
    if accepts_args(function, 4):
        return function
    for count in (3, 2):
        if accepts_args(function, count):
            return _with_first_arguments(function, count)
    raise ValueError("it does not take 2, 3 or 4 arguments")


def _with_first_arguments(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    from functools import wraps

    def call(*arguments: Any) -> Any:
        return function(*arguments[:count])

    with suppress(Exception):  # of an object whose attributes raise
        wraps(function)(call)
    return call


def _callable(raw: object) -> Callable[..., Any]:
    found = raw
    if issubclass(type(raw), str):  # not isinstance(): __class__ of a proxy may raise
        raw = text(raw)
        from importlib import import_module

        module, _, name = raw.strip().rpartition(".")
        if not module:
            raise ValueError("a dotted path is 'module.function'")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(str(error)) from error
    if not callable(found):
        raise TypeError(f"it is of type {type(found).__name__}, which cannot be called")
    return found


def _items(raw: object) -> list[object]:
    if raw is None:
        return []
    if not isinstance(raw, (list, tuple, set, frozenset)):
        raise TypeError(f"it is of type {type(raw).__name__}")
    return list(raw)
