"""statsd and syslog in one process: what is sent is what gunicorn's loggers send, called the same way."""

from __future__ import annotations

import importlib
import logging
import logging.config
import os
import re
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wsgiserv.config.settings import Settings
from wsgiserv.errors import ConfigError
from wsgiserv.logs import senders
from wsgiserv.logs.access import open_access_log
from wsgiserv.logs.error import lost_messages, open_error_log, tell_lost_messages
from wsgiserv.logs.error_stream import ErrorStream
from wsgiserv.logs.handlers import DaemonHandler
from wsgiserv.logs.shared import ACCESS
from wsgiserv.logs.statsd import StatsdClient

ENVIRON: dict[str, Any] = {
    "REMOTE_ADDR": "192.0.2.7",
    "REQUEST_METHOD": "GET",
    "RAW_URI": "/x",
    "PATH_INFO": "/x",
    "QUERY_STRING": "",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgiserv.request_id": "id-1",
}


pytestmark = pytest.mark.usefixtures("loggers_as_before")


class Receiver:
    """A daemon at a UDP port of the loopback."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.socket.getsockname()
        self.host = f"127.0.0.1:{self.address[1]}"

    def taken(self) -> list[bytes]:
        """Return what has been sent so far."""
        # On the loopback a datagram is in the receiver's queue when send(2) returns.
        self.socket.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.socket.recv(1 << 16))
        except BlockingIOError:
            return found


@pytest.fixture
def daemon() -> Iterator[Receiver]:
    """A receiver for what the server sends."""
    receiver = Receiver()
    with receiver.socket:
        yield receiver


# ---- statsd ----------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any], object]] = {
    "gauge": lambda log: log.gauge("a", 1.5),
    "increment": lambda log: log.increment("a", 2),
    "increment sampled": lambda log: log.increment("a.b", 1, 0.5),
    "decrement": lambda log: log.decrement("a", 2),
    "timer": lambda log: log.timer("a", 30),
    "histogram": lambda log: log.histogram("a", 7),
    "extra gauge": lambda log: log.info("", extra={"metric": "m", "value": 0, "mtype": "gauge"}),
    "extra counter": lambda log: log.debug("text", extra={"metric": "m", "value": 1, "mtype": "counter"}),
    "extra histogram": lambda log: log.log(20, "x", extra={"metric": "m", "value": 1, "mtype": "histogram"}),
    "extra timer": lambda log: log.log("info", "", extra={"metric": "m", "value": 9, "mtype": "timer"}),
    "extra of no type": lambda log: log.info("x", extra={"metric": "m", "value": 9, "mtype": "other"}),
    "extra without a value": lambda log: log.info("x", extra={"metric": "m", "mtype": "gauge"}),
    "extra of a warning": lambda log: log.warning("x", extra={"metric": "m", "value": 9, "mtype": "gauge"}),
    "info": lambda log: log.info("x %s", 1),
    "warning": lambda log: log.warning("x"),
    "error": lambda log: log.error("x", exc_info=True),
    "critical": lambda log: log.critical("x"),
    "exception": lambda log: log.exception("x"),
}


def theirs(daemon: Receiver, prefix: str, tags: str) -> Any:
    """gunicorn's logger, without the handlers of its `setup`."""
    kind = importlib.import_module("gunicorn.instrument.statsd").Statsd
    made = kind.__new__(kind)
    made.error_log = logging.Logger("unused")
    made.error_log.addHandler(logging.NullHandler())
    made.prefix, made.dogstatsd_tags = prefix and f"{prefix}.", tags
    made.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.sock.connect(daemon.address)
    return made


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("prefix", "tags"), [("", ""), ("shop", "env:test,a:b")])
def test_the_log_sends_what_gunicorns_sends(
    daemon: Receiver, tmp_path: Path, call: Callable[[Any], object], prefix: str, tags: str
) -> None:
    model = theirs(daemon, prefix, tags)
    with model.sock:
        call(model)
    expected = daemon.taken()
    log = open_error_log(
        Settings(
            errorlog=str(tmp_path / "e"),
            loglevel="critical",  # which the metrics do not obey
            statsd_host=daemon.host,
            statsd_prefix=prefix,
            dogstatsd_tags=tags,
        )
    )
    call(log)
    assert daemon.taken() == expected
    # The stand-in of logger classes.
    stand_in = importlib.import_module("wsgiserv.gunicorn.instrument.statsd").Statsd
    made = stand_in.__new__(stand_in)
    made.error_log = model.error_log
    made._client = StatsdClient(daemon.address, prefix, "")
    made.prefix, made.sock, made.dogstatsd_tags = made._client.prefix, made._client.sock, tags
    call(made)
    assert daemon.taken() == expected


def test_lines_are_logged_as_ever(daemon: Receiver, tmp_path: Path) -> None:
    path = tmp_path / "e"
    log: Any = open_error_log(Settings(errorlog=str(path), statsd_host=daemon.host))
    callers = []
    handler = logging.Handler()
    handler.emit = lambda record: callers.append((record.filename, record.funcName))  # type: ignore[method-assign]
    log.addHandler(handler)
    log.info("one %s", 1)
    log.debug("not shown")
    log.log("warning", "two")
    log.error("three")
    try:
        raise ValueError("four")
    except ValueError as error:
        log.exception("four")
        log.error("five", exc_info=error)
    log.info("", extra={"metric": "m", "value": 1, "mtype": "gauge"})
    text = path.read_text()
    assert re.findall(r"\[([A-Z]+)\] (.*)", text) == [
        ("INFO", "one 1"), ("WARNING", "two"), ("ERROR", "three"), ("ERROR", "four"), ("ERROR", "five"),
    ]  # fmt: skip
    assert text.count("ValueError: four") == 2
    assert set(callers) == {(os.path.basename(__file__), "test_lines_are_logged_as_ever")}
    # The server logs an application's exception by its object.
    assert daemon.taken() == [
        b"gunicorn.log.error:1|c|@1.0",
        b"gunicorn.log.exception:1|c|@1.0",
        b"gunicorn.log.exception:1|c|@1.0",
        b"m:1|g",
    ]
    assert (log.prefix, log.dogstatsd_tags, log.sock.getpeername()) == ("", "", daemon.address)


@pytest.mark.parametrize("accesslog", [None, "access"])
def test_requests_are_counted(daemon: Receiver, tmp_path: Path, accesslog: str | None) -> None:
    path = str(tmp_path / accesslog) if accesslog else None
    settings = Settings(errorlog="/dev/null", accesslog=path, access_log_format="%(s)s", statsd_host=daemon.host)
    log = open_access_log(settings, open_error_log(settings))
    assert log is not None
    log.log(ENVIRON, 404, [], 5, 1.2345678)
    log.log({}, 400, [], 0, 0.0)  # no request line: gunicorn counts none
    log.look()
    log.log(ENVIRON, 200, [], 5, 0.000001, False, 7)
    expected = [
        b"gunicorn.request.duration:1234.568|ms",
        b"gunicorn.requests:1|c|@1.0",
        b"gunicorn.request.status.404:1|c|@1.0",
    ]
    found = daemon.taken()
    assert found[:3] == expected
    assert found[3:] == [
        b"gunicorn.request.duration:0.001|ms", expected[1], b"gunicorn.request.status.200:1|c|@1.0"
    ]  # fmt: skip
    model = theirs(daemon, "", "")
    model.cfg = SimpleNamespace()
    model._access_log_enabled = False
    type(model).access(model, SimpleNamespace(status="404 Not Found"), None, ENVIRON, timedelta(seconds=1.2345678))
    model.sock.close()
    assert daemon.taken() == expected
    log.close()
    if path is not None:
        assert Path(path).read_text() == "404\n400\n200\n"


def test_nothing_is_sent_or_made_without_a_host(tmp_path: Path) -> None:
    settings = Settings(errorlog=str(tmp_path / "e"))
    log: Any = open_error_log(settings)
    assert open_access_log(settings, log) is None
    assert not hasattr(log, "increment")


def test_another_configuration_sends_elsewhere(daemon: Receiver) -> None:
    other = Receiver()
    with other.socket:
        open_error_log(Settings(errorlog="/dev/null", statsd_host=daemon.host)).warning("x")
        open_error_log(Settings(errorlog="/dev/null", statsd_host=other.host, statsd_prefix="b.")).warning("x")
        assert (daemon.taken(), other.taken()) == (
            [b"gunicorn.log.warning:1|c|@1.0"],
            [b"b.gunicorn.log.warning:1|c|@1.0"],
        )
        open_error_log(Settings(errorlog="/dev/null")).warning("x")
        assert (daemon.taken(), other.taken()) == ([], [])


def test_a_statsd_that_is_away_is_told_once(tmp_path: Path) -> None:
    path, where = tmp_path / "e", f"unix://{tmp_path / 'none'}"
    log = open_error_log(Settings(errorlog=str(path), statsd_host=where))
    for _ in range(3):
        log.warning("x")
    assert re.findall(r"WS1842 .*", path.read_text()) == [
        f"WS1842 statsd: {where}: No such file or directory: metrics are lost (told once per process)"
    ]
    assert path.read_text().count("] x\n") == 3


def test_a_unix_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "s"))
        receiver.settimeout(10)
        open_error_log(Settings(errorlog="/dev/null", statsd_host=f"unix://{tmp_path / 's'}")).warning("x")
        assert receiver.recv(99) == b"gunicorn.log.warning:1|c|@1.0"


# ---- syslog ----------------------------------------------------------------------------------------------------


def syslog_settings(daemon: Receiver, tmp_path: Path, **more: Any) -> Settings:
    defaults: dict[str, Any] = {"errorlog": str(tmp_path / "e"), "access_log_format": "%(m)s %(U)s"}
    return Settings(**{**defaults, "syslog": True, "syslog_addr": f"udp://{daemon.host}", **more})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"syslog_prefix": "shop"},
        {"syslog_facility": "LOCAL7"},
        {"proc_name": "shop:app"},
        {"disable_redirect_access_to_syslog": True},
        {"loglevel": "error"},
    ],
)
def test_syslog_gets_what_gunicorn_sends(daemon: Receiver, tmp_path: Path, more: dict[str, Any]) -> None:
    settings = syslog_settings(daemon, tmp_path, **more)
    log = open_error_log(settings)
    access = open_access_log(settings, log)
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("a %s", level)
    if access is not None:
        access.log(ENVIRON, 200, [], 5, 0.1)
    ours = daemon.taken()
    # gunicorn's, with loggers of its own.
    model: Any = importlib.import_module("gunicorn.glogging").Logger
    cfg = importlib.import_module("gunicorn.config").Config()
    for name, value in {**more, "syslog_addr": settings.syslog_addr}.items():
        cfg.set(name, value)
    cfg.set("default_proc_name", "wsgiserv")
    made = model.__new__(model)
    made.error_log, made.access_log = logging.Logger("error"), logging.Logger("access")
    made.error_log.setLevel(settings.loglevel.upper())
    made._set_syslog_handler(made.error_log, cfg, model.syslog_fmt, "error")
    if not cfg.disable_redirect_access_to_syslog:
        made._set_syslog_handler(made.access_log, cfg, model.syslog_fmt, "access")
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(made.error_log, level)("a %s", level)
    made.access_log.info("GET /x")
    for each in (*made.error_log.handlers, *made.access_log.handlers):
        each.close()
    assert ours == daemon.taken()
    assert (access is None) == bool(more.get("disable_redirect_access_to_syslog"))
    assert "a critical" in (tmp_path / "e").read_text(), "the file has the lines, too"


def test_the_access_log_goes_to_both(daemon: Receiver, tmp_path: Path) -> None:
    settings = syslog_settings(daemon, tmp_path, accesslog=str(tmp_path / "a"))
    access = open_access_log(settings, open_error_log(settings))
    assert access is not None
    access.log(ENVIRON, 200, [], 5, 0.1)
    access.flush()
    assert (tmp_path / "a").read_text() == "GET /x\n"
    assert [message[:4] for message in daemon.taken()] == [b"<14>"]
    access.close()


def test_wsgi_errors_and_what_cannot_be_formatted(daemon: Receiver, tmp_path: Path) -> None:
    log = open_error_log(syslog_settings(daemon, tmp_path))
    ErrorStream(log).write("said\n")
    log.warning("%d", "no number")
    log.warning("\x1b[2J")
    said, broken, escaped = daemon.taken()
    assert said.endswith(b"] said\0")
    assert b"a log message could not be formatted" in broken
    assert escaped.endswith(rb"] \x1b[2J" + b"\0")


def test_a_reload_ends_and_moves_it(daemon: Receiver, tmp_path: Path) -> None:
    other = Receiver()
    with other.socket:
        open_error_log(syslog_settings(daemon, tmp_path)).info("x")
        open_error_log(syslog_settings(other, tmp_path)).info("x")
        assert (len(daemon.taken()), len(other.taken())) == (1, 1)
        with pytest.raises(ConfigError):
            open_error_log(syslog_settings(daemon, tmp_path, logconfig="absent.ini"))
        logging.getLogger("wsgiserv.error").info("as before")
        assert (len(daemon.taken()), len(other.taken())) == (0, 1)
        log = open_error_log(Settings(errorlog=str(tmp_path / "e")))
        log.info("x")
        assert (len(daemon.taken()), len(other.taken())) == (0, 0)
        assert [type(each).__name__ for each in log.handlers] == ["_ErrorLogHandler"]
        assert ACCESS.handlers == []


def test_the_applications_dict_config_does_not_end_it(daemon: Receiver, tmp_path: Path) -> None:
    log = open_error_log(syslog_settings(daemon, tmp_path))
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})  # closes all handlers
    log.info("x")
    assert len(daemon.taken()) == 1


def test_a_logconfig_that_names_the_log_replaces_it(daemon: Receiver, tmp_path: Path) -> None:
    config = {"version": 1, "loggers": {"gunicorn.error": {"handlers": ["console"]}}}
    log = open_error_log(syslog_settings(daemon, tmp_path, logconfig_dict=config))
    log.info("x")
    assert daemon.taken() == []  # as under gunicorn


def test_a_syslog_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(senders, "RETRY_S", 0.0)
    path, where = tmp_path / "s", f"unix://{tmp_path / 's'}"
    log = open_error_log(Settings(errorlog=str(tmp_path / "e"), syslog=True, syslog_addr=where))
    before = lost_messages()
    log.info("1")
    log.info("2")
    assert lost_messages() == before + 2
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))
        receiver.settimeout(10)
        log.info("3")
        assert receiver.recv(999).endswith(b"] 3\0")
        for _ in range(3):
            tell_lost_messages()
    assert re.findall(r"WS184.*", (tmp_path / "e").read_text()) == [
        f"WS1840 syslog: {where}: No such file or directory: lines are lost until it takes them again (told once)",
        f"WS1841 syslog: {where}: takes lines again: 2 lines are lost",
    ]
    assert lost_messages() == before + 2
    # It is restarted, with the other type of socket.
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as receiver:
        receiver.bind(str(path))
        receiver.listen()
        receiver.settimeout(10)
        log.info("4")
        with receiver.accept()[0] as connection:
            connection.settimeout(10)
            assert connection.recv(999).endswith(b"] 4\0")
    assert lost_messages() == before + 2
    log = open_error_log(Settings(errorlog=str(tmp_path / "e"), syslog=True, syslog_addr=where))
    assert lost_messages() == before + 2, "a reload forgets none"
    for handler in log.handlers:
        if isinstance(handler, DaemonHandler):
            handler.close_in_child()
    log.info("a child of the application can still log")
    assert lost_messages() == before + 3
