"""Real reverse proxies that speak TLS to the server, and clients that send POSTs through them."""

from __future__ import annotations

import http.client
import os
import random
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import trustme
from nginxproxy import Nginx

_DEADLINE_S = 15.0
CLIENTS = 8

# Kept connections to the upstream, as nginx's documentation has it. nginx repeats no POST on another connection.
_NGINX = """
            proxy_pass https://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_ssl_name localhost;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {directory}/ca.pem;
"""
_HAPROXY = """
global
    maxconn 256
defaults
    mode http
    timeout connect 10s
    timeout client 30s
    timeout server 30s
    retries 0
frontend site
    bind fd@{fd}
    default_backend app
backend app
    http-reuse always
    server app {host}:{port} ssl verify required ca-file {directory}/ca.pem verifyhost localhost sni str(localhost)
"""
_CADDY = """
{{
    admin off
    auto_https off
}}
http:// {{
    bind unix/{directory}/caddy.sock
    reverse_proxy https://{host}:{port} {{
        transport http {{
            tls_server_name localhost
            tls_trusted_ca_certs {directory}/ca.pem
            keepalive_idle_conns_per_host 16
            versions 1.1
        }}
    }}
}}
"""


def issue_certificate(directory: Path) -> trustme.CA:
    """Write server.pem, server.key and ca.pem for ``localhost``; return the authority."""
    ca = trustme.CA()
    cert = ca.issue_cert("localhost", "127.0.0.1")
    (directory / "server.pem").write_bytes(b"".join(pem.bytes() for pem in cert.cert_chain_pems))
    cert.private_key_pem.write_to_path(str(directory / "server.key"))
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    return ca


class Proxy:
    """A proxy in front of a server that speaks TLS, from its start to `stop`.

    Args:
        kind: ``nginx``, ``haproxy`` or ``caddy``.
        program: its path.
        directory: where ca.pem is; the nginx's files go there.
        upstream: the server's address.

    Attributes:
        address: what clients connect to.
    """

    def __init__(self, kind: str, program: str, directory: Path, upstream: tuple[str, int]) -> None:
        host, port = upstream
        self._nginx: Nginx | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._listener: socket.socket | None = None
        self.address: Any
        if kind == "nginx":
            location = _NGINX.format(directory=directory)
            self._nginx = Nginx(program, directory, f"{host}:{port}", location)
            self.address = self._nginx.address
            return
        # Short: a Unix socket's path is bounded.
        self._own = tempfile.TemporaryDirectory(prefix=f"{kind}-")
        own = Path(self._own.name)
        ca = own / "ca.pem"
        ca.write_bytes((directory / "ca.pem").read_bytes())
        if kind == "haproxy":
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            fd = self._listener.fileno()
            configuration = own / "haproxy.cfg"
            configuration.write_text(_HAPROXY.format(fd=fd, host=host, port=port, directory=own))
            command = [program, "-db", "-f", str(configuration)]
            self.address = self._listener.getsockname()
        else:
            fd = -1
            configuration = own / "Caddyfile"
            configuration.write_text(_CADDY.format(host=host, port=port, directory=own))
            command = [program, "run", "--config", str(configuration), "--adapter", "caddyfile"]
            self.address = str(own / "caddy.sock")
        self._log = own / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                pass_fds=(fd,) if fd >= 0 else (),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(own), "XDG_DATA_HOME": str(own), "XDG_CONFIG_HOME": str(own)},
            )

    def stop(self) -> None:
        """End it."""
        if self._nginx is not None:
            self._nginx.stop()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_DEADLINE_S)
            self._own.cleanup()
        if self._listener is not None:
            self._listener.close()

    @property
    def complaints(self) -> str:
        """What it has logged, for a report of a failure."""
        if self._nginx is not None:
            return "\n".join(self._nginx.errors)
        return self._log.read_text(errors="replace")[-4000:]


class _Connection(http.client.HTTPConnection):
    """To an address of any kind, with TLS where a context is given."""

    def __init__(self, address: Any, context: ssl.SSLContext | None) -> None:
        super().__init__("localhost", timeout=_DEADLINE_S)
        self._address = address
        self._tls = context

    def connect(self) -> None:
        """Connect; a proxy that has just been started may need a moment for its Unix socket."""
        if isinstance(self._address, str):
            end = time.monotonic() + _DEADLINE_S
            while True:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.settimeout(_DEADLINE_S)
                try:
                    self.sock.connect(self._address)
                    return
                except (FileNotFoundError, ConnectionRefusedError):
                    self.sock.close()
                    if time.monotonic() > end:
                        raise
                    threading.Event().wait(0.02)
        self.sock = socket.create_connection(self._address, _DEADLINE_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname="localhost")


class Posts:
    """Kept connections that send POSTs with now and then a pause, while the ``with`` block lasts.

    Args:
        address: where they are sent: a proxy, or the server itself.
        total: how many in all.
        context: of the clients, where they speak TLS themselves.
        longest_pause_s: the longest of the pauses.

    Attributes:
        wrong: what went wrong, with how often.
    """

    def __init__(
        self, address: Any, total: int, context: ssl.SSLContext | None = None, longest_pause_s: float = 0.3
    ) -> None:
        self._address = address
        self._context = context
        self._left = total
        self._longest_pause_s = longest_pause_s
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self.done = 0
        self.wrong: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(CLIENTS)]

    def __enter__(self) -> Posts:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, number: int, deadline_s: float = 600.0) -> None:
        """Wait until so many have been sent in all, well or not."""
        with self._changed:
            reached = self._changed.wait_for(
                lambda: self.done + self.wrong.total() >= number or not self._left, deadline_s
            )
        assert reached, f"the load stands still: {self.done}, {self.wrong}"

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        client = _Connection(self._address, self._context)
        while not self._stop.is_set():
            with self._changed:
                if not self._left:
                    break
                self._left -= 1
                number = self._left
            if chance.random() < 0.02:
                self._stop.wait(chance.uniform(0.0, self._longest_pause_s))
            wrong = self._post(client, f"post {number} ".encode() * chance.choice((1, 50)))
            with self._changed:
                if wrong:
                    self.wrong[wrong] += 1
                else:
                    self.done += 1
                self._changed.notify_all()
        client.close()

    def _post(self, client: _Connection, body: bytes) -> str:
        """Send one and return what is wrong with its answer, if anything."""
        try:
            client.request("POST", "/echo", body=body, headers={"Content-Type": "text/plain"})
            answer = client.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            client.close()
            return repr(error)
        if answer.status != 200:
            return f"status {answer.status}"
        return "" if data == body else "another's answer"


def post_through_reloads(posts: Posts, total: int, reloads: int, reload: Callable[[], None]) -> None:
    """Send all, with so many reloads spread over them."""
    with posts:
        for number in range(1, reloads + 1):
            posts.wait_for(total * number // (reloads + 1))
            reload()
