"""Makes connections of accepted sockets, and the context that they share."""

from __future__ import annotations

from _socket import socket as RawSocket
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import Any, Final

from wsgiserv.boot import WorkerBoot
from wsgiserv.config.settings import Settings, speaks_tls
from wsgiserv.http.head import HeadLimits
from wsgiserv.http.response import date_line, name_server
from wsgiserv.logs.error_stream import ErrorStream
from wsgiserv.net.client import Connection
from wsgiserv.net.client_socket import ClientSocket
from wsgiserv.net.cork import Cork
from wsgiserv.net.handoff import Transferred
from wsgiserv.net.listener import Listener
from wsgiserv.net.peers import PeerNames
from wsgiserv.net.serving_context import (
    ALL_STREAMED,
    NEVER_STREAMED,
    Application,
    Loop,
    ServingContext,
    ServingSettings,
)
from wsgiserv.wsgi.environ import base_environ
from wsgiserv.wsgi.forwarded import Forwarding
from wsgiserv.wsgi.response_context import ResponseContext

_STREAMING: Final = {"on": ALL_STREAMED, "off": NEVER_STREAMED}


def head_limits(settings: Settings) -> HeadLimits:
    """Return the parser's limits and rules for these settings."""
    return HeadLimits(
        line=settings.limit_request_line,
        fields=settings.limit_request_fields,
        field_size=settings.limit_request_field_size,
        header_map=settings.header_map,
        forwarder_headers=frozenset(name.upper() for name in settings.forwarder_headers),
        secure_scheme_headers=tuple((name.upper(), value) for name, value in settings.secure_scheme_headers.items()),
        # Otherwise `mounted_as` looks at each path.
        root_path=settings.root_path if settings.root_path_outside == "serve" else "",
    )


def serving_context(
    boot: WorkerBoot,
    peers: PeerNames,
    call: Callable[..., BaseException | None],
    streams: int,
    least_stream_buffer: int,
) -> ServingContext:
    """Return what the connections of a worker share; `load` of the worker adds the application and the access log.

    Args:
        boot: the values that the worker starts with.
        peers: tells trusted peers (``forwarded_allow_ips``).
        call: calls the application, as `run_app` does.
        streams: the meaning of ``stream_request_body = "auto"``.
        least_stream_buffer: how many bytes a response of unknown length may run ahead of its client at least.
    """
    settings = boot.settings
    name_server(settings.server_header)
    names = settings.forwarded_headers
    return ServingContext(
        settings=ServingSettings(
            limits=head_limits(settings),
            header_timeout=settings.header_timeout,
            body_timeout=settings.body_timeout,
            body_min_rate=settings.body_min_rate,
            send_timeout=settings.send_timeout,
            keepalive=settings.keepalive,
            body_limit=settings.limit_request_body,
            body_memory=settings.body_buffer_size,
            spool_dir=settings.spool_dir,
            streaming=_STREAMING.get(settings.stream_request_body, streams),
            stream_buffer=max(settings.stream_buffer, least_stream_buffer),
            forwarding=Forwarding(names, peers.names) if names else None,
        ),
        application=Application(call=call),
        gateway=ResponseContext(boot.log, date_line(time()), settings.sendfile),
        slot=boot.slot,
        cork=Cork(settings.cork == "auto"),
        # As with gunicorn: nobody has told yet which of these headers are a proxy's.
        report_passed=None if "forwarded_allow_ips" in settings.given else boot.report_passed_headers,
    )


class Admission:
    """Makes the connections of one worker.

    Args:
        boot: the values that the worker starts with.
        context: what the connections share.
        peers: tells trusted peers (``forwarded_allow_ips``).
        multithread: whether requests run at once in this process.

    Attributes:
        can_hand_over: whether connections can go to another worker of this server, as long as that does not stop.
    """

    def __init__(self, boot: WorkerBoot, context: ServingContext, peers: PeerNames, multithread: bool) -> None:
        settings = boot.settings
        is_tls = speaks_tls(settings)
        # The state of TLS cannot be moved; with uwsgi each response ends its connection anyway.
        self.can_hand_over = boot.handoff is not None and not is_tls and settings.protocol != "uwsgi"
        self._boot = boot
        self._context = context
        self._peers = peers
        self._make: Callable[..., Connection] = Connection
        self._secure: Callable[[RawSocket, dict[str, str]], ClientSocket] | None = None
        # Until when the TLS context is used for new connections, ``time.monotonic()`` seconds.
        self._secure_until = 0.0
        # The peers that may, or must, send a PROXY header first.
        self._proxies: PeerNames | None = None
        if settings.proxy_protocol != "off":  # most workers need neither this module nor the next ones
            from wsgiserv.net.proxy_socket import ProxySocket

            self._proxies = PeerNames(settings.proxy_allow_ips)
            self._proxied = ProxySocket
        self._uwsgi_peers: PeerNames | None = None
        if settings.protocol == "uwsgi":
            from wsgiserv.http.uwsgi import UwsgiReader
            from wsgiserv.net.uwsgi_client import BarredConnection, UwsgiConnection

            self._uwsgi_peers = PeerNames(settings.uwsgi_allow_ips)
            self._barred = BarredConnection
            self._make = partial(UwsgiConnection, UwsgiReader(context.parser))
        errors = ErrorStream(boot.log)
        # Made once: an environ is then one merge in C of this and of the request's own variables.
        self._base_of_listener = {
            listener: base_environ(
                server_name=listener.server_name,
                server_port=listener.server_port,
                url_scheme="https" if is_tls else "http",
                errors=errors,
                multithread=multithread,
                multiprocess=(settings.workers_max or settings.workers) > 1,
            )
            for listener in boot.listeners
        }
        # A sibling knows a listener by its address, whatever protocol is spoken there. Of two with the same address
        # the first counts.
        self._base_of_address = {
            listener.url.partition("://")[2] or listener.url: self._base_of_listener[listener]
            for listener in reversed(boot.listeners)
        }
        # By identity: a dict cannot be a key.
        self._addresses = {id(base): address for address, base in self._base_of_address.items()}

    @property
    def first_base(self) -> dict[str, Any]:
        """The base environ of the first listener."""
        return self._base_of_listener[self._boot.listeners[0]]

    def load_certificates(self) -> None:
        """Take the master's TLS context, or make one. Raises ConfigError.

        Called in the new process while the private key may still be read.
        """
        if self._boot.tls_contexts is not None:
            self.renew(monotonic())
        elif speaks_tls(self._boot.settings):
            from wsgiserv.net.tls import TLSSocket
            from wsgiserv.net.tls_context import make_context

            self._secure = partial(TLSSocket, make_context(self._boot.settings))

    def renew(self, now: float) -> None:
        """Use the TLS context of this day for new connections; the open ones keep theirs. Called once a second."""
        contexts = self._boot.tls_contexts
        if contexts is not None and now >= self._secure_until:
            # Here: it loads OpenSSL, which a worker without TLS can do without.
            from wsgiserv.net.tls import TLSSocket

            context, self._secure_until = contexts.current(now)
            self._secure = partial(TLSSocket, context)

    def admit(self, loop: Loop, sock: RawSocket, address: Any, listener: Listener) -> Connection:
        """Return a connection for an accepted socket.

        Args:
            loop: waits for the socket.
            sock: the socket.
            address: its peer's address, as accept(2) has returned it.
            listener: where it has been accepted.
        """
        peer, name, trusted = self._peers.of(address)
        context, base = self._context, self._base_of_listener[listener]
        if self._uwsgi_peers is not None and not self._uwsgi_peers.of(address)[2]:
            return self._barred(context, loop, sock, base, peer, name, trusted)
        client = sock if self._secure is None else self._secure(sock, peer)
        connection = self._make(context, loop, client, base, peer, name, trusted)
        if self._proxies is not None and self._proxies.of(address)[2]:
            # Below TLS: the proxy sends its header in clear, before the client's handshake.
            mode = self._boot.settings.proxy_protocol
            connection.replace_socket(self._proxied(sock, client, mode, peer, connection.replace_socket))
        return connection

    def adopt(self, loop: Loop, handed: Transferred) -> Connection | None:
        """Return a connection that goes on where a sibling has left off.

        Returns:
            None, and the socket is closed, when the client has left, or HTTP is not spoken here.
        """
        sock, state = handed.sock, handed.state
        try:
            address = sock.getpeername()
        except OSError:  # the client has left meanwhile
            address = None
        # An older generation may speak HTTP at an address where this one expects uwsgi packets.
        if address is None or self._uwsgi_peers is not None:
            sock.close()
            return None
        # A reload may have given that address up.
        base = self._base_of_address.get(handed.listener) or self.first_base
        if self._secure is not None:
            base = {**base, "wsgi.url_scheme": "http"}  # TLS has come with a reload, and this one is older
        # This configuration decides whether the peer is trusted, not the sender's.
        trusted = self._peers.of(address)[2]
        connection = Connection(self._context, loop, sock, base, state.peer, state.peer_name, trusted)
        connection.restore(state)
        return connection

    def address_of(self, connection: Connection) -> str:
        """Return the address of the listener that a connection came from, for a sibling."""
        return self._addresses.get(id(connection.base), "")
