"""A real nginx in front of a server under test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DEADLINE_S = 15.0

# Keep-alive to the upstream, as nginx's documentation has it; and the parameters that come with nginx.
PROXY = """
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
"""
UWSGI = """
            uwsgi_pass app;
            uwsgi_param QUERY_STRING $query_string;
            uwsgi_param REQUEST_METHOD $request_method;
            uwsgi_param CONTENT_TYPE $content_type;
            uwsgi_param CONTENT_LENGTH $content_length;
            uwsgi_param REQUEST_URI $request_uri;
            uwsgi_param PATH_INFO $document_uri;
            uwsgi_param DOCUMENT_ROOT $document_root;
            uwsgi_param SERVER_PROTOCOL $server_protocol;
            uwsgi_param REQUEST_SCHEME $scheme;
            uwsgi_param HTTPS $https if_not_empty;
            uwsgi_param REMOTE_ADDR $remote_addr;
            uwsgi_param REMOTE_PORT $remote_port;
            uwsgi_param SERVER_PORT $server_port;
            uwsgi_param SERVER_NAME $server_name;
"""

_CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log warn;
events {{ worker_connections 1024; }}
http {{
{temporary}
    client_max_body_size 0;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' '';
    }}
    log_format seen '$status $upstream_status $request';
    access_log {directory}/nginx-access.log seen;
    upstream app {{
        server {upstream};
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        server_name shop.example;
        location / {{{location}        }}
    }}
}}
"""

# pytest's directories are for their owner alone, so nginx's workers stay who they are.
USER = "user root;" if os.geteuid() == 0 else ""


def temporary_paths(directory: Path) -> str:
    """Return the lines that keep nginx's temporary files in ``directory``, for the block ``http``."""
    kinds = {"client_body": "body", **{kind: kind for kind in ("proxy", "fastcgi", "uwsgi", "scgi")}}
    return "\n".join(f"    {kind}_temp_path {directory}/nginx-{name};" for kind, name in kinds.items())


def open_connections(address: Any) -> set[str]:
    """Return the inodes of the sockets that the server at ``address`` has accepted and not closed, from /proc.

    Args:
        address: a path, or a pair of an IPv4 address and a port.
    """
    if isinstance(address, str):
        rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        # The accepted end has the listener's path, and state 03 (SS_CONNECTED), proc(5).
        return {row[6] for row in rows if row[7:] == [address] and row[5] == "03"}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    end = f":{address[1]:04X}"
    return {row[9] for row in rows if row[1].endswith(end) and row[3] == "01"}  # TCP_ESTABLISHED


class Nginx:
    """One nginx, from its start to `stop`.

    Args:
        program: its path.
        directory: where its files go.
        upstream: the server, as in nginx's configuration: ``127.0.0.1:8000`` or ``unix:/path``.
        location: how requests are passed on: `PROXY`, `UWSGI` or the like.
        configure: instead of the two above: makes a whole configuration for a port. It must say ``daemon off``,
            and name the logs as here.

    Attributes:
        address: where it listens. The socket is bound here and handed over, so there is no port to race for and
            nothing to wait for.
    """

    def __init__(
        self,
        program: str,
        directory: Path,
        upstream: str = "",
        location: str = PROXY,
        configure: Callable[[int], str] | None = None,
    ) -> None:
        self.directory = directory
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        # nginx takes it for granted of a socket that it inherits: a worker that another one has anticipated would
        # wait in accept(2) for ever, and its other clients with it.
        self._listener.setblocking(False)
        self.address: Any = self._listener.getsockname()
        configuration = directory / "nginx.conf"
        port = self.address[1]
        configuration.write_text(
            configure(port)
            if configure is not None
            else _CONFIGURATION.format(
                user=USER,
                temporary=temporary_paths(directory),
                directory=directory,
                upstream=upstream,
                port=port,
                location=location,
            )
        )
        fd = self._listener.fileno()
        self.process = subprocess.Popen(
            [program, "-p", str(directory), "-e", str(directory / "nginx-error.log"), "-c", str(configuration)],
            # How nginx hands its sockets to its successor in an upgrade.
            env={**os.environ, "NGINX": f"{fd};"},
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        """End it, its requests first; then its logs are whole."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
        try:
            self.process.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(_DEADLINE_S)
        finally:
            self._listener.close()

    @property
    def errors(self) -> list[str]:
        """What it complains of: warnings of large bodies in files left out, and its word of its inherited socket."""
        text = (self.directory / "nginx-error.log").read_text(errors="replace")
        return [
            line
            for line in text.splitlines()
            if "is buffered to a temporary file" not in line and "using inherited sockets" not in line
        ]

    @property
    def statuses(self) -> Counter[int]:
        """How often it gave its clients which status."""
        text = (self.directory / "nginx-access.log").read_text(errors="replace")
        return Counter(int(line.split(" ", 1)[0]) for line in text.splitlines())
