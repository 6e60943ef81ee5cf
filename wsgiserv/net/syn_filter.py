"""Keeps new clients out of a listener's backlog while its last ones are still accepted."""

from __future__ import annotations

import struct
from _socket import AF_INET6, IPPROTO_IP, IPPROTO_IPV6, SOL_SOCKET, socket
from contextlib import suppress
from typing import Final

# socket(7), asm-generic/socket.h; Python has no name for it.
_SO_ATTACH_FILTER: Final = 26
# Classic BPF, whose packet begins with the TCP header: drop what has the flag SYN, pass all else.
_NO_SYN: Final = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # ldb [13]: the flags
        (0x45, 0, 1, 0x02),  # jset #SYN
        (0x06, 0, 0, 0),  # ret #0: drop
        (0x06, 0, 0, 0xFFFFFFFF),  # ret #-1: pass
    )
)
# ip(7) and linux/in6.h; Python has no names for them. Linux looks at them for TCP, also at a listening socket.
_IP_MINTTL: Final = 21
_IPV6_MINHOPCOUNT: Final = 73
# More than a packet has that comes from Linux (64) or Windows (128).
_MOST_HOPS: Final = 255


def drop_new_clients(sock: socket) -> bool:
    """Drop the SYN of each new client at a listening TCP socket. Never raises.

    Returns:
        Whether connections that are accepted from now on need `undo_least_ttl`.
    """
    # A filter does it. Linux refuses filters on TCP sockets (EPERM) to a process without CAP_NET_ADMIN where the kernel
    # is recent or hardened; there a least TTL (RFC 5082) does it, which needs no privilege. That drops a SYN from any
    # system that begins with a TTL below 255: Linux, Windows, the BSDs and macOS.
    try:
        import ctypes

        program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
        header = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program))
        sock.setsockopt(SOL_SOCKET, _SO_ATTACH_FILTER, header)
    except (ImportError, OSError):
        _set_least_ttl(sock, _MOST_HOPS)
        return True
    return False


def undo_least_ttl(accepted: socket) -> None:
    """Let a connection hear its client, whose packets do not have the least TTL. Never raises."""
    _set_least_ttl(accepted, 0)


def _set_least_ttl(sock: socket, least: int) -> None:
    with suppress(OSError):
        if sock.family == AF_INET6:
            sock.setsockopt(IPPROTO_IPV6, _IPV6_MINHOPCOUNT, least)
        # For IPv4 clients of an IPv6 socket, too.
        sock.setsockopt(IPPROTO_IP, _IP_MINTTL, least)
