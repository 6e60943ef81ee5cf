"""The rule: what each kind of value may look like, from a flag (text) and from a file (objects)."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import pytest

from wsgiserv.config import values as parsers
from wsgiserv.config.address import Address, parse_address
from wsgiserv.config.settings import SETTINGS


class OurWorker:
    """Stands for a worker class of the user's own."""


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("workers", "4", 4),
        ("workers", 4.0, 4),
        ("backlog", "0x10", 16),
        ("timeout", "0", 0.0),
        ("timeout", 0, 0.0),
        ("timeout", "500ms", 0.5),
        ("timeout", "2m", 120.0),
        ("timeout", "1.5", 1.5),
        ("keepalive", "0", 0.0),
        ("keepalive", "1h", 3600.0),
        ("limit_request_body", "10M", 10 << 20),
        ("limit_request_body", "1GiB", 1 << 30),
        ("limit_request_body", "512 kb", 512 << 10),
        ("limit_request_body", "1.5K", 1536),
        ("limit_request_body", 0, 0),
        ("limit_request_line", "0", 1 << 20),
        ("limit_request_fields", "0", 32768),
        ("body_buffer_size", "0", 0),
        ("umask", "007", 7),
        ("umask", "0o22", 0o22),
        ("umask", "022", 0o22),
        ("umask", 0o22, 0o22),
        ("umask", "0", 0),
        ("loglevel", "INFO", "info"),
        ("loglevel", "warn", "warning"),
        ("reload_engine", "inotify", "auto"),
        ("header_map", "Refuse", "refuse"),
        ("forwarded_allow_ips", "*", ("*",)),
        ("forwarded_allow_ips", "10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
        ("forwarded_allow_ips", ["10.0.0.1"], ("10.0.0.1",)),
        ("forwarder_headers", "A,B", ("A", "B")),
        ("secure_scheme_headers", {"x_forwarded_proto": "https"}, {"X-FORWARDED-PROTO": "https"}),
        ("bind", "127.0.0.1:1", ("127.0.0.1:1",)),
        ("bind", [":0", ":0"], (":0", ":0")),
        ("raw_env", ["A=1"], ("A=1",)),
        ("raw_env", {"A": 1}, ("A=1",)),
        ("pidfile", pathlib.Path("/run/x"), "/run/x"),
        ("pidfile", "", None),
        ("accesslog", "", None),
        ("errorlog", "", "-"),
        ("user", os.geteuid(), os.geteuid()),
        ("user", "0", 0),
        ("user", "root", 0),
        ("group", "12", 12),
        ("reload", "TRUE", True),
        ("reload", 0, False),
        ("root_path", "/shop/", "/shop"),
        ("cert_reqs", "2", 2),
        ("worker_class", "sync", "sync"),
        ("worker_class", "gthread", "threads"),
        ("worker_class", "threads", "threads"),
        ("worker_class", "gevent_pywsgi", "gevent"),
        ("worker_class", "egg:gunicorn#gevent", "gevent"),
        ("worker_class", "gunicorn.workers.sync.SyncWorker", "sync"),
        ("worker_class", "gunicorn.workers.gthread.ThreadWorker", "threads"),
        ("worker_class", "gunicorn.workers.ggevent.GeventWorker", "gevent"),
        ("worker_class", "gunicorn.workers.ggevent.GeventPyWSGIWorker", "gevent"),
        ("worker_class", "gunicorn.workers.ggevent.PyWSGIWorker", "gevent"),
        ("worker_class", "my.pkg.Worker", "my.pkg.Worker"),
        ("worker_class", "my.pkg:Worker", "my.pkg.Worker"),
        ("worker_class", OurWorker, OurWorker),
        ("worker_class", lambda: OurWorker, OurWorker),
        ("on_exit", "os.path.exists", os.path.exists),
    ],
)
def test_accepted(name: str, raw: object, value: object) -> None:
    assert SETTINGS[name].parse(raw) == value


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("workers", "-1"),
        ("workers", 2.5),
        ("workers", [2]),
        ("workers", "2 4"),
        ("timeout", "soon"),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
        ("timeout", "1y"),
        ("limit_request_body", "-1"),
        ("limit_request_body", 1.5),
        ("limit_request_line", "2M"),
        ("umask", "0o1000"),
        ("umask", "08"),
        ("bind", []),
        ("bind", 8000),
        ("bind", ["127.0.0.1:1", "127.0.0.1:1"]),
        ("forwarded_allow_ips", "proxy.example"),
        ("raw_env", "=x"),
        ("reload", "maybe"),
        ("reload", 2),
        ("logconfig_dict", "x"),
        ("root_path", "shop"),
        ("cert_reqs", "3"),
        ("pidfile", "a\0b"),
        ("worker_class", ""),
        ("worker_class", 3),
        ("worker_class", "my pkg.Worker"),
        ("worker_class", "egg:other#thing"),
        ("worker_class", "gunicorn.workers.base.Worker"),
        ("on_exit", "nodots"),
        ("on_exit", "os.path.no_such_name"),
        ("on_exit", 3),
        ("pre_fork", lambda server: None),
        ("nworkers_changed", lambda server, new: None),
    ],
)
def test_refused(name: str, raw: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        SETTINGS[name].parse(raw)


@pytest.mark.parametrize(
    ("raw", "advice"),
    [
        ("eventlet", "'gevent'"),
        ("gunicorn.workers.geventlet.EventletWorker", "'gevent'"),
        ("tornado", "'threads'"),
        ("egg:gunicorn#tornado", "'threads'"),
        ("gunicorn.workers.gtornado.TornadoWorker", "'threads'"),
        ("asgi", "ASGI"),
        ("uvicorn.workers.UvicornWorker", "ASGI"),
        ("uvicorn_worker.UvicornH11Worker", "ASGI"),
    ],
)
def test_classes_that_cannot_be_served_say_what_to_use(raw: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        SETTINGS["worker_class"].parse(raw)


def test_gunicorns_own_classes_are_mapped_and_those_built_on_them_refused() -> None:
    sync = pytest.importorskip("gunicorn.workers.sync")

    class Mine(sync.SyncWorker):  # type: ignore[name-defined, misc]
        pass

    assert SETTINGS["worker_class"].parse(sync.SyncWorker) == "sync"
    with pytest.raises(TypeError, match="built on gunicorn"):
        SETTINGS["worker_class"].parse(Mine)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_post_request_gets_as_many_arguments_as_it_takes(count: int) -> None:
    seen: list[Any] = []
    by_count = {
        2: lambda a, b: seen.extend((a, b)),
        3: lambda a, b, c: seen.extend((a, b, c)),
        4: lambda a, b, c, d: seen.extend((a, b, c, d)),
    }
    SETTINGS["post_request"].parse(by_count[count])(1, 2, 3, 4)
    assert seen == [1, 2, 3, 4][:count]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("tcp", "127.0.0.1", 8000)),
        ("LocalHost:80", Address("tcp", "localhost", 80)),
        ("localhost", Address("tcp", "localhost", 8000)),
        (":0", Address("tcp", "", 0)),
        ("[::1]:9", Address("tcp", "::1", 9)),
        ("[fe80::1%eth0]:9", Address("tcp", "fe80::1%eth0", 9)),
        ("[::]", Address("tcp", "::", 8000)),
        ("tcp://1.2.3.4:5", Address("tcp", "1.2.3.4", 5)),
        ("unix:run/x.sock", Address("unix", path="run/x.sock")),
        ("unix:///run/x", Address("unix", path="/run/x")),
        ("unix:/a:b,c", Address("unix", path="/a:b,c")),
        ("fd://3", Address("fd", fd=3)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8000",
        "::1:8000",
        "[::1",
        "[::1]8000",
        "[]:80",
        "host:",
        "host:-1",
        "host:65536",
        "host:٣",
        "http://host:80",
        "/run/x.sock",
        "unix:",
        "fd://x",
        "fd://",
        "a:1,b:2",
        "a b:1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([], {}),
        (["Shop.Example=a.pem,a.key"], {"shop.example": ("a.pem", "a.key")}),
        (["*.shop.example=a.pem"], {"*.shop.example": ("a.pem", None)}),
        ({"a.b": "x.pem", "c.d": ("y.pem", "y.key")}, {"a.b": ("x.pem", None), "c.d": ("y.pem", "y.key")}),
    ],
)
def test_certificates_by_name(raw: object, expected: object) -> None:
    assert parsers.sni_certificates(raw) == expected


@pytest.mark.parametrize("raw", [["shop.example"], ["=a.pem"], ["a b=x"], ["a.b=x,y,z"], {"a.b": ()}, {"*.": "x"}, 5])
def test_certificates_by_name_that_are_refused(raw: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        parsers.sni_certificates(raw)
