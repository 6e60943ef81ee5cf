"""Starts a server, ours or a peer, and reads the memory and the CPU time of its processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[1]
CLASSES = ("sync", "threads", "gevent")
SERVER_CORE, CLIENT_CORE = 0, 1
# Lines of the error log, with the seconds: the whole house waits for them by these names.
READY = r"ready: \d+ workers? in ([\d.]+) s"
RELOADED = r"reloaded: \d+ workers? in ([\d.]+) s"

_UP_WITHIN_S = 15.0
_STOP_WITHIN_S = 40.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Tree(NamedTuple):
    """A checkout of wsgiserv and its Python."""

    path: Path = ROOT
    python: Path = Path(sys.executable)

    @classmethod
    def at(cls, path: str) -> Tree:
        """Return the checkout in a directory; its own virtual environment is used where it has one."""
        found = Path(path).resolve()
        if not (found / "wsgiserv").is_dir():
            raise ValueError(f"{path} is no checkout of wsgiserv: it has no directory wsgiserv")
        own = found / ".venv" / "bin" / "python"
        python = own if own.exists() else Path(sys.executable)
        subprocess.run([python, "-m", "compileall", "-q", found / "wsgiserv"], check=True)
        return cls(found, python)

    def describe(self) -> str:
        """Return the revision and the Python, for the head of a report."""
        git = ["git", "-C", str(self.path), "describe", "--always", "--dirty"]
        revision = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        python = subprocess.check_output([self.python, "-V"], text=True).strip()
        return f"{self.path.name} ({revision or 'not under git'}, {python})"


def ours(
    worker_class: str, workers: int = 1, *options: str, app: str = "benchapps:hello", address: str = "fd://{fd}"
) -> list[str]:
    """Return the arguments that start wsgiserv; ``{fd}`` makes `Server` pass its own listener on."""
    return ["-m", "wsgiserv", "-k", worker_class, "-w", str(workers), "-b", address, *options, app]


class Memory(NamedTuple):
    """Memory of all processes of a server in KiB: added up (RSS), and shared pages counted once (PSS)."""

    rss_kib: int = 0
    pss_kib: int = 0


class CpuTime(NamedTuple):
    """CPU time of a server's processes in seconds."""

    user_s: float
    system_s: float


def children(pid: int) -> list[int]:
    """Return the children of a process; one that exits meanwhile may be missing."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, listed.read_text().split())
    return found


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found, unseen = [], [pid]
    while unseen:
        found.append(unseen.pop())
        unseen += children(found[-1])
    return found


def workers_of(master: int) -> list[int]:
    """Return a master's workers, without its zygote: the titles tell them apart."""
    found = []
    for pid in children(master):
        with suppress(OSError):
            if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the name (proc(5) numbers the first of them 3); empty without one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def memory_of(pids: Sequence[int]) -> Memory:
    """Add up the memory of some processes, by proc(5) ``smaps_rollup``."""
    rss = pss = 0
    for pid in pids:
        with suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib = dict(re.findall(r"^(Rss|Pss):\s+(\d+)", text, re.MULTILINE))
            rss, pss = rss + int(kib["Rss"]), pss + int(kib["Pss"])
    return Memory(rss, pss)


def cpu_time_of(pids: Sequence[int]) -> CpuTime:
    """Add up the CPU time of some processes."""
    fields = list(filter(None, map(stat_fields, pids)))
    return CpuTime(*(sum(int(each[at]) for each in fields) / _TICKS_PER_S for at in (11, 12)))


def free_port() -> int:
    """Return a port that was free a moment ago; not every server can inherit a socket."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def ask(address: Any, target: str = "/") -> bytes:
    """Make one request over a new connection and return the response; raise `RuntimeError` unless it is a 200."""
    answer = b""
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n".encode())
        while data := client.recv(65536):
            answer += data
    if b" 200" not in answer[:13]:
        raise RuntimeError(f"{target} is answered with {answer[:200]!r}")
    return answer


class Server:
    """A server while the ``with`` block lasts, which begins when all its workers are idle.

    Its working directory is new, and has the applications of bench/apps.py as ``benchapps``; those of examples/ can be
    imported, too.

    Args:
        arguments: of the program. ``{port}`` stands for a free port, ``{fd}`` for a listener that the server inherits
            (no port race, and the first client waits in its queue), ``{dir}`` for the working directory.
        tree: the checkout of wsgiserv that is imported, and the Python that runs it.
        program: what is run in place of that Python.
        core: pins all processes to this core.
        env: added to the environment.
        files: texts for the working directory, by file name.
        until_up: returns at the first right answer, and raises when there is none.
        idle_s: how long the server must use no CPU before the block begins: other workers may still import.

    Attributes:
        address: what clients connect to.
        log: the file with its output.
        first_answer_s: from its start to the first answer.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        tree: Tree | None = None,
        program: str | Path | None = None,
        core: int | None = None,
        env: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        until_up: Callable[[Server], None] | None = None,
        idle_s: float = 0.4,
    ) -> None:
        tree = tree or Tree()
        self.directory = Path(tempfile.mkdtemp(prefix="wsgiserv-bench-"))
        shutil.copy(ROOT / "bench" / "apps.py", self.directory / "benchapps.py")
        for name, text in (files or {}).items():
            (self.directory / name).write_text(text)
        self.log = self.directory / "server.log"
        self.first_answer_s = 0.0
        self._until_up, self._idle_s = until_up or _until_200, idle_s
        inherits = any("{fd}" in argument for argument in arguments)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048) if inherits else None
        self._fds = [self._listener.fileno()] if self._listener else []
        self.port: int = self._listener.getsockname()[1] if self._listener else free_port()
        self.address: Any = ("127.0.0.1", self.port)
        names = {"port": self.port, "fd": self._fds[0] if self._fds else "", "dir": self.directory}
        pin = [] if core is None else ["taskset", "-c", str(core)]
        self._command = [*pin, str(program or tree.python), *(each.format_map(names) for each in arguments)]
        path = os.pathsep.join(map(str, (tree.path, self.directory, tree.path / "examples")))
        # Without bytecode each start would compile: half a second in place of a tenth.
        self._env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "", **(env or {})}
        self.start()

    def start(self) -> None:
        """Start it, or start it again after `stop` when it listens on a port."""
        self._began = time.monotonic()
        with open(self.log, "ab") as output:
            self.process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                env=self._env,
                pass_fds=self._fds,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if self._listener:
            self._listener.close()  # the server's alone: clients are refused when it exits

    def stop(self) -> None:
        """Stop the master with SIGTERM, wait until it has exited, and kill the rest of its session."""
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if self.process.poll() is None or self.master != self.process.pid:
                os.kill(self.master, signal.SIGTERM)
            self.process.wait(_STOP_WITHIN_S)
        # Workers without a master would share the core with the next server.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        try:
            self._until_up(self)
            self.first_answer_s = time.monotonic() - self._began
            self._wait_until_idle()
            self._family = family(self.master)
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        self.stop()
        if kind is None or issubclass(kind, (KeyboardInterrupt, ServerError)):
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            print(f"the server's log is {self.log}", file=sys.stderr)

    @property
    def master(self) -> int:
        """The master's process id."""
        return self.process.pid

    def memory(self) -> Memory:
        """Return the memory of all its processes."""
        return memory_of(family(self.master))

    def cpu_time(self) -> CpuTime:
        """Return the CPU time of the processes that were there when the block began.

        Quick, since it is called under load: to look for processes takes 10 ms.
        """
        return cpu_time_of(self._family)

    def mark(self) -> int:
        """Return the present length of the log."""
        return self.log.stat().st_size

    def wait_for_log(self, pattern: str, mark: int = 0, within_s: float = 60.0) -> re.Match[str]:
        """Return the first match in the log behind ``mark``; raise `TimeoutError` when none comes."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            with self.log.open(errors="replace") as file:
                file.seek(mark)
                if found := re.search(pattern, file.read()):
                    return found
            if self.process.poll():
                break
            time.sleep(0.02)
        raise TimeoutError(f"not in the log within {within_s:g} s: {pattern}")

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + _UP_WITHIN_S
        before = None
        while (now := cpu_time_of(family(self.master))) != before:
            if time.monotonic() > deadline:
                raise RuntimeError("the server uses CPU although it has no requests")
            before = now
            time.sleep(self._idle_s)


class ServerError(Exception):
    """A server does not start, or answers wrongly; the text says why in a few words."""


def wait_until_up(server: Server, request: Callable[[], object]) -> None:
    """Call ``request`` until it is answered; raise `ServerError` when the server exits, hangs or does not listen."""
    deadline = time.monotonic() + _UP_WITHIN_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerError(f"does not start: {why(server.log.read_text(errors='replace'))}")
        try:
            request()
            return
        except (ConnectionError, FileNotFoundError):
            time.sleep(0.02)
        except TimeoutError as error:
            raise ServerError("does not answer") from error
    raise ServerError(f"does not listen after {_UP_WITHIN_S:g} s")


def _until_200(server: Server) -> None:
    wait_until_up(server, lambda: ask(server.address))


_REASONS = (
    r"fatal error: (.+)",
    r"^(?:\w+\.)*(\w*(?:Error|Exception|NotFound)\b.*)",
    r"(No matching distribution.*)",
    r"^\s*(?:error|ERROR): (.+)",
)


def why(output: str) -> str:
    """Say in a few words why pip or a server has failed, from its output."""
    found = (re.findall(pattern, output, re.MULTILINE) for pattern in _REASONS)
    lines = [line for line in output.splitlines() if line.strip()] or ["it said nothing"]
    text = str(next((matches[-1] for matches in found if matches), lines[-1]))
    # A path means nothing on another machine, and "|" would end the cell of a table.
    text = re.sub(r"(?:/[\w.+-]+){2,}/", "", text).replace("|", "/").strip()
    return text if len(text) <= 90 else text[:89] + "…"
