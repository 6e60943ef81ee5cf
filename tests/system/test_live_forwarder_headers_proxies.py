"""Headers named like CGI variables, through real proxies that let underscores pass."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from nginxproxy import Nginx, temporary_paths
from programs import need
from rawclient import RawClient
from server import Server, Start, wait_until

_HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 15s
    timeout server 15s
frontend front
    bind fd@{fd}
    http-request deny if {{ path_beg /admin }}
    default_backend back
backend back
    server one {server}
"""


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[object]:
    program = need("haproxy")
    processes = []

    def begin(server: Server) -> tuple[str, int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            configuration = tmp_path / "haproxy.cfg"
            host, port = server.address
            configuration.write_text(_HAPROXY.format(fd=listener.fileno(), server=f"{host}:{port}"))
            processes.append(
                subprocess.Popen(
                    [program, "-db", "-q", "-f", configuration], pass_fds=[listener.fileno()], cwd=tmp_path
                )
            )
            found: tuple[str, int] = listener.getsockname()
            return found

    yield begin
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()


def ask_through(address: tuple[str, int]) -> None:
    def answered() -> bool:
        try:
            with RawClient(address) as client:
                return client.get("/").status == 200
        except OSError:
            return False

    wait_until(answered, "the proxy answers")
    with RawClient(address) as client:
        client.send(b"GET /admin/users HTTP/1.1\r\nHost: test\r\n\r\n")
        assert b" 403 " in client.sock.recv(100)
    with RawClient(address) as client:
        found = client.get("/environ", headers="PATH_INFO: /admin/users\r\nREMOTE_USER: root\r\n").json()["environ"]
    assert found["HTTP_PATH_INFO"] == "/admin/users", "the proxy lets underscores pass"
    assert found["PATH_INFO"] == "/environ"
    assert "REMOTE_USER" not in found
    with RawClient(address) as client:
        assert client.get("/environ", headers="SCRIPT_NAME: //evil.example\r\n").status == 400


def test_behind_haproxy(start: Start, haproxy: object) -> None:
    assert callable(haproxy)
    server = start("apps:app", bind="tcp", expect=(r"refused with 400",))
    ask_through(haproxy(server))


def test_behind_nginx(start: Start, tmp_path: Path) -> None:
    program = need("nginx")
    server = start("apps:app", bind="tcp", expect=(r"refused with 400",))
    host, port = server.address

    def configure(own: int) -> str:
        return f"""
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
pid {tmp_path}/nginx.pid;
error_log {tmp_path}/nginx-error.log warn;
events {{ worker_connections 64; }}
http {{
{temporary_paths(tmp_path)}
    access_log {tmp_path}/nginx-access.log;
    underscores_in_headers on;
    server {{
        listen 127.0.0.1:{own};
        location /admin {{ return 403; }}
        location / {{ proxy_pass http://{host}:{port}; }}
    }}
}}
"""

    nginx = Nginx(program, tmp_path, configure=configure)
    try:
        ask_through(nginx.address)
    finally:
        nginx.stop()
