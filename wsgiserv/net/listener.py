"""Listening sockets: opened for `bind`, taken over from the parent process, kept over a reload."""

from __future__ import annotations

import os
import stat
import sys
from _socket import AF_UNIX, IPPROTO_TCP, TCP_NODELAY, socket
from collections.abc import Sequence
from contextlib import suppress
from os import lstat
from typing import Any, NamedTuple

from wsgiserv.config.settings import Settings, speaks_tls
from wsgiserv.errors import ConfigError
from wsgiserv.net.bind_tcp import address_of, bind_tcp, check_kept, own_conflict, resolve
from wsgiserv.net.bind_unix import bind_unix, check_unix, socket_path, unix_error
from wsgiserv.net.inherited_sockets import FROM_SYSTEMD, check_open, take_over
from wsgiserv.net.port_owner import AddressInUse, TcpAddress
from wsgiserv.net.syn_filter import drop_new_clients, undo_least_ttl
from wsgiserv.safe_open import place_of


class Listener:
    """One listening socket. Owns ``sock``; hashable by identity.

    Attributes:
        sock: bound, listening, non-blocking, close-on-exec.
        spec: as configured (``:8000``, ``unix:run/x.sock``, ``fd://3``).
        url: as printed: ``http://127.0.0.1:8000``, ``unix:/run/x.sock``; with the real port.
        is_unix: whether it is a Unix socket, with a path or an abstract name.
        server_name, server_port: SERVER_NAME and SERVER_PORT (PEP 3333) of a request without a better source; never
            empty. A Unix socket has no port: ``localhost`` and the scheme's default.
        inherited: whether the socket was handed to this process, instead of bound by it.
        path: the absolute path of a Unix socket bound by this server, or empty.
        adjusts: whether each accepted socket needs `adjust`.
    """

    def __init__(
        self, sock: socket, spec: str, *, secure: bool = False, inherited: bool = False, path: str = ""
    ) -> None:
        """Take over ``sock``. ``path`` is the absolute path of a Unix socket bound by this process."""
        self.sock = sock
        self.spec = spec
        self.inherited = inherited
        self.is_unix = sock.family == AF_UNIX
        self.path = path
        self._drops_by_ttl = False
        # Linux copies TCP_NODELAY from the listener to an accepted socket, but not to those in its backlog already.
        self.adjusts = inherited and not self.is_unix
        # Another server may put its own socket at the path: this one is known by its inode.
        self._inode = _inode(path) if path else None
        name: Any = sock.getsockname()
        if self.is_unix:
            self.url, self.server_name, self.server_port = _unix_names(path or _unix_name(name), secure)
        else:
            self.url, self.server_name, self.server_port = _tcp_names(name[0], name[1], secure)

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
        """Set the options missing at an accepted socket, and undo the unwanted ones of its listener."""
        if self.inherited:
            accepted.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # a connection may be older than this server
        if self._drops_by_ttl:
            undo_least_ttl(accepted)

    def reject_new_connections(self) -> None:
        """Drop the SYN of each new client, while the backlog can still be accepted. Never raises.

        The last worker of a stopping server calls it.
        """
        # Closing a listener resets the clients that have connected since the last accept(2), however short that is. A
        # SYN that is dropped is sent again a second later. By then it is refused, or it reaches another server: one
        # that shares the port (``reuse_port``) or follows on it. Inherited sockets are left alone: their next owner
        # could not undo it. Only Linux can do it.
        is_ours = not (self.is_unix or self.inherited)
        if sys.platform == "linux" and is_ours and drop_new_clients(self.sock):
            # What is accepted from now on has it from the listener, and would hear nothing either.
            self._drops_by_ttl = self.adjusts = True

    def unlink(self) -> None:
        """Remove the Unix socket's file, if it is still the one of this process. Never raises."""
        if self._inode is not None and _inode(self.path) == self._inode:
            # Looked at again in a directory that stays the same: root must not remove a file that another user has put
            # in its place meanwhile.
            with suppress(OSError), place_of(self.path) as place:
                status = place.lstat()
                if (status.st_dev, status.st_ino) == self._inode:
                    place.unlink()
        self._inode = None

    def disown(self) -> None:
        """Leave the Unix socket's file to the next master, the new owner of the socket."""
        self._inode = None


def open_listeners(settings: Settings, inherited: Sequence[int] = (), keep: Sequence[Listener] = ()) -> list[Listener]:
    """Return a listener for each of `bind`, in that order. Called by the master.

    Args:
        settings: the configuration.
        inherited: descriptors from the service manager (sd_listen_fds(3)); they replace `bind`.
        keep: the open listeners (reload): one of an unchanged bind is returned as it is.

    Raises:
        ConfigError: the text names the address, the reason and, where /proc shows it, the process in the way. The
            listeners opened here are closed again, and ``keep`` is untouched.
    """
    secure = speaks_tls(settings)
    if inherited:
        return [_inherit(fd, f"fd://{fd}", secure, FROM_SYSTEMD) for fd in inherited]
    kept = {listener.spec: listener for listener in keep}
    # Before the first one is opened: the reload fails without a moment in which a new port answers.
    for spec in settings.bind:
        if spec in kept and not kept[spec].inherited:
            check_kept(spec, kept[spec].sock, settings.bind)
    listeners: list[Listener] = []
    opened: list[Listener] = []
    try:
        for spec in dict.fromkeys(settings.bind):
            listener = kept.get(spec)
            if listener is None:
                try:
                    listener = _open(spec, settings, secure)
                except AddressInUse as error:
                    for other in listeners:
                        if error.address and not other.is_unix and error.address.overlaps(TcpAddress.of(other.sock)):
                            raise own_conflict(spec, other.spec) from None
                    raise
                opened.append(listener)
            elif not listener.inherited:
                listener.sock.listen(settings.backlog)  # it may have changed; listen(2) is repeatable
            listeners.append(listener)
    except BaseException:
        # An inherited socket stays open: this process could not open it again for the next attempt.
        for listener in opened:
            listener.unlink()
            if not listener.inherited:
                listener.close()
        raise
    return listeners


class Checked(NamedTuple):
    """A bind without faults.

    Attributes:
        url, server_name, server_port: as of a `Listener`.
        in_use: a sentence about the process at the address now; empty when it is free.
    """

    url: str
    server_name: str
    server_port: str
    in_use: str = ""


def check_listeners(settings: Settings) -> tuple[list[Checked], list[ConfigError]]:
    """Try each of `bind` without listening, and leave no file; return the good ones, and the errors of the others.

    An address in use counts as good: the server to be reloaded with this configuration has it.
    """
    good: list[Checked] = []
    errors: list[ConfigError] = []
    bound: list[tuple[str, TcpAddress]] = []
    secure = speaks_tls(settings)
    for spec in dict.fromkeys(settings.bind):
        try:
            good.append(_check(spec, settings, secure, bound))
        except ConfigError as error:
            errors.append(error)
    return good, errors


def _check(spec: str, settings: Settings, secure: bool, bound: list[tuple[str, TcpAddress]]) -> Checked:
    address = address_of(spec)
    if address.kind == "fd":
        check_open(address.fd, f"bind = {spec!r}")
        # A copy, so that the check leaves the descriptor open for the start.
        listener = _inherit(os.dup(address.fd), spec, secure, f"bind = {spec!r}")
        try:
            return Checked(listener.url, listener.server_name, listener.server_port)
        finally:
            listener.close()
    in_use = ""
    if address.kind == "unix":
        path = socket_path(spec, address.path)
        try:
            check_unix(spec, path, settings)
        except AddressInUse as error:
            in_use = str(error)
        return Checked(*_unix_names(path, secure), in_use)
    family, sockaddr = resolve(spec, address)
    host, port = sockaddr[0], sockaddr[1]
    try:
        sock = bind_tcp(spec, family, sockaddr, settings, listen=False)
    except AddressInUse as error:
        in_use = str(error)
    else:
        # Sockets that do not listen may share an address (SO_REUSEADDR), so this is not found by binding them.
        ours = TcpAddress.of(sock)
        sock.close()
        for other, theirs in bound:
            if port and not settings.reuse_port and ours.overlaps(theirs):
                raise own_conflict(spec, other)
        bound.append((spec, ours))
    return Checked(*_tcp_names(host, port, secure), in_use)


def _open(spec: str, settings: Settings, secure: bool) -> Listener:
    address = address_of(spec)
    if address.kind == "fd":
        return _inherit(address.fd, spec, secure, f"bind = {spec!r}")
    if address.kind == "tcp":
        return Listener(bind_tcp(spec, *resolve(spec, address), settings), spec, secure=secure)
    path = socket_path(spec, address.path)
    sock = bind_unix(spec, path, settings)
    listener = Listener(sock, spec, secure=secure, path="" if path.startswith("@") else path)
    try:
        sock.listen(settings.backlog)
        sock.setblocking(False)
    except BaseException as error:
        listener.unlink()
        sock.close()
        if isinstance(error, OSError):
            raise unix_error(spec, path, error) from error
        raise
    return listener


def _inherit(fd: int, spec: str, secure: bool, origin: str) -> Listener:
    return Listener(take_over(fd, origin), spec, secure=secure, inherited=True)


def exposure_warning(listener: Listener, settings: Settings) -> str:
    """Return the warning for a Unix socket where any user of this host is trusted as a proxy, or ""."""
    try:
        mode = stat.S_IMODE(lstat(listener.path).st_mode) if listener.path else 0
    except OSError:
        return ""
    believed = ["forwarded_headers"] if settings.forwarded_headers else []
    if "*" in settings.forwarded_allow_ips:
        believed.append("forwarded_allow_ips = '*'")
    # connect(2) to a Unix socket needs the permission to write to its file.
    if not mode & stat.S_IWOTH or not believed:
        return ""
    return (
        f"{listener}: every user of this host may connect (mode {mode:04o}) and is trusted as a proxy "
        f"({', '.join(believed)}). Set socket_mode = 0o660 (--socket-mode 660) and a group that the proxy is in"
    )


def _tcp_names(host: str, port: int, secure: bool) -> tuple[str, str, str]:
    """Return the URL, SERVER_NAME and SERVER_PORT of a TCP socket."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}", host, str(port)


def _unix_names(path: str, secure: bool) -> tuple[str, str, str]:
    """Return the same of a Unix socket."""
    return f"unix:{path}", "localhost", "443" if secure else "80"


def _unix_name(name: str | bytes) -> str:
    text = os.fsdecode(name)
    return "@" + text[1:] if text.startswith("\0") else text


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
