"""Hooks that raise: named, with their traceback, and harmless unless they may forbid the start."""

from __future__ import annotations

import logging

import pytest

from wsgiserv.errors import BootError
from wsgiserv.hooks import call_hook, call_hook_or_stop

LOG = logging.getLogger("tests.hooks")


def test_a_hook_gets_its_arguments() -> None:
    seen: list[object] = []
    assert call_hook(LOG, "child_exit", lambda *arguments: seen.extend(arguments), 1, 2)
    assert seen == [1, 2]


def test_no_hook_is_no_call() -> None:
    assert call_hook(LOG, "child_exit", None, 1)
    call_hook_or_stop(LOG, "on_starting", None, 1)


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit("bad")])
def test_a_hook_that_raises_is_logged_and_harmless(caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    def hook() -> None:
        raise error

    assert not call_hook(LOG, "when_ready", hook)
    (record,) = caplog.records
    assert f"the hook when_ready raised {type(error).__name__}: bad" in record.getMessage()
    assert record.exc_info is not None


def test_a_keyboard_interrupt_is_not_the_hooks() -> None:
    def hook() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_hook(LOG, "when_ready", hook)


def test_a_hook_that_may_forbid_the_start(caplog: pytest.LogCaptureFixture) -> None:
    def hook() -> None:
        raise ValueError

    with pytest.raises(BootError, match="the hook on_starting raised ValueError, so the server does not start"):
        call_hook_or_stop(LOG, "on_starting", hook)
    assert caplog.records[0].exc_info is not None
