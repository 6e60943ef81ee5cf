"""syslog and statsd: servers send what gunicorn sends, and a daemon that is away or stuck costs no time."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient
from server import Start, run, wait_until

APP = """
import os, signal

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/boom":
        raise ValueError("broken on purpose")
    if path == "/die":
        os.kill(os.getpid(), signal.SIGKILL)
    start_response("404 Not Found" if path == "/absent" else "200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""

HOOKS = """
def on_starting(server):
    server.log.info("", extra={"metric": "shop.start", "value": 1, "mtype": "counter"})

def post_worker_init(worker):
    worker.log.info("metric", extra={"metric": "shop.queue", "value": 3, "mtype": "gauge"})
    worker.log.increment("shop.init", 2)
"""


class Daemon:
    """Collects the datagrams that come to a socket."""

    def __init__(self, family: int, address: Any) -> None:
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.found: list[str] = []
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        while message := self.socket.recv(1 << 16):
            self.found.append(message.decode())

    @property
    def host(self) -> str:
        """Its address for a configuration."""
        name = self.socket.getsockname()
        return f"unix://{name}" if isinstance(name, str) else f"127.0.0.1:{name[1]}"

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Return the messages that match, when there are so many."""
        wanted = re.compile(pattern, re.DOTALL)

        def matching() -> list[str]:
            found = [message for message in list(self.found) if wanted.fullmatch(message)]
            return found if len(found) >= count else []

        return wait_until(matching, f"{count} of {pattern} among {self.found}")  # type: ignore[no-any-return]

    def close(self) -> None:
        """End it."""
        with socket.socket(self.socket.family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", self.socket.getsockname())
        self._thread.join(10)
        self.socket.close()


Listen = Callable[..., Daemon]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Make daemons, at a UDP port or at the path of a Unix socket."""
    made: list[Daemon] = []

    def begin(path: Path | None = None) -> Daemon:
        where = (socket.AF_INET, ("127.0.0.1", 0)) if path is None else (socket.AF_UNIX, str(path))
        made.append(Daemon(*where))
        return made[-1]

    yield begin
    for each in made:
        each.close()


def ask(server: Any, target: str = "/", status: int = 200) -> None:
    with RawClient(server.address) as client:
        assert client.get(target, headers="Connection: close\r\n").status == status


def ask_and_die(server: Any) -> None:
    with RawClient(server.address) as client:
        client.send(b"GET /die HTTP/1.1\r\nHost: x\r\n\r\n")
        client.expect_close()


REQUEST = r"gunicorn\.(requests:1\|c\|@1\.0|request\.duration:[\d.]+\|ms)"


def test_the_metrics(listen: Listen, start: Start) -> None:
    statsd = listen()
    args = ("-c", "gun.py", "--workers", "2", "--statsd-host", statsd.host, "--statsd-prefix", "web")
    more = ("--dogstatsd-tags", "env:test", "--enable-backlog-metric")
    files = {"shop.py": APP, "gun.py": HOOKS}
    server = start("shop:app", *args, *more, files=files, expect=("WS1691", "Traceback"))
    for target, status in (("/", 200), ("/absent", 404), ("/boom", 500)):
        ask(server, target, status)
    for pattern, count in {
        r"web\.gunicorn\.workers:2\|g": 1,
        r"web\.gunicorn\.backlog:\d+\|h": 1,
        r"web\.gunicorn\.requests:1\|c\|@1\.0": 3,
        r"web\.gunicorn\.request\.duration:\d+\.\d+\|ms": 3,
        r"web\.gunicorn\.request\.status\.200:1\|c\|@1\.0": 1,
        r"web\.gunicorn\.request\.status\.404:1\|c\|@1\.0": 1,
        r"web\.gunicorn\.request\.status\.500:1\|c\|@1\.0": 1,
        r"web\.gunicorn\.log\.exception:1\|c\|@1\.0": 1,
        r"web\.shop\.start:1\|c\|@1\.0": 1,
        r"web\.shop\.queue:3\|g": 2,
        r"web\.shop\.init:2\|c\|@1\.0": 2,
    }.items():
        statsd.wait_for(rf"{pattern}\|#env:test", count)
    server.send_signal(signal.SIGTTIN)
    statsd.wait_for(r"web\.gunicorn\.workers:3\|g.*")
    assert server.stop() == 0
    assert len(statsd.wait_for(r"web\.gunicorn\.requests:.*")) == 3
    assert "shop.start" not in server.log.text, "an empty message is a metric alone"


def test_both_logs_in_syslog(listen: Listen, start: Start) -> None:
    syslog = listen()
    args = ("--log-syslog", "--log-syslog-to", f"udp://{syslog.host}", "--log-syslog-facility", "local3")
    more = ("--access-logformat", "%(m)s %(U)s %(s)s")
    server = start("shop:app", *args, *more, files={"shop.py": APP}, expect=("WS1691", "Traceback"))
    ask(server)
    ask(server, "/boom", 500)
    [line] = syslog.wait_for(r"<158>gunicorn\.shop\.app\.access: \[\d+\] GET / 200\0")
    pid = int(re.findall(r"\[(\d+)\]", line)[0])
    syslog.wait_for(rf"<155>gunicorn\.shop\.app\.error: \[{pid}\] WS1691 .*\nValueError: broken on purpose\0")
    syslog.wait_for(rf"<158>gunicorn\.shop\.app\.error: \[{server.pid}\] listening on .*")
    assert server.stop() == 0
    syslog.wait_for(rf"<158>gunicorn\.shop\.app\.error: \[{server.pid}\] stopped .*")
    assert "listening on" in server.log.text
    assert server.out.text == ""


def test_a_reload_sends_elsewhere(listen: Listen, start: Start, tmp_path: Path) -> None:
    first, second = listen(), listen(tmp_path / "s")

    def config(daemon: Daemon) -> str:
        address = daemon.host if daemon.host.startswith("unix") else f"udp://{daemon.host}"
        return f"syslog = True\nsyslog_addr = {address!r}\nstatsd_host = {daemon.host!r}\nsyslog_prefix = 'shop'\n"

    server = start("shop:app", "-c", "gun.py", files={"shop.py": APP, "gun.py": config(first)})
    ask(server)
    first.wait_for(r"<14>gunicorn\.shop\.access: .*GET / .*")
    first.wait_for(REQUEST, 2)
    (tmp_path / "gun.py").write_text(config(second))
    server.reload()
    second.wait_for(r"<14>gunicorn\.shop\.error: \[\d+\] reloaded.*")
    second.wait_for(r"gunicorn\.workers:1\|g")
    before = len(first.found)
    ask(server)
    second.wait_for(r"<14>gunicorn\.shop\.access: .*GET / .*")
    second.wait_for(REQUEST, 2)
    (tmp_path / "gun.py").write_text("syslog = True\nsyslog_addr = 'nowhere'\n")
    server.expect("WS1310")
    server.send_signal(signal.SIGHUP)
    second.wait_for(r"<11>gunicorn\.shop\.error: .*WS1310 .*WS1058 syslog_addr = 'nowhere'.*")
    (tmp_path / "gun.py").write_text("")
    server.reload()
    ask(server)
    assert server.stop() == 0
    assert len(first.found) == before
    assert not [message for message in second.found if "stopped" in message]


def test_daemons_that_are_away_and_come(listen: Listen, start: Start, tmp_path: Path) -> None:
    logs, stats = tmp_path / "logs", tmp_path / "stats"
    args = ("--log-syslog", "--log-syslog-to", f"unix://{logs}", "--statsd-host", f"unix://{stats}")
    server = start("shop:app", *args, files={"shop.py": APP}, expect=("WS1840", "WS1841", "WS1842"))
    began = time.monotonic()
    for _ in range(20):
        ask(server)
    assert time.monotonic() - began < 10
    server.wait_for_log(r"WS1840 syslog: unix://\S+logs: No such file or directory: lines are lost")
    server.wait_for_log(r"WS1842 statsd: unix://\S+stats: No such file or directory: metrics are lost")
    syslog, statsd = listen(logs), listen(stats)

    def is_counted() -> bool:
        ask(server)
        return "gunicorn.requests:1|c|@1.0" in statsd.found and "GET / " in "".join(syslog.found)

    wait_until(is_counted, "the daemons are found")
    server.wait_for_log(r"WS1841 syslog: unix://\S+logs: takes lines again: \d+ lines? (is|are) lost")
    assert len(re.findall("WS1842", server.log.text)) <= 2, "once in a process"
    assert server.stop() == 0


def test_a_stream_to_syslog_each_process_has_its_own(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(15)
        port = listener.getsockname()[1]
        args = ("--log-syslog", "--log-syslog-to", f"tcp://127.0.0.1:{port}", "--access-logformat", "%(U)s")
        server = start("shop:app", *args, files={"shop.py": APP})
        texts: dict[int, bytes] = {}
        ask(server, "/one")

        def collect() -> bool:
            listener.settimeout(0.05)
            try:
                connection = listener.accept()[0]
                connection.settimeout(0.05)
                connections.append(connection)
                texts[connection.fileno()] = b""
            except TimeoutError:
                pass
            for each in connections:
                try:
                    texts[each.fileno()] += each.recv(1 << 16)
                except TimeoutError:
                    pass
            return b"] /one\0" in b"".join(texts.values())

        connections: list[socket.socket] = []
        try:
            wait_until(collect, "the line")
            assert server.stop() == 0
            wait_until(lambda: collect() and b"] stopped" in b"".join(texts.values()), "the last line")
        finally:
            for each in connections:
                each.close()
        for text in texts.values():
            pids = set(re.findall(rb"\.(?:error|access): \[(\d+)\]", text))
            assert len(pids) == 1
            assert all(part.startswith(b"<") for part in text.split(b"\0")[:-1])


@contextmanager
def _deaf() -> Iterator[int]:
    """Listen and never accept nor read."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]


def test_a_syslog_that_does_not_read_holds_nobody_up(start: Start) -> None:
    with _deaf() as port:
        args = (
            "--log-syslog",
            "--log-syslog-to",
            f"tcp://127.0.0.1:{port}",
            "--access-logformat",
            "%(s)s" + "x" * 60_000,
        )
        server = start("shop:app", *args, files={"shop.py": APP}, expect=("WS1840",))
        with RawClient(server.address) as client:
            slowest = 0.0
            for _ in range(150):
                began = time.monotonic()
                assert client.get("/").status == 200
                slowest = max(slowest, time.monotonic() - began)
        assert slowest < 5
        server.wait_for_log(r"WS1840 syslog: tcp://127\.0\.0\.1:\d+: nothing is read there: lines are lost")
        assert server.stop() == 0


def test_a_request_that_is_lost_is_counted(listen: Listen, start: Start) -> None:
    statsd = listen()
    server = start("shop:app", "--statsd-host", statsd.host, files={"shop.py": APP}, expect=("WS1209", "Traceback"))
    ask_and_die(server)
    statsd.wait_for(r"gunicorn\.request\.status\.0:1\|c\|@1\.0")
    ask(server)
    statsd.wait_for(r"gunicorn\.request\.status\.200:1\|c\|@1\.0")


def test_with_preload_and_by_variables(listen: Listen, start: Start) -> None:
    statsd, syslog = listen(), listen()
    env = {
        "WSGISERV_STATSD_HOST": statsd.host,
        "WSGISERV_SYSLOG": "true",
        "WSGISERV_SYSLOG_ADDR": f"udp://{syslog.host}",
    }
    server = start("shop:app", "--preload", files={"shop.py": APP}, env=env)
    ask(server)
    statsd.wait_for(REQUEST, 2)
    syslog.wait_for(r"<14>gunicorn\.shop\.app\.access: .*")


def test_the_logger_class_of_gunicorn_sends_the_same(listen: Listen, start_unclassed: Start) -> None:
    statsd = listen()
    config = HOOKS + f"logger_class = 'gunicorn.instrument.statsd.Statsd'\nstatsd_host = {statsd.host!r}\n"
    server = start_unclassed("shop:app", "-c", "gun.py", files={"shop.py": APP, "gun.py": config})
    ask(server)
    statsd.wait_for(REQUEST, 2)
    statsd.wait_for(r"gunicorn\.workers:1\|g")
    statsd.wait_for(r"shop\.queue:3\|g")


def test_a_logger_class_of_ones_own_gets_syslog(listen: Listen, start_unclassed: Start) -> None:
    syslog = listen()
    config = f"""
from gunicorn.glogging import Logger

class Shop(Logger):
    syslog_fmt = "shop %(message)s"

logger_class = Shop
syslog = True
syslog_addr = "udp://{syslog.host}"
access_log_format = "%(U)s"
"""
    server = start_unclassed("shop:app", "-c", "gun.py", files={"shop.py": APP, "gun.py": config})
    ask(server)
    syslog.wait_for(r"<14>gunicorn\.shop\.app\.access: shop /\0")


def test_a_check_sends_nothing(listen: Listen, tmp_path: Path) -> None:
    daemon = listen()
    (tmp_path / "shop.py").write_text(APP)
    args = ("--log-syslog", "--log-syslog-to", f"udp://{daemon.host}", "--statsd-host", daemon.host)
    done = run(["--check-config", *args, "-b", "127.0.0.1:0", "shop:app"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert daemon.found == []
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".sock")]
