"""A real nginx as a reverse proxy in front, in every worker class: no 502, no 504 (issue 3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from mixedload import run_mix
from nginxproxy import PROXY, UWSGI, Nginx
from programs import need
from rawclient import RawClient
from server import Start

_LOAD_S = 2.0


@pytest.fixture(params=["tcp", "unix", "uwsgi"])
def nginx(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Iterator[Nginx]:
    """A real nginx that passes requests on: over kept connections, or by uwsgi_pass."""
    program = need("nginx")
    asked = ("--forwarded-headers", "for,proto", "-w", "2")
    expect = (r"\[ERROR\]|Traceback",)  # the mix has a crash in it
    if request.param == "unix":
        server = start("apps:app", *asked, "-b", "unix:a.sock", bind="none", expect=expect)
        upstream = f"unix:{tmp_path}/a.sock"
    else:
        spoken = ("--protocol", "uwsgi") if request.param == "uwsgi" else ()
        server = start("apps:app", *asked, *spoken, expect=expect)
        upstream = "{}:{}".format(*server.address)
    server.wait_for_log("ready")
    made = Nginx(program, tmp_path, upstream, UWSGI if request.param == "uwsgi" else PROXY)
    try:
        yield made
    finally:
        made.stop()


def test_mixed_load(nginx: Nginx) -> None:
    statuses, wrong = run_mix(nginx.address, _LOAD_S)
    nginx.stop()
    assert wrong == []
    assert nginx.errors == []
    assert nginx.statuses == statuses
    assert set(statuses) <= {200, 404, 500}
    assert statuses[200] > 50


def test_what_the_application_learns_of_the_client(nginx: Nginx) -> None:
    with RawClient(nginx.address) as client:
        first = client.get("/environ").json()["environ"]
        second = client.get("/environ", headers="X-Forwarded-For: 6.6.6.6\r\n").json()["environ"]
    assert first["REMOTE_ADDR"] == "127.0.0.1"
    assert first["HTTP_HOST"] == "test"
    assert first["wsgi.url_scheme"] == "http"
    if "HTTP_X_FORWARDED_PROTO" in first:  # nginx sets X-Forwarded-For: what its client sent is not taken
        assert second["HTTP_X_FORWARDED_FOR"] == "6.6.6.6, 127.0.0.1"
