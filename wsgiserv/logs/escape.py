"""Makes text from a client safe to print.

A client must not be able to end its log line and forge the next one, to move the terminal's cursor, or to leave a
quoted field.
"""

from __future__ import annotations

import re

# C0, DEL and C1 drive terminals; NEL (in C1), U+2028 and U+2029 end a line for many readers; a lone surrogate
# cannot be encoded as UTF-8 at all.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_BUT_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# In a quoted field of the access log: all but printable ASCII, and `"` and the backslash, since most readers
# of the combined format take `\"` for a quote inside the field.
_UNQUOTABLE = re.compile(r"[^ !#-\[\]-~]")


def _code(match: re.Match[str]) -> str:
    point = ord(match[0])
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}"


def _octets(match: re.Match[str]) -> str:
    # Native strings of PEP 3333 are octets in latin-1; any other text is the application's own.
    coding = "latin-1" if match[0] <= "\xff" else "utf-8"
    return "".join(f"\\x{octet:02x}" for octet in match[0].encode(coding, "surrogatepass"))


def _units(match: re.Match[str]) -> str:
    # RFC 8259 §7: what lies beyond U+FFFF takes two, a surrogate pair.
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def escape(text: str) -> str:
    r"""Return ``text`` on one line, with every control character written as ``\x1b`` or ``\u2028``.

    For text from a client in a message of the error log. A backslash stays as it is: the result is for reading, it
    cannot be decoded back with certainty. Never raises.
    """
    return _CONTROL.sub(_code, text)


def escape_keeping_lines(text: str) -> str:
    r"""Do as `escape`, but leave ``\n`` and TAB: for tracebacks, whose lines are ours."""
    return _CONTROL_BUT_LINES.sub(_code, text)


def escape_quoted(text: str) -> str:
    r"""Return ``text`` for a place between double quotes in a text access log, in ASCII.

    ``"``, the backslash and everything outside printable ASCII become ``\xNN`` per octet, as nginx writes them
    (``log_format escape=default``). The native strings of PEP 3333 are octets already, so these are the octets of the
    request. Never raises.
    """
    return _UNQUOTABLE.sub(_octets, text)


def escape_json(text: str) -> str:
    r"""Return ``text`` for a place between the quotes of a JSON string, in ASCII.

    ``"``, the backslash and everything outside printable ASCII become ``\uNNNN`` (RFC 8259 §7). Never raises.
    """
    return _UNQUOTABLE.sub(_units, text)
