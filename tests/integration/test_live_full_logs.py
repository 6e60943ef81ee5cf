"""Logs that nothing takes: full pipes, FIFOs without a reader, full disks, a stopped terminal (issue 12, part 6)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient
from server import DEADLINE_S, Server, Start, is_alive, wait_until

from wsgiserv.ctl.commands import main

# Runs the server with one descriptor as its standard output and standard error.
_ONTO = "import os, sys\nfd = int(sys.argv[1])\nos.dup2(fd, 1)\nos.dup2(fd, 2)\nos.execv(sys.argv[2], sys.argv[2:])"
# What a request may take at most while a log is stuck; it takes a few milliseconds.
PROMPT_S = 2.0
LINE = re.compile(
    r'\[[^]]+\] \[\d+\] \[[A-Z]+\] .*|127\.0\.0\.1 - - \[[^]]+\] "(?:GET /\S* HTTP/1\.1|-)" \d{3} \d+ "-" "-"'
    r"|Traceback \(most recent call last\):|  .*|\w+(Error|Exception): .*|line \d+|back\d|second line|"
)


class Pipe:
    """A pipe whose reader sleeps until it is told to read."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 65536)

    def fill(self) -> None:
        """Leave room for nothing."""
        os.set_blocking(self.writer, False)
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.writer, b"\n" * size)
        os.set_blocking(self.writer, True)

    def read_until(self, pattern: str) -> str:
        """Read until the text has a match."""
        return read_until(self.reader, pattern)

    def close(self) -> None:
        """Close what is open."""
        for fd in (self.reader, self.writer):
            with contextlib.suppress(OSError):
                os.close(fd)


def read_until(fd: int, pattern: str, deadline_s: float = DEADLINE_S) -> str:
    """Read from ``fd`` until the text has a match; fail at the deadline."""
    text, end = "", time.monotonic() + deadline_s
    while not re.search(pattern, text):
        left_s = end - time.monotonic()
        assert left_s > 0, f"no {pattern!r} in {text[-2000:]!r}"
        if select.select([fd], [], [], left_s)[0]:
            data = os.read(fd, 65536)
            assert data, f"the end, and no {pattern!r} in {text[-2000:]!r}"
            text += data.decode()
    return text


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def begin_onto(start: Start, fd: int, *args: str, **rest: Any) -> Server:
    """Start a server whose standard output and standard error are ``fd``."""
    wrap = (sys.executable, "-I", "-S", "-c", _ONTO, str(fd))
    server = start("brokenlogapps:app", *args, wrap=wrap, pass_fds=(fd,), **rest)
    with RawClient(server.address) as client:
        assert client.get("/").status == 200  # it has started
    return server


def ask(server: Server, number: int, target: str = "/log?line%20{}") -> None:
    """Send so many requests that log something, each answered promptly, on connections of their own."""
    for each in range(number):
        began = time.monotonic()
        with RawClient(server.address) as client:
            assert client.get(target.format(each)).status == 200
        assert time.monotonic() - began < PROMPT_S, f"request {each} has waited for a log"


def crash(server: Server) -> None:
    """Have a traceback logged, and a refusal."""
    with RawClient(server.address) as client:
        assert client.get("/crash").status == 500
    with RawClient(server.address) as client:
        client.send(b"BAD\r\n\r\n")
        assert client.read_response().status == 400


def stop(server: Server, number: int = signal.SIGTERM) -> None:
    """Stop the server; nothing may wait for a reader."""
    began = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - began < DEADLINE_S / 2


@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_full_pipe_as_stderr_and_stdout(start: Start, pipe: Pipe, preload: bool) -> None:
    pipe.fill()
    args = ["-w", "2", "--access-logfile", "-", *(["--preload"] if preload else [])]
    server = begin_onto(start, pipe.writer, *args)
    ask(server, 60)
    crash(server)
    assert os.get_blocking(pipe.writer), "the flags of the shell's pipe are the shell's"
    workers = server.workers()
    os.kill(workers[-1], signal.SIGKILL)  # the master writes a report
    wait_until(lambda: set(server.workers()) - set(workers) and len(server.workers()) >= 2, "another worker")
    server.send_signal(signal.SIGUSR1)
    server.send_signal(signal.SIGHUP)
    ask(server, 10)
    text = pipe.read_until(r"messages? (is|are) lost")
    ask(server, 1, "/log?back{}")
    text += pipe.read_until(r"back0\n")
    torn = [line for line in text.splitlines() if not LINE.fullmatch(line)]
    assert not torn, torn[:5]
    pipe.fill()
    ask(server, 5)
    stop(server)


def test_a_pipe_that_fills_up(start: Start, pipe: Pipe) -> None:
    """The first lines are taken whole, the rest is counted; all of the access log's are there in the end."""
    server = begin_onto(start, pipe.writer, "--access-logfile", "-", "--log-level", "warning")
    number = 400
    ask(server, number, "/log?" + "x" * 150 + "{}")
    text = pipe.read_until(r"messages? (is|are) lost")
    ask(server, 1, "/log?back{}")
    text += pipe.read_until(r"/log\?back0 ")

    def told() -> tuple[int, int]:
        lines = text.splitlines()
        written = sum(line.startswith("x" * 150) for line in lines) + lines.count("second line")
        # One alone may be lost behind the others, and is told a moment later.
        lost = sum(int(match[1]) for match in re.finditer(r"(\d+) messages? (?:is|are) lost", text))
        return written, written + lost

    end = time.monotonic() + DEADLINE_S
    while told()[1] < 2 * number + 1 and time.monotonic() < end:
        if select.select([pipe.reader], [], [], 0.1)[0]:
            text += os.read(pipe.reader, 65536).decode()
    written, total = told()
    assert 0 < written < 2 * number
    assert total == 2 * number + 1
    assert sum("GET /log?x" in line for line in text.splitlines()) == number


def test_more_than_waits_is_lost_and_told(start: Start, pipe: Pipe) -> None:
    """1 MiB of the access log waits; what is beyond is counted, and `wsgiservctl status` says so."""
    pipe.fill()
    # Within PIPE_BUF: of a longer line another process's may come in the middle.
    form = "%(q)s " + "y" * 4000
    server = begin_onto(start, pipe.writer, "--access-logfile", "-", "--access-logformat", form)
    with RawClient(server.address) as client:
        for number in range(400):
            client.get(f"/?{number}")
    text = pipe.read_until(r"access log is written again; \d+ lines are lost")
    with RawClient(server.address) as client:
        client.get("/?last")
    text += pipe.read_until(r"last y{4000}\n")
    lost = sum(int(number) for number in re.findall(r"again; (\d+) lines", text))
    kept = [int(number) for number in re.findall(r"^(\d+) y{4000}$", text, re.MULTILINE)]
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert len(kept) + lost == 400
    stop(server)


def test_a_reader_that_goes_away(start: Start, pipe: Pipe) -> None:
    server = begin_onto(start, pipe.writer, "--access-logfile", "-")
    pipe.read_until(r"ready: ")
    os.close(pipe.reader)
    ask(server, 30)
    crash(server)
    server.send_signal(signal.SIGUSR1)
    server.send_signal(signal.SIGHUP)
    ask(server, 10)
    stop(server)


@pytest.mark.parametrize("args", [[], ["--preload"], ["--capture-output"]], ids=["", "preload", "capture"])
def test_fifos_without_a_reader(start: Start, tmp_path: Path, args: list[str]) -> None:
    """Nobody reads at the start; one that comes gets what the pipe holds, one that comes back what is new."""
    for name in ("error.fifo", "access.fifo"):
        os.mkfifo(tmp_path / name)
    server = start("brokenlogapps:app", "--error-logfile", "error.fifo", "--access-logfile", "access.fifo", *args)
    ask(server, 30)
    crash(server)
    if "--capture-output" in args:
        ask(server, 400, "/print?{}")
    reader = os.open(tmp_path / "error.fifo", os.O_RDONLY)
    text = read_until(reader, "line 0\n" if "--capture-output" not in args else "messages are lost")
    os.close(reader)
    ask(server, 10)
    server.send_signal(signal.SIGUSR1)
    ask(server, 1, "/log?back{}")
    reader = os.open(tmp_path / "error.fifo", os.O_RDONLY)
    text += read_until(reader, "back0\n")
    os.close(reader)
    reader = os.open(tmp_path / "access.fifo", os.O_RDONLY)
    access = read_until(reader, r"back0 ")
    os.close(reader)
    assert "Traceback" in text
    assert access.count('"GET /log?line%20') == 40
    stop(server)


def test_a_terminal_that_is_stopped(start: Start) -> None:
    """^S, and ^Q at last."""
    master, slave = pty.openpty()
    try:
        server = begin_onto(start, slave, "--access-logfile", "-")
        ask(server, 1)
        termios.tcflow(slave, termios.TCOOFF)
        ask(server, 300, "/log?" + "x" * 200 + "{}")
        crash(server)
        termios.tcflow(slave, termios.TCOON)
        text = read_until(master, "messages are lost")
        ask(server, 1, "/log?back{}")
        text += read_until(master, r"\bback0\r\n")
        assert os.get_blocking(slave)
        torn = [
            line
            for line in text.replace("\r", "").splitlines()
            if not LINE.fullmatch(line) and not re.fullmatch(r"x{200}\d+|back0|second line", line)
        ]
        assert not torn, torn[:5]
        termios.tcflow(slave, termios.TCOOFF)
        ask(server, 3)
        stop(server)
    finally:
        os.close(slave)
        os.close(master)


@pytest.mark.no_coverage
def test_a_disk_that_is_full_for_a_while(start: Start, tmp_path: Path) -> None:
    """A limit on files stands in for the disk: write(2) fails in the same way, in part at first."""
    server = start("brokenlogapps:app", "--error-logfile", "error.log", "--access-logfile", "access.log")
    ask(server, 3)
    processes = [*server.workers(), server.pid]
    # The worker serves before the master says so: that line, cut by the limit, would be begun by another process.
    wait_until(lambda: "ready: 1 worker" in (tmp_path / "error.log").read_text(), "the master's last line")
    wait_until(lambda: (tmp_path / "access.log").read_text().count("\n") == 3, "three lines")
    unlimited = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    size = max((tmp_path / name).stat().st_size for name in ("error.log", "access.log"))
    for pid in processes:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 30, unlimited[1]))
    ask(server, 50)
    error, access = tmp_path / "error.log", tmp_path / "access.log"
    # The worker first: what it has to say of a line that it has begun comes before a line of the master's.
    for pid in processes:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        wait_until(lambda: access.read_text().count("GET /log?line%20") == 53, "the access log's lines")
        wait_until(lambda: "messages are lost" in error.read_text(), "the error log's loss")
    ask(server, 1, "/log?back{}")
    wait_until(lambda: "back0\n" in error.read_text(), "a new line")
    for path in (error, access):
        torn = [
            line
            for line in path.read_text().splitlines()
            if not LINE.fullmatch(line) and not re.fullmatch(r"back\d|line \d+|second line", line)
        ]
        assert not torn, torn


CONSOLE = """
logconfig_dict = {
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["error_console"], "propagate": False},
        "gunicorn.access": {"level": "INFO", "handlers": ["console", "file"], "propagate": False},
    },
    "handlers": {"file": {"class": "logging.FileHandler", "filename": "/dev/stdout"}},
}
"""


def test_the_console_of_a_logging_configuration(start: Start, pipe: Pipe) -> None:
    server = begin_onto(start, pipe.writer, "-c", "conf.py", files={"conf.py": CONSOLE})
    pipe.read_until("ready: ")
    pipe.fill()
    ask(server, 50)
    crash(server)
    pipe.read_until(r"\n\n\n")
    ask(server, 1, "/log?back{}")
    pipe.read_until(r"/log\?back0 ")
    pipe.fill()
    ask(server, 5)
    stop(server)


def test_what_a_configuration_file_prints(start: Start, pipe: Pipe) -> None:
    """The master has it in a buffer when it forks, and when it ends."""
    conf = "print('read')\ndef pre_fork(server, worker): print('forked')\n"
    server = begin_onto(start, pipe.writer, "-c", "conf.py", files={"conf.py": conf})
    pipe.read_until("ready: ")
    pipe.fill()
    workers = server.workers()
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.workers() and not set(server.workers()) & set(workers), "other workers")
    ask(server, 3)
    stop(server)


def test_what_the_application_has_printed_does_not_hold_up_its_end(start: Start, pipe: Pipe) -> None:
    """It is in the buffer of the worker's `sys.stdout`, which the interpreter flushes at the end."""
    server = begin_onto(start, pipe.writer)
    pipe.read_until("ready: ")
    ask(server, 1, "/print?{}")
    pipe.fill()
    stop(server)


def test_captured_output_on_a_full_disk(start: Start) -> None:
    server = start("brokenlogapps:app", "--capture-output", "--error-logfile", "/dev/full")
    ask(server, 20, "/print?{}")
    stop(server)


def test_status_tells_the_loss(
    start: Start, pipe: Pipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import environment

    monkeypatch.setenv("XDG_RUNTIME_DIR", environment({})["XDG_RUNTIME_DIR"])
    server = begin_onto(start, pipe.writer)
    pipe.read_until("ready: ")
    pipe.fill()
    ask(server, 7)

    def status(*flags: str) -> str:
        capsys.readouterr()
        assert main(["--pid", str(server.pid), "status", *flags]) == 0
        return capsys.readouterr().out

    wait_until(lambda: json.loads(status("--json"))["server"]["lost_log_lines"] >= 7, "the count")
    assert re.search(r"logs +\d+ lines are lost", status())
    stop(server)


def test_a_daemon_lets_go_of_its_standard_error(start_unclassed: Start, tmp_path: Path) -> None:
    """Else whoever has started it through a pipe, ssh for one, would wait for its end."""
    pidfile = tmp_path / "pid"
    server = start_unclassed("apps:app", "-D", "-p", str(pidfile), "-b", "127.0.0.1:0", bind="none")
    assert server.wait() == 0
    pid = int(wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), "the pid file"))
    try:
        server.watch_session(os.getsid(pid))
        for stream in (server.log, server.out):
            wait_until(lambda stream=stream: not stream._thread.is_alive(), "the stream's end")
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), "the daemon's end")
