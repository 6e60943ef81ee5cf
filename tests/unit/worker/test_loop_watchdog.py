"""The watch over a loop: told once for each block, while it lasts, and never for a process that was stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsgiserv.logs.output import Output, Owner
from wsgiserv.worker import loop_watchdog
from wsgiserv.worker.loop_watchdog import LoopWatchdog


class Direct(logging.Handler):
    """Has a destination that may be written past its lock, as the error log's handler has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.output = Output(str(path), 2, Owner(0, 0))

    def emit(self, record: logging.LogRecord) -> None:
        raise AssertionError("the record is to go past this")

    def lines(self) -> list[str]:
        return [line for line in self.path.read_text().split("\n") if "gevent_block_warning" in line]


class Later(logging.Handler):
    """Any other handler."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[Direct]:
    made = Direct(tmp_path / "log")
    yield made
    made.output.close()


def watch_through(log: logging.Logger, blocked: list[bool], at_nap: Callable[[int], object] = id) -> LoopWatchdog:
    """Watch a loop with a limit of 1 s through as many naps of 0.25 s; with each the loop is blocked or is not."""
    script = iter(enumerate(blocked))
    asked = False

    def ask() -> None:
        nonlocal asked
        asked = True

    def sleep(duration_s: float) -> None:
        nonlocal asked
        assert duration_s == 0.25
        try:
            number, is_blocked = next(script)
        except StopIteration:
            watch.stop()
            return
        at_nap(number)
        if asked and not is_blocked:
            asked = False
            watch.alive()

    watch = LoopWatchdog(1.0, log, ask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_watchdog, "sleep", sleep)
        patch.setattr(loop_watchdog, "start_thread", lambda function, name: function())
        watch.start()  # in this thread, to the end of the script
    return watch


def make_log(*handlers: logging.Handler) -> logging.Logger:
    log = logging.Logger("watched", logging.INFO)
    log.handlers[:] = handlers
    return log


def test_a_block_is_told_once_and_the_next_one_again(direct: Direct) -> None:
    counts: list[int] = []
    script = [False, False, *[True] * 9, False, False, *[True] * 3, False, *[True] * 5, False]
    watch_through(make_log(direct), script, lambda number: counts.append(len(direct.lines())))
    assert len(direct.lines()) == 2
    # After four naps of 0.25 s, while it lasts; three are not enough.
    assert [counts[4], counts[6]] == [0, 1]
    assert counts[16] == 1
    assert "waiting for 1.0 s" in direct.lines()[0]
    assert "test_loop_watchdog.py" in direct.path.read_text(), "the stack of the loop's thread"


def test_an_idle_loop_is_not_blocked(direct: Direct) -> None:
    watch_through(make_log(direct), [False] * 20)
    assert not direct.lines()


def test_other_handlers_get_it_when_the_loop_runs_again(direct: Direct) -> None:
    later = Later()
    seen: list[int] = []
    watch_through(make_log(direct, later), [*[True] * 6, False], lambda _: seen.append(len(later.records)))
    assert seen == [0] * 7
    assert [record.levelname for record in later.records] == ["WARNING"]


def test_a_log_without_warnings_stays_without(direct: Direct) -> None:
    log = make_log(direct)
    log.setLevel(logging.ERROR)
    watch_through(log, [True] * 8)
    assert not direct.lines()
