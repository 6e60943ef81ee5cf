"""The PROXY protocol's header against HAProxy's proxy-protocol.txt, whole and at every split."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgiserv.errors import ProtocolError
from wsgiserv.http.proxy_protocol import LONGEST_BYTES, ProxyLine, read_proxy_line

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# What may come behind a header, and must never be taken for a part of it.
NEXT = [b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n", SIGNATURE]


def v2(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block) if length is None else length) + block


def addresses(source: str, destination: str, ports: tuple[int, int]) -> bytes:
    packed = b"".join(ipaddress.ip_address(text).packed for text in (source, destination))
    return packed + struct.pack("!HH", *ports)


FOUR = addresses("203.0.113.9", "198.51.100.1", (4711, 443))
SIX = addresses("2001:db8::9", "2001:db8::1", (65535, 0))
TLV = b"\x02\x00\x0bexample.org"  # PP2_TYPE_AUTHORITY
IS_FOUR = ("TCP4", ("203.0.113.9", 4711), ("198.51.100.1", 443))
IS_SIX = ("TCP6", ("2001:db8::9", 65535), ("2001:db8::1", 0))
NOBODY = ("", ("", 0), ("", 0))

ACCEPTED = [
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n", IS_FOUR),
    ("v1", b"PROXY TCP6 2001:db8::9 2001:DB8:0:0:0:0:0:1 65535 0\r\n", IS_SIX),
    ("v1", b"PROXY UNKNOWN\r\n", NOBODY),
    # "what is presented before the CRLF must be ignored"
    ("v1", b"PROXY UNKNOWN ffff::1 what ever\r\n", NOBODY),
    ("v1", b"PROXY UNKNOWN " + b" ".join([b"f" * 39, b"f" * 39, b"65535", b"65535"]) + b"\r\n", NOBODY),
    ("v2", v2(0x21, 0x11, FOUR), IS_FOUR),
    ("v2", v2(0x21, 0x21, SIX), IS_SIX),
    ("v2", v2(0x21, 0x11, FOUR + TLV), IS_FOUR),
    ("v2", v2(0x21, 0x21, SIX + b"\x04\x03\x00" + b"\0" * 768), IS_SIX),
    ("v2", v2(0x20, 0x00, b""), NOBODY),
    ("v2", v2(0x20, 0x11, FOUR), NOBODY),  # LOCAL: the addresses are discarded
    ("v2", v2(0x20, 0xFF, b"x"), NOBODY),  # and the family is ignored
    ("v2", v2(0x21, 0x00, b""), NOBODY),
    ("v2", v2(0x21, 0x00, TLV), NOBODY),
    ("v2", v2(0x21, 0x31, b"/run/s".ljust(108, b"\0") * 2), NOBODY),
]

REFUSED = [
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443 \r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443 1\r\n"),
    ("v1", b"PROXY TCP4  203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY  TCP4 203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY\tTCP4 203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY TCP5 203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY tcp4 203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v1", b"proxy TCP4 203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY UDP4 203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.256 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY TCP4 203.0.113 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.09 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY TCP4 2001:db8::9 2001:db8::1 4711 443\r\n"),
    ("v1", b"PROXY TCP6 203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v1", b"PROXY TCP6 2001:db8::9%eth0 2001:db8::1 4711 443\r\n"),
    ("v1", b"PROXY TCP6 2001::db8::9 2001:db8::1 4711 443\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 65536 443\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 99999\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 04711 443\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 +711 443\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 -1 443\r\n"),
    ("v1", b"PROXY TCP4 203.0.113.9 198.51.100.1 \xb2 443\r\n"),
    ("v1", b"PROXY UNKNOWNX\r\n"),
    ("v1", b"PROXY UNKNOWN a\nb\r\n"),
    ("v1", b"PROXY \r\n"),
    ("v1", b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n"),  # 108 bytes
    ("v1", b"PROXY TCP4 " + b"1" * 1000),
    ("v1", b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("v1", b"\x16\x03\x01\x02\x00"),
    ("v1", v2(0x21, 0x11, FOUR)),
    ("v2", b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n"),
    ("v2", b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"),
    ("v2", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    ("v2", v2(0x11, 0x11, FOUR)),  # another version
    ("v2", v2(0x31, 0x11, FOUR)),
    ("v2", v2(0x22, 0x11, FOUR)),  # another command
    ("v2", v2(0x21, 0x12, FOUR)),  # a datagram on a stream
    ("v2", v2(0x21, 0x22, SIX)),
    ("v2", v2(0x21, 0x10, FOUR)),
    ("v2", v2(0x21, 0x01, b"")),
    ("v2", v2(0x21, 0x41, FOUR)),
    ("v2", v2(0x21, 0x11, FOUR[:-1])),
    ("v2", v2(0x21, 0x21, FOUR)),
    ("v2", v2(0x21, 0x31, SIX)),
    ("v2", v2(0x21, 0x11, b"", length=0xFFFF)),
    ("v2", v2(0x20, 0x00, b"", length=LONGEST_BYTES)),
]


def parse(data: bytes, mode: str, step: int) -> ProxyLine | None:
    """Show the reader a growing beginning, as a connection does."""
    for end in range(step, len(data) + step, step):
        line = read_proxy_line(data[:end], mode)
        if line is not None:
            return line
    return None


@pytest.mark.parametrize("mode", ["itself", "auto"])
@pytest.mark.parametrize(("version", "data", "expected"), ACCEPTED, ids=lambda value: "")
def test_accepted_with_anything_behind_it(version: str, data: bytes, expected: tuple[object, ...], mode: str) -> None:
    mode = version if mode == "itself" else mode
    for behind in NEXT:
        assert read_proxy_line(data + behind, mode) == (len(data), *expected)
    assert parse(data, mode, 1) == (len(data), *expected)
    for split in range(1, len(data)):
        assert read_proxy_line(data[:split], mode) is None, split


@pytest.mark.parametrize(("mode", "data"), REFUSED, ids=lambda value: repr(value[:60]))
def test_refused_however_it_comes(mode: str, data: bytes) -> None:
    for step in (1, 7, len(data)):
        with pytest.raises(ProtocolError) as caught:
            parse(data, mode, step)
        assert caught.value.status == 400


def test_a_line_that_never_ends_is_refused_at_107_bytes() -> None:
    start = b"PROXY UNKNOWN " + b"x" * 92
    assert read_proxy_line(start, "v1") is None
    with pytest.raises(ProtocolError):
        read_proxy_line(start + b"x", "v1")


def test_the_longest_header_of_version_2() -> None:
    block = FOUR.ljust(LONGEST_BYTES - 16, b"\xee")
    line = read_proxy_line(v2(0x21, 0x11, block), "v2")
    assert line == (LONGEST_BYTES, *IS_FOUR)


OTHERS = [b"GET / HTTP/1.1\r\n", b"P", b"PROPFIND / HTTP/1.1\r\n", b"PROXYING / HTTP/1.1\r\n", b"\x16\x03\x01"]
OTHERS += [b"\r\nGET / HTTP/1.1\r\n", b"\r\n\r\nGET", b"\n"]


@pytest.mark.parametrize("data", OTHERS)
def test_auto_lets_anything_else_through(data: bytes) -> None:
    line = parse(data + b" ", "auto", 1)
    assert line == (0, *NOBODY)


@given(st.binary(max_size=200), st.sampled_from(["v1", "v2", "auto"]), st.sampled_from(["", "PROXY ", "v2"]))
def test_any_bytes_are_read_or_refused(data: bytes, mode: str, start: str) -> None:
    whole = (SIGNATURE if start == "v2" else start.encode()) + data

    def outcome(step: int) -> object:
        try:
            return parse(whole, mode, step)
        except ProtocolError as error:
            return error.status

    results = {step: outcome(step) for step in (1, 3, len(whole) or 1)}
    assert len(set(results.values())) == 1, results
    assert results[1] is None or results[1] == 400 or isinstance(results[1], ProxyLine)
