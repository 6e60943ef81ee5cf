"""Reads the PROXY protocol, versions 1 and 2: a proxy's header before the first byte of TLS or HTTP.

Sections are those of HAProxy's proxy-protocol.txt.
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from wsgiserv.errors import ProtocolError

# §2.2: "\r\n\r\n\0\r\nQUIT\n". No HTTP request and no TLS record begins so.
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD_BYTES: Final = 16
_V1_START: Final = b"PROXY "
# §2.1: the longest line, with its CRLF: UNKNOWN with two IPv6 addresses and two ports.
_V1_LONGEST_BYTES: Final = 107
# A header of version 2 could announce 64 KiB of TLVs. The largest in use is a client's certificate.
LONGEST_BYTES: Final = 16384

# Ports and IPv4 numbers without leading zeros (§2.1), so that no reader takes one for octal.
_V1_ENDS: Final = r"([0-9A-Fa-f:.]++) ([0-9A-Fa-f:.]++) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
_V1: Final = re.compile(r"PROXY (?:UNKNOWN(?: [^\r\n]*+)?|(TCP4|TCP6) " + _V1_ENDS + ")")

# §2.2: the family and the transport: the size of the addresses; 0 where they do not matter.
_V2_FAMILIES: Final = {0x00: 0, 0x11: 12, 0x21: 36, 0x31: 216}
_LOCAL: Final = 0x20
_PROXY: Final = 0x21


class ProxyLine(NamedTuple):
    """A proxy's header.

    Attributes:
        size: its bytes; 0: the connection begins with something else, as ``auto`` allows.
        protocol: ``TCP4`` or ``TCP6``; empty: the proxy names no client, and the connection's own addresses hold.
        source: the client's address and port.
        destination: the address and port that the client connected to.
    """

    size: int
    protocol: str = ""
    source: tuple[str, int] = ("", 0)
    destination: tuple[str, int] = ("", 0)


def read_proxy_line(data: bytes, mode: str) -> ProxyLine | None:
    """Read the header at the beginning of a connection.

    Args:
        data: all bytes since the connection's first.
        mode: ``v1``, ``v2``, or ``auto``: either version, or no header at all.

    Returns:
        The header; None until it is complete. As long as it is None, every byte of ``data`` belongs to the header.

    Raises:
        ProtocolError: 400, the header is malformed; or missing, and the mode is not ``auto``.
    """
    for version, start, read in (("v2", _SIGNATURE, _read_v2), ("v1", _V1_START, _read_v1)):
        if mode in (version, "auto"):
            if data.startswith(start):
                return read(data)
            if start.startswith(data):
                return None
    if mode == "auto":
        return ProxyLine(0)
    raise ProtocolError(400, f"no PROXY protocol header of version {mode[1:]}, which proxy_protocol asks for")


def _read_v1(data: bytes) -> ProxyLine | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST_BYTES)
    if end < 0:
        # A CR that is the last byte may still get its LF.
        line = data[:_V1_LONGEST_BYTES].removesuffix(b"\r")
        if len(data) >= _V1_LONGEST_BYTES or b"\n" in line or b"\r" in line:
            raise ProtocolError(400, "PROXY protocol line without CRLF within 107 bytes")
        return None
    match = _V1.fullmatch(data[:end].decode("latin-1"))
    if match is None:
        raise ProtocolError(400, "malformed PROXY protocol line")
    family, source, destination, *ports = match.groups()
    if family is None:  # §2.1: what follows UNKNOWN must be ignored
        return ProxyLine(end + 2)
    try:
        parse = IPv4Address if family == "TCP4" else IPv6Address
        source, destination = str(parse(source)), str(parse(destination))
    except ValueError:
        raise ProtocolError(400, "malformed address in the PROXY protocol line") from None
    source_port, destination_port = map(int, ports)
    if max(source_port, destination_port) > 65535:
        raise ProtocolError(400, "malformed port in the PROXY protocol line")
    return ProxyLine(end + 2, family, (source, source_port), (destination, destination_port))


def _read_v2(data: bytes) -> ProxyLine | None:
    # Refused as soon as it shows: no further byte can make it valid.
    if len(data) > 12 and data[12] not in (_LOCAL, _PROXY):
        raise ProtocolError(400, "PROXY protocol header of an unknown version or command")
    if len(data) < _V2_HEAD_BYTES:
        return None
    command, family = data[12], data[13]
    size = _V2_HEAD_BYTES + int.from_bytes(data[14:16], "big")
    if size > LONGEST_BYTES:
        raise ProtocolError(400, "PROXY protocol header that is too long")
    if command == _PROXY:
        if family not in _V2_FAMILIES:
            raise ProtocolError(400, "PROXY protocol header of an unknown address family or transport")
        if size < _V2_HEAD_BYTES + _V2_FAMILIES[family]:
            raise ProtocolError(400, "PROXY protocol header that is too short for its addresses")
    if len(data) < size:
        return None
    if command == _LOCAL or family not in (0x11, 0x21):
        # LOCAL is the proxy itself (a health check), and the family is ignored with it. A client of the proxy
        # on a Unix socket, or of a kind unknown, has no address that could be named.
        return ProxyLine(size)
    # Behind the addresses are TLVs, which are skipped.
    protocol, parse, form = ("TCP4", IPv4Address, "!4s4sHH") if family == 0x11 else ("TCP6", IPv6Address, "!16s16sHH")
    source, destination, *ports = struct.unpack_from(form, data, _V2_HEAD_BYTES)
    return ProxyLine(size, protocol, (str(parse(source)), ports[0]), (str(parse(destination)), ports[1]))
