"""Parses the values of settings: text, or an object from a configuration file, to a typed value.

Every parser raises ValueError or TypeError with a short reason (or none); the loader adds the setting, the
value, its source and the accepted values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from wsgiserv.config.address import parse_address
from wsgiserv.config.setting import Arity, Kind
from wsgiserv.user_code import accepts_args

_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
# Powers of 1,024 under each name: a limit that is a little too large refuses nobody.
_UNITS_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.ASCII)
# A year: a larger one overflows no timer, and is a slip of the unit (milliseconds) far more often than meant.
_LONGEST_S = 366 * 86400.0
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


class TooLarge(ValueError):
    """A number is above the largest accepted one.

    Attributes:
        largest: the largest accepted number. The loader takes it for a setting that gunicorn does not bound.
    """

    def __init__(self, largest: float, shown: str) -> None:
        super().__init__(f"the largest is {shown}")
        self.largest = largest


def text(raw: object) -> str:
    """Read a string, without the white space around it."""
    if isinstance(raw, bytes):
        raw = raw.decode()  # a UnicodeDecodeError is a ValueError, with a reason
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
    # Only open(2) would notice it, in a worker, and with a message about an "embedded null byte".
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
    # Not bool(raw): any text is true, "off" as well, and 2 is more likely another setting's number.
    word = str(int(raw)) if isinstance(raw, int) and raw in (0, 1) else text(raw).lower()
    if word not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[word]


def integer(smallest: int, largest: int = 2**31 - 1) -> Callable[[object], int]:
    """Return a parser of whole numbers; text may be decimal, ``0x``, ``0o`` or ``0b``."""

    def parse(raw: object) -> int:
        if isinstance(raw, float) and raw.is_integer():  # 2 * 1.5, computed in a file
            raw = int(raw)
        number = raw if isinstance(raw, int) else int(text(raw), 0)
        if number > largest:
            raise TooLarge(largest, str(largest))
        if number < smallest:
            raise ValueError
        return int(number)  # True is an int as well, and would be shown as True

    return parse


def workers(raw: object) -> int:
    """Read a number of workers; ``auto`` gives 0; the loader replaces it by the container's number."""
    # A number, so that the field has one type; 0 itself is refused.
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
    if not 1 <= (seconds := duration(raw)) <= 3600:
        raise ValueError
    return seconds


def size(largest: int = 2**62, zero: int = 0) -> Callable[[object], int]:
    """Return a parser of sizes in bytes; text may end in K, M, G or T: powers of 1,024, as are KiB and KB.

    Args:
        largest: the largest size accepted.
        zero: the meaning of 0.
    """

    def parse(raw: object) -> int:
        if isinstance(raw, (int, float)):
            count = int(raw) if float(raw).is_integer() else -1
        elif match := _SIZE.fullmatch(text(raw).lower()):
            # A float is exact up to 2**53 only.
            number = int(match[1]) if match[1].isdigit() else float(match[1])
            count = int(number * _UNITS_BYTES[match[2]])
        else:
            raise ValueError
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


def choice(*words: str, metavar: str, other: Mapping[str, str] = {}, arity: Arity = "one") -> Kind[Any]:
    """Return the kind of one of a few words, in either case.

    Args:
        words: the accepted words.
        metavar, arity: as in `Kind`.
        other: further accepted words, each with its equal among ``words``; ``"true"`` stands for True as well.
    """

    def parse(raw: object) -> str:
        # Not str() of any object: that may be anything, and raise anything.
        if isinstance(raw, int | None) and str(raw).lower() in other:
            raw = str(raw)
        word = text(raw).lower()
        word = other.get(word, word)
        if word not in words:
            raise ValueError
        return word

    return Kind(parse, _any_of(map(repr, words)), metavar, arity, words)


def _any_of(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def warmup_paths(raw: object) -> tuple[str, ...]:
    """Read paths; each must begin with a slash."""
    paths = strings(raw)
    if not all(path.startswith("/") for path in paths):
        raise ValueError
    return paths


def words(raw: object) -> tuple[str, ...]:
    """Read a list of strings; text is split at commas."""
    parts = text(raw).split(",") if isinstance(raw, (str, bytes)) else _items(raw)
    return tuple(part for part in map(text, parts) if part)


def strings(raw: object) -> tuple[str, ...]:
    """Read a list of strings; text is one string, not split."""
    return tuple(map(text, _items(raw)))


def files(raw: object) -> tuple[str, ...]:
    """Read a list of paths or patterns."""
    return tuple(found for found in map(path, _items(raw)) if found)


def _items(raw: object) -> list[object]:
    if raw is None:
        return []
    if isinstance(raw, (str, bytes, os.PathLike)):
        return [raw]
    # Not any iterable: the keys of a dictionary, or a generator's items, are hardly meant.
    if not isinstance(raw, (list, tuple, set, frozenset)):
        raise TypeError(f"it is of type {type(raw).__name__}")
    return list(raw)


def addresses(raw: object) -> tuple[str, ...]:
    """Read one bind or a list; each is checked by its form, and the same one twice is refused."""
    binds = strings(raw)
    seen = set()
    for bind in binds:
        try:
            address = parse_address(bind)
        except ValueError as error:
            raise ValueError(f"in {bind!r}, {error}" if len(binds) > 1 else str(error)) from None
        # Port 0 is another port each time.
        if address in seen and not (address.kind == "tcp" and address.port == 0):
            raise ValueError(f"{bind!r} is given twice")
        seen.add(address)
    if not binds:
        raise ValueError("the list is empty")
    return binds


def networks(raw: object) -> tuple[str, ...]:
    """Read IP addresses and networks; ``*`` is any address."""
    found = words(raw)
    given = [word for word in found if word != "*"]
    if given:
        import ipaddress  # 5 ms, for a setting that few servers have

        for word in given:
            ipaddress.ip_network(word)
    return found


_FORWARDED = ("for", "proto", "host", "port", "prefix", "forwarded")


def forwarded_headers(raw: object) -> tuple[str, ...]:
    """Read the headers of a proxy to use, by short name or by the field's own (``X-Forwarded-For``)."""
    found = tuple(dict.fromkeys(word.lower().removeprefix("x-forwarded-") for word in words(raw)))
    for word in found:
        if word not in _FORWARDED:
            raise ValueError(f"{word!r} is none of them")
    if "forwarded" in found and len(found) > 1:
        # Of two families a proxy sets one, and the client the other.
        raise ValueError("'forwarded' (RFC 7239) and X-Forwarded-* exclude each other: a proxy sets one of them")
    return found


def environment_pairs(raw: object) -> tuple[str, ...]:
    """Read ``KEY=VALUE`` strings; a dictionary is accepted too."""
    if isinstance(raw, Mapping):
        raw = [f"{key}={value}" for key, value in raw.items()]
    pairs = strings(raw)
    for pair in pairs:
        if pair.find("=") < 1 or "\0" in pair:
            raise ValueError(f"{pair!r} has no name before an equals sign")
    return pairs


def mapping(raw: object) -> dict[str, Any]:
    """Read a dictionary; it is copied (its values are not)."""
    if not isinstance(raw, Mapping):
        raise TypeError(f"it is of type {type(raw).__name__}")
    return dict(raw)


def sni_certificates(raw: object) -> dict[str, tuple[str, str | None]]:
    """Read certificates by host name: a dictionary, or texts NAME=CERTFILE[,KEYFILE]."""
    given: Iterable[tuple[object, Any]] = (
        raw.items()
        if isinstance(raw, Mapping)
        else ((name, files.split(",")) for name, _, files in (pair.partition("=") for pair in strings(raw)))
    )
    found: dict[str, tuple[str, str | None]] = {}
    for name, files in given:
        host = text(name).lower().rstrip(".")  # clients send it without the dot of the DNS's root
        if not _HOST_NAME.fullmatch(host):
            raise ValueError(f"{name!r} is not a host name such as 'shop.example' or '*.shop.example'")
        paths = (files,) if isinstance(files, str) else tuple(files)
        if not 1 <= len(paths) <= 2 or not paths[0]:
            raise ValueError(f"{name!r} has no certificate file, or more than a certificate and a key")
        certfile, keyfile = (*paths, None)[:2]
        found[host] = (text(certfile), None if keyfile is None else text(keyfile))
    return found


# A name as TLS clients send it (RFC 6066 §3), or a wildcard for its first label (RFC 9525 §6.3).
_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")


def header_values(raw: object) -> dict[str, str]:
    """Read a dictionary of header names to values; names become upper case, with dashes."""
    found = mapping(raw)
    # As the requests' parser compares them; files have them in any case, and copied from an environ.
    return {text(name).upper().replace("_", "-"): text(value) for name, value in found.items()}


_OCTAL = re.compile(r"(?:0[oO])?([0-7]+)")


def mode(raw: object) -> int:
    """Read a file mode, or a mask of one: text is octal, as of chmod(1) and umask(1); a number is the mode itself."""
    if isinstance(raw, (str, bytes)):
        match = _OCTAL.fullmatch(text(raw))
        if match is None:
            raise ValueError("text is octal, as of umask(1)")
        raw = int(match[1], 8)
    if isinstance(raw, bool):  # an int by its type, and a slip by its meaning
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
    """Read the application's mount point, for SCRIPT_NAME: empty, or from a slash on."""
    return _from_slash(text(raw).rstrip("/"))


def server_header(raw: object) -> str:
    """Read the value of the Server header; an empty one means no header."""
    name = text(raw)
    if not (name.isascii() and name.isprintable()):
        raise ValueError("a header has printable ASCII only")
    return name


def readiness_path(raw: object) -> str:
    """Read a path without a query; an empty one means not set."""
    found = _from_slash(text(raw))
    if "?" in found:
        raise ValueError("it has a query")
    return found


def _from_slash(path: str) -> str:
    if path and not path.startswith("/"):
        raise ValueError("it does not begin with a slash")
    return path


def user(raw: object) -> int:
    """Read a user, by name or by number, into the number."""
    import pwd

    return _identity(raw, lambda name: pwd.getpwnam(name).pw_uid, "user")


def group(raw: object) -> int:
    """Read a group, by name or by number, into the number."""
    import grp

    return _identity(raw, lambda name: grp.getgrnam(name).gr_gid, "group")


def _identity(raw: object, number_of: Callable[[str], int], thing: str) -> int:
    # 2**32 - 1 is -1 to setuid(2) and chown(2): "leave it as it is".
    if isinstance(raw, int) or text(raw).isdigit():
        return integer(0, 2**32 - 2)(int(text(raw)) if isinstance(raw, str) else raw)
    try:
        return number_of(text(raw))
    except KeyError:
        raise ValueError(f"this host has no such {thing}") from None


def hook(*counts: int) -> Callable[[object], Callable[..., Any]]:
    """Return a parser of a function that takes one of these numbers of arguments; text is a dotted path to one.

    The function is wrapped to be called with the largest number.
    """
    most = max(counts)

    def parse(raw: object) -> Callable[..., Any]:
        function = _callable(raw)
        # From the most on: a function with *args, or with defaults, gets all.
        for count in sorted(counts, reverse=True):
            if accepts_args(function, count):
                return function if count == most else _with_first_arguments(function, count)
        raise ValueError(f"it does not take {_any_of(map(str, counts))} argument{'s' * (most > 1)}")

    return parse


def _with_first_arguments(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    from functools import wraps  # most servers wrap nothing

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


# ---- kinds that several settings have --------------------------------------------------------------------

# The texts name the largest value of each: a person who meets the bound need not look it up.
SWITCH = Kind(boolean, "True or False", arity="none")
SECONDS = Kind(
    duration,
    "a duration of 0 or more in seconds, at most 366 days, or text such as '500ms' or '2m'; for example 30",
    "SECONDS",
)
# At most 2**62: sums of two such sizes stay within the 64 bits of off_t.
BYTES = Kind(size(), "a size in bytes, at most 4194304T, or text such as '512K' or '10M'; for example '10M'", "BYTES")
BYTES_OR_UNLIMITED = Kind(size(), f"{BYTES.accepts}, or 0 for no limit", "BYTES")
# A line of a request's head is read into memory whole.
LINE_BYTES = Kind(size(1 << 20, zero=1 << 20), "a size in bytes up to '1M', or 0 for the largest", "BYTES")
# 2**31 - 1 is the largest int that listen(2) takes.
COUNT = Kind(integer(0), "a whole number of 0 or more, at most 2147483647", "N")
COUNT_FROM_1 = Kind(integer(1), "a whole number of at least 1 and at most 2147483647", "N")
# More processes or threads than this are a slip, and would take the host down before the slip is seen.
COUNT_TO_10000 = Kind(integer(1, 10_000), "a whole number of at least 1 and at most 10000", "N")
WORKERS = Kind(workers, f"{COUNT_TO_10000.accepts}, or 'auto'", "N")
TEXT = Kind(text, "a text", "NAME")
TEXT_OR_NONE = Kind(text_or_none, "a text", "NAME")
FILE = Kind(path, "a path", "FILE")
NETWORKS = Kind(networks, "IP addresses and networks separated by commas, or '*'; for example '10.0.0.0/8'", "LIST")
