"""Two servers that take turns at being restarted, behind one nginx: a scenario of `bench.restarts`.

Owns: the two servers, nginx and its configuration.
Must not know: the clients.

The two share a TCP port (``reuse_port``: the kernel deals the connections out, and nginx sees one server), or have a
Unix socket each (``unix_pair``: nginx knows both, and asks the other when one does not answer). One is stopped with
TERM, and when it has ended it is started again, while the other serves.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from bench.hello import free_port, wait_until_up
from bench.underload import Server

__all__ = ["Pair"]

_CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    log_format seen '$status $upstream_status';
    access_log {directory}/access.log seen;
    keepalive_requests 1000000;
    upstream app {{
        {servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
        }}
    }}
}}
"""
_STOP_S = 15.0


class Pair:
    """Two servers behind an nginx, while the ``with`` block lasts.

    Args:
        worker_class: of both servers.
        unix: a Unix socket for each, in place of the same port.

    Attributes:
        port: nginx's.
    """

    def __init__(self, worker_class: str, unix: bool) -> None:
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise FileNotFoundError("nginx is not installed (Debian: apt-get install nginx)")
        self._program = program
        self._worker_class = worker_class
        self._unix = unix
        self._directory = Path(tempfile.mkdtemp(prefix="wsgiserv-pair-"))
        self._nginx: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()
        self.port = free_port()
        self.servers: list[Server] = []

    def __enter__(self) -> Pair:
        with self._stack as stack:
            shared = free_port()
            upstreams = [f"127.0.0.1:{shared}"]
            if self._unix:
                upstreams = [f"unix:{self._directory}/{name}.sock" for name in "ab"]
            for number in range(2):
                server = Server(
                    self._worker_class,
                    *([] if self._unix else ["--reuse-port"]),
                    bind=upstreams[number if self._unix else 0],
                    port=shared,
                )
                self.servers.append(stack.enter_context(server))
            self._start_nginx(upstreams)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._nginx is not None:
            self._nginx.send_signal(signal.SIGQUIT)
            self._nginx.wait(timeout=_STOP_S)
        self._stack.__exit__(kind, error, traceback)
        self._tell_statuses()
        if error is None:
            shutil.rmtree(self._directory)
        else:
            print(f"nginx's logs are in {self._directory}", file=sys.stderr)

    def _start_nginx(self, upstreams: list[str]) -> None:
        # max_fails=0: nginx would leave a server alone for 10 s after one failure, and be without any when the other
        # is restarted sooner than that.
        # A directory of mkdtemp is for its owner alone, so nginx's worker stays who it is.
        configuration = self._directory / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                user="user root;" if os.geteuid() == 0 else "",
                directory=self._directory,
                servers="\n        ".join(f"server {upstream} max_fails=0;" for upstream in upstreams),
                port=self.port,
            )
        )
        self._nginx = subprocess.Popen(
            [
                self._program,
                "-p",
                str(self._directory),
                "-e",
                str(self._directory / "error.log"),
                "-c",
                str(configuration),
            ],
            stdin=subprocess.DEVNULL,
        )
        wait_until_up(self.port, self._nginx)

    def restart_each(self, times: int) -> None:
        """Stop a server, wait for its end and start it again: ``times`` times, in turns."""
        for number in range(times):
            server = self.servers[number % 2]
            mark = server.mark()
            server.stop()
            server.start()
            server.wait_for(r"ready: 4 workers", mark)
            time.sleep(0.5)

    def _tell_statuses(self) -> None:
        """Say what nginx had to do to keep its clients content; nothing when it had to do nothing."""
        log = self._directory / "access.log"
        if not log.exists():
            return
        with log.open() as lines:
            seen = Counter(line.rstrip("\n") for line in lines)
        odd = {what: count for what, count in seen.items() if what != "200 200"}
        if odd:
            print(f"  nginx, status and what its upstream said: {odd}", file=sys.stderr)
        with (self._directory / "error.log").open(errors="replace") as lines:
            said = Counter(
                re.sub(r"^\S+ \S+ |\*\d+ |\d+#\d+: |, client: .*", "", line.strip()) for line in lines
            )
        for what, count in said.most_common(5):
            print(f"  nginx, {count} times: {what}", file=sys.stderr)
