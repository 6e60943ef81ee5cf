"""Django's live test cases with this server: `LiveServerTestCase` and `StaticLiveServerTestCase`.

The server is a process of its own. It serves the project as it is at the beginning of the test class, and meets the
tests in their databases.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import traceback
from collections.abc import Mapping
from threading import Event
from typing import Any, ClassVar

from django.contrib.staticfiles.testing import StaticLiveServerTestCase as DjangoStaticLiveServerTestCase
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import got_request_exception
from django.db import connections
from django.test import LiveServerTestCase as DjangoLiveServerTestCase
from django.test.testcases import _MediaFilesHandler

import wsgiserv
from wsgiserv.errors import WsgiservError

__all__ = ["LiveServerTestCase", "StaticLiveServerTestCase"]

# Several: a page asks for others while it is being made.
_DEFAULTS: Mapping[str, Any] = {"worker_class": "threads", "threads": 4}
# A request that a test has left behind is cut after this time, in seconds.
_STOP_S = 5.0


class ServerProcess:
    """The server of a test class, in place of Django's thread: with its attributes and methods.

    Args:
        host, port: the address; port 0 is a free one.
        static_handler: wraps the application, for static files.
        connections_override: not used: a connection cannot be shared with another process.
        settings: the server's settings.

    Attributes:
        port: the port, when it is ready.
        is_ready: set when it is ready, or has failed.
        error: the reason why it has not started, or None.
        log: what it has logged and printed.
    """

    daemon = True  # as of a thread

    def __init__(
        self,
        host: str,
        static_handler: Any,
        connections_override: Mapping[str, Any] | None = None,
        port: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.is_ready = Event()
        self.error: Exception | None = None
        self.connections_override: dict[str, Any] = {}
        self._static_handler = static_handler
        self._settings = {**_DEFAULTS, "post_worker_init": _leave_tests, **(settings or {})}
        self._files = _DatabaseFiles()
        self._server: wsgiserv.Server | None = None

    def start(self) -> None:
        """Start it; return when it is ready, or has failed."""
        self._files.open()
        for connection in connections.all():
            connection.close()  # the server is a fork of this process, which has no use for them
        application = self._static_handler(_MediaFilesHandler(WSGIHandler()))
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._server = wsgiserv.Server(application, f"{host}:{self.port}", **self._settings)
        try:
            self._server.start()
            self.port = self._server.port
        except (WsgiservError, RuntimeError) as error:
            self.error = error
            self._files.close()
        self.is_ready.set()

    def terminate(self) -> None:
        """Stop it. Called when it has started, at the end of the test class."""
        if self._server is not None:
            self._server.stop(_STOP_S)
        self._files.close()

    @property
    def log(self) -> str:
        """What it has logged and printed so far."""
        return self._server.log if self._server is not None else ""


def _leave_tests(worker: Any) -> None:
    """Drop the tests' connections, and print exceptions. The hook of each worker."""
    # What they may be used for (`databases`) is said of the tests, by methods replaced in these objects.
    for connection in connections.all(initialized_only=True):
        del connections[connection.alias]
    # With DEBUG off, as in tests, Django's logging drops the traceback of a failing view.
    got_request_exception.connect(_print_exception, weak=False)


def _print_exception(**_: Any) -> None:
    traceback.print_exc()


class _DatabaseFiles:
    """SQLite databases in memory as files, for the time of a test class: no other process can open memory."""

    def __init__(self) -> None:
        self._moved: list[tuple[Any, Any, str]] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def open(self) -> None:
        """Copy each into a file, which its connection opens from now on."""
        for connection in connections.all():
            if connection.vendor == "sqlite" and connection.is_in_memory_db():
                self._move(connection)

    def _move(self, connection: Any) -> None:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="wsgiserv-test-")
        connection.ensure_connection()
        path = os.path.join(self._directory.name, f"{connection.alias}.sqlite3")
        file = sqlite3.connect(path)
        try:
            # Readers do not wait for a writer in another process. The mode stays with the file.
            file.execute("PRAGMA journal_mode=WAL")
            connection.connection.backup(file)
        finally:
            file.close()
        # The open connection keeps what is in memory.
        self._moved.append((connection, connection.connection, connection.settings_dict["NAME"]))
        connection.connection = None
        connection.settings_dict["NAME"] = path

    def close(self) -> None:
        """Return to the databases in memory, as they were before."""
        while self._moved:
            connection, in_memory, name = self._moved.pop()
            connection.close()
            connection.settings_dict["NAME"] = name
            connection.connection = in_memory
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None


class _Served:
    """Has the server of a live test case be a `ServerProcess`.

    Attributes:
        server_settings: settings of the server, by their names: ``{"worker_class": "gevent"}``.
    """

    server_settings: ClassVar[Mapping[str, Any]] = {}
    server_thread: Any

    @classmethod
    def _make_connections_override(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def _create_server_thread(cls, connections_override: Mapping[str, Any]) -> ServerProcess:
        case: Any = cls
        return ServerProcess(
            case.host, case.static_handler, connections_override, port=case.port, settings=cls.server_settings
        )

    def _callTestMethod(self, method: Any) -> None:
        seen = len(self.server_thread.log)
        try:
            super()._callTestMethod(method)  # type: ignore[misc]
        except Exception as error:
            if log := self.server_thread.log[seen:].strip():
                error.add_note(f"The server's log since the test began:\n{log}")
            raise


class LiveServerTestCase(_Served, DjangoLiveServerTestCase):  # type: ignore[misc]
    """As Django's: ``live_server_url`` leads to this server."""


class StaticLiveServerTestCase(_Served, DjangoStaticLiveServerTestCase):  # type: ignore[misc]
    """As Django's: with the files of ``django.contrib.staticfiles``, without ``collectstatic``."""
