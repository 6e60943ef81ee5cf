"""The request head: RFC 9112 §2-§6, RFC 9110 §5-§7, and the advisories behind hardening.md."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsgiserv.errors import ProtocolError
from wsgiserv.http.head import _CACHE_ENTRIES, _KEPT_OF, HeaderBlock, HeadLimits, HeadParser


def parser(**limits: object) -> HeadParser:
    return HeadParser(HeadLimits(**limits))  # type: ignore[arg-type]


ACCEPTED_LINES = [
    (b"GET / HTTP/1.1", "GET", "/", "", "HTTP/1.1"),
    (b"GET / HTTP/1.0", "GET", "/", "", "HTTP/1.0"),
    (b"GET / HTTP/1.9", "GET", "/", "", "HTTP/1.1"),
    (b"get / HTTP/1.1", "get", "/", "", "HTTP/1.1"),
    (b"M-SEARCH / HTTP/1.1", "M-SEARCH", "/", "", "HTTP/1.1"),
    (b"!#$%&'*+-.^_`|~09AZaz / HTTP/1.1", "!#$%&'*+-.^_`|~09AZaz", "/", "", "HTTP/1.1"),
    (b"GET /a/b%20c?d=e%20f HTTP/1.1", "GET", "/a/b c", "d=e%20f", "HTTP/1.1"),
    (b"GET /a?b?c HTTP/1.1", "GET", "/a", "b?c", "HTTP/1.1"),
    (b"GET /? HTTP/1.1", "GET", "/", "", "HTTP/1.1"),
    (b"GET //host/x HTTP/1.1", "GET", "//host/x", "", "HTTP/1.1"),
    (b"GET /../a/./b HTTP/1.1", "GET", "/../a/./b", "", "HTTP/1.1"),
    (b"GET /%2525 HTTP/1.1", "GET", "/%25", "", "HTTP/1.1"),
    (b"GET /%C3%A9 HTTP/1.1", "GET", "/\xc3\xa9", "", "HTTP/1.1"),
    (b"GET /%zz HTTP/1.1", "GET", "/%zz", "", "HTTP/1.1"),
    (b"OPTIONS * HTTP/1.1", "OPTIONS", "*", "", "HTTP/1.1"),
    (b"GET http://a.example/x?y HTTP/1.1", "GET", "/x", "y", "HTTP/1.1"),
    (b"GET HTTPS://a.example:8443 HTTP/1.1", "GET", "/", "", "HTTP/1.1"),
    (b"GET http://[::1]:80?y HTTP/1.1", "GET", "/", "y", "HTTP/1.1"),
    (b"CONNECT a.example:443 HTTP/1.1", "CONNECT", "", "", "HTTP/1.1"),
]


@pytest.mark.parametrize(("raw", "method", "path", "query", "protocol"), ACCEPTED_LINES)
def test_request_lines_that_are_accepted(raw: bytes, method: str, path: str, query: str, protocol: str) -> None:
    line = parser().request_line(raw)
    environ = line.environ
    assert line.method == environ["REQUEST_METHOD"] == method
    assert environ["PATH_INFO"] == path
    assert environ["QUERY_STRING"] == query
    assert environ["SERVER_PROTOCOL"] == protocol
    assert environ["RAW_URI"] == raw.split(b" ")[1].decode()
    assert line.http11 is (protocol == "HTTP/1.1")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"GET /\tHTTP/1.1", 400),
        (b"GET / b HTTP/1.1", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/1.", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / HTTP/11.1", 400),
        (b"GET / http/1.1", 400),
        (b"GET / HTTP/1,1", 400),
        (b"GET / HTTP/ 1.1", 400),
        (b"GET / HTTP/\xb2.1", 400),
        (b"GET / HTTPS/1.1", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"G(T / HTTP/1.1", 400),
        (b"G\xc3\xa9T / HTTP/1.1", 400),
        (b"GET /\x00 HTTP/1.1", 400),
        (b"GET /\x7f HTTP/1.1", 400),
        (b"GET /\xc3\xa9 HTTP/1.1", 400),
        (b"GET /\r HTTP/1.1", 400),
        (b"GET /\n HTTP/1.1", 400),
        (b"GET /#a HTTP/1.1", 400),
        (b"GET a HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET a.example:80 HTTP/1.1", 400),
        (b"GET ftp://a.example/ HTTP/1.1", 400),
        (b"GET http:///x HTTP/1.1", 400),
        (b"GET http://:80/x HTTP/1.1", 400),
        (b"GET http://user@a.example/ HTTP/1.1", 400),
        (b"GET http://a.example:x/ HTTP/1.1", 400),
        (b"CONNECT / HTTP/1.1", 400),
        (b"CONNECT a.example HTTP/1.1", 400),
        (b"CONNECT a.example: HTTP/1.1", 400),
        (b"CONNECT http://a.example/ HTTP/1.1", 400),
        (b"OPTIONS *a HTTP/1.1", 400),
    ],
)
def test_request_lines_that_are_refused(raw: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        parser().request_line(raw)
    assert caught.value.status == status


def test_the_longest_request_line_is_accepted_and_one_byte_more_is_not() -> None:
    longest = b"GET /" + b"a" * (100 - len(b"GET / HTTP/1.1")) + b" HTTP/1.1"
    assert len(longest) == 100
    assert parser(line=100).request_line(longest).method == "GET"
    with pytest.raises(ProtocolError) as caught:
        parser(line=99).request_line(longest)
    assert caught.value.status == 414


def test_an_absolute_target_carries_its_authority() -> None:
    assert parser().request_line(b"GET http://a.example:81/x HTTP/1.1").authority == "a.example:81"
    assert parser().request_line(b"GET /x HTTP/1.1").authority is None


@pytest.mark.parametrize(
    ("raw", "script_name", "path_info"),
    [
        (b"/shop/cart", "/shop", "/cart"),
        (b"/shop", "/shop", ""),
        (b"/shopping", "/shop", "/shopping"),
        (b"/other", "/shop", "/other"),
    ],
)
def test_the_root_path_is_taken_off_in_whole_segments(raw: bytes, script_name: str, path_info: str) -> None:
    environ = parser(root_path="/shop").request_line(b"GET " + raw + b" HTTP/1.1").environ
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


def block(raw: bytes, **limits: object):  # type: ignore[no-untyped-def]
    return parser(**limits).header_block(raw)


@pytest.mark.parametrize(
    ("raw", "environ"),
    [
        (b"", {}),
        (b"Host: a\r\n", {"HTTP_HOST": "a"}),
        (b"Host:\r\n", {"HTTP_HOST": ""}),
        (b"host:a\r\n", {"HTTP_HOST": "a"}),
        (b"Host: [::1]:8000\r\n", {"HTTP_HOST": "[::1]:8000"}),
        (b"X: \t a b \t\r\n", {"HTTP_X": "a b"}),
        (b"X: a\xe9\r\n", {"HTTP_X": "a\xe9"}),
        (b"X: \xc2\xa0a\xc2\xa0\r\n", {"HTTP_X": "\xc2\xa0a\xc2\xa0"}),  # not white space: SP and HTAB only
        (b"X: a:b\r\n", {"HTTP_X": "a:b"}),
        (b"X-Y.z!: 1\r\n", {"HTTP_X_Y.Z!": "1"}),
        (b"A: 1\r\nA: 2\r\n", {"HTTP_A": "1, 2"}),
        (b"A: 1\r\na: 2\r\n", {"HTTP_A": "1, 2"}),
        (b"Cookie: a=1\r\nCookie: b=2\r\n", {"HTTP_COOKIE": "a=1; b=2"}),
        (b"Content-Type: a/b\r\n", {"CONTENT_TYPE": "a/b"}),
        (b"Content-Type: a/b\r\nContent-Type: a/b\r\n", {"CONTENT_TYPE": "a/b"}),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", {"CONTENT_LENGTH": "5"}),
        (b"X_Y: forged\r\nX-Y: true\r\n", {"HTTP_X_Y": "true"}),
        (b"Content_Length: 5\r\n", {}),
        (b"Upgrade: websocket\r\nConnection: upgrade\r\n", {"HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "upgrade"}),
    ],
)
def test_header_blocks_that_are_accepted(raw: bytes, environ: dict[str, str]) -> None:
    assert block(raw).environ == environ


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"Host : a\r\n", 400),
        (b"Host\t: a\r\n", 400),
        (b" Host: a\r\n", 400),
        (b"A: 1\r\n folded\r\n", 400),
        (b"A: 1\r\n\tfolded\r\n", 400),
        (b": a\r\n", 400),
        (b"A\r\n", 400),
        (b"A B: 1\r\n", 400),
        (b"A(: 1\r\n", 400),
        (b"\xe9: 1\r\n", 400),
        (b"A: \x00\r\n", 400),
        (b"A: \x01\r\n", 400),
        (b"A: \x7f\r\n", 400),
        (b"A: 1\n", 400),
        (b"A: 1\nB: 2\r\n", 400),
        (b"A: 1\rB: 2\r\n", 400),
        (b"A: 1\r\r\n", 400),
        (b"Host: a\r\nHost: a\r\n", 400),
        (b"Host: a b\r\n", 400),
        (b"Host: a/b\r\n", 400),
        (b"Host: a@b\r\n", 400),
        (b"Host: a, b\r\n", 400),
        (b"Host: a:b\r\n", 400),
        (b"Host: [::1\r\n", 400),
        (b"Content-Length:\r\n", 400),
        (b"Content-Length: +5\r\n", 400),
        (b"Content-Length: -5\r\n", 400),
        (b"Content-Length: 5_0\r\n", 400),
        (b"Content-Length: 0x5\r\n", 400),
        (b"Content-Length: 5 5\r\n", 400),
        (b"Content-Length: 5,5\r\n", 400),
        (b"Content-Length: \xb2\r\n", 400),
        (b"Content-Length: 5.0\r\n", 400),
        (b"Content-Length: \xa05\r\n", 400),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n", 400),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
        (b"Transfer-Encoding:\r\n", 400),
        (b"Transfer-Encoding: chunked, chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked, gzip\r\n", 400),
        (b"Transfer-Encoding: chunked,\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 501),
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: identity\r\n", 501),
        (b"Transfer-Encoding: xchunked\r\n", 501),
        (b'Transfer-Encoding: "chunked"\r\n', 501),
        (b"Transfer-Encoding: chunked;q=1\r\n", 501),
        (b"Expect: 200-ok\r\n", 417),
        (b"Authorization: a\r\nAuthorization: b\r\n", 400),
        (b"Content-Type: a/b\r\nContent-Type: c/d\r\n", 400),
        (b"A: 1\r\n" * 101, 431),
        (b"A: " + b"a" * 8190 + b"\r\n", 431),
    ],
)
def test_header_blocks_that_are_refused(raw: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        block(raw)
    assert caught.value.status == status


def test_limits_are_exact() -> None:
    assert len(block(b"A: 1\r\n" * 100).fields()) == 100
    assert block(b"A: " + b"a" * 97 + b"\r\n", field_size=100).environ["HTTP_A"] == "a" * 97
    with pytest.raises(ProtocolError):
        block(b"A: " + b"a" * 98 + b"\r\n", field_size=100)


@pytest.mark.parametrize(
    ("raw", "close", "keep_alive"),
    [
        (b"Connection: close\r\n", True, False),
        (b"Connection: foo, close\r\n", True, False),
        (b"Connection: foo\r\nConnection: CLOSE\r\n", True, False),
        (b"Connection: Keep-Alive\r\n", False, True),
        (b"Connection: closed\r\n", False, False),
    ],
)
def test_connection_options_are_list_members(raw: bytes, close: bool, keep_alive: bool) -> None:
    parsed = block(raw)
    assert (parsed.close, parsed.keep_alive) == (close, keep_alive)


def test_header_map_decides_about_underscores() -> None:
    assert block(b"X_Y: 1\r\n").environ == {}
    assert block(b"X_Y: 1\r\n", header_map="dangerous").environ == {"HTTP_X_Y": "1"}
    assert block(b"Transfer_Encoding: chunked\r\n", header_map="dangerous").chunked is False
    with pytest.raises(ProtocolError):
        block(b"X_Y: 1\r\n", header_map="refuse")
    forwarder = block(b"SCRIPT_NAME: /x\r\n", forwarder_headers=frozenset({"SCRIPT_NAME"}))
    assert forwarder.environ == {}
    assert forwarder.forwarder == {"SCRIPT_NAME": "/x"}


def test_a_repeated_head_comes_from_the_cache_and_the_caches_are_bounded() -> None:
    heads = parser()
    # Not each at its first sight: a flood of heads that never come again is not worth keeping.
    for _ in range(100):
        seen = heads.header_block(b"Host: a\r\n"), heads.request_line(b"GET / HTTP/1.1")
    assert seen[0] is heads.header_block(b"Host: a\r\n")
    assert seen[1] is heads.request_line(b"GET / HTTP/1.1")
    most = [0, 0]
    for number in range(80_000):
        heads.header_block(b"X-Id: %d\r\n" % number)
        heads.request_line(b"GET /%d HTTP/1.1" % number)
        most = [max(most[0], len(heads.blocks)), max(most[1], len(heads.lines))]
    assert most == [1024, 1024]
    large = b"A: " + b"a" * 8000 + b"\r\n"
    for _ in range(100):
        heads.header_block(large)
    assert large not in heads.blocks


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"X-Request-Id: abc-123\r\n", "abc-123"),
        (b"X-Request-Id: a b\r\n", None),
        (b"X-Request-Id: \xe9\r\n", None),
        (b"X-Request-Id:\r\n", None),
        (b"X-Request-Id: " + b"a" * 129 + b"\r\n", None),
    ],
)
def test_a_request_id_is_usable_or_none(raw: bytes, expected: str | None) -> None:
    assert block(raw).request_id == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/plain", "/plain"),
        ("/a%20b", "/a b"),
        ("/%2f%2F", "///"),
        ("/%C3%A9", "/\xc3\xa9"),
        ("/%00%ff", "/\x00\xff"),
        ("/100%", "/100%"),
        ("/%4", "/%4"),
        ("/%zz%41", "/%zzA"),
        ("/%2541", "/%41"),
        ("/%%41", "/%A"),
        ("/+", "/+"),
    ],
)
def test_each_octet_of_a_path_is_decoded_once(path: str, expected: str) -> None:
    """RFC 3986 §2.1, each octet standing for itself (PEP 3333)."""
    line = parser().request_line(f"GET {path} HTTP/1.1".encode("ascii"))
    assert line.environ["PATH_INFO"] == expected
    assert line.environ["RAW_URI"] == path


# ---- lines that are known ------------------------------------------------------------------------------------

# Valid and not, obeyed and not, repeated in all ways.
LINES = (
    *("Accept: */*", "Accept:text/html\t", "User-Agent: a", "User-Agent: b", "Referer: http://h/\xe9", "Cookie: a=1"),
    *("Cookie: b=2", "X-A: 1", "x-a: 2", "X_A: 3", "X-Long: " + "x" * 300, "X-Empty:", "Host: h", "Host: h:80"),
    *("Host: a b", "Content-Length: 5", "Content-Length: 6", "Content-Length: x", "Content_Length: 7"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Connection: close", "Connection: keep-alive"),
    *(
        "Expect: 100-continue",
        "Expect: more",
        "X-Forwarded-For: 1.2.3.4",
        "X-Request-Id: r",
        "X-Forwarded-Proto: https",
    ),
    *("Remote_User: me", "Script_Name: /a", "Bad : 1", " folded", "\x00: 1", "no colon", "A: b\nC: d", "A: b\rC: d"),
)


def read(parser: HeadParser, raw: bytes) -> object:
    """Return all that a block's parse gives, or the error."""
    try:
        block = parser.new_block(raw)
    except ProtocolError as error:
        return error.status, error.reason
    return {name: getattr(block, name) for name in HeaderBlock.__slots__}


def learn(parser: HeadParser, lines: list[str]) -> None:
    """Parse each line in blocks of its own until it is kept, if it ever is."""
    for line in lines:
        raw = "".join(f"{each}\r\n" for each in [line, "X-Learnt: 1"]).encode("latin-1")
        for _ in range(2 * _KEPT_OF):
            read(parser, raw)


@settings(max_examples=60, deadline=None)
@given(
    known=st.lists(st.sampled_from(LINES), max_size=8),
    blocks=st.lists(st.lists(st.sampled_from(LINES), max_size=9), min_size=1, max_size=20),
    end=st.sampled_from(["", "", "", "Accept: */*", "junk"]),
    limits=st.sampled_from(
        [
            HeadLimits(
                secure_scheme_headers=(("X-FORWARDED-PROTO", "https"),), forwarder_headers=frozenset({"SCRIPT_NAME"})
            ),
            HeadLimits(header_map="refuse", fields=5),
            HeadLimits(header_map="dangerous", field_size=60),
        ]
    ),
)
def test_known_lines_change_nothing(known: list[str], blocks: list[list[str]], end: str, limits: HeadLimits) -> None:
    """Neither what is read nor which of several errors wins depends on what has come before."""
    warm = HeadParser(limits)
    learn(warm, known)
    for lines in blocks:
        raw = ("".join(f"{each}\r\n" for each in lines) + end).encode("latin-1")
        assert read(warm, raw) == read(HeadParser(limits), raw)


def test_a_block_of_known_lines_is_read_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = HeadParser(HeadLimits())
    fields = "".join(f"X-{number}: {number}\r\n" for number in range(8))
    for number in range(2 * _KEPT_OF):
        parser.new_block(f"Host: h\r\n{fields}Cookie: {number}\r\n".encode())
    monkeypatch.setattr(HeadParser, "_of_new_lines", None)
    block = parser.new_block(f"Host: h\r\n{fields}Cookie: new\r\n".encode())
    assert block.environ["HTTP_COOKIE"] == "new"
    assert block.environ["HTTP_X_7"] == "7"
    assert block.has_host


def test_what_is_kept_of_lines_is_bounded() -> None:
    parser = HeadParser(HeadLimits())
    for number in range(200 * _KEPT_OF):
        fields = "".join(f"X-{n}: {number}\r\n" for n in range(9))
        parser.new_block(f"Host: h\r\n{fields}X-Long: {'b' * 300}\r\n".encode())
    assert 0 < len(parser._fields) <= _CACHE_ENTRIES
    assert all(len(line) <= 256 for line in parser._fields)
