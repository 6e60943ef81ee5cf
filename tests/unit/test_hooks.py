"""Hooks that raise: named, with their traceback, and harmless unless they may forbid the start."""

from __future__ import annotations

import logging

import pytest

from wsgiserv.errors import ApplicationError, BootError
from wsgiserv.hooks import HaltServer, StoppedByHook, call_hook, call_hook_or_fail, call_hook_or_stop

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


@pytest.mark.parametrize(("code", "status"), [(7, 7), (None, 0), ("text", 1), (256 + 3, 3)])
def test_a_hook_that_exits_ends_the_start_with_its_status(code: object, status: int) -> None:
    def hook() -> None:
        raise SystemExit(code)

    with pytest.raises(StoppedByHook, match=r"the hook when_ready has called sys\.exit\(\)") as caught:
        call_hook_or_stop(LOG, "when_ready", hook)
    assert caught.value.exit_status == status


def test_a_hook_that_fails_a_boot(caplog: pytest.LogCaptureFixture) -> None:
    def hook() -> None:
        raise SystemExit("not here")

    with pytest.raises(BootError, match="the hook post_fork raised SystemExit: not here"):
        call_hook_or_fail(LOG, "post_fork", hook)
    assert caplog.records[0].exc_info is not None


def test_an_application_that_a_hook_cannot_load_is_the_reason() -> None:
    error = ApplicationError("no such module")

    def hook() -> None:
        raise error

    with pytest.raises(ApplicationError) as caught:
        call_hook_or_fail(LOG, "post_fork", hook)
    assert caught.value is error


def test_halt_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    def hook() -> None:
        raise HaltServer("enough", 0)

    assert not call_hook(LOG, "child_exit", hook)
    assert not caplog.records
