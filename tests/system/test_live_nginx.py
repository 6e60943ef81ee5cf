"""A real nginx as a reverse proxy in front, in every worker class: no 502, no 504 (issues 3 and 4)."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from load import Load
from mixedload import run_mix
from nginxproxy import PROXY, USER, UWSGI, Nginx, open_connections, temporary_paths
from programs import need
from rawclient import RawClient
from server import ROOT, Server, Start, wait_until

_LOAD_S = 1.0


class Site(NamedTuple):
    """A server, the nginx in front of it, and where they meet."""

    nginx: Nginx
    server: Server
    upstream: Any
    keeps: bool


@pytest.fixture(params=["tcp", "unix", "uwsgi"])
def site(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Iterator[Site]:
    """A real nginx that passes requests on: over kept connections, or by uwsgi_pass."""
    program = need("nginx")
    asked = ("--forwarded-headers", "for,proto", "-w", "2")
    expect = (r"\[ERROR\]|Traceback",)  # the mix has a crash in it
    if request.param == "unix":
        server = start("apps:app", *asked, "-b", "unix:a.sock", "--socket-mode", "600", bind="none", expect=expect)
        address: Any = f"{tmp_path}/a.sock"
        upstream = f"unix:{address}"
    else:
        spoken = ("--protocol", "uwsgi") if request.param == "uwsgi" else ()
        server = start("apps:app", *asked, *spoken, expect=expect)
        address = server.address
        upstream = "{}:{}".format(*address)
    server.wait_for_log("ready")
    uwsgi = request.param == "uwsgi"
    made = Nginx(program, tmp_path, upstream, UWSGI if uwsgi else PROXY)
    try:
        yield Site(made, server, address, keeps=not uwsgi)
    finally:
        made.stop()


def reload(server: Server) -> None:
    """Send HUP, and wait until the new workers serve and the old ones have left."""
    old = server.workers()
    seen = len(server.log.lines)
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded", after=seen)
    wait_until(lambda: not set(old) & set(server.workers()), "the old workers leave")


def load_during_a_reload(nginx: Nginx, server: Server) -> None:
    """Hold that no client sees a reload.

    GET only: a worker that leaves closes its idle connections, and nginx repeats on another what it had just sent
    there, unless it is a POST.
    """
    with Load(nginx.address, clients=2) as load:
        load.wait_for_more(20)
        reload(server)
        load.wait_for_more(20)
    assert load.lost == []
    assert {status for client in load.clients for status in client.statuses} == {200}


def test_mixed_load(site: Site) -> None:
    nginx = site.nginx
    statuses, wrong = run_mix(nginx.address, _LOAD_S)
    nginx.stop()
    assert wrong == []
    assert nginx.errors == []
    assert nginx.statuses == statuses
    assert set(statuses) <= {200, 404, 500}
    assert statuses[200] > 50


def test_what_the_application_learns_kept_connections_and_a_reload(site: Site) -> None:
    upstreams = set()
    with RawClient(site.nginx.address) as client:
        first = client.get("/environ").json()["environ"]
        upstreams |= open_connections(site.upstream)
        forged = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n"
        second = client.get("/environ", headers=forged).json()["environ"]
        upstreams |= open_connections(site.upstream)
    assert first["REMOTE_ADDR"] == "127.0.0.1"
    assert first["HTTP_HOST"] == "test"
    assert first["wsgi.url_scheme"] == "http"
    if site.keeps:
        # nginx sets both: what its client sent is not taken
        assert second["HTTP_X_FORWARDED_FOR"] == "6.6.6.6, 127.0.0.1"
        assert second["wsgi.url_scheme"] == "http"
        for _ in range(3):  # other clients, the same upstream connection
            with RawClient(site.nginx.address) as client:
                assert client.get("/", headers="Connection: close\r\n").status == 200
            upstreams |= open_connections(site.upstream)
        assert len(upstreams) == 1
    load_during_a_reload(site.nginx, site.server)


def example(directory: Path, port: int, upstream: str) -> str:
    """Return examples/nginx.conf with this test's paths and port, and in the foreground."""
    text = (ROOT / "examples" / "nginx.conf").read_text()
    for written, ours in {
        "user www-data;": f"{USER} daemon off;",
        "worker_processes auto;": "worker_processes 2;",
        "/run/nginx.pid": f"{directory}/nginx.pid",
        "error_log /var/log/nginx/error.log": f"error_log {directory}/nginx-error.log",
        "/var/log/nginx/access.log": f"{directory}/nginx-access.log",
        "unix:/run/wsgiserv/hello.sock": upstream,
        "listen 80;": f"listen 127.0.0.1:{port};",
        "/srv/hello/": f"{directory}/",
        "http {\n": f"http {{\n{temporary_paths(directory)}\n",
    }.items():
        assert written in text, written
        text = text.replace(written, ours)
    return text


def test_the_example(start: Start, tmp_path: Path) -> None:
    program = need("nginx")
    # As the example's head says, and the access log with the id of the request.
    asked = ("--forwarded-headers", "for,proto", "-w", "2", "--access-logfile", "access", "--access-logformat")
    server = start(
        "apps:app", *asked, "%(h)s %({x-request-id}i)s %(r)s", "-b", "unix:a.sock", "--socket-mode", "600", bind="none"
    )
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "style.css").write_text("p {}\n")
    server.wait_for_log("ready")
    nginx = Nginx(program, tmp_path, configure=lambda port: example(tmp_path, port, f"unix:{tmp_path}/a.sock"))
    try:
        subprocess.run(
            [program, "-t", "-q", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], check=True, timeout=15
        )
        forged = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Request-Id: mine\r\n"
        with RawClient(nginx.address) as client:
            style = client.get("/static/style.css")
            assert (style.one("Content-Type"), style.text) == ("text/css", "p {}\n")
            environ = client.get("/environ?first", headers=forged).json()["environ"]
        assert environ["HTTP_X_FORWARDED_FOR"] == environ["REMOTE_ADDR"] == "127.0.0.1"
        assert environ["wsgi.url_scheme"] == "http"
        assert environ["HTTP_HOST"] == "test"
        assert "HTTP_CONNECTION" not in environ
        # One of each nginx worker that has asked, however many clients have come.
        for _ in range(8):
            with RawClient(nginx.address) as client:
                assert client.get("/").status == 200
        assert 1 <= len(open_connections(f"{tmp_path}/a.sock")) <= 2
        load_during_a_reload(nginx, server)
        request_id = environ["wsgiserv.request_id"]
        assert environ["HTTP_X_REQUEST_ID"] == request_id != "mine"
        wait_until(lambda: f"127.0.0.1 {request_id} GET /environ?first" in (tmp_path / "access").read_text(), "the log")
    finally:
        nginx.stop()
    assert [line for line in nginx.errors if "Broken pipe" not in line] == []  # what it has repeated
    lines = (tmp_path / "nginx-access.log").read_text().splitlines()
    assert [line for line in lines if " 200 " not in line] == []
    assert sum(request_id in line for line in lines) == 1
