"""Listening sockets: made from `bind`, taken over from the parent process, kept over a reload.

Owns: `Listener`, `open_listeners`, the options of listening sockets, the files of Unix sockets.
Must not know: who accepts, TLS contexts, the master.
"""

from __future__ import annotations

import _socket as socket_constants
import errno
import os
import stat
import struct
import sys
from _socket import (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    AI_PASSIVE,
    IPPROTO_IP,
    IPPROTO_IPV6,
    IPPROTO_TCP,
    IPV6_V6ONLY,
    SO_ACCEPTCONN,
    SO_REUSEADDR,
    SO_TYPE,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    gaierror,
    getaddrinfo,
    inet_aton,
    socket,
)
from collections.abc import Sequence
from contextlib import suppress
from os import fstat, lstat, umask
from typing import Any, Final, NamedTuple, Protocol

from wsgiserv.config.address import Address, parse_address
from wsgiserv.config.tls import speaks_tls
from wsgiserv.errors import ConfigError, UnavailableError
from wsgiserv.net.port_owner import tcp_holder, unix_holder
from wsgiserv.safe_open import Place, absolute, acting_as_user, check_directory, is_root, place_of

__all__ = [
    "Checked",
    "ExposureSettings",
    "Listener",
    "ListenerSettings",
    "check_descriptors",
    "check_listeners",
    "exposure_warning",
    "open_listeners",
]

_SO_REUSEPORT: Final = getattr(socket_constants, "SO_REUSEPORT", None)
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

# sizeof(sockaddr_un.sun_path) is 108 on Linux, unix(7); a path needs its NUL, an abstract name its leading one.
_LONGEST_UNIX_PATH = 107


class ListenerSettings(Protocol):
    """The settings that are read here."""

    @property
    def bind(self) -> tuple[str, ...]: ...
    @property
    def backlog(self) -> int: ...
    @property
    def reuse_port(self) -> bool: ...
    @property
    def umask(self) -> int: ...
    @property
    def user(self) -> int: ...
    @property
    def group(self) -> int: ...
    @property
    def certfile(self) -> str | None: ...


class ExposureSettings(Protocol):
    """The settings that are read by `exposure_warning`."""

    @property
    def forwarded_headers(self) -> tuple[str, ...]: ...
    @property
    def forwarded_allow_ips(self) -> tuple[str, ...]: ...


class _InUse(ConfigError):
    """Somebody listens at the address.

    Attributes:
        address: the TCP address; None for a Unix socket.
    """

    address: _Bound | None = None


class Listener:
    """One listening socket. Owns ``sock``; hashable by identity.

    Attributes:
        sock: bound, listening, non-blocking, close-on-exec.
        spec: as configured (``:8000``, ``unix:run/x.sock``, ``fd://3``).
        url: as printed: ``http://127.0.0.1:8000``, ``unix:/run/x.sock``; with the real port.
        is_unix: whether it is a Unix socket, with a path or an abstract name.
        server_name, server_port: what SERVER_NAME and SERVER_PORT (PEP 3333) are when a request says nothing
            better; never empty. A Unix socket has no port: ``localhost`` and the scheme's default.
        inherited: whether the socket was handed to this process, instead of bound by it.
        path: the absolute path of a Unix socket that a server of ours has bound, or empty.
        adjusts: whether each accepted socket needs `adjust`.
    """

    def __init__(
        self, sock: socket, spec: str, *, secure: bool = False, inherited: bool = False, path: str = ""
    ) -> None:
        """Take over ``sock``. ``path`` is the absolute path of a Unix socket that this process has bound."""
        self.sock = sock
        self.spec = spec
        self.inherited = inherited
        self.is_unix = sock.family == AF_UNIX
        self.path = path
        self._drops_by_ttl = False
        self.adjusts = inherited and not self.is_unix
        self._inode = _inode(path) if path else None
        name: Any = sock.getsockname()
        scheme = "https" if secure else "http"
        if self.is_unix:
            self.url = f"unix:{path or _unix_name(name)}"
            self.server_name = "localhost"
            self.server_port = "443" if secure else "80"
        else:
            host = name[0]
            self.url = f"{scheme}://[{host}]:{name[1]}" if ":" in host else f"{scheme}://{host}:{name[1]}"
            self.server_name = host
            self.server_port = str(name[1])

    def __repr__(self) -> str:
        return f"<Listener {self.url}>"

    def __str__(self) -> str:
        return self.url

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""
        return self.sock.fileno()

    def getsockname(self) -> Any:
        """Return the bound address, as the socket does (gunicorn's hooks ask their LISTENERS)."""
        return self.sock.getsockname()

    def close(self) -> None:
        """Close this process's descriptor. The socket listens on while another process holds it."""
        self.sock.close()

    def adjust(self, accepted: socket) -> None:
        """Give a socket what it may not have from its listener, and take away what it must not have."""
        if self.inherited:
            accepted.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # a connection may be older than this server
        if self._drops_by_ttl:
            self._set_least_ttl(accepted, 0)

    def reject_new_connections(self) -> None:
        """Drop the SYN of each new client, while the backlog can still be accepted. Never raises.

        Closing a listener resets the clients that have connected since the last accept(2), however short that is. A
        SYN that is dropped is sent again a second later. By then it is refused, or it reaches another server: one that
        shares the port (``reuse_port``) or follows on it. The last worker of a server that stops calls this. Inherited
        sockets are left alone: their next owner could not undo it. Other systems than Linux have nothing like it.

        A filter does it. Linux refuses filters on TCP sockets (EPERM) to a process without CAP_NET_ADMIN where the
        kernel is recent or hardened; there a least TTL (RFC 5082) does it, which needs no privilege. That drops a SYN
        from any system that begins with a TTL below 255: Linux, Windows, the BSDs and macOS.
        """
        if sys.platform != "linux" or self.is_unix or self.inherited:
            return
        try:
            import ctypes

            program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
            header = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program))
            self.sock.setsockopt(SOL_SOCKET, _SO_ATTACH_FILTER, header)
        except (ImportError, OSError):
            # What is accepted from now on has it from the listener, and would hear nothing either.
            self._drops_by_ttl = self.adjusts = True
            self._set_least_ttl(self.sock, _MOST_HOPS)

    def _set_least_ttl(self, sock: socket, least: int) -> None:
        with suppress(OSError):
            if sock.family == AF_INET6:
                sock.setsockopt(IPPROTO_IPV6, _IPV6_MINHOPCOUNT, least)
            # For IPv4 clients of an IPv6 socket, too.
            sock.setsockopt(IPPROTO_IP, _IP_MINTTL, least)

    def unlink(self) -> None:
        """Remove the Unix socket's file when it is still the one that this process made. Never raises."""
        if self._inode is not None and _inode(self.path) == self._inode:
            try:
                with place_of(self.path) as place:
                    status = place.lstat()
                    if (status.st_dev, status.st_ino) == self._inode:
                        place.unlink()
            except OSError:
                pass
        self._inode = None

    def disown(self) -> None:
        """Leave the Unix socket's file to the next master, who has taken the socket over."""
        self._inode = None


def open_listeners(
    settings: ListenerSettings, inherited: Sequence[int] = (), keep: Sequence[Listener] = ()
) -> list[Listener]:
    """Return a listener for each of `bind`, in that order. Called by the master.

    Args:
        settings: the configuration.
        inherited: descriptors that the service manager has handed over (sd_listen_fds(3)); when there are
            any, `bind` is not looked at.
        keep: the listeners that are open already (reload): one whose bind is unchanged is returned as it is.

    Raises ConfigError naming the address, the reason and, where it can be seen, the process that is in the
    way. Then everything that was opened here is closed again and ``keep`` is untouched.
    """
    secure = speaks_tls(settings)
    if inherited:
        return [_inherit(fd, f"fd://{fd}", secure, "LISTEN_FDS") for fd in inherited]
    kept = {listener.spec: listener for listener in keep}
    for spec in settings.bind:
        if spec in kept:
            _check_kept(kept[spec], settings.bind)
    listeners: list[Listener] = []
    opened: list[Listener] = []
    try:
        for spec in dict.fromkeys(settings.bind):
            listener = kept.get(spec)
            if listener is None:
                try:
                    listener = _open(spec, settings, secure)
                except _InUse as error:
                    holder = _holder_among(listeners, error.address)
                    if holder is None:
                        raise
                    raise _own_conflict(spec, holder.spec) from None
                opened.append(listener)
            elif not listener.inherited:
                listener.sock.listen(
                    settings.backlog
                )  # the backlog may have changed; listen(2) is repeatable
            listeners.append(listener)
    except BaseException:
        for listener in opened:
            listener.unlink()
            if not listener.inherited:
                listener.close()
        raise
    return listeners


def _holder_among(listeners: Sequence[Listener], address: _Bound | None) -> Listener | None:
    """Return the listener of this process that is in the way of the address."""
    if address is None:
        return None
    for listener in listeners:
        if not listener.is_unix and address.overlaps(_Bound.of(listener.sock)):
            return listener
    return None


class Checked(NamedTuple):
    """One bind that could be opened.

    Attributes:
        url, server_name, server_port: as of a `Listener`.
        in_use: the sentence about the process that has the address now; empty when it is free.
    """

    url: str
    server_name: str
    server_port: str
    in_use: str = ""


def check_listeners(settings: ListenerSettings) -> tuple[list[Checked], list[ConfigError]]:
    """Try each of `bind` without listening, and leave no file; return what is good, and what is wrong.

    An address that is in use counts as good: the server that is to be reloaded with this configuration has it.
    """
    good: list[Checked] = []
    errors: list[ConfigError] = []
    bound: list[tuple[str, _Bound]] = []
    secure = speaks_tls(settings)
    for spec in dict.fromkeys(settings.bind):
        try:
            good.append(_check(spec, settings, secure, bound))
        except ConfigError as error:
            errors.append(error)
    return good, errors


def _check(spec: str, settings: ListenerSettings, secure: bool, bound: list[tuple[str, _Bound]]) -> Checked:
    address = _address(spec)
    scheme = "https" if secure else "http"
    if address.kind == "fd":
        _check_open(address.fd, f"bind = {spec!r}")
        listener = _inherit(os.dup(address.fd), spec, secure, f"bind = {spec!r}")
        try:
            return Checked(listener.url, listener.server_name, listener.server_port)
        finally:
            listener.close()
    if address.kind == "unix":
        path = _socket_path(spec, address.path)
        default_port = "443" if secure else "80"
        try:
            _check_unix(spec, path, settings)
        except _InUse as error:
            return Checked(f"unix:{path}", "localhost", default_port, str(error))
        except OSError as error:
            raise _unix_error(spec, path, error) from error
        return Checked(f"unix:{path}", "localhost", default_port)
    family, sockaddr = _resolve(spec, address)
    host, port = sockaddr[0], sockaddr[1]
    shown = f"[{host}]" if family == AF_INET6 else host
    in_use = ""
    try:
        sock = _bound_tcp(spec, family, sockaddr, settings)
    except _InUse as error:
        in_use = str(error)
    else:
        # Sockets that do not listen may share an address (SO_REUSEADDR), so this is not found by binding them.
        ours = _Bound.of(sock)
        sock.close()
        for other, theirs in bound:
            if port and not settings.reuse_port and ours.overlaps(theirs):
                raise _own_conflict(spec, other)
        bound.append((spec, ours))
    return Checked(f"{scheme}://{shown}:{port}", host, str(port), in_use)


class _Bound(NamedTuple):
    """The address of a TCP socket, and whether it leaves IPv4 addresses to others."""

    family: int
    host: str
    port: int
    is_v6only: bool

    @classmethod
    def of(cls, sock: socket) -> _Bound:
        host, port = sock.getsockname()[:2]
        is_v6only = sock.family == AF_INET6 and bool(sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
        return cls(sock.family, host, port, is_v6only)

    def overlaps(self, other: _Bound) -> bool:
        if self.port != other.port:
            return False
        if self.family == other.family:
            return self.host == other.host or bool({self.host, other.host} & {"0.0.0.0", "::"})
        return any(each.host == "::" and not each.is_v6only for each in (self, other))


def _own_conflict(spec: str, other: str) -> ConfigError:
    return ConfigError(
        f"bind = {spec!r}: bind = {other!r} has that address already: one of them includes the other. Leave one out."
    )


def _check_unix(spec: str, path: str, settings: ListenerSettings) -> None:
    """Raise ConfigError or OSError when a socket could not be made there; _InUse when a server listens."""
    if path.startswith("@"):
        _bound("\0" + path[1:]).close()
        return
    with place_of(path, (settings.group,)) as place:
        _is_stale(spec, path, place)
        check_directory(place.directory, path)


def _address(spec: str) -> Address:
    try:
        return parse_address(spec)
    except ValueError as error:
        raise ConfigError(f"bind = {spec!r}: {error}.") from None


def _open(spec: str, settings: ListenerSettings, secure: bool) -> Listener:
    address = _address(spec)
    if address.kind == "fd":
        return _inherit(address.fd, spec, secure, f"bind = {spec!r}")
    if address.kind == "unix":
        return _open_unix(spec, address.path, settings, secure)
    return _open_tcp(spec, address, settings, secure)


# ---- TCP -----------------------------------------------------------------------------------------------


def _open_tcp(spec: str, address: Address, settings: ListenerSettings, secure: bool) -> Listener:
    family, sockaddr = _resolve(spec, address)
    sock = _bound_tcp(spec, family, sockaddr, settings)
    try:
        # Linux hands it on to every accepted socket, which saves a system call for each connection.
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        sock.listen(settings.backlog)  # EADDRINUSE may also come from here, when two share SO_REUSEADDR
        sock.setblocking(False)
        return Listener(sock, spec, secure=secure)
    except OSError as error:
        sock.close()
        raise _tcp_error(spec, family, sockaddr, error) from error
    except BaseException:
        sock.close()
        raise


def _bound_tcp(spec: str, family: int, sockaddr: Any, settings: ListenerSettings) -> socket:
    """Return a socket that is bound and does not listen. Raises ConfigError; _InUse when the address is taken."""
    try:
        sock = socket(family, SOCK_STREAM)
    except OSError as error:  # EAFNOSUPPORT: a kernel without IPv6
        raise ConfigError(f"bind = {spec!r}: this host cannot do it: {error.strerror}.") from error
    try:
        # A restart must not wait for the connections of the last run to leave TIME_WAIT.
        sock.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if settings.reuse_port:
            _share_port(sock, spec)
        if family == AF_INET6 and _shares_with_ipv4(sockaddr, settings.bind):
            # Else [::] is all IPv4 addresses, too, and one of the two could not be bound.
            sock.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        # Otherwise it stays as the host has it (net.ipv6.bindv6only), as with gunicorn.
        sock.bind(sockaddr)
        return sock
    except OSError as error:
        sock.close()
        raise _tcp_error(spec, family, sockaddr, error) from error
    except BaseException:
        sock.close()
        raise


def _shares_with_ipv4(sockaddr: Any, specs: Sequence[str]) -> bool:
    """Whether `bind` names all IPv4 addresses beside all IPv6 ones, on the same port."""
    return sockaddr[0] == "::" and sockaddr[1] != 0 and sockaddr[1] in map(_ipv4_wildcard_port, specs)


def _ipv4_wildcard_port(spec: str) -> int:
    """Return the port of a bind that means all IPv4 addresses (``0.0.0.0``, ``0``, or no host); else -1."""
    address = _address(spec)
    if address.kind != "tcp":
        return -1
    try:
        is_wildcard = not address.host or inet_aton(address.host) == bytes(4)
    except (OSError, UnicodeError):
        return -1
    return address.port if is_wildcard else -1


def _check_kept(listener: Listener, specs: Sequence[str]) -> None:
    """Raise ConfigError when an open socket has IPv4 addresses that it is not to have any more, or the reverse."""
    sock = listener.sock
    if listener.inherited or sock.family != AF_INET6 or sock.getsockname()[0] != "::":
        return
    is_alone = bool(sock.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
    fresh = socket(AF_INET6, SOCK_STREAM)
    is_usual = bool(fresh.getsockopt(IPPROTO_IPV6, IPV6_V6ONLY))
    fresh.close()
    if is_alone != (is_usual or _shares_with_ipv4(sock.getsockname(), specs)):
        raise ConfigError(
            f"bind = {listener.spec!r}: its socket is open {'without' if is_alone else 'with'} the IPv4 addresses, "
            "and that cannot be changed while it is open. Stop the server and start it anew to add or remove "
            f"0.0.0.0:{sock.getsockname()[1]}."
        )


def _share_port(sock: socket, spec: str) -> None:
    if _SO_REUSEPORT is None:
        raise ConfigError(
            f"reuse_port = True: this system has no SO_REUSEPORT (bind = {spec!r}). Leave it out."
        )
    sock.setsockopt(SOL_SOCKET, _SO_REUSEPORT, 1)


def _resolve(spec: str, address: Address) -> tuple[int, Any]:
    """Return the family and the address to bind. A name with several addresses gives its first IPv4 one."""
    try:
        host = address.host or "0.0.0.0"
        # As bytes it is not encoded by the codec for international names, which would be imported for it.
        found = getaddrinfo(
            host.encode() if host.isascii() else host, address.port, 0, SOCK_STREAM, 0, AI_PASSIVE
        )
    except (gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, gaierror) else "not a host's name"
        # A resolver that is not up yet answers like one that does not know the name: EAI_AGAIN or EAI_NONAME.
        kind = UnavailableError if isinstance(error, gaierror) else ConfigError
        raise kind(
            f"bind = {spec!r}: the host {address.host!r} cannot be resolved: {reason}. "
            "Expected an address of this host; for example 127.0.0.1, or 0.0.0.0 for all interfaces."
        ) from error
    for family, _, _, _, sockaddr in sorted(found, key=lambda each: each[0] != AF_INET):
        if family in (AF_INET, AF_INET6):
            return family, sockaddr
    raise ConfigError(f"bind = {spec!r}: the host {address.host!r} has no IPv4 or IPv6 address.")


def _tcp_error(spec: str, family: int, sockaddr: Any, error: OSError) -> ConfigError:
    host, port = sockaddr[0], sockaddr[1]
    where = f"[{host}]:{port}" if family == AF_INET6 else f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        holder = tcp_holder(family, host, port)
        by = f"{holder} listens there" if holder else "another process listens there"
        advice = f"Stop it, or choose another port (-b {spec.rpartition(':')[0]}:{port % 65535 + 1})."
        if holder is None:
            advice += f" 'ss -ltnp sport = :{port}', as root, shows who it is."
        in_use = _InUse(f"bind = {spec!r}: the address {where} is in use: {by}. {advice}")
        in_use.address = _Bound(family, host, port, is_v6only=False)
        return in_use
    if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
        # Also before the interface is up, and while an IPv6 address is tentative (RFC 4862 5.4).
        return UnavailableError(
            f"bind = {spec!r}: {host} is not an address of this host. 'ip address' lists those that are; "
            "0.0.0.0 means all of them."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(
            f"bind = {spec!r}: no permission to listen on {where}: ports below 1024 are for root "
            "(or CAP_NET_BIND_SERVICE). Use a port from 1024 on behind a proxy, or start it as root with "
            "user and group set."
        )
    return ConfigError(f"bind = {spec!r}: cannot listen on {where}: {error.strerror}.")


# ---- Unix ----------------------------------------------------------------------------------------------


def _open_unix(spec: str, written: str, settings: ListenerSettings, secure: bool) -> Listener:
    path = _socket_path(spec, written)
    try:
        if path.startswith("@"):
            sock = _bound("\0" + path[1:])
        else:
            with place_of(path, (settings.group,)) as place:
                _make_way(spec, path, place)
                sock = _bind_file(place, path, settings)
    except OSError as error:
        raise _unix_error(spec, path, error) from error
    return _listen(sock, spec, path, settings, secure)


def _socket_path(spec: str, written: str) -> str:
    """Return the absolute path, or the abstract name with its ``@``. Raises ConfigError: it is too long."""
    # Absolute, since the file is removed at the end, when the working directory may be another one.
    path = written if written.startswith("@") else absolute(written)
    length = len(os.fsencode(path))
    if length > _LONGEST_UNIX_PATH:
        raise ConfigError(
            f"bind = {spec!r}: the path of a Unix socket may be {_LONGEST_UNIX_PATH} bytes long, and {path!r} has "
            f"{length}. Choose a shorter one; for example under /run."
        )
    return path


def _listen(sock: socket, spec: str, path: str, settings: ListenerSettings, secure: bool) -> Listener:
    listener = Listener(sock, spec, secure=secure, path="" if path.startswith("@") else path)
    try:
        sock.listen(settings.backlog)
        sock.setblocking(False)
    except BaseException as error:
        listener.unlink()
        sock.close()
        if isinstance(error, OSError):
            raise _unix_error(spec, path, error) from error
        raise
    return listener


def _bound(name: str) -> socket:
    sock = socket(AF_UNIX, SOCK_STREAM)
    try:
        sock.bind(name)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_file(place: Place, path: str, settings: ListenerSettings) -> socket:
    """Bind a socket to a file of the mode and owner that the settings say. Raises OSError."""
    mode: int | None = getattr(settings, "socket_mode", None)
    # The file gets its mode as it is made: no moment in which others may connect.
    old = umask(settings.umask if mode is None else 0o777 & ~mode)
    try:
        sock, maker = _bind_safely(place, path, settings)
    finally:
        umask(old)
    # The workers' user owns it, so that a socket of mode 0600 or 0660 is theirs, as with gunicorn.
    if os.getuid() == 0 and (settings.user, settings.group) != (os.getuid(), os.getgid()):
        try:
            _give(place, path, maker, settings)
        except BaseException:
            place.unlink()
            sock.close()
            raise
    return sock


def _bind_safely(place: Place, path: str, settings: ListenerSettings) -> tuple[socket, int]:
    """Bind, and return the socket and the user who has made its file.

    bind(2) takes a path only, and follows links on the way to the file's directory. Where another user could still
    change that way, root does not go it: the workers' user binds, or root by the directory's descriptor.
    """
    uid = os.geteuid()
    if uid != 0 or place.is_pinned:
        return _bound(path), uid
    if settings.user:
        try:
            with acting_as_user(settings.user, settings.group):
                return _bound(path), settings.user
        except PermissionError:
            pass  # he may not write there, and root may
    return _bound(f"/proc/self/fd/{place.directory}/{place.name}"), uid


def _give(place: Place, path: str, maker: int, settings: ListenerSettings) -> None:
    """Give the socket's file to the workers' user: the file that was made, and not what has been put in its place."""
    if not is_root() and os.geteuid() == 0:  # not Linux
        os.chown(path, settings.user, settings.group, follow_symlinks=False)
        return
    fd = os.open(place.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
    try:
        status = fstat(fd)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != maker or status.st_nlink != 1:
            raise OSError(errno.EBUSY, "another process has replaced the file", path)
        if (status.st_uid, status.st_gid) == (settings.user, settings.group):
            return
        if os.geteuid() != 0:
            return  # its directory's owner has made it, and cannot give it away: its mode decides
        os.chown(f"/proc/self/fd/{fd}", settings.user, settings.group)
    finally:
        os.close(fd)


def exposure_warning(listener: Listener, settings: ExposureSettings) -> str:
    """Return the warning for a Unix socket where any user of this host is trusted as a proxy; or an empty text."""
    try:
        open_to_all = bool(listener.path) and lstat(listener.path).st_mode & 0o002
    except OSError:
        return ""
    believed = [
        name
        for name, is_set in (
            ("forwarded_headers", bool(settings.forwarded_headers)),
            ("forwarded_allow_ips = '*'", "*" in settings.forwarded_allow_ips),
        )
        if is_set
    ]
    if not open_to_all or not believed:
        return ""
    mode = stat.S_IMODE(lstat(listener.path).st_mode)
    return (
        f"{listener}: every user of this host may connect (mode {mode:04o}) and is trusted as a proxy "
        f"({', '.join(believed)}). Set socket_mode = 0o660 (--socket-mode 660) and a group that the proxy is in"
    )


def _make_way(spec: str, path: str, place: Place) -> None:
    """Remove what a server that is gone has left at ``path``; raise ConfigError for anything else there."""
    if not _is_stale(spec, path, place):
        return
    try:
        place.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(
            f"bind = {spec!r}: nobody listens at {path} any more, but the old socket cannot be removed: "
            f"{error.strerror}. Remove it by hand (rm {path})."
        ) from error


def _is_stale(spec: str, path: str, place: Place) -> bool:
    """Whether a server that is gone has left a socket there; False: nothing is there. Raises ConfigError, _InUse."""
    try:
        status = place.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"bind = {spec!r}: {path} exists and is not a socket; it is left alone. Choose another path, or "
            f"remove it by hand (rm {path})."
        )
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)  # a live server with a full backlog answers EAGAIN instead of nothing
        probe.connect(path)
    except ConnectionRefusedError:
        return True  # nobody listens
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EPROTOTYPE, errno.EINPROGRESS):
            raise _unix_in_use(spec, path) from None
        raise ConfigError(
            f"bind = {spec!r}: there is a socket at {path}, and whether a server listens there cannot be "
            f"found out: {error.strerror}. Start it as the socket's owner, or choose another path."
        ) from error
    else:
        raise _unix_in_use(spec, path)
    finally:
        probe.close()


def _unix_in_use(spec: str, path: str) -> ConfigError:
    holder = unix_holder(path)
    by = f"{holder} listens there" if holder else "another server listens there"
    return _InUse(f"bind = {spec!r}: the socket {path} is in use: {by}. Stop it, or choose another path.")


def _unix_error(spec: str, path: str, error: OSError) -> ConfigError:
    directory = os.path.dirname(path)
    if error.errno == errno.EADDRINUSE:
        return _unix_in_use(spec, path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return ConfigError(
            f"bind = {spec!r}: the directory {directory} does not exist. Create it (mkdir -p {directory}), or "
            "choose another path."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(
            f"bind = {spec!r}: no permission to make a socket in {directory} as user id {os.geteuid()}: "
            f"{error.strerror}. Choose a directory that it may write to."
        )
    return ConfigError(f"bind = {spec!r}: cannot listen at {path}: {error.strerror}.")


# ---- taken over ----------------------------------------------------------------------------------------


def check_descriptors(specs: Sequence[str], inherited: Sequence[int]) -> None:
    """Raise ConfigError for a descriptor that is to be taken over and is not open.

    Called before the master opens anything for itself: that would get the number, and be taken for it.

    Args:
        specs: `bind`.
        inherited: see `open_listeners`.
    """
    for fd in inherited:
        _check_open(fd, "LISTEN_FDS")
    if inherited:
        return
    for spec in specs:
        if spec.startswith("fd://") and spec[5:].isdecimal():
            _check_open(int(spec[5:]), f"bind = {spec!r}")


def _check_open(fd: int, origin: str) -> None:
    try:
        fstat(fd)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{origin}: descriptor {fd} is not open. Expected a stream socket that listens, opened by the parent "
            "process (systemd, circus, a test)."
            f"{' Have ListenStream= and Accept=no in the socket unit.' if origin == 'LISTEN_FDS' else ''}"
        ) from error


def _inherit(fd: int, spec: str, secure: bool, origin: str) -> Listener:
    """Take over ``fd``. ``origin`` is who named it: the setting with its value, or the variable."""
    expected = (
        "Expected a stream socket that listens, opened by the parent process (systemd, circus, a test)."
    )
    if origin == "LISTEN_FDS":
        expected += " Have ListenStream= and Accept=no in the socket unit."
    try:
        is_socket = stat.S_ISSOCK(fstat(fd).st_mode)
    except OSError as error:
        raise ConfigError(f"{origin}: descriptor {fd} is not open. {expected}") from error
    if not is_socket:
        raise ConfigError(f"{origin}: descriptor {fd} is not a socket. {expected}")
    sock = socket(fileno=fd)
    try:
        listens = sock.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
    except OSError:  # macOS does not tell
        listens = 1
    if sock.family not in (AF_INET, AF_INET6, AF_UNIX):
        what: str | None = "is neither a TCP nor a Unix socket"
    elif sock.getsockopt(SOL_SOCKET, SO_TYPE) != SOCK_STREAM:
        what = "is not a stream socket"
    else:
        what = None if listens else "does not listen"
    if what:
        sock.detach()
        raise ConfigError(f"{origin}: descriptor {fd} {what}. {expected}")
    sock.setblocking(False)
    os.set_inheritable(fd, False)
    if sock.family != AF_UNIX:
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return Listener(sock, spec, secure=secure, inherited=True)


def _unix_name(name: str | bytes) -> str:
    text = os.fsdecode(name)
    return "@" + text[1:] if text.startswith("\0") else text


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
