"""The uwsgi packet against its specification and nginx's uwsgi_params: what is read, what is refused."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgiserv.errors import ProtocolError
from wsgiserv.http.head import HeaderBlock, HeadLimits, HeadParser, RequestLine
from wsgiserv.http.uwsgi import UwsgiReader, read_variables

Pairs = list[tuple[str, str]]


def block(pairs: Pairs) -> bytes:
    texts = [text.encode("latin-1") for pair in pairs for text in pair]
    return b"".join(struct.pack("<H", len(text)) + text for text in texts)


def packet(pairs: Pairs, modifier1: int = 0, modifier2: int = 0) -> bytes:
    data = block(pairs)
    return struct.pack("<BHB", modifier1, len(data), modifier2) + data


def reader(**limits: object) -> UwsgiReader:
    return UwsgiReader(HeadParser(HeadLimits(**limits)))  # type: ignore[arg-type]


def read(data: bytes, **limits: object) -> tuple[RequestLine, HeaderBlock, bytes]:
    found = reader(**limits)
    size = found.size(data)
    assert 0 < size <= len(data)
    variables = read_variables(data[4:size])
    return found.line(variables), found.block(variables), data[size:]


def environ(pairs: Pairs, **limits: object) -> dict[str, str]:
    line, headers, rest = read(packet(pairs), **limits)
    assert rest == b""
    return {**headers.environ, **line.environ}


# As nginx sends them with the file uwsgi_params that comes with it.
NGINX: Pairs = [
    ("QUERY_STRING", "a=1&b=%20"),
    ("REQUEST_METHOD", "POST"),
    ("CONTENT_TYPE", "text/plain"),
    ("CONTENT_LENGTH", "5"),
    ("REQUEST_URI", "/caf%C3%A9/../x?a=1&b=%20"),
    ("PATH_INFO", "/x"),
    ("DOCUMENT_ROOT", "/srv/www"),
    ("SERVER_PROTOCOL", "HTTP/2.0"),
    ("REQUEST_SCHEME", "https"),
    ("HTTPS", "on"),
    ("REMOTE_ADDR", "203.0.113.9"),
    ("REMOTE_PORT", "4711"),
    ("SERVER_PORT", "443"),
    ("SERVER_NAME", "shop.example"),
    ("HTTP_HOST", "shop.example"),
    ("HTTP_CONTENT_LENGTH", "5"),
    ("HTTP_CONTENT_TYPE", "text/plain"),
    ("HTTP_COOKIE", "a=1; b=2"),
    ("HTTP_X_LONG_NAME", " padded\t"),
]


def test_what_nginx_sends() -> None:
    line, headers, rest = read(packet(NGINX) + b"hello")
    assert rest == b"hello"
    assert headers.content_length == 5
    assert line.raw == b"POST /caf%C3%A9/../x?a=1&b=%20 HTTP/2.0"
    assert not line.http11  # no chunks, no 100, no second request
    assert {**headers.environ, **line.environ} == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/x",
        "QUERY_STRING": "a=1&b=%20",
        "RAW_URI": "/caf%C3%A9/../x?a=1&b=%20",
        "SERVER_PROTOCOL": "HTTP/2.0",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "5",
        "DOCUMENT_ROOT": "/srv/www",
        "REQUEST_SCHEME": "https",
        "HTTPS": "on",
        "wsgi.url_scheme": "https",
        "REMOTE_ADDR": "203.0.113.9",
        "REMOTE_PORT": "4711",
        "SERVER_PORT": "443",
        "SERVER_NAME": "shop.example",
        "HTTP_HOST": "shop.example",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_X_LONG_NAME": "padded",
    }


GET: Pairs = [("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/a%20b?q"), ("PATH_INFO", "/a b"), ("QUERY_STRING", "q")]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], {"PATH_INFO": "/a b", "SERVER_PROTOCOL": "HTTP/1.1", "RAW_URI": "/a%20b?q"}),
        ([("HTTPS", "off")], {"wsgi.url_scheme": "http"}),
        ([("HTTPS", ""), ("REQUEST_SCHEME", "http")], {"wsgi.url_scheme": "http"}),
        ([("HTTPS", "1")], {"wsgi.url_scheme": "https"}),
        ([("REQUEST_SCHEME", "ftp")], {"wsgi.url_scheme": None}),
        ([], {"wsgi.url_scheme": None}),
        ([("CONTENT_TYPE", ""), ("CONTENT_LENGTH", "")], {"CONTENT_TYPE": None, "CONTENT_LENGTH": None}),
        ([("REMOTE_ADDR", ""), ("SERVER_NAME", ""), ("SERVER_PORT", "")], {"SERVER_NAME": None, "REMOTE_ADDR": None}),
        ([("REMOTE_USER", "ada"), ("MY_PARAM", "x")], {"REMOTE_USER": "ada", "MY_PARAM": "x"}),
        ([("UWSGI_SCRIPT", "evil"), ("UWSGI_FILE", "x")], {"UWSGI_SCRIPT": None, "UWSGI_FILE": None}),
        ([("SERVER_SOFTWARE", "nginx")], {"SERVER_SOFTWARE": None}),
        # The same twice is no contradiction; fields are joined as those of HTTP.
        ([("MY_PARAM", "x"), ("MY_PARAM", "x")], {"MY_PARAM": "x"}),
        ([("HTTP_ACCEPT", "a"), ("HTTP_ACCEPT", "b")], {"HTTP_ACCEPT": "a, b"}),
        ([("HTTP_COOKIE", "a"), ("HTTP_COOKIE", "b")], {"HTTP_COOKIE": "a; b"}),
        # The coding was the client's; the proxy has decoded it.
        (
            [("HTTP_TRANSFER_ENCODING", "chunked"), ("CONTENT_LENGTH", "3")],
            {"HTTP_TRANSFER_ENCODING": None, "CONTENT_LENGTH": "3"},
        ),
        ([("SCRIPT_NAME", "/a b")], {"SCRIPT_NAME": "/a b", "PATH_INFO": ""}),
        ([("SCRIPT_NAME", "/a")], {"SCRIPT_NAME": "/a", "PATH_INFO": "/a b"}),
        ([("SCRIPT_NAME", "/shop/")], {"SCRIPT_NAME": "/shop", "PATH_INFO": "/a b"}),
        ([("SCRIPT_NAME", "")], {"SCRIPT_NAME": "", "PATH_INFO": "/a b"}),
        ([("HTTP_X_NAME", "caf\xe9")], {"HTTP_X_NAME": "caf\xe9"}),
    ],
)
def test_accepted(more: Pairs, expected: dict[str, str | None]) -> None:
    found = environ(GET + more)
    assert {key: found.get(key) for key in expected} == expected


def test_a_path_without_its_uri_and_the_other_way_round() -> None:
    found = environ([("REQUEST_METHOD", "GET"), ("PATH_INFO", "/caf\xc3\xa9"), ("QUERY_STRING", "x")])
    assert (found["RAW_URI"], found["PATH_INFO"]) == ("/caf%C3%A9?x", "/caf\xc3\xa9")
    found = environ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/caf%C3%A9?x")])
    assert (found["PATH_INFO"], found["QUERY_STRING"]) == ("/caf\xc3\xa9", "x")


def test_a_line_feed_in_a_decoded_path_is_data_as_in_http() -> None:
    found = environ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/a%0Ab"), ("PATH_INFO", "/a\nb")])
    assert found["PATH_INFO"] == "/a\nb"


def test_the_root_path_is_taken_off() -> None:
    found = environ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/r/x"), ("PATH_INFO", "/r/x")], root_path="/r")
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/r", "/x")


REFUSED: list[tuple[Pairs, int]] = [
    ([("REQUEST_URI", "/"), ("PATH_INFO", "/")], 400),
    ([("REQUEST_METHOD", ""), ("REQUEST_URI", "/")], 400),
    ([("REQUEST_METHOD", "G T"), ("REQUEST_URI", "/")], 400),
    ([("REQUEST_METHOD", "GET")], 400),
    ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/a b")], 400),
    ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/#f")], 400),
    ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/ HTTP/1.1")], 400),
    ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/" + "x" * 8190)], 414),
    *[
        (GET + more, status)
        for more, status in [
            ([("SERVER_PROTOCOL", "SPDY/3")], 400),
            ([("SERVER_PROTOCOL", "HTTP/1.1\r\nX: y")], 400),
            ([("PATH_INFO", "/other")], 400),
            ([("SCRIPT_NAME", "shop")], 400),
            ([("CONTENT_LENGTH", "+5")], 400),
            ([("CONTENT_LENGTH", "5_0")], 400),
            ([("CONTENT_LENGTH", "0x5")], 400),
            ([("CONTENT_LENGTH", "\xb2")], 400),
            ([("CONTENT_LENGTH", "9" * 5000)], 400),
            ([("CONTENT_LENGTH", "5, 5")], 400),
            ([("CONTENT_LENGTH", "5"), ("CONTENT_LENGTH", "6")], 400),
            ([("HTTP_CONTENT_LENGTH", "5")], 411),
            ([("HTTP_TRANSFER_ENCODING", "chunked")], 411),
            ([("HTTP_HOST", "a b")], 400),
            ([("HTTP_HOST", "a"), ("HTTP_HOST", "b")], 400),
            ([("HTTP_AUTHORIZATION", "a"), ("HTTP_AUTHORIZATION", "b")], 400),
            ([("HTTP_EXPECT", "tea")], 417),
            ([("REMOTE_ADDR", "1.1.1.1"), ("REMOTE_ADDR", "2.2.2.2")], 400),
            ([("HTTP_X", "a\r\nY: b")], 400),
            ([("HTTP_X", "a\nb")], 400),
            ([("HTTP_X", "a\0b")], 400),
            ([("REMOTE_USER", "a\0b")], 400),
            ([("HTTP_X\r\nY", "a")], 400),
            ([("HTTP_X\0", "a")], 400),
            ([("HTTP_", "a")], 400),
            ([("", "a")], 400),
            ([("wsgi.input", "a")], 400),
            ([("wsgi.url_scheme", "https")], 400),
            ([("HTTP_X-Y", "a")], 400),
            ([("CAF\xc9", "a")], 400),
            ([(f"HTTP_X{number}", "a") for number in range(101)], 431),
            ([("HTTP_X", "a" * 8190)], 431),
        ]
    ],
    ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/"), ("PATH_INFO", "x")], 400),
    ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/"), ("PATH_INFO", "/\0")], 400),
    ([("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/"), ("PATH_INFO", "/"), ("QUERY_STRING", "a\nb")], 400),
]


@pytest.mark.parametrize(("pairs", "status"), REFUSED)
def test_refused(pairs: Pairs, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        read(packet(pairs))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("data", "limits", "status"),
    [
        (b"G", {}, 400),
        (b"GET / HTTP/1.1\r\n\r\n", {}, 400),
        (packet(GET, modifier1=5), {}, 400),
        (b"\0\0\0\0", {}, 400),
        (b"\0\xff\xff\0", {"fields": 1}, 431),
    ],
)
def test_refused_by_its_first_bytes(data: bytes, limits: dict[str, object], status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        reader(**limits).size(data)
    assert caught.value.status == status


def test_the_second_modifier_is_not_ours() -> None:
    assert read(packet(GET, modifier2=7))[0].method == "GET"


def test_the_size_is_known_from_the_fourth_byte_on() -> None:
    data = packet(NGINX)
    assert [reader().size(data[:cut]) for cut in range(5)] == [0, 0, 0, 0, len(data)]


def test_a_block_that_is_cut_anywhere_is_refused_or_a_shorter_list() -> None:
    whole = block(GET)
    ends = {len(block(GET[:number])) for number in range(len(GET) + 1)}
    for cut in range(len(whole)):
        if cut in ends:
            assert len(read_variables(whole[:cut]).plain) < len(GET)
            continue
        with pytest.raises(ProtocolError) as caught:
            read_variables(whole[:cut])
        assert caught.value.status == 400


@given(st.binary(max_size=300))
def test_any_block_is_read_or_refused(data: bytes) -> None:
    found = reader()
    with contextlib.suppress(ProtocolError):
        variables = read_variables(data)
        found.line(variables)
        found.block(variables)


_TEXTS = st.text(st.characters(max_codepoint=255), max_size=20)


@given(st.lists(st.tuples(st.sampled_from([key for key, _ in NGINX]) | _TEXTS, _TEXTS), max_size=8))
def test_no_value_brings_control_characters_or_foreign_keys(pairs: Pairs) -> None:
    try:
        found = environ([*GET, *pairs])
    except ProtocolError:
        return
    for key, value in found.items():
        assert key == "PATH_INFO" or not set(value) & set("\0\r\n")
        assert not key.startswith("wsgi.") or (key == "wsgi.url_scheme" and value in ("http", "https"))
