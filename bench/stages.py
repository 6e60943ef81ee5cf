"""The stages of a request's way for bench hotpath: each alone, called as the server calls it.

The only module of bench/ which imports internals of the server, but for the simulation of autoscale.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, cast

from bench.scenarios import BROWSER_FIELDS
from wsgiserv.http.response import HeadTemplates, date_line
from wsgiserv.logs.access import AccessLog
from wsgiserv.logs.output import Output
from wsgiserv.net.client import Connection
from wsgiserv.net.serving_context import Application, ServingContext, ServingSettings
from wsgiserv.safe_open import Owner
from wsgiserv.scoreboard import REQUESTS, Scoreboard
from wsgiserv.wsgi.environ import base_environ
from wsgiserv.wsgi.input import empty_input
from wsgiserv.wsgi.response import Response, Sink
from wsgiserv.wsgi.response_context import ResponseContext
from wsgiserv.wsgi.run import run_app

TURN = 32  # requests for one flush of the access log
BODY = b"Hello, World!\n"
PEER = {"REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "50000"}
BROWSER = {"Host": "127.0.0.1:8000", **BROWSER_FIELDS, "X-Trace": "00000000"}
DIFFERING = {"unique": ("Referer", "Cookie", "X-Trace"), "strange": tuple(BROWSER), "cached": ()}

# Runs a stage once for each of the prepared requests from the first to before the second number.
Run = Callable[[int, int], None]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer at once."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return [BODY]


class _Socket:
    """Delivers the next request, and takes every response, without a system call."""

    def __init__(self) -> None:
        self.data = b""

    def fileno(self) -> int:
        return 5

    def recv(self, size: int, flags: int) -> bytes:
        return self.data

    def send(self, data: bytes, flags: int) -> int:
        return len(data)


class _Loop:
    """Watches nothing."""

    def watch(self, connection: Connection, interest: int) -> None:
        connection.interest = interest


class _Sink:
    """Takes every response, without a connection."""

    def send(self, data: bytes) -> None:
        pass

    send_last = send


def requests_of(headers: str, count: int) -> list[bytes]:
    """Return the bytes of ``count`` requests with this kind of headers."""

    def request(path: str, number: int) -> bytes:
        lines = "".join(
            f"{name}: {value}{number if name in DIFFERING[headers] else ''}\r\n" for name, value in BROWSER.items()
        )
        return f"GET {path}?number={number} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")

    if headers == "cached":
        return [request("/shop/article", 7)] * count
    return [request(f"/shop/article/{number}", number) for number in range(count)]


class Stages:
    """Makes the runs, for ``count`` requests with this kind of headers."""

    def __init__(self, headers: str, count: int) -> None:
        self._requests = requests_of(headers, count)
        self._log = logging.getLogger("bench.hotpath")

    def make(self, name: str) -> Run:
        """Return the run of a stage by its name in the docstring of bench/hotpath.py."""
        run: Run = getattr(self, "_" + name.replace(" ", "_"))()
        return run

    def _connection(self, access: AccessLog | None = None) -> tuple[Connection, _Socket]:
        context = ServingContext(
            settings=ServingSettings(body_limit=1 << 30, body_memory=1 << 20, spool_dir=None),
            application=Application(app),
            gateway=ResponseContext(self._log, date_line(0)),
            slot=Scoreboard(1, 1).slots[0],
            access=access,
        )
        base = base_environ(
            server_name="127.0.0.1",
            server_port="8000",
            url_scheme="http",
            errors=sys.stderr,
            multithread=False,
            multiprocess=True,
        )
        sock: Any = _Socket()
        loop: Any = _Loop()
        return Connection(context, loop, sock, base, PEER, b"127.0.0.1", trusted=True), sock

    def _access_log_file(self) -> AccessLog:
        return AccessLog(Output("/dev/null", 1, Owner(os.geteuid(), os.getegid())), "combined", self._log)

    def _parse(self) -> Run:
        connection, sock = self._connection()
        requests, start = self._requests, connection.state

        def run(first: int, end: int) -> None:
            receive = connection.receive
            for data in requests[first:end]:
                sock.data = data
                connection.state = start
                if not receive():
                    raise RuntimeError("the request was not understood")

        return run

    def _environ(self) -> Run:
        connection, sock = self._connection()
        context, start = connection.context, connection.state
        heads = []
        for data in self._requests:
            sock.data = data
            connection.state = start
            connection.receive()
            heads.append(connection.request)

        def merge(line: Any, block: Any) -> dict[str, Any]:
            # As in `Connection.run`; `_check_merge` holds that it makes the same.
            trusted = connection.trusted
            request_id = (block.request_id if trusted else None) or next(context.request_ids)
            return {
                **connection.base,
                **connection.peer,
                **block.environ,
                **line.environ,
                "wsgi.input": empty_input(),
                "wsgiserv.request_id": request_id,
            }

        connection.state = start
        _check_merge(connection, merge(*heads[-1]))

        def run(first: int, end: int) -> None:
            for line, block in heads[first:end]:
                merge(line, block)

        return run

    def _scoreboard(self) -> Run:
        slot = Scoreboard(1, 1).slots[0]
        words = slot.words
        line = self._requests[0].partition(b"\r\n")[0]

        def run(first: int, end: int) -> None:
            for number in range(first, end):
                slot.begin(0, 1000.5, b"127.0.0.1", b"0123456789abcdef0123456789abcdef", line)
                slot.end(0)
                words[REQUESTS] = number

        return run

    def _gateway(self) -> Run:
        context = ResponseContext(self._log, date_line(0))
        sink = cast(Sink, _Sink())
        environ: dict[str, Any] = {}

        def run(first: int, end: int) -> None:
            for _ in range(first, end):
                response = Response(sink, context, True, False, True)
                environ["wsgi.early_hints"] = response.early_hints
                run_app(app, environ, response)

        return run

    def _serialise(self) -> Run:
        context = ResponseContext(self._log, date_line(0))
        templates: HeadTemplates = context.templates
        response = Response(cast(Sink, _Sink()), context, True, False, True)
        response.start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])

        def run(first: int, end: int) -> None:
            for _ in range(first, end):
                templates.get("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
                response.begun = False
                response.whole(BODY)

        return run

    def _access_log(self) -> Run:
        connection, sock = self._connection()
        sock.data = self._requests[0]
        connection.receive()
        environ = _environ_of(connection)
        access = self._access_log_file()
        fields = [("Content-Type", "text/plain"), ("Content-Length", "14")]

        def run(first: int, end: int) -> None:
            log = access.log
            for number in range(first, end):
                log(environ, 200, fields, 14, 0.000123)
                if number % TURN == 0:
                    access.flush()

        return run

    def _whole(self, access: AccessLog | None = None) -> Run:
        connection, sock = self._connection(access)
        requests = self._requests

        def run(first: int, end: int) -> None:
            for number, data in enumerate(requests[first:end]):
                sock.data = data
                if not connection.receive():
                    raise RuntimeError("the request was not understood")
                connection.run()
                if access is not None and number % TURN == 0:
                    access.flush()

        return run

    def _logged(self) -> Run:
        return self._whole(self._access_log_file())

    def _socket(self) -> Run:
        # A packet socket keeps the requests apart, so that some can be put in before the server's calls.
        client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request, answer = self._requests[0], BODY * 10

        def run(first: int, end: int) -> None:
            for _ in range(first, end):
                client.send(request)
                server.recv(65536, socket.MSG_DONTWAIT)
                server.send(answer, socket.MSG_DONTWAIT)
                client.recv(65536)

        return run

    def _yardstick(self) -> Run:
        def run(first: int, end: int) -> None:
            for number in range(first, end):
                made: dict[str, Any] = {"a": number, "b": f"{number}x"}
                ",".join([made["b"]] * 8).encode().find(b"y")

        return run


def _environ_of(connection: Connection) -> dict[str, Any]:
    """Run the request that is ready, and return the application's environ."""
    seen: list[dict[str, Any]] = []

    def look(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.append(dict(environ))
        return app(environ, start_response)

    connection.context.application = Application(look)
    connection.run()
    return seen[0]


def _check_merge(connection: Connection, merged: dict[str, Any]) -> None:
    """Raise unless the environ measured here is the one of an application."""
    connection.receive()
    real = _environ_of(connection)
    del real["wsgi.early_hints"]  # of the response
    of_each = {"wsgi.input", "wsgiserv.request_id"}
    differing = {key for key in real.keys() | merged.keys() if real.get(key) != merged.get(key)}
    if differing - of_each or not of_each <= merged.keys():
        raise RuntimeError(f"Connection.run makes another environ than bench hotpath measures: {differing}")
