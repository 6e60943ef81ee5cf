"""Starts a program of the field under wsgiserv, for its own client to use."""

from __future__ import annotations

import gzip
import http.client
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from server import ROOT, Server, children, title_of, wait_until

Answer = tuple[int, str]


@dataclass
class Running:
    """A program that serves.

    Attributes:
        server: the process, with its log.
        directory: its working directory.
        python: the interpreter of its environment.
        sink: what it has sent to the collector of this measurement.
    """

    server: Server
    directory: Path
    python: str
    sink: Sink

    def get(self, path: str = "/", headers: Mapping[str, str] | None = None) -> Answer:
        """Return the status and the text of a page."""
        client = http.client.HTTPConnection(*self.server.address, timeout=30)
        try:
            client.request("GET", path, headers=dict(headers or {}))
            response = client.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        finally:
            client.close()

    def run(self, code: str, *args: str) -> str:
        """Run a client in the program's own environment; return its output. Raises AssertionError if it fails."""
        done = subprocess.run(
            [self.python, "-c", code, self.server.url, *args],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"the client has failed:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def reload(self) -> None:
        """Reload by SIGHUP; return when all workers are new."""
        before = set(self.workers())
        self.server.send_signal(signal.SIGHUP)
        wait_until(lambda: self.workers() and not before & set(self.workers()), "new workers", 60)

    def workers(self) -> list[int]:
        """Return the workers' process ids: below the zygote, where there is one."""
        found = []
        for child in self.server.workers():
            # Not by the word worker: now and then a process of opentelemetry-instrument has no title.
            found += children(child) if "zygote" in title_of(child) else [child]
        return found


class Sink:
    """An HTTP server on the loopback that takes whatever agents send."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                sink.bodies.append((self.path, body))
                self._answer()

            do_PUT = do_POST

            def do_GET(self) -> None:
                self._answer()

            def _answer(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait_for(self, path: str, text: str) -> None:
        """Wait until something with this text has come for this path."""
        wait_until(
            lambda: any(path in each and text.encode() in body for each, body in list(self.bodies)),
            f"{text!r} for {path}; there is {[(each, len(body)) for each, body in self.bodies]}",
            30,
        )

    def close(self) -> None:
        """Stop taking."""
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class Program:
    """A program of the field.

    Attributes:
        packages: for pip; the first one's version is shown.
        use: uses it, and returns what it has seen, for the record. Raises AssertionError.
        app: what is served.
        files: written to the working directory.
        arguments: of wsgiserv.
        environment: added; ``{port}`` stands for the collector's port, ``{directory}`` for the working directory.
        wrapper: the program of the environment that starts wsgiserv.
        classes: the worker classes to try.
        around: runs a service that it needs, and yields more environment.
    """

    packages: tuple[str, ...]
    use: Callable[[Running], str]
    app: str = "site_:app"
    files: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ("-w", "2")
    environment: Mapping[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    classes: tuple[str, ...] = ("sync", "threads", "gevent")
    around: Callable[[Path], Iterator[dict[str, str]]] | None = None


def is_answering(running: Running) -> bool:
    """Return whether it answers at all."""
    try:
        return running.get()[0] < 600
    except OSError:
        return False


@contextmanager
def started(program: Program, kind: str, place: Path, directory: Path) -> Iterator[Running]:
    """Run a program with one worker class."""
    for name, text in program.files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    sink = Sink()
    more = {name: value.format(port=sink.port, directory=directory) for name, value in program.environment.items()}
    around = program.around(directory) if program.around is not None else iter([{}])
    python = str(place / "bin" / "python")

    class Ours(Server):
        program = (python, "-m", "wsgiserv")

    try:
        more |= next(around)
        # PYTHONPATH has the tree: what is measured is this checkout, not what is installed.
        more |= {"PATH": f"{place}/bin:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}", "HOME": str(directory)}
        wrap = [str(place / "bin" / program.wrapper[0]), *program.wrapper[1:]] if program.wrapper else ["env"]
        server = Ours(directory, program.app, program.arguments, worker_class=kind, env=more, wrap=wrap)
        try:
            yield Running(server, directory, python, sink)
            assert server.stop(deadline_s=60) == 0, server.log.text
        finally:
            server.close()
    finally:
        sink.close()
        next(around, None)
