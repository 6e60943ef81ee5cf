"""The grammar of HTTP/1.1 as compiled regular expressions, each beside its ABNF.

Repetition of a character class is possessive (``*+``, Python 3.11): a pattern matches or fails in one pass, and no
input can make it backtrack (waitress CVE-2020-5236). Repetition of a group is not: before Python 3.11.5 a possessive
one keeps what a failed repetition has consumed (gh-106052), and "3;" would be a chunk line. The alternatives of such a
group begin with different characters, so there is one way to match.
"""

from __future__ import annotations

import re

# RFC 9110 §5.6.2: token = 1*tchar. No separators: a space, colon, quote or control in a name or method would let two
# readers split the line at different places.
TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# RFC 9110 §5.6.4: quoted-string = DQUOTE *( qdtext / quoted-pair ) DQUOTE
QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
# RFC 9110 §5.5: field-value = *( VCHAR / obs-text / SP / HTAB ), once the outer white space is trimmed.
# CR, LF and NUL end or cut a value for other readers ("invalid and dangerous", §5.5); the other controls are invalid.
FIELD_VALUE = r"[\t\x20-\x7e\x80-\xff]*+"

# RFC 9112 §3: request-line = method SP request-target SP HTTP-version. Single spaces only: with lenient white space
# (§3, last paragraph) a proxy and a server can see different targets. The target is any run of visible ASCII but "#":
# a fragment is never sent (§3.2), and a proxy that does not see one would disagree about the path.
REQUEST_LINE = re.compile("(" + TOKEN + r") ([\x21\x22\x24-\x7e]++) HTTP/([0-9])\.([0-9])")

# The usual request line: origin-form = absolute-path [ "?" query ] (RFC 9112 §3.2.1) and version 1. Groups: method,
# target, path, query, minor version. REQUEST_LINE judges the lines that it does not match.
_ORIGIN_FORM = r"(/[\x21\x22\x24-\x3e\x40-\x7e]*+)(?:\?([\x21\x22\x24-\x7e]*+))?"
ORIGIN_LINE = re.compile(rf"({TOKEN}) ({_ORIGIN_FORM}) HTTP/1\.([0-9])")

# RFC 9112 §3.2.2: absolute-form = absolute-URI = scheme "://" authority path-abempty [ "?" query ] (RFC 3986 §3). Other
# schemes are not served here. Groups: authority, path, query.
ABSOLUTE_TARGET = re.compile(r"https?://([^/?]*+)([^?]*+)(?:\?(.*))?", re.IGNORECASE)

# RFC 9112 §5: field-line = field-name ":" OWS field-value OWS. No white space before the colon (§5.1: it has been used
# to smuggle), no obs-fold (§5.2: a line that begins with white space has no name).
FIELD_LINE = re.compile((TOKEN + ":" + FIELD_VALUE).encode("latin-1"))
# The same with groups: name, and value without the white space before it.
FIELD = re.compile(("(" + TOKEN + r"):[ \t]*+(" + FIELD_VALUE + ")").encode("latin-1"))

# The lines of a whole block, as latin-1 text: name, and value without the white space before it. One pass over a block
# costs less than one for each line. `findall` skips what is no field line: the caller must count. A match begins
# behind any LF, also behind one without its CR; but that LF then is the end of no match, and the count tells.
FIELD_LINES = re.compile("^(" + TOKEN + r"):[ \t]*+(" + FIELD_VALUE + r")\r\n", re.MULTILINE)

# Bytes that no head may contain, at whatever boundary the reads fall: a LF without its CR (RFC 9112 §2.2 lets readers
# accept it, and those that do see other lines than those that do not), a CR without its LF (a CR at the end of the
# data may still get it), NUL and the other controls but HTAB.
STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# 1*DIGIT, ASCII only: int() alone would take "+1", "1_0" and "²".
DIGITS = re.compile("[0-9]++")

# RFC 9110 §7.2: Host = uri-host [ ":" port ]; RFC 3986 §3.2.2: uri-host = IP-literal / IPv4address / reg-name, which
# may be empty. Userinfo ("@") is no part of it: "trusted.example@evil.example" reads as either host. The comma, which
# RFC 3986 allows, is refused: no name has one, and two Host fields joined by a proxy look like that.
HOST = re.compile(
    r"(?:\[(?:[0-9A-Fa-f:.]++|[vV][0-9A-Fa-f]++\.[0-9A-Za-z\-._~!$&'()*+,;=:]++)\]"
    r"|(?:[0-9A-Za-z\-._~!$&'()*+;=]++|%[0-9A-Fa-f]{2})*)"
    r"(?::[0-9]*+)?"
)

# RFC 9112 §7.1: chunk-size [ chunk-ext ]; chunk-size = 1*HEXDIG;
# chunk-ext = *( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] ).
# 16 hexadecimal digits are 2**64 - 1: more can only be an attack on a reader that wraps around.
_CHUNK_EXTENSION = rf"[ \t]*+;[ \t]*+{TOKEN}(?:[ \t]*+=[ \t]*+(?:{TOKEN}|{QUOTED}))?"
CHUNK_LINE = re.compile(f"([0-9A-Fa-f]{{1,16}})(?:{_CHUNK_EXTENSION})*".encode("latin-1"))

# The application's side, native strings as latin-1. RFC 9112 §4: status-code SP [ reason-phrase ].
STATUS = re.compile(r"([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?")
RESPONSE_NAME = re.compile(TOKEN)
RESPONSE_VALUE = re.compile(FIELD_VALUE)


def parse_content_length(value: str) -> int | None:
    """Return the number of a Content-Length value, None when it is malformed (RFC 9110 §8.6: 1*DIGIT)."""
    # Up to 19 digits: int() refuses 5,000 with an error of its own, and 64 bits end there for other readers.
    return int(value) if DIGITS.fullmatch(value) and len(value) <= 19 else None
