"""The pytest plugin: fixtures that start servers, and their logs in the reports of failed tests.

Every pytest of an environment with wsgiserv imports this module, so it imports nothing of the server before a fixture
is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wsgiserv import Server

# The servers of the fixtures in use, each with its fixture's name.
_running = pytest.StashKey[list[tuple[str, "Server"]]]()
# How long the logs of shared servers were when the test began.
_seen = pytest.StashKey[dict[int, int]]()

# A request that a test has left behind is cut after this time, in seconds.
_STOP_S = 5.0


def _factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    from wsgiserv import Server

    running = request.config.stash.setdefault(_running, [])
    made: list[tuple[str, Server]] = []
    name = request.fixturename or ""

    def start(app: str | Callable[..., Any], **settings: Any) -> Server:
        __tracebackhide__ = True
        server = Server(app, **settings).start()
        made.append((name, server))
        running.append(made[-1])
        return server

    try:
        yield start
    finally:
        for each in reversed(made):
            each[1].stop(_STOP_S)
            running.remove(each)


@pytest.fixture
def wsgi_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Start servers for this test: ``wsgi_server(app, **settings)`` returns a running ``wsgiserv.Server``.

    The arguments are those of ``wsgiserv.Server``: an application or its name, ``"module:app"``, and settings by their
    names. The port is a free one. The servers stop when the test has ended; the report of a failed test has their logs.
    """
    yield from _factory(request)


@pytest.fixture(scope="module")
def module_wsgi_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Start servers that the tests of a module share: as ``wsgi_server``, until the last of them has ended."""
    yield from _factory(request)


@pytest.fixture(scope="session")
def session_wsgi_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Start servers that all tests share: as ``wsgi_server``, until the end of the run."""
    yield from _factory(request)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note how much of the shared logs belongs to earlier tests."""
    if running := item.config.stash.get(_running, None):
        item.stash[_seen] = {id(server): len(server.log) for _, server in running}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add the logs of the test's servers to the report of its failure."""
    report: pytest.TestReport = yield
    running = item.config.stash.get(_running, None)
    if not running or not report.failed:
        return report
    names = getattr(item, "fixturenames", ())
    seen = item.stash.get(_seen, {})
    for name, server in running:
        if name in names:
            since = seen.get(id(server), 0)
            title = f"wsgiserv log of {server.url}" + (" since the test began" if since else "")
            report.sections.append((title, server.log[since:]))
    return report
