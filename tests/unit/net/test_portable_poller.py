"""The poller over `selectors`, held to what epoll does; with poll(2), which keeps closed descriptors, too."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from select import POLLIN, POLLOUT

import pytest

from wsgiserv.net import portable_poller
from wsgiserv.net.event_loop import Poller, open_poller
from wsgiserv.net.serving_context import NONE, READ, WRITE


@pytest.fixture(params=["epoll", "DefaultSelector", "PollSelector"])
def poller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Poller]:
    if request.param != "epoll":
        monkeypatch.setattr(portable_poller, "_default_selector", getattr(selectors, request.param))
    made = open_poller(portable=request.param != "epoll")
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.send(b"x")
    yield ours, theirs
    ours.close()
    theirs.close()


def test_it_reports_what_is_asked_for(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    fd = pair[0].fileno()
    poller.register(fd, READ)
    assert poller.poll(0) == [(fd, POLLIN)]
    poller.modify(fd, WRITE)
    assert poller.poll(0) == [(fd, POLLOUT)]
    poller.modify(fd, NONE)
    assert poller.poll(0) == []
    poller.modify(fd, READ)
    assert poller.poll(0) == [(fd, POLLIN)]
    poller.unregister(fd)
    assert poller.poll(0) == []


def test_registered_for_nothing_and_woken_later(poller: Poller, pair: tuple[socket.socket, socket.socket]) -> None:
    fd = pair[0].fileno()
    poller.register(fd, NONE)
    assert poller.poll(0) == []
    poller.modify(fd, READ)
    assert poller.poll(0) == [(fd, POLLIN)]
    poller.unregister(fd)


def test_silent_ones_can_be_unregistered_and_registered_again(
    poller: Poller, pair: tuple[socket.socket, socket.socket]
) -> None:
    fd = pair[0].fileno()
    poller.register(fd, READ)
    poller.modify(fd, NONE)
    poller.unregister(fd)
    poller.register(fd, WRITE)
    assert poller.poll(0) == [(fd, POLLOUT)]
    with pytest.raises((OSError, KeyError)):
        poller.register(fd, READ)
    poller.modify(fd, READ)
    assert poller.poll(0) == [(fd, POLLIN)]
    poller.unregister(fd)
    with pytest.raises((OSError, KeyError)):
        poller.unregister(fd)
