"""The public package `wsgiserv.gunicorn` beside gunicorn itself: names, arguments, results."""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import re
import socket
from datetime import timedelta
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from gevents import needs_gevent_of_gunicorn

import wsgiserv.gunicorn
from wsgiserv.config.gunicorn_compat import GUNICORN_ONLY
from wsgiserv.config.loader import load
from wsgiserv.config.logger_class import parse_logger_class
from wsgiserv.config.settings import SETTINGS
from wsgiserv.config.users_view import cfg_for_users
from wsgiserv.config.worker_class import parse_worker_class
from wsgiserv.gunicorn.app.base import Application, BaseApplication
from wsgiserv.gunicorn.arbiter import Arbiter
from wsgiserv.gunicorn.config import KNOWN_SETTINGS, Config, make_settings
from wsgiserv.gunicorn.workers import base

MODULES = [name for _, name, _ in pkgutil.walk_packages(wsgiserv.gunicorn.__path__, "wsgiserv.gunicorn.")]
# Names that old gunicorns had, and files still import; and what is ours.
OURS = {"PyWSGIWorker", "show", "given", "version"}


def public(module: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


@pytest.mark.parametrize("name", MODULES)
def test_each_name_is_gunicorns(name: str) -> None:
    needs_gevent_of_gunicorn("gevent" if name.endswith("gevent") else "")
    ours, theirs = importlib.import_module(name), importlib.import_module(name.removeprefix("wsgiserv."))
    for key, value in public(ours).items():
        if key in OURS:
            continue
        other = getattr(theirs, key)
        if isinstance(value, FunctionType):
            assert list(inspect.signature(value).parameters) == list(inspect.signature(other).parameters), key
            continue
        for method, function in vars(value).items():
            if method.startswith("_") or method in OURS or not isinstance(function, FunctionType):
                continue
            if name.startswith("wsgiserv.gunicorn.workers") and method == "each_second":  # the server calls it
                continue
            arguments = list(inspect.signature(function).parameters)
            assert arguments == list(inspect.signature(getattr(other, method)).parameters), (key, method)


def test_the_settings_are_gunicorns_and_ours() -> None:
    theirs = {each.name for each in importlib.import_module("gunicorn.config").KNOWN_SETTINGS}
    assert theirs <= set(make_settings())
    assert set(SETTINGS) <= {each.name for each in KNOWN_SETTINGS}
    assert "workers" not in make_settings(ignore=["workers"])


def test_a_config() -> None:
    cfg = Config()
    cfg.set("workers", "3")
    cfg.set("bind", ["127.0.0.1:5", "unix:/run/x"])
    cfg.set("raw_env", "A=1")
    cfg.set("statsd_host", "localhost:8125")
    cfg.set("keepalive", None)
    assert (cfg.workers, cfg.bind, cfg.env) == (3, ["127.0.0.1:5", "unix:/run/x"], {"A": "1"})
    assert cfg.address == [("127.0.0.1", 5), "/run/x"]
    assert cfg.settings["workers"].get() == 3
    assert (cfg.worker_class_str, cfg.is_ssl) == ("sync", False)
    cfg.set("threads", 4)
    assert cfg.worker_class_str == "threads"
    assert cfg.given()[1] == {
        "workers": "3", "bind": ["127.0.0.1:5", "unix:/run/x"], "raw_env": "A=1", "statsd_host": "localhost:8125",
        "threads": 4,
    }  # fmt: skip
    with pytest.raises(AttributeError, match="No configuration setting for: nonsense"):
        cfg.set("nonsense", 1)
    with pytest.raises(ValueError, match=r"workers = 'many' is not accepted\. Accepted: "):
        cfg.set("workers", "many")
    with pytest.raises(AttributeError):
        cfg.workers = 4
    assert cfg.workers == 3
    assert "workers" in str(cfg)


class Program(BaseApplication):
    """Sets what the test says."""

    values: ClassVar[dict[str, Any]] = {}

    def load_config(self) -> None:
        """Set it."""
        for name, value in self.values.items():
            self.cfg.set(name, value)


def read(**values: Any) -> Any:
    made = type("Made", (Program,), {"values": values})()
    return made._read(True, None)


def test_the_configuration_of_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gunicorn.conf.py").write_text("workers = 9\n")
    for name, value in {"GUNICORN_CMD_ARGS": "--workers 7", "PORT": "7777"}.items():
        monkeypatch.setenv(name, value)
    loaded = read(keepalive=3, http_parser="fast", umask="022", tmp_upload_dir="/tmp")
    settings = loaded.settings
    assert (settings.keepalive, settings.workers, settings.umask) == (3.0, 1, 0o22)
    assert (settings.bind, settings.spool_dir) == (("0.0.0.0:7777",), "/tmp")
    assert loaded.sources["keepalive"] == "load_config of Made"
    assert [notice.partition(":")[0] for notice in loaded.notices] == [
        "WS1033 http_parser (load_config of Made) is ignored"
    ]
    assert settings.wsgi_app == settings.proc_name == f"{__name__}:Made.load()"
    loaded = read(certfile="", keyfile="k.pem", chdir=str(tmp_path / "absent"))
    assert [str(fault)[:6] for fault in loaded.faults] == ["WS1011", "WS1013"]


def test_a_value_that_is_refused_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read(workers=-1)
    assert caught.value.code == 2
    assert "wsgiserv: error: workers = -1 is not accepted. Accepted: " in capsys.readouterr().err


def test_an_arbiter_that_replaces_more_is_refused() -> None:
    kind = type("Mine", (Arbiter,), {"spawn_worker": lambda self: None})
    with pytest.raises(RuntimeError, match="Mine replaces spawn_worker of gunicorn's Arbiter"):
        kind(SimpleNamespace(cfg=None))
    assert issubclass(Application, BaseApplication)


@pytest.mark.parametrize(
    "netloc",
    ["127.0.0.1:8000", "localhost", ":80", "[::1]:90", "[::1]", "unix:/tmp/x", "unix:///tmp/x", "fd://3", "0.0.0.0"],
)
def test_addresses(netloc: str) -> None:
    ours, theirs = (importlib.import_module(name).parse_address for name in ("wsgiserv.gunicorn.util", "gunicorn.util"))
    assert ours(netloc) == theirs(netloc)
    assert ours(netloc, "99") == theirs(netloc, "99")


# ---- loggers -----------------------------------------------------------------------------------------------

ENVIRON = {
    "REMOTE_ADDR": "192.0.2.7",
    "REQUEST_METHOD": "GET",
    "RAW_URI": "/a?b=1",
    "PATH_INFO": "/a",
    "QUERY_STRING": "b=1",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_AUTHORIZATION": "Basic YW5uOng=",
    "HTTP_USER_AGENT": 'a "b"',
    "shop.user": "ann",
}


def logger(module: str, **changed: Any) -> Any:
    cfg = cfg_for_users(load(["hello:app"], {}).settings, **changed)
    cfg.__dict__["syslog"] = False
    made = importlib.import_module(module).Logger.__new__(importlib.import_module(module).Logger)
    made.cfg, made.error_log, made.access_log = cfg, logging.getLogger("x.error"), logging.getLogger("x.access")
    return made


def test_atoms_are_gunicorns() -> None:
    response = SimpleNamespace(status="200 OK", sent=7, headers=[("X-A", "1")])
    request = SimpleNamespace(headers=[("USER-AGENT", 'a "b"')])
    took = timedelta(seconds=61, microseconds=2500)
    ours, theirs = (
        logger(module).atoms(response, request, dict(ENVIRON), took)
        for module in ("wsgiserv.gunicorn.glogging", "gunicorn.glogging")
    )
    assert {key: value for key, value in ours.items() if key not in ("i", "aborted")} == theirs


def test_safe_atoms() -> None:
    ours = importlib.import_module("wsgiserv.gunicorn.glogging").SafeAtoms({"a": 'x"y\n', "{x-a}i": "1", "B": 5})
    assert [ours[key] for key in ("a", "{X-A}i", "B", "none", "{none}o")] == [r"x\"y\x0a", "1", 5, "-", "-"]


def test_statsd_counts() -> None:
    from wsgiserv.gunicorn.instrument.statsd import Statsd

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        cfg = cfg_for_users(load(["hello:app"], {}).settings)
        vars(cfg).update(
            statsd_host=receiver.getsockname(), statsd_prefix="shop", dogstatsd_tags="a:b", syslog=False, errorlog=None
        )
        before = logging.getLogger("gunicorn.error").handlers[:]
        made = Statsd(cfg)
        try:
            response = SimpleNamespace(status="404 Not Found", sent=7, headers=[])
            made.access(response, SimpleNamespace(headers=[]), dict(ENVIRON), timedelta(milliseconds=1500))
            made.info("", extra={"metric": "queue", "value": 3, "mtype": "gauge"})
            assert [receiver.recv(200) for _ in range(4)] == [
                b"shop.gunicorn.request.duration:1500.0|ms|#a:b",
                b"shop.gunicorn.requests:1|c|@1.0|#a:b",
                b"shop.gunicorn.request.status.404:1|c|@1.0|#a:b",
                b"shop.queue:3|g|#a:b",
            ]
        finally:
            logging.getLogger("gunicorn.error").handlers[:] = before
            if made.sock is not None:
                made.sock.close()


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("gunicorn.glogging.Logger", None),
        ("gunicorn.glogging:Logger", None),
        ("simple", None),
        ("egg:gunicorn#simple", None),
        (None, None),
        (importlib.import_module("gunicorn.glogging").Logger, None),
        (importlib.import_module("wsgiserv.gunicorn.glogging").Logger, None),
        ("shop.logs:Mine", "shop.logs.Mine"),
        ("statsd", "gunicorn.instrument.statsd.Statsd"),
        (lambda: "shop.logs.Mine", "shop.logs.Mine"),
        (Program, Program),
    ],
)
def test_logger_classes(raw: object, value: object) -> None:
    assert parse_logger_class(raw) == value


@pytest.mark.parametrize("raw", ["nonsense", "egg:shop#mine", 5, "a b.c", lambda: 1 / 0])
def test_logger_classes_that_are_refused(raw: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse_logger_class(raw)


# ---- workers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        ("sync", "SyncWorker", "sync"),
        ("gthread", "ThreadWorker", "threads"),
        ("ggevent", "GeventWorker", "gevent"),
        ("ggevent", "GeventPyWSGIWorker", "gevent"),
    ],
)
def test_the_bases_themselves_are_our_classes(module: str, name: str, kind: str) -> None:
    found = getattr(importlib.import_module(f"wsgiserv.gunicorn.workers.{module}"), name)
    assert parse_worker_class(found) == kind
    assert parse_worker_class(f"wsgiserv.gunicorn.workers.{module}.{name}") == kind
    mine = type("Mine", (found,), {})
    assert parse_worker_class(mine) is mine
    assert mine._why_not() == ""


def test_the_page_lists_what_may_be_replaced() -> None:
    text = Path(wsgiserv.gunicorn.__path__[0]).parents[1].joinpath("docs", "custom-workers.md").read_text()
    section = text.partition("## Classes that were written for gunicorn")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*?) \|", section, re.MULTILINE)
    names = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    assert names == {*base._CALLED, "__init__"}


def test_a_class_on_the_real_one_says_what_to_do() -> None:
    real = importlib.import_module("gunicorn.workers.sync").SyncWorker
    with pytest.raises(
        TypeError, match=r"built on gunicorn's own gunicorn\.workers\.sync\.SyncWorker.*import that name"
    ):
        parse_worker_class(type("Mine", (real,), {}))


def test_the_view_of_users_has_gunicorns_names() -> None:
    cfg = cfg_for_users(load(["hello:app"], {}).settings)
    for each in importlib.import_module("gunicorn.config").KNOWN_SETTINGS:
        if each.name in GUNICORN_ONLY:
            getattr(cfg, each.name)
