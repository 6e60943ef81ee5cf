"""A stop while the server starts is not lost where Python drops the exception that it raises."""

from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator

import pytest

from wsgiserv.master.signals import StartInterrupt, StoppedWhileStarting, raise_if_dropped


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Put the handlers back."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Thing:
    """What a weak reference can refer to."""


def test_one_that_was_dropped_in_a_weakref_callback_is_raised_later(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: dropped.append(args.exc_type))
    StartInterrupt().arm()
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    del thing
    assert reference() is None
    assert dropped == [StoppedWhileStarting]
    with pytest.raises(StoppedWhileStarting):
        raise_if_dropped()
    raise_if_dropped()  # it is said once
