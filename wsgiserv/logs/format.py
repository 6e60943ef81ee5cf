"""Formats access log lines: gunicorn's atoms in a template, and ``json``, one object a line.

Each format has a fast path and a careful one. The fast path puts the raw values into the line and then searches the
finished line once for a character that must not stand in a log. Only a line with such a character, and a request that
lacks a key, goes through `Atoms` or `json_line`, which escape every value.
"""

# One search of the line costs less than looking at each value. Instructions a line of `combined` (callgrind): 26,000
# with the fast path, 95,000 without; in time 3.4 and 14.5 µs beside the 133 µs of a small Flask request. Generated code
# (`exec` of an f-string) took 13,000, but the 2 µs saved are 1.5 % of that request, and not worth its reading.

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from functools import lru_cache
from os import getpid
from time import gmtime, localtime, strftime, struct_time, time
from typing import Any, NamedTuple

from wsgiserv.config.log_formats import NAMED_FORMATS
from wsgiserv.errors import ConfigError
from wsgiserv.logs.escape import escape_json, escape_quoted
from wsgiserv.wording import nearest


class Exchange(NamedTuple):
    """One request and its response.

    Attributes:
        environ: the request's environ; a refused request's may lack any key.
        status: the status code.
        headers: the response's headers as sent.
        sent_bytes: the bytes of the body that were sent.
        duration_s: the seconds from the request's first byte to the response's last.
        aborted: True if the response ended early.
        pid: the worker's process id; 0 means this process.
    """

    environ: dict[str, Any]
    status: int
    headers: Sequence[tuple[str, str]]
    sent_bytes: int
    duration_s: float
    aborted: bool = False
    pid: int = 0


# Takes the fields of an `Exchange` and buffers its line. Never raises; any thread may call it.
LogFunction = Callable[..., None]
_Getter = Callable[[Exchange], Any]


# ---- times and users -----------------------------------------------------------------------------------

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def local_time(second: float) -> struct_time:
    """Return localtime(3) of ``second``; the epoch if it is out of range, as a broken clock's is."""
    try:
        return localtime(second)
    except (OverflowError, ValueError, OSError):
        return gmtime(0)


@lru_cache(maxsize=1)
def _texts_of(second: int) -> tuple[str, str, str]:
    """Return the Common Log Format's timestamp, the ISO 8601 one without its offset, and that offset."""
    now = local_time(second)
    offset = strftime("%z", now)
    # The month in English whatever the locale, so not by %b.
    common = strftime(f"[%d/{_MONTHS[now.tm_mon - 1]}/%Y:%H:%M:%S {offset}]", now)
    return common, strftime("%Y-%m-%dT%H:%M:%S", now), f"{offset[:3]}:{offset[3:]}"


def _now() -> tuple[int, int]:
    """Return the time in seconds and milliseconds; 0 if the application's time.time() returns no number."""
    try:
        return divmod(int(time() * 1000), 1000)
    except (ValueError, OverflowError):
        return 0, 0


def _iso_time() -> str:
    second, millisecond = _now()
    _, moment, offset = _texts_of(second)
    return f"{moment}.{millisecond:03d}{offset}"


def _user(exchange: Exchange) -> str:
    """Return the user of ``Authorization: Basic`` (RFC 7617), or ``-``."""
    authorization = exchange.environ.get("HTTP_AUTHORIZATION")
    if not isinstance(authorization, str):
        return "-"
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "-"
    try:
        # latin-1, so that an octet stays an octet until it is escaped
        return a2b_base64(credentials.strip()).partition(b":")[0].decode("latin-1") or "-"
    except ValueError:  # binascii.Error is one; so is the error for text that is not ASCII
        return "-"


# ---- atoms ---------------------------------------------------------------------------------------------


def _micros(exchange: Exchange) -> int:
    return int(exchange.duration_s * 1e6 + 0.5)


def _request_line(exchange: Exchange) -> str:
    environ = exchange.environ
    return f"{environ['REQUEST_METHOD']} {environ['RAW_URI']} {environ['SERVER_PROTOCOL']}"


# The raw values. A missing key raises KeyError, and the careful path takes over.
ATOMS: dict[str, _Getter] = {
    "h": lambda exchange: exchange.environ["REMOTE_ADDR"] or "-",
    "l": lambda exchange: "-",
    "u": _user,
    "t": lambda exchange: _texts_of(_now()[0])[0],
    "r": _request_line,
    "m": lambda exchange: exchange.environ["REQUEST_METHOD"],
    "U": lambda exchange: exchange.environ["PATH_INFO"],
    "q": lambda exchange: exchange.environ["QUERY_STRING"],
    "H": lambda exchange: exchange.environ["SERVER_PROTOCOL"],
    "s": lambda exchange: exchange.status,
    "B": lambda exchange: exchange.sent_bytes,
    "b": lambda exchange: str(exchange.sent_bytes),
    "f": lambda exchange: exchange.environ.get("HTTP_REFERER", "-"),
    "a": lambda exchange: exchange.environ.get("HTTP_USER_AGENT", "-"),
    "T": lambda exchange: _micros(exchange) // 1_000_000,
    "M": lambda exchange: _micros(exchange) // 1000,
    "D": _micros,
    "L": lambda exchange: "{}.{:06d}".format(*divmod(_micros(exchange), 1_000_000)),
    "p": lambda exchange: f"<{exchange.pid or getpid()}>",
    "i": lambda exchange: exchange.environ["wsgiserv.request_id"],
    "aborted": lambda exchange: "aborted" if exchange.aborted else "-",
}
_INTEGERS = frozenset("BTMD")  # among the atoms; `s` is a text there, as gunicorn's is
_NUMBERS = _INTEGERS | {"s"}

# The atoms in braces: `{host}i`.
_BRACED = re.compile(r"\{(?P<key>[^{}]+)\}(?P<kind>[ioe])")


def _braced(name: str) -> _Getter | None:
    """Return the getter of an atom such as ``{host}i``; None for another name."""
    match = _BRACED.fullmatch(name)
    if match is None:
        return None
    key, kind = match["key"], match["kind"]
    if kind == "e":
        return lambda exchange: _environ_value(exchange.environ, key)
    if kind == "o":
        lower = key.lower()
        return lambda exchange: next((v for k, v in reversed(exchange.headers) if k.lower() == lower), "-")
    header = key.upper().replace("-", "_")
    if header in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        # PEP 3333 allows these two to be there and empty when the client did not send them
        return lambda exchange: exchange.environ.get(header) or "-"
    return lambda exchange: exchange.environ.get(f"HTTP_{header}", "-")


def _dash(exchange: Exchange) -> str:
    return "-"


def _environ_value(environ: dict[str, Any], name: str) -> Any:
    """Return the environ's value under ``name``, whatever its case (gunicorn's rule), or ``-``."""
    for key in (name, name.upper(), name.lower()):
        if key in environ:
            return environ[key]
    lower = name.lower()
    return next((value for key, value in environ.items() if key.lower() == lower), "-")


# An atom that is laid out before it is escaped: `a%.20s`. `template_of` makes such names.
_LAID_OUT = re.compile(r"(?P<name>.+)%(?P<layout>[#0\- +]*\d*(?:\.\d+)?[a-zA-Z])")


class Atoms(dict[str, Any]):
    """The atoms of one request, every text escaped: the mapping to format a template with.

    Takes the fields of an `Exchange`. Logging filters and formatters get it as ``record.args``, as they get gunicorn's.
    The single letters are items; the braced ones (``{host}i``) are found on demand; an unknown atom is ``-``.
    """

    def __init__(self, *exchange: Any) -> None:
        self._exchange = Exchange(*exchange)
        super().__init__((name, self._value(name, get)) for name, get in ATOMS.items())
        line = [self["m"], self._value("uri", lambda exchange: exchange.environ["RAW_URI"]), self["H"]]
        self["r"] = "-" if line == ["-", "-", "-"] else " ".join(line)

    def _value(self, name: str, get: _Getter) -> Any:
        try:
            value = get(self._exchange)
            return value if name in _INTEGERS else self._text(value)
        except Exception:  # a missing key; an object of the application, whose __str__ may do anything
            return "-"

    def _text(self, value: Any) -> str:
        return "-" if value is None else escape_quoted(str(value))

    def _laid_out(self, name: str, layout: str) -> str:
        return f"%{layout}" % (self._exchange.status if name == "s" else self[name],)

    def __missing__(self, name: str) -> str:
        get = _braced(name)
        if get is not None:
            return str(self._value(name, get))
        laid_out = _LAID_OUT.fullmatch(name)
        return self._laid_out(laid_out["name"], laid_out["layout"]) if laid_out else "-"


class JSONAtoms(Atoms):
    """The atoms for a template that makes JSON: every text is escaped as the inside of a JSON string."""

    def _text(self, value: Any) -> str:
        text = _readable(value)
        return "-" if text is None else escape_json(text)

    def _laid_out(self, name: str, layout: str) -> str:
        if name == "s":
            return super()._laid_out(name, layout)
        # Cut first, then escaped: a cut escape would be no JSON.
        return escape_json(f"%{layout}" % (json.loads(f'"{self[name]}"'),))


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


# ---- templates -----------------------------------------------------------------------------------------

# Also a `%` that begins no directive: neither a percent nor a name.
_DIRECTIVE = re.compile(
    r"%(?:(?P<percent>%)|\((?P<name>[^()]*)\)(?P<layout>[#0\- +]*\d*(?:\.\d+)?)[hlL]?(?P<type>[a-zA-Z]))?"
)
_TYPES_OF_TEXT = "sra"
_TYPES_OF_NUMBERS = "sradiufFeEgGxXoc"


class _Piece(NamedTuple):
    """A directive of a template: how its value is got, and how it is laid out (``s``, ``5d``, ``-10s``)."""

    get: _Getter
    layout: str


def atoms_for(format_name: str) -> type[Atoms]:
    """Return the class of the atoms to format the template of a setting's value with."""
    # A template that begins with a brace is meant to make JSON objects: its values are escaped accordingly.
    return JSONAtoms if NAMED_FORMATS.get(format_name, format_name).lstrip().startswith("{") else Atoms


def template_of(format_name: str) -> str:
    """Return the template to format with `atoms_for`: a named one, or made from the setting's value.

    If ``%`` would lay out an escaped text (and so could cut an escape), or a number that is a text among the atoms, the
    layout goes into the atom's name: ``%(a).20s`` becomes ``%(a%.20s)s``.
    """
    makes_json = atoms_for(format_name) is JSONAtoms

    def directive(match: re.Match[str]) -> str:
        name, layout, kind = match["name"], match["layout"], match["type"]
        if name is None:
            return match[0]
        is_text = name not in _NUMBERS and (layout or kind != "s")
        if (makes_json and is_text) or (name == "s" and kind not in _TYPES_OF_TEXT):
            return f"%({name}%{layout}{kind})s"
        return match[0]

    return _DIRECTIVE.sub(directive, NAMED_FORMATS.get(format_name, format_name))


def template_for_gunicorn(format_name: str) -> str | None:
    """Return the template as gunicorn's loggers format it with a mapping of atoms; None for ``json``."""
    return None if format_name == "json" else NAMED_FORMATS.get(format_name, format_name)


def _bad(template: str, what: str) -> ConfigError:
    return ConfigError(
        f"access_log_format: {what} in {template!r}. Expected: common, combined, json, or a template of "
        f"%(x)s with x one of {' '.join(ATOMS)}, {{header}}i, {{header}}o, {{variable}}e; "
        "%% is a per cent sign."
    )


def _parse(format_name: str) -> list[str | _Piece]:
    template = NAMED_FORMATS.get(format_name, format_name)
    pieces: list[str | _Piece] = []
    position = 0
    for match in _DIRECTIVE.finditer(template):
        start, name, kind = match.start(), match["name"], match["type"]
        pieces.append(template[position:start])
        position = match.end()
        if match["percent"]:
            pieces.append("%")
            continue
        if name is None:
            raise _bad(template, f"no atom at character {start + 1}, {template[start : start + 12]!r},")
        # As with gunicorn an atom that does not exist is a dash; `format_advice` names it.
        get = ATOMS.get(name) or _braced(name) or _dash
        # Checked here: `%` itself would raise at each request.
        if kind not in (_TYPES_OF_NUMBERS if name in _NUMBERS else _TYPES_OF_TEXT):
            raise _bad(template, f"%({name}){match['layout']}{kind} cannot be formatted as {kind!r}")
        pieces.append(_Piece(get, match["layout"] + kind))
    return [*pieces, template[position:]]


def check_format(format_name: str) -> None:
    """Raise ConfigError naming the fault if this value of ``access_log_format`` cannot be used."""
    if format_name != "json":
        _parse(format_name)


def format_advice(format_name: str) -> str:
    """Return a warning about atoms that do not exist, or a format without any; else nothing."""
    if format_name == "json":
        return ""
    pieces, template = _parse(format_name), NAMED_FORMATS.get(format_name, format_name)
    names = dict.fromkeys(match["name"] for match in _DIRECTIVE.finditer(template))
    if unknown := [name for name in names if not (name is None or name in ATOMS or _braced(name))]:
        listed = ", ".join(f"%({name})s" for name in unknown)
        known = " ".join(ATOMS)
        return (
            f"WS1830 access_log_format: there {'are no atoms' if len(unknown) > 1 else 'is no atom'} {listed}: a dash "
            f"stands there in each line. Accepted: {known}, {{header}}i, {{header}}o, {{variable}}e"
        )
    if any(isinstance(piece, _Piece) for piece in pieces):
        return ""
    near = nearest(format_name.lower(), [*NAMED_FORMATS, "json"], limit=1)
    advice = f"Did you mean {near[0]!r}?" if near else "Expected common, combined, json, or atoms such as %(h)s"
    return f"access_log_format = {format_name!r} has no atom, so every line is this text. {advice}"


# ---- JSON ----------------------------------------------------------------------------------------------

# The fields that are text or null (docs/logging.md lists all), after `time` and before `status`
_TEXTS: dict[str, _Getter] = {
    "remote_addr": lambda exchange: exchange.environ.get("REMOTE_ADDR") or None,
    "user": lambda exchange: None if (user := _user(exchange)) == "-" else user,
    "request_id": lambda exchange: exchange.environ.get("wsgiserv.request_id"),
    "method": lambda exchange: exchange.environ.get("REQUEST_METHOD"),
    "path": lambda exchange: exchange.environ.get("PATH_INFO"),
    "query": lambda exchange: exchange.environ.get("QUERY_STRING"),
    "protocol": lambda exchange: exchange.environ.get("SERVER_PROTOCOL"),
    "host": lambda exchange: exchange.environ.get("HTTP_HOST"),
    "referer": lambda exchange: exchange.environ.get("HTTP_REFERER"),
    "user_agent": lambda exchange: exchange.environ.get("HTTP_USER_AGENT"),
}


_JSON = (
    '{"time":%s,' + "".join(f'"{field}":%s,' for field in _TEXTS)
    + '"status":%d,"bytes":%d,"duration_s":%.6f,"aborted":%s,"pid":%d}'
)  # fmt: skip


def _json_getters(text: Callable[[_Getter], _Getter]) -> list[_Getter]:
    """Return the getters of the values in `_JSON`, those of texts made by ``text``."""
    return [
        lambda exchange: f'"{_iso_time()}"',
        *map(text, _TEXTS.values()),
        lambda exchange: exchange.status,
        lambda exchange: exchange.sent_bytes,
        lambda exchange: exchange.duration_s,
        lambda exchange: "true" if exchange.aborted else "false",
        lambda exchange: exchange.pid or getpid(),
    ]


def _quoted(get: _Getter) -> _Getter:
    return lambda exchange: "null" if (value := get(exchange)) is None else f'"{value}"'


def _escaped(get: _Getter) -> _Getter:
    return lambda exchange: json.dumps(_readable(get(exchange)))


def json_line(*exchange: Any) -> bytes:
    """Return the line of an `Exchange`, whatever its values are, without its end."""
    taken = Exchange(*exchange)
    return (_JSON % tuple([get(taken) for get in _json_getters(_escaped)])).encode()


# ---- the log function ----------------------------------------------------------------------------------

# Characters that need no escape in a value: printable ASCII but `"` and the backslash.
_HARMLESS = bytes(octet for octet in range(0x20, 0x7F) if octet not in b'"\\')


def _residue(line: bytes) -> bytes:
    """Return the characters of ``line`` without those that need no escape in a value."""
    # In JSON null stands in place of a pair of quotes. A value that has this text makes a difference, too, and is
    # harmless: its line goes the careful way.
    return line.replace(b":null,", b':"",').translate(None, _HARMLESS)


def compile_format(format_name: str, append: Callable[[bytes], None]) -> LogFunction:
    """Return the function that appends one line per request, without a line end.

    Raises ConfigError as `check_format` does.
    """
    if format_name == "json":
        getters = _json_getters(_quoted)
        example = Exchange({}, 0, (), 0, 0.0)
        own = _JSON % tuple([get(example) for get in getters])
        return _log_function(_JSON, getters, own, json_line, b"{}", append)
    pieces = _parse(format_name)
    own = "".join(piece for piece in pieces if isinstance(piece, str))
    fast = "".join(p.replace("%", "%%") if isinstance(p, str) else f"%{p.layout}" for p in pieces)
    getters = [piece.get for piece in pieces if isinstance(piece, _Piece)]
    atoms, template = atoms_for(format_name), template_of(format_name)

    def careful(*exchange: Any) -> bytes:
        return (template % atoms(*exchange)).encode("utf-8", "backslashreplace")

    return _log_function(fast, getters, own, careful, b"-" if atoms is Atoms else b"{}", append)


def _log_function(
    fast: str,
    getters: Sequence[_Getter],
    own: str,
    careful: Callable[..., bytes],
    empty: bytes,
    append: Callable[[bytes], None],
) -> LogFunction:
    """Return a log function.

    Args:
        fast: the template of the raw values.
        getters: return these, in order.
        own: the line without them, or with harmless ones.
        careful: makes the line of any exchange.
        empty: the line when even that fails.
        append: takes the line.
    """
    harmless = _residue(own.encode("utf-8", "backslashreplace"))

    def log(*exchange: Any) -> None:
        try:
            taken = Exchange(*exchange)
            line = (fast % tuple([get(taken) for get in getters])).encode()
            if _residue(line) == harmless:
                append(line)
                return
        except Exception:  # a key is missing, a value is not text
            pass
        try:
            line = careful(*exchange)
        except Exception:  # little stack is left (sys.setrecursionlimit)
            line = empty
        append(line)

    return log
