"""The grammar of HTTP/1.1 as compiled regular expressions, each beside the ABNF it stands for.

Owns: which bytes are allowed where.
Must not know: what a field means, limits, states.

Repetition of a character class is possessive (``*+``, Python 3.11): a pattern either matches in one pass or fails in
one pass, so no input can make it backtrack (waitress CVE-2020-5236). Repetition of a group is not: before Python 3.11.5
a possessive one keeps what a failed repetition has consumed (gh-106052), and "3;" would be a chunk line. Each
alternative of such a group begins with another character, so there is one way to match.
"""

from __future__ import annotations

import re

__all__ = [
    "CHUNK_LINE",
    "DIGITS",
    "FIELD_LINE",
    "FIELD_LINES",
    "HOST",
    "ORIGIN_LINE",
    "REQUEST_LINE",
    "RESPONSE_NAME",
    "RESPONSE_VALUE",
    "STATUS",
    "STRAY",
]

# RFC 9110 §5.6.2: token = 1*tchar
_TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
_TOKEN = rb"[" + _TCHAR + rb"]++"
# RFC 9110 §5.5: field-value = *( VCHAR / obs-text / SP / HTAB ), once the outer white space is trimmed.
# CR, LF and NUL are dangerous, the other controls are invalid too; none of them is let through.
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"

# RFC 9112 §3: request-line = method SP request-target SP HTTP-version. The target is any run of visible
# ASCII but "#": a fragment is never sent (RFC 9112 §3.2), and a server that sees one where a proxy does
# not would disagree with it about the path.
REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21\x22\x24-\x7e]++) HTTP/([0-9])\.([0-9])")

# The usual request line: origin-form = absolute-path [ "?" query ] and version 1. Method, target, path, query and minor
# version, as latin-1 text. What it does not match is for REQUEST_LINE to judge.
ORIGIN_LINE = re.compile(
    r"("
    + _TOKEN.decode()
    + r") ((/[\x21\x22\x24-\x3e\x40-\x7e]*+)(?:\?([\x21\x22\x24-\x7e]*+))?) HTTP/1\.([0-9])"
)

# RFC 9112 §5: field-line = field-name ":" OWS field-value OWS. No white space before the colon
# (§5.1: it has been used to smuggle), no obs-fold (§5.2: a line that begins with white space has no name).
FIELD_LINE = re.compile(_TOKEN + rb":" + _VALUE)

# The lines of a whole block, as latin-1 text: name and value, without the white space before the value. One pass over
# a block costs less than one for each line. `findall` leaves out what is no field line: whoever uses it counts. A match
# begins behind any LF, also behind one without its CR; but that LF then is the end of no match, and the count tells.
FIELD_LINES = re.compile(
    r"^(" + _TOKEN.decode() + r"):[ \t]*+(" + _VALUE.decode("latin-1") + r")\r\n", re.MULTILINE
)

# What can never be part of a head, wherever the read boundary falls: a LF without its CR, a CR without
# its LF (a CR that ends the data may still get it), NUL and the other controls but HTAB.
STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

DIGITS = re.compile(rb"[0-9]++")

# RFC 9110 §7.2: Host = uri-host [ ":" port ]; uri-host from RFC 3986 §3.2.2 (IP-literal, IPv4, reg-name),
# which may be empty. Userinfo ("@") is no part of it. The comma, which RFC 3986 would allow, is refused: no
# name has one, and it is what two Host fields look like when somebody has joined them.
HOST = re.compile(
    rb"(?:\[(?:[0-9A-Fa-f:.]++|[vV][0-9A-Fa-f]++\.[0-9A-Za-z\-._~!$&'()*+,;=:]++)\]"
    rb"|(?:[0-9A-Za-z\-._~!$&'()*+;=]++|%[0-9A-Fa-f]{2})*)"
    rb"(?::[0-9]*+)?"
)

# RFC 9112 §7.1: chunk-size [ chunk-ext ];
# chunk-ext = *( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] ).
# 16 hexadecimal digits are 2**64 - 1: more can only be an attack.
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:[ \t]*+;[ \t]*+" + _TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*"
)

# What an application may send. RFC 9112 §4: status-code SP [ reason-phrase ]. Native strings, latin-1.
STATUS = re.compile(r"([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*+)?")
RESPONSE_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
RESPONSE_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*+")
