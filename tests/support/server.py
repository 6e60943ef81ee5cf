"""A real server process under test, and what must be true of it when the test is over."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from forkserver import Forked, can_fork

import wsgiserv

if TYPE_CHECKING:
    from rawclient import RawClient

# Generous: the suite shares two cores. A wait ends at its event, so only a failure lasts this long.
DEADLINE_S = 15.0

HERE = Path(__file__).parent
ROOT = Path(wsgiserv.__file__).parents[1]

# What a log may hold only if the test said so.
_TROUBLE = re.compile(
    r"\[(?:WARNING|ERROR|CRITICAL)\]|Traceback \(most recent call last\)|"
    r"garbage collected without being closed|ResourceWarning"
)
# Who runs the tests as root has a warning at the start of each server.
_AS_ROOT = re.compile(r"the workers run as root\.")
# Variables that configure a server must not leak in from whoever runs the tests.
# What a server under test does not inherit: an unbuffered stdout would hide what is never flushed.
_OURS = ("WSGISERV_CMD_ARGS", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", "PORT", "FORWARDED_ALLOW_IPS", "PYTHONUNBUFFERED")


def wait_until(predicate: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Return the first true value of ``predicate()``; fail with ``what`` when the deadline passes.

    For states that send no event (a process table, a file): polled every 10 ms.
    """
    end = time.monotonic() + deadline_s
    tick = threading.Event()
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        tick.wait(0.01)


class Process(NamedTuple):
    """A row of the process table."""

    pid: int
    parent: int
    session: int
    state: str


def _process(pid: int | str) -> Process | None:
    """Return the row of one process, from /proc; None where there is none, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    state = fields[0].decode()
    return None if state in "ZX" else Process(int(pid), int(fields[1]), int(fields[3]), state)


def processes() -> list[Process]:
    """Return all processes that are not zombies, from /proc."""
    return [found for entry in os.listdir("/proc") if entry.isdigit() and (found := _process(entry))]


def is_alive(pid: int) -> bool:
    """Whether ``pid`` runs (a zombie does not)."""
    return _process(pid) is not None


def title_of(pid: int) -> str:
    """Return what ps shows of a process, its arguments divided by NUL; "" once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""


def is_worker(pid: int) -> bool:
    """Whether ``pid`` is a worker, by its title."""
    return title_of(pid).startswith("wsgiserv: worker")


def children(pid: int) -> list[int]:
    """Return the process ids of the live children of ``pid``, oldest id first.

    Asked for again and again by `wait_until`, so not from the whole table where the kernel keeps a list
    (CONFIG_PROC_CHILDREN).
    """
    try:
        listed: list[str] = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                listed += file.read().split()
    except OSError:  # no such list, or the process or a thread of it has just gone
        return sorted(process.pid for process in processes() if process.parent == pid)
    found = filter(None, map(_process, listed))
    return sorted(process.pid for process in found if process.parent == pid)


class Output:
    """The lines of one stream of a process, collected by a thread as they come."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.lines: list[str] = []
        self._arrived = threading.Condition()
        self._closed = False
        self._stream = stream
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        fd = self._stream.fileno()
        with self._stream:
            rest = b""
            while data := os.read(fd, 65536):
                # What has been written at once, as the lines of one record are, comes at once.
                while select.select([fd], [], [], 0)[0] and (more := os.read(fd, 65536)):
                    data += more
                *lines, rest = (rest + data).split(b"\n")
                self._add(lines)
            if rest:
                self._add([rest])
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    def _add(self, lines: list[bytes]) -> None:
        with self._arrived:
            self.lines += [line.decode("utf-8", "backslashreplace") for line in lines]
            self._arrived.notify_all()

    @property
    def whole(self) -> str:
        """All lines so far, each with its end."""
        with self._arrived:
            return "".join(f"{line}\n" for line in self.lines)

    @property
    def text(self) -> str:
        """All lines so far."""
        with self._arrived:
            return "\n".join(self.lines)

    def wait_for(self, pattern: str, deadline_s: float = DEADLINE_S, *, after: int = 0) -> re.Match[str]:
        """Return the first match within one line, from line number ``after`` on; fail at the deadline."""
        wanted = re.compile(pattern)
        end = time.monotonic() + deadline_s
        seen = after
        with self._arrived:
            while True:
                for line in self.lines[seen:]:
                    if match := wanted.search(line):
                        return match
                seen = max(seen, len(self.lines))
                left = end - time.monotonic()
                if left <= 0 or self._closed:
                    why = "the stream was closed" if self._closed else f"{deadline_s:g} s passed"
                    raise AssertionError(f"no line like {pattern!r}: {why}. The lines:\n" + "\n".join(self.lines))
                self._arrived.wait(left)

    def join(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait for the end of the stream."""
        self._thread.join(deadline_s)


class Server:
    """One ``python -m wsgiserv`` with its listening socket.

    Args:
        directory: its working directory.
        app: the application's name; None leaves it to the arguments.
        args: further command line arguments.
        bind: ``fd`` (the test owns the listener and passes it on: no port race, nothing to wait for),
            ``tcp`` (127.0.0.1:0, the port is read from the startup lines) or ``none`` (the arguments say).
        expect: patterns of the log lines that may be there although they are warnings or errors.
        env: added to the environment.
        wrap: a command to run it under, such as ``unshare -n``.
        command: run this instead of ``program`` with the arguments above.
        pass_fds: further descriptors that it inherits.

    `stop` and `check` are for the test, `close` for the fixture's end: it kills what is left.
    """

    # `python -m` rather than the console script: the tests run from a tree that may not be installed.
    program: Sequence[str] = (sys.executable, "-m", "wsgiserv")

    def __init__(
        self,
        directory: Path,
        app: str | None = "apps:app",
        args: Iterable[str] = (),
        *,
        worker_class: str | None = "sync",
        bind: str = "fd",
        expect: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        wrap: Sequence[str] = (),
        command: Sequence[str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.directory = directory
        self._expected = [re.compile(pattern) for pattern in expect]
        self._address: Any = None
        self._sessions: set[int] = set()
        self.listener: socket.socket | None = None
        options = ["-k", worker_class] if worker_class else []
        if bind == "fd":
            self.listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
            self._address = self.listener.getsockname()
            pass_fds = (*pass_fds, self.listener.fileno())
            options += ["-b", f"fd://{self.listener.fileno()}"]
        elif bind == "tcp":
            options += ["-b", "127.0.0.1:0"]
        if not (wrap or command):
            arguments = [*options, *args, *([app] if app else [])]
            self.process = start_process(arguments, directory, env or {}, pass_fds, worker_class == "gevent")
        else:
            arguments = [*wrap, *(command or [*self.program, *options, *args, *([app] if app else [])])]
            self.process = _execute(arguments, directory, environment(env or {}), pass_fds)
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        self.log = Output(self.process.stderr)
        self.out = Output(self.process.stdout)
        self._sessions.add(self.process.pid)

    @property
    def pid(self) -> int:
        """The master's process id."""
        return self.process.pid

    @property
    def address(self) -> Any:
        """What a client connects to; with ``bind='tcp'`` it waits for the startup lines."""
        if self._address is None:
            match = self.log.wait_for(r"https?://([\d.]+):(\d+)")
            self._address = (match[1].replace("0.0.0.0", "127.0.0.1"), int(match[2]))
        return self._address

    @property
    def url(self) -> str:
        """The address as the beginning of a URL."""
        return "http://{}:{}".format(*self.address)

    def workers(self) -> list[int]:
        """Return the process ids of the master's children."""
        return children(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal to the master."""
        os.kill(self.pid, number)

    def reload(self, expect: str = "reloaded") -> None:
        """Reload by SIGHUP; return when the old workers have left: until then one of them may take a connection."""
        before = [pid for each in self.workers() for pid in (each, *children(each)) if is_worker(pid)]
        after = len(self.log.lines)
        self.send_signal(signal.SIGHUP)
        self.wait_for_log(expect, after=after)
        wait_until(lambda: not any(map(is_worker, before)), "the old workers have left")

    def expect(self, *patterns: str) -> None:
        """From now on, log lines that match are not a fault."""
        self._expected += [re.compile(pattern) for pattern in patterns]

    def watch_session(self, session: int) -> None:
        """Also look for leftovers in this session (a daemon makes its own)."""
        self._sessions.add(session)

    def wait_for_log(self, pattern: str, deadline_s: float = DEADLINE_S, *, after: int = 0) -> re.Match[str]:
        """Wait for an error log line on the standard error."""
        return self.log.wait_for(pattern, deadline_s, after=after)

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the master's end and return its exit status; fail, with the log, at the deadline."""
        try:
            status = self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {deadline_s:g} s. The log:\n{self.log.text}") from None
        self.log.join()
        self.out.join()
        return status

    def stop(self, number: int = signal.SIGTERM, deadline_s: float = DEADLINE_S) -> int:
        """Signal the master, wait for its end and return its exit status."""
        self.send_signal(number)
        return self.wait(deadline_s)

    def leftovers(self) -> list[Process]:
        """Return the processes of this server that still run."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.getsid(int(entry)) not in self._sessions:  # a thirtieth of the price of its row
                    continue
            except OSError:  # it has just gone
                continue
            if process := _process(entry):
                found.append(process)
        return found

    def trouble(self, after: int = 0) -> list[str]:
        """Return the log lines, from line ``after`` on, that are warnings or worse and that nobody expected."""
        lines = self.log.text.split("\n")[after:]
        found = [line for line in lines if _TROUBLE.search(line) and not _AS_ROOT.search(line)]
        return [line for line in found if not any(pattern.search(line) for pattern in self._expected)]

    def check(self, after: int = 0) -> None:
        """Fail if the log holds trouble (from line ``after`` on); after the end, also if a process is left."""
        lines = self.log.text.split("\n")[after:]
        assert not self.trouble(after), "unexpected log lines:\n" + "\n".join(lines)
        if self.process.poll() is not None:
            left = self.leftovers()
            if left:
                wait_until(lambda: not self.leftovers(), f"no process left, but: {left}", 2.0)

    def close(self) -> None:
        """Kill what is left, without a word. For the end of a fixture, after `check`."""
        for process in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.join()
        self.out.join()
        if self.listener is not None:
            self.listener.close()


# What the fixtures `start` and `connect` are: see conftest.py.
Start = Callable[..., Server]
Connect = Callable[[Any], "RawClient"]


@functools.cache
def _runtime_directory() -> str:
    """Return a directory for this test process's control sockets: short, since their paths are bounded."""
    directory = tempfile.TemporaryDirectory(prefix="wsgiserv-", ignore_cleanup_errors=True)
    atexit.register(directory.cleanup)
    return directory.name


# Under --cov, coverage starts in each new Python process that has these.
_COVERAGE = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
# Execute each server with its own imports, in their real order, in place of forking it from a process that has them.
_MUST_SPAWN = os.environ.get("WSGISERV_TESTS_SPAWN") == "1"
_is_coverage_off = False


@contextlib.contextmanager
def without_coverage() -> Iterator[None]:
    """Start processes that are not measured: --cov imports modules, opens files and needs memory in each."""
    global _is_coverage_off
    before = _is_coverage_off
    dropped = {name: os.environ.pop(name) for name in _COVERAGE if name in os.environ}
    _is_coverage_off |= bool(dropped)
    try:
        yield
    finally:
        _is_coverage_off = before
        os.environ.update(dropped)


def bare_environment(**more: str) -> dict[str, str]:
    """Return the least that a process of this Python needs, which may find its own library by the second only."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a server under test: this tree and the test applications importable."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    measured = [str(HERE / "measured")] if any(name in kept for name in _COVERAGE) else []
    paths = [str(ROOT), str(HERE), *measured, *filter(None, [kept.get("PYTHONPATH")])]
    kept["PYTHONPATH"] = os.pathsep.join(paths)
    kept["XDG_RUNTIME_DIR"] = _runtime_directory()  # the control sockets
    kept["PYTHONDONTWRITEBYTECODE"] = "1"  # a test that rewrites a module within a second must be seen
    return {**kept, **extra}


def plugin_environment() -> dict[str, str]:
    """Return what makes pytest load the plugin of this tree, installed or not, and no other: most are slow to load."""
    return {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "wsgiserv.pytest_plugin"}


def start_process(
    args: Sequence[str], directory: Path, env: Mapping[str, str], pass_fds: tuple[int, ...] = (), gevent: bool = False
) -> Forked | subprocess.Popen[bytes]:
    """Start ``python -m wsgiserv`` with these arguments, in a new session, its outputs in pipes."""
    whole = environment(env)
    # What the interpreter and the dynamic linker read at their start is theirs to read.
    is_special = any(name.startswith(("PYTHON", "LD_", "MALLOC_")) for name in env)
    if not can_fork or _MUST_SPAWN or is_special or _is_coverage_off:
        return _execute([*Server.program, *args], directory, whole, pass_fds)
    return Forked(args, str(directory), whole, pass_fds, gevent)


def _execute(
    command: Sequence[str], directory: Path, env: Mapping[str, str], pass_fds: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def run(args: Iterable[str], directory: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``wsgiserv`` with these arguments to its end (for usage errors, --help, --check-config)."""
    process = start_process([*args], directory, env or {})
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = Output(process.stdout), Output(process.stderr)
    try:
        status = process.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        raise
    out.join()
    err.join()
    return subprocess.CompletedProcess([*args], status, out.whole, err.whole)
