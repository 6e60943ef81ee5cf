"""X-Forwarded-* and RFC 7239: what trusted proxies say, and what clients would like to have said."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgiserv.net.peers import PeerNames
from wsgiserv.wsgi.forwarded import Forwarding, read_for, read_forwarded, read_node

PEERS = PeerNames(["127.0.0.1", "10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.9", ("203.0.113.9", "")),
        ("203.0.113.9:4711", ("203.0.113.9", "4711")),
        ("203.0.113.9:0", ("203.0.113.9", "0")),
        ("2001:db8::9", ("2001:db8::9", "")),
        ("2001:DB8:0::9", ("2001:db8::9", "")),
        ("[2001:db8::9]", ("2001:db8::9", "")),
        ("[2001:db8::9]:4711", ("2001:db8::9", "4711")),
        ("::ffff:203.0.113.9", ("203.0.113.9", "")),
        ("[::ffff:203.0.113.9]:1", ("203.0.113.9", "1")),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("_hidden:_port", None),
        ("203.0.113.9:_port", None),
        ("203.0.113.9:65536", None),
        ("203.0.113.9:", None),
        ("203.0.113.9:4711:1", None),
        ("203.0.113.09", None),
        ("203.0.113.256", None),
        ("203.0.113", None),
        ("3405803785", None),
        ("0x7f.0.0.1", None),
        ("[203.0.113.9]", None),
        ("[2001:db8::9", None),
        ("2001:db8::9]", None),
        ("[2001:db8::9]4711", None),
        ("fe80::1%eth0", None),
        ("[fe80::1%25eth0]", None),
        ("203.0.113.9 ", None),
        ("203.0.113.9\u00b2", None),
        ("localhost", None),
        ("203.0.113.9/24", None),
    ],
)
def test_nodes(text: str, expected: tuple[str, str] | None) -> None:
    assert read_node(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("203.0.113.9", ("203.0.113.9", "")),
        ("6.6.6.6, 203.0.113.9", ("203.0.113.9", "")),
        ("127.0.0.1, 203.0.113.9", ("203.0.113.9", "")),
        ("6.6.6.6, 203.0.113.9, 10.0.0.2", ("203.0.113.9", "")),
        ("6.6.6.6,203.0.113.9,10.0.0.2,\t127.0.0.1", ("203.0.113.9", "")),
        ("203.0.113.9, ::ffff:10.0.0.2", ("203.0.113.9", "")),
        ("203.0.113.9, [fd00::1]:80", ("203.0.113.9", "")),
        ("10.0.0.3, 10.0.0.2", ("10.0.0.3", "")),  # proxies all the way
        ("203.0.113.9:4711, 10.0.0.2:80", ("203.0.113.9", "4711")),
        ('"[2001:db8::9]:4711", 10.0.0.2', ("2001:db8::9", "4711")),
        ("203.0.113.9, , 10.0.0.2,", ("203.0.113.9", "")),
        # A malformed element of a proxy's ends the walk: what is known is that proxy.
        ("203.0.113.9, unknown, 10.0.0.2", ("10.0.0.2", "")),
        ("203.0.113.9, _secret, 10.0.0.2", ("10.0.0.2", "")),
        ("203.0.113.9, 10.0.0.2.", None),
        ("203.0.113.9, garbage", None),
        ("203.0.113.9 10.0.0.2", None),
        ("unknown", None),
        ("", None),
        (" , ,", None),
        # What a client leaves to the left is never looked at.
        ('"6.6.6.6, 203.0.113.9', ("203.0.113.9", "")),
        ("\x00\xff garbage, 203.0.113.9", ("203.0.113.9", "")),
    ],
)
def test_x_forwarded_for(value: str, expected: tuple[str, str] | None) -> None:
    assert read_for(value, PEERS.names) == expected


def test_the_walk_is_bounded() -> None:
    asked = []

    def is_proxy(address: str) -> bool:
        asked.append(address)
        return True

    assert read_for("203.0.113.9, " + "10.0.0.2, " * 10_000 + "10.0.0.3", is_proxy) == ("10.0.0.2", "")
    assert len(asked) <= 64
    value = "for=203.0.113.9, " + "for=10.0.0.2, " * 10_000 + "for=10.0.0.3"
    assert read_forwarded(value, is_proxy)[0] == ("10.0.0.2", "")
    assert len(asked) <= 128
    assert read_forwarded('"' + "," * 400_000, is_proxy) == (None, "", "")


@pytest.mark.parametrize(
    ("value", "client", "proto", "host"),
    [
        ("for=203.0.113.9", "203.0.113.9", "", ""),
        ("For=203.0.113.9;Proto=https;HOST=example.org;by=10.0.0.1", "203.0.113.9", "https", "example.org"),
        ('for="203.0.113.9:4711"', "203.0.113.9", "", ""),
        ('for="[2001:db8::9]"', "2001:db8::9", "", ""),
        ('for="[2001:db8::9]:4711";proto=http', "2001:db8::9", "http", ""),
        ('for="\\203.0.113.9"', "203.0.113.9", "", ""),
        ("for=[2001:db8::9]", "2001:db8::9", "", ""),  # against the grammar, and in use
        ("for=203.0.113.9:4711", "203.0.113.9", "", ""),
        ('for=203.0.113.9;host="example.org:8443"', "203.0.113.9", "", "example.org:8443"),
        ("for=203.0.113.9;host=example.org:8443", "203.0.113.9", "", "example.org:8443"),
        ("for=203.0.113.9 ; proto=https", "203.0.113.9", "https", ""),
        ("for=6.6.6.6;proto=http, for=203.0.113.9;proto=https", "203.0.113.9", "https", ""),
        # Proto and host are the client's own proxy's; a proxy further inside knows its own hop only.
        (
            "for=203.0.113.9;proto=https;host=out.example, for=10.0.0.2;proto=http",
            "203.0.113.9",
            "https",
            "out.example",
        ),
        ("for=203.0.113.9, for=10.0.0.2;proto=https", "203.0.113.9", "https", ""),
        ("for=10.0.0.3, for=10.0.0.2", "10.0.0.3", "", ""),
        ("proto=https;host=h", None, "https", "h"),
        ("for=unknown;proto=https", None, "https", ""),
        ("for=203.0.113.9, for=unknown, for=10.0.0.2", "10.0.0.2", "", ""),
        ('for=203.0.113.9, for="_obf", for=10.0.0.2', "10.0.0.2", "", ""),
        # A quote that the client has left open does not swallow the proxy's element.
        ('for="6.6.6.6, for=203.0.113.9', "203.0.113.9", "", ""),
        ('for="6.6.6.6;x=\\", for=203.0.113.9;proto=https', "203.0.113.9", "https", ""),
        # A comma within quotes does not end an element.
        ('for=203.0.113.9;host="a,for=6.6.6.6"', "203.0.113.9", "", "a,for=6.6.6.6"),
        ('for=203.0.113.9;host="a, for=6.6.6.6;b="', "203.0.113.9", "", "a, for=6.6.6.6;b="),
        ('host="a,for=6.6.6.6;b=\\"";for=203.0.113.9', "203.0.113.9", "", 'a,for=6.6.6.6;b="'),
        # Malformed: nothing is known.
        ("for=203.0.113.9;for=6.6.6.6", None, "", ""),
        ("for = 203.0.113.9", None, "", ""),
        ("for=203.0.113.9 proto=https", None, "", ""),
        ('for="203.0.113.9', None, "", ""),
        ('for="203.0.113.9"x', None, "", ""),
        ("for", None, "", ""),
        ("=203.0.113.9", None, "", ""),
        ("203.0.113.9", None, "", ""),
        ("for=6.6.6.6, garbage", None, "", ""),
        ("for=203.0.113.9, garbage, for=10.0.0.2", "10.0.0.2", "", ""),
        ("", None, "", ""),
        (" ; , ", None, "", ""),
        ("for=203.0.113.9,", "203.0.113.9", "", ""),
    ],
)
def test_forwarded(value: str, client: str | None, proto: str, host: str) -> None:
    found, *rest = read_forwarded(value, PEERS.names)
    assert found is None if client is None else found is not None and found[0] == client
    assert rest == [proto, host]


def environ(**more: str) -> dict[str, Any]:
    return {
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "1",
        "SERVER_PORT": "8000",
        "HTTP_HOST": "inner",
        "wsgi.url_scheme": "http",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/shop/x",
        **more,
    }


def changed(headers: str, **fields: str) -> dict[str, Any]:
    """Return what `Forwarding` changes in an environ with these fields."""
    before = environ(**fields)
    after = before.copy()
    Forwarding(headers.split(), PEERS.names).apply(after)
    return {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


ALL = "for proto host port prefix"
EVERYTHING = {
    "HTTP_X_FORWARDED_FOR": "203.0.113.9",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "out.example",
    "HTTP_X_FORWARDED_PORT": "8443",
    "HTTP_X_FORWARDED_PREFIX": "/shop",
    "HTTP_FORWARDED": "for=198.51.100.7;proto=https;host=rfc.example",
}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("for", {"REMOTE_ADDR": "203.0.113.9", "REMOTE_PORT": None}),
        ("proto", {"wsgi.url_scheme": "https"}),
        ("host", {"HTTP_HOST": "out.example"}),
        ("port", {"SERVER_PORT": "8443", "HTTP_HOST": "inner:8443"}),
        ("host port", {"SERVER_PORT": "8443", "HTTP_HOST": "out.example:8443"}),
        ("prefix", {"SCRIPT_NAME": "/shop", "PATH_INFO": "/x"}),
        (
            "forwarded",
            {
                "REMOTE_ADDR": "198.51.100.7",
                "REMOTE_PORT": None,
                "wsgi.url_scheme": "https",
                "HTTP_HOST": "rfc.example",
            },
        ),
        ("", {}),
    ],
)
def test_only_what_is_asked_for_is_used(headers: str, expected: dict[str, Any]) -> None:
    assert changed(headers, **EVERYTHING) == expected


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("FOR", "203.0.113.9:4711", {"REMOTE_ADDR": "203.0.113.9", "REMOTE_PORT": "4711"}),
        ("FOR", "garbage", {}),
        ("PROTO", "HTTPS", {"wsgi.url_scheme": "https"}),
        ("PROTO", "http, https", {"wsgi.url_scheme": "https"}),
        ("PROTO", "https, http", {}),
        ("PROTO", "ftp", {}),
        ("PROTO", "https\t", {"wsgi.url_scheme": "https"}),
        ("HOST", "evil.example, out.example", {"HTTP_HOST": "out.example"}),
        ("HOST", "[2001:db8::1]:8443", {"HTTP_HOST": "[2001:db8::1]:8443"}),
        ("HOST", "out.example/path", {}),
        ("HOST", "user@out.example", {}),
        ("HOST", "out example", {}),
        ("HOST", "caf\xe9", {}),
        ("HOST", ":80", {}),
        ("HOST", "", {}),
        ("PORT", "80", {"SERVER_PORT": "80"}),
        ("PORT", "443", {"SERVER_PORT": "443", "HTTP_HOST": "inner:443"}),
        ("PORT", "0", {}),
        ("PORT", "65536", {}),
        ("PORT", "-1", {}),
        ("PORT", "80x", {}),
        ("PORT", "\xb2", {}),
        ("PORT", "9" * 5000, {}),
        ("PREFIX", "/", {}),
        ("PREFIX", "/shop/", {"SCRIPT_NAME": "/shop", "PATH_INFO": "/x"}),
        ("PREFIX", "/other", {"SCRIPT_NAME": "/other"}),
        ("PREFIX", "/sho", {"SCRIPT_NAME": "/sho"}),  # whole segments only
        ("PREFIX", "/shop/x", {"SCRIPT_NAME": "/shop/x", "PATH_INFO": ""}),
        ("PREFIX", "/evil, /shop", {"SCRIPT_NAME": "/shop", "PATH_INFO": "/x"}),
        ("PREFIX", "shop", {}),
        ("PREFIX", "//evil.example", {}),
        ("PREFIX", "/\\evil.example", {}),
        ("PREFIX", "/a//b", {}),
        ("PREFIX", "/a?b", {}),
        ("PREFIX", "/a b", {}),
        ("PREFIX", "http://evil.example/", {}),
    ],
)
def test_values(field: str, value: str, expected: dict[str, Any]) -> None:
    assert changed(ALL, **{f"HTTP_X_FORWARDED_{field}": value}) == expected


@pytest.mark.parametrize(
    ("host", "scheme", "port", "expected"),
    [
        ("h", "http", "8080", "h:8080"),
        ("h", "https", "443", "h"),
        ("h", "https", "80", "h:80"),
        ("h:81", "http", "8080", "h:81"),
        ("[::1]", "http", "8080", "[::1]:8080"),
        ("[::1]:81", "http", "8080", "[::1]:81"),
        ("", "http", "8080", ""),
    ],
)
def test_the_port_joins_a_host_that_has_none(host: str, scheme: str, port: str, expected: str) -> None:
    found = environ(HTTP_HOST=host, HTTP_X_FORWARDED_PROTO=scheme, HTTP_X_FORWARDED_PORT=port)
    Forwarding(ALL.split(), PEERS.names).apply(found)
    assert found["HTTP_HOST"] == expected
    assert found["SERVER_PORT"] == port


def test_a_port_without_a_host_makes_none() -> None:
    found = environ(HTTP_X_FORWARDED_PORT="8080")
    del found["HTTP_HOST"]
    Forwarding(ALL.split(), PEERS.names).apply(found)
    assert "HTTP_HOST" not in found


def test_a_star_says_who_may_speak_and_not_who_is_a_proxy() -> None:
    anyone = PeerNames(["*"])
    assert anyone.of(("192.0.2.1", 1))[2] is True
    assert read_for("6.6.6.6, 203.0.113.9", anyone.names) == ("203.0.113.9", "")
    with_inner = PeerNames(["*", "10.0.0.0/8"])
    assert read_for("6.6.6.6, 203.0.113.9, 10.0.0.2", with_inner.names) == ("203.0.113.9", "")


ADDRESSES = st.one_of(st.ip_addresses().map(str), st.sampled_from(["10.0.0.2", "127.0.0.1", "fd00::1"]))
FIELD_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60)


@given(FIELD_TEXT, ADDRESSES)
def test_no_client_decides_its_own_address(forged: str, real: str) -> None:
    """The client sends anything at all; its proxy appends what it has seen."""
    address = ipaddress.ip_address(real)
    if PEERS.names(real):
        return
    expected = str(getattr(address, "ipv4_mapped", None) or address)
    assert read_for(f"{forged}, {real}", PEERS.names) == (expected, "")
    node = f'"[{real}]"' if address.version == 6 else real
    client, proto, _ = read_forwarded(f"{forged}, for={node};proto=https", PEERS.names)
    assert client == (expected, "")
    assert proto == "https"


@given(st.dictionaries(st.sampled_from(sorted(EVERYTHING)), FIELD_TEXT))
def test_nothing_raises_and_what_is_set_is_sound(fields: dict[str, str]) -> None:
    for headers in (ALL, "forwarded"):
        found = environ(**fields)
        Forwarding(headers.split(), PEERS.names).apply(found)
        ipaddress.ip_address(found["REMOTE_ADDR"])
        assert found["wsgi.url_scheme"] in ("http", "https")
        assert 0 < int(found["SERVER_PORT"]) <= 65535
        assert found["HTTP_HOST"].isascii()
        assert found["SCRIPT_NAME"] == "" or found["SCRIPT_NAME"].startswith("/")
