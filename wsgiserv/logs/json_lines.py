"""The access log format `json`: one JSON object per line, with typed fields; and atoms for people's own JSON.

Owns: the names, types and order of the fields (docs/logging.md lists them), the timestamp, the escapes.
Must not know: where lines go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from os import getpid
from time import time
from typing import Any

from wsgiserv.logs.atoms import Atoms, LogFunction, basic_user, local_time, numeric_offset
from wsgiserv.logs.escape import escape_json

__all__ = ["JSONAtoms", "compile_json", "json_line"]

# The fields that are text from the environ: field -> key.
_TEXTS = {
    "request_id": "wsgiserv.request_id",
    "method": "REQUEST_METHOD",
    "path": "PATH_INFO",
    "query": "QUERY_STRING",
    "protocol": "SERVER_PROTOCOL",
    "host": "HTTP_HOST",
    "referer": "HTTP_REFERER",
    "user_agent": "HTTP_USER_AGENT",
}


def _iso_parts(second: float) -> tuple[str, str]:
    now = local_time(second)
    day = f"{now.tm_year}-{now.tm_mon:02d}-{now.tm_mday:02d}"
    return f"{day}T{now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d}", numeric_offset(now.tm_gmtoff, ":")


def _readable(value: Any) -> str | None:
    r"""Return an environ value as text: its octets as UTF-8, what is not UTF-8 as ``\xNN``. Never raises."""
    if value is None:
        return None
    try:
        text = str(value)
        return text.encode("latin-1").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text  # a value of the application that is not a native string of PEP 3333
    except Exception:  # an object of the application whose __str__ may do anything
        return None


class JSONAtoms(Atoms):
    """The atoms for a template that makes JSON: every text is escaped as the inside of a JSON string."""

    @staticmethod
    def _text(value: Any) -> str:
        text = _readable(value)
        return "-" if text is None else escape_json(text)

    def _laid_out(self, name: str, layout: str) -> str:
        if name == "s":
            return super()._laid_out(name, layout)
        # Cut first, escaped then: a cut escape would be no JSON.
        return escape_json(f"%{layout}" % (json.loads(f'"{self[name]}"'),))


def json_line(
    environ: dict[str, Any],
    status: int,
    headers: Sequence[tuple[str, str]],
    sent_bytes: int,
    duration_s: float,
    aborted: bool = False,
    pid: int = 0,
) -> bytes:
    """Return one line, whatever the values are, without its end. ``pid`` is the worker's; 0 is this process."""
    now = time()
    moment, offset = _iso_parts(int(now))
    authorization = environ.get("HTTP_AUTHORIZATION")
    user = basic_user(authorization) if isinstance(authorization, str) else "-"
    fields: dict[str, Any] = {
        "time": f"{moment}.{int(now * 1000) % 1000:03d}{offset}",
        "remote_addr": _readable(environ.get("REMOTE_ADDR")) or None,
        "user": None if user == "-" else _readable(user),
        **{field: _readable(environ.get(key)) for field, key in _TEXTS.items()},
        "status": status,
        "bytes": sent_bytes,
        "duration_s": int(duration_s * 1e6 + 0.5) / 1e6,
        "aborted": aborted,
        "pid": pid or getpid(),
    }
    return json.dumps(fields, separators=(",", ":")).encode()


# What stands for itself in a JSON string: printable ASCII without `"` and the backslash.
_PLAIN = bytes(octet for octet in range(0x20, 0x7F) if octet not in b'"\\')
_QUOTES = [b'"' * count for count in range(64)]
_QUOTES_WHEN_NULL = 2 * 16 + 2 * 6  # the names; the texts that no request lacks


def compile_json(append: Callable[[bytes], None]) -> LogFunction:
    """Return the ``log`` function that appends one JSON object per request. See `compile_format`.

    The fast path puts the values in as they are and checks the finished line once, as the text formats do:
    when only the quotes that we wrote are left beside plain characters, then nothing needed escaping.
    Anything else goes through the json module.
    """
    second = until = 0
    moment = offset = ""

    def log(
        environ: dict[str, Any],
        status: int,
        headers: Sequence[tuple[str, str]],
        sent_bytes: int,
        duration_s: float,
        aborted: bool = False,
    ) -> None:
        nonlocal second, until, moment, offset
        try:
            now = time()
            if not second <= now < until:
                second = int(now)
                until = second + 1
                moment, offset = _iso_parts(second)
            get = environ.get
            quotes = _QUOTES_WHEN_NULL
            host = referer = agent = user = address = "null"
            if value := environ["REMOTE_ADDR"]:
                address = f'"{value}"'
                quotes += 2
            if (value := get("HTTP_HOST")) is not None:
                host = f'"{value}"'
                quotes += 2
            if (value := get("HTTP_REFERER")) is not None:
                referer = f'"{value}"'
                quotes += 2
            if (value := get("HTTP_USER_AGENT")) is not None:
                agent = f'"{value}"'
                quotes += 2
            if (
                "HTTP_AUTHORIZATION" in environ
                and (value := basic_user(environ["HTTP_AUTHORIZATION"])) != "-"
            ):
                user = f'"{value}"'
                quotes += 2
            line = (
                f'{{"time":"{moment}.{int(now * 1000) % 1000:03d}{offset}"'
                f',"remote_addr":{address},"user":{user}'
                f',"request_id":"{environ["wsgiserv.request_id"]}","method":"{environ["REQUEST_METHOD"]}"'
                f',"path":"{environ["PATH_INFO"]}","query":"{environ["QUERY_STRING"]}"'
                f',"protocol":"{environ["SERVER_PROTOCOL"]}","host":{host},"referer":{referer},"user_agent":{agent}'
                f',"status":{status},"bytes":{sent_bytes},"duration_s":{duration_s:.6f}'
                f',"aborted":{"true" if aborted else "false"},"pid":{getpid()}}}'
            ).encode()
            if line.translate(None, _PLAIN) == _QUOTES[quotes]:
                append(line)
                return
        except Exception:  # a key that is missing, a value that cannot be encoded
            pass
        try:
            line = json_line(environ, status, headers, sent_bytes, duration_s, aborted)
        except Exception:  # the stack is all but used up (sys.setrecursionlimit)
            line = b"{}"
        append(line)

    return log
