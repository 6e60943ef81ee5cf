"""Fixtures of the live tests: servers that tests share, and servers of their own."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rawclient import RawClient
from server import Connect, Server, Start, wait_until, without_coverage

FAKE_SERVER = str(Path(__file__).with_name("fakeserver.py"))

# The worker classes that every live test runs against.
WORKER_CLASSES = ["sync", "threads", "gevent"]

# How a well-made server tells of a client's fault: one warning with the peer.
# One behind a proxy has the name that the proxy tells (PROXY protocol, uwsgi).
CLIENT_FAULT = r"\[WARNING\].*(127\.0\.0\.[12]|203\.0\.113\.9)"


@pytest.fixture(scope="session", autouse=True)
def _descriptors() -> None:
    """Let the tests open as many connections as the system allows."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(autouse=True)
def _coverage(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the servers of a test that is marked ``no_coverage`` run as they do without ``--cov``."""
    if request.node.get_closest_marker("no_coverage") is None:
        yield
        return
    with without_coverage():
        yield


@pytest.fixture(scope="session", params=WORKER_CLASSES)
def worker_class(request: pytest.FixtureRequest) -> str:
    """The worker class under test."""
    return str(request.param)


def _finish(server: Server) -> None:
    try:
        if server.process.poll() is None:
            assert server.stop() == 0, server.log.text
        server.check()
    finally:
        server.close()


# Servers idle at a cost: a worker of each is in memory.
_MOST_SHARED = 8


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Make a server, or return the one that was made with the same arguments; the least lately used are stopped."""
    made: dict[Any, Server] = {}
    problems: list[str] = []

    def end(server: Server) -> None:
        try:
            _finish(server)
        except Exception as problem:  # the others are to be stopped all the same
            problems.append(str(problem) if isinstance(problem, AssertionError) else repr(problem))

    def get(worker_class: str, app: str, *args: str, expect: tuple[str, ...] = ()) -> Server:
        key = (worker_class, app, args, expect)
        found = made.pop(key, None)
        if found is None:
            while len(made) >= _MOST_SHARED:
                end(made.pop(next(iter(made))))
            directory = tmp_path_factory.mktemp("shared")
            found = Server(directory, app, args, worker_class=worker_class, expect=expect)
        made[key] = found  # as the last
        return found

    yield get
    for server in made.values():
        end(server)
    assert not problems, "\n\n".join(problems)


@pytest.fixture
def shared_servers(worker_class: str, _shared: Callable[..., Server]) -> Start:
    """Make a server, or return the one that was made with the same arguments: starting costs.

    A test must leave it as it was, and may use a few at a time: see `_MOST_SHARED`.
    """
    return partial(_shared, worker_class)


def _during(found: Server) -> Iterator[Server]:
    """Hand a shared server to a test, and blame the test for what the log says meanwhile."""
    before = len(found.log.lines)
    yield found
    found.check(before)


@pytest.fixture
def server(shared_servers: Start) -> Iterator[Server]:
    """The shared server of well-behaved clients and applications: its log stays clean."""
    yield from _during(shared_servers("apps:app"))


@pytest.fixture
def strict_server(shared_servers: Start) -> Iterator[Server]:
    """The shared server that broken clients talk to: one warning for each, nothing worse."""
    yield from _during(shared_servers("apps:app", "--keep-alive", "60", expect=(CLIENT_FAULT,)))


@pytest.fixture
def failing_server(shared_servers: Start) -> Iterator[Server]:
    """The shared server whose applications fail: errors and tracebacks are in its log, and it lives on."""
    found = shared_servers("apps:app", "--log-level", "debug", expect=(r"\[ERROR\]|\[WARNING\]|Traceback",))
    before = found.workers()
    yield from _during(found)
    assert not before or found.workers() == before, "a failing application cost a worker"


@pytest.fixture
def client(server: Server) -> Iterator[RawClient]:
    """A connection to the shared server."""
    with RawClient(server.address) as found:
        yield found


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open connections that are closed at the end of the test, however it ends."""
    with contextlib.ExitStack() as stack:
        yield lambda address: stack.enter_context(RawClient(address))


@pytest.fixture
def start(worker_class: str, start_unclassed: Start) -> Start:
    """Start a server of the test's own, in a directory of its own; checked and stopped at the end.

    ``files`` maps names to texts that are written there first.
    """
    return partial(start_unclassed, worker_class=worker_class)


@pytest.fixture
def start_unclassed(tmp_path: Path) -> Iterator[Start]:
    """The same, once and not for every worker class: for tests whose configuration says the class."""
    made: list[Server] = []

    def begin(app: str | None = "apps:app", *args: str, files: dict[str, str] | None = None, **rest: Any) -> Server:
        for name, text in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        rest.setdefault("worker_class", None)
        server = Server(tmp_path, app, args, **rest)
        made.append(server)
        return server

    yield begin
    problems = []
    for server in made:
        try:
            _finish(server)
        except Exception as problem:  # the others are to be stopped all the same
            problems.append(repr(problem) if not isinstance(problem, AssertionError) else str(problem))
    assert not problems, "\n\n".join(problems)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name the cases by their bytes only where a case has no name of its own."""
    if isinstance(val, bytes):
        return re.sub(r"[^\w.:/-]+", "_", val[:24].decode("latin-1"))
    return None


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Start]:
    """Start ``fakeserver.py`` with flags, in ``tmp_path``; at the end nothing of it may be left.

    ``behaviour`` is how its workers behave, ``config`` the text of its configuration file.
    """
    made: list[Server] = []

    def start(*args: str, behaviour: str = "ready", config: str = "", env: dict[str, str] | None = None) -> Server:
        (tmp_path / "behaviour").write_text(behaviour)
        (tmp_path / "conf.py").write_text(config)
        command = [sys.executable, FAKE_SERVER, "-c", "conf.py", *args, "fake:app"]
        if not any(arg == "-b" for arg in args) and "bind" not in config:
            command[2:2] = ["-b", "127.0.0.1:0"]
        found = Server(tmp_path, None, bind="none", command=command, env=env)
        made.append(found)
        return found

    yield start
    for server in made:
        if server.process.poll() is None:
            server.stop(2)
        try:
            wait_until(lambda server=server: not server.leftovers(), "no process is left", 5.0)
        finally:
            server.close()
