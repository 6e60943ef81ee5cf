"""Runs a configuration file of tests/gunicorn_files under a server and returns what an outsider observes.

The first lines of a file say what it stands for, what to do and what to look at: README.md beside the files has the
directives. The same steps run under gunicorn and under wsgiserv; what differs by nature (process ids, times,
addresses) is normalised.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rootserver import ROOT_PYTHON, environment_of_workers
from server import bare_environment, children, is_alive, processes, wait_until
from uwsgipacket import packet

FILES = Path(__file__).parents[1] / "gunicorn_files"
# Modules, applications and logging files that the configuration files expect beside them.
BESIDE = FILES / "beside"

# Hides gunicorn from the interpreter that has it on its path.
WITHOUT_GUNICORN = FILES / "without_gunicorn"

# The server under test; where gunicorn is not installed, and where it is.
OURS, OURS_BESIDE = "wsgiserv", "wsgiserv beside gunicorn"
THEIRS = "gunicorn"

# A file that finds gunicorn's modules if they are there.
_USES_GUNICORN = re.compile(r"^\s*(?:from|import) gunicorn\b|gunicorn\.\w+\.|\"company_", re.MULTILINE)

# Generous: other tests share the processors.
DEADLINE_S = 20.0
# wsgiserv's own advice in syslog (the workers run as root, the application looks for gunicorn); its count in statsd.
_ADVICE = re.compile(r"\] WS\d{4} |gunicorn\.log\.warning:")
# Fields of a response that belong to the connection or to the server, not to the application.
_SERVERS_OWN = ("connection", "content-length", "date", "keep-alive", "server", "transfer-encoding")

_NORMAL: Sequence[tuple[str, str]] = (
    (r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\]", "[TIME]"),
    (r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]", "[TIME]"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d+)?(Z|[+-]\d\d:?\d\d)?", "TIME"),
    (r"(\[|pid[ :=]+)\d+\b", r"\1PID"),
    (r"<\d+>$", "<PID>"),
    (r"\b([DMLT])=\d+(\.\d+)?", r"\1=N"),
    (r"\b\d+\.\d{6}\b", "SECONDS"),
    (r"\b127\.0\.0\.1:\d+", "ADDRESS"),
)


@dataclass
class Case:
    """One file: how to start a server with it, the steps, the things to observe.

    Attributes:
        about: the kind of site that it stands for.
        out: a pattern: other lines of the standard output are not observed.
        source: the client's address.
        daemon: the pid file of a server in the background.
        flags: directives without a value.
        steps: the other directives in order, each with its value.
    """

    path: Path
    about: str = ""
    app: str = "shop:app"
    config: str = "gunicorn.conf.py"
    bind: str = "unix"
    out: str = ""
    source: tuple[str, int] | None = None
    daemon: str = ""
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    steps: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def servers(self) -> tuple[str, ...]:
        """The runs of wsgiserv: a file that imports gunicorn needs to work with and without it."""
        return (OURS, OURS_BESIDE) if _USES_GUNICORN.search(self.path.read_text()) else (OURS,)

    @classmethod
    def read(cls, path: Path) -> Case:
        """Return the case that a file describes."""
        lines = path.read_text().splitlines()
        case = cls(path, lines[0].removeprefix("# "))
        for line in lines:
            if not line.startswith("#: "):
                continue
            verb, _, rest = line[3:].partition(" ")
            if verb in ("app", "config", "bind", "daemon", "out"):
                setattr(case, verb, rest)
            elif verb == "from":
                case.source = (rest, 0)
            elif verb == "args":
                case.args += shlex.split(rest)
            elif verb == "env":
                name, _, value = rest.partition("=")
                case.env[name] = value
            elif verb in ("tls", "udp", "root", "any-order", "distinct"):
                case.flags.add(verb)
            else:
                assert hasattr(Run, "step_" + verb), f"{path.name}: no directive {verb!r}"
                case.steps.append((verb, rest))
        assert case.steps, f"{path.name} does nothing"
        return case


def all_cases() -> list[Case]:
    """Return every file's case, in order of their names."""
    return [Case.read(path) for path in sorted(FILES.glob("*.py"))]


class _Connection(http.client.HTTPConnection):
    """A connection to a Unix socket, or with TLS: http.client believes more than a strict client, as it must here."""

    def __init__(self, opened: socket.socket, context: ssl.SSLContext | None) -> None:
        super().__init__("shop.example", timeout=DEADLINE_S)
        self._opened, self._context = opened, context

    def connect(self) -> None:
        """Take the connection that is open already."""
        self.sock = self._opened
        if self._context:
            self.sock = self._context.wrap_socket(self.sock, server_hostname="shop.example")


def _listening_port(pid: int) -> int | None:
    """Return the TCP port on which a process listens, from /proc."""
    inodes = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # it has been closed since
            inodes.add(os.readlink(f"/proc/{pid}/fd/{entry}"))
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            for row in map(str.split, file):
                if row[3] == "0A" and f"socket:[{row[9]}]" in inodes:
                    return int(row[1].rpartition(":")[2], 16)
    return None


class Run:
    """One server with one file, in a directory of its own. A context manager: it leaves no process behind."""

    def __init__(self, case: Case, server: str, directory: Path, tls_files: Callable[[Path], None]) -> None:
        self.case, self.server, self.directory = case, server, directory
        self.observed: dict[str, Any] = {"answers": []}
        self._pids: list[int] = []
        self._udp: socket.socket | None = None
        is_root = "root" in case.flags
        self._python = (is_root and ROOT_PYTHON) or sys.executable
        self._more = environment_of_workers() if is_root else {}
        shutil.copytree(BESIDE, directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(case.path, directory / "gunicorn.conf.py")
        if "tls" in case.flags:
            tls_files(directory)
        self._process = self._start()
        self._sessions = {self._process.pid}

    def _environment(self) -> dict[str, str]:
        place = str(self.directory)
        more = {"HOME": place, "XDG_RUNTIME_DIR": place, "TZ": "UTC", **self._more, **self.case.env}
        if self._udp:
            more["UDP_PORT"] = str(self._udp.getsockname()[1])
        environ = bare_environment(**more)
        if self.server == OURS:
            environ["PYTHONPATH"] = os.pathsep.join([str(WITHOUT_GUNICORN), environ["PYTHONPATH"]])
        return environ

    def _start(self) -> subprocess.Popen[bytes]:
        case = self.case
        if "udp" in case.flags:
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind(("127.0.0.1", 0))
        binds = {"unix": ["-b", "unix:s"], "tcp": ["-b", "127.0.0.1:0"]}.get(case.bind, [])
        config = [] if case.config == "-" else ["-c", case.config]
        app = [] if case.app == "-" else [case.app]
        with open(self.directory / "stdout", "wb") as out, open(self.directory / "stderr", "wb") as err:
            return subprocess.Popen(
                [self._python, "-m", self.server.split()[0], *config, *binds, *case.args, *app],
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._udp:
            self._udp.close()
        for process in processes():
            if process.session in self._sessions:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._process.wait()

    # ---- the master ------------------------------------------------------------------------------------

    @cached_property
    def pid(self) -> int:
        """The master's process id; of a daemon it waits for the pid file."""
        if not self.case.daemon:
            return self._process.pid
        assert self._process.wait(DEADLINE_S) == 0, "the command has failed"
        found = wait_until(lambda: "".join(self._lines(self.case.daemon)).strip(), "a pid file", DEADLINE_S)
        self._sessions.add(os.getsid(int(found)))
        return int(found)

    @property
    def is_running(self) -> bool:
        """Whether the master runs."""
        return is_alive(self.pid) if self.case.daemon else self._process.poll() is None

    def _end(self) -> Any:
        """End the master, if it has not ended; return its exit status, as far as it is known."""
        if self.is_running:
            os.kill(self.pid, signal.SIGTERM)
        try:
            if self.case.daemon:
                wait_until(lambda: not self.is_running, "the master ends", DEADLINE_S)
            return self._process.wait(DEADLINE_S)
        except (AssertionError, subprocess.TimeoutExpired):
            return "does not end"

    # ---- where it listens --------------------------------------------------------------------------------

    @cached_property
    def address(self) -> Any:
        """The address of the server; waits until it listens."""
        return wait_until(self._find_address, f"{self.server} listens", DEADLINE_S)

    def _find_address(self) -> Any:
        assert self.is_running, f"{self.server} has ended: {self._process.returncode}"
        if self.case.bind in ("tcp", "file"):
            port = _listening_port(self.pid)
            return port and ("127.0.0.1", port)
        path = self.directory / ("s" if self.case.bind == "unix" else self.case.bind)
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except OSError:
                return None
        return str(path)

    # ---- steps -------------------------------------------------------------------------------------------

    def observe(self) -> dict[str, Any]:
        """Take all steps, end the server and return the observations by name, normalised."""
        for number, (verb, rest) in enumerate(self.case.steps):
            try:
                getattr(self, "step_" + verb)(rest)
            except Exception as error:
                self.observed[f"step {number + 1}: {verb} {rest}"] = f"{type(error).__name__}: {error}"
                break
        self.observed["exit"] = self._end()
        self._look()
        return self.observed

    def _connect(self) -> socket.socket:
        if isinstance(self.address, tuple):
            return socket.create_connection(self.address, DEADLINE_S, self.case.source)
        client = socket.socket(socket.AF_UNIX)
        try:
            client.settimeout(DEADLINE_S)
            client.connect(self.address)
        except OSError:
            client.close()
            raise
        return client

    def _ask(
        self, target: str, method: str = "GET", body: str | None = None, headers: str = ""
    ) -> tuple[int, Any, str]:
        context = None
        if "tls" in self.case.flags:
            context = ssl._create_unverified_context()
        connection = _Connection(self._connect(), context)
        with contextlib.closing(connection):
            fields = dict(part.strip().split(": ", 1) for part in headers.split(" | ") if part.strip())
            connection.request(method, target, body, fields)
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode("latin-1")

    def _request(self, method: str, target: str, body: str | None, headers: str) -> None:
        try:
            status, fields, text = self._ask(target, method, body, headers)
        except http.client.RemoteDisconnected:
            self.observed["answers"].append((f"{method} {target}", "no answer"))
            return
        chosen = [rest.lower() for verb, rest in self.case.steps if verb == "header"]
        kept = sorted(
            (name.lower(), self.normalise(value))
            for name, value in fields.items()
            if name.lower() not in _SERVERS_OWN or name.lower() in chosen
        )
        # Each server has an error page of its own.
        if status >= 400 and "x-shop" not in fields:
            kept, text = [], "(the server's page)"
        self.observed["answers"].append((f"{method} {target}", status, kept, self.normalise(text)))

    def step_get(self, rest: str) -> None:
        """Make a GET request."""
        target, _, headers = rest.partition(" ")
        self._request("GET", target, None, headers)

    def step_post(self, rest: str) -> None:
        """Make a POST request."""
        target, _, body = rest.partition(" ")
        self._request("POST", target, body, "")

    def _exchange(self, name: str, sent: bytes) -> None:
        with self._connect() as client:
            client.sendall(sent)
            received = b"".join(iter(lambda: client.recv(65536), b""))
        head, _, body = received.decode("latin-1").partition("\r\n\r\n")
        status = head.split(" ")[1] if " " in head else head
        body = "(the server's page)" if "x-shop" not in head.lower() else body
        self.observed["answers"].append((name, status, self.normalise(body)))

    def step_raw(self, rest: str) -> None:
        """Send bytes and read until the server closes."""
        self._exchange(rest, rest.encode().decode("unicode_escape").encode("latin-1"))

    def step_uwsgi(self, rest: str) -> None:
        """Make a request by the uwsgi protocol."""
        path, _, query = rest.partition("?")
        variables = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_URI": rest}
        variables |= {"SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "shop", "SERVER_PORT": "80", "HTTP_HOST": "shop"}
        self._exchange(rest, packet(**variables, REMOTE_ADDR="203.0.113.7", HTTP_CONNECTION="close"))

    def step_children(self, rest: str) -> None:
        """Wait until the master has this many children."""
        wait_until(lambda: len(children(self.pid)) == int(rest), f"{rest} children", DEADLINE_S)

    def step_rotate(self, rest: str) -> None:
        """Rename a log, tell the server, and make requests until the new file has one."""
        log = self.directory / rest
        log.rename(f"{log}.1")
        os.kill(self.pid, signal.SIGUSR1)

        def is_written() -> bool:
            self._ask("/after-the-rotation")
            return "/after-the-rotation" in "".join(self._lines(rest))

        wait_until(is_written, f"{rest} is written again", DEADLINE_S)
        # A request in between goes to the old one.
        old = log.with_name(f"{rest}.1")
        old.write_text("".join(f"{line}\n" for line in self._lines(old.name) if "/after" not in line))

    def step_reloaded(self, rest: str) -> None:
        """Change a file until another worker serves: nothing tells when a server begins to look."""
        path, changed = self.directory / rest, self.directory / "changed"
        self._pids.append(self._worker())
        for _ in range(10):
            changed.write_text(path.read_text() + "\n")
            changed.replace(path)
            with contextlib.suppress(AssertionError):
                self._pids.append(wait_until(self._new_worker, "another worker serves", DEADLINE_S / 10))
                return
        raise AssertionError(f"a change of {rest} replaces no worker")

    def _worker(self) -> int:
        return int(self._ask("/pid")[2])

    def step_signal(self, rest: str) -> None:
        """Send a signal to the master."""
        os.kill(self.pid, signal.Signals["SIG" + rest])

    def step_worker(self, rest: str) -> None:
        """Send a signal to the worker."""
        pid = self._worker()
        self._pids.append(pid)
        os.kill(pid, signal.Signals["SIG" + rest])

    def step_replaced(self, rest: str) -> None:
        """Wait until a worker serves that has not been seen before."""
        if not self._pids:
            self._pids.append(self._worker())
        self._pids.append(wait_until(self._new_worker, "another worker serves", DEADLINE_S))

    def _new_worker(self) -> int | None:
        try:
            pid = self._worker()
        except (OSError, http.client.HTTPException, ValueError):
            return None
        return None if pid in self._pids else pid

    def step_remember(self, rest: str) -> None:
        """Note the worker that serves now: ``replaced`` waits for another one."""
        self._pids.append(self._worker())

    def _await_lines(self, name: str, pattern: str, count: int) -> None:
        wanted = re.compile(pattern)

        def is_there() -> bool:
            return sum(1 for line in self._lines(name) if wanted.search(line)) >= count

        wait_until(lambda: is_there() or not self.is_running, f"{name}: {pattern}", DEADLINE_S)
        assert is_there(), f"{self.server} has ended without {pattern!r}"

    def step_wait(self, rest: str) -> None:
        """Wait for lines of notes."""
        count, _, pattern = rest.partition(" ") if rest.split(" ")[0].isdigit() else ("1", "", rest)
        self._await_lines("notes", pattern, int(count))

    def step_seen(self, rest: str) -> None:
        """Wait for a line of the standard error."""
        self._await_lines("stderr", rest, 1)

    def step_ends(self, rest: str) -> None:
        """Wait until the server ends by itself."""
        self._process.wait(DEADLINE_S)

    def step_mode(self, rest: str) -> None:
        """Observe a file's permissions."""
        path = self.directory / rest
        wait_until(path.exists, rest, DEADLINE_S)
        self.observed[f"mode {rest}"] = oct(path.stat().st_mode & 0o777)

    def step_content(self, rest: str) -> None:
        """Observe a file's text as it is now."""
        self.observed[f"content {rest}"] = self._ordered(self._lines(rest))

    # These are looked at in the end.
    def _at_the_end(self, rest: str) -> None:
        pass

    step_log = step_logfile = step_file = step_header = _at_the_end

    # ---- observations --------------------------------------------------------------------------------------

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.directory / name).read_text("utf-8", "backslashreplace").splitlines()
        except OSError:
            return []

    def normalise(self, text: str) -> str:
        """Return text without what differs from run to run: ids, times, the directory."""
        text = text.replace(str(self.directory), "DIRECTORY")
        for pid in (self.pid, *self._pids):
            text = re.sub(rf"\b{pid}\b", "PID", text)
        for pattern, into in _NORMAL:
            text = re.sub(pattern, into, text)
        return text

    def _look(self) -> None:
        self.observed["notes"] = self._ordered(self._lines("notes"))
        self.observed["stdout"] = self._ordered(
            [line for line in self._lines("stdout") if re.search(self.case.out, line)]
        )
        for verb, rest in self.case.steps:
            if verb == "log":
                self.observed[f"log {rest}"] = self._matches("stderr", rest)
            elif verb == "logfile":
                name, _, pattern = rest.partition(" ")
                self.observed[f"{name} {pattern}"] = self._matches(name, pattern)
            elif verb == "file":
                path = self.directory / rest
                self.observed[rest] = self._ordered(self._lines(rest)) if path.exists() else "not there"
        if self._udp:
            self.observed["datagrams"] = self._datagrams(self._udp)

    def _matches(self, name: str, pattern: str) -> list[str]:
        found = [match[0] for line in self._lines(name) for match in re.finditer(pattern, line)]
        return self._ordered(found)

    def _ordered(self, lines: list[str]) -> list[str]:
        lines = [self.normalise(line) for line in lines]
        if "distinct" in self.case.flags:
            return sorted(set(lines))
        return sorted(lines) if "any-order" in self.case.flags else lines

    def _datagrams(self, udp: socket.socket) -> list[str]:
        udp.setblocking(False)
        found = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                text = udp.recv(4096).decode()
                if _ADVICE.search(text):
                    continue
                found.add(re.sub(r":[\d.]+(?=\|(?:ms|h))", ":N", self.normalise(text)))
        return sorted(found)


def observe(case: Case, server: str, directory: Path, tls_files: Callable[[Path], None]) -> dict[str, Any]:
    """Run a file under a server and return what is observed; the server's standard error is in the directory."""
    directory.mkdir(parents=True)
    with Run(case, server, directory, tls_files) as run:
        return run.observe()
