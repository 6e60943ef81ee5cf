"""`warmup`: a request like any other, and its answer is told."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import trustme
from rawclient import RawClient
from server import Start

# Writes what the warm-up requests bring; an answer to a path that names one.
APP = """
import json, os

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if environ.get("wsgiserv.warmup"):
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
        shown = {key: value for key, value in environ.items() if isinstance(value, (str, bool))}
        shown["body"] = environ["wsgi.input"].read().decode()
        with open("warmed", "a") as file:
            print(json.dumps(shown), file=file)
    status = "200 OK"
    if path.startswith("/raise"):
        raise LookupError("no such table")
    if path.startswith("/exit"):
        raise SystemExit(3)
    if path.startswith("/header"):
        start_response("200 OK", [("X-A", "a\\nb")])
        return [b""]
    if path[1:4].isdigit():
        status = path[1:4] + " As Asked"
    if path == "/write":
        start_response(status, [])(b"written")
        return []
    if path == "/file":
        start_response(status, [])
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))
    start_response(status, [("Content-Type", "text/plain")])
    return [b"x"]
"""
FILES = {"warm.py": APP}


def warmed(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "warmed").read_text().splitlines()]


def test_the_way_of_any_request(start: Start, tmp_path: Path) -> None:
    """The prefix is taken off, the worker's own keys are there, and every kind of answer is taken."""
    paths = ("/mnt/hello?a=1&b=%20", "/mnt", "/other", "/caf%C3%A9", "/café", "/write", "/file", "/302")
    server = start("warm:app", "--root-path", "/mnt", *(f"--warmup={path}" for path in paths), files=FILES)
    host = "{}:{}".format(*server.address)
    with RawClient(server.address) as client:
        assert client.get("/mnt/hello").status == 200
    found = warmed(tmp_path)
    accent = b"/caf\xc3\xa9".decode("latin-1")
    assert [(each["SCRIPT_NAME"], each["PATH_INFO"]) for each in found] == [
        ("/mnt", path) for path in ("/hello", "", "/other", accent, accent, "/write", "/file", "/302")
    ]
    first = found[0]
    assert (first["QUERY_STRING"], first["RAW_URI"]) == ("a=1&b=%20", "/mnt/hello?a=1&b=%20")
    assert (first["HTTP_HOST"], first["wsgi.url_scheme"], first["body"]) == (host, "http", "")
    assert first["wsgiserv.request_id"] != found[1]["wsgiserv.request_id"]


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def certificate(directory: Path) -> tuple[str, ...]:
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(directory / "all.pem")
    return "--certfile", "all.pem", "--keyfile", "all.pem"


BINDS = {
    "ipv6": (("-b", "[::1]:0"), r"\[::1\]:\d+", "http"),
    "ipv6 wildcard": (("-b", "[::]:0"), r"\[::1\]:\d+", "http"),
    "ipv4 wildcard": (("-b", "0.0.0.0:0"), r"127\.0\.0\.1:\d+", "http"),
    "unix": (("-b", "unix:s"), "localhost", "http"),
    "abstract": (("-b", "unix:@wsgiserv-warmup-test"), "localhost", "http"),
    "several": (("-b", "127.0.0.1:0", "-b", "unix:s"), r"127\.0\.0\.1:\d+", "http"),
    "tls": (("-b", "127.0.0.1:0"), r"127\.0\.0\.1:\d+", "https"),
}


@pytest.mark.parametrize("kind", BINDS)
def test_host_and_scheme_are_the_listeners(start_unclassed: Start, tmp_path: Path, kind: str) -> None:
    args, host, scheme = BINDS[kind]
    if kind.startswith("ipv6") and not _has_ipv6():
        pytest.skip("no IPv6 here")
    args += certificate(tmp_path) if kind == "tls" else ()
    server = start_unclassed("warm:app", *args, "--warmup", "/", files=FILES, bind="none")
    server.wait_for_log("ready: ")
    (found,) = warmed(tmp_path)
    assert re.fullmatch(host, found["HTTP_HOST"]), found["HTTP_HOST"]
    assert found["wsgi.url_scheme"] == scheme
    if ":" in host:
        port = found["HTTP_HOST"].rpartition(":")[2]
        assert found["SERVER_PORT"] == port != "0"


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_an_answer_that_warms_little_is_told(start: Start, preload: tuple[str, ...]) -> None:
    paths = ("/404?id=7", "/200", "/302", "/403")
    server = start("warm:app", *preload, *(f"--warmup={path}" for path in paths), files=FILES, expect=("warm-up",))
    with RawClient(server.address) as client:
        assert client.get("/").status == 200
    server.wait_for_log("warm-up.*/403")
    told = [line for line in server.log.lines if "warm-up" in line]
    assert len(told) == 2, told
    for line, (path, status) in zip(told, [("/404?id=7", "404 As Asked"), ("/403", "403 As Asked")], strict=True):
        assert "[WARNING]" in line
        assert path in line
        assert status in line


FAULTS = {
    "/503": ("503 As Asked", None),
    "/raise": ("LookupError: no such table", "warm.py"),
    "/exit": ("SystemExit: 3", "warm.py"),
    "/header": ("ValueError", "warm.py"),
}


@pytest.mark.parametrize("path", FAULTS)
def test_a_failure_is_told_with_its_path(start: Start, path: str) -> None:
    said, traceback = FAULTS[path]
    server = start("warm:app", "--warmup", "/", "--warmup", path, files=FILES, expect=(r"\[\w+\]|Traceback",))
    assert server.wait() == 4
    told = [line for line in server.log.lines if f"warm-up request of {path} " in line]
    assert len(told) == 1, server.log.text
    assert said in told[0]
    assert (traceback is None) == ("Traceback" not in server.log.text)
    if traceback:
        assert f'{traceback}", line' in server.log.text
