"""What an access log can say about one request: gunicorn's atoms, and how their values are got and made safe.

Owns: the meaning and the text of each atom, the timestamp of the Common Log Format.
Must not know: templates, where lines go.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Sequence
from os import getpid
from time import gmtime, localtime, struct_time, time
from typing import Any, Protocol

from wsgiserv.logs.escape import escape_quoted

__all__ = [
    "BRACED",
    "LAID_OUT",
    "Atoms",
    "LogFunction",
    "basic_user",
    "clf_time",
    "environ_value",
    "header_key",
    "local_time",
    "numeric_offset",
]


class LogFunction(Protocol):
    """Logs one request. See `AccessLog.log`."""

    def __call__(
        self,
        environ: dict[str, Any],
        status: int,
        headers: Sequence[tuple[str, str]],
        sent_bytes: int,
        duration_s: float,
        aborted: bool = False,
    ) -> None: ...


# An atom that is laid out before it is escaped: `a%.20s`. `template_of` makes such names.
LAID_OUT = re.compile(r"(?P<name>.+)%(?P<layout>[#0\- +]*\d*(?:\.\d+)?[a-zA-Z])")

# The atoms in braces: `{host}i`.
BRACED = re.compile(r"\{(?P<key>[^{}]+)\}(?P<kind>[ioe])")

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def numeric_offset(seconds: int, colon: str) -> str:
    """Return ``+0200`` or, with a colon, ``+02:00``."""
    sign = "-" if seconds < 0 else "+"
    hours, minutes = divmod(abs(seconds) // 60, 60)
    return f"{sign}{hours:02d}{colon}{minutes:02d}"


def local_time(second: float) -> struct_time:
    """Return localtime(3) of ``second``; the epoch when the clock tells a time that this has no words for."""
    try:
        return localtime(second)
    except (OverflowError, ValueError, OSError):
        return gmtime(0)


def clf_time(second: float) -> str:
    """Return ``[01/May/2026:12:00:00 +0000]``: local time, in English whatever the locale."""
    now = local_time(second)
    return (
        f"[{now.tm_mday:02d}/{_MONTHS[now.tm_mon - 1]}/{now.tm_year}:{now.tm_hour:02d}:{now.tm_min:02d}"
        f":{now.tm_sec:02d} {numeric_offset(now.tm_gmtoff, '')}]"
    )


def basic_user(authorization: str) -> str:
    """Return the user of an ``Authorization: Basic`` value (RFC 7617), or ``-``. The value is a client's."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        # latin-1, so that an octet stays an octet until it is escaped
        user = a2b_base64(credentials.strip()).partition(b":")[0].decode("latin-1")
    except (Base64Error, ValueError):
        return "-"
    return user or "-"


def environ_value(environ: dict[str, Any], name: str) -> Any:
    """Return the environ's value under ``name``, whatever its case (gunicorn's rule), or ``-``."""
    for key in (name, name.upper(), name.lower()):
        if key in environ:
            return environ[key]
    lower = name.lower()
    for key, value in environ.items():
        if key.lower() == lower:
            return value
    return "-"


def header_key(name: str) -> str:
    """Return the environ's key of a request header."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


def _micros(duration_s: float) -> int:
    return int(duration_s * 1e6 + 0.5)


class Atoms(dict[str, Any]):
    """The atoms of one request, every text escaped: the mapping a template is formatted with.

    Logging filters and formatters get it as ``record.args``, as they get gunicorn's. The single letters are
    there as items, the braced ones (``{host}i``) are found on demand, whatever is unknown is ``-``.
    """

    def __init__(
        self,
        environ: dict[str, Any],
        status: int,
        headers: Sequence[tuple[str, str]],
        sent_bytes: int,
        duration_s: float,
        aborted: bool = False,
    ) -> None:
        self._environ = environ
        self._headers = headers
        self._status = status
        text, micros = self._text, _micros(duration_s)
        line = [text(environ.get(key)) for key in ("REQUEST_METHOD", "RAW_URI", "SERVER_PROTOCOL")]
        authorization = environ.get("HTTP_AUTHORIZATION")
        super().__init__(
            h=text(environ.get("REMOTE_ADDR") or None),
            l="-",
            u=text(basic_user(authorization)) if isinstance(authorization, str) else "-",
            t=clf_time(time()),
            r="-" if line == ["-", "-", "-"] else " ".join(line),
            m=line[0],
            U=text(environ.get("PATH_INFO")),
            q=text(environ.get("QUERY_STRING")),
            H=line[2],
            s=str(status),
            B=sent_bytes,
            b=str(sent_bytes),
            f=text(environ.get("HTTP_REFERER")),
            a=text(environ.get("HTTP_USER_AGENT")),
            T=micros // 1_000_000,
            M=micros // 1000,
            D=micros,
            L=f"{micros // 1_000_000}.{micros % 1_000_000:06d}",
            p=f"<{getpid()}>",
            i=text(environ.get("wsgiserv.request_id")),
            aborted="aborted" if aborted else "-",
        )

    @staticmethod
    def _text(value: Any) -> str:
        if value is None:
            return "-"
        try:
            return escape_quoted(value if isinstance(value, str) else str(value))
        except Exception:  # an object of the application in its environ, whose __str__ may do anything
            return "-"

    def _laid_out(self, name: str, layout: str) -> str:
        return f"%{layout}" % (self._status if name == "s" else self[name],)

    def __missing__(self, name: str) -> str:
        braced = BRACED.fullmatch(name)
        if not braced:
            laid_out = LAID_OUT.fullmatch(name)
            return self._laid_out(laid_out["name"], laid_out["layout"]) if laid_out else "-"
        key, kind = braced["key"], braced["kind"]
        if kind == "i":
            value = self._environ.get(header_key(key))
            return "-" if value == "" and not header_key(key).startswith("HTTP_") else self._text(value)
        if kind == "e":
            return self._text(environ_value(self._environ, key))
        lower = key.lower()
        return self._text(next((v for k, v in reversed(self._headers) if k.lower() == lower), None))
