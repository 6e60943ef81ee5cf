"""Finds the process that listens at an address, in Linux's /proc, as far as this user may see it."""

from __future__ import annotations

import _socket
import os
import sys
from _socket import AF_INET, AF_INET6, IPPROTO_IPV6, IPV6_V6ONLY, socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from wsgiserv.errors import ConfigError

_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp, see include/net/tcp_states.h
_UNIX_LISTENS = 0x10000  # __SO_ACCEPTCON in the Flags column of /proc/net/unix
_LONGEST_COMMAND = 120


class TcpAddress(NamedTuple):
    """The address of a TCP socket, and whether it leaves IPv4 addresses to others."""

    family: int
    host: str
    port: int
    is_v6only: bool

    @classmethod
    def of(cls, sock: socket) -> TcpAddress:
        """Return the address of a bound socket."""
        host, port = sock.getsockname()[:2]
        is_v6only = sock.family == AF_INET6 and bool(sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
        return cls(sock.family, host, port, is_v6only)

    def overlaps(self, other: TcpAddress) -> bool:
        """Return whether a listener at one keeps another from the other."""
        if self.port != other.port:
            return False
        if self.family == other.family:
            return self.host == other.host or bool({self.host, other.host} & {"0.0.0.0", "::"})
        return any(each.host == "::" and not each.is_v6only for each in (self, other))


class AddressInUse(ConfigError):
    """A process listens at the address.

    Attributes:
        address: the TCP address; None for a Unix socket.
    """

    def __init__(self, text: str, address: TcpAddress | None = None) -> None:
        super().__init__(text)
        self.address = address


def owner_of_port(family: int, host: str, port: int) -> str | None:
    """Return ``pid 123 (command line)`` of a process that listens on ``port``, or None when /proc does not show it.

    Args:
        family: AF_INET or AF_INET6.
        host: the IP address that is wanted. Its owner is preferred to an owner of the port at another address, since
            addresses of all interfaces stand in each other's way.
    """
    # An inode, since /proc/net/tcp knows no process: the process has a link to it among its descriptors.
    exact, others = set[str](), set[str]()
    wanted = _as_in_proc(family, host)
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for columns in _rows(table):
            if len(columns) < 10 or columns[3] != _LISTEN:
                continue
            address, _, number = columns[1].rpartition(":")
            if int(number, 16) == port:
                (exact if address == wanted else others).add(columns[9])
    return _owner(exact) or _owner(others)


def owner_of_path(path: str) -> str | None:
    """Return ``pid 123 (command line)`` of a process that listens at ``path``; ``@name`` is an abstract name."""
    return _owner({inode for found, inode in listening_paths() if found == path})


def listening_paths() -> Iterator[tuple[str, str]]:
    """Yield the path and the inode of each listening Unix socket, as far as /proc shows them."""
    for columns in _rows("/proc/net/unix", 7):  # a path may hold blanks
        if len(columns) == 8 and int(columns[3], 16) & _UNIX_LISTENS:
            yield columns[7], columns[6]


def describe_process(pid: int) -> str:
    """Return ``pid 123 (command line)``, or ``pid 123`` when its command line cannot be read."""
    words = _command_line(pid).rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "backslashreplace")
    # A process names itself as it likes, and this goes to a terminal.
    words = "".join(character if character.isprintable() else "?" for character in words)
    if len(words) > _LONGEST_COMMAND:
        words = words[:_LONGEST_COMMAND] + "..."
    return f"pid {pid} ({words})" if words else f"pid {pid}"


def is_master(pid: int) -> bool:
    """Return whether the process is a master of wsgiserv, by its title; False where /proc does not show it.

    Without the package setproctitle a process has no title, and its command tells.
    """
    line = _command_line(pid)
    if line.startswith(b"wsgiserv: "):
        return line.startswith(b"wsgiserv: master ")
    program, *arguments = [*line.split(b"\0"), b""]
    is_python = program.rpartition(b"/")[2].startswith(b"python")
    # The command, whose first line names the interpreter, or python -m wsgiserv.
    return is_python and (arguments[:2] == [b"-m", b"wsgiserv"] or arguments[0].endswith(b"/wsgiserv"))


def _command_line(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _rows(table: str, most_blanks: int = -1) -> list[list[str]]:
    try:
        # A path in /proc/net/unix is any bytes.
        with open(table, encoding="utf-8", errors="surrogateescape") as file:
            return [line.split(maxsplit=most_blanks) for line in file.read().split("\n")[1:]]
    except OSError:
        return []


def _as_in_proc(family: int, host: str) -> str:
    """Return the address as /proc/net/tcp writes it: 32-bit words in the host's byte order, in hexadecimal."""
    if family not in (AF_INET, AF_INET6):
        return ""
    packed = _socket.inet_pton(family, host.partition("%")[0])
    words = [int.from_bytes(packed[i : i + 4], sys.byteorder) for i in range(0, len(packed), 4)]
    return "".join(f"{word:08X}" for word in words)


def _owner(inodes: set[str]) -> str | None:
    if not inodes:
        return None
    links = {f"socket:[{inode}]" for inode in inodes}
    # The lowest pid is the master of a pre-fork server, whose workers hold the socket as well.
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):  # it has exited, or is another user's
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):  # closed since it was listed
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in links:
                        return describe_process(pid)
    return None
